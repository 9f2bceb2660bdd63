import json
import re
import runpy
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from helpers.tiny import ROOT, change_weights
from vip2clip_hf import AnomalyDetectionPipeline, DecisionConfig, ReferenceBank, cli


gr = pytest.importorskip("gradio", reason="the web app needs gradio (pip install 'vip2clip_hf[app]')")

from vip2clip_hf.app import page as app_page, server as app  # noqa: E402 - after the check for gradio
from vip2clip_hf.app.drawing import draw_mask  # noqa: E402
from vip2clip_hf.app.references import read_references, references_note  # noqa: E402
from vip2clip_hf.app.results import PhotoInspector, PhotoResult, safe_stem  # noqa: E402


PIXELS = ("anomaly_map", "mask")


@pytest.fixture
def detector(model, image_processor) -> AnomalyDetectionPipeline:
    change_weights(model)
    return AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")


@pytest.fixture
def inspector(detector) -> PhotoInspector:
    return PhotoInspector(detector)


@pytest.fixture
def uploads(photo, tmp_path) -> list[str]:
    """Two photos of different sizes, in separate folders as on the server."""
    paths = []
    for name, picture in (("a.png", photo), ("b (1).jpg", photo.rotate(90, expand=True).resize((90, 120)))):
        path = tmp_path / f"upload-{name[0]}" / name
        path.parent.mkdir()
        picture.save(path)
        paths.append(str(path))
    return paths


@pytest.fixture
def calls(detector, monkeypatch) -> list[int]:
    """A list that grows by one with each pass through the model."""
    made, forward = [], detector.model.forward

    def counted(*args, **kwargs):
        made.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(detector.model, "forward", counted)
    return made


# Results


def test_same_as_the_pipeline(inspector, detector, uploads, calls):
    """Stored results give the output of the pipeline for any thresholds, with one pass per photo."""
    results, problems = inspector.analyse(uploads)
    assert [result.name for result in results] == ["a.png", "b (1).jpg"]
    assert problems == []
    assert len(calls) == 2
    for result, path in zip(results, uploads):
        anomaly_map = detector(path)["anomaly_map"]
        for pair in (inspector.thresholds, (result.score, float(np.median(anomaly_map))), (0, 0), (1, 1)):
            wanted = detector(path, threshold=pair, regions=True, heatmap=True)
            before = len(calls)
            found = inspector.inspect(result, pair, inspector.read(path, result.name))
            assert inspector.decide(result, pair) == {name: wanted[name] for name in ("score", "label")}
            assert len(calls) == before
            assert found.keys() == wanted.keys()
            for name in PIXELS:
                np.testing.assert_array_equal(found[name], wanted[name])
            np.testing.assert_array_equal(np.asarray(found["heatmap"]), np.asarray(wanted["heatmap"]))
            assert {k: found[k] for k in ("score", "label", "regions")} == {
                k: wanted[k] for k in ("score", "label", "regions")
            }
    before = len(calls)
    for layer in (None, *inspector.layers):
        inspector.heatmap(results[0], inspector.read(uploads[0], "a.png"), layer)
    assert len(calls) == before


def test_the_mean_of_the_layer_maps_is_the_map_of_all_layers(inspector, uploads):
    (result, _), _ = inspector.analyse(uploads)
    layers = torch.stack([inspector._map(result, layer) for layer in inspector.layers])
    assert len(layers) == 3
    assert not torch.allclose(layers[0], layers[1])
    torch.testing.assert_close(layers.mean(dim=0), inspector._map(result))
    with pytest.raises(ValueError, match=r"layer is 3; expected one of \[1, 2, 4\]"):
        inspector._map(result, 3)


def test_calibrated(inspector, detector, uploads):
    detector.model.decision = DecisionConfig(
        min_region_area=0.05,
        calibration={"settings": detector.score_settings(), "num_images": 3},
        image_scores=[0.0, 0.1, 0.2],
    )
    assert inspector.calibrated
    (result, _), _ = inspector.analyse(uploads)
    wanted = detector(uploads[0])
    assert inspector.decide(result, inspector.thresholds)["p_value"] == wanted["p_value"] == 0.25
    np.testing.assert_array_equal(inspector.inspect(result, inspector.thresholds)["mask"], wanted["mask"])


