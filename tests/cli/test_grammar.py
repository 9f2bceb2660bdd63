"""One grammar: the same thing has the same name in all commands, old spellings work, and mistakes are explained."""

import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from vip2clip_hf import AnomalyDetectionPipeline, bundled_checkpoint
from vip2clip_hf.cli import app, entry
from vip2clip_hf.cli.model_argument import check_model, is_checkpoint
from vip2clip_hf.cli.old_spellings import RENAMED, with_new_spellings
from vip2clip_hf.cli.train import _photos_first


FUNCTIONS = {name: one for group in entry.COMMANDS.values() for name, one in group.items() if name != "train"}
# Options whose type differs between commands, and why.
DIFFERENT = {
    "--model": "compare takes a checkpoint of each method",
    "--seed": "a list in reproduce",
    "--heatmaps": "of report, the folder that predict --heatmaps has written",
}
# Names that other commands use for the same thing.
FORBIDDEN = {
    "--checkpoint": "--model",
    "--normal": "PHOTOS",
    "--labelled": "PHOTOS",
    "--good": "PHOTOS",
    "--images": "PHOTOS",
    "--reference": "--references",
    "--reference-folder": "--references",
    "--save-maps": "--maps",
    "--output-dir": "--output",
    "--out": "--output",
    "--workers": "--num-workers",
    "--rate": "--false-alarm-rate",
    "--fpr": "--false-alarm-rate",
    "--tiles": "--tile-size",
    "--precision": "--dtype",
    "--force": "--overwrite",
}
# Commands whose first argument is something else than photos.
OTHER_ARGUMENTS = {
    "app": None,
    "demo": None,
    "export": None,
    "convert": "CHECKPOINT",
    "build-backbone": "",
    "reproduce": "TARGET...",
    "report": "PREDICTIONS",
    "serve": None,
    "push": "CHECKPOINT REPOSITORY",
}


def parameters_of(name: str, kind: str) -> dict[str, tuple[str, object]]:
    """Return type and description of the options or arguments of a command, by name."""
    found = {}
    for parameter, annotation in get_type_hints(FUNCTIONS[name], include_extras=True).items():
        if parameter != "return":
            type_, info = get_args(annotation)[:2]
            if type(info).__name__ == kind:
                names = [one for one in (info.default, *(info.param_decls or ())) if str(one).startswith("-")]
                names = [part for one in names for part in one.split("/")] or [f"--{parameter.replace('_', '-')}"]
                found.update(dict.fromkeys(names, (_name(type_), info)))
    return found


def _name(type_: object) -> str:
    return (type_.__name__ if isinstance(type_, type) else str(type_)).removesuffix(" | None").rpartition(".")[2]


def test_the_same_option_is_the_same_thing():
    seen = defaultdict(dict)
    for name in FUNCTIONS:
        for option, (type_, _) in parameters_of(name, "OptionInfo").items():
            seen[option].setdefault(type_, []).append(name)
    different = {option: kinds for option, kinds in seen.items() if len(kinds) > 1 and option not in DIFFERENT}
    assert not different
    assert set(DIFFERENT) <= {option for option, kinds in seen.items() if len(kinds) > 1}
    assert len(seen) > 60


def test_the_same_thing_has_the_same_name():
    for name in FUNCTIONS:
        for option in parameters_of(name, "OptionInfo"):
            assert option not in FORBIDDEN, f"{name} {option}: use {FORBIDDEN.get(option)}"


def test_photos_come_first():
    for name in FUNCTIONS:
        arguments = [info.metavar or "" for _, info in parameters_of(name, "ArgumentInfo").values()]
        expected = [OTHER_ARGUMENTS[name]] if name in OTHER_ARGUMENTS else ["PHOTOS", "PHOTOS..."]
        assert (" ".join(arguments) if arguments else None) in expected, name


@pytest.mark.parametrize("option", ["--tile-size", "--tile-overlap", "--device", "--bit-depth", "--page"])
def test_shared_options_have_one_help_text(option):
    found = [parameters_of(name, "OptionInfo").get(option) for name in FUNCTIONS]
    assert len({info.help for _, info in filter(None, found)}) == 1


