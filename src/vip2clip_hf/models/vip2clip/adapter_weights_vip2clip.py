"""Check the adapter weights of a checkpoint."""

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from .adapters_vip2clip import ViP2ClipFineGrainedPerception, ViP2ClipImageConditionedAdapter, ViP2ClipPromptLearner


# Weights that version 0.1 saved under another name, and their current name.
RENAMED_ADAPTERS = {"prompt_learner.image_tokens": "prompt_learner.object_tokens"}


def check_adapters(adapters: Mapping[str, torch.Tensor], source: str | os.PathLike) -> None:
    """
    Check that the weights of adapters are finite. With a single NaN, every score would be NaN.

    Args:
        adapters (`Mapping[str, torch.Tensor]`): weights by name. Weights on the meta device are skipped.
        source (`str` or `os.PathLike`): folder or Hub id of the checkpoint, for the message.

    Raises:
        ValueError: if a weight contains NaN or infinite values.
    """
    broken = [name for name, tensor in adapters.items() if not (tensor.is_meta or torch.isfinite(tensor).all())]
    if broken:
        more = f" and {len(broken) - 3} more weights" if len(broken) > 3 else ""
        raise ValueError(
            f"{', '.join(broken[:3])}{more} in {os.fspath(source)!r} contain NaN or infinite values; expected finite "
            "values. The checkpoint is damaged, or its training has diverged."
        )


def check_names_and_shapes(
    adapters: Mapping[str, torch.Tensor], config: PreTrainedConfig, source: str | os.PathLike
) -> None:
    """
    Check that a checkpoint contains the adapters of a configuration, with their shapes, and nothing else. Weights of
    adapters that the configuration disables are accepted.

    Args:
        adapters (`Mapping[str, torch.Tensor]`): weights by name.
        config ([`ViP2ClipConfig`]): configuration of the model.
        source (`str` or `os.PathLike`): folder or Hub id of the checkpoint, for the message.

    Raises:
        RuntimeError: if weights are missing, unknown or have another shape.
    """
    known = _adapter_shapes(config)
    modules = {
        "image_conditioned_adapter.": config.use_image_conditioning,
        "fine_grained_perception.": config.use_fine_grained_perception,
    }
    disabled = tuple(prefix for prefix, enabled in modules.items() if not enabled)
    found = {name: tuple(tensor.shape) for name, tensor in adapters.items()}
    wrong = [name for name, shape in found.items() if shape != known.get(name, shape)]
    if wrong:
        more = f" {len(wrong) - 1} more weights have another shape." if len(wrong) > 1 else ""
        raise RuntimeError(
            f"{wrong[0]} in {os.fspath(source)!r} has shape {found[wrong[0]]}; expected {known[wrong[0]]}, according "
            f"to the configuration.{more}"
        )
    missing = {name for name in known if not name.startswith(disabled)} - found.keys()
    unknown = found.keys() - known.keys()
    for names, what in (
        (missing, "lacks {} of the model's weights"),
        (unknown, "contains {} weights that the model does not have"),
    ):
        if names:
            listed = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise RuntimeError(
                f"{os.fspath(source)!r} {what.format(len(names))} ({listed}); expected exactly the adapters of its "
                "configuration."
            )


def _adapter_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all adapters by name, without allocating memory."""
    enabled: Any = copy.deepcopy(config)
    enabled.use_image_conditioning = enabled.use_fine_grained_perception = True
    with torch.device("meta"):
        modules = torch.nn.ModuleDict(
            {
                "prompt_learner": ViP2ClipPromptLearner(enabled),
                "image_conditioned_adapter": ViP2ClipImageConditionedAdapter(enabled),
                "fine_grained_perception": ViP2ClipFineGrainedPerception(enabled),
            }
        )
    return {name: tuple(tensor.shape) for name, tensor in modules.state_dict().items()}


__all__ = ["RENAMED_ADAPTERS", "check_adapters", "check_names_and_shapes"]
