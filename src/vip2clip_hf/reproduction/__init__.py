"""Run the tables and figures of the paper."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(__name__)

if TYPE_CHECKING:
    from .plan import Plan as Plan, read_plan as read_plan
    from .running import reproduce as reproduce
