import json
import os
import shutil
from unittest import mock

import pytest
import torch
from huggingface_hub import CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file
from transformers import AutoModel, CLIPModel

from helpers.hub_stub import running_hub
from helpers.tiny import TINY, assert_same_weights, change_weights, put_in_hub_cache
from vip2clip_hf import (
    AnomalyDetectionPipeline,
    ReferenceBank,
    ViP2ClipForAnomalyDetection,
    ViP2ClipImageProcessor,
)
from vip2clip_hf.baselines.methods import create_model
from vip2clip_hf.baselines.saving import write_baseline
from vip2clip_hf.checkpoints import saving as saving_module
from vip2clip_hf.checkpoints.saving import CODE_FILES
from vip2clip_hf.hub.publishing import check_push_access, push_checkpoint, save_checkpoint
from vip2clip_hf.models.vip2clip.backbone_vip2clip import backbone_checksum
from vip2clip_hf.models.vip2clip.configuration_tables_vip2clip import MOVED_FIELDS


FILES = {
    "README.md", "config.json", "decision.json", "provenance.json", "model.safetensors", "preprocessor_config.json",
    *(path.name for path in CODE_FILES),
}  # fmt: skip


@pytest.fixture
def trained(clip_folder):
    """A model with changed adapters, on the unchanged CLIP of a folder."""
    model = ViP2ClipForAnomalyDetection.from_clip(clip_folder, **TINY)
    for part in (model.prompt_learner, model.image_conditioned_adapter, model.fine_grained_perception):
        change_weights(part)
    return model


@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
def test_save_complete_checkpoint(trained, image_processor, tmp_path, photo, max_shard_size):
    folder = save_checkpoint(trained, image_processor, tmp_path / "deep" / "full", max_shard_size=max_shard_size)
    names = {path.name for path in folder.iterdir()}
    if max_shard_size == "5GB":
        assert names == FILES
    else:
        assert names > FILES - {"model.safetensors"}
        assert "model.safetensors.index.json" in names
    loaded = AutoModel.from_pretrained(folder)
    assert_same_weights(loaded, trained)
    detector = AnomalyDetectionPipeline.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        expected = trained(**image_processor(photo, return_tensors="pt")).scores.item()
    assert detector(photo)["score"] == pytest.approx(expected, abs=1e-6)
    config = json.loads((folder / "config.json").read_text())
    assert not set(MOVED_FIELDS) & set(config)
    assert config["auto_map"]["AutoModel"] == "modeling_vip2clip.ViP2ClipForAnomalyDetection"
    assert list(config["custom_pipelines"]) == ["anomaly-detection"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["full"]
    if os.name == "posix":
        reference = tmp_path / "reference"
        reference.touch()
        modes = {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()}
        assert modes == {oct(reference.stat().st_mode & 0o777)}


def test_files_contain_no_local_path(trained, image_processor, tmp_path, clip_folder):
    folder = save_checkpoint(trained, image_processor, tmp_path / "ad", adapters_only=True)
    for path in folder.iterdir():
        if path.suffix in (".json", ".md"):
            assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["folder", "model"])
