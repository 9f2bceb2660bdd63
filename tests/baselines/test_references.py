"""References of baselines: in a checkpoint, on a device, and as an argument."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from helpers.rivals import clip_tokenizer, tiny_text_clip
from helpers.tiny import change_weights
from vip2clip_hf import ViP2ClipImageProcessor
from vip2clip_hf.baselines import (
    AprilGanForAnomalyDetection,
    BaselineDetector,
    ClipForAnomalyDetection,
    WinClipForAnomalyDetection,
)
from vip2clip_hf.baselines.references import from_tensors, references_digest, tensors_of


PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SETTINGS = {
    WinClipForAnomalyDetection: {},
    AprilGanForAnomalyDetection: {"image_size": 32, "feature_layers": (1, 2)},
}
NAME = "references.safetensors"


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda one: one.method_name)
def model(request):
    torch.manual_seed(0)
    found = request.param.from_clip(tiny_text_clip(), clip_tokenizer(), **SETTINGS[request.param])
    with torch.no_grad():
        found.references = found.encode_images(PIXELS[:2])
    return found


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_tensors_and_back(model):
    tensors = tensors_of(model.references)
    again = from_tensors(type(model.references), tensors)
    assert len(again) == 2
    assert references_digest(again) == references_digest(model.references)
    assert all(torch.equal(one, tensors[name]) for name, one in tensors_of(again).items())
    with pytest.raises(TypeError, match="'a b' is not known"):
        from_tensors(type(model.references), {"a b": torch.zeros(1)})


def test_a_checkpoint_contains_references(model, saved):
    for loaded in (type(model).from_pretrained(saved), AutoModel.from_pretrained(saved)):
        assert references_digest(loaded.references) == references_digest(model.references)
        with torch.no_grad():
            found, zero_shot = loaded(PIXELS, class_name="nut"), loaded(PIXELS, class_name="nut", references=None)
            expected = model(PIXELS, class_name="nut", references=model.references)
            torch.testing.assert_close(found.anomaly_maps, expected.anomaly_maps)
            torch.testing.assert_close(found.scores, expected.scores)
            assert not torch.allclose(zero_shot.scores, expected.scores)
            loaded.train()
            trained = loaded(PIXELS, class_name="nut")  # zero-shot in training mode
        torch.testing.assert_close(trained.scores, zero_shot.scores)
    assert type(model).from_pretrained(saved, references=None).references is None
    with pytest.raises(ValueError, match="references is 'none'; expected references, 'auto' or None"):
        type(model).from_pretrained(saved, references="none")


def test_a_model_without_references_removes_the_file(model, saved):
    loaded = type(model).from_pretrained(saved, references=None)
    loaded.save_pretrained(saved)
    assert not (saved / NAME).exists()
    assert type(model).from_pretrained(saved).references is None


def test_damaged_files(model, saved, tmp_path):
    content = (saved / NAME).read_bytes()
    for changed in (content[:-8], b"nothing", content[:-4] + b"\x01\x02\x03\x04"):
        (saved / NAME).write_bytes(changed)
        with pytest.raises(OSError, match=r"references.safetensors is (not a valid file of references|damaged)"):
            type(model).from_pretrained(saved)
    tensors = load_file_of(content, tmp_path)
    save_file(tensors, saved / NAME, {"format": "pt"})  # without a description
    with pytest.raises(OSError, match="not a valid file of references"):
        type(model).from_pretrained(saved)


def load_file_of(content: bytes, folder) -> dict[str, torch.Tensor]:
    (folder / "copy.safetensors").write_bytes(content)
    return load_file(folder / "copy.safetensors")


def test_references_of_another_model(model, saved, tmp_path):
    torch.manual_seed(0)
    other = type(model).from_clip(tiny_text_clip(), clip_tokenizer(), **SETTINGS[type(model)])
    change_weights(other)
    other.save_pretrained(tmp_path / "other")
    shutil.copy(saved / NAME, tmp_path / "other")
    with pytest.raises(ValueError, match="belongs to another model: backbone differ"):
        type(model).from_pretrained(tmp_path / "other")
    assert type(model).from_pretrained(tmp_path / "other", references=None).references is None
    clip = ClipForAnomalyDetection.from_clip(tiny_text_clip(), clip_tokenizer())
    clip.save_pretrained(tmp_path / "clip")
    shutil.copy(saved / NAME, tmp_path / "clip")
    with pytest.raises(ValueError, match="ClipForAnomalyDetection does not use references"):
        ClipForAnomalyDetection.from_pretrained(tmp_path / "clip")
    # Settings that the references do not depend on.
    renamed = type(model).from_pretrained(saved, class_name="nut")
    assert len(renamed.references) == 2
    # Half precision: the checksum of the backbone is another one.
    half = type(model).from_pretrained(saved, dtype=torch.bfloat16)
    assert len(half.references) == 2


def test_another_type_is_refused(model):
    with pytest.raises(ValueError, match=r"references is of type list; expected \w+References, the result of enc"):
        model(PIXELS, references=[PIXELS])
    with pytest.raises(ValueError, match="references is 'no'; expected references, 'auto' or None"):
        model(PIXELS, references="no")


def test_references_that_are_in_place_are_not_copied(model):
    assert model.references_for(model.references) is model.references
    assert model.references_for("auto") is model.references


def test_detectors_are_zero_shot_by_default(model):
    processor = ViP2ClipImageProcessor(size=32)
    detector = BaselineDetector(model, processor, class_name="nut")
    with torch.no_grad():
        expected = model(PIXELS, class_name="nut", references=None)
        few_shot = model(PIXELS, class_name="nut")
    torch.testing.assert_close(detector.score(PIXELS)[0], expected.scores)
    with_own = detector.with_references(model.references)
    torch.testing.assert_close(with_own.score(PIXELS)[1], few_shot.anomaly_maps)
    assert (with_own.name, with_own.class_name) == (detector.name, "nut")
    assert with_own.settings != detector.settings
    layers = len(getattr(model.config, "feature_layers", [1]))
    assert detector.map_maximum == layers
    assert with_own.map_maximum == (2 * layers if layers > 1 else 1)


def test_hidden_states(model):
    """The results from states are those from images."""
    with torch.no_grad():
        states = model.encode_layers(PIXELS)
        for references in (None, model.references):
            found = model(hidden_states=states, class_name="nut", references=references)
            expected = model(PIXELS, class_name="nut", references=references)
            torch.testing.assert_close(found.scores, expected.scores, atol=1e-6, rtol=0)
            torch.testing.assert_close(found.anomaly_maps, expected.anomaly_maps, atol=1e-6, rtol=0)
        again = model.encode_images(hidden_states=states)
    for name, tensor in tensors_of(again).items():
        torch.testing.assert_close(tensor, tensors_of(model.encode_images(PIXELS))[name], atol=1e-6, rtol=1e-6)
