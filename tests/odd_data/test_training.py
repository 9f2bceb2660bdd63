"""Trainings that are resumed with other settings or data, and output folders with other or damaged files."""

import copy
import gc
import json
import shutil
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from filelock import FileLock
from PIL import Image
from transformers import CLIPModel

from helpers.odd_data import Case, parametrize, run
from helpers.tiny import TINY, tiny_clip_config
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor, save_checkpoint
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.training.arguments import ViP2ClipTrainingArguments
from vip2clip_hf.training.resuming import last_complete_checkpoint, run_of
from vip2clip_hf.training.run_folder import RunFolder
from vip2clip_hf.training.run_record import RECORD_FILE, RunRecord
from vip2clip_hf.training.trainer import ViP2ClipTrainer


@lru_cache
def _model() -> ViP2ClipForAnomalyDetection:
    torch.manual_seed(5)
    return ViP2ClipForAnomalyDetection.from_clip(CLIPModel(tiny_clip_config()), **TINY)


@lru_cache
def _finished() -> Path:
    """A folder with a dataset of seven images and a run of two epochs with one step each."""
    folder = Path(tempfile.mkdtemp())
    write_dataset(folder / "set", ("stripes",), num_normal=3, num_anomalous=1, size=24)
    build(folder, num_train_epochs=2).train()
    return folder


def build(
    folder: Path, *, model: Any = None, rows: Any = None, evaluate: Any = None, processor: Any = None,
    mask_threshold: int | None = None, **arguments: Any,
) -> ViP2ClipTrainer:  # fmt: skip
    """Build a trainer whose initial weights are always the same."""
    defaults = {"output_dir": str(folder / "run"), "disable_tqdm": True, "use_cpu": True, "save_strategy": "epoch",
                "num_train_epochs": 3, "logging_strategy": "no"}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ViP2ClipTrainer(
            copy.deepcopy(_model()) if model is None else model,
            ViP2ClipTrainingArguments(**{**defaults, **arguments}),
            ViP2ClipImageProcessor(size=48) if processor is None else processor,
            load_folder(folder / "set") if rows is None else rows,
            evaluate,
            mask_threshold=mask_threshold,
        )


def prepare(folder: Path) -> Path:
    """Copy the dataset and the finished run to a folder."""
    shutil.copytree(_finished(), folder, dirs_exist_ok=True)
    return folder


def resume(folder: Path, checkpoint: Any = True, **arguments: Any) -> ViP2ClipTrainer:
    trainer = build(folder, **arguments)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def reaches(step: int, *names: str):
    """Check the last step, and the checkpoints of the run."""

    def check(trainer: ViP2ClipTrainer) -> None:
        assert trainer.state.global_step == step
        if names:
            own = sorted(
                p.name for p in trainer.run_folder.path.glob("checkpoint-*") if run_of(p) == trainer.run.run_id
            )
            assert own == sorted(names)

    return check


# Other settings


def other(name: str, expected: str | None = None, **arguments: Any) -> Case:
    """A setting that changes the result is refused, with both values."""
    expected = expected or rf"{next(iter(arguments))} \(was .*, now .*\)"
    return Case(
        f"resume with another {name}",
        lambda folder: resume(prepare(folder), model=_model(), **arguments),  # it is not changed
        rf"checkpoint-2' was trained with other settings: .*{expected}.*allow_changed_recipe",
    )


def same(name: str, says: str | None = None, **arguments: Any) -> Case:
    """A setting that does not change the result is not compared."""
    return Case(
        f"resume with another {name}", lambda folder: resume(prepare(folder), **arguments), reaches(3), says=says
    )


def frozen(folder: Path) -> ViP2ClipTrainer:
    model = copy.deepcopy(_model())
    model.prompt_learner.requires_grad_(False)
    return resume(prepare(folder), model=model)


def with_another_optimizer(folder: Path) -> ViP2ClipTrainer:
    trainer = build(prepare(folder))
    trainer.optimizer = torch.optim.SGD([p for p in trainer.model.parameters() if p.requires_grad], lr=0.1)
    trainer.train(resume_from_checkpoint=True)
    return trainer


def changed_rate(folder: Path) -> ViP2ClipTrainer:
    return resume(prepare(folder), learning_rate=0.5, weight_decay=0.2, allow_changed_recipe=True)


