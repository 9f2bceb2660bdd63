"""Odd data found by trying the commands as a new user."""

import io
import sys

import datasets
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from helpers.tiny import TINY
from vip2clip_hf import ViP2ClipImageProcessor
from vip2clip_hf.cli import app
from vip2clip_hf.cli.streams import read_paths
from vip2clip_hf.data.checks import check_data
from vip2clip_hf.data.loading import index_folder, load_folder
from vip2clip_hf.evaluation.reports import settings_lines
from vip2clip_hf.models.vip2clip.image_loading_vip2clip import load_image
from vip2clip_hf.training.run_folder import RunFolder


RNG = np.random.default_rng(0)


def write(path, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8)).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(RNG.integers(0, 256, (12, 12), dtype=np.uint8)))
    image.save(path, **options)


def strict(root):
    return CliRunner().invoke(app, ["data", str(root), "--check", "--strict"])


@pytest.mark.parametrize("kind", ["transparent", "pages", "black"])
def test_strict_counts_guesses_about_photos(tmp_path, kind, caplog):
    """They were only logged, so the exit code was 0 and the report had no photos."""
    for name in ("good/0.png", "good/1.png", "bad/0.png"):
        write(tmp_path / name)
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.eye(12, dtype=np.uint8) * 255).save(tmp_path / "masks" / "0.png")
    (tmp_path / "bad" / "0.png").rename(tmp_path / "bad" / "7.png")
    (tmp_path / "masks" / "0.png").rename(tmp_path / "masks" / "7.png")
    assert strict(tmp_path).exit_code == 0, strict(tmp_path).stdout
    if kind == "transparent":
        write(tmp_path / "good" / "odd.png", "RGBA")
    elif kind == "pages":
        pages = [Image.fromarray(RNG.integers(0, 256, (size, size, 3), dtype=np.uint8)) for size in (4, 12)]
        pages[0].save(tmp_path / "good" / "odd.tif", save_all=True, append_images=pages[1:])
    else:
        Image.fromarray(np.eye(12, dtype=np.uint8)).save(tmp_path / "good" / "odd.png")
    found = check_data(index_folder(tmp_path))
    names = [name for names in found.warnings.values() for name in names]
    assert [name for name in names if "odd" in name], found
    done = strict(tmp_path)
    assert done.exit_code == 1
    assert any(word in done.stderr for word in ("transparent", "largest page", "only 0 and 1")), done.stderr
    caplog.clear()
    load_image(next((tmp_path / "good").glob("odd.*")))  # logged as before outside the check
    assert caplog.text


@pytest.mark.parametrize("masks", ["labels/0.txt", "masks/notes.txt", "masks/0.npy", "masks/0.png"])
def test_images_beside_a_folder_without_readable_masks(tmp_path, masks):
    """All images were normal."""
    for number in range(3):
        write(tmp_path / "images" / f"{number}.png")
    (tmp_path / masks).parent.mkdir()
    (tmp_path / masks).write_bytes(b"0 0.5 0.5 0.1 0.1")
    with pytest.raises(ValueError, match=r"no mask can be read|layout"):
        load_folder(tmp_path)
    assert load_folder(tmp_path, layout="flat")["label"] == [None] * 3


def test_empty_masks_only_are_a_warning(tmp_path):
    for number in range(3):
        write(tmp_path / "images" / f"{number}.png")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.new("L", (12, 12)).save(tmp_path / "masks" / f"{number}.png")
    assert "empty masks only, so all images count as normal" in index_folder(tmp_path).warnings


def test_rows_that_contradict_each_other(tmp_path):
    """The first row won."""
    write(tmp_path / "0.png")
    write(tmp_path / "1.png")
    table = tmp_path / "table.csv"
    table.write_text("image,label\n0.png,good\n1.png,bad\n0.png,bad\n")
    with pytest.raises(ValueError, match=r"'table.csv' has rows with different labels for '0.png'"):
        load_folder(table)
    table.write_text("image,label\n0.png,good\n1.png,bad\n0.png,good\n")
    assert load_folder(table)["label"] == [0, 1]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-8", "utf-8-sig"])
def test_lists_of_paths_in_other_encodings(monkeypatch, encoding):
    """A list of PowerShell was split at its zero bytes, so the current folder was scored."""
    bom = {"utf-16-be": b"\xfe\xff", "utf-16-le": b"\xff\xfe"}.get(encoding, b"")
    content = bom + "a.png\r\nb ü.png\r\n".encode(encoding)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert read_paths() == ["a.png", "b ü.png"]


