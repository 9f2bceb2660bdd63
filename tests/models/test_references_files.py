"""Files of references: saving, loading, damage, interruption, and checkpoints that carry them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.references import part, parts
from helpers.tiny import TINY
from vip2clip_hf import ReferenceBank, ViP2ClipForAnomalyDetection
from vip2clip_hf.hub.publishing import save_checkpoint
from vip2clip_hf.models.vip2clip import reference_files_vip2clip as files


NAMES = {"references.json", "references.safetensors"}


@pytest.fixture
def bank(model, image_processor):
    return ReferenceBank.from_images(model, image_processor, parts(4))


@pytest.fixture
def folder(bank, tmp_path):
    bank.save_pretrained(tmp_path / "deep" / "bank")
    return tmp_path / "deep" / "bank"


def test_save_and_load(bank, folder):
    assert {path.name for path in folder.iterdir()} == NAMES
    for source in (folder, str(folder), folder / "references.json"):
        loaded = ReferenceBank.from_pretrained(source)
        assert loaded.checksum() == bank.checksum()
        assert loaded.photos == bank.photos
        assert (loaded.weight, loaded.image_level, loaded.pixel_level) == (
            bank.weight, bank.image_level, bank.pixel_level
        )  # fmt: skip
    content = json.loads((folder / "references.json").read_text())
    assert content["photos"][0] == {"name": "photo 1", "sha256": bank.photos[0].sha256, "height": 48, "width": 48}
    assert content["version"] == files.VERSION
    assert content["options"]["max_patches"] == 100_000


def test_the_checksum_depends_on_photos_and_options(bank, model, image_processor):
    build = ReferenceBank.from_images
    assert build(model, image_processor, parts(4)).checksum() == bank.checksum()
    others = [
        bank.without("photo 1"),
        build(model, image_processor, parts(4), max_patches=None),
        build(model, image_processor, parts(4), aligned=True),
        build(model, image_processor, parts(4, first=1)),
    ]
    assert len({other.checksum() for other in [bank, *others]}) == 5


def test_no_references(tmp_path):
    assert ReferenceBank.find(tmp_path) is None
    with pytest.raises(OSError, match=r"does not contain references\.json"):
        ReferenceBank.from_pretrained(tmp_path)


def edit_json(folder, **fields):
    path = folder / "references.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def damage_features(folder, name, change):
    path = folder / "references.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "references.safetensors").unlink(), "belongs to references.safetensors, which"),
        (lambda folder: (folder / "references.safetensors").write_bytes(b"x" * 100), "not a valid safetensors file"),
        (lambda folder: os.truncate(folder / "references.safetensors", 5000), "not a valid safetensors file"),
        (lambda folder: (folder / "references.json").write_text("{"), "not a valid JSON file"),
        (lambda folder: (folder / "references.json").write_text("[]"), "not a valid JSON file"),
        (lambda folder: (folder / "references.json").write_bytes(b"\xff\xfe\x00"), "not a valid JSON file"),
        (lambda folder: edit_json(folder, version=99), "has version 99; expected 1"),
        (lambda folder: edit_json(folder, photos=[1, 2]), "does not belong to"),
        (lambda folder: edit_json(folder, options={"tile_size": "x"}), "does not belong to"),
        (lambda folder: edit_json(folder, fingerprint="x"), "does not belong to"),
        (lambda folder: edit_json(folder, checksum=None), "does not belong to"),
        (lambda folder: damage_features(folder, "features", lambda one: one + 1), "does not belong to"),
        (lambda folder: damage_features(folder, "row_photo", lambda one: one.float()), "does not belong to"),
        (lambda folder: damage_features(folder, "view_maps", lambda one: one[:1]), "does not belong to"),
    ],
)  # fmt: skip
def test_damaged_files(folder, damage, message):
    damage(folder)
    with pytest.raises(OSError, match=message):
        ReferenceBank.from_pretrained(folder)


@pytest.mark.parametrize(
    "fields", [{"photos": [1]}, {"photos": []}, {"fingerprint": {}}, {"options": {"x": 1}}, {"fingerprint": "x"}]
)
def test_contents_that_were_never_valid(folder, fields):
    edit_json(folder, **fields)
    content = json.loads((folder / "references.json").read_text())
    del content["checksum"]
    edit_json(folder, checksum=files.checksum_of(content, load_file(folder / "references.safetensors")))
    with pytest.raises(OSError, match=r"are not valid: .*Build the references again"):
        ReferenceBank.from_pretrained(folder)


def test_files_of_two_banks(bank, folder, tmp_path):
    bank.without("photo 1").save_pretrained(tmp_path / "other")
    for name in sorted(NAMES):
        mixed = tmp_path / f"mixed {name}"
        bank.save_pretrained(mixed)
        (mixed / name).write_bytes((tmp_path / "other" / name).read_bytes())
        with pytest.raises(OSError, match="expected the two files that were written together"):
            ReferenceBank.from_pretrained(mixed)


def test_an_interruption_keeps_the_earlier_references(bank, folder, monkeypatch):
    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "write_fields", fail)
    with pytest.raises(OSError, match="No space left"):
        bank.without("photo 1").save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == NAMES
    assert ReferenceBank.from_pretrained(folder).checksum() == bank.checksum()


def test_an_interruption_between_both_names_is_noticed(bank, folder, monkeypatch):
    replace = os.replace

    def once(source, target):
        if os.path.basename(target) == "references.json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        bank.without("photo 1").save_pretrained(folder)
    monkeypatch.undo()
    assert {path.name for path in folder.iterdir()} == NAMES
    with pytest.raises(OSError, match="does not belong to"):
        ReferenceBank.from_pretrained(folder)
    bank.save_pretrained(folder)
    assert ReferenceBank.from_pretrained(folder).checksum() == bank.checksum()


# Checkpoints


@pytest.mark.parametrize("adapters_only", [False, True])
def test_checkpoints_carry_references(clip_folder, image_processor, tmp_path, pixel_values, adapters_only):
    model = ViP2ClipForAnomalyDetection.from_clip(clip_folder, **TINY)
    bank = ReferenceBank.from_images(model, image_processor, parts(4))
    model.references = bank
    folder = tmp_path / "checkpoint"
    save_checkpoint(model, image_processor, folder, adapters_only=adapters_only)
    load = ViP2ClipForAnomalyDetection.from_pretrained
    backbone = {"backbone": model} if adapters_only else {}
    loaded = load(folder, **backbone)
    assert loaded.references.checksum() == bank.checksum()
    with torch.no_grad():
        outputs, plain = loaded(pixel_values), loaded(pixel_values, references=None)
        torch.testing.assert_close(outputs.scores, model(pixel_values, references=bank).scores)
    assert outputs.reference_scores is not None
    assert plain.reference_scores is None
    assert not torch.equal(outputs.scores, plain.scores)
    assert load(folder, references=None, **backbone).references is None
    fewer = bank.without("photo 1")
    assert load(folder, references=fewer, **backbone).references is fewer
    with pytest.raises(ValueError, match="references is 'x'; expected a ReferenceBank, 'auto' or None"):
        load(folder, references="x")
    # A model without references replaces the files of one with them.
    loaded.references = None
    loaded.save_pretrained(folder)
    assert not NAMES & {path.name for path in folder.iterdir()}
    assert load(folder).references is None


def test_loading_from_a_state_dict_keeps_the_argument(model, bank):
    loaded = ViP2ClipForAnomalyDetection.from_pretrained(
        None, config=model.config, state_dict=model.state_dict(), references=bank
    )
    assert loaded.references is bank


CODE = """
from transformers import AutoModel
import torch
first = AutoModel.from_pretrained("checkpoint", trust_remote_code=True)
second = AutoModel.from_pretrained("copy", trust_remote_code=True)
assert type(first) is not type(second)
bank = second.references
assert type(bank) is not type(first.references)
pixels = torch.ones(1, 3, 48, 48)
with torch.no_grad():
    scores = [model(pixels, references=references).scores.item()
              for model, references in ((first, "auto"), (first, bank), (second, "auto"))]
merged = first.references.merge(bank.without("photo 1"))
print(json.dumps({"scores": scores, "photos": len(merged)}))
"""


@pytest.mark.slow
def test_references_of_another_copy_of_the_code(clip_folder, image_processor, tmp_path):
    model = ViP2ClipForAnomalyDetection.from_clip(clip_folder, **TINY)
    model.references = ReferenceBank.from_images(model, image_processor, [*parts(2), part(9)])
    for name in ("checkpoint", "copy"):
        save_checkpoint(model, image_processor, tmp_path / name)
    with torch.no_grad():
        expected = model(torch.ones(1, 3, 48, 48)).scores.item()
    blocked = "import sys, json\nsys.modules['vip2clip_hf'] = None\n"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", blocked + CODE], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["scores"] == pytest.approx([expected] * 3, abs=1e-5)
    assert found["photos"] == 3