def with_a_schedule(folder: Path) -> ViP2ClipTrainer:
    """The rate depends on the length of the training."""
    prepare(folder)
    options = {"lr_scheduler_type": "cosine", "output_dir": str(folder / "cosine")}
    train_again(folder, num_train_epochs=2, **options)
    return resume(folder, max_steps=3, **options)


def has_the_new_rate(trainer: ViP2ClipTrainer) -> None:
    reaches(3)(trainer)
    groups = trainer.optimizer.param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.5, 0.2), (pytest.approx(0.005), 0.2)]
    assert trainer.run.resumed[-1]["changed"]["learning_rate"] == [0.001, 0.5]
    assert RunRecord.read(trainer.run_folder.path / "checkpoint-3").recipe["learning_rate"] == 0.5


SETTINGS = [
    other("learning rate", r"learning_rate \(was 0\.001, now 0\.1\)", learning_rate=0.1),
    other("perception learning rate", perception_learning_rate=0.1),
    other("batch size", r"images_per_step \(was 8, now 4\)", per_device_train_batch_size=4),
    other("accumulation", r"images_per_step \(was 8, now 16\)", gradient_accumulation_steps=2),
    other("seed", r"data_seed \(was 111, now 5\), seed \(was 111, now 5\)", seed=5),
    other("data seed", data_seed=3),
    other("weight decay", weight_decay=0.1),
    other("beta", adam_beta1=0.5),
    other("epsilon", adam_epsilon=1e-3),
    other("clipping", max_grad_norm=1.0),
    other("schedule", lr_scheduler_type="cosine"),
    other("warm-up", warmup_steps=2),
    other("precision", bf16=True),
    other("augmentation", augmentation=["flip"]),
    other("number of views", "augmentation_views", augmentation=["flip"], augmentation_views=2),
    other("way to skip data", ignore_data_skip=True),
    other("storage of features", r"features \(was computed, now cached\)", cache_features="/dev/null/cache"),
    other("mask threshold of the trainer", r"training data: mask_threshold \(was [\w.]+, now 127", mask_threshold=127),
    other("mean of the image processor", r"image_processor\.image_mean \(was", processor=ViP2ClipImageProcessor(
        size=48, image_mean=[0.5, 0.5, 0.5])),
    other("resampling", r"image_processor\.resample \(was 3, now 2\)", processor=ViP2ClipImageProcessor(
        size=48, resample=2)),
    other("two settings at once", r"learning_rate \(was 0\.001, now 0\.1\), .*seed \(was 111, now 5\)",
          learning_rate=0.1, seed=5),
    Case("resume with frozen weights", frozen, r"frozen_weights \(was \[\], now \['prompt_learner\.normal_context'"),
    Case("resume with another optimizer", with_another_optimizer, r"optimizer \(was Adam, now SGD\)"),
    Case("resume with another length of a schedule", with_a_schedule, r"length \(was 2 epochs, now 3 steps\)"),
    same("number of epochs", num_train_epochs=3),
    same("logging", logging_strategy="steps", logging_steps=1),
    same("limit of checkpoints", save_total_limit=1),
    same("evaluation batch", per_device_eval_batch_size=3),
    same("split of the batch", r"gradient_accumulation_steps \(was 1, now 2\).*by rounding",
         per_device_train_batch_size=4, gradient_accumulation_steps=2),
    Case("resume with a changed rate that is allowed", changed_rate, has_the_new_rate,
         says=r"Resuming with other settings: learning_rate \(was 0\.001, now 0\.5\)"),
]  # fmt: skip


# Other data


def other_data(name: str, change: Any, expected: str) -> Case:
    def act(folder: Path) -> ViP2ClipTrainer:
        rows = change(prepare(folder) / "set")
        return resume(folder, rows=rows, model=_model())

    return Case(f"resume with {name}", act, rf"other settings: .*training data: {expected}.*allow_changed_recipe")


def replace_image(root: Path) -> None:
    path = next(root.rglob("test/good/*.png"))
    Image.effect_noise((24, 24), 50).convert("RGB").save(path)


def replace_mask(root: Path) -> None:
    path = next(root.rglob("*_mask.png"))
    Image.new("L", (24, 24), 255).save(path)


def remove_mask(root: Path) -> None:
    next(root.rglob("*_mask.png")).unlink()


def remove_image(root: Path) -> None:
    next(root.rglob("test/good/*.png")).unlink()


