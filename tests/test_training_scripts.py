import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from conftest import TINY
from vip2clip_hf import AnomalyDetectionPipeline, ViP2ClipForAnomalyDetection
from vip2clip_hf.data import load_folder
from vip2clip_hf.data.synthetic import write_dataset


TRAINING = Path(__file__).parents[1] / "training"
sys.path.append(str(TRAINING))  # at the end: evaluate.py there is not the library evaluate

import train as train_script  # noqa: E402
from arguments import AdapterTrainingArguments, parse_arguments  # noqa: E402


@pytest.fixture
def roots(tmp_path):
    return (
        write_dataset(tmp_path / "train", ("stripes", "weave"), num_normal=3, num_anomalous=1, size=48),
        write_dataset(tmp_path / "eval", ("waves",), num_normal=3, num_anomalous=1, size=48, seed=1),
    )


def arguments_for(tmp_path, **overrides) -> AdapterTrainingArguments:
    return AdapterTrainingArguments(
        output_dir=str(tmp_path / "run"), disable_tqdm=True, use_cpu=True, num_train_epochs=1, **overrides
    )


def test_main(roots, clip_folder, tmp_path, capsys):
    config = {**{k: TINY[k] for k in ("image_size", "top_k")}, "feature_layers": [1, 2, 4], "variant": "release"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_train_epochs": 1, "disable_tqdm": True}))
    report = train_script.main(
        [
            str(tmp_path / "config.json"), "--clip", str(clip_folder), "--train_root", str(roots[0]), "--eval_root",
            str(roots[1]), "--output_dir", str(tmp_path / "out"), "--num_train_epochs", "2", "--use_cpu", "true",
        ]
    )  # fmt: skip
    assert len(report["losses"]) == 2  # the command line wins over the file
    assert report["losses"][1] < report["losses"][0]
    assert set(report["categories"]) == {"waves"}
    assert report["categories"]["waves"]["num_images"] == 7
    assert 0 <= report["mean"]["image_auroc"] <= 1
    assert 0 <= report["mean"]["pixel_auroc"] <= 1
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == report
    assert (report["train_set"], report["eval_set"]) == ("train", "eval")
    assert str(tmp_path) not in (tmp_path / "out" / "results.json").read_text()
    (recorded,) = json.loads((tmp_path / "out" / "config.json").read_text())["training_sets"]
    assert (recorded["name"], recorded["num_images"], recorded["benchmark"]) == ("train", 14, None)
    assert "pixel AUROC" in capsys.readouterr().out
    detector = AnomalyDetectionPipeline.from_pretrained(tmp_path / "out", device="cpu")
    assert 0 <= detector(np.zeros((20, 30), np.uint8))["score"] <= 1


def test_training_is_deterministic(roots, clip, tmp_path, image_processor):
    losses = []
    for _ in range(2):
        torch.manual_seed(5)
        model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
        trainer = train_script.build_trainer(model, image_processor, load_folder(roots[0]), arguments_for(tmp_path))
        losses.append(trainer.train().training_loss)
    assert losses[0] == losses[1]


def test_two_learning_rates_and_a_frozen_clip(roots, clip, tmp_path, image_processor):
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments = arguments_for(tmp_path, learning_rate=1e-3, perception_learning_rate=1e-5)
    trainer = train_script.build_trainer(model, image_processor, load_folder(roots[0]), arguments)
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert trainer.model_accepts_loss_kwargs is False
    steps = trainer.train().global_step
    moved = {name: (tensor - before[name]).abs().max().item() for name, tensor in model.state_dict().items()}
    assert all(value == 0 for name, value in moved.items() if name.startswith("clip."))
    assert moved["fine_grained_perception.k_proj.bias"] == 0
    # Adam moves a weight by about its learning rate a step.
    assert 0 < moved["fine_grained_perception.q_proj.weight"] <= 1.5e-5 * steps
    assert 5e-4 < moved["prompt_learner.normal_context"] <= 1.5e-3 * steps


def test_gradient_accumulation_equals_a_large_batch(roots, clip, tmp_path, image_processor):
    """With complete masks in every image. The Trainer would otherwise scale the loss by the number of steps."""
    weights = []
    for batch_size, accumulate in ((4, 1), (2, 2)):
        torch.manual_seed(5)
        model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
        trainer = train_script.build_trainer(
            model,
            image_processor,
            load_folder(roots[0]).select(range(4)),
            arguments_for(
                tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulate, max_steps=1
            ),
        )
        trainer.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        trainer.train()
        weights.append(model.adapter_state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=1e-5, msg=name)


def test_data_without_masks_trains_on_labels(roots, clip, tmp_path, image_processor):
    for path in roots[0].rglob("*_mask.png"):
        path.unlink()
    dataset = load_folder(roots[0])
    assert train_script.count_masks(dataset) == 0
    assert train_script.count_masks(load_folder(roots[1])) == 4
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    trainer = train_script.build_trainer(model, image_processor, dataset, arguments_for(tmp_path))
    assert set(trainer.data_collator([dataset[0]])) == {"pixel_values", "labels"}
    assert np.isfinite(trainer.train().training_loss)


def test_bad_arguments(tmp_path, roots):
    with pytest.raises(OSError, match=r"absent\.json' not found"):
        parse_arguments(["absent.json"])
    (tmp_path / "config.json").write_text('{"train_rot": "x"}')
    with pytest.raises(ValueError, match=r"unknown key 'train_rot'; did you mean 'train_root'\?"):
        parse_arguments([str(tmp_path / "config.json")])
    (tmp_path / "config.json").write_text('{"feature_layers": "deep"}')
    with pytest.raises(SystemExit):  # argparse shows the usage
        parse_arguments([str(tmp_path / "config.json")])
    (tmp_path / "config.json").write_text('{"feature_layers": 4, "top_k": 3, "disable_tqdm": true, "clip": null}')
    model_arguments, _, arguments = parse_arguments([str(tmp_path / "config.json"), "--top_k", "7"])
    assert (model_arguments.feature_layers, model_arguments.top_k, arguments.disable_tqdm) == ([4], 7, True)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list; expected an object"):
        parse_arguments([str(tmp_path / "config.json")])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON file"):
        parse_arguments([str(tmp_path / "config.json")])
    with pytest.raises(ValueError, match="--train_root is missing"):
        train_script.main([])
    with pytest.raises(ValueError, match="--clip is missing"):
        train_script.main(["--train_root", str(roots[0])])


def train_arguments(tmp_path, clip_folder, roots, *more) -> list[str]:
    settings = ["--image_size", "48", "--feature_layers", "1", "2", "--top_k", "3", "--disable_tqdm", "true"]
    return [
        "--clip", str(clip_folder), "--train_root", str(roots[0]), "--eval_root", str(roots[1]), "--output_dir",
        str(tmp_path / "out"), "--num_train_epochs", "1", "--use_cpu", "true", *settings, *more,
    ]  # fmt: skip


def test_the_model_is_saved_before_the_evaluation_can_fail(roots, clip_folder, tmp_path):
    broken = next((roots[1] / "waves" / "test" / "blob").iterdir())
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(OSError, match=r"waves.test.blob.000\.png.*truncated or damaged"):
        train_script.main(train_arguments(tmp_path, clip_folder, roots))
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_diverged_training_is_not_saved(roots, clip_folder, tmp_path):
    with pytest.raises(ValueError, match="training diverged"):
        train_script.main(train_arguments(tmp_path, clip_folder, roots, "--learning_rate", "1e30"))
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_resume(roots, clip_folder, tmp_path):
    """Two epochs in one go, and the second continued from the checkpoint of the first, give the same weights."""
    arguments = ["--save_strategy", "epoch", "--num_train_epochs", "2", "--output_dir"]
    train_script.main(train_arguments(tmp_path, clip_folder, roots, *arguments, str(tmp_path / "whole")))
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed = [*arguments, str(tmp_path / "parts"), "--resume_from_checkpoint", str(checkpoint)]
    report = train_script.main(train_arguments(tmp_path, clip_folder, roots, *resumed))
    assert not (tmp_path / "parts" / "checkpoint-2").exists()  # the first epoch was not run again
    weights = [load_file(tmp_path / run / "model.safetensors") for run in ("whole", "parts")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert len(report["losses"]) == 2
    with pytest.raises((ValueError, OSError), match="absent"):
        train_script.main(train_arguments(tmp_path, clip_folder, roots, "--resume_from_checkpoint", "absent"))


@pytest.mark.parametrize(
    "option", [("--optim", "sgd"), ("--label_smoothing_factor", "0.1"), ("--remove_unused_columns", "true")]
)
def test_arguments_that_would_have_no_effect_are_refused(roots, clip_folder, tmp_path, option):
    with pytest.raises(ValueError, match=option[0]):
        train_script.main(train_arguments(tmp_path, clip_folder, roots, *option))


def test_weight_decay_reaches_the_optimizer(clip, tmp_path, image_processor):
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    arguments = arguments_for(tmp_path, weight_decay=0.5, adam_beta1=0.8)
    groups = train_script.build_trainer(model, image_processor, None, arguments).optimizer.param_groups
    assert all(group["weight_decay"] == 0.5 and group["betas"] == (0.8, 0.999) for group in groups)


@pytest.mark.parametrize("config", sorted((TRAINING / "configs").glob("*.json")))
def test_configs_are_valid(config, tmp_path):
    model_arguments, _, arguments = parse_arguments([str(config), "--output_dir", str(tmp_path)])
    assert arguments.per_device_train_batch_size == 8
    assert model_arguments.variant in ("paper", "release")


def test_a_plain_trainer_works(roots, clip, tmp_path, image_processor):
    """Without any of our training code: labels are found by their names, predictions are small."""
    from transformers import TrainingArguments

    from vip2clip_hf.data import ViP2ClipCollator

    dataset = load_folder(roots[0])
    trainer = Trainer(
        model=ViP2ClipForAnomalyDetection.from_clip(clip, **TINY),
        args=TrainingArguments(
            output_dir=str(tmp_path / "run"), remove_unused_columns=False, report_to="none", use_cpu=True,
            num_train_epochs=1, disable_tqdm=True, per_device_train_batch_size=5,
        ),
        train_dataset=dataset,
        eval_dataset=dataset,
        data_collator=ViP2ClipCollator(image_processor),
    )  # fmt: skip
    trainer.train()
    output = trainer.predict(dataset)
    assert "test_loss" in output.metrics
    logits, scores, maps = output.predictions
    assert (logits.shape, scores.shape, maps.shape) == ((14, 2), (14,), (14, 48, 48))
    labels, masks, valid = output.label_ids
    assert (labels.shape, masks.shape, valid.shape) == ((14,), (14, 48, 48), (14,))


# Whole programs


def program(*command, cwd, **environment) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_launch_from_the_command_line(roots, tmp_path):
    """As the README has it, on a bare machine: no backbone is needed to see the script run."""
    out = program(
        "-m", "accelerate.commands.launch", TRAINING / "train.py", TRAINING / "configs" / "tiny.json", "--train_root",
        roots[0], "--eval_root", roots[1], "--output_dir", tmp_path / "out", "--num_train_epochs", "1",
        "--image_size", "64", "--top_k", "3", "--disable_tqdm", "true", cwd=tmp_path,
    )  # fmt: skip
    assert "pixel AUROC" in out
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_demo(tmp_path):
    out = program(TRAINING / "demo.py", "--output", tmp_path / "demo", cwd=tmp_path)
    after = [float(line.split(",")[1].split()[0]) for line in out.splitlines() if "after training" in line]
    assert min(after) > 0.9
    for name in ("sheet.png", "damaged_heatmap.png", "normal_heatmap.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 1000


@pytest.mark.slow
def test_two_processes_find_no_unused_parameter(tmp_path):
    """DistributedDataParallel over gloo raises on the second step when a parameter got no gradient in the first."""
    (tmp_path / "ddp.py").write_text(
        f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
import torch.distributed as dist
from conftest import tiny_config
from vip2clip_hf import ViP2ClipForAnomalyDetection

dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(ViP2ClipForAnomalyDetection(tiny_config()).train())
torch.manual_seed(dist.get_rank())
for step in range(3):
    masks = torch.zeros(2, 48, 48)
    masks[1, :9] = 1
    valid = torch.tensor([step != 1, step != 1])
    loss = model(torch.randn(2, 3, 48, 48), labels=torch.tensor([0, 1]), mask_labels=masks,
                 mask_label_valid=valid).loss
    loss.backward()
print("steps done")
dist.destroy_process_group()
"""
    )
    out = program("-m", "torch.distributed.run", "--nproc_per_node", "2", tmp_path / "ddp.py", cwd=tmp_path)
    assert out.count("steps done") == 2
