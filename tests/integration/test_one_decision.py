"""One decision from one place: all ways to run a model give the same labels, masks and p-values."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from scipy import ndimage
from transformers import modeling_utils
from transformers.utils import hub

from helpers.predictions import rows_of
from helpers.tiny import change_weights, tiny_config
from vip2clip_hf import (
    AnomalyDetectionPipeline,
    DecisionConfig,
    ViP2ClipForAnomalyDetection,
    ViP2ClipImageProcessor,
    calibrate,
    predict_to_folder,
    save_calibration,
    save_checkpoint,
)
from vip2clip_hf.app.results import PhotoInspector, PhotoResult
from vip2clip_hf.inference.single import as_row
from vip2clip_hf.models.vip2clip import fingerprint_vip2clip
from vip2clip_hf.models.vip2clip.configuration_tables_vip2clip import MOVED_FIELDS
from vip2clip_hf.models.vip2clip.decision_vip2clip import decide
from vip2clip_hf.models.vip2clip.fingerprint_vip2clip import is_calibrated, model_fingerprint


EXAMPLES = 400
CORNERS = np.ones((3, 3), dtype=int)


@pytest.fixture(scope="module")
def detector() -> AnomalyDetectionPipeline:
    torch.manual_seed(0)
    model = ViP2ClipForAnomalyDetection(tiny_config("release", smoothing_sigma=1.0)).eval()
    change_weights(model)
    with torch.no_grad():
        model.clip.vision_model.embeddings.patch_embedding.weight.mul_(30)
        for parameter in (*model.prompt_learner.parameters(), *model.fine_grained_perception.parameters()):
            parameter.mul_(5)
    return AnomalyDetectionPipeline(model=model, image_processor=ViP2ClipImageProcessor(size=48), device="cpu")


def random_map(rng, height, width, kind):
    """A float16 map, which the app stores exactly: noise, noise with few values, or blobs of up to a few pixels."""
    values = rng.random((height, width))
    if kind == "levels":
        values = np.round(values * 4) / 4
    elif kind == "blobs":
        values = np.where(
            ndimage.binary_dilation(values > 0.97, CORNERS, iterations=int(rng.integers(1, 3))), 0.8, 0.1
        )
        values = values + 0.1 * rng.random(values.shape)
    return values.astype(np.float16)


def check_mask(anomaly_map, decision, pixel_threshold, size, mask, resized):
    """The rules for the mask, computed in another way."""
    labels, count = ndimage.label(anomaly_map > np.float32(pixel_threshold), structure=CORNERS)
    least = decision.min_region_area * anomaly_map.size
    large = [number for number in range(1, count + 1) if (labels == number).sum() >= least]
    assert mask.any() == bool(large)
    if size == anomaly_map.shape:
        np.testing.assert_array_equal(mask, np.isin(labels, large))
        return
    above = resized > np.float32(pixel_threshold)
    explained = np.zeros_like(mask)
    for number in large:
        region = labels == number
        weights = torch.from_numpy(region.astype(np.float32))[None, None]
        part = F.interpolate(weights, size=size, mode="bilinear", align_corners=False)[0, 0].numpy() > 0
        assert mask[above & part].all()
        if (above & part).any():
            explained |= above & part
        else:  # exactly one pixel stays, at the largest value
            best = np.argwhere(region & (anomaly_map == anomaly_map[region].max()))
            places = [tuple(((2 * place + 1) * size // (2 * np.array(region.shape))).tolist()) for place in best]
            kept = [place for place in places if mask[place]]
            assert kept
            for place in kept:
                explained[place] = True
    np.testing.assert_array_equal(mask & ~explained, False)


seen = {"examples": 0, "regions": 0, "p_values": 0}


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.one_of(st.none(), st.tuples(st.integers(1, 70), st.integers(1, 70))),
    kind=st.sampled_from(["noise", "levels", "blobs"]),
    pixel_threshold=st.one_of(st.floats(0, 1), st.sampled_from(["a value", 0.1, 0.25, 0.5, 0.75, 0.8, 0.85])),
    image_threshold=st.one_of(st.floats(0, 1), st.sampled_from(["the score", 0.1, 0.5])),
    min_region_area=st.sampled_from([0.0, 0.0, 0.001, 0.01, 0.05, 0.3]),
    overrides=st.sampled_from([(False, False), (True, True), (True, False), (False, True)]),
    calibrated=st.sampled_from(["no", "yes", "other settings", "other weights"]),
)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def all_paths_agree(
    detector, seed, shape, size, kind, pixel_threshold, image_threshold, min_region_area, overrides, calibrated
):
    rng = np.random.default_rng(seed)
    stored = random_map(rng, *shape, kind)
    anomaly_map = stored.astype(np.float32)
    score = float(np.float32(rng.choice([rng.random(), 0.1, 0.5])))
    pair = (
        score if image_threshold == "the score" else image_threshold,
        float(rng.choice(anomaly_map.ravel())) if pixel_threshold == "a value" else pixel_threshold,
    )
    calibration = None
    if calibrated != "no":
        current, fingerprint = detector.score_settings(), model_fingerprint(detector.model)
        if calibrated == "other settings":
            current = {**current, "top_k": current["top_k"] + 1}
        if calibrated == "other weights":
            fingerprint = {**fingerprint, "adapters": "0"}
        calibration = {"num_images": 20, "settings": current, "fingerprint": fingerprint}
    # Thresholds come from the checkpoint or from the argument of a call.
    checkpoint = [0.123 if override else value for override, value in zip(overrides, pair)]
    threshold = tuple(value if override else None for override, value in zip(overrides, pair))
    decision = DecisionConfig(
        *checkpoint,
        min_region_area,
        calibration=calibration,
        image_scores=None if calibration is None else np.sort(np.float32(rng.choice([score, 0.1, 0.9], 20))),
    )
    detector.model.decision = decision
    size = shape if size is None else size
    valid = is_calibrated(detector.model, detector.score_settings())
    assert valid == (calibrated == "yes")

    expected = decide(score, anomaly_map, decision, size=size, threshold=threshold, calibrated=valid)
    coarse = decide(score, anomaly_map, decision, threshold=threshold, calibrated=valid)
    outputs = {"scores": torch.tensor([score]), "anomaly_maps": torch.from_numpy(anomaly_map)[None]}
    options = {"threshold": threshold, "decision": decision, "calibrated": valid}
    processor = detector.image_processor
    (processed,) = processor.post_process_anomaly_detection(outputs, [size], **options)
    piped = detector.postprocess({**outputs, "target_size": size, "image": None}, threshold=threshold)
    (bulk,) = processor.post_process_anomaly_detection(outputs, **options)
    row = as_row(bulk)
    result = PhotoResult("a.png", "a.png", size, score, tiled_map=stored)
    inspector = PhotoInspector(detector)
    inspected, decided = inspector.inspect(result, pair), inspector.decide(result, pair)

    label = ("normal", "anomalous")[expected.label]
    assert expected.label == (np.float32(score) > np.float32(pair[0]))
    for found in (processed, piped, row, inspected, decided):
        assert (found["label"], found["score"]) == (label, score)
        assert found.get("p_value") == expected.p_value
    for found in (processed, piped, inspected):
        np.testing.assert_array_equal(np.asarray(found["mask"]), expected.mask)
        np.testing.assert_array_equal(np.asarray(found["anomaly_map"]), expected.anomaly_map)
    np.testing.assert_array_equal(bulk["mask"].numpy(), coarse.mask)
    assert row["anomalous_area"] == coarse.mask.mean()
    assert expected.mask.any() == coarse.mask.any()  # a region never disappears
    if calibrated == "yes":
        at_least = (decision.image_scores >= np.float32(score)).sum()
        assert expected.p_value == (1 + at_least) / 21
    else:
        assert expected.p_value is None
    check_mask(anomaly_map, decision, pair[1], size, expected.mask, expected.anomaly_map)
    seen["examples"] += 1
    seen["regions"] += bool(expected.mask.any())
    seen["p_values"] += expected.p_value is not None


def test_all_paths_agree_exactly(detector):
    all_paths_agree(detector)
    assert seen["examples"] >= 300
    assert seen["regions"] >= 100
    assert seen["p_values"] >= 50


def test_a_decided_region_is_never_empty():
    """1,600 small regions, in maps that are then downsized. Of the resized maps, many have no pixel above the
    threshold."""
    rng, lost = np.random.default_rng(0), 0
    for _ in range(1600):
        height, width = rng.integers(1, 6, 2)
        top, left = rng.integers(0, 64 - height), rng.integers(0, 64 - width)
        anomaly_map = rng.uniform(0, 0.3, (64, 64)).astype(np.float32)
        anomaly_map[top : top + height, left : left + width] = rng.uniform(0.55, 1, (height, width))
        size = tuple(int(side) for side in rng.integers(16, 64, 2))
        found = decide(0.5, anomaly_map, DecisionConfig(), size=size)
        lost += not bool((found.anomaly_map > 0.5).any())
        assert found.mask.any()
        rows, columns = np.nonzero(found.mask)
        for places, start, length, side in ((rows, top, height, size[0]), (columns, left, width, size[1])):
            assert places.min() >= (start - 1) * side / 64 - 1
            assert places.max() <= (start + length + 1) * side / 64 + 1
    assert lost > 100  # without the rule, these masks would be empty


def random_photos(count, seed, size=(40, 60)):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture
def calibrated(detector, tmp_path):
    """A calibrated checkpoint, and photos to decide about."""
    detector.model.decision = DecisionConfig()
    found = calibrate(detector, random_photos(30, 0), 0.1, min_region_area=0.002)
    save_checkpoint(detector.model, detector.image_processor, tmp_path / "plain")
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(random_photos(40, 1)):
        photo.save(tmp_path / "photos" / f"{number:02d}.png")
    return save_calibration(found, tmp_path / "plain", tmp_path / "calibrated"), tmp_path / "photos"


def test_one_checkpoint_gives_the_same_alarms_everywhere(calibrated, tmp_path):
    folder, photos = calibrated
    detector = AnomalyDetectionPipeline.from_pretrained(folder, device="cpu")
    model = ViP2ClipForAnomalyDetection.from_pretrained(folder)
    processor = ViP2ClipImageProcessor.from_pretrained(folder)
    paths = sorted(photos.iterdir())
    piped = [detector(str(path)) for path in paths]
    processed = []
    for path, result in zip(paths, piped):
        with torch.inference_mode():
            outputs = model(**processor(str(path), return_tensors="pt"))
        processed += processor.post_process_anomaly_detection(outputs, [result["mask"].shape])
    predict_to_folder(model, processor, photos, tmp_path / "out", batch_size=1)
    rows = list(rows_of(tmp_path / "out").values())
    for one, other, row in zip(piped, processed, rows, strict=True):
        assert one["label"] == other["label"] == row["label"]
        assert one["p_value"] == other["p_value"] == pytest.approx(row["p_value"])
        np.testing.assert_array_equal(one["mask"], other["mask"].numpy())
        assert one["mask"].any() == (row["anomalous_area"] > 0)
    alarms = sum(result["label"] == "anomalous" for result in piped)
    assert 0 < alarms < 20
    assert alarms < sum(result["score"] > 0.5 for result in piped)


# What determines the scores


def test_valid_for_the_same_model(calibrated):
    folder, photos = calibrated
    detector = AnomalyDetectionPipeline.from_pretrained(folder, device="cpu")
    photo = str(photos / "00.png")
    assert detector(photo)["p_value"] is not None
    # A copy, and a model in another format, have the same scores.
    detector.model.save_pretrained(folder.parent / "again", max_shard_size="20KB")
    shutil.copy(folder / "preprocessor_config.json", folder.parent / "again")
    assert (
        AnomalyDetectionPipeline.from_pretrained(folder.parent / "again", device="cpu")(photo)["p_value"] is not None
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"smoothing_sigma": 3.0}, r"smoothing_sigma \(3.0, was 1.0\)"),
        ({"image_size": 64}, r"image_size \(64, was 48\)"),
        ({"top_k": 3}, r"top_k \(3, was 5\)"),
        ({"temperature": 0.05}, r"temperature \(0.05, was "),
        ({"dtype": torch.bfloat16}, r"the weights of CLIP, dtype \(bfloat16, was float32\)"),
    ],
)
def test_other_settings_of_the_model(calibrated, override, message, monkeypatch):
    folder, photos = calibrated
    messages = []
    monkeypatch.setattr(fingerprint_vip2clip.logger, "warning_once", messages.append)
    model = ViP2ClipForAnomalyDetection.from_pretrained(folder, **override)
    processor = ViP2ClipImageProcessor.from_pretrained(folder, size=model.config.image_size)
    detector = AnomalyDetectionPipeline(model=model, image_processor=processor, device="cpu")
    assert detector(str(photos / "00.png"))["p_value"] is None
    assert re.search(message, messages[0])
    assert "calibrated for other scores" in messages[0]


@pytest.mark.parametrize("part", ["prompt_learner.object_tokens", "clip.vision_model.post_layernorm.bias"])
def test_training_in_place(calibrated, part):
    folder, photos = calibrated
    detector = AnomalyDetectionPipeline.from_pretrained(folder, device="cpu")
    photo = str(photos / "00.png")
    assert detector(photo)["p_value"] is not None
    weight = detector.model.get_parameter(part)
    before = weight.detach().clone()
    weight.requires_grad_(True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    detector.model(pixel_values=torch.randn(1, 3, 48, 48)).logits[0, 1].backward()
    optimizer.step()
    assert not torch.equal(weight, before)
    assert detector(photo)["p_value"] is None
    with torch.no_grad():
        weight.copy_(before)
    assert detector(photo)["p_value"] is not None


def test_weights_are_hashed_once(calibrated, monkeypatch):
    folder, photos = calibrated
    detector = AnomalyDetectionPipeline.from_pretrained(folder, device="cpu")
    detector(str(photos / "00.png"))
    monkeypatch.setattr(fingerprint_vip2clip, "_digest", None)
    assert detector(str(photos / "01.png"))["p_value"] is not None


# Files


def test_many_scores(detector, tmp_path):
    """10,000 calibration scores: small files that are read back exactly."""
    save_checkpoint(detector.model, detector.image_processor, tmp_path / "checkpoint")
    config = (tmp_path / "checkpoint" / "config.json").read_bytes()
    rng = np.random.default_rng(0)
    scores = np.sort(rng.random(10_000).astype(np.float32))
    decision = DecisionConfig(
        0.99, 0.98, calibration={"num_images": 10_000}, image_scores=scores, pixel_scores=scores[9::10]
    )
    decision.save_pretrained(tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint" / "config.json").read_bytes() == config
    assert len(config) < 10_000
    sizes = [(tmp_path / "checkpoint" / f"decision.{kind}").stat().st_size for kind in ("json", "safetensors")]
    assert sum(sizes) < 60_000
    loaded = DecisionConfig.from_pretrained(tmp_path / "checkpoint")
    assert loaded == decision
    np.testing.assert_array_equal(loaded.image_scores, scores)
    # Fewer scores are in decision.json, exactly, and the other file is removed.
    few = DecisionConfig(calibration={"num_images": 1000}, image_scores=scores[:1000])
    few.save_pretrained(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint" / "decision.safetensors").exists()
    np.testing.assert_array_equal(DecisionConfig.from_pretrained(tmp_path / "checkpoint").image_scores, scores[:1000])
    assert len((tmp_path / "checkpoint" / "decision.json").read_text().splitlines()) == 11
    assert not [path for path in (tmp_path / "checkpoint").iterdir() if path.name.endswith(".tmp")]


def test_saving_a_checkpoint_again_removes_old_scores(detector, tmp_path):
    scores = np.linspace(0, 1, 2000, dtype=np.float32)
    detector.model.decision = DecisionConfig(calibration={"num_images": 2000}, image_scores=scores)
    save_checkpoint(detector.model, detector.image_processor, tmp_path / "a")
    assert (tmp_path / "a" / "decision.safetensors").is_file()
    detector.model.decision = DecisionConfig(0.25)
    save_checkpoint(detector.model, detector.image_processor, tmp_path / "a")
    assert not (tmp_path / "a" / "decision.safetensors").exists()
    assert ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "a").decision == DecisionConfig(0.25)
    override = DecisionConfig(0.75)
    assert ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "a", decision=override).decision is override
    assert ViP2ClipImageProcessor.from_pretrained(tmp_path / "a", decision=override).decision is override
    assert "decision" not in json.loads((tmp_path / "a" / "preprocessor_config.json").read_text())
    assert "decision" not in json.loads((tmp_path / "a" / "config.json").read_text())


def test_published_with_the_model(detector, tmp_path, monkeypatch):
    """`save_pretrained(push_to_hub=True)` of transformers uploads the files that changed."""
    uploaded = []
    api = SimpleNamespace(
        create_repo=lambda repo_id, **kwargs: SimpleNamespace(repo_id=repo_id),
        create_commit=lambda **kwargs: uploaded.append(kwargs),
    )
    for module in (hub, modeling_utils):
        monkeypatch.setattr(module, "hf_api", lambda: api)
    detector.model.decision = DecisionConfig(0.25)
    for _ in range(2):
        uploaded.clear()
        detector.model.save_pretrained(tmp_path, push_to_hub=True, repo_id="org/name")
        files = {operation.path_in_repo for operation in uploaded[0]["operations"]}
        assert files >= {"config.json", "decision.json", "model.safetensors"}
    assert DecisionConfig.from_pretrained(tmp_path) == DecisionConfig(0.25)


def test_the_argument_of_from_pretrained_replaces_the_stored_decision(detector):
    decision, weights = DecisionConfig(0.75), detector.model.state_dict()
    model = ViP2ClipForAnomalyDetection.from_pretrained(
        None, config=detector.model.config, state_dict=weights, decision=decision
    )
    assert model.decision is decision


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_threshold": 1.5}, r"image_threshold is 1.5; expected a number in \[0, 1\]"),
        ({"pixel_threshold": -0.1}, "pixel_threshold is -0.1"),
        ({"pixel_threshold": True}, "pixel_threshold is True"),
        ({"min_region_area": 1.0}, r"min_region_area is 1.0; expected a number in \[0, 1\)"),
        ({"tile_size": 5}, "tile_size is 5"),
        ({"tile_overlap": 0.95}, "tile_overlap is 0.95"),
        ({"top_k": 0}, "top_k is 0"),
        ({"image_scores": [0.5]}, "num_images"),
        ({"calibration": {"num_images": 2}, "image_scores": [0.5]}, "image_scores has 1 values; expected 2"),
        ({"calibration": {"num_images": 2}, "image_scores": [0.5, 0.4]}, "ascending order"),
        ({"calibration": {"num_images": 2}, "image_scores": [0.5, float("nan")]}, "ascending order"),
        ({"calibration": {"num_images": 0}, "pixel_scores": []}, r"calibration\['num_images'\] is 0"),
    ],
)
def test_values_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        DecisionConfig(**values)


def test_damaged_files(tmp_path):
    scores = np.linspace(0, 1, 2000, dtype=np.float32)
    DecisionConfig(calibration={"num_images": 2000}, image_scores=scores).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "decision.json").read_text())
    (tmp_path / "decision.safetensors").write_bytes(b"damaged")
    with pytest.raises(OSError, match=r"decision\.safetensors is damaged"):
        DecisionConfig.from_pretrained(tmp_path)
    (tmp_path / "decision.safetensors").unlink()
    with pytest.raises(OSError, match=r"expected 'decision\.safetensors', in the same folder"):
        DecisionConfig.from_pretrained(tmp_path)
    (tmp_path / "decision.json").write_text(json.dumps({**content, "threshold": 1}))
    with pytest.raises(OSError, match="scores_file"):
        DecisionConfig.from_pretrained(tmp_path)
    (tmp_path / "decision.json").write_text(json.dumps({"threshold": 1}))
    with pytest.raises(ValueError, match="'threshold' is not a field of DecisionConfig"):
        DecisionConfig.from_pretrained(tmp_path)
    (tmp_path / "decision.json").write_text("[")
    with pytest.raises(OSError, match="not a valid JSON file"):
        DecisionConfig.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="absent"):
        DecisionConfig.from_pretrained("org/absent")


def test_fields_of_the_configuration_have_moved(detector, tmp_path):
    for name, place in MOVED_FIELDS.items():
        value, message = None, re.escape(f"{name!r} is not a field of ViP2ClipConfig; use {place}")
        detector.model.save_pretrained(tmp_path)
        for use in (
            lambda: tiny_config(**{name: value}),  # noqa: B023
            lambda: ViP2ClipForAnomalyDetection.from_pretrained(tmp_path, **{name: value}),  # noqa: B023
            lambda: detector.model.config.from_pretrained(tmp_path, **{name: value}),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=message):
                use()
        with pytest.raises(AttributeError, match=re.escape(f"has no field {name!r}; use {place}")):
            setattr(detector.model.config, name, value)
        assert not hasattr(detector.model.config, name)