def test_adapters_only(trained, image_processor, tmp_path, clip_folder, clip, dtype, kind, pixel_values):
    trained.to(dtype)
    reference = backbone_checksum(clip.state_dict(), torch.float32)
    folder = save_checkpoint(trained, image_processor, tmp_path / "ad", adapters_only=True)
    weights = load_file(folder / "model.safetensors")
    assert set(weights) == set(trained.adapter_state_dict())
    assert not any(name.startswith("clip.") for name in weights)
    config = json.loads((folder / "config.json").read_text())
    assert not set(MOVED_FIELDS) & set(config)
    reference_file = json.loads((folder / "backbone.json").read_text())
    assert list(reference_file) == ["backbone_id", "backbone_revision", "checksum", "dtype"]
    assert reference_file["checksum"].startswith("sha256:")
    assert reference_file["dtype"] == str(dtype).removeprefix("torch.")
    backbone = clip_folder if kind == "folder" else clip
    loaded = AutoModel.from_pretrained(folder, backbone=backbone)
    assert_same_weights(loaded, trained)
    assert {p.dtype for p in loaded.clip.parameters()} == {dtype}
    assert {t.dtype for t in loaded.adapter_state_dict().values()} == {torch.float32}
    assert not any(p.requires_grad for p in loaded.clip.parameters())
    assert all(p.requires_grad for p in clip.parameters())
    if kind == "folder" or dtype != torch.float32:  # else the weights are shared, see test_backbone_vip2clip.py
        change_weights(loaded.clip)
    assert backbone_checksum(clip.state_dict(), torch.float32) == reference  # the model that was passed did not change
    loaded = AutoModel.from_pretrained(folder, backbone=backbone)
    loaded.save_pretrained(tmp_path / "again")  # a complete checkpoint again
    assert_same_weights(AutoModel.from_pretrained(tmp_path / "again"), trained)
    detector = AnomalyDetectionPipeline.from_pretrained(folder, backbone=backbone, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(
            detector.model(pixel_values.to(dtype)).scores, trained(pixel_values.to(dtype)).scores
        )


def test_a_complete_checkpoint_replaces_adapters(trained, image_processor, tmp_path, clip):
    """`backbone.json` makes a checkpoint adapters-only, so it must not remain."""
    for save in (
        lambda folder: save_checkpoint(trained, image_processor, folder),
        lambda folder: trained.save_pretrained(folder),
    ):
        folder = save_checkpoint(trained, image_processor, tmp_path / "ck", adapters_only=True)
        save(folder)
        assert not (folder / "backbone.json").exists()
        assert_same_weights(AutoModel.from_pretrained(folder), trained)
    save_checkpoint(trained, image_processor, tmp_path / "ad", adapters_only=True)
    shutil.copy(tmp_path / "ad" / "backbone.json", folder)
    with pytest.raises(ValueError, match=r"contains its own CLIP model, .*; remove backbone\.json"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("provenance.json", {"backbone_id": "/home/someone/clip"}, ValueError, "a Hub id .* not a path"),
        ("provenance.json", {"training_sets": {}}, ValueError, r"training_sets is \{\}; expected a list of dicts"),
        ("provenance.json", {"colour": 1}, ValueError, "'colour' is not a field of Provenance"),
        ("backbone.json", {"dtype": "int4"}, ValueError, "dtype is 'int4'; expected one of float32"),
        ("backbone.json", {"checksum": 1}, ValueError, "checksum is 1; expected a string"),
        ("backbone.json", [], OSError, "not a valid JSON file"),
    ],
)
def test_invalid_files(trained, image_processor, tmp_path, clip, file, content, error, message):
    folder = save_checkpoint(trained, image_processor, tmp_path / "ad", adapters_only=True)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(error, match=rf"{file} is not .*{message}|{message}"):
        AutoModel.from_pretrained(folder, backbone=clip)


def test_adapters_only_loads_its_backbone(clip_folder, image_processor, tmp_path):
    cache = tmp_path / "cache"
    commit = put_in_hub_cache(clip_folder, "org/clip", cache)
    model = ViP2ClipForAnomalyDetection.from_clip("org/clip", **TINY, cache_dir=cache)
    change_weights(model.prompt_learner)
    folder = save_checkpoint(model, image_processor, tmp_path / "ad", adapters_only=True)
    for name in ("backbone.json", "provenance.json"):
        saved = json.loads((folder / name).read_text())
        assert (saved["backbone_id"], saved["backbone_revision"]) == ("org/clip", commit)
    assert_same_weights(ViP2ClipForAnomalyDetection.from_pretrained(folder, cache_dir=cache), model)
    with pytest.raises(OSError, match=r"(?s)only adapters; pass backbone=.*'org/clip' could not be loaded"):
        ViP2ClipForAnomalyDetection.from_pretrained(folder, cache_dir=tmp_path / "elsewhere")
    put_in_hub_cache(folder, "org/vip2clip", cache, "b" * 40)
    assert_same_weights(AutoModel.from_pretrained("org/vip2clip", cache_dir=cache), model)
    card = (folder / "README.md").read_text()
    assert "base_model: org/clip" in card


