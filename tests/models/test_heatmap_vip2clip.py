"""The colours of anomaly maps: perceptual, and readable on dark and bright photos and by colour-blind readers."""

import numpy as np
import pytest
from PIL import Image

from vip2clip_hf import draw_heatmap
from vip2clip_hf.models.vip2clip.heatmap_vip2clip import HEATMAP_ALPHAS, HEATMAP_COLORS


# Linear RGB as seen with a colour vision deficiency, from Machado, Oliveira and Fernandes (2009), severity 1.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array([[0.412456, 0.357576, 0.180437], [0.212673, 0.715152, 0.072175], [0.019334, 0.119192, 0.950304]])


def lab(colors, vision: str = "normal") -> np.ndarray:
    """Convert sRGB to CIELAB, in which distances are about as large as they look."""
    colors = np.asarray(colors, dtype=float) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    linear = (linear @ VISION[vision].T).clip(0, 1)
    xyz = linear @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@pytest.mark.parametrize("vision", VISION)
def test_larger_values_are_lighter(vision):
    """Maps keep their order in grey and for colour-blind readers, and equal steps look similar."""
    found = lab(HEATMAP_COLORS, vision)
    assert (np.diff(found[::8, 0]) > 1).all()
    steps = np.linalg.norm(np.diff(found[::8], axis=0), axis=1)
    assert steps.max() < 2 * np.median(steps)
    assert steps.min() > np.median(steps) / 4


@pytest.mark.parametrize("vision", VISION)
def test_strong_values_are_readable_on_photos(vision):
    """A difference of 2.3 is just noticeable, 30 is that of black and dark grey (#474747)."""
    grays = np.repeat(np.arange(256)[:, None], 3, axis=1)
    wood, leaf, sky = (130, 80, 40), (70, 120, 50), (40, 70, 150)
    photo = np.array([*grays, wood, leaf, sky], dtype=np.uint8)[None]
    for value, least in ((0.8, 15), (0.9, 30), (1.0, 30)):
        drawn = np.asarray(draw_heatmap(Image.fromarray(photo), np.full(photo.shape[:2], value)))
        change = np.linalg.norm(lab(drawn, vision) - lab(photo, vision), axis=-1)
        assert change.min() > least, (value, change.argmin())


def test_colors_are_inferno():
    """The published table comes with matplotlib."""
    colormaps = pytest.importorskip("matplotlib").colormaps
    positions = np.linspace(0, 0.85 * 255, 256)
    published = np.array(colormaps["inferno"].colors) * 255
    expected = np.stack([np.interp(positions, np.arange(256), channel) for channel in published.T], axis=-1)
    assert np.abs(HEATMAP_COLORS - expected).max() < 4.5


def test_opacity_rises():
    assert HEATMAP_ALPHAS[0] == 0
    assert (np.diff(HEATMAP_ALPHAS.astype(int)) >= 0).all()
    assert HEATMAP_ALPHAS.max() == round(0.85 * 255)  # the photo stays visible
