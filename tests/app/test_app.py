import asyncio
import copy
import gc
import io
import json
import re
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import vip2clip_hf
from helpers.served_app import served_app
from helpers.tiny import ROOT, change_weights
from vip2clip_hf import AnomalyDetectionPipeline, DecisionConfig, ReferenceBank, adapt, bundled_checkpoint, cli
from vip2clip_hf.calibration import calibrate
from vip2clip_hf.inference import predict_to_folder
from vip2clip_hf.models.vip2clip.results_vip2clip import decode_result


gr = pytest.importorskip("gradio", reason="the web app needs gradio (pip install 'vip2clip_hf[app]')")

from vip2clip_hf.app import page as app_page, server as app  # noqa: E402 - after the check for gradio
from vip2clip_hf.app.downloads import predictions, safe_stem, write_detector, write_zip  # noqa: E402
from vip2clip_hf.app.drawing import draw_mask  # noqa: E402
from vip2clip_hf.app.good_photos import COMPARE, THRESHOLDS, use_good_photos  # noqa: E402
from vip2clip_hf.app.guard import Guard, is_remote  # noqa: E402
from vip2clip_hf.app.handlers import ALL_LAYERS, AUTOMATIC, Handlers  # noqa: E402
from vip2clip_hf.app.results import PhotoInspector, PhotoResult  # noqa: E402
from vip2clip_hf.app.session import Session, SessionMemory  # noqa: E402
from vip2clip_hf.app.table import results_table  # noqa: E402
from vip2clip_hf.app.texts import describe_references, describe_status  # noqa: E402


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
    with urllib.request.urlopen(large.thumbnail) as answer:
        thumbnail = Image.open(io.BytesIO(answer.read()))
    assert thumbnail.size == (112, 84)
    # For ViT-L/14, a session of 50 photos takes less than 3 MB, and its thumbnails less than 1 MB.
    assert 50 * np.zeros((4, 2, 37, 37), np.float32).nbytes < 3e6
    assert len(large.thumbnail) < 20_000


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
    table = results_table(results, [inspector.decide(results[0], (0.5, 0.5))], problems, [0], 0, "normal")
    for shown in (table, describe_status(Session([], problems))):
        assert "&lt;b&gt;text.png" in shown
        assert "<b>text" not in shown
        assert "could not be decoded" in shown
    assert "No result for 5 files, see the table" in describe_status(Session(results, problems))


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
    write_zip(tmp_path / "out.zip", inspector, "org/model", results, problems, thresholds)
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
    assert rows[0] == "id,score,label,p_value,anomalous_area,error"
    assert rows[2].startswith("../../etc/passwd")
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
    """Photos as references, without their thresholds."""
    return ReferenceBank.from_images(
        inspector.detector.model,
        inspector.detector.image_processor,
        paths,
        **{n: v for n, v in inspector.detector.score_settings().items() if n[:4] == "tile"},
    )


def test_references(inspector, detector, uploads, good, calls, tmp_path):
    bank = references_of(inspector, good)
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
        write_zip(tmp_path / "out.zip", inspector, "org/model", found, [], (0.5, 0.5))
        assert json.loads(zipfile.ZipFile(tmp_path / "out.zip").read("results.json"))["references"] == expected


def test_references_of_the_checkpoint(detector, uploads, good):
    detector.model.references = ReferenceBank.from_images(detector.model, detector.image_processor, good)
    inspector = PhotoInspector(detector)
    (result, _), _ = inspector.analyse(uploads)
    assert inspector.decide(result, (0.5, 0.5))["score"] == detector(uploads[0])["score"]
    (plain, _), _ = inspector.analyse(uploads, [result], references=None)
    assert plain.references is None
    assert inspector.decide(plain, (0.5, 0.5))["score"] == detector(uploads[0], references=None)["score"]
    assert "compared with 3 good photos of the checkpoint" in describe_references(detector, "auto")
    assert "No good photos" in describe_references(inspector.configured(None).detector, None)


