"""Answer `POST /predict`."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from .records import Answer, PhotoError, Upload, Wanted
from .service import Service
from .uploads import Body, busy, read_uploads


Flag = Annotated[bool, Query(description="Add the photo with the anomaly map, as PNG in base64.")]
MaskForm = Annotated[
    Literal["none", "rle", "png"], Query(description="Add the mask: run-length encoding of COCO, or PNG in base64.")
]
MapForm = Annotated[Literal["none", "png"], Query(description="Add the anomaly map, as a gray PNG of 16 bits.")]
PARAMETERS = frozenset({"heatmap", "mask", "anomaly_map", "regions"})
# Status in the log of a request whose client has closed the connection.
CLIENT_GONE = 499


async def answer_predict(
    request: Request,
    service: Service,
    heatmap: bool,
    mask: Literal["none", "rle", "png"],
    anomaly_map: Literal["none", "png"],
    regions: bool,
) -> Response:
    """
    Answer a request for predictions.

    Args:
        request (`Request`): the request.
        service ([`Service`]): computes results.
        heatmap, mask, anomaly_map, regions: parameters of the request.

    Returns:
        `Response`: JSON, or the heatmap.

    Raises:
        HTTPException: if the request as a whole cannot be answered.
    """
    unknown = sorted(set(request.query_params) - PARAMETERS)
    if unknown:
        raise HTTPException(
            422, f"The parameter {unknown[0][:100]!r} is not known; expected {', '.join(sorted(PARAMETERS))}."
        )
    picture = prefers_png(request.headers.get("accept", "*/*"))
    wanted = Wanted(
        heatmap, None if mask == "none" else mask, None if anomaly_map == "none" else anomaly_map, regions, picture
    )
    if not service.ready:
        raise HTTPException(503, "The model is not loaded yet.", {"Retry-After": "5"})
    if service.queue.used >= service.queue.limit:  # before the body is sent
        raise busy(service, "The queue is full; try again later.")
    body = Body(request, service.settings, service.uploads)
    body.check_length()
    uploads = await _receive(request, service, body)
    facts = request.scope["state"]["facts"]
    facts.update(images=len(uploads), bytes=body.size)
    kept = sum(len(upload.content or b"") for upload in uploads)
    service.uploads.give(body.size - kept)  # what the service gives back
    if picture and len(uploads) > 1:
        service.uploads.give(kept)
        raise HTTPException(422, "A response of type image/png is for one photo; expected one photo, or JSON.")
    if not service.queue.take(len(uploads)):
        service.uploads.give(kept)
        raise busy(service, "The queue has no room for these photos; try again later.")
    found = await service.answer(uploads, wanted, _gone(request))
    if found is None:
        facts["status"] = CLIENT_GONE
        return Response(status_code=CLIENT_GONE)  # nobody receives it
    facts["failed"] = sum(isinstance(one, PhotoError) for one in found)
    return await _respond(service, uploads, found, wanted)


async def _receive(request: Request, service: Service, body: Body) -> list[Upload]:
    try:
        return await asyncio.wait_for(read_uploads(request, service, body), service.settings.timeout)
    except asyncio.TimeoutError as error:
        service.uploads.give(body.size)
        raise HTTPException(
            408, f"The request did not arrive within {service.settings.timeout:g} s.", {"Connection": "close"}
        ) from error
    except BaseException:
        service.uploads.give(body.size)
        raise


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection. The body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _respond(
    service: Service, uploads: list[Upload], found: list[Answer | PhotoError], wanted: Wanted
) -> Response:
    """Write the response. Its status is 200 if at least one photo has a result, else that of the first error."""
    failed = [one for one in found if isinstance(one, PhotoError)]
    status = failed[0].status if len(failed) == len(found) else 200
    headers = {"Retry-After": str(service.retry_after())} if status == 503 else {}
    if wanted.picture and isinstance(found[0], PhotoError):
        raise HTTPException(status, str(found[0]), headers)
    if wanted.picture and isinstance(found[0], Answer):
        record = found[0].record
        headers.update({"X-Score": repr(record["score"]), "X-Label": _header(record["label"])})
        if record.get("p_value") is not None:
            headers["X-P-Value"] = repr(record["p_value"])
        return Response(found[0].picture, headers=headers, media_type="image/png")
    results: list[dict[str, Any]] = [
        {"name": upload.name, "error": str(one), "status": one.status} if isinstance(one, PhotoError) else one.record
        for upload, one in zip(uploads, found)
    ]
    content = await service.to_json({"results": results})
    return Response(content, status, headers, media_type="application/json")


def _header(text: str) -> str:
    """Keep the printable ASCII characters of a label."""
    return "".join(one if one.isascii() and one.isprintable() else "?" for one in text)


def prefers_png(accept: str) -> bool:
    """
    Check whether a client prefers a picture to JSON.

    Args:
        accept (`str`): header `Accept`.

    Returns:
        `bool`: True if `image/png` (or `image/*`) has a larger weight than `application/json`. JSON if they are equal.
    """
    weights: dict[str, float] = {}
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        weights[kind] = max(weight, weights.get(kind, 0.0))

    def weight_of(kind: str) -> float:
        family = f"{kind.partition('/')[0]}/*"
        return next((weights[name] for name in (kind, family, "*/*") if name in weights), 0.0)

    return weight_of("image/png") > weight_of("application/json")


__all__ = ["CLIENT_GONE", "Flag", "MapForm", "MaskForm", "answer_predict", "prefers_png"]
