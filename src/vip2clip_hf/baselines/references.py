"""References of a baseline: embeddings of photos of good parts."""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Protocol, TypeVar

import torch

from ..models.vip2clip.reference_files_vip2clip import checksum_of


class References(Protocol):
    """
    Embeddings of photos of good parts, such as [`WinClipReferences`].

    A class of references is a dataclass. Its fields are tensors, dicts of tensors with integers as keys, or tuples of
    tensors. `encode_images` of a model with `references_class` returns one for a batch of images.
    """

    def __len__(self) -> int:
        """Number of photos."""
        ...

    @classmethod
    def join(cls, parts: Any) -> Any:
        """
        Join the embeddings of batches.

        Args:
            parts (`list`): embeddings of at least one batch.

        Returns:
            the embeddings of all photos.
        """
        ...


_References = TypeVar("_References")


def check_references_argument(references: Any) -> None:
    """
    Check the argument `references` of a model.

    Args:
        references: references, `"auto"` for those of the model, or `None`.

    Raises:
        ValueError: if it is another text.
    """
    if isinstance(references, str) and references != "auto":
        raise ValueError(f"references is {references!r}; expected references, 'auto' or None.")


def tensors_of(references: Any) -> dict[str, torch.Tensor]:
    """
    List the tensors of references.

    Args:
        references ([`References`]): the references.

    Returns:
        `dict[str, torch.Tensor]`: tensor by the name of its field, `"field.KEY"` in a dict and `"field[NUMBER]"` in a
        tuple.
    """
    found: dict[str, torch.Tensor] = {}
    for field in fields(references):
        value = getattr(references, field.name)
        if isinstance(value, Mapping):
            found.update({f"{field.name}.{key}": one for key, one in value.items()})
        elif isinstance(value, (list, tuple)):
            found.update({f"{field.name}[{number}]": one for number, one in enumerate(value)})
        else:
            found[field.name] = value
    return found


def from_tensors(cls: type[_References], tensors: Mapping[str, torch.Tensor]) -> _References:
    """
    Create references from the result of `tensors_of`.

    Args:
        cls (`type`): class of the references.
        tensors (`Mapping[str, torch.Tensor]`): the tensors.

    Returns:
        [`References`]: the references.

    Raises:
        TypeError: if a field is missing or unknown.
    """
    values: dict[str, Any] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: _place(item[0])):
        field, key, number = _place(name)
        if key is not None:
            values.setdefault(field, {})[key] = tensor
        elif number is not None:
            values[field] = (*values.get(field, ()), tensor)
        else:
            values[field] = tensor
    return cls(**values)


def _place(name: str) -> tuple[str, int | None, int | None]:
    """Field, key of a dict, and position in a tuple."""
    found = re.fullmatch(r"(\w+)(?:\.(\d+)|\[(\d+)\])?", name)
    if found is None:
        raise TypeError(f"the tensor {name!r} is not known")
    field, key, number = found.groups()
    return field, None if key is None else int(key), None if number is None else int(number)


def map_tensors(references: _References, function: Callable[[torch.Tensor], torch.Tensor]) -> _References:
    """
    Apply a function to all tensors of references.

    Args:
        references ([`References`]): the references.
        function (`Callable`): takes and returns a tensor.

    Returns:
        [`References`]: new references.
    """
    return from_tensors(type(references), {name: function(one) for name, one in tensors_of(references).items()})


def references_digest(references: Any) -> str:
    """
    Identify references.

    Args:
        references ([`References`]): the references.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    return checksum_of({"class": type(references).__name__}, tensors_of(references))


__all__ = [
    "References",
    "check_references_argument",
    "from_tensors",
    "map_tensors",
    "references_digest",
    "tensors_of",
]
