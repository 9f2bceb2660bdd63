"""AdaCLIP: what the authors' code computes, see tests/fixtures/rivals/adaclip/README.md."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import CLIPModel

from helpers.rivals import ORACLES, assert_close, clip_tokenizer
from vip2clip_hf.baselines import AdaClipForAnomalyDetection, adaclip, convert_adaclip_checkpoint
from vip2clip_hf.baselines.adaclip_fusion import gather_patches, kmeans, mean_of_clusters, top_patches
from vip2clip_hf.baselines.adaclip_prompts import text_blocks, vision_blocks


# Its fixtures take seconds: one process computes them once.
pytestmark = pytest.mark.xdist_group("adaclip")


FOLDER = ORACLES / "adaclip"
CONFIG = json.loads((FOLDER / "config.json").read_text())
INPUTS, EXPECTED, VARIANTS, TRAINING = (
    load_file(FOLDER / f"{name}.safetensors") for name in ("inputs", "expected", "variants", "training")
)
IMAGES, MASKS, LABELS = INPUTS["pixel_values"], INPUTS["masks"][:, 0], INPUTS["labels"]
TOLERANCE, HALF_GRADIENTS = 2e-5, 1e-3
SETTINGS = {
    "image_size": CONFIG["image_size"], "feature_layers": tuple(CONFIG["features_list"]),
    "k_clusters": CONFIG["k_clusters"], "use_hsf": CONFIG["use_hsf"], "smoothing_sigma": CONFIG["sigma"],
    "hsf_weight": CONFIG["hsf_alpha"], "logit_scale": CONFIG["logit_multiplier"],
}  # fmt: skip
# Other settings of variants. The prompts are a part of those in the file.
CHANGED = {
    "as_is_half": {},
    "quick_gelu": {"hidden_act": CONFIG["hidden_act_variant"]},
    "no_hsf": {"use_hsf": False},
    "k1": {"k_clusters": 1},
    "k20": {"k_clusters": 20},
    "static_only": {"prompting_type": "S"},
    "dynamic_vision_only": {"prompting_type": "D", "prompting_branch": "V"},
    "vision_only": {"prompting_branch": "V"},
    "language_only": {"prompting_branch": "L"},
}


def build(hidden_act: str = CONFIG["hidden_act_of_their_code"], **changed) -> AdaClipForAnomalyDetection:
    """Convert the file, without the prompts that a variant does not have."""
    content = torch.load(FOLDER / "adaclip.pth", weights_only=True)
    kind = changed.pop("prompting_type", CONFIG["prompting_type"])
    branch = changed.pop("prompting_branch", CONFIG["prompting_branch"])
    for letter, tower in zip("VL", ("visual", "text")):
        if "S" not in kind or letter not in branch:
            content = {key: one for key, one in content.items() if f"{tower}_prompter" not in key}
    if "D" not in kind:
        content = {key: one for key, one in content.items() if "dynamic" not in key}
    if "S" not in kind:
        changed |= {"prompting_branch": branch, "prompting_depth": CONFIG["prompting_depth"]}
    clip, tokenizer = CLIPModel.from_pretrained(FOLDER / "clip_hf"), clip_tokenizer(INPUTS["vocab_ids"])
    model = convert_adaclip_checkpoint(
        content, clip, tokenizer=tokenizer, hidden_act=hidden_act, **{**SETTINGS, **changed}
    )
    config = model.config
    assert (config.prompting_type, config.prompting_branch) == (kind, branch)
    assert (config.prompting_depth, config.prompting_length) == (CONFIG["prompting_depth"], CONFIG["prompting_length"])
    return model


def names_of(model) -> list[str]:
    return [model.config.name_of_category(name) for name in CONFIG["class_names"]]


def use_clusters(monkeypatch, indices: torch.Tensor | None, labels: torch.Tensor | None):
    """Use recorded clusters, because those of the published code have no seed."""
    if labels is not None:
        monkeypatch.setattr(adaclip, "top_patches", lambda logits, clusters: indices)
        monkeypatch.setattr(adaclip, "kmeans", lambda points, clusters, seed: labels)


def round_prompts(monkeypatch):
    """The published code rounds prompts to half precision, also on a CPU."""
    forward = adaclip.AdaClipPrompts.forward
    monkeypatch.setattr(adaclip.AdaClipPrompts, "forward", lambda self, embeds: forward(self, embeds).half().float())


def outputs_of_model(model) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        outputs = model(IMAGES, class_name=names_of(model))
    found = {
        "image_scores": outputs.scores,
        "text_features": outputs.text_embeds.mT,
        "cls_projected": outputs.image_embeds,
        "patch_logits": outputs.patch_logits.flatten(3).mT,
        "maps_smooth": outputs.anomaly_maps,
    }
    sigma, model.config.smoothing_sigma = model.config.smoothing_sigma, 0
    found["maps_raw"] = model.draw_maps(outputs.patch_logits)
    model.config.smoothing_sigma = sigma
    found["hsf_topk_indices"] = top_patches(found["patch_logits"], model.config.k_clusters)
    if outputs.cluster_embeds is not None:
        found["hsf_feature"] = outputs.cluster_embeds
    return found


@pytest.fixture(scope="module")
def model() -> AdaClipForAnomalyDetection:
    return build()


@pytest.fixture(scope="module")
def computed(model) -> dict[str, torch.Tensor]:
    """Everything in the main part of the fixture, computed by the model."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        use_clusters(patch, EXPECTED["hsf_topk_indices"], EXPECTED["kmeans_labels"])
        found = outputs_of_model(model)
        vision = model.clip.vision_model
        found["pos_embed_resized"] = vision.embeddings.interpolate_pos_encoding(IMAGES, *IMAGES.shape[2:])[0]
        found["vision_ln_pre"] = vision.pre_layrnorm(model.embed_patches(IMAGES))
        features = model.encode_images(IMAGES)
        found["image_features_plain"] = features.plain_embeds
        found["image_features_prompted"] = features.image_embeds
        length = CONFIG["prompting_length"]
        for name, prompts in (("visual", model.vision_prompts), ("text", model.text_prompts)):
            found[f"dynamic_{name}_prompts"] = prompts.dynamic(features.plain_embeds).unflatten(1, (length, -1))
        blocks = list(
            vision_blocks(vision.encoder.layers, found["vision_ln_pre"], model.vision_prompts(features.plain_embeds))
        )
        found["vision_blocks_prompted"] = torch.stack(blocks, dim=1)
        tokens = [blocks[number - 1][:, :-length] for number in model.config.layers]
        found["patch_tokens"] = torch.stack(tokens, dim=1)
        assert torch.equal(found["patch_tokens"][:, :, 1:], features.patch_tokens)
        found["patch_projected"] = model.project(features)[1]
        chosen = gather_patches(found["patch_projected"], EXPECTED["hsf_topk_indices"])
        found["kmeans_input"] = chosen.transpose(1, 2).flatten(2)
        recorded = EXPECTED["text_blocks_image0_normal4"]
        ids = EXPECTED["tokens_compact"][:4, : recorded.shape[2]]
        text = list(text_blocks(model.clip.text_model, ids, model.text_prompts(features.plain_embeds[:1])))
        found["text_blocks_image0_normal4"] = torch.stack(text)
    return found


