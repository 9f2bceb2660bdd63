import copy
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.tiny import change_weights
from helpers.training import assert_same_tensors, build_trainer, losses_of, with_sgd, write_training_set
from vip2clip_hf import DecisionConfig, ReferenceBank, ViP2ClipForAnomalyDetection
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation.metrics import METRICS
from vip2clip_hf.evaluation.model_evaluation import evaluate_model
from vip2clip_hf.training import trainer as trainer_module
from vip2clip_hf.training.arguments import ViP2ClipTrainingArguments
from vip2clip_hf.training.checks import check_training_data
from vip2clip_hf.training.resuming import is_complete_checkpoint, last_complete_checkpoint
from vip2clip_hf.training.trainer import ViP2ClipTrainer


@pytest.fixture
def root(tmp_path):
    return write_training_set(tmp_path / "set")


@pytest.fixture
def dataset(root):
    return load_folder(root)


@pytest.fixture
def build(clip, image_processor, dataset, tmp_path):
    """Build a trainer, by default on the dataset above."""

    def build(train_dataset=dataset, eval_dataset=None, output_dir=tmp_path / "run", **options):
        return build_trainer(clip, image_processor, output_dir, train_dataset, eval_dataset, **options)

    return build


# The recipe


def test_the_authors_recipe_is_the_default(build, tmp_path):
    args = ViP2ClipTrainingArguments(output_dir=str(tmp_path))
    assert (args.per_device_train_batch_size, args.num_train_epochs, args.seed) == (8, 10, 111)
    assert (args.lr_scheduler_type, args.max_grad_norm, args.weight_decay) == ("constant", 0.0, 0.0)
    trainer = build()
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.Adam
    others, perception = optimizer.param_groups
    assert (others["lr"], perception["lr"]) == (1e-3, pytest.approx(1e-5))
    assert others["betas"] == (0.9, 0.999)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in perception["params"]} == {"fine_grained_perception"}
    assert {names[id(p)].split(".")[0] for p in others["params"]} == {"prompt_learner", "image_conditioned_adapter"}
    assert ViP2ClipTrainingArguments(output_dir=str(tmp_path), learning_rate=0.1).perception_learning_rate == 1e-3
    groups = build(weight_decay=0.5, adam_beta1=0.8, perception_learning_rate=3.0).create_optimizer().param_groups
    assert all(group["weight_decay"] == 0.5 and group["betas"] == (0.8, 0.999) for group in groups)
    assert groups[1]["lr"] == 3.0


def test_training_removes_a_calibration(build):
    """The calibration belongs to the previous weights."""
    trainer = build(num_train_epochs=1)
    trainer.model.decision = DecisionConfig(0.7, calibration={"num_images": 1}, image_scores=[0.5])
    trainer.train()
    assert trainer.model.decision == trainer.image_processor.decision == DecisionConfig(0.7)


def test_training_removes_references(build, image_processor, dataset, caplog, tmp_path):
    """They belong to the previous weights. Checkpoints must not contain them."""
    images = [row["image"] for row in dataset.select(range(2))]
    plain = build(num_train_epochs=1, output_dir=tmp_path / "plain", eval_dataset=dataset, eval_strategy="epoch")
    plain.train()
    trainer = build(
        num_train_epochs=1, eval_dataset=dataset, eval_strategy="epoch", save_strategy="epoch",
        cache_features=str(tmp_path / "cache"),
    )  # fmt: skip
    trainer.model.references = ReferenceBank.from_images(trainer.model, image_processor, images)
    trainer.model.references.save_pretrained(tmp_path / "run" / "earlier")
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "references.json").exists()
    trainer.train()
    assert trainer.model.references is None
    assert "the references are removed" in caplog.text
    trainer.save_model(str(tmp_path / "saved"))
    assert not list((tmp_path / "saved").glob("references*"))
    assert not list((tmp_path / "run").glob("checkpoint-*/references*"))
    # References have changed neither the loss nor the evaluation during training.
    assert losses_of(trainer) == pytest.approx(losses_of(plain))
    scores = [
        [entry["eval_pixel_auroc"] for entry in one.state.log_history if "eval_pixel_auroc" in entry]
        for one in (trainer, plain)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)  # the cache is in float16


