import copy
import pickle

import pytest
import torch

from helpers.tiny import FIXTURES, RELEASE_LAYERS, assert_same_weights
from vip2clip_hf import ViP2ClipForAnomalyDetection
from vip2clip_hf.cli import main
from vip2clip_hf.models.vip2clip.convert_vip2clip_to_hf import convert_release_checkpoint


CHECKPOINT = FIXTURES / "oracle_release" / "release_checkpoint.pth"
SETTINGS = {"image_size": 98, "feature_layers": RELEASE_LAYERS, "top_k": 5}


@pytest.fixture
def content():
    return torch.load(CHECKPOINT, weights_only=True)


def test_settings_are_read_from_the_tensors(release_model):
    config = release_model.config
    assert (config.num_context_tokens, config.num_object_tokens, config.meta_net_hidden_size) == (7, 3, 48)
    assert (config.bos_token_id, config.eos_token_id) == (49406, 49407)
    assert (config.fgp_num_heads, config.fgp_scaled, config.image_score) == (8, False, "mean_logits")
    assert not release_model.training


def test_no_warning_for_a_genuine_file(release_clip, caplog, recwarn):
    """The file was written by the authors' code. Its entries that the code does not use need no attention."""
    convert_release_checkpoint(CHECKPOINT, release_clip, **SETTINGS)
    assert caplog.records == []
    assert [str(warning.message) for warning in recwarn] == []


def test_unused_entries_are_logged(content, release_clip, caplog):
    content["Zero_try"]["gate"] = torch.ones(3)
    content["prompt_learner"]["epoch"] = 7
    convert_release_checkpoint({**content, "epoch": 7}, release_clip, **SETTINGS)
    assert "Unused entries of the checkpoint: Zero_try.gate, prompt_learner.epoch" in caplog.text
    assert "prompt_temp_l1" not in caplog.text


@pytest.mark.parametrize("parts", [("prompt_learner",), ("Zero_try",), ("prompt_learner", "Zero_try")])
def test_prefix_of_data_parallel(content, release_clip, release_model, caplog, parts):
    for part in parts:
        content[part] = {f"module.{name}": tensor for name, tensor in content[part].items()}
    assert_same_weights(convert_release_checkpoint(content, release_clip, **SETTINGS), release_model)
    assert caplog.records == []
    some = {f"module.{name}" if "ctx" in name else name: tensor for name, tensor in content["prompt_learner"].items()}
    with pytest.raises(ValueError, match=r"The checkpoint lacks "):
        convert_release_checkpoint({**content, "prompt_learner": some}, release_clip, **SETTINGS)


def test_two_different_state_words(content, release_clip):
    """If the mistake in the release was fixed, the normal prompt would contain "good"."""
    table = release_clip.text_model.embeddings.token_embedding.weight
    content["prompt_learner"]["token_middle_pos"] = table[886].detach()[None, None].clone()
    model = convert_release_checkpoint(content, release_clip, **SETTINGS)
    assert (model.config.normal_word, model.config.normal_token_ids) == ("good", (886,))
    assert (model.config.anomalous_word, model.config.anomalous_token_ids) == ("damaged", (13568,))


