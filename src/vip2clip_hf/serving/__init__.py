"""An HTTP server for the pipeline, `vip2clip serve`."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .application import create_server_app as create_server_app
    from .running import serve_detector as serve_detector
    from .settings import ServerSettings as ServerSettings
