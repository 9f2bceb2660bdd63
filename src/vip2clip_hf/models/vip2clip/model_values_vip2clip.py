"""Scale and normalize the values of images for the model."""

from collections.abc import Sequence

import numpy as np


def model_values(
    values: np.ndarray,
    is_float: bool = False,
    position: int = 0,
    *,
    factor: float | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> np.ndarray:
    """
    Scale and normalize 8-bit values for the model, in the order and precision of the image processors of transformers.

    Args:
        values (`np.ndarray` of shape `(channels, height, width)`): 8-bit values.
        is_float (`bool`, defaults to `False`): whether they were floats in [0, 1]. Without a factor, they are again.
        position (`int`, defaults to 0): position of the image, for errors.
        factor (`float`, *optional*): factor of the values.
        mean, std (`float` or `Sequence[float]`, *optional*): mean and standard deviation, of all channels or of each.

    Returns:
        `np.ndarray` of shape `(channels, height, width)`: the values, float32.

    Raises:
        ValueError: if `mean` or `std` has another number of channels, or a value is not finite.
    """
    if factor is None and is_float:
        factor = 1 / 255
    with np.errstate(over="ignore", invalid="ignore"):  # an error below
        if factor is not None:
            values = (values.astype(np.float64) * factor).astype(np.float32)
        found = values.astype(np.float32)
        if mean is not None and std is not None:
            for name, one in (("image_mean", mean), ("image_std", std)):
                if np.ndim(one) and len(np.atleast_1d(one)) != len(found):
                    raise ValueError(f"{name} is {one!r}; expected {len(found)} values, one for each channel.")
            shape = (-1, 1, 1)
            found = found - np.asarray(mean, dtype=np.float32).reshape(shape)
            found = found / np.asarray(std, dtype=np.float32).reshape(shape)
    if not np.isfinite(found).all():
        raise ValueError(
            f"pixel_values of the image at position {position} contain NaN or infinite values; expected finite "
            "values. Check rescale_factor, image_mean and image_std."
        )
    return found


__all__ = ["model_values"]
