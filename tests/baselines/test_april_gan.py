"""APRIL-GAN: inputs, references, texts, the loss, precision, saving and loading."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModel, set_seed

from helpers.rivals import clip_tokenizer, tiny_text_clip
from vip2clip_hf.baselines import (
    AprilGanConfig,
    AprilGanForAnomalyDetection,
    AprilGanOutput,
    AprilGanReferences,
    published_few_shot_scores,
)
from vip2clip_hf.baselines.methods import create_model
from vip2clip_hf.models.vip2clip import reference_distances_vip2clip, reference_search_vip2clip


SETTINGS = {"image_size": 48, "feature_layers": (1, 3), "few_shot_layers": (2, 3, 4)}
OUTPUTS = ("scores", "anomaly_maps", "zero_shot_scores", "map_maxima", "logits", "patch_logits", "text_embeds")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return tiny_text_clip(num_hidden_layers=4)


def new_model(clip, seed=0, **settings):
    set_seed(seed)
    return AprilGanForAnomalyDetection.from_clip(clip, clip_tokenizer(), **{**SETTINGS, **settings})


@pytest.fixture
def model(clip):
    return new_model(clip)


@pytest.fixture
def images():
    return torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def masks():
    masks = torch.zeros(3, 48, 48)
    masks[1, 10:20, 5:30] = 1
    masks[2, 30:, :9] = 1
    return masks


def same(found: AprilGanOutput, expected: AprilGanOutput, names=OUTPUTS, tolerance=1e-5):
    for name in names:
        torch.testing.assert_close(found[name], expected[name], atol=tolerance, rtol=0)


# Configuration and weights


def test_configuration(clip):
    config = AprilGanConfig()
    assert (config.image_size, config.feature_layers) == (518, (6, 12, 18, 24))
    assert config.reference_layers == config.feature_layers
    assert (config.logit_scale, config.prompt_ensemble, config.map_reduction) == (100.0, "april_gan", "sum")
    model = new_model(clip, feature_layers=[3, 1], few_shot_layers=None, image_size=None)
    assert (model.config.feature_layers, model.config.reference_layers, model.config.image_size) == (
        (1, 3),
        (1, 3),
        32,
    )
    assert model.feature_shape == (2, 16, 32)
    assert model.image_feature_size == 16
    assert model.method_name == "APRIL-GAN"
    assert model.config.name_of_category("metal_nut") == "metal_nut"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_layers": (0, 2)}, r"feature_layers is \(0, 2\); expected distinct block numbers from 1 to 4"),
        ({"feature_layers": (2, 5)}, r"feature_layers is \(2, 5\); expected distinct block numbers from 1 to 4"),
        ({"feature_layers": (2, 2)}, r"feature_layers is \(2, 2\); expected distinct block numbers"),
        ({"feature_layers": ()}, r"feature_layers is \(\); expected distinct block numbers"),
        ({"few_shot_layers": ()}, r"few_shot_layers is \(\); expected distinct block numbers"),
        ({"few_shot_layers": (5,)}, r"few_shot_layers is \(5,\); expected distinct block numbers"),
        ({"logit_scale": 0}, "logit_scale is 0; expected a number greater than 0"),
        ({"image_size": 50}, "image_size is 50; expected a positive multiple of the backbone's patch size 8"),
        ({"map_reduction": "max"}, "map_reduction"),
    ],
)
def test_values_that_are_not_allowed(clip, settings, message):
    with pytest.raises(Exception, match=message):
        new_model(clip, **settings)


def test_initialization(clip):
    """That of torch.nn.Linear, and reproducible."""
    weights = new_model(clip).adapter_state_dict()
    assert {name: tuple(one.shape) for name, one in weights.items()} == {
        f"linear_layers.{index}.{kind}": shape
        for index in range(2)
        for kind, shape in (("weight", (16, 32)), ("bias", (16,)))
    }
    bound = 32**-0.5
    for one in weights.values():
        assert one.abs().max() <= bound
    values = torch.cat([one.flatten() for one in weights.values()])
    assert abs(values.std().item() - bound / 3**0.5) < 0.005
    again, other = new_model(clip).adapter_state_dict(), new_model(clip, seed=1).adapter_state_dict()
    for name, one in weights.items():
        assert torch.equal(one, again[name])
        assert not torch.equal(one, other[name])


@torch.no_grad()
def test_save_and_load(model, images, tmp_path):
    expected = model(images, class_name="nut", references=model.encode_images(images.flip(0)[:1]))
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is AprilGanForAnomalyDetection
    assert loaded.config.feature_layers == (1, 3)
    assert loaded.config.few_shot_layers == (2, 3, 4)
    assert not loaded.training
    assert loaded.provenance.training_recorded
    for name, one in model.adapter_state_dict().items():
        assert torch.equal(one, loaded.adapter_state_dict()[name])
    references = loaded.encode_images(images.flip(0)[:1])
    same(loaded(images, class_name="nut", references=references), expected)
    with pytest.raises(RuntimeError, match=r"mismatch|lacks"):
        AprilGanForAnomalyDetection.from_pretrained(tmp_path, feature_layers=(1, 2, 3))


# Images


@torch.no_grad()
def test_inputs(model, images):
    """Images, their features and their hidden states give the same result."""
    expected = model(images, class_name="nut")
    assert expected.anomaly_maps.shape == (3, 48, 48)
    assert expected.patch_logits.shape == (3, 2, 2, 6, 6)
    assert expected.loss is expected.loss_components is expected.reference_grid_maps is None
    assert torch.equal(expected.scores, expected.zero_shot_scores)
    features = model.get_image_features(images)
    assert tuple(features.patch_embeds.shape[1:]) == model.feature_shape
    cached = {"image_embeds": features.image_embeds, "patch_embeds": features.patch_embeds}
    same(model(**cached, class_name="nut"), expected, tolerance=0)
    same(model(hidden_states=model.encode_layers(images), class_name="nut"), expected, tolerance=0)
    half = {name: one.half() for name, one in cached.items()}
    outputs = model(**half, class_name="nut")
    assert outputs.scores.dtype == outputs.anomaly_maps.dtype == torch.float32
    same(outputs, expected, tolerance=0.05)
    assert isinstance(model(images, return_dict=False), tuple)


@torch.no_grad()
def test_maps(model, images):
    """Logits are resized with aligned corners, before the softmax, and summed over layers."""
    outputs = model(images)
    expected = torch.zeros(3, 48, 48)
    for logits in outputs.patch_logits.unbind(1):
        resized = nn.functional.interpolate(logits, size=(48, 48), mode="bilinear", align_corners=True)
        expected += resized.softmax(dim=1)[:, 1]
    torch.testing.assert_close(outputs.anomaly_maps, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.map_maxima, expected.amax(dim=(1, 2)), atol=1e-5, rtol=0)
    patches = model.encode_layers(images)[3][:, 1:]
    cosines = torch.cosine_similarity(
        model.linear_layers[1](patches)[:, None], outputs.text_embeds[:, :, None], dim=-1
    )
    torch.testing.assert_close(outputs.patch_logits[:, 1].flatten(2), 100 * cosines, atol=1e-4, rtol=0)


@torch.no_grad()
def test_mean_of_maps(clip, model, images):
    mean = new_model(clip, map_reduction="mean")
    references = model.encode_images(images[:1])
    for options, count in (({}, 2), ({"references": references}, 5)):
        expected, found = model(images, **options), mean(images, **options)
        torch.testing.assert_close(found.anomaly_maps, expected.anomaly_maps / count)
        torch.testing.assert_close(found.scores, expected.scores)
    assert (mean.map_maximum(), model.map_maximum()) == (1, 2)
    assert (mean.map_maximum(with_references=True), model.map_maximum(with_references=True)) == (1, 5)


# References


@torch.no_grad()
def test_references(model, images):
    good = model.encode_images(images)
    zero_shot, outputs = model(images, class_name="nut"), model(images, class_name="nut", references=good)
    assert outputs.reference_grid_maps.abs().max() < 1e-5  # its own references
    torch.testing.assert_close(outputs.anomaly_maps, zero_shot.anomaly_maps, atol=1e-4, rtol=0)
    assert torch.equal(outputs.zero_shot_scores, zero_shot.scores)
    expected = (zero_shot.scores + (outputs.map_maxima / 5).clamp(max=1)) / 2
    torch.testing.assert_close(outputs.scores, expected)
    joined = AprilGanReferences.join([model.encode_images(images[:1]), model.encode_images(images[1:])])
    assert len(joined) == 3
    torch.testing.assert_close(joined.patch_embeds, good.patch_embeds)
    one = model(images, class_name="nut", references=model.encode_images(images[:1]))
    assert (one.map_maxima[1:] > outputs.map_maxima[1:]).all()
    states = model.encode_layers(images)
    same(model(hidden_states=states, class_name="nut", references=good), outputs, tolerance=1e-5)
    same(model(images, class_name="nut", references=model.encode_images(hidden_states=states)), outputs)


@torch.no_grad()
def test_distances_of_references(model, images):
    """The nearest of all patches, at any position. Blocks do not change it."""
    good = model.encode_images(images[:2])
    states = model.encode_layers(images)
    for index, layer in enumerate((2, 3, 4)):
        queries, rows = states[layer][:, 1:], states[layer][:2, 1:].flatten(0, 1)
        cosines = torch.cosine_similarity(queries[:, :, None], rows, dim=-1)
        expected = (1 - cosines.amax(dim=-1)).unflatten(1, (6, 6))
        found = model(images, references=good).reference_grid_maps[:, index]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_search_in_references(model, images, monkeypatch):
    """All pairs in blocks, the search with bounds, and references that are too large to be prepared: one result."""
    good, names = model.encode_images(images[:2]), ("scores", "anomaly_maps", "reference_grid_maps")
    expected = model(images, references=good)
    assert good.rows_on(model.device)._search is None
    for block, queries in ((1, 2048), (100, 5), (1 << 20, 1)):
        monkeypatch.setattr(reference_distances_vip2clip, "CPU_BLOCK", block)
        monkeypatch.setattr(reference_distances_vip2clip, "QUERIES", queries)
        same(model(images, references=good), expected, names)
    for name, value in (("MAX_FLOAT32_VALUES", 1), ("MAX_FLOAT32_VALUES", 1 << 28), ("LEAST_ROWS", 1)):
        monkeypatch.setattr(reference_search_vip2clip, name, value)
        again = AprilGanReferences(good.patch_embeds.clone())
        same(model(images, references=again), expected, names)
    assert again.rows_on(model.device)._search is not None
    shared, rows = AprilGanReferences(again.patch_embeds), again.rows_on(model.device)
    assert rows is again.rows_on(model.device) is shared.rows_on(model.device)
    assert again.rows_on(torch.device("meta")).rows.device.type == "meta"


@torch.no_grad()
def test_references_with_cached_features(clip, model, images):
    features = model.get_image_features(images)
    cached = {"image_embeds": features.image_embeds, "patch_embeds": features.patch_embeds}
    with pytest.raises(ValueError, match=r"few_shot_layers is \(2, 3, 4\), and patch_embeds has the layers \(1, 3\)"):
        model(**cached, references=model.encode_images(images))
    for layers in ((3,), None):
        some = new_model(clip, few_shot_layers=layers)
        good = some.encode_images(images[:1])
        same(some(**cached, references=good), some(images, references=good), (*OUTPUTS, "reference_grid_maps"))


@torch.no_grad()
def test_references_that_are_refused(clip, model, images, masks):
    other = new_model(clip, few_shot_layers=(1,)).encode_images(images)
    with pytest.raises(ValueError, match="Encode the references with encode_images of the same model"):
        model(images, references=other)
    with pytest.raises(ValueError, match="The references contain 0 images; expected at least one"):
        model(images, references=AprilGanReferences(other.patch_embeds[:0]))
    with pytest.raises(ValueError, match="references and mask_labels are both set"):
        model(images, references=model.encode_images(images), mask_labels=masks)


def test_references_from_inference_mode(model, images):
    """Embeddings from inference mode can be used with gradients."""
    with torch.inference_mode():
        good = model.encode_images(images)
        expected = model(images, references=good)
    outputs = model(images, references=good)
    same(outputs, expected)
    outputs.anomaly_maps.sum().backward()
    assert model.linear_layers[0].weight.grad is not None


def test_published_few_shot_scores():
    probabilities, maxima = torch.tensor([0.2, 0.4, 0.9]), torch.tensor([1.0, 3.0, 2.0])
    found = published_few_shot_scores(probabilities, maxima)
    torch.testing.assert_close(found, torch.tensor([0.1, 0.7, 0.7]))
    # One value for all images: their map says nothing.
    torch.testing.assert_close(published_few_shot_scores(probabilities, torch.full((3,), 2.0)), probabilities / 2)
    torch.testing.assert_close(published_few_shot_scores(probabilities[:1], maxima[:1]), probabilities[:1] / 2)
    assert published_few_shot_scores(probabilities, torch.tensor([1.0, torch.nan, 2.0])).isnan().all()
    for first, second in ((probabilities, maxima[:2]), (probabilities[:0], maxima[:0]), (maxima[0], maxima[0])):
        with pytest.raises(ValueError, match="probabilities and map_maxima have the shapes"):
            published_few_shot_scores(first, second)


# Texts


@torch.no_grad()
def test_class_names(model, images):
    names = ["nut", "carpet", "nut"]
    outputs = model(images, class_name=names)
    for index, name in enumerate(names):
        one = model(images[index : index + 1], class_name=name)
        for output in OUTPUTS:
            torch.testing.assert_close(outputs[output][index], one[output][0], atol=1e-5, rtol=0)
    assert (outputs.text_embeds[0] - outputs.text_embeds[1]).abs().max() > 1e-3
    same(model(images), model(images, class_name="object"), tolerance=0)
    embeds = torch.stack([model.get_text_embeds(name) for name in names])
    same(model(images, text_embeds=embeds), outputs)
    same(model(images, text_embeds=embeds[0]), model(images, class_name="nut"))


def test_texts_that_are_refused(model, images):
    embeds = model.get_text_embeds("nut")
    with pytest.raises(ValueError, match="class_name has 2 names; expected one for each of 3 images"):
        model(images, class_name=["nut", "nut"])
    with pytest.raises(ValueError, match="class_name is ' '; expected a text that is not empty"):
        model(images, class_name=" ")
    with pytest.raises(ValueError, match="text_embeds and class_name are both set"):
        model(images, text_embeds=embeds, class_name="nut")
    for wrong in (embeds[:1], embeds[None, :, :3].expand(3, -1, -1), embeds[None].expand(2, -1, -1)):
        with pytest.raises(ValueError, match="text_embeds has shape"):
            model(images, text_embeds=wrong)


def test_texts_are_encoded_once(model, images, monkeypatch):
    calls = []
    encode = AprilGanForAnomalyDetection.encode_prompts
    monkeypatch.setattr(
        AprilGanForAnomalyDetection, "encode_prompts", lambda self, ids: calls.append(len(ids)) or encode(self, ids)
    )
    with torch.inference_mode():
        model(images, class_name=["nut", "nut", "carpet"])
    assert calls == [245, 175] * 2
    model(images, class_name="nut").anomaly_maps.sum().backward()  # not a tensor of inference mode
    model(images, class_name="carpet")
    assert len(calls) == 4
    model.config.templates = ("a {}",)
    assert model(images, class_name="nut").scores.shape == (3,)
    assert calls[4:] == [7, 5]
    # Other weights, another precision, another tokenizer: again.
    expected = model(images, class_name="nut").text_embeds
    weights = {name: 2 * one for name, one in model.clip.text_model.state_dict().items() if "position" not in name}
    model.load_state_dict({f"clip.text_model.{name}": one for name, one in weights.items()}, strict=False)
    model.clip.text_projection.load_state_dict(model.clip.text_projection.state_dict())
    assert (model(images, class_name="nut").text_embeds - expected).abs().max() > 1e-3
    model.double()
    assert not model._text_memory
    assert model(images.double(), class_name="nut").text_embeds.dtype == torch.float64
    model.tokenizer = clip_tokenizer()
    model(images.double(), class_name="nut")
    assert calls[6:] == [7, 5] * 3
    model.clip.text_projection.requires_grad_(True)  # trained: its texts change
    for _ in range(2):
        model(images.double(), class_name="nut")
    assert calls[12:] == [7, 5] * 2


@torch.no_grad()
def test_copies_have_their_own_texts(model, images):
    model(images, class_name="nut")
    other = copy.deepcopy(model)
    assert other._text_memory is not model._text_memory
    same(other(images, class_name="nut"), model(images, class_name="nut"))


# Training


def test_loss(model, images, masks):
    names = ["nut", "carpet", "nut"]
    outputs = model(images, class_name=names, labels=torch.tensor([0, 1, 1]), mask_labels=masks)
    assert outputs.anomaly_maps is outputs.map_maxima is None
    assert set(outputs.loss_components) == set(model.loss_weights) == {"focal", "dice_anomalous"}
    torch.testing.assert_close(outputs.loss, sum(outputs.loss_components.values()))
    outputs.loss.backward()
    trained = {name for name, one in model.named_parameters() if one.grad is not None}
    assert trained == set(model.adapter_state_dict())
    assert trained == {name for name, one in model.named_parameters() if one.requires_grad}
    for other in (masks.bool(), masks.long(), 255 * masks.byte()):
        torch.testing.assert_close(model(images, class_name=names, mask_labels=other).loss, outputs.loss)


def test_training(model, images, masks):
    """The loss decreases, and CLIP does not change."""
    backbone = {name: one.clone() for name, one in model.clip.state_dict().items()}
    (group,) = model.optimizer_groups(1e-3)
    assert group["lr"] == 1e-3
    assert {id(one) for one in group["params"]} == {id(one) for one in model.linear_layers.parameters()}
    optimizer = model.optimizer_class([group], betas=(0.5, 0.999))
    assert type(optimizer) is torch.optim.Adam
    features = model.get_image_features(images)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        outputs = model(image_embeds=features.image_embeds, patch_embeds=features.patch_embeds, mask_labels=masks)
        outputs.loss.backward()
        optimizer.step()
        losses.append(outputs.loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(one, backbone[name]) for name, one in model.clip.state_dict().items())


def test_images_without_mask(model, images, masks):
    """They do not contribute, whatever their mask contains."""
    expected = model(images[:2], mask_labels=masks[:2])
    wrong = masks.clone()
    wrong[2] = 1
    for other in (masks, wrong):
        outputs = model(images, mask_labels=other, mask_valid=torch.tensor([True, True, False]))
        for name, part in outputs.loss_components.items():
            torch.testing.assert_close(part, expected.loss_components[name])
    none = model(images, mask_labels=masks, mask_valid=torch.zeros(3, dtype=torch.bool))
    assert none.loss.item() == 0
    none.loss.backward()
    assert all(not one.grad.any() for one in model.linear_layers.parameters())


def test_dice_of_one_image(clip, images, masks):
    published, default = new_model(clip, dice_rows_for_one_image=True), new_model(clip)
    batch = {"mask_labels": masks[1:2]}
    rows, one = published(images[1:2], **batch), default(images[1:2], **batch)
    torch.testing.assert_close(rows.loss_components["focal"], one.loss_components["focal"])
    maps = one.patch_logits[0, :, 1] - one.patch_logits[0, :, 0]
    maps = nn.functional.interpolate(maps[None], size=48, mode="bilinear", align_corners=True)[
        0
    ].sigmoid()  # (L, S, S)
    overlap, total = (maps * masks[1]).sum(-1), maps.sum(-1) + masks[1].sum(-1)
    expected = (1 - (2 * overlap + 1) / (total + 1)).mean(-1).sum()
    torch.testing.assert_close(rows.loss_components["dice_anomalous"], expected)
    invalid = published(images[1:2], **batch, mask_valid=torch.tensor([False]))
    assert invalid.loss.item() == 0
    torch.testing.assert_close(published(images, mask_labels=masks).loss, default(images, mask_labels=masks).loss)


def test_inputs_that_are_refused(model, images, masks):
    features = model.get_image_features(images)
    with pytest.raises(ValueError, match="found none of them"):
        model(class_name="nut")
    with pytest.raises(ValueError, match="found several of them"):
        model(images, patch_embeds=features.patch_embeds)
    with pytest.raises(ValueError, match="found several of them"):
        model(images, hidden_states=model.encode_layers(images), references=model.encode_images(images))
    with pytest.raises(ValueError, match="the result of get_image_features"):
        model(image_embeds=features.image_embeds, patch_embeds=features.patch_embeds[:, :1])
    with pytest.raises(ValueError, match="hidden_states has 4 states"):
        model(hidden_states=model.encode_layers(images)[1:])
    with pytest.raises(ValueError, match=r"mask_labels has shape \(2, 48, 48\); expected \(3, 48, 48\)"):
        model(images, mask_labels=masks[:2])
    with pytest.raises(ValueError, match=r"mask_valid has shape \(2,\); expected \(3,\)"):
        model(images, mask_labels=masks, mask_valid=torch.ones(2))
    with pytest.raises(ValueError, match=r"pixel_values has shape \(3, 3, 40, 48\)"):
        model(images[:, :, :40])


# Precision


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(clip, model, images, masks, dtype):
    half = new_model(clip, dtype=dtype)
    assert half.clip.visual_projection.weight.dtype == dtype
    for name, one in half.adapter_state_dict().items():
        assert one.dtype == torch.float32
        assert torch.equal(one, model.adapter_state_dict()[name])
    good = half.encode_images(images[:1].to(dtype))
    outputs = half(images.to(dtype), class_name="nut", references=good)
    for name in (*OUTPUTS, "reference_grid_maps"):
        assert outputs[name].dtype == torch.float32
        assert outputs[name].isfinite().all()
    expected = model(images, class_name="nut", references=model.encode_images(images[:1]))
    same(outputs, expected, ("scores", "text_embeds"), 0.05)
    half.to(dtype)  # the linear layers, too
    assert half(images.to(dtype), mask_labels=masks).loss.dtype == torch.float32


@torch.no_grad()
def test_autocast(model, images):
    """Outside of CLIP, automatic mixed precision changes nothing."""
    states, good = model.encode_layers(images), model.encode_images(images[:1])
    text = model.get_text_embeds("nut")
    expected = model(hidden_states=states, text_embeds=text, references=good)
    features = model.get_image_features(hidden_states=states)
    with torch.autocast("cpu", torch.bfloat16):
        cached = {"image_embeds": features.image_embeds, "patch_embeds": features.patch_embeds}
        found = model(**cached, text_embeds=text)
        few = model(hidden_states=states, text_embeds=text, references=good)
    for name in ("scores", "patch_logits"):
        torch.testing.assert_close(found[name], model(**cached, text_embeds=text)[name], atol=0, rtol=0)
    assert torch.equal(few.reference_grid_maps, expected.reference_grid_maps)


@torch.no_grad()
def test_float64(model, images):
    outputs = model.double()(images.double(), references=model.encode_images(images[:1].double()))
    assert outputs.anomaly_maps.dtype == outputs.reference_grid_maps.dtype == torch.float64


# The bundled backbone


@torch.no_grad()
def test_backbone_that_knows_state_words():
    model = create_model("april-gan", "bundled")
    assert type(model) is AprilGanForAnomalyDetection
    assert model.get_prompts("nut") == (["good"], ["damaged"])
    assert (model.config.feature_layers, model.config.image_size) == ((3, 6, 9, 12), 320)
    images = torch.randn(1, 3, 320, 320)
    outputs = model(images, class_name="nut", references=model.encode_images(images))
    assert outputs.anomaly_maps.shape == (1, 320, 320)
    assert 0 <= outputs.scores.item() <= 1
