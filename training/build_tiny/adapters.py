"""Stage 3: train the adapters of the bundled checkpoint, and write it."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.utils.files import apply_umask, new_folder

from .study import RECIPE, REFERENCES, SHIPPED, Results, Study, file_of
from .tables import table_by_set


# Kept by checkpoints that are derived from the bundled one.
ATTRIBUTION = (
    'weights of ViT-Ti/16 from "How to train your ViT?" (Steiner et al., Google Research), published as '
    "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k under Apache-2.0, rewritten as the vision tower of a CLIPModel."
)
# Model card. Its text on the tower, the data and the licences describes the bundled checkpoint. Change it for other
# checkpoints.
CARD = Path(__file__).with_name("card.md")


def choose_thresholds(results: dict[str, Results]) -> tuple[float, float, dict[str, tuple[float, float]]]:
    """
    Choose the thresholds from the results on the datasets left out, which the evaluated adapters have not seen.

    Args:
        results (`dict[str, Results]`): results of the recipe by dataset left out.

    Returns:
        `tuple`: the image threshold with the highest mean of detection rate and rate of normal images that are called
        normal, averaged over the datasets; the mean of the pixel thresholds with the best F1; and by dataset, the
        detection rate and the false-alarm rate at the image threshold.
    """
    zero_shot = {name: result["0"] for name, result in results.items()}
    scores = {name: np.array(one["scores"]) for name, one in zero_shot.items()}
    labels = {name: np.array(one["labels"]) == 1 for name, one in zero_shot.items()}

    def rates(name: str, threshold: float) -> tuple[float, float]:
        found = scores[name] > threshold
        return float(found[labels[name]].mean()), float(found[~labels[name]].mean())

    def balanced(threshold: float) -> float:
        return float(np.mean([detected - alarms for detected, alarms in (rates(name, threshold) for name in scores)]))

    image_threshold = max(np.round(np.arange(0.001, 1, 0.001), 3).tolist(), key=balanced)
    pixel_threshold = round(float(np.mean([one["pixel_threshold"] for one in zero_shot.values()])), 4)
    return image_threshold, pixel_threshold, {name: rates(name, image_threshold) for name in scores}


def store_backbone_in_half(path: Path) -> None:
    """Store the weights of CLIP in a file in float16. The adapters stay in float32."""
    weights = load_file(path)
    halves = {name: tensor.half() if name.startswith("clip.") else tensor for name, tensor in weights.items()}
    wrong = [name for name in halves if not torch.isfinite(halves[name].float()).all()]
    if wrong:
        raise RuntimeError(f"{wrong[0]} has values that are too large for float16.")
    save_file(halves, path, metadata={"format": "pt"})


def held_out_thresholds(study: Study, seed: int) -> tuple[float, float, dict[str, tuple[float, float]]]:
    """Choose the thresholds from the stored results of the recipe with a seed, see [`choose_thresholds`]."""
    return choose_thresholds(
        {held_out: study.stored(file_of(SHIPPED, held_out, seed)) or {} for held_out in study.roots}
    )


def write_card(study: Study, seed: int, training_sets: list[dict[str, Any]]) -> str:
    """Write the model card from the results of the study."""
    image_threshold, pixel_threshold, rates = held_out_thresholds(study, seed)
    rows = [("zero-shot", SHIPPED, 0), *((f"{k} reference{'s' * (k > 1)}", SHIPPED, k) for k in REFERENCES)]
    return CARD.read_text(encoding="utf-8").format(
        settings=f"{RECIPE.describe()}, seed {seed}",
        data="\n".join(
            f"- {entry['name']}: {entry['num_images']} images, {entry['num_anomalous_images']} of them anomalous"
            for entry in training_sets
        ),
        table=table_by_set(study, rows), thresholds=f"{image_threshold:g} and {pixel_threshold:g}",
        rates="\n".join(f"- {name}: {found:.0%} and {alarms:.0%}" for name, (found, alarms) in rates.items()),
    )  # fmt: skip


def build_adapters(options: argparse.Namespace) -> None:
    """Train adapters on all datasets, and write the checkpoint with its model card."""
    study = Study(options)
    for held_out in study.roots:
        study.result(SHIPPED, held_out, options.seed, REFERENCES)
    model = RECIPE.create(options.tower, options.seed)
    processor = RECIPE.train(model, study.sets, options.seed, study.folder / "cache")
    model.cpu()
    model.provenance.backbone_attribution = ATTRIBUTION
    image_threshold, pixel_threshold, _ = held_out_thresholds(study, options.seed)
    model.decision.image_threshold, model.decision.pixel_threshold = image_threshold, pixel_threshold
    card = write_card(study, options.seed, model.provenance.training_sets or [])
    with new_folder(options.checkpoint) as target:
        model.save_pretrained(target)
        store_backbone_in_half(target / "model.safetensors")
        processor.save_pretrained(target)
        (target / "README.md").write_text(card, encoding="utf-8")
        apply_umask(target)
    check_storage(model, Path(options.checkpoint))
    size = Path(options.checkpoint, "model.safetensors").stat().st_size
    print(f"Wrote the checkpoint to {options.checkpoint}: {size / 1e6:.1f} MB")


@torch.inference_mode()
def check_storage(model: ViP2ClipForAnomalyDetection, folder: Path) -> None:
    """Print the largest differences of the stored checkpoint from the trained model, on random images."""
    size = model.config.image_size
    pixels = torch.randn((4, 3, size, size), generator=torch.Generator().manual_seed(0))
    one, two = model(pixels), ViP2ClipForAnomalyDetection.from_pretrained(folder)(pixels)
    scores, maps = (
        (a - b).abs().max().item() for a, b in ((one.scores, two.scores), (one.anomaly_maps, two.anomaly_maps))
    )
    print(f"Largest differences of the stored checkpoint: scores {scores:.1e}, maps {maps:.1e}")
