"""Bulk prediction: results, resuming, sources, memory and the command."""

import hashlib
import json
import os
import runpy
import sys
import weakref
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from helpers.files import files_in
from helpers.predictions import ids_of, rows_of, table_bytes, write_photos
from helpers.tiny import change_weights
from vip2clip_hf import AnomalyDetectionPipeline, ReferenceBank, ViP2ClipForAnomalyDetection, cli
from vip2clip_hf.calibration.from_normal import calibrate
from vip2clip_hf.cli import photos as photo_module
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.sources import DataSource
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation.runner import evaluate_sets
from vip2clip_hf.hub.publishing import save_checkpoint
from vip2clip_hf.inference import (
    folder as folder_module,
    image_files,
    images as images_module,
    names as names_module,
    prediction,
    single,
    writer,
)
from vip2clip_hf.inference.folder import PredictionFolder
from vip2clip_hf.inference.images import FolderImages, as_images, find_source
from vip2clip_hf.inference.names import Names, checksum
from vip2clip_hf.inference.prediction import predict_to_folder
from vip2clip_hf.models.vip2clip import image_loading_vip2clip, pipeline_inputs_vip2clip


@pytest.fixture
def model(model):
    change_weights(model)
    return model


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_photos(tmp_path / "photos")


def test_names_of_the_labels(model, image_processor, photos, tmp_path):
    """The table has the names in `id2label`, as the results of the pipeline. They were always normal and anomalous."""
    model.config.id2label = {0: "gut", 1: "Ausschuss"}
    model.config.label2id = {"gut": 0, "Ausschuss": 1}
    found = predict_to_folder(model, image_processor, photos, tmp_path / "out", threshold=0.5)
    labels = [row["label"] for row in rows_of(tmp_path / "out").values()]
    assert set(labels) - {None} <= {"gut", "Ausschuss"}
    assert (found["num_normal"], found["num_anomalous"]) == (labels.count("gut"), labels.count("Ausschuss"))
    assert found["num_normal"] + found["num_anomalous"] == 10
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu", threshold=0.5)
    rows = rows_of(tmp_path / "out")
    name = next(name for name, row in rows.items() if row["label"] is not None)
    assert detector(str(photos / name))["label"] == rows[name]["label"]


def test_results_equal_the_pipeline(model, image_processor, photos, tmp_path):
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
    assert len(written) == 4 + 10 + 10
    assert {".vip2clip.json", ".vip2clip-images.parquet", "settings.json", "predictions.parquet"} < written
    assert not (output / ".progress").exists()

    # The metadata of the table contains the settings.
    settings = json.loads((output / "settings.json").read_text())
    schema = pq.read_schema(output / "predictions.parquet")
    assert json.loads(schema.metadata[b"vip2clip_hf"]) == settings
    assert (settings["model"], settings["dtype"], settings["top_k"]) == ("this model", "float32", 3)
    assert (settings["image_threshold"], settings["pixel_threshold"]) == (0.5, 0.4)
    assert settings["versions"]["torch"] == torch.__version__
    digest = hashlib.sha256(b"".join(name.encode() + b"\0" for name in rows))
    assert (settings["num_images"], settings["ids_sha256"]) == (12, digest.hexdigest())


def test_table_does_not_depend_on_workers(model, image_processor, photos, tmp_path):
    for workers in (0, 2):
        predict_to_folder(model, image_processor, photos, tmp_path / str(workers), num_workers=workers, chunk_size=5)
    assert table_bytes(tmp_path / "0") == table_bytes(tmp_path / "2")
    assert model.training is False


@pytest.mark.parametrize("where", ["model", "heatmap"])
def test_resumes_in_the_middle(where, model, image_processor, photos, tmp_path, monkeypatch):
    options = {"batch_size": 2, "chunk_size": 3, "heatmaps": True}
    predict_to_folder(model, image_processor, photos, tmp_path / "whole", **options)
    forward, draw, calls = model.forward, single.draw_heatmap, []

    def interrupted(*args, **kwargs):
        calls.append(kwargs["pixel_values"].shape[0])
        if where == "model" and len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    def disk_full(photo, anomaly_map):
        if where == "heatmap" and photo.size == (42, 48):  # x/1.png
            raise OSError("No space left on device")
        return draw(photo, anomaly_map)

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", interrupted)
        patch.setattr(single, "draw_heatmap", disk_full)
        with pytest.raises(OSError if where == "heatmap" else KeyboardInterrupt):
            predict_to_folder(model, image_processor, photos, output, **options)
    assert not (output / "predictions.parquet").exists()
    parts = sorted(path.name for path in (output / ".progress").glob("*.parquet"))
    assert 1 <= len(parts) < 4
    calls.clear()
    monkeypatch.setattr(single, "draw_heatmap", draw)
    monkeypatch.setattr(model, "forward", lambda *a, **k: (calls.append(len(k["pixel_values"])), forward(*a, **k))[1])
    # A truncated part is predicted again.
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


