"""Which methods share the vision tower, how often it runs, and that sharing changes no result."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from helpers.rival_checkpoints import SETTINGS, write_rivals
from helpers.rivals import clip_tokenizer, tiny_text_clip
from vip2clip_hf import ReferenceBank, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor, load_folder
from vip2clip_hf.baselines import ClipForAnomalyDetection, WinClipForAnomalyDetection
from vip2clip_hf.comparison import compare_methods
from vip2clip_hf.comparison.competitors import load_competitors
from vip2clip_hf.comparison.shared_tower import group_by_tower, model_of, tower_key
from vip2clip_hf.data.synthetic.dataset import write_dataset


# Its fixtures take seconds: one process computes them once.
pytestmark = pytest.mark.xdist_group("shared-tower")


METHODS = ("clip", "winclip", *SETTINGS, "vip2clip")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_rivals(tmp_path_factory.mktemp("rivals"))


@pytest.fixture(scope="module")
def folder(models):
    return Path(models["vip2clip"]).parent


@pytest.fixture(scope="module")
def competitors(folder, models):
    return load_competitors(METHODS, clip=folder / "clip", models=models)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos") / "parts"
    return write_dataset(root, ("stripes", "weave"), num_normal=3, num_anomalous=1, size=48, num_train=2)


def test_all_methods_with_the_same_tower_are_one_group(competitors):
    (group,) = group_by_tower(competitors)
    assert [one.key for one in group.competitors] == list(METHODS)
    assert group.tower is model_of(competitors[0])


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return tiny_text_clip()


def key_of(clip, method=ClipForAnomalyDetection, processor=None, **settings) -> str | None:
    model = method.from_clip(clip, clip_tokenizer(), **settings)
    return tower_key(model, processor or ViP2ClipImageProcessor(size=model.config.side))


def test_what_a_tower_depends_on(clip):
    key = key_of(clip)
    assert key is not None
    assert key_of(clip, WinClipForAnomalyDetection) == key
    # At the native size, position embeddings are not resized.
    assert key_of(clip, position_interpolation="bilinear") == key
    assert key_of(clip, image_size=48) != key
    assert key_of(clip, image_size=48) == key_of(clip, WinClipForAnomalyDetection, image_size=48)
    assert key_of(clip, image_size=48) != key_of(clip, image_size=48, position_interpolation="bilinear")
    assert key_of(clip, processor=ViP2ClipImageProcessor(size=32, image_mean=[0.5, 0.5, 0.5])) != key
    assert key_of(clip, dtype=torch.bfloat16) != key
    assert key_of(clip, attn_implementation="eager") != key
    clip.config.vision_config.hidden_act = "gelu"
    assert key_of(clip) != key
    clip.config.vision_config.hidden_act = "quick_gelu"
    assert key_of(clip) == key
    for part in (
        clip.vision_model.embeddings.patch_embedding, clip.vision_model.embeddings.position_embedding,
        clip.vision_model.pre_layrnorm, clip.vision_model.encoder.layers[-1].mlp.fc1,
    ):  # fmt: skip
        with torch.no_grad():
            part.weight[0] += 0.1
            assert key_of(clip) != key
            part.weight[0] -= 0.1
    # The last layer norm and the projection are not part of it.
    with torch.no_grad():
        clip.vision_model.post_layernorm.weight += 0.5
        clip.visual_projection.weight += 0.5
    own = ViP2ClipForAnomalyDetection.from_clip(clip, image_size=32, feature_layers=(1, 2), top_k=3)
    assert tower_key(own, ViP2ClipImageProcessor(size=32)) == key_of(clip)


def test_methods_that_take_no_states_are_alone(clip):
    class Without(ClipForAnomalyDetection):
        def forward(self, pixel_values, **kwargs): ...

    assert key_of(clip, Without) is None


def test_the_tower_runs_once_for_each_batch(folder, models, photos, monkeypatch):
    calls, original = [], CLIPVisionEmbeddings.forward

    def counting(self, pixel_values, *args, **kwargs):
        calls.append(len(pixel_values))
        return original(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(CLIPVisionEmbeddings, "forward", counting)
    compare_methods(photos, METHODS, clip=folder / "clip", models=models, device="cpu", batch_size=4)
    # One photo to warm up, then 7 photos of each of two categories.
    assert calls == [1, 4, 3, 4, 3]
    calls.clear()
    compare_methods(photos, "clip,vip2clip", clip=folder / "clip", models={"vip2clip": models["vip2clip"]},
                    device="cpu", batch_size=8)  # fmt: skip
    assert calls == [1, 7, 7]


@pytest.mark.parametrize("with_references", [False, True])
def test_results_are_those_of_each_method_alone(with_references, folder, models, photos, competitors):
    """Scores and maps, from shared hidden states and from photos."""
    references = photos / "stripes" / "train" if with_references else None
    found = compare_methods(photos, METHODS, clip=folder / "clip", models=models, device="cpu", references=references)
    dataset = load_folder(photos)
    for one in competitors:
        good = None
        if with_references and one.uses_references:
            good = {name: reference_photos(references) for name in ("stripes", "weave")}
        alone = scores_alone(one, dataset, good)
        assert np.abs(np.array(found["scores"][one.key]) - alone).max() < 1e-6, one.key
        assert len(set(found["scores"][one.key])) > 10
    if with_references:
        records = {one["method"]: one["references"] for one in found["methods"]}
        assert records == dict(zip(METHODS, (0, 2, 2, 0, 0, 2)))


def reference_photos(folder) -> list:
    return [str(path) for path in sorted(folder.rglob("*.png"))]


def scores_alone(competitor, dataset, good) -> np.ndarray:
    subject = competitor.subject
    if good is not None and competitor.key == "vip2clip":
        good = {
            name: ReferenceBank.from_images(subject.model, subject.image_processor, paths,
                                            top_k=subject.model.config.top_k)
            for name, paths in good.items()
        }  # fmt: skip
    elif good is not None:
        good = {name: [Image.open(path).convert("RGB") for path in paths] for name, paths in good.items()}
    detectors = subject.detectors(dataset["category"], good)
    scores = []
    for category, detector in detectors.items():
        images = [row["image"].convert("RGB") for row in dataset if row["category"] == category]
        for start in range(0, len(images), 4):  # the batches of the comparison: their size changes rounding
            scores += detector.score(detector.prepare(images[start : start + 4]))[0].tolist()
    return np.array(scores)


def test_maps_from_hidden_states_are_those_from_photos(competitors, photos):
    (group,) = group_by_tower(competitors)
    image = load_folder(photos)[0]["image"].convert("RGB")
    for one in competitors:
        (detector,) = one.subject.detectors(["stripes"], None).values()
        pixels = detector.prepare([image, image.rotate(90)])
        for found, expected in zip(detector.score(pixels, hidden_states=group.encode(pixels)), detector.score(pixels)):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_hidden_states_of_another_model_are_refused(competitors):
    (group,) = group_by_tower(competitors)
    states = group.encode(torch.zeros(1, 3, 32, 32))
    for one in competitors:
        model = model_of(one)
        for wrong in (states[:-1], tuple(state[..., :-1] for state in states)):
            with pytest.raises(ValueError, match="hidden_states"):
                model(hidden_states=wrong)
    own = model_of(competitors[-1])
    with pytest.raises(ValueError, match="either pixel_values or hidden_states; found both"):
        own(torch.zeros(1, 3, 32, 32), hidden_states=states)
    with pytest.raises(ValueError, match="either pixel_values or hidden_states; found neither"):
        own.get_image_features()
