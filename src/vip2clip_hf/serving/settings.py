"""Settings of the server."""

import re
from dataclasses import dataclass, field

from ..utils.addresses import is_loopback
from .keys import API_KEY, check_api_key


MEGABYTE = 1024 * 1024
# Largest part of a request that is not a photo: boundaries and headers of a multipart body, or a list of URLs.
OVERHEAD = MEGABYTE
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9]([a-z0-9._-]*[a-z0-9])?)(:\d{1,5})?")


@dataclass(frozen=True)
class ServerSettings:
    """
    Settings of the server.

    Args:
        max_batch (`int`, defaults to 8):
            Maximum number of photos in a batch of the model. 1 disables batching.
        max_wait (`float`, defaults to 10):
            Milliseconds that the first photo of a batch waits for others.
        queue (`int`, defaults to 64):
            Maximum number of photos that are accepted and not answered. Further requests are answered with 503.
        timeout (`float`, defaults to 60):
            Seconds to receive a request (408 afterwards), and seconds to answer it (504 afterwards).
        max_images (`int`, defaults to 16):
            Maximum number of photos in a request.
        max_file_size (`float`, defaults to 20):
            Maximum size of a photo, in megabytes of 1,048,576 bytes.
        max_upload_memory (`float`, defaults to 512):
            Maximum size of the photos of all requests at a time, before they are decoded, in megabytes.
        max_pixels (`int`, defaults to 50,000,000):
            Maximum number of pixels of a photo. Larger photos are refused before they are decoded. At most four times
            as many pixels are decoded at a time.
        allow_urls (`tuple[str, ...]`, defaults to `()`):
            Hosts that photos are fetched from, such as `"images.example.com"` or `"images.example.com:8443"`.
        allow_private_urls (`bool`, defaults to `False`):
            Whether these hosts may have addresses of a private network or of this machine.
        url_timeout (`float`, defaults to 10):
            Seconds to fetch a photo.
        allow_hosts (`tuple[str, ...]`, defaults to `()`):
            Names of this server that requests may use (`Host`). Empty: names of this machine if the server is bound
            to a loopback address, otherwise any.
        api_key (`str`, *optional*):
            Key that requests must contain, at least 16 characters. It is not shown.
        access_log (`bool`, defaults to `True`):
            Whether to print one line for each request.

    Raises:
        ValueError: if a value is out of range, a host is not a host name, or the key is too short.
    """

    max_batch: int = 8
    max_wait: float = 10.0
    queue: int = 64
    timeout: float = 60.0
    max_images: int = 16
    max_file_size: float = 20.0
    max_upload_memory: float = 512.0
    max_pixels: int = 50_000_000
    allow_urls: tuple[str, ...] = ()
    allow_private_urls: bool = False
    url_timeout: float = 10.0
    allow_hosts: tuple[str, ...] = ()
    api_key: str | None = field(default=None, repr=False)
    access_log: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch", "queue", "max_images", "max_pixels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a positive integer.")
        for name in ("timeout", "max_file_size", "max_upload_memory", "url_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a positive number.")
        if not 0 <= self.max_wait <= 60_000:
            raise ValueError(f"max_wait is {self.max_wait!r}; expected milliseconds in [0, 60000].")
        if self.max_images > self.queue:
            raise ValueError(
                f"max_images is {self.max_images}; expected at most {self.queue}, the size of the queue, because a "
                "request with more photos could never be accepted."
            )
        if self.max_file_size > self.max_upload_memory:
            raise ValueError(
                f"max_upload_memory is {self.max_upload_memory:g}; expected at least {self.max_file_size:g}, the "
                "maximum size of a photo."
            )
        for name in ("allow_urls", "allow_hosts"):
            for host in getattr(self, name):
                if not _HOST.fullmatch(host.lower()):
                    raise ValueError(
                        f"{name} contains {host!r}; expected a host name without scheme and path, such as "
                        "'images.example.com' or 'images.example.com:8443'."
                    )
        if self.allow_private_urls and not self.allow_urls:
            raise ValueError("allow_private_urls is True, but allow_urls is empty; expected at least one host.")
        if self.api_key is not None:
            check_api_key(self.api_key)

    @property
    def max_file_bytes(self) -> int:
        """Maximum size of a photo in bytes."""
        return int(self.max_file_size * MEGABYTE)

    @property
    def max_upload_bytes(self) -> int:
        """Maximum size of all photos at a time in bytes."""
        return int(self.max_upload_memory * MEGABYTE)

    @property
    def max_body_bytes(self) -> int:
        """Maximum size of the body of a request in bytes."""
        return min(self.max_images * self.max_file_bytes, self.max_upload_bytes) + OVERHEAD


class ExposureError(ValueError):
    """Others can reach a server without an API key."""


def check_exposure(address: str, settings: ServerSettings, allow_anonymous: bool) -> str | None:
    """
    Check that a server that others can reach needs a key.

    Args:
        address (`str`): IP address that the server is bound to.
        settings ([`ServerSettings`]): settings of the server.
        allow_anonymous (`bool`): whether a server without a key is wanted.

    Returns:
        `str`, *optional*: a warning.

    Raises:
        ExposureError: if others can reach the server, it has no key, and `allow_anonymous` is False.
    """
    if is_loopback(address) or settings.api_key is not None:
        return None
    if not allow_anonymous:
        raise ExposureError(
            f"The address {address} can be reached from the network, and there is no API key; expected the "
            f"environment variable {API_KEY}, a loopback address such as 127.0.0.1, or --allow-anonymous."
        )
    return (
        f"Warning: the address {address} can be reached from the network, and there is no API key. Anyone who reaches "
        f"it can use the server. Set {API_KEY} to require a key."
    )


__all__ = ["MEGABYTE", "ExposureError", "ServerSettings", "check_exposure"]