def test_thresholds_of_other_scores(detector, uploads, good):
    detector.model.decision = DecisionConfig(
        calibration={"settings": detector.score_settings(), "num_images": 3}, image_scores=[0.0, 0.1, 0.2]
    )
    inspector = PhotoInspector(detector)
    bank = references_of(inspector, good)
    (plain, _), _ = inspector.analyse(uploads)
    (result, _), _ = inspector.analyse(uploads, references=bank)
    assert inspector.decide(plain, (0.5, 0.5))["p_value"] is not None
    scores = bank.left_out_scores()
    larger = (scores >= np.float32(result.score)).sum()
    assert inspector.decide(result, (0.5, 0.5))["p_value"] == pytest.approx((1 + larger) / (1 + len(scores)))
    assert "chosen for other scores" in describe_references(inspector.configured(bank).detector, bank)
    assert "chosen for other scores" not in describe_references(detector, "auto")


def test_tiles_with_references(detector, photo, good, tmp_path):
    tiled = AnomalyDetectionPipeline(
        model=detector.model, image_processor=detector.image_processor, device="cpu", tile_size=40
    )
    inspector = PhotoInspector(tiled)
    bank = references_of(inspector, good)
    assert bank.options.tile_size == 40
    photo.save(tmp_path / "a.png")
    (result,), _ = inspector.analyse([str(tmp_path / "a.png")], references=bank)
    wanted = tiled(photo, references=bank)
    assert result.score == pytest.approx(wanted["score"], abs=1e-6)
    np.testing.assert_allclose(inspector.inspect(result, (0.5, 0.5))["anomaly_map"], wanted["anomaly_map"], atol=1e-3)


# The web app


@pytest.fixture
def page(inspector):
    return Handlers(inspector, "org/model")


def upload(page, paths, session=None):
    return page.on_files(paths, Session() if session is None else session, ALL_LAYERS)


def learn(page, good, session, use=COMPARE, rate=AUTOMATIC):
    return page.on_good(good, use, rate, session, ALL_LAYERS)


def row_of(table: str, name: str) -> str:
    """The row of a file in the table, as text."""
    return next(row for row in table.split("<tr")[1:] if f">{name}</" in row)


def choose(number):
    return gr.EventData(None, {"number": number})


def test_good_photos_on_the_page(page, uploads, good, tmp_path):
    values = upload(page, uploads)
    before, plain = values["heatmap"], values["table"]
    values = learn(page, good, values["session"])
    session, note = values["session"], values["note"]
    assert "Photos are compared with 3 good photos." in note
    bank, decision = session.references, session.decision
    wanted = adapt(page.inspector.detector, good)
    assert bank.checksum() == wanted.bank.checksum()
    assert decision == wanted.decision
    assert f"Threshold <b>{decision.image_threshold:.3f}</b>, from 3 good photos, for at most <b>25 %</b>" in note
    assert "between 1.7 and 63.2 %" in note
    assert "Not guaranteed:</b> how many defects are found" in note
    assert (values["image_threshold"], values["pixel_threshold"]) == (
        decision.image_threshold, decision.pixel_threshold
    )  # fmt: skip
    # Results are those of a pipeline with these references and thresholds. The model of other sessions is as before.
    assert page.inspector.detector.model.decision == DecisionConfig()
    assert page.inspector.detector.references is None
    folder = tmp_path / "adapted"
    adapt(page.inspector.detector, good, folder)
    detector = AnomalyDetectionPipeline.from_pretrained(folder, device="cpu")
    for result in session.results:
        expected, found = detector(result.path), page.configured(session).inspect(result, page.thresholds(session))
        assert {name: found[name] for name in ("label", "p_value")} == {
            name: expected[name] for name in ("label", "p_value")
        }
        assert found["score"] == pytest.approx(expected["score"], abs=1e-6)
        np.testing.assert_array_equal(found["mask"], expected["mask"])
        assert f"{expected['score']:.3f}" in row_of(values["table"], result.name)
        assert f"{expected['p_value']:.4f}" in row_of(values["table"], result.name)
    assert not np.array_equal(np.asarray(values["heatmap"]), np.asarray(before))
    # They stay while photos and thresholds change.
    for after in (upload(page, uploads[:1], session), page.on_select(session, ALL_LAYERS, choose(2)),
                  page.on_thresholds(session, 0.1, 0.2), page.step(1)(session, ALL_LAYERS)):  # fmt: skip
        assert after["session"].references is bank
        assert after["session"].decision is decision
    moved = page.on_thresholds(session, 0.1, 0.2)
    assert "Thresholds were moved: the false-alarm rate does not apply." in moved["summary"]
    reset = page.on_reset(moved["session"])
    assert "Thresholds were moved" not in reset["summary"]
    assert reset["image_threshold"] == decision.image_threshold
    removed = page.on_remove(session, ALL_LAYERS)
    assert removed["good"] is None
    assert removed["note"] == "<p>No good photos: results are zero-shot.</p>"
    assert removed["table"] == plain
    assert learn(page, [], session)["session"].references == "auto"


