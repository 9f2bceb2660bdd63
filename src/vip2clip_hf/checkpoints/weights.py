"""Check that the weights of a model can be saved and loaded again."""

import json
from functools import lru_cache
from typing import Any

import torch
from transformers import PreTrainedModel

from ..models.vip2clip.configuration_vip2clip import ViP2ClipConfig
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection


def check_unwrapped(model: Any, action: str) -> None:
    """
    Check that no layer of a model is wrapped or quantized.

    Such a model works, but its weights have other names. A checkpoint of it would lack the changes of the wrapper, or
    could not be loaded.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model.
        action (`str`): what cannot be done with the model, for the message, such as `"saved"`.

    Raises:
        ValueError: if the model or one of its layers is wrapped, for example by PEFT, or quantized. The message names
            the first of them.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"The model is a {type(model).__name__}, which cannot be {action}; expected a "
            "ViP2ClipForAnomalyDetection. Merge adapters of PEFT first, with merge_and_unload()."
        )
    found = {name for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    expected = _names(model.config.to_json_string(use_diff=False))
    different = sorted((expected - found) | (found - expected))
    if different:
        raise ValueError(
            f"The model has wrapped or quantized layers ({different[0]}, ...), which cannot be {action}; expected "
            "plain layers. Merge adapters of PEFT first, with merge_and_unload(), and quantize after loading."
        )


@lru_cache(maxsize=8)
def _names(config: str) -> frozenset[str]:
    """Return the names of all weights of a model, without allocating memory."""
    with torch.device("meta"):
        return frozenset(ViP2ClipForAnomalyDetection(ViP2ClipConfig.from_dict(json.loads(config))).state_dict())


__all__ = ["check_unwrapped"]
