"""Write a complete checkpoint folder: weights, configuration, image processor, remote code, model card."""

import copy
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..models.vip2clip.backbone_vip2clip import backbone_checksum as _checksum_of
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor, check_image_processor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..utils.files import umask
from .card import GENERATED, model_card


_MODEL_FOLDER = Path(__file__).parents[1] / "models" / "vip2clip"
# The remote code: files that make a checkpoint work where this package is not installed.
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
CUSTOM_PIPELINES = {
    "anomaly-detection": {
        "impl": "pipeline_anomaly_detection.AnomalyDetectionPipeline",
        "pt": ["AutoModel"],
        "type": "image",
    }
}
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
    Write a folder that loads with `from_pretrained`, with or without this package installed.

    The files are written aside first and then moved into place; when anything fails an existing folder is as it was.
    Other files in the folder are left alone, and so is a model card (README.md) without the line that marks it as
    generated.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            The model.
        image_processor ([`ViP2ClipImageProcessor`]):
            Its image processor; must produce images of the model's `image_size`.
        folder (`str` or `os.PathLike`):
            Where to write.
        adapters_only (`bool`, defaults to `False`):
            Leave out the frozen CLIP (at ViT-L/14 about 17 MB instead of 1.7 GB). The folder then states the Hub id
            and revision of its CLIP, where known, and the checksum of the weights; loading fetches and compares them.
        backbone_checksum (`str`, *optional*):
            Checksum of the CLIP for a checkpoint of adapters only, where it has been computed before.
        run (`dict`, *optional*):
            What the model card is to say about training and evaluation, see [`model_card`].
        max_shard_size (`int` or `str`, defaults to `"5GB"`):
            Size above which the weights are split over several files. Adapters are always one file.

    Returns:
        `pathlib.Path`: the folder.

    Raises:
        ValueError: the image processor does not fit the model, or adapters are not finite.
        OSError: the folder cannot be written.
    """
    check_image_processor(image_processor, model.config.image_size)
    broken = [name for name, tensor in model.adapter_state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"Nothing is written, training diverged: values that are not finite in {', '.join(broken)}.")
    folder = check_target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)

    # Beside a new folder, inside an existing one: in both cases moving is a rename on the same disk.
    exists = folder.exists()
    staged = Path(tempfile.mkdtemp(prefix=".vip2clip-", dir=folder if exists else folder.parent))
    try:
        _write(model, image_processor, staged, adapters_only, backbone_checksum, run, max_shard_size)
        card = folder / "README.md"
        if card.exists() and GENERATED not in card.read_text(encoding="utf-8"):
            (staged / "README.md").unlink()
        names = sorted(path.name for path in staged.iterdir())
        if exists:
            _replace(folder, staged, names)
        else:
            staged.chmod(0o777 & ~umask())  # mkdtemp makes folders private
            staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def check_target(folder: str | os.PathLike) -> Path:
    """
    The path of a folder that a checkpoint can be written to.

    Raises:
        OSError: it is a file, or has folders where files would have to stand.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OSError(f"{str(folder)!r} is a file; expected a folder or a path that does not exist yet.")
    names = ("README.md", "config.json", "preprocessor_config.json", "model.safetensors")
    for path in (folder / name for name in (*names, *(code.name for code in CODE_FILES))):
        if path.is_dir():
            raise OSError(f"{str(path)!r} is a folder; a checkpoint has a file of that name. Choose another folder.")
    return folder


def _replace(folder: Path, staged: Path, names: list[str]):
    """Move the staged files into an existing folder; on a failure halfway move everything back."""
    # Weights left from an earlier checkpoint that was split differently would be loaded instead of the new ones.
    stale = [path.name for path in folder.iterdir() if WEIGHT_FILE.fullmatch(path.name) and path.name not in names]
    previous = Path(tempfile.mkdtemp(prefix=".vip2clip-", dir=folder))
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
    model, image_processor, folder: Path, adapters_only: bool, checksum: str | None, run, max_shard_size: int | str
):
    model.save_pretrained(
        folder,
        state_dict=model.adapter_state_dict() if adapters_only else None,
        max_shard_size="5GB" if adapters_only else max_shard_size,
    )
    image_processor.save_pretrained(folder)
    config_entries = {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES, "adapters_only": adapters_only}
    if adapters_only:
        config_entries["backbone_checksum"] = checksum or _checksum_of(model.clip.state_dict(), model.clip.dtype)
        config_entries["backbone_dtype"] = str(model.clip.dtype).removeprefix("torch.")
    _add_to_json(folder / "config.json", config_entries)
    _add_to_json(folder / "preprocessor_config.json", {"auto_map": PROCESSOR_AUTO_MAP})
    for path in CODE_FILES:
        shutil.copyfile(path, folder / path.name)
    for path in folder.iterdir():  # some writers make files that only their owner can read
        path.chmod(0o666 & ~umask())
    config = copy.deepcopy(model.config)
    config.adapters_only = adapters_only
    (folder / "README.md").write_text(model_card(config, run), encoding="utf-8")


def _add_to_json(path: Path, entries: dict):
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **entries}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


__all__ = ["CODE_FILES", "WEIGHT_FILE", "write_checkpoint"]