def test_references_do_not_change_the_loss(model, image_processor, batch, photo):
    model.references = ReferenceBank.from_images(model, image_processor, [photo])
    combined = model(**batch)
    assert combined.reference_maps is not None
    model.train()
    found = model(**batch)
    assert found.reference_maps is None
    model.references = None
    expected = model(**batch)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(combined.loss, expected.loss)


def test_parts_of_the_loss_are_logged(build):
    arguments = {"num_train_epochs": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    for variant in ("paper", "release"):
        trainer = build(variant=variant, **arguments)
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert len(logs) == 2
        for entry in logs:
            parts = [entry[f"loss_{name}"] for name in ("image", "focal", "dice_anomalous", "dice_normal")]
            assert sum(parts) == pytest.approx(entry["loss"], abs=1e-4)
            assert min(parts) > 0


def test_each_image_once_per_epoch_and_a_partial_last_batch(build, monkeypatch):
    trainer, seen = build(num_train_epochs=2, per_device_train_batch_size=13), []
    compute = trainer.compute_loss

    def watching(model, inputs, **kwargs):
        seen.append(list(inputs["image_ids"]))
        return compute(model, inputs, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", watching)
    assert np.isfinite(trainer.train().training_loss)
    assert [len(batch) for batch in seen] == [13, 1, 13, 1]  # including a batch of one
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == sorted(trainer.train_dataset.image_ids)
    assert seen[0] != seen[2]


# Splits of one large batch


@pytest.mark.parametrize("batch_size", [4, 2, 1])
def test_accumulation_equals_a_large_batch(build, batch_size):
    """Images without a mask are distributed unevenly over the batches, and the last step is not full."""
    whole = with_sgd(build(num_train_epochs=2))
    whole.train()
    parts = with_sgd(
        build(num_train_epochs=2, per_device_train_batch_size=batch_size, gradient_accumulation_steps=8 // batch_size)
    )
    parts.train()
    assert whole.state.global_step == parts.state.global_step == 4
    assert_same_tensors(whole.model.adapter_state_dict(), parts.model.adapter_state_dict(), 1e-5)
    assert losses_of(whole) == pytest.approx(losses_of(parts), abs=1e-4)


# The cache


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-2)])
@pytest.mark.parametrize("variant", ["paper", "release"])
def test_the_cache_changes_nothing(build, dataset, dtype, tolerance, variant, tmp_path):
    plain = build(variant=variant, num_train_epochs=3, logging_strategy="steps", logging_steps=1)
    plain.train()
    cached = build(
        variant=variant, num_train_epochs=3, logging_strategy="steps", logging_steps=1,
        cache_features=str(tmp_path / "cache"), cache_dtype=dtype,
    )  # fmt: skip
    cached.train()
    assert len(losses_of(plain)) == 6
    assert losses_of(cached) == pytest.approx(losses_of(plain), abs=tolerance)
    if dtype == "float32":
        assert_same_tensors(plain.model.adapter_state_dict(), cached.model.adapter_state_dict(), 1e-4)
    found = [evaluate_model(trainer.model, trainer.image_processor, dataset)["mean"] for trainer in (plain, cached)]
    for metric in METRICS:
        assert found[1][metric] == pytest.approx(found[0][metric], abs=2e-2), metric


def test_cached_training_runs_the_backbone_once(build, monkeypatch, tmp_path):
    trainer = build(num_train_epochs=3, cache_features=str(tmp_path / "cache"))
    seen, original = [], trainer.model.get_image_features

    def counting(pixel_values, **options):
        seen.append(len(pixel_values))
        return original(pixel_values, **options)

    monkeypatch.setattr(trainer.model, "get_image_features", counting)
    trainer.train()
    assert sum(seen) == 14


def test_cached_views_equal_uncached_views(build, tmp_path):
    arguments = {"augmentation": ["flip", "cut_paste"], "augmentation_views": 2, "num_train_epochs": 3}
    plain, cached = build(**arguments), build(**arguments, cache_features=str(tmp_path / "c"), cache_dtype="float32")
    plain.train()
    cached.train()
    assert losses_of(cached) == pytest.approx(losses_of(plain), abs=1e-4)
    other = build(augmentation=["flip"], num_train_epochs=3)
    other.train()
    assert losses_of(other)[1] != pytest.approx(losses_of(plain)[1], abs=1e-4)


# Checkpoints


