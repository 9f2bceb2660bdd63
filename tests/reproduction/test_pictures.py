"""Figures 3, 4 and 7: choice of the images, panels, colour scales, files."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny import change_weights, tiny_config
from vip2clip_hf import AnomalyDetectionPipeline, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.evaluation.detector import Detector
from vip2clip_hf.models.vip2clip.mask_options_vip2clip import MaskOptions
from vip2clip_hf.plotting.attention import attention_maps, layer_anomaly_maps
from vip2clip_hf.reproduction.examples import Example, figure_examples, read_examples
from vip2clip_hf.reproduction.figure_files import write_figure
from vip2clip_hf.reproduction.pictures import draw_attention, draw_layers, draw_methods, method_maps


LAYERS = (1, 2, 4)


@pytest.fixture
def detector() -> AnomalyDetectionPipeline:
    return make_detector()


def make_detector(options=None, **overrides) -> AnomalyDetectionPipeline:
    torch.manual_seed(0)
    model = ViP2ClipForAnomalyDetection(tiny_config("release", smoothing_sigma=1.0, **overrides)).eval()
    change_weights(model)
    processor = ViP2ClipImageProcessor(size=48)
    return AnomalyDetectionPipeline(model=model, image_processor=processor, device="cpu", **(options or {}))


@pytest.fixture
def examples(photo) -> list[Example]:
    mask = np.zeros((photo.height, photo.width), dtype=bool)
    mask[10:20, 30:50] = True
    return [Example(photo, mask, "MVTec AD, hazelnut, crack"), Example(photo.resize((30, 45)), None, "costs $5 or $6")]


def write_images(root, category: str, areas: dict[str, list[int | None]]):
    """Write images with a number of anomalous pixels of 100, or without a mask."""
    for defect, sizes in areas.items():
        for number, size in enumerate(sizes):
            paths = [root / category / folder / defect for folder in ("test", "ground_truth")]
            for path in paths:
                path.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (10, 10), (number, 100, 200)).save(paths[0] / f"{number:03d}.png")
            if size is not None and defect != "good":
                mask = np.arange(100).reshape(10, 10) < size
                Image.fromarray(mask.astype(np.uint8) * 255).save(paths[1] / f"{number:03d}_mask.png")


def chosen(dataset, count: int, **options) -> list[str]:
    positions = figure_examples(dataset, count, **options)
    assert positions == figure_examples(dataset, count, **options)
    return [dataset[position]["image_id"].replace("/test/", "/").removesuffix(".png") for position in positions]


# The images


def test_examples_have_a_typical_area(tmp_path):
    write_images(tmp_path, "bottle", {"good": [0], "broken": [90, 30, 1, 32, 33]})
    dataset = load_folder(tmp_path)
    assert chosen(dataset, 2) == ["bottle/broken/003", "bottle/broken/004"]  # the median is 32
    assert chosen(dataset, 9) == [f"bottle/broken/00{number}" for number in (3, 4, 1, 2, 0)]


def test_defects_and_categories_take_turns(tmp_path):
    write_images(tmp_path, "bottle", {"good": [0], "broken": [10, 20, 30], "cut": [20, 90]})
    write_images(tmp_path, "cable", {"good": [0], "bent": [50]})
    dataset = load_folder(tmp_path)
    assert chosen(dataset, 4) == ["bottle/broken/001", "cable/bent/000", "bottle/cut/000", "bottle/broken/000"]


def test_categories_of_the_paper_come_first(tmp_path):
    write_images(tmp_path, "bottle", {"good": [0], "broken": [10, 20]})
    write_images(tmp_path, "leather", {"good": [0], "cut": [5]})
    write_images(tmp_path, "hazelnut", {"good": [0], "hole": [5, 6]})
    dataset = load_folder(tmp_path)
    assert [name.split("/")[0] for name in chosen(dataset, 2)] == ["hazelnut", "leather"]
    assert [name.split("/")[0] for name in chosen(dataset, 4)] == ["hazelnut", "leather", "hazelnut", "bottle"]
    assert chosen(dataset, 1, categories=["bottle", "unknown"]) == ["bottle/broken/000"]


def test_only_the_needed_masks_are_read(tmp_path):
    write_images(tmp_path, "hazelnut", {"good": [0], "hole": [5]})
    write_images(tmp_path, "bottle", {"good": [0], "broken": [10]})
    (tmp_path / "bottle" / "ground_truth" / "broken" / "000_mask.png").write_bytes(b"not an image")
    dataset = load_folder(tmp_path)
    assert chosen(dataset, 1) == ["hazelnut/hole/000"]
    with pytest.raises(OSError, match="000_mask"):
        figure_examples(dataset, 2)


def test_images_without_a_mask_come_last(tmp_path):
    write_images(tmp_path, "bottle", {"good": [0], "broken": [None, 0, 40]})
    dataset = load_folder(tmp_path)
    assert chosen(dataset, 3) == ["bottle/broken/002", "bottle/broken/000", "bottle/broken/001"]
    first, second, third = read_examples(dataset, 3)
    assert first.mask.sum() == 40
    assert second.mask is None
    assert not third.mask.any()


def test_options_of_masks(tmp_path):
    write_images(tmp_path, "bottle", {"good": [0], "broken": [40]})
    options = MaskOptions(invert=True)
    assert read_examples(load_folder(tmp_path), mask_options=options)[0].mask.sum() == 60


def test_captions(tmp_path):
    write_images(tmp_path, "magnetic_tile", {"good": [0], "crack": [5]})
    (example,) = read_examples(load_folder(tmp_path), title="MVTec AD")
    assert example.caption == "MVTec AD, magnetic_tile, crack"
    assert read_examples(load_folder(tmp_path), title="Magnetic tile")[0].caption == "Magnetic tile, crack"
    assert example.image.size == (10, 10)


def test_invalid_counts(tmp_path):
    write_images(tmp_path, "bottle", {"good": [0], "broken": [40]})
    dataset = load_folder(tmp_path)
    with pytest.raises(ValueError, match="count is 0; expected at least 1"):
        figure_examples(dataset, 0)
    with pytest.raises(ValueError, match="no image with label 1"):
        figure_examples(dataset.filter(lambda row: row["label"] == 0), 1)


# The sheets


def panels(figure, rows: int = 2) -> np.ndarray:
    """Axes by row and column, without the colour bar."""
    return np.array(figure.axes[:-1]).reshape(rows, -1)


def heads(figure) -> list[str]:
    return [axis.get_title() for axis in panels(figure)[0]]


def test_attention(detector, examples):
    figure = draw_attention(detector, examples)
    names = [f"{prompt} prompt\nblock {layer}" for layer in LAYERS for prompt in ("normal", "anomalous")]
    assert heads(figure) == ["image", *names]
    for example, row in zip(examples, panels(figure)):
        assert np.array_equal(row[0].images[0].get_array(), np.asarray(example.image))
        maps = attention_maps(detector, example.image)
        for axis, values in zip(row[1:], maps.reshape(6, *maps.shape[2:])):
            np.testing.assert_array_equal(axis.images[1].get_array(), values)
            high = max(values.max(), 1.1)
            np.testing.assert_allclose(axis.images[1].get_clim(), (1, high))
            assert axis.get_xlabel() == f"1× to {high:.3g}×"
    assert [axis.get_title() for axis in panels(figure)[1]] == [""] * 7
    ticks = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert ticks == ["1× (uniform)", "largest value (below the map)"]


def test_layers_of_the_attention(detector, examples):
    figure = draw_attention(detector, examples[:1], [4])
    assert [axis.get_title() for axis in figure.axes[:-1]] == ["image", "normal prompt\nblock 4",
                                                              "anomalous prompt\nblock 4"]  # fmt: skip
    expected = attention_maps(detector, examples[0].image)[2]
    np.testing.assert_array_equal([axis.images[1].get_array() for axis in figure.axes[1:3]], expected)
    for layers in ([3], []):
        with pytest.raises(ValueError, match=r"expected some of the feature layers \[1, 2, 4\]"):
            draw_attention(detector, examples, layers)
    with pytest.raises(ValueError, match="use_fine_grained_perception is False"):
        draw_attention(make_detector(use_fine_grained_perception=False), examples)
    with pytest.raises(ValueError, match="examples is empty"):
        draw_attention(detector, [])


def test_layers(detector, examples):
    figure = draw_layers(detector, examples)
    assert heads(figure) == ["image", "ground truth", "block 1", "block 2", "block 4", "mean (final map)"]
    for example, row in zip(examples, panels(figure)):
        maps = layer_anomaly_maps(detector, example.image)
        for axis, values in zip(row[2:], (*maps, maps.mean(axis=0))):
            np.testing.assert_array_equal(axis.images[1].get_array(), values)
            assert axis.images[1].get_clim() == (0, 1)
            assert axis.get_xlabel() == f"{values.min():.3f} to {values.max():.3f}"
        np.testing.assert_allclose(row[-1].images[1].get_array(), detector(example.image)["anomaly_map"], atol=1e-5)
    first, second = panels(figure)[:, 1]
    assert np.array_equal(first.images[0].get_array(), examples[0].mask)
    assert not second.images
    assert [text.get_text() for text in second.texts] == ["no mask"]
    assert panels(figure)[0][0].get_xlabel().replace("\n", " ") == examples[0].caption


def test_tiles(examples):
    tiled = make_detector({"tile_size": 32})
    for draw in (draw_attention, draw_layers):
        assert draw(tiled, examples[:1]).get_suptitle().endswith("(whole photo; the result uses tiles of 32 pixels)")
    with pytest.raises(ValueError, match="detector is a str; expected an AnomalyDetectionPipeline"):
        draw_layers("checkpoint", examples)


class Method:
    """A detector whose maps have the mean brightness of the image."""

    image_size = 8

    def __init__(self, name: str, change=lambda maps: maps):
        self.name, self.change, self.batches = name, change, []

    def prepare(self, images):
        self.batches.append(len(images))
        return torch.stack([torch.from_numpy(np.array(one.resize((8, 8)).convert("L"))) for one in images]) / 255

    def score(self, batch):
        return batch.amax(dim=(1, 2)), self.change(batch)


def test_maps_of_methods(examples):
    method = Method("brightness")
    assert isinstance(method, Detector)
    maps = method_maps(method, examples * 2, batch_size=3)
    assert method.batches == [3, 1]
    for example, values in zip(examples * 2, maps):
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, np.asarray(example.image.resize((8, 8)).convert("L")) / 255, rtol=1e-5)
    assert method_maps(Method("scores only", lambda maps: None), examples) == ["no maps", "no maps"]
    with pytest.raises(ValueError, match=r"maps of half have shape \(2, 4, 8\); expected \(2, 8, 8\)"):
        method_maps(Method("half", lambda maps: maps[:, :4]), examples)
    with pytest.raises(ValueError, match="maps of undefined contain NaN"):
        method_maps(Method("undefined", lambda maps: maps * np.nan), examples)


def test_methods(examples):
    unit = [np.full((8, 8), 0.2), np.linspace(0, 1 + 1e-6, 64).reshape(8, 8)]
    logits = [np.linspace(-2, 1, 64).reshape(8, 8), np.full((8, 8), 3.0)]
    maps = {"$A$": unit, "CLIP": logits, "AdaCLIP": ["weights not found"] * 2, "partly": ["failed", unit[0]]}
    figure = draw_methods(examples, maps)
    assert heads(figure) == ["image", "ground truth", "$A$\n0 to 1", "CLIP\n-2 to 3", "AdaCLIP", "partly\n0 to 1"]
    rows = panels(figure)
    for number in range(2):
        np.testing.assert_array_equal(rows[number][2].images[1].get_array(), unit[number])
        assert rows[number][2].images[1].get_clim() == (0, 1)
        np.testing.assert_array_equal(rows[number][3].images[1].get_array(), logits[number])
        assert rows[number][3].images[1].get_clim() == (-2, 3)  # one scale for all images of a method
        assert not rows[number][4].images
        assert rows[number][4].texts[0].get_text() == "weights not found"
        # Maps of any size lie over the whole photo.
        photo = examples[number].image
        assert rows[number][2].images[1].get_extent() == [0, photo.width, photo.height, 0]
    assert [axis.get_xlabel() for axis in rows[0]][2:4] == ["0.200 to 0.200", "-2 to 1"]
    assert rows[0][5].texts[0].get_text() == "failed"
    ticks = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert ticks == ["smallest", "largest value of the scale"]
    ticks = draw_methods(examples, {"A": unit}).axes[-1].get_xticklabels()
    assert [text.get_text() for text in ticks] == ["0", "1"]


def test_invalid_maps(examples):
    with pytest.raises(ValueError, match="maps is empty"):
        draw_methods(examples, {})
    with pytest.raises(ValueError, match="maps has 1 maps of CLIP; expected 2"):
        draw_methods(examples, {"CLIP": [np.zeros((8, 8))]})
    assert len(draw_methods(examples, {"CLIP": ["failed", "failed"]}).axes) == 6  # no colour bar


def test_files_are_reproducible(examples, tmp_path):
    maps = {"CLIP": [np.zeros((8, 8))] * 2}
    first, second = (write_figure(draw_methods(examples, maps), tmp_path / name, 4) for name in "ab")
    assert [path.name for path in first] == ["figure4.png", "figure4.pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_nothing_overlaps(examples):
    maps = {"CLIP": [np.zeros((8, 8))] * 2, "WinCLIP": ["weights not found: win.pth"] * 2}
    figure = draw_methods(examples, maps)
    figure.draw_without_rendering()
    title = figure._suptitle.get_window_extent()
    rows, bar = panels(figure), figure.axes[-1]
    assert title.y1 <= figure.bbox.y1
    assert all(axis.title.get_window_extent().y1 <= title.y0 for axis in rows[0])
    for upper, lower in zip(rows[0], rows[1]):
        assert upper.xaxis.label.get_window_extent().y0 >= lower.get_window_extent().y1
        assert lower.xaxis.label.get_window_extent().y0 >= bar.get_window_extent().y1
    for row in rows:
        for left, right in pairwise(row):
            assert left.get_tightbbox().x1 <= right.get_tightbbox().x0


def test_maps_of_categories(examples):
    """A method with prompts that contain the class has a detector for each category."""

    class Named(Method):
        def for_category(self, name):
            asked.append(name)
            return Method(name, lambda maps: maps * 0 + len(name))

    asked = []
    first, second = (dataclasses.replace(one, category=name) for one, name in zip(examples, ("nut", "screw")))
    maps = method_maps(Named("named", lambda maps: None), [first, first, second])
    assert asked == ["nut", "screw"]
    assert [float(one.mean()) for one in maps] == [3, 3, 5]