def add_image(root: Path) -> None:
    path = next(root.rglob("test/good/*.png"))
    shutil.copy(path, path.with_name("999.png"))


def reorder(root: Path) -> Any:
    return load_folder(root).select(range(6, -1, -1))


def relabel(root: Path) -> Any:
    rows = load_folder(root)
    labels = list(rows["label"])
    return rows.remove_columns("label").add_column("label", [*labels[:-1], 0], feature=rows.features["label"])


def mask_threshold_column(root: Path) -> Any:
    rows = load_folder(root)
    return rows.add_column("mask_threshold", [127] * len(rows))


def renamed(folder: Path) -> ViP2ClipTrainer:
    prepare(folder)
    (folder / "set").rename(folder / "moved")
    return resume(folder, rows=load_folder(folder / "moved"))


def with_allowed_data(folder: Path) -> ViP2ClipTrainer:
    write_dataset(prepare(folder) / "more", ("waves",), num_normal=3, num_anomalous=1, size=24, seed=1)
    return resume(folder, rows=load_folder(folder / "more"), allow_changed_recipe=True)


def was_trained_on_both(trainer: ViP2ClipTrainer) -> None:
    names = [entry["name"] for entry in trainer.model.provenance.training_sets]
    assert names == ["set", "more"]
    trainer.save_model()
    saved = ViP2ClipForAnomalyDetection.from_pretrained(trainer.args.output_dir)
    assert [entry["name"] for entry in saved.provenance.training_sets] == names
    assert saved.provenance.training_recorded
    assert "training data: images" in Path(trainer.args.output_dir, "README.md").read_text(encoding="utf-8")


DATA = [
    other_data("an image replaced under its name", replace_image, r"images \(was 7 \(.*, now 7 \("),
    other_data("a mask replaced under its name", replace_mask, r"masks \(was 4 \(.*, now 4 \("),
    other_data("a mask removed", remove_mask, r"masks \(was 4 \(.*, now 3 \("),
    other_data("an image removed", remove_image, r"images \(was 7 \(.*, now 6 \("),
    other_data("an image added", add_image, r"images \(was 7 \(.*, now 8 \("),
    other_data("another order", reorder, r"images \(was 7 \("),
    other_data("another label", relabel, r"labels \(was 3 normal, 4 anomalous"),
    other_data("a mask threshold per row", mask_threshold_column, r"mask_threshold \(was [\w.]+, now 127"),
    Case("resume after the dataset was moved", renamed, reaches(3)),
    Case("resume with other data that is allowed", with_allowed_data, was_trained_on_both,
         says="Resuming with other settings: training data: images"),
]  # fmt: skip


# Output folders of other runs, and files of the user


def train_again(folder: Path, **arguments: Any) -> ViP2ClipTrainer:
    trainer = build(folder, **arguments)
    trainer.train()
    return trainer


def with_a_complete_checkpoint_of_the_user(folder: Path, step: int = 5) -> Path:
    write_dataset(folder / "set", ("stripes",), num_normal=3, num_anomalous=1, size=24)
    save_checkpoint(copy.deepcopy(_model()), ViP2ClipImageProcessor(size=48), folder / "run" / f"checkpoint-{step}")
    return folder


def keeps_checkpoint_5(trainer: ViP2ClipTrainer) -> None:
    folder = Path(trainer.args.output_dir)
    ViP2ClipForAnomalyDetection.from_pretrained(folder / "checkpoint-5")
    reaches(trainer.state.max_steps)(trainer)
    assert last_complete_checkpoint(folder) != str(folder / "checkpoint-5")


def with_notes(folder: Path) -> ViP2ClipTrainer:
    prepare(folder)
    (folder / "run" / "notes.txt").write_text("mine")
    (folder / "run" / "checkpoint-2" / "notes.txt").write_text("mine")
    return train_again(folder, overwrite_output_dir=True, num_train_epochs=1)


def keeps_notes(trainer: ViP2ClipTrainer) -> None:
    folder = Path(trainer.args.output_dir)
    assert (folder / "notes.txt").read_text() == (folder / "checkpoint-2" / "notes.txt").read_text() == "mine"
    assert [path.name for path in (folder / "checkpoint-2").iterdir()] == ["notes.txt"]
    reaches(1, "checkpoint-1")(trainer)