# Old spellings


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        ("calibrate --model m --normal good", "calibrate --model m good", "use vip2clip calibrate PHOTOS."),
        ("calibrate --normal=good --output o", "calibrate good --output o", "calibrate --normal is deprecated"),
        ("calibrate --labelled x=set", "calibrate --f1 x=set", "use vip2clip calibrate PHOTOS --f1 (or --recall)."),
        ("calibrate --labelled set --recall 0.9", "calibrate set --recall 0.9", "calibrate --labelled is deprecated"),
        ("compare p --reference good", "compare p --references good", "use vip2clip compare --references."),
        ("convert --checkpoint a.pth --clip c", "convert a.pth --clip c", "use vip2clip convert CHECKPOINT."),
        (
            "evaluate p --references 4 --references=1",
            "evaluate p --num-references 4 --num-references 1",
            "use vip2clip evaluate --num-references NUMBER.",
        ),
        ("evaluate p --reference_folder d", "evaluate p --references d", "evaluate --reference-folder is deprecated"),
        ("evaluate p --save_maps", "evaluate p --maps", "use vip2clip evaluate --maps."),
        ("train --output o", "train --output_dir o", ""),
        ("predict p --model --normal", "predict p --model --normal", ""),
        ("predict -- --normal", "predict -- --normal", ""),
        ("--help", "--help", ""),
    ],
)  # fmt: skip
def test_old_spellings(old, new, note, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert with_new_spellings(old.split()) == new.split()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (0 if not note else 2 if old.count("--references") == 2 else 1)
    assert all(note in line for line in lines)


def test_a_folder_with_the_name_of_a_number(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "4").mkdir()
    arguments = ["evaluate", "p", "--references", "4", "--num-references", "1"]
    assert with_new_spellings(arguments) == arguments
    assert capsys.readouterr().err == ""


def test_no_old_spelling_is_an_option():
    for name, renamed in RENAMED.items():
        for option in renamed:
            assert name == "train" or option not in parameters_of(name, "OptionInfo")


# Mistakes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "photos/deep", "empty", "part"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "deep" / "1.PNG")
    (tmp_path / "part" / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("photos", "model", "message"),
    [
        ("photos", "photo.jpg", "--model 'photo.jpg' is a photo; expected a checkpoint folder or a Hub id such as"),
        ("photos", "other.JPG", "--model 'other.JPG' is the name of a photo; expected a checkpoint"),
        ("photos", "photos", "--model 'photos' is a folder of photos; expected a checkpoint"),
        ("photos", "empty", "--model 'empty' is a folder without config.json; expected a checkpoint"),
        ("photos", "./x", "--model './x' is a path that does not exist; expected a checkpoint"),
        ("photos", "empty/y", "--model 'empty/y' is a path that does not exist"),
        ("photos", "a/b/c", "--model 'a/b/c' is a path that does not exist"),
        ("photos", "C:\\models\\x", "is a path that does not exist"),
        ("photos", "https://huggingface.co/a/b", "is a URL; expected a checkpoint folder or a Hub id"),
        (
            "part",
            "photos",
            "PHOTOS 'part' is a checkpoint: they are swapped. Expected vip2clip predict PHOTOS --model",
        ),
        ("part", "photo.jpg", "they are swapped"),
        ("part", None, "PHOTOS 'part' is a checkpoint folder; expected photos. Expected vip2clip predict PHOTOS"),
    ],
)
def test_mistakes(photos, model, message, folder):
    with pytest.raises(typer.BadParameter) as raised:
        check_model("predict", model, [photos])
    assert message in str(raised.value)
    assert str(raised.value).endswith("Expected vip2clip predict PHOTOS --model CHECKPOINT.")
    done = CliRunner().invoke(app, ["predict", photos, *([] if model is None else ["--model", model])])
    assert done.exit_code == 2
    assert message.partition(";")[0].split("'")[0] in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize("model", [None, "part", "org/name", "gpt2", "openai/clip-vit-large-patch14-336"])
def test_what_may_be_a_checkpoint(model, folder):
    check_model("predict", model, ["photos", "photo.jpg", "x=photos", "https://example.org/photo.jpg", "absent"])
    assert is_checkpoint("part")
    assert is_checkpoint(str(bundled_checkpoint()))
    Image.new("RGB", (8, 8)).save("part/photo.png")
    assert not is_checkpoint("part")  # a folder of photos with a file of this name


@pytest.mark.parametrize(
    "arguments",
    [
        ["adapt", "photos", "--output", "new"], ["calibrate", "photos", "--output", "new"], ["app", "--no-browser"],
        ["evaluate", "photos", "--output", "new"], ["compare", "photos"], ["export", "--output", "new"],
        ["serve"], ["watch", "photos", "--output", "new"],
    ],
)  # fmt: skip
def test_every_command_explains_a_photo_as_model(arguments, folder):
    done = CliRunner().invoke(app, [*arguments, "--model", "photo.jpg"])
    assert done.exit_code == 2, done.output
    text = " ".join(done.stderr.replace("│", " ").split())
    assert "'photo.jpg' is a photo; expected a checkpoint" in text
    assert f"Expected vip2clip {arguments[0]}" in text
    assert not (folder / "new").exists()


def test_compare_takes_a_checkpoint_without_a_method(folder, monkeypatch):
    from vip2clip_hf.comparison import comparing

    given = {}
    monkeypatch.setattr(comparing, "compare_methods", lambda *args, **options: given.update(options) or {"notes": []})
    done = CliRunner().invoke(app, ["compare", "photos", "--model", "part", "--json"])
    assert done.exit_code == 0, done.output
    assert given["models"] == {"vip2clip": "part"}


def test_train_takes_photos(folder):
    assert _photos_first(["photos", "x=part", "--output_dir", "o"]) == [
        "--train_data", "photos", "x=part", "--output_dir", "o",
    ]  # fmt: skip
    for arguments in (["config.json", "--seed", "1"], ["--train_data", "photos"], []):
        assert _photos_first(arguments) == arguments
    with pytest.raises(typer.BadParameter, match="PHOTOS and --train_data are both given"):
        _photos_first(["photos", "--train-data", "x"])


def test_the_old_spelling_runs(folder, monkeypatch):
    monkeypatch.setattr(AnomalyDetectionPipeline, "from_pretrained", lambda *args, **options: SimpleNamespace())
    monkeypatch.setattr(sys, "argv", ["vip2clip", "calibrate", "--normal", "absent", "--output", "new"])
    with pytest.raises(SystemExit) as stopped:
        entry.main()
    assert stopped.value.code == 1
