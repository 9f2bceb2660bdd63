"""Records of trainings: training datasets, recipe, and the data that an epoch is chosen on."""

import copy
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image as ImageFeature, Value
from transformers import Trainer, TrainingArguments

from helpers.benchmark_trees import mvtec_official
from helpers.tiny import TINY, change_weights
from helpers.training import assert_same_tensors, build_trainer, train_arguments, write_train_and_eval_sets
from vip2clip_hf import ViP2ClipForAnomalyDetection, save_checkpoint
from vip2clip_hf.data.collator import ViP2ClipCollator
from vip2clip_hf.data.loading import load_benchmark, load_folder
from vip2clip_hf.data.provenance import describe_training_set, find_training_overlap
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.training.contents import content_hash, describe_contents
from vip2clip_hf.training.parsing import parse_arguments
from vip2clip_hf.training.recipe import describe_recipe
from vip2clip_hf.training.run import run_training
from vip2clip_hf.training.run_record import RECORD_FILE, RunRecord
from vip2clip_hf.training.selection import check_selection_value
from vip2clip_hf.training.trainer import ViP2ClipTrainer


@pytest.fixture
def dataset(tmp_path):
    return load_folder(write_dataset(tmp_path / "mine", ("stripes",), num_normal=3, num_anomalous=1, size=24))


def card_of(folder: Path) -> str:
    return (Path(folder) / "README.md").read_text(encoding="utf-8")


# Training datasets


@pytest.mark.parametrize("save", ["trainer", "save_checkpoint", "save_pretrained", "checkpoint"])
def test_fine_tuning_adds_its_data(clip, image_processor, dataset, tmp_path, save):
    parent = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    parent.provenance.training_sets = [{"name": "earlier", "num_images": 3, "num_anomalous_images": 1}]
    save_checkpoint(parent, image_processor, tmp_path / "parent")
    trainer = build_trainer(
        clip, image_processor, tmp_path / "run", dataset, save_strategy="epoch", num_train_epochs=1
    )
    trainer = ViP2ClipTrainer(
        ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "parent"), trainer.args, image_processor, dataset
    )
    trainer.train()
    if save == "trainer":
        trainer.save_model(tmp_path / "saved")
    elif save == "save_checkpoint":
        save_checkpoint(trainer.model, image_processor, tmp_path / "saved")
    elif save == "save_pretrained":
        trainer.model.save_pretrained(tmp_path / "saved")
    else:
        (tmp_path / "run" / "checkpoint-1").rename(tmp_path / "saved")
    options = {"backbone": clip} if save == "checkpoint" else {}
    saved = ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "saved", **options)
    assert [entry["name"] for entry in saved.provenance.training_sets] == ["earlier", "mine"]
    assert saved.provenance.training_recorded
    assert find_training_overlap(saved.provenance.training_sets, dataset)
    if save != "save_pretrained":
        assert "- mine, test split: 7 images, 4 of them anomalous" in card_of(tmp_path / "saved")


def test_the_name_of_a_dataset(clip, image_processor, dataset, tmp_path):
    """Of the folder or the benchmark it was loaded from, also after a selection."""
    mvtec = load_benchmark("mvtec", mvtec_official(tmp_path / "MVTec").root)
    rows = {"mine": dataset.select(range(6)), "mvtec": mvtec, "given": dataset}
    for name, rows_of_name in rows.items():
        given = [{"name": "given"}] if name == "given" else None
        trainer = build_trainer(clip, image_processor, tmp_path / name, rows_of_name, num_train_epochs=1, max_steps=1)
        trainer.training_sets = given
        trainer.train()
        (entry,) = trainer.model.provenance.training_sets
        assert entry["name"] == name
        assert entry.get("benchmark") == ("mvtec" if name == "mvtec" else None)
        trainer.train()
        assert len(trainer.model.provenance.training_sets) == 1


def plainly_trained(model, image_processor, dataset, folder):
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder), remove_unused_columns=False, report_to="none", use_cpu=True, max_steps=1,
            disable_tqdm=True, save_strategy="no", learning_rate=1e-3,
        ),
        train_dataset=dataset,
        data_collator=ViP2ClipCollator(image_processor),
    ).train()  # fmt: skip


@pytest.mark.parametrize("recorded", [True, False])
def test_a_plain_trainer_is_not_recorded(clip, image_processor, dataset, tmp_path, caplog, recorded):
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    plainly_trained(model, image_processor, dataset, tmp_path / "run")
    if recorded:
        model.provenance.training_sets.append(describe_training_set(dataset, "mine"))
    caplog.clear()
    save_checkpoint(model, image_processor, tmp_path / "saved")
    saved = ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "saved")
    assert saved.provenance.training_recorded is recorded
    assert ("is saved as not recorded" in caplog.text) is not recorded
    assert ("- Not recorded: the weights were also trained" in card_of(tmp_path / "saved")) is not recorded
    # It stays so, also if it is trained further by the trainer.
    trainer = build_trainer(clip, image_processor, tmp_path / "more", dataset, num_train_epochs=1)
    trainer = ViP2ClipTrainer(saved, trainer.args, image_processor, dataset)
    trainer.train()
    trainer.save_model()
    again = ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "more")
    assert again.provenance.training_recorded is recorded
    assert [entry["name"] for entry in again.provenance.training_sets] == ["mine"]