def without_space(folder: Path) -> None:
    """The cache of the new training does not fit on the disk. The earlier run is kept."""
    before = sorted(path.relative_to(folder) for path in prepare(folder).rglob("*"))
    usage = mock.Mock(free=10)
    with (
        mock.patch("vip2clip_hf.training.feature_cache.shutil.disk_usage", return_value=usage),
        pytest.raises(OSError, match=r"but 0\.0 GB are free"),
    ):
        train_again(folder, overwrite_output_dir=True, cache_features=str(folder.parent / f"{folder.name}-cache"))
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before
    shutil.rmtree(folder.parent / f"{folder.name}-cache", ignore_errors=True)


def with_a_model(folder: Path, **arguments: Any) -> ViP2ClipTrainer:
    write_dataset(folder / "set", ("stripes",), num_normal=3, num_anomalous=1, size=24)
    save_checkpoint(copy.deepcopy(_model()), ViP2ClipImageProcessor(size=48), folder / "run")
    return train_again(folder, **arguments)


def after_saving(folder: Path, **arguments: Any) -> ViP2ClipTrainer:
    write_dataset(folder / "set", ("stripes",), num_normal=3, num_anomalous=1, size=24)
    train_again(folder, save_strategy="no", num_train_epochs=1).save_model()
    return train_again(folder, save_strategy="no", num_train_epochs=1, **arguments)


def without_record(folder: Path, names: tuple[str, ...] = ("", "checkpoint-1", "checkpoint-2")) -> Path:
    """As a version that wrote no records left it."""
    for name in names:
        (prepare(folder) if name == names[0] else folder).joinpath("run", name, RECORD_FILE).unlink()
    return folder


def with_a_checkpoint_of_another_run(folder: Path) -> Path:
    """A later checkpoint, copied from elsewhere."""
    path = prepare(folder) / "run" / "checkpoint-24"
    shutil.copytree(folder / "run" / "checkpoint-2", path)
    record = RunRecord.read(path)
    record.run_id = "0123456789ab"
    record.write(path)
    return folder


def locked(folder: Path) -> ViP2ClipTrainer:
    prepare(folder)
    with RunFolder(folder / "run").locked():
        return resume(folder)


def read_only(folder: Path) -> ViP2ClipTrainer:
    prepare(folder)
    with mock.patch.object(FileLock, "acquire", side_effect=PermissionError(13, "Permission denied")):
        return resume(folder)


def at_a_file(folder: Path) -> ViP2ClipTrainer:
    trainer = build(prepare(folder))
    trainer.args.output_dir = str(folder / "file")
    (folder / "file").write_text("mine")
    trainer.train()
    return trainer


