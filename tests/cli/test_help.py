"""Conventions of the `vip2clip` command: help, `--json`, exit codes, what goes to stdout and stderr."""

import inspect
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from vip2clip_hf import AnomalyDetectionPipeline, DecisionConfig
from vip2clip_hf._version import __version__
from vip2clip_hf.calibration import detection, from_normal, saving
from vip2clip_hf.cli import app, entry, options, photos as photo_module
from vip2clip_hf.cli.errors import explain
from vip2clip_hf.cli.options import print_json
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.models.vip2clip import load_image


COMMANDS = {name: function for group in entry.COMMANDS.values() for name, function in group.items()}
# `app` and `serve` run until they are stopped; all others print a result.
WITH_RESULT = sorted(set(COMMANDS) - {"app", "serve"})
LONGEST_SUMMARY = 60


def vip2clip(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def run_main(monkeypatch, *arguments) -> int:
    """Run the entry point, which prints errors, and return the exit code."""
    monkeypatch.setattr(sys, "argv", ["vip2clip", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        entry.main()
    return stopped.value.code or 0


@pytest.fixture
def photos(tmp_path):
    """Two photos, the second of which is damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (30, 20), "grey").save(folder / "good.png")
    content = (folder / "good.png").read_bytes()
    (folder / "damaged.png").write_bytes(content[: len(content) // 2])
    return folder


@pytest.fixture
def detector(monkeypatch) -> list:
    """Replace the pipeline by one that only reads the photos. Returns the arguments it was created with."""
    created = []

    def detect(photo, heatmap):
        photo.load()  # an image that was read by the command
        return {"score": 0.25, "label": "normal", "mask": np.zeros((20, 30), bool), "p_value": None}

    detect.load = load_image

    def from_pretrained(model, **settings):
        created.append((model, settings))
        return detect

    monkeypatch.setattr(AnomalyDetectionPipeline, "from_pretrained", from_pretrained)
    return created


# Help


def test_group_help():
    done = vip2clip("--help")
    assert done.exit_code == 0
    assert done.stderr == ""
    text = " ".join(done.stdout.split())
    assert "Exit codes: 0 success, 1 error, 2 wrong usage, 3 " in text
    for heading, functions in entry.COMMANDS.items():
        assert f"{heading}:" in done.stdout
        for name, function in functions.items():
            summary = inspect.getdoc(function).splitlines()[0]
            assert f"{name} {summary}" in text, "the summary is shortened"
    assert vip2clip().output == done.output  # without arguments


def test_version():
    done = vip2clip("--version")
    assert (done.exit_code, done.stdout) == (0, f"{__version__}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help(name):
    first, *rest = inspect.getdoc(COMMANDS[name]).splitlines()
    assert 0 < len(first) <= LONGEST_SUMMARY
    assert first.endswith(".")
    assert rest[:1] in ([], [""])
    done = vip2clip(name, "--help")
    assert done.exit_code == 0
    assert done.stderr == ""
    assert first.rstrip(".") in done.stdout
    examples = done.stdout.lower().partition("example")[2]
    assert f"  vip2clip {name}" in examples


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"train"}))
def test_every_option_has_a_help_text(name):
    command = typer.main.get_command(app).commands[name]
    for parameter in command.params:
        if parameter.name != "help":
            text = parameter.help
            assert text, parameter.name
            assert text.endswith((".", "...")), f"{parameter.name}: {text}"
            assert text[0].isupper() or text.startswith(("exact", "onnx")), f"{parameter.name}: {text}"


@pytest.mark.parametrize("name", WITH_RESULT)
def test_json_option(name):
    assert "--json" in vip2clip(name, "--help").stdout


# Exit codes


def test_train_without_arguments_prints_the_help():
    done = vip2clip("train")
    assert done.exit_code == 2
    assert done.stdout == vip2clip("train", "--help").stdout
    assert vip2clip("train", "--help").exit_code == 0


def test_json_has_no_nan(capsys):
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"auroc": float("nan")})
    assert capsys.readouterr().out == ""


def test_errors(monkeypatch, capsys):
    """Expected errors are one line on stderr, with exit code 1."""
    assert run_main(monkeypatch, "predict", "absent.jpg", "--model", "x") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "Error: 'absent.jpg' not found; expected a photo or a folder of photos.\n"


@pytest.mark.parametrize("error", [ImportError("a"), RuntimeError("a"), TypeError("a"), ValueError("a")])
def test_expected_errors(error):
    assert explain(error) == "a"


def test_unexpected_errors_say_how_to_see_the_traceback(monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise KeyError("bug")

    monkeypatch.setattr(entry, "app", fail)
    assert run_main(monkeypatch, "demo") == 1
    assert capsys.readouterr().err == (
        "Error: KeyError: 'bug'. This is not expected; set VIP2CLIP_TRACEBACK=1 to see where it happens, and report "
        "it.\n"
    )
    monkeypatch.setenv("VIP2CLIP_TRACEBACK", "1")
    with pytest.raises(KeyError, match="bug"):
        entry.main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "No such command 'absent'"),
        (["predict"], "Missing argument 'PHOTOS...'"),
        (["predict", "x", "--absent"], "No such option: --absent"),
        (["predict", "x", "--heatmaps"], "--heatmaps can only be used with --output FOLDER"),
        (["predict", "x", "--output", "y", "--regions"], "--regions cannot be used with --output"),
        (["predict", "x", "--batch-size", "0"], "--batch-size"),
        (["calibrate"], "Missing argument 'PHOTOS'"),
        (["convert", "--clip", "y", "--output", "z"], "Missing argument 'CHECKPOINT'"),
        (["convert", "x", "--clip", "y"], "Missing option '--output'"),
        (["data", "x", "--column", "image"], "--column is 'image'; expected NAME=COLUMN, such as image=file_name"),
        (["data", "x", "--benchmark", "mvtec", "--normal-label", "good"], "omit --benchmark"),
        (["export", "--output", "x", "--format", "torch", "--opset", "18"], "--opset applies to --format onnx only"),
        (["data", "x", "--write-thirds", "y", "--column", "image=a"], "omit --write-thirds"),
        (["evaluate", "x", "--output", "y", "--aupro-convention", "old"], "expected exact, release"),
        (["predict", "x", "--dtype", "int8"], "expected float32, bfloat16, float16"),
        (["export", "--output", "x", "--format", "tflite"], "expected onnx, torch"),
        (["app", "--port", "0"], "--port"),
        (["train", "--absent", "1"], "Unknown argument"),
    ],
)
def test_wrong_usage(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = vip2clip(*arguments)
    assert done.exit_code == 2, done.exception
    assert done.stdout == ""
    assert message in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_partial_prediction(photos, detector):
    done = vip2clip("predict", photos, "--model", "x", "--json")
    assert done.exit_code == 3
    damaged, good = json.loads(done.stdout)
    assert good["score"] == 0.25
    assert damaged["image"].endswith("damaged.png")
    assert set(damaged) == {"image", "error"}
    (photos / "damaged.png").unlink()
    assert vip2clip("predict", photos, "--model", "x").exit_code == 0
    # The only photo: an error.
    (photos / "good.png").write_text("not an image")
    assert vip2clip("predict", photos / "good.png", "--model", "x").exit_code == 1


@pytest.mark.parametrize(("unreadable", "code"), [([], 0), (["damaged.png"], 3)])
def test_partial_calibration(unreadable, code, photos, detector, tmp_path, monkeypatch):
    detector_of_photos = SimpleNamespace(load=lambda path: Image.new("RGB", (8, 8)), references=None)
    monkeypatch.setattr(AnomalyDetectionPipeline, "from_pretrained", lambda *args, **kwargs: detector_of_photos)
    monkeypatch.setattr(detection, "estimate_detection", lambda *args, **kwargs: None)
    found = SimpleNamespace(
        decision=DecisionConfig(0.5, 0.25, calibration={"num_images": 1}, image_scores=[0.1]),
        detection=None,
        image_threshold=0.5,
        pixel_threshold=0.25,
        suspicious=[],
        unreadable=unreadable,
    )
    monkeypatch.setattr(from_normal, "calibrate", lambda *args, **kwargs: found)
    monkeypatch.setattr(saving, "save_calibration", lambda found, checkpoint, output: output or checkpoint)
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "config.json").write_text("{}")
    arguments = ["calibrate", photos, "--model", tmp_path / "part"]
    done = vip2clip(*arguments)
    assert done.exit_code == code
    assert done.stdout.startswith("image threshold 0.500000, pixel threshold 0.250000\nfrom 1 images; ")
    done = vip2clip(*arguments, "--json")
    assert done.exit_code == code
    assert json.loads(done.stdout)["unreadable"] == unreadable
    assert not any("scores" in name for name in json.loads(done.stdout))


def test_problems_of_a_dataset(tmp_path):
    root = write_dataset(tmp_path / "set", ("dots",), num_normal=1, num_anomalous=1, size=16)
    assert vip2clip("data", root, "--check", "--strict").exit_code == 0
    image = next(iter(sorted((root / "dots" / "test" / "good").iterdir())))
    image.write_bytes(b"damaged")
    assert vip2clip("data", root).exit_code == 0  # not opened
    done = vip2clip("data", root, "--check", "--json")
    assert done.exit_code == 3
    assert image.name in str(json.loads(done.stdout)["check"])


# Streams


def test_results_and_notes(photos, detector, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (photos / "damaged.png").unlink()
    monkeypatch.setattr(photo_module, "MANY_PHOTOS", 0)
    done = vip2clip("predict", photos)
    assert done.stdout == f"{photos / 'good.png'}: 0.250 normal\n"
    bundled, many = done.stderr.splitlines()
    assert bundled.startswith("Using the small bundled checkpoint. It needs photos of good parts as references")
    assert "A ViT-L/14 checkpoint is better: --model" in bundled
    assert many == "1 photos: with --output FOLDER, prediction is batched and an interrupted run resumes."
    assert detector[0][0].endswith("vip2clip-tiny")
    again = vip2clip("predict", photos)
    assert again.stdout == done.stdout
    assert again.stderr.splitlines() == [many]  # the note on the checkpoint is shown once
    done = vip2clip("predict", photos / "good.png", "--model", "x", "--json")
    assert [row["label"] for row in json.loads(done.stdout)] == ["normal"]  # the schema of a folder


def test_the_note_does_not_need_the_cache(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("no folder")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("HF_HOME", str(home))
        for _ in range(2):  # nothing can be remembered
            options.checkpoint_or_bundled(None)
            assert len(capsys.readouterr().err.splitlines()) == 1


def test_one_process_prints_the_note(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    bundled = options.checkpoint_or_bundled(None)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert options.checkpoint_or_bundled(None) == bundled
    assert "bundled checkpoint" in capsys.readouterr().err
    assert options.checkpoint_or_bundled("org/model") == "org/model"
    assert capsys.readouterr() == ("", "")


# Arguments


def test_underscores_are_accepted(photos, detector):
    assert vip2clip("predict", photos / "good.png", "--model", "x", "--tile_size", 32).exit_code == 0
    assert detector[0][1]["tile_size"] == 32


def test_settings():
    found = options.parse_settings(["image_size=518", "feature_layers=[6, 12]", "word=a=b", "variant = paper", "x="])
    assert found == {"image_size": 518, "feature_layers": [6, 12], "word": "a=b", "variant": " paper", "x": ""}
    for text in ("image_size", "=518", " =518"):
        with pytest.raises(typer.BadParameter, match="expected NAME=VALUE, such as image_size=518"):
            options.parse_settings([text])


def test_a_missing_package_of_the_installation_is_explained(monkeypatch):
    """In an environment for the runtime without torch."""
    error = ModuleNotFoundError("No module named 'transformers.no_such'", name="transformers.no_such")
    assert explain(error) == "No module named 'transformers.no_such'"  # installed, in another version
    monkeypatch.setattr("vip2clip_hf.cli.errors.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "transformers")
    text = explain(error)
    assert text.startswith("transformers is not installed.")
    assert "--runtime onnx" in text
    assert explain(ModuleNotFoundError("No module named 'other'", name="other")) == "No module named 'other'"
