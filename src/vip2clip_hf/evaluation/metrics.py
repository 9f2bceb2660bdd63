"""The metrics of the paper's tables, computed in one pass. Memory does not grow with the number of maps.

Per category: image AUROC, AP and F1-max; pixel AUROC, AP, AUPRO and F1-max. Image scores are stored. Pixels are
counted in a [`PixelHistogram`]. Every defect region has a total weight of 1, divided equally among its pixels. This
makes the per-region overlap a cumulative sum, like the true positive rate. Several processes can merge their metrics.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .category_metrics import AUPROS, METRICS, compute_category
from .curves import region_weights
from .histogram import PixelHistogram
from .histogram_counts import to_keys
from .histogram_state import pack_state, unpack_state


# Number of pixels that are collected before they are added to the histogram, because adding has a fixed cost.
PENDING_PIXELS = 3 << 21
# Maps with fewer pixels on average are concatenated before they are counted.
SMALL_MAP = 1 << 15


class _Category:
    """Scores, labels and pixel counts of one category."""

    def __init__(self, fpr_limit: float) -> None:
        self.scores: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.histogram = PixelHistogram(fpr_limit)
        self.pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.num_pending = 0
        self.num_regions = 0
        self.num_maps = 0
        # Packed state of the histogram, for categories that do not change between two saves.
        self.packed: np.ndarray | None = None

    def add_map(self, values: np.ndarray, mask: np.ndarray) -> None:
        keys, weights = to_keys(values), np.zeros(0)
        if mask.any():
            weights, number = region_weights(mask)
            self.num_regions += number
        self.num_maps += 1
        self.pending.append((keys.ravel(), keys[mask], weights))
        self.num_pending += values.size
        if self.num_pending >= PENDING_PIXELS:
            self.flush()

    def flush(self) -> None:
        if self.pending:
            blocks, positive, weights = (list(arrays) for arrays in zip(*self.pending))
            if self.num_pending < len(blocks) * SMALL_MAP:
                blocks = [np.concatenate(blocks)]
            self.histogram.add(blocks, np.concatenate(positive), np.concatenate(weights))
            self.pending, self.num_pending, self.packed = [], 0, None

    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores (float64) and labels (int64) of all images."""
        if not self.scores:
            return np.zeros(0), np.zeros(0, dtype=np.int64)
        return np.concatenate(self.scores), np.concatenate(self.labels)