def test_tiles(model, image_processor, photo, tmp_path):
    """A photo split into tiles has a map at its own size (up to a limit) and no maps of single layers."""
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu", tile_size=40)
    inspector = PhotoInspector(detector)
    photo.save(tmp_path / "a.png")
    photo.resize((1500, 40)).save(tmp_path / "wide.png")
    (small, wide), _ = inspector.analyse([str(tmp_path / "a.png"), str(tmp_path / "wide.png")])
    wanted = detector(photo)
    assert small.score == pytest.approx(wanted["score"], abs=1e-6)
    np.testing.assert_allclose(inspector.inspect(small, (0.5, 0.5))["anomaly_map"], wanted["anomaly_map"], atol=1e-3)
    assert wide.tiled_map.shape == (27, 1024)
    assert inspector.inspect(wide, (0.5, 0.5))["mask"].shape == (40, 1500)
    with pytest.raises(ValueError, match=r"'a\.png' was split into tiles and has no maps of single layers"):
        inspector.heatmap(small, photo, 1)


def test_stored_results_are_small(inspector, photo, tmp_path):
    """Stored results contain no pixels, and their size does not depend on the photo."""
    photo.save(tmp_path / "small.png")
    photo.resize((2000, 1500)).save(tmp_path / "large.jpg")
    (small, large), _ = inspector.analyse([str(tmp_path / "small.png"), str(tmp_path / "large.jpg")])
    grid = inspector.detector.model.config.image_size // 8
    assert small.nbytes == large.nbytes == 3 * 2 * grid**2 * 4
    kept = [value for value in vars(large).values() if isinstance(value, (np.ndarray, torch.Tensor, Image.Image))]
    assert len(kept) == 1
    # For ViT-L/14, a session of 50 photos takes less than 3 MB.
    assert 50 * np.zeros((4, 2, 37, 37), np.float32).nbytes < 3e6


def test_known_photos_are_not_analysed_again(inspector, uploads, calls):
    first, _ = inspector.analyse(uploads[:1])
    both, _ = inspector.analyse(uploads, first)
    assert both[0] is first[0]
    assert len(calls) == 2
    named = []
    inspector.analyse(uploads, both, lambda *seen: named.append(seen))
    assert named == []


def test_unreadable_files_are_listed(inspector, uploads, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000_000)
    text, cut, bomb, large = (tmp_path / name for name in ("<b>text.png", "cut.png", "bomb.png", "large.bin"))
    text.write_text("not an image")
    content = Path(uploads[0]).read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    Image.new("1", (10_000, 10_000)).save(bomb)
    assert bomb.stat().st_size < 1e6
    large.write_bytes(b"x" * (21 * 1024**2))
    results, problems = inspector.analyse([str(text), uploads[0], str(cut), str(bomb), str(large), "/gone.png"])
    assert [result.name for result in results] == ["a.png"]
    reasons = dict(problems)
    assert "cannot be read as an image; expected a format Pillow supports" in reasons["<b>text.png"]
    assert "could not be decoded" in reasons["cut.png"]
    assert "expected at most 50,000,000 pixels" in reasons["bomb.png"]
    assert "--max-pixels" in reasons["bomb.png"]
    assert "has 21.0 MB; the limit is 20 MB. Raise it with --max-file-size." in reasons["large.bin"]
    assert "uploads are kept for one hour. Add the photo again." in reasons["gone.png"]
    assert str(tmp_path) not in str(problems)
    shown = app_page._status(app_page.Session(results, problems))
    assert "&lt;b&gt;text.png" in shown
    assert "<b>text" not in shown
    assert "No result for 5 files" in shown


def test_limits(detector, uploads, calls):
    results, problems = PhotoInspector(detector, max_images=1).analyse(uploads)
    assert len(results) == len(calls) == 1
    assert problems == [("b (1).jpg", "skipped; the limit is 1 photo. Raise it with --max-images.")]
    with pytest.raises(ValueError, match="max_images is 0"):
        PhotoInspector(detector, max_images=0)
    with pytest.raises(ValueError, match="max_file_size is 0"):
        PhotoInspector(detector, max_file_size=0)


