"""The runtime without torch: an exported model gives the results of the pipeline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import save_file
from scipy import ndimage
from typer.testing import CliRunner

from helpers.tiny import EXAMPLES, ROOT, TINY, change_weights, tiny_config
from vip2clip_hf import (
    DecisionConfig,
    ReferenceBank,
    ViP2ClipForAnomalyDetection,
    ViP2ClipImageProcessor,
)
from vip2clip_hf.cli import app
from vip2clip_hf.export.report import describe_export
from vip2clip_hf.models.vip2clip.checkpoint_files_vip2clip import read_arrays
from vip2clip_hf.models.vip2clip.fingerprint_vip2clip import model_fingerprint
from vip2clip_hf.models.vip2clip.interpolation_vip2clip import interpolation_weights, resize_map
from vip2clip_hf.models.vip2clip.mask_regions_vip2clip import label_regions
from vip2clip_hf.models.vip2clip.pipeline_steps_vip2clip import score_settings
from vip2clip_hf.runtime import OnnxDetector


pytestmark = pytest.mark.xdist_group("runtime")
PHOTO = EXAMPLES / "hazelnut_damaged_1.jpg"
# Packages that the runtime does not need. An import of one of them is an error.
WITHOUT = ("torch", "transformers", "huggingface_hub", "safetensors", "scipy", "tqdm", "datasets")
BLOCK = f"import sys\nfor name in {WITHOUT}: sys.modules[name] = None\n"


def build() -> ViP2ClipForAnomalyDetection:
    torch.manual_seed(0)
    model = ViP2ClipForAnomalyDetection._from_config(tiny_config(), attn_implementation="sdpa").eval()
    change_weights(model)
    return model


def calibrated(model, decision: DecisionConfig, bank: ReferenceBank | None = None) -> DecisionConfig:
    """Add a calibration that belongs to the scores of the model."""
    scores = np.sort(np.random.default_rng(0).uniform(0, 1, 1500)).astype(np.float32)
    options = {"references": bank, "tile_size": decision.tile_size, "tile_overlap": decision.tile_overlap}
    settings = score_settings(model, options)
    decision.calibration = {"num_images": 1500, "settings": settings, "fingerprint": model_fingerprint(model)}
    decision.image_scores = scores
    decision.check_values()
    return decision


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory) -> Path:
    """A folder like that of an export, with a graph that is quick to create: the map is the mean of the channels."""
    onnx = pytest.importorskip("onnx", reason="extra `export` is not installed")
    pytest.importorskip("onnxruntime", reason="extra `runtime` is not installed")
    folder, size = tmp_path_factory.mktemp("by hand"), TINY["image_size"]
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    axes = [helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1]),
            helper.make_tensor("all", onnx.TensorProto.INT64, [2], [1, 2])]  # fmt: skip
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values", "one"], ["mean"], keepdims=0),
        helper.make_node("Sigmoid", ["mean"], ["anomaly_maps"]),
        helper.make_node("ReduceMax", ["anomaly_maps", "all"], ["scores"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("pixel_values", float32, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("scores", float32, ["batch"]),
         helper.make_tensor_value_info("anomaly_maps", float32, ["batch", size, size])],
        axes,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    model = build()
    model.decision = calibrated(model, DecisionConfig(0.6, 0.55, min_region_area=0.01))
    report = describe_export(model, "onnx", {}, {}, 1e-4, score_settings(model, {}))
    (folder / "export.json").write_text(json.dumps(report))
    model.decision.save_pretrained(folder)
    ViP2ClipImageProcessor(size=size).save_pretrained(folder)
    return folder


# Parts


def test_maps_are_resized_like_torch():
    rng = np.random.default_rng(0)
    pairs = [(int(a), int(b)) for a in (1, 7, 48, 240, 518) for b in rng.integers(1, 3000, 12)] + [(2, 6), (240, 480)]
    for length, new in pairs:
        weights = F.interpolate(torch.eye(length)[None], size=new, mode="linear", align_corners=False)[0].numpy()
        first, last, _ = interpolation_weights(length, new)
        np.testing.assert_array_equal(first, (weights > 0).argmax(axis=0))
        np.testing.assert_array_equal(last, length - 1 - (weights[::-1] > 0).argmax(axis=0))
    for size in ((48, 48), (480, 317), (13, 500), (1, 1)):
        one = rng.random((48, 31), dtype=np.float32)
        found = F.interpolate(torch.from_numpy(one)[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        np.testing.assert_allclose(resize_map(one, size), found.numpy(), rtol=0, atol=3e-7)


@pytest.mark.parametrize("sigma", [0, 1, 4])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.4, 0.9, 1.0])
def test_regions_are_numbered_like_scipy(density, sigma):
    values = ndimage.gaussian_filter(np.random.default_rng(1).random((90, 130)), sigma)
    mask = values > np.quantile(values, 1 - density) if density < 1 else np.ones_like(values, dtype=bool)
    expected, number = ndimage.label(mask, structure=np.ones((3, 3), dtype=int))
    labels, boxes = label_regions(mask)
    np.testing.assert_array_equal(labels, expected)
    wanted = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(expected)]
    assert [tuple(box) for box in boxes] == wanted
    assert len(boxes) == number


def test_scores_are_read_without_safetensors(tmp_path):
    arrays = {"image_scores": np.linspace(0, 1, 1500, dtype=np.float32), "pixel_scores": np.float32([[1, 2], [3, 4]])}
    path = tmp_path / "a.safetensors"
    save_file(arrays, path)
    found = read_arrays(path)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    content = path.read_bytes()
    for damaged in (b"", content[:4], content[:-1], b"\xff" * 8 + content[8:], content.replace(b"F32", b"F16")):
        path.write_bytes(damaged)
        with pytest.raises(OSError, match="is damaged"):
            read_arrays(path)


# Without torch


def run_without(program: str, *arguments: str, block: str = BLOCK) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", block + program, *arguments], capture_output=True, text=True,
                          timeout=120, env=environment, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


PROGRAM = """
import json
from vip2clip_hf.runtime import OnnxDetector

