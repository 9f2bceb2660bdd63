"""What a request contains, and what its response does."""

from dataclasses import dataclass, field
from typing import Any, Literal


class PhotoError(Exception):
    """
    A photo without a result.

    Args:
        status (`int`): status of HTTP.
        message (`str`): reason, for the client.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Upload:
    """
    A photo of a request.

    Args:
        name (`str`): name of the file, or the URL.
        content (`bytes`, *optional*): content of the file. `None` for a URL.
        error ([`PhotoError`], *optional*): why the photo is refused.
    """

    name: str
    content: bytes | None = field(default=None, repr=False)
    error: PhotoError | None = None


@dataclass(frozen=True)
class Wanted:
    """
    What a response contains.

    Args:
        heatmap (`bool`): the heatmap.
        mask (`str`, *optional*): the mask as `"rle"` or `"png"`.
        anomaly_map (`str`, *optional*): the anomaly map as `"png"`.
        regions (`bool`): the regions of the mask.
        picture (`bool`): the response is the heatmap, not JSON.
    """

    heatmap: bool = False
    mask: Literal["rle", "png"] | None = None
    anomaly_map: Literal["png"] | None = None
    regions: bool = True
    picture: bool = False


@dataclass
class Answer:
    """
    Result of a photo.

    Args:
        record (`dict[str, Any]`): JSON form of the result.
        picture (`bytes`, *optional*): the heatmap as PNG, if wanted.
    """

    record: dict[str, Any]
    picture: bytes | None = None


__all__ = ["Answer", "PhotoError", "Upload", "Wanted"]
