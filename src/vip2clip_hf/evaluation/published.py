"""Published results: Tables 1 and 2 of the paper (arXiv:2505.17692), in percent."""

from typing import NamedTuple

from ..data.benchmarks.registry import BENCHMARKS


METHODS = ("CLIP", "WinCLIP", "APRIL-GAN", "AnomalyCLIP", "AdaCLIP", "ViP²-CLIP")
# Metrics of a triple, by level.
TRIPLES = {
    "image": ("image_auroc", "image_ap", "image_f1"),
    "pixel": ("pixel_auroc", "pixel_aupro", "pixel_f1"),
}
# Results that the paper took from WinCLIP's publication. All others were measured by the authors of the paper.
TAKEN_OVER = {("WinCLIP", "mvtec"), ("WinCLIP", "visa")}
# By level and benchmark, in the order of the rows in the paper: one triple per method, in the order of METHODS.
PUBLISHED: dict[str, dict[str, tuple[tuple[float, float, float], ...]]] = {
    "image": {
        "mvtec": (
            (66.5, 82.6, 86.7),
            (91.8, 96.5, 92.7),
            (86.1, 93.5, 90.4),
            (91.6, 96.4, 92.7),
            (90.1, 95.6, 92.3),
            (91.2, 96.0, 92.0),
        ),
        "visa": (
            (60.2, 66.2, 73.0),
            (78.1, 81.2, 78.2),
            (77.5, 80.9, 78.7),
            (82.0, 85.3, 80.4),
            (87.2, 89.7, 83.5),
            (88.5, 90.4, 84.8),
        ),
        "mpdd": (
            (58.7, 69.7, 76.0),
            (61.5, 69.2, 77.5),
            (76.8, 83.0, 81.0),
            (77.5, 82.5, 80.4),
            (74.8, 78.6, 83.3),
            (79.7, 84.5, 82.4),
        ),
        "ksdd": (
            (74.3, 55.3, 57.8),
            (92.4, 82.9, 77.7),
            (96.5, 91.2, 85.4),
            (97.8, 94.2, 89.7),
            (97.2, 92.6, 89.5),
            (98.1, 95.8, 93.2),
        ),
        "btad": (
            (25.7, 49.8, 66.0),
            (68.2, 70.9, 67.8),
            (73.7, 69.7, 68.2),
            (88.2, 88.2, 83.8),
            (89.3, 96.5, 90.9),
            (95.0, 98.4, 94.7),
        ),
        "dagm": (
            (55.3, 43.2, 49.6),
            (91.8, 79.5, 75.7),
            (94.4, 83.9, 80.2),
            (97.7, 92.4, 90.1),
            (98.2, 92.3, 90.9),
            (98.5, 94.3, 92.6),
        ),
        "dtd": (
            (52.3, 77.8, 85.1),
            (95.1, 97.7, 94.1),
            (85.6, 94.0, 89.1),
            (93.9, 97.2, 93.6),
            (96.3, 98.1, 95.5),
            (95.5, 98.1, 94.3),
        ),
        "headct": (
            (67.8, 62.4, 70.9),
            (81.8, 80.2, 78.9),
            (89.1, 89.4, 82.1),
            (93.0, 91.1, 88.4),
            (94.0, 91.4, 90.1),
            (94.3, 93.9, 88.1),
        ),
        "brainmri": (
            (72.2, 81.5, 76.5),
            (86.6, 91.5, 84.1),
            (89.4, 91.0, 88.2),
            (90.0, 92.1, 86.5),
            (94.3, 95.5, 92.2),
            (95.3, 96.7, 92.3),
        ),
        "br35h": (
            (76.3, 77.7, 72.2),
            (79.9, 82.2, 74.0),
            (91.6, 92.1, 84.5),
            (93.4, 93.8, 86.4),
            (95.7, 95.8, 91.1),
            (95.8, 96.0, 90.1),
        ),
    },
    "pixel": {
        "mvtec": (
            (35.6, 10.6, 6.9),
            (85.1, 64.6, 24.8),
            (87.6, 44.0, 43.3),
            (91.1, 81.4, 39.1),
            (89.6, 37.8, 45.1),
            (90.5, 87.1, 43.1),
        ),
        "visa": (
            (43.6, 14.0, 1.5),
            (79.6, 56.8, 9.0),
            (94.2, 86.6, 32.3),
            (95.5, 86.7, 28.3),
            (95.5, 56.8, 37.0),
            (95.4, 92.2, 33.6),
        ),
        "mpdd": (
            (56.2, 27.3, 8.2),
            (71.2, 40.5, 15.4),
            (94.3, 83.8, 31.3),
            (96.5, 88.7, 34.2),
            (96.1, 60.3, 31.9),
            (97.2, 92.6, 35.9),
        ),
        "ksdd": (
            (21.7, 2.6, 0.5),
            (92.8, 70.3, 15.8),
            (93.2, 84.1, 43.6),
            (98.1, 94.9, 56.5),
            (98.4, 53.0, 52.8),
            (98.5, 96.2, 53.0),
        ),
        "btad": (
            (41.2, 10.8, 6.8),
            (72.7, 27.5, 18.5),
            (89.3, 68.7, 40.6),
            (94.2, 75.4, 49.7),
            (90.7, 22.3, 51.4),
            (95.6, 86.1, 52.7),
        ),
        "dagm": (
            (49.6, 12.4, 2.4),
            (87.6, 65.7, 12.7),
            (82.4, 66.0, 37.4),
            (95.6, 91.0, 58.9),
            (94.3, 42.5, 59.6),
            (97.5, 95.2, 61.2),
        ),
        "dtd": (
            (43.8, 16.0, 3.7),
            (79.5, 51.4, 16.1),
            (95.2, 87.3, 67.4),
            (97.9, 92.0, 62.2),
            (98.5, 75.0, 71.8),
            (99.0, 96.5, 67.5),
        ),
        "isic": (
            (43.2, 7.6, 44.0),
            (83.3, 55.1, 64.1),
            (89.4, 77.2, 71.4),
            (89.4, 78.4, 71.6),
            (91.3, 53.2, 75.5),
            (90.3, 82.3, 73.7),
        ),
        "colondb": (
            (59.8, 30.4, 17.8),
            (64.8, 28.4, 21.0),
            (78.4, 64.6, 29.7),
            (81.9, 71.2, 37.5),
            (81.5, 64.3, 33.6),
            (82.5, 74.8, 36.2),
        ),
        "clinicdb": (
            (63.1, 33.8, 23.4),
            (70.3, 32.5, 27.2),
            (80.5, 60.7, 38.7),
            (82.9, 68.1, 42.4),
            (83.9, 65.7, 42.3),
            (86.3, 72.1, 44.9),
        ),
        "endo": (
            (59.7, 25.2, 28.9),
            (68.2, 28.3, 32.9),
            (81.9, 54.9, 44.8),
            (84.2, 63.4, 50.3),
            (86.0, 63.4, 51.8),
            (84.5, 63.7, 49.2),
        ),
        "kvasir": (
            (58.0, 18.3, 29.3),
            (69.7, 24.5, 35.9),
            (75.0, 36.3, 40.0),
            (79.0, 45.4, 46.2),
            (81.6, 49.1, 47.1),
            (81.9, 47.8, 47.3),
        ),
    },
}
# The rows AVERAGE as printed. They agree with the means of the rows within rounding, except for WinCLIP's industrial
# averages: the means of its rows are 82.7, 82.6, 80.5 (image) and 81.2, 53.8, 16.0 (pixel).
AVERAGES: dict[tuple[str, str], tuple[tuple[float, float, float], ...]] = {
    ("industrial", "image"): (
        (56.1, 63.5, 70.6),
        (82.1, 82.1, 80.5),
        (84.4, 85.2, 81.9),
        (89.8, 90.9, 87.2),
        (90.4, 91.9, 89.4),
        (92.4, 93.9, 90.6),
    ),
    ("medical", "image"): (
        (72.1, 73.9, 73.2),
        (82.8, 84.6, 79.0),
        (90.0, 90.8, 84.9),
        (92.1, 92.3, 87.1),
        (94.7, 94.2, 91.1),
        (95.1, 95.5, 90.2),
    ),
    ("industrial", "pixel"): (
        (41.7, 13.4, 4.3),
        (79.9, 52.6, 16.0),
        (90.9, 74.4, 42.2),
        (95.6, 87.2, 47.0),
        (94.7, 49.7, 49.9),
        (96.2, 92.3, 49.6),
    ),
    ("medical", "pixel"): (
        (56.8, 23.1, 28.7),
        (71.3, 33.8, 36.2),
        (81.0, 58.7, 44.9),
        (83.5, 65.3, 49.6),
        (84.9, 59.1, 50.1),
        (85.1, 68.1, 50.3),
    ),
}


