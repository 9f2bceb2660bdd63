"""Reports and tables of results: complete, self-contained, and safe with any file name."""

import base64
import csv
import hashlib
import html
import io
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from helpers.reports import EVIL, write_results
from helpers.tiny import EXAMPLES
from vip2clip_hf.cli import app
from vip2clip_hf.models.vip2clip import load_image
from vip2clip_hf.reporting import page as page_module, read_predictions
from vip2clip_hf.reporting.chart import histogram
from vip2clip_hf.reporting.csv_files import csv_text, read_csv, write_csv
from vip2clip_hf.reporting.photo_files import inside
from vip2clip_hf.reporting.pictures import small_photo
from vip2clip_hf.reporting.predictions import Prediction, Predictions
from vip2clip_hf.reporting.tables import write_xlsx
from vip2clip_hf.reporting.templates import render
from vip2clip_hf.utils.csv_cells import safe_cell
from vip2clip_hf.utils.files import write_atomically


def vip2clip(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return write_results(tmp_path_factory.mktemp("results"), names=EVIL)


@pytest.fixture(scope="module")
def page(results) -> str:
    output = results.parent / "report.html"
    done = vip2clip("report", results, "--output", output, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["num_images"], found["num_unreadable"]) == (13, 1)
    assert (found["report"]["num_pictures"], found["report"]["num_heatmaps"]) == (12, 12)
    assert found["report"]["num_bytes"] == output.stat().st_size
    return output.read_text(encoding="utf-8")


# The page


def test_content(page):
    text = html.unescape(page)
    assert text.startswith("<!DOCTYPE html>")
    for part in ("org/model", "0.5000", "false-alarm rate of 10 %", "2026-01-02", "threshold 0.500", "broken.png"):
        assert part in text
    assert [int(value) for value in re.findall(r"<b>(\d+)</b> <span>", page)] == [13, 6, 6, 1]
    rows = re.findall(r'<tr role="row" data-name="(.*?)" data-score="(.*?)"', page)
    assert html.unescape(rows[0][0]) == "part 005.jpg"
    assert [float(score) for _, score in rows] == sorted((float(score) for _, score in rows), reverse=True)
    assert {html.unescape(name) for name, _ in rows} > set(EVIL)


def test_nothing_is_loaded_and_only_the_own_script_runs(page):
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)[1])
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert page.count("<script") == 1
    assert not re.findall(r"(?:src|href)=\"(?!data:image/|#)[^\"]*\"", page)
    assert not re.findall(r"https?://|url\(|@import|\bon\w+=\"", page)
    for name in EVIL:
        if "<" in name or '"' in name:
            assert name not in page


