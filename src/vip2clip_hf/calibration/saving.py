"""Write a calibration into a checkpoint."""

import json
import os
import re
import shutil
from pathlib import Path

from ..checkpoints.card import describe_calibration
from ..models.vip2clip.configuration_vip2clip import ViP2ClipConfig
from ..utils.files import new_folder, write_atomically
from .calibration import Calibration


_SECTION = re.compile(r"\n## Decision\n.*?(?=\n## |\Z)", re.DOTALL)


def save_calibration(
    calibration: Calibration, checkpoint: str | os.PathLike, output: str | os.PathLike | None = None
) -> Path:
    """
    Write a calibration into the configuration and the card of a checkpoint.

    Args:
        calibration ([`Calibration`]).
        checkpoint (`str` or `os.PathLike`):
            Folder of the checkpoint.
        output (`str` or `os.PathLike`, *optional*):
            A new folder for a calibrated copy. Without it the checkpoint itself is changed.

    Returns:
        `Path`: the folder written.

    Raises:
        OSError: no folder, one that cannot be written, or `output` is there already.
    """
    checkpoint = Path(checkpoint)
    if not (checkpoint / "config.json").is_file():
        raise OSError(f"{str(checkpoint)!r} holds no config.json; expected the folder of a checkpoint.")
    if output is not None:
        with new_folder(output) as target:
            shutil.copytree(checkpoint, target, dirs_exist_ok=True)
            _write(calibration, target)
        return Path(output)
    _write(calibration, checkpoint)
    return checkpoint


def _write(calibration: Calibration, folder: Path):
    config = ViP2ClipConfig.from_pretrained(folder)
    calibration.apply(config)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in ("image_threshold", "pixel_threshold", "calibration"):
        content[name] = getattr(config, name)
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    card, section = folder / "README.md", describe_calibration(config)
    written = card.read_text(encoding="utf-8") if card.exists() else "# ViP²-CLIP\n"
    written = _SECTION.sub("", written).rstrip("\n") + f"\n\n{section}\n"
    # The card first: a stop in between leaves the thresholds of before.
    write_atomically(card, written)
    write_atomically(folder / "config.json", text)


__all__ = ["save_calibration"]
