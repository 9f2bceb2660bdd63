"""Indexing of a folder, against `imagefolder` of datasets."""

import argparse
import shutil
import tempfile
from pathlib import Path

import datasets
from PIL import Image

from vip2clip_hf.data.loading import index_folder, load_folder

from .common import median_time


def write_tree(root: Path, num_images: int, num_categories: int = 10):
    """A tree like that of MVTec AD with masks; all pictures are the same."""
    root.mkdir()
    picture = root / "picture.png"
    Image.new("L", (8, 8), 255).save(picture)
    per_kind = num_images // (2 * num_categories)
    for category in range(num_categories):
        for folder, suffix in (("test/good", ""), ("test/bad", ""), ("ground_truth/bad", "_mask")):
            target = root / f"category{category}" / folder
            target.mkdir(parents=True)
            for number in range(per_kind):
                shutil.copyfile(picture, target / f"{number:03d}{suffix}.png")
    picture.unlink()


def benchmark_data(options: argparse.Namespace):
    """Indexing of a folder, against `imagefolder` of datasets, which knows neither masks nor categories."""
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "data")
        write_tree(root, options.images)
        count = len(load_folder(root))
        print(f"{count} images and {count // 2} masks in 10 categories, {options.repeats} repeats, medians")
        ours = median_time(lambda: load_folder(root), options.repeats)
        report = median_time(lambda: index_folder(root).report, options.repeats)

        def imagefolder():
            cache = tempfile.mkdtemp(dir=folder)
            datasets.load_dataset("imagefolder", data_dir=str(root), split="test", cache_dir=cache)

        theirs = median_time(imagefolder, options.repeats)
        print(f"  load_folder                    {ours:8.3f} s")
        print(f"  index_folder(...).report       {report:8.3f} s")
        print(f"  datasets imagefolder           {theirs:8.3f} s   {theirs / ours:.0f} times load_folder")
