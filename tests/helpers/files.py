"""List files."""

from pathlib import Path


def files_in(folder: Path) -> set[str]:
    """Return the relative paths of all files in a folder and its subfolders."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