def test_adapters_only_loads_the_revision_of_its_backbone(clip, clip_folder, image_processor, tmp_path):
    """The repository of the backbone has a newer commit than the one used in training."""
    cache = tmp_path / "cache"
    commit = put_in_hub_cache(clip_folder, "org/clip", cache)
    model = ViP2ClipForAnomalyDetection.from_clip("org/clip", **TINY, cache_dir=cache)
    folder = save_checkpoint(model, image_processor, tmp_path / "ad", adapters_only=True)
    change_weights(clip)
    clip.save_pretrained(tmp_path / "newer")
    newer = "c" * 40
    shutil.copytree(tmp_path / "newer", cache / "models--org--clip" / "snapshots" / newer)
    (cache / "models--org--clip" / "refs" / "main").write_text(newer)
    assert_same_weights(ViP2ClipForAnomalyDetection.from_pretrained(folder, cache_dir=cache), model)
    assert commit != newer


def test_hub_id_of_a_model_is_saved(clip_folder, image_processor, tmp_path):
    put_in_hub_cache(clip_folder, "org/clip", tmp_path / "cache")
    clip = CLIPModel.from_pretrained("org/clip", cache_dir=tmp_path / "cache")
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY)
    assert model.provenance.backbone_id == "org/clip"
    folder = save_checkpoint(model, image_processor, tmp_path / "ad", adapters_only=True)
    assert_same_weights(AutoModel.from_pretrained(folder, cache_dir=tmp_path / "cache"), model)


@pytest.mark.parametrize("adapters_only", [True, False])
def test_damaged_weights(trained, image_processor, tmp_path, clip_folder, adapters_only):
    folder = save_checkpoint(trained, image_processor, tmp_path / "ck", adapters_only=adapters_only)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    backbone = {"backbone": clip_folder} if adapters_only else {}
    with pytest.raises(OSError, match=r"Checkpoint '.*ck' could not be loaded"):
        AutoModel.from_pretrained(folder, **backbone)
    (clip_folder / "model.safetensors").write_bytes(b"\x01")
    with pytest.raises(OSError, match=r"CLIP checkpoint '.*clip' could not be loaded"):
        ViP2ClipForAnomalyDetection.from_clip(clip_folder, **TINY)


def test_backbone_without_checksum(trained, image_processor, tmp_path, clip):
    folder = save_checkpoint(trained, image_processor, tmp_path / "ad", adapters_only=True)
    saved = json.loads((folder / "backbone.json").read_text())
    (folder / "backbone.json").write_text(json.dumps({**saved, "checksum": None}))
    with pytest.raises(ValueError, match="contains no checksum of its CLIP backbone"):
        AutoModel.from_pretrained(folder, backbone=clip)


def test_adapters_are_never_sharded(trained, image_processor, tmp_path, clip):
    folder = save_checkpoint(trained, image_processor, tmp_path / "ad", adapters_only=True, max_shard_size="1KB")
    assert_same_weights(AutoModel.from_pretrained(folder, backbone=clip), trained)


def test_adapters_only_keeps_overrides(trained, image_processor, tmp_path, clip_folder):
    folder = save_checkpoint(trained, image_processor, tmp_path / "ad", adapters_only=True)
    loaded = ViP2ClipForAnomalyDetection.from_pretrained(
        folder, backbone=clip_folder, top_k=2, dtype=torch.bfloat16, attn_implementation="eager"
    )
    assert loaded.config.top_k == 2
    assert loaded.dtype == torch.bfloat16
    assert loaded.clip.text_model.config._attn_implementation == "eager"
    assert loaded.name_or_path == str(folder)


