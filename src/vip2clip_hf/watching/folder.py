"""Output folder of a watcher: table, heatmaps, settings and what is known about the photos."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ..inference.differences import explain_differences
from ..utils.files import write_atomically
from ..utils.outputs import is_inside
from ..utils.run_folder import PROGRESS_FOLDER, RunFolder
from ..utils.serialization import to_json
from .candidates import Signature
from .results import HEADER, RESULTS_NAME, ResultsFile
from .state import State


SETTINGS_NAME = "settings.json"
STATE_NAME = "watch.sqlite"
HEATMAPS = "heatmaps"
# Longest file name that common file systems accept, minus room for an extension.
LONGEST_NAME = 240


class WatchFolder:
    """
    Output folder of a watcher. One process uses it at a time.

    Args:
        path (`pathlib.Path`): the folder. It need not exist.
        source (`str`): the folder that is watched.

    Raises:
        OSError: if one of the folders is inside the other.
    """

    def __init__(self, path: Path, source: str) -> None:
        if is_inside(path, source):
            raise OSError(
                f"The output {str(path)!r} is inside {source!r}, which is watched; expected a folder outside of it."
            )
        if path.exists() and is_inside(source, path):
            raise OSError(
                f"The folder {source!r} is inside the output {str(path)!r}; expected an output that is a separate "
                "folder."
            )
        self.path = path
        self.table = ResultsFile(path / RESULTS_NAME)
        self._run = RunFolder(path, "watch")
        self._progress = path / PROGRESS_FOLDER
        self.state: State

    def lock(self) -> None:
        """
        Create and lock the folder, and complete what a crash interrupted.

        Raises:
            OSError: if the folder contains something else, another program uses it, or it cannot be written.
        """
        self._run.check()
        self._run.lock()

    def open(
        self, settings: dict[str, Any], more: dict[str, Any], skipped: Callable[[], Iterable[tuple[str, Signature]]]
    ) -> str:
        """
        Open the state and the table, and complete what a crash interrupted.

        Args:
            settings (`dict[str, Any]`): settings that must be those of the first start; JSON-serializable.
            more (`dict[str, Any]`): written next to the settings; may differ.
            skipped (`Callable`): called at the first start only. Returns name and signature of each file to skip.

        Returns:
            `str`: what was repaired, see [`ResultsFile.repair`]. Empty if there was nothing to check.

        Raises:
            OSError: if the settings differ, the state is missing or damaged, or the table has other columns.
        """
        state_file = self._progress / STATE_NAME
        if not state_file.exists() and self.table.path.exists():
            raise OSError(
                f"{str(self.path)!r} contains {RESULTS_NAME}, but not {PROGRESS_FOLDER}/{STATE_NAME}, which says what "
                "is in it; restore the file, or choose a new output folder."
            )
        self._run.claim([RESULTS_NAME, SETTINGS_NAME])
        settings = json.loads(to_json(settings))  # as it is read: lists instead of tuples
        self.state = State(state_file)
        found = self.state.settings()
        if found is None:
            if (self.path / HEATMAPS).exists():
                raise OSError(f"{str(self.path / HEATMAPS)!r} exists and was not written by a run; move or delete it.")
            self.state.begin(settings, skipped())
        elif different := explain_differences(found, settings):
            raise OSError(
                f"{str(self.path)!r} contains results with {different}; use the same settings, or choose a new output "
                "folder."
            )
        if not (self.path / SETTINGS_NAME).exists():
            write_atomically(self.path / SETTINGS_NAME, to_json({"kind": "watch", **settings, **more}))
        self.table.check()
        repaired = ""
        if (write := self.state.unconfirmed()) is not None:
            repaired = self.table.repair(write)
            self.state.confirm()
        if not self.table.path.exists():
            write_atomically(self.table.path, HEADER)
        return repaired

    def close(self) -> None:
        """Close the state and release the lock."""
        if hasattr(self, "state"):
            self.state.close()
        self._run.release()

    def heatmap(self, name: str, digest: str) -> Path:
        """
        Choose the file of a heatmap.

        Args:
            name (`str`): name of the photo.
            digest (`str`): hash of its contents. A part of it is in file names that are shortened.

        Returns:
            `pathlib.Path`: the file, below the output folder.
        """
        *folders, last = PurePosixPath(name).parts
        if len(os.fsencode(last)) > LONGEST_NAME:
            last = os.fsencode(last)[: LONGEST_NAME - 40].decode("utf-8", "ignore") + f"-{digest[:12]}"
        return self.path.joinpath(HEATMAPS, *folders, f"{last}.png")

    def save_heatmap(self, picture: Image.Image, target: Path) -> None:
        """
        Write a heatmap completely or not at all. An earlier one is replaced.

        Args:
            picture (`PIL.Image.Image`): the heatmap.
            target (`pathlib.Path`): result of [`WatchFolder.heatmap`].

        Raises:
            OSError: if the file cannot be written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        # In the folder of the progress, so that a crash leaves nothing between the heatmaps.
        staged = self._progress / "heatmap.png"
        with open(staged, "wb") as file:
            picture.save(file, format="PNG")
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, target)


__all__ = ["HEATMAPS", "SETTINGS_NAME", "STATE_NAME", "WatchFolder"]
