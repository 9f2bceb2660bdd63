import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from transformers import Trainer
from typer.testing import CliRunner

from helpers.benchmark_trees import mvtec_official, visa_official
from helpers.hub_stub import running_hub
from helpers.tiny import ROOT, TINY
from vip2clip_hf import AnomalyDetectionPipeline, ViP2ClipForAnomalyDetection
from vip2clip_hf.cli import app
from vip2clip_hf.data.benchmarks.registry import BENCHMARKS
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.training.parsing import parse_arguments
from vip2clip_hf.training.run import run_training


TRAINING = ROOT / "training"


def train(arguments: list[str]) -> dict:
    return run_training(*parse_arguments(arguments))


def vip2clip(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def roots(tmp_path):
    return (
        write_dataset(tmp_path / "train", ("stripes", "weave"), num_normal=3, num_anomalous=1, size=48),
        write_dataset(tmp_path / "eval", ("waves",), num_normal=3, num_anomalous=1, size=48, seed=1),
    )


def test_main(roots, clip_folder, tmp_path):
    config = {**{k: TINY[k] for k in ("image_size", "top_k")}, "feature_layers": [1, 2, 4], "variant": "release"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_train_epochs": 1, "disable_tqdm": True}))
    done = vip2clip(
        "train", tmp_path / "config.json", "--clip", clip_folder, "--train_data", roots[0], "--eval-data", roots[1],
        "--output_dir", tmp_path / "out", "--num_train_epochs", 2, "--use_cpu", "true", "--json", "true",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report.pop("checkpoint") == str(tmp_path / "out")
    assert len(report["losses"]) == 2  # the command line wins over the file
    assert report["losses"][1] < report["losses"][0]
    (result,) = report["results"]
    assert (result["name"], result["benchmark"], result["trained_on"]) == ("eval", None, [])
    assert set(result["categories"]) == {"waves"}
    assert result["categories"]["waves"]["num_images"] == 7
    assert 0 <= result["mean"]["image_auroc"] <= 1
    assert 0 <= result["mean"]["pixel_auroc"] <= 1
    assert report["history"][0]["loss_focal"] > 0
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == report
    assert str(tmp_path) not in (tmp_path / "out" / "results.json").read_text()
    (recorded,) = json.loads((tmp_path / "out" / "config.json").read_text())["training_sets"]
    assert (recorded["name"], recorded["num_images"], recorded["benchmark"]) == ("train", 14, None)
    detector = AnomalyDetectionPipeline.from_pretrained(tmp_path / "out", device="cpu")
    assert 0 <= detector(np.zeros((20, 30), np.uint8))["score"] <= 1


def test_bad_arguments(tmp_path, roots):
    with pytest.raises(OSError, match=r"absent\.json' not found"):
        parse_arguments(["absent.json"])
    (tmp_path / "config.json").write_text('{"train_dat": "x"}')
    with pytest.raises(ValueError, match=r"unknown key 'train_dat'; did you mean 'train_data'\?"):
        parse_arguments([str(tmp_path / "config.json")])
    (tmp_path / "config.json").write_text('{"feature_layers": "deep"}')
    with pytest.raises(SystemExit):  # argparse shows the usage
        parse_arguments([str(tmp_path / "config.json")])
    (tmp_path / "config.json").write_text('{"feature_layers": 4, "top_k": 3, "disable_tqdm": true, "clip": null}')
    model_arguments, _, arguments = parse_arguments([str(tmp_path / "config.json"), "--top_k", "7"])
    assert (model_arguments.feature_layers, model_arguments.top_k, arguments.disable_tqdm) == ([4], 7, True)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="contains a list; expected an object"):
        parse_arguments([str(tmp_path / "config.json")])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not a valid JSON file"):
        parse_arguments([str(tmp_path / "config.json")])
    (tmp_path / "config.yaml").write_text("feature_layers: [4, 5]\ntop_k: 3\neval_data:\n- a\n- mvtec=b\n")
    model_arguments, data_arguments, _ = parse_arguments([str(tmp_path / "config.yaml")])
    assert (model_arguments.feature_layers, model_arguments.top_k) == ([4, 5], 3)
    assert data_arguments.eval_data == ["a", "mvtec=b"]
    (tmp_path / "config.yaml").write_text("top_k: [")
    with pytest.raises(ValueError, match="is not a valid YAML file"):
        parse_arguments([str(tmp_path / "config.yaml")])
    with pytest.raises(ValueError, match="--train_data is missing"):
        train([])
    with pytest.raises(ValueError, match="--clip is missing"):
        train(["--train_data", str(roots[0])])


def train_arguments(tmp_path, clip_folder, roots, *more) -> list[str]:
    settings = ["--image_size", "48", "--feature_layers", "1", "2", "--top_k", "3", "--disable_tqdm", "true"]
    return [
        "--clip", str(clip_folder), "--train_data", str(roots[0]), "--eval_data", str(roots[1]), "--output_dir",
        str(tmp_path / "out"), "--num_train_epochs", "1", "--use_cpu", "true", *settings, *more,
    ]  # fmt: skip


def test_the_model_is_saved_before_the_evaluation_can_fail(roots, clip_folder, tmp_path):
    broken = next((roots[1] / "waves" / "test" / "blob").iterdir())
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(OSError, match=r"waves.test.blob.000\.png.*truncated or damaged"):
        train(train_arguments(tmp_path, clip_folder, roots))
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_diverged_training_is_not_saved(roots, clip_folder, tmp_path):
    with pytest.raises(RuntimeError, match="The loss is nan at step 2; the images of the batch are"):
        train(train_arguments(tmp_path, clip_folder, roots, "--learning_rate", "1e30"))
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("config", sorted((TRAINING / "configs").glob("*.json")))
def test_configs_are_valid(config, tmp_path):
    model_arguments, _, arguments = parse_arguments([str(config), "--output_dir", str(tmp_path)])
    assert arguments.per_device_train_batch_size == 8
    assert model_arguments.variant in ("paper", "release")


def test_several_data_sets_and_the_card(roots, clip_folder, tmp_path):
    """Trained on two sets, evaluated on three during training, of which two have been seen."""
    more = write_dataset(tmp_path / "more", ("grains",), num_normal=3, num_anomalous=1, size=48, seed=2)
    arguments = train_arguments(tmp_path, clip_folder, roots, "--train_data", str(roots[0]), f"nuts={more}")
    arguments += ["--eval_data", str(roots[0]), str(roots[1]), f"again={more}", "--eval_strategy", "epoch"]
    report = train([*arguments, "--adapters_only", "true", "--num_train_epochs", "2"])
    assert [entry["name"] for entry in report["training_sets"]] == ["train", "nuts"]
    assert [bool(result["trained_on"]) for result in report["results"]] == [True, False, True]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for text in (
        "- train, test split: 14 images, 8 of them anomalous; stripes, weave.", "- nuts, test split: 7 images",
        "rates 0.001 (prompts, image-conditioned adapter) and 1e-05", "batches: of 8, 2 epochs", "seed: 111",
        "torch 2", "### eval", "| waves ", "† again: trained on nuts", "Intended use and limits", "2505.17692",
        "adapters only",
    ):  # fmt: skip
        assert text in card, text
    state = json.loads((tmp_path / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "eval_again_pixel_auroc" in entry]
    assert len(logged) == 2
    with pytest.raises(ValueError, match="Several datasets have the same name: train, train"):
        train([*arguments, "--train_data", str(roots[0]), str(roots[0])])


@pytest.mark.parametrize("name", ["mvtec", "visa"])
def test_recipes_run_on_data_of_that_shape(name, clip_folder, tmp_path):
    """The paper's two recipes from end to end; only the backbone, its sizes and the epochs are those of a test."""
    roots = {"mvtec": mvtec_official(tmp_path / "MVTec").root, "visa": visa_official(tmp_path / "VisA").root}
    other = "visa" if name == "mvtec" else "mvtec"
    report = train(
        [
            str(TRAINING / "configs" / f"train_{name}.json"), "--clip", str(clip_folder), "--image_size", "48",
            "--feature_layers", "1", "2", "--top_k", "3", "--num_train_epochs", "1", "--disable_tqdm", "true",
            "--train_data", f"{name}={roots[name]}", "--eval_data", f"{other}={roots[other]}", "--use_cpu", "true",
            "--output_dir", str(tmp_path / "out"), "--dataloader_num_workers", "0",
        ]
    )  # fmt: skip
    (trained,), (result,) = report["training_sets"], report["results"]
    assert (trained["benchmark"], result["benchmark"], result["trained_on"]) == (name, other, [])
    assert np.isfinite(report["losses"]).all()
    assert 0 <= result["mean"]["pixel_aupro"] <= 1
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert BENCHMARKS[name].licence in card
    assert BENCHMARKS[name].citation in card


def test_publishing(roots, clip_folder, tmp_path):
    """Against a stand-in for the Hub: training publishes, a fresh process loads by id."""
    command = [TRAINING / "train.py", *train_arguments(tmp_path, clip_folder, roots)]
    command += ["--push_to_hub", "true", "--hub_model_id", "org/detector", "--hub_private_repo", "true"]
    with running_hub() as hub:
        environment = {
            "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_none", "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        out = program(*command, cwd=tmp_path, **environment)
        assert "Published as org/detector" in out
        assert hub.private == {"org/detector": True}
        assert len(hub.commits) == 1
        published = hub.repositories["org/detector"]
        assert {"README.md", "config.json", "model.safetensors", "modeling_vip2clip.py"} <= set(published)
        assert not any("checkpoint" in name or name == "results.json" for name in published)
        assert b"### eval" in published["README.md"]
        for name, content in published.items():
            assert (tmp_path / "out" / name).read_bytes() == content
        (tmp_path / "load.py").write_text(
            "import vip2clip_hf\nfrom transformers import AutoModel\n"
            "model = AutoModel.from_pretrained('org/detector')\nprint('LOADED', model.config.training_sets[0]['name'])"
        )
        assert "LOADED train" in program(tmp_path / "load.py", cwd=tmp_path, **environment)
        # Whether there is a way in is asked before the training, not after.
        hub.refuse = True
        done = subprocess.run(
            [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, **environment},
        )  # fmt: skip
        assert done.returncode == 1
        assert "403" in done.stderr
        assert "Writing model" not in done.stderr
    done = vip2clip("train", *command[1:-6], "--push_to_hub", "true")
    assert done.exit_code == 2
    assert "--push_to_hub needs --hub_model_id" in done.stderr


def test_a_plain_trainer_works(roots, clip, tmp_path, image_processor):
    """Without any of our training code: labels are found by their names, predictions are small."""
    from transformers import TrainingArguments

    from vip2clip_hf.data.collator import ViP2ClipCollator

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
        "-m", "accelerate.commands.launch", TRAINING / "train.py", TRAINING / "configs" / "tiny.json", "--train_data",
        roots[0], "--eval_data", roots[1], "--output_dir", tmp_path / "out", "--num_train_epochs", "1",
        "--image_size", "64", "--top_k", "3", "--disable_tqdm", "true", cwd=tmp_path,
    )  # fmt: skip
    assert "pixel AUROC" in out
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_demo(tmp_path):
    out = program(TRAINING / "demo.py", "--output", tmp_path / "demo", cwd=tmp_path)
    lines = [line for line in out.splitlines() if "after fine-tuning" in line]
    changes = [[float(value) for value in re.findall(r"\d\.\d{3}", line)] for line in lines]
    assert len(changes) == 3
    # Fine-tuning helps where it was trained for.
    assert sum(after for _, after in changes) > sum(before for before, _ in changes)
    assert out.count("hazelnut_") == 4
    assert (tmp_path / "demo" / "sheet.png").stat().st_size > 10_000
    assert (tmp_path / "demo" / "checkpoint" / "model.safetensors").exists()


@pytest.mark.slow
def test_two_processes_find_no_unused_parameter(tmp_path):
    """DistributedDataParallel over gloo raises on the second step when a parameter got no gradient in the first."""
    (tmp_path / "ddp.py").write_text(
        f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import torch
import torch.distributed as dist
from helpers.tiny import tiny_config
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
