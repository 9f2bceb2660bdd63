import copy
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub.utils import httpx
from PIL import Image
from transformers import BertConfig, BertModel, CLIPImageProcessorPil, pipeline

from vip2clip_hf import AnomalyDetectionPipeline, DecisionConfig, ViP2ClipImageProcessor
from vip2clip_hf.hub.publishing import save_checkpoint
from vip2clip_hf.models.vip2clip.heatmap_vip2clip import draw_heatmap


@pytest.fixture
def detector(model, image_processor):
    return AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")


@pytest.fixture
def photos(photo):
    """Three images of different sizes."""
    return [photo, photo.rotate(90, expand=True), photo.resize((101, 33))]


def assert_same(first: dict, second: dict):
    assert first["score"] == pytest.approx(second["score"], abs=1e-5)
    np.testing.assert_allclose(first["anomaly_map"], second["anomaly_map"], rtol=0, atol=1e-5)


def test_result(detector, photo):
    result = detector(photo)
    assert set(result) == {"score", "label", "anomaly_map", "mask"}
    assert isinstance(result["score"], float)
    assert result["label"] in ("normal", "anomalous")
    assert result["anomaly_map"].shape == result["mask"].shape == (40, 60)
    assert result["anomaly_map"].dtype == np.float32
    assert result["mask"].dtype == bool
    assert 0 <= result["anomaly_map"].min() <= result["anomaly_map"].max() <= 1


def test_result_equals_model_and_processor(detector, model, image_processor, photo):
    with torch.no_grad():
        outputs = model(**image_processor(photo, return_tensors="pt"))
    expected = image_processor.post_process_anomaly_detection(outputs, target_sizes=[(40, 60)])[0]
    assert_same(detector(photo), expected)