def test_missing_backbone(trained, image_processor, tmp_path):
    folder = save_checkpoint(trained, image_processor, tmp_path / "ad", adapters_only=True)
    with pytest.raises(OSError, match=r"only adapters and no Hub id of its CLIP backbone; pass backbone="):
        AutoModel.from_pretrained(folder)
    with pytest.raises(OSError, match="absent"):
        AutoModel.from_pretrained(folder, backbone=tmp_path / "absent")


def test_wrong_backbone(trained, image_processor, tmp_path, clip):
    folder = save_checkpoint(trained, image_processor, tmp_path / "ad", adapters_only=True)
    with torch.no_grad():
        clip.text_projection.weight[0, 0] += 1e-4
    with pytest.raises(ValueError, match=r"not the one .* was trained on: expected .* checksum sha256:\w+, found sha"):
        AutoModel.from_pretrained(folder, backbone=clip)


def test_backbone_for_a_complete_checkpoint(trained, image_processor, tmp_path, clip):
    folder = save_checkpoint(trained, image_processor, tmp_path / "full")
    with pytest.raises(ValueError, match="contains its own CLIP model"):
        AutoModel.from_pretrained(folder, backbone=clip)


def test_incomplete_backbone(trained, image_processor, tmp_path, clip):
    folder = save_checkpoint(trained, image_processor, tmp_path / "ad", adapters_only=True)
    weights = {k: v for k, v in clip.state_dict().items() if "visual_projection" not in k}
    clip.save_pretrained(tmp_path / "part", state_dict=weights)
    with pytest.raises(RuntimeError, match=r"lacks 1 weights \(visual_projection"):
        AutoModel.from_pretrained(folder, backbone=tmp_path / "part")


def test_incomplete_adapters(trained, image_processor, tmp_path, clip_folder):
    folder = save_checkpoint(trained, image_processor, tmp_path / "ad", adapters_only=True)
    with mock.patch.object(type(trained), "adapter_state_dict", return_value={"x": torch.zeros(1)}):
        save_checkpoint(trained, image_processor, folder, adapters_only=True)
    with pytest.raises(RuntimeError, match="lacks 24 of the model's weights"):
        AutoModel.from_pretrained(folder, backbone=clip_folder)


def test_checksum(clip):
    weights = clip.state_dict()
    reference = backbone_checksum(weights, torch.float32)
    assert backbone_checksum(dict(reversed(weights.items())), torch.float32) == reference
    halved = {k: v.half() for k, v in weights.items()}
    assert backbone_checksum(halved, torch.float32) != reference  # other values
    assert backbone_checksum(halved, torch.float16) == backbone_checksum(weights, torch.float16)
    name = "visual_projection.weight"  # the same bytes in another shape are another weight
    reshaped = weights[name].reshape(weights[name].shape[::-1])
    assert backbone_checksum({**weights, name: reshaped}, torch.float32) != reference


# Existing folders


def test_other_files_are_kept_and_old_weights_deleted(trained, image_processor, tmp_path):
    folder = save_checkpoint(trained, image_processor, tmp_path / "ck", max_shard_size="100KB")
    shards = len(list(folder.glob("model-*.safetensors")))
    assert shards > 1
    (folder / "notes.txt").write_text("mine")
    (folder / "checkpoint-5").mkdir()
    change_weights(trained)
    save_checkpoint(trained, image_processor, folder)
    assert {path.name for path in folder.iterdir()} == FILES | {"notes.txt", "checkpoint-5"}
    assert (folder / "notes.txt").read_text() == "mine"
    assert_same_weights(AutoModel.from_pretrained(folder), trained)
    save_checkpoint(trained, image_processor, folder, max_shard_size="100KB")
    assert not (folder / "model.safetensors").exists()
    assert_same_weights(AutoModel.from_pretrained(folder), trained)


