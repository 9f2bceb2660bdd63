"""Load benchmarks, folders, tables and Hub datasets. The layout is recognised or given."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import logging

from .benchmarks.registry import get_benchmark
from .hub_datasets import index_dataset, index_hub, is_hub_id, with_images_inside
from .index import DataIndex, make_index
from .layouts.base import Reading
from .layouts.meta_json import META, read_meta, read_meta_file
from .layouts.registry import FOLDER_LAYOUTS, LAYOUTS
from .layouts.table import TABLE, TABLE_EXTENSIONS, find_table, metadata_file, read_table
from .listing import Listing
from .recognition import choose_layout, left_out, read_layout
from .report import examples


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)


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
    One of the 15 benchmarks of the paper, as downloaded or as re-packed by the research codes. docs/benchmarks.md has
    the folder trees. No image is opened (official KolektorSDD excepted, whose labels are in its masks).

    Args:
        name (`str`):
            mvtec, visa, mpdd, btad, ksdd, dagm, dtd, headct, brainmri, br35h, isic, colondb, clinicdb, endo or
            kvasir.
        root (`str` or `os.PathLike`):
            Its folder, or the folder that holds this folder.
        split (`str`, defaults to `"test"`):
            `"test"` is what the paper evaluates and trains on; `"train"` has normal images, where there are any.
        categories (`Sequence[str]`, *optional*):
            Categories to take; all, when not given.
        layout (`str`, *optional*):
            Layout to read it in instead of the one recognised: `"meta"`, `"tree"`, ...; see the benchmark's
            `layouts`.
        strict (`bool`, defaults to `False`):
            Raise where otherwise a counted warning is logged: masks that are missing or not to be told apart, paths
            that lead nowhere, ...

    Returns:
        `datasets.Dataset`: columns as in [`features`]. `image_id` is the path below the data root.

    Raises:
        OSError: no such folder.
        ValueError: an unknown name, category or split; a folder in none of the layouts; with `strict`, anything that
            is not as it should be.
    """
    return _logged(index_benchmark(name, root, split, categories, layout=layout), strict).to_dataset()


def load_folder(
    root: str | os.PathLike,
    split: str = "test",
    categories: Sequence[str] | None = None,
    *,
    layout: str | None = None,
    columns: Mapping[str, str] | None = None,
    normal_labels: Sequence[str] | None = None,
    strict: bool = False,
    **hub_kwargs,
) -> "Dataset":
    """
    One's own images. The layout is recognised:

    - `"meta"`: a `meta.json` of the research codes; paths of another machine are found by their end,
    - `"tree"`: `<category>/test/good/`, `<category>/test/<defect>/`, `<category>/ground_truth/<defect>/`, as MVTec AD,
    - `"classes"`: `normal/` and `anomalous/` (also good, ok, bad, defect, ...), in them folders for the kinds of
      defects, masks in `masks/`; all of it also once for each category,
    - `"pairs"`: `images/` and `masks/`; an image with a mask is anomalous,
    - `"table"`: a CSV, TSV, JSONL or Parquet file, given itself or as the only one in the folder,
    - `"flat"`: images without labels, for prediction,
    - `"hub"`: the id of a data set of the Hub, where there is no such folder.

    Masks have the stem of their image, with or without `_mask` or `_label`. No image is opened.

    Args:
        root (`str` or `os.PathLike`):
            Folder (or the folder that holds it), table, or Hub id.
        split (`str`, defaults to `"test"`):
            Split to take. Layouts without splits have `"test"` only, which is everything.
        categories (`Sequence[str]`, *optional*):
            Categories to take; all, when not given.
        layout (`str`, *optional*):
            One of the above, instead of the one recognised.
        columns (`Mapping[str, str]`, *optional*):
            For tables and Hub data sets: the column that holds `image`, `mask`, `label`, `category`, `defect`, `split`
            or `image_id`, where its name is not a usual one.
        normal_labels (`Sequence[str]`, *optional*):
            For tables and Hub data sets: the labels that mean normal; all others then mean anomalous.
        strict (`bool`, defaults to `False`):
            Raise where otherwise a counted warning is logged.
        hub_kwargs:
            For Hub data sets: `name`, `revision`, `token`, `cache_dir`, ... of `datasets.load_dataset`.

    Returns:
        `datasets.Dataset`: columns as in [`features`].

    Raises:
        OSError: nothing there, or the Hub cannot be reached.
        ValueError: no layout recognised, an unknown category, split or column; with `strict`, anything that is not as
            it should be.
    """
    index = index_folder(
        root, split, categories, layout=layout, columns=columns, normal_labels=normal_labels, **hub_kwargs
    )
    return _logged(index, strict).to_dataset()