def test_scores_that_are_not_finite_are_reported(inspector, detector, uploads, monkeypatch):
    found = detector.decision_map(uploads[0])
    monkeypatch.setattr(detector, "decision_map", lambda image: {**found, "score": float("nan")})
    results, problems = inspector.analyse(uploads[:1])
    assert results == []
    assert "not finite" in problems[0][1]


def test_zip(inspector, uploads, tmp_path):
    results, _ = inspector.analyse(uploads)
    # Names are never used as paths.
    results[1].name = "../../etc/passwd\\ü;.png"
    problems = [("wrong.png", 'no "image"')]
    thresholds = (0.5, float(np.median(inspector.inspect(results[0], (0.5, 0.5))["anomaly_map"])))
    inspector.write_zip(tmp_path / "out.zip", "org/model", results, problems, thresholds)
    archive = zipfile.ZipFile(tmp_path / "out.zip")
    assert archive.testzip() is None
    names = archive.namelist()
    assert sorted(names) == sorted(
        [f"{kind}s/{stem}.png" for kind in ("heatmap", "mask") for stem in ("001_a", "002_etc_passwd")]
        + ["results.csv", "results.json"]
    )
    assert all(re.fullmatch(r"[A-Za-z0-9_./-]+", name) and ".." not in name for name in names)
    content = json.loads(archive.read("results.json"))
    assert content["model"] == "org/model"
    assert (content["image_threshold"], content["pixel_threshold"]) == thresholds
    assert content["results"][2] == {"image": "wrong.png", "error": 'no "image"'}
    for entry, result, path in zip(content["results"], results, uploads):
        wanted = inspector.detector(path, threshold=thresholds, regions=True, heatmap=True)
        assert entry["image"] == result.name
        assert {k: entry[k] for k in ("score", "label", "regions")} == {
            k: wanted[k] for k in ("score", "label", "regions")
        }
        assert entry["anomalous_pixels"] == wanted["mask"].sum() > 0
        with archive.open(entry["mask"]) as file, Image.open(file) as picture:
            np.testing.assert_array_equal(np.asarray(picture), wanted["mask"])
        with archive.open(entry["heatmap"]) as file, Image.open(file) as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(wanted["heatmap"]))
    rows = archive.read("results.csv").decode().splitlines()
    assert rows[0] == "image,score,label,p_value,anomalous_pixels,error"
    assert rows[3] == 'wrong.png,,,,,"no ""image"""'


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("photo 1.jpg", "photo_1"),
        ("../../x.png", "x"),
        ("C:\\temp\\a.b.png", "C_temp_a_b"),
        ("…", "photo"),
        ("", "photo"),
        ("a" * 300 + ".png", "a" * 60),
        ("=cmd().csv", "cmd"),
    ],
)
def test_safe_stem(name, stem):
    assert safe_stem(name) == stem


def test_draw_mask(photo):
    mask = np.zeros((40, 60), bool)
    mask[10:20, 10:30] = True
    drawn, before = np.asarray(draw_mask(photo, mask)), np.asarray(photo)
    np.testing.assert_array_equal(drawn[~mask], before[~mask])
    assert (drawn[10, 10:30] == (0, 190, 255)).all()  # the outline
    assert not (drawn[15, 20] == (0, 190, 255)).all()
    assert not (drawn[15, 20] == before[15, 20]).all()
    with pytest.raises(ValueError, match=r"mask has shape \(2, 2\); expected \(40, 60\)"):
        draw_mask(photo, np.zeros((2, 2), bool))


# Photos of good parts


