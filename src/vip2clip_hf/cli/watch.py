"""`vip2clip watch`."""

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..utils.extras import require
from ..utils.serialization import to_json
from .detector_options import MaxPixels, Threshold, TopK, check_references, detector_options, limit_pixels
from .model_argument import check_model
from .options import (
    Backbone,
    BitDepth,
    Device,
    Dtype,
    Model,
    NoReferences,
    Page,
    Recursive,
    References,
    TileOverlap,
    TileSize,
    checkpoint_or_bundled,
    shows_progress,
)
from .streams import Interrupted, say_bytes


def watch(
    source: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder to watch.")],
    output: Annotated[
        Path, typer.Option(help="Folder for results.csv: a new one, or that of an earlier call. Outside PHOTOS.")
    ],
    model: Model = None,
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="Write a heatmap of each photo to OUTPUT/heatmaps.")]
    = False,
    new_only: Annotated[
        bool, typer.Option("--new-only", help="Skip the photos that exist at the first start.")
    ] = False,
    settle: Annotated[
        float, typer.Option(min=0.1, help="Read a file after this many seconds without a change.")
    ] = 2.0,
    give_up: Annotated[
        float,
        typer.Option(
            min=0.1, help="Write a row with an error for a file that cannot be read after this many seconds without a "
            "change.",
        ),
    ] = 60.0,
    poll: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="List the folder every so many seconds, instead of relying on events of the operating "
            "system.",
            show_default="5 for network shares on Linux, events elsewhere",
        ),
    ] = None,
    threshold: Threshold = None,
    top_k: TopK = None,
    device: Device = None,
    dtype: Dtype = "float32",
    backbone: Backbone = None,
    tile_size: TileSize = None,
    tile_overlap: TileOverlap = None,
    max_pixels: MaxPixels = None,
    references: References = None,
    no_references: NoReferences = False,
    recursive: Recursive = True,
    bit_depth: BitDepth = None,
    page: Page = None,
    as_json: Annotated[bool, typer.Option("--json", help="Also print each row as a line of JSON.")] = False,
) -> None:  # fmt: skip
    """Score each new photo in a folder (extra: watch).

    Reads a photo once it is complete, and appends its row to OUTPUT/results.csv: id, score, label, p_value,
    anomalous_area, error and time. Photos that exist at the start are scored, too. A photo gets another row if its
    contents change.

    To stop, press Ctrl+C or send SIGTERM: the current photo is finished. After any interruption, run the same command
    again: no row is lost or written twice.

    Exit codes: 0 stopped by SIGTERM, 1 error, 2 wrong usage, 130 stopped by Ctrl+C.

    \b
    Examples:
      vip2clip watch photos --output results --model checkpoint
      vip2clip watch photos --output results --heatmaps --new-only
      vip2clip watch /mnt/share/photos --output results --poll 10
    """
    check_references(references, no_references)
    check_model("watch", model, [str(source)], " --output FOLDER")
    if not source.is_dir():
        raise OSError(f"{str(source)!r} is not a folder; expected a folder to watch.")
    if poll is None:
        require("watch", "Watching a folder without --poll", "watchdog", load=False)
    log_to_stderr()
    stop = StopSignals()
    model = checkpoint_or_bundled(model)
    limit_pixels(max_pixels)
    from ..models.loading import check_dtype
    from ..models.vip2clip import AnomalyDetectionPipeline
    from ..utils.files import name_of
    from ..watching.running import watch_folder

    options = detector_options(
        references=references, no_references=no_references, device=device, dtype=check_dtype(dtype), backbone=backbone,
        top_k=top_k, tile_size=tile_size, tile_overlap=tile_overlap, bit_depth=bit_depth, page=page,
    )  # fmt: skip
    shows_progress()
    detector = AnomalyDetectionPipeline.from_pretrained(model, **options)
    counts = watch_folder(
        detector,
        source,
        output,
        name=name_of(model),
        threshold=None if threshold is None else (threshold, threshold),
        settle=settle,
        give_up=give_up,
        poll=poll,
        new_only=new_only,
        heatmaps=heatmaps,
        recursive=recursive,
        on_row=_print_row if as_json else None,
        stopped=lambda: stop.received is not None,
    )
    found = ", ".join(f"{number} {label}" for label, number in sorted(counts.items())) or "none"
    logging.getLogger(__name__).info(f"Stopped. Photos since the start: {found}")
    if stop.received == signal.SIGINT:
        raise Interrupted


def _print_row(row: dict[str, Any]) -> None:
    say_bytes(to_json(row, indent=None).encode("utf-8"))


class StopSignals:
    """
    Remember SIGTERM or Ctrl+C instead of ending at once. Another Ctrl+C, a second later or more, ends the program.

    Attributes:
        received (`int`, *optional*): the first signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._time = 0.0
        for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
            number = getattr(signal, name, None)
            if number is not None:
                signal.signal(number, self._remember)

    def _remember(self, number: int, frame: Any) -> None:
        if self.received is None:
            self.received, self._time = number, time.monotonic()
        # Some programs send a signal to a process and to its group, which is not a second wish.
        elif number == signal.SIGINT and time.monotonic() > self._time + 1:
            raise KeyboardInterrupt


class _Lines(logging.Formatter):
    """One line for each message, with the time, or with the level of the journal under systemd."""

    LEVELS = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def __init__(self, journal: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage() if self._journal else super().format(record)
        text = " ".join(text.split("\n"))
        if not self._journal:
            return text
        return f"<{next((found for level, found in self.LEVELS if record.levelno >= level), 7)}>{text}"


def log_to_stderr() -> None:
    """Print messages of the package to the standard error, from the level INFO on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(journal=_is_journal()))
    logger = logging.getLogger("vip2clip_hf")
    logger.handlers = [handler]
    logger.propagate = False
    for name in ("vip2clip_hf.watching", __name__):
        logging.getLogger(name).setLevel(logging.INFO)


def _is_journal() -> bool:
    """Whether the standard error is connected to the journal of systemd, see systemd.exec(5)."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


__all__ = ["StopSignals", "log_to_stderr", "watch"]
