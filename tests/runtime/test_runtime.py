"""The runtime without torch: an exported model gives the results of the pipeline."""

import json
import os
import shutil
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

from helpers.exports import build, calibrated, export_by_hand
from helpers.references import parts
from helpers.tiny import EXAMPLES, ROOT, TINY
from vip2clip_hf import (
    AnomalyDetectionPipeline,
    DecisionConfig,
    ReferenceBank,
    ViP2ClipImageProcessor,
)
from vip2clip_hf.cli import app
from vip2clip_hf.data.synthetic.dataset import generate_image
from vip2clip_hf.models.vip2clip.checkpoint_files_vip2clip import read_arrays
from vip2clip_hf.models.vip2clip.interpolation_vip2clip import interpolation_weights, resize_map
from vip2clip_hf.models.vip2clip.mask_regions_vip2clip import label_regions
from vip2clip_hf.reporting.csv_files import read_csv
from vip2clip_hf.reporting.reading import read_predictions
from vip2clip_hf.runtime import OnnxDetector


pytestmark = pytest.mark.xdist_group("runtime")
PHOTO = EXAMPLES / "hazelnut_damaged_1.jpg"
# Packages that the runtime does not need. An import of one of them is an error.
WITHOUT = ("torch", "transformers", "huggingface_hub", "safetensors", "scipy", "tqdm", "datasets")
BLOCK = f"import sys\nfor name in {WITHOUT}: sys.modules[name] = None\n"


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory) -> Path:
    return export_by_hand(tmp_path_factory.mktemp("by hand"))


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
    done = CliRunner().invoke(app, [*arguments, "--json", "--heatmap", str(heatmap)])
    (record,) = json.loads(done.stdout)
    assert record["score"] == result["score"]
    assert record["anomalous_pixels"] == int(result["mask"].sum())
    with Image.open(heatmap) as drawn:
        assert drawn.size == result["mask"].shape[::-1]


def test_tables_without_torch(by_hand, tmp_path):
    """A table with its settings, photos sorted into folders, and a table that only grows with the same export."""
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(PHOTO, photos / "a.jpg")
    (photos / "damaged.png").write_bytes(b"no image")
    table, folders = tmp_path / "table.csv", tmp_path / "sorted"
    program = (
        "from _vip2clip_command import main\nsys.argv[0] = 'vip2clip'\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 3"  # a photo could not be read
    )
    command = ["predict", str(photos), "--runtime", "onnx", "--model", str(by_hand), "--csv", str(table)]
    run_without(program, *command, "--sort", str(folders))
    result = OnnxDetector(by_hand)(PHOTO)
    rows, settings = read_csv(table)
    good = {row.id: row for row in rows}["a.jpg"]
    assert (good.score, good.p_value) == pytest.approx((result["score"], result["p_value"]), abs=1e-6)
    assert (good.label, good.anomalous_area) == (result["label"], pytest.approx(result["mask"].mean(), abs=1e-6))
    assert {row.id for row in rows if row.error} == {"damaged.png"}
    assert settings["runtime"] == "onnxruntime"
    assert sorted(settings["versions"]) == ["onnxruntime", "python", "vip2clip_hf"]
    assert list(folders.rglob("a.jpg"))
    assert len(read_predictions(table).rows) == 2
    shutil.copy(PHOTO, photos / "b.jpg")
    done = CliRunner().invoke(app, [*command, "--append"])
    assert "2 rows before" in done.output, done.output
    assert {row.id for row in read_csv(table)[0]} == {"a.jpg", "b.jpg", "damaged.png"}
    other = tmp_path / "other"
    shutil.copytree(by_hand, other)
    change = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**change, "image_mean": [0.4, 0.4, 0.4]}))
    for arguments in (["--model", str(other)], ["--threshold", "0.3"]):
        done = CliRunner().invoke(app, [*command, *arguments, "--append"])
        assert done.exit_code == 1
        assert "was created with a different" in str(done.exception)
    assert len(read_csv(table)[0]) == 3


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
    with pytest.raises(OSError, match=r"is a checkpoint; expected a folder with export\.json"):
        OnnxDetector(tmp_path)
    with pytest.raises(ValueError, match="engine is 'tensorrt'; expected 'onnxruntime' or 'openvino'"):
        OnnxDetector(by_hand, engine="tensorrt")
    with pytest.raises(ValueError, match="device is 'cuda'; expected '"):
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
        with pytest.raises(OSError, match=r"cannot be loaded by onnxruntime|is not a valid JSON file"):
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


