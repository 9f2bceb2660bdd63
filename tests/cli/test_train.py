import json

import numpy as np
import pytest
import torch
from transformers import Trainer
from typer.testing import CliRunner

from helpers.benchmark_trees import mvtec_official, visa_official
from helpers.tiny import ROOT, TINY
from helpers.training import train_arguments, write_train_and_eval_sets
from vip2clip_hf import AnomalyDetectionPipeline, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.cli import app
from vip2clip_hf.data.benchmarks.registry import BENCHMARKS
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.hub import publishing
from vip2clip_hf.training.named_recipes import RECIPES, recipe_path
from vip2clip_hf.training.parsing import given_arguments, parse_arguments
from vip2clip_hf.training.run import run_training


TRAINING = ROOT / "training"


def train(arguments: list[str]) -> dict:
    return run_training(*parse_arguments(arguments))


def vip2clip(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def roots(tmp_path):
    return write_train_and_eval_sets(tmp_path)


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
    assert len(report["losses"]) == 2  # the command line overrides the file
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
    (recorded,) = json.loads((tmp_path / "out" / "provenance.json").read_text())["training_sets"]
    assert (recorded["name"], recorded["num_images"], recorded["benchmark"]) == ("train", 14, None)
    detector = AnomalyDetectionPipeline.from_pretrained(tmp_path / "out", device="cpu")
    assert 0 <= detector(np.zeros((20, 30), np.uint8))["score"] <= 1


@pytest.mark.parametrize("problem", ["data", "output"])
def test_no_repository_is_created_for_a_run_that_cannot_start(problem, roots, clip_folder, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(publishing, "check_push_access", fail)
    arguments = ["--clip", clip_folder, "--output_dir", tmp_path / "out", "--use_cpu", "true"]
    publish = ["--push_to_hub", "true", "--hub_model_id", "org/detector"]
    data = tmp_path / "absent" if problem == "data" else roots[0]
    if problem == "output":
        (tmp_path / "out").write_text("a file")
    done = vip2clip("train", *arguments, "--train_data", data, *publish)
    assert isinstance(done.exception, OSError), done.exception
    done = vip2clip(
        "train", "--clip", clip_folder, "--output_dir", tmp_path / "new", "--train_data", roots[0], *publish
    )
    assert str(done.exception) == "the Hub was asked"


def test_bad_arguments(tmp_path, roots):
    with pytest.raises(OSError, match=r"absent\.json' not found"):
        parse_arguments(["absent.json"])
    (tmp_path / "config.json").write_text('{"train_dat": "x"}')
    with pytest.raises(ValueError, match=r"contains the unknown argument 'train_dat'; did you mean 'train_data'\?"):
        parse_arguments([str(tmp_path / "config.json")])
    (tmp_path / "config.json").write_text('{"feature_layers": "deep"}')
    with pytest.raises(SystemExit):  # argparse shows the usage
        parse_arguments([str(tmp_path / "config.json")])
    (tmp_path / "config.json").write_text('{"feature_layers": 4, "top_k": 3, "disable_tqdm": true, "clip": null}')
    model_arguments, _, arguments = parse_arguments([str(tmp_path / "config.json"), "--top_k", "7"])
    assert (model_arguments.feature_layers, model_arguments.top_k, arguments.disable_tqdm) == ([4], 7, True)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="contains a list; expected an object that maps argument names to values"):
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


def test_a_checkpoint_is_trained_further(roots, clip_folder, tmp_path):
    train(train_arguments(tmp_path, clip_folder, roots, "--variant", "release"))
    first = tmp_path / "out"
    model = ViP2ClipForAnomalyDetection.from_pretrained(first)
    more = ["--train_data", str(roots[1]), "--output_dir", str(tmp_path / "more"), "--use_cpu", "true"]
    more += ["--num_train_epochs", "1", "--disable_tqdm", "true", "--mask_threshold", "100", "--model", str(first)]
    # Adam changes each weight by about the learning rate, whatever the gradient.
    report = train([*more, "--learning_rate", "1e-9", "--perception_learning_rate", "1e-9"])
    found = ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "more")
    torch.testing.assert_close(found.adapter_state_dict(), model.adapter_state_dict(), rtol=0, atol=1e-7)
    assert [one["name"] for one in report["training_sets"]] == ["train", "eval"]
    assert found.config.to_diff_dict() == model.config.to_diff_dict()
    assert report["recipe"]["continued from"] == "out"
    assert "continued from" in (tmp_path / "more" / "README.md").read_text()
    assert ViP2ClipImageProcessor.from_pretrained(tmp_path / "more").mask_threshold == 100
    train([*more, "--learning_rate", "1e-2", "--overwrite_output_dir", "true"])
    changed = ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "more")
    assert not torch.equal(changed.prompt_learner.normal_context, model.prompt_learner.normal_context)
    with pytest.raises(ValueError, match=r"top_k .--top_k. is 3, but the checkpoint of --model determines it"):
        train([*more, "--top_k", "3"])
    with pytest.raises(ValueError, match=r"clip .--clip. is .*, but the checkpoint of --model determines it"):
        train([*more, "--clip", str(clip_folder)])


