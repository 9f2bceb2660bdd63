"""Load benchmarks, folders, tables and Hub datasets. The layout is detected unless it is specified."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ..utils.urls import is_remote
from .benchmarks.registry import get_benchmark
from .hub_datasets import index_dataset, index_hub, is_hub_id, read_parquet_images
from .index import OTHER_FILES, OUTSIDE_IMAGES, DataIndex, make_index
from .layouts.base import Layout, Reading
from .layouts.class_folders import CLASSES
from .layouts.flat import FLAT
from .layouts.meta_json import META, read_meta, read_meta_file
from .layouts.mvtec_tree import TREE
from .layouts.registry import FOLDER_LAYOUTS, LAYOUTS
from .layouts.table import TABLE, TABLE_EXTENSIONS, find_table, metadata_file, read_table, why_not_used
from .layouts.words import ClassNames
from .listing import Listing, has_image_extension, images_beside
from .recognition import choose_layout, list_warnings, read_layout
from .report import summarize
from .store_copy import local_copy


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)
# With strict, the largest share of images outside the layout that is only logged.
MOST_OUTSIDE = 0.01


def load_benchmark(
    name: str,
    root: str | os.PathLike,
    split: str = "test",
    categories: Sequence[str] | None = None,
    *,
    layout: str | None = None,
    strict: bool = False,
) -> "Dataset":
    """
    Load one of the 15 benchmarks of the paper, as downloaded or as re-packaged by research code.

    docs/benchmarks.md shows the folder trees. No image is opened, except the masks of the official KolektorSDD, which
    contain its labels.

    Args:
        name (`str`):
            mvtec, visa, mpdd, btad, ksdd, dagm, dtd, headct, brainmri, br35h, isic, colondb, clinicdb, endo or
            kvasir.
        root (`str` or `os.PathLike`):
            Folder of the benchmark, or its parent folder.
        split (`str`, defaults to `"test"`):
            `"test"` is the split the paper evaluates and trains on. `"train"` contains the normal training images, if
            any.
        categories (`Sequence[str]`, *optional*):
            Categories to load. Defaults to all.
        layout (`str`, *optional*):
            Layout to read instead of the detected one, such as `"meta"` or `"tree"`. Must be in `Benchmark.layouts`.
        strict (`bool`, defaults to `False`):
            Whether to raise an error for problems that are otherwise logged as warnings, such as missing or ambiguous
            masks and paths that do not exist.

    Returns:
        `datasets.Dataset`: one row per image, with the columns of [`features`]. `image_id` is the path below the data
        root.

    Raises:
        ImportError: if `datasets` is not installed.
        OSError: if the folder does not exist.
        ValueError: if a name, category or split is unknown, if the folder does not match any layout of the benchmark,
            or, with `strict`, if there is any problem.
    """
    return _report_warnings(index_benchmark(name, root, split, categories, layout=layout), strict).to_dataset()


def load_folder(
    root: str | os.PathLike,
    split: str = "test",
    categories: Sequence[str] | None = None,
    *,
    layout: str | None = None,
    columns: Mapping[str, str] | None = None,
    normal_labels: Sequence[str] | None = None,
    anomalous_labels: Sequence[str] | None = None,
    strict: bool = False,
    **hub_kwargs: Any,
) -> "Dataset":
    """
    Load your own images from a folder, a table or the Hub. No image is opened, except where only the content of a mask
    tells the label.

    The layout is detected:

    - `"meta"`: a `meta.json` written by research code. Paths from another machine are matched by their last parts.
    - `"tree"`: `<category>/test/good/`, `<category>/test/<defect>/` and `<category>/ground_truth/<defect>/`, as in
      MVTec AD.
    - `"classes"`: `normal/` and `anomalous/` (also good, ok, pass, bad, nok, defect, ...), optionally with a
      subfolder per defect type and masks in `masks/`. Beside a single folder of normal images, folders of unknown
      names are defect types. Each category can have its own folder with these subfolders.
    - `"pairs"`: `images/` and `masks/`. Images are anomalous if their mask marks a pixel, so all masks are opened.
      Images without a mask are normal.
    - `"table"`: a CSV, TSV, JSONL or Parquet file, passed as `root` or the only table in the folder.
    - `"flat"`: images without labels, for prediction, also in subfolders.
    - `"hub"`: the id of a Hub dataset, if no folder has this name.

    A mask has the stem of its image, or a name such as `1_mask`, `1_gt` or `mask_1`. docs/odd-data.md lists all rules.

    Args:
        root (`str` or `os.PathLike`):
            Folder of the dataset, its parent folder, a table, a meta file, or a Hub id. Or a folder in a store, such
            as `s3://bucket/photos`, which is copied to the cache first.
        split (`str`, defaults to `"test"`):
            Split to load. Layouts without splits have only `"test"`, which contains all images.
        categories (`Sequence[str]`, *optional*):
            Categories to load. Defaults to all.
        layout (`str`, *optional*):
            Layout to read instead of the detected one.
        columns (`Mapping[str, str]`, *optional*):
            For tables and Hub datasets: column names for `image`, `mask`, `label`, `category`, `defect`, `split` and
            `image_id`. Only needed for columns without one of the usual names.
        normal_labels (`Sequence[str]`, *optional*):
            Names of folders, or labels of tables and Hub datasets, that mean normal. All others then mean anomalous,
            unless `anomalous_labels` is set.
        anomalous_labels (`Sequence[str]`, *optional*):
            Names of folders, or labels of tables and Hub datasets, that mean anomalous.
        strict (`bool`, defaults to `False`):
            Whether to raise an error for problems and guesses that are otherwise logged as warnings. Up to 1 % of
            images outside the layout are only logged.
        **hub_kwargs:
            For Hub datasets: arguments of `datasets.load_dataset`, such as `name`, `revision`, `token` or `cache_dir`.

    Returns:
        `datasets.Dataset`: one row per image, with the columns of [`features`].

    Raises:
        ImportError: if `datasets` is not installed.
        OSError: if the folder or file does not exist, or if the Hub cannot be reached.
        TypeError: if `hub_kwargs` are passed for a dataset that is not on the Hub.
        ValueError: if no layout matches, if a category, split or column is unknown, or, with `strict`, if there is any
            problem.
    """
    index = index_folder(
        root, split, categories, layout=layout, columns=columns, normal_labels=normal_labels,
        anomalous_labels=anomalous_labels, **hub_kwargs,
    )  # fmt: skip
    return _report_warnings(index, strict).to_dataset()


def _report_warnings(index: DataIndex, strict: bool) -> DataIndex:
    """Log the warnings of an index. With `strict`, raise the first one."""
    for kind, paths in index.warnings.items():
        text = f"{index.root}: {summarize(kind, paths)}"
        few = kind == OUTSIDE_IMAGES and len(paths) <= MOST_OUTSIDE * (len(paths) + len(index.reading.rows))
        if strict and not few:
            raise ValueError(f"{text}. Fix the dataset, or set strict=False to continue with a warning.")
        logger.warning(text)
    return index


def index_benchmark(
    name: str,
    root: str | os.PathLike,
    split: str = "test",
    categories: Sequence[str] | None = None,
    *,
    layout: str | None = None,
) -> DataIndex:
    """
    Index one of the 15 benchmarks of the paper. Needs only the base installation.

    Args:
        name, root, split, categories, layout: see [`load_benchmark`].

    Returns:
        `DataIndex`: `index.report` describes the dataset, `index.to_dataset()` loads it.

    Raises:
        OSError: if the folder does not exist.
        ValueError: if a name, category or split is unknown, or if the folder does not match any layout of the
            benchmark.
    """
    benchmark = get_benchmark(name)
    listing = Listing(_existing_folder(_here(root)))
    if layout is not None and layout not in benchmark.layouts:
        raise ValueError(
            f"layout is {layout!r}; expected one of {', '.join(benchmark.layouts)} for {benchmark.title}."
        )
    layouts = [LAYOUTS[known] for known in (benchmark.layouts if layout is None else (layout,))]
    reading, found = read_layout(listing, choose_layout(listing, layouts, benchmark), layouts, benchmark)
    return make_index(reading, found, split, categories)


def index_folder(
    root: str | os.PathLike,
    split: str = "test",
    categories: Sequence[str] | None = None,
    *,
    layout: str | None = None,
    columns: Mapping[str, str] | None = None,
    normal_labels: Sequence[str] | None = None,
    anomalous_labels: Sequence[str] | None = None,
    **hub_kwargs: Any,
) -> DataIndex:
    """
    Index your own images. Folders, CSV, TSV and JSONL files need only the base installation.

    Args:
        root, split, categories, layout, columns, normal_labels, anomalous_labels, hub_kwargs: see [`load_folder`].

    Returns:
        `DataIndex`: `index.report` describes the dataset, `index.to_dataset()` loads it.

    Raises:
        ImportError: if `datasets` is not installed and `root` is a Parquet file or a Hub id.
        OSError: if the folder or file does not exist, or if the Hub cannot be reached.
        TypeError: if `hub_kwargs` are passed for a dataset that is not on the Hub.
        ValueError: if no layout matches, or if a category, split or column is unknown.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; expected one of {', '.join(LAYOUTS)}.")
    names = ClassNames.of(normal_labels, anomalous_labels)
    labels = (normal_labels, anomalous_labels)
    allows_table = layout in (None, "table")
    root = _here(root)
    path = Path(root)
    if layout == "hub" or (layout is None and not path.exists() and is_hub_id(root)):
        return index_hub(str(root), split, categories, columns, *labels, hub_kwargs)
    if hub_kwargs:
        raise TypeError(
            f"Unexpected arguments {', '.join(sorted(hub_kwargs))}; additional arguments are for Hub datasets only."
        )
    if path.is_file():
        if layout in (None, "meta") and path.suffix.lower() == ".json" and read_meta_file(path) is not None:
            reading = Reading(Listing(path.parent))
            read_meta(reading, path.name)
            _check_not_empty(reading, path)
            _check_names(reading, META, names)
            return make_index(reading, META, split, categories)
        if allows_table and path.suffix.lower() in TABLE_EXTENSIONS:
            return _index_table(Listing(path.parent), path.name, split, categories, columns, labels)
        raise ValueError(
            f"{str(path)!r} is not a dataset; expected a folder, meta.json or a table ({', '.join(TABLE_EXTENSIONS)})."
        )
    listing = Listing(_existing_folder(root))
    if columns is not None:
        if not allows_table:
            raise ValueError(f"columns cannot be used with layout={layout!r}; they are for tables and Hub datasets.")
        layout = "table"
    if layout == "table" or (layout is None and metadata_file(listing) is not None):
        return _with_unlisted(_index_table(listing, find_table(listing), split, categories, columns, labels))
    layouts = [LAYOUTS[layout]] if layout is not None else FOLDER_LAYOUTS
    chosen = choose_layout(listing, layouts, None, names)
    if chosen is not None and chosen[1][0] is TABLE:
        return _with_unlisted(_index_table(chosen[0], find_table(chosen[0]), split, categories, columns, labels))
    reading, found = read_layout(listing, chosen, layouts, None, names)
    _check_names(reading, found, names)
    if found is FLAT and (reason := why_not_used(reading.listing)) is not None:
        reading.warn("tables that were not used, so the images have no labels", reason)
    if reading.listing.root != listing.root:
        reading.beside = images_beside(listing, reading.listing.root.relative_to(listing.root).as_posix())
    return make_index(reading, found, split, categories)