def _logged(index: DataIndex, strict: bool) -> DataIndex:
    for kind, paths in index.warnings.items():
        text = f"{index.root}: {len(paths)} {kind}: {examples(paths)}"
        if strict:
            raise ValueError(f"{text}. Without strict=True this is a warning.")
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
    """As [`load_benchmark`], with the report in place of the data set; `to_dataset()` makes that."""
    benchmark = get_benchmark(name)
    listing = Listing(_existing_folder(root))
    if layout is not None and layout not in benchmark.layouts:
        raise ValueError(f"layout is {layout!r}; {benchmark.title} is read in {', '.join(benchmark.layouts)}.")
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
    **hub_kwargs,
) -> DataIndex:
    """As [`load_folder`], with the report in place of the data set; `to_dataset()` makes that."""
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; expected one of {', '.join(LAYOUTS)}.")
    wants_table = layout in (None, "table")
    path = Path(root)
    if layout == "hub" or (layout is None and not path.exists() and is_hub_id(root)):
        return index_hub(str(root), split, categories, columns, normal_labels, hub_kwargs)
    if hub_kwargs:
        raise TypeError(f"Unknown arguments {', '.join(sorted(hub_kwargs))}; they are for data sets of the Hub.")
    if path.is_file():
        if layout in (None, "meta") and path.suffix.lower() == ".json" and read_meta_file(path) is not None:
            reading = Reading(Listing(path.parent))
            read_meta(reading, path.name)
            if not reading.rows:
                raise ValueError(
                    f"{str(path)!r} names no image that is there; expected paths below its folder.{left_out(reading)}"
                )
            return make_index(reading, META, split, categories)
        if wants_table and path.suffix.lower() in TABLE_EXTENSIONS:
            return _index_table(Listing(path.parent), path.name, split, categories, columns, normal_labels)
        raise ValueError(
            f"{str(path)!r} is a file that holds no data set; expected a folder, meta.json, or a table "
            f"({', '.join(TABLE_EXTENSIONS)})."
        )
    listing = Listing(_existing_folder(root))
    if columns is not None or normal_labels is not None:
        if not wants_table:
            raise ValueError("columns and normal_labels are for tables and data sets of the Hub; leave them out.")
        layout = "table"
    if layout == "table" or (layout is None and metadata_file(listing) is not None):
        return _index_table(listing, find_table(listing), split, categories, columns, normal_labels)
    layouts = [LAYOUTS[layout]] if layout is not None else FOLDER_LAYOUTS
    chosen = choose_layout(listing, layouts, None)
    if chosen is not None and chosen[1][0] is TABLE:
        return _index_table(chosen[0], find_table(chosen[0]), split, categories, columns, normal_labels)
    reading, found = read_layout(listing, chosen, layouts, None)
    return make_index(reading, found, split, categories)


def _existing_folder(root: str | os.PathLike) -> Path:
    path = Path(root)
    if path.is_dir():
        return path
    if path.exists():
        raise OSError(f"{str(path)!r} is a file; expected the folder of a data set.")
    raise OSError(f"Folder {str(path)!r} not found; expected the root of a data set.")


# Tables


def _index_table(
    listing: Listing,
    table: str,
    split: str,
    categories: Sequence[str] | None,
    columns: Mapping[str, str] | None,
    normal_labels: Sequence[str] | None,
) -> DataIndex:
    path = listing.root / table
    if path.suffix.lower() == ".parquet" and (dataset := with_images_inside(path, columns)) is not None:
        return index_dataset(dataset, str(path), TABLE, split, categories, columns, normal_labels, path.parent.name)
    reading = Reading(listing)
    read_table(reading, table, columns, normal_labels)
    if not reading.rows:
        raise ValueError(
            f"{str(path)!r} names no image that is there; expected paths relative to its folder.{left_out(reading)}"
        )
    return make_index(reading, TABLE, split, categories)


__all__ = ["index_benchmark", "index_folder", "load_benchmark", "load_folder"]
