"""Run a model in eval mode, and restore its mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """
    Switch a model to eval mode. Afterwards, also after an error, it is in training mode again if it was before.

    Args:
        model (`torch.nn.Module`): the model.
    """
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


__all__ = ["eval_mode"]
