"""Masks are read the same way everywhere: image processor, training, evaluation, calibration, checks and commands."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.utils import logging
from typer.testing import CliRunner

from helpers.evaluations import model_with_wide_maps
from helpers.tiny import TINY, change_weights, tiny_config
from vip2clip_hf import (
    AnomalyDetectionPipeline,
    DataSource,
    FeatureCache,
    MaskOptions,
    ViP2ClipDetector,
    ViP2ClipForAnomalyDetection,
    ViP2ClipImageProcessor,
    ViP2ClipTrainer,
    ViP2ClipTrainingArguments,
    calibrate_labelled,
    evaluate_model,
    evaluate_sets,
    load_folder,
)
from vip2clip_hf.calibration import from_labels as labels_module
from vip2clip_hf.cli import app
from vip2clip_hf.evaluation import runner as runner_module, sheets as sheets_module
from vip2clip_hf.evaluation.metrics import METRICS
from vip2clip_hf.evaluation.regions import EvaluationMetrics
from vip2clip_hf.evaluation.sheets import write_sheets
from vip2clip_hf.training.augmentation import Augmentation
from vip2clip_hf.training.parsing import parse_arguments


SIDE = 96


@pytest.fixture
def model(clip):
    return model_with_wide_maps(clip)


def write_photos(root: Path, marks: list[np.ndarray], background: int = 0, form: str = "png") -> Path:
    """Write two normal photos, and anomalous photos with masks that are 250 in the marks and `background` around."""
    rng = np.random.default_rng(0)
    for folder in ("good", "bad", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(2 + len(marks)):
        pixels = rng.integers(60, 200, (SIDE, SIDE, 3), dtype=np.uint8)
        if number > 1:
            pixels[marks[number - 2]] = 255
            mask = np.where(marks[number - 2], 250, background).astype(np.uint8)
            Image.fromarray(mask).save(root / "masks" / f"{number}.{form}")
        Image.fromarray(pixels).save(root / ("bad" if number > 1 else "good") / f"{number}.png")
    return root


def square(top: int, left: int, side: int) -> np.ndarray:
    marked = np.zeros((SIDE, SIDE), dtype=bool)
    marked[top : top + side, left : left + side] = True
    return marked


@pytest.fixture
def noisy(tmp_path) -> Path:
    """Masks with values of 9 around the defect, as after lossy compression."""
    return write_photos(tmp_path / "noisy", [square(8, 20, 24), square(40, 60, 30)], background=9)


def build_trainer(clip, image_processor, folder: Path, root: Path, masks=None, **arguments) -> ViP2ClipTrainer:
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    defaults = {"output_dir": str(folder), "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    args = ViP2ClipTrainingArguments(**defaults, **arguments)
    return ViP2ClipTrainer(model, args, image_processor, load_folder(root), **(masks or {}))


def shares(result) -> list[float]:
    return [found["num_anomalous_pixels"] / found["num_pixels"] for found in result["categories"].values()]


def test_evaluation_takes_the_threshold_of_the_image_processor(noisy, model, tmp_path, caplog):
    processor = ViP2ClipImageProcessor(size=48, mask_threshold=127)
    dataset = load_folder(noisy)
    one = evaluate_model(model, processor, dataset)
    assert 0.02 < shares(one)[0] < 0.1
    (several,) = evaluate_sets(model, processor, [DataSource.parse(str(noisy))], tmp_path / "a", sheets=0)
    for metric in METRICS:
        assert several["mean"][metric] == one["mean"][metric]
    assert one["mask_options"]["threshold"] == several["mask_options"]["threshold"] == 127
    assert "noise" not in caplog.text
    # An explicit option has precedence.
    options = MaskOptions(threshold=0)
    zero = evaluate_model(model, processor, dataset, mask_options=options)
    assert "masks with noise near 0 counted as anomalous; use a mask threshold of 127" in caplog.text
    source = DataSource.parse(str(noisy), mask_options=options)
    (several,) = evaluate_sets(model, processor, [source], tmp_path / "b", sheets=0)
    assert several["mean"]["pixel_auroc"] == zero["mean"]["pixel_auroc"] != one["mean"]["pixel_auroc"]
    assert evaluate_model(model, processor, dataset, mask_threshold=0)["mean"] == zero["mean"]


def test_another_threshold_is_another_evaluation(noisy, model, image_processor, tmp_path):
    """Not the results of the first, which are on disk."""
    for threshold in (127, 0):
        source = DataSource.parse(str(noisy), mask_options=MaskOptions(threshold=threshold))
        if threshold:
            evaluate_sets(model, image_processor, [source], tmp_path / "out", sheets=0)
        else:
            with pytest.raises(OSError, match="contains an evaluation"):
                evaluate_sets(model, image_processor, [source], tmp_path / "out", sheets=0)


def test_all_views_have_the_threshold_of_the_trainer(noisy, clip, image_processor, tmp_path, caplog):
    trainer = build_trainer(
        clip, image_processor, tmp_path / "run", noisy, {"mask_threshold": 127}, augmentation=["flip", "rotate"]
    )
    sums = set()
    for view in range(4):
        rows = [trainer.train_dataset[4 * view + position] for position in range(4)]
        sums.add(int(trainer.data_collator(rows)["mask_labels"].sum()))
    assert len(sums) == 1
    assert 0 < sums.pop() < 0.1 * 4 * 48 * 48
    assert "noise" not in caplog.text
    trainer = build_trainer(clip, image_processor, tmp_path / "run", noisy, augmentation=["flip"])
    trainer.data_collator([trainer.train_dataset[position] for position in range(4, 8)])
    assert "noise near 0 counted as anomalous" in caplog.text


def test_all_views_of_the_feature_cache_have_one_threshold(noisy, model, image_processor, tmp_path):
    dataset = load_folder(noisy)
    for name, options in (("a", {"mask_threshold": 127}), ("b", {"mask_options": MaskOptions(threshold=127)})):
        cache = FeatureCache.build(
            model,
            image_processor,
            dataset,
            tmp_path / name,
            augmentation=Augmentation(["flip"]),
            num_views=2,
            **options,
        )
        sums = [int(sum(cache.row(4 * view + row)["mask_labels"].sum() for row in range(4))) for view in range(2)]
        assert sums[0] == sums[1] < 0.1 * 4 * 48 * 48


def test_inverted_masks_in_augmented_views(tmp_path, clip, image_processor):
    """An augmented mask is not inverted again."""
    root = write_photos(tmp_path / "set", [~square(8, 20, 24), ~square(40, 60, 30)])
    options = MaskOptions(invert=True)
    trainer = build_trainer(
        clip, image_processor, tmp_path / "run", root, {"mask_options": options}, augmentation=["flip"]
    )
    sums = [
        int(trainer.data_collator([trainer.train_dataset[4 * view + p] for p in range(4)])["mask_labels"].sum())
        for view in range(3)
    ]
    assert sums[0] == sums[1] == sums[2] == 144 + 225


def test_calibration_and_sheets_read_the_same_pixels(noisy, image_processor, tmp_path, monkeypatch):
    """And refuse or turn the same masks."""
    model = ViP2ClipForAnomalyDetection(tiny_config()).eval()
    change_weights(model)
    image_processor.mask_threshold = 127
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")
    found = []
    plain = labels_module.mask_labels
    monkeypatch.setattr(
        labels_module, "mask_labels", lambda *args, **options: found.append(plain(*args, **options)) or found[-1]
    )
    calibrate_labelled(detector, load_folder(noisy))
    assert [int(mask.labels.sum()) for mask in found] == [0, 0, 144, 225]
    drawn = []
    monkeypatch.setattr(sheets_module, "draw_sheet", lambda rows, *args: drawn.extend(rows) or None)
    monkeypatch.setattr(sheets_module, "save_figure", lambda *args: None)
    one, options = ViP2ClipDetector(model, image_processor), MaskOptions.of(image_processor)
    write_sheets(one, load_folder(noisy), tmp_path / "sheets", mask_options=options)
    assert sorted(int(row["mask"].sum()) for row in drawn) == [0, 0, 24 * 24, 30 * 30]


def test_a_mask_of_another_size_is_refused_with_the_same_words(tmp_path, model, clip, image_processor):
    root = write_photos(tmp_path / "set", [square(8, 20, 24), square(40, 60, 30)])
    Image.new("L", (SIDE, SIDE - 1)).save(root / "masks" / "3.png")
    dataset = load_folder(root)
    words = r"Mask '.*3.png' has 95 x 96 pixels \(height x width\); expected 96 x 96, the size of image '.*3.png'\."
    with pytest.raises(ValueError, match=words):
        evaluate_model(model, image_processor, dataset)
    with pytest.raises(ValueError, match=words):
        calibrate_labelled(
            AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu"), dataset
        )
    for augmentation in (None, ["flip"]):
        trainer = build_trainer(
            clip, image_processor, tmp_path / "run", root, augmentation=augmentation, num_train_epochs=2
        )
        with pytest.raises(ValueError, match=words):
            trainer.train()
    with pytest.raises(ValueError, match=words):
        write_sheets(ViP2ClipDetector(model, image_processor), dataset, tmp_path / "sheets")


def test_suspicious_masks_are_reported_before_a_run(tmp_path, model, clip, image_processor, caplog):
    root = write_photos(tmp_path / "set", [~square(8, 20, 24), ~square(40, 60, 30)])
    dataset = load_folder(root)
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")
    for start in (
        lambda: evaluate_model(model, image_processor, dataset),
        lambda: calibrate_labelled(detector, dataset),
        lambda: build_trainer(clip, image_processor, tmp_path / "run", root),
    ):
        caplog.clear()
        logging.warning_once.cache_clear()
        start()
        assert "if they are inverted, set mask_invert: 2 of 2 masks read, such as that of 'bad/2.png'" in caplog.text
    caplog.clear()
    evaluate_model(model, image_processor, dataset, mask_options=MaskOptions(invert=True))
    assert caplog.text == ""


# Regions that vanish at the size of the model


@pytest.fixture
def small_defects(tmp_path) -> Path:
    """Four defects of 1 x 1 pixels at twice the size of the model, and a large one."""
    marks = square(2, 2, 1) | square(2, 50, 1) | square(50, 2, 1) | square(80, 80, 1)
    return write_photos(tmp_path / "small", [marks, square(40, 40, 20)])


def test_small_regions_are_kept_and_counted(small_defects, model, image_processor, caplog):
    dataset = load_folder(small_defects)
    (kept,) = evaluate_model(model, image_processor, dataset)["categories"].values()
    assert (kept["num_regions"], kept["num_original_regions"]) == (5, 5)
    assert (kept["num_small_regions"], kept["num_lost_regions"], kept["num_empty_masks"]) == (4, 0, 0)
    assert "4 regions of the masks have no pixel at the size of the model, 48 x 48. 4 are kept" in caplog.text
    lost = evaluate_model(model, image_processor, dataset, mask_options=MaskOptions(keep_small_regions=False))
    (found,) = lost["categories"].values()
    assert (found["num_regions"], found["num_small_regions"], found["num_lost_regions"]) == (1, 4, 4)
    assert "0 are kept there with at least one pixel, 4 are lost" in caplog.text
    # As in the authors' code, unless you choose otherwise.
    release = evaluate_model(model, image_processor, dataset, aupro_convention="release")
    assert release["mean"]["pixel_ap"] == lost["mean"]["pixel_ap"]
    assert release["mask_options"]["keep_small_regions"] is False
    options = MaskOptions(keep_small_regions=True)
    (found,) = evaluate_model(
        model, image_processor, dataset, aupro_convention="release", mask_options=options
    )["categories"].values()  # fmt: skip
    assert found["num_lost_regions"] == 0


def test_nothing_changes_without_small_regions(tmp_path, model, image_processor, caplog):
    root = write_photos(tmp_path / "set", [square(8, 20, 24), square(41, 61, 7) | square(3, 3, 5)])
    dataset = load_folder(root)
    kept = evaluate_model(model, image_processor, dataset)
    lost = evaluate_model(model, image_processor, dataset, mask_options=MaskOptions(keep_small_regions=False))
    assert kept["mean"] == lost["mean"]
    assert "regions" not in caplog.text
    assert kept["categories"]["set"]["num_small_regions"] == 0


def test_region_counts_survive_an_interruption():
    """They are part of the saved progress, and of merged metrics."""
    first, second = EvaluationMetrics(), EvaluationMetrics()
    for metrics, small in ((first, 1), (second, 2)):
        metrics.update(np.array([0.5]), np.array([1]), categories=["a"])
        metrics.add_regions(["a"], [1], [(3, small, 0)])
    second.add_regions(["a"], [1], [(0, 0, 0)])
    restored = EvaluationMetrics()
    restored.load_state_dict(first.state_dict())
    restored.merge(second)
    found = restored.compute()["categories"]["a"]
    assert (found["num_original_regions"], found["num_small_regions"], found["num_empty_masks"]) == (6, 3, 1)
    state = first.state_dict()
    del state["regions"]  # of an earlier version
    restored.load_state_dict(state)
    assert math.isnan(restored.compute()["categories"]["a"]["num_small_regions"])
    restored.reset()
    assert restored.num_images == 0


def test_training_keeps_small_regions(small_defects, clip, image_processor, tmp_path):
    trainer = build_trainer(clip, image_processor, tmp_path / "run", small_defects)
    rows = [trainer.train_dataset[position] for position in range(4)]
    batch = trainer.data_collator(rows)
    assert batch["mask_labels"][batch["labels"] == 1].flatten(1).any(dim=1).all()


# Commands


def test_commands_pass_the_options(noisy, tmp_path, monkeypatch):
    options = ["--mask-threshold", "127", "--mask-channel", "any", "--mask-invert", "--mask-orientation", "own"]
    expected = MaskOptions(127, "any", True, "own")
    sources = []
    monkeypatch.setattr(
        runner_module, "evaluate_checkpoint", lambda model, sets, *args, **kw: sources.extend(sets) or []
    )
    arguments = ["evaluate", str(noisy), f"mvtec={noisy}", "--model", "x", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, *options, "--json"])
    assert done.exit_code == 0, done.output
    assert [source.mask_options for source in sources] == [expected, expected]
    CliRunner().invoke(app, [*arguments, "--lose-small-regions", "--json"])
    assert sources[2].mask_options == MaskOptions(keep_small_regions=False)
    assert sources[3].mask_options == MaskOptions(threshold=0, keep_small_regions=False)  # of the benchmark
    done = CliRunner().invoke(app, [*arguments, "--mask-channel", "gray"])
    assert done.exit_code == 2
    done = CliRunner().invoke(app, ["calibrate", str(noisy / "good"), "--model", "x", "--mask-invert"])
    assert done.exit_code == 2
    assert "add --f1 or --recall" in " ".join(done.output.replace("│", " ").split())
    _, data, _ = parse_arguments(["--train_data", "x", *options, "--output_dir", str(tmp_path)])
    assert MaskOptions.named(vars(data)) == replace(expected, keep_small_regions=True)


def test_data_command(noisy):
    def run(*arguments):
        return CliRunner().invoke(app, ["data", str(noisy), *arguments])

    done = run("--check", "--json")
    assert done.exit_code == 0
    assert any("noise" in kind for kind in json.loads(done.stdout)["check"]["warnings"])
    assert run("--check", "--strict").exit_code == 1
    assert run("--check", "--strict", "--mask-threshold", "127").exit_code == 0
    assert run("--mask-threshold", "127").exit_code == 2
    assert run("--check", "--mask-threshold", "-1").exit_code == 2


def test_masks_without_scipy(monkeypatch):
    """The code in checkpoints needs NumPy and Pillow only."""
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    mask = square(3, 3, 1) | square(50, 50, 1)
    photo = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    labels = ViP2ClipImageProcessor(size=16)(photo, segmentation_maps=mask)["mask_labels"][0]
    assert labels.sum() == 2
    lost = ViP2ClipImageProcessor(size=16, keep_small_regions=False)
    assert lost(photo, segmentation_maps=mask)["mask_labels"][0].sum() == 0


def test_options_are_saved_with_the_image_processor(tmp_path):
    """Defaults are not, so that earlier versions read the file."""
    options = {"mask_channel": "red", "mask_invert": True, "mask_orientation": "own", "keep_small_regions": False}
    ViP2ClipImageProcessor(size=16, mask_threshold=3, **options).save_pretrained(tmp_path / "a")
    loaded = ViP2ClipImageProcessor.from_pretrained(tmp_path / "a")
    assert MaskOptions.of(loaded) == MaskOptions(3, "red", True, "own", False)
    ViP2ClipImageProcessor(size=16).save_pretrained(tmp_path / "b")
    assert not set(options) & set(json.loads((tmp_path / "b" / "preprocessor_config.json").read_text()))
