"""Published results with 1, 2 and 4 normal references per category: mean and standard deviation, in percent."""

from .published import TRIPLES


Spread = tuple[float, float]  # mean, standard deviation over draws of the references

REFERENCE_METHODS = ("WinCLIP+", "APRIL-GAN")
SOURCES = {
    "WinCLIP+": (
        "Jeong et al., WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation, CVPR 2023 (arXiv:2303.14814), "
        "results with 1, 2 and 4 normal images, mean and standard deviation of 5 draws"
    ),
    "APRIL-GAN": (
        "Chen, Han and Zhang, APRIL-GAN: A Zero-/Few-Shot Anomaly Classification and Segmentation Method for CVPR "
        "2023 VAND Workshop Challenge Tracks 1&2 (arXiv:2305.17382), results with 1, 2 and 4 normal images"
    ),
}
# By method, level and benchmark: for each number of references, the metrics of TRIPLES as (mean, deviation).
PUBLISHED_REFERENCES: dict[str, dict[str, dict[str, dict[int, tuple[Spread, Spread, Spread]]]]] = {
    "WinCLIP+": {
        "image": {
            "mvtec": {
                1: ((93.1, 2.0), (96.5, 0.9), (93.7, 1.1)),
                2: ((94.4, 1.3), (97.0, 0.7), (94.4, 0.8)),
                4: ((95.2, 1.3), (97.3, 0.6), (94.7, 0.8)),
            },
            "visa": {
                1: ((83.8, 4.0), (85.1, 4.0), (83.1, 1.7)),
                2: ((84.6, 2.4), (85.8, 2.7), (83.0, 1.4)),
                4: ((87.3, 1.8), (88.8, 1.8), (84.2, 1.6)),
            },
        },
        "pixel": {
            "mvtec": {
                1: ((95.2, 0.5), (87.1, 1.2), (55.9, 2.7)),
                2: ((96.0, 0.3), (88.4, 0.9), (58.4, 1.7)),
                4: ((96.2, 0.3), (89.0, 0.8), (59.5, 1.8)),
            },
            "visa": {
                1: ((96.4, 0.4), (85.1, 2.1), (41.3, 2.3)),
                2: ((96.8, 0.3), (86.2, 1.4), (43.5, 3.3)),
                4: ((97.2, 0.2), (87.6, 0.9), (47.0, 3.0)),
            },
        },
    },
    "APRIL-GAN": {
        "image": {
            "mvtec": {
                1: ((92.0, 0.3), (95.8, 0.2), (92.4, 0.2)),
                2: ((92.4, 0.3), (96.0, 0.2), (92.6, 0.1)),
                4: ((92.8, 0.2), (96.3, 0.1), (92.8, 0.1)),
            },
            "visa": {
                1: ((91.2, 0.8), (93.3, 0.8), (86.9, 0.6)),
                2: ((92.2, 0.3), (94.2, 0.3), (87.7, 0.3)),
                4: ((92.6, 0.4), (94.5, 0.3), (88.4, 0.5)),
            },
        },
        "pixel": {
            "mvtec": {
                1: ((95.1, 0.1), (90.6, 0.2), (54.2, 0.0)),
                2: ((95.5, 0.0), (91.3, 0.1), (55.9, 0.5)),
                4: ((95.9, 0.0), (91.8, 0.1), (56.9, 0.1)),
            },
            "visa": {
                1: ((96.0, 0.0), (90.0, 0.1), (38.5, 0.3)),
                2: ((96.2, 0.0), (90.1, 0.1), (39.3, 0.2)),
                4: ((96.2, 0.0), (90.2, 0.1), (40.0, 0.1)),
            },
        },
    },
}


def published_with_references(
    benchmark: str | None, level: str, count: int, method: str
) -> tuple[Spread, Spread, Spread] | None:
    """
    Get a published result with references.

    Args:
        benchmark (`str`, *optional*): name of a benchmark, such as `"mvtec"`.
        level (`"image"` or `"pixel"`): level of the metrics.
        count (`int`): number of references per category.
        method (`"WinCLIP+"` or `"APRIL-GAN"`): the method.

    Returns:
        `tuple`, *optional*: AUROC, AP (image) or AUPRO (pixel), and F1, each as mean and standard deviation in
        percent. `None` if there is no such result.

    Raises:
        ValueError: if the method or the level is unknown.
    """
    if method not in PUBLISHED_REFERENCES:
        raise ValueError(f"method is {method!r}; expected {' or '.join(map(repr, PUBLISHED_REFERENCES))}.")
    if level not in TRIPLES:
        raise ValueError(f"level is {level!r}; expected {' or '.join(map(repr, TRIPLES))}.")
    return PUBLISHED_REFERENCES[method][level].get(benchmark or "", {}).get(count)


__all__ = ["PUBLISHED_REFERENCES", "REFERENCE_METHODS", "SOURCES", "published_with_references"]