def test_edited_model_card_is_kept(trained, image_processor, tmp_path):
    folder = save_checkpoint(trained, image_processor, tmp_path / "ck", adapters_only=True)
    assert "folder as `backbone=`" in (folder / "README.md").read_text()
    save_checkpoint(trained, image_processor, folder)
    assert "the adapters and the frozen CLIP backbone" in (folder / "README.md").read_text()  # written again
    old_marker = "<!-- generated by vip2clip_hf; without this line it is kept as it is -->"  # of earlier versions
    (folder / "README.md").write_text(f"{old_marker}\n\n# Old card")
    save_checkpoint(trained, image_processor, folder)
    assert "# Old card" not in (folder / "README.md").read_text()
    (folder / "README.md").write_text("# My detector")
    save_checkpoint(trained, image_processor, folder)
    assert (folder / "README.md").read_text() == "# My detector"


@pytest.mark.parametrize("call", range(1, 13))
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_error_while_moving_is_undone(trained, image_processor, tmp_path, call, error):
    """Replace a single file by shards and fail at each move in turn: the old checkpoint remains complete."""
    folder = save_checkpoint(trained, image_processor, tmp_path / "ck")
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    change_weights(trained)
    moves, replace = [], os.replace

    def failing(source, target):
        moves.append(target)
        if len(moves) == call:
            raise error("stopped")
        replace(source, target)

    with mock.patch.object(saving_module.os, "replace", failing), pytest.raises(error, match="stopped"):
        save_checkpoint(trained, image_processor, folder, max_shard_size="100KB")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("exists", [True, False])
def test_error_while_writing_changes_nothing(trained, image_processor, tmp_path, exists):
    folder = tmp_path / "ck"
    if exists:
        save_checkpoint(trained, image_processor, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()} if exists else {}
    change_weights(trained)
    with (
        mock.patch.object(saving_module, "model_card", side_effect=OSError("disk full")),
        pytest.raises(OSError, match="disk full"),
    ):
        save_checkpoint(trained, image_processor, folder)
    if exists:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name != "clip"] == (["ck"] if exists else [])


