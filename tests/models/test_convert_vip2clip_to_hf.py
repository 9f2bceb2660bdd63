import copy
import pickle

import pytest
import torch

from helpers.tiny import FIXTURES, RELEASE_LAYERS
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
    assert (config.num_context_tokens, config.num_image_tokens, config.meta_net_hidden_size) == (7, 3, 48)
    assert (config.bos_token_id, config.eos_token_id) == (49406, 49407)
    assert (config.perception_num_heads, config.perception_scaled, config.image_score) == (8, False, "mean_logits")
    assert not release_model.training


def test_unused_entries_are_logged(release_clip, caplog):
    convert_release_checkpoint(CHECKPOINT, release_clip, **SETTINGS)
    assert (
        "Unused entries of the checkpoint: Zero_try.prompt_temp_l1, prompt_learner.tokenized_prompts_neg"
        in caplog.text
    )


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
    with pytest.raises(ValueError, match=r"3 image tokens but lacks prompt_learner\.cls_prompter\.fc\.2\.0\.weight"):
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
        (changed("cls_ctx", learned["cls_ctx"][:2]), r"2 image tokens but also contains .*fc\.2\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_release_checkpoint(damaged, release_clip, **SETTINGS)


def test_settings_determined_by_the_file(release_clip):
    for setting in ({"variant": "paper"}, {"num_context_tokens": 5}, {"use_fine_grained_perception": False}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))} cannot be overridden"):
            convert_release_checkpoint(CHECKPOINT, release_clip, **setting)
    with pytest.raises(ValueError, match=r"'topk' is not a field .* did you mean 'top_k'"):
        convert_release_checkpoint(CHECKPOINT, release_clip, topk=5)


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
        monkeypatch, "convert", "--checkpoint", CHECKPOINT, "--clip", tmp_path / "clip", "--output", tmp_path / "out",
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
        (("--checkpoint", "absent.pth"), 1, "'absent.pth' not found"),
        (("--checkpoint", CHECKPOINT, "--set", "top_k"), 2, "expected NAME=VALUE"),
        (("--checkpoint", CHECKPOINT, "--set", "=3"), 2, "expected NAME=VALUE"),
        (("--checkpoint", CHECKPOINT, "--set", "topk=3"), 1, "did you mean 'top_k'"),
        (("--checkpoint", CHECKPOINT, "--clip", "org/absent"), 1, "org/absent"),
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
    code = run(monkeypatch, "convert", "--checkpoint", "absent", "--clip", "absent", "--output", tmp_path / "out")
    assert code == 1
    assert "is a file; expected a folder" in capsys.readouterr().err


def test_version_and_help(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip() == "0.1.0"
    assert run(monkeypatch, "convert", "--help") == 0
    assert "Example" in capsys.readouterr().out
