import hashlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from helpers.tiny import change_weights
from vip2clip_hf import AnomalyDetectionPipeline, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor, cli
from vip2clip_hf.calibration.from_normal import calibrate
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.sources import DataSource
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation.runner import evaluate_sets
from vip2clip_hf.hub.publishing import save_checkpoint
from vip2clip_hf.inference import (
    folder as folder_module,
    images as images_module,
    loop,
    names as names_module,
    prediction,
    writer,
)
from vip2clip_hf.inference.folder import PredictionFolder
from vip2clip_hf.inference.images import FolderImages, as_images, find_source
from vip2clip_hf.inference.names import Names, checksum
from vip2clip_hf.inference.prediction import predict_to_folder


COLUMNS = ["id", "score", "label", "p_value", "anomalous_area", "error"]


@pytest.fixture
def model(model):
    change_weights(model)
    return model


@pytest.fixture
def photos(tmp_path) -> Path:
    """Ten photos of several sizes and folders, two files that cannot be read, and what is no photo."""
    root, rng = tmp_path / "photos", np.random.default_rng(0)
    names = [
        "a.png",
        "b c.jpg",
        "Ünï✓.png",
        "x/1.png",
        "x/2.png",
        "x/y/deep.PNG",
        "x-1.png",
        "z'\n\".png",
        "x.png/n.png",
    ]
    for number, name in enumerate([*names, "zz/normal.bmp"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (20 + 7 * number, 30 + 3 * number, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path, format="PNG")
    (root / "broken.jpg").write_bytes(b"no photo")
    (root / "x" / "cut.png").write_bytes((root / "a.png").read_bytes()[:200])
    (root / "notes.txt").write_text("no photo")
    for hidden in (".hidden.png", ".folder/1.png", "x/.thumbs/1.png", "__MACOSX/1.png"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"hidden")
    return root


def ids_of(root: Path) -> list[str]:
    """By another way than the package's: all paths, sorted as bytes."""
    paths = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    return sorted(
        (p for p in paths if "/." not in f"/{p}" and "__MACOSX" not in p and not p.endswith(".txt")), key=os.fsencode
    )


def rows_of(output: Path) -> dict[str, dict]:
    table = pq.read_table(output / "predictions.parquet")
    assert table.column_names == COLUMNS
    return {row["id"]: row for row in table.to_pylist()}


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def table_bytes(output: Path) -> bytes:
    return (output / "predictions.parquet").read_bytes()


def test_equals_the_pipeline(model, image_processor, photos, tmp_path):
    output = tmp_path / "out"
    options = {"batch_size": 1, "chunk_size": 5, "threshold": (0.5, 0.4), "top_k": 3}
    found = predict_to_folder(model, image_processor, photos, output, heatmaps=True, maps=True, **options)
    counts = {"num_images": 12, "num_unreadable": 2, "num_done_before": 0}
    assert {key: found[key] for key in counts} == counts
    rows = rows_of(output)
    assert list(rows) == ids_of(photos)
    detector = AnomalyDetectionPipeline(
        model=model, image_processor=image_processor, task="anomaly-detection", device="cpu"
    )
    for name, row in rows.items():
        if name in ("broken.jpg", "x/cut.png"):
            assert row["score"] is row["label"] is row["anomalous_area"] is None
            assert name in row["error"]
            assert not (output / "maps" / f"{name}.npy").exists()
            continue
        expected = detector(str(photos / name), heatmap=True, threshold=(0.5, 0.4), top_k=3)
        assert row["score"] == pytest.approx(expected["score"], abs=1e-6)
        assert (row["label"], row["error"]) == (expected["label"], None)
        with Image.open(output / "heatmaps" / f"{name}.png") as picture:
            assert picture.size == expected["heatmap"].size
            difference = np.asarray(picture, dtype=int) - np.asarray(expected["heatmap"], dtype=int)
            assert np.abs(difference).max() <= 1
        anomaly_map = np.load(output / "maps" / f"{name}.npy")
        assert (anomaly_map.dtype, anomaly_map.shape) == (np.float16, (48, 48))
        inputs = image_processor(str(photos / name), return_tensors="pt")
        with torch.no_grad():
            exact = model(**inputs, top_k=3).anomaly_maps[0]
        np.testing.assert_allclose(anomaly_map, exact.numpy(), atol=1e-3)
        assert row["anomalous_area"] == pytest.approx((exact > 0.4).float().mean().item(), abs=1e-3)
    labels = [row["label"] for row in rows.values()]
    assert (found["num_normal"], found["num_anomalous"]) == (labels.count("normal"), labels.count("anomalous"))
    written = files_in(output)
    assert len(written) == 2 + 10 + 10
    assert not (output / ".progress").exists()

    # What it was made with stands in the table as well.
    settings = json.loads((output / "settings.json").read_text())
    schema = pq.read_schema(output / "predictions.parquet")
    assert json.loads(schema.metadata[b"vip2clip_hf"]) == settings
    assert (settings["model"], settings["dtype"], settings["top_k"]) == ("this model", "float32", 3)
    assert (settings["image_threshold"], settings["pixel_threshold"]) == (0.5, 0.4)
    assert settings["versions"]["torch"] == torch.__version__
    digest = hashlib.sha256(b"".join(name.encode() + b"\0" for name in rows))
    assert (settings["num_images"], settings["ids_sha256"]) == (12, digest.hexdigest())


def test_the_table_does_not_depend_on_workers(model, image_processor, photos, tmp_path):
    for workers in (0, 2):
        predict_to_folder(model, image_processor, photos, tmp_path / str(workers), num_workers=workers, chunk_size=5)
    assert table_bytes(tmp_path / "0") == table_bytes(tmp_path / "2")
    assert model.training is False


@pytest.mark.parametrize("where", ["model", "heatmap"])
def test_goes_on_in_the_middle(where, model, image_processor, photos, tmp_path, monkeypatch):
    options = {"batch_size": 2, "chunk_size": 3, "heatmaps": True}
    predict_to_folder(model, image_processor, photos, tmp_path / "whole", **options)
    forward, draw, calls = model.forward, writer.draw_heatmap, []

    def interrupted(*args, **kwargs):
        calls.append(kwargs["pixel_values"].shape[0])
        if where == "model" and len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    def full(photo, anomaly_map):
        if where == "heatmap" and photo.size == (42, 48):  # x/1.png
            raise OSError("No space left on device")
        return draw(photo, anomaly_map)

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", interrupted)
        patch.setattr(writer, "draw_heatmap", full)
        with pytest.raises(OSError if where == "heatmap" else KeyboardInterrupt):
            predict_to_folder(model, image_processor, photos, output, **options)
    assert not (output / "predictions.parquet").exists()
    parts = sorted(path.name for path in (output / ".progress").glob("*.parquet"))
    assert 1 <= len(parts) < 4
    calls.clear()
    monkeypatch.setattr(writer, "draw_heatmap", draw)
    monkeypatch.setattr(model, "forward", lambda *a, **k: (calls.append(len(k["pixel_values"])), forward(*a, **k))[1])
    # A part that a file system has lost half of is made again.
    (output / ".progress" / parts[0]).write_bytes(b"PAR1")
    found = predict_to_folder(model, image_processor, photos, output, **options)
    assert found["num_done_before"] == 3 * (len(parts) - 1)
    assert sum(calls) <= 12 - found["num_done_before"]
    assert table_bytes(output) == table_bytes(tmp_path / "whole")
    assert files_in(output) == files_in(tmp_path / "whole")

    # Finished, it returns at once.
    monkeypatch.setattr(prediction, "predict_chunks", None)
    again = predict_to_folder(model, image_processor, photos, output, **{**options, "batch_size": 5})
    assert again == {**found, "num_done_before": 12}


def test_refuses_to_mix(model, image_processor, photos, tmp_path):
    output = tmp_path / "out"
    run = {"model": model, "image_processor": image_processor, "source": photos, "output": output}
    predict_to_folder(**run, heatmaps=True)
    before = table_bytes(output)
    for changed, message in (
        ({"heatmaps": False}, r"another heatmaps \(true then, false now\)"),
        ({"threshold": 0.9}, r"another image_threshold \(0.5 then, 0.9 now\) and another pixel_threshold"),
        ({"maps": True, "top_k": 2}, "another top_k .* and another maps"),
        ({"source": photos / "x"}, r"another source .* and another list of images \(12 then, 4 now\)"),
    ):
        with pytest.raises(OSError, match=f"(?s)holds a prediction with {message}.*overwrite"):
            predict_to_folder(**{**run, "heatmaps": True, **changed})
    (photos / "a.png").rename(photos / "new.png")
    with pytest.raises(OSError, match=r"another list of images \(12 then, 12 now\)"):
        predict_to_folder(**run, heatmaps=True)
    change_weights(model, 2)
    with pytest.raises(OSError, match="another model_checksum"):
        predict_to_folder(**run, heatmaps=True)
    assert table_bytes(output) == before

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "settings.json").write_text('{"data": {}}')
    for folder in (tmp_path / "other", photos):
        with pytest.raises(OSError, match="not empty and holds no prediction"):
            predict_to_folder(**{**run, "output": folder}, overwrite=True)
    with pytest.raises(OSError, match="is a file"):
        predict_to_folder(**{**run, "output": photos / "new.png"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no image files"):
        predict_to_folder(**{**run, "source": tmp_path / "empty", "output": tmp_path / "none"})
    for option, message in (
        ({"threshold": 2.0}, "threshold is"),
        ({"top_k": 0}, "top_k is 0; expected an integer from 1 to 36"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_to_folder(**{**run, "output": tmp_path / "none"}, **option)
    assert not (tmp_path / "none").exists()  # nothing was begun
    generated = DataSource.parse(str(write_dataset(tmp_path / "set", ("dots",), 1, 1, 48)))
    with pytest.raises(OSError, match="holds a prediction and no evaluation"):
        evaluate_sets(model, image_processor, [generated], output, overwrite=True)


def test_overwrite_deletes_its_own_only(model, image_processor, photos, tmp_path):
    output = tmp_path / "out"
    predict_to_folder(model, image_processor, photos, output, heatmaps=True)
    for mine in ("mine.txt", "heatmaps/x/mine.txt", "maps/mine.npy"):
        (output / mine).parent.mkdir(exist_ok=True)
        (output / mine).write_text("mine")
    found = predict_to_folder(model, image_processor, photos / "x", output, overwrite=True)
    assert found["num_images"] == 4
    assert files_in(output) == {
        "predictions.parquet", "settings.json", "mine.txt", "heatmaps/x/mine.txt", "maps/mine.npy",
    }  # fmt: skip
    assert set(rows_of(output)) == {"1.png", "2.png", "cut.png", "y/deep.PNG"}


def test_two_programs_at_once(model, image_processor, photos, tmp_path, monkeypatch):
    run = (model, image_processor, photos, tmp_path / "out")
    raised = []

    def second(*args, **kwargs):
        with pytest.raises(OSError, match="Another program is predicting into") as error:
            predict_to_folder(*run)
        raised.append(error)

    monkeypatch.setattr(prediction, "predict_chunks", second)
    with pytest.raises(OSError, match="1 parts are missing"):
        predict_to_folder(*run)
    assert raised
    monkeypatch.undo()
    assert predict_to_folder(*run)["num_images"] == 12


# Which images


def test_folder_listing(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(names_module, "BATCH", 2)  # several pieces, also where one folder is sorted
    (photos / "link.png").symlink_to(photos / "a.png")
    (photos / "nowhere.png").symlink_to(photos / "absent.png")
    (photos / "up").symlink_to(tmp_path)
    (photos / "loop.png").symlink_to(photos)
    os.mkfifo(photos / "pipe.png")
    output = photos / "x" / "out"
    (output / "heatmaps").mkdir(parents=True)
    (output / "heatmaps" / "h.png").write_bytes(b"")
    odd = os.fsencode(photos) + b"/\xff.png"
    with open(odd, "wb") as file:
        file.write((photos / "a.png").read_bytes())
    names = FolderImages(photos, output).names()
    Names.write(tmp_path / "names.arrow", names)
    listed = Names(tmp_path / "names.arrow")
    found = [listed[position] for position in range(len(listed))]
    for name in ("pipe.png", "link.png", "nowhere.png"):
        (photos / name).unlink()
    (output / "heatmaps" / "h.png").unlink()
    expected = [os.fsencode(name) for name in ids_of(photos)] + [b"link.png", b"nowhere.png"]
    assert found == sorted(expected)
    assert checksum(names) == hashlib.sha256(b"".join(name + b"\0" for name in found)).hexdigest()


def test_names_that_are_no_text_and_folders_that_cannot_be_read(
    model, image_processor, photos, tmp_path, monkeypatch, caplog
):
    with open(os.fsencode(photos) + b"/\xff.png", "wb") as file:
        file.write((photos / "a.png").read_bytes())
    long = "n" * 250 + ".png"
    (photos / long).write_bytes((photos / "a.png").read_bytes())
    scandir = os.scandir

    def forbidden(path):
        if str(path).endswith("zz/"):
            raise PermissionError("forbidden")
        return scandir(path)

    monkeypatch.setattr(images_module.os, "scandir", forbidden)
    found = predict_to_folder(model, image_processor, photos, tmp_path / "out", heatmaps=True)
    monkeypatch.undo()
    assert (found["num_images"], found["num_unreadable"]) == (14, 3)
    rows = rows_of(tmp_path / "out")
    assert rows["\\xff.png"]["score"] == pytest.approx(rows["a.png"]["score"], abs=1e-6)
    assert "could not be read; the images in it are missing" in rows["zz/"]["error"]
    drawn = os.listdir(os.fsencode(tmp_path / "out" / "heatmaps"))
    assert b"\xff.png.png" in drawn
    assert any(name.startswith(b"nnn") and len(name) < 255 for name in drawn)


def test_data_sets(model, image_processor, tmp_path):
    root = write_dataset(tmp_path / "set", ("dots", "weave"), num_normal=2, num_anomalous=1, size=48)
    dataset = load_folder(root)
    expected = [Path(root, name) for name in dataset["image_id"]]
    predict_to_folder(model, image_processor, f"mine={root}", tmp_path / "tree", heatmaps=True)
    rows = rows_of(tmp_path / "tree")
    assert list(rows) == dataset["image_id"]
    drawn = sorted(path.name for path in (tmp_path / "tree" / "heatmaps").iterdir())
    assert drawn[1] == f"000000001-{dataset['image_id'][1].replace('/', '_')}.png"
    assert len(drawn) == len(dataset)
    detector = AnomalyDetectionPipeline(
        model=model, image_processor=image_processor, task="anomaly-detection", device="cpu"
    )
    scores = [detector(str(path))["score"] for path in expected]
    assert [row["score"] for row in rows.values()] == pytest.approx(scores, abs=1e-6)

    # A table without labels, one image of which is broken.
    expected[1].write_bytes(b"no photo")
    table = tmp_path / "set" / "parts.csv"
    table.write_text("image\n" + "".join(f"{name}\n" for name in dataset["image_id"]))
    found = predict_to_folder(model, image_processor, table, tmp_path / "csv")
    assert (found["num_images"], found["num_unreadable"]) == (len(dataset), 1)
    assert "no image" in rows_of(tmp_path / "csv")[dataset["image_id"][1]]["error"]

    # Rows that hold their images, without ids.
    from datasets import Dataset, Features, Image as ImageFeature

    content = [{"image": {"bytes": path.read_bytes(), "path": None}} for path in expected]
    stored = Dataset.from_list(content, features=Features({"image": ImageFeature()}))
    found = predict_to_folder(model, image_processor, stored, tmp_path / "stored", maps=True)
    rows = rows_of(tmp_path / "stored")
    assert list(rows) == [str(number) for number in range(len(dataset))]
    assert [row["score"] for row in rows.values()][2:] == pytest.approx(scores[2:], abs=1e-6)
    assert (tmp_path / "stored" / "maps" / "000000002-2.npy").exists()
    assert not files_in(tmp_path / "stored") & {"maps/000000001-1.npy"}


def test_sources(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_source("photos") == Path("photos")
    (tmp_path / "a=b").mkdir()
    assert find_source("a=b") == Path("a=b")
    assert find_source("mvtec=x", "train", ["bottle"]) == DataSource("mvtec", "x", "mvtec", "train", ("bottle",))
    assert find_source("org/name").root == "org/name"
    with pytest.raises(ValueError, match="photos=photos"):
        find_source("photos", "train")
    with pytest.raises(ValueError, match="is one photo"):
        find_source("photos/a.png")
    with pytest.raises(OSError, match="'absent' not found"):
        find_source("absent")
    with pytest.raises(ValueError, match="found list"):
        as_images(["photos/a.png"], tmp_path)


# Memory


def test_few_photos_are_alive(model, image_processor, tmp_path, monkeypatch):
    """However many there are: those being drawn, and the one being read."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(80):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(photos / f"{number}.png")
    alive, most, load = weakref.WeakValueDictionary(), [], loop.load_image

    def counted(source):
        photo = load(source)
        alive[id(photo)] = photo
        most.append(len(alive))
        return photo

    monkeypatch.setattr(loop, "load_image", counted)
    monkeypatch.setattr(writer, "load_image", counted)
    found = predict_to_folder(model, image_processor, photos, tmp_path / "out", heatmaps=True, chunk_size=40)
    assert found["num_images"] == 80
    assert len(most) == 160
    assert max(most) <= writer.WRITERS + 2


def test_the_table_is_merged_bit_by_bit(model, image_processor, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "ROWS_PER_GROUP", 6)
    predict_to_folder(model, image_processor, photos, tmp_path / "out", chunk_size=3)
    metadata = pq.read_metadata(tmp_path / "out" / "predictions.parquet")
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [6, 6]


def test_maps_need_room(model, image_processor, photos, tmp_path, monkeypatch):
    class Usage:
        free = 20_000

    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(OSError, match=r"The maps need 0\.0 GB"):
        predict_to_folder(model, image_processor, photos, tmp_path / "out", maps=True)


def test_broken_weights_name_the_images(model, image_processor, photos, tmp_path):
    with torch.no_grad():
        model.prompt_learner.normal_context.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"not finite.*The images of the batch are \['Ünï|not finite.*'a\.png'"):
        predict_to_folder(model, image_processor, photos, tmp_path / "out")


# Command line


@pytest.fixture
def checkpoint(model, image_processor, tmp_path):
    return save_checkpoint(model, image_processor, tmp_path / "checkpoint")


def command(*arguments):
    return CliRunner().invoke(cli.app, ["predict", *map(str, arguments), "--device", "cpu"])


def test_command(checkpoint, model, image_processor, photos, tmp_path):
    options = ["--model", checkpoint, "--output", tmp_path / "out", "--batch_size", 3, "--maps"]
    done = command(photos, *options)
    assert done.exit_code == 3, done.output
    assert "12 images:" in done.stdout
    assert "2 unreadable. Written to" in done.stdout
    done = command(photos, *options, "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["num_done_before"] == 12
    # Weights that lie elsewhere in memory can round differently: those of the file.
    model = ViP2ClipForAnomalyDetection.from_pretrained(checkpoint)
    predict_to_folder(model, image_processor, photos, tmp_path / "same", batch_size=3, maps=True, name="checkpoint")
    assert table_bytes(tmp_path / "same") == table_bytes(tmp_path / "out")
    assert "another dtype" in str(command(photos, *options, "--dtype", "bfloat16").exception)
    done = command(photos / "x" / "y", *options, "--dtype", "bfloat16", "--overwrite")
    assert done.exit_code == 0, done.output
    assert "1 images: " in done.stdout

    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"no photo")
    done = command(tmp_path / "bad", "--model", checkpoint, "--output", tmp_path / "nothing")
    assert "None of the images" in str(done.exception)
    assert rows_of(tmp_path / "nothing")["1.png"]["error"]

    root = write_dataset(tmp_path / "set", ("dots", "weave"), num_normal=1, num_anomalous=1, size=48)
    options = ["--model", checkpoint, "--output", tmp_path / "dots", "--category", "dots"]
    done = command(f"parts={root}", *options)
    assert done.exit_code == 0, done.output
    assert all(name.startswith("dots/") for name in rows_of(tmp_path / "dots"))


def test_options_that_do_not_go_together(checkpoint, photos, tmp_path, monkeypatch):
    done = command(photos, "--heatmaps", "--batch-size", 2)
    assert done.exit_code == 2
    assert "--heatmaps, --batch-size can only be used with --output FOLDER" in done.stderr
    done = command(photos, "--output", tmp_path / "out", "--heatmap", tmp_path / "x.png")
    assert done.exit_code == 2
    assert "--heatmap OUT cannot be used with --output" in done.stderr
    done = command(photos, "--output", tmp_path / "out", "--split", "train")
    assert "name it as a data set" in str(done.exception)
    done = command(photos, "--output", tmp_path / "out", "--model", checkpoint, "--dtype", "int8")
    assert "expected float32, bfloat16, float16" in str(done.exception)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(sys.modules["vip2clip_hf.cli.predict"], "MANY_PHOTOS", 1)
    done = command(photos / "x", "--model", checkpoint, "--top-k", 2, "--dtype", "bfloat16")
    assert "photos: with --output FOLDER" in done.stderr
    assert done.exit_code == 3


def test_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vip2clip_hf", "predict", "absent", "--output", "out"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("vip2clip_hf", run_name="__main__")
    assert stopped.value.code == 1
    assert "Error: 'absent' not found" in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch, checkpoint, photos, tmp_path):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "accelerate", None)
        done = command(photos, "--output", tmp_path / "out", "--model", checkpoint)
        assert "pip install 'vip2clip_hf[data]'" in str(done.exception)
    for module in ("prediction", "folder", "images", "names"):
        monkeypatch.delitem(sys.modules, f"vip2clip_hf.inference.{module}")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = command(photos, "--output", tmp_path / "out", "--model", checkpoint)
    assert "pip install 'vip2clip_hf[data]'" in str(done.exception)


# Several processes


SCRIPT = """
import os, sys, time
from vip2clip_hf.inference import prediction, writer

folder, output, slow = sys.argv[1:]
open(f"{folder}/pid-{os.getpid()}", "w").close()
if slow == "slow":
    save = writer.draw_heatmap
    def draw(*arguments):
        time.sleep(0.2)
        return save(*arguments)
    writer.draw_heatmap = draw
prediction.predict_checkpoint(f"{folder}/checkpoint", f"{folder}/photos", output, device="cpu", batch_size=2,
    chunk_size=3, num_workers=1, heatmaps=True)
"""
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def start(arguments, log: Path) -> subprocess.Popen:
    with open(log, "wb") as file:
        return subprocess.Popen([sys.executable, *map(str, arguments)], env=ENVIRONMENT, stdout=file, stderr=file)


def run(arguments, log: Path):
    assert start(arguments, log).wait(timeout=300) == 0, log.read_text()[-3000:]


@pytest.mark.slow
def test_killed_and_resumed(checkpoint, photos, tmp_path):
    """SIGKILL in the middle of two processes; what is left is done by one, or by two again."""
    for number in range(60):
        Image.new("RGB", (48, 48), (4 * number, 0, 0)).save(photos / f"more-{number}.png")
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    run([script, tmp_path, tmp_path / "whole", "fast"], tmp_path / "whole.log")
    expected = table_bytes(tmp_path / "whole")
    assert len(rows_of(tmp_path / "whole")) == 72
    for number, (killed, resumed) in enumerate(([TORCHRUN, []], [[], TORCHRUN])):
        output = tmp_path / f"killed-{number}"
        for old in tmp_path.glob("pid-*"):
            old.unlink()
        process = start([*killed, script, tmp_path, output, "slow"], tmp_path / "killed.log")
        deadline = time.monotonic() + 120
        while len(list(output.glob(".progress/part-*"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        # The launcher first, which would end the others; they are in sessions of their own.
        for pid in (process.pid, *(int(path.name[4:]) for path in tmp_path.glob("pid-*"))):
            if pid != process.pid or process.poll() is None:
                os.kill(pid, signal.SIGKILL)
        process.wait()
        assert 3 <= len(list(output.glob(".progress/part-*"))) < 24
        assert not (output / "predictions.parquet").exists()
        run([*resumed, script, tmp_path, output, "fast"], tmp_path / "resumed.log")
        assert table_bytes(output) == expected
        assert files_in(output) == files_in(tmp_path / "whole")
        for drawn in filter(Path.is_file, (output / "heatmaps").rglob("*.png")):
            assert drawn.read_bytes() == (tmp_path / "whole" / drawn.relative_to(output)).read_bytes()


@pytest.mark.slow
def test_launched(checkpoint, photos, tmp_path):
    """The command by its module under real launchers: the same table as that of one process, said once."""
    for path in ("broken.jpg", "x/cut.png"):
        (photos / path).unlink()
    options = ["-m", "vip2clip_hf", "predict", photos, "--model", checkpoint, "--device", "cpu", "--output"]
    run([*options, tmp_path / "one"], tmp_path / "one.log")
    run([*TORCHRUN, *options, tmp_path / "two"], tmp_path / "two.log")
    accelerate = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--module"]
    run([*accelerate, *options[1:], tmp_path / "three"], tmp_path / "three.log")
    for name in ("two", "three"):
        assert table_bytes(tmp_path / name) == table_bytes(tmp_path / "one")
        assert (tmp_path / f"{name}.log").read_text().count("10 images:") == 1


@pytest.mark.slow
def test_compiled(checkpoint, photos, tmp_path):
    run(
        ["-m", "vip2clip_hf", "predict", photos / "x" / "y", "--model", checkpoint, "--output", tmp_path / "out",
         "--device", "cpu", "--compile"],
        tmp_path / "log",
    )  # fmt: skip
    model = ViP2ClipForAnomalyDetection.from_pretrained(checkpoint)
    processor = ViP2ClipImageProcessor.from_pretrained(checkpoint)
    predict_to_folder(model, processor, photos / "x" / "y", tmp_path / "eager")
    compiled, eager = rows_of(tmp_path / "out"), rows_of(tmp_path / "eager")
    assert compiled["deep.PNG"]["score"] == pytest.approx(eager["deep.PNG"]["score"], abs=1e-5)


def test_folder_of_a_beginning(tmp_path):
    """Killed in the first moment, before the settings are there, a folder is still one for a prediction."""
    folder = PredictionFolder(tmp_path / "out", 4)
    (tmp_path / "out" / ".progress").mkdir(parents=True)
    (tmp_path / "out" / ".settings.json.tmp").write_text("{")
    assert folder._found() is None


def test_a_calibrated_checkpoint(model, image_processor, photos, tmp_path):
    """The same p-values as in the pipeline, and no regions smaller than calibrated for."""
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")
    readable = [str(photos / name) for name in ids_of(photos) if name not in ("broken.jpg", "x/cut.png")]
    found = calibrate(detector, readable, 0.2, min_region_area=0.3)
    found.apply(model.config)
    predict_to_folder(model, image_processor, photos, tmp_path / "out", batch_size=1)
    for name, row in rows_of(tmp_path / "out").items():
        if row["error"] is None:
            assert row["p_value"] == pytest.approx(detector(str(photos / name))["p_value"])
            assert row["anomalous_area"] == 0 or row["anomalous_area"] >= 0.3
    predict_to_folder(model, image_processor, photos, tmp_path / "other", batch_size=1, top_k=3)
    assert {row["p_value"] for row in rows_of(tmp_path / "other").values()} == {None}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_tiles(model, image_processor, photos, tmp_path, num_workers):
    """Given, and those of a calibration; heatmaps and maps are at the size of the photo."""
    given = {"tile_size": 30, "tile_overlap": 0.4}
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu", **given)
    options = {"maps": True, "heatmaps": True, "num_workers": num_workers}
    predict_to_folder(model, image_processor, photos, tmp_path / "out", **given, **options)
    readable = [name for name in ids_of(photos) if name not in ("broken.jpg", "x/cut.png")]
    rows = rows_of(tmp_path / "out")
    for name in readable:
        expected = detector(str(photos / name))
        assert rows[name]["score"] == pytest.approx(expected["score"], abs=1e-6)
        anomaly_map = np.load(tmp_path / "out" / "maps" / f"{name}.npy")
        assert anomaly_map.dtype == np.float16
        if max(anomaly_map.shape) > 48:
            np.testing.assert_allclose(anomaly_map, expected["anomaly_map"], atol=1e-3)
    if num_workers == 0:
        calibrate(detector, [str(photos / name) for name in readable], 0.2).apply(model.config)
        predict_to_folder(model, image_processor, photos, tmp_path / "calibrated")
        for name, row in rows_of(tmp_path / "calibrated").items():
            assert row["p_value"] == (None if row["error"] else pytest.approx(detector(str(photos / name))["p_value"]))
            assert row["score"] == rows[name]["score"]
        with pytest.raises(OSError, match="another tile_size"):
            predict_to_folder(model, image_processor, photos, tmp_path / "calibrated", tile_size=0)