@pytest.fixture
def good(tmp_path) -> list[str]:
    rng = np.random.default_rng(7)
    (tmp_path / "good").mkdir()
    paths = [tmp_path / "good" / f"good {number}.png" for number in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


def references_of(inspector, paths):
    return read_references(inspector.detector, inspector.read, paths, inspector.max_images)


def test_references(inspector, detector, uploads, good, calls, tmp_path):
    bank, problems = references_of(inspector, good)
    assert problems == []
    assert [photo.name for photo in bank.photos] == ["good 0.png", "good 1.png", "good 2.png"]
    plain, _ = inspector.analyse(uploads)
    calls.clear()
    results, _ = inspector.analyse(uploads, plain, references=bank)
    assert len(calls) == 2  # results without references are not reused
    again, _ = inspector.analyse(uploads, results, references=bank)
    assert again[0] is results[0]
    assert len(calls) == 2
    for result, path in zip(results, uploads):
        wanted = detector(path, references=bank, regions=True)
        found = inspector.inspect(result, inspector.thresholds)
        assert (found["score"], found["label"]) == (wanted["score"], wanted["label"])
        np.testing.assert_allclose(found["anomaly_map"], wanted["anomaly_map"], rtol=0, atol=1e-5)
        assert inspector.decide(result, inspector.thresholds)["score"] == wanted["score"]
    assert results[0].nbytes == plain[0].nbytes + 48 * 48 * 2
    # The map of a single layer is zero-shot.
    photo = inspector.read(uploads[0], "a.png")
    for layer in (*inspector.layers, None):
        drawn = [np.asarray(inspector.heatmap(result, photo, layer)) for result in (results[0], plain[0])]
        assert np.array_equal(*drawn) == (layer is not None)
    for found, expected in ((results, {"num_photos": 3, "photos": [photo.name for photo in bank.photos],
                                       "checksum": bank.checksum()}), (plain, None)):  # fmt: skip
        inspector.write_zip(tmp_path / "out.zip", "org/model", found, [], (0.5, 0.5))
        assert json.loads(zipfile.ZipFile(tmp_path / "out.zip").read("results.json"))["references"] == expected


def test_references_of_the_checkpoint(detector, uploads, good):
    detector.model.references = ReferenceBank.from_images(detector.model, detector.image_processor, good)
    inspector = PhotoInspector(detector)
    (result, _), _ = inspector.analyse(uploads)
    assert inspector.decide(result, (0.5, 0.5))["score"] == detector(uploads[0])["score"]
    (plain, _), _ = inspector.analyse(uploads, [result], references=None)
    assert plain.references is None
    assert inspector.decide(plain, (0.5, 0.5))["score"] == detector(uploads[0], references=None)["score"]
    assert "compared with 3 good photos of the checkpoint" in references_note(detector, "auto")
    assert "No good photos" in references_note(detector, None)


def test_thresholds_of_other_scores(detector, uploads, good):
    detector.model.decision = DecisionConfig(
        calibration={"settings": detector.score_settings(), "num_images": 3}, image_scores=[0.0, 0.1, 0.2]
    )
    inspector = PhotoInspector(detector)
    bank, _ = references_of(inspector, good)
    (plain, _), _ = inspector.analyse(uploads)
    (result, _), _ = inspector.analyse(uploads, references=bank)
    assert inspector.decide(plain, (0.5, 0.5))["p_value"] is not None
    scores = bank.left_out_scores()
    larger = (scores >= np.float32(result.score)).sum()
    assert inspector.decide(result, (0.5, 0.5))["p_value"] == pytest.approx((1 + larger) / (1 + len(scores)))
    assert "chosen for other scores" in references_note(detector, bank)
    assert "chosen for other scores" not in references_note(detector, "auto")


def test_tiles_with_references(detector, photo, good, tmp_path):
    tiled = AnomalyDetectionPipeline(
        model=detector.model, image_processor=detector.image_processor, device="cpu", tile_size=40
    )
    inspector = PhotoInspector(tiled)
    bank, _ = references_of(inspector, good)
    assert bank.options.tile_size == 40
    photo.save(tmp_path / "a.png")
    (result,), _ = inspector.analyse([str(tmp_path / "a.png")], references=bank)
    wanted = tiled(photo, references=bank)
    assert result.score == pytest.approx(wanted["score"], abs=1e-6)
    np.testing.assert_allclose(inspector.inspect(result, (0.5, 0.5))["anomaly_map"], wanted["anomaly_map"], atol=1e-3)


# The web app


def test_good_photos_on_the_page(page, uploads, good, tmp_path):
    session, _, _, before, _, table, *_ = page.on_files(uploads, app_page.Session(), 0.5, 0.5, app_page.ALL_LAYERS)
    plain = [row[2] for row in table]
    note, session, _, _, heatmap, status, table, *_ = page.on_references(
        good, uploads, session, 0.5, 0.5, app_page.ALL_LAYERS
    )
    assert note == "Photos are compared with 3 good photos."
    assert "2 photos analysed" in status
    bank = session.references
    assert [row[2] for row in table] == [
        f"{page.inspector.detector(path, references=bank)['score']:.3f}" for path in uploads
    ]
    assert not np.array_equal(np.asarray(heatmap), np.asarray(before))
    # The references stay while photos and thresholds change.
    assert page.on_files(uploads[:1], session, 0.5, 0.5, app_page.ALL_LAYERS)[0].references is bank
    event = gr.SelectData(None, {"index": [0, 0], "value": "2", "row_value": ["2", "b (1).jpg"]})
    assert page.on_select(session, 0.5, 0.5, app_page.ALL_LAYERS, event)[0].references is bank
    # A bad upload is reported, and the good ones are used; without a good one, nothing changes.
    (tmp_path / "<b>.png").write_text("not an image")
    bad = str(tmp_path / "<b>.png")
    note, session, *_ = page.on_references([bad, good[0]], uploads, session, 0.5, 0.5, app_page.ALL_LAYERS)
    assert "compared with 1 good photo." in note
    assert "&lt;b&gt;.png" in note
    assert "cannot be read as an image" in note
    kept = session.references
    note, session, *_ = page.on_references([bad], uploads, session, 0.5, 0.5, app_page.ALL_LAYERS)
    assert session.references is kept
    assert "cannot be read as an image" in note
    files, note, session, _, _, _, _, table, *_ = page.on_remove(uploads, session, 0.5, 0.5, app_page.ALL_LAYERS)
    assert files is None
    assert note == "No good photos: results are zero-shot."
    assert [row[2] for row in table] == plain
    note, session, *_ = page.on_references([], [], session, 0.5, 0.5, app_page.ALL_LAYERS)
    assert session.references == "auto"
    limited = app_page.Page(PhotoInspector(page.inspector.detector, max_images=2), "org/model")
    note, *_ = limited.on_references(good, [], app_page.Session(), 0.5, 0.5, app_page.ALL_LAYERS)
    assert "compared with 2 good photos" in note
    assert "skipped; the limit is 2" in note


@pytest.fixture
def page(inspector):
    return app_page.Page(inspector, "org/model")


def labels(rows: list[list]) -> list[str]:
    return [row[3] for row in rows]


def test_thresholds_change_without_running_the_model(page, uploads, calls):
    session, shown, photo, heatmap, status, table, summary, mask, *_ = page.on_files(
        uploads, app_page.Session(), 0.5, 0.5, app_page.ALL_LAYERS
    )
    assert shown["visible"]
    assert photo.size == heatmap.size == mask.size == (60, 40)
    assert "2 photos analysed" in status
    assert [row[1] for row in table] == ["a.png", "b (1).jpg"]
    assert "a.png" in summary
    assert len(calls) == 2
    for image_threshold, label in ((0, "anomalous"), (1, "normal")):
        _, table, summary, *_ = page.on_thresholds(session, image_threshold, 0)
        assert labels(table) == [label, label]
        assert f'class="{label}"' in summary
    everything, nothing = page.on_thresholds(session, 0.5, 0), page.on_thresholds(session, 0.5, 1)
    assert '<span id="marked">2,400</span> of 2,400' in everything[2]
    assert '<span id="marked">0</span>' in nothing[2]
    assert everything[4][0][:5] == [0, 0, 60, 40, 2400]
    assert nothing[4] == []
    np.testing.assert_array_equal(np.asarray(nothing[3]), np.asarray(photo))
    assert not np.array_equal(np.asarray(page.on_layer(session, "layer 2")[1]), np.asarray(heatmap))
    event = gr.SelectData(None, {"index": [0, 0], "value": "2", "row_value": ["2", "b (1).jpg"]})
    chosen, photo, *_ = page.on_select(session, 0.5, 0.5, app_page.ALL_LAYERS, event)
    assert chosen.selected == 1
    assert photo.size == (90, 120)
    assert len(calls) == 2


def test_problems_are_shown(page, uploads, tmp_path):
    (tmp_path / "wrong.png").write_text("not an image")
    values = page.on_files([str(tmp_path / "wrong.png")], app_page.Session(), 0.5, 0.5, app_page.ALL_LAYERS)
    assert not values[1]["visible"]
    assert "'wrong.png' cannot be read as an image" in values[4].replace("&#x27;", "'")
    session, *_ = page.on_files(uploads, values[0], 0.5, 0.5, app_page.ALL_LAYERS)
    assert "threshold is (2, 0.5); expected a number in [0, 1]" in page.on_thresholds(session, 2, 0.5)[0]
    assert "threshold is" in page.on_pack(session, 0.5, -1)[0]
    assert "split" not in page.on_layer(session, "layer 1")[0]
    assert "expected one of [1, 2, 4]" in page.on_layer(session, "layer 3")[0]
    for path in uploads:
        Path(path).unlink()
    for values in (
        page.on_thresholds(session, 0.5, 0.5),
        page.on_layer(session, "layer 1"),
        page.on_pack(session, 0, 0),
    ):
        assert "is no longer available" in values[0]
    assert page.on_files([], session, 0.5, 0.5, app_page.ALL_LAYERS)[4] == "<p>Add one or more photos to begin.</p>"


def test_an_expired_session(page):
    event = gr.SelectData(None, {"index": [0, 0], "value": "1", "row_value": ["1", "a.png"]})
    assert "Add the photos again." in page.on_select(app_page.Session(), 0.5, 0.5, app_page.ALL_LAYERS, event)[3]
    assert "Add the photos again." in page.on_pack(app_page.Session(), 0.5, 0.5)[0]
    for values in (page.on_thresholds(app_page.Session(), 0.5, 0.5), page.on_layer(app_page.Session(), "layer 1")):
        assert all(value == gr.skip() for value in values)


def test_the_download_is_in_the_temporary_folder(page, uploads, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "temporary"))
    session, *_ = page.on_files(uploads, app_page.Session(), 0.5, 0.5, app_page.ALL_LAYERS)
    target = Path(page.on_pack(session, 0.5, 0.5)[1]["value"])
    assert target.is_relative_to(tmp_path / "temporary")
    assert "results.json" in zipfile.ZipFile(target).namelist()
    page.on_pack(session, 0.5, 2)
    assert len(list((tmp_path / "temporary").iterdir())) == 1  # an error leaves no file


