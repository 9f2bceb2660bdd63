"""APRIL-GAN: what the published code computes, see tests/fixtures/rivals/aprilgan/README.md."""

import copy

import pytest
import torch

from helpers.rivals import ORACLES, assert_close, clip_tokenizer, load_oracle, load_tower, outputs_of
from vip2clip_hf.baselines import convert_april_gan_checkpoint, published_few_shot_scores
from vip2clip_hf.baselines.april_gan_steps import layer_margins, resize_corners
from vip2clip_hf.evaluation.metrics import AnomalyMetrics


# Its fixtures take seconds: one process computes them once.
pytestmark = pytest.mark.xdist_group("april-gan")


METHOD = "aprilgan"
EXPECTED, CONFIG, PROMPTS = load_oracle(METHOD)
CLASSES, LAYERS, FEW_LAYERS = CONFIG["classes"], CONFIG["features_list"], CONFIG["few_shot_features"]
RESULTS, SIZE = CONFIG["results"], CONFIG["image_size"]
SHOTS = sorted({int(name.split(".")[0][2:]) for name in EXPECTED if name.startswith("fs")})
TOLERANCE, LOGITS = 5e-5, 2e-4
# The batches of the training runs: indices of images, and their classes.
BATCHES = {"train_batch3": ([0, 1, 2], [CLASSES[0], CLASSES[0], CLASSES[1]]), "train_batch1": ([1], CLASSES[:1])}
INPUTS = {"references", "masks"}


def new_model(checkpoint="adapter.pth", **settings):
    settings = {"image_size": SIZE, "feature_layers": LAYERS, "few_shot_layers": FEW_LAYERS, **settings}
    tokenizer = clip_tokenizer(EXPECTED["vocab_real_ids"])
    return convert_april_gan_checkpoint(
        ORACLES / METHOD / checkpoint, load_tower(METHOD), tokenizer=tokenizer, **settings
    )


@pytest.fixture(scope="module")
def model():
    return new_model()


def images_of(name):
    """Positions of the test images of a class, and its references."""
    good = EXPECTED["references"].float()
    places = [place for place, owner in CONFIG["items"] if owner == name]
    return places, good if name == CLASSES[0] else good.flip(0)


def train(model, batch):
    """Return the loss and its parts."""
    places, names = BATCHES[batch]
    masks = (EXPECTED["masks"][places, 0].float() / 255 > 0.5).float()
    pixels = EXPECTED["images"][places].float()
    return model(pixels, class_name=names, labels=masks.amax(dim=(1, 2)).long(), mask_labels=masks)


@pytest.fixture(scope="module")
def trained(model):
    """Gradients, weights and parts of the loss of two steps of Adam."""
    found, model, steps = {}, copy.deepcopy(model), []
    optimizer = model.optimizer_class(model.optimizer_groups(1e-3), betas=(0.5, 0.999))
    for step in range(2):
        optimizer.zero_grad()
        outputs = train(model, "train_batch3")
        outputs.loss.backward()
        steps.append((outputs, [one.grad.norm().item() for one in model.parameters() if one.grad is not None]))
        if step == 0:
            for name, one in model.linear_layers.named_parameters():
                found[f"train.grad.fc.{name}"] = one.grad.clone()
        optimizer.step()
    for name, one in model.linear_layers.named_parameters():
        found[f"train.after2.fc.{name}"] = one.detach()
    return found, steps, model


@pytest.fixture(scope="module")
@torch.no_grad()
def computed(model, trained) -> dict[str, torch.Tensor]:
    """Everything in the fixture, computed by the model."""
    found, images = dict(trained[0]), EXPECTED["images"].float()
    native = CONFIG["native_image_size"]
    small = new_model(image_size=native)
    found["plain.image_features_native"] = small.get_image_features(images[:, :, :native, :native]).image_embeds
    found["plain.text_features"] = model.encode_prompts(EXPECTED[f"tokens.{CLASSES[0]}.abnormal"][:8])
    embeddings = model.clip.vision_model.embeddings
    found["visual_position_embedding_resized"] = embeddings.interpolate_pos_encoding(None, SIZE, SIZE)[0]
    states = model.encode_layers(images)
    for layer in LAYERS:
        found[f"zs.tokens.layer{layer}"] = states[layer]
    found["zs.image_features_raw"] = model.get_image_features(hidden_states=states).image_embeds
    for name in CLASSES:
        places, good = images_of(name)
        outputs = model(images[places], class_name=name)
        found[f"text_features.{name}"] = outputs.text_embeds[0].T
        found[f"zs.score.{name}"], found[f"zs.map.{name}"] = outputs.scores, outputs.anomaly_maps
        found[f"zs.text_probs.{name}"] = outputs.logits.softmax(dim=-1)
        found["zs.image_features_normalised"] = found.get("zs.image_features_normalised", outputs.image_embeds)
        maps = layer_margins(outputs.patch_logits, SIZE).sigmoid()
        for index, layer in enumerate(LAYERS):
            found[f"zs.logits_lowres.layer{layer}.{name}"] = outputs.patch_logits[:, index]
            found[f"zs.map.layer{layer}.{name}"] = maps[:, index]
        for count in SHOTS:
            references = model.encode_images(good[:count])
            few = model(images[places], class_name=name, references=references)
            prefix = f"fs{count}"
            found[f"{prefix}.score.{name}"] = published_few_shot_scores(few.zero_shot_scores, few.map_maxima)
            found[f"{prefix}.map.{name}"], found[f"{prefix}.map_max.{name}"] = few.anomaly_maps, few.map_maxima
            found[f"{prefix}.map_memory_only.{name}"] = resize_corners(few.reference_grid_maps, SIZE).sum(dim=1)
            for index, layer in enumerate(FEW_LAYERS):
                found[f"{prefix}.dist_lowres.layer{layer}.{name}"] = few.reference_grid_maps[:, index, None]
                found[f"{prefix}.memory.layer{layer}.{name}"] = references.patch_embeds[:, index].flatten(0, 1)
    return found