def test_invalid_targets(trained, image_processor, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is a file; expected a folder"):
        save_checkpoint(trained, image_processor, tmp_path / "file")
    (tmp_path / "in the way" / "README.md").mkdir(parents=True)
    with pytest.raises(OSError, match=r"README\.md' is a folder"):
        save_checkpoint(trained, image_processor, tmp_path / "in the way")
    with pytest.raises(ValueError, match=r"images of size .*64.*the model takes .*48"):
        save_checkpoint(trained, ViP2ClipImageProcessor(size=64), tmp_path / "ck")
    with torch.no_grad():
        trained.prompt_learner.normal_context[0, 0] = float("nan")
    with pytest.raises(
        ValueError, match=r"NaN or infinite values in prompt_learner\.normal_context.*training has diverged"
    ):
        save_checkpoint(trained, image_processor, tmp_path / "ck")
    assert not (tmp_path / "ck").exists()


# Publishing, with the functions of HfApi replaced


def test_push_to_hub(trained, image_processor, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # then upload_folder calls create_commit
    monkeypatch.setattr(HfApi, "_validate_yaml", lambda *args, **kwargs: None)
    repo = mock.Mock(repo_id="org/detector")
    published = ["model.safetensors", "README.md", "model-00001-of-00009.safetensors"]
    with (
        mock.patch.object(HfApi, "create_repo", return_value=repo) as create,
        mock.patch.object(HfApi, "create_commit") as commit,
        mock.patch.object(HfApi, "list_repo_files", return_value=published),
    ):
        folder = tmp_path / "detector"
        folder.mkdir()
        (folder / "secret.txt").write_text("not to be published")
        save_checkpoint(trained, image_processor, folder)
        create.assert_not_called()
        save_checkpoint(trained, image_processor, folder, push_to_hub="org/detector", private=True)
        create.assert_called_once_with("org/detector", private=True, exist_ok=True)
        arguments = commit.call_args.kwargs
        assert arguments["repo_id"] == "org/detector"
        assert {operation.path_in_repo for operation in arguments["operations"]} == FILES
        save_checkpoint(trained, image_processor, folder, push_to_hub=True)
        assert create.call_args.args == ("detector",)
        # An old model.safetensors on the Hub would be loaded instead of the shards.
        save_checkpoint(trained, image_processor, folder, push_to_hub=True, max_shard_size="100KB")
        deleted = [o for o in commit.call_args.kwargs["operations"] if isinstance(o, CommitOperationDelete)]
        assert {operation.path_in_repo for operation in deleted} == {published[0], published[2]}


# Publishing to a stub of the Hub


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield hub


@pytest.mark.parametrize("xet", [True, False])
def test_push_to_the_stub(trained, image_processor, tmp_path, monkeypatch, hub, xet):
    """The checkpoint's files, and nothing else, in one commit. With hf_xet, upload_folder takes another way."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", not xet)
    folder = tmp_path / "detector"
    (folder / "checkpoint-5").mkdir(parents=True)
    for other in ("secret.txt", "results.json", "checkpoint-5/model.safetensors", "checkpoint-5/config.json"):
        (folder / other).write_text("not to be published")
    save_checkpoint(trained, image_processor, folder, push_to_hub="org/detector", private=True)
    published = hub.repositories["org/detector"]
    assert published == {name: (folder / name).read_bytes() for name in FILES}
    assert (hub.private, hub.commits) == ({"org/detector": True}, ["Upload ViP²-CLIP checkpoint"])
    # A second time: the repository exists, and has a file of somebody else.
    published["notes/model.safetensors"] = b"kept"
    change_weights(trained.prompt_learner)
    save_checkpoint(trained, image_processor, folder, push_to_hub="org/detector", max_shard_size="100KB")
    assert len(hub.commits) == 2
    names = {path.name for path in folder.iterdir() if path.is_file()} - {"secret.txt", "results.json"}
    assert set(published) == names | {"notes/model.safetensors"}
    assert "model.safetensors" not in names  # deleted: it would be loaded instead of the shards
    assert check_push_access("org/detector", token="hf_none") is None
    hub.refuse = True
    for call in (push_checkpoint, lambda folder, name: check_push_access(name, token="hf_none")):
        with pytest.raises(HfHubHTTPError, match="403"):
            call(folder, "org/detector")


def test_references_are_published(trained, image_processor, photo, tmp_path, hub):
    """Both files are published with the checkpoint, and deleted with a later one without references."""
    trained.references = ReferenceBank.from_images(trained, image_processor, [photo, photo.rotate(90)])
    save_checkpoint(trained, image_processor, tmp_path / "part", push_to_hub="org/part")
    published = hub.repositories["org/part"]
    assert set(published) == FILES | {"references.json", "references.safetensors"}
    card = published["README.md"].decode()
    assert "## References" in card
    assert "compares images with 2 photos of good parts" in card
    assert "Privacy: the photos are not included, but features" in card
    trained.references = None
    save_checkpoint(trained, image_processor, tmp_path / "part", push_to_hub="org/part")
    assert set(published) == FILES
    assert "## References" not in published["README.md"].decode()


def test_other_methods_are_published_with_their_tokenizer(trained, image_processor, tmp_path, hub):
    """Also over a checkpoint of ViP²-CLIP, of which nothing is left that the other method would read."""
    folder, processor = tmp_path / "part", ViP2ClipImageProcessor(size=64)
    save_checkpoint(trained, image_processor, folder, push_to_hub="org/part")
    write_baseline(create_model("april-gan", "bundled", image_size=64), processor, folder)
    names = {path.name for path in folder.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    assert not names & {"decision.json", "modeling_vip2clip.py"}
    push_checkpoint(folder, "org/part")
    published = hub.repositories["org/part"]
    assert "decision.json" not in published
    assert names <= set(published)
    assert {name: published[name] for name in names} == {name: (folder / name).read_bytes() for name in names}


def test_push_a_folder_without_checkpoint(tmp_path):
    with pytest.raises(OSError, match=r"does not contain config\.json; expected a folder written by save_checkpoint"):
        push_checkpoint(tmp_path, "org/detector")
