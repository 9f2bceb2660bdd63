"""One bank of references: all ways to run a model give the same scores and maps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.predictions import rows_of
from helpers.tiny import change_weights, tiny_config
from vip2clip_hf import (
    AnomalyDetectionPipeline,
    ReferenceBank,
    ViP2ClipForAnomalyDetection,
    ViP2ClipImageProcessor,
    evaluate_model,
    load_folder,
    predict_to_folder,
    save_checkpoint,
)
from vip2clip_hf.app.results import PhotoInspector
from vip2clip_hf.data.synthetic.dataset import generate_image
from vip2clip_hf.evaluation.recorder import EvaluationRecorder
from vip2clip_hf.export.graph import ExportedDetector
from vip2clip_hf.models.vip2clip.tiling_vip2clip import tile_boxes


SIDE, LARGE = 48, 80
CLOSE = {"rtol": 0, "atol": 1e-5}
# Maps of bulk prediction are stored in float16.
STORED = {"rtol": 0, "atol": 5e-4}
EXPORTED = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def detector() -> AnomalyDetectionPipeline:
    torch.manual_seed(0)
    model = ViP2ClipForAnomalyDetection(tiny_config("release", smoothing_sigma=1.0)).eval()
    change_weights(model)
    with torch.no_grad():  # features that differ between photos
        model.clip.vision_model.embeddings.patch_embedding.weight.mul_(30)
    return AnomalyDetectionPipeline(model=model, image_processor=ViP2ClipImageProcessor(size=SIDE), device="cpu")


def build(detector: AnomalyDetectionPipeline, side: int, **options) -> ReferenceBank:
    images = [generate_image("stripes", None, side, number)[0] for number in range(5)]
    return ReferenceBank.from_images(detector.model, detector.image_processor, images, **options)


@pytest.fixture(scope="module")
def bank(detector) -> ReferenceBank:
    return build(detector, SIDE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[str]:
    """Photos of the size of the model, so that maps have it too."""
    return write(tmp_path_factory.mktemp("photos"), SIDE)


def write(folder: Path, side: int) -> list[str]:
    """Write three normal photos and three with a defect, which all differ from the references, but not too much: their
    scores are neither 0 nor 1."""
    paths = []
    for kind, defect in (("good", None), ("scratch", "scratch")):
        (folder / kind).mkdir()
        for number in range(3):
            paths.append(folder / kind / f"{number}.png")
            generate_image("brushed", defect, side, 10 + number)[0].save(paths[-1])
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def expected(detector, bank, photos) -> tuple[np.ndarray, np.ndarray]:
    """Scores and maps of the model."""
    pixel_values = detector.image_processor(photos, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        combined, zero_shot = (detector.model(pixel_values, references=one) for one in (bank, None))
    scores, maps = combined.scores.numpy(), combined.anomaly_maps.numpy()
    # Values that the comparison depends on: neither saturated nor the zero-shot ones.
    assert ((scores > 0.01) & (scores < 0.99)).sum() >= 3
    assert ((maps > 0.01) & (maps < 0.99)).mean() > 0.3
    assert np.abs(scores - zero_shot.scores.numpy()).min() > 1e-3
    return scores, maps


@pytest.fixture
def carrying(detector, bank):
    """A detector whose model carries the references."""
    detector.model.references = bank
    yield detector
    detector.model.references = None


def check(found_scores, found_maps, expected, close):
    scores, maps = expected
    np.testing.assert_allclose(np.asarray(found_scores), scores, **close)
    np.testing.assert_allclose(np.stack([np.asarray(one) for one in found_maps]), maps, **close)


def results(found: list[dict], name: str) -> list:
    return [result[name] for result in found]


def test_the_pipeline(detector, bank, photos, expected):
    images = [Image.open(path) for path in photos]
    for found in (
        [detector(path, references=bank) for path in photos],
        [detector(image, references=bank) for image in images],
        detector(images, references=bank, batch_size=4),
    ):
        check(results(found, "score"), results(found, "anomaly_map"), expected, CLOSE)


def test_references_of_the_model(carrying, photos, expected):
    found = carrying(photos, batch_size=3)
    check(results(found, "score"), results(found, "anomaly_map"), expected, CLOSE)
    decided = [carrying.decision_map(path) for path in photos]
    check(results(decided, "score"), results(decided, "anomaly_map"), expected, CLOSE)


def test_a_saved_checkpoint(carrying, photos, expected, tmp_path):
    save_checkpoint(carrying.model, carrying.image_processor, tmp_path / "detector")
    found = AnomalyDetectionPipeline.from_pretrained(tmp_path / "detector", device="cpu")(photos)
    check(results(found, "score"), results(found, "anomaly_map"), expected, CLOSE)


def test_the_same_photos_in_a_folder(detector, photos, expected, tmp_path):
    for number in range(5):
        generate_image("stripes", None, SIDE, number)[0].save(tmp_path / f"{number}.png")
    found = detector(photos, references=str(tmp_path))
    check(results(found, "score"), results(found, "anomaly_map"), expected, CLOSE)


@pytest.mark.parametrize("source", ["argument", "model"])
def test_bulk_prediction(detector, bank, photos, expected, source, tmp_path, request):
    options = {"references": bank}
    if source == "model":
        request.getfixturevalue("carrying")
        options = {}
    model, processor, root = detector.model, detector.image_processor, Path(photos[0]).parents[1]
    predict_to_folder(model, processor, root, tmp_path / "out", batch_size=4, maps=True, **options)
    rows = rows_of(tmp_path / "out")
    names = [str(Path(path).relative_to(root)) for path in photos]
    maps = [np.load(tmp_path / "out" / "maps" / f"{name}.npy") for name in names]
    np.testing.assert_allclose([rows[name]["score"] for name in names], expected[0], **CLOSE)
    check(expected[0], maps, expected, STORED)


def test_the_evaluation(carrying, photos, expected):
    dataset = load_folder(Path(photos[0]).parents[1])
    recorder = EvaluationRecorder(len(dataset))
    result = evaluate_model(carrying.model, carrying.image_processor, dataset, batch_size=4, recorder=recorder)
    good = [str(label) for label in dataset["label"]]
    assert good == ["0"] * 3 + ["1"] * 3  # the order of the photos
    np.testing.assert_allclose(np.asarray(recorder.scores()), expected[0], **CLOSE)
    assert result["mean"]["image_auroc"] == pytest.approx(auroc(expected[0]))


def auroc(scores: np.ndarray) -> float:
    return float((scores[3:, None] > scores[None, :3]).mean())


@pytest.mark.parametrize("source", ["argument", "model"])
def test_the_app(detector, bank, photos, expected, source, request):
    options = {"references": bank}
    if source == "model":
        request.getfixturevalue("carrying")
        options = {}
    inspector = PhotoInspector(detector)
    found, problems = inspector.analyse(photos, **options)
    assert problems == []
    inspected = [inspector.inspect(result, (0.5, 0.5)) for result in found]
    check(results(inspected, "score"), results(inspected, "anomaly_map"), expected, CLOSE)


def test_the_exported_graph(detector, bank, photos, expected):
    graph = ExportedDetector(detector.model, bank)
    pixel_values = detector.image_processor(photos, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        scores, maps, *_ = graph(pixel_values)
        check(scores, maps, expected, CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_an_export(detector, bank, photos, expected, name, tmp_path):
    from vip2clip_hf.export import exporting, verification

    if name == "onnx":
        pytest.importorskip("onnxruntime", reason="extra `export` is not installed")
        pytest.importorskip("onnxscript", reason="extra `export` is not installed")
    export, load = getattr(exporting, f"export_{name}"), getattr(verification, f"open_{name}")
    report = export(detector.model, detector.image_processor, tmp_path / "exported", references=bank)
    assert report["references"]["num_photos"] == 5
    assert report["references"]["checksum"] == bank.checksum()
    run = load(tmp_path / "exported")
    zero_shot = detector(photos, references=None)
    pixel_values = detector.image_processor(photos, return_tensors="np")["pixel_values"]
    for batch in (slice(0, 6), slice(0, 1), slice(2, 6)):
        scores, maps, _, zero_shot_scores, zero_shot_maps = run(np.ascontiguousarray(pixel_values[batch]))
        np.testing.assert_allclose(zero_shot_scores, [one["score"] for one in zero_shot[batch]], atol=1e-5)
        for found, one in zip(zero_shot_maps, zero_shot[batch], strict=True):
            np.testing.assert_allclose(found, one["anomaly_map"], atol=1e-5)
        check(scores, maps, (expected[0][batch], expected[1][batch]), EXPORTED)


# Tiles


@pytest.fixture(scope="module")
def tiled(detector, tmp_path_factory) -> tuple[dict, list[str], np.ndarray, list[np.ndarray]]:
    """Options of a call, photos of several tiles, and their scores and maps in the pipeline."""
    options = {"tile_size": 48, "tile_overlap": 0.5}
    references = build(detector, LARGE, **options)
    photos = write(tmp_path_factory.mktemp("tiled"), LARGE)
    options["references"] = references
    found = detector(photos, **options)
    scores = np.array(results(found, "score"))
    assert ((scores > 0.01) & (scores < 0.99)).sum() >= 2
    # The score of a photo is that of its tile with the largest score.
    crops = [Image.open(photos[3]).crop(box) for box in tile_boxes(LARGE, LARGE, 48, 0.5)]
    with torch.inference_mode():
        outputs = detector.model(**detector.image_processor(crops, return_tensors="pt"), references=references)
    assert scores[3] == pytest.approx(float(outputs.scores.max()), abs=1e-5)
    return options, photos, scores, results(found, "anomaly_map")


def test_tiles_in_bulk_prediction(detector, tiled, tmp_path):
    options, photos, scores, maps = tiled
    root = Path(photos[0]).parents[1]
    predict_to_folder(detector.model, detector.image_processor, root, tmp_path / "out", maps=True, **options)
    rows = rows_of(tmp_path / "out")
    for path, score, anomaly_map in zip(photos, scores, maps, strict=True):
        name = str(Path(path).relative_to(root))
        assert rows[name]["score"] == pytest.approx(score, abs=1e-5)
        np.testing.assert_allclose(np.load(tmp_path / "out" / "maps" / f"{name}.npy"), anomaly_map, **STORED)


def test_tiles_in_the_app(detector, tiled):
    options, photos, scores, maps = tiled
    split = AnomalyDetectionPipeline(
        model=detector.model, image_processor=detector.image_processor, device="cpu", **options
    )
    inspector = PhotoInspector(split)
    found, _ = inspector.analyse(photos)
    for result, score, anomaly_map in zip(found, scores, maps, strict=True):
        assert result.score == pytest.approx(score, abs=1e-5)
        np.testing.assert_allclose(inspector.inspect(result, (0.5, 0.5))["anomaly_map"], anomaly_map, **STORED)


def test_tiles_of_an_export(detector, tiled):
    """The graph scores one tile."""
    options, photos, scores, _ = tiled
    graph = ExportedDetector(detector.model, options["references"])
    for path, score in zip(photos, scores, strict=True):
        crops = [Image.open(path).crop(box) for box in tile_boxes(LARGE, LARGE, 48, 0.5)]
        found, *_ = graph(detector.image_processor(crops, return_tensors="pt")["pixel_values"])
        assert float(found.max()) == pytest.approx(score, abs=1e-5)


def test_tiles_that_differ_are_refused(detector, tiled, bank, photos, tmp_path):
    options, *_ = tiled
    with pytest.raises(ValueError, match=r"read with tile_size=48, tile_overlap=0.5, but photos are read with"):
        detector(photos[0], references=options["references"])
    with pytest.raises(ValueError, match="Build the references again, or change the setting"):
        predict_to_folder(
            detector.model, detector.image_processor, Path(photos[0]).parent, tmp_path / "out",
            references=bank, tile_size=24,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_model_that_carries_references_of_tiles(detector, tiled):
    """The tiles of a call are compared with those of the references that it uses, not with those of the model."""
    options, photos, scores, _ = tiled
    zero_shot = detector(photos[0])["score"]
    detector.model.references = options["references"]
    try:
        for found in (detector(photos[0], tile_size=48, tile_overlap=0.5), detector(photos[0], **options)):
            assert found["score"] == pytest.approx(scores[0], abs=1e-5)
        assert detector(photos[0], references=None)["score"] == pytest.approx(zero_shot, abs=1e-6)
        for call in (detector, detector.decision_map):
            with pytest.raises(ValueError, match="read with tile_size=48"):
                call(photos[0])
    finally:
        detector.model.references = None
