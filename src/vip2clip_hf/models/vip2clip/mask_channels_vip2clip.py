"""The values of one page of a mask: grey values, a palette index, a colour channel or alpha, chosen by rule."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image


# Largest difference of the colour channels of a gray image with lossy compression.
GRAY_NOISE = 32
GRAY_MODES = ("1", "L", "F")
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")

OTHER_CHANNELS = "set mask_channel (--mask-channel) to luminance, any, red, green, blue, alpha or index"


@dataclass
class PageValues:
    """
    Values of one page of a mask.

    Args:
        values (`np.ndarray` of shape `(height, width)`): the values.
        is_index (`bool`, defaults to `False`): whether they are the index of a palette, where 0 is background.
        rule (`str`, *optional*): name of the rule that chose the values, if another choice marks other pixels.
    """

    values: np.ndarray
    is_index: bool = False
    rule: str | None = None

    def marked(self, threshold: float) -> np.ndarray:
        """Return the pixels with values above the threshold, for an index all above 0."""
        return self.values > (0 if self.is_index else threshold)


def page_values(page: Image.Image, channel: str, threshold: float, is_lossy: bool, name: str) -> PageValues:
    """
    Read the values of one page of a mask.

    Args:
        page (`PIL.Image.Image`): the page.
        channel (`str`): see [`MaskOptions`].
        threshold (`float`): mask values greater than this are anomalous, to find out whether a choice matters.
        is_lossy (`bool`): whether the file has lossy compression.
        name (`str`): name of the mask, for errors.

    Returns:
        [`PageValues`]: the values.

    Raises:
        ValueError: if the page has no such channel, or it is ambiguous where the defect is marked.
    """
    has_alpha = page.mode in ALPHA_MODES or ("transparency" in page.info and page.mode != "1")
    has_palette = page.mode in ("P", "PA")
    if channel == "index":
        if not has_palette and not (page.mode in ("1", "L") or page.mode.startswith("I")):
            raise ValueError(f"{name} has no palette (mode {page.mode}); {OTHER_CHANNELS}.")
        return PageValues(_index(page) if has_palette else np.asarray(page), is_index=True)
    if channel == "alpha" and not has_alpha:
        raise ValueError(f"{name} has no alpha channel (mode {page.mode}); {OTHER_CHANNELS}.")
    if (page.mode in GRAY_MODES or page.mode.startswith("I")) and not has_alpha:
        return PageValues(np.asarray(page.convert("L") if page.mode == "1" else page))
    if page.mode == "F" or page.mode.startswith("I"):  # a transparent value, which Pillow does not convert
        return PageValues(np.asarray(page))
    gray = page.mode in ("L", "LA", "La")
    if page.mode in ("La", "RGBa"):  # colours multiplied by alpha
        page = page.convert(page.mode.upper())
    try:
        mode = ("L" if gray else "RGB") + ("A" if has_alpha else "")
        colored = np.asarray(page if page.mode == mode else page.convert(mode))
    except ValueError as error:
        raise ValueError(
            f"{name} has mode {page.mode}, which cannot be read ({error}); save it as gray PNG."
        ) from error
    bands = [colored] if colored.ndim == 2 else [colored[..., number] for number in range(colored.shape[-1])]
    alpha = bands.pop() if has_alpha else None
    if channel == "alpha" and alpha is not None:
        return PageValues(alpha)
    if channel == "luminance":
        return PageValues(_luminance(bands))
    if channel == "any":
        return PageValues(_largest(bands))
    if channel in ("red", "green", "blue"):
        return PageValues(bands[("red", "green", "blue").index(channel) % len(bands)])
    if has_palette:
        return _palette(page, bands, alpha, threshold, name)
    if alpha is not None:
        return _with_alpha(bands, alpha, threshold, is_lossy, name)
    return _colors(bands, threshold, is_lossy)


def _index(page: Image.Image) -> np.ndarray:
    return np.asarray(page if page.mode == "P" else page.getchannel(0))


def _luminance(bands: list[np.ndarray]) -> np.ndarray:
    if len(bands) == 1:
        return bands[0]
    return np.asarray(Image.fromarray(np.dstack(bands)).convert("L"))


def _largest(bands: list[np.ndarray]) -> np.ndarray:
    return bands[0] if len(bands) == 1 else np.maximum(np.maximum(bands[0], bands[1]), bands[2])


def _is_constant(bands: list[np.ndarray], where: np.ndarray | None = None) -> bool:
    """Return whether all pixels, or those of `where`, have one colour."""
    chosen = bands if where is None else [band[where] for band in bands]
    return all(band.size == 0 or band.min() == band.max() for band in chosen)


def _colors(bands: list[np.ndarray], threshold: float, is_lossy: bool) -> PageValues:
    """Read gray values of gray images, otherwise the largest channel."""
    if all(np.array_equal(band, bands[0]) for band in bands[1:]):
        return PageValues(bands[0])
    luminance, largest = _luminance(bands), _largest(bands)
    smallest = np.minimum(np.minimum(bands[0], bands[1]), bands[2])
    if is_lossy and int((largest - smallest).max()) <= GRAY_NOISE:
        return PageValues(luminance)
    matters = not np.array_equal(luminance > threshold, largest > threshold)
    return PageValues(largest, rule="any" if matters else None)


def _palette(
    page: Image.Image, bands: list[np.ndarray], alpha: np.ndarray | None, threshold: float, name: str
) -> PageValues:
    """Read the colours of a palette if they mark the same pixels as the index, otherwise the index."""
    index, colors = _index(page), _colors(bands, threshold, False)
    by_index = index > 0
    if alpha is not None and alpha.min() < alpha.max() and not np.array_equal(alpha > 0, by_index):
        if by_index.all() or not by_index.any():  # one colour with transparency
            return PageValues(alpha, rule="alpha")
        raise ValueError(
            f"The palette index and the transparency of {name} mark different pixels; expected the same. To choose "
            f"one, {OTHER_CHANNELS}."
        )
    by_color = colors.values > threshold
    if np.array_equal(by_color, by_index):
        return PageValues(colors.values)
    if by_index.mean() > 0.5:
        is_gray = all(np.array_equal(band, bands[0]) for band in bands[1:])
        if is_gray and 0 < by_color.mean() <= 0.5:  # colours in any order, from a program that reduces them
            return PageValues(colors.values, rule="gray palette")
        raise ValueError(
            f"The palette of {name} is ambiguous: its index marks {by_index.mean():.0%} of the pixels, its colours "
            f"mark {by_color.mean():.0%}. To choose one, {OTHER_CHANNELS}."
        )
    return PageValues(index, is_index=True, rule="index")


def _with_alpha(bands: list[np.ndarray], alpha: np.ndarray, threshold: float, is_lossy: bool, name: str) -> PageValues:
    """Read alpha if the visible colours are constant, otherwise the colours if both agree."""
    colors = _colors(bands, threshold, is_lossy)
    if alpha.min() == alpha.max():
        if alpha.max() > 0:
            return colors
        if _is_constant(bands):  # an empty drawing layer
            return PageValues(alpha, rule="alpha" if colors.marked(threshold).any() else None)
        return PageValues(colors.values, rule="transparent")
    by_color, by_alpha = colors.marked(threshold), alpha > threshold
    if np.array_equal(by_color, by_alpha):
        return colors
    if _is_constant(bands, alpha > 0):
        return PageValues(alpha, rule="alpha")
    raise ValueError(
        f"The colours and the alpha channel of {name} mark different pixels ({by_color.mean():.0%} and "
        f"{by_alpha.mean():.0%}); expected the same. To choose one, {OTHER_CHANNELS}."
    )


def is_noisy(values: np.ndarray, threshold: float, is_lossy: bool) -> bool:
    """
    Find compression noise: values just above the threshold next to values near the maximum.

    Class ids and clean masks do not have both.

    Args:
        values (`np.ndarray`): values of a mask, at least 0.
        threshold (`float`): mask values greater than this are anomalous.
        is_lossy (`bool`): whether the file has lossy compression.

    Returns:
        `bool`: whether noise counts as anomalous.
    """
    top: Any = values.max()
    if values.dtype == bool or top <= threshold:
        return False
    largest = 1 if top <= 1 else 255 if top <= 255 else 65535
    if top <= 0.78 * largest or (largest == 1 and values.dtype.kind != "f"):
        return False
    return bool(((values > threshold) & (values < (0.5 if is_lossy else 0.215) * largest)).any())


__all__ = ["PageValues", "is_noisy", "page_values"]
