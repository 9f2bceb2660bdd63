"""Write complete checkpoint folders: weights, configuration, image processor, remote code and model card."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..models.vip2clip.backbone_vip2clip import backbone_checksum as compute_checksum
from ..models.vip2clip.decision_config_vip2clip import DECISION_NAME, SCORES_NAME
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor, check_image_processor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.pretrained_vip2clip import CUSTOM_PIPELINES
from ..models.vip2clip.provenance_vip2clip import BackboneReference, Provenance
from ..models.vip2clip.reference_files_vip2clip import FEATURES_NAME, REFERENCES_NAME
from ..utils.files import apply_umask, temporary_folder, umask
from ..utils.light_imports import without_sharded_tensors
from ..utils.text import encodable
from .card import is_generated, model_card
from .weights import check_unwrapped


_MODEL_FOLDER = Path(__file__).parents[1] / "models" / "vip2clip"
# Remote code: these files are copied into each checkpoint, to load it without this package.
CODE_FILES = tuple(
    path
    for path in sorted(_MODEL_FOLDER.glob("*.py"))
    if path.name not in ("__init__.py", "convert_vip2clip_to_hf.py")
)
AUTO_MAP = {
    "AutoConfig": "configuration_vip2clip.ViP2ClipConfig",
    "AutoModel": "modeling_vip2clip.ViP2ClipForAnomalyDetection",
}
PROCESSOR_AUTO_MAP = {"AutoImageProcessor": "image_processing_vip2clip.ViP2ClipImageProcessor"}
# Files that only some checkpoints contain: calibration scores, references, and the backbone of an adapters-only
# checkpoint.
OPTIONAL_FILES = (SCORES_NAME, BackboneReference.file_name, REFERENCES_NAME, FEATURES_NAME)
FILE_NAMES = (
    "README.md", "config.json", "preprocessor_config.json", DECISION_NAME, Provenance.file_name, *OPTIONAL_FILES
)  # fmt: skip
# Of checkpoints of other methods, which encode texts.
TOKENIZER_FILES = frozenset(
    {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"}
)
WEIGHT_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


def write_checkpoint(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    folder: str | os.PathLike,
    *,
    adapters_only: bool = False,
    backbone_checksum: str | None = None,
    run: dict[str, Any] | None = None,
    max_shard_size: int | str = "5GB",
) -> Path:
    """
    Write a checkpoint folder that can be loaded with `from_pretrained`, with or without this package.

    If the folder exists, its checkpoint is replaced only after all files have been written. If an error occurs, the
    folder does not change. Other files in the folder are kept. A model card (README.md) is also kept, unless it
    contains the line that marks it as generated.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            Model to save.
        image_processor ([`ViP2ClipImageProcessor`]):
            Image processor of the model. Its image size must be the `image_size` of the model.
        folder (`str` or `os.PathLike`):
            Folder to write to. It is created if it does not exist.
        adapters_only (`bool`, defaults to `False`):
            Whether to leave out the frozen CLIP backbone (about 17 MB instead of 1.7 GB for ViT-L/14). The
            checkpoint then contains the checksum of the backbone and, if known, its Hub id and revision, in
            `backbone.json`. Loading fetches the backbone and verifies the checksum.
        backbone_checksum (`str`, *optional*):
            Checksum of the backbone for an adapters-only checkpoint, if already computed.
        run (`dict`, *optional*):
            Information about training and evaluation for the model card, see [`model_card`].
        max_shard_size (`int` or `str`, defaults to `"5GB"`):
            Size above which the weights are split into several files. Adapters are always saved in one file.

    Returns:
        `pathlib.Path`: the folder.

    Raises:
        ValueError: if the image processor does not match the model, if adapters contain NaN or infinite values, or if
            layers are wrapped or quantized.
        OSError: if the folder cannot be written.
    """
    check_image_processor(image_processor, model.config.image_size)
    check_unwrapped(model, "saved")
    model = getattr(model, "_orig_mod", model)
    check_finite(model)
    return write_staged(
        folder,
        lambda staged: _write(model, image_processor, staged, adapters_only, backbone_checksum, run, max_shard_size),
    )


def write_staged(folder: str | os.PathLike, write: Callable[[Path], None]) -> Path:
    """
    Write a checkpoint to an empty folder first, then move its files to their place.

    Args:
        folder (`str` or `os.PathLike`): folder of the checkpoint. If it exists, its checkpoint is replaced; see
            [`write_checkpoint`].
        write (`Callable[[pathlib.Path], None]`): writes all files to an empty folder.

    Returns:
        `pathlib.Path`: the folder.

    Raises:
        OSError: if the folder cannot be written.
    """
    folder = check_target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Next to a new folder or inside an existing one, so that files are moved by renaming them on the same disk.
    exists = folder.exists()
    staged = temporary_folder(folder if exists else folder.parent, folder)
    try:
        write(staged)
        card = folder / "README.md"
        if card.exists() and not is_generated(card.read_text(encoding="utf-8")):
            (staged / "README.md").unlink()
        names = sorted(path.name for path in staged.iterdir())
        if exists:
            _replace(folder, staged, names)
        else:
            staged.chmod(0o777 & ~umask())  # mkdtemp creates private folders
            staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def check_finite(model: Any) -> None:
    """
    Check that adapters are finite.

    Args:
        model: model with `adapter_state_dict()`.

    Raises:
        ValueError: if a weight is NaN or infinite.
    """
    broken = [name for name, tensor in model.adapter_state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(
            f"The adapters contain NaN or infinite values in {', '.join(broken)}, so training has diverged; expected "
            "finite values. Nothing was written."
        )


def backbone_reference(model: Any, checksum: str | None = None) -> BackboneReference:
    """
    Describe the backbone of a model, for an adapters-only checkpoint.

    Args:
        model: model with `clip` and `provenance`.
        checksum (`str`, *optional*): checksum of the backbone, if already computed.

    Returns:
        [`BackboneReference`]: the description.
    """
    return BackboneReference(
        backbone_id=model.provenance.backbone_id,
        backbone_revision=model.provenance.backbone_revision,
        checksum=checksum or compute_checksum(model.clip.state_dict(), model.clip.dtype),
        dtype=str(model.clip.dtype).removeprefix("torch."),
    )


def check_target(folder: str | os.PathLike) -> Path:
    """
    Check that a checkpoint can be written to a path.

    Args:
        folder (`str` or `os.PathLike`): path of the folder.

    Returns:
        `pathlib.Path`: the path.

    Raises:
        OSError: if the path is a file, or contains a folder with the name of a checkpoint file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OSError(f"{str(folder)!r} is a file; expected a folder or a path that does not exist.")
    for path in (folder / name for name in (*FILE_NAMES, "model.safetensors", *(code.name for code in CODE_FILES))):
        if path.is_dir():
            raise OSError(
                f"{str(path)!r} is a folder, but a checkpoint contains a file with this name; choose another folder."
            )
    return folder


