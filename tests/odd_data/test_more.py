"""Odd data found by trying the commands as a new user."""

import io
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

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
