"""Descriptions of requests and responses for OpenAPI."""

from typing import Any

from pydantic import BaseModel, Field


class Region(BaseModel):
    """Anomalous pixels that are connected."""

    box: list[int] = Field(description="Left, top, right and bottom in pixels. Right and bottom are exclusive.")
    area: int = Field(description="Number of pixels.")
    mean_score: float = Field(description="Mean of the anomaly map in the region, in [0, 1].")
    peak_score: float = Field(description="Maximum of the anomaly map in the region, in [0, 1].")


class Picture(BaseModel):
    """A picture at the size of the photo."""

    png: str = Field(description="PNG in base64.")


class Mask(BaseModel):
    """The mask as run-length encoding, or as a picture with 0 and 255."""

    size: list[int] | None = Field(None, description="Height and width. With mask=rle.")
    counts: str | None = Field(None, description="Compressed run-length encoding of COCO. With mask=rle.")
    png: str | None = Field(None, description="PNG in base64. With mask=png.")


class PhotoResult(BaseModel):
    """Result of a photo, in the order of the request. A photo without a result has name, error and status."""

    name: str = Field(description="Name of the file, or its URL.")
    score: float | None = Field(None, description="Probability that the photo is anomalous, in [0, 1].")
    label: str | None = Field(None, description="Decision, such as normal or anomalous.")
    p_value: float | None = Field(
        None, description="Probability that a good photo has a score at least as large. Only if calibrated."
    )
    size: list[int] | None = Field(None, description="Height and width of the photo in pixels.")
    regions: list[Region] | None = Field(None, description="Regions of the mask, by peak score.")
    mask: Mask | None = Field(None, description="Anomalous pixels. With the parameter mask.")
    heatmap: Picture | None = Field(None, description="The photo with the anomaly map. With heatmap=true.")
    anomaly_map: Picture | None = Field(
        None, description="The anomaly map as a gray PNG of 16 bits, values / 65535. With anomaly_map=png."
    )
    notices: list[str] | None = Field(None, description="What was converted or guessed when the photo was read.")
    error: str | None = Field(None, description="Why there is no result.")
    status: int | None = Field(None, description="Status of HTTP that belongs to the error.")


class PredictResponse(BaseModel):
    """Results of all photos of a request."""

    results: list[PhotoResult] = Field(description="One for each photo, in the order of the request.")


class ServerInfo(BaseModel):
    """The model and the limits of the server."""

    model: str = Field(description="Name of the checkpoint.")
    version: str = Field(description="Version of vip2clip_hf.")
    image_size: int = Field(description="Side of the square that photos are resized to, in pixels.")
    labels: list[str] = Field(description="Labels of the decision.")
    image_threshold: float = Field(description="A photo is anomalous if its score is greater.")
    pixel_threshold: float = Field(description="A pixel is anomalous if the anomaly map is greater.")
    calibrated: bool = Field(description="Whether there are p-values.")
    references: int = Field(description="Number of photos of good parts that photos are compared with.")
    tile_size: int = Field(description="Side of tiles in pixels, 0 without tiles.")
    max_images: int = Field(description="Maximum number of photos in a request.")
    max_file_bytes: int = Field(description="Maximum size of a photo in bytes.")
    max_pixels: int = Field(description="Maximum number of pixels of a photo.")


class Problem(BaseModel):
    """Why a request is refused."""

    detail: str = Field(description="The reason.")


_BINARY = {"type": "string", "format": "binary"}
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "description": "One or more photos, in fields of any name.",
            "schema": {
                "type": "object",
                "properties": {"images": {"type": "array", "items": _BINARY}},
                "required": ["images"],
            },
        },
        "image/*": {"description": "One photo.", "schema": _BINARY},
        "application/json": {
            "description": "A list of URLs of photos, if the server was started with --allow-urls.",
            "schema": {"type": "array", "items": {"type": "string", "format": "uri"}},
        },
    },
}
_REASONS = {
    400: "The request cannot be read.",
    401: "The API key is missing or wrong.",
    403: "The host of a URL is not allowed, or the request comes from a web page of another server.",
    408: "The request did not arrive in time.",
    413: "The request or a photo has too many bytes, or there are too many photos.",
    415: "The body is of another type.",
    421: "The Host header names another server.",
    422: "A photo cannot be read or has too many pixels, or a parameter is wrong.",
    502: "A URL could not be fetched.",
    503: "The queue is full, or the model is not loaded yet. See the header Retry-After.",
    504: "There was no result in time.",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": PredictResponse,
        "description": "At least one photo has a result. If none has, the status is that of the first error.",
        "content": {"image/png": {"schema": _BINARY}},
    },
    **{status: {"model": Problem, "description": reason} for status, reason in _REASONS.items()},
}


__all__ = ["BODY", "RESPONSES", "Picture", "PredictResponse", "Problem", "ServerInfo"]