def test_good_photos_that_cannot_be_used(page, uploads, good, tmp_path):
    (tmp_path / "<b>.png").write_text("not an image")
    bad = str(tmp_path / "<b>.png")
    values = learn(page, [bad, *good], upload(page, uploads)["session"])
    session = values["session"]
    assert "compared with 3 good photos." in values["note"]
    assert "&lt;b&gt;.png" in values["note"]
    assert "cannot be read as an image" in values["note"]
    # Without a usable photo, or with too few for the rate, nothing changes.
    for photos, rate, reason in (
        ([bad], AUTOMATIC, "cannot be read as an image"),
        (good, "1 %", "at least 99 photos"),
    ):
        values = learn(page, photos, session, rate=rate)
        assert set(values) == {"note"}
        assert reason in values["note"]
        assert f"{session.decision.image_threshold:.3f}" in values["note"]
    limited = Handlers(PhotoInspector(page.inspector.detector, max_images=2), "org/model")
    note = learn(limited, good, Session())["note"]
    assert "compared with 2 good photos" in note
    assert "skipped; the limit is 2" in note
    one = learn(page, good[:1], Session())
    assert "No threshold yet" in one["note"]
    assert one["session"].decision is None
    assert one["session"].references is not None
    with pytest.raises(ValueError, match="use is 'x'; expected 'compare' or 'thresholds'"):
        use_good_photos(page.inspector, good, "x")


def test_thresholds_only(page, detector, good):
    values = learn(page, good, Session(), THRESHOLDS, "20 %")
    assert "at least 4 normal images" in values["note"]
    values = learn(page, good, Session(), THRESHOLDS)
    session = values["session"]
    assert session.references == "auto"
    wanted = calibrate(detector, good, 0.25).decision
    assert session.decision == wanted
    assert "No good photos: results are zero-shot." in values["note"]
    assert "from 3 good photos, for at most <b>25 %</b> false alarms" in values["note"]
    assert page.thresholds(session) == (wanted.image_threshold, wanted.pixel_threshold)
    assert "at least 2 photos" in learn(page, good[:1], Session(), THRESHOLDS)["note"]


def test_warnings_about_good_photos(page, good, uploads):
    """Photos unlike the others are named, and a low rate of found defects is said to be low."""
    found, _ = use_good_photos(page.inspector, good)
    for changed, text in (
        ({"found": (3, 10)}, "3 of 10 photos with pasted defects are called anomalous. This is low"),
        ({"unusual": ("<i>.png",)}, "Unlike the other good photos: <b>&lt;i&gt;.png</b>"),
        ({"notes": ("x < y",)}, "<li>x &lt; y</li>"),
    ):
        assert text in describe_references(page.inspector.detector, "auto", replace(found, **changed))
    assert "This is low" not in describe_references(page.inspector.detector, "auto", replace(found, found=(9, 10)))


def test_memory_of_sessions(page, good):
    """If memory is short, the session that was not used for longest forgets its good photos, and says so."""
    sessions = [learn(page, good[number:], Session())["session"] for number in (0, 1)]
    size = sum(session.references.nbytes for session in sessions)
    memory = SessionMemory(size)
    for session in sessions:
        memory.keep(session)
    assert memory.nbytes == size
    third = learn(page, good[:2], Session())["session"]
    memory.keep(third)
    assert sessions[0].forgotten
    assert sessions[0].references == "auto"
    assert sessions[0].decision is None
    assert not sessions[1].forgotten
    assert not third.forgotten
    assert "Add them again" in upload(page, [], sessions[0])["note"]
    assert not learn(page, good, sessions[0])["session"].forgotten
    del sessions, third, session
    gc.collect()
    assert memory.nbytes == 0


