"""Synthetic images of materials, objects and printed surfaces under varied light, for training and tests."""

import string

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...utils.extras import extra
from .noise import smooth_noise


SCENES = ("materials", "objects", "prints")


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates y and x in [0, 1), each of shape (size, size)."""
    y, x = np.mgrid[:size, :size] / size
    return y, x


def _fractal(rng: np.random.Generator, size: int) -> np.ndarray:
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)) + 1 / size
    stretch = np.fft.fft2(rng.standard_normal((size, size))) * frequency ** -rng.uniform(0.6, 2.0)
    field = np.fft.ifft2(stretch).real
    return (field - field.mean()) / field.std()


def _grain(rng: np.random.Generator, size: int) -> np.ndarray:
    return smooth_noise(rng, size, (size * rng.uniform(0.002, 0.02), size * rng.uniform(0.02, 0.3)))


def _grating(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = _grid(size)
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(4, 40)
    wave = np.sin(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6))
    return wave if rng.random() < 0.5 else np.sign(wave)


def _weave(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = _grid(size)
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(6, 40)
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    return np.sin(2 * np.pi * frequency * along) * np.sin(2 * np.pi * frequency * rng.uniform(0.5, 2) * across)


def _cells(rng: np.random.Generator, size: int) -> np.ndarray:
    with extra("data", "Generating scenes"):
        from scipy.spatial import cKDTree

    points = rng.random((int(rng.integers(15, 300)), 2))
    y, x = _grid(size)
    found = cKDTree(points).query(np.stack([y.ravel(), x.ravel()], axis=1), k=2)
    distances, nearest = np.asarray(found[0]), np.asarray(found[1])
    if rng.random() < 0.5:  # the joints between the cells
        field = (distances[:, 1] - distances[:, 0]) < rng.uniform(0.003, 0.015)
    else:
        field = rng.standard_normal(len(points))[nearest[:, 0]] + distances[:, 0] * 5
    return field.reshape(size, size).astype(float)


def _bricks(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = _grid(size)
    rows, joint = rng.uniform(3, 14), rng.uniform(0.03, 0.12)
    row = np.floor(y * rows)
    along = x * rows * rng.uniform(0.4, 1.0) + 0.5 * (row % 2) * (rng.random() < 0.7)
    is_joint = (y * rows % 1 < joint) | (along % 1 < joint)
    shades = rng.standard_normal((40, 40))[row.astype(int) % 40, np.floor(along).astype(int) % 40]
    return np.where(is_joint, -2.5, 0.5 * shades)


def _rings(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = _grid(size)
    center = rng.uniform(-1, 2, size=2)
    warp = 0.1 * smooth_noise(rng, size, size / rng.uniform(4, 12))
    return np.sin(2 * np.pi * rng.uniform(5, 30) * (np.hypot(y - center[0], x - center[1]) + warp))


def _lattice(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = _grid(size)
    count, radius = rng.uniform(4, 25), rng.uniform(0.15, 0.45)
    shift = 0.5 * (np.floor(y * count) % 2) * (rng.random() < 0.5)
    distance = np.hypot((x * count + shift) % 1 - 0.5, y * count % 1 - 0.5)
    return (distance < radius).astype(float) if rng.random() < 0.5 else np.cos(np.pi * distance)


# Patterns of materials: random fields of shape (size, size).
_FIELDS = (_fractal, _grain, _grating, _weave, _cells, _bricks, _rings, _lattice)


def _colors(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random colours around a base colour, with random contrast and saturation, (count, 3) in [0, 1]."""
    base = rng.uniform(0.1, 0.9) + rng.uniform(-0.35, 0.35, size=3) * rng.choice([0.05, 0.15, 0.4, 1.0])
    return (base + rng.normal(scale=rng.uniform(0.04, 0.3), size=(count, 3))).clip(0.02, 0.98)


def material(rng: np.random.Generator, size: int) -> np.ndarray:
    """Surface of a random material, (size, size, 3) in [0, 1]."""
    field = _FIELDS[rng.integers(len(_FIELDS))](rng, size)
    if rng.random() < 0.6:
        field = field + rng.uniform(0.1, 0.6) * _FIELDS[rng.integers(2)](rng, size)
    low, high = np.quantile(field, [0.01, 0.99])
    position = ((field - low) / (high - low + 1e-9)).clip(0, 1)
    colors = _colors(rng, int(rng.integers(2, 5)))
    knots = np.linspace(0, 1, len(colors))
    surface = np.stack([np.interp(position, knots, channel) for channel in colors.T], axis=-1)
    return colors.mean(axis=0) + rng.uniform(0.1, 1.0) * (surface - colors.mean(axis=0))


