"""Find out whether a model was trained without a record of its training data.

Code that trains a model outside of this package, such as a plain Trainer or PEFT, does not add to
`provenance.training_sets`. A small sample of every weight is kept in memory when a model is loaded. If the weights
have changed when the model is saved, but the list of training datasets has not, the list is not complete.
"""

import copy
from typing import Any

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)
# Elements of each weight to compare. An optimizer changes nearly all elements of a weight.
NUM_ELEMENTS = 64


def remember_weights(model: Any) -> None:
    """
    Remember the weights of a model and its list of training datasets, which belong together.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model.
    """
    model._remembered = (_sample(model), copy.deepcopy(model.provenance.training_sets))


def check_training_record(model: Any) -> None:
    """
    Set `model.provenance.training_recorded` to False if the weights were changed since they were remembered, but the
    list of training datasets was not. Logs a warning.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model; its `provenance` is changed in place.
    """
    remembered, provenance = getattr(model, "_remembered", None), model.provenance
    if remembered is None or not provenance.training_recorded or provenance.training_sets != remembered[1]:
        return
    found = _sample(model)
    if any(name in found and not _is_same(tensor, found[name]) for name, tensor in remembered[0].items()):
        provenance.training_recorded = False
        logger.warning(
            "The weights were changed since the model was loaded, but provenance.training_sets was not: the training "
            "data is saved as not recorded. Train with ViP2ClipTrainer, or add an entry from describe_training_set."
        )


def _sample(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return up to 64 elements of every weight, on the CPU. Weights of other kinds than plain tensors are skipped."""
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = parameter.detach()
            if type(tensor) is not torch.Tensor or tensor.is_meta or not tensor.is_floating_point():
                continue
            flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.flatten()
            found[name] = flat[:: max(1, len(flat) // NUM_ELEMENTS)][:NUM_ELEMENTS]
        # One copy per device and dtype, instead of one per weight.
        groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        for name, tensor in found.items():
            groups.setdefault((tensor.device, tensor.dtype), []).append(name)
        for names in groups.values():
            parts = torch.cat([found[name] for name in names]).cpu().split([len(found[name]) for name in names])
            found.update(zip(names, parts))
    return found


def _is_same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Compare two samples, up to rounding if the model was converted to another dtype."""
    if first.shape != second.shape:
        return False
    if first.dtype == second.dtype:
        return torch.equal(first, second)
    tolerance = 2 * max(torch.finfo(first.dtype).eps, torch.finfo(second.dtype).eps)
    return torch.allclose(first.double(), second.double(), rtol=tolerance, atol=1e-6)


__all__ = ["check_training_record", "remember_weights"]