def test_checkpoints_contain_adapters_and_load(build, clip, image_processor, dataset):
    trainer = build(num_train_epochs=2, save_strategy="epoch")
    trainer.train()
    folder = Path(trainer.args.output_dir, "checkpoint-4")
    assert not any(name.startswith("clip.") for name in load_file(folder / "model.safetensors"))
    assert not (folder / "training_args.bin").exists()
    model = ViP2ClipForAnomalyDetection.from_pretrained(folder, backbone=clip)
    assert_same_tensors(model.state_dict(), trainer.model.state_dict(), 0)
    trainer.save_model()
    whole = ViP2ClipForAnomalyDetection.from_pretrained(trainer.args.output_dir)
    assert_same_tensors(whole.state_dict(), trainer.model.state_dict(), 0)


def test_resumed_equals_uninterrupted(build, tmp_path):
    whole = build(num_train_epochs=4, save_strategy="steps", save_steps=3, save_total_limit=None)
    whole.train()
    for step in (3, 6):  # in the middle of an epoch, and at the end of one
        resumed = build(num_train_epochs=4, output_dir=str(tmp_path / f"resumed{step}"))
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert_same_tensors(whole.model.adapter_state_dict(), resumed.model.adapter_state_dict(), 0)
        assert losses_of(resumed)[-1] == losses_of(whole)[-1]


