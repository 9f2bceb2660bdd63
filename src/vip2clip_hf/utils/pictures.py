"""Pictures for pages and responses: resized anomaly maps, data URIs and PNG files."""

import base64
import io

import numpy as np
from PIL import Image, features


# Quality of the encoders. At this size, WebP is about a third smaller than JPEG.
WEBP_QUALITY, JPEG_QUALITY = 72, 78


def resized_map(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Resize an anomaly map to show it.

    Args:
        anomaly_map (`np.ndarray` of shape `(height, width)`): the map, in [0, 1].
        size (`tuple[int, int]`): new width and height.

    Returns:
        `np.ndarray` of shape `(new height, new width)`: the map, float32 in [0, 1].
    """
    image = Image.fromarray(np.asarray(anomaly_map, dtype=np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)).clip(0, 1)


def data_uri(image: Image.Image) -> str:
    """
    Encode an image as a data URI, for a page that loads no other files.

    Args:
        image (`PIL.Image.Image`): the image, in any mode.

    Returns:
        `str`: WebP, or JPEG if Pillow was built without WebP.
    """
    buffer, image = io.BytesIO(), image.convert("RGB")
    if features.check("webp"):
        kind = "webp"
        image.save(buffer, "WEBP", quality=WEBP_QUALITY, method=2)
    else:
        kind = "jpeg"
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def png_bytes(image: Image.Image) -> bytes:
    """
    Encode an image as PNG.

    Args:
        image (`PIL.Image.Image`): the image.

    Returns:
        `bytes`: the file.
    """
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


__all__ = ["data_uri", "png_bytes", "resized_map"]
