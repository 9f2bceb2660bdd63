import numpy as np
import pytest
from PIL import Image

from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import generate_image, write_dataset
from vip2clip_hf.data.synthetic.defects import DEFECTS
from vip2clip_hf.data.synthetic.textures import CATEGORIES


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("defect", [None, *DEFECTS])
def test_generate_image(category, defect):
    image, mask = generate_image(category, defect, 64, seed=3)
    assert (image.mode, image.size, mask.mode, mask.size) == ("RGB", (64, 64), "L", (64, 64))
    marked = np.asarray(mask) > 0
    assert set(np.unique(np.asarray(mask))) <= {0, 255}
    assert marked.any() == (defect is not None)
    assert marked.mean() < 0.2
    normal, _ = generate_image(category, None, 64, seed=3)
    changed = (np.asarray(image) != np.asarray(normal)).any(-1)
    assert not changed[~marked].any()  # the mask is exact
    if defect is not None:
        assert changed[marked].mean() > 0.9
    assert image.tobytes() == generate_image(category, defect, 64, seed=3)[0].tobytes()
    assert image.tobytes() != generate_image(category, defect, 64, seed=4)[0].tobytes()


def test_dataset_depends_only_on_the_seed(tmp_path):
    roots = [write_dataset(tmp_path / str(i), ("waves",), 2, 1, 32, seed) for i, seed in enumerate((0, 0, 1))]
    first, second, third = ([np.asarray(Image.open(path)) for path in sorted(root.rglob("*.png"))] for root in roots)
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert not all(np.array_equal(a, b) for a, b in zip(first, third))


def test_unknown_names():
    with pytest.raises(ValueError, match=r"'wood'; expected one of stripes"):
        generate_image("wood")
    with pytest.raises(ValueError, match=r"'hole'; expected one of scratch"):
        generate_image("waves", "hole")


def test_a_missing_part_is_a_whole_part():
    image, mask = generate_image("dots", "missing", 96, seed=5)
    normal, _ = generate_image("dots", None, 96, seed=5)
    marked = np.asarray(mask) > 0
    rows, columns = np.nonzero(marked)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 2  # one disc
    # The surface below looks like the surface between the parts.
    background = np.asarray(image)[marked].mean()
    assert abs(background - np.asarray(normal)[marked].mean()) > 20


def test_dataset_has_two_splits(tmp_path):
    root = write_dataset(tmp_path / "set", ("dots", "brushed"), num_normal=2, num_anomalous=1, size=32, num_train=3)
    assert len(load_folder(root)) == 2 * (2 + len(DEFECTS))
    train = load_folder(root, "train")
    assert len(train) == 6
    assert set(train["label"]) == {0}
    images = {row["image"].tobytes() for row in [*train, *load_folder(root)]}
    assert len(images) == 6 + 2 * (2 + len(DEFECTS))  # all images differ


def test_no_overwriting_and_no_partial_folder(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(OSError, match="not empty; expected a new folder"):
        write_dataset(tmp_path / "full", ("dots",), 1, 1, 32)
    with pytest.raises(ValueError, match=r"categories contains wood; expected some of stripes"):
        write_dataset(tmp_path / "new", ("dots", "wood"), 1, 1, 32)
    calls = []

    def fail(self, path, *arguments, **options):
        calls.append(path)
        if len(calls) == 3:
            raise OSError("disk full")
        return save(self, path, *arguments, **options)

    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_dataset(tmp_path / "new", ("dots",), 2, 2, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    (tmp_path / "empty").mkdir()
    assert len(load_folder(write_dataset(tmp_path / "empty", ("dots",), 1, 1, 32))) == 1 + len(DEFECTS)