def test_reports_of_inverted_masks():
    settings = {
        "fpr_limit": 0.3,
        "aupro_convention": "exact",
        "dtype": "float32",
        "image_size": 48,
        "mask_threshold": 127,
    }
    result = {"name": "x", "split": "test", "settings": settings}
    assert "mask values above 127 are anomalous." in settings_lines([result])[0]
    options = {"threshold": 127, "invert": True, "channel": "red"}
    text = settings_lines([{**result, "mask_options": options}])[0]
    assert "mask values up to 127 are anomalous (inverted), mask channel red." in text


@pytest.mark.parametrize("name", ["config.json", "decision.json", "preprocessor_config.json", "modeling_vip2clip.py"])
def test_training_does_not_replace_files_of_a_model(tmp_path, name):
    """Only weights were noticed."""
    (tmp_path / name).write_text("mine")
    (tmp_path / "README.md").write_text("mine")
    assert RunFolder(tmp_path).in_the_way() == ([], [name])


@pytest.mark.parametrize(
    "name",
    [
        "SegmentationClass",
        "SegmentationClassPNG",
        "SegmentationObject",
        "labelsTr",
        "label_images",
        "Masken",
        "_masks",
    ],
)
def test_more_names_of_mask_folders(tmp_path, name):
    """They were kinds of defects, and the masks anomalous images."""
    for photo in ("good/0.png", "bad/1.png", "bad/2.png"):
        write(tmp_path / photo)
    (tmp_path / name).mkdir()
    for number in (1, 2):
        Image.fromarray(np.eye(12, dtype=np.uint8) * 255).save(tmp_path / name / f"{number}.png")
    dataset = load_folder(tmp_path)
    assert (sorted(dataset["label"]), sum(mask is not None for mask in dataset["mask"])) == ([0, 1, 1], 2)


def test_a_row_without_an_image(tmp_path):
    """It ended in a TypeError."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [{"bytes": content.getvalue(), "path": None}, None]
    table = tmp_path / "table.parquet"
    datasets.Dataset.from_dict({"image": images, "label": [0, 0]}, features=features).to_parquet(table)
    done = CliRunner().invoke(app, ["data", str(table), "--check"])
    assert done.exit_code == 3, (done.output, done.exception)
    assert "the row has no image" in done.stdout


def test_options_of_a_training_are_saved(tmp_path, clip_folder):
    """12-bit photos could not be trained on, and later evaluations did not know the options for masks."""
    for name in ("good/0", "good/1", "bad/2", "bad/3"):
        path = tmp_path / "set" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 4096, (48, 48)).astype(np.uint16)).save(path)
    (tmp_path / "set" / "masks").mkdir()
    for number in (2, 3):
        mask = Image.new("L", (48, 48), 255)
        mask.paste(0, (4, 4, 20, 20))
        mask.save(tmp_path / "set" / "masks" / f"{number}.png")
    options = ["--bit_depth", "12", "--mask_threshold", "127", "--mask_invert", "--max_steps", "1", "--use_cpu"]
    layers = [str(layer) for layer in TINY["feature_layers"]]
    model = ["--clip", str(clip_folder), "--image_size", "48", "--top_k", "3", "--feature_layers", *layers]
    data = ["--train_data", str(tmp_path / "set"), "--output_dir", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["train", *model, *data, *options])
    assert done.exit_code == 0, (done.output, done.exception)
    found = ViP2ClipImageProcessor.from_pretrained(tmp_path / "out")
    assert (found.bit_depth, found.mask_threshold, found.mask_invert) == (12, 127, True)


def test_a_table_that_lists_few_images_of_the_folder(tmp_path):
    """The other images were left out without a word."""
    for name in ("good/0", "good/1", "good/2", "bad/3", "bad/4"):
        write(tmp_path / f"{name}.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\ngood/0.png,good\nbad/3.png,bad\n")
    index = index_folder(tmp_path)
    assert len(index.rows) == 2
    kind = "images and masks that the table in the folder does not list, left out"
    assert sorted(index.warnings[kind]) == ["bad/4.png", "good/1.png", "good/2.png"]
    assert strict(tmp_path).exit_code == 1
    assert kind not in index_folder(tmp_path / "metadata.csv").warnings  # the user chose the table