# Compared by tests of their own.
TOKENS, CLUSTERS = {"tokens", "tokens_compact"}, {"kmeans_labels"}


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - TOKENS - CLUSTERS))
def test_parity(computed, name):
    found, expected = computed[name], EXPECTED[name]
    if name == "hsf_topk_indices":
        assert torch.equal(found.sort().values, expected.sort().values)
        return
    largest = max(1.0, expected.abs().max().item())
    assert_close(found, expected, TOLERANCE * largest)


def test_tokens(model):
    """Texts, order and tokenization of the sentences, also with the ids of CLIP's own tokenizer."""
    full = clip_tokenizer()
    rows = iter(zip(EXPECTED["tokens"].tolist(), EXPECTED["tokens_compact"].tolist()))
    for name in names_of(model):
        normal, anomalous = model.get_prompts(name)
        assert (len(normal), len(anomalous)) == (28, 20)
        ids = model.get_input_ids(name).tolist()
        for text, short in zip([*normal, *anomalous], ids):
            own, compact = next(rows)
            found = full(text)["input_ids"]
            assert found + [0] * (len(own) - len(found)) == own, text
            assert short[: len(found)] == compact[: len(found)], text
            assert set(short[len(found) :]) <= {CONFIG["eos_compact"]}
            assert not any(compact[len(found) :])
    assert next(rows, None) is None


@torch.no_grad()
def test_long_sequences(model):
    """The published code runs all 77 tokens. Tokens after the end token change nothing."""
    features = model.encode_images(IMAGES[:1])
    long = model.encode_prompts(EXPECTED["tokens_compact"][:48], model.text_prompts(features.plain_embeds))
    short = model.encode_prompts(model.get_input_ids(names_of(model)[0]), model.text_prompts(features.plain_embeds))
    assert_close(short, long, TOLERANCE)


# Variants


def variant_of(name: str) -> tuple[str, str]:
    variant, _, output = name.rpartition(".")
    return variant, output


OTHER = {"kmeans_labels"}
VARIANT_OUTPUTS = [name for name in sorted(VARIANTS) if variant_of(name)[1] not in OTHER]
PLAIN = [name for name in VARIANT_OUTPUTS if name.startswith("plain_")]
SEEDS = "kmeans_seeds_0_to_7.image_scores"


