"""`vip2clip adapt`: output, exit codes and wrong usage."""

import json

import pytest
from typer.testing import CliRunner

from helpers.good_photos import bad_photo, write_photos, write_tiny_checkpoint
from vip2clip_hf.calibration import synthetic_defects
from vip2clip_hf.cli import app


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(autouse=True)
def few_synthetic_defects(monkeypatch):
    """Most of the time is spent on them."""
    monkeypatch.setattr(synthetic_defects, "MAX_PHOTOS", 3)


def vip2clip(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_adapt_predict_and_update(checkpoint, tmp_path):
    good = write_photos(tmp_path / "good", 20)
    part = tmp_path / "part"
    done = vip2clip("adapt", good, "--model", checkpoint, "--output", part, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "20 references." in done.stdout
    assert "the true rate lies between 0.3 and 13.9 %" in done.stdout
    assert f"Written to {part}." in done.stdout
    write_photos(tmp_path / "new", 1, 90, bad_photo)
    done = vip2clip("predict", tmp_path / "new", "--model", part, "--heatmap", tmp_path / "maps", "--json")
    (row,) = json.loads(done.stdout)
    assert (row["label"], row["p_value"]) == ("anomalous", 1 / 21)
    done = vip2clip("adapt", write_photos(tmp_path / "more", 2, 30), "--update", part, "--json", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["num_references"] == 22
    done = vip2clip("adapt", "--update", part, "--drop", "30.png", "--json", "--device", "cpu")
    assert json.loads(done.stdout)["dropped"] == ["30.png"]


def test_exit_code_for_undecided_outliers_and_unreadable_photos(checkpoint, tmp_path):
    good = write_photos(tmp_path / "good", 8)
    bad_photo(30).save(good / "bad.png")
    arguments = ("adapt", good, "--model", checkpoint, "--device", "cpu")
    done = vip2clip(*arguments, "--output", tmp_path / "one")
    assert done.exit_code == 3
    assert done.stdout.startswith("Look unlike the others, and are used: bad.png.")
    for option in (("--keep", "bad.png"), ("--drop", "bad.png"), ("--drop-outliers",)):
        assert vip2clip(*arguments, "--output", tmp_path / f"part{option[0]}", *option).exit_code == 0
    (good / "broken.png").write_bytes(b"no image")
    done = vip2clip(*arguments, "--output", tmp_path / "two", "--drop-outliers", "--json")
    assert done.exit_code == 3
    assert list(json.loads(done.stdout)["unreadable"]) == ["broken.png"]


def test_defects(checkpoint, tmp_path):
    good, bad = write_photos(tmp_path / "good", 8), write_photos(tmp_path / "bad", 5, 50, bad_photo)
    done = vip2clip("adapt", good, "--model", checkpoint, "--output", tmp_path / "part", "--defects", bad,
                    "--miss-cost", 5, "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "By cross-validation, 100 % of the defects are found, with 0 % false alarms" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Pass either --output"),
        (("GOOD",), "Pass either --output"),
        (("--output", "x"), "PHOTOS is missing"),
        (("--update", "x"), "PHOTOS is missing"),
        (("GOOD", "--update", "x", "--rotations"), "--rotations cannot be used with --update"),
        (("GOOD", "--update", "x", "--model", "y"), "--model cannot be used with --update"),
        (("GOOD", "--output", "x", "--miss-cost", "2"), "--miss-cost can only be used with --defects"),
    ],
)
def test_wrong_usage(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "GOOD", 1)
    done = vip2clip("adapt", *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", "").split())
    assert not (tmp_path / "x").exists()


def test_the_output_is_not_inside_the_photos(tmp_path):
    good = write_photos(tmp_path / "good", 2)
    done = vip2clip("adapt", good, "--output", good / "part")
    assert done.exit_code == 1
    assert "is inside" in str(done.exception)
    done = vip2clip("adapt", good / "00.png", "--output", tmp_path / "part")
    assert "is not a folder" in str(done.exception)