def test_build_app(detector):
    config = str(app.build_app().get_config_file())
    assert "vip2clip-tiny" in config
    assert "vip2clip app --model CHECKPOINT" in config
    detector.decision.image_threshold, detector.decision.pixel_threshold = 0.123456789, 0.2
    page = app.build_app(detector, max_images=7, max_file_size=3)
    values = {block.elem_id: block for block in page.blocks.values() if getattr(block, "elem_id", None)}
    assert values["image_threshold"].value == 0.123456789
    assert values["pixel_threshold"].value == 0.2
    assert values["files"].label == "Photos (up to 7, 3 MB each)"
    assert "CHECKPOINT" not in str(page.get_config_file())
    assert page.analytics_enabled is False
    assert all(function.api_visibility == "private" for function in page.fns.values())
    assert app_page.THEME._stylesheets == []


def test_model_names(tmp_path):
    """The path of a folder is not shown."""
    (tmp_path / "checkpoint").mkdir()
    assert app._model_name(tmp_path / "checkpoint") == "checkpoint"
    assert app._model_name("org/model") == "org/model"


def test_initial_state():
    """Gradio copies the initial state for each visitor."""
    assert app_page.Session().results == []
    assert PhotoResult("a", "b", (1, 1), 0.5).nbytes == 0