def test_complete_checkpoints(build, tmp_path):
    trainer = build(num_train_epochs=2, save_strategy="epoch")
    trainer.train()
    run_folder = tmp_path / "run"
    last = run_folder / "checkpoint-4"
    assert last_complete_checkpoint(run_folder) == str(last)
    state = (last / "trainer_state.json").read_text()
    for damaged in (state[: len(state) // 2], None):
        (last / "trainer_state.json").unlink()
        if damaged is not None:
            (last / "trainer_state.json").write_text(damaged)
        assert not is_complete_checkpoint(last)
        assert last_complete_checkpoint(run_folder) == str(run_folder / "checkpoint-2")
    with pytest.raises(
        OSError, match=r"not a complete checkpoint.*last complete checkpoint in the same folder is .*checkpoint-2\.$"
    ):
        build().train(resume_from_checkpoint=str(last))
    with pytest.raises(OSError, match=r"absent' is not a complete checkpoint of a training run\.$"):
        build().train(resume_from_checkpoint=str(tmp_path / "absent"))
    assert last_complete_checkpoint(tmp_path / "absent") is None


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(build, monkeypatch, tmp_path):
    first = build(num_train_epochs=1, save_strategy="epoch")
    first.train()
    weights = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    again = build(num_train_epochs=2, save_strategy="epoch", save_total_limit=1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            again.train(resume_from_checkpoint=True)
    assert last_complete_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-2")
    assert_same_tensors(load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors"), weights, 0)
    again = build(num_train_epochs=2, save_strategy="epoch", save_total_limit=1)
    again.train(resume_from_checkpoint=True)
    assert last_complete_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-4")


def test_a_checkpoint_of_another_model_is_refused(build, clip, image_processor, tmp_path):
    build(num_train_epochs=1, save_strategy="epoch").train()
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    trainer = build()
    trainer.model.clip = copy.deepcopy(trainer.model.clip)  # its weights are shared with the fixture
    change_weights(trainer.model.clip)
    with pytest.raises(ValueError, match="trained with another CLIP backbone"):
        trainer.train(resume_from_checkpoint=checkpoint)
    other = build()
    other.model.config.image_score = "mean_logits"
    with pytest.raises(ValueError, match="with image_score 'pooled_features', but this model has 'mean_logits'"):
        other.train(resume_from_checkpoint=checkpoint)
    weights = load_file(Path(checkpoint, "model.safetensors"))
    weights["prompt_learner.normal_context"] = weights["prompt_learner.normal_context"][:3].clone()
    save_file(weights, Path(checkpoint, "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit this model: prompt_learner\.normal_context differ"):
        build().train(resume_from_checkpoint=checkpoint)


def test_a_run_of_version_0_1_resumes(build, tmp_path):
    """Its checkpoints have the old name of a weight and of three fields."""
    build(num_train_epochs=1, save_strategy="epoch").train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    weights = load_file(checkpoint / "model.safetensors")
    weights["prompt_learner.image_tokens"] = weights.pop("prompt_learner.object_tokens")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    for old, new in (
        ("num_image_tokens", "num_object_tokens"),
        ("perception_num_heads", "fgp_num_heads"),
        ("perception_scaled", "fgp_scaled"),
    ):
        config[old] = config.pop(new)
    (checkpoint / "config.json").write_text(json.dumps(config))
    resumed, expected = build(num_train_epochs=2), build(num_train_epochs=2, output_dir=tmp_path / "expected")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    expected.train()
    assert_same_tensors(resumed.model.adapter_state_dict(), expected.model.adapter_state_dict(), 1e-6)


def test_training_stops_if_the_loss_is_not_finite(build, monkeypatch, tmp_path):
    trainer = build(num_train_epochs=3, save_strategy="epoch", per_device_train_batch_size=4)
    forward, calls = trainer.model.forward, itertools.count(1)

    def diverging(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        if next(calls) == 6:
            outputs.loss_components["focal"] = outputs.loss_components["focal"] * math.nan
        return outputs

    monkeypatch.setattr(trainer.model, "forward", diverging)
    with pytest.raises(RuntimeError, match=r"at step 6; the images of the batch are \['.*png'\].*checkpoint-4"):
        trainer.train()
    assert last_complete_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-4")
    weights = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


# Evaluation during training


def test_evaluation_during_training_and_the_best_checkpoint(build, dataset, tmp_path, monkeypatch):
    other = load_folder(write_dataset(tmp_path / "o", ("waves",), num_normal=2, num_anomalous=1, size=48, seed=9))
    values = iter([0.9, 0.5, 0.7])
    real = evaluate_model

    def evaluated(*args, **kwargs):
        result = real(*args, **kwargs)
        if len(args[2]) == len(other):
            result["mean"]["pixel_aupro"] = next(values, 0.0)
        return result

    monkeypatch.setattr(trainer_module, "evaluate_model", evaluated)
    trainer = build(
        eval_dataset={"mine": dataset, "other": other}, num_train_epochs=3, eval_strategy="epoch",
        save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="other_pixel_aupro",
        save_total_limit=1,
    )  # fmt: skip
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "eval_pixel_auroc" in entry]
    assert [entry["eval_other_pixel_aupro"] for entry in logs] == [0.9, 0.5, 0.7]
    for entry in logs:
        both = [entry["eval_mine_image_auroc"], entry["eval_other_image_auroc"]]
        assert entry["eval_image_auroc"] == pytest.approx(np.mean(both))
    assert trainer.state.best_metric == 0.9
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    best = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    assert_same_tensors(trainer.model.adapter_state_dict(), best, 0)
    # The metrics of the trainer are those of evaluate_model.
    monkeypatch.undo()
    metrics = trainer.evaluate(dataset)
    expected = real(trainer.model, trainer.image_processor, dataset)["mean"]
    assert all(metrics[f"eval_{metric}"] == expected[metric] for metric in METRICS)


def test_bad_arguments(tmp_path):
    def arguments(**options):
        return ViP2ClipTrainingArguments(output_dir=str(tmp_path), **options)

    with pytest.raises(ValueError, match="optim is 'sgd'"):
        arguments(optim="sgd")
    with pytest.raises(ValueError, match=r"label_smoothing_factor is 0\.1; expected 0"):
        arguments(label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="remove_unused_columns is True; expected False"):
        arguments(remove_unused_columns=True)
    with pytest.raises(ValueError, match="cache_dtype is 'int8'"):
        arguments(cache_dtype="int8")
    for views in (None, 1):
        with pytest.raises(ValueError, match=f"augmentation_views is {views}; expected an integer of at least 2"):
            arguments(cache_features="cache", augmentation=["flip"], augmentation_views=views)
    with pytest.raises(ValueError, match="augmentation_views is 0; expected an integer of at least 1"):
        arguments(augmentation=["flip"], augmentation_views=0)
    with pytest.raises(ValueError, match="augmentation_views is 3, but augmentation is not set"):
        arguments(augmentation_views=3)
    with pytest.raises(ValueError, match="expected some of flip"):
        arguments(augmentation=["blur"])
    with pytest.raises(ValueError, match=r"metric_for_best_model is 'pixel_aupr'.*did you mean 'pixel_aupro'"):
        arguments(
            metric_for_best_model="pixel_aupr", load_best_model_at_end=True, eval_strategy="epoch",
            save_strategy="epoch",
        )  # fmt: skip
    best = arguments(load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch")
    assert (best.metric_for_best_model, best.greater_is_better) == ("pixel_auroc", True)


# Data


def test_checks_of_training_data(build, root, caplog, tmp_path):
    dataset = load_folder(root)
    normal = dataset.select([position for position, label in enumerate(dataset["label"]) if label == 0])
    with pytest.raises(ValueError, match=r"All 6 training images are normal.*--augmentation cut_paste"):
        build(normal)
    with pytest.raises(ValueError, match="contains no images"):
        build(dataset.select([]))
    flat = load_folder(root / "weave" / "test" / "good")
    with pytest.raises(ValueError, match="3 of 3 training images have no label"):
        build(flat)
    with pytest.raises(ValueError, match="train_dataset is None"):
        build(None).train()
    with pytest.raises(ValueError, match="eval_dataset is None"):
        build().evaluate()
    with pytest.raises(ValueError, match=r"needs train_dataset and args\.cache_features"):
        build().cache_features()
    assert check_training_data(dataset)
    caplog.clear()
    for path in root.rglob("*_mask.png"):
        path.unlink()
    assert not check_training_data(load_folder(root))
    assert "only the image loss is trained" in caplog.text
    trainer = build(load_folder(root), num_train_epochs=1)
    trainer.train()
    assert "loss_focal" not in trainer.state.log_history[0]
    assert trainer.state.log_history[0]["loss"] == pytest.approx(trainer.state.log_history[0]["loss_image"])


def test_normal_images_with_synthetic_defects(build, root):
    dataset = load_folder(root)
    normal = dataset.select([position for position, label in enumerate(dataset["label"]) if label == 0])
    trainer = build(normal, num_train_epochs=6, augmentation=["cut_paste"])
    trainer.train()
    assert all(entry["loss_focal"] > 0 for entry in trainer.state.log_history if "loss" in entry)


def test_mask_threshold_of_each_row(build, root, image_processor):
    dataset = load_folder(root)
    high = dataset.add_column("mask_threshold", [255] * len(dataset))
    trainer = build(high)
    rows = [trainer.train_dataset[position] for position in range(14)]
    assert trainer.data_collator(rows)["mask_labels"].sum() == 0
    low = build(dataset.add_column("mask_threshold", [0] * len(dataset)))
    rows = [low.train_dataset[position] for position in range(14)]
    batch, plain = low.data_collator(rows), build().data_collator([dataset[position] for position in range(14)])
    assert torch.equal(batch["mask_labels"], plain["mask_labels"])
    assert plain["mask_labels"].sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trained_weights_in_half_precision_raise_an_error(model, image_processor, tmp_path, dtype):
    arguments = ViP2ClipTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    model.to(dtype)
    ViP2ClipTrainer(model, arguments, image_processor)  # the adapters are in float32
    context = model.prompt_learner.normal_context
    context.data = context.data.to(dtype)
    message = r"1 trained weights are in half precision \(prompt_learner\.normal_context\)"
    with pytest.raises(ValueError, match=message):
        ViP2ClipTrainer(model, arguments, image_processor)


def test_trained_clip_raises_an_error(model, image_processor, tmp_path):
    """It would be trained, but not saved, and not used with the feature cache."""
    arguments = ViP2ClipTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    model.clip.vision_model.post_layernorm.requires_grad_(True)
    with pytest.raises(ValueError, match=r"2 weights of CLIP .*post_layernorm.*freeze_backbone"):
        ViP2ClipTrainer(model, arguments, image_processor)
    model.freeze_backbone()
    ViP2ClipTrainer(model, arguments, image_processor)


@pytest.mark.parametrize("cache", [False, True])
def test_half_precision(build, cache, tmp_path):
    """The towers run in bfloat16 and the losses in float32. With the cache, the cache pass runs in bfloat16."""
    more = {"cache_features": str(tmp_path / "cache")} if cache else {}
    half, full = build(num_train_epochs=2, bf16=True, **more), build(num_train_epochs=2)
    half.train()
    full.train()
    assert losses_of(half) == pytest.approx(losses_of(full), abs=2e-2)
    assert losses_of(half) != losses_of(full)
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())


def test_progress_shows_the_loss(build, capfd):
    trainer = build(num_train_epochs=1, disable_tqdm=False)
    trainer.train()
    assert "loss=" in capfd.readouterr().err


def test_state_is_json(build, tmp_path):
    trainer = build(num_train_epochs=1, save_strategy="epoch")
    trainer.train()
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["log_history"][0]["loss_image"] > 0
