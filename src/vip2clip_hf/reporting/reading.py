"""Read the results of a prediction: the folder of `predict --output`, or a CSV file."""

import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..utils.extras import extra
from .csv_files import SETTINGS_ENDING, read_csv
from .datasets import rows_of_dataset, stems_of_dataset, stems_of_folder
from .photo_files import PhotoFiles
from .predictions import Prediction, Predictions, check_labels


TABLE_FILE, STATE_FILE, CSV_FILE = "predictions.parquet", ".vip2clip-images.parquet", "results.csv"
READING = ("bit_depth", "page")


def read_predictions(
    path: str | os.PathLike[str],
    photos: str | os.PathLike[str] | None = None,
    heatmaps: str | os.PathLike[str] | None = None,
) -> Predictions:
    """
    Read the results of a prediction.

    Args:
        path (`str` or `os.PathLike`):
            Folder of `vip2clip predict --output`, a CSV file with the same columns, or a folder with `results.csv`.
        photos (`str` or `os.PathLike`, *optional*):
            Folder of the photos, if they were moved. By default, the folder that was predicted.
        heatmaps (`str` or `os.PathLike`, *optional*):
            Folder of the heatmaps (`NAME.png`) or maps (`NAME.npy`), if they are elsewhere.

    Returns:
        [`Predictions`]: the results. Labels of a dataset are added.

    Raises:
        ImportError: if pyarrow is not installed and the results are in a Parquet file.
        OSError: if there are no results, or a file is damaged.
        ValueError: if a table has other columns or values.
    """
    path = Path(path)
    if photos is not None and not os.path.isdir(photos):
        raise OSError(f"{os.fspath(photos)!r} is not a folder; expected the folder of the photos.")
    if heatmaps is not None and not os.path.isdir(heatmaps):
        raise OSError(f"{os.fspath(heatmaps)!r} is not a folder; expected the folder of the heatmaps.")
    if path.is_dir():
        if (path / TABLE_FILE).is_file():
            return _read_folder(path, photos, heatmaps)
        if (path / ".progress").is_dir():
            raise OSError(f"{str(path)!r} contains a prediction that is not finished; run the same command again.")
        if not (path / CSV_FILE).is_file():
            raise OSError(f"{str(path)!r} contains neither {TABLE_FILE} nor {CSV_FILE}; expected a prediction.")
        path = path / CSV_FILE
    if not path.is_file():
        raise OSError(f"{str(path)!r} not found; expected the folder of vip2clip predict --output, or a CSV file.")
    if path.name == TABLE_FILE:
        return _read_folder(path.parent, photos, heatmaps)
    return _read_csv(path, photos, heatmaps)


def _read_csv(
    path: Path, photos: str | os.PathLike[str] | None, heatmaps: str | os.PathLike[str] | None
) -> Predictions:
    rows, settings = read_csv(path)
    found = Predictions(rows, settings, str(path), datetime.fromtimestamp(path.stat().st_mtime).astimezone())
    check_labels(rows, found.labels, str(path))
    root = photos if photos is not None else (settings.get("source") or {}).get("folder")
    beside = heatmaps if heatmaps is not None else settings.get("heatmaps_folder") or "heatmaps"
    beside = str(beside if heatmaps is not None else path.parent / str(beside))
    found.photos = PhotoFiles(
        None if root is None else os.fspath(root),
        [row.id for row in rows],
        maps=os.fspath(heatmaps) if heatmaps is not None else str(path.parent / "maps"),
        heatmaps=beside,
        reading={name: settings[name] for name in READING if settings.get(name) is not None},
    )
    if not settings:
        found.notes.append(
            f"Thresholds and model are not known: {path.name}{SETTINGS_ENDING} is missing, which vip2clip predict "
            "writes next to the table."
        )
    return found


def _read_folder(
    path: Path, photos: str | os.PathLike[str] | None, heatmaps: str | os.PathLike[str] | None
) -> Predictions:
    with extra("data", "Reading a Parquet table"):
        import pyarrow.parquet as pq
    table = path / TABLE_FILE
    try:
        content = pq.read_table(table)
        metadata = content.schema.metadata or {}
        settings = json.loads(metadata.get(b"vip2clip_hf", b"{}"))
        rows = [Prediction(**row) for row in content.to_pylist()]
    except (OSError, ValueError, TypeError) as error:  # errors of Arrow are subclasses
        raise OSError(f"{str(table)!r} cannot be read ({error}); predict again with --overwrite.") from error
    found = Predictions(rows, settings, str(path), datetime.fromtimestamp(table.stat().st_mtime).astimezone())
    check_labels(rows, found.labels, str(table))
    names = _names(path, rows)
    source = settings.get("source") or {}
    root = photos if photos is not None else source.get("folder")
    images = None
    if "folder" in source:
        stems = stems_of_folder(names)
    else:
        stems, images = stems_of_dataset(names), rows_of_dataset(found, photos)
    beside = None if heatmaps is None else os.fspath(heatmaps)
    found.photos = PhotoFiles(
        None if root is None else os.fspath(root),
        names,
        images=images,
        stems=stems,
        maps=beside or str(path / "maps"),
        heatmaps=beside or str(path / "heatmaps"),
        reading={name: settings[name] for name in READING if settings.get(name) is not None},
    )
    return found


def _names(path: Path, rows: Sequence[Prediction]) -> list[str]:
    """File names of the photos. Those in the table are escaped if they are no valid text."""
    import pyarrow.parquet as pq

    ids = [row.id for row in rows]
    try:
        names: list[Any] = pq.read_table(path / STATE_FILE, columns=["name"])["name"].to_pylist()
    except (OSError, ValueError, KeyError):
        return ids
    return [os.fsdecode(name) for name in names] if len(names) == len(ids) else ids


__all__ = ["read_predictions"]
