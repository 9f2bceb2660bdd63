"""Draw an anomaly map over a photo."""

import numpy as np
from PIL import Image


# Colours of the heatmap at 0, 1/3, 2/3 and 1: yellow over orange and red to dark red. How much of it covers the
# photo grows with the value as well, so that a normal image looks like itself.
HEATMAP_COLORS = np.array([(255, 255, 130), (255, 190, 40), (235, 60, 30), (140, 0, 40)], dtype=np.float32)
HEATMAP_OPACITY = 0.85


def draw_heatmap(image: Image.Image, anomaly_map: np.ndarray) -> Image.Image:
    """
    A photo with its anomaly map over it, on a fixed scale: 0 leaves the photo as it is, 1 covers it dark red,
    whatever the largest value of the map.

    Args:
        image (`PIL.Image.Image`):
            The photo.
        anomaly_map (`np.ndarray` of shape `(height, width)`):
            Values in [0, 1], of the size of the photo.

    Returns:
        `PIL.Image.Image`: mode RGB, of the same size.

    Raises:
        ValueError: a map of another size than the photo.
    """
    anomaly_map = np.asarray(anomaly_map, dtype=np.float32)
    if anomaly_map.shape != (image.height, image.width):
        raise ValueError(
            f"anomaly_map has shape {anomaly_map.shape}; expected {(image.height, image.width)}, height and width of "
            "the image."
        )
    # 256 steps are all an 8-bit picture shows, and a table is much faster than interpolating every pixel.
    steps = np.linspace(0, 1, 256, dtype=np.float32)
    knots = np.linspace(0, 1, len(HEATMAP_COLORS))
    table = np.stack([np.interp(steps, knots, channel) for channel in HEATMAP_COLORS.T], axis=-1)
    level = np.rint(anomaly_map.clip(0, 1) * 255).astype(np.uint8)
    colors = Image.fromarray(np.rint(table).astype(np.uint8)[level])
    cover = Image.fromarray(np.rint(steps * HEATMAP_OPACITY * 255).astype(np.uint8)[level])
    return Image.composite(colors, image.convert("RGB"), cover)


__all__ = ["HEATMAP_COLORS", "HEATMAP_OPACITY", "draw_heatmap"]
