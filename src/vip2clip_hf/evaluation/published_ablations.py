"""Published results: Tables 3 to 6 of the paper (arXiv:2505.17692). Metrics are in percent.

In the text of the paper that these values are from, the last four rows of Table 4 have lost the columns of their tick
marks. The rows are read in binary order of the columns UTPA, ICA and FGP, without UTPA alone, which is `CLIP_UTPA` in
Table 5: no module, ICA, FGP, ICA and FGP, UTPA and ICA, UTPA and FGP, all. The last row is certain: it is the row
ViP²-CLIP of Table 1. Figures 5 and 6 have no printed numbers.
"""

from typing import NamedTuple

from .published import TRIPLES, Triple


class Efficiency(NamedTuple):
    """
    Row of Table 3, measured by the authors on VisA.

    Args:
        training_hours (`float`): training time, in hours.
        inference_ms (`float`): inference time of one image, in milliseconds.
        inference_ms_spread (`float`): its spread, printed after ±, in milliseconds.
        gpu_gb (`float`): GPU cost, in GB.
        trainable_millions (`float`): number of trainable parameters, in millions.
    """

    training_hours: float
    inference_ms: float
    inference_ms_spread: float
    gpu_gb: float
    trainable_millions: float


# Table 3, in the order of the rows.
EFFICIENCY = {
    "AnomalyCLIP": Efficiency(1.02, 90.72, 0.16, 2.75, 5.56),
    "AdaCLIP": Efficiency(2.24, 134.20, 0.39, 3.17, 10.67),
    "ViP²-CLIP": Efficiency(0.54, 48.69, 0.19, 2.21, 4.15),
}
EFFICIENCY_TITLES = (
    "Training Time (h)",
    "Inference Time (ms)",
    "GPU Cost (GB)",
    "Trainable Parameters (M)",
)
# Why rows of Table 4 are in question.
TICKS_NOTE = (
    "In the text of the paper, the last four rows have lost the columns of their tick marks. They are read in binary "
    "order of UTPA, ICA and FGP, without UTPA alone, which is CLIP_UTPA in Table 5. The last row is also in Table 1."
)
# Columns of Tables 4, 5 and 6, in their order: benchmark and level.
ABLATION_COLUMNS = (("mvtec", "pixel"), ("mvtec", "image"), ("visa", "pixel"), ("visa", "image"))
_Row = tuple[tuple[float, float, float], ...]
# By table and setting, in the order of the rows: one triple per column, in the order of ABLATION_COLUMNS.
ABLATIONS: dict[int, dict[str, _Row]] = {
    4: {
        "none": ((37.8, 11.5, 7.0), (74.1, 87.6, 87.2), (43.5, 14.6, 2.8), (60.2, 66.3, 74.5)),
        "ica": ((89.5, 79.9, 38.6), (71.8, 86.2, 88.5), (95.2, 90.9, 31.6), (79.7, 82.8, 79.5)),
        "fgp": ((90.0, 85.5, 42.7), (66.1, 82.6, 86.6), (95.3, 91.5, 33.4), (60.1, 66.4, 73.2)),
        "ica+fgp": ((87.7, 83.8, 42.4), (88.9, 94.9, 91.6), (95.2, 91.6, 35.5), (83.0, 85.9, 81.4)),
        "utpa+ica": ((89.8, 84.4, 40.2), (89.2, 95.0, 91.4), (94.9, 91.4, 31.3), (86.3, 89.1, 83.8)),
        "utpa+fgp": ((88.8, 82.1, 38.7), (85.2, 93.3, 89.0), (95.3, 91.9, 31.4), (87.6, 89.4, 83.8)),
        "full": ((90.5, 87.1, 43.1), (91.2, 96.0, 92.0), (95.4, 92.2, 33.6), (88.5, 90.4, 84.8)),
    },
    5: {
        "dual": ((69.6, 24.6, 12.0), (88.6, 94.9, 91.3), (93.3, 82.4, 24.2), (79.3, 82.4, 79.0)),
        "utpa": ((89.6, 83.7, 37.4), (85.0, 93.3, 88.8), (94.4, 88.4, 26.2), (83.8, 86.7, 81.4)),
    },
    6: {
        "full": ((90.5, 87.1, 43.1), (91.2, 96.0, 92.0), (95.4, 92.2, 33.6), (88.5, 90.4, 84.8)),
        "normal/abnormal": ((90.6, 87.5, 43.6), (91.1, 95.9, 92.3), (95.3, 91.9, 33.3), (88.3, 90.2, 84.5)),
        "perfect/flawed": ((90.4, 87.2, 43.7), (91.7, 96.2, 92.5), (95.4, 92.0, 33.5), (88.3, 90.3, 84.5)),
        "flawless/imperfect": ((90.4, 87.4, 43.3), (91.2, 95.9, 92.2), (95.4, 91.9, 33.1), (87.9, 90.2, 84.3)),
    },
}


def published_ablation(table: int, setting: str, benchmark: str | None, level: str) -> Triple | None:
    """
    Get a published result of an ablation.

    Args:
        table (`int`): 4 (modules), 5 (UTPA) or 6 (state words).
        setting (`str`): name of the row: `"none"`, `"ica"`, `"fgp"`, `"ica+fgp"`, `"utpa+ica"`, `"utpa+fgp"` and
            `"full"` in Table 4; `"dual"` and `"utpa"` in Table 5; `"full"` (Good/Damage) or words such as
            `"normal/abnormal"` in Table 6.
        benchmark (`str`, *optional*): name of a benchmark. `None` for other data.
        level (`"image"` or `"pixel"`): level of the metrics.

    Returns:
        `Triple`, *optional*: AUROC, AP (image) or AUPRO (pixel), and F1, in percent. `None` if the paper does not
        contain the result.

    Raises:
        ValueError: if the table or the level is unknown.
    """
    if table not in ABLATIONS:
        raise ValueError(f"table is {table!r}; expected {', '.join(map(str, ABLATIONS))}.")
    if level not in TRIPLES:
        raise ValueError(f"level is {level!r}; expected {' or '.join(map(repr, TRIPLES))}.")
    row = ABLATIONS[table].get(setting)
    if row is None or (benchmark, level) not in ABLATION_COLUMNS:
        return None
    return Triple(*row[[*ABLATION_COLUMNS].index((benchmark or "", level))])


__all__ = [
    "ABLATIONS",
    "ABLATION_COLUMNS",
    "EFFICIENCY",
    "EFFICIENCY_TITLES",
    "TICKS_NOTE",
    "Efficiency",
    "published_ablation",
]
