"""Detection with references: zero-shot, references alone and both, by the number of references."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from vip2clip_hf import (
    ReferenceBank,
    ViP2ClipForAnomalyDetection,
    ViP2ClipImageProcessor,
    bundled_checkpoint,
    load_folder,
)
from vip2clip_hf.evaluation.metrics import AnomalyMetrics
from vip2clip_hf.models.vip2clip.decision_vip2clip import conformal_threshold


METHODS = ("zero-shot", "references", "combined")
COLUMNS = ("image_auroc", "pixel_auroc", "pixel_aupro", "found", "threshold_found", "false_alarms")
BATCH = 8


class Features:
    """
    Embeddings, masks and labels of the images of a split, computed once.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model.
        image_processor ([`ViP2ClipImageProcessor`]): its image processor.
        folder (`str`): the dataset.
        split (`str`): the split.
    """

    def __init__(self, model: Any, image_processor: Any, folder: str, split: str) -> None:
        dataset = load_folder(folder, split=split)
        self.labels = np.asarray(dataset["label"])
        self.images: list[torch.Tensor] = []
        self.patches: list[torch.Tensor] = []
        self.masks: list[np.ndarray] = []
        self.photos = [row["image"] for row in dataset] if split == "train" else []
        side = model.config.image_size
        for row in tqdm(dataset, desc=f"{Path(folder).name} {split}", disable=None):
            maps = None if row["mask"] is None else [row["mask"]]
            inputs = image_processor([row["image"]], segmentation_maps=maps, return_tensors="pt")
            with torch.inference_mode():
                found = model.get_image_features(inputs["pixel_values"], return_dict=True)
            self.images.append(found.image_embeds)
            self.patches.append(found.patch_embeds.half())
            mask = inputs["mask_labels"][0].numpy() if maps else np.zeros((side, side))
            self.masks.append(mask.astype(bool))

    def batches(self) -> Any:
        """Yield positions, image and patch embeddings of batches."""
        for start in range(0, len(self.labels), BATCH):
            rows = range(start, min(start + BATCH, len(self.labels)))
            images = torch.cat([self.images[row] for row in rows])
            yield rows, images, torch.cat([self.patches[row] for row in rows]).float()


def measure(model: Any, test: Features, bank: ReferenceBank | None, rate: float) -> dict[str, dict[str, float]]:
    """
    Measure the methods on the test images.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model.
        test ([`Features`]): the test images.
        bank ([`ReferenceBank`], *optional*): the references. Without them, only zero-shot is measured.
        rate (`float`): false-alarm rate.

    Returns:
        `dict[str, dict[str, float]]`: the columns by method. `found` is the fraction of the anomalous images that are
        found if a fraction `rate` of the normal test images are false alarms. `threshold_found` and `false_alarms` are
        the fractions above the threshold of the left-out references, for `rate` or the smallest possible rate.
    """
    methods = METHODS[:1] if bank is None else METHODS[1:]
    metrics = {name: AnomalyMetrics() for name in methods}
    scores: dict[str, list[torch.Tensor]] = {name: [] for name in methods}
    for rows, images, patches in test.batches():
        with torch.inference_mode():
            outputs = model(image_embeds=images, patch_embeds=patches, references=bank)
        found = {METHODS[0] if bank is None else METHODS[2]: (outputs.scores, outputs.anomaly_maps)}
        if bank is not None:
            found[METHODS[1]] = (outputs.reference_scores, outputs.reference_maps)
        masks = np.stack([test.masks[row] for row in rows])
        for name, (score, maps) in found.items():
            metrics[name].update(score, test.labels[list(rows)], maps, masks)
            scores[name].append(score)
    results = {}
    for name in methods:
        columns = dict.fromkeys(COLUMNS, math.nan)
        computed = metrics[name].compute()["categories"]["all"]
        columns.update({column: computed[column] for column in COLUMNS[:3]})
        values = torch.cat(scores[name]).double().numpy()
        normal, anomalous = np.sort(values[test.labels == 0]), values[test.labels == 1]
        columns["found"] = float((anomalous > np.quantile(normal, 1 - rate, method="higher")).mean())
        if bank is not None and len(bank) > 1:
            left_out = [one.score if name == METHODS[2] else one.distance for one in bank.left_out()]
            threshold = conformal_threshold(left_out, max(rate, math.ceil(1e4 / (len(bank) + 1)) / 1e4))
            columns["threshold_found"] = float((anomalous > threshold).mean())
            columns["false_alarms"] = float((normal > threshold).mean())
        results[name] = columns
    return results


def benchmark_few_shot(options: argparse.Namespace) -> None:
    """Print a table for each dataset."""
    torch.set_num_threads(options.threads)
    everything = []
    for number, folder in enumerate(options.data):
        checkpoint = options.model[min(number, len(options.model) - 1)] if options.model else bundled_checkpoint()
        model = ViP2ClipForAnomalyDetection.from_pretrained(checkpoint, references=None)
        image_processor = ViP2ClipImageProcessor.from_pretrained(checkpoint)
        train = Features(model, image_processor, folder, "train")
        test = Features(model, image_processor, folder, "test")
        rows = [{"method": METHODS[0], "k": 0, "seed": None, **measure(model, test, None, options.rate)[METHODS[0]]}]
        counts = sorted({count for count in options.k if count <= len(train.photos)})
        for seed in options.seeds:
            order = np.random.default_rng(seed).permutation(len(train.photos))
            for count in tqdm(counts, desc=f"{Path(folder).name} seed {seed}", disable=None):
                photos = [train.photos[position] for position in order[:count]]
                bank = ReferenceBank.from_images(model, image_processor, photos)
                found = measure(model, test, bank, options.rate)
                rows += [{"method": name, "k": count, "seed": seed, **columns} for name, columns in found.items()]
        everything += [{"data": Path(folder).name, **row} for row in rows]
        print(f"\n{Path(folder).name}: {len(train.photos)} references, {len(test.labels)} test images, in percent")
        print(table(rows))
        if options.output:
            Path(options.output).write_text(json.dumps(everything, indent=1), encoding="utf-8")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """
    Format results: mean and standard deviation over the seeds.

    Args:
        rows (`Sequence[dict]`): results of one dataset.

    Returns:
        `str`: the table, in Markdown.
    """
    lines = []
    for name, count in dict.fromkeys((row["method"], row["k"]) for row in sorted(rows, key=lambda row: row["k"])):
        chosen = [row for row in rows if (row["method"], row["k"]) == (name, count)]
        line: list[str] = [str(count), name]
        for column in COLUMNS:
            values = 100 * np.asarray([row[column] for row in chosen])
            spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
            line.append("-" if np.isnan(values).any() else f"{values.mean():.1f}{spread}")
        lines.append(line)
    headers = (
        "k", "method", "image AUROC", "pixel AUROC", "AUPRO", "found at 5 % false alarms", "found by the threshold",
        "false alarms of the threshold",
    )  # fmt: skip
    return tabulate(lines, headers, tablefmt="github")


__all__ = ["benchmark_few_shot"]