def test_training_elsewhere_before_the_trainer_is_not_recorded(clip, image_processor, dataset, tmp_path):
    trainer = build_trainer(clip, image_processor, tmp_path / "run", dataset, num_train_epochs=1)
    plainly_trained(trainer.model, image_processor, dataset, tmp_path / "plain")
    trainer.train()
    assert not trainer.model.provenance.training_recorded


def test_lora_that_is_merged_is_not_recorded(clip, image_processor, dataset, tmp_path):
    """On CLIP only: the adapters do not change."""
    peft = pytest.importorskip("peft")
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    config = peft.LoraConfig(r=2, target_modules=r"clip\.vision_model.*q_proj", init_lora_weights=False)
    merged = peft.get_peft_model(model, config).merge_and_unload()
    save_checkpoint(merged, image_processor, tmp_path / "saved")
    assert not ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "saved").provenance.training_recorded


def test_a_model_that_is_not_trained_is_recorded(clip, image_processor, tmp_path):
    """Also after a conversion to another dtype."""
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    for number, change in enumerate((lambda m: m, lambda m: m.half(), lambda m: m.double(), copy.deepcopy)):
        save_checkpoint(change(copy.deepcopy(model)), image_processor, tmp_path / str(number))
        content = json.loads((tmp_path / str(number) / "provenance.json").read_text())
        assert content == {"backbone_id": None, "backbone_revision": None, "training_sets": []}
    change_weights(model)
    save_checkpoint(model, image_processor, tmp_path / "changed")
    assert json.loads((tmp_path / "changed" / "provenance.json").read_text())["training_recorded"] is False


def test_converted_checkpoints_are_not_recorded(release_model):
    assert not release_model.provenance.training_recorded


# The recipe


def test_the_recipe_is_what_was_run(clip, image_processor, dataset, tmp_path):
    trainer = build_trainer(
        clip, image_processor, tmp_path / "run", dataset, max_steps=3, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, warmup_steps=2, lr_scheduler_type="constant_with_warmup", max_grad_norm=1.0,
        data_seed=7, augmentation=["flip"], augmentation_views=2, save_strategy="steps", save_steps=2,
    )  # fmt: skip
    trainer.train()
    recipe = describe_recipe(trainer)
    assert recipe["optimizer"].startswith("Adam, constant_with_warmup learning rates 0.001 (prompts, ")
    assert recipe["optimizer"].endswith("2 warm-up steps, weight decay 0, gradients clipped to 1")
    assert recipe["batches"] == "4 images, 1.5 epochs, 3 steps (2 per batch x 2 accumulated batches)"
    assert recipe["order of the data"].endswith("from seed 7")
    assert (recipe["seed"], recipe["augmentation"], recipe["run"]) == (111, "flip, 2 views", trainer.run.run_id)
    assert "SchedulerType" not in str(recipe)
    trainer.save_model()
    assert "- batches: 4 images, 1.5 epochs, 3 steps (2 per batch" in card_of(tmp_path / "run")


def test_a_training_that_stops_early_and_is_resumed(clip, image_processor, dataset, tmp_path):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= 2

    options = {"save_strategy": "epoch", "num_train_epochs": 4}
    trainer = build_trainer(clip, image_processor, tmp_path / "run", dataset, callbacks=[Stop()], **options)
    trainer.train()
    assert describe_recipe(trainer)["batches"] == "8 images, 2 epochs, 2 steps; stopped before the planned 4 steps"
    resumed = build_trainer(
        clip, image_processor, tmp_path / "run", dataset, learning_rate=0.01, allow_changed_recipe=True, **options
    )
    resumed.train(resume_from_checkpoint=True)
    recipe = describe_recipe(resumed)
    assert recipe["batches"] == "8 images, 4 epochs, 4 steps"
    assert recipe["resumed"].startswith("at step 2 with other settings: learning_rate (was 0.001, then 0.01)")
    assert resumed.run.run_id == trainer.run.run_id


