"""Stage 3: train the adapters that are shipped, and write the checkpoint."""

import argparse
import json
from pathlib import Path

import torch

from vip2clip_hf import ViP2ClipImageProcessor
from vip2clip_hf.data.provenance import describe_training_set
from vip2clip_hf.evaluation.metrics import AnomalyMetrics
from vip2clip_hf.utils.files import new_folder, umask

from .study import PER_SET, Study, choices, figures_table, label_of
from .training import Cached, train_adapters


# Its text on teacher, data and licences is that of the checkpoint in the package: change it for another.
CARD = Path(__file__).with_name("card.md")


def set_thresholds(model, sets: list[Cached]):
    """Thresholds of the best F1 on what the adapters were trained on, the sets with equal weight."""
    metrics = AnomalyMetrics()
    with torch.inference_mode():
        for data in (one.thinned() for one in sets):
            for start in range(0, data.count, 16):
                batch = data.batch(range(start, min(start + 16, data.count)))
                outputs = model(image_embeds=batch["image_embeds"], patch_embeds=batch["patch_embeds"])
                metrics.update(
                    outputs.scores, batch["labels"], outputs.anomaly_maps, batch["mask_labels"],
                    has_mask=batch["mask_label_valid"],
                )  # fmt: skip
    found = metrics.compute()["categories"]["all"]
    # Positive is what is greater than the threshold, in the metrics what is greater or equal.
    model.config.image_threshold = round(float(found["image_f1_threshold"]) - 1e-4, 4)
    model.config.pixel_threshold = round(float(found["pixel_f1_threshold"]) - 1e-4, 4)


def build_adapters(options: argparse.Namespace):
    """The checkpoint: adapters on generated pictures and all real sets, with what the study has chosen."""
    study = Study(options)
    candidate = {
        "variant": options.variant, "image_size": options.image_size, "rates": tuple(options.rates),
        "layers": tuple(options.layers),
    }  # fmt: skip
    data = study.data("tower", candidate)
    model = study.model("tower", candidate, options.seed)
    sets = [data["generated"], *(data[name] for name in study.real)]
    for _ in train_adapters(model, sets, PER_SET, options.epochs, candidate["rates"], options.seed):
        pass
    set_thresholds(model, sets)
    trained_on = [("generated pictures", study.generated), *study.real.items()]
    model.config.training_sets = [describe_training_set(dataset, name) for name, dataset in trained_on]
    log = json.loads(Path(options.tower, "log.json").read_text(encoding="utf-8"))
    what = f"{label_of(candidate)}, {options.epochs} epochs, seed {options.seed}."
    described = [
        f"- {entry['name']}: {entry['num_images']} images, {entry['num_anomalous_images']} of them anomalous"
        for entry in model.config.training_sets
    ]
    card = CARD.read_text(encoding="utf-8").format(
        what=f"Adapters: {what}", crops=options.crops, steps=log[-1]["step"], cosine=log[-1]["cosine_held_out"],
        data="\n".join(described), table=figures_table(study), chosen=choices(study),
    )  # fmt: skip
    with new_folder(options.checkpoint) as target:
        model.save_pretrained(target)
        ViP2ClipImageProcessor(size=candidate["image_size"]).save_pretrained(target)
        (target / "README.md").write_text(card, encoding="utf-8")
        for path in target.iterdir():  # some writers make files that only their owner can read
            path.chmod(0o666 & ~umask())
    size = Path(options.checkpoint, "model.safetensors").stat().st_size
    print(f"Checkpoint in {options.checkpoint}: {size / 1e6:.1f} MB")
