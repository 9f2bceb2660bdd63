"""Figures of results, attention and feature layers: arrays, drawing, files."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny import EXAMPLES, ROOT, change_weights, tiny_config
from vip2clip_hf import (
    AnomalyDetectionPipeline,
    ViP2ClipForAnomalyDetection,
    ViP2ClipImageProcessor,
)
from vip2clip_hf.models.vip2clip.heatmap_vip2clip import draw_heatmap
from vip2clip_hf.plotting import canvas
from vip2clip_hf.plotting.attention import attention_figure, attention_maps, layer_anomaly_maps, layers_figure
from vip2clip_hf.plotting.canvas import heat_colors, map_colors
from vip2clip_hf.plotting.results import result_figure
from vip2clip_hf.plotting.sheet import results_figure
from vip2clip_hf.utils.figures import save_figure


def make_detector(options=None, **overrides) -> AnomalyDetectionPipeline:
    torch.manual_seed(0)  # reproducible weights
    model = ViP2ClipForAnomalyDetection(tiny_config("release", smoothing_sigma=1.0, **overrides)).eval()
    change_weights(model)
    with torch.no_grad():
        model.clip.vision_model.embeddings.patch_embedding.weight.mul_(30)
        for parameter in (*model.prompt_learner.parameters(), *model.fine_grained_perception.parameters()):
            parameter.mul_(5)
    processor = ViP2ClipImageProcessor(size=48)
    return AnomalyDetectionPipeline(model=model, image_processor=processor, device="cpu", **(options or {}))


@pytest.fixture
def detector() -> AnomalyDetectionPipeline:
    """Three feature layers, 6 x 6 patches, several heads."""
    return make_detector()


@pytest.fixture
def truth(photo) -> np.ndarray:
    mask = np.zeros((photo.height, photo.width), dtype=np.uint8)
    mask[10:20, 30:60] = 255  # up to the edge
    return mask


def a_result(photo: Image.Image, **changes) -> dict:
    ramp = np.tile(np.linspace(0, 0.8, photo.width, dtype=np.float32), (photo.height, 1))
    return {"score": 0.75, "label": "anomalous", "anomaly_map": ramp, "mask": ramp > 0.6, **changes}


def titles(figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def outlines(axis) -> list:
    return [one for one in axis.collections if type(one).__name__ == "QuadContourSet"]


# The arrays


def test_attention_equals_that_of_the_model(detector, photo):
    inputs = detector.image_processor(photo, return_tensors="pt")
    with torch.inference_mode():
        attentions = detector.model(**inputs, output_attentions=True).cross_attentions
    assert len(attentions) == 3
    assert attentions[0].shape[1] > 1  # heads
    for layer in attentions:
        torch.testing.assert_close(layer.sum(dim=-1), torch.ones(layer.shape[:-1]))
    # At the size of the patch grid, nothing is resized.
    maps = attention_maps(detector, photo, (6, 6))
    assert maps.shape == (3, 2, 6, 6)
    assert maps.dtype == np.float32
    expected = torch.stack([layer[0].mean(dim=0) for layer in attentions]).numpy() * 36
    np.testing.assert_allclose(maps.reshape(3, 2, 36), expected, rtol=1e-5)
    np.testing.assert_allclose(maps.mean(axis=(2, 3)), 1, rtol=1e-5)
    assert np.abs(maps - 1).max() > 0.01  # not what a model without attention would give
    assert np.abs(maps[:, 0] - maps[:, 1]).max() > 0.001


def test_attention_is_at_the_position_of_the_patch(detector, photo):
    """At the size of the photo, the maximum is in the patch with the most attention."""
    coarse, fine = attention_maps(detector, photo, (6, 6)), attention_maps(detector, photo)
    assert fine.shape == (3, 2, 40, 60)
    for layer in range(3):
        for prompt in range(2):
            row, column = np.unravel_index(coarse[layer, prompt].argmax(), (6, 6))
            y, x = np.unravel_index(fine[layer, prompt].argmax(), (40, 60))
            assert abs((y + 0.5) * 6 / 40 - row - 0.5) < 0.6
            assert abs((x + 0.5) * 6 / 60 - column - 0.5) < 0.6


def test_mean_of_the_layers_is_the_anomaly_map(detector, photo):
    maps = layer_anomaly_maps(detector, photo)
    assert maps.shape == (3, 40, 60)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps.mean(axis=0), detector(photo)["anomaly_map"], atol=1e-5)
    assert np.abs(maps[0] - maps[1]).max() > 1e-3
    at_model_size = layer_anomaly_maps(detector, photo, (48, 48))
    np.testing.assert_allclose(at_model_size.mean(axis=0), detector.decision_map(photo)["anomaly_map"], atol=1e-5)


def test_tiles_are_ignored(photo):
    whole, tiled = make_detector(), make_detector({"tile_size": 32})
    np.testing.assert_array_equal(attention_maps(whole, photo), attention_maps(tiled, photo))
    np.testing.assert_array_equal(layer_anomaly_maps(whole, photo), layer_anomaly_maps(tiled, photo))
    for draw in (attention_figure, layers_figure):
        assert draw(tiled, photo).get_suptitle().endswith("\n(whole photo; the result uses tiles of 32 pixels)")
        assert "tiles" not in draw(whole, photo).get_suptitle()
    assert "tiles" not in layers_figure(make_detector({"tile_size": 64}), photo).get_suptitle()  # it is one tile


def test_half_precision(photo):
    detector = make_detector()
    detector.model.to(torch.bfloat16)
    assert attention_maps(detector, photo).dtype == layer_anomaly_maps(detector, photo).dtype == np.float32


# The figures


def test_result(photo, truth):
    figure = result_figure(photo, a_result(photo), truth, title="nut.jpg", pixel_threshold=0.6)
    assert figure.get_suptitle() == "nut.jpg\nscore 0.750, anomalous"
    assert titles(figure) == ["photo", "ground truth", "anomaly map, 0.000 to 0.800"]
    first, second, third = figure.axes
    (bar,) = third.child_axes
    assert np.array_equal(first.images[0].get_array(), np.asarray(photo))
    assert np.array_equal(second.images[0].get_array(), truth > 0)
    drawn = third.images[1]
    assert drawn.get_clim() == (0, 1)  # fixed, independent of the values
    np.testing.assert_array_equal(drawn.get_array(), a_result(photo)["anomaly_map"])
    assert bar.lines[0].get_ydata()[0] == 0.6
    assert texts(figure) == ["mask, threshold 0.600", "ground truth"]
    # Outlines are in pixels of the photo and are closed at its edge.
    ours, true = outlines(third)
    (path,) = true.get_paths()
    np.testing.assert_allclose(path.vertices.min(axis=0), (30, 10), atol=0.51)
    np.testing.assert_allclose(path.vertices.max(axis=0), (60, 20), atol=0.51)
    assert np.array_equal(path.vertices[0], path.vertices[-1])
    assert ours.get_edgecolor().tolist() != true.get_edgecolor().tolist()


def test_result_of_the_pipeline(detector, photo):
    result = detector(photo)
    figure = result_figure(photo, result)
    assert titles(figure)[0] == "photo"
    assert len(figure.axes) == 2  # photo and map
    assert figure.get_suptitle() == f"score {result['score']:.3f}, {result['label']}"
    assert not figure.axes[1].child_axes[0].lines  # no threshold known
    tensors = {**result, "anomaly_map": torch.from_numpy(result["anomaly_map"]), "mask": torch.tensor(result["mask"])}
    assert titles(result_figure(photo, tensors)) == titles(figure)


def test_p_value(photo):
    assert result_figure(photo, a_result(photo, p_value=0.0333)).get_suptitle().endswith("anomalous, p-value 0.0333")
    assert "p-value" not in result_figure(photo, a_result(photo, p_value=None)).get_suptitle()


def test_empty_and_full_masks(photo, truth):
    empty = np.zeros((photo.height, photo.width), dtype=bool)
    figure = result_figure(photo, a_result(photo, mask=empty), empty)
    assert not outlines(figure.axes[2])
    assert texts(figure) == ["mask (empty)", "ground truth (empty)"]
    everything = result_figure(photo, a_result(photo, mask=~empty))
    (path,) = outlines(everything.axes[1])[0].get_paths()
    np.testing.assert_allclose(np.ptp(path.vertices, axis=0), (photo.width, photo.height), atol=1)


def test_types_of_ground_truth(photo, truth, tmp_path):
    file = tmp_path / "mask.png"
    Image.fromarray(truth).save(file)
    for given in (file, Image.fromarray(truth), truth > 0, torch.from_numpy(truth)):
        assert np.array_equal(result_figure(photo, a_result(photo), given).axes[1].images[0].get_array(), truth > 0)
    faint = np.where(truth > 0, 200, 30).astype(np.uint8)
    shown = result_figure(photo, a_result(photo), faint, mask_threshold=127).axes[1].images[0].get_array()
    assert np.array_equal(shown, truth > 0)


def test_several_results(photo, truth, tmp_path):
    other = Image.new("RGB", (30, 45))
    results = [a_result(photo, p_value=0.02), a_result(other, score=0.1, label="normal"), a_result(other)]
    nothing = np.zeros((45, 30), dtype=bool)
    figure = results_figure([photo, other, other], results, [truth, None, nothing], ["one.jpg", "two $.jpg", "three"])
    assert titles(figure) == ["photo", "anomaly map", "overlay", "ground truth"]
    rows = [figure.axes[4 * number : 4 * number + 4] for number in range(3)]
    part = f"defect: {(truth > 0).mean():.1%} of the pixels"
    assert [[axis.get_xlabel() for axis in axes] for axes in rows] == [
        ["one.jpg", "score 0.750, p-value 0.02", "anomalous", part],
        ["two $.jpg", "score 0.100", "normal", ""],
        ["three", "score 0.750", "anomalous", "no defect"],
    ]
    assert [len(outlines(axes[2])) for axes in rows] == [1, 1, 1]
    assert [len(outlines(axes[3])) for axes in rows] == [1, 0, 0]
    for axes, result in zip(rows, results):
        np.testing.assert_allclose(np.asarray(axes[1].images[0].get_array()), result["anomaly_map"])
        assert axes[1].images[0].get_clim() == (0, 1)
        assert axes[1].images[0].get_cmap().name == "vip2clip_map"
    assert rows[1][3].texts[0].get_text() == "no mask available"
    assert texts(figure) == ["marked by the detector", "ground truth"]
    with Image.open(save_figure(figure, tmp_path / "sheet.png")) as picture:
        assert picture.width >= 1600  # sharp at two pixels per point
    assert titles(results_figure([photo], [a_result(photo)])) == ["photo", "anomaly map", "overlay"]
    with pytest.raises(ValueError, match="images is empty"):
        results_figure([], [])
    with pytest.raises(ValueError, match="images is a str; expected a list"):
        results_figure("photo.png", results)
    with pytest.raises(ValueError, match="results is a dict; expected a list"):
        results_figure([photo], results[0])
    with pytest.raises(ValueError, match="titles has 1 entries; expected 3"):
        results_figure([photo, other, other], results, titles=["one"])
    with pytest.raises(ValueError, match="anomaly_map has shape"):
        results_figure([other], results[:1])


def test_colours_are_those_of_the_heatmap(photo):
    ramp = np.tile(np.linspace(0, 1, 60, dtype=np.float32), (40, 1))
    colors = heat_colors()(ramp)
    np.testing.assert_allclose(map_colors()(ramp)[..., :3], colors[..., :3])
    assert map_colors()(ramp)[..., 3].min() == 1
    below = np.asarray(photo) / 255
    over = below * (1 - colors[..., 3:]) + colors[..., :3] * colors[..., 3:]
    assert np.abs(over * 255 - np.asarray(draw_heatmap(photo, ramp), dtype=float)).max() < 3


def test_large_photos_are_drawn_smaller(monkeypatch):
    """A region of one pixel stays visible at its position."""
    monkeypatch.setattr(canvas, "MAX_SIDE", 100)
    photo = Image.new("RGB", (1010, 330), "white")
    anomaly_map = np.zeros((330, 1010), dtype=np.float32)
    anomaly_map[200, 707] = 0.9
    result = {"score": 0.9, "label": "anomalous", "anomaly_map": anomaly_map, "mask": anomaly_map > 0.5}
    figure = result_figure(photo, result, anomaly_map > 0.5)
    for axis in figure.axes[:3]:
        for image in axis.images:
            assert image.get_array().shape[:2] == (33, 100)
            assert image.get_extent() == [0, 1010, 330, 0]
    assert figure.axes[2].images[1].get_array().max() == np.float32(0.9)
    (path,) = outlines(figure.axes[2])[0].get_paths()
    np.testing.assert_allclose(path.vertices.mean(axis=0), (707, 200), atol=12)


@pytest.mark.parametrize("size", [(400, 10), (10, 400), (1, 1)])
def test_photos_of_any_shape(size, tmp_path):
    photo = Image.new("RGB", size, "white")
    save_figure(result_figure(photo, a_result(photo), np.ones(size[::-1], dtype=bool)), tmp_path / "result.png")


def test_attention(detector, photo):
    figure = attention_figure(detector, photo)
    layers = (1, 2, 4)
    expected = [f"{prompt} prompt, block {layer}" for prompt in ("normal", "anomalous") for layer in layers]
    assert titles(figure) == ["photo", *expected]
    assert "multiples of uniform attention\n(1/36 per patch; each panel has its own scale)" in figure.get_suptitle()
    maps = attention_maps(detector, photo)
    named = {axis.get_title(): axis for axis in figure.axes}
    for prompt, name in enumerate(("normal", "anomalous")):
        for layer, block in enumerate(layers):
            axis = named[f"{name} prompt, block {block}"]
            drawn, (bar,) = axis.images[1], axis.child_axes
            np.testing.assert_array_equal(drawn.get_array(), maps[layer, prompt])
            high = max(maps[layer, prompt].max(), 1.1)  # each panel has its own scale
            np.testing.assert_allclose(drawn.get_clim(), (1, high))
            assert [text.get_text() for text in bar.get_yticklabels()] == ["1×", f"{high:.3g}×"]


def test_layers(detector, photo):
    figure = layers_figure(detector, photo)
    assert [title.split(",")[0] for title in titles(figure)] == ["photo", "block 1", "block 2", "block 4", "mean"]
    assert [len(axis.child_axes) for axis in figure.axes] == [0, 0, 0, 0, 1]  # one colour bar
    maps = layer_anomaly_maps(detector, photo)
    for axis, values in zip(figure.axes[1:5], (*maps, maps.mean(axis=0))):
        np.testing.assert_array_equal(axis.images[1].get_array(), values)
        assert axis.images[1].get_clim() == (0, 1)


# The files


def test_files(detector, photo, tmp_path):
    figures = {
        "result": result_figure(photo, detector(photo)),
        "attention": attention_figure(detector, photo),
        "layers": layers_figure(detector, photo),
    }
    for name, figure in figures.items():
        path = save_figure(figure, tmp_path / "new" / f"{name}.png")
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width > picture.height > 150
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["attention.png", "layers.png", "result.png"]


def test_a_failed_write_keeps_the_old_file(photo, tmp_path, monkeypatch):
    path = tmp_path / "result.png"
    path.write_bytes(b"before")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(result_figure(photo, a_result(photo)), path)
    assert path.read_bytes() == b"before"
    assert [one.name for one in tmp_path.iterdir()] == ["result.png"]


def test_other_formats_are_refused(photo, tmp_path):
    with pytest.raises(ValueError, match=r"does not end in \.png"):
        save_figure(result_figure(photo, a_result(photo)), tmp_path / "result.pdf")


@pytest.mark.slow
def test_neither_display_nor_pyplot_is_needed(tmp_path):
    """Even if the environment selects a backend with windows."""
    code = f"""