def test_half_precision_backbone(release_clip, tmp_path):
    release_clip.save_pretrained(tmp_path)
    model = convert_release_checkpoint(CHECKPOINT, tmp_path, **SETTINGS, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.config.normal_token_ids == (13568,)


def test_another_backbone_raises_an_error(content, release_clip, clip):
    with pytest.raises(ValueError, match="joint space of 64 dimensions; expected 16, as in the backbone"):
        convert_release_checkpoint(content, clip)
    for factor in (1.005, 2.0, float("nan")):  # 1.005: the same backbone, trained a little further
        changed = copy.deepcopy(content)
        changed["prompt_learner"]["token_middle_pos"] *= factor
        with pytest.raises(
            ValueError, match="normal state word of the checkpoint is not in the token embeddings of the backbone"
        ):
            convert_release_checkpoint(changed, release_clip, **SETTINGS)


@pytest.mark.parametrize("prompt", ["pos", "neg"])
@pytest.mark.parametrize(("part", "token", "token_id"), [("prefix", "start", 49406), ("suffix", "end", 49407)])
def test_other_start_and_end_tokens(content, release_clip, prompt, part, token, token_id):
    """An embedding that is not in the backbone, that of another token, and one that was trained a little further."""
    key = f"token_{part}_{prompt}"
    other = release_clip.text_model.embeddings.token_embedding.weight[886].detach()
    for row in (torch.randn(96), other, content["prompt_learner"][key][0, 0] * 1.001, torch.full((96,), torch.nan)):
        changed = copy.deepcopy(content)
        changed["prompt_learner"][key][0, 0] = row
        message = (
            rf"prompt_learner\.{key} differs by (nan|[\d.e-]+) .* the embedding of the {token} token {token_id} in"
        )
        with pytest.raises(ValueError, match=message):
            convert_release_checkpoint(changed, release_clip, **SETTINGS)


def test_other_ids_of_start_and_end_tokens(content, release_clip):
    """Ids and embeddings must agree. Without ids, they are those of CLIP."""
    learned = content["prompt_learner"]
    row = release_clip.text_model.embeddings.token_embedding.weight[886].detach()
    for key in ("token_prefix_pos", "token_prefix_neg"):
        learned[key] = row[None, None].clone()
    with pytest.raises(ValueError, match=r"from the embedding of the start token 49406 in the backbone"):
        convert_release_checkpoint(content, release_clip, **SETTINGS)
    learned["tokenized_prompts_pos"][0, 0] = 886
    with pytest.raises(
        ValueError, match=r"ids \[\(886, 49407\), \(49406, 49407\)\] of start and end token; expected the"
    ):
        convert_release_checkpoint(content, release_clip, **SETTINGS)
    learned["tokenized_prompts_neg"][0, 0] = 886
    assert convert_release_checkpoint(content, release_clip, **SETTINGS).config.bos_token_id == 886
    learned["tokenized_prompts_pos"][0, 0] = learned["tokenized_prompts_neg"][0, 0] = 49408
    with pytest.raises(ValueError, match="between 0 and 49407"):
        convert_release_checkpoint(content, release_clip, **SETTINGS)
    del learned["tokenized_prompts_pos"], learned["tokenized_prompts_neg"]
    with pytest.raises(ValueError, match=r"from the embedding of the start token 49406 in the backbone"):
        convert_release_checkpoint(content, release_clip, **SETTINGS)


def test_files_without_ids(content, release_clip):
    del content["prompt_learner"]["tokenized_prompts_pos"], content["prompt_learner"]["tokenized_prompts_neg"]
    config = convert_release_checkpoint(content, release_clip, **SETTINGS).config
    assert (config.bos_token_id, config.eos_token_id) == (49406, 49407)


@pytest.mark.parametrize(
    ("part", "name", "entry", "message"),
    [
        ("prompt_learner", "ctx_pos", 3, r"prompt_learner\.ctx_pos is of type int; expected a tensor"),
        (
            "prompt_learner",
            "token_prefix_pos",
            None,
            r"prompt_learner\.token_prefix_pos is of type NoneType; expected a tensor",
        ),
        ("prompt_learner", "cls_prompter.fc.1.0.bias", "x", r"fc\.1\.0\.bias is of type str; expected a tensor"),
        ("Zero_try", "q_proj_pre.weight", [1.0], r"Zero_try\.q_proj_pre\.weight is of type list; expected a tensor"),
        (
            "prompt_learner",
            "cls_ctx",
            torch.tensor(1.0),
            r"cls_ctx is a torch\.float32 tensor of shape \(\).*2 dimensions",
        ),
        ("prompt_learner", "cls_ctx", torch.zeros(0, 96), r"cls_ctx is a torch\.float32 tensor of shape \(0, 96\)"),
        ("prompt_learner", "ctx_neg", torch.ones(7, 96, dtype=torch.int64), r"ctx_neg is a torch\.int64 tensor"),
        ("prompt_learner", "ctx_neg", torch.ones(7, 96).to_sparse(), r"layout torch\.sparse_coo; expected a dense"),
        ("prompt_learner", "token_middle_pos", torch.zeros(1, 0, 96), r"token_middle_pos is .*\(1, 0, 96\)"),
        ("prompt_learner", "token_prefix_pos", torch.zeros(1, 2, 96), r"shape \(1, 2, 96\); expected \(1, 1, 96\)"),
        ("prompt_learner", "token_suffix_neg", torch.zeros(1, 65, 95), r"shape \(1, 65, 95\); expected \(1, 65, 96\)"),
        ("Zero_try", "k_proj_pre_1.weight", torch.zeros(64, 64), r"k_proj_pre_1\.weight is .* with 3 dimensions"),
    ],
)
def test_entries_that_are_no_weights(content, release_clip, part, name, entry, message):
    content[part][name] = entry
    with pytest.raises(ValueError, match=message):
        convert_release_checkpoint(content, release_clip, **SETTINGS)


def test_incomplete_checkpoints(content, release_clip, tmp_path):
    with pytest.raises(OSError, match=r"absent\.pth' not found"):
        convert_release_checkpoint(tmp_path / "absent.pth", release_clip)
    (tmp_path / "broken.pth").write_bytes(CHECKPOINT.read_bytes()[:5000])
    with pytest.raises(OSError, match="could not be read as tensors"):
        convert_release_checkpoint(tmp_path / "broken.pth", release_clip)
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"prompt_learner and Zero_try, found \['state_dict'\]"):
        convert_release_checkpoint(tmp_path / "other.pth", release_clip)
    del content["prompt_learner"]["cls_prompter.fc.2.0.weight"]
    with pytest.raises(ValueError, match=r"3 object tokens but lacks prompt_learner\.cls_prompter\.fc\.2\.0\.weight"):
        convert_release_checkpoint(content, release_clip)
    del content["Zero_try"]["q_proj_pre.bias"]
    with pytest.raises(ValueError, match=r"lacks Zero_try\.q_proj_pre\.bias"):
        convert_release_checkpoint(content, release_clip)


