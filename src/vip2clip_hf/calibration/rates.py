"""How well rates are known from few photos: the false-alarm rate of a threshold, and the detection rate."""

import math
from collections.abc import Callable
from fractions import Fraction

from ..models.vip2clip.decision_vip2clip import min_calibration_images


DEFAULT_RATE = 0.05


def smallest_rate(num_photos: int) -> float:
    """
    Compute the smallest false-alarm rate that a number of photos allows, rounded up to four digits.

    Args:
        num_photos (`int`): number of photos, at least 1.

    Returns:
        `float`: the rate.
    """
    return math.ceil(Fraction(10_000, num_photos + 1)) / 10_000


def choose_rate(num_photos: int, false_alarm_rate: float | None, note: Callable[[str], None]) -> float:
    """
    Choose the false-alarm rate for a number of photos.

    Args:
        num_photos (`int`): number of scores, at least 1.
        false_alarm_rate (`float`, *optional*): the rate to use. By default 0.05, or the smallest possible rate if
            there are fewer than 19 photos.
        note (`Callable[[str], None]`): gets what was decided.

    Returns:
        `float`: the rate.

    Raises:
        ValueError: if there are too few photos for the rate. The message contains the required number.
    """
    if false_alarm_rate is None:
        least = min_calibration_images(DEFAULT_RATE)
        if num_photos >= least:
            return DEFAULT_RATE
        rate = smallest_rate(num_photos)
        note(
            f"{num_photos} photos allow a false-alarm rate of {100 * rate:.3g} % at best, which is used. A rate of "
            f"{100 * DEFAULT_RATE:g} % needs at least {least} photos."
        )
        return rate
    needed = min_calibration_images(false_alarm_rate)
    if num_photos < needed:
        raise ValueError(
            f"A false-alarm rate of {false_alarm_rate:g} needs at least {needed} photos of good parts, found "
            f"{num_photos}. Add photos, or choose a rate of at least {smallest_rate(num_photos):g}."
        )
    return float(false_alarm_rate)


def alarms_allowed(num_photos: int, false_alarm_rate: float) -> int:
    """
    Compute which of the scores is the threshold.

    Args:
        num_photos (`int`): number of scores.
        false_alarm_rate (`float`): false-alarm rate, in (0, 1).

    Returns:
        `int`: r, if the threshold is the r-th largest score.
    """
    rate = Fraction(str(float(false_alarm_rate)))
    return num_photos + 1 - math.ceil((num_photos + 1) * (1 - rate))


def rate_interval(num_photos: int, false_alarm_rate: float, confidence: float = 0.9) -> tuple[float, float]:
    """
    Compute the range in which the false-alarm rate of a threshold lies.

    The rate of new photos above the r-th largest of k scores is a random number with the distribution
    Beta(r, k + 1 - r), if the k photos are a random sample of good parts.

    Args:
        num_photos (`int`): number of scores.
        false_alarm_rate (`float`): false-alarm rate of the threshold, in (0, 1).
        confidence (`float`, defaults to 0.9): probability of the range, in (0, 1).

    Returns:
        `tuple[float, float]`: lower and upper end of the range.
    """
    rank = alarms_allowed(num_photos, false_alarm_rate)
    tail = (1 - confidence) / 2
    return beta_quantile(tail, rank, num_photos + 1 - rank), beta_quantile(1 - tail, rank, num_photos + 1 - rank)


def detection_interval(num_found: int, num_photos: int, confidence: float = 0.9) -> tuple[float, float]:
    """
    Compute the range in which a detection rate lies (Clopper and Pearson 1934).

    Args:
        num_found, num_photos (`int`): number of photos of defects that were found, and of all, at least 1.
        confidence (`float`, defaults to 0.9): probability of the range, in (0, 1), if the photos are a random sample
            of the defects to find.

    Returns:
        `tuple[float, float]`: lower and upper end of the range, in [0, 1].

    Raises:
        ValueError: if there are no photos, or more are found than there are.
    """
    if not 0 <= num_found <= num_photos or num_photos < 1:
        raise ValueError(
            f"num_found is {num_found} of {num_photos}; expected at most the number of photos, at least 1."
        )
    tail, missed = (1 - confidence) / 2, num_photos - num_found
    low = beta_quantile(tail, num_found, missed + 1) if num_found else 0.0
    high = beta_quantile(1 - tail, num_found + 1, missed) if missed else 1.0
    return low, high


def beta_quantile(probability: float, first: int, second: int) -> float:
    """
    Compute a quantile of the beta distribution with integer parameters.

    Args:
        probability (`float`): probability, in (0, 1).
        first, second (`int`): parameters, at least 1.

    Returns:
        `float`: the quantile, in [0, 1].
    """
    total = first + second - 1
    logs = [math.lgamma(total + 1) - math.lgamma(n + 1) - math.lgamma(total - n + 1) for n in range(first)]

    def above(value: float) -> float:
        """Probability of more than `value`: of fewer than `first` among `total` uniform numbers below it."""
        inside, outside = math.log(value), math.log1p(-value)
        return math.fsum(math.exp(log + n * inside + (total - n) * outside) for n, log in enumerate(logs))

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - above(middle) < probability else (low, middle)
    return (low + high) / 2


__all__ = [
    "DEFAULT_RATE",
    "alarms_allowed",
    "beta_quantile",
    "choose_rate",
    "detection_interval",
    "rate_interval",
    "smallest_rate",
]
