"""Draw an anomaly map over an image."""

import numpy as np
from PIL import Image


# Colors of the heatmap at 0, 1/3, 2/3 and 1: yellow, orange, red and dark red. The opacity increases with the value
# as well, from 0 to HEATMAP_OPACITY, so a normal image stays unchanged.
HEATMAP_COLORS = np.array([(255, 255, 130), (255, 190, 40), (235, 60, 30), (140, 0, 40)], dtype=np.float32)
HEATMAP_OPACITY = 0.85


def draw_heatmap(image: Image.Image, anomaly_map: np.ndarray) -> Image.Image:
    """
    Draw an anomaly map over an image as a heatmap.

    The color scale is fixed and does not depend on the largest value of the map: 0 leaves the image unchanged, 1
    covers it in dark red.

    Args:
        image (`PIL.Image.Image`):
            The image.
        anomaly_map (`np.ndarray` of shape `(height, width)`):
            Anomaly map in [0, 1], of the same size as the image.

    Returns:
        `PIL.Image.Image`: the image with the heatmap, in mode RGB.

    Raises:
        ValueError: if map and image differ in size, or the map is not finite.
    """
    anomaly_map = np.asarray(anomaly_map, dtype=np.float32)
    if anomaly_map.shape != (image.height, image.width):
        raise ValueError(
            f"anomaly_map has shape {anomaly_map.shape}; expected {(image.height, image.width)}, the height and width "
            "of the image."
        )
    if not np.isfinite(anomaly_map).all():
        raise ValueError("anomaly_map contains NaN or infinite values; expected values in [0, 1].")
    # An 8-bit image shows at most 256 steps, and a lookup table is much faster than interpolating every pixel.
    steps = np.linspace(0, 1, 256, dtype=np.float32)
    knots = np.linspace(0, 1, len(HEATMAP_COLORS))
    table = np.stack([np.interp(steps, knots, channel) for channel in HEATMAP_COLORS.T], axis=-1)
    level = np.rint(anomaly_map.clip(0, 1) * 255).astype(np.uint8)
    colors = Image.fromarray(np.rint(table).astype(np.uint8)[level])
    cover = Image.fromarray(np.rint(steps * HEATMAP_OPACITY * 255).astype(np.uint8)[level])
    return Image.composite(colors, image.convert("RGB"), cover)


__all__ = ["HEATMAP_COLORS", "HEATMAP_OPACITY", "draw_heatmap"]