def test_an_allowed_rate_has_an_effect(clip, image_processor, dataset, tmp_path):
    """The state of the optimizer contains the earlier rate."""
    options = {"num_train_epochs": 2, "save_strategy": "epoch"}
    build_trainer(clip, image_processor, tmp_path / "run", dataset, **{**options, "num_train_epochs": 1}).train()
    weights = []
    for rate in (1e-3, 0.0):
        resumed = build_trainer(
            clip, image_processor, tmp_path / f"resumed{rate}", dataset, learning_rate=rate,
            perception_learning_rate=rate / 100, allow_changed_recipe=True, **options,
        )  # fmt: skip
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
        weights.append(resumed.model.adapter_state_dict())
    before = ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "run" / "checkpoint-1", backbone=clip)
    assert_same_tensors(weights[1], before.adapter_state_dict(), 0)
    assert (weights[0]["prompt_learner.normal_context"] - weights[1]["prompt_learner.normal_context"]).abs().max() > 0


def test_the_record_of_a_run(clip, image_processor, dataset, tmp_path):
    trainer = build_trainer(
        clip, image_processor, tmp_path / "run", dataset, save_strategy="epoch", num_train_epochs=1
    )
    trainer.train()
    records = [RunRecord.read(tmp_path / "run"), RunRecord.read(tmp_path / "run" / "checkpoint-1")]
    assert {record.run_id for record in records} == {trainer.run.run_id}
    assert records[0].data["training data: images"].startswith("7 (")
    assert (records[0].recipe["learning_rate"], records[0].recipe["images_per_step"]) == (0.001, 8)
    assert records[0].versions["torch"] == torch.__version__
    assert str(tmp_path) not in (tmp_path / "run" / RECORD_FILE).read_text()
    assert not (tmp_path / "run" / ".training.lock").exists()
    trainer.save_model()
    assert {"config.json", "model.safetensors", "provenance.json"} <= set(RunRecord.read(tmp_path / "run").files)


def test_an_undefined_value_of_the_metric_stops_the_training():
    """It could become undefined only in the evaluation."""
    results = {"": {"mean": {"undefined": {"pixel_auroc": "no anomalous pixels (x)"}}}}
    with pytest.raises(
        ValueError, match=r"'pixel_auroc', which is undefined on the evaluation data: no anomalous pix"
    ):
        check_selection_value("eval_pixel_auroc", float("nan"), results)
    check_selection_value("pixel_auroc", 0.0, results)


def test_contents_of_images_at_urls():
    """They are not downloaded, and cannot be cached."""
    images = [{"bytes": None, "path": f"https://host/{number}.png"} for number in range(2)]
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    found = describe_contents(Dataset.from_dict({"image": images, "label": [0, 1]}, features))
    assert found["images"].startswith("2 (")
    other = describe_contents(Dataset.from_dict({"image": images[::-1], "label": [0, 1]}, features))
    assert other["images"] != found["images"]
    with pytest.raises(OSError, match="is a URL, whose contents can change; expected a file"):
        content_hash(images[0])


# The command


@pytest.mark.parametrize("metric", ["pixel_auroc", pytest.param("more_pixel_auroc", marks=pytest.mark.slow)])
def test_results_on_data_that_the_epoch_was_chosen_on(clip_folder, tmp_path, metric):
    roots = write_train_and_eval_sets(tmp_path)
    more = write_dataset(tmp_path / "more", ("grains",), num_normal=2, num_anomalous=1, size=48, seed=2)
    arguments = train_arguments(tmp_path, clip_folder, roots, "--load_best_model_at_end", "true")
    arguments += ["--eval_strategy", "epoch", "--eval_data", str(roots[1]), f"more={more}", "--max_steps", "2"]
    report = run_training(*parse_arguments([*arguments, "--metric_for_best_model", metric]))
    chosen = {result["name"]: bool(result["chosen_on"]) for result in report["results"]}
    assert chosen == {"eval": metric == "pixel_auroc", "more": True}
    card = card_of(tmp_path / "out")
    note = f"- more: the epoch was chosen on this dataset, by {metric}, so its results are optimistic."
    assert note in card
    assert ("- eval: the epoch was chosen on this dataset" in card) is (metric == "pixel_auroc")
    assert "more (used to choose the epoch)" in card
    assert "- batches: 8 images, 1 epochs, 2 steps" in card
    assert f"with the best {metric} (" in card
    assert json.loads((tmp_path / "out" / "results.json").read_text())["results"][1]["chosen_on"]
    # A second training does not replace the first one.
    with pytest.raises(OSError, match="of another training run"):
        run_training(*parse_arguments(arguments))
    report = run_training(*parse_arguments([*arguments, "--overwrite_output_dir", "true", "--max_steps", "1"]))
    assert report["recipe"]["batches"] == "8 images, 0.5 epochs, 1 steps"


def test_results_of_the_user_are_kept(clip_folder, tmp_path):
    roots = write_train_and_eval_sets(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("mine")
    arguments = train_arguments(tmp_path, clip_folder, roots)
    for more in ([], ["--overwrite_output_dir", "true"], ["--resume_from_checkpoint", "true"]):
        with pytest.raises(OSError, match=r"out' contains results\.json, which this training would replace"):
            run_training(*parse_arguments([*arguments, *more]))
    assert (tmp_path / "out" / "results.json").read_text() == "mine"
