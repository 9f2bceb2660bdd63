"""False alarms of thresholds from left-out references, over many random choices of references."""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor, bundled_checkpoint
from vip2clip_hf.models.vip2clip.decision_vip2clip import conformal_threshold
from vip2clip_hf.models.vip2clip.maps_vip2clip import resize_maps
from vip2clip_hf.models.vip2clip.reference_distances_vip2clip import normalized
from vip2clip_hf.models.vip2clip.reference_rule_vip2clip import image_evidence, top_mean, zero_shot_weight

from .few_shot import Features


def pairwise_cosines(patches: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """
    Compute the largest cosine of every patch with the patches of each reference.

    Args:
        patches (`torch.FloatTensor` of shape `(num_photos, num_layers, num_patches, width)`): photos.
        references (`torch.FloatTensor` of shape `(num_references, num_layers, num_patches, width)`): references.

    Returns:
        `torch.HalfTensor` of shape `(num_photos, num_layers, num_patches, num_references)`: the cosines.
    """
    count = patches.shape[2]
    found = torch.empty(*patches.shape[:3], len(references), dtype=torch.float16)
    for layer in range(patches.shape[1]):
        rows = references[:, layer].flatten(0, 1).mT
        for number, photo in enumerate(tqdm(patches[:, layer], desc=f"layer {layer + 1}", disable=None)):
            found[number, layer] = (photo @ rows).view(count, len(references), count).amax(dim=-1)
    return found


def false_alarms(
    cosines: torch.Tensor,
    logits: np.ndarray,
    chosen: np.ndarray,
    others: np.ndarray,
    rate: float,
    side: int,
    sigma: float,
) -> np.ndarray:
    """
    Find the other normal photos above the threshold of some references.

    Args:
        cosines (`torch.HalfTensor`): from [`pairwise_cosines`]. The first photos are the references, in their order.
        logits (`np.ndarray` of shape `(num_photos,)`): zero-shot logits.
        chosen, others (`np.ndarray`): positions of the references and of other normal photos.
        rate (`float`): false-alarm rate of the threshold.
        side, sigma: size and smoothing of the maps.

    Returns:
        `np.ndarray` of shape `(num_others,)`, bool: whether a photo is a false alarm.
    """
    weight = zero_shot_weight(len(chosen), logits[chosen])
    nearest = cosines[np.concatenate([chosen, others])][..., chosen].float()
    for position in range(len(chosen)):
        nearest[position, ..., position] = -1
    distances = (1 - nearest.amax(dim=-1)).clamp(min=0).mean(dim=1)
    grid = math.isqrt(distances.shape[1])
    scores = top_mean(resize_maps(distances.view(-1, grid, grid), side, sigma))
    evidence = image_evidence(scores, torch.from_numpy(logits[np.concatenate([chosen, others])]), weight).numpy()
    threshold = conformal_threshold(evidence[: len(chosen)].tolist(), rate)
    return evidence[len(chosen) :] > threshold


def benchmark_coverage(options: argparse.Namespace) -> None:
    """Print a table for each dataset."""
    torch.set_num_threads(options.threads)
    for number, folder in enumerate(options.data):
        checkpoint = options.model[min(number, len(options.model) - 1)] if options.model else bundled_checkpoint()
        model = ViP2ClipForAnomalyDetection.from_pretrained(checkpoint, references=None)
        image_processor = ViP2ClipImageProcessor.from_pretrained(checkpoint)
        train, test = (Features(model, image_processor, folder, split) for split in ("train", "test"))
        normal = [position for position, label in enumerate(test.labels) if label == 0]
        images = torch.cat([*train.images, *(test.images[position] for position in normal)])
        patches = torch.cat([*train.patches, *(test.patches[position] for position in normal)])
        with torch.inference_mode():
            found = [
                model(image_embeds=one[None], patch_embeds=two[None].float(), references=None).logits[0]
                for one, two in zip(images, patches)
            ]
        logits = torch.stack(found).diff(dim=1)[:, 0].numpy()
        layers = max(1, patches.shape[1] - 1)
        compared = normalized(patches[:, :layers])
        cosines = pairwise_cosines(compared, compared[: len(train.labels)])
        rng, lines = np.random.default_rng(0), []
        for count in options.k:
            if count >= len(train.labels):
                continue
            rate = math.ceil(1e4 * max(0.05, 1 / (count + 1))) / 1e4
            settings = (model.config.image_size, model.config.smoothing_sigma)
            rates: dict[str, list[float]] = {"train": [], "test": []}
            for _ in tqdm(range(options.draws), desc=f"{count} references", disable=None):
                order = rng.permutation(len(train.labels))
                ours = order[count : count + options.others]
                theirs = len(train.labels) + rng.permutation(len(normal))[: options.others]
                alarms = false_alarms(cosines, logits, order[:count], np.append(ours, theirs), rate, *settings)
                rates["train"].append(alarms[: len(ours)].mean())
                rates["test"].append(alarms[len(ours) :].mean())
            line = [count, f"{100 * rate:.1f}"]
            for values in (100 * np.asarray(one) for one in rates.values()):
                error = values.std(ddof=1) / math.sqrt(len(values))
                low, high = np.quantile(values, [0.05, 0.95])
                line += [f"{values.mean():.2f} ± {error:.2f}", f"{low:.0f} to {high:.0f}"]
            lines.append(line)
        title = f"{Path(folder).name}: {options.draws} draws, up to {options.others} other normal photos of each split"
        print(f"\n{title}, in percent")
        headers = (
            "references", "rate", "false alarms, other photos of train", "single draws, 5 to 95 %",
            "false alarms, photos of test", "single draws, 5 to 95 %",
        )  # fmt: skip
        print(tabulate(lines, headers, tablefmt="github"))


__all__ = ["benchmark_coverage"]