@pytest.mark.parametrize("name", outputs_of(EXPECTED, INPUTS))
def test_parity(computed, name):
    expected = EXPECTED[name]
    if name.startswith("zs.text_probs") and expected.dim() == 3:
        expected = expected[:, 0]
    assert_close(computed[name], expected, LOGITS if name.startswith("zs.logits") else TOLERANCE)


@pytest.mark.parametrize("setting", ["zs", *(f"fs{count}" for count in SHOTS)])
def test_metrics(computed, setting):
    """Metrics of the published script. AUPRO of its 200 thresholds is left out."""
    recorded, metrics = RESULTS[f"{setting}_metrics"], AnomalyMetrics()
    for name in CLASSES:
        places, _ = images_of(name)
        masks = EXPECTED["masks"][places, 0].float() / 255 > 0.5
        labels = torch.tensor([int(place > 0) for place in places])
        masks &= labels.bool()[:, None, None]
        scores, maps = computed[f"{setting}.score.{name}"], computed[f"{setting}.map.{name}"]
        metrics.update(scores, labels, maps, masks, categories=[name] * len(places))
    found = metrics.compute()["categories"]
    for key, values in recorded.items():
        level, kind = {"sp": "image", "px": "pixel"}.get(key.rpartition("_")[2]), key.rpartition("_")[0]
        for name, value in zip(CLASSES, values):
            if level is not None:
                assert found[name][f"{level}_{kind}"] == pytest.approx(value, abs=2e-4), (key, name)


@pytest.mark.parametrize("step", [0, 1])
def test_parts_of_the_loss(trained, step):
    outputs, norms = trained[1][step]
    expected = RESULTS["train_batch3"]
    for name, key in (("focal", "focal"), ("dice_anomalous", "dice")):
        total = sum(value for kind, value in expected["terms_per_epoch"][step] if kind == key)
        assert abs(outputs.loss_components[name].item() - total) < TOLERANCE
    assert abs(outputs.loss.item() - expected["loss_per_epoch"][step]) < TOLERANCE
    assert norms == pytest.approx(expected["grad_norm_per_epoch"][step], abs=TOLERANCE)


def test_batch_of_one_image():
    """The published code takes rows of pixels as images. The default does not."""
    expected = RESULTS["train_batch1"]
    published = new_model(dice_rows_for_one_image=True)
    outputs = train(published, "train_batch1")
    assert abs(outputs.loss.item() - expected["loss_per_epoch"][0]) < TOLERANCE
    outputs.loss.backward()
    norms = [one.grad.norm().item() for one in published.linear_layers.parameters()]
    assert norms == pytest.approx(expected["grad_norm_per_epoch"][0], abs=TOLERANCE)
    default = train(new_model(), "train_batch1")
    assert abs(default.loss_components["focal"].item() - outputs.loss_components["focal"].item()) < 1e-6
    assert abs(default.loss.item() - outputs.loss.item()) > 1e-2


def test_trained_checkpoint(trained):
    """A file that the published training code has saved."""
    expected = new_model("adapter_trained_by_their_code.pth").adapter_state_dict()
    found = trained[2].adapter_state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert_close(tensor, expected[name], TOLERANCE)


@torch.no_grad()
def test_sizes_of_memories(model):
    for count in SHOTS:
        references = model.encode_images(EXPECTED["references"][:count].float())
        rows = references.rows_on(model.device).rows
        assert [len(one) for one in rows] == RESULTS[f"fs{count}_memory_rows"]


@pytest.mark.parametrize("name", CLASSES)
def test_prompts(model, name):
    texts = model.config.prompts
    for kind, key in (("normal_states", "normal_states"), ("anomalous_states", "abnormal_states")):
        assert list(getattr(texts, kind)) == PROMPTS[key]
    assert list(texts.templates) == PROMPTS["templates"]
    for kind, written in zip(("normal", "abnormal"), model.get_prompts(model.config.name_of_category(name))):
        expected = EXPECTED[f"tokens.{name}.{kind}"]
        assert len(written) == len(expected) == PROMPTS["counts"][name][kind]
        for text, row in zip(written, expected.tolist()):
            ids = model.tokenizer(text)["input_ids"]
            assert ids + [0] * (len(row) - len(ids)) == row, text


@torch.no_grad()
def test_encoding_of_recorded_tokens(model):
    """The fixture pads with zeros, the model with end tokens."""
    ids = [EXPECTED[f"tokens.{CLASSES[0]}.{kind}"] for kind in ("normal", "abnormal")]
    text = torch.stack([model.pool_prompts(model.encode_prompts(one)) for one in ids])
    assert_close(text.T, EXPECTED[f"text_features.{CLASSES[0]}"], TOLERANCE)
    places, _ = images_of(CLASSES[0])
    outputs = model(EXPECTED["images"][places].float(), text_embeds=text)
    assert_close(outputs.scores, EXPECTED[f"zs.score.{CLASSES[0]}"], TOLERANCE)
