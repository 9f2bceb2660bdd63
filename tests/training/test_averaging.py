import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from helpers.processes import TORCHRUN, run_program
from helpers.tiny import TINY
from helpers.training import assert_same_tensors, build_trainer, with_sgd, write_training_set
from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.training.arguments import ViP2ClipTrainingArguments
from vip2clip_hf.training.averaging import AVERAGE_FILE
from vip2clip_hf.training.recipe import describe_recipe


# 14 images in batches of 8: two steps per epoch.
@pytest.fixture
def dataset(tmp_path):
    return load_folder(write_training_set(tmp_path / "set"))


@pytest.fixture
def build(clip, image_processor, dataset, tmp_path):
    def build(output_dir="run", **options):
        return build_trainer(clip, image_processor, tmp_path / output_dir, dataset, **options)

    return build


class Record(TrainerCallback):
    """Keep the weights after each step."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.steps.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})


def trained(trainer):
    return {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}


def test_average_equals_the_mean_of_the_steps(build, caplog):
    record = Record()
    trainer = build(num_train_epochs=3, average_weights_from=1, save_strategy="epoch", callbacks=[record])
    trainer.train()
    assert len(record.steps) == 6
    expected = {
        name: torch.stack([step[name].double() for step in record.steps[2:]]).mean(0).float()
        for name in record.steps[0]
    }
    assert_same_tensors(expected, trained(trainer), 1e-7)
    assert not all(torch.equal(record.steps[-1][name], tensor) for name, tensor in expected.items())
    assert trainer.run.recipe["average_weights_from"] == 1
    saved = load_file(f"{trainer.args.output_dir}/checkpoint-6/model.safetensors")  # of the step, for resuming
    assert all(torch.equal(saved[name], tensor) for name, tensor in record.steps[-1].items() if name in saved)
    plain = build("plain", num_train_epochs=3)
    plain.train()
    assert_same_tensors(record.steps[-1], trained(plain), 0)
    # The final model has the average.
    trainer.save_model()
    final = ViP2ClipForAnomalyDetection.from_pretrained(trainer.args.output_dir)
    assert_same_tensors(trainer.model.adapter_state_dict(), final.adapter_state_dict(), 0)
    assert describe_recipe(trainer)["averaged weights"] == "over 4 steps, from epoch 1 on"
    assert not (trainer.run_folder.path / "checkpoint-2").exists()  # the limit is 2: the file is deleted, too
    assert "Kept" not in caplog.text


def test_a_fraction_of_an_epoch(build):
    record = Record()
    trainer = build(num_train_epochs=1, average_weights_from=0.5, callbacks=[record])
    trainer.train()
    assert_same_tensors(record.steps[1], trained(trainer), 0)  # of the second step only


def test_resumed_equals_uninterrupted(build, tmp_path):
    options = {"num_train_epochs": 3, "average_weights_from": 1}
    whole = build(save_strategy="steps", save_steps=1, save_total_limit=None, **options)
    whole.train()
    for step in (1, 3, 6):  # before the average, within it, and at the end
        resumed = build(f"resumed{step}", **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert_same_tensors(trained(whole), trained(resumed), 0)


def test_changes_are_not_resumed_silently(build, tmp_path):
    build(num_train_epochs=2, average_weights_from=0, save_strategy="epoch").train()
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(ValueError, match=r"average_weights_from \(was 0(.0)?, now 0.5\)"):
        build("other", num_train_epochs=2, average_weights_from=0.5).train(resume_from_checkpoint=checkpoint)
    changed = {"num_train_epochs": 2, "allow_changed_recipe": True}
    with pytest.raises(ValueError, match=r"saved at epoch 1 and does not contain the average"):
        build("other", average_weights_from=0.5, **changed).train(resume_from_checkpoint=checkpoint)
    record = Record()
    later = build("later", average_weights_from=1, callbacks=[record], **changed)
    later.train(resume_from_checkpoint=checkpoint)
    mean = {name: torch.stack([step[name] for step in record.steps]).mean(0) for name in record.steps[0]}
    assert_same_tensors(mean, trained(later), 1e-6)
    (tmp_path / "run" / "checkpoint-2" / AVERAGE_FILE).write_bytes(b"damaged")
    with pytest.raises(OSError, match="is damaged"):
        build("more", num_train_epochs=2, average_weights_from=0).train(resume_from_checkpoint=checkpoint)


def test_bad_values(build, tmp_path):
    for start in (-1, 2, 3.5, float("nan")):
        with pytest.raises(ValueError, match=r"expected a number of at least 0 and less than num_train_epochs \(2\)"):
            ViP2ClipTrainingArguments(str(tmp_path), num_train_epochs=2, average_weights_from=start, use_cpu=True)
    with pytest.raises(ValueError, match="load_best_model_at_end are both set"):
        ViP2ClipTrainingArguments(
            str(tmp_path), average_weights_from=1, load_best_model_at_end=True, eval_strategy="epoch", use_cpu=True
        )
    with pytest.raises(ValueError, match=r"but training ends at epoch 1\.5"):
        build(max_steps=3, average_weights_from=1.5).train()
    assert not (tmp_path / "run" / "training_run.json").exists()


def test_a_training_that_stops_early_says_so(build, caplog):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    record = Record()
    trainer = build(num_train_epochs=3, average_weights_from=2, callbacks=[Stop(), record])
    trainer.train()
    assert "before average_weights_from=2" in caplog.text
    assert_same_tensors(record.steps[0], trained(trainer), 0)


@pytest.mark.slow
def test_two_processes_equal_a_large_batch(clip_folder, clip, image_processor, dataset, tmp_path):
    (tmp_path / "run.py").write_text(
        f"""
import torch
from safetensors.torch import save_file
from vip2clip_hf import ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.training.arguments import ViP2ClipTrainingArguments
from vip2clip_hf.training.trainer import ViP2ClipTrainer

torch.manual_seed(5)
model = ViP2ClipForAnomalyDetection.from_clip({str(clip_folder)!r}, **{TINY!r})
args = ViP2ClipTrainingArguments(output_dir={str(tmp_path / "two")!r}, disable_tqdm=True, use_cpu=True,
    num_train_epochs=2, per_device_train_batch_size=4, save_strategy="epoch", average_weights_from=1)
trainer = ViP2ClipTrainer(model, args, ViP2ClipImageProcessor(size=48), load_folder({str(tmp_path / "set")!r}))
trainer.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
trainer.train()
save_file(model.adapter_state_dict(), {str(tmp_path)!r} + f"/{{args.process_index}}.safetensors")
"""
    )
    run_program(*TORCHRUN, tmp_path / "run.py")
    options = {"num_train_epochs": 2, "average_weights_from": 1}
    whole = with_sgd(build_trainer(clip, image_processor, tmp_path / "one", dataset, **options))
    whole.train()
    first, second = (load_file(tmp_path / f"{number}.safetensors") for number in range(2))
    assert_same_tensors(first, second, 0)
    assert_same_tensors(whole.model.adapter_state_dict(), first, 1e-5)
    assert (tmp_path / "two" / "checkpoint-4" / AVERAGE_FILE).is_file()
