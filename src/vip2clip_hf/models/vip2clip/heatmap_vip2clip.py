"""Draw an anomaly map over an image."""

import numpy as np
import numpy.typing as npt
from PIL import Image


# The colors of all anomaly maps of this package, from black at 0 through purple and red to orange at 1: the first 85 %
# of "inferno" by Nathaniel Smith and Stéfan van der Walt (CC0), every 15th of 256 steps. Equal steps look similar,
# also in gray and to color-blind readers. The rest of inferno, pale yellow, would not show on white photos.
_KNOTS = """
000004 07051d 170b3b 2c0b57 420a68 57106d 6b176e 7f1f6c 932667 a82d5f bb3755 cd4248 dd513a e9622a f3771a f98d0a fca50a
fbbd23
"""
# Opacity of the heatmap at OPAQUE_FROM and above, so that the photo stays visible. It rises smoothly from 0.
HEATMAP_OPACITY, OPAQUE_FROM = 0.85, 0.8


def _tables() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Compute color and opacity of 256 steps: an 8-bit image shows no more."""
    knots = np.array([list(bytes.fromhex(knot)) for knot in _KNOTS.split()])
    steps = np.linspace(0, 1, 256)
    colors = np.stack([np.interp(steps, np.linspace(0, 1, len(knots)), channel) for channel in knots.T], axis=-1)
    rise = (steps / OPAQUE_FROM).clip(0, 1)
    opacity = 255 * HEATMAP_OPACITY * rise**2 * (3 - 2 * rise)
    return np.rint(colors).astype(np.uint8), np.rint(opacity).astype(np.uint8)


# Arrays of shape (256, 3) and (256,): color and opacity of the values 0, 1 / 255, ..., 1.
HEATMAP_COLORS, HEATMAP_ALPHAS = _tables()


def draw_heatmap(image: Image.Image, anomaly_map: np.ndarray) -> Image.Image:
    """
    Draw an anomaly map over an image as a heatmap.

    The color scale is fixed and does not depend on the largest value of the map: 0 leaves the image unchanged, and
    larger values cover it in purple, red and, at 1, orange.

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
    level = np.rint(anomaly_map.clip(0, 1) * 255).astype(np.uint8)
    colors, cover = Image.fromarray(HEATMAP_COLORS[level]), Image.fromarray(HEATMAP_ALPHAS[level])
    return Image.composite(colors, image.convert("RGB"), cover)


__all__ = ["HEATMAP_ALPHAS", "HEATMAP_COLORS", "draw_heatmap"]
