"""References in the model and the pipeline: outputs, dtypes, devices, copies, other models."""

import copy
import io
import logging
import pickle

import numpy as np
import pytest
import torch

from helpers.references import part, parts, write_parts
from helpers.tiny import tiny_config
from vip2clip_hf import AnomalyDetectionPipeline, ReferenceBank, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.models.vip2clip import reference_search_vip2clip as search
from vip2clip_hf.models.vip2clip.reference_rule_vip2clip import image_evidence, map_evidence, to_score, top_mean


@pytest.fixture
def bank(model, image_processor, monkeypatch):
    monkeypatch.setattr(search, "LEAST_ROWS", 100)  # use the search as for large banks
    return ReferenceBank.from_images(model, image_processor, parts(4))


@torch.no_grad()
def test_outputs(model, bank, pixel_values):
    plain, outputs = model(pixel_values), model(pixel_values, references=bank)
    assert plain.reference_scores is None
    assert plain.reference_maps is None
    for name in ("logits", "layer_maps", "text_embeds", "image_embeds"):
        assert torch.equal(outputs[name], plain[name]), name
    assert outputs.reference_maps.shape == outputs.anomaly_maps.shape == (3, 48, 48)
    assert 0 <= float(outputs.reference_maps.min()) <= float(outputs.reference_maps.max()) <= 2
    torch.testing.assert_close(outputs.reference_scores, top_mean(outputs.reference_maps))
    logits = plain.logits[:, 1] - plain.logits[:, 0]
    evidence = image_evidence(outputs.reference_scores, logits, bank.weight)
    torch.testing.assert_close(outputs.scores, to_score(evidence, bank.image_level))
    evidence = map_evidence(outputs.reference_maps, plain.anomaly_maps)
    torch.testing.assert_close(outputs.anomaly_maps, to_score(evidence, bank.pixel_level))
    for tensor in (outputs.scores, outputs.anomaly_maps):
        assert 0 <= float(tensor.min()) <= float(tensor.max()) <= 1
    one = torch.cat([model(pixel_values[i : i + 1], references=bank).scores for i in range(3)])
    torch.testing.assert_close(one, outputs.scores, atol=1e-5, rtol=0)
    features = model.get_image_features(pixel_values)
    embeds = {"image_embeds": features.image_embeds, "patch_embeds": features.patch_embeds}
    torch.testing.assert_close(model(**embeds, references=bank).scores, outputs.scores, atol=1e-5, rtol=0)
    assert len(model(pixel_values, references=bank, return_dict=False)) == len(outputs.to_tuple())


@torch.no_grad()
def test_references_of_the_model(model, bank, batch):
    model.references = bank
    inputs = {"pixel_values": batch["pixel_values"]}
    assert torch.equal(model(**inputs).scores, model(**inputs, references=bank).scores)
    assert model(**inputs, references=None).reference_scores is None
    model.train()
    assert model(**batch).reference_scores is None
    assert model(**inputs, references=bank).reference_scores is not None


def test_a_defect_is_far_from_the_references(image_processor, model, bank):
    # The patches of a random tower depend on the whole photo, so compare photos that differ in the spot only.
    def scores(images):
        with torch.no_grad():
            return model(image_processor(images, return_tensors="pt")["pixel_values"], references=bank)

    normal, anomalous = scores([part(0), part(1)]), scores([part(0, spot=(32, 32)), part(1, spot=(32, 32))])
    assert (anomalous.reference_scores > 5 * normal.reference_scores).all()
    assert (anomalous.scores > normal.scores).all()
    assert int(anomalous.reference_maps[0].argmax()) // 48 >= 24


@pytest.mark.parametrize("references", ["x", [], {}, 3])
def test_other_objects(model, pixel_values, references):
    with pytest.raises(ValueError, match="references is"):
        model(pixel_values, references=references)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, "the weights of the adapters, the weights of CLIP"),
        ({"image_size": 32}, "image_size"),
        ({"feature_layers": (1, 3, 4)}, "feature_layers"),
    ],
)
def test_another_model(bank, overrides, message):
    other = ViP2ClipForAnomalyDetection(tiny_config(**overrides)).eval()
    side = other.config.image_size
    with pytest.raises(ValueError, match=rf"(?s)belong to another model: .*{message}.* differ\. Build them again"):
        other(torch.randn(1, 3, side, side), references=bank)


def test_a_model_that_changes(model, bank, pixel_values):
    with torch.no_grad():
        model(pixel_values, references=bank)
        model.fine_grained_perception.q_proj.weight.add_(0.1)
    with pytest.raises(ValueError, match="the weights of the adapters differ"):
        model(pixel_values, references=bank)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(model, image_processor, pixel_values, bank, dtype, caplog):
    with torch.no_grad():
        expected = model(pixel_values, references=bank)
        model.to(dtype)
        with caplog.at_level(logging.WARNING, logger="transformers"):
            found = model(pixel_values.to(dtype), references=bank)
            model(pixel_values.to(dtype), references=bank)
        assert found.scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(found.reference_scores.float(), expected.reference_scores, atol=0.02, rtol=0)
        own = ReferenceBank.from_images(model, image_processor, parts(4))
        assert own.features.dtype == torch.float16
        assert own.fingerprint["dtype"] == str(dtype).removeprefix("torch.")
        assert torch.isfinite(model(pixel_values.to(dtype), references=own).scores).all()
    assert f"The references were computed in float32, the model is in {own.fingerprint['dtype']}" in caplog.text
    with pytest.raises(ValueError, match="different models"):
        bank.merge(own)