# Serving


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.1", False), ("a.b", False)],
)
def test_is_loopback(host, loopback):
    assert app.is_loopback(host) is loopback


class _Launched(Exception):
    pass


def test_launch_settings(detector, monkeypatch, capsys):
    """Loopback only, no public link, no files of the machine; global settings are restored."""
    seen = {}

    def launch(self, **options):
        seen.update(options, temporary=tempfile.gettempdir(), pixels=Image.MAX_IMAGE_PIXELS)
        raise _Launched

    monkeypatch.setattr(gr.Blocks, "launch", launch)
    before = tempfile.gettempdir(), Image.MAX_IMAGE_PIXELS
    with pytest.raises(_Launched):
        app.launch(detector, max_file_size=0.5, max_pixels=1234)
    assert capsys.readouterr().err == ""
    assert (seen["server_name"], seen["share"], seen["allowed_paths"]) == ("127.0.0.1", False, [])
    assert (seen["max_file_size"], seen["pixels"]) == (512 * 1024, 1234)
    assert seen["temporary"] != before[0]
    assert not Path(seen["temporary"]).exists()
    assert (tempfile.gettempdir(), Image.MAX_IMAGE_PIXELS) == before
    with pytest.raises(_Launched):
        app.launch(detector, host="0.0.0.0")
    assert (
        "Warning: with --host 0.0.0.0, anyone on the network can use the app without a password."
        in capsys.readouterr().err
    )
    with pytest.raises(ValueError, match="max_pixels is 0"):
        app.launch(detector, max_pixels=0)


