"""Publish checkpoints on the Hugging Face Hub."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .endpoint import EndpointHandler as EndpointHandler, write_endpoint as write_endpoint
    from .publishing import (
        check_push_access as check_push_access,
        push_checkpoint as push_checkpoint,
        save_checkpoint as save_checkpoint,
    )