def test_events_of_a_session_do_not_overwrite_each_other(inspector, uploads, good):
    """Photos that are added while good photos are read are compared with them."""
    page = app_page.Page(inspector, "org/model")
    page.build(False)
    session, started, go_on = Session(), threading.Event(), threading.Event()

    def slow(*args):
        started.set()
        assert go_on.wait(60)
        return page.handlers.on_good(*args)

    learning = threading.Thread(target=page.bound(slow), args=(good, COMPARE, AUTOMATIC, session, ALL_LAYERS))
    learning.start()
    assert started.wait(60)
    adding = threading.Thread(target=page.bound(page.handlers.on_files), args=(uploads, session, ALL_LAYERS))
    adding.start()
    go_on.set()
    learning.join()
    adding.join()
    assert len(session.results) == 2
    assert {id(result.references) for result in session.results} == {id(session.references)}
    assert page.handlers.thresholds(session) == (session.decision.image_threshold, session.decision.pixel_threshold)


def test_the_example(page, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page.inspector.max_images = 3
    values = page.on_example(Session(), ALL_LAYERS)
    assert [Path(path).name for path in values["good"]] == [f"toy_good_0{number}.jpg" for number in (1, 2, 3)]
    assert all(Path(path).is_relative_to(tmp_path) for path in [*values["good"], *values["files"]])
    assert len(values["session"].references) == 3
    again = page.on_example(upload(page, values["files"], values["session"])["session"], ALL_LAYERS)
    assert again["session"].references is values["session"].references
    assert len(again["session"].results) == 3


def labels(table: str) -> list[str]:
    return re.findall(r'<tr class="photo (\w+)', table)


def test_thresholds_change_without_running_the_model(page, uploads, calls):
    values = upload(page, uploads)
    session = values["session"]
    assert values["shown"]["visible"]
    assert not values["start"]["visible"]
    assert "2 photos analysed" in values["status"]
    largest = max(session.results, key=lambda result: result.score)
    assert largest.name in values["summary"]
    assert values["photo"].size == values["heatmap"].size == values["mask"].size == largest.size[::-1]
    assert len(calls) == 2
    for image_threshold, label in ((0, "anomalous"), (1, "normal")):
        found = page.on_thresholds(session, image_threshold, 0)
        assert labels(found["table"]) == [label, label]
        assert f'class="verdict {label}"' in found["summary"]
        assert f"{2 if label == 'anomalous' else 0} anomalous" in found["status"]
    # Photos in the order of their scores; the number in the row is that of the upload.
    names = re.findall(r'data-number="(\d)"[^>]*>([^<]+)</button>', values["table"])
    order = sorted(session.results, key=lambda result: -result.score)
    assert names == [(str(session.results.index(result) + 1), result.name) for result in order]
    session = page.on_select(session, ALL_LAYERS, choose(1))["session"]
    assert session.selected == 0
    everything, nothing = page.on_thresholds(session, 0.5, 0), page.on_thresholds(session, 0.5, 1)
    assert '<span id="marked">2,400</span> of 2,400' in everything["summary"]
    assert '<span id="marked">0</span>' in nothing["summary"]
    assert everything["regions"][0][:5] == [0, 0, 60, 40, 2400]
    assert nothing["regions"] == []
    photo = page.on_select(session, ALL_LAYERS, choose(1))["photo"]
    np.testing.assert_array_equal(np.asarray(nothing["mask"]), np.asarray(photo))
    heatmaps = [np.asarray(page.on_layer(session, layer)["heatmap"]) for layer in (ALL_LAYERS, "layer 2")]
    assert not np.array_equal(*heatmaps)
    chosen = page.on_select(session, ALL_LAYERS, choose(2))
    assert chosen["session"].selected == 1
    assert chosen["photo"].size == (90, 120)
    for by in (1, -1):
        assert page.step(by)(chosen["session"], ALL_LAYERS)["session"].selected == 0
    assert len(calls) == 2


def test_a_new_photo_is_shown(page, uploads):
    """A photo from the camera is added to the others and shown, whatever its score."""
    session = upload(page, uploads[:1])["session"]
    paths = page.on_camera(uploads[1], uploads[:1])["files"]
    assert paths == uploads
    values = upload(page, paths, session)
    assert values["session"].selected == 1
    assert "b (1).jpg" in values["summary"]
    assert upload(page, uploads[1:], values["session"])["session"].selected == 0
    assert upload(page, uploads[:1], values["session"])["session"].selected == 0
    assert page.on_camera(None, None)["files"] == []


def test_problems_are_shown(page, uploads, tmp_path):
    (tmp_path / "wrong.png").write_text("not an image")
    values = upload(page, [str(tmp_path / "wrong.png")])
    assert not values["shown"]["visible"]
    assert "'wrong.png' cannot be read as an image" in values["status"].replace("&#x27;", "'")
    session = upload(page, uploads, values["session"])["session"]
    assert "threshold is (2, 0.5); expected a number in [0, 1]" in page.on_thresholds(session, 2, 0.5)["status"]
    assert "status" not in page.on_layer(session, "layer 1")
    assert "expected one of [1, 2, 4]" in page.on_layer(session, "layer 3")["status"]
    for path in uploads:
        Path(path).unlink()
    for values in (page.on_thresholds(session, 0.5, 0.5), page.on_layer(session, "layer 1"), page.on_pack(session),
                   page.on_select(session, ALL_LAYERS, choose(1))):  # fmt: skip
        assert "is no longer available" in values["status"]
    values = upload(page, [], session)
    assert values["status"] == "<p>No photos to check yet.</p>"
    assert values["start"]["visible"]


def test_an_expired_session(page):
    chosen = [page.on_select(Session(), ALL_LAYERS, choose(number)) for number in (1, "x", None)]
    for values in (*chosen, page.step(1)(Session(), ALL_LAYERS), page.on_pack(Session()), page.on_csv(Session())):
        assert "Add the photos again." in values["status"]
    assert set(page.on_thresholds(Session(), 0.5, 0.5)) == {"session"}
    assert page.on_layer(Session(), "layer 1") == {}
    assert "Add them again" in page.on_save(Session())["note"]


def test_downloads(page, uploads, good, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "temporary"))
    session = learn(page, good, upload(page, uploads)["session"])["session"]
    target = Path(page.on_pack(session)["download"]["value"])
    assert target.is_relative_to(tmp_path / "temporary")
    archive = zipfile.ZipFile(target)
    content = json.loads(archive.read("results.json"))
    assert content["good_photos"]["false_alarm_rate"] == 0.25
    assert content["image_threshold"] == session.decision.image_threshold
    written = Path(page.on_csv(session)["download"]["value"])
    assert written.read_text(encoding="utf-8-sig").encode() == archive.read("results.csv")
    report = Path(page.on_report(session)["download"]["value"]).read_text(encoding="utf-8")
    assert "Inspection of 2 photos" in report
    assert "for a false-alarm rate of 25 %" in report
    assert "3 photos of good parts" in report
    assert all(result.name in report for result in session.results)
    assert report.count("data:image/") >= 4
    folder = tmp_path / "adapted"
    adapt(page.inspector.detector, good, folder)
    monkeypatch.setattr(page.inspector, "max_images", 9)
    adapted = AnomalyDetectionPipeline.from_pretrained(folder, device="cpu")
    photos, output = Path(uploads[0]).parent, tmp_path / "predictions"
    predicted = predict_to_folder(adapted.model, adapted.image_processor, photos, output)
    rows = pq.read_table(predicted["table"]).to_pylist()
    row = predictions(page.configured(session), "m", session.results[:1], [], page.thresholds(session)).rows[0]
    assert {name: getattr(row, name) for name in rows[0]} == pytest.approx(rows[0], abs=1e-6)
    count = len(list((tmp_path / "temporary").iterdir()))
    Path(uploads[0]).unlink()
    assert "no longer available" in page.on_pack(session)["status"]
    assert len(list((tmp_path / "temporary").iterdir())) == count  # an error leaves no file