def _check_names(reading: Reading, layout: Layout, names: ClassNames) -> None:
    """Check that the folders have the names that the user has chosen."""
    if not names.given:
        return
    if layout not in (TREE, CLASSES):
        raise ValueError(
            f"normal_labels and anomalous_labels cannot be used with the layout {layout.title!r} of "
            f"{str(reading.listing.root)!r}; expected class folders, a table or a Hub dataset."
        )
    for argument, chosen in (("normal_labels", names.normal), ("anomalous_labels", names.anomalous)):
        missing = [name for name in chosen or () if name not in reading.classes]
        if missing:
            raise ValueError(
                f"{argument} has {', '.join(map(repr, missing))}, but {str(reading.listing.root)!r} has no such "
                f"folder with images; expected some of {', '.join(sorted(reading.classes))}."
            )


def _here(root: str | os.PathLike) -> str | os.PathLike:
    """The folder or file; a local copy if it is in a store."""
    return local_copy(root) if isinstance(root, str) and is_remote(root) else root


def _existing_folder(root: str | os.PathLike) -> Path:
    path = Path(root)
    if path.is_dir():
        return path
    if path.exists():
        raise OSError(f"{str(path)!r} is a file; expected the folder of a dataset.")
    raise OSError(f"Folder {str(path)!r} not found; expected the folder of a dataset.")


