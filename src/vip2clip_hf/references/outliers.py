"""Photos among the references that look unlike the others, such as parts with a defect."""

from collections.abc import Mapping

import numpy as np

from ..models.vip2clip.reference_rule_vip2clip import LEAST_DEVIATION, SCALE


# Fewer photos do not show what is usual.
LEAST_PHOTOS = 4
# A photo is an outlier if the logit of its score exceeds the median by more than this many robust standard deviations.
# With 5, fewer defects among 10 or 20 photos are found: 13 to 15 % instead of 25 to 42 % on cookies, and 53 to 95 %
# instead of 73 to 95 % on hazelnuts.
CUTOFF = 4.0
# The median deviation of few normal values is too small on average. Factor by their number (Croux and Rousseeuw 1992).
FACTORS = {4: 1.363, 5: 1.206, 6: 1.2, 7: 1.14, 8: 1.129, 9: 1.107}


def find_outliers(scores: Mapping[str, float]) -> list[str]:
    """
    Find photos with scores far above those of the others.

    Args:
        scores (`Mapping[str, float]`): score of each photo, compared with other photos, in [0, 1].

    Returns:
        `list[str]`: names of the outliers, in descending order of their scores. Empty for fewer than 4 photos.
    """
    count = len(scores)
    if count < LEAST_PHOTOS:
        return []
    names, values = list(scores), np.clip(np.asarray(list(scores.values()), dtype=np.float64), 1e-6, 1 - 1e-6)
    logits = np.log(values / (1 - values))
    median = np.median(logits)
    factor = FACTORS.get(count, count / (count - 0.8))
    # At least that of the rule: photos that hardly differ would otherwise be called outliers.
    deviation = max(1.4826 * factor * float(np.median(abs(logits - median))), LEAST_DEVIATION / SCALE)
    excess = (logits - median) / deviation
    return [names[number] for number in np.argsort(-excess, kind="stable") if excess[number] > CUTOFF]


__all__ = ["LEAST_PHOTOS", "find_outliers"]
