"""Write an adapted checkpoint: a new folder, or a complete replacement of an earlier one."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..checkpoints.card import is_generated
from ..checkpoints.saving import CODE_FILES, FILE_NAMES, WEIGHT_FILE, write_checkpoint
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..utils.files import new_folder, temporary_folder, umask, write_atomically


REPORT_NAME = "report.html"


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """
    Yield a temporary folder that replaces an existing one at the end of the `with` block, or is deleted on an error.

    Args:
        target (`pathlib.Path`): existing folder.

    Yields:
        `pathlib.Path`: the temporary folder, next to `target`.

    Raises:
        OSError: if the folder cannot be replaced.
    """
    target = target.resolve()
    staged = temporary_folder(target.parent, target)
    previous = staged.with_name(f"{staged.name}-previous")
    try:
        yield staged
        staged.chmod(target.stat().st_mode & 0o7777)
        target.rename(previous)
        try:
            staged.rename(target)
        except BaseException:
            previous.rename(target)
            raise
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def save_adapted(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    folder: str | os.PathLike,
    report: str,
    *,
    update: bool,
    adapters_only: bool,
) -> Path:
    """
    Write a checkpoint with references, and the report.

    All files are written to a temporary folder first. An interruption leaves no partial checkpoint.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model, with its references and decision.
        image_processor ([`ViP2ClipImageProcessor`]): its image processor.
        folder (`str` or `os.PathLike`): new folder or, to update it, a folder written by this function. Then its other
            files and a model card of the user are kept.
        report (`str`): content of `report.html`.
        update (`bool`): whether to replace the folder.
        adapters_only (`bool`): whether to leave out the backbone.

    Returns:
        `pathlib.Path`: the folder.

    Raises:
        OSError: if the folder cannot be written or, without `update`, exists and is not empty.
    """
    folder = Path(folder)
    with replaced_folder(folder) if update else new_folder(folder) as staged:
        write_checkpoint(model, image_processor, staged, adapters_only=adapters_only)
        if update:
            _keep_other_files(folder, staged)
        write_atomically(staged / REPORT_NAME, report)
        (staged / REPORT_NAME).chmod(0o666 & ~umask())
    return folder


def _keep_other_files(folder: Path, staged: Path) -> None:
    own = {*FILE_NAMES, *(path.name for path in CODE_FILES), REPORT_NAME}
    card = folder / "README.md"
    if card.is_file() and not is_generated(card.read_text(encoding="utf-8")):
        shutil.copy2(card, staged / card.name)
    for path in folder.iterdir():
        if path.name in own or WEIGHT_FILE.fullmatch(path.name) or path.name.startswith(".vip2clip-"):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, staged / path.name, symlinks=True)
        else:
            shutil.copy2(path, staged / path.name, follow_symlinks=False)


__all__ = ["REPORT_NAME", "save_adapted"]
