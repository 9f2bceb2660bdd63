"""Read the saved progress of an evaluation."""

import re
import zipfile
from pathlib import Path

import numpy as np
from transformers.utils import logging


logger = logging.get_logger(__name__)
_PART = re.compile(r"part-(\d+)-(\d+)\.npz")


def read_parts(folder: Path) -> dict[tuple[int, int], dict[str, np.ndarray]]:
    """
    Read the progress of earlier runs. A damaged part is deleted with a warning, so its images are evaluated again.

    Args:
        folder (`pathlib.Path`): folder for the progress.

    Returns:
        `dict[tuple[int, int], dict[str, np.ndarray]]`: arrays by number of the run and rank of the process.

    Raises:
        OSError: if the folder cannot be read.
    """
    parts = {}
    for path in sorted(folder.iterdir()):
        match = _PART.fullmatch(path.name)
        if match is None:
            continue
        try:
            with np.load(path, allow_pickle=False) as file:
                part = dict(file)
            if part["recorder.positions"].shape != part["recorder.scores"].shape:
                raise ValueError("positions and scores differ in number")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning(f"{path.name} is damaged ({error}); its images are evaluated again.")
            path.unlink()
            continue
        parts[int(match[1]), int(match[2])] = part
    return parts


__all__ = ["read_parts"]
