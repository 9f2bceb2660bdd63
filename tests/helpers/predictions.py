"""A folder of photos, and readers for the results of a prediction."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image


COLUMNS = ["id", "score", "label", "p_value", "anomalous_area", "error"]


def write_photos(root: Path) -> Path:
    """Write ten photos of several sizes in several folders, two unreadable images, and files to skip."""
    rng = np.random.default_rng(0)
    names = [
        "a.png",
        "b c.jpg",
        "Ünï✓.png",
        "x/1.png",
        "x/2.png",
        "x/y/deep.PNG",
        "x-1.png",
        "z'\n\".png",
        "x.png/n.png",
    ]
    for number, name in enumerate([*names, "zz/normal.bmp"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (20 + 7 * number, 30 + 3 * number, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path, format="PNG")
    (root / "broken.jpg").write_bytes(b"no image")
    (root / "x" / "cut.png").write_bytes((root / "a.png").read_bytes()[:200])
    (root / "notes.txt").write_text("no image")
    for hidden in (".hidden.png", ".folder/1.png", "x/.thumbs/1.png", "__MACOSX/1.png"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"hidden")
    return root


def ids_of(root: Path) -> list[str]:
    """List the expected ids, independently of the package: all paths, sorted as bytes."""
    paths = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    return sorted(
        (p for p in paths if "/." not in f"/{p}" and "__MACOSX" not in p and not p.endswith(".txt")), key=os.fsencode
    )


def rows_of(output: Path) -> dict[str, dict]:
    """Read the table of a prediction, by id."""
    table = pq.read_table(output / "predictions.parquet")
    assert table.column_names == COLUMNS
    return {row["id"]: row for row in table.to_pylist()}


def table_bytes(output: Path) -> bytes:
    """Read the file of the table."""
    return (output / "predictions.parquet").read_bytes()