def test_other_settings_are_refused(model, image_processor, photos, tmp_path):
    output = tmp_path / "out"
    run = {"model": model, "image_processor": image_processor, "source": photos, "output": output}
    predict_to_folder(**run, heatmaps=True)
    before = table_bytes(output)
    for changed, message in (
        ({"heatmaps": False}, r"a different heatmaps setting \(was true, now false\)"),
        (
            {"threshold": 0.9},
            r"a different image_threshold setting \(was 0.5, now 0.9\) and a different pixel_threshold",
        ),
        ({"maps": True, "top_k": 2}, "a different top_k .* and a different maps"),
        ({"source": photos / "x"}, r"a different source \("),
    ):
        with pytest.raises(OSError, match=f"(?s)was created with {message}.*overwrite"):
            predict_to_folder(**{**run, "heatmaps": True, **changed})
    (photos / "a.png").rename(photos / "new.png")
    change_weights(model, 2)
    with pytest.raises(OSError, match=r"a different model \("):
        predict_to_folder(**run, heatmaps=True)
    assert table_bytes(output) == before

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "settings.json").write_text('{"data": {}}')
    for folder in (tmp_path / "other", photos):
        with pytest.raises(OSError, match="not empty and does not contain a prediction"):
            predict_to_folder(**{**run, "output": folder}, overwrite=True)
    with pytest.raises(OSError, match="is a file"):
        predict_to_folder(**{**run, "output": photos / "new.png"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no images"):
        predict_to_folder(**{**run, "source": tmp_path / "empty", "output": tmp_path / "none"})
    for option, message in (
        ({"threshold": 2.0}, "threshold is"),
        ({"top_k": 0}, "top_k is 0; expected an integer from 1 to 36, the number of patches"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_to_folder(**{**run, "output": tmp_path / "none"}, **option)
    assert not (tmp_path / "none").exists()  # refused before the folder is created
    synthetic = DataSource.parse(str(write_dataset(tmp_path / "set", ("dots",), 1, 1, 48)))
    with pytest.raises(OSError, match="contains a prediction, not an evaluation"):
        evaluate_sets(model, image_processor, [synthetic], output, overwrite=True)


def test_overwrite_keeps_other_files(model, image_processor, photos, tmp_path):
    output = tmp_path / "out"
    predict_to_folder(model, image_processor, photos, output, heatmaps=True)
    for other in ("other.txt", "heatmaps/x/other.txt", "maps/other.npy"):
        (output / other).parent.mkdir(exist_ok=True)
        (output / other).write_text("other")
    found = predict_to_folder(model, image_processor, photos / "x", output, overwrite=True)
    assert found["num_images"] == 4
    assert files_in(output) == {
        "predictions.parquet", "settings.json", "other.txt", "heatmaps/x/other.txt", "maps/other.npy",
        ".vip2clip.json", ".vip2clip-images.parquet",
    }  # fmt: skip
    assert set(rows_of(output)) == {"1.png", "2.png", "cut.png", "y/deep.PNG"}


def test_second_program_is_refused(model, image_processor, photos, tmp_path, monkeypatch):
    run = (model, image_processor, photos, tmp_path / "out")
    raised = []

    def second(*args, **kwargs):
        with pytest.raises(OSError, match="Another program is predicting into") as error:
            predict_to_folder(*run)
        raised.append(error)

    monkeypatch.setattr(prediction, "predict_chunks", second)
    with pytest.raises(OSError, match="1 of 1 parts of the table are missing"):
        predict_to_folder(*run)
    assert raised
    monkeypatch.undo()
    assert predict_to_folder(*run)["num_images"] == 12


# Which images


def test_folder_listing(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(names_module, "BATCH", 2)  # several batches, also within one folder
    (photos / "link.png").symlink_to(photos / "a.png")
    (photos / "nowhere.png").symlink_to(photos / "absent.png")
    (photos / "up").symlink_to(tmp_path)
    (photos / "loop.png").symlink_to(photos)
    os.mkfifo(photos / "pipe.png")
    output = photos / "x" / "out"
    (output / "heatmaps").mkdir(parents=True)
    (output / "heatmaps" / "h.png").write_bytes(b"")
    with open(os.fsencode(photos) + b"/\xff.png", "wb") as file:
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


def test_invalid_names_and_unreadable_folders(model, image_processor, photos, tmp_path, monkeypatch, caplog):
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
    assert "could not be read; its images are missing" in rows["zz/"]["error"]
    drawn = os.listdir(os.fsencode(tmp_path / "out" / "heatmaps"))
    assert b"\xff.png.png" in drawn
    assert any(name.startswith(b"nnn") and len(name) < 255 for name in drawn)


def test_datasets(model, image_processor, tmp_path):
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

    # A table without labels, with one broken image.
    expected[1].write_bytes(b"no image")
    table = tmp_path / "set" / "parts.csv"
    table.write_text("image\n" + "".join(f"{name}\n" for name in dataset["image_id"]))
    found = predict_to_folder(model, image_processor, table, tmp_path / "csv")
    assert (found["num_images"], found["num_unreadable"]) == (len(dataset), 1)
    assert "cannot be read as an image" in rows_of(tmp_path / "csv")[dataset["image_id"][1]]["error"]

    # Rows with embedded images and without ids.
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
    with pytest.raises(ValueError, match="is a single image"):
        find_source("photos/a.png")
    with pytest.raises(OSError, match="'absent' not found"):
        find_source("absent")
    with pytest.raises(ValueError, match="source is a list"):
        as_images(["photos/a.png"], tmp_path)


# Memory


def test_few_photos_in_memory(model, image_processor, tmp_path, monkeypatch):
    """Only the photos being drawn and the photo being read are in memory."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(80):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(photos / f"{number}.png")
    alive, most, read = weakref.WeakValueDictionary(), [], image_loading_vip2clip.read_image

    def counted(*args, **kwargs):
        photo, is_float = read(*args, **kwargs)
        if isinstance(args[0], (str, dict)):  # not a photo that is already in memory
            alive[id(photo)] = photo
            most.append(len(alive))
        return photo, is_float

    monkeypatch.setattr(image_loading_vip2clip, "read_image", counted)  # called by the writer
    monkeypatch.setattr(pipeline_inputs_vip2clip, "read_image", counted)  # called by the loop
    found = predict_to_folder(model, image_processor, photos, tmp_path / "out", heatmaps=True, chunk_size=40)
    assert found["num_images"] == 80
    assert len(most) == 160
    assert max(most) <= writer.WRITERS + 2


def test_table_is_merged_in_groups(model, image_processor, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "ROWS_PER_GROUP", 6)
    predict_to_folder(model, image_processor, photos, tmp_path / "out", chunk_size=3)
    metadata = pq.read_metadata(tmp_path / "out" / "predictions.parquet")
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [6, 6]


def test_maps_need_disk_space(model, image_processor, photos, tmp_path, monkeypatch):
    class Usage:
        free = 20_000

    monkeypatch.setattr(image_files.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(OSError, match=r"The anomaly maps need 0\.0 GB"):
        predict_to_folder(model, image_processor, photos, tmp_path / "out", maps=True)


def test_error_for_nan_names_the_images(model, image_processor, photos, tmp_path):
    with torch.no_grad():
        model.prompt_learner.normal_context.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"not finite.*Images in this batch: \['Ünï|not finite.*'a\.png'"):
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
    # Rounding can depend on the memory alignment of the weights, so load the same file.
    model = ViP2ClipForAnomalyDetection.from_pretrained(checkpoint)
    predict_to_folder(model, image_processor, photos, tmp_path / "same", batch_size=3, maps=True, name="checkpoint")
    assert table_bytes(tmp_path / "same") == table_bytes(tmp_path / "out")
    assert "a different dtype (" in str(command(photos, *options, "--dtype", "bfloat16").exception)
    done = command(photos / "x" / "y", *options, "--dtype", "bfloat16", "--overwrite")
    assert done.exit_code == 0, done.output
    assert "1 images: " in done.stdout

    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"no image")
    done = command(tmp_path / "bad", "--model", checkpoint, "--output", tmp_path / "nothing")
    assert "None of the images" in str(done.exception)
    assert rows_of(tmp_path / "nothing")["1.png"]["error"]

    root = write_dataset(tmp_path / "set", ("dots", "weave"), num_normal=1, num_anomalous=1, size=48)
    options = ["--model", checkpoint, "--output", tmp_path / "dots", "--category", "dots"]
    done = command(f"parts={root}", *options)
    assert done.exit_code == 0, done.output
    assert all(name.startswith("dots/") for name in rows_of(tmp_path / "dots"))


def test_conflicting_options(checkpoint, photos, tmp_path, monkeypatch):
    done = command(photos, "--heatmaps", "--batch-size", 2)
    assert done.exit_code == 2
    assert "--heatmaps, --batch-size can only be used with --output FOLDER" in done.stderr
    done = command(photos, "--output", tmp_path / "out", "--heatmap", tmp_path / "x.png")
    assert done.exit_code == 2
    assert "--heatmap OUT cannot be used with --output" in done.stderr
    done = command(photos, "--output", tmp_path / "out", "--split", "train")
    assert "To read it as a dataset, pass photos=" in str(done.exception)
    done = command(photos, "--output", tmp_path / "out", "--model", checkpoint, "--dtype", "int8")
    assert done.exit_code == 2
    assert "--dtype is 'int8'; expected float32, bfloat16, float16." in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(photo_module, "MANY_PHOTOS", 1)
    done = command(photos / "x", "--model", checkpoint, "--top-k", 2, "--dtype", "bfloat16")
    assert "photos: with --output FOLDER" in done.stderr
    assert done.exit_code == 3


def test_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vip2clip_hf", "predict", "absent", "--output", "out"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("vip2clip_hf", run_name="__main__")
    assert stopped.value.code == 1
    assert "Error: 'absent' not found" in capsys.readouterr().err


def test_missing_package_names_the_extra(monkeypatch, checkpoint, photos, tmp_path):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "accelerate", None)
        done = command(photos, "--output", tmp_path / "out", "--model", checkpoint)
        assert "pip install 'vip2clip_hf[data]'" in str(done.exception)
    for module in ("prediction", "folder", "images", "names"):
        monkeypatch.delitem(sys.modules, f"vip2clip_hf.inference.{module}")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = command(photos, "--output", tmp_path / "out", "--model", checkpoint)
    assert "pip install 'vip2clip_hf[data]'" in str(done.exception)


def test_folder_without_settings_is_accepted(tmp_path):
    """If a run is killed before it writes the settings, it can be started again in the same folder."""
    folder = PredictionFolder(tmp_path / "out", 4)
    (tmp_path / "out" / ".progress").mkdir(parents=True)
    assert not folder.run.check()


def test_calibrated_checkpoint(model, image_processor, photos, tmp_path):
    """P-values equal the pipeline's, and small regions do not count."""
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")
    readable = [str(photos / name) for name in ids_of(photos) if name not in ("broken.jpg", "x/cut.png")]
    found = calibrate(detector, readable, 0.2, min_region_area=0.3)
    found.apply(model)
    predict_to_folder(model, image_processor, photos, tmp_path / "out", batch_size=1)
    for name, row in rows_of(tmp_path / "out").items():
        if row["error"] is None:
            assert row["p_value"] == pytest.approx(detector(str(photos / name))["p_value"])
            assert row["anomalous_area"] == 0 or row["anomalous_area"] >= 0.3
    predict_to_folder(model, image_processor, photos, tmp_path / "other", batch_size=1, top_k=3)
    assert {row["p_value"] for row in rows_of(tmp_path / "other").values()} == {None}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_tiles(model, image_processor, photos, tmp_path, num_workers):
    """Tiles set by arguments or by a calibration. Heatmaps and maps have the size of the photo."""
    tiling = {"tile_size": 30, "tile_overlap": 0.4}
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu", **tiling)
    options = {"maps": True, "heatmaps": True, "num_workers": num_workers}
    predict_to_folder(model, image_processor, photos, tmp_path / "out", **tiling, **options)
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
        calibrate(detector, [str(photos / name) for name in readable], 0.2).apply(model)
        predict_to_folder(model, image_processor, photos, tmp_path / "calibrated")
        for name, row in rows_of(tmp_path / "calibrated").items():
            assert row["p_value"] == (None if row["error"] else pytest.approx(detector(str(photos / name))["p_value"]))
            assert row["score"] == rows[name]["score"]
        with pytest.raises(OSError, match="a different tile_size setting"):
            predict_to_folder(model, image_processor, photos, tmp_path / "calibrated", tile_size=0)


# References


@pytest.fixture
def bank(model, image_processor) -> ReferenceBank:
    return ReferenceBank.from_images(model, image_processor, good_photos(4))


def good_photos(count: int, seed: int = 5) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(count)]


def test_settings_contain_the_references(model, image_processor, photos, bank, tmp_path):
    """Predictions with other references are not mixed."""
    output = tmp_path / "out"

    def predict(**options):
        return predict_to_folder(model, image_processor, photos, output, **options)

    predict(references=bank)
    assert json.loads((output / "settings.json").read_text())["references"] == bank.checksum()
    before, scores = table_bytes(output), rows_of(output)
    assert predict(references=bank)["num_done_before"] == 12
    changed = bank.without([bank.photos[0].name])
    for other in (changed, None):
        with pytest.raises(OSError, match="a different bank of references"):
            predict(references=other)
    with pytest.raises(OSError, match="a different bank of references"):
        predict()  # the model has none
    assert table_bytes(output) == before
    model.references = bank
    assert predict()["num_done_before"] == 12
    predict(references=None, overwrite=True)
    assert "references" not in json.loads((output / "settings.json").read_text())
    assert rows_of(output)["a.png"]["score"] != scores["a.png"]["score"]


def test_references_from_photos(model, image_processor, photos, bank, tmp_path):
    (tmp_path / "good").mkdir()
    for number, photo in enumerate(good_photos(4)):
        photo.save(tmp_path / "good" / f"{number}.png")
    model.train()
    predict_to_folder(model, image_processor, photos, tmp_path / "out", references=str(tmp_path / "good"))
    assert model.training
    predict_to_folder(model.eval(), image_processor, photos, tmp_path / "expected", references=bank)
    found, expected = rows_of(tmp_path / "out"), rows_of(tmp_path / "expected")
    assert [row["score"] for row in found.values()] == [row["score"] for row in expected.values()]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        predict_to_folder(model, image_processor, photos, tmp_path / "new", references=tmp_path / "empty")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_command_with_references(model, image_processor, photos, bank, tmp_path):
    """`--references` for single photos and with `--output`; `--no-references` for a checkpoint that carries some."""
    for name, references in (("plain", None), ("part", bank)):
        model.references = references
        save_checkpoint(model, image_processor, tmp_path / name)
    model.references = None
    (tmp_path / "good").mkdir()
    for number, photo in enumerate(good_photos(4)):
        photo.save(tmp_path / "good" / f"{number}.png")
    photo = photos / "a.png"
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")
    combined, zero_shot = (detector(str(photo), references=one)["score"] for one in (bank, None))
    assert abs(combined - zero_shot) > 1e-4

    def run(*arguments):
        return CliRunner().invoke(cli.app, ["predict", *map(str, arguments), "--device", "cpu"])

    given = ("--references", tmp_path / "good")
    for name, options, expected in (
        ("plain", given, combined),
        ("plain", ("--no-references",), zero_shot),
        ("part", (), combined),
        ("part", ("--no-references",), zero_shot),
    ):
        done = run(photo, "--model", tmp_path / name, *options, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)[0]["score"] == pytest.approx(expected, abs=1e-5)
        output = tmp_path / f"out-{name}-{len(options)}-{'--references' in options}"
        done = run(photos, "--model", tmp_path / name, *options, "--output", output)
        assert done.exit_code == 3, done.output  # two photos are unreadable
        assert rows_of(output)["a.png"]["score"] == pytest.approx(expected, abs=1e-5)
    done = run(photo, "--model", tmp_path / "plain", *given, "--no-references")
    assert done.exit_code == 2
    assert "exclude each other" in done.stderr
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "absent", "is not a folder; expected a folder of photos of good parts"),
                            (tmp_path / "empty", "empty")):  # fmt: skip
        for more in ((), ("--output", tmp_path / "never")):
            done = run(photos, "--model", tmp_path / "plain", "--references", folder, *more)
            assert done.exit_code == 1
            assert message in str(done.exception)
    assert not (tmp_path / "never").exists()
    done = run(photo, "--model", tmp_path / "part", "--tile-size", 32)
    assert "The references were read with tile_size=0" in str(done.exception)
