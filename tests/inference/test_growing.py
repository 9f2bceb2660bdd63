"""Prediction of a folder that grows: rows of photos that are gone are kept, and new ones are added."""

import io
import shutil

import fsspec
import pyarrow.parquet as pq
import pytest

from helpers.predictions import rows_of, table_bytes, write_photos
from helpers.tiny import change_weights
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.inference.folder import PredictionFolder
from vip2clip_hf.inference.prediction import predict_to_folder
from vip2clip_hf.reporting import read_predictions


pytestmark = pytest.mark.xdist_group("growing")


@pytest.fixture
def model(model):
    change_weights(model)
    return model


def test_append(model, image_processor, tmp_path):
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "out"

    def append(**options):
        return predict_to_folder(
            model, image_processor, photos, out, append=True, maps=True, chunk_size=5, threshold=0.5, **options
        )

    append()
    first = rows_of(out)
    kept = (out / "maps" / "a.png.npy").read_bytes()
    (photos / "a.png").unlink()
    shutil.rmtree(photos / "x")
    shutil.copy(photos / "x-1.png", photos / "0 new.png")
    shutil.copy(photos / "b c.jpg", photos / "x-1.png")  # other contents: a new row in the same place
    found = append()
    assert (found["num_images"], found["num_done_before"]) == (13, 11)
    rows = rows_of(out)
    assert list(rows) == [*first, "0 new.png"]
    assert {name: row for name, row in rows.items() if name not in ("0 new.png", "x-1.png")} == {
        name: row for name, row in first.items() if name != "x-1.png"
    }
    assert rows["0 new.png"]["score"] == pytest.approx(first["x-1.png"]["score"], abs=1e-6)
    assert rows["x-1.png"]["score"] == pytest.approx(first["b c.jpg"]["score"], abs=1e-6)
    assert (out / "maps" / "a.png.npy").read_bytes() == kept
    table = table_bytes(out)
    assert append()["num_done_before"] == 13
    assert table_bytes(out) == table
    # A report finds the maps, also of photos that are gone.
    files = read_predictions(out).photos
    assert all(files.map_file(n) is not None for n, row in enumerate(rows.values()) if row["error"] is None)
    # All photos are gone.
    shutil.rmtree(photos)
    photos.mkdir()
    assert append()["num_done_before"] == 13
    assert table_bytes(out) == table
    with pytest.raises(ValueError, match="exclude each other"):
        append(overwrite=True)
    assert table_bytes(out) == table


def test_an_interrupted_append_has_the_same_table(model, image_processor, tmp_path, monkeypatch):
    photos = write_photos(tmp_path / "photos")
    new = [photos / f"new {number}.png" for number in range(6)]

    def append(out, **options):
        return predict_to_folder(
            model, image_processor, photos, out, append=True, chunk_size=3, batch_size=1, threshold=0.5, **options
        )

    for out in (tmp_path / "a", tmp_path / "b"):
        append(out)
    (photos / "a.png").unlink()
    for number, path in enumerate(new):
        shutil.copy(photos / ("b c.jpg" if number % 2 else "x-1.png"), path)
    append(tmp_path / "a")
    write_part, written = PredictionFolder.write_part, []

    def stop(self, chunk, *args):
        write_part(self, chunk, *args)
        written.append(chunk)
        if len(written) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PredictionFolder, "write_part", stop)
        with pytest.raises(KeyboardInterrupt):
            append(tmp_path / "b")
    assert append(tmp_path / "b")["num_done_before"] >= 12
    assert table_bytes(tmp_path / "b") == table_bytes(tmp_path / "a")


def test_a_photo_that_is_gone_before_the_prediction_resumes_keeps_its_row(
    model, image_processor, tmp_path, monkeypatch
):
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "out"
    write_part = PredictionFolder.write_part

    def stop(self, chunk, *args):
        write_part(self, chunk, *args)
        raise KeyboardInterrupt

    options = {"append": True, "chunk_size": 3, "threshold": 0.5}
    with monkeypatch.context() as patch:
        patch.setattr(PredictionFolder, "write_part", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_to_folder(model, image_processor, photos, out, **options)
    (photos / "a.png").unlink()  # in the first chunk
    (photos / "zz" / "normal.bmp").unlink()  # in the last chunk, not predicted
    assert predict_to_folder(model, image_processor, photos, out, **options)["num_images"] == 11
    rows = rows_of(out)
    assert rows["a.png"]["score"] is not None
    assert "zz/normal.bmp" not in rows


def test_datasets_are_not_appended(model, image_processor, tmp_path):
    root = write_dataset(tmp_path / "set", ("dots",), num_normal=1, num_anomalous=1, size=16)
    with pytest.raises(ValueError, match="append can only be used with a local folder of images"):
        predict_to_folder(model, image_processor, load_folder(root, "test"), tmp_path / "out", append=True)


def test_append_to_a_table_in_a_store(model, image_processor, tmp_path):
    photos, url = write_photos(tmp_path / "photos"), "memory://growing/out"
    memory = fsspec.filesystem("memory")
    options = {"append": True, "chunk_size": 5, "threshold": 0.5}

    def table():
        return pq.read_table(io.BytesIO(memory.cat_file("/growing/out/predictions.parquet")))

    try:
        predict_to_folder(model, image_processor, photos, url, **options)
        first = table()
        (photos / "a.png").unlink()
        shutil.copy(photos / "x-1.png", photos / "0 new.png")
        found = predict_to_folder(model, image_processor, photos, url, **options)
        assert found["num_images"] == found["num_done_before"] + 1 == len(first) + 1
        assert table()["id"].to_pylist() == [*first["id"].to_pylist(), "0 new.png"]
        shutil.rmtree(photos)
        photos.mkdir()
        assert predict_to_folder(model, image_processor, photos, url, **options)["num_images"] == len(first) + 1
        memory.pipe_file("/growing/photos/a.png", b"")
        with pytest.raises(ValueError, match="a folder in a store are"):
            predict_to_folder(model, image_processor, "memory://growing/photos", tmp_path / "out", **options)
    finally:
        memory.rm("/growing", recursive=True)


def test_reports_of_datasets_have_labels_and_photos(model, image_processor, tmp_path):
    root = write_dataset(tmp_path / "set", ("dots",), num_normal=2, num_anomalous=2, size=32)
    out = tmp_path / "out"
    predict_to_folder(model, image_processor, f"set={root}", out, threshold=0.5, maps=True, heatmaps=True)
    found = read_predictions(out)
    assert found.notes == []
    assert {row.truth for row in found.rows} == {"normal", "anomalous"}
    for number, row in enumerate(found.rows):
        assert (row.truth == "normal") == ("good" in row.id)
        assert found.photos.photo(number) is not None
        assert found.photos.map_file(number) is not None
        assert found.photos.heatmap_file(number) is not None
    shutil.move(root, tmp_path / "moved")
    found = read_predictions(out)
    assert "There are no photos and no labels" in found.notes[0]
    assert {row.truth for row in found.rows} == {None}
    found = read_predictions(out, tmp_path / "moved")
    assert {row.truth for row in found.rows} == {"normal", "anomalous"}
