"""The metrics of the paper's tables, in one pass and in memory that does not grow with the number of maps.

Per category: image AUROC, AP and F1-max; pixel AUROC, AP, AUPRO and F1-max. Image scores are kept as they are; the
pixels of the maps go into a [`PixelHistogram`], in which every defect region has the weight 1, spread over its pixels,
so that the per-region overlap is a cumulative sum like the true positive rate. Metrics of several processes are merged
by adding.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .curves import aupro, auroc, average_precision, f1_max, region_weights, release_aupro
from .histogram import PixelHistogram
from .histogram_counts import NEGATIVE, POSITIVE, to_keys


IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_aupro", "pixel_f1")
METRICS = (*IMAGE_METRICS, *PIXEL_METRICS)
AUPRO_CONVENTIONS = ("exact", "release")
# Maps wait until they are worth a pass over the histogram.
PENDING_PIXELS = 3 << 21
# Maps of fewer pixels are counted together.
SMALL_MAP = 1 << 15


class _Category:
    """What is kept of one category."""

    def __init__(self, fpr_limit: float):
        self.scores: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.histogram = PixelHistogram(fpr_limit)
        self.pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.num_pending = 0
        self.num_regions = 0
        self.num_maps = 0

    def add_map(self, values: np.ndarray, mask: np.ndarray):
        keys, weights = to_keys(values), np.zeros(0)
        if mask.any():
            weights, number = region_weights(mask)
            self.num_regions += number
        self.num_maps += 1
        self.pending.append((keys.ravel(), keys[mask], weights))
        self.num_pending += values.size
        if self.num_pending >= PENDING_PIXELS:
            self.flush()

    def flush(self):
        if self.pending:
            keys, positive, weights = zip(*self.pending)
            if self.num_pending < len(keys) * SMALL_MAP:
                keys = [np.concatenate(keys)]
            self.histogram.add(list(keys), np.concatenate(positive), np.concatenate(weights))
            self.pending, self.num_pending = [], 0

    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and labels."""
        if not self.scores:
            return np.zeros(0), np.zeros(0, dtype=np.int64)
        return np.concatenate(self.scores), np.concatenate(self.labels)


