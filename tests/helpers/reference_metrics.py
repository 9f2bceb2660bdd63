"""Reference implementations of the metrics: computed from individual pixels in float64, without optimizations."""

import numpy as np
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score


def exact_aupro(maps: np.ndarray, masks: np.ndarray, fpr_limit: float = 0.3) -> float:
    """AUPRO with every value as a threshold and a separate overlap for each region."""
    order = np.unique(maps)[::-1]
    negatives = np.sort(maps[~masks])
    fpr = (len(negatives) - np.searchsorted(negatives, order, side="left")) / len(negatives)
    overlaps = []
    for one_map, mask in zip(maps, masks):
        regions, number = ndimage.label(mask, structure=np.ones((3, 3)))
        for region in range(1, number + 1):
            values = np.sort(one_map[regions == region])
            overlaps.append((len(values) - np.searchsorted(values, order, side="left")) / len(values))
    pro = np.mean(overlaps, axis=0)
    fpr, pro = np.concatenate([[0], fpr]), np.concatenate([[0], pro])
    at_limit = np.interp(fpr_limit, fpr, pro)
    # np.interp is ambiguous at a vertical segment of the curve; use its upper end.
    if (fpr == fpr_limit).any():
        at_limit = pro[fpr == fpr_limit].max()
    kept = fpr <= fpr_limit
    return auc(np.append(fpr[kept], fpr_limit), np.append(pro[kept], at_limit)) / fpr_limit


def sweep_aupro(maps: np.ndarray, masks: np.ndarray, steps: int = 200, fpr_limit: float = 0.3) -> float:
    """AUPRO with a sweep of thresholds, as usual in this field, and with a rescaled false positive rate."""
    regions = []
    for index, mask in enumerate(masks):
        labelled, number = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [maps[index][labelled == region] for region in range(1, number + 1)]
    low, high = maps.min(), maps.max()
    fprs, pros = [], []
    for threshold in np.arange(low, high, (high - low) / steps):
        pros.append(np.mean([(values > threshold).mean() for values in regions]))
        fprs.append((maps[~masks] > threshold).mean())
    fprs, pros = np.array(fprs), np.array(pros)
    kept = fprs < fpr_limit
    fprs, pros = fprs[kept], pros[kept]
    return auc((fprs - fprs.min()) / (fprs.max() - fprs.min()), pros)


def exact_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """AUROC, AP and F1-max from scikit-learn, for labels of both classes."""
    labels, scores = np.ravel(labels), np.ravel(scores)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return {
        "auroc": roc_auc_score(labels, scores),
        "ap": average_precision_score(labels, scores),
        "f1": f1.max(),
    }