def test_one_image_of_every_kind(detector, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    expected = detector(photo)
    array = np.asarray(photo)
    for given in (
        str(tmp_path / "photo.png"),
        tmp_path / "photo.png",
        array,
        torch.from_numpy(array.copy()),
        {"image": photo, "label": 0},
    ):
        result = detector(given)
        assert isinstance(result, dict)
        assert_same(result, expected)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_several_images_of_every_kind(detector, photos, tmp_path, batch_size):
    expected = [detector(photo) for photo in photos]
    for index, photo in enumerate(photos):
        photo.save(tmp_path / f"{index}.png")
    rows = Dataset.from_dict({"image": [str(tmp_path / f"{i}.png") for i in range(3)]})

    class TorchDataset(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index >= 3:
                raise IndexError(index)
            return photos[index]

    for given, kind in (
        (photos, list),
        (tuple(photos), list),
        (tmp_path, list),
        (str(tmp_path), list),
        ((photo for photo in photos), None),
        (rows, None),
        (TorchDataset(), None),
        (iter(photos), None),
    ):
        results = detector(given, batch_size=batch_size)
        if kind is None:
            assert not isinstance(results, (list, dict))  # streamed
        results = list(results)
        assert len(results) == 3
        for one, other in zip(results, expected):
            assert_same(one, other)
    stacked = np.stack([np.asarray(photo.resize((60, 40))) for photo in photos])
    assert len(detector(stacked, batch_size=batch_size)) == 3


def test_generators_are_not_read_ahead(detector, photo):
    read = []

    def images():
        for index in range(100):
            read.append(index)
            yield photo

    results = detector(images(), batch_size=2)
    next(iter(results))
    assert len(read) <= 4


def test_thresholds(detector, photo):
    score, largest = detector(photo)["score"], detector.decision_map(photo)["anomaly_map"].max()
    detector.model.decision.image_threshold, detector.model.decision.pixel_threshold = 0.0, 1.0
    assert (detector(photo)["label"], detector(photo)["mask"].any()) == ("anomalous", False)
    result = detector(photo, threshold=(1.0, 0.0))
    assert (result["label"], result["mask"].all()) == ("normal", True)
    assert detector(photo, threshold=score - 0.01)["label"] == "anomalous"
    assert not detector(photo, threshold=float(largest))["mask"].any()
    # Resizing lowers the peak. A region of the map at the size of the model stays in the mask.
    resized = detector(photo)["anomaly_map"].max()
    assert resized < largest
    assert detector(photo, threshold=float(resized))["mask"].sum() == 1
    with pytest.raises(ValueError, match="threshold is"):
        detector(photo, threshold=2)


def test_top_k(detector, photo):
    first, second = detector(photo, top_k=1), detector(photo, top_k=36)
    assert first["score"] != second["score"]
    np.testing.assert_array_equal(first["anomaly_map"], second["anomaly_map"])
    with pytest.raises(ValueError, match="top_k is 100"):
        detector(photo, top_k=100)


def test_arguments_when_creating_the_pipeline(model, image_processor, photos):
    detector = AnomalyDetectionPipeline(
        model=model, image_processor=image_processor, device="cpu", batch_size=2, threshold=0.0, heatmap=True
    )
    results = detector(photos)
    assert all(r["label"] == "anomalous" and r["heatmap"].size == p.size for r, p in zip(results, photos))


def test_heatmap_is_optional(detector, photos):
    assert "heatmap" not in detector(photos[0])
    for result, photo in zip(detector(photos, heatmap=True, batch_size=2), photos):
        assert isinstance(result["heatmap"], Image.Image)
        assert (result["heatmap"].mode, result["heatmap"].size) == ("RGB", photo.size)


def test_heatmap_has_a_fixed_scale(photo):
    """A map of zeros does not change the image, and a value has the same color in every map."""
    pixels = np.asarray(photo)
    assert np.array_equal(np.asarray(draw_heatmap(photo, np.zeros((40, 60)))), pixels)
    faint = np.zeros((40, 60))
    faint[10:20, 10:20] = 0.02
    assert np.abs(np.asarray(draw_heatmap(photo, faint)).astype(int) - pixels).max() <= 6
    first, second = np.zeros((40, 60)), np.linspace(0, 1, 2400).reshape(40, 60)
    first[5, 5] = second[5, 5] = 0.6
    assert np.array_equal(np.asarray(draw_heatmap(photo, first))[5, 5], np.asarray(draw_heatmap(photo, second))[5, 5])
    strong = np.asarray(draw_heatmap(photo, np.ones((40, 60)))).astype(int)
    assert (strong[..., 0] > strong[..., 2] + 50).all()  # orange
    with pytest.raises(ValueError, match=r"shape \(60, 40\); expected \(40, 60\)"):
        draw_heatmap(photo, np.zeros((60, 40)))
    with pytest.raises(ValueError, match="anomaly_map contains NaN or infinite values"):
        draw_heatmap(photo, np.full((40, 60), np.nan))


def test_half_precision(model, image_processor, photo):
    expected = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")(photo)
    detector = AnomalyDetectionPipeline(model=model.bfloat16(), image_processor=image_processor, device="cpu")
    result = detector(photo)
    assert result["anomaly_map"].dtype == np.float32
    assert result["score"] == pytest.approx(expected["score"], abs=2e-2)


def test_registered_task(model, image_processor, photo):
    detector = pipeline("anomaly-detection", model=model, image_processor=image_processor, device="cpu")
    assert isinstance(detector, AnomalyDetectionPipeline)
    assert set(detector(photo)) == {"score", "label", "anomaly_map", "mask"}


def test_bad_input(detector, tmp_path):
    with pytest.raises(ValueError, match="contains no images"):
        detector(tmp_path)
    with pytest.raises(ValueError, match="empty list"):
        detector([])
    with pytest.raises(FileNotFoundError, match="absent"):
        detector("absent.png")
    with pytest.raises(ValueError, match="column 'image', found the columns"):
        detector({"photo": 1})
    with pytest.raises(ValueError, match="found int"):
        detector(3)
    with pytest.raises(ValueError, match="NaN"):
        detector(np.full((5, 5), np.nan))
    with pytest.raises(TypeError, match=r"Unknown arguments tresh; .*threshold"):
        detector(np.zeros((5, 5)), tresh=0.5)
    assert list(detector(x for x in [])) == []
    for top_k in (2.0, True, "3"):
        with pytest.raises(ValueError, match="top_k is"):
            detector(np.zeros((5, 5)), top_k=top_k)


def test_bad_parts(model, image_processor):
    with pytest.raises(ValueError, match="image_processor is None; expected a ViP2ClipImageProcessor"):
        AnomalyDetectionPipeline(model=model, device="cpu")
    other = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=10)
    )
    with pytest.raises(ValueError, match="found model_type 'bert'"):
        AnomalyDetectionPipeline(model=other, image_processor=image_processor, device="cpu")
    with pytest.raises(OSError, match="org/absent"):
        AnomalyDetectionPipeline.from_pretrained("org/absent")


@pytest.mark.parametrize(
    "processor", [ViP2ClipImageProcessor(size=64), ViP2ClipImageProcessor(size=48, do_resize=False)]
)
def test_processor_of_another_size_raises_an_error(model, processor):
    with pytest.raises(ValueError, match=r"the model takes 48 x 48; use ViP2ClipImageProcessor\(size=48\)"):
        AnomalyDetectionPipeline(model=model, image_processor=processor, device="cpu")
    with pytest.raises(ValueError, match="found CLIPImageProcessor"):
        AnomalyDetectionPipeline(model=model, image_processor=CLIPImageProcessorPil(), device="cpu")


