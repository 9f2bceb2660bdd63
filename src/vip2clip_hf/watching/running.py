"""Watch a folder until the caller says stop."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..inference.differences import calibrated_with
from ..inference.settings import scoring_settings
from ..models.vip2clip.arguments_vip2clip import is_finite
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..utils.versions import versions
from .candidates import Candidates, Signature, signature_of
from .events import FolderEvents, remote_file_system
from .folder import WatchFolder
from .scanning import WatchedImages
from .scoring import Scorer
from .systemd import notify
from .watcher import DEFAULT_POLL, RESCAN, Watcher, start_events


logger = logging.getLogger(__name__)
# Longest wait in seconds, so that the watcher stops soon after a signal.
LONGEST_WAIT = 0.5
# Smallest number of seconds in an argument.
LEAST = 0.1
# What is logged after a repair of the table, see `ResultsFile.repair`.
REPAIRS = {
    "missing": "did not contain the last row, which was interrupted; it was added.",
    "torn": "contained a part of the last row, which was interrupted; it was completed.",
    "moved": "was changed after an interruption; the last row was added at its end.",
}


def watch_folder(
    detector: AnomalyDetectionPipeline,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    name: str = "this model",
    threshold: float | tuple[float | None, float | None] | None = None,
    settle: float = 2.0,
    give_up: float = 60.0,
    poll: float | None = None,
    new_only: bool = False,
    heatmaps: bool = False,
    recursive: bool = True,
    on_row: Callable[[dict[str, Any]], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, int]:
    """
    Predict each photo in a folder once, and each new one as soon as it is complete, until the caller says stop.

    The rows are those of [`predict_to_folder`] with `batch_size=1`, and the time. They are appended to
    `OUTPUT/results.csv`. A photo gets another row if its contents change. After an interruption of any kind, call the
    function again with the same arguments: no row is lost or written twice.

    Args:
        detector ([`AnomalyDetectionPipeline`]):
            Model, image processor and settings.
        source (`str` or `os.PathLike`):
            Folder to watch. Only names with the extension of an image are read.
        output (`str` or `os.PathLike`):
            New folder, or the folder of an earlier call with the same settings. It must be outside of `source`.
        name (`str`, defaults to `"this model"`):
            Name of the model in `settings.json`.
        threshold (*optional*):
            See [`AnomalyDetectionPipeline`].
        settle (`float`, defaults to 2):
            Seconds without a change after which a file is read.
        give_up (`float`, defaults to 60):
            Seconds without a change after which a file that cannot be decoded gets a row with an error.
        poll (`float`, *optional*):
            List the folder every so many seconds, instead of relying on events of the operating system. By default, 5
            seconds for a folder on a network share, and events for others.
        new_only (`bool`, defaults to `False`):
            Whether to skip the photos that exist at the first call.
        heatmaps (`bool`, defaults to `False`):
            Whether to write heatmaps to `OUTPUT/heatmaps`.
        recursive (`bool`, defaults to `True`):
            Whether to watch subfolders.
        on_row (`Callable`, *optional*):
            Called with each row, a dict of its columns, after it was written. A row that a crash interrupted is
            written at the next call, without calling this function.
        stopped (`Callable`, *optional*):
            Called between photos and at least twice per second. The function returns when it returns `True`.

    Returns:
        `dict[str, int]`: number of rows written by label, and `"error"`.

    Raises:
        ImportError: if watchdog is not installed and the folder is not polled.
        OSError: if a folder does not exist or cannot be used, the output has other settings, or another program
            uses it.
        ValueError: if an argument is out of range.
        RuntimeError: if the model fails for any photo. The photo has no row then.
    """
    given = {"settle": settle, "give_up": give_up, "poll": DEFAULT_POLL if poll is None else poll}
    for argument, value in given.items():
        if not is_finite(value) or value < LEAST:
            raise ValueError(f"{argument} is {value}; expected a number of seconds of at least {LEAST}.")
    if not os.path.isdir(source):
        raise OSError(f"{os.fspath(source)!r} is not a folder; expected a folder to watch.")
    root = os.path.realpath(source)
    images = WatchedImages(root, recursive)
    if poll is None and (kind := remote_file_system(root)) is not None:
        poll = DEFAULT_POLL
        logger.info(f"{root!r} is on a network file system ({kind}): listing it every {poll:g} s.")
    events = FolderEvents(root, recursive) if poll is None else None
    folder = WatchFolder(Path(output), root)
    try:
        folder.lock()  # before the model computes anything
        scorer = Scorer(detector, threshold, heatmaps)
        scorer.probe()
        settings = {
            **scoring_settings(detector, scorer.threshold),
            "source": {"folder": root},
            "heatmaps": heatmaps,
            "new_only": new_only,
        }
        more = {"model": name, "versions": versions(), "calibrated_with": calibrated_with(detector.decision)}
        repaired = folder.open(settings, more, lambda: _existing(images) if new_only else ())
        if repaired in REPAIRS:
            logger.warning(f"{str(folder.table.path)!r} {REPAIRS[repaired]}")
        if events is not None and not start_events(events):
            events, poll = None, DEFAULT_POLL
        watcher = Watcher(scorer, images, folder, Candidates(settle, give_up), events, poll or RESCAN, on_row=on_row)
        logger.info(f"Watching {root!r}, writing to {str(folder.table.path)!r}")
        notify("READY=1")
        while not stopped():
            wait = min(watcher.step(stopped), LONGEST_WAIT)
            notify("WATCHDOG=1")
            if wait > 0 and not stopped():
                if watcher.events is not None:
                    watcher.events.wait(wait)
                else:
                    time.sleep(wait)
        notify("STOPPING=1")
        watcher.confirm()
        return watcher.counts
    finally:
        if events is not None:
            events.stop()
        folder.close()


def _existing(images: WatchedImages) -> Iterator[tuple[str, Signature]]:
    for name in images.names():
        try:
            yield name, signature_of(os.stat(images.path(name)))
        except OSError:
            continue


__all__ = ["watch_folder"]