def test_the_model_is_saved_before_the_evaluation(roots, clip_folder, tmp_path):
    broken = next((roots[1] / "waves" / "test" / "blob").iterdir())
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(OSError, match=r"waves.test.blob.000\.png.*truncated or damaged"):
        train(train_arguments(tmp_path, clip_folder, roots))
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_diverged_training_is_not_saved(roots, clip_folder, tmp_path):
    with pytest.raises(RuntimeError, match="The loss is nan at step 2; the images of the batch are"):
        train(train_arguments(tmp_path, clip_folder, roots, "--learning_rate", "1e30"))
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_recipes_of_the_package(roots, tmp_path):
    listed = vip2clip("train", "--list-recipes")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(RECIPES)
    config = tmp_path / "mine.json"
    config.write_text(json.dumps({"top_k": 7, "seed": 3}))
    words = ["--recipe", "tiny", "--train_data", str(roots[0]), "--seed", "4", "--fgp_scaled", "true"]
    printed = vip2clip("train", config, *words, "--print-config")
    assert printed.exit_code == 0, printed.stderr
    found = json.loads(printed.stdout)
    recipe = json.loads(recipe_path("tiny").read_text())
    assert found == {**recipe, "top_k": 7, "seed": 4, "fgp_scaled": True, "train_data": [str(roots[0])]}
    (tmp_path / "printed.json").write_text(printed.stdout)
    assert given_arguments([str(tmp_path / "printed.json")]) == found
    for given in (["--recipe", "mvtek"], ["--recipe=mvtek"]):
        wrong = vip2clip("train", *given)
        assert wrong.exit_code == 2
        message = f"recipe is 'mvtek'; expected {', '.join(RECIPES)}; did you mean 'mvtec'?"
        assert message in " ".join(wrong.stderr.split())
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("cached", [False, True])
def test_dry_run(cached, roots, clip_folder, tmp_path):
    words = [
        "train", "--clip", clip_folder, "--train_data", roots[0], "--eval_data", roots[1], "--image_size", "48",
        "--feature_layers", "1", "2", "4", "--top_k", "5", "--num_train_epochs", "3", "--average_weights_from", "1",
        "--per_device_train_batch_size", "4", "--use_cpu", "true", "--output_dir", tmp_path / "out", "--dry-run",
        *(["--cache_features", tmp_path / "cache"] if cached else []),
    ]  # fmt: skip
    done = vip2clip(*words, "--json", "true")
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["train_data"] == [{"name": "train", "num_normal": 6, "num_anomalous": 8, "num_masks": 8}]
    assert [one["name"] for one in plan["eval_data"]] == ["eval"]
    assert (plan["images_per_step"], plan["num_steps"], plan["num_epochs"]) == (4, 12, 3)  # 14 images
    model = ViP2ClipForAnomalyDetection.from_clip(clip_folder, **TINY)
    assert plan["frozen_weights"] == sum(weight.numel() for weight in model.clip.parameters())
    assert plan["trained_weights"] > 0
    expected = plan["num_steps"] * plan["step_seconds"]
    if cached:
        assert plan["cache_bytes"] > 14 * 3 * 36 * 16 * 2  # layers, patches, width, float16; and the masks
        expected += 14 * plan["cache_image_seconds"]
    else:
        assert plan["cache_bytes"] is plan["cache_image_seconds"] is None
    assert plan["seconds"] == pytest.approx(expected)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()
    text = vip2clip(*words)
    assert "12 of 4 images (3 epochs)" in text.stdout
    assert text.stdout.splitlines()[-1].endswith("Nothing was trained or written.")


@pytest.mark.parametrize("config", [recipe_path(name) for name in RECIPES])
def test_configs_are_valid(config, tmp_path):
    model_arguments, _, arguments = parse_arguments([str(config), "--output_dir", str(tmp_path)])
    assert arguments.per_device_train_batch_size == (1 if config.stem == "adaclip" else 8)
    assert model_arguments.variant in ("paper", "release")


def test_several_datasets_and_the_card(roots, clip_folder, tmp_path):
    """Train on two datasets and evaluate on three during training, two of which are training data."""
    more = write_dataset(tmp_path / "more", ("grains",), num_normal=3, num_anomalous=1, size=48, seed=2)
    arguments = train_arguments(tmp_path, clip_folder, roots, "--train_data", str(roots[0]), f"nuts={more}")
    arguments += ["--eval_data", str(roots[0]), str(roots[1]), f"again={more}", "--eval_strategy", "epoch"]
    report = train([*arguments, "--adapters_only", "true", "--num_train_epochs", "2"])
    assert [entry["name"] for entry in report["training_sets"]] == ["train", "nuts"]
    assert [bool(result["trained_on"]) for result in report["results"]] == [True, False, True]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for text in (
        "- train, test split: 14 images, 8 of them anomalous. Categories: stripes, weave.",
        "- nuts, test split: 7 images",
        "Adam, constant learning rates 0.001 (prompts, image-conditioned adapter) and 1e-05",
        "batches: 8 images, 2 epochs", "seed: 111",
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
def test_recipes_run(name, clip_folder, tmp_path):
    """Run the paper's two recipes on small datasets, with a small backbone and one epoch."""
    roots = {"mvtec": mvtec_official(tmp_path / "MVTec").root, "visa": visa_official(tmp_path / "VisA").root}
    other = "visa" if name == "mvtec" else "mvtec"
    report = train(
        [
            "--recipe", name, "--clip", str(clip_folder), "--image_size", "48",
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


def test_a_plain_trainer_works(roots, clip, tmp_path, image_processor):
    """Train with the Trainer of transformers: it finds the labels by name, and predictions are small."""
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
    labels, masks = output.label_ids
    assert (labels.shape, masks.shape) == ((14,), (14, 48, 48))