FOLDERS = [
    Case("new training in the folder of another run", lambda folder: train_again(prepare(folder)),
         r"contains checkpoint-1 and checkpoint-2 of another training run \([0-9a-f]{12}, started .*overwrite_output"),
    Case("new training with other settings in the folder of another run",
         lambda folder: train_again(prepare(folder), learning_rate=0.5, save_strategy="no"), "another training run"),
    Case("new training in the folder of a run without record", lambda folder: train_again(without_record(folder)),
         "contains checkpoint-1 and checkpoint-2 of a training run without a readable record"),
    Case("overwrite a run", lambda folder: train_again(prepare(folder), overwrite_output_dir=True, num_train_epochs=1),
         reaches(1, "checkpoint-1")),
    Case("overwrite keeps other files", with_notes, keeps_notes, says=r"Kept notes\.txt in .*checkpoint-2"),
    Case("overwrite a run without record",
         lambda folder: train_again(without_record(folder), overwrite_output_dir=True), "without a readable record"),
    Case("overwrite a folder with checkpoints of two runs",
         lambda folder: train_again(with_a_checkpoint_of_another_run(folder), overwrite_output_dir=True),
         r"contains checkpoint-24 of another training run \(0123456789ab"),
    Case("overwrite a run with a training that cannot begin", without_space, lambda result: None),
    Case("overwrite and resume", lambda folder: resume(prepare(folder), overwrite_output_dir=True),
         "overwrite_output_dir and resume_from_checkpoint are both set"),
    Case("complete checkpoint of the user",
         lambda folder: train_again(with_a_complete_checkpoint_of_the_user(folder)), keeps_checkpoint_5),
    Case("complete checkpoint of the user, resumed",
         lambda folder: resume(with_a_complete_checkpoint_of_the_user(folder)), keeps_checkpoint_5,
         says="No complete checkpoint found"),
    Case("complete checkpoint of the user, with a limit of one checkpoint",
         lambda folder: train_again(with_a_complete_checkpoint_of_the_user(folder), save_total_limit=1),
         keeps_checkpoint_5),
    Case("complete checkpoint of the user in the way",
         lambda folder: train_again(with_a_complete_checkpoint_of_the_user(folder, 2)),
         r"checkpoint-2' exists and was not written by this training, which would replace it"),
    Case("a model in the output folder", with_a_model, r"contains model\.safetensors, which this training would repl"),
    Case("a model of an earlier run in the output folder", after_saving,
         r"contains model\.safetensors of training run [0-9a-f]{12}, .*overwrite_output_dir=True"),
    Case("a model of an earlier run is overwritten", lambda folder: after_saving(folder, overwrite_output_dir=True),
         reaches(1)),
    Case("last checkpoint is of another run", lambda folder: resume(with_a_checkpoint_of_another_run(folder)),
         reaches(3, "checkpoint-2", "checkpoint-3"), says="Ignoring checkpoint-24: other training runs"),
    Case("resume from a checkpoint of another run in the folder",
         lambda folder: resume(with_a_checkpoint_of_another_run(folder), str(folder / "run" / "checkpoint-24")),
         r"checkpoint-24' belongs to training run 0123456789ab, .*expected the same run"),
    Case("resume in another folder", lambda folder: resume(prepare(folder), str(folder / "run" / "checkpoint-2"),
         output_dir=str(folder / "other")), reaches(3, "checkpoint-3")),
    Case("resume in another folder with a run", lambda folder: resume(with_a_checkpoint_of_another_run(folder),
         str(Path(shutil.copytree(folder / "run", folder / "other")) / "checkpoint-2")),
         "contains checkpoint-1 and checkpoint-2 and 1 more of another training run"),
    Case("resume from an earlier checkpoint with a changed rate",
         lambda folder: resume(prepare(folder), str(folder / "run" / "checkpoint-1"), learning_rate=0.5,
                               allow_changed_recipe=True), "checkpoint-1' is followed by checkpoint-2"),
    Case("resume from an earlier checkpoint", lambda folder: resume(prepare(folder), str(folder / "run/checkpoint-1")),
         reaches(3, "checkpoint-2", "checkpoint-3")),
    Case("two trainings at once", locked, "Another training is writing to .*run'; wait until it has finished"),
    Case("output folder that cannot be written", read_only, r"run' cannot be written \(Permission denied\)"),
    Case("output folder is a file", at_a_file, "file' is a file; expected a folder"),
]  # fmt: skip


# Damaged files


def damaged(
    name: str, change: Any, expected: Any, says: str | None = None, checkpoint: str | bool = True, **more
) -> Case:
    """Damage files of the run, then resume."""

    def act(folder: Path) -> ViP2ClipTrainer:
        change(prepare(folder) / "run")
        return resume(
            folder,
            str(folder / "run" / checkpoint) if isinstance(checkpoint, str) else checkpoint,
            num_train_epochs=2,
            **more,
        )

    return Case(f"resume with {name}", act, expected, says)


def cut(name: str, share: float = 0.5):
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return change


