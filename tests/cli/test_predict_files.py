"""Files that `vip2clip predict` writes without --output, and its summary for many photos."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vip2clip_hf import AnomalyDetectionPipeline
from vip2clip_hf.cli import app, photos as photo_module
from vip2clip_hf.models.vip2clip import load_image
from vip2clip_hf.reporting import read_predictions


SETTINGS = {
    "kind": "prediction",
    "model_checksum": "abc",
    "image_threshold": 0.5,
    "labels": ("normal", "anomalous"),
    "calibrated_with": None,
}


@pytest.fixture(autouse=True)
def detector(monkeypatch) -> dict:
    """A pipeline whose score is the brightness of the photo. Returns settings that can be changed, and its calls."""
    state = {"settings": dict(SETTINGS), "calls": [], "stop_at": None}

    def detect(photo, heatmap):
        state["calls"].append(photo)
        if len(state["calls"]) == state["stop_at"]:
            raise KeyboardInterrupt
        score = round(float(np.asarray(photo).mean()) / 255, 2)
        mask = np.zeros((photo.height, photo.width), bool)
        mask[: photo.height // 4] = score > 0.5
        found = {"score": score, "label": "anomalous" if score > 0.5 else "normal", "mask": mask, "p_value": None}
        return {**found, "heatmap": photo} if heatmap else found

    detect.load = load_image
    monkeypatch.setattr(AnomalyDetectionPipeline, "from_pretrained", lambda model, **options: detect)

    def table_settings(detector, model, options, root, heatmaps):
        threshold = options.get("threshold", (0.5, 0.5))[0]
        more = {"image_threshold": threshold, "source": {"folder": root}, "heatmaps_folder": heatmaps}
        return {**state["settings"], **more}

    monkeypatch.setattr(photo_module, "table_settings", table_settings)
    return state


def write(folder: Path, *levels: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for level in levels:
        Image.new("RGB", (8, 8), (level,) * 3).save(folder / f"{level:03d}.png")
    return folder


def predict(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments), "--model", "x"])


# The summary


def test_many_photos_are_summed_up(tmp_path):
    photos = write(tmp_path / "photos", *range(0, 250, 10))
    (photos / "broken.png").write_text("no")
    done = predict(photos)
    assert done.exit_code == 3
    lines = done.stdout.splitlines()
    assert lines[0] == "26 photos: 13 normal, 12 anomalous, 1 unreadable. Scores from 0.000 to 0.940."
    assert lines[1] == "The 10 highest scores:"
    assert [Path(line.partition(": ")[0]).name for line in lines[2:12]] == [f"{n}.png" for n in range(240, 140, -10)]
    assert lines[12] == "Could not be read:"
    assert "broken.png" in lines[13]
    assert len(lines) == 14
    assert "--all" in done.stderr
    assert "--sort FOLDER" in done.stderr
    done = predict(photos, "--all")
    assert len(done.stdout.splitlines()) == 26
    assert "--all" not in done.stderr
    done = predict(photos, "--threshold", "0.25")
    assert ", threshold 0.250." in done.stdout
    assert len(json.loads(predict(photos, "--json").stdout)) == 26


def test_few_photos_have_a_line_each(tmp_path):
    photos = write(tmp_path / "photos", *range(0, 200, 10))
    done = predict(photos)
    assert len(done.stdout.splitlines()) == 20
    assert done.stderr == ""


# Tables


def test_tables(tmp_path):
    pytest.importorskip("openpyxl")
    photos = write(tmp_path / "photos", 0, 200)
    write(photos / "sub", 100)
    (photos / "broken.png").write_text("no")
    files = "--csv", tmp_path / "r.csv", "--xlsx", tmp_path / "r.xlsx"
    done = predict(photos, *files, "--heatmap", tmp_path / "h")
    assert done.exit_code == 3, done.output
    assert f"Results written to {tmp_path / 'r.csv'}" in done.stdout
    text = (tmp_path / "r.csv").read_text()
    assert text.splitlines()[:3] == [
        "id,score,label,p_value,anomalous_area,error",
        "000.png,0,normal,,0,",
        "200.png,0.78,anomalous,,0.25,",
    ]
    assert text.splitlines()[3].startswith("broken.png,,,,,")
    assert text.splitlines()[4] == "sub/100.png,0.39,normal,,0,"
    found = read_predictions(tmp_path / "r.csv")
    assert (found.threshold, found.photos.root) == (0.5, str(photos))
    assert [found.photos.heatmap_file(position) is not None for position in range(4)] == [True, True, False, True]
    # JSON is not changed, and notices are not among it.
    again = predict(photos, *files, "--overwrite", "--json")
    assert set(json.loads(again.stdout)[0]) == {"image", "score", "label", "anomalous_pixels", "p_value"}
    assert "Results written" in again.stderr
    before = text
    done = predict(photos, *files)
    assert done.exit_code == 1
    assert "already exists" in str(done.exception)
    assert (tmp_path / "r.csv").read_text() == before


def test_a_table_never_replaces_a_photo(tmp_path):
    photos = write(tmp_path / "photos", 0)
    done = predict(photos, "--csv", photos / "000.png", "--overwrite")
    assert done.exit_code == 2
    assert "expected a name that ends with .csv" in " ".join(done.stderr.split())
    assert Image.open(photos / "000.png").size == (8, 8)


def test_names_of_photos_from_several_folders(tmp_path, monkeypatch):
    one, two = write(tmp_path / "a", 1), write(tmp_path / "b" / "c", 1)
    monkeypatch.chdir(one)
    predict("001.png", two, "--csv", tmp_path / "r.csv")
    found = read_predictions(tmp_path / "r.csv")
    assert [row.id for row in found.rows] == ["a/001.png", "b/c/001.png"]
    assert found.photos.root == str(tmp_path)
    assert all(os.path.isfile(found.photos.photo(position)) for position in (0, 1))


# Tables that grow


def test_append(detector, tmp_path):
    photos, table = write(tmp_path / "photos", 0, 200), tmp_path / "r.csv"
    (photos / "broken.png").write_text("no")
    assert predict(photos, "--csv", table, "--append").exit_code == 3
    first = table.read_text().splitlines()
    (photos / "000.png").unlink()  # its row stays
    write(photos, 100)
    Image.new("RGB", (8, 8), "white").save(photos / "broken.png")  # can be read now
    detector["calls"].clear()
    done = predict(photos, "--csv", table, "--append")
    assert done.exit_code == 0
    assert "2 new photos, 3 rows before." in done.stdout
    assert len(detector["calls"]) == 2
    rows = table.read_text().splitlines()
    assert rows[:3] == first[:3]
    assert rows[3:] == ["broken.png,1,anomalous,,0.25,", "100.png,0.39,normal,,0,"]
    done = predict(photos, "--csv", table, "--append")
    assert "0 new photos, 4 rows before." in done.stdout
    assert table.read_text().splitlines() == rows


def test_append_with_other_settings(detector, tmp_path):
    photos, table = write(tmp_path / "photos", 0), tmp_path / "r.csv"
    predict(photos, "--csv", table)
    before = table.read_text()
    write(photos, 100)
    detector["settings"]["model_checksum"] = "other"
    done = predict(photos, "--csv", table, "--append")
    assert done.exit_code == 1
    assert 'was created with a different model (was "abc", now "other")' in str(done.exception)
    detector["settings"]["model_checksum"] = "abc"
    done = predict(photos, "--csv", table, "--append", "--threshold", "0.25")
    assert "a different image_threshold setting (was 0.5, now 0.25)" in str(done.exception)
    done = predict(write(tmp_path / "other", 3), "--csv", table, "--append")
    assert "is outside of" in str(done.exception)
    (tmp_path / "r.csv.json").unlink()
    done = predict(photos, "--csv", table, "--append")
    assert "is missing, so" in str(done.exception)
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    assert "already exists" in str(predict(photos, "--csv", tmp_path / "mine.csv", "--append").exception)
    assert table.read_text() == before


def test_an_interrupted_append_keeps_its_rows(detector, tmp_path):
    photos, table = write(tmp_path / "photos", 0, 10, 20, 30), tmp_path / "r.csv"
    detector["stop_at"] = 3
    done = predict(photos, "--csv", table, "--append")
    assert done.exit_code != 0
    assert len(table.read_text().splitlines()) == 3
    detector.update(stop_at=None, calls=[])
    detector["calls"] = []
    assert "2 new photos, 2 rows before." in predict(photos, "--csv", table, "--append").stdout
    # Without --append, no partial table looks complete.
    detector.update(stop_at=len(detector["calls"]) + 2)
    predict(photos, "--csv", tmp_path / "new.csv")
    assert not (tmp_path / "new.csv").exists()


# Sorted photos


def test_sort(detector, tmp_path):
    photos = write(tmp_path / "photos", 0, 130, 200)
    (photos / "broken.png").write_text("no")
    done = predict(photos, "--sort", tmp_path / "sorted")
    assert done.exit_code == 3
    assert "1 good, 1 defect, 2 unsure. Unsure: the score is within 0.05 of the threshold 0.500" in done.stdout
    placed = sorted(path.relative_to(tmp_path / "sorted").as_posix() for path in (tmp_path / "sorted").rglob("*.png"))
    assert placed == ["defect/200.png", "good/000.png", "unsure/130.png", "unsure/broken.png"]
    assert sorted(path.name for path in photos.iterdir()) == ["000.png", "130.png", "200.png", "broken.png"]
    done = predict(photos, "--sort", tmp_path / "sorted", "--unsure-margin", "0")
    assert "1 good, 2 defect, 1 unsure" in done.stdout
    done = predict(photos, "--sort", photos / "sorted")
    assert "is inside" in str(done.exception)
    assert not (photos / "sorted").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--append",), "--append can only be used with --output FOLDER or --csv FILE"),
        (("--append", "--overwrite", "--csv", "a.csv"), "--append and --overwrite exclude each other"),
        (("--unsure-margin", "0.1"), "--unsure-margin can only be used with --sort"),
        (("--xlsx", "a.csv"), "expected a name that ends with .xlsx"),
        (("--overwrite",), "--overwrite can only be used with"),
    ],
)
def test_wrong_usage(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = predict(write(tmp_path / "photos", 0), *arguments)
    assert done.exit_code == 2, done.exception
    assert message in re.sub(r"[\s│]+", " ", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
