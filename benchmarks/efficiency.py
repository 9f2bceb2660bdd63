"""Table 3 of the paper: time and memory of the variants of a model, relative to the vision tower."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.checkpoints.bundled import bundled_checkpoint
from vip2clip_hf.data.synthetic.dataset import generate_image, write_dataset
from vip2clip_hf.reproduction.efficiency import VARIANTS, measure_variants
from vip2clip_hf.reproduction.efficiency_table import efficiency_notes, efficiency_tables, write_efficiency_table
from vip2clip_hf.training.arguments import DataArguments, ModelArguments, ViP2ClipTrainingArguments
from vip2clip_hf.utils.files import write_atomically
from vip2clip_hf.utils.serialization import to_json

from .common import new_model


# Images of VisA's test split, on which the training time in Table 3 of the paper was measured.
VISA_IMAGES = 2162


def efficiency_model(options: argparse.Namespace) -> ViP2ClipForAnomalyDetection:
    """Load the model, in the precision of the variants if they have the same one."""
    if options.random_vit_l:
        model = new_model(None)
    else:
        model = ViP2ClipForAnomalyDetection.from_pretrained(options.model or bundled_checkpoint())
    dtypes = {VARIANTS[name][0] for name in options.variants}
    if len(dtypes) == 1:  # no copy
        model.to(dtypes.pop())
    return model.eval().to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def photos(count: int, side: int) -> list[Image.Image]:
    """Generate photos."""
    return [generate_image("weave", None, side, seed=number)[0] for number in range(count)]


def synthetic_training(model: ViP2ClipForAnomalyDetection, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure training steps of new adapters on a backbone, on synthetic images of the size of the model."""
    from vip2clip_hf.reproduction.efficiency_training import measure_training

    config = model.config
    with tempfile.TemporaryDirectory() as folder:
        clip, batch = options.clip, options.training_batch
        if clip is None and options.random_vit_l:
            clip = str(Path(folder, "clip"))
            model.clip.float().save_pretrained(clip)
        clip = clip or "random-tiny"
        print(f"  training on the backbone {'of the model' if options.random_vit_l else clip}", flush=True)
        root = write_dataset(
            Path(folder, "data"), ("weave",), 2 * batch, max(1, batch // 2), 256
        )  # four kinds of defects
        return measure_training(
            ModelArguments(
                clip=clip, variant=options.variant, image_size=config.image_size,
                feature_layers=list(config.feature_layers), top_k=config.top_k,
            ),
            DataArguments(train_data=[f"weave={root}"]),
            ViP2ClipTrainingArguments(
                output_dir=str(Path(folder, "run")), per_device_train_batch_size=options.training_batch,
                use_cpu=model.device.type == "cpu", num_train_epochs=options.epochs,
            ),
            num_images=options.training_images,
        )  # fmt: skip


def benchmark_efficiency(options: argparse.Namespace) -> None:
    """Measure Table 3 and print it."""
    if options.threads:
        torch.set_num_threads(options.threads)
    model = efficiency_model(options)
    size = model.config.image_size
    title = "random weights at the size of CLIP ViT-L/14" if options.random_vit_l else options.model or "bundled"
    print(f"{title}, {size} pixels, {model.device}")
    results: dict[str, list[dict[str, Any]]] = {"inference": [], "training": []}
    if options.repeats:
        results["inference"] = measure_variants(
            model, ViP2ClipImageProcessor(size=size), photos(options.images, size), names=options.variants,
            batch_sizes=options.batch_sizes, repeats=options.repeats, warmup=options.warmup,
            report=lambda one: print(f"  {one['variant']}, batch {one['batch_size']}: measured", flush=True),
        )  # fmt: skip
    if options.training:
        results["training"] = synthetic_training(model, options)
    for name, table in efficiency_tables(results).items():
        print(f"\n{name}\n\n{table}")
    print("\n" + "\n".join(efficiency_notes(results)))
    if options.output is not None:
        write_efficiency_table(results, Path(options.output))
        write_atomically(Path(options.output, "table3.json"), to_json(results))