class AnomalyMetrics:
    """
    Compute anomaly detection metrics per category and their mean, in one pass over scores and maps.

    Maps are not stored. Their pixels are counted in a histogram that is fine enough to keep pixel AUROC, AP, AUPRO and
    F1 within 1e-4 of the values computed from individual pixels. `error_bounds` in the result contains the bounds that
    are guaranteed for these maps. They are 0 if every value is counted separately, as for up to ten thousand pixels.
    Maps are compared in float32.

    An undefined metric is NaN: image metrics without normal or without anomalous images, and pixel metrics without
    masks. The reason is in `undefined`, and the mean excludes this category.

    Args:
        fpr_limit (`float`, defaults to 0.3):
            False positive rate up to which AUPRO is integrated, in (0, 1].
        aupro_convention (`"exact"` or `"release"`, defaults to `"exact"`):
            `"exact"` uses every value as a threshold, ends the curve exactly at the limit, and divides the area by the
            limit. `"release"` uses 200 thresholds like the authors' released code, and rescales the false positive
            rates below the limit to [0, 1]. docs/evaluation.md compares the two. The result contains both.

    Raises:
        ValueError: if an argument is invalid.

    Example:

    ```python
    >>> from vip2clip_hf import AnomalyMetrics

    >>> metrics = AnomalyMetrics()
    >>> metrics.update(outputs.scores, labels, outputs.anomaly_maps, masks, categories=["bolt", "nut"])
    >>> metrics.compute()["mean"]["pixel_aupro"]
    ```
    """

    def __init__(self, fpr_limit: float = 0.3, aupro_convention: str = "exact") -> None:
        if isinstance(fpr_limit, bool) or not isinstance(fpr_limit, (int, float)) or not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit is {fpr_limit!r}; expected a number in (0, 1].")
        if not isinstance(aupro_convention, str) or aupro_convention not in AUPROS:
            raise ValueError(f"aupro_convention is {aupro_convention!r}; expected one of {tuple(AUPROS)}.")
        self.fpr_limit, self.aupro_convention = float(fpr_limit), aupro_convention
        self._categories: dict[str, _Category] = {}

    @property
    def num_images(self) -> int:
        """Number of images added so far."""
        return sum(len(labels) for category in self._categories.values() for labels in category.labels)

    def reset(self) -> None:
        """Remove all images."""
        self._categories = {}

    def update(
        self,
        scores: Any,
        labels: Any,
        anomaly_maps: Any = None,
        masks: Any = None,
        categories: Sequence[str] | None = None,
        has_mask: Any = None,
    ) -> None:
        """
        Add a batch of images. All arguments are checked first: after an error, no image has been added.

        Args:
            scores (`torch.Tensor` or `np.ndarray` of shape `(batch_size,)`):
                Image scores. Higher scores are more anomalous.
            labels (`torch.Tensor` or `np.ndarray` of shape `(batch_size,)`):
                0 for normal images, 1 for anomalous images.
            anomaly_maps (of shape `(batch_size, height, width)`, or a list of maps of different sizes, *optional*):
                Anomaly maps with finite values of any range.
            masks (of the same shape, *optional*):
                1 for anomalous pixels, 0 for normal pixels. Without masks, the maps are not used.
            categories (`Sequence[str]`, *optional*):
                Category of every image. Defaults to one category, `"all"`.
            has_mask (of shape `(batch_size,)`, *optional*):
                False for images without annotated pixels, which are only used for image metrics.

        Raises:
            ValueError: if shapes do not match, a value is not finite, a label or mask value is not 0 or 1, or a mask
                marks pixels of a normal image. The message contains positions in the batch.
            ImportError: if a mask marks pixels and scipy is not installed.
        """
        scores, labels = _to_numpy(scores, "scores"), _to_numpy(labels, "labels")
        if scores.ndim != 1 or labels.shape != scores.shape:
            raise ValueError(
                f"scores have shape {scores.shape} and labels {labels.shape}; expected (batch_size,) for both."
            )
        count = len(scores)
        _check_finite(scores, "scores")
        _check_binary(labels, "labels")
        categories = ["all"] * count if categories is None else list(categories)
        if len(categories) != count or not all(isinstance(name, str) for name in categories):
            raise ValueError(f"categories is {categories!r}; expected {count} strings, one per image.")
        pairs = self._maps_with_masks(labels, anomaly_maps, masks, has_mask)
        for index, name in enumerate(categories):
            category = self._categories.setdefault(name, _Category(self.fpr_limit))
            category.scores.append(scores[index : index + 1].astype(np.float64))
            category.labels.append(labels[index : index + 1].astype(np.int64))
            if (pair := pairs[index]) is not None:
                category.add_map(*pair)

    @staticmethod
    def _maps_with_masks(
        labels: np.ndarray, anomaly_maps: Any, masks: Any, has_mask: Any
    ) -> list[tuple[np.ndarray, np.ndarray] | None]:
        """Map, float32, and mask, bool, of every image, or None for images without a mask."""
        count = len(labels)
        if anomaly_maps is None or masks is None:
            if masks is not None or has_mask is not None:
                raise ValueError("masks and has_mask need anomaly_maps, and has_mask needs masks; pass them together.")
            return [None] * count
        valid = np.ones(count, dtype=bool) if has_mask is None else _to_numpy(has_mask, "has_mask").astype(bool)
        if valid.shape != (count,):
            raise ValueError(f"has_mask has shape {valid.shape}; expected {(count,)}.")
        if len(anomaly_maps) != count or len(masks) != count:
            raise ValueError(
                f"Found {len(anomaly_maps)} maps and {len(masks)} masks for {count} images; expected one per image."
            )
        pairs: list[tuple[np.ndarray, np.ndarray] | None] = []
        for index in range(count):
            if not valid[index]:
                pairs.append(None)
                continue
            with np.errstate(over="ignore"):  # infinite values are refused below
                values = _to_numpy(anomaly_maps[index], "anomaly_maps").astype(np.float32)
            mask = _to_numpy(masks[index], "masks")
            if values.ndim != 2 or mask.shape != values.shape or not values.size:
                raise ValueError(
                    f"The map at position {index} has shape {values.shape} and its mask has shape {mask.shape}; "
                    "expected (height, width) for both."
                )
            _check_finite(values, f"The map at position {index}")
            _check_binary(mask, f"The mask at position {index}")
            mask = mask.astype(bool)
            if labels[index] == 0 and mask.any():
                raise ValueError(
                    f"The image at position {index} is labelled normal, but its mask marks {int(mask.sum())} pixels; "
                    "expected an empty mask."
                )
            pairs.append((values, mask))
        return pairs

    def merge(self, other: "AnomalyMetrics") -> None:
        """
        Add the images of other metrics, for example from another process.

        Args:
            other ([`AnomalyMetrics`]): metrics with the same settings.

        Raises:
            ValueError: if the settings differ.
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
            ours.packed = None

    def _check_settings(self, fpr_limit: float, aupro_convention: str) -> None:
        if (fpr_limit, aupro_convention) != (self.fpr_limit, self.aupro_convention):
            raise ValueError(
                f"The other metrics have fpr_limit {fpr_limit} and aupro_convention {aupro_convention!r}; expected "
                f"{self.fpr_limit} and {self.aupro_convention!r}."
            )

    def state_dict(self) -> dict[str, np.ndarray]:
        """
        Save all images added so far.

        Returns:
            `dict[str, np.ndarray]`: flat dict of arrays, for `np.savez` or `safetensors`. The counts of the pixels are
            compressed.
        """
        state: dict[str, np.ndarray] = {}
        for number, category in enumerate(self._categories.values()):
            category.flush()
            scores, labels = category.images()
            state[f"{number}.scores"], state[f"{number}.labels"] = scores, labels
            state[f"{number}.numbers"] = np.array([category.num_regions, category.num_maps])
            if category.packed is None:
                category.packed = pack_state(category.histogram.state())
            state[f"{number}.histogram"] = category.packed
        names = list(self._categories)
        settings = {"categories": names, "fpr_limit": self.fpr_limit, "aupro_convention": self.aupro_convention}
        state["settings"] = np.frombuffer(json.dumps(settings).encode(), dtype=np.uint8)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Replace all images by those of a saved state.

        Args:
            state (`Mapping[str, Any]`): result of `state_dict` of metrics with the same settings.

        Raises:
            ValueError: if the state is incomplete or has other settings. The current state does not change.
        """
        try:
            settings = json.loads(bytes(np.asarray(state["settings"], dtype=np.uint8)).decode())
            categories = {}
            for number, name in enumerate(settings["categories"]):
                part = {key.split(".", 1)[1]: np.asarray(state[key]) for key in state if key.startswith(f"{number}.")}
                category = categories[name] = _Category(self.fpr_limit)
                category.scores, category.labels = [part["scores"]], [part["labels"]]
                category.num_regions, category.num_maps = (int(value) for value in part["numbers"])
                # Earlier versions store the arrays one by one.
                category.histogram.add_state(unpack_state(part["histogram"]) if "histogram" in part else part)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"The state is not a complete state of AnomalyMetrics ({error}); expected the result of state_dict()."
            ) from error
        self._check_settings(settings["fpr_limit"], settings["aupro_convention"])
        self._categories = categories

    def compute(self) -> dict[str, Any]:
        """
        Compute the metrics of all images added so far.

        Returns:
            `dict`: `"categories"`, a dict by name, and `"mean"` over the categories. Both contain:

            - `image_auroc`, `image_ap`, `image_f1`, `pixel_auroc`, `pixel_ap`, `pixel_aupro`, `pixel_f1`: metrics in
              [0, 1], or NaN if undefined,
            - `pixel_aupro_exact`, `pixel_aupro_release`: AUPRO in both conventions. `pixel_aupro` is one of them,
            - `undefined`: reason by undefined metric. In the mean, it also lists the excluded categories.

            Categories also contain:

            - `image_f1_threshold`, `pixel_f1_threshold`: thresholds with the largest F1. Values greater than the
              threshold are anomalous, as in the decisions of the pipeline,
            - `num_images`, `num_anomalous_images`, `num_maps`, `num_pixels`, `num_anomalous_pixels`, `num_regions`,
            - `error_bounds`: upper bounds of the errors of the pixel metrics.

        Raises:
            ValueError: if no images have been added.
        """
        if not self._categories:
            raise ValueError("Nothing to compute: no images have been added; expected at least one.")
        categories = {}
        for name, category in self._categories.items():
            category.flush()
            categories[name] = compute_category(
                *category.images(),
                category.histogram,
                category.num_maps,
                category.num_regions,
                self.fpr_limit,
                self.aupro_convention,
            )
        mean: dict[str, Any] = {"undefined": {}}
        for metric in (*METRICS, *AUPROS.values()):
            values = {name: result[metric] for name, result in categories.items()}
            defined = [value for value in values.values() if not math.isnan(value)]
            mean[metric] = float(np.mean(defined)) if defined else math.nan
            left_out = [name for name, value in values.items() if math.isnan(value)]
            if left_out:
                reasons = sorted({categories[name]["undefined"][metric] for name in left_out})
                mean["undefined"][metric] = f"{'; '.join(reasons)} ({', '.join(left_out)})"
        return {"mean": mean, "categories": categories}


def _to_numpy(values: Any, name: str) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor
        values = values.detach()
        # numpy does not have all types with fewer than 32 bits.
        small = values.is_floating_point() and values.element_size() < 4
        values = (values.float() if small else values).cpu().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} has rows of different lengths; expected a tensor or an array of numbers.") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} has dtype {array.dtype}; expected a tensor or an array of numbers.")
    return array


def _check_finite(values: np.ndarray, name: str) -> None:
    if not np.isfinite(values).all():
        where = f" at positions {np.flatnonzero(~np.isfinite(values))[:10].tolist()}" if values.ndim == 1 else ""
        raise ValueError(f"{name} contains NaN or infinite values{where}; expected finite numbers.")


def _check_binary(values: np.ndarray, name: str) -> None:
    if values.dtype == bool:
        return
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        found = np.unique(values[wrong])[:5].tolist()
        raise ValueError(f"{name} contains the values {found}; expected only 0 (normal) and 1 (anomalous).")


__all__ = ["METRICS", "AnomalyMetrics"]
