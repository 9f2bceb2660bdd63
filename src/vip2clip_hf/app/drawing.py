"""Draw a mask over a photo."""

import numpy as np
from PIL import Image


# Cyan: not in the colours of the heatmap, and rare in photos.
MASK_COLOR, MASK_OPACITY = (0, 190, 255), 0.4


def draw_mask(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """
    Tint and outline the masked pixels of an image.

    Args:
        image (`PIL.Image.Image`): the image.
        mask (`np.ndarray` of shape `(height, width)`): bool, at the size of the image.

    Returns:
        `PIL.Image.Image`: the image with the mask, in mode RGB, at the same size.

    Raises:
        ValueError: if the sizes of mask and image differ.
    """
    if mask.shape != (image.height, image.width):
        raise ValueError(
            f"mask has shape {mask.shape}; expected {(image.height, image.width)}, the height and width of the image."
        )
    # Thick enough to stay visible when a large image is scaled down to the screen.
    thickness = max(1, round(max(mask.shape) / 400))
    padded = np.pad(mask, thickness)
    height, width = mask.shape
    inside = mask.copy()
    for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
        top, left = down * thickness, right * thickness
        inside &= padded[top : top + height, left : left + width]
    cover = np.where(mask, np.where(inside, round(MASK_OPACITY * 255), 255), 0).astype(np.uint8)
    colors = Image.new("RGB", image.size, MASK_COLOR)
    return Image.composite(colors, image.convert("RGB"), Image.fromarray(cover))


__all__ = ["draw_mask"]
