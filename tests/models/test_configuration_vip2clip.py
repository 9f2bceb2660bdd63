import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassError
from transformers import AutoConfig, BertConfig, CLIPConfig

from helpers.tiny import tiny_clip_config, tiny_config
from vip2clip_hf import ViP2ClipConfig


def test_defaults_follow_the_paper():
    config = ViP2ClipConfig()
    vision = config.clip_config.vision_config
    assert (vision.num_hidden_layers, vision.hidden_size, vision.patch_size, vision.image_size) == (24, 1024, 14, 336)
    assert config.patch_grid == 37
    assert config.prompt_lengths == (13, 13)
    assert (config.normal_token_ids, config.anomalous_token_ids) == ((886,), (13568,))
    assert config.to_dict() == ViP2ClipConfig.from_variant("paper").to_dict()
    assert config.id2label == {0: "normal", 1: "anomalous"}


def test_release_variant():
    config = ViP2ClipConfig.from_variant("release", top_k=7)
    assert (config.fgp_num_heads, config.fgp_scaled) == (8, False)
    assert (config.image_score, config.image_embeds_layernorm, config.focal_smooth) == ("mean_logits", False, 1e-5)
    assert config.normal_word == config.anomalous_word == "damaged"
    assert config.normal_token_ids == config.anomalous_token_ids == (13568,)
    assert config.top_k == 7
    with pytest.raises(ValueError, match=r"variant is 'draft'; expected 'paper' or 'release'\."):
        ViP2ClipConfig.from_variant("draft")


