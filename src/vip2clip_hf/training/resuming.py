"""Checkpoints of a training: find complete ones and load their adapters."""

import inspect
import os
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedConfig, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..models.vip2clip.adapter_weights_vip2clip import RENAMED_ADAPTERS
from ..models.vip2clip.backbone_vip2clip import WEIGHTS_NAME
from ..models.vip2clip.provenance_vip2clip import BackboneReference
from .run_record import RunRecord


STATE_FILE, OPTIMIZER_FILE, SCHEDULER_FILE = "trainer_state.json", "optimizer.pt", "scheduler.pt"


def checkpoints_in(output_dir: str | os.PathLike) -> list[tuple[int, Path]]:
    """
    List the folders `checkpoint-N` in an output folder.

    Args:
        output_dir (`str` or `os.PathLike`): output folder of a training run.

    Returns:
        `list[tuple[int, pathlib.Path]]`: step and path of each folder, complete or not, in the order of the steps.
    """
    found = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.rsplit("-", 1)[1]
        if number.isdecimal() and path.name == f"{PREFIX_CHECKPOINT_DIR}-{int(number)}" and path.is_dir():
            found.append((int(number), path))
    return sorted(found)


def run_of(checkpoint: str | os.PathLike) -> str | None:
    """
    Return the run that has written a checkpoint.

    Args:
        checkpoint (`str` or `os.PathLike`): the checkpoint.

    Returns:
        `str`, *optional*: id of the run, or None without a readable record.
    """
    try:
        record = RunRecord.read(checkpoint)
    except ValueError:
        return None
    return None if record is None else record.run_id


def is_complete_checkpoint(folder: str | os.PathLike) -> bool:
    """
    Check whether training can resume from a checkpoint.

    Args:
        folder (`str` or `os.PathLike`): the checkpoint.

    Returns:
        `bool`: whether the checkpoint was written completely and contains the state of the optimizer.
    """
    if not Path(folder, "config.json").is_file() or not has_state(folder):
        return False
    # Files of torch are ZIP files, whose list of contents is at the end.
    if not all(zipfile.is_zipfile(Path(folder, name)) for name in (OPTIMIZER_FILE, SCHEDULER_FILE)):
        return False
    try:
        with safe_open(Path(folder, WEIGHTS_NAME), framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def has_state(folder: str | os.PathLike) -> bool:
    """
    Check whether a checkpoint was written completely. The state file is written last.

    Args:
        folder (`str` or `os.PathLike`): the checkpoint.

    Returns:
        `bool`: whether it contains a readable state of the Trainer.
    """
    try:
        return TrainerState.load_from_json(str(Path(folder, STATE_FILE))).global_step > 0
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def last_complete_checkpoint(output_dir: str | os.PathLike, run_id: str | None = None) -> str | None:
    """
    Find the last complete checkpoint in an output folder.

    Args:
        output_dir (`str` or `os.PathLike`): output folder of a training run.
        run_id (`str`, *optional*): run that has written the checkpoint. Defaults to the run in the record of the
            folder; without a record, checkpoints of all runs are considered.

    Returns:
        `str`, *optional*: path of the checkpoint with the highest step, or None if there is no complete checkpoint.
    """
    run_id = run_of(output_dir) if run_id is None else run_id
    for _, path in reversed(checkpoints_in(output_dir)):
        if run_id in (None, run_of(path)) and is_complete_checkpoint(path):
            return str(path)
    return None


def load_adapters(model: Any, folder: str | os.PathLike, checksum: str) -> None:
    """
    Load the adapters of a checkpoint into a model with the same backbone.

    Args:
        model ([`ViP2ClipForAnomalyDetection`] or [`TrainableBaselineModel`]): the model; changed in place.
        folder (`str` or `os.PathLike`): the checkpoint.
        checksum (`str`): checksum of the backbone of the model.

    Raises:
        ValueError: if the checkpoint has another backbone, other settings, or adapters with other names or shapes.
        OSError: if the checkpoint cannot be read.
    """
    config_class: Any = type(model.config)
    config = config_class.from_pretrained(folder)
    if BackboneReference.from_pretrained(folder).checksum not in (None, checksum):
        raise ValueError(f"{folder} was trained with another CLIP backbone; resume with the same --clip.")
    changed = [
        name
        for name in _own_fields(config_class)
        if name != "clip_config" and getattr(config, name) != getattr(model.config, name)
    ]
    if changed:
        name = changed[0]
        raise ValueError(
            f"{folder} was trained with {name} {getattr(config, name)!r}, but this model has "
            f"{getattr(model.config, name)!r}. Resume with the original settings."
        )
    try:
        weights = load_file(Path(folder, WEIGHTS_NAME))
    except SafetensorError as error:
        raise OSError(f"{WEIGHTS_NAME} in {folder} is damaged ({error}); resume from another checkpoint.") from error
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


def _own_fields(config_class: type[PreTrainedConfig]) -> list[str]:
    """Return the fields of a configuration that those of all models of the library do not have."""
    parents = config_class.__mro__[: config_class.__mro__.index(PreTrainedConfig)]
    return list(dict.fromkeys(name for one in parents for name in inspect.get_annotations(one)))


__all__ = [
    "checkpoints_in",
    "has_state",
    "is_complete_checkpoint",
    "last_complete_checkpoint",
    "load_adapters",
    "run_of",
]
