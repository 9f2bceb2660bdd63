"""Describe the result of an adaptation in sentences, for the command and the report."""

from collections.abc import Sequence

from ..calibration.rates import detection_interval
from ..calibration.synthetic_defects import SIZES
from ..models.vip2clip.decision_vip2clip import min_calibration_images
from ..utils.text import shown
from .adaptation import Adaptation
from .defects import DefectReport


# Rates to name the required number of photos for.
RATES = (0.1, 0.05, 0.02, 0.01, 0.005, 0.001)
MOST_NAMES = 5


def summary(found: Adaptation) -> list[str]:
    """
    Describe thresholds, false alarms, and the detection to expect.

    Args:
        found ([`Adaptation`]): the result.

    Returns:
        `list[str]`: the sentences.
    """
    count = len(found.bank)
    if not found.scores:
        lines = [f"{count} reference. Thresholds are not calibrated: there are no other photos to compare it with."]
    elif found.num_split:
        lines = [f"{count} references. The thresholds were chosen from {found.num_split} other photos of good parts."]
    else:
        number = "their scores" if len(found.scores) == count else f"the scores of {len(found.scores)} of them"
        lines = [f"{count} references. The thresholds were chosen from {number}, each compared with the others."]
    if found.outliers:
        lines.insert(0, f"Look unlike the others, and are used: {named(found.outliers)}. Look at them in the report.")
    lines.append(f"Image threshold {found.image_threshold:.4f}, pixel threshold {found.pixel_threshold:.4f}.")
    lines += [*_rates(found), *_defects(found)]
    if found.synthetic:
        lines.append(f"Rough estimate of what is found: {synthetic_summary(found)}.")
    if found.advice:
        lines.append(found.advice)
    if found.dropped:
        lines.append(f"Left out: {named(found.dropped)}.")
    if found.dropped and found.scores:
        lines.append("If good parts like the photos that were left out occur, there are more false alarms.")
    if found.unreadable:
        lines.append(f"Cannot be read, and are left out: {named(list(found.unreadable))}.")
    return lines


def _rates(found: Adaptation) -> list[str]:
    if found.false_alarm_rate is None or found.rate_interval is None:
        return []
    low, high = (100 * value for value in found.rate_interval)
    rate = found.false_alarm_rate
    more = [(smaller, min_calibration_images(smaller)) for smaller in RATES if smaller < rate]
    needed = ", and a rate of ".join(f"{100 * smaller:g} % needs {number}" for smaller, number in more[:2])
    if found.defects is not None and found.defects.pixel_threshold is not None:
        return []
    what = "False-alarm rate" if found.defects is None else "The pixel threshold is for a false-alarm rate"
    lines = [
        f"{what} of {100 * rate:.3g} %: the true rate lies between {low:.1f} and {high:.1f} % with a probability of "
        "90 %, if the photos are a random sample of good parts." + (f" A rate of {needed} photos." if needed else "")
    ]
    image, pixel = (named(found.deciding[level]) for level in ("image", "pixel"))
    if found.defects is None:
        lines.append(
            f"The image threshold is set by {image}; the pixel threshold by {pixel}. If one of them shows a defect, "
            "leave it out with --drop."
        )
    else:
        lines.append(f"It is set by {pixel}.")
    return lines


def _defects(found: Adaptation) -> list[str]:
    report = found.defects
    if report is None:
        return []
    aim = (
        "the largest F1" if report.miss_cost is None else f"a missed defect costing {report.miss_cost:g} false alarms"
    )
    chosen = f"The image threshold was chosen for {aim} with {report.num_photos} photos of defects."
    if report.weight != report.rule_weight:
        chosen += f" The weight of the zero-shot score is {report.weight:.3g} instead of {report.rule_weight:.3g}."
    if report.f1 is None or report.detection is None or report.false_alarms is None:
        return [
            chosen,
            "The detection is not measured: a cross-validation needs at least 2 photos of defects.",
            *_masks(report),
        ]
    low, high = (
        100 * end for end in detection_interval(round(report.detection * report.num_photos), report.num_photos)
    )
    return [
        chosen,
        f"By cross-validation, {100 * report.detection:.0f} % of the defects are found, with "
        f"{100 * report.false_alarms:.0f} % false alarms (F1 {100 * report.f1:.0f} %). The true detection rate lies "
        f"between {low:.0f} and {high:.0f} % with a probability of 90 %, if they are a random sample of the defects.",
        *_masks(report),
    ]


def _masks(report: DefectReport) -> list[str]:
    if not report.num_masks:
        return []
    found = "" if report.pixel_f1 is None else f" By cross-validation, the F1 is {100 * report.pixel_f1:.0f} %."
    return [f"The pixel threshold was chosen for the largest F1 of pixels with {report.num_masks} masks.{found}"]


def synthetic_summary(found: Adaptation) -> str:
    """
    Describe how many photos with synthetic defects are found.

    Args:
        found ([`Adaptation`]): the result, with such photos.

    Returns:
        `str`: the numbers by length of the defect.
    """
    middle, parts = sum(SIZES) / 2, []
    for low, high in ((SIZES[0], middle), (middle, SIZES[1])):
        counts = found.synthetic_counts(low, high)
        parts.append(
            f"{counts['detected']} of {counts['num_photos']} photos with a synthetic defect of {100 * low:.0f} to "
            f"{100 * high:.0f} % of the side are called anomalous, and the defect is marked in {counts['located']}"
        )
    return "; ".join(parts)


def named(names: Sequence[str]) -> str:
    """
    List names in one line.

    Args:
        names (`Sequence[str]`): names of photos.

    Returns:
        `str`: the first names, and the number of the others.
    """
    listed = ", ".join(shown(name) for name in names[:MOST_NAMES])
    return f"{listed} and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else listed


__all__ = ["named", "summary", "synthetic_summary"]