def put(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def another_kind(folder: Path) -> None:
    (folder / RECORD_FILE).write_text(json.dumps({"kind": "evaluation"}))
    for step in (1, 2):
        shutil.rmtree(folder / f"checkpoint-{step}")


def of_two_runs(folder: Path) -> Path:
    (with_a_checkpoint_of_another_run(folder) / "run" / RECORD_FILE).unlink()
    return folder


LAST = "checkpoint-2"
EARLIER = reaches(2, "checkpoint-1", "checkpoint-2")
IGNORES = "Ignoring checkpoint-2: not written completely, or damaged"
DAMAGED = [
    damaged("a truncated state", cut(f"{LAST}/trainer_state.json"), EARLIER, says=r"Resuming from .*checkpoint-1"),
    damaged("an empty state", put(f"{LAST}/trainer_state.json", ""), EARLIER, says="Removed checkpoint-2, which was"),
    damaged("a state without content", put(f"{LAST}/trainer_state.json", "{}"), EARLIER, says="Removed checkpoint-2"),
    damaged("a state that is a list", put(f"{LAST}/trainer_state.json", "[]"), EARLIER, says="Removed checkpoint-2"),
    damaged("a missing state", remove(f"{LAST}/trainer_state.json"), EARLIER, says="Removed checkpoint-2"),
    damaged("truncated weights", cut(f"{LAST}/model.safetensors"), EARLIER, says=IGNORES),
    damaged("empty weights", put(f"{LAST}/model.safetensors", ""), EARLIER, says=IGNORES),
    damaged("a truncated optimizer", cut(f"{LAST}/optimizer.pt"), EARLIER, says=IGNORES),
    damaged("an empty optimizer", put(f"{LAST}/optimizer.pt", ""), EARLIER, says=IGNORES),
    damaged("a missing schedule", remove(f"{LAST}/scheduler.pt"), EARLIER, says=IGNORES),
    damaged("a truncated optimizer of the given checkpoint", cut(f"{LAST}/optimizer.pt"),
            r"checkpoint-2' is not a complete checkpoint.*last complete checkpoint .*checkpoint-1", checkpoint=LAST),
    damaged("an empty record", put(RECORD_FILE, ""), EARLIER,
            says=r"training_run\.json in .* is damaged; using the record in checkpoint-2"),
    damaged("a truncated record", cut(RECORD_FILE), EARLIER, says="is damaged; using the record"),
    damaged("a record without settings", put(RECORD_FILE, '{"kind": "training"}'), EARLIER, says="is damaged; using"),
    damaged("a missing record", remove(RECORD_FILE), EARLIER, says="is missing; using the record in checkpoint-2"),
    damaged("a file of the user as record", another_kind, r"training_run\.json' is not the record of a training run"),
    damaged("a damaged record of the checkpoint", put(f"{LAST}/{RECORD_FILE}", "{"),
            r"checkpoint-2/training_run\.json' is damaged.*settings cannot be compared", checkpoint=LAST),
    damaged("a damaged record of the checkpoint, allowed", put(f"{LAST}/{RECORD_FILE}", "{"), reaches(2),
            says="is damaged.*Its settings are not compared", checkpoint=LAST, allow_changed_recipe=True),
    damaged("a checkpoint that does not exist", lambda folder: None, "checkpoint-9' is not a complete checkpoint",
            checkpoint="checkpoint-9"),
    Case("resume a run without records", lambda folder: resume(without_record(folder)),
         reaches(3, "checkpoint-2", "checkpoint-3"), says="has no record of its settings and its training data"),
    Case("resume with checkpoints of two runs and no record", lambda folder: resume(of_two_runs(folder)),
         r"contains checkpoints of several training runs \(\w{12}, \w{12}\).*Pass the path of a checkpoint"),
    Case("new training with checkpoints of two runs and no record", lambda folder: train_again(of_two_runs(folder)),
         "contains checkpoint-1 and checkpoint-2 and 1 more of another training run"),
]  # fmt: skip


# The metric for the best model


def best(folder: Path, change: Any = None, **arguments: Any) -> ViP2ClipTrainer:
    write_dataset(folder / "set", ("stripes",), num_normal=3, num_anomalous=1, size=24)
    shutil.copytree(folder / "set", folder / "eval")
    rows = (change or load_folder)(folder / "eval")
    more = {"load_best_model_at_end": True, "eval_strategy": "epoch", "num_train_epochs": 1, **arguments}
    trainer = build(folder, evaluate=rows, **more)
    trainer.train()
    return trainer


def without_masks(root: Path) -> Any:
    for path in root.rglob("*_mask.png"):
        path.unlink()
    return load_folder(root)


def with_empty_masks(root: Path) -> Any:
    for path in root.rglob("*_mask.png"):
        Image.new("L", (24, 24)).save(path)
    return load_folder(root)


def only(label: int):
    def change(root: Path) -> Any:
        rows = load_folder(root)
        return rows.select([position for position, one in enumerate(rows["label"]) if one == label])

    return change


def named(*names: str):
    return lambda root: {name: load_folder(root) for name in names}


def with_other_evaluation_data(folder: Path) -> ViP2ClipTrainer:
    best(folder, save_strategy="epoch")
    replace_image(folder / "eval")
    more = {"load_best_model_at_end": True, "eval_strategy": "epoch", "num_train_epochs": 2}
    return resume(folder, evaluate=load_folder(folder / "eval"), **more)


METRIC = [
    Case("resume with other evaluation data that the epoch is chosen on", with_other_evaluation_data,
         r"other settings: evaluation data: images \(was 7 \(.*allow_changed_recipe"),
    Case("best model by pixels without masks", lambda folder: best(folder, without_masks),
         r"'pixel_auroc', which is undefined on the evaluation data: no anomalous image has a mask\. Add masks"),
    Case("best model by pixels with empty masks", lambda folder: best(folder, with_empty_masks),
         r"'pixel_auroc', which is undefined on the evaluation data: all masks are empty\. Correct the masks"),
    Case("best model by pixels of masks that are empty for one of two datasets",
         lambda folder: best(folder, lambda root: {"a": load_folder(folder / "set"), "b": without_masks(root)}),
         reaches(1)),
    Case("best model by images without normal images",
         lambda folder: best(folder, only(1), metric_for_best_model="image_auroc"),
         r"'image_auroc', which is undefined .*no category has both normal and anomalous images\. Add the missing"),
    Case("best model by images without anomalous images",
         lambda folder: best(folder, only(0), metric_for_best_model="eval_image_f1"), "'image_f1', which is undef"),
    Case("best model by a dataset that is not there",
         lambda folder: best(folder, named("a", "b"), metric_for_best_model="c_pixel_auroc"),
         r"'c_pixel_auroc', which is not computed .*or NAME_METRIC with a, b"),
    Case("best model by the name of the only dataset",
         lambda folder: best(folder, named("a"), metric_for_best_model="a_pixel_auroc"),
         r"'a_pixel_auroc', which is not computed on this evaluation data; expected image_auroc"),
    Case("best model by images of data without masks",
         lambda folder: best(folder, without_masks, metric_for_best_model="image_auroc"), reaches(1)),
    Case("best model by a misspelt metric without loading it",
         lambda folder: best(folder, load_best_model_at_end=False, metric_for_best_model="pixel_auroc_"),
         "metric_for_best_model is 'pixel_auroc_'; expected"),
]  # fmt: skip


# Wrapped and quantized layers


class Lora(torch.nn.Module):
    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base, self.down = base, torch.nn.Parameter(torch.zeros(2, base.in_features))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.base(inputs)


def wrapped(name: str, layer: str) -> ViP2ClipForAnomalyDetection:
    model = copy.deepcopy(_model())
    part = model.get_submodule(name)
    setattr(part, layer, Lora(getattr(part, layer)))
    return model.requires_grad_(False) if name.startswith("clip") else model


def quantized() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(_model()), {torch.nn.Linear})


