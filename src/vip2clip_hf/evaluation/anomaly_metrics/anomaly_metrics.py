"""The metrics of anomaly detection as a module of the library evaluate; see docs/evaluation.md.

Maps go into histograms as they come. What the library writes to its cache, and gathers from several processes, is the
state of these: a few megabytes whatever the number of images.
"""

import io

import datasets
import evaluate
import numpy as np

from vip2clip_hf.evaluation.metrics import METRICS, AnomalyMetrics


_DESCRIPTION = "Image and pixel AUROC, AP, F1-max and AUPRO of anomaly detection, in one pass over the maps."
_KWARGS_DESCRIPTION = """
Args of add_batch and compute:
    predictions: image scores, (batch_size,), higher is more anomalous.
    references: labels, (batch_size,), 0 normal, 1 anomalous.
    anomaly_maps (optional): (batch_size, height, width).
    masks (optional): (batch_size, height, width), 1 for anomalous pixels.
    categories (optional): one text an image.
    has_mask (optional): (batch_size,), False for images whose pixels are not annotated.
evaluate.load(path, config_name="release") computes AUPRO as the authors' released code does.
Returns:
    dict: image_auroc, image_ap, image_f1, pixel_auroc, pixel_ap, pixel_aupro, pixel_f1, means over categories in
    [0, 1], NaN where undefined; "undefined", the reasons; "categories", the same for each with counts.
"""
_CITATION = ""


class AnomalyMetricsModule(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"state": datasets.Value("binary")}),
        )

    @property
    def metrics(self) -> AnomalyMetrics:
        """What this process has seen."""
        if getattr(self, "_metrics", None) is None:
            if self.config_name not in ("default", "exact", "release"):
                raise ValueError(f"config_name is {self.config_name!r}; expected exact or release.")
            convention = "release" if self.config_name == "release" else "exact"
            self._metrics = AnomalyMetrics(aupro_convention=convention)
        return self._metrics

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add images; nothing is added when something is wrong."""
        unknown = set(kwargs) - {"anomaly_maps", "masks", "categories", "has_mask"}
        if unknown or predictions is None or references is None:
            raise ValueError(
                "Expected predictions, references and, optionally, anomaly_maps, masks, categories and has_mask; "
                f"unknown are {', '.join(sorted(unknown)) or 'none'}."
            )
        self.metrics.update(predictions, references, **kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one image: `prediction`, `reference`, `anomaly_map`, `mask`, `category`, `has_mask`."""
        names = {"anomaly_map": "anomaly_maps", "mask": "masks", "category": "categories"}
        batch = {names.get(name, name): [value] for name, value in kwargs.items() if value is not None}
        self.add_batch(predictions=np.array([prediction]), references=np.array([reference]), **batch)

    def compute(self, *, predictions=None, references=None, **kwargs):
        """Metrics of everything added, and of the images given, on the first process; None on the others."""
        if predictions is not None or references is not None or kwargs:
            self.add_batch(predictions=predictions, references=references, **kwargs)
        buffer = io.BytesIO()
        np.savez(buffer, **self.metrics.state_dict())
        super().add_batch(state=[buffer.getvalue()])
        self._metrics = None  # the module is ready for the next run
        return super().compute()

    def _compute(self, state):
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
            **{name: mean[name] for name in METRICS},
            "undefined": mean["undefined"],
            "categories": result["categories"],
        }