detector = OnnxDetector(sys.argv[1], threads=1)
results = [detector(sys.argv[2], regions=True, heatmap=True), *detector([sys.argv[2]], tile_size=400)]
print(json.dumps([result.to_dict() for result in results]))
"""


def test_without_torch(by_hand):
    """Also p-values from `decision.safetensors`, regions with a minimum area, tiles and heatmaps."""
    found, tiled = json.loads(run_without(PROGRAM, str(by_hand), str(PHOTO)))
    detector = OnnxDetector(by_hand, threads=1)
    expected = detector(PHOTO, regions=True, heatmap=True)
    assert found == expected.to_dict()
    assert found["regions"]
    assert 0 < found["p_value"] < 1
    assert tiled["p_value"] is None  # calibrated without tiles
    with Image.open(PHOTO) as photo:
        assert found["size"] == [photo.height, photo.width]


def test_torch_is_not_imported_where_it_is_installed():
    program = "import sys, vip2clip_hf\nfrom vip2clip_hf.runtime import OnnxDetector\nprint(*sorted(sys.modules))"
    loaded = run_without(program, block="").split()
    assert not {"torch", "transformers", "scipy", "safetensors"} & set(loaded)
    assert "vip2clip_hf.runtime.detector" in loaded


def test_command_without_torch(by_hand, tmp_path):
    """The same lines and JSON as for a checkpoint."""
    program = "from _vip2clip_command import main\nsys.argv[0] = 'vip2clip'\nmain()"
    arguments = ["predict", str(PHOTO), "--runtime", "onnx", "--model", str(by_hand)]
    detector = OnnxDetector(by_hand, regions=True)
    result = detector(PHOTO)
    line, *regions = run_without(program, *arguments, "--regions").splitlines()
    assert line == f"{PHOTO}: {result['score']:.3f} {result['label']}, p-value {result['p_value']:.3g}"
    assert len(regions) == len(result["regions"])
    heatmap = tmp_path / "heatmap.png"
    (record,) = json.loads(run_without(program, *arguments, "--json", "--heatmap", str(heatmap)))
    assert record["score"] == result["score"]
    assert record["anomalous_pixels"] == int(result["mask"].sum())
    with Image.open(heatmap) as drawn:
        assert drawn.size == result["mask"].shape[::-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runtime", "onnx"], "--runtime needs --model"),
        (["--runtime", "tensorrt", "--model", "x"], "expected onnx, openvino"),
        (["--runtime", "onnx", "--model", "x", "--dtype", "bfloat16"], "--dtype cannot be used with --runtime"),
        (["--runtime", "onnx", "--model", "x", "--output", "o"], "--output cannot be used with --runtime"),
    ],
)
def test_wrong_options(arguments, message):
    done = CliRunner().invoke(app, ["predict", str(PHOTO), *arguments])
    assert done.exit_code == 2
    assert message in done.output


# Errors


def test_errors(by_hand, tmp_path):
    with pytest.raises(OSError, match="is not an export"):
        OnnxDetector(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OSError, match="is a checkpoint; expected a folder with export.json"):
        OnnxDetector(tmp_path)
    with pytest.raises(ValueError, match="engine is 'tensorrt'; expected 'onnxruntime' or 'openvino'"):
        OnnxDetector(by_hand, engine="tensorrt")
    with pytest.raises(ValueError, match="device is 'cuda'; expected 'azure', 'cpu'|device is 'cuda'; expected 'cpu'"):
        OnnxDetector(by_hand, device="cuda")
    with pytest.raises(ValueError, match="threads is 0"):
        OnnxDetector(by_hand, threads=0)
    detector = OnnxDetector(by_hand)
    with pytest.raises(TypeError, match="Unknown arguments treshold"):
        detector(PHOTO, treshold=0.5)
    with pytest.raises(ValueError, match="top_k is 3; expected 5, because it is a constant of the exported graph"):
        detector(PHOTO, top_k=3)
    with pytest.raises(ValueError, match="references is of type list; expected 'auto' or None"):
        detector(PHOTO, references=[PHOTO])
    with pytest.raises(OSError, match="not found"):
        detector("absent.jpg")
    for name in ("model.onnx", "decision.json"):
        folder = tmp_path / name
        folder.mkdir()
        for path in by_hand.iterdir():
            (folder / path.name).write_bytes(path.read_bytes() if path.name != name else b"damaged")
        with pytest.raises(OSError, match="cannot be loaded by onnxruntime|is not a valid JSON file"):
            OnnxDetector(folder)
        (folder / name).unlink()
        with pytest.raises(OSError, match="is missing"):
            OnnxDetector(folder)
    report = json.loads((by_hand / "export.json").read_text())
    del report["runtime"]
    for name in ("export.json", "model.onnx", "decision.json", "preprocessor_config.json"):
        (tmp_path / "decision.json" / name).write_bytes((by_hand / name).read_bytes())
    (tmp_path / "decision.json" / "export.json").write_text(json.dumps(report))
    with pytest.raises(OSError, match="Export the checkpoint again"):
        OnnxDetector(tmp_path / "decision.json")


def test_kinds_of_inputs(by_hand):
    detector = OnnxDetector(by_hand, threads=1)
    expected = detector(PHOTO)["score"]
    assert [one["score"] for one in detector([PHOTO, PHOTO, PHOTO], batch_size=2)] == pytest.approx([expected] * 3)
    assert [one["score"] for one in detector(iter([PHOTO]))] == [expected]
    assert len(detector(EXAMPLES / "toys" / "test", batch_size=4)) == 5
    with Image.open(PHOTO) as photo:
        array = np.asarray(photo.convert("RGB"))
        assert detector(photo)["score"] == detector(array)["score"] == expected
    assert detector(torch.from_numpy(array.copy()))["score"] == expected
    assert detector(PHOTO.read_bytes())["score"] == detector({"bytes": PHOTO.read_bytes()})["score"] == expected
    with open(PHOTO, "rb") as file:
        assert detector(file)["score"] == expected
