"""Stage 3: train the adapters of the bundled checkpoint, and write it."""

import argparse
import json
from pathlib import Path

import torch

from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data.provenance import describe_training_set
from vip2clip_hf.evaluation.metrics import AnomalyMetrics
from vip2clip_hf.utils.files import new_folder, umask

from .study import PER_SET, Study, choices, label_of, results_table
from .training import CachedDataset, train_adapters


# Model card. Its text on the teacher, the data and the licences describes the bundled checkpoint. Change it for other
# checkpoints.
CARD = Path(__file__).with_name("card.md")


def set_thresholds(model: ViP2ClipForAnomalyDetection, sets: list[CachedDataset]) -> None:
    """
    Set the thresholds of a model to those with the best F1 on its training datasets.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model; its `decision` is changed in place.
        sets (`list[CachedDataset]`): training datasets. A subset of each is used, so that they have similar weights.
    """
    metrics = AnomalyMetrics()
    with torch.inference_mode():
        for data in (dataset.subset() for dataset in sets):
            for start in range(0, data.count, 16):
                batch = data.batch(range(start, min(start + 16, data.count)))
                outputs = model(image_embeds=batch["image_embeds"], patch_embeds=batch["patch_embeds"])
                metrics.update(
                    outputs.scores, batch["labels"], outputs.anomaly_maps, batch["mask_labels"],
                    has_mask=batch["mask_valid"],
                )  # fmt: skip
    found = metrics.compute()["categories"]["all"]
    # The model uses "greater than the threshold", the metrics use "greater or equal".
    model.decision.image_threshold = round(float(found["image_f1_threshold"]) - 1e-4, 4)
    model.decision.pixel_threshold = round(float(found["pixel_f1_threshold"]) - 1e-4, 4)


def build_adapters(options: argparse.Namespace) -> None:
    """Train adapters on the synthetic images and all real datasets, and write the checkpoint with its model card."""
    study = Study(options)
    candidate = {
        "variant": options.variant, "image_size": options.image_size, "rates": tuple(options.rates),
        "layers": tuple(options.layers),
    }  # fmt: skip
    data = study.data("tower", candidate)
    model = study.model("tower", candidate, options.seed)
    sets = [data["synthetic"], *(data[name] for name in study.real)]
    for _ in train_adapters(model, sets, PER_SET, options.epochs, candidate["rates"], options.seed):
        pass
    set_thresholds(model, sets)
    trained_on = [("generated pictures", study.synthetic), *study.real.items()]
    model.provenance.training_sets = [describe_training_set(dataset, name) for name, dataset in trained_on]
    log = json.loads(Path(options.tower, "log.json").read_text(encoding="utf-8"))
    settings = f"{label_of(candidate)}, {options.epochs} epochs, seed {options.seed}"
    training_data = [
        f"- {entry['name']}: {entry['num_images']} images, {entry['num_anomalous_images']} of them anomalous"
        for entry in model.provenance.training_sets
    ]
    card = CARD.read_text(encoding="utf-8").format(
        settings=settings, crops=options.crops, steps=log[-1]["step"], cosine=log[-1]["cosine_held_out"],
        data="\n".join(training_data), table=results_table(study), chosen=choices(study),
    )  # fmt: skip
    with new_folder(options.checkpoint) as target:
        model.save_pretrained(target)
        ViP2ClipImageProcessor(size=candidate["image_size"]).save_pretrained(target)
        (target / "README.md").write_text(card, encoding="utf-8")
        for path in target.iterdir():  # some writers create files that only their owner can read
            path.chmod(0o666 & ~umask())
    size = Path(options.checkpoint, "model.safetensors").stat().st_size
    print(f"Wrote the checkpoint to {options.checkpoint}: {size / 1e6:.1f} MB")