@pytest.fixture(scope="module")
def variants() -> dict[str, torch.Tensor]:
    found = {}
    for variant, changed in CHANGED.items():
        with pytest.MonkeyPatch.context() as patch:
            use_clusters(patch, VARIANTS.get(f"{variant}.hsf_topk_indices"), VARIANTS.get(f"{variant}.kmeans_labels"))
            if variant == "as_is_half":
                round_prompts(patch)
            outputs = outputs_of_model(build(**changed))
        found.update({f"{variant}.{name}": one for name, one in outputs.items()})
    return found


@pytest.mark.parametrize("name", sorted(set(VARIANT_OUTPUTS) - set(PLAIN) - {SEEDS}))
def test_variants(variants, name):
    if name.endswith("hsf_topk_indices"):
        assert torch.equal(variants[name].sort().values, VARIANTS[name].sort().values)
        return
    assert_close(variants[name], VARIANTS[name], TOLERANCE)


@pytest.mark.parametrize("name", ["image_scores", "maps_raw", "text_features", "hsf_feature"])
def test_half_precision_of_the_prompts_changes_little(computed, name):
    """Our default keeps prompts in float32. The published code rounds them."""
    assert_close(computed[name], VARIANTS[f"as_is_half.{name}"], 5e-4)


@pytest.mark.parametrize("name", PLAIN)
@torch.no_grad()
def test_plain_towers(name):
    variant, output = variant_of(name)
    model = build(hidden_act=variant.removeprefix("plain_"))
    if output.startswith("text_features"):
        found = model.encode_prompts(EXPECTED["tokens_compact"][: len(VARIANTS[name])])
    else:
        native = CONFIG["native_image_size"]
        clip = model.clip.vision_model(IMAGES[:, :, :native, :native], interpolate_pos_encoding=True)
        found = model.clip.visual_projection(clip.pooler_output)
    assert_close(found, VARIANTS[name], TOLERANCE)


# Clusters


