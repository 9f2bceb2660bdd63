"""Checkpoints of an interrupted training: which are complete, and loading their adapters."""

import inspect
import os
import shutil
from pathlib import Path

from safetensors.torch import load_file
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..models.vip2clip.backbone_vip2clip import WEIGHTS_NAME
from ..models.vip2clip.configuration_vip2clip import ViP2ClipConfig
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection


STATE_FILE, OPTIMIZER_FILE = "trainer_state.json", "optimizer.pt"
# Of the configuration: what may differ between a model and the checkpoint it goes on from.
_FREE_FIELDS = {
    "adapters_only", "backbone_checksum", "backbone_dtype", "backbone_id", "backbone_revision", "clip_config",
    "image_threshold", "pixel_threshold", "training_sets",
}  # fmt: skip


def is_complete_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether training can go on from a checkpoint: it was written to its end, and with its optimizer."""
    files = (WEIGHTS_NAME, "config.json", OPTIMIZER_FILE)
    return all(Path(folder, name).is_file() for name in files) and _has_state(folder)


def _has_state(folder: str | os.PathLike) -> bool:
    """Whether a checkpoint was written to its end: its state is written last."""
    try:
        TrainerState.load_from_json(str(Path(folder, STATE_FILE)))
    except (OSError, ValueError, TypeError):
        return False
    return True


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The last checkpoint in an output folder that was written to its end."""
    found = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.rsplit("-", 1)[1]
        if number.isdigit() and is_complete_checkpoint(path):
            found.append((int(number), str(path)))
    return max(found)[1] if found else None


def remove_incomplete_checkpoints(output_dir: str | os.PathLike) -> list[str]:
    """Remove what an interrupted save has left, so that it neither counts nor takes room. Whole checkpoints without
    their optimizer (save_only_model), and folders of something else, are left alone."""
    removed = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        ours = path.name.rsplit("-", 1)[1].isdigit() and (path / "config.json").is_file()
        if ours and not _has_state(path):
            shutil.rmtree(path)
            removed.append(path.name)
    return removed


def load_adapters(model: ViP2ClipForAnomalyDetection, folder: str | os.PathLike, checksum: str):
    """
    Load the adapters of a checkpoint into a model whose CLIP they were trained on.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model; changed in place.
        folder (`str` or `os.PathLike`): the checkpoint.
        checksum (`str`): checksum of the model's CLIP.

    Raises:
        ValueError: another backbone, other settings, or adapters of other shapes.
        OSError: the checkpoint cannot be read.
    """
    config = ViP2ClipConfig.from_pretrained(folder)
    if config.backbone_checksum not in (None, checksum):
        raise ValueError(f"{folder} was trained on another CLIP backbone than this one; use the same --clip.")
    changed = [
        name
        for name in inspect.get_annotations(ViP2ClipConfig)
        if name not in _FREE_FIELDS and getattr(config, name) != getattr(model.config, name)
    ]
    if changed:
        name = changed[0]
        raise ValueError(
            f"{folder} was trained with {name} {getattr(config, name)!r}, this model has "
            f"{getattr(model.config, name)!r}; go on with the settings it was begun with."
        )
    weights = load_file(Path(folder, WEIGHTS_NAME))
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("clip.")}
    expected = model.adapter_state_dict()
    different = sorted(set(weights) ^ set(expected)) or [
        name for name, tensor in weights.items() if tensor.shape != expected[name].shape
    ]
    if different:
        raise ValueError(
            f"The adapters in {folder} are of another model: {', '.join(different[:3])} do not fit; go on with "
            "the settings they were begun with."
        )
    model.load_state_dict(weights, strict=False)


__all__ = ["is_complete_checkpoint", "last_complete_checkpoint", "load_adapters", "remove_incomplete_checkpoints"]
