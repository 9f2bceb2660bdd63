"""The trained baselines with the trainer, the feature cache and the command of ViP²-CLIP."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Image
from transformers import AutoModel
from typer.testing import CliRunner

from helpers.training import assert_same_tensors, losses_of, with_sgd, write_training_set
from vip2clip_hf import ViP2ClipImageProcessor, load_folder
from vip2clip_hf.baselines import AprilGanForAnomalyDetection
from vip2clip_hf.baselines.methods import METHODS, create_model, find_method, method_of, untrained_texts
from vip2clip_hf.baselines.saving import write_baseline
from vip2clip_hf.baselines.training import BaselineTrainer, training_kind
from vip2clip_hf.checkpoints.bundled import bundled_backbone
from vip2clip_hf.cli import app
from vip2clip_hf.models.small_text_tower import state_word_tokenizer
from vip2clip_hf.models.vip2clip.backbone_vip2clip import backbone_checksum
from vip2clip_hf.training.arguments import ModelArguments, ViP2ClipTrainingArguments
from vip2clip_hf.training.named_recipes import RECIPES, recipe_path
from vip2clip_hf.training.parsing import given_arguments, parse_arguments


TRAINED = [key for key, method in METHODS.items() if method.trained]
CACHED = [key for key in TRAINED if method_of(create_model(key, "bundled")).model_class.caches_features]
SIZE = 64
# At most as many clusters as patches.
SETTINGS = {"adaclip": {"k_clusters": 4}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_folder(write_training_set(tmp_path_factory.mktemp("data") / "set"))


@pytest.fixture
def build(dataset, tmp_path):
    def build(key, output_dir=tmp_path / "run", eval_dataset=None, settings=None, train_dataset=dataset, **arguments):
        model = create_model(key, "bundled", seed=3, image_size=SIZE, **SETTINGS.get(key, {}), **(settings or {}))
        defaults = {"disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_strategy": "steps"}
        defaults |= {"logging_steps": 1, "max_steps": 2, "per_device_train_batch_size": 4, "seed": 7}
        args = ViP2ClipTrainingArguments(output_dir=str(output_dir), **{**defaults, **arguments})
        return BaselineTrainer(model, args, ViP2ClipImageProcessor(size=SIZE), train_dataset, eval_dataset)

    return build


def adapters(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.adapter_state_dict().items()}


def test_methods():
    assert list(METHODS) == ["clip", "winclip", "april-gan", "anomalyclip", "adaclip"]
    assert TRAINED == ["april-gan", "anomalyclip", "adaclip"]
    assert CACHED == ["april-gan", "anomalyclip"]
    assert {key for key, method in METHODS.items() if method.uses_references} == {"winclip", "april-gan"}
    for method in METHODS.values():
        assert method.model_class.method_name == method.name
        assert method.model_class.uses_class_names == method.uses_class_names
        assert (method.converter is None) == (not method.trained)
    assert untrained_texts(["CLIP", "APRIL-GAN", "ViP²-CLIP"]).endswith(": CLIP, the image scores of APRIL-GAN.")
    assert untrained_texts(["AnomalyCLIP", "mine"]) == ""
    with pytest.raises(ValueError, match=r"method is 'aprilgan'; expected clip, .*did you mean 'april-gan'"):
        find_method("aprilgan")
    with pytest.raises(ValueError, match="method is 'winclip', which has no trained weights"):
        METHODS["winclip"].convert("x.pth", None)


@pytest.mark.parametrize("key", [TRAINED[0], *(pytest.param(key, marks=pytest.mark.slow) for key in TRAINED[1:])])
def test_training(build, dataset, key):
    """Only the adapters change, and the loss of the parts is logged."""
    trainer = build(key, max_steps=8, learning_rate=5e-3, eval_dataset=dataset)
    before, clip = adapters(trainer), backbone_checksum(trainer.model.clip.state_dict(), torch.float32)
    trainer.train()
    after = adapters(trainer)
    assert backbone_checksum(trainer.model.clip.state_dict(), torch.float32) == clip
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert changed == trained == {name for name in after if not name.startswith("clip.")} & trained
    assert not any(name.startswith("clip.") for name in trained)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entries[-1]["loss"] < entries[0]["loss"]
    weights = trainer.model.loss_weights
    for entry in entries:
        parts = {name.removeprefix("loss_"): value for name, value in entry.items() if name.startswith("loss_")}
        assert set(parts) == set(weights)
        assert sum(weights[name] * value for name, value in parts.items()) == pytest.approx(entry["loss"], rel=1e-3)
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_pixel_auroc"] <= 1
    assert [entry["num_images"] for entry in trainer.model.provenance.training_sets] == [len(dataset)]


def test_optimizers(build):
    """Those of the papers: Adam, and AdamW for AdaCLIP."""
    found = {key: build(key, adam_beta1=0.5, weight_decay=0.25).create_optimizer() for key in TRAINED}
    assert {key: type(one) for key, one in found.items()} == {
        "april-gan": torch.optim.Adam, "anomalyclip": torch.optim.Adam, "adaclip": torch.optim.AdamW,
    }  # fmt: skip
    for one in found.values():
        assert [group["betas"] for group in one.param_groups] == [(0.5, 0.999)]
        assert [group["weight_decay"] for group in one.param_groups] == [0.25]


@pytest.mark.parametrize("key", [TRAINED[0], *(pytest.param(key, marks=pytest.mark.slow) for key in TRAINED[1:])])
def test_accumulated_batches(build, key):
    """Two batches of three images are one batch of six, also with images without a mask."""
    # In batches of one image, AdaCLIP compares rows of pixels: the same for every size.
    found = []
    for size, accumulated in ((6, 1), (3, 2)):
        trainer = with_sgd(
            build(key, max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=accumulated)
        )
        trainer.train()
        found.append(adapters(trainer))
    assert_same_tensors(*found, tolerance=2e-5)


@pytest.mark.parametrize("key", [CACHED[0], *(pytest.param(key, marks=pytest.mark.slow) for key in CACHED[1:])])
def test_cached_features(build, key, tmp_path):
    plain = build(key, tmp_path / "plain", num_train_epochs=2, max_steps=-1)
    plain.train()
    cached = build(
        key, tmp_path / "cached", num_train_epochs=2, max_steps=-1, cache_features=str(tmp_path / "cache"),
        cache_dtype="float32",
    )  # fmt: skip
    cached.train()
    assert losses_of(cached) == pytest.approx(losses_of(plain), rel=1e-4)
    again = build(key, cache_features=str(tmp_path / "cache"), cache_dtype="float32").cache_features()
    assert len(list((tmp_path / "cache").glob("*/meta.json"))) == 1
    assert again.meta["config"]["model_type"] == plain.model.config.model_type


@pytest.mark.slow
def test_one_cache_folder_for_all_methods(build, tmp_path):
    """Their features differ, so they never share a cache."""
    for key in CACHED:
        build(key, cache_features=str(tmp_path / "cache")).cache_features()
    assert len(list((tmp_path / "cache").glob("*/meta.json"))) == len(CACHED)


class OtherFeatures(AprilGanForAnomalyDetection):
    """A subclass of a user, outside of the package."""

    def get_image_features(self, *args, **kwargs):
        features = super().get_image_features(*args, **kwargs)
        features.patch_embeds = 2 * features.patch_embeds
        return features


@pytest.mark.slow
def test_a_subclass_has_its_own_cache(build, dataset, tmp_path):
    """Its code computes the features. The code of the position embeddings does, too."""
    trainer = build("april-gan", cache_features=str(tmp_path / "cache"))
    plain, model = trainer.cache_features(), trainer.model
    assert {"vip2clip_hf.baselines.april_gan_steps", "vip2clip_hf.baselines.vision_embeddings"} < set(
        model.feature_modules
    )
    other = OtherFeatures(model.config)
    other.load_state_dict(model.state_dict())
    other.tokenizer = model.tokenizer
    assert set(other.feature_modules) == {__name__, *model.feature_modules}
    found = BaselineTrainer(other, trainer.args, trainer.image_processor, dataset).cache_features()
    assert found.folder != plain.folder
    assert torch.equal(found.row(0)["patch_embeds"], 2 * plain.row(0)["patch_embeds"])


def test_adaclip_cannot_cache(build, tmp_path):
    with pytest.raises(ValueError, match=r"AdaCLIP has prompts inside the vision tower.*omit cache_features"):
        build("adaclip", cache_features=str(tmp_path))


@pytest.mark.parametrize("key", [TRAINED[0], *(pytest.param(key, marks=pytest.mark.slow) for key in TRAINED[1:])])
def test_resumed_training(build, key, tmp_path):
    whole = build(key, tmp_path / "whole", max_steps=4)
    whole.train()
    folder = tmp_path / "parts"
    build(key, folder, max_steps=2, save_strategy="steps", save_steps=2).train()
    resumed = build(key, folder, max_steps=4, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert_same_tensors(adapters(whole), adapters(resumed), tolerance=1e-6)
    small = [path.stat().st_size for path in folder.glob("checkpoint-*/model.safetensors")]
    assert max(small) < 4 * sum(tensor.numel() for tensor in adapters(whole).values()) + 1e5  # without the backbone


@pytest.mark.slow
def test_resuming_with_other_settings(build, tmp_path):
    build("anomalyclip", max_steps=2, save_strategy="steps", save_steps=2).train()
    other = build("anomalyclip", settings={"temperature": 0.1}, max_steps=4, save_strategy="steps", save_steps=2)
    with pytest.raises(ValueError, match=r"trained with temperature 0.07, but this model has 0.1"):
        other.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("key", ["april-gan", "anomalyclip"])
def test_resuming_with_other_categories(build, dataset, key):
    """They are class names in the prompts, except for AnomalyCLIP, which has none."""
    others = dataset.remove_columns("category").add_column("category", ["weave"] * len(dataset))
    build(key, max_steps=2, save_strategy="steps", save_steps=2).train()
    trainer = build(key, train_dataset=others, max_steps=4, save_strategy="steps", save_steps=2)
    if METHODS[key].uses_class_names:
        with pytest.raises(ValueError, match="training data: categories"):
            trainer.train(resume_from_checkpoint=True)
    else:
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 4


@pytest.mark.parametrize("key", TRAINED)
def test_class_names(build, dataset, key, monkeypatch):
    """The category of each image is the class name in its prompt, as the method writes it."""
    trainer = build(key, max_steps=1)
    seen, forward = [], trainer.model.forward

    def record(*args, class_name=None, **kwargs):
        seen.append(class_name)
        return forward(*args, class_name=class_name, **kwargs)

    monkeypatch.setattr(trainer.model, "forward", record)
    trainer.train()
    if METHODS[key].uses_class_names:
        assert [len(names) for names in seen] == [4]
        assert {name for names in seen for name in names} <= {"stripes", "weave"}
    else:
        assert seen == [None]


def test_names_of_categories_are_written_as_the_method_does(build):
    batch = {"class_name": ["metal-nut", None]}
    assert build("adaclip").model_inputs(batch) == {"class_name": ["metal nut", "object"]}
    assert build("april-gan").model_inputs(batch) == {"class_name": ["metal-nut", "object"]}


@pytest.mark.parametrize(("key", "settings"), [("april-gan", {}), ("adaclip", {"prompting_branch": "V"})])
def test_remembered_texts_do_not_depend_on_the_precision_of_the_first_call(key, settings):
    """Text embeddings are computed once. Those of mixed precision would stay after a training."""
    pixels = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    found = []
    for first in (torch.bfloat16, None):
        model = create_model(key, "bundled", image_size=SIZE, **SETTINGS.get(key, {}), **settings)
        with torch.no_grad():
            if first is not None:
                with torch.autocast("cpu", first):
                    model(pixels)
            found.append(model(pixels))
    assert torch.equal(found[0].text_embeds, found[1].text_embeds)
    assert torch.equal(found[0].scores, found[1].scores)


@pytest.mark.parametrize("key", TRAINED)
def test_images_without_masks(build, dataset, key):
    """The image loss is trained. APRIL-GAN has none, so it has nothing to learn."""
    images = dataset.remove_columns("mask").add_column("mask", [None] * len(dataset)).cast_column("mask", Image())
    if key == "april-gan":
        with pytest.raises(ValueError, match="No anomalous image has a mask, and APRIL-GAN learns from masks only"):
            build(key, train_dataset=images)
        return
    trainer = build(key, train_dataset=images)
    before = adapters(trainer)
    trainer.train()
    assert {name for name in trainer.state.log_history[0] if name.startswith("loss_")} == {"loss_image"}
    assert any(not torch.equal(before[name], weight) for name, weight in adapters(trainer).items())


@pytest.mark.parametrize("key", TRAINED)
def test_clip_computes_without_dropout_in_training_mode(key):
    clip = bundled_backbone()
    for tower in (clip.config.text_config, clip.config.vision_config):
        tower.attention_dropout = 0.5
    settings = {**METHODS[key].for_state_words, "image_size": SIZE, **SETTINGS.get(key, {})}
    model = METHODS[key].model_class.from_clip(clip, state_word_tokenizer(), **settings)
    assert model.clip.vision_model.encoder.layers[0].self_attn.dropout == 0.5
    pixels = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.train()(pixels)
        assert model.training
        assert torch.equal(found.anomaly_maps, model.eval()(pixels).anomaly_maps)


def test_other_models_are_refused(dataset, tmp_path):
    model = create_model("clip", "bundled", image_size=SIZE)
    args = ViP2ClipTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="The model is a ClipForAnomalyDetection; expected a TrainableBaseline"):
        BaselineTrainer(model, args, ViP2ClipImageProcessor(size=SIZE), dataset)
    with pytest.raises(ValueError, match="method is 'clip', which has nothing to train; expected vip2clip, april-gan"):
        training_kind("clip")


# Checkpoints


@pytest.mark.parametrize("key", TRAINED)
def test_checkpoint(build, key, tmp_path):
    trainer = build(key)
    trainer.train()
    folder = trainer.write(tmp_path / "checkpoint", run={"recipe": {"seed": 7}})
    loaded = AutoModel.from_pretrained(folder)
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = trainer.model.eval()(pixels), loaded(pixels)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.anomaly_maps, expected.anomaly_maps, rtol=0, atol=1e-5)
    assert loaded.provenance.training_sets == trainer.model.provenance.training_sets
    card, method = (folder / "README.md").read_text(encoding="utf-8"), METHODS[key]
    for text in (method.paper, method.code, method.licence, method.name, "14 images", f"- {key}"):
        assert text in card, text
    assert ('class_name="metal nut"' in card) == method.uses_class_names


@pytest.mark.parametrize("key", TRAINED)
def test_adapters_only(build, key, tmp_path):
    trainer = build(key)
    folder = trainer.write(tmp_path / "adapters", adapters_only=True)
    clip = bundled_backbone()
    loaded = trainer.model.__class__.from_pretrained(folder, backbone=clip)
    assert_same_tensors(adapters(trainer), loaded.adapter_state_dict(), tolerance=0)
    assert not any(weight.requires_grad for weight in loaded.clip.parameters())
    with pytest.raises(OSError, match="contains only adapters"):
        AutoModel.from_pretrained(folder)
    with torch.no_grad():
        clip.visual_projection.weight += 0.1
    with pytest.raises(ValueError, match="The backbone is not the one"):
        trainer.model.__class__.from_pretrained(folder, backbone=clip)


def test_methods_without_training_are_saved_complete(tmp_path):
    model = create_model("winclip", "bundled", image_size=SIZE)
    processor = ViP2ClipImageProcessor(size=SIZE)
    with pytest.raises(ValueError, match="adapters_only is True, but WinCLIP has no trained weights"):
        write_baseline(model, processor, tmp_path / "x", adapters_only=True)
    assert not (tmp_path / "x").exists()
    assert "## Training" not in (write_baseline(model, processor, tmp_path / "x") / "README.md").read_text()


def test_a_kept_card_and_other_files(build, tmp_path):
    folder = tmp_path / "checkpoint"
    build("april-gan").write(folder)
    (folder / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("also mine")
    trainer = build("april-gan")
    trainer.write(folder)
    trainer.write_card({})
    assert ((folder / "README.md").read_text(), (folder / "notes.txt").read_text()) == ("mine", "also mine")


def test_weights_that_are_not_finite_are_not_written(build, tmp_path):
    trainer = build("april-gan")
    with torch.no_grad():
        next(weight for weight in trainer.model.parameters() if weight.requires_grad).fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        trainer.write(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


# The command


@pytest.mark.parametrize("key", TRAINED)
def test_recipes(key):
    """`--method` starts from the published recipe; `--recipe` and the command line override it."""
    assert key in RECIPES
    recipe = json.loads(recipe_path(key).read_text())
    model, _, arguments = parse_arguments(["--method", key, "--use_cpu", "true"])
    assert (model.method, model.clip, arguments.adam_beta1) == (key, recipe["clip"], 0.5)
    assert arguments.num_train_epochs == recipe["num_train_epochs"]
    same, _, others = parse_arguments(["--recipe", key, "--num_train_epochs", "2", "--use_cpu", "true"])
    assert (same, others.num_train_epochs) == (model, 2)
    assert parse_arguments(["--use_cpu", "true"])[2].adam_beta1 == 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "april-gan", "--top_k", "3"], "top_k is 3, but april-gan has no such setting"),
        (["--method", "winclip"], "method is 'winclip', which has nothing to train"),
        (["--method", "april-gan", "--perception_learning_rate", "1e-4"], "only ViP²-CLIP has it"),
        (["--method", "april"], "did you mean 'april-gan'"),
        (["--method", "april-gan", "--set", "x"], "--set is 'x'; expected NAME=VALUE"),
        (["--method", "april-gan", "--set", "map_reductoin=mean"], "did you mean 'map_reduction'"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path):
    root = write_training_set(tmp_path / "set")
    data = ["--train_data", str(root), "--clip", "bundled", "--image_size", "64", "--output_dir", str(tmp_path / "o")]
    done = CliRunner().invoke(app, ["train", *arguments, *data, "--use_cpu", "true"])
    assert done.exit_code != 0
    assert message in f"{done.stderr} {done.exception}"
    assert not Path(tmp_path, "o").exists()


def test_settings_are_repeatable(tmp_path):
    """As in `vip2clip convert`. A file comes first, and the last value of a name is used."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"method": "april-gan", "set": ["class_name=part", "map_reduction=sum"]}))
    words = [str(path), "--set", "map_reduction=mean", "--set", "logit_scale=50", "--use_cpu", "true"]
    expected = ["class_name=part", "map_reduction=sum", "map_reduction=mean", "logit_scale=50"]
    assert parse_arguments(words)[0].set == expected
    assert given_arguments(words)["set"] == expected
    assert parse_arguments(["--method", "april-gan", "--use_cpu", "true"])[0].set is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # Their recipes would not be used.
        (["--meth", "april-gan"], "Unknown argument '--meth'; did you mean 'method'"),
        (["--reci", "april-gan"], "Unknown argument '--reci'"),
        (["--recipe", "april-gan", "--method", "adaclip"], "recipe is 'april-gan', but the method is 'adaclip'"),
        (["--recipe", "april-gan", "--method", "vip2clip"], "recipe is 'april-gan', but the method is 'vip2clip'"),
    ],
)
def test_methods_without_their_recipe(words, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([*words, "--use_cpu", "true"])


def test_random_backbone(dataset):
    arguments = ModelArguments(method="april-gan", clip="random-tiny")
    with pytest.raises(ValueError, match="clip is 'random-tiny', which has no text tokenizer"):
        training_kind("april-gan").build(arguments, 1)


def test_command(tmp_path):
    root, folder = write_training_set(tmp_path / "set"), tmp_path / "out"
    options = ["--clip", "bundled", "--image_size", "64", "--feature_layers", "6", "12", "--max_steps", "2"]
    options += ["--set", "map_reduction=mean", "--use_cpu", "true", "--disable_tqdm", "true", "--json", "true"]
    data = ["--train_data", str(root), "--eval_data", str(root), "--output_dir", str(folder)]
    done = CliRunner().invoke(app, ["train", "--method", "april-gan", *data, *options])
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["recipe"]["method"] == "april-gan"
    assert report["results"][0]["trained_on"]
    model = AutoModel.from_pretrained(folder)
    assert (model.config.feature_layers, model.config.map_reduction) == ((6, 12), "mean")
    assert "APRIL-GAN" in (folder / "README.md").read_text()
    assert ModelArguments().method == "vip2clip"