def test_pictures_show_photo_and_map(page):
    pictures = re.findall(r'<img src="(data:image/\w+;base64,[^"]+)" width="(\d+)" height="(\d+)" alt="(\w+)"', page)
    assert [kind for *_, kind in pictures] == ["photo", "heatmap"] * 12
    assert {(width, height) for _, width, height, _ in pictures} == {("80", "60")}

    def pixels(uri: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"), int)

    photo, heatmap = (pixels(uri) for uri, *_ in pictures[:2])  # the highest score
    changed = np.abs(photo - heatmap).mean(axis=-1)
    assert changed[15:25, 20:32].mean() > 5 * changed[40:, 50:].mean()


def test_limits_and_missing_photos(results, tmp_path):
    found = read_predictions(results)
    (tmp_path / "photos").mkdir()
    moved = read_predictions(results, tmp_path / "photos")
    done = page_module.write_report(moved, tmp_path / "a.html", num_pictures=3, num_rows=5)
    assert (done["num_rows"], done["num_pictures"]) == (5, 0)
    text = html.unescape((tmp_path / "a.html").read_text())
    assert "The 5 photos with the highest scores are listed, of 12." in text
    assert "Pictures are missing for 3 photos." in text
    assert "pass their folder with --photos" in text
    with pytest.raises(ValueError, match="num_rows is -1"):
        page_module.write_report(found, tmp_path / "b.html", num_rows=-1)
    assert not (tmp_path / "b.html").exists()


def test_without_maps_the_page_says_how_to_get_them(tmp_path):
    found = read_predictions(write_results(tmp_path, 3, maps=False))
    page_module.write_report(found, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "There are no heatmaps: add --maps" in text
    # Heatmaps in another folder.
    (tmp_path / "h").mkdir()
    for number in range(3):
        Image.new("RGB", (80, 60), "red").save(tmp_path / "h" / f"part {number:03d}.jpg.png")
    done = page_module.write_report(read_predictions(tmp_path, None, tmp_path / "h"), tmp_path / "r.html")
    assert done["num_heatmaps"] == 3


def test_no_photo_could_be_read(tmp_path):
    found = Predictions([Prediction("a.jpg", error="<i>no</i>")], {}, "somewhere")
    page_module.write_report(found, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "There are no scores" in text
    assert "&lt;i&gt;no&lt;/i&gt;" in text


def test_ground_truth(tmp_path):
    rows = [
        Prediction("hit", 0.9, "anomalous", truth="anomalous"),
        Prediction("missed", 0.1, "normal", truth="anomalous"),
        Prediction("right", 0.2, "normal", truth="normal"),
        Prediction("alarm", 0.8, "anomalous", truth="normal"),
        Prediction("unknown", 0.8, "anomalous"),
    ]
    page_module.write_report(Predictions(rows, {"image_threshold": 0.5}), tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "Of 2 anomalous photos, 1 are found (50.0 %)." in text
    assert "Of 2 normal photos, 1 are reported as anomalous (50.0 %)." in text
    verdicts = dict(re.findall(r'data-name="(\w+)".*?(?:<b class="wrong">(.*?)</b>|</tr>)', text, re.DOTALL))
    assert verdicts == {"hit": "", "missed": "missed", "right": "", "alarm": "false alarm", "unknown": ""}
    table = csv_text(rows).splitlines()
    assert table[0].endswith(",truth")
    assert table[5].endswith(",")


def test_scripts_cannot_end_early():
    with pytest.raises(ValueError, match="</script"):
        render("vip2clip_hf.reporting", "base.html.jinja", script="x = '</SCRIPT>'")


@pytest.mark.parametrize("orientation", [1, 6])
def test_small_photos_are_those_of_the_loader(orientation, tmp_path):
    """Decoding at a fraction of the size changes neither orientation nor content."""
    x, y = np.meshgrid(np.linspace(0, 255, 1600), np.linspace(0, 255, 1200))
    image = Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.jpg", quality=95, exif=exif)
    expected = load_image(tmp_path / "a.jpg")
    expected.thumbnail((192, 192))
    small = small_photo(str(tmp_path / "a.jpg"), 192)
    assert small.size == expected.size == ((192, 144) if orientation == 1 else (144, 192))
    assert np.abs(np.asarray(small, int) - np.asarray(expected, int)).max() <= 6


def test_histogram():
    chart = histogram([("normal", "good", [0.1, 0.1, 0.2]), ("anomalous", "bad", [0.9])], 0.5, num_bins=8)
    assert sum(sum(column) for _, column in chart["table"]) == 4
    heights = {bar["title"].partition(": ")[2]: bar["height"] for bar in chart["bars"]}
    assert heights["2 normal"] == pytest.approx(2 * heights["1 normal"], abs=0.2)
    assert chart["left"] < chart["threshold"] < chart["right"]
    for bar in chart["bars"]:
        assert chart["left"] <= bar["x"] <= bar["x"] + bar["width"] <= chart["right"] + 0.1
    # A single photo among thousands is seen, and equal scores have a width.
    chart = histogram([("normal", "good", [0.5] * 5000), ("anomalous", "bad", [1.0])], None)
    assert min(bar["height"] for bar in chart["bars"]) >= 2
    assert histogram([], None)["bars"] == []


# Tables


def test_csv(results, tmp_path):
    done = vip2clip("report", results, "--csv", tmp_path / "r.csv")
    assert done.exit_code == 0, done.output
    with open(tmp_path / "r.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} == {
        *map(safe_cell, EVIL),
        *(f"part {n:03d}.jpg" for n in range(6)),
        "broken.png",
    }
    assert not [row["id"] for row in rows if row["id"][0] in "=+-@"]
    assert read_csv(tmp_path / "r.csv") == read_csv(results)  # names and settings


def test_names_in_csv_files_can_be_read_back(tmp_path):
    names = ["=a", "'=a", "''-b", "'quoted'", "plain", 'a,b"c', "ünï✓", "'"]
    write_csv([Prediction(name, 0.5, "normal") for name in names], tmp_path / "a.csv")
    assert [row.id for row in read_csv(tmp_path / "a.csv")[0]] == names


def test_excel_runs_no_formula(results, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    done = vip2clip("report", results, "--xlsx", tmp_path / "r.xlsx")
    assert done.exit_code == 0, done.output
    book = openpyxl.load_workbook(tmp_path / "r.xlsx")
    cells = [cell for sheet in book for row in sheet for cell in row if cell.value is not None]
    assert {cell.data_type for cell in cells} == {"s", "n"}
    values = list(book["Photos"].values)
    assert values[0] == ("Photo", "Score", "Label", "p-value", "Anomalous area", "Error")
    assert {row[0] for row in values[1:]} == {*EVIL, *(f"part {number:03d}.jpg" for number in range(6)), "broken.png"}
    assert values[1][:3] == ("part 005.jpg", 1, "anomalous")
    assert book["Photos"]["A2"].quotePrefix
    assert ("Model", "org/model") in list(book["Settings"].values)


def test_excel_limits(tmp_path, monkeypatch):
    pytest.importorskip("openpyxl")
    from vip2clip_hf.reporting import tables

    monkeypatch.setattr(tables, "MOST_ROWS", 1)
    with pytest.raises(ValueError, match="at most 1 for an Excel file"):
        write_xlsx(Predictions([Prediction("a", 0.5, "normal")] * 2), tmp_path / "a.xlsx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,score\na,1\n", "has the columns name, score; expected id, score"),
        ("id,score,label\na,high,normal\n", "line 2: score is 'high'; expected a number"),
        ("id,score,label\na,2,normal\n", "line 2: score is 2; expected a number in"),
        ("id,score,label\na,nan,normal\n", "line 2: score is nan; expected a number in"),
        ("id,score,label\n,0.5,normal\n", "line 2: id is empty"),
        ("id,score,label\na,0.5,good\n", "the label of 'a' is 'good'; expected normal or anomalous"),
        ("", "has the columns none"),
    ],
)
def test_wrong_tables(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_predictions(tmp_path / "a.csv")


def test_the_last_row_of_a_photo_counts(tmp_path):
    """A watcher appends another row when a photo changes. Programs add a byte order mark and columns."""
    rows = "a,0.1,normal,,,,x\nb,0.2,normal,,,,x\na,0.9,anomalous,,,,y\n"
    text = f"\ufeffid,score,label,p_value,anomalous_area,error,time\n{rows}"
    (tmp_path / "results.csv").write_text(text, encoding="utf-8")
    (tmp_path / "settings.json").write_text(json.dumps({"kind": "watch", "image_threshold": 0.5}))
    found = read_predictions(tmp_path)
    assert [(row.id, row.score) for row in found.rows] == [("b", 0.2), ("a", 0.9)]
    assert found.threshold == 0.5
    (tmp_path / ".progress").mkdir()  # while the watcher runs
    assert len(read_predictions(tmp_path).rows) == 2


# Safe paths and files


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "", "a\0b", ".."])
def test_names_cannot_leave_the_folder(name, tmp_path):
    assert inside(tmp_path, name) is None
    with pytest.raises(OSError, match=r"not found in|not known"):
        read_one(tmp_path, name).photos.photo(0)


def read_one(root: Path, name: str) -> Predictions:
    from vip2clip_hf.reporting.photo_files import PhotoFiles

    return Predictions([Prediction(name, 0.5, "normal")], photos=PhotoFiles(str(root), [name]))


def test_a_table_of_somebody_else_shows_no_other_photo(tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8), "red").save(secret)
    (tmp_path / "photos").mkdir()
    rows = "".join(f"{name},0.9,anomalous\n" for name in ("../secret.png", secret, f"file://{secret}"))
    (tmp_path / "a.csv").write_text(f"id,score,label\n{rows}")
    found = read_predictions(tmp_path / "a.csv", tmp_path / "photos")
    assert page_module.write_report(found, tmp_path / "r.html")["num_pictures"] == 0


@pytest.mark.skipif(os.name == "nt", reason="such names are not possible")
def test_photos_with_escaped_names_are_found(tmp_path):
    name = "a\nb\t=.png"
    found = read_predictions(write_results(tmp_path, 2, names=(name,)))
    assert sorted(row.id for row in found.rows)[:2] == [r"a\nb\t=.png", "broken.png"]
    assert page_module.write_report(found, tmp_path / "r.html")["num_pictures"] == 2


def test_existing_files_are_kept(results, tmp_path):
    mine = tmp_path / "mine.csv"
    mine.write_text("mine")
    assert "already exists" in str(vip2clip("report", results, "--csv", mine).exception)
    assert "would replace a file that is read" in str(
        vip2clip("report", results, "--csv", results, "--overwrite").exception
    )
    done = vip2clip("report", results, "--output", results.parent / "photos" / "part 001.jpg", "--overwrite")
    assert done.exit_code == 2
    assert mine.read_text() == "mine"
    assert vip2clip("report", results, "--csv", mine, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Pass at least one of --output"),
        (("--csv", "a.csv", "--link", "hard"), "--link can only be used with --sort-into"),
        (("--xlsx", "a.csv"), "expected a name that ends with .xlsx"),
        (("--sort-into", "x", "--link", "soft"), "expected no, hard, symbolic"),
    ],
)
def test_wrong_usage(arguments, message, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = vip2clip("report", results, *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_no_predictions(tmp_path):
    with pytest.raises(OSError, match=r"contains neither predictions\.parquet nor results\.csv"):
        read_predictions(tmp_path)
    with pytest.raises(OSError, match="not found; expected the folder of vip2clip predict"):
        read_predictions(tmp_path / "absent")
    (tmp_path / ".progress").mkdir()
    with pytest.raises(OSError, match="not finished; run the same command again"):
        read_predictions(tmp_path)
    with pytest.raises(OSError, match="is not a folder; expected the folder of the photos"):
        read_predictions(tmp_path, tmp_path / "absent")


@pytest.mark.slow
def test_a_thousand_photos(tmp_path):
    """Less than 20 MB, and less than 30 seconds of CPU time."""
    originals = [Image.open(path).convert("RGB").resize((1600, 1200)) for path in sorted(EXAMPLES.rglob("*.jpg"))[:12]]
    y, x = np.mgrid[:518, :518]
    (tmp_path / "photos").mkdir()
    (tmp_path / "maps").mkdir()
    files = []
    for number, photo in enumerate(originals):
        stream = io.BytesIO()
        photo.save(stream, "JPEG", quality=90)
        anomaly_map = np.exp(-((x - 30 * number) ** 2 + (y - 200) ** 2) / 2000).astype(np.float16)
        files.append((stream.getvalue(), anomaly_map))
    rows = []
    for number in range(1000):
        name, (content, anomaly_map) = f"{number:04d}.jpg", files[number % len(files)]
        (tmp_path / "photos" / name).write_bytes(content)
        np.save(tmp_path / "maps" / f"{name}.npy", anomaly_map)
        rows.append(Prediction(name, number / 999, "anomalous" if number > 900 else "normal", 0.5, 0.1))
    write_csv(rows, tmp_path / "results.csv", {"kind": "prediction", "source": {"folder": str(tmp_path / "photos")}})
    start = time.process_time()
    done = page_module.write_report(read_predictions(tmp_path), tmp_path / "report.html")
    assert time.process_time() - start < 30
    assert (done["num_pictures"], done["num_heatmaps"]) == (1000, 1000)
    assert 1e6 < done["num_bytes"] < 20e6


def test_a_truncated_row_is_an_error(tmp_path):
    """A row without its end must not become a result without a label."""
    path = tmp_path / "cut.csv"
    path.write_text("id,score,label,error\na.png,0.5,normal,\nb.png,0.9")
    with pytest.raises(ValueError, match=r"cut\.csv, line 3 has 2 values; expected 4"):
        read_csv(path)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    """The error names the file of the user, not the temporary one."""
    path = tmp_path / "absent" / "report.html"
    with pytest.raises(FileNotFoundError) as raised:
        write_atomically(path, "text")
    assert raised.value.filename == str(path)