@pytest.mark.parametrize("limit", [100 * 1024**2, 0])
def test_the_saved_detector(page, uploads, good, tmp_path, monkeypatch, limit):
    """A checkpoint that gives the results of the session. Of a large model, only what to copy into a checkpoint."""
    monkeypatch.setattr("vip2clip_hf.app.downloads.MAX_CHECKPOINT", limit)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "temporary"))
    session = learn(page, good, upload(page, uploads)["session"])["session"]
    target = page.on_save(session)["detector"]["value"]
    with zipfile.ZipFile(target) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "detector"
    if not limit:
        assert "chosen from 3 photos" in (folder / "README.md").read_text()
        assert not (folder / "config.json").exists()
        for path in folder.iterdir():
            path.rename(tmp_path / path.name)
        page.inspector.detector.save_pretrained(folder)
        for name in ("decision.json", "references.json", "references.safetensors"):
            (tmp_path / name).replace(folder / name)
    detector = AnomalyDetectionPipeline.from_pretrained(folder, device="cpu")
    assert detector.model.decision == session.decision
    for result in session.results:
        found = page.configured(session).decide(result, page.thresholds(session))
        wanted = detector(result.path)
        assert found == pytest.approx({name: wanted[name] for name in ("score", "label", "p_value")}, abs=1e-6)
    assert page.inspector.detector.references is None
    one = learn(page, good[:1], Session())["session"]
    assert "There are no thresholds to save" in page.on_save(one)["note"]
    with pytest.raises(ValueError, match="no thresholds"):
        write_detector(tmp_path / "x.zip", page.configured(one), "m", one.good)