# Parity


def odd_photos(folder: Path, count: int) -> list:
    """Photos of many sizes and kinds: files of 16 bits, with EXIF orientation, alpha and pages, arrays and images."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        photo = generate_image("dots" if number % 2 else "weave", "scratch" if number % 3 else None, 64, number)[0]
        size = tuple(int(side) for side in rng.integers(20, 260, 2))
        photo = photo.resize(size, Image.Resampling.BICUBIC)
        path, kind = folder / f"{number:03d}.png", number % 10
        if kind == 0:
            gray = np.asarray(photo.convert("L")).astype(np.uint16) * 257
            Image.fromarray(gray).save(path)
        elif kind == 1:
            path, exif = path.with_suffix(".jpg"), Image.Exif()
            exif[0x0112] = int(rng.integers(2, 9))
            photo.save(path, exif=exif)
        elif kind == 2:
            photo.putalpha(Image.fromarray(rng.integers(0, 256, size[::-1], dtype=np.uint8)))
            photo.save(path)
        elif kind == 3:
            path = path.with_suffix(".tif")
            photo.save(path, save_all=True, append_images=[photo.resize((9, 9))])
        elif kind == 4:
            found.append(np.asarray(photo))
            continue
        elif kind == 5:
            found.append(photo.convert("P"))
            continue
        else:
            photo.convert("L" if kind == 6 else "RGB").save(path)
        found.append(path)
    return found


def test_rounding_does_not_choose_the_patches_of_parity(tmp_path):
    """The last of the top-k patches leads the next by much more than the rounding error. Between two patches that are
    as close as rounding, engines may choose differently, and the score jumps."""
    model, processor = build(), ViP2ClipImageProcessor(size=TINY["image_size"])
    pixel_values = processor(odd_photos(tmp_path, 40), return_tensors="pt")["pixel_values"]
    margins = []
    for dtype in (torch.float64, torch.float32):
        with torch.no_grad():
            outputs = model.to(dtype)(pixel_values=pixel_values.to(dtype))
        normal, anomalous = outputs.layer_maps.double().flatten(3).unbind(2)
        margins.append((anomalous.log() - normal.log()) * model.config.temperature)  # difference of the cosines
    exact, rounded = margins
    ordered = exact.sort(dim=-1, descending=True).values
    for top_k in (2, TINY["top_k"]):
        lead = (ordered[..., top_k - 1] - ordered[..., top_k]).median()
        assert (rounded - exact).abs().max() < 0.01 * lead
    # Values are much farther apart than the tolerance, so that few are as near to a threshold.
    assert outputs.anomaly_maps.flatten(1).std(dim=1).median() > 100e-4


MODES = {
    "plain": (DecisionConfig(), {}),
    "regions": (DecisionConfig(min_region_area=0.02), {"regions": True, "heatmap": True}),
    "tiles": (DecisionConfig(tile_size=64, tile_overlap=0.3), {"regions": True}),
    "top-k": (DecisionConfig(top_k=2), {"threshold": (None, 0.5)}),
}


@pytest.mark.slow
@pytest.mark.parametrize("with_references", [False, True], ids=["zero-shot", "references"])
@pytest.mark.parametrize("mode", MODES)
def test_parity_with_the_pipeline(mode, with_references, tmp_path):
    """200 photos: scores and maps within 1e-4, everything else equal unless a value is as near to the threshold."""
    pytest.importorskip("onnxscript", reason="extra `export` is not installed")
    (decision, options), model, processor = MODES[mode], build(), ViP2ClipImageProcessor(size=TINY["image_size"])
    photos = odd_photos(tmp_path / "photos", 200)
    if with_references:
        good = [photo.resize((100, 100)) for photo in parts(4)]
        tiles = {"tile_size": decision.tile_size, "tile_overlap": decision.tile_overlap}
        model.references = ReferenceBank.from_images(model, processor, good, **tiles, top_k=decision.top_k)
    plain = AnomalyDetectionPipeline(model=model, image_processor=processor, device="cpu")
    model.decision = decision
    some = plain(photos[:40])
    scores, tops = [one["score"] for one in some], [np.quantile(one["anomaly_map"], 0.9) for one in some]
    assert np.std(scores) > 500e-4  # much more than the tolerance
    # Thresholds that about half of the photos, and a part of the pixels exceed.
    decision.image_threshold, decision.pixel_threshold = float(np.median(scores)), float(np.median(tops))
    model.decision = calibrated(model, decision, model.references)
    export_to = tmp_path / "exported"
    from vip2clip_hf.export.exporting import export_onnx

    report = export_onnx(model, processor, export_to)
    assert report["decision"]["calibrated"]
    pipeline = AnomalyDetectionPipeline(model=model, image_processor=processor, device="cpu")
    for engine in ("onnxruntime", "openvino"):
        pytest.importorskip(engine)
        detector = OnnxDetector(export_to, engine=engine, threads=1)
        assert detector.score_settings() == pipeline.score_settings()
        checked = photos if engine == "onnxruntime" else photos[:30]
        compare(pipeline(checked, batch_size=4, **options), detector(checked, batch_size=4, **options), decision)
        if with_references:
            compare(pipeline(checked[:30], references=None), detector(checked[:30], references=None), None)


def compare(expected: list, found: list, decision: DecisionConfig | None) -> None:
    counts = {"anomalous": 0, "regions": 0, "equal masks": 0}
    for one, two in zip(expected, found, strict=True):
        assert set(one) == set(two)
        assert abs(one["score"] - two["score"]) <= 1e-4
        assert one["anomaly_map"].shape == two["anomaly_map"].shape
        assert two["anomaly_map"].dtype == np.float32
        assert np.abs(one["anomaly_map"] - two["anomaly_map"]).max() <= 1e-4
        if decision is not None and abs(one["score"] - decision.image_threshold) > 1e-4:
            assert one["label"] == two["label"]
        assert (one.get("p_value") is None) == (two.get("p_value") is None)
        if one.get("p_value") is not None:
            assert abs(one["p_value"] - two["p_value"]) <= 3 / 1500
        same = np.array_equal(one["mask"], two["mask"])
        # Pixels whose value is as near to the threshold as the maps are to each other.
        assert np.mean(one["mask"] != two["mask"]) < 0.02
        counts["equal masks"] += same
        if same and "regions" in one:
            counts["regions"] += len(one["regions"])
            assert [region["box"] for region in one["regions"]] == [region["box"] for region in two["regions"]]
        if "heatmap" in one:
            difference = np.asarray(one["heatmap"]).astype(int) - np.asarray(two["heatmap"])
            assert np.abs(difference).max() <= 3
        counts["anomalous"] += one["label"] == "anomalous"
    assert counts["equal masks"] >= 0.8 * len(found)
    if decision is not None:
        assert 0 < counts["anomalous"] < len(found)
        assert counts["regions"] or "regions" not in expected[0]


# int8


@pytest.mark.slow
def test_int8(tmp_path):
    from vip2clip_hf.export.exporting import export_onnx

    pytest.importorskip("onnxscript", reason="extra `export` is not installed")
    model, processor = build(), ViP2ClipImageProcessor(size=TINY["image_size"])
    photos = [photo for photo in odd_photos(tmp_path / "photos", 40) if not isinstance(photo, Path)]
    model.decision = calibrated(model, DecisionConfig())
    with pytest.raises(ValueError, match="without calibration_photos"):
        export_onnx(model, processor, tmp_path / "int8", quantize="int8")
    with pytest.raises(ValueError, match="quantize is 'int4'; expected 'int8'"):
        export_onnx(model, processor, tmp_path / "int8", quantize="int4", calibration_photos=photos)
    report = export_onnx(model, processor, tmp_path / "int8", quantize="int8", calibration_photos=photos)
    found = report["quantization"]
    assert found["type"] == "int8"
    assert found["num_layers"] + found["num_float_layers"] == 4 * 6  # query, key, value, output and two of the MLP
    assert 0 < found["deviation"]["scores"]["largest"] < 0.05
    assert found["deviation"]["anomaly_maps"]["mean"] < 0.02
    detector = OnnxDetector(tmp_path / "int8")
    pipeline = AnomalyDetectionPipeline(model=model, image_processor=processor, device="cpu")
    for one, two in zip(pipeline(photos), detector(photos), strict=True):
        assert abs(one["score"] - two["score"]) < 0.05
        assert one["p_value"] is not None
        assert two["p_value"] is None  # the calibration belongs to the scores in float32


def test_smoothing_does_not_change_the_graph(tmp_path):
    """A layer norm with one large channel before a linear layer."""
    onnx = pytest.importorskip("onnx", reason="extra `export` is not installed")
    import onnxruntime

    from vip2clip_hf.export.smoothing import layers_with_massive_inputs, smooth_layers

    rng, helper, float32 = np.random.default_rng(0), onnx.helper, onnx.TensorProto.FLOAT
    scale = np.ones(8, dtype=np.float32)
    scale[3] = 100
    arrays = {"scale": scale, "bias": rng.random(8), "w": rng.standard_normal((8, 8)), "v": rng.random((8, 8))}
    weights = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    nodes = [
        helper.make_node("LayerNormalization", ["pixel_values", "scale", "bias"], ["x"], axis=-1),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="first"),
        helper.make_node("MatMul", ["y", "v"], ["z"], name="second"),
    ]
    shape = ["batch", 3, 8, 8]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("pixel_values", float32, shape)],
                              [helper.make_tensor_value_info("z", float32, shape)], weights)  # fmt: skip
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    values = rng.standard_normal((5, 3, 8, 8)).astype(np.float32)

    def run() -> np.ndarray:
        return onnxruntime.InferenceSession(str(path)).run(None, {"pixel_values": values})[0]

    before = run()
    assert layers_with_massive_inputs(path, ["first", "second"], values) == []
    assert smooth_layers(path, ["first", "second"], values) == 1
    np.testing.assert_allclose(run(), before, rtol=1e-4, atol=1e-3)
    changed = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    assert changed["scale"].max() / np.median(changed["scale"]) < 30  # was 100
    np.testing.assert_array_equal(changed["v"], arrays["v"].astype(np.float32))
    values[0, 0, 0] = 0
    values[0, 0, 0, 2] = 1e4
    scale_free = [helper.make_node("MatMul", ["pixel_values", "w"], ["z"], name="only")]
    graph = helper.make_graph(scale_free, "g", list(graph.input), list(graph.output), weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    assert layers_with_massive_inputs(path, ["only"], np.tile(values, (1, 1, 1, 1))) == ["only"]


# Installed without torch


@pytest.mark.slow
def test_in_an_environment_without_torch(by_hand, tmp_path):
    """A new environment with NumPy, Pillow and onnxruntime, as in docs/runtime.md."""
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)

    def pip(*arguments: str) -> None:
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], capture_output=True, text=True,
                              timeout=300, check=False)  # fmt: skip
        if done.returncode and "numpy" in arguments:
            pytest.skip(f"no package index: {done.stderr[-200:]}")
        assert done.returncode == 0, done.stderr

    pip("numpy", "pillow", "onnxruntime", "typer")
    pip("--no-deps", str(ROOT))
    program = f"import sys\n{PROGRAM}\nassert not {set(WITHOUT)} & set(sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = {"capture_output": True, "text": True, "check": False, "env": environment, "cwd": tmp_path}
    done = subprocess.run([python, "-c", program, str(by_hand), str(PHOTO)], **run)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["score"] == OnnxDetector(by_hand)(PHOTO)["score"]
    for package in ("torch", "transformers", "scipy", "safetensors"):
        assert subprocess.run([python, "-c", f"import {package}"], **run).returncode == 1
    command = [python.parent / "vip2clip", "predict", str(PHOTO), "--runtime", "onnx", "--model", str(by_hand)]
    done = subprocess.run(command, **run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{PHOTO}: ")
