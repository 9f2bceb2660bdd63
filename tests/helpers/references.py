"""Photos of good parts, and features like theirs."""

import numpy as np
import torch
from PIL import Image


def part(seed: int, size: tuple[int, int] = (48, 48), spot: tuple[int, int] | None = None) -> Image.Image:
    """A smooth random texture with a pattern that is not symmetric, optionally with a black spot of 8 x 8 pixels."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(60, 200, size=(6, 6, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).copy()
    pixels[4:12, 4:20] = [250, 30, 30]
    if spot is not None:
        pixels[spot[1] : spot[1] + 8, spot[0] : spot[0] + 8] = 0
    return Image.fromarray(pixels)


def parts(count: int, first: int = 0) -> list[Image.Image]:
    return [part(seed) for seed in range(first, first + count)]


def write_parts(folder, count: int) -> list:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:02d}.png" for number in range(count)]
    for path, image in zip(paths, parts(count)):
        image.save(path)
    return paths


def unit_features(layers: int, count: int, width: int, seed: int = 0, spread: float = 0.3) -> torch.Tensor:
    """Unit vectors that vary mostly in few dimensions, like patches of good parts."""
    generator = torch.Generator().manual_seed(seed)
    scale = spread * 0.8 ** torch.arange(width)
    found = torch.randn(layers, count, width, generator=generator) * scale
    found[..., 0] += 1
    return torch.nn.functional.normalize(found, dim=-1)


def brute_distances(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Distances in float64, from all pairs."""
    rows = torch.nn.functional.normalize(rows.double(), dim=-1)
    return (1 - (queries.double() @ rows.double().mT).amax(dim=-1)).clamp(0, 2)
