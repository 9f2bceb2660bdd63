import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from helpers.tiny import EXAMPLES, ROOT, TINY, change_weights, tiny_clip_config, tiny_config
from vip2clip_hf import ReferenceBank, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor, export
from vip2clip_hf.checkpoints.bundled import bundled_checkpoint
from vip2clip_hf.cli import app
from vip2clip_hf.export import exporting, verification
from vip2clip_hf.export.exporting import export_onnx, export_torch
from vip2clip_hf.export.graph import ExportedDetector
from vip2clip_hf.export.report import describe_export, export_card
from vip2clip_hf.hub.publishing import save_checkpoint
from vip2clip_hf.models.vip2clip import reference_distances_vip2clip
from vip2clip_hf.models.vip2clip.pipeline_steps_vip2clip import score_settings


DOCS = ROOT / "docs"
PHOTO = EXAMPLES / "hazelnut_damaged_1.jpg"
FILES = ["README.md", "config.json", "decision.json", "export.json", "preprocessor_config.json"]
VARIANTS = {
    "paper": {},
    "release": {"variant": "release", "fgp_num_heads": 4},
    "dual": {"alignment": "dual"},
    "no ICA": {"use_image_conditioning": False},
    "no FGP": {"use_fine_grained_perception": False},
    "neither": {"use_image_conditioning": False, "use_fine_grained_perception": False, "alignment": "dual"},
    "words of different lengths": {"normal_word": None, "normal_token_ids": (320, 1125, 539)},
    "native size": {"image_size": 32, "smoothing_sigma": 0},
}


def build(attention: str = "sdpa", **settings) -> ViP2ClipForAnomalyDetection:
    model = ViP2ClipForAnomalyDetection._from_config(tiny_config(**settings), attn_implementation=attention).eval()
    change_weights(model)
    return model


def code_block(text: str) -> str:
    return text.split("```python\n")[1].split("```")[0]