import sys
import numpy as np
from vip2clip_hf.plotting.results import result_figure
from vip2clip_hf.utils.figures import save_figure
values = np.linspace(0, 1, 600).reshape(20, 30)
photo = np.zeros((20, 30, 3), dtype=np.uint8)
result = {{"score": 0.5, "label": "normal", "anomaly_map": values, "mask": values > 0.5}}
save_figure(result_figure(photo, result, values > 0.7), {str(tmp_path / "result.png")!r})
assert "matplotlib.pyplot" not in sys.modules
print("drawn")
"""
    env = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**env, "MPLBACKEND": "TkAgg"}, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "drawn", done.stderr[-2000:]


@pytest.mark.slow
def test_documentation_examples(tmp_path, monkeypatch, capsys):
    root = ROOT
    page = (root / "docs" / "pictures.md").read_text(encoding="utf-8")
    shutil.copytree(EXAMPLES, tmp_path / "src" / "vip2clip_hf" / "examples")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "attention.png",
        "layers.png",
        "result.png",
        "results.png",
    }
    (shown,) = re.findall(r"```\n(\(4, 2.*?)```", page, re.DOTALL)
    found = capsys.readouterr().out
    numbers = [[float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)] for text in (shown, found)]
    np.testing.assert_allclose(*numbers, atol=0.011)


# Invalid input


def test_wrong_sizes(photo, truth):
    with pytest.raises(ValueError, match=r"ground_truth has 20 x 60 pixels .* expected 40 x 60"):
        result_figure(photo, a_result(photo), truth[:20])
    with pytest.raises(ValueError, match=r"anomaly_map has shape \(20, 60\)"):
        result_figure(photo, a_result(photo, anomaly_map=np.zeros((20, 60))))
    with pytest.raises(ValueError, match=r"mask has shape \(60, 40\)"):
        result_figure(photo, a_result(photo, mask=np.zeros((60, 40))))


def test_invalid_results(photo):
    with pytest.raises(ValueError, match=r"result is a list; expected a dict with score, label, anomaly_map, mask"):
        result_figure(photo, [a_result(photo)])
    with pytest.raises(
        ValueError, match=r"result is a dict with \['score'\]; expected a dict with score, label, anomaly_map, mask"
    ):
        result_figure(photo, {"score": 0.1})
    with pytest.raises(ValueError, match="pixel_threshold is 2"):
        result_figure(photo, a_result(photo), pixel_threshold=2)
    with pytest.raises(OSError, match="not found"):
        result_figure("missing.png", a_result(photo))


def test_a_model_without_fine_grained_perception(photo):
    detector = make_detector(use_fine_grained_perception=False)
    for draw in (attention_maps, attention_figure):
        with pytest.raises(
            ValueError, match="use_fine_grained_perception is False; expected a model whose prompts attend"
        ):
            draw(detector, photo)
    assert len(layers_figure(detector, photo).axes) == 5


def test_the_detector_must_be_a_pipeline(detector, photo):
    for draw in (attention_maps, attention_figure, layer_anomaly_maps, layers_figure):
        with pytest.raises(
            ValueError, match="detector is a ViP2ClipForAnomalyDetection; expected an AnomalyDetectionPipeline"
        ):
            draw(detector.model, photo)


def test_without_matplotlib(detector, photo, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (lambda: attention_figure(detector, photo), lambda: result_figure(photo, a_result(photo))):
        with pytest.raises(ImportError, match=r"pip install 'vip2clip_hf\[train\]'"):
            draw()
    assert attention_maps(detector, photo).shape == (3, 2, 40, 60)  # arrays do not need matplotlib