def _check_not_empty(reading: Reading, path: Path) -> None:
    if not reading.rows:
        raise ValueError(
            f"None of the images listed in {str(path)!r} exists; expected paths relative to the folder of this file."
            f"{list_warnings(reading)}"
        )


def _with_unlisted(index: DataIndex) -> DataIndex:
    """Warn of images that a table in the folder does not list. If the user passes the table itself, that is meant."""
    if index.source is None:
        for reason, paths in index.ignored.items():
            if reason not in OTHER_FILES:
                for path in filter(has_image_extension, paths):
                    index.reading.warn("images and masks that the table in the folder does not list, left out", path)
    return index


def _index_table(
    listing: Listing,
    table: str,
    split: str,
    categories: Sequence[str] | None,
    columns: Mapping[str, str] | None,
    labels: tuple[Sequence[str] | None, Sequence[str] | None],
) -> DataIndex:
    path = listing.root / table
    if path.suffix.lower() == ".parquet" and (dataset := read_parquet_images(path, columns)) is not None:
        category = path.absolute().parent.name
        return index_dataset(dataset, str(path), TABLE, split, categories, columns, *labels, category)
    reading = Reading(listing)
    read_table(reading, table, columns, *labels)
    _check_not_empty(reading, path)
    return make_index(reading, TABLE, split, categories)


__all__ = ["index_benchmark", "index_folder", "load_benchmark", "load_folder"]