# The public API


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a running page with endpoints and the bundled checkpoint."""
    with served_app(tmp_path_factory.mktemp("served"), max_images=4) as address:
        yield address


@pytest.fixture
def client(served, tmp_path):
    from gradio_client import Client

    return Client(served, verbose=False, download_files=str(tmp_path))


TOYS = ROOT / "src" / "vip2clip_hf" / "examples" / "toys"


def sent(*names):
    from gradio_client import handle_file

    return [handle_file(str(TOYS / name)) for name in names]


GOOD = [f"good/toy_good_0{number}.jpg" for number in (1, 2, 3)]


def test_endpoints_are_documented(client, detector):
    info = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    parameters = {
        name: [(one["parameter_name"], one["python_type"]["type"].split("[")[0]) for one in endpoint["parameters"]]
        for name, endpoint in info.items()
    }
    assert parameters == {
        "/predict": [("photo", "filepath"), ("mask", "Literal"), ("heatmap", "bool")],
        "/predict_table": [("photos", "list")],
        "/good_photos": [("photos", "list"), ("false_alarm_rate", "float"), ("use", "Literal")],
        "/reset": [],
    }
    documented = (ROOT / "docs" / "app.md").read_text(encoding="utf-8")
    for name, listed in parameters.items():
        assert f"`{name}`" in documented
        assert all(f"`{parameter}`" in documented for parameter, _ in listed)
    # Off by default: no function of the page is an endpoint.
    page = app.build_app(detector)
    assert all(function.api_visibility == "private" for function in page.fns.values())
    assert page.get_api_info()["named_endpoints"] == {}


def test_predict_endpoint(client):
    detector = AnomalyDetectionPipeline.from_pretrained(bundled_checkpoint(), device="cpu")
    path = TOYS / "test" / "toy_damaged_2.jpg"
    wanted = detector(str(path), regions=True)
    found = client.predict(*sent("test/toy_damaged_2.jpg"), api_name="/predict")
    assert found == json.loads(json.dumps(wanted.to_dict()))
    full = client.predict(*sent("test/toy_damaged_2.jpg"), mask="png", heatmap=True, api_name="/predict")
    np.testing.assert_array_equal(decode_result(full)["mask"], wanted["mask"])
    assert decode_result(full)["heatmap"].size == (320, 221)
    with pytest.raises(Exception, match=r"'README\.md' cannot be read as an image"):
        client.predict(*sent("../README.md"), api_name="/predict")
    table = client.predict(sent("test/toy_damaged_2.jpg", "../README.md"), api_name="/predict_table")["rows"]
    assert table[0]["score"] == wanted["score"]
    assert table[0].keys() == table[1].keys() == {"id", "score", "label", "p_value", "anomalous_area", "error"}
    assert "cannot be read" in table[1]["error"]


@pytest.mark.slow
def test_clients_have_sessions_of_their_own(served, client, tmp_path):
    from gradio_client import Client

    other = Client(served, verbose=False, download_files=str(tmp_path))
    photo = sent("test/toy_damaged_2.jpg")
    plain = client.predict(photo, api_name="/predict_table")
    learned = client.predict(sent(*GOOD), api_name="/good_photos")
    assert (learned["num_photos"], learned["compared"], learned["false_alarm_rate"]) == (3, True, 0.25)
    compared = client.predict(photo, api_name="/predict_table")
    assert compared["rows"][0]["p_value"] == 0.25
    assert compared != plain
    assert other.predict(photo, api_name="/predict_table") == plain
    only = other.predict(sent(*GOOD), 0.3, "thresholds", api_name="/good_photos")
    assert (only["compared"], only["false_alarm_rate"]) == (False, 0.3)
    assert client.predict(photo, api_name="/predict_table") == compared
    with pytest.raises(Exception, match="at least 99 photos of good parts, found 3"):
        client.predict(sent(*GOOD), 0.01, api_name="/good_photos")
    with pytest.raises(Exception, match="cannot be used"):
        client.predict(sent("../README.md"), api_name="/good_photos")
    assert client.predict(photo, api_name="/predict_table") == compared
    client.predict(api_name="/reset")
    assert client.predict(photo, api_name="/predict_table") == plain


def test_urls_are_not_loaded(client):
    from gradio_client import handle_file

    with pytest.raises(Exception, match="is a URL; expected a file"):
        client.predict(handle_file("http://127.0.0.1:9/x.png"), api_name="/predict")


# Requests


@pytest.mark.parametrize(
    ("path", "remote"),
    [("http://a.b/c", True), ("https:/a.b", True), ("http%3A%2F%2Fa.b", True), ("data:image/png,x", True),
     ("/tmp/a.png", False), ("C:\\a.png", False), ("C:/a.png", False), ("a b.png", False)],
)  # fmt: skip
def test_is_remote(path, remote):
    assert is_remote(path) is remote


def test_guard():
    """Requests for files of other servers are refused, and closed sessions freed unless they are opened again."""
    freed, sent_messages, hold = [], [], asyncio.Event()

    async def application(scope, receive, send):
        if "heartbeat" in scope["path"]:
            await hold.wait()
        await send({"type": "passed"})

    async def send(message):
        sent_messages.append(message)

    async def run():
        guard = Guard(application, freed.append, 0.2)
        for path in ("/gradio_api/file=http://a.b/c", "/x/gradio_api/file=https%3A//a.b", "/gradio_api/file=/tmp/a"):
            await guard({"type": "http", "path": path}, None, send)
        first = asyncio.create_task(guard({"type": "http", "path": "/gradio_api/heartbeat/abc"}, None, send))
        second = asyncio.create_task(guard({"type": "http", "path": "/gradio_api/heartbeat/xyz"}, None, send))
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        again = asyncio.create_task(guard({"type": "http", "path": "/gradio_api/heartbeat/abc"}, None, send))
        await asyncio.sleep(0.4)
        assert freed == []
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
        await asyncio.sleep(0.4)
        assert freed == ["abc"]
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)

    asyncio.run(run())
    assert [message.get("status", message["type"]) for message in sent_messages if message["type"][-4:] != "body"] == [
        403, 403, "passed"
    ]  # fmt: skip


def test_build_app(detector):
    config = str(app.build_app().get_config_file())
    assert "vip2clip-tiny" in config
    assert "vip2clip app --model CHECKPOINT" in config
    detector.decision.image_threshold, detector.decision.pixel_threshold = 0.123456789, 0.2
    page = app.build_app(detector, max_images=7, max_file_size=3)
    values = {block.elem_id: block for block in page.blocks.values() if getattr(block, "elem_id", None)}
    assert values["image_threshold"].value == 0.123456789
    assert values["pixel_threshold"].value == 0.2
    assert values["files"].label == "Photos to check (up to 7, 3 MB each)"
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
    assert Session().results == []
    assert copy.deepcopy(Session()).lock is not Session().lock
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
    # The package remembers names that were imported from it, for example by an earlier test.
    for module in (app, vip2clip_hf):
        monkeypatch.setattr(module, "launch", lambda *args, **kwargs: asked.update(args=args, **kwargs))
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