def test_autocast_keeps_distances_in_float32(model, bank, pixel_values):
    with torch.no_grad():
        embeds = model.get_image_features(pixel_values).patch_embeds
        expected = bank.distances(embeds, model.clip.visual_projection)
        with torch.autocast("cpu", torch.bfloat16):
            found = bank.distances(embeds, model.clip.visual_projection)
    assert torch.equal(found, expected)


def test_meta_device(model, bank, pixel_values):
    with torch.device("meta"):
        empty = ViP2ClipForAnomalyDetection(tiny_config()).eval()
    outputs = empty(pixel_values.to("meta"), references=bank)
    assert outputs.scores.shape == (3,)
    assert outputs.scores.device.type == "meta"
    model(pixel_values, references=bank)  # and back


def test_gradients_after_inference_mode(model, bank, pixel_values):
    with torch.inference_mode():
        model(pixel_values, references=bank)
    inputs = pixel_values.clone().requires_grad_()
    model(inputs, references=bank).scores.sum().backward()
    assert torch.isfinite(inputs.grad).all()
    assert float(inputs.grad.abs().sum()) > 0


def test_copies(model, bank, pixel_values):
    model.references = bank
    with torch.no_grad():
        expected = model(pixel_values).scores
        pickled = pickle.dumps(bank)
        assert len(pickled) < 2 * sum(tensor.nbytes for tensor in bank.tensors().values()) + 10_000
        for other in (pickle.loads(pickled), copy.deepcopy(bank)):
            assert other.checksum() == bank.checksum()
            assert torch.equal(model(pixel_values, references=other).scores, expected)
        assert torch.equal(copy.deepcopy(model)(pixel_values).scores, expected)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(pixel_values).scores, expected)


@pytest.mark.slow  # compiles the model
def test_compiled_model(model, bank, pixel_values):
    with torch.no_grad():
        expected = model(pixel_values, references=bank)
        torch._dynamo.reset()
        found = torch.compile(model, backend="eager")(pixel_values, references=bank)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.anomaly_maps, expected.anomaly_maps, atol=1e-5, rtol=0)


def test_patches_of_another_shape(model, bank, image_processor):
    projection = model.clip.visual_projection
    for shape in ((1, 1, 36, 16), (1, 3, 36, 8)):
        with pytest.raises(ValueError, match="patch_embeds has shape"):
            bank.distances(torch.randn(shape), projection)
    # Larger photos have more patches, which can be compared, except at the same place.
    assert bank.distances(torch.randn(2, 3, 64, 16), projection).shape == (2, 8, 8)
    aligned = ReferenceBank.from_images(model, image_processor, parts(4), aligned=True)
    with pytest.raises(ValueError, match="expected at least 2 layers of 36 patches with 16 values"):
        aligned.distances(torch.randn(2, 3, 64, 16), projection)


# Pipeline


@pytest.fixture
def detector(model, image_processor):
    return AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")


def test_pipeline_takes_a_bank_a_folder_or_photos(detector, model, image_processor, tmp_path):
    write_parts(tmp_path / "good", 4)
    bank = ReferenceBank.from_images(model, image_processor, tmp_path / "good")
    expected = detector(part(9), references=bank)
    for references in (tmp_path / "good", str(tmp_path / "good"), parts(4)):
        found = detector(part(9), references=references)
        assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
        np.testing.assert_allclose(found["anomaly_map"], expected["anomaly_map"], atol=1e-5)
    assert detector(part(9))["score"] != expected["score"]
    model.references = bank
    assert detector(part(9))["score"] == expected["score"]
    assert detector.score_settings()["references"] == bank.checksum()


def test_tiles_of_photos_and_references_must_agree(detector, model, image_processor):
    model.references = ReferenceBank.from_images(model, image_processor, parts(4), tile_size=32)
    with pytest.raises(ValueError, match=r"read with tile_size=32, tile_overlap=0\.25, but photos"):
        detector(part(9))
    assert detector(part(9), tile_size=32)["anomaly_map"].shape == (48, 48)
    # Without references, tiles do not matter.
    assert 0 <= detector(part(9), references=None)["score"] <= 1
    tiled = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu", tile_size=32)
    assert tiled(part(9))["score"] == detector(part(9), tile_size=32)["score"]


def test_a_reference_among_the_photos_is_reported(detector, bank, caplog):
    with caplog.at_level(logging.WARNING, logger="transformers"):
        detector(part(9), references=bank)
        assert "A photo is one of the references" not in caplog.text
        detector(part(2), references=bank)
    assert "A photo is one of the references" in caplog.text


def test_the_bank_is_bound_to_the_size_of_the_processor(model):
    with pytest.raises(ValueError, match="size"):
        ReferenceBank.from_images(model, ViP2ClipImageProcessor(size=32), parts(2))