def test_from_pretrained(model, image_processor, photo, tmp_path):
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")
    detector.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "decision.json",
        "model.safetensors",
        "preprocessor_config.json",
        "provenance.json",
    ]
    assert "custom_pipelines" not in (tmp_path / "config.json").read_text()
    assert_same(AnomalyDetectionPipeline.from_pretrained(tmp_path, device="cpu")(photo), detector(photo))
    loaded = AnomalyDetectionPipeline.from_pretrained(
        tmp_path, device="cpu", batch_size=2, threshold=0.0, top_k=1, heatmap=True, timeout=5, dtype="float64"
    )
    result = loaded([photo])[0]
    assert result["label"] == "anomalous"
    assert "heatmap" in result
    assert result["score"] == pytest.approx(detector(photo, top_k=1)["score"], abs=1e-5)
    assert loaded.model.dtype == torch.float64
    larger = AnomalyDetectionPipeline.from_pretrained(tmp_path, device="cpu", image_size=64)
    assert larger.image_processor(photo)["pixel_values"][0].shape == (3, 64, 64)
    assert larger(photo)["score"] != detector(photo)["score"]


def test_checkpoints_of_other_models_raise_an_error_before_loading_weights(clip_folder):
    (clip_folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="found model_type 'clip'"):
        AnomalyDetectionPipeline.from_pretrained(clip_folder)


def test_registered_task_does_not_require_trust(model, image_processor, photo, tmp_path):
    """The folder contains a custom pipeline, for which transformers would require `trust_remote_code`."""
    folder = save_checkpoint(model, image_processor, tmp_path / "ck")
    detector = pipeline("anomaly-detection", model=str(folder), device="cpu")
    assert type(detector) is AnomalyDetectionPipeline
    assert type(detector.model).__module__ == "vip2clip_hf.models.vip2clip.modeling_vip2clip"


def test_datasets_keep_their_length(detector, photos):
    class Rows:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"image": photos[index % 3]}  # never raises IndexError

    assert len(list(detector(Rows(), batch_size=2))) == 3
    assert len(list(detector(Rows(), num_workers=2))) == 3


def test_labels_are_named_by_the_configuration(model, image_processor, photo, tmp_path):
    model.config.id2label, model.config.label2id = {0: "ok", 1: "defect"}, {"ok": 0, "defect": 1}
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")
    assert [detector(photo, threshold=threshold)["label"] for threshold in (0.0, 1.0)] == ["defect", "ok"]
    detector.save_pretrained(tmp_path)
    loaded = AnomalyDetectionPipeline.from_pretrained(tmp_path, device="cpu", threshold=0.0)
    assert loaded([photo, photo], batch_size=2)[1]["label"] == "defect"
    model.config.id2label = {0: "ok", 1: "scratch", 2: "dent"}
    with pytest.raises(ValueError, match=r"id2label is .*expected names for 0 \(normal\) and 1 \(anomalous\)"):
        AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")


@pytest.mark.parametrize("min_region_area", [0.0, 0.001])
def test_none_in_a_pair_of_thresholds_is_the_threshold_of_the_checkpoint(
    model, image_processor, photo, min_region_area
):
    model.decision = DecisionConfig(0.0, 1.0, min_region_area)
    detector = AnomalyDetectionPipeline(
        model=model, image_processor=image_processor, device="cpu", threshold=(None, 0.0)
    )

    def decide(**options):
        result = detector(photo, **options)
        return result["label"], bool(result["mask"].all()), bool(result["mask"].any())

    assert decide() == ("anomalous", True, True)
    assert decide(threshold=(None, 1.0)) == ("anomalous", False, False)
    assert decide(threshold=(1.0, None)) == ("normal", False, False)
    assert decide(threshold=(None, None)) == ("anomalous", False, False)
    assert decide(threshold=None) == ("anomalous", True, True)  # not set
    model.decision.image_threshold = 1.0
    assert decide()[0] == "normal"


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8, lambda value: torch.tensor(value)])
def test_integers_of_other_libraries(detector, model, image_processor, photo, integer):
    options = {"top_k": 3, "tile_size": 32, "batch_size": 2, "num_workers": 0}
    given = {name: integer(value) for name, value in options.items()}
    expected = detector([photo], **options)[0]
    assert_same(detector([photo], **given)[0], expected)
    created = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu", **given)
    assert_same(created([photo])[0], expected)
    assert json.loads(json.dumps(created.score_settings())) == created.score_settings()
    floats = {"tile_overlap": np.float32(0.5), "threshold": (np.float32(0.5), np.float64(0.5)), "timeout": np.int64(5)}
    assert_same(detector(photo, tile_size=32, **floats), detector(photo, tile_size=32, tile_overlap=0.5))