def test_round_trip(tmp_path):
    config = tiny_config(
        "release", normal_word=None, normal_token_ids=(5, 6), bos_token_id=3, eos_token_id=4, temperature=1
    )
    config.save_pretrained(tmp_path)
    for loaded in (ViP2ClipConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
        assert isinstance(loaded.clip_config, CLIPConfig)
        assert loaded.feature_layers == (1, 2, 4)
        assert (loaded.normal_token_ids, loaded.bos_token_id, loaded.eos_token_id) == ((5, 6), 3, 4)


def test_no_local_path_is_saved(tmp_path):
    clip_config = tiny_clip_config()
    clip_config.name_or_path = clip_config.vision_config.name_or_path = "/home/someone/clip"
    config = tiny_config(clip_config=clip_config)
    config.save_pretrained(tmp_path)
    assert "someone" not in (tmp_path / "config.json").read_text()
    assert clip_config.name_or_path == "/home/someone/clip"  # the caller's configuration is not changed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_size": 50}, r"image_size is 50; expected .* patch size 8 \(nearest: 48, 56\)"),
        ({"image_size": 0}, "image_size is 0"),
        ({"feature_layers": (2, 5)}, r"feature_layers is \(2, 5\); expected distinct block numbers from 1 to 4"),
        ({"feature_layers": (0, 1)}, "feature_layers"),
        ({"feature_layers": (2, 2)}, r"feature_layers is \(2, 2\); expected distinct block numbers"),
        ({"feature_layers": ()}, "feature_layers"),
        ({"num_context_tokens": 0}, "num_context_tokens is 0; expected an integer of at least 1"),
        ({"num_object_tokens": 0}, "num_object_tokens"),
        ({"num_context_tokens": 75}, "prompt of 81 tokens; expected at most 77"),
        ({"meta_net_hidden_size": 0}, "meta_net_hidden_size"),
        ({"fgp_num_heads": 3}, "fgp_num_heads is 3; expected a divisor of the projection size 16"),
        ({"top_k": 37}, "top_k is 37; expected an integer from 1 to 36"),
        ({"top_k": 0}, "top_k is 0"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number of at least 0.0001"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"smoothing_sigma": -1.0}, "smoothing_sigma"),
        ({"smoothing_sigma": float("inf")}, "smoothing_sigma"),
        ({"smoothing_sigma": 49.0}, "between 0 and 48"),
        ({"local_loss_weight": -1.0}, "local_loss_weight"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
        ({"focal_smooth": 0.5}, "focal_smooth"),
        ({"normal_word": "shiny"}, "normal_token_ids is None and normal_word is 'shiny'.*flawless.*tokenizer"),
        ({"normal_token_ids": ()}, "normal_token_ids"),
        ({"normal_word": "flawless", "normal_token_ids": (886,)}, r"'flawless'.*\(886,\); expected \(15531,\)"),
        ({"anomalous_token_ids": (50000,), "anomalous_word": None}, "between 0 and 49407"),
        ({"eos_token_id": -1}, "eos_token_id is -1; expected a token id between 0 and 49407"),
        ({"image_score": "maximum"}, "image_score.*pooled_features.*mean_logits.*maximum"),
        ({"position_interpolation": "nearest"}, "position_interpolation"),
        ({"alignment": "single"}, "alignment"),
        ({"fgp_scaled": "yes"}, "fgp_scaled"),
        ({"temperature": "0.07"}, "temperature"),
        ({"top_k": 2.5}, "top_k"),
    ],
)
def test_errors_contain_field_value_and_expected_values(overrides, message):
    with pytest.raises(StrictDataclassError, match=f"(?s){message}"):
        tiny_config(**overrides)


def test_overrides_on_loading_are_checked(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert ViP2ClipConfig.from_pretrained(tmp_path, top_k=3).top_k == 3
    loaded, unused = ViP2ClipConfig.from_pretrained(
        tmp_path, feature_layers=[3, 1], other=5, return_unused_kwargs=True
    )
    assert loaded.feature_layers == (1, 3)
    assert unused == {"other": 5}
    with pytest.raises(ValueError, match="top_k is 99"):
        ViP2ClipConfig.from_pretrained(tmp_path, top_k=99)
    with pytest.raises(ValueError, match=r"image_size is 48; expected a positive multiple .* 32"):
        ViP2ClipConfig.from_pretrained(tmp_path, clip_config={"vision_config": {"patch_size": 32}})


def test_word_and_ids_are_overridden_together(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    loaded = ViP2ClipConfig.from_pretrained(tmp_path, normal_word="flawless")
    assert (loaded.normal_word, loaded.normal_token_ids) == ("flawless", (15531,))
    assert (loaded.anomalous_word, loaded.anomalous_token_ids) == ("damaged", (13568,))
    loaded = ViP2ClipConfig.from_pretrained(tmp_path, anomalous_token_ids=[5, 6])
    assert (loaded.anomalous_word, loaded.anomalous_token_ids) == (None, (5, 6))
    with pytest.raises(ValueError, match="normal_word is 'zebra'"):
        ViP2ClipConfig.from_pretrained(tmp_path, normal_word="zebra")
    config = tiny_config(normal_token_ids=(5,))
    assert (config.normal_word, config.normal_token_ids) == (None, (5,))


def test_layers_are_sorted():
    assert tiny_config(feature_layers=[4, 1, 2]).feature_layers == (1, 2, 4)


def test_errors_are_value_errors():
    with pytest.raises(ValueError, match="top_k is 99"):
        tiny_config(top_k=99)
    with pytest.raises(StrictDataclassClassValidationError, match="top_k is 99"):
        tiny_config(top_k=99)


def test_unknown_names_raise_an_error():
    with pytest.raises(ValueError, match=r"'topk' is not a field of ViP2ClipConfig; did you mean 'top_k'\?"):
        ViP2ClipConfig.from_variant("release", topk=5)


def test_a_folder_without_configuration_raises_an_error(tmp_path):
    """Without an error, transformers would use the defaults, a ViT-L/14 in the paper variant."""
    with pytest.raises(ValueError, match="found model_type None"):
        ViP2ClipConfig.from_pretrained(tmp_path)


def test_entries_for_remote_code_are_dropped_by_the_package(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["auto_map"] = {"AutoConfig": "configuration_vip2clip.ViP2ClipConfig"}
    content["custom_pipelines"] = {"anomaly-detection": {}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    loaded = ViP2ClipConfig.from_pretrained(tmp_path)
    assert not hasattr(loaded, "auto_map")
    assert not hasattr(loaded, "custom_pipelines")


def test_assignment_is_type_checked():
    config = tiny_config()
    with pytest.raises(StrictDataclassError, match="top_k"):
        config.top_k = "many"


@pytest.mark.parametrize("word", ["normal", "abnormal", "perfect", "flawed", "flawless", "imperfect"])
def test_words_of_table_6_need_no_tokenizer(word):
    assert len(tiny_config(anomalous_word=word).anomalous_token_ids) == 1


def test_known_ids_are_only_used_with_the_vocabulary_of_clip():
    small = tiny_clip_config()
    small.text_config.vocab_size = 20000
    with pytest.raises(StrictDataclassError, match="normal_token_ids is None"):
        tiny_config(clip_config=small, bos_token_id=1, eos_token_id=2)
    tiny_config(clip_config=small, bos_token_id=1, eos_token_id=2, normal_token_ids=(3,), anomalous_token_ids=(4, 5))


@pytest.mark.parametrize(
    ("other", "message"), [(BertConfig(), "found model_type 'bert'"), (tiny_clip_config(), "from_clip")]
)
def test_another_model_type_raises_an_error(tmp_path, other, message):
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        ViP2ClipConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("old", ["num_image_tokens", "perception_num_heads", "perception_scaled"])
def test_old_names_are_only_read_from_files(old):
    with pytest.raises(ValueError, match=f"'{old}' is not a field; expected its new name"):
        ViP2ClipConfig(**{old: 1})


@pytest.mark.parametrize("name", ["projection_dim", "patch_size", "text_config", "vision_config", "hidden_size"])
def test_fields_of_other_configurations_are_kept(name):
    """A configuration keeps unknown fields, like those of transformers, also with names known from CLIP."""
    content = {**tiny_config().to_dict(), name: 8}
    assert getattr(ViP2ClipConfig.from_dict(content), name) == 8


def test_file_is_readable_json(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["model_type"] == "vip2clip"
    assert content["feature_layers"] == [1, 2, 4]


@pytest.mark.parametrize(
    ("entry", "message"),
    [({"top_k": "many"}, "'top_k' expected int"), ({"image_size": 321}, "image_size is 321; expected a positive")],
)
def test_errors_name_the_checkpoint(tmp_path, entry, message):
    ViP2ClipConfig().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entry}))
    with pytest.raises(StrictDataclassError, match=message) as found:
        AutoConfig.from_pretrained(tmp_path)
    assert str(found.value).startswith(f"config.json of {str(tmp_path)!r}: ")
    with pytest.raises(StrictDataclassError, match=message) as found:
        ViP2ClipConfig.from_pretrained(tmp_path)
    assert str(found.value).startswith(f"config.json of {str(tmp_path)!r}: ")


def test_errors_of_arguments_do_not_blame_the_file(tmp_path):
    ViP2ClipConfig().save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="image_size is 321") as found:
        AutoConfig.from_pretrained(tmp_path, image_size=321)
    assert "config.json" not in str(found.value)


def test_misspelled_entries_are_named(tmp_path, caplog):
    ViP2ClipConfig().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    AutoConfig.from_pretrained(tmp_path)
    assert not caplog.records
    file.write_text(json.dumps({**content, "smoothing_sigmas": 4, "note_of_the_author": 1}))
    AutoConfig.from_pretrained(tmp_path)
    (record,) = caplog.records
    assert "smoothing_sigmas is not a field and has no effect; did you mean smoothing_sigma?" in record.getMessage()