def _lit(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add uneven coloured light and camera noise to an image of shape (size, size, 3)."""
    size = len(image)
    y, x = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.35) * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))
    if rng.random() < 0.3:  # a lamp
        cy, cx = rng.random(2)
        light = light + rng.uniform(0.1, 0.5) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / rng.uniform(0.01, 0.1))
    light = light[..., None] * rng.uniform(0.9, 1.1, size=3)
    return image * light + rng.uniform(0, 0.02) * rng.standard_normal(image.shape)


def _outline(rng: np.random.Generator, kind: int, radius: float, angle: np.ndarray) -> np.ndarray:
    """Radius of a shape at every angle, in the shape of `angle`."""
    if kind == 0:  # round, oval, irregular
        waves = (rng.uniform(0, 0.12) * np.cos(n * angle + rng.uniform(0, 6)) for n in (1, 2, 3))
        return radius * (1 + sum(waves, np.zeros_like(angle)))
    if kind == 1:  # polygon
        corners = int(rng.integers(3, 9))
        sector = (angle + rng.uniform(0, 6)) % (2 * np.pi / corners) - np.pi / corners
        return radius * np.cos(np.pi / corners) / np.cos(sector)
    if kind == 2:  # rounded box
        power = rng.uniform(3, 12)
        turned, stretch = angle + rng.uniform(0, 6), rng.uniform(0.4, 1)
        return radius * (abs(np.cos(turned)) ** power + abs(np.sin(turned) / stretch) ** power) ** (-1 / power)
    teeth = int(rng.integers(6, 20))  # gear, star
    return radius * (1 + rng.uniform(0.05, 0.25) * np.tanh(rng.uniform(1, 6) * np.sin(teeth * angle)))


def _objects(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Objects on a background: image, background, and index of the object at every pixel (0 for none)."""
    background = (
        material(rng, size) if rng.random() < 0.5 else np.broadcast_to(_colors(rng, 1), (size, size, 3)).copy()
    )
    image, parts = background.copy(), np.zeros((size, size), dtype=int)
    y, x = _grid(size)
    alike = rng.random() < 0.6
    count = int(rng.choice([1, 1, 1, 2, 4, 9]))
    per_side = int(np.ceil(np.sqrt(count)))
    kind, inside = int(rng.integers(4)), material(rng, size)
    hole, shape_seed = rng.random() < 0.25, int(rng.integers(1 << 30))
    for number in range(count):
        if not alike:
            kind, inside, shape_seed = int(rng.integers(4)), material(rng, size), int(rng.integers(1 << 30))
        cy = (number // per_side + rng.uniform(0.4, 0.6)) / per_side
        cx = (number % per_side + rng.uniform(0.4, 0.6)) / per_side
        distance, angle = np.hypot(y - cy, x - cx), np.arctan2(y - cy, x - cx) + rng.uniform(0, 2 * np.pi)
        outline = _outline(np.random.default_rng(shape_seed), kind, rng.uniform(0.28, 0.42) / per_side, angle)
        depth = (outline - distance) * per_side
        mask = depth > 0
        if hole:
            mask &= distance > 0.35 * outline
        shadow = np.exp(-(np.maximum(-depth, 0) ** 2) / 0.004)[..., None]
        image = np.where(mask[..., None], image, image * (1 - rng.uniform(0, 0.5) * shadow))
        bevel = 1 + rng.uniform(0, 0.4) * (np.tanh(depth * rng.uniform(5, 30)) - 0.7)
        turned = np.roll(np.rot90(inside, int(rng.integers(4))), rng.integers(size, size=2), axis=(0, 1))
        image = np.where(mask[..., None], turned * bevel[..., None], image)
        parts[mask] = number + 1
    return image, background, parts


def _prints(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Printed surface: image, and surface without the print."""
    background = (
        material(rng, size) if rng.random() < 0.4 else np.broadcast_to(_colors(rng, 1), (size, size, 3)).copy()
    )
    layer = Image.new("L", (size, size))
    draw = ImageDraw.Draw(layer)
    for _ in range(int(rng.integers(2, 12))):
        ax, ay, bx, by = (int(value) for value in rng.integers(0, size, size=4))
        width, kind = int(rng.integers(1, max(2, size // 40))), int(rng.integers(5))
        if kind == 0:
            text = "".join(rng.choice(list(string.ascii_letters + string.digits), size=int(rng.integers(2, 9))))
            draw.text((ax, ay), text, fill=255, font=ImageFont.load_default(int(rng.integers(size // 20, size // 5))))
        elif kind == 1:
            draw.line((ax, ay, bx, by), fill=255, width=width)
        elif kind == 2:
            draw.rectangle((min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)), outline=255, width=width)
        elif kind == 3:
            draw.ellipse((min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)), outline=255, width=width)
        else:  # bars
            for bar in range(ax, min(size, ax + size // 3), 2 * width + 1):
                draw.rectangle((bar, ay, bar + int(rng.integers(width + 1)), ay + size // 8), fill=255)
    strength = np.asarray(layer, dtype=float)[..., None] / 255 * rng.uniform(0.5, 1)
    return background * (1 - strength) + _colors(rng, 1) * strength, background


def scene(rng: np.random.Generator, kind: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """
    Generate a normal scene.

    Args:
        rng (`np.random.Generator`): source of randomness.
        kind (`str`): one of `SCENES`.
        size (`int`): width and height in pixels.

    Returns:
        `tuple[np.ndarray, np.ndarray, np.ndarray | None]`: image and image without objects or print, both of shape
        (size, size, 3) in [0, 1], and for objects the index of the object at every pixel, of shape (size, size), 0 for
        none.

    Raises:
        ImportError: if `scipy` is not installed.
        ValueError: if the kind is unknown.
    """
    parts = None
    if kind == "materials":
        image = material(rng, size)
        plain = np.broadcast_to(image.mean(axis=(0, 1)), image.shape)
    elif kind == "objects":
        image, plain, parts = _objects(rng, size)
    elif kind == "prints":
        image, plain = _prints(rng, size)
    else:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(SCENES)}.")
    state = rng.bit_generator.state
    lit = _lit(rng, image)
    rng.bit_generator.state = state  # the same light for both images
    return lit.clip(0, 1), _lit(rng, plain).clip(0, 1), parts


__all__ = ["SCENES", "material", "scene"]