def _replace(folder: Path, staged: Path, names: list[str]) -> None:
    """Move the staged files into an existing folder. After an error, restore the previous files."""
    # Remove old weights with other file names, which from_pretrained could load instead of the new weights, and files
    # that not every checkpoint contains, also those of a checkpoint of another method. A card of the user is kept.
    known = {*FILE_NAMES, *(path.name for path in CODE_FILES)} - {"README.md"}
    stale = [
        path.name
        for path in folder.iterdir()
        if path.name not in names and (WEIGHT_FILE.fullmatch(path.name) or path.name in known)
    ]
    previous = temporary_folder(folder, folder)
    try:
        for name in (*stale, *names):
            if (folder / name).exists():
                os.replace(folder / name, previous / name)
        for name in names:
            os.replace(staged / name, folder / name)
    except BaseException:
        for name in os.listdir(previous):
            os.replace(previous / name, folder / name)
        raise
    finally:
        shutil.rmtree(previous, ignore_errors=True)


def _write(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    folder: Path,
    adapters_only: bool,
    checksum: str | None,
    run: dict[str, Any] | None,
    max_shard_size: int | str,
) -> None:
    """Write all files of a checkpoint to an empty folder."""
    with without_sharded_tensors():
        model.save_pretrained(
            folder,
            state_dict=model.adapter_state_dict() if adapters_only else None,
            max_shard_size="5GB" if adapters_only else max_shard_size,
        )
    image_processor.save_pretrained(folder)
    if adapters_only:
        backbone_reference(model, checksum).save_pretrained(folder)
    _add_to_json(folder / "config.json", {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES})
    _add_to_json(folder / "preprocessor_config.json", {"auto_map": PROCESSOR_AUTO_MAP})
    for path in CODE_FILES:
        shutil.copyfile(path, folder / path.name)
    apply_umask(folder)
    card = model_card(
        model.config, run, model.decision, model.provenance, model.references, adapters_only=adapters_only
    )
    (folder / "README.md").write_text(encodable(card), encoding="utf-8")


def _add_to_json(path: Path, entries: dict[str, Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **entries}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


__all__ = [
    "CODE_FILES",
    "FILE_NAMES",
    "OPTIONAL_FILES",
    "TOKENIZER_FILES",
    "WEIGHT_FILE",
    "backbone_reference",
    "check_finite",
    "check_target",
    "write_checkpoint",
    "write_staged",
]
