"""Write a calibration to a checkpoint."""

import os
import re
import shutil
from pathlib import Path

from ..checkpoints.card import describe_calibration
from ..utils.files import new_folder, write_atomically
from .calibration import Calibration


_SECTION = re.compile(r"\n## Decision\n.*?(?=\n## |\Z)", re.DOTALL)


def save_calibration(
    calibration: Calibration, checkpoint: str | os.PathLike, output: str | os.PathLike | None = None
) -> Path:
    """
    Write a calibration to `decision.json` and the model card of a checkpoint. `config.json` is not changed.

    Args:
        calibration ([`Calibration`]):
            The calibration.
        checkpoint (`str` or `os.PathLike`):
            Checkpoint folder.
        output (`str` or `os.PathLike`, *optional*):
            New folder for a calibrated copy. By default, the checkpoint is changed in place.

    Returns:
        `pathlib.Path`: the calibrated checkpoint.

    Raises:
        OSError: if `checkpoint` is not a checkpoint folder or cannot be written, or if `output` exists and is not
            empty.
    """
    checkpoint = Path(checkpoint)
    if not (checkpoint / "config.json").is_file():
        raise OSError(f"{str(checkpoint)!r} does not contain config.json; expected a checkpoint folder.")
    if output is not None:
        with new_folder(output) as target:
            shutil.copytree(checkpoint, target, dirs_exist_ok=True)
            _write(calibration, target)
        return Path(output)
    _write(calibration, checkpoint)
    return checkpoint


def _write(calibration: Calibration, folder: Path) -> None:
    card, section = folder / "README.md", describe_calibration(calibration.decision)
    written = card.read_text(encoding="utf-8") if card.exists() else "# ViP²-CLIP\n"
    written = _SECTION.sub("", written).rstrip("\n") + f"\n\n{section}\n"
    # The decision last, so that an interruption keeps the old thresholds.
    write_atomically(card, written)
    calibration.decision.save_pretrained(folder)


__all__ = ["save_calibration"]