class Triple(NamedTuple):
    """
    One cell of the paper's tables, in percent.

    Args:
        auroc (`float`): AUROC.
        ranking (`float`): AP at image level, AUPRO at pixel level.
        f1 (`float`): largest F1 over all thresholds.
    """

    auroc: float
    ranking: float
    f1: float


def published_sets(domain: str, level: str) -> list[str]:
    """
    List the benchmarks of one half of a table in the paper.

    Args:
        domain (`"industrial"` or `"medical"`): Table 1 or Table 2.
        level (`"image"` or `"pixel"`): half of the table.

    Returns:
        `list[str]`: names of the benchmarks, in the order of the rows.
    """
    return [name for name in PUBLISHED[level] if BENCHMARKS[name].domain == domain]


def published(benchmark: str, level: str, method: str = "ViP²-CLIP") -> Triple:
    """
    Get a published result.

    Args:
        benchmark (`str`): name of one of the 15 benchmarks, such as `"mvtec"`.
        level (`"image"` or `"pixel"`): half of the table.
        method (`str`, defaults to `"ViP²-CLIP"`): one of `"CLIP"`, `"WinCLIP"`, `"APRIL-GAN"`, `"AnomalyCLIP"`,
            `"AdaCLIP"` and `"ViP²-CLIP"`.

    Returns:
        `Triple`: AUROC, AP (image) or AUPRO (pixel), and F1, in percent.

    Raises:
        ValueError: if the paper does not contain this result.
    """
    rows = PUBLISHED.get(level, {})
    if benchmark not in rows or method not in METHODS:
        raise ValueError(
            f"The paper contains no {level!r} result of {method!r} on {benchmark!r}; expected the level 'image' or "
            f"'pixel', a method from {', '.join(METHODS)}, and a benchmark from {', '.join(rows) or 'Tables 1 and 2'}."
        )
    return Triple(*rows[benchmark][METHODS.index(method)])


def published_average(benchmarks: list[str], domain: str, level: str, method: str = "ViP²-CLIP") -> Triple:
    """
    Average published results over benchmarks.

    Args:
        benchmarks (`list[str]`): names of the benchmarks. If these are all benchmarks of one half of the table, the
            average printed in the paper is returned.
        domain (`"industrial"` or `"medical"`): Table 1 or Table 2.
        level (`"image"` or `"pixel"`): half of the table.
        method (`str`, defaults to `"ViP²-CLIP"`): see [`published`].

    Returns:
        `Triple`: AUROC, AP (image) or AUPRO (pixel), and F1, in percent.

    Raises:
        ValueError: if the paper does not contain one of the results.
    """
    if set(benchmarks) == set(published_sets(domain, level)):
        return Triple(*AVERAGES[domain, level][METHODS.index(method)])
    rows = [published(name, level, method) for name in benchmarks]
    return Triple(*(sum(values) / len(values) for values in zip(*rows)))


__all__ = ["AVERAGES", "METHODS", "PUBLISHED", "TRIPLES", "Triple", "published", "published_average", "published_sets"]