class AnomalyMetrics:
    """
    Metrics of anomaly detection per category and their mean, from scores and maps that are shown once and not kept.

    Pixel metrics come from counts by value, made so fine that AUROC, AP, AUPRO and F1 stay within 1e-4 of those of the
    single pixels. What is guaranteed for the maps at hand stands in `error_bounds` of the result; it is 0 where every
    value was counted by itself, as it is for up to ten thousand pixels. Maps are compared in float32.

    A metric that is not defined, such as an AUROC of anomalous images only, is NaN, with the reason in `undefined`,
    and is left out of the mean.

    Args:
        fpr_limit (`float`, defaults to 0.3):
            False positive rate up to which AUPRO is integrated.
        aupro_convention (`"exact"` or `"release"`, defaults to `"exact"`):
            `"exact"`: the area under the curve of all thresholds, cut at the limit, divided by it. `"release"`: the
            released code's sweep of 200 thresholds, whose false positive rates below the limit are stretched to
            [0, 1]; docs/evaluation.md says how far the two are apart.

    Example:

    ```python
    >>> from vip2clip_hf.metrics import AnomalyMetrics

    >>> metrics = AnomalyMetrics()
    >>> metrics.update(outputs.scores, labels, outputs.anomaly_maps, masks, categories=["bolt", "nut"])
    >>> metrics.compute()["mean"]["pixel_aupro"]
    ```
    """

    def __init__(self, fpr_limit: float = 0.3, aupro_convention: str = "exact"):
        if not isinstance(fpr_limit, (int, float)) or not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit is {fpr_limit!r}; expected a number in (0, 1].")
        if aupro_convention not in AUPRO_CONVENTIONS:
            raise ValueError(f"aupro_convention is {aupro_convention!r}; expected one of {AUPRO_CONVENTIONS}.")
        self.fpr_limit, self.aupro_convention = float(fpr_limit), aupro_convention
        self._categories: dict[str, _Category] = {}

    @property
    def num_images(self) -> int:
        """Images seen."""
        return sum(len(labels) for category in self._categories.values() for labels in category.labels)

    def reset(self):
        """Forget everything."""
        self._categories = {}

    # Adding

    def update(
        self,
        scores: Any,
        labels: Any,
        anomaly_maps: Any = None,
        masks: Any = None,
        categories: Sequence[str] | None = None,
        has_mask: Any = None,
    ):
        """
        Add images. Everything is checked first; when something is wrong nothing is added.

        Args:
            scores (`torch.Tensor` or `np.ndarray` of shape `(batch_size,)`):
                Image scores, higher is more anomalous.
            labels (of shape `(batch_size,)`):
                0 normal, 1 anomalous.
            anomaly_maps (of shape `(batch_size, height, width)`, or a list of maps of different sizes, *optional*):
                Finite numbers of any range.
            masks (of the same shape, *optional*):
                1 for anomalous pixels, 0 for the others. Without masks the maps are not used.
            categories (`Sequence[str]`, *optional*):
                Category of every image; one for all (`"all"`) when not given.
            has_mask (of shape `(batch_size,)`, *optional*):
                False for images whose pixels are not annotated; they count in image metrics only.

        Raises:
            ValueError: shapes that do not fit, values that are not finite, labels or masks other than 0 and 1, a mask
                that marks pixels of a normal image. The message names the images by their place in the batch.
        """
        scores, labels = _numpy(scores, "scores"), _numpy(labels, "labels")
        if scores.ndim != 1 or labels.shape != scores.shape:
            raise ValueError(
                f"scores have shape {scores.shape} and labels {labels.shape}; expected (batch_size,) for both."
            )
        count = len(scores)
        _check_finite(scores, "scores")
        _check_binary(labels, "labels")
        categories = ["all"] * count if categories is None else list(categories)
        if len(categories) != count or not all(isinstance(name, str) for name in categories):
            raise ValueError(f"categories are {categories!r}; expected one text for each of the {count} images.")
        pairs = self._pairs(labels, anomaly_maps, masks, has_mask)
        for index, name in enumerate(categories):
            category = self._categories.setdefault(name, _Category(self.fpr_limit))
            category.scores.append(scores[index : index + 1].astype(np.float64))
            category.labels.append(labels[index : index + 1].astype(np.int64))
            if pairs[index] is not None:
                category.add_map(*pairs[index])

    def _pairs(self, labels: np.ndarray, anomaly_maps: Any, masks: Any, has_mask: Any) -> list:
        """Map and mask of every image, None where it has none."""
        count = len(labels)
        if anomaly_maps is None or masks is None:
            if masks is not None or has_mask is not None:
                raise ValueError("masks and has_mask need anomaly_maps (and has_mask needs masks) to go with.")
            return [None] * count
        valid = np.ones(count, dtype=bool) if has_mask is None else _numpy(has_mask, "has_mask").astype(bool)
        if valid.shape != (count,):
            raise ValueError(f"has_mask has shape {valid.shape}; expected {(count,)}.")
        if len(anomaly_maps) != count or len(masks) != count:
            raise ValueError(f"Found {len(anomaly_maps)} maps and {len(masks)} masks for {count} images.")
        pairs = []
        for index in range(count):
            if not valid[index]:
                pairs.append(None)
                continue
            values = _numpy(anomaly_maps[index], "anomaly_maps").astype(np.float32)
            mask = _numpy(masks[index], "masks")
            if values.ndim != 2 or mask.shape != values.shape or not values.size:
                raise ValueError(
                    f"The map at position {index} has shape {values.shape} and its mask {mask.shape}; expected the "
                    "same height and width."
                )
            _check_finite(values, f"The map at position {index}")
            _check_binary(mask, f"The mask at position {index}")
            mask = mask.astype(bool)
            if labels[index] == 0 and mask.any():
                raise ValueError(
                    f"The image at position {index} is labelled normal, but its mask marks {int(mask.sum())} pixels."
                )
            pairs.append((values, mask))
        return pairs

    def merge(self, other: "AnomalyMetrics"):
        """
        Add what another one has seen, for instance in another process.

        Raises:
            ValueError: it has other settings.
        """
        self._check_settings(other.fpr_limit, other.aupro_convention)
        for name, theirs in other._categories.items():
            ours = self._categories.setdefault(name, _Category(self.fpr_limit))
            ours.flush()
            theirs.flush()
            ours.scores += theirs.scores
            ours.labels += theirs.labels
            ours.num_regions += theirs.num_regions
            ours.num_maps += theirs.num_maps
            ours.histogram.add_state(theirs.histogram.state())

    def _check_settings(self, fpr_limit: float, aupro_convention: str):
        if (fpr_limit, aupro_convention) != (self.fpr_limit, self.aupro_convention):
            raise ValueError(
                f"The other metrics have fpr_limit {fpr_limit} and aupro_convention {aupro_convention!r}, these "
                f"{self.fpr_limit} and {self.aupro_convention!r}; expected the same."
            )

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything seen so far as a flat dict of arrays, for `np.savez` or `safetensors`."""
        state, names = {}, []
        for number, (name, category) in enumerate(self._categories.items()):
            category.flush()
            scores, labels = category.images()
            names.append(name)
            state[f"{number}.scores"], state[f"{number}.labels"] = scores, labels
            state[f"{number}.numbers"] = np.array([category.num_regions, category.num_maps])
            state.update({f"{number}.{key}": array for key, array in category.histogram.state().items()})
        settings = {"categories": names, "fpr_limit": self.fpr_limit, "aupro_convention": self.aupro_convention}
        state["settings"] = np.frombuffer(json.dumps(settings).encode(), dtype=np.uint8)
        return state

    def load_state_dict(self, state: Mapping[str, Any]):
        """
        Continue from a `state_dict`, in place of what was seen so far.

        Raises:
            ValueError: it is of other settings, or incomplete; nothing is changed then.
        """
        try:
            settings = json.loads(bytes(np.asarray(state["settings"], dtype=np.uint8)).decode())
            categories = {}
            for number, name in enumerate(settings["categories"]):
                part = {key.split(".", 1)[1]: np.asarray(state[key]) for key in state if key.startswith(f"{number}.")}
                category = categories[name] = _Category(self.fpr_limit)
                category.scores, category.labels = [part["scores"]], [part["labels"]]
                category.num_regions, category.num_maps = (int(value) for value in part["numbers"])
                category.histogram.add_state(part)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"The state is no complete state of AnomalyMetrics ({error}).") from error
        self._check_settings(settings["fpr_limit"], settings["aupro_convention"])
        self._categories = categories

    # Reading

    def compute(self) -> dict[str, Any]:
        """
        Returns:
            `dict` with `"categories"`, by name, and `"mean"` over them, both with:

            - the metrics `image_auroc`, `image_ap`, `image_f1`, `pixel_auroc`, `pixel_ap`, `pixel_aupro`, `pixel_f1`
              in [0, 1], or NaN,
            - `undefined`: why, by metric; in the mean also which categories were left out.

            and, for categories only:

            - `image_f1_threshold`, `pixel_f1_threshold`: values from which on (greater or equal) F1 is largest,
            - `num_images`, `num_anomalous_images`, `num_maps`, `num_pixels`, `num_anomalous_pixels`, `num_regions`,
            - `error_bounds`: how far pixel metrics can at most be from those of the single pixels.

        Raises:
            ValueError: nothing has been added.
        """
        if not self._categories:
            raise ValueError("Nothing to compute: no images have been added with update().")
        categories = {name: self._compute_category(category) for name, category in self._categories.items()}
        mean: dict[str, Any] = {"undefined": {}}
        for metric in METRICS:
            values = {name: result[metric] for name, result in categories.items()}
            defined = [value for value in values.values() if not math.isnan(value)]
            mean[metric] = float(np.mean(defined)) if defined else math.nan
            left_out = [name for name, value in values.items() if math.isnan(value)]
            if left_out:
                reasons = sorted({categories[name]["undefined"][metric] for name in left_out})
                mean["undefined"][metric] = f"{'; '.join(reasons)} ({', '.join(left_out)})"
        return {"mean": mean, "categories": categories}

    def _compute_category(self, category: _Category) -> dict[str, Any]:
        category.flush()
        result: dict[str, Any] = dict.fromkeys((*METRICS, "image_f1_threshold", "pixel_f1_threshold"), math.nan)
        undefined: dict[str, str] = {}
        scores, labels = category.images()
        anomalous = int(labels.sum())
        result.update(num_images=len(labels), num_anomalous_images=anomalous)
        values, inverse = np.unique(-scores, return_inverse=True)
        counts = np.zeros((3, len(values)))
        counts[NEGATIVE] = np.bincount(inverse, weights=1 - labels, minlength=len(values))
        counts[POSITIVE] = np.bincount(inverse, weights=labels, minlength=len(values))
        self._curves(result, undefined, "image", -values, counts, "images")

        histogram = category.histogram
        values, counts = histogram.cells()
        totals = histogram.totals
        result.update(
            num_maps=category.num_maps,
            num_pixels=int(totals[NEGATIVE] + totals[POSITIVE]),
            num_anomalous_pixels=int(totals[POSITIVE]),
            num_regions=category.num_regions,
        )
        bounds = {}
        if not category.num_maps:
            undefined.update(dict.fromkeys(PIXEL_METRICS, "no image has a mask"))
        else:
            self._curves(result, undefined, "pixel", values, counts, "pixels")
            if totals[NEGATIVE] and totals[POSITIVE]:
                if self.aupro_convention == "exact":
                    result["pixel_aupro"] = aupro(counts, self.fpr_limit)
                else:
                    result["pixel_aupro"] = release_aupro(
                        values, counts, histogram.minimum, histogram.maximum, self.fpr_limit
                    )
                    if math.isnan(result["pixel_aupro"]):
                        undefined["pixel_aupro"] = "fewer than two false positive rates below the limit"
            else:
                undefined["pixel_aupro"] = undefined["pixel_auroc"]
            found = histogram.bounds()
            bounds = {f"pixel_{name}": bound for name, bound in found.items() if f"pixel_{name}" not in undefined}
        return {**result, "undefined": undefined, "error_bounds": bounds}

    @staticmethod
    def _curves(result: dict, undefined: dict, level: str, values: np.ndarray, counts: np.ndarray, what: str):
        """AUROC, AP and F1 of images or pixels."""
        negatives, positives = counts[NEGATIVE].sum(), counts[POSITIVE].sum()
        if not positives:
            undefined.update(dict.fromkeys((f"{level}_auroc", f"{level}_ap", f"{level}_f1"), f"no anomalous {what}"))
            return
        if negatives:
            result[f"{level}_auroc"] = auroc(counts)
        else:
            undefined[f"{level}_auroc"] = f"all {what} anomalous"
        result[f"{level}_ap"] = average_precision(counts)
        result[f"{level}_f1"], result[f"{level}_f1_threshold"] = f1_max(values, counts)


def _numpy(values: Any, name: str) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor
        values = values.detach()
        values = (values.float() if values.is_floating_point() else values).cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} are no array of numbers; expected a tensor or an array.")
    return array


def _check_finite(values: np.ndarray, name: str):
    if not np.isfinite(values).all():
        where = f" at positions {np.flatnonzero(~np.isfinite(values))[:10].tolist()}" if values.ndim == 1 else ""
        raise ValueError(f"{name}: NaN or infinite values{where}; expected finite numbers.")


def _check_binary(values: np.ndarray, name: str):
    if values.dtype == bool:
        return
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        found = np.unique(values[wrong])[:5].tolist()
        raise ValueError(f"{name}: values {found}; expected only 0 (normal) and 1 (anomalous).")


__all__ = ["METRICS", "AnomalyMetrics"]
