"""Draw a mask over a photo."""

import numpy as np
from PIL import Image


# The mask over the photo: a colour that neither the heatmap nor most things have.
MASK_COLOR, MASK_OPACITY = (0, 190, 255), 0.4


def draw_mask(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """
    A photo with the marked pixels tinted and outlined.

    Args:
        image (`PIL.Image.Image`): the photo.
        mask (`np.ndarray` of shape `(height, width)`): bool, of the size of the photo.

    Returns:
        `PIL.Image.Image`: mode RGB, of the same size.

    Raises:
        ValueError: a mask of another size than the photo.
    """
    if mask.shape != (image.height, image.width):
        raise ValueError(
            f"mask has shape {mask.shape}; expected {(image.height, image.width)}, height and width of the image."
        )
    # The outline is as thick as it takes to be seen when the photo is shown at the size of a screen.
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
