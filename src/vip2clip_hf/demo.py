"""Demo of the bundled checkpoint: find defects, draw them, fine-tune. Runs offline, without a GPU.

The demo scores example photos and synthetic images and draws them in one sheet. It then fine-tunes the checkpoint for
two epochs on synthetic images of one surface, and evaluates it before and after on other images of that surface.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from transformers import PrinterCallback, set_seed

from .checkpoints.bundled import bundled_checkpoint, example_photos
from .checkpoints.saving import write_checkpoint
from .data.loading import load_folder
from .data.provenance import describe_training_set
from .data.synthetic.dataset import generate_image, write_dataset
from .evaluation.evaluator import evaluate_model
from .models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from .models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from .models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from .training.arguments import ViP2ClipTrainingArguments
from .training.trainer import ViP2ClipTrainer
from .utils.files import write_atomically


# The checkpoint was not trained on this surface.
SURFACE = "dots"
TILE = 224
TITLES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_aupro": "AUPRO"}


def read_examples(seed: int) -> list[tuple[str, Image.Image, Image.Image | None]]:
    """
    Load the example photos and generate two synthetic images, one normal and one with a defect.

    Args:
        seed (`int`): seed of the synthetic images.

    Returns:
        `list[tuple[str, PIL.Image.Image, PIL.Image.Image | None]]`: name, image and mask; None without a mask.
    """
    examples: list[tuple[str, Image.Image, Image.Image | None]] = []
    for path in sorted(example_photos().glob("*.jpg")):
        mask_path = path.with_name(f"{path.stem}_mask.png")
        examples.append((path.name, Image.open(path), Image.open(mask_path) if mask_path.exists() else None))
    for defect in (None, "blob"):
        image, mask = generate_image(SURFACE, defect, 256, seed=seed + 100)
        examples.append((f"generated, {defect or 'normal'}", image, mask))
    return examples


def draw_sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """
    Draw images in a grid.

    Args:
        rows (`list[list[PIL.Image.Image]]`): rows with the same number of images.

    Returns:
        `PIL.Image.Image`: the sheet, with square cells of 224 pixels.
    """
    sheet = Image.new("RGB", (TILE * len(rows[0]), TILE * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image.convert("RGB").resize((TILE, TILE)), (x * TILE, y * TILE))
    return sheet


def run_demo(
    output: str | os.PathLike = "demo_output",
    seed: int = 0,
    say: Callable[[str], None] = print,
    overwrite: bool = False,
) -> dict[str, Any]:
    """
    Run the demo and write `sheet.png` and the fine-tuned `checkpoint` to a folder.

    Args:
        output (`str` or `os.PathLike`, defaults to `"demo_output"`): folder to write; created if it does not exist.
        seed (`int`, defaults to 0): seed of the synthetic images and of training.
        say (`Callable[[str], None]`, defaults to `print`): called with each line of the report.
        overwrite (`bool`, defaults to `False`): whether to replace `sheet.png` and `checkpoint` in the folder.

    Returns:
        `dict`: `scores` (`score` and `label` by image name), `before` and `after` (metrics before and after
        fine-tuning), `sheet` and `checkpoint` (paths).

    Raises:
        OSError: if the folder is a file, contains `sheet.png` or `checkpoint` already, or cannot be written.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise OSError(f"{str(output)!r} is a file; expected a folder, or a path that does not exist.")
    existing = [path for path in (output / "sheet.png", output / "checkpoint") if os.path.lexists(path)]
    if existing and not overwrite:
        raise OSError(f"{str(existing[0])!r} exists; choose another folder, or replace it with --overwrite.")
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    detector = AnomalyDetectionPipeline.from_pretrained(bundled_checkpoint(), device="cpu")
    rows: list[list[Image.Image]] = []
    scores: dict[str, dict[str, Any]] = {}
    say("Scores of the bundled checkpoint:")
    for name, image, mask in read_examples(seed):
        result = cast(dict[str, Any], detector(image, heatmap=True))
        scores[name] = {"score": result["score"], "label": result["label"]}
        say(f"  {name:32s} {result['score']:.3f} {result['label']}")
        # Fixed scale from 0 to 1, like the heatmap.
        anomaly_map = Image.fromarray(np.rint(result["anomaly_map"] * 255).astype(np.uint8))
        rows.append([image, anomaly_map, result["heatmap"], mask or Image.new("L", image.size)])
    sheet = output / "sheet.png"
    content = BytesIO()
    draw_sheet(rows).save(content, format="PNG")
    write_atomically(sheet, content.getvalue())
    say(f"Wrote {sheet}. Columns: image, anomaly map, heatmap, true mask.")

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
        trained_on = [describe_training_set(train_dataset, f"synthetic images of {SURFACE}")]
        trainer = ViP2ClipTrainer(model, arguments, image_processor, train_dataset, training_sets=trained_on)
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
    return {
        "scores": scores,
        "before": {name: before[name] for name in TITLES},
        "after": {name: after[name] for name in TITLES},
        "sheet": str(sheet),
        "checkpoint": str(output / "checkpoint"),
    }


__all__ = ["run_demo"]
