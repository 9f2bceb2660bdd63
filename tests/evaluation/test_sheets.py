import numpy as np
import pytest
from PIL import Image

from helpers.tiny import TINY
from vip2clip_hf import ViP2ClipDetector, ViP2ClipForAnomalyDetection
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation.sheets import choose_examples, draw_sheet, write_sheets


def test_choose_examples():
    labels = [0] * 10 + [1] * 20
    defects = [""] * 10 + ["dent"] * 10 + ["scratch"] * 10
    chosen = choose_examples(labels, defects, 8)
    assert chosen == choose_examples(labels, defects, 8)
    assert len(set(chosen)) == 8
    assert sum(labels[i] == 0 for i in chosen) == 2
    assert sum(defects[i] == "dent" for i in chosen) == 3
    assert choose_examples([0, 0, 1], ["", "", "x"], 8) == [2, 0, 1]
    assert len(choose_examples([0] * 9, [""] * 9, 4)) == 4
    assert len(choose_examples([1] * 9, ["x"] * 9, 4)) == 4


def test_all_maps_have_the_same_colour_scale():
    image = Image.new("RGB", (40, 20))
    rows = [
        {"image": image, "mask": np.eye(20, 40, dtype=bool), "anomaly_map": np.full((8, 8), 0.1), "caption": "a"},
        {"image": image, "mask": None, "anomaly_map": np.linspace(0, 0.9, 64).reshape(8, 8), "caption": "b"},
    ]
    figure = draw_sheet(rows, "title")
    maps = [
        axis.images[0] for axis in figure.axes[:6] if axis.images and axis.images[0].get_cmap().name == "vip2clip_map"
    ]
    assert len(maps) == 2
    assert all(one.get_clim() == (0, 1) for one in maps)
    assert figure.axes[2].get_title(loc="left") == "0.100 to 0.100"
    figure = draw_sheet(rows, "title", (0.2, 0.4))
    assert figure.axes[2].images[0].get_clim() == (0.2, 0.4)


def test_sheets_of_a_dataset(tmp_path, clip, image_processor):
    root = write_dataset(tmp_path / "set", ("stripes", "weave"), num_normal=3, num_anomalous=1, size=48)
    model = ViP2ClipForAnomalyDetection.from_clip(clip, **TINY).eval()
    detector = ViP2ClipDetector(model, image_processor)
    paths = write_sheets(detector, load_folder(root), tmp_path / "sheets", count=3, title="set")
    assert [path.name for path in paths] == ["stripes.png", "weave.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width > 600
            assert picture.height > 600
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == ["stripes.png", "weave.png"]
    # An existing sheet is kept.
    paths[0].write_bytes(b"mine")
    write_sheets(detector, load_folder(root), tmp_path / "sheets", count=3)
    assert paths[0].read_bytes() == b"mine"


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install 'vip2clip_hf\\[train\\]'"):
        draw_sheet([], "title")
