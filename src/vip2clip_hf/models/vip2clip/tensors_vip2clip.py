"""Recognize objects of torch without importing it. If torch is not imported, there are none."""

import sys
from typing import Any


def is_tensor(value: Any) -> bool:
    """
    Check whether a value is a tensor of torch.

    Args:
        value: the value.

    Returns:
        `bool`: whether it is a tensor.
    """
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def is_torch_dataset(value: Any) -> bool:
    """
    Check whether a value is a dataset of torch.

    Args:
        value: the value.

    Returns:
        `bool`: whether it is a `torch.utils.data.Dataset`.
    """
    dataset = _of_torch_data("Dataset")
    return dataset is not None and isinstance(value, dataset)


def is_torch_loader(value: Any) -> bool:
    """
    Check whether a value is a data loader of torch.

    Args:
        value: the value.

    Returns:
        `bool`: whether it is a `torch.utils.data.DataLoader`.
    """
    loader = _of_torch_data("DataLoader")
    return loader is not None and isinstance(value, loader)


def _of_torch_data(name: str) -> Any:
    return getattr(sys.modules.get("torch.utils.data"), name, None)


__all__ = ["is_tensor", "is_torch_dataset", "is_torch_loader"]