def test_damaged_tensors(content, release_clip):
    def changed(name, tensor):
        copied = copy.deepcopy(content)
        copied["prompt_learner"][name] = tensor
        return copied

    learned = content["prompt_learner"]
    for damaged, message in (
        (changed("ctx_pos", learned["ctx_pos"] * float("nan")), r"NaN or infinite values in prompt_learner\.ctx_pos"),
        (changed("cls_prompter.fc.0.2.weight", learned["cls_prompter.fc.0.2.weight"].T), r"meta_nets\.0\.2\.weight"),
        (changed("cls_ctx", learned["cls_ctx"][:2]), r"2 object tokens but also contains .*fc\.2\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_release_checkpoint(damaged, release_clip, **SETTINGS)


def test_settings_determined_by_the_file(release_clip):
    for setting in ({"variant": "paper"}, {"num_context_tokens": 5}, {"use_fine_grained_perception": False}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))} cannot be overridden"):
            convert_release_checkpoint(CHECKPOINT, release_clip, **setting)
    with pytest.raises(ValueError, match=r"'topk' is not a field .* did you mean 'top_k'"):
        convert_release_checkpoint(CHECKPOINT, release_clip, topk=5)


NOT_SETTINGS = {
    "calibration": {"method": "recall"}, "image_threshold": 0.1, "pixel_threshold": 0.1, "backbone_id": "org/clip",
    "backbone_revision": "main", "backbone_checksum": "sha256:0", "backbone_dtype": "float32", "adapters_only": True,
    "training_sets": [], "clip_config": {}, "id2label": {0: "a"}, "architectures": ["A"], "transformers_version": "5",
    "initializer_range": 0.1, "normal_word": "good", "anomalous_token_ids": [1], "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_SETTINGS)
def test_fields_that_are_not_settings_of_the_model(name):
    """Refused before anything is loaded: neither file nor backbone exists."""
    with pytest.raises(ValueError, match=rf"{name} cannot be (set in a conversion; expected image_size, |overridden)"):
        convert_release_checkpoint("absent.pth", "absent", **{name: NOT_SETTINGS[name]})


def test_settings_that_can_be_overridden(release_clip):
    settings = {
        "fgp_num_heads": 4, "fgp_scaled": True, "temperature": 0.1, "smoothing_sigma": 2.0,
        "image_score": "pooled_features", "image_embeds_layernorm": True, "position_interpolation": "bicubic",
        "alignment": "dual", "focal_smooth": 0.1, "local_loss_weight": 2.0, "focal_gamma": 1.0,
    }  # fmt: skip
    config = convert_release_checkpoint(CHECKPOINT, release_clip, **SETTINGS, **settings).config
    for name, value in {**SETTINGS, **settings}.items():
        assert getattr(config, name) == value


def test_a_model_as_backbone(release_clip, release_model):
    model = convert_release_checkpoint(CHECKPOINT, release_model, **SETTINGS)
    assert_same_weights(model, release_model)
    first, second = model.clip.visual_projection.weight, release_clip.visual_projection.weight
    assert first.data_ptr() == second.data_ptr()


class Malicious:
    def __reduce__(self):
        return (print, ("code from a checkpoint was run",))


def test_no_code_is_run_from_a_checkpoint(release_clip, tmp_path, capsys):
    with open(tmp_path / "evil.pth", "wb") as file:
        pickle.dump({"prompt_learner": Malicious(), "Zero_try": {}}, file)
    with pytest.raises(OSError, match="could not be read as tensors"):
        convert_release_checkpoint(tmp_path / "evil.pth", release_clip)
    assert "was run" not in capsys.readouterr().out


# The command


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr("sys.argv", ["vip2clip", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0


@pytest.mark.parametrize("adapters_only", [False, True])
def test_command(monkeypatch, capsys, release_clip, release_model, tmp_path, adapters_only):
    release_clip.save_pretrained(tmp_path / "clip")
    flags = ["--adapters-only"] if adapters_only else []
    settings = ("image_size=98", "feature_layers=[1, 3, 4, 6]", "top_k=5", "smoothing_sigma=4")
    code = run(
        monkeypatch, "convert", CHECKPOINT, "--clip", tmp_path / "clip", "--output", tmp_path / "out",
        *flags, *[part for setting in settings for part in ("--set", setting)],
    )  # fmt: skip
    assert code == 0
    assert "Wrote" in capsys.readouterr().out
    backbone = {"backbone": tmp_path / "clip"} if adapters_only else {}
    loaded = ViP2ClipForAnomalyDetection.from_pretrained(tmp_path / "out", **backbone)
    pixel_values = torch.randn(2, 3, 98, 98)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values).anomaly_maps, release_model(pixel_values).anomaly_maps)


@pytest.mark.parametrize(
    ("arguments", "expected_code", "message"),
    [
        (("absent.pth",), 1, "'absent.pth' not found"),
        ((CHECKPOINT, "--set", "top_k"), 2, "expected NAME=VALUE"),
        ((CHECKPOINT, "--set", "=3"), 2, "expected NAME=VALUE"),
        ((CHECKPOINT, "--set", "topk=3"), 1, "did you mean 'top_k'"),
        (
            ("absent.pth", "--set", "adapters_only=true"),
            1,
            "adapters_only cannot be set in a conversion",
        ),
        (("absent.pth", "--set", 'calibration={"method": "recall"}'), 1, "calibration cannot be set"),
        ((CHECKPOINT, "--clip", "org/absent"), 1, "org/absent"),
    ],
)
def test_command_errors_are_short_without_traceback(monkeypatch, capsys, tmp_path, arguments, expected_code, message):
    clip = () if "--clip" in arguments else ("--clip", "org/clip")
    code = run(monkeypatch, "convert", *arguments, *clip, "--output", tmp_path / "out")
    error = capsys.readouterr().err
    assert code == expected_code
    assert error.startswith("Error: " if code == 1 else "Usage: ")
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_command_checks_the_output_folder_first(monkeypatch, capsys, tmp_path):
    (tmp_path / "out").write_text("a file")
    code = run(monkeypatch, "convert", "absent", "--clip", "absent", "--output", tmp_path / "out")
    assert code == 1
    assert "is a file; expected a folder" in capsys.readouterr().err


def test_version_and_help(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip() == "0.1.0"
    assert run(monkeypatch, "convert", "--help") == 0
    assert "Example" in capsys.readouterr().out
