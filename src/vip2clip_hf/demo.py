"""The bundled checkpoint at work, offline and without a GPU: find defects, draw them, fine-tune.

It scores the example photos and synthetic images, and draws a sheet of all. Then it is fine-tuned for two epochs on
synthetic images of one surface, and evaluated on other images of that surface before and after.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import PrinterCallback, set_seed

from .checkpoints.bundled import bundled_checkpoint, example_photos
from .checkpoints.saving import write_checkpoint
from .data.loading import load_folder
from .data.synthetic.dataset import generate_image, write_dataset
from .evaluation.evaluator import evaluate_model
from .models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from .models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from .models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from .training.arguments import ViP2ClipTrainingArguments
from .training.trainer import ViP2ClipTrainer


# A surface that the checkpoint was not trained on.
SURFACE = "dots"
TILE = 224
TITLES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_aupro": "AUPRO"}


def read_examples(seed: int) -> list[tuple[str, Image.Image, Image.Image | None]]:
    """Name, picture and mask of the photos and of two generated pictures."""
    pictures = []
    for path in sorted(example_photos().glob("*.jpg")):
        mask = path.with_name(f"{path.stem}_mask.png")
        pictures.append((path.name, Image.open(path), Image.open(mask) if mask.exists() else None))
    for defect in (None, "blob"):
        picture, mask = generate_image(SURFACE, defect, 256, seed=seed + 100)
        pictures.append((f"generated, {defect or 'normal'}", picture, mask))
    return pictures


def draw_sheet(rows: list[list[Image.Image]]) -> Image.Image:
    sheet = Image.new("RGB", (TILE * len(rows[0]), TILE * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture.convert("RGB").resize((TILE, TILE)), (x * TILE, y * TILE))
    return sheet


def run_demo(output: str | os.PathLike = "demo_output", seed: int = 0, say: Callable[[str], None] = print) -> dict:
    """
    Score the examples, draw `sheet.png`, fine-tune, and write the fine-tuned `checkpoint` to a folder.

    Args:
        output (`str` or `os.PathLike`, defaults to `"demo_output"`): the folder.
        seed (`int`, defaults to 0): seed of the synthetic images and of training.
        say (`Callable[[str], None]`, defaults to `print`): called with every line of the report.

    Returns:
        `dict`: `scores` (by image, `score` and `label`), `before` and `after` (metrics before and after fine-tuning),
        `sheet` and `checkpoint` (paths).

    Raises:
        OSError: the folder cannot be written, or is a file.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise OSError(f"{str(output)!r} is a file; expected a folder or a path that does not exist yet.")
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    detector = AnomalyDetectionPipeline.from_pretrained(bundled_checkpoint(), device="cpu")
    rows, scores = [], {}
    say("Scores of the bundled checkpoint:")
    for name, picture, mask in read_examples(seed):
        result = detector(picture, heatmap=True)
        scores[name] = {"score": result["score"], "label": result["label"]}
        say(f"  {name:32s} {result['score']:.3f} {result['label']}")
        # On a fixed scale from 0 to 1, as the heatmap.
        anomaly_map = Image.fromarray(np.rint(result["anomaly_map"] * 255).astype(np.uint8))
        rows.append([picture, anomaly_map, result["heatmap"], mask or Image.new("L", picture.size)])
    sheet = output / "sheet.png"
    draw_sheet(rows).save(sheet)
    say(f"{sheet}: photo, anomaly map, heatmap and true mask side by side")

    with tempfile.TemporaryDirectory() as folder:
        train_root = write_dataset(Path(folder, "train"), (SURFACE,), 16, 4, 256, seed)
        eval_root = write_dataset(Path(folder, "eval"), (SURFACE,), 12, 4, 256, seed + 1)
        train_dataset, eval_dataset = load_folder(train_root), load_folder(eval_root)
        set_seed(seed)
        model = ViP2ClipForAnomalyDetection.from_pretrained(bundled_checkpoint())
        image_processor = ViP2ClipImageProcessor.from_pretrained(bundled_checkpoint())
        arguments = ViP2ClipTrainingArguments(
            output_dir=str(Path(folder, "run")),
            num_train_epochs=2,
            perception_learning_rate=1e-3,
            seed=seed,
            cache_features=str(Path(folder, "cache")),
            disable_tqdm=not sys.stderr.isatty(),
            logging_strategy="no",
            save_strategy="no",
            use_cpu=True,
        )
        trainer = ViP2ClipTrainer(model, arguments, image_processor, train_dataset)
        trainer.remove_callback(PrinterCallback)
        before = evaluate_model(model, image_processor, eval_dataset)["mean"]
        say(f"Fine-tuning for two epochs on {len(train_dataset)} synthetic images of {SURFACE} ...")
        trainer.train()
        after = evaluate_model(model, image_processor, eval_dataset)["mean"]
        say(f"On {len(eval_dataset)} other images:")
        for name, title in TITLES.items():
            say(f"  {title} {before[name]:.3f} before, {after[name]:.3f} after fine-tuning")
        write_checkpoint(model, image_processor, output / "checkpoint")
    say(f"The fine-tuned checkpoint is in {output / 'checkpoint'}.")
    say(f"Took {time.perf_counter() - start:.0f} seconds.")
    metrics = ({name: found[name] for name in TITLES} for found in (before, after))
    found = dict(zip(("before", "after"), metrics))
    return {"scores": scores, **found, "sheet": str(sheet), "checkpoint": str(output / "checkpoint")}


__all__ = ["run_demo"]
