"""The web app of `vip2clip app`."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .server import build_app as build_app, is_loopback as is_loopback, launch as launch
