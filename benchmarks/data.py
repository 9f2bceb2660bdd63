"""Listing and labelling of a folder, compared with `imagefolder` of datasets."""

import argparse
import shutil
import tempfile
from pathlib import Path

import datasets
from PIL import Image

from vip2clip_hf.data.loading import index_folder, load_folder

from .common import median_time


def write_tree(root: Path, num_images: int, num_categories: int = 10) -> None:
    """Write a folder in the layout of MVTec AD with masks. All images are identical."""
    root.mkdir()
    source = root / "image.png"
    Image.new("L", (8, 8), 255).save(source)
    per_kind = num_images // (2 * num_categories)
    for category in range(num_categories):
        for folder, suffix in (("test/good", ""), ("test/bad", ""), ("ground_truth/bad", "_mask")):
            target = root / f"category{category}" / folder
            target.mkdir(parents=True)
            for number in range(per_kind):
                shutil.copyfile(source, target / f"{number:03d}{suffix}.png")
    source.unlink()


def benchmark_data(options: argparse.Namespace) -> None:
    """Measure listing and labelling of a folder, compared with `imagefolder`, which reads no masks or categories."""
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "data")
        write_tree(root, options.images)
        count = len(load_folder(root))
        print(f"{count} images and {count // 2} masks in 10 categories, medians of {options.repeats} repeats")
        ours = median_time(lambda: load_folder(root), options.repeats)
        report = median_time(lambda: index_folder(root).report, options.repeats)

        def imagefolder() -> None:
            cache = tempfile.mkdtemp(dir=folder)
            datasets.load_dataset("imagefolder", data_dir=str(root), split="test", cache_dir=cache)

        theirs = median_time(imagefolder, options.repeats)
        print(f"  load_folder                    {ours:8.3f} s")
        print(f"  index_folder(...).report       {report:8.3f} s")
        print(f"  datasets imagefolder           {theirs:8.3f} s   {theirs / ours:.0f} times as long as load_folder")