WRONG_ARGUMENTS = [
    ("top_k", 3.0, "top_k is 3.0; expected an integer"),
    ("top_k", np.float64(3), "top_k is .*; expected an integer"),
    ("top_k", True, "top_k is True; expected an integer"),
    ("tile_size", 64.0, "tile_size is 64.0; expected an integer"),
    ("tile_size", "64", "tile_size is '64'; expected an integer"),
    ("tile_size", False, "tile_size is False; expected an integer"),
    ("tile_size", 5, "tile_size is 5; expected an integer of at least 16"),
    ("tile_overlap", "half", "tile_overlap is 'half'; expected a fraction"),
    ("timeout", 0, "timeout is 0; expected a number of seconds greater than 0, or None for no limit"),
    ("timeout", "60", "timeout is '60'; expected a number"),
    ("timeout", float("nan"), "timeout is nan; expected a number"),
    ("timeout", True, "timeout is True; expected a number"),
    ("threshold", (0.5, 1.5), r"threshold is \(0.5, 1.5\); expected a number in \[0, 1\]"),
    ("threshold", (0.5,), "threshold is"),
    ("batch_size", 0, "batch_size is 0; expected an integer of at least 1"),
    ("batch_size", 2.0, "batch_size is 2.0; expected an integer of at least 1"),
    ("num_workers", -1, "num_workers is -1; expected an integer of at least 0"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG_ARGUMENTS)
def test_wrong_arguments(detector, model, image_processor, photo, name, value, message):
    with pytest.raises(ValueError, match=message):
        detector(photo, **{name: value})
    with pytest.raises(ValueError, match=message):
        AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu", **{name: value})
    if name != "num_workers":
        with pytest.raises(ValueError, match=message):  # before loading
            AnomalyDetectionPipeline.from_pretrained("org/absent", device="cpu", **{name: value})


def test_no_timeout(model, image_processor, tmp_path, monkeypatch):
    """As in other HTTP libraries, None waits forever."""
    used = []

    def get(url, timeout, follow_redirects):
        used.append(timeout)
        raise OSError("no network")

    monkeypatch.setattr(httpx, "get", get)

    def timeout_of(detector, **options):
        with pytest.raises(OSError, match="no network"):
            detector("http://localhost/photo.png", **options)
        return used[-1]

    parts = {"model": model, "image_processor": image_processor, "device": "cpu"}
    detector = AnomalyDetectionPipeline(**parts)
    assert timeout_of(detector) == 60
    assert timeout_of(detector, timeout=None) is None
    assert timeout_of(detector, timeout=5) == 5
    assert timeout_of(AnomalyDetectionPipeline(**parts, timeout=None)) is None
    assert timeout_of(AnomalyDetectionPipeline(**parts, timeout=None), timeout=7) == 7
    assert timeout_of(pipeline("anomaly-detection", **parts, timeout=None)) is None
    detector.save_pretrained(tmp_path)
    assert timeout_of(AnomalyDetectionPipeline.from_pretrained(tmp_path, device="cpu")) == 60
    loaded = AnomalyDetectionPipeline.from_pretrained(tmp_path, device="cpu", timeout=None)
    assert timeout_of(loaded) is None
    assert timeout_of(loaded, timeout=3) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"tile_size": 32}, {"tile_size": 60, "batch_size": 3}])
def test_clip_in_half_precision(model, image_processor, photos, dtype, options):
    """The model converts pixel values to the dtype of CLIP."""
    parts = {"image_processor": image_processor, "device": "cpu"}
    expected = AnomalyDetectionPipeline(model=copy.deepcopy(model), **parts)(photos, **options)
    model.clip.to(dtype)
    detector = AnomalyDetectionPipeline(model=model, **parts)
    for found, one in zip(detector(photos, **options), expected):
        assert found["anomaly_map"].dtype == np.float32
        assert found["score"] == pytest.approx(one["score"], abs=2e-2)
        np.testing.assert_allclose(found["anomaly_map"], one["anomaly_map"], rtol=0, atol=2e-2)


def test_a_score_that_is_not_finite_raises_an_error(detector, photo):
    with torch.no_grad():
        detector.model.clip.visual_projection.weight.fill_(float("nan"))
    for options in ({}, {"tile_size": 32}):
        with pytest.raises(ValueError, match="not finite"):
            detector(photo, **options)