def test_a_port_in_use(detector):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match=r"cannot be bound .*\. Choose another with --port"):
            app.launch(detector, port=taken.getsockname()[1])


def test_command(monkeypatch):
    asked = {}
    monkeypatch.setattr(app, "launch", lambda *args, **kwargs: asked.update(args=args, **kwargs))
    arguments = ["app", "--model", "org/model", "--port", "8000", "--max-pixels", "100", "--no-browser"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert asked["args"] == ("org/model", None)
    assert (asked["host"], asked["port"], asked["max_pixels"], asked["open_browser"]) == (
        "127.0.0.1",
        8000,
        100,
        False,
    )
    CliRunner().invoke(cli.app, ["app"])
    assert (asked["max_images"], asked["max_file_size"]) == (app.MAX_IMAGES, app.MAX_FILE_SIZE)
    assert (asked["max_pixels"], asked["open_browser"]) == (app.MAX_PIXELS, True)
    assert "vip2clip app --model org/vip2clip" in CliRunner().invoke(cli.app, ["app", "--help"]).output
    assert CliRunner().invoke(cli.app, ["app", "--port", "0"]).exit_code == 2


@pytest.mark.slow
def test_without_gradio():
    code = "import sys; sys.modules['gradio'] = None\nfrom vip2clip_hf.app import launch\nlaunch()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (
        "ImportError: The web app needs gradio, which is not installed: pip install 'vip2clip_hf[app]'." in done.stderr
    )


# The Space


def test_space(monkeypatch):
    asked = {}
    monkeypatch.setattr(app, "launch", lambda *args, **kwargs: asked.update(args=args, **kwargs))
    monkeypatch.setenv("VIP2CLIP_MODEL", "")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    runpy.run_path(str(ROOT / "spaces" / "app.py"), run_name="__main__")
    assert asked.pop("args") == (None,)
    assert (asked.pop("host"), asked.pop("port")) == ("0.0.0.0", 7860)
    assert isinstance(app.build_app(**asked), gr.Blocks)
    monkeypatch.setenv("VIP2CLIP_MODEL", "org/model")
    runpy.run_path(str(ROOT / "spaces" / "app.py"), run_name="__main__")
    assert asked["args"] == ("org/model",)


def test_space_files():
    front, _ = (ROOT / "spaces" / "README.md").read_text(encoding="utf-8").removeprefix("---\n").split("---\n", 1)
    front = yaml.safe_load(front)
    assert front["sdk"] == "gradio"
    assert (ROOT / "spaces" / front["app_file"]).is_file()
    assert re.fullmatch(r"3\.\d+", front["python_version"])
    # Dependencies of the package and of its extra, except gradio, which the Space provides.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    base = re.search(r"\ndependencies = \[(.*?)\]", text, re.DOTALL)[1]
    extra = re.search(r"\napp = \[(.*?)\]", text)[1]
    wanted = set(re.findall(r'"(.+?)"', base + extra))
    found = (ROOT / "spaces" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {line for line in found if line[0] not in "#-"} == {
        name for name in wanted if not name.startswith("gradio")
    }
    assert f"gradio>={front['sdk_version'].removesuffix('.0')}" in wanted