@pytest.fixture(scope="module")
def onnx_export(tmp_path_factory) -> tuple[ViP2ClipForAnomalyDetection, Path, dict]:
    """A model, the folder of its ONNX export, and the report."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="extra `export` is not installed")
    model, folder = build(), tmp_path_factory.mktemp("onnx") / "exported"
    return model, folder, export_onnx(model, ViP2ClipImageProcessor(size=48), folder)


@pytest.fixture(scope="module")
def torch_export(tmp_path_factory) -> tuple[ViP2ClipForAnomalyDetection, Path, dict]:
    model, folder = build(variant="release", fgp_num_heads=4), tmp_path_factory.mktemp("torch") / "exported"
    return model, folder, export_torch(model, ViP2ClipImageProcessor(size=48), folder)


# The graph


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_outputs_equal_those_of_the_model(settings, attention):
    model = build(attention, **settings)
    detector = ExportedDetector(model)
    images = torch.randn(3, 3, model.config.image_size, model.config.image_size)
    with torch.no_grad():
        expected = model(images)
        for count in (1, 2, 3):
            scores, maps = detector(images[:count])
            torch.testing.assert_close(scores, expected.scores[:count], rtol=0, atol=1e-5)
            torch.testing.assert_close(maps, expected.anomaly_maps[:count], rtol=0, atol=1e-5)


def test_constants_are_precomputed():
    state = ExportedDetector(build()).state_dict()
    assert len(state["model.clip.text_model.embeddings.token_embedding.weight"]) == 4  # start, two words, end
    assert len(state["model.clip.vision_model.embeddings.position_embedding.weight"]) == 1 + 36  # at 48 pixels
    state = ExportedDetector(build(use_image_conditioning=False)).state_dict()
    assert not [name for name in state if "text_model" in name or "prompt" in name]


@pytest.mark.slow
def test_weights_are_shared_and_the_model_is_not_changed(image_processor, tmp_path):
    model = build().train()
    model.prompt_learner.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, gradients = model.config.to_dict(), {n: p.requires_grad for n, p in model.named_parameters()}
    kept = model.clip.vision_model.encoder.layers[0].mlp.fc1.weight
    shared = ExportedDetector(model).model.clip.vision_model.encoder.layers[0].mlp.fc1.weight
    assert shared.data_ptr() == kept.data_ptr()
    export_torch(model, image_processor, tmp_path / "exported")
    assert model.training
    assert model.config.to_dict() == config
    assert {n: p.requires_grad for n, p in model.named_parameters()} == gradients
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_configuration_that_returns_tuples(pixel_values):
    model = build()
    expected = ExportedDetector(model)(pixel_values)
    model.config.return_dict = False
    for found, wanted in zip(ExportedDetector(model)(pixel_values), expected):
        assert torch.equal(found, wanted)


def test_in_inference_mode(pixel_values):
    with torch.inference_mode():
        model = build()
        detector = ExportedDetector(model)
        torch.testing.assert_close(detector(pixel_values)[0], model(pixel_values).scores, rtol=0, atol=1e-5)


# ONNX


def session(folder: Path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.slow
def test_onnx_with_other_batch_sizes(onnx_export):
    model, folder, _ = onnx_export
    opened = session(folder)
    for count in (1, 4, 7):
        images = torch.randn(count, 3, 48, 48)
        scores, maps = opened.run(["scores", "anomaly_maps"], {"pixel_values": images.numpy()})
        with torch.no_grad():
            expected = model(images)
        assert scores.dtype == maps.dtype == np.float32
        assert np.abs(scores - expected.scores.numpy()).max() < 1e-5
        assert np.abs(maps - expected.anomaly_maps.numpy()).max() < 1e-5


@pytest.mark.slow
def test_onnx_file_contains_only_the_weights_in_use(onnx_export):
    import onnx

    model, folder, report = onnx_export
    graph = onnx.load(folder / "model.onnx").graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "pixel_values": ["batch_size", 3, 48, 48],
        "scores": ["batch_size"],
        "anomaly_maps": ["batch_size", 48, 48],
    }
    used = {name for node in graph.node for name in node.input}
    assert all(tensor.name in used for tensor in graph.initializer)
    table = model.clip.text_model.embeddings.token_embedding.weight
    weights = sum(parameter.nbytes for parameter in model.parameters()) - table.nbytes
    stored = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)
    assert stored < weights + 20_000 < table.nbytes  # keys, values, matrices for the maps, shapes
    assert report["files"]["model.onnx"] < stored + 300_000
    # Neither the Gaussian nor the position table is computed in the graph.
    assert not {"Exp", "Range", "Resize"} & {node.op_type for node in graph.node}
    content = (folder / "model.onnx").read_bytes()
    assert str(Path(export.__file__).parent).encode() not in content
    assert b"site-packages" not in content


@pytest.mark.slow
def test_onnx_folder(onnx_export):
    model, folder, report = onnx_export
    assert sorted(path.name for path in folder.iterdir()) == sorted(["model.onnx", *FILES])
    assert report["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    stored = json.loads((folder / "export.json").read_text())
    assert {**stored, "files": report["files"]} == report
    assert (stored["format"], stored["opset"], stored["tolerance"]) == ("onnx", 18, 1e-4)
    assert stored["image_threshold"] == stored["decision"]["image_threshold"] == model.decision.image_threshold
    assert set(stored["largest_deviation"]) == {"scores", "anomaly_maps"}
    assert max(stored["largest_deviation"].values()) < 1e-5
    assert {"torch", "onnx", "onnxruntime", "vip2clip_hf"} <= set(stored["versions"])
    assert ViP2ClipImageProcessor.from_pretrained(folder).size["height"] == 48
    config = json.loads((folder / "config.json").read_text())
    assert config["bos_token_id"] == model.config.bos_token_id
    assert stored["inputs"]["pixel_values"]["shape"] == ["batch_size", 3, 48, 48]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["README.md of the folder", "docs/export.md"])
def test_examples_need_pillow_and_numpy_only(onnx_export, text, photo, tmp_path, monkeypatch):
    model, folder, _ = onnx_export
    page = DOCS / "export.md" if text.startswith("docs") else folder / "README.md"
    code = code_block(page.read_text(encoding="utf-8"))
    assert "torch" not in code
    assert "vip2clip_hf" not in code
    monkeypatch.chdir(tmp_path)
    photo.save("photo.jpg")
    shutil.copytree(folder, tmp_path / "exported")  # docs/export.md
    shutil.copyfile(folder / "model.onnx", tmp_path / "model.onnx")
    found = {}
    exec(code, found)
    with torch.no_grad():
        expected = model(**ViP2ClipImageProcessor(size=48)("photo.jpg", return_tensors="pt"))
    assert found["scores"] == pytest.approx(expected.scores.numpy(), abs=1e-5)
    assert np.abs(found["anomaly_maps"] - expected.anomaly_maps.numpy()).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_onnx_of_all_variants(settings, attention, tmp_path):
    pytest.importorskip("onnxruntime", reason="extra `export` is not installed")
    model = build(attention, **settings)
    size = model.config.image_size
    export_onnx(model, ViP2ClipImageProcessor(size=size), tmp_path / "exported", tolerance=2e-5)
    images = torch.randn(5, 3, size, size)
    scores, maps = session(tmp_path / "exported").run(None, {"pixel_values": images.numpy()})
    with torch.no_grad():
        expected = model(images)
    assert np.abs(scores - expected.scores.numpy()).max() < 2e-5
    assert np.abs(maps - expected.anomaly_maps.numpy()).max() < 2e-5


@pytest.mark.slow
def test_onnx_with_another_opset_and_external_weights(image_processor, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="extra `export` is not installed")
    monkeypatch.setattr(exporting, "_LARGEST_ONNX_FILE", 1000)
    report = export_onnx(build(), image_processor, tmp_path / "exported", opset=20)
    assert report["opset"] == 20
    assert report["files"]["model.onnx.data"] > report["files"]["model.onnx"] > 0
    (tmp_path / "exported").rename(tmp_path / "moved")
    session(tmp_path / "moved")


# torch.export


@pytest.mark.slow
def test_torch_with_other_batch_sizes(torch_export):
    model, folder, report = torch_export
    assert sorted(path.name for path in folder.iterdir()) == sorted(["model.pt2", *FILES])
    assert report["format"] == "torch"
    assert "opset" not in report
    table = model.clip.text_model.embeddings.token_embedding.weight
    assert report["files"]["model.pt2"] < table.nbytes
    module = torch.export.load(folder / "model.pt2").module()
    with torch.no_grad():
        for count in (1, 4, 7):
            images = torch.randn(count, 3, 48, 48)
            scores, maps = module(images)
            torch.testing.assert_close(scores, model(images).scores, rtol=0, atol=1e-5)
            torch.testing.assert_close(maps, model(images).anomaly_maps, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_torch_example(torch_export, photo, monkeypatch):
    model, folder, _ = torch_export
    monkeypatch.chdir(folder.parent)
    shutil.copyfile(folder / "model.pt2", folder.parent / "model.pt2")
    photo.save("photo.jpg")
    found = {}
    exec(code_block((folder / "README.md").read_text(encoding="utf-8")), found)
    with torch.no_grad():
        expected = model(**ViP2ClipImageProcessor(size=48)("photo.jpg", return_tensors="pt"))
    torch.testing.assert_close(found["scores"], expected.scores, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_torch_of_all_variants(settings, tmp_path):
    model = build(**settings)
    size = model.config.image_size
    export_torch(model, ViP2ClipImageProcessor(size=size), tmp_path / "exported", tolerance=2e-5)
    module = torch.export.load(tmp_path / "exported" / "model.pt2").module()
    images = torch.randn(5, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(module(images)[1], model(images).anomaly_maps, rtol=0, atol=2e-5)


# References


def references_of(model, image_processor, count: int = 3, **options) -> ReferenceBank:
    rng = np.random.default_rng(3)
    images = [Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(count)]
    return ReferenceBank.from_images(model, image_processor, images, **options)


@pytest.mark.parametrize("width", [16, 64])
def test_features_are_constants(width, image_processor, pixel_values):
    """In a smaller basis if there is one, otherwise in float16, which is exact."""
    model = build(clip_config=tiny_clip_config(projection_dim=width))
    bank = references_of(model, image_processor)
    detector = ExportedDetector(model, bank)
    prepared = detector.references.rows_on(torch.device("cpu"), model.clip.visual_projection)
    rows, basis = prepared.rows, prepared.basis
    assert (rows.dtype, rows.shape[-1]) == ((torch.float16, 16) if width == 16 else (torch.float32, 32))
    assert (basis is None) == (width == 16)
    with torch.no_grad():
        expected = model(pixel_values, references=bank)
        scores, maps, *_ = detector(pixel_values)
    torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(maps, expected.anomaly_maps, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_blocks_of_rows(image_processor, pixel_values, monkeypatch):
    """Several blocks, whose size does not depend on the number of images."""
    monkeypatch.setattr(reference_distances_vip2clip, "EXPORTED_STEP", 40)
    model = build()
    bank = references_of(model, image_processor)
    assert bank.features.shape[1] > 80
    program = torch.export.export(
        ExportedDetector(model, bank),
        (pixel_values[:2],),
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch_size", min=1)}},
        strict=False,
    )
    for images in (pixel_values, pixel_values[:1]):
        with torch.no_grad():
            expected = model(images, references=bank)
            scores, maps, *_ = program.module()(images)
        torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(maps, expected.anomaly_maps, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "onnx"])
@pytest.mark.parametrize("source", ["model", "argument"])
def test_files_with_references(name, source, image_processor, photo, tmp_path, monkeypatch):
    if name == "onnx":
        pytest.importorskip("onnxruntime", reason="extra `export` is not installed")
    model = build()
    bank = references_of(model, image_processor)
    options = {} if source == "model" else {"references": bank}
    model.references = bank if source == "model" else None
    write = export_torch if name == "torch" else export_onnx
    report = write(model, image_processor, tmp_path / "exported", **options)
    assert report["references"]["num_photos"] == 3
    assert report["references"]["checksum"] == bank.checksum()
    assert max(report["largest_deviation"].values()) < 1e-4
    text = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert "The graph contains features of 3 photos of good parts" in text
    monkeypatch.chdir(tmp_path / "exported")
    photo.save("photo.jpg")
    found = {}
    exec(code_block(text), found)
    pixel_values = ViP2ClipImageProcessor(size=48)("photo.jpg", return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixel_values, references=bank)
    np.testing.assert_allclose(np.asarray(found["scores"]), expected.scores.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(np.asarray(found["anomaly_maps"]), expected.anomaly_maps.numpy(), rtol=0, atol=1e-4)


def test_report_of_references(image_processor):
    model = build()
    bank = references_of(model, image_processor, count=1)
    model.decision.calibration = {"settings": {"tile_size": 0, "tile_overlap": 0.25, "top_k": 5}, "num_images": 1}
    for one, calibrated in ((None, True), (bank, False)):
        settings = score_settings(model, {"references": one})
        report = describe_export(model, "torch", {}, {}, 1e-4, settings, one)
        assert report["decision"]["calibrated"] is calibrated
        text = export_card(report, image_processor)
        assert ("1 photo of a good part" in text) == (one is not None)
        assert ("calibrated for other scores" in text) != calibrated
    assert report["references"]["checksum"] == bank.checksum()


def test_references_that_cannot_be_exported(image_processor, tmp_path):
    model, other = build(), build(variant="release", fgp_num_heads=4, image_size=32)
    bank = references_of(other, ViP2ClipImageProcessor(size=32))
    with pytest.raises(ValueError, match="The references belong to another model"):
        export_torch(model, image_processor, tmp_path / "exported", references=bank)
    with pytest.raises(ValueError, match="references is 'none'; expected a ReferenceBank, 'auto' or None"):
        export_torch(model, image_processor, tmp_path / "exported", references="none")
    tiled = references_of(model, image_processor, tile_size=30)
    with pytest.raises(ValueError, match="read with tile_size=30"):
        export_torch(model, image_processor, tmp_path / "exported", references=tiled)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_command_without_references(image_processor, tmp_path):
    model = build()
    model.references = references_of(model, image_processor)
    save_checkpoint(model, image_processor, tmp_path / "part")
    for options, expected in (((), 3), (("--no-references",), None)):
        folder = tmp_path / f"exported{len(options)}"
        done = run_export("--model", tmp_path / "part", "--output", folder, "--format", "torch", *options)
        assert done.exit_code == 0, done.output
        assert ("Contains 3 references" in done.stdout) == (expected is not None)
        found = json.loads((folder / "export.json").read_text())["references"]
        assert (found and found["num_photos"]) == expected


# The comparison


class Tampered(ExportedDetector):
    """Weights that differ from those of the model."""

    def __init__(self, model: ViP2ClipForAnomalyDetection, references: ReferenceBank | None = None):
        super().__init__(model, references)
        projection = self.model.clip.visual_projection
        projection.weight = torch.nn.Parameter(projection.weight + 0.1, requires_grad=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_an_export_that_differs_is_not_written(name, image_processor, tmp_path, monkeypatch):
    if name == "onnx":
        pytest.importorskip("onnxruntime", reason="extra `export` is not installed")
    monkeypatch.setattr(exporting, "ExportedDetector", Tampered)
    write = export_torch if name == "torch" else export_onnx
    with pytest.raises(RuntimeError, match=r"anomaly_maps by 0\.\d+; expected at most 0.0001. Nothing was written"):
        write(build(), image_processor, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores, maps: (scores + 2e-4, maps), r"scores by 0\.0002; expected"),
        (lambda scores, maps: (scores, maps * np.nan), "anomaly_maps by nan; expected"),
        (lambda scores, maps: (scores[:1], maps), r"scores of shape \(1,\); expected \(3,\)"),
    ],
)
def test_the_comparison(change, message, image_processor):
    model = build()

    def run(pixel_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            output = model(torch.from_numpy(pixel_values))
        return change(output.scores.numpy(), output.anomaly_maps.numpy())

    with pytest.raises(RuntimeError, match=message):
        verification.check_deviation(verification.compare_with_model(run, model, image_processor), "torch", 1e-4)


def test_an_existing_folder_is_kept(image_processor, tmp_path):
    (tmp_path / "file").write_text("mine")
    for write in (export_torch, export_onnx):
        with pytest.raises(OSError, match="not empty; expected a new folder"):
            write(build(), image_processor, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# What cannot be exported


def test_models_that_cannot_be_exported(image_processor, tmp_path):
    output = tmp_path / "exported"
    with pytest.raises(ValueError, match=r"dtype is bfloat16; expected float32\. .* dtype=torch.float32"):
        export_torch(build().to(torch.bfloat16), image_processor, output)
    with torch.device("meta"):
        absent = ViP2ClipForAnomalyDetection(tiny_config())
    with pytest.raises(ValueError, match=r"meta device; expected weights in memory\. Omit device_map"):
        export_torch(absent, image_processor, output)
    model = build()
    model.clip.text_model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="attn_implementation is 'flex_attention'; expected 'sdpa' or 'eager'"):
        export_torch(model, image_processor, output)
    grey = tiny_clip_config()
    grey.vision_config.num_channels = 1
    with pytest.raises(ValueError, match=r"clip_config.vision_config.num_channels is 1; expected 3"):
        export_torch(build(clip_config=grey), image_processor, output)
    with pytest.raises(ValueError, match="the model takes 48 x 48"):
        export_torch(build(), ViP2ClipImageProcessor(size=64), output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [9, 999, "18"])
def test_unknown_opset(opset, image_processor, tmp_path):
    pytest.importorskip("onnxruntime", reason="extra `export` is not installed")
    with pytest.raises(ValueError, match=r"opset is .*; expected an integer from 18 to"):
        export_onnx(build(), image_processor, tmp_path / "exported", opset=opset)


def test_missing_packages_name_the_extra(image_processor, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'vip2clip_hf\[export\]'"):
        export_onnx(build(), image_processor, tmp_path / "exported")


# vip2clip export


def run_export(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_command_refuses_before_it_loads(tmp_path):
    absent = ("--model", tmp_path / "absent")
    done = run_export(*absent, "--output", tmp_path / "exported", "--format", "tflite")
    assert done.exit_code == 2
    assert "--format is 'tflite'; expected onnx, torch." in " ".join(done.stderr.split())
    done = run_export(*absent, "--output", tmp_path / "exported", "--format", "torch", "--opset", 18)
    assert done.exit_code == 2
    assert "--opset applies to --format onnx only" in done.stderr
    (tmp_path / "file").write_text("mine")
    done = run_export(*absent, "--output", tmp_path, "--format", "torch")
    assert "not empty; expected a new folder" in str(done.exception)


@pytest.mark.slow
def test_command_with_the_bundled_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="extra `export` is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))  # where it is remembered that the notice was shown
    done = run_export("--output", tmp_path / "exported")
    assert done.exit_code == 0, done.output
    assert "small bundled checkpoint" in done.stderr
    assert "model.onnx: 2" in done.stdout
    assert "Largest deviation from PyTorch: scores " in done.stdout
    assert "torch.onnx" not in done.output  # no output of the exporter
    processor = ViP2ClipImageProcessor.from_pretrained(tmp_path / "exported")
    pixel_values = processor(PHOTO, return_tensors="np")["pixel_values"]
    (score,), _ = session(tmp_path / "exported").run(None, {"pixel_values": pixel_values})
    model = ViP2ClipForAnomalyDetection.from_pretrained(bundled_checkpoint())
    with torch.no_grad():
        assert score == pytest.approx(model(torch.from_numpy(pixel_values)).scores.item(), abs=1e-5)


@pytest.mark.slow
def test_command_with_adapters_only(clip_folder, image_processor, tmp_path):
    model = ViP2ClipForAnomalyDetection.from_clip(clip_folder, dtype=torch.bfloat16, **TINY)
    save_checkpoint(model, image_processor, tmp_path / "adapters", adapters_only=True)
    options = ("--backbone", clip_folder, "--output", tmp_path / "exported", "--format", "torch", "--json")
    done = run_export("--model", tmp_path / "adapters", *options)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["format"] == "torch"
    assert set(report["files"]) == {"model.pt2", *FILES}
    assert max(report["largest_deviation"].values()) < 1e-4
