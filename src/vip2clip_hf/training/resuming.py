"""Resume an interrupted run: find complete checkpoints and load their adapters."""

import inspect
import os
import shutil
from pathlib import Path

from safetensors.torch import load_file
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..models.vip2clip.adapter_weights_vip2clip import RENAMED_ADAPTERS
from ..models.vip2clip.backbone_vip2clip import WEIGHTS_NAME
from ..models.vip2clip.configuration_vip2clip import ViP2ClipConfig
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.provenance_vip2clip import BackboneReference


logger = logging.get_logger(__name__)
STATE_FILE, OPTIMIZER_FILE = "trainer_state.json", "optimizer.pt"


def is_complete_checkpoint(folder: str | os.PathLike) -> bool:
    """
    Check whether training can resume from a checkpoint.

    Args:
        folder (`str` or `os.PathLike`): the checkpoint.

    Returns:
        `bool`: whether the checkpoint was written completely and contains the state of the optimizer.
    """
    files = (WEIGHTS_NAME, "config.json", OPTIMIZER_FILE)
    return all(Path(folder, name).is_file() for name in files) and _has_state(folder)


def _has_state(folder: str | os.PathLike) -> bool:
    """Check whether a checkpoint was written completely. The state file is written last."""
    try:
        TrainerState.load_from_json(str(Path(folder, STATE_FILE)))
    except (OSError, ValueError, TypeError):
        return False
    return True


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    Find the last complete checkpoint in an output folder.

    Args:
        output_dir (`str` or `os.PathLike`): output folder of a training run.

    Returns:
        `str`, *optional*: path of the checkpoint with the highest step, or None if there is no complete checkpoint.
    """
    found = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.rsplit("-", 1)[1]
        if number.isdigit() and is_complete_checkpoint(path):
            found.append((int(number), str(path)))
    return max(found)[1] if found else None


def find_checkpoint(checkpoint: str | bool | None, output_dir: str | os.PathLike) -> str | None:
    """
    Find the checkpoint to resume from.

    Args:
        checkpoint (`str` or `bool`, *optional*): path of a checkpoint, or `True` for the last complete checkpoint in
            the output folder.
        output_dir (`str` or `os.PathLike`): output folder of the training run.

    Returns:
        `str`, *optional*: path of the checkpoint, or None to start from the beginning.

    Raises:
        OSError: if the path is not a complete checkpoint.
    """
    if checkpoint is True:
        last = last_complete_checkpoint(output_dir)
        if last is None:
            logger.warning("No complete checkpoint found. Training starts from the beginning.")
        else:
            logger.warning(f"Resuming from {last}.")
        return last
    if not checkpoint:
        return None
    if not is_complete_checkpoint(checkpoint):
        last = last_complete_checkpoint(Path(checkpoint).parent)
        raise OSError(
            f"{str(checkpoint)!r} is not a complete checkpoint of a training run"
            + (f"; the last complete checkpoint in the same folder is {last}." if last else ".")
        )
    return checkpoint


def remove_incomplete_checkpoints(output_dir: str | os.PathLike) -> list[str]:
    """
    Remove checkpoints that an interrupted save left incomplete.

    Otherwise they would count towards `save_total_limit`. Complete checkpoints without an optimizer
    (`save_only_model`) and other folders are kept.

    Args:
        output_dir (`str` or `os.PathLike`): output folder of a training run.

    Returns:
        `list[str]`: names of the removed folders.
    """
    removed = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        is_checkpoint = path.name.rsplit("-", 1)[1].isdigit() and (path / "config.json").is_file()
        if is_checkpoint and not _has_state(path):
            shutil.rmtree(path)
            removed.append(path.name)
    return removed


def load_adapters(model: ViP2ClipForAnomalyDetection, folder: str | os.PathLike, checksum: str) -> None:
    """
    Load the adapters of a checkpoint into a model with the same backbone.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model; changed in place.
        folder (`str` or `os.PathLike`): the checkpoint.
        checksum (`str`): checksum of the backbone of the model.

    Raises:
        ValueError: if the checkpoint has another backbone, other settings, or adapters with other names or shapes.
        OSError: if the checkpoint cannot be read.
    """
    config = ViP2ClipConfig.from_pretrained(folder)
    if BackboneReference.from_pretrained(folder).checksum not in (None, checksum):
        raise ValueError(f"{folder} was trained with another CLIP backbone; resume with the same --clip.")
    changed = [
        name
        for name in inspect.get_annotations(ViP2ClipConfig)
        if name != "clip_config" and getattr(config, name) != getattr(model.config, name)
    ]
    if changed:
        name = changed[0]
        raise ValueError(
            f"{folder} was trained with {name} {getattr(config, name)!r}, but this model has "
            f"{getattr(model.config, name)!r}. Resume with the original settings."
        )
    weights = load_file(Path(folder, WEIGHTS_NAME))
    weights = {RENAMED_ADAPTERS.get(k, k): tensor for k, tensor in weights.items() if not k.startswith("clip.")}
    expected = model.adapter_state_dict()
    different = sorted(set(weights) ^ set(expected)) or [
        name for name, tensor in weights.items() if tensor.shape != expected[name].shape
    ]
    if different:
        raise ValueError(
            f"The adapters in {folder} do not fit this model: {', '.join(different[:3])} differ. Resume with the "
            "original settings."
        )
    model.load_state_dict(weights, strict=False)


__all__ = [
    "find_checkpoint",
    "is_complete_checkpoint",
    "last_complete_checkpoint",
    "load_adapters",
    "remove_incomplete_checkpoints",
]
