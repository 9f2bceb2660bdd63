"""Demo of the bundled checkpoint: find defects zero-shot, adapt to a part, draw the results. Runs offline on a CPU."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from .checkpoints.bundled import bundled_checkpoint, example_photos
from .models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from .plotting.sheet import results_figure
from .references.adapting import adapt
from .references.saving import REPORT_NAME, replaced_folder
from .utils.figures import save_figure


SHEET, CHECKPOINT = "sheet.png", "checkpoint"
# Photos in the sheet, in this order, and what they show.
SHOWN = {
    "hazelnut_damaged_1.jpg": "hazelnut, damaged",
    "hazelnut_normal_1.jpg": "hazelnut, good",
    "toy_damaged_2.jpg": "toy, stained",
    "toy_normal_1.jpg": "toy, good",
}


def run_demo(
    output: str | os.PathLike = "demo_output",
    seed: int = 0,
    say: Callable[[str], None] = print,
    overwrite: bool = False,
) -> dict[str, Any]:
    """
    Run the demo and write `sheet.png` and the adapted `checkpoint` to a folder.

    The demo scores photos of hazelnuts zero-shot. It then scores photos of toys, which the checkpoint was not trained
    on: zero-shot, and with photos of good toys as references.

    Args:
        output (`str` or `os.PathLike`, defaults to `"demo_output"`): folder to write; created if it does not exist.
        seed (`int`, defaults to 0): seed of the synthetic defects of the report.
        say (`Callable[[str], None]`, defaults to `print`): called with each line of the output.
        overwrite (`bool`, defaults to `False`): whether to replace `sheet.png` and `checkpoint` in the folder.

    Returns:
        `dict`: `zero_shot` and `adapted` (`score` and `label` by name of the photo), `sheet` and `checkpoint` (paths).

    Raises:
        OSError: if the folder is a file, contains `sheet.png` or `checkpoint` already, or cannot be written. With
            `overwrite`, if they are not from a demo.
        ImportError: if matplotlib, datasets or scipy is not installed.
        ValueError: if the seed is negative.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise OSError(f"{str(output)!r} is a file; expected a folder, or a path that does not exist.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected an integer of at least 0.")
    sheet, checkpoint = output / SHEET, output / CHECKPOINT
    existing = [path for path in (sheet, checkpoint) if os.path.lexists(path)]
    if existing and not overwrite:
        raise OSError(f"{str(existing[0])!r} exists; choose another folder, or replace it with --overwrite.")
    if sheet.is_dir() or (os.path.lexists(checkpoint) and not (checkpoint / "config.json").is_file()):
        wrong = sheet if sheet.is_dir() else checkpoint
        raise OSError(f"{str(wrong)!r} is not from a demo; move it, or choose another folder.")
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    detector = AnomalyDetectionPipeline.from_pretrained(bundled_checkpoint(), device="cpu")
    hazelnuts = {path.name: path for path in sorted(example_photos().glob("*.jpg"))}
    toys = {path.name: path for path in sorted((example_photos() / "toys" / "test").glob("*.jpg"))}
    good = example_photos() / "toys" / "good"

    def score(one: AnomalyDetectionPipeline, photos: dict[str, Path]) -> dict[str, dict[str, Any]]:
        results = {name: cast(dict[str, Any], one(str(path))) for name, path in photos.items()}
        for name, result in results.items():
            say(f"   {name:24s} {result['score']:.3f} {result['label']}")
        return results

    say("1. Zero-shot, on hazelnuts. The checkpoint was trained on other photos of this dataset:")
    zero_shot = score(detector, hazelnuts)
    say("2. Zero-shot, on toys that the checkpoint was never trained on. All scores are high, also of good toys:")
    zero_shot |= score(detector, toys)
    # An earlier checkpoint is only replaced when the new one is complete.
    with replaced_folder(checkpoint) if checkpoint.exists() else contextlib.nullcontext(checkpoint) as target:
        written = adapt(bundled_checkpoint(), good, target, device="cpu", seed=seed)
        say(f"3. The same toys, compared with {len(written.bank)} photos of good toys:")
        adapted = score(AnomalyDetectionPipeline.from_pretrained(target, device="cpu"), toys)
    paths, results = {**hazelnuts, **toys}, {**zero_shot, **adapted}
    figure = results_figure(
        [paths[name] for name in SHOWN],
        [results[name] for name in SHOWN],
        [_true_mask(paths[name], results[name]) for name in SHOWN],
        [f"{title}, {'20 references' if name in adapted else 'zero-shot'}" for name, title in SHOWN.items()],
    )
    save_figure(figure, sheet)
    say(f"Drew the results in {sheet}. The detector of step 3 is {checkpoint}; its report is {REPORT_NAME} there.")
    say("Not everything is found: docs/tiny.md has the rates for this part and others.")
    say(f"Took {time.perf_counter() - start:.0f} seconds. Next, with your own photos of good parts:")
    say("   vip2clip adapt good_photos --output my-part")
    return {
        "zero_shot": {name: _decision(result) for name, result in zero_shot.items()},
        "adapted": {name: _decision(result) for name, result in adapted.items()},
        "sheet": str(sheet),
        "checkpoint": str(checkpoint),
    }


def _true_mask(photo: Path, result: dict[str, Any]) -> Any:
    """Return the true mask of a bundled photo: a file, an empty mask for a good part, or `None` if there is none."""
    if "normal" in photo.stem:
        return np.zeros_like(result["mask"])
    mask = photo.with_name(f"{photo.stem}_mask.png")
    return mask if mask.exists() else None


def _decision(result: dict[str, Any]) -> dict[str, Any]:
    return {"score": result["score"], "label": result["label"]}


__all__ = ["run_demo"]
