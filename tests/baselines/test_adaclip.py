"""AdaCLIP: prompts per image and class, training, clusters, the bundled backbone, saving and converting."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModel, CLIPModel, set_seed

from helpers.rivals import clip_tokenizer, tiny_text_clip
from helpers.tiny import FIXTURES
from vip2clip_hf import ViP2ClipImageProcessor
from vip2clip_hf.baselines import (
    AdaClipConfig,
    AdaClipForAnomalyDetection,
    BaselineDetector,
    adaclip_text,
    convert_adaclip_checkpoint,
)
from vip2clip_hf.baselines.adaclip_fusion import kmeans, mean_of_best_cluster, mean_of_clusters, top_patches
from vip2clip_hf.baselines.methods import create_model
from vip2clip_hf.models.vip2clip.loss_vip2clip import dice_loss


FIXTURE = FIXTURES / "rivals" / "adaclip"
NAMES = ["nut", "metal nut", "nut"]


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    torch.manual_seed(0)
    model = tiny_text_clip()
    for name, one in model.named_parameters():  # new weights of CLIP ignore prompts almost completely
        if "layer" in name and "norm" not in name:
            one.data = torch.randn_like(one) * (0.2 if one.dim() == 1 else one.shape[-1] ** -0.5)
    return model


def build(clip, **settings) -> AdaClipForAnomalyDetection:
    set_seed(0)
    model = AdaClipForAnomalyDetection.from_clip(
        clip, clip_tokenizer(), **{"prompting_depth": 2, "prompting_length": 3, "k_clusters": 2, **settings}
    )
    with torch.no_grad():
        for one in (model.vision_prompts, model.text_prompts):
            if one is not None and one.static is not None:
                one.static.mul_(50)  # of about the size of tokens
    return model


@pytest.fixture(scope="module")
def model(clip):
    return build(clip)


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# Batches and class names


@torch.no_grad()
def test_batches(model, images):
    """The published code allows one image. Classes, dynamic prompts and clusters do not depend on the batch."""
    together = model(images, class_name=NAMES)
    for row, name in enumerate(NAMES):
        alone = model(images[row : row + 1], class_name=name)
        for output in ("scores", "anomaly_maps", "logits", "patch_logits", "text_embeds", "cluster_embeds"):
            torch.testing.assert_close(
                together[output][row : row + 1], alone[output], atol=1e-4 if "logits" in output else 1e-5, rtol=0
            )
    assert (together.text_embeds[0] - together.text_embeds[1]).abs().max() > 1e-3  # another class
    assert (together.text_embeds[0] - together.text_embeds[2]).abs().max() > 1e-5  # another image
    same = model(images, class_name="nut")
    torch.testing.assert_close(same.text_embeds[[0, 2]], together.text_embeds[[0, 2]], atol=1e-6, rtol=0)


@torch.no_grad()
def test_text_batches(model, images, monkeypatch):
    expected = model(images, class_name="nut").text_embeds
    for size in (1, 100):
        monkeypatch.setattr(adaclip_text, "TEXT_BATCH", size)
        torch.testing.assert_close(model(images, class_name="nut").text_embeds, expected, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("branch", ["VL", "V", "L"])
@pytest.mark.parametrize("kind", ["SD", "S", "D"])
def test_types_and_branches(clip, images, branch, kind):
    model = build(clip, prompting_branch=branch, prompting_type=kind)
    outputs = model(images, class_name=NAMES)
    assert outputs.scores.shape == (3,)
    states = model.encode_layers(images)
    shared = model(hidden_states=states, class_name=NAMES)
    for name in ("scores", "anomaly_maps"):
        torch.testing.assert_close(shared[name], outputs[name], atol=1e-5, rtol=0)
    features = model.encode_images(images)
    assert (features.plain_embeds is None) == (kind == "S")
    plain = build(clip, prompting_branch="L").encode_images(images)
    changed = (features.patch_tokens - plain.patch_tokens).abs().max()
    assert (changed > 1e-3) if "V" in branch else (changed == 0)
    depends = "L" in branch and "D" in kind
    assert model.text_depends_on_image == depends
    if depends:
        text = model.get_text_embeds(NAMES, features.plain_embeds)
        with pytest.raises(ValueError, match=r"depend on the image; expected plain_embeds of encode_images"):
            model.get_text_embeds("nut")
    else:
        text = model.get_text_embeds(NAMES)
        assert torch.equal(model.get_text_embeds("nut"), text[0])
    torch.testing.assert_close(model(images, text_embeds=text).scores, outputs.scores, atol=1e-6, rtol=0)


@torch.no_grad()
def test_frozen_text_is_computed_once(clip, images, monkeypatch):
    model = build(clip, prompting_branch="V")
    calls = []
    encode = type(model).encode_prompts
    monkeypatch.setattr(type(model), "encode_prompts", lambda *args: calls.append(1) or encode(*args))
    first = model(images, class_name=NAMES)
    second = model(images, class_name="nut")
    assert len(calls) == 2
    assert torch.equal(first.text_embeds[0], second.text_embeds[0])
    model.double()(images.double(), class_name="nut")
    assert len(calls) == 3
    model.load_state_dict({"clip.text_projection.weight": torch.zeros_like(clip.text_projection.weight)}, strict=False)
    assert (model(images.double(), class_name="nut").text_embeds == 0).all()


@torch.no_grad()
def test_prompts_of_one_block_only(clip, images):
    """Prompts of the text tower start at the second block, and all sentences share the first one."""
    model = build(clip)
    ids = model.get_input_ids("nut")
    prompts = torch.randn(1, 1, 3, 16).expand(2, -1, -1, -1)
    first, second = model.encode_prompts(ids, prompts), model.encode_prompts(ids, prompts + torch.randn(1, 1, 3, 16))
    assert first.shape == (2, 48, 16)
    assert torch.equal(first[0], first[1])
    assert (first - second).abs().max() > 1e-3
    # The words of the class are after the replaced tokens.
    other = model.encode_prompts(model.get_input_ids("screw"), prompts)
    assert (first - other).abs().amax(dim=-1).min() > 1e-4


# The text is too short


def test_short_texts(clip, images):
    model = build(clip, templates=["{}"], prompting_length=2)
    with pytest.raises(ValueError, match=r"The prompt 'nut' has 1 tokens; expected at least 2, the prompting_length"):
        model(images, class_name="nut")
    assert model(images, class_name="metal nut").scores.shape == (3,)
    assert build(clip, templates=["{}"], prompting_length=2, prompting_branch="V")(images).scores.shape == (3,)


@torch.no_grad()
def test_bundled_backbone():
    """It knows two words, so the states repeat them. Text tower and joint space have different widths."""
    model = create_model("adaclip", "bundled", k_clusters=4, image_size=64)
    assert model.config.clip.text_config.hidden_size != model.config.clip.projection_dim
    assert model.config.feature_layers == (3, 6, 9, 12)
    assert model.get_prompts() == ([" ".join(["good"] * 6)], [" ".join(["damaged"] * 6)])
    assert model.get_input_ids()[0].tolist() == [0, *[3] * 6, 1]
    pixels = torch.randn(2, 3, 64, 64)
    outputs = model(pixels, class_name=["waves", "weave"])
    assert outputs.anomaly_maps.shape == (2, 64, 64)
    assert outputs.scores.isfinite().all()
    model = create_model("adaclip", "bundled", image_size=64, k_clusters=4, normal_states=("good",))
    with pytest.raises(ValueError, match=r"The prompt 'good' has 1 tokens; expected at least 5.*repeats its word"):
        model(pixels)
    with pytest.raises(ValueError, match=r"prompting_depth is 5; expected an integer from 2 to 4"):
        create_model("adaclip", "bundled", prompting_depth=5)
    assert AdaClipConfig(clip_config=model.config.clip).image_size == 224


# Clusters


def test_kmeans_depends_on_its_seed_only():
    points = torch.randn(4, 30, 5)
    expected = kmeans(points, 6, 3)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(kmeans(points, 6, 3), expected)
    assert torch.equal(torch.get_rng_state(), state)
    for row in range(4):
        assert torch.equal(kmeans(points[row : row + 1], 6, 3)[0], expected[row])
    assert any(not torch.equal(kmeans(points, 6, seed), expected) for seed in range(3))


def test_kmeans_finds_groups():
    centers = torch.randn(3, 8, 16) * 100
    groups = torch.randint(8, (3, 60))
    groups[:, :8] = torch.arange(8)
    points = centers.gather(1, groups[..., None].expand(-1, -1, 16)) + torch.randn(3, 60, 16)
    labels = kmeans(points, 8, 0)
    for found, expected in zip(labels, groups):
        assert len({*zip(found.tolist(), expected.tolist())}) == 8


def test_kmeans_is_a_fixed_point():
    """Each point is in the cluster with the nearest center, and centers are means: also for new points."""
    points = torch.randn(2, 50, 4)
    for one, labels in zip(points, kmeans(points, 5, 1)):
        assert labels.unique().tolist() == [0, 1, 2, 3, 4]
        centers = torch.stack([one[labels == number].mean(dim=0) for number in range(5)])
        assert torch.equal(torch.cdist(one, centers).argmin(dim=1), labels)


def test_equal_patches():
    """There are less different points than clusters: the empty clusters do not count."""
    points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])[None]
    labels = kmeans(points, 4, 0)
    assert len(labels.unique()) == 2
    mean = mean_of_clusters(points[:, None], labels, 4)
    torch.testing.assert_close(mean, F.normalize(torch.tensor([[0.5, 0.5]]), dim=-1))
    assert kmeans(points[:, :1], 1, 0).tolist() == [[0]]


def test_top_patches():
    logits = torch.tensor([[0.0, 5.0], [0.0, 300.0], [0.0, 400.0], [9.0, 0.0]]).expand(2, 3, 4, 2)
    assert top_patches(logits, 4).tolist() == [[2, 1, 0, 3]] * 2  # probabilities of the first two are 1
    many = torch.randn(1, 1, 40, 2)
    assert top_patches(many, 3).shape == (1, 15)


@torch.no_grad()
def test_fusion(clip, images):
    def score(**settings):
        return build(clip, **settings)(images).logits

    off = score(use_hsf=False)
    torch.testing.assert_close(score(hsf_weight=0), off)
    assert (score() - off).abs().max() > 1e-3
    assert (score(k_clusters=8) - score()).abs().max() > 1e-4
    assert build(clip, use_hsf=False)(images).cluster_embeds is None


@torch.no_grad()
def test_best_cluster(clip, images):
    """The other reading of the fusion: all patches are clustered, and the most anomalous cluster counts."""
    model = build(clip, hsf_selection="best_cluster", k_clusters=3)
    outputs = model(images)
    patches = model.project(model.encode_images(images))[1].mean(dim=1)
    probabilities = outputs.patch_logits.mean(dim=1).softmax(dim=1)[:, 1].flatten(1)
    for row, labels in enumerate(kmeans(patches, 3, 0)):
        means = {number: probabilities[row, labels == number].mean().item() for number in labels.unique().tolist()}
        best = max(means, key=means.get)
        expected = F.normalize(patches[row, labels == best].mean(dim=0), dim=0)
        torch.testing.assert_close(outputs.cluster_embeds[row], expected)
    assert (outputs.logits - build(clip, k_clusters=3)(images).logits).abs().max() > 1e-3
    equal = torch.ones(1, 4, 2)  # two clusters are empty
    mean = mean_of_best_cluster(equal, torch.zeros(1, 4), torch.tensor([[1, 1, 2, 1]]), 4)
    torch.testing.assert_close(mean, F.normalize(torch.ones(1, 2), dim=-1))


# Training


def batch_of(images, valid=(True, True, True)) -> dict:
    masks = torch.zeros(3, 32, 32)
    masks[1, 4:12, 4:12] = 1
    masks[2, 20:, 20:] = 255
    return {
        "pixel_values": images, "class_name": NAMES, "labels": torch.tensor([0, 1, 1]), "mask_labels": masks,
        "mask_valid": torch.tensor(valid),
    }  # fmt: skip


@pytest.mark.parametrize("selection", ["top_patches", "best_cluster"])
def test_gradients_are_in_the_adapters_only(clip, images, selection):
    model = build(clip, hsf_selection=selection).train()
    with torch.inference_mode():
        model(images, class_name=NAMES)  # token ids are remembered
    outputs = model(**batch_of(images))
    outputs.loss.backward()
    names = set(model.adapter_state_dict())
    for name, one in model.named_parameters():
        assert (one.grad is not None and one.grad.abs().max() > 0) == (name in names), name
    parts = outputs.loss_components
    assert set(parts) == set(model.loss_weights) == {"image", "focal", "dice_anomalous", "dice_normal"}
    torch.testing.assert_close(outputs.loss, sum(parts.values()))
    assert outputs.anomaly_maps is None
    assert all(p.requires_grad for group in model.optimizer_groups(0.01) for p in group["params"])


@torch.no_grad()
def test_images_without_mask(model, images):
    whole, partly = model(**batch_of(images)), batch_of(images, valid=(True, False, True))
    partly["mask_labels"][1] = float("nan")
    found = model(**partly)
    torch.testing.assert_close(found.loss_components["image"], whole.loss_components["image"])
    rows = {k: [v[0], v[2]] if isinstance(v, list) else v[[0, 2]] for k, v in batch_of(images).items()}
    expected = model(**rows)
    for name in ("focal", "dice_anomalous", "dice_normal"):
        torch.testing.assert_close(found.loss_components[name], expected.loss_components[name])
    none = model(**batch_of(images, valid=(False,) * 3)).loss_components
    assert none["focal"] == none["dice_normal"] == 0
    only = model(images, class_name=NAMES, labels=torch.tensor([0, 1, 1]))
    assert list(only.loss_components) == ["image"]
    torch.testing.assert_close(only.loss, whole.loss_components["image"])


@torch.no_grad()
def test_dice_loss(clip, images):
    """The published code compares rows, the other choice whole images."""
    found = {rows: build(clip, dice_over_rows=rows)(**batch_of(images)) for rows in (True, False)}
    masks = (batch_of(images)["mask_labels"] != 0).float()
    logits = F.interpolate(found[True].patch_logits.flatten(0, 1), size=32, mode="bilinear", align_corners=True)
    maps = logits.softmax(dim=1)[:, 1].unflatten(0, (3, -1))
    for rows in (True, False):
        total = 0.0
        for layer in maps.unbind(1):
            for one, mask in zip(layer, masks):
                pieces = zip(one, mask) if rows else [(one, mask)]
                losses = [1 - (2 * (p * m).sum() + 1) / (p.sum() + m.sum() + 1) for p, m in pieces]
                total += torch.stack(losses).mean() / 3
        torch.testing.assert_close(found[rows].loss_components["dice_anomalous"], total)
    whole = sum(dice_loss(layer, masks) for layer in maps.unbind(1))
    torch.testing.assert_close(found[False].loss_components["dice_anomalous"], whole)


def test_training_changes_scores(clip, images):
    model = build(clip).train()
    optimizer = model.optimizer_class(model.optimizer_groups(0.01), betas=(0.5, 0.999))
    assert type(optimizer) is torch.optim.AdamW
    losses = []
    for _ in range(15):
        loss = model(**batch_of(images)).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_initial_weights(clip):
    set_seed(3)
    settings = {"prompting_depth": 2, "prompting_length": 40, "k_clusters": 2}
    first = AdaClipForAnomalyDetection.from_clip(clip, clip_tokenizer(), **settings)
    set_seed(3)
    again = AdaClipForAnomalyDetection.from_clip(clip, clip_tokenizer(), **settings)
    for name, one in first.adapter_state_dict().items():
        assert torch.equal(again.adapter_state_dict()[name], one), name
    assert first.vision_prompts.static.std().item() == pytest.approx(0.02, rel=0.1)
    assert first.text_prompts.static.shape == (1, 40, 16)
    weight = first.patch_heads[0].weight
    assert weight.abs().max().item() == pytest.approx(32**-0.5, rel=0.1)
    assert weight.std().item() == pytest.approx(32**-0.5 / 3**0.5, rel=0.1)


# Calls that are refused


def test_features_are_not_cached(model, images):
    assert not model.caches_features
    message = "prompts inside the vision tower, so it has no frozen features to cache; train it without the feature"
    with pytest.raises(ValueError, match=message):
        model.get_image_features(images)
    with pytest.raises(ValueError, match=message):
        model(image_embeds=torch.zeros(1, 16), patch_embeds=torch.zeros(model.feature_shape)[None])


def test_refused_calls(model, images):
    states = model.encode_layers(images)
    with pytest.raises(ValueError, match="either pixel_values or hidden_states, found both"):
        model(images, hidden_states=states)
    with pytest.raises(ValueError, match="either pixel_values or hidden_states, found neither"):
        model()
    with pytest.raises(ValueError, match="class_name has 2 names; expected one for each of 3 images"):
        model(images, class_name=["nut", "nut"])
    with pytest.raises(ValueError, match="text_embeds and class_name are both set"):
        model(images, text_embeds=torch.zeros(2, 16), class_name="nut")
    with pytest.raises(ValueError, match=r"text_embeds has shape \(3, 16\); expected \(2, 16\) or \(3, 2, 16\)"):
        model(images, text_embeds=torch.zeros(3, 16))
    with pytest.raises(ValueError, match=r"masks has shape \(3, 16, 16\)|mask"):
        model(images, mask_labels=torch.zeros(2, 32, 32))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompting_depth": 1}, r"prompting_depth is 1; expected an integer from 2 to 12.*first block of the text"),
        ({"prompting_depth": 13}, "prompting_depth is 13; expected an integer from 2 to 12"),
        ({"prompting_branch": "V", "prompting_depth": 25}, "prompting_depth is 25; expected an integer from 1 to 24"),
        ({"prompting_length": 0}, "prompting_length is 0; expected an integer from 1 to 75"),
        ({"feature_layers": (12, 6)}, r"feature_layers is \(12, 6\); expected ascending numbers of vision blocks"),
        ({"feature_layers": (25,)}, r"feature_layers is \(25,\); expected ascending numbers .* from 1 to 24"),
        ({"feature_layers": ()}, r"feature_layers is \(\); expected ascending"),
        ({"k_clusters": 0}, "k_clusters is 0; expected an integer from 1 to 1369, the number of patches"),
        ({"k_clusters": 17, "image_size": 56}, "k_clusters is 17; expected an integer from 1 to 16"),
        ({"kmeans_seed": -1}, "kmeans_seed is -1; expected an integer of at least 0"),
        ({"hsf_weight": 1.5}, "hsf_weight is 1.5; expected a number from 0 to 1"),
        ({"logit_scale": 0}, "logit_scale is 0; expected a number greater than 0"),
        ({"smoothing_sigma": 999}, "smoothing_sigma is 999; expected a number from 0 to 518"),
    ],
)
def test_values_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        AdaClipConfig(**values)


def test_defaults():
    config = AdaClipConfig()
    assert (config.image_size, config.patch_grid, config.feature_layers) == (518, 37, (6, 12, 18, 24))
    assert (config.prompting_depth, config.prompting_length, config.clusters) == (4, 5, 20)
    assert AdaClipConfig(image_size=42).clusters == 9  # patches
    assert config.clip.vision_config.hidden_act == config.clip.text_config.hidden_act == "gelu"
    assert config.name_of_category("pipe-fryum") == "pipe fryum"
    assert config.name_of_category("metal_nut") == "metal_nut"
    assert AdaClipConfig(prompting_branch="V", prompting_depth=1).prompting_depth == 1


# Precision, saving, detectors


@torch.no_grad()
def test_half_precision(clip, images):
    full = build(clip)(images, class_name=NAMES)
    half = build(clip, dtype=torch.bfloat16)
    assert {one.dtype for one in half.adapter_state_dict().values()} == {torch.float32}
    found = half(images.bfloat16(), class_name=NAMES)
    assert found.scores.dtype == found.anomaly_maps.dtype == torch.float32
    torch.testing.assert_close(found.patch_logits, full.patch_logits, atol=10, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = build(clip)(images, class_name=NAMES)
    assert mixed.scores.dtype == torch.float32
    torch.testing.assert_close(mixed.patch_logits, full.patch_logits, atol=10, rtol=0)


def test_training_in_half_precision(clip, images):
    model = build(clip, dtype=torch.bfloat16).train()
    inputs = batch_of(images)
    inputs["pixel_values"] = images.bfloat16()
    model(**inputs).loss.backward()
    assert all(one.grad.isfinite().all() for one in model.parameters() if one.requires_grad)


@torch.no_grad()
def test_attention_implementations(clip, images):
    expected = build(clip)(images, class_name=NAMES)
    found = build(clip, attn_implementation="eager")(images, class_name=NAMES)
    torch.testing.assert_close(found.patch_logits, expected.patch_logits, atol=1e-3, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"prompting_type": "S"}, {"prompting_type": "D", "prompting_branch": "V"}])
@torch.no_grad()
def test_save_and_load(clip, images, tmp_path, settings):
    model = build(clip, **settings)
    expected = model(images, class_name=NAMES)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is AdaClipForAnomalyDetection
    for name, one in model.adapter_state_dict().items():
        assert torch.equal(loaded.adapter_state_dict()[name], one), name
    found = loaded(images, class_name=NAMES)
    for name in ("scores", "anomaly_maps"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)


@torch.no_grad()
def test_detector(model, images):
    detector = BaselineDetector(model, ViP2ClipImageProcessor(size=32)).for_category("metal-nut")
    scores, maps = detector.score(images)
    expected = model(images, class_name="metal nut")
    torch.testing.assert_close(scores, expected.scores)
    torch.testing.assert_close(maps, expected.anomaly_maps)


# Conversion


@pytest.fixture
def content() -> dict[str, torch.Tensor]:
    return torch.load(FIXTURE / "adaclip.pth", weights_only=True)


@pytest.fixture(scope="module")
def fixture_clip() -> CLIPModel:
    clip = CLIPModel.from_pretrained(FIXTURE / "clip_hf")
    clip.config.vision_config.hidden_act = clip.config.text_config.hidden_act = "quick_gelu"
    return clip


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer(load_file(FIXTURE / "inputs.safetensors")["vocab_ids"])


@pytest.fixture
def convert(fixture_clip, tokenizer):
    def run(checkpoint, clip=fixture_clip, **settings):
        return convert_adaclip_checkpoint(checkpoint, clip, tokenizer=tokenizer, image_size=70, **settings)

    return run


def test_sources_of_a_conversion(convert, content, fixture_clip, tokenizer, tmp_path):
    expected = convert(FIXTURE / "adaclip.pth")
    assert not expected.training
    assert expected.provenance.training_recorded is False
    assert expected.config.clip.vision_config.hidden_act == expected.config.clip.text_config.hidden_act == "gelu"
    assert type(expected.clip.text_model.encoder.layers[0].mlp.activation_fn).__name__ == "GELUActivation"
    weight = fixture_clip.visual_projection.weight
    assert expected.clip.visual_projection.weight.data_ptr() == weight.data_ptr()
    assert fixture_clip.config.vision_config.hidden_act == "quick_gelu"
    assert type(fixture_clip.vision_model.encoder.layers[0].mlp.activation_fn).__name__ != "QuickGELUActivation"
    assert convert(content, hidden_act=None).config.clip.vision_config.hidden_act == "quick_gelu"
    wrapped = convert({f"module.{key}": one for key, one in content.items()})
    for name, one in expected.adapter_state_dict().items():
        assert torch.equal(wrapped.adapter_state_dict()[name], one), name
    fixture_clip.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = convert_adaclip_checkpoint(content, tmp_path, image_size=70, k_clusters=3, dtype=torch.bfloat16)
    assert (found.dtype, found.config.k_clusters) == (torch.bfloat16, 3)
    assert found.tokenizer is not None


def test_settings_that_the_file_does_not_determine(convert, content):
    dynamic = {key: one for key, one in content.items() if "static" not in key}
    model = convert(dynamic, prompting_branch="L", prompting_depth=2)
    config = model.config
    assert (config.prompting_type, config.prompting_branch, config.prompting_depth) == ("D", "L", 2)
    assert model.vision_prompts is None
    vision = {key: one for key, one in content.items() if "text_prompter" not in key}
    assert convert(vision).config.prompting_branch == "V"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("clip_model.cls_token_layer.head.0.bias"), r"cls_token_layer.head has the entries 0: weight"),
        (lambda c: c.pop("clip_model.patch_token_layer.head.1.weight"), r"patch_token_layer.head .* 1: bias, 2: bias"),
        (lambda c: c.pop("clip_model.visual_prompter.static_prompts.0"), r"static_prompts has the entries 1: prompt,"),
        (lambda c: c.pop("clip_model.visual_prompter.static_prompts.2"), r"the depths \[2, 3\]; expected one length"),
        (lambda c: c.update({"clip_model.extra": torch.zeros(2)}), "has the entry clip_model.extra; expected only"),
        (lambda c: c.update({"fc.weight": torch.zeros(2)}), "has the entry fc.weight; expected only"),
        (
            lambda c: c.update({"clip_model.cls_token_layer.head.0.bias": "no"}),
            "cls_token_layer.head.0.bias is of type str; expected a tensor",
        ),
        (
            lambda c: c.update({"clip_model.cls_token_layer.head.0.bias": torch.zeros(24, dtype=torch.int64)}),
            "is a torch.int64 tensor of shape .* expected a dense floating-point tensor with 1 dimension",
        ),
        (
            lambda c: c.update({"clip_model.visual_prompter.static_prompts.1": torch.zeros(32)}),
            "expected a dense floating-point tensor with 2 dimensions",
        ),
        (
            lambda c: c["clip_model.dynamic_text_prompt_generator.head.1.weight"].fill_(float("nan")),
            "dynamic_text_prompt_generator.head.1.weight contains NaN or infinite values",
        ),
        (
            lambda c: c.update({"clip_model.visual_prompter.static_prompts.1": torch.zeros(3, 32)}),
            r"have the lengths \[2, 3\]",
        ),
        (
            lambda c: c.update({"clip_model.text_prompter.static_prompts.1": torch.zeros(2, 30)}),
            r"text_prompter.static_prompts.1 has shape \(2, 30\); expected \(2, 24\)\. The checkpoint was",
        ),
        (
            lambda c: c.update({f"clip_model.cls_token_layer.head.1.{k}": c[f"clip_model.cls_token_layer.head.0.{k}"]
                                for k in ("weight", "bias")}),
            "cls_token_layer.head has 2 linear layers; expected 1",
        ),
    ],
)  # fmt: skip
def test_files_that_are_refused(convert, content, change, message):
    change(content)
    with pytest.raises(ValueError, match=message):
        convert(content)


@pytest.mark.parametrize(
    ("part", "missing"),
    [
        ("cls_token_layer", "cls_token_layer"),
        ("patch_token_layer", "patch_token_layer"),
        ("dynamic_text_prompt_generator", "dynamic_text_prompt_generator"),
        ("prompt", "visual_prompter.static_prompts"),
    ],
)
def test_files_that_lack_a_part(convert, content, part, missing):
    content = {key: one for key, one in content.items() if part not in key}
    with pytest.raises(ValueError, match=f"The checkpoint lacks clip_model.{missing}"):
        convert(content)


def test_conversions_that_are_refused(convert, content, clip, tmp_path):
    with pytest.raises(ValueError, match="prompting_length, prompting_depth cannot be overridden, because the check"):
        convert(content, prompting_length=3, prompting_depth=2)
    with pytest.raises(ValueError, match="clip_config cannot be overridden"):
        convert(content, clip_config={})
    with pytest.raises(ValueError, match="'k_cluster' is not a field of AdaClipConfig; did you mean 'k_clusters'"):
        convert(content, k_cluster=3)
    with pytest.raises(ValueError, match=r"feature_layers is \(4, 8\); expected 4 layers, the number of heads"):
        convert(content, feature_layers=(4, 8))
    with pytest.raises(ValueError, match="hidden_act is 'gelo'; expected None"):
        convert(content, hidden_act="gelo")
    with pytest.raises(ValueError, match="trained on another backbone"):
        convert_adaclip_checkpoint(content, clip, tokenizer=clip_tokenizer())
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes((FIXTURE / "adaclip.pth").read_bytes()[:2000])
    with pytest.raises(OSError, match="could not be read as tensors"):
        convert(damaged)
    with pytest.raises(OSError, match="not found"):
        convert(tmp_path / "none.pth")