def peft_model() -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(copy.deepcopy(_model()), peft.LoraConfig(r=2, target_modules=["q_proj"]))


MODELS = {
    "a wrapper in the perception": lambda: wrapped("fine_grained_perception", "q_proj"),
    "a wrapper in the image-conditioned adapter": lambda: wrapped("image_conditioned_adapter.meta_nets.0", "0"),
    "a wrapper in CLIP": lambda: wrapped("clip.vision_model.encoder.layers.0.mlp", "fc1"),
    "int8": quantized,
    "PEFT": peft_model,
}
WRAPPED = [
    Case(f"{action} with {name}", lambda folder, make=make, act=act: act(folder, make()),
         rf"(layers|model is a PeftModel).* cannot be {action}.*merge_and_unload")
    for name, make in MODELS.items()
    for action, act in {
        "trained": lambda folder, model: build(prepare(folder), model=model),
        "saved": lambda folder, model: save_checkpoint(model, ViP2ClipImageProcessor(size=48), folder / "saved"),
    }.items()
]  # fmt: skip

CASES = [*SETTINGS, *DATA, *FOLDERS, *DAMAGED, *METRIC, *WRAPPED]


@pytest.fixture(autouse=True)
def _without_garbage_collection(monkeypatch):
    """accelerate collects garbage before each training, which takes longer than these trainings."""
    monkeypatch.setattr(gc, "collect", lambda *args: 0)


@pytest.mark.slow
@parametrize(CASES)
def test_odd_training(case, tmp_path, caplog):
    run(case, tmp_path, caplog)


@pytest.mark.parametrize("name", ["config.json", "decision.json", "preprocessor_config.json", "modeling_vip2clip.py"])
def test_files_of_a_model_without_weights_are_in_the_way(tmp_path, name):
    for file in (name, "README.md", "notes.txt"):
        (tmp_path / file).write_text("{}")
    assert RunFolder(tmp_path).in_the_way() == ([], [name])
