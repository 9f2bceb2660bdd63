"""Anomaly detection metrics as a module of the evaluate library, see docs/evaluation.md.

Maps are counted in histograms as soon as they are added. The library only caches the compressed state of the
histograms, and gathers it from several processes: about a megabyte per category, for any number of images.
"""

import io
from typing import Any

import datasets
import evaluate
import numpy as np

from vip2clip_hf.evaluation.category_metrics import AUPROS, METRICS
from vip2clip_hf.evaluation.metrics import AnomalyMetrics


_DESCRIPTION = (
    "Image and pixel AUROC, AP and F1-max, and AUPRO, for anomaly detection. One pass over the anomaly maps."
)
_KWARGS_DESCRIPTION = """
Args of add_batch and compute:
    predictions: image scores of shape (batch_size,). Higher scores are more anomalous.
    references: labels of shape (batch_size,), 0 for normal images, 1 for anomalous images.
    anomaly_maps (optional): anomaly maps of shape (batch_size, height, width).
    masks (optional): masks of shape (batch_size, height, width), 1 for anomalous pixels.
    categories (optional): category of every image, a list of strings.
    has_mask (optional): bool array of shape (batch_size,), False for images without annotated pixels.
With evaluate.load(path, config_name="release"), AUPRO is computed as in the authors' released code.
Returns:
    dict: image_auroc, image_ap, image_f1, pixel_auroc, pixel_ap, pixel_aupro and pixel_f1, means over the categories
    in [0, 1], or NaN if undefined; pixel_aupro_exact and pixel_aupro_release, AUPRO in both conventions; "undefined",
    the reason by undefined metric; "categories", metrics and counts by category.
"""
_CITATION = ""


class AnomalyMetricsModule(evaluate.Metric):
    """[`AnomalyMetrics`] with the interface of the evaluate library."""

    _metrics: AnomalyMetrics | None = None

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"state": datasets.Value("binary")}),
        )

    @property
    def metrics(self) -> AnomalyMetrics:
        """Metrics of the images added in this process."""
        if self._metrics is None:
            if self.config_name not in ("default", "exact", "release"):
                raise ValueError(f"config_name is {self.config_name!r}; expected 'exact' or 'release'.")
            convention = "release" if self.config_name == "release" else "exact"
            self._metrics = AnomalyMetrics(aupro_convention=convention)
        return self._metrics

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """
        Add a batch of images. After an error, no image has been added.

        Args:
            predictions (of shape `(batch_size,)`): image scores.
            references (of shape `(batch_size,)`): labels, 0 for normal images, 1 for anomalous images.
            kwargs: `anomaly_maps`, `masks`, `categories` and `has_mask`, see [`AnomalyMetrics.update`].

        Raises:
            ValueError: if an argument is missing, unknown or invalid.
        """
        unknown = sorted(set(kwargs) - {"anomaly_maps", "masks", "categories", "has_mask"})
        if unknown:
            raise ValueError(
                f"Unknown arguments: {', '.join(unknown)}; expected predictions, references and, optionally, "
                "anomaly_maps, masks, categories and has_mask."
            )
        if predictions is None or references is None:
            missing = "predictions" if predictions is None else "references"
            raise ValueError(f"{missing} is missing; expected predictions and references.")
        self.metrics.update(predictions, references, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """
        Add one image.

        Args:
            prediction (`float`): image score.
            reference (`int`): label, 0 for a normal image, 1 for an anomalous image.
            kwargs: `anomaly_map`, `mask`, `category` and `has_mask`.

        Raises:
            ValueError: if an argument is missing, unknown or invalid.
        """
        names = {"anomaly_map": "anomaly_maps", "mask": "masks", "category": "categories"}
        batch = {names.get(name, name): [value] for name, value in kwargs.items() if value is not None}
        self.add_batch(predictions=np.array([prediction]), references=np.array([reference]), **batch)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """
        Compute the metrics of all images added so far, and start again with no images.

        Args:
            predictions, references, kwargs: a last batch to add, see `add_batch`.

        Returns:
            `dict`: the metrics, see [`AnomalyMetrics.compute`]. With several processes, the first process returns
            the metrics of all, and the others return `None`.

        Raises:
            ValueError: if no images have been added, or an argument is invalid.
        """
        if predictions is not None or references is not None or kwargs:
            self.add_batch(predictions=predictions, references=references, **kwargs)
        buffer = io.BytesIO()
        state = self.metrics.state_dict()
        np.savez(buffer, **state)  # type: ignore[arg-type]  # numpy checks the dict against its bool option
        super().add_batch(state=[buffer.getvalue()])
        self._metrics = None
        computed: dict[str, Any] | None = super().compute()
        return computed

    def _compute(self, state: list[bytes]) -> dict[str, Any]:
        merged = self.metrics
        for part in state:
            one = AnomalyMetrics(aupro_convention=merged.aupro_convention)
            with np.load(io.BytesIO(part), allow_pickle=False) as file:
                one.load_state_dict(dict(file))
            merged.merge(one)
        self._metrics = None
        result = merged.compute()
        mean = result["mean"]
        return {
            **{name: mean[name] for name in (*METRICS, *AUPROS.values())},
            "undefined": mean["undefined"],
            "categories": result["categories"],
        }
