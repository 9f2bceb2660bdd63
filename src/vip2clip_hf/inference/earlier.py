"""Rows of an earlier prediction that are still valid, because the contents of their images have not changed."""

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..models.vip2clip.arguments_vip2clip import LABELS
from ..utils.extras import extra
from ..utils.file_state import FileState, digest_of
from .images import Images
from .names import BATCH, Names


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq


logger = logging.get_logger(__name__)
TABLE_FILE = "predictions.parquet"
# State of every image file, to notice changes of its contents.
STATE_FILE = ".vip2clip-images.parquet"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("score", pa.float32()),
        ("label", pa.string()),
        ("p_value", pa.float32()),
        ("anomalous_area", pa.float32()),
        ("error", pa.string()),
    ]
)
RESULTS = SCHEMA.remove(0)
STATE = pa.schema(
    [
        ("digest", pa.string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("ctime_ns", pa.int64()),
        ("inode", pa.int64()),
    ]
)
# Part of the table in the progress: the id, the results, and the state of the images.
PART = pa.schema([*SCHEMA, *STATE])
NAMED = pa.schema([("name", pa.binary()), *RESULTS, *STATE])

NUM_THREADS = 8


@dataclass
class Match:
    """
    Images of a prediction that need not be predicted again.

    Args:
        known (`pyarrow.Table`): one row per image with results and state, null if not known, and the column `known`.
        changed (`int`): number of images with other contents than before.
        new (`int`): number of images that were not in the earlier prediction.
        removed (`int`): number of images of the earlier prediction that are gone.
        in_order (`bool`): whether all images of the earlier prediction are known, at the same positions.
    """

    known: "pa.Table"
    changed: int
    new: int
    removed: int
    in_order: bool

    @property
    def num_known(self) -> int:
        """Number of known images."""
        return pc.sum(self.known["known"]).as_py() or 0


def write_state(path: Path, names: "pa.ChunkedArray", parts: Iterable[Path], table: Path) -> None:
    """
    Write the state of all images of a finished prediction.

    Args:
        path (`pathlib.Path`): Parquet file to write.
        names (`pyarrow.ChunkedArray` of bytes): names of the images.
        parts (`Iterable[pathlib.Path]`): parts of the table, in order.
        table (`pathlib.Path`): the table, to notice that it was changed.
    """
    states = pa.concat_tables(pq.read_table(part, columns=STATE.names) for part in parts)
    found = pa.table({"name": names, **{name: states[name] for name in STATE.names}})
    pq.write_table(found.replace_schema_metadata({"table": digest_of(table.read_bytes())}), path)


def write_table(path: Path, parts: Sequence[Path], step: int, settings: str) -> None:
    """
    Merge the parts of a table.

    Args:
        path (`pathlib.Path`): Parquet file to write.
        parts (`Sequence[pathlib.Path]`): the parts, in order.
        step (`int`): number of parts per row group.
        settings (`str`): JSON for the metadata of the table.
    """
    schema = SCHEMA.with_metadata({"vip2clip_hf": settings})
    with open(path, "wb") as file:
        with pq.ParquetWriter(file, schema) as writer:
            for start in range(0, len(parts), step):
                group = pa.concat_tables(pq.read_table(part) for part in parts[start : start + step])
                group = group.select(SCHEMA.names).replace_schema_metadata(schema.metadata)
                writer.write_table(group, row_group_size=len(group))
        file.flush()
        os.fsync(file.fileno())


def rows_of_finished(folder: Path) -> "pa.Table | None":
    """
    Read a finished prediction.

    Args:
        folder (`pathlib.Path`): folder of the prediction.

    Returns:
        `pyarrow.Table | None`: names, results and states. `None` if a file is missing, damaged or was changed.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):  # errors of Arrow are subclasses
        state = pq.read_table(folder / STATE_FILE)
        if (state.schema.metadata or {}).get(b"table", b"").decode() != digest_of((folder / TABLE_FILE).read_bytes()):
            return None
        table = pq.read_table(folder / TABLE_FILE, columns=RESULTS.names)
        columns = {"name": state["name"], **{name: table[name] for name in RESULTS.names}}
        return pa.table({**columns, **{name: state[name] for name in STATE.names}}, schema=NAMED)
    return None


def rows_of_unfinished(names: Names, parts: Iterable[tuple[range, Path]]) -> "pa.Table":
    """
    Read the progress of a prediction.

    Args:
        names (`Names`): plan of the prediction.
        parts (`Iterable[tuple[range, pathlib.Path]]`): positions and file of each finished part.

    Returns:
        `pyarrow.Table`: names, results and states of the images that are predicted.
    """
    found, plan = [], names.table()
    if "known" in plan.column_names:
        found.append(plan.filter(plan["known"]).select(NAMED.names))
    for positions, part in parts:
        table = pq.read_table(part)
        named = {"name": plan["name"].slice(positions.start, len(positions))}
        found.append(pa.table({**named, **{name: table[name] for name in NAMED.names[1:]}}, schema=NAMED))
    return pa.concat_tables(found) if found else NAMED.empty_table()


def match(
    images: Images,
    names: "pa.ChunkedArray",
    earlier: "pa.Table",
    has_files: bool,
    retry: bool = False,
) -> Match:
    """
    Find the images of an earlier prediction that have not changed.

    Args:
        images ([`Images`]): images to predict.
        names (`pyarrow.ChunkedArray` of bytes): their names.
        earlier (`pyarrow.Table`): names, results and states.
        has_files (`bool`): whether the prediction writes a file per image. Its name can depend on the position.
        retry (`bool`, defaults to `False`): whether images that could not be read are predicted again.

    Returns:
        `Match`: the known images.
    """
    old_names = earlier["name"]
    if names.equals(old_names):  # also if names are not unique
        old = np.arange(len(names), dtype=float)
    else:
        old = pc.index_in(names, value_set=old_names).to_numpy(zero_copy_only=False).astype(float)
    candidates = np.flatnonzero(~np.isnan(old))
    unchanged = np.zeros(len(candidates), dtype=bool)

    def is_known(item: tuple[int, bytes, int, dict[str, Any]]) -> bool:
        position, name, row, state = item
        if state.pop("error") is not None and retry:
            return False
        if has_files and images.file(position, name) != images.file(row, name):
            return False
        return images.is_unchanged(position, name, FileState(**state))

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for start in range(0, len(candidates), BATCH):  # a million rows as objects would use gigabytes
            block = candidates[start : start + BATCH]
            rows = old[block].astype(np.int64)
            states = earlier.select([*STATE.names, "error"]).take(rows).to_pylist()
            items = zip(block.tolist(), names.take(block).to_pylist(), rows.tolist(), states)
            unchanged[start : start + len(block)] = list(pool.map(is_known, items))
    known = np.zeros(len(names), dtype=bool)
    known[candidates] = unchanged
    taken_rows = pa.array(np.where(known, np.nan_to_num(old), 0).astype(np.int64), mask=~known)
    taken = earlier.select(NAMED.names[1:]).take(taken_rows).append_column("known", pa.array(known))
    in_order = len(earlier) == len(names) and bool(known.all()) and bool((old == np.arange(len(names))).all())
    return Match(
        taken,
        changed=int((~unchanged).sum()),
        new=len(names) - len(candidates),
        removed=len(earlier) - len(set(old[candidates].tolist())),
        in_order=in_order,
    )


def settings_of(file: Path) -> dict[str, Any] | None:
    """
    Read the settings of a prediction.

    Args:
        file (`pathlib.Path`): JSON file.

    Returns:
        `dict[str, Any] | None`: the settings, or `None` if the file is missing, damaged or belongs to something else.
    """
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("kind") == "prediction":
            return found
    return None


def settings_of_finished(folder: Path) -> dict[str, Any] | None:
    """
    Read the settings of a finished prediction from `settings.json`, or from the table if the file is lost.

    Args:
        folder (`pathlib.Path`): folder of the prediction.

    Returns:
        `dict[str, Any] | None`: the settings, or `None` if there is no prediction.
    """
    found = settings_of(folder / "settings.json")
    if found is None:
        with contextlib.suppress(OSError, ValueError, KeyError):  # errors of Arrow are subclasses
            found = json.loads(pq.read_schema(folder / TABLE_FILE).metadata[b"vip2clip_hf"])
    return found


def summarize(folder: Path) -> dict[str, Any]:
    """
    Count the images of a finished prediction.

    Args:
        folder (`pathlib.Path`): folder of the prediction.

    Returns:
        `dict[str, Any]`: `num_images`, `num_normal`, `num_anomalous`, `num_unreadable`, and `table`, the path of
        the table.
    """
    # Predictions of version 0.1 contain no names.
    names = (settings_of_finished(folder) or {}).get("labels", LABELS)
    counts = {"num_images": 0, "num_normal": 0, "num_anomalous": 0, "num_unreadable": 0}
    with pq.ParquetFile(folder / TABLE_FILE) as file:
        for batch in file.iter_batches(columns=["label", "error"]):
            counts["num_images"] += len(batch)
            counts["num_unreadable"] += len(batch) - batch["error"].null_count
            for label, name in zip(LABELS, names):
                counts[f"num_{label}"] += pc.sum(pc.equal(batch["label"], name)).as_py() or 0
    return {**counts, "table": str(folder / TABLE_FILE)}


def report_differences(title: str, found: Match, num_images: int, old: dict[str, str], new: dict[str, str]) -> None:
    """
    Log what changed since an earlier prediction.

    Args:
        title (`str`): name of the folder of the prediction.
        found (`Match`): the known images.
        num_images (`int`): number of images now.
        old (`dict[str, str]`): versions of the libraries of the earlier prediction.
        new (`dict[str, str]`): versions now.
    """
    counts = {"changed": found.changed, "new": found.new, "removed": found.removed}
    if text := ", ".join(f"{count} {kind}" for kind, count in counts.items() if count):
        logger.warning(
            f"Images since the last prediction into {title!r}: {text}. The rows of {found.num_known} of "
            f"{num_images} images are kept."
        )
    for name in (name for name, version in new.items() if old.get(name) != version):
        logger.warning(
            f"{title!r} was written with another version of {name}; scores of images that are predicted now can "
            "differ by rounding."
        )


__all__ = [
    "PART", "RESULTS", "SCHEMA", "STATE", "STATE_FILE", "TABLE_FILE", "Match", "match",
    "report_differences", "rows_of_finished", "rows_of_unfinished", "settings_of", "settings_of_finished", "summarize",
    "write_state", "write_table",
]  # fmt: skip