def spread_of(points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of squared distances to the centers, which k-means minimizes."""
    groups = [points[labels == number] for number in labels.unique()]
    return sum((group - group.mean(dim=0)).square().sum() for group in groups)


def test_own_clusters():
    """The published clusters have no seed. The best of ours is as good, and no seed is much worse."""
    points, count = EXPECTED["kmeans_input"], CONFIG["k_clusters"]
    found = [kmeans(points, count, seed) for seed in range(20)]
    for image, recorded in enumerate(EXPECTED["kmeans_labels"]):
        limit = spread_of(points[image], recorded)
        spreads = torch.stack([spread_of(points[image], labels[image]) for labels in found])
        assert spreads.min() <= limit * 1.00001
        assert spreads.max() <= limit * 1.5


@torch.no_grad()
def test_scores_with_own_clusters(model):
    """Near the range of the published scores, which change by up to 0.1 between seeds."""
    recorded = torch.cat([VARIANTS[SEEDS], EXPECTED["image_scores"][None]])
    scores = model(IMAGES, class_name=names_of(model)).scores
    assert (scores > recorded.amin(dim=0) - 0.1).all()
    assert (scores < recorded.amax(dim=0) + 0.1).all()


@pytest.mark.parametrize("variant", [None, *sorted(set(CHANGED) - {"no_hsf"})], ids=str)
def test_recorded_clusters(variant):
    """The recorded clusters have all numbers, so none is empty."""
    settings = {} if variant is None else CHANGED[variant]
    source = EXPECTED if variant is None else VARIANTS
    labels = source["kmeans_labels" if variant is None else f"{variant}.kmeans_labels"]
    count = settings.get("k_clusters", CONFIG["k_clusters"])
    assert all(set(row.tolist()) == set(range(count)) for row in labels)


# Training


CASES = sorted({tuple(name.split(".")[:2]) for name in TRAINING})


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    """Losses and gradients of one image, under the names of the fixture."""
    found = {}
    for precision, image in CASES:
        number, prefix = int(image.removeprefix("image")), f"{precision}.{image}."
        model = build().train()
        with pytest.MonkeyPatch.context() as patch:
            chosen = EXPECTED if precision == "fp32" else VARIANTS
            name = "hsf_topk_indices" if precision == "fp32" else "as_is_half.hsf_topk_indices"
            use_clusters(patch, chosen[name][number : number + 1], TRAINING[f"{prefix}kmeans_labels"][None])
            if precision == "as_is_half":
                round_prompts(patch)
            rows = slice(number, number + 1)
            outputs = model(
                IMAGES[rows], class_name=names_of(model)[rows], labels=LABELS[rows], mask_labels=MASKS[rows]
            )
        outputs.loss.backward()
        assert outputs.anomaly_maps is None
        found[f"{prefix}total_loss"] = outputs.loss
        found[f"{prefix}classification_focal"] = outputs.loss_components["image"]
        layers = [layer_losses(outputs, layer, rows) for layer in range(len(CONFIG["features_list"]))]
        found[f"{prefix}focal_per_layer"] = torch.stack([parts["focal"] for parts in layers])
        names = ("dice_anomalous", "dice_normal")
        found[f"{prefix}dice_per_layer"] = torch.stack([torch.stack([p[n] for n in names]) for p in layers])
        for name in ("focal", *names):
            total = torch.stack([parts[name] for parts in layers]).sum()
            torch.testing.assert_close(outputs.loss_components[name], total)
        gradients = gradients_of(model)
        found.update({f"{prefix}grad.{name}": one for name, one in gradients.items()})
        found.update({f"{prefix}grad_norm.{name}": one.norm() for name, one in gradients.items()})
    return {name: one.detach() for name, one in found.items()}


def layer_losses(outputs, layer: int, rows: slice) -> dict[str, torch.Tensor]:
    weights = {"focal": 1.0, "dice_anomalous": 1.0, "dice_normal": 1.0}
    logits = outputs.patch_logits[:, layer : layer + 1]
    return adaclip.adaclip_loss(outputs.logits, None, logits, MASKS[rows], None, weights)[1]


def gradients_of(model) -> dict[str, torch.Tensor]:
    """Gradients under the names of the published code, which has a linear layer for each token of the prompts."""
    found, length = {}, CONFIG["prompting_length"]
    for tower, prompts in (("visual", model.vision_prompts), ("text", model.text_prompts)):
        for number, one in enumerate(prompts.static.grad, start=int(tower == "text")):
            found[f"{tower}_prompter.static_prompts.{number}"] = one
        for kind in ("weight", "bias"):
            for number, one in enumerate(getattr(prompts.dynamic, kind).grad.chunk(length)):
                found[f"dynamic_{tower}_prompt_generator.head.{number}.{kind}"] = one
    for name, heads in (("patch_token_layer", model.patch_heads), ("cls_token_layer", [model.image_head])):
        for number, head in enumerate(heads):
            for kind in ("weight", "bias"):
                found[f"{name}.head.{number}.{kind}"] = getattr(head, kind).grad
    return found


@pytest.mark.parametrize("name", [name for name in sorted(TRAINING) if not name.endswith("kmeans_labels")])
def test_training(trained, name):
    """Gradients are compared relative to their norm. With prompts in half precision, the published code also rounds
    their gradients, for each sentence and block."""
    found, expected = trained[name], TRAINING[name]
    tolerance = HALF_GRADIENTS if name.startswith("as_is_half") and ".grad" in name else TOLERANCE
    largest = max(1.0, expected.norm().item()) if ".grad" in name else 1.0
    assert_close(found, expected, tolerance * largest)


def test_all_gradients_are_compared(trained):
    """The first text prompt is in the file of the published code, but has no gradient and is not in the model."""
    content = torch.load(FOLDER / "adaclip.pth", weights_only=True)
    names = {key.removeprefix("clip_model.") for key in content} - set(CONFIG["parameters_without_gradient"])
    for precision, image in CASES:
        prefix = f"{precision}.{image}.grad_norm."
        assert {name.removeprefix(prefix) for name in TRAINING if name.startswith(prefix)} == names
        assert {name.removeprefix(prefix) for name in trained if name.startswith(prefix)} == names


def test_conversion(model):
    """Every tensor of the file is in the model, except the one that is not used."""
    content = torch.load(FOLDER / "adaclip.pth", weights_only=True)
    sizes = {key: one.numel() for key, one in content.items() if "text_prompter.static_prompts.0" not in key}
    assert sum(one.numel() for one in model.adapter_state_dict().values()) == sum(sizes.values())
    for number in range(CONFIG["prompting_depth"]):
        vision = content[f"clip_model.visual_prompter.static_prompts.{number}"]
        assert torch.equal(model.vision_prompts.static[number], vision)
        if number:
            text = content[f"clip_model.text_prompter.static_prompts.{number}"]
            assert torch.equal(model.text_prompts.static[number - 1], text)


def test_mean_of_clusters(computed):
    labels, count = EXPECTED["kmeans_labels"], CONFIG["k_clusters"]
    chosen = gather_patches(computed["patch_projected"], EXPECTED["hsf_topk_indices"])
    for image, found in enumerate(mean_of_clusters(chosen, labels, count)):
        centers = [chosen[image][:, labels[image] == number].flatten(0, 1).mean(dim=0) for number in range(count)]
        torch.testing.assert_close(found, F.normalize(torch.stack(centers).mean(dim=0), dim=0))
