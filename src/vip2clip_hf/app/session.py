"""State of the web app for one visitor."""

from dataclasses import dataclass, field

from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from .results import PhotoResult


@dataclass
class Session:
    """
    State of one visitor's session.

    Args:
        results (`list[PhotoResult]`): one result per photo, in upload order.
        problems (`list[tuple[str, str]]`): name and error of each upload without a result.
        selected (`int`, defaults to 0): index of the displayed photo in `results`.
        references ([`ReferenceBank`], *optional*, defaults to `"auto"`): photos of good parts to compare with, `None`,
            or `"auto"` for those of the checkpoint.
    """

    results: list[PhotoResult] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    selected: int = 0
    references: ReferenceBank | str | None = "auto"


__all__ = ["Session"]
