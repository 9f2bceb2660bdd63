"""Read the photos of a request, with limits, into memory."""

import json
import sys
from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from .limits import Budget
from .records import PhotoError, Upload
from .service import Service
from .settings import MEGABYTE, ServerSettings


# Longest name of a file that is kept.
_LONGEST_NAME = 200
# Largest list of URLs.
_MAX_JSON = MEGABYTE
_KINDS = "multipart/form-data with photos, one photo as image/jpeg (or another image type), or application/json"


class _InMemory(MultiPartParser):
    """Keeps photos in memory: nothing is written to the disk."""

    spool_max_size = max_file_size = sys.maxsize  # the name depends on the version


def busy(service: Service, message: str) -> HTTPException:
    """
    Create the response for a server without room.

    Args:
        service ([`Service`]): estimates when there is room.
        message (`str`): reason.

    Returns:
        `HTTPException`: with status 503 and the header `Retry-After`.
    """
    return HTTPException(503, message, {"Retry-After": str(service.retry_after())})


class Body:
    """
    The body of a request. Its size is limited as it arrives, with or without `Content-Length`.

    Args:
        request (`Request`): the request.
        settings ([`ServerSettings`]): limits.
        uploads ([`Budget`]): bytes that the bodies of all requests may use. They are taken as they arrive.

    Attributes:
        size (`int`): number of bytes so far, which were taken from `uploads`.
    """

    def __init__(self, request: Request, settings: ServerSettings, uploads: Budget) -> None:
        self._request, self._uploads, self._limit = request, uploads, settings.max_body_bytes
        self.size = 0

    def check_length(self) -> None:
        """
        Refuse a body that says that it is too large, before it is sent.

        Raises:
            HTTPException: with status 413 or 400.
        """
        stated = self._request.headers.get("content-length")
        if stated is not None:
            if not (stated.isascii() and stated.isdigit()):
                raise HTTPException(400, "Content-Length is not a number.")
            if len(stated) > 18 or int(stated) > self._limit:
                raise self._too_large()

    def _too_large(self) -> HTTPException:
        # The rest of the body is not read, so the connection cannot be used again.
        return HTTPException(
            413, f"The request is larger than {self._limit:,} bytes, the limit of the server.", {"Connection": "close"}
        )

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """
        Read the body.

        Yields:
            `bytes`: the next part.

        Raises:
            HTTPException: with status 413 if the body is too large, or 503 if there is no room for it.
        """
        async for chunk in self._request.stream():
            if self.size + len(chunk) > self._limit:
                raise self._too_large()
            if not self._uploads.take(len(chunk)):
                raise HTTPException(
                    503, "Too many photos are in memory; try again later.", {"Retry-After": "1", "Connection": "close"}
                )
            self.size += len(chunk)
            yield chunk

    async def read(self, limit: int) -> bytes:
        """
        Read the whole body.

        Args:
            limit (`int`): maximum number of bytes.

        Returns:
            `bytes`: the body.

        Raises:
            HTTPException: with status 413 if it is larger, or as `stream`.
        """
        content = bytearray()
        async for chunk in self.stream():
            content += chunk
            if len(content) > limit:
                raise HTTPException(
                    413, f"The photo is larger than {limit:,} bytes, the limit of the server.", {"Connection": "close"}
                )
        return bytes(content)


async def read_uploads(request: Request, service: Service, body: Body) -> list[Upload]:
    """
    Read the photos of a request, or the URLs of photos.

    Args:
        request (`Request`): the request.
        service ([`Service`]): checks URLs.
        body ([`Body`]): body of the request.

    Returns:
        `list[Upload]`: at least one. Photos that are refused have an error.

    Raises:
        HTTPException: with status 400 if the body cannot be read, 403 if URLs are not allowed, 413 if there are too
            many photos, 415 if the body is of another type, or 422 if it contains no photo.
    """
    settings = service.settings
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            found = await _files(request, body, settings)
        elif kind == "application/json":
            found = _urls(await body.read(_MAX_JSON), service)
        elif kind.startswith("image/") or kind == "application/octet-stream":
            found = [_file("image", await body.read(settings.max_file_bytes), settings)]
        else:
            raise HTTPException(415, f"Content-Type is {kind[:100]!r}; expected {_KINDS}.")
    except ClientDisconnect as error:
        raise HTTPException(400, "The connection was closed before the whole request arrived.") from error
    if not found:
        raise HTTPException(422, "The request contains no photo; expected at least one.")
    if len(found) > settings.max_images:
        raise _too_many(settings)
    return found


def _too_many(settings: ServerSettings) -> HTTPException:
    return HTTPException(413, f"The request contains more than {settings.max_images} photos, the limit of the server.")


def _file(name: str, content: bytes, settings: ServerSettings) -> Upload:
    if len(content) > settings.max_file_bytes:
        error = PhotoError(
            413, f"The photo is larger than {settings.max_file_bytes:,} bytes, the limit of the server."
        )
        return Upload(name, b"", error)
    return Upload(name, content)


async def _files(request: Request, body: Body, settings: ServerSettings) -> list[Upload]:
    parser = _InMemory(request.headers, body.stream(), max_files=settings.max_images, max_fields=8)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if sum(isinstance(value, UploadFile) for _, value in parser.items) >= settings.max_images:
            raise _too_many(settings) from error
        raise HTTPException(400, f"The multipart body cannot be read: {error.message}") from error
    found = []
    try:
        for field, value in form.multi_items():
            if isinstance(value, str):
                raise HTTPException(
                    422, f"The field {field[:100]!r} is text; expected a file, with curl: -F {field[:100]}=@photo.jpg"
                )
            if not value.filename and not value.size:  # a form in a browser without a chosen file
                continue
            name = (value.filename or field)[-_LONGEST_NAME:]
            found.append(_file(name, await value.read(), settings))
            await value.close()  # it has a copy of the content
    finally:
        await form.close()
    return found


def _urls(content: bytes, service: Service) -> list[Upload]:
    if not service.settings.allow_urls:
        raise HTTPException(
            403, "The server does not fetch URLs; expected the photos in the request. See the option --allow-urls."
        )
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "The body is not valid JSON.") from error
    if isinstance(found, dict) and set(found) == {"urls"}:
        found = found["urls"]
    if not isinstance(found, list) or not all(isinstance(url, str) for url in found):
        raise HTTPException(422, 'The body is not a list of URLs; expected ["https://...", ...] or {"urls": [...]}.')
    if len(found) > service.settings.max_images:
        raise _too_many(service.settings)
    return [Upload(url, None, service.check_url(url)) for url in found]


__all__ = ["Body", "busy", "read_uploads"]
