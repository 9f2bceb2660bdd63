"""List the image files of a folder. One rule for prediction, calibration, datasets and the app.

Files are images by their extension: whatever Pillow can open, HEIC photos if pillow-heif is installed, and what other
plug-ins have registered.
Hidden files and folders are skipped. Links are followed, except those that lead nowhere or to a folder above them.
Folders with results of this package are skipped.
"""

import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from PIL import Image

from .heif_vip2clip import HEIF_EXTENSIONS, register_heif
from .logging_vip2clip import get_logger


logger = get_logger(__name__)
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})
SYSTEM_FOLDERS = frozenset({"__macosx", "$recycle.bin", "system volume information"})
# Formats that Pillow identifies, but cannot decode without another program or plug-in.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
# Extensions of photos that Pillow may not open. Such files are named once, not silently skipped.
_PHOTO_EXTENSIONS = frozenset(
    {".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dng", ".exr", ".hdr", ".jxl", ".jxr", *HEIF_EXTENSIONS}
    | {".nef", ".orf", ".pef", ".raf", ".rw2", ".svg"}
)
# Kinds of entries of a folder, and reasons why one is left out.
FILE, FOLDER, DEAD_LINK = "file", "folder", "links to files that do not exist"
LOST_LINK = "links that lead nowhere or to a folder above them, left out"
OWN_OUTPUT = "folders with results of this package, left out"
SPECIAL = "entries that are neither files nor folders, left out"
UNSUPPORTED = "image files of a format that Pillow cannot open, left out"
NEEDS_HEIF = "HEIC photos, left out (to read them: pip install 'vip2clip_hf[heic]')"
NO_EXTENSION = "image files without an extension, left out"
UNREADABLE = "folders that cannot be read, left out"
NOT_RECURSIVE = "subfolders, left out because recursive is False"
MASK_NAME = "files whose names look like masks, read as images"
# How many files without an extension are opened to see whether they are images.
_MOST_SNIFFED = 20
_MASK_WORDS = r"masks?|gt|seg|segm|segmentations?|labels?|labelids?|annotations?|anno|ground[ _.\-]?truths?"
_SURE_WORDS = r"masks?|gt|segmentations?|ground[ _.\-]?truths?"  # `wrong_label` is a kind of defect
_IMAGE_WORDS = r"images?|imgs?|photos?|pictures?|pics?|rgb|originals?|orig|raw|inputs?"
_MASK_SUFFIX = re.compile(rf"(?P<stem>.+?)[ _.\-]+(?:{_MASK_WORDS})", re.IGNORECASE)
_MASK_PREFIX = re.compile(rf"(?:{_MASK_WORDS})(?:[ _.\-]+(?P<stem>.+)|(?P<number>\d.*))", re.IGNORECASE)
_MASK_FOLDER = re.compile(
    rf"(?:{_MASK_WORDS})|(?P<before>.+?)[ _.\-]+(?:{_SURE_WORDS})|(?:{_SURE_WORDS})[ _.\-]+(?P<after>.+)"
    r"|(?P<joined>.*)groundtruth"
    # Pascal VOC, nnU-Net, German, and names with an underscore in front.
    r"|segmentation(?:class|object)(?:png|raw)?|labelst[rs]|label[ _.\-]?images?|masken|annotationen|_+masks?",
    re.IGNORECASE,
)
_IMAGE_AFFIX = re.compile(
    rf"(?P<stem>.+?)[ _.\-]+(?:{_IMAGE_WORDS})|(?:{_IMAGE_WORDS})(?:[ _.\-]+(?P<after>.+)|(?P<number>\d.*))",
    re.IGNORECASE,
)
_IMAGE_FOLDER = re.compile(_IMAGE_WORDS + "|jpegimages", re.IGNORECASE)


@lru_cache(maxsize=8)
def _extensions(count: int, opened: int) -> frozenset[str]:
    able = {
        extension for extension, kind in Image.EXTENSION.items() if kind in Image.OPEN and kind not in _NOT_DECODED
    }
    return frozenset(able | {".mpo"})


def image_extensions() -> frozenset[str]:
    """
    Extensions of the image files that Pillow can open, with those of registered plug-ins.

    Returns:
        `frozenset[str]`: extensions in lower case, with the dot.
    """
    register_heif()
    return _extensions(len(Image.registered_extensions()), len(Image.OPEN))


def has_image_extension(name: str) -> bool:
    """Whether the extension is one of [`image_extensions`], in any case."""
    lower = name.lower()
    return lower[lower.rfind(".") :] in image_extensions()


def has_unsupported_extension(name: str) -> bool:
    """Whether the extension is one of a photo, but Pillow cannot open it."""
    extension = os.path.splitext(name)[1].lower()
    return extension in _PHOTO_EXTENSIONS and extension not in image_extensions()


def unsupported(name: str) -> str:
    """Reason why a file with an extension that Pillow cannot open is left out."""
    return NEEDS_HEIF if os.path.splitext(name)[1].lower() in HEIF_EXTENSIONS else UNSUPPORTED


def is_unnamed_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file without an extension is an image. Opens the file."""
    if os.path.splitext(path)[1]:
        return False
    try:
        with Image.open(path):
            return True
    except Exception:  # Pillow raises various errors
        return False


def is_system_path(path: str) -> bool:
    """Whether a path is hidden or was created by an operating system or an archiver."""
    *folders, name = path.lower().split("/")
    return (
        name in SYSTEM_FILES
        or any(part.startswith(".") for part in (*folders, name))
        or any(part in SYSTEM_FOLDERS for part in folders)
    )


def mask_folder_part(name: str) -> str | None:
    """
    Recognize the name of a mask folder.

    Args:
        name (`str`): name of a folder, such as `"masks"`, `"ground_truth"` or `"bad_masks"`.

    Returns:
        `str`: the rest of the name, such as `""` or `"bad"`. None if it is not the name of a mask folder.
    """
    found = _MASK_FOLDER.fullmatch(name.strip())
    return None if found is None else next((part.rstrip(" _.-") for part in found.groups() if part), "")


def is_image_folder_name(name: str) -> bool:
    """Whether a folder is called `images`, `rgb` or similar, which says nothing about its images."""
    return _IMAGE_FOLDER.fullmatch(name.strip()) is not None


def _may_be_mask(lower: str) -> bool:
    """Whether a name in lower case has a part of a mask word. Much faster than the regular expressions."""
    return (
        "mask" in lower or "gt" in lower or "seg" in lower or "label" in lower or "anno" in lower or "truth" in lower
    )


def mask_stem(stem: str) -> str | None:
    """Stem of the image that a file called `1_mask`, `mask_1` or similar is the mask of. None for other names."""
    if not _may_be_mask(stem.lower()):
        return None
    found = _MASK_SUFFIX.fullmatch(stem) or _MASK_PREFIX.fullmatch(stem)
    return None if found is None else next(part for part in found.groups() if part)


def image_stem(stem: str) -> str:
    """Stem of an image without `_image`, `img_` or similar."""
    found = _IMAGE_AFFIX.fullmatch(stem)
    return stem if found is None else next(part for part in found.groups() if part)


def is_own_output(folder: str | os.PathLike[str]) -> bool:
    """
    Whether a folder contains results that this package has written.

    Args:
        folder (`str` or `os.PathLike`): folder to check.

    Returns:
        `bool`: True if it has a `.vip2clip.json` of this package, or the `settings.json` of a prediction or of an
        evaluation.
    """
    manifest = _read_dict(os.path.join(folder, ".vip2clip.json"))
    if manifest is not None and manifest.get("written_by") == "vip2clip_hf":
        return True
    settings = _read_dict(os.path.join(folder, "settings.json"))
    return settings is not None and (
        settings.get("kind") == "prediction" or {"model_checksum", "data"} <= set(settings)
    )


def _read_dict(path: str) -> dict | None:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def scan_folder(root: str | os.PathLike[str], folder: str = "") -> Iterator[tuple[str, str]]:
    """
    Read the entries of a folder. An entry that cannot be looked at does not affect the others.

    Args:
        root (`str` or `os.PathLike`): folder that is listed.
        folder (`str`, defaults to `""`): folder to read, below the root.

    Returns:
        `Iterator[tuple[str, str]]`: name and kind of each entry: `FILE`, `FOLDER`, `DEAD_LINK`, `LOST_LINK`,
        `OWN_OUTPUT` or `SPECIAL`.

    Raises:
        OSError: if the folder cannot be read.
    """
    with os.scandir(os.path.join(root, folder) if folder else root) as entries:
        for entry in entries:
            try:
                if entry.is_file():
                    yield entry.name, FILE
                elif entry.is_dir():
                    if entry.is_symlink() and _leads_up(root, folder, entry.path):
                        yield entry.name, LOST_LINK
                    else:
                        yield entry.name, OWN_OUTPUT if is_own_output(entry.path) else FOLDER
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    yield entry.name, DEAD_LINK if has_image_extension(entry.name) else LOST_LINK
                else:
                    yield entry.name, SPECIAL
            except OSError:  # a link that leads to itself
                yield entry.name, DEAD_LINK if has_image_extension(entry.name) else LOST_LINK


def _leads_up(root: str | os.PathLike[str], folder: str, link: str) -> bool:
    """Whether a link in a folder leads to this folder or to one above it."""
    parents = [root, *(os.path.join(root, part) for part in (PurePosixPath(folder), *PurePosixPath(folder).parents))]
    real = {os.path.realpath(path) for path in parents}
    return os.path.realpath(link) in real | {str(path) for path in Path(os.path.realpath(root)).parents}


class LeftOut:
    """
    Count what a listing leaves out, with the first names, for one message.

    Args:
        root (`str` or `os.PathLike`): folder that is listed.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}
        self._sniffed = 0

    def add(self, kind: str, path: str) -> None:
        """Count one path."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= 3:
            self.examples.setdefault(kind, []).append(path)

    def add_file(self, path: str) -> None:
        """Count a file that is not an image by its extension, if it is a photo nevertheless."""
        if has_unsupported_extension(path):
            self.add(unsupported(path), path)
        elif self._sniffed < _MOST_SNIFFED and not os.path.splitext(path)[1]:
            self._sniffed += 1
            if is_unnamed_image(os.path.join(self.root, path)):
                self.add(NO_EXTENSION, path)

    def report(self) -> None:
        """Log one warning with all counts. Nothing is logged if nothing was left out."""
        if self.counts:
            parts = [
                f"{kind} ({count}): {', '.join(self.examples[kind])}{', ...' if count > 3 else ''}"
                for kind, count in self.counts.items()
            ]
            logger.warning(f"{self.root}: {'; '.join(parts)}")


def scan_images(root: str | os.PathLike[str], folder: str, left_out: LeftOut, recursive: bool = True) -> Iterator[str]:
    """
    Names of the images and subfolders directly in a folder. Everything else that matters is counted.

    Args:
        root (`str` or `os.PathLike`): folder that is listed.
        folder (`str`): folder to read: `""`, or a path below the root that ends with a slash.
        left_out ([`LeftOut`]): receives what is left out.
        recursive (`bool`, defaults to `True`): whether subfolders are read. If not, they are counted.

    Returns:
        `Iterator[str]`: names of images, and of subfolders with a slash at the end.

    Raises:
        OSError: if the folder cannot be read.
    """
    in_masks = any(mask_folder_part(part) is not None for part in folder.split("/") if part)
    extensions = image_extensions()
    for name, kind in scan_folder(root, folder):
        lower = name.lower()
        if name[0] == "." or lower in (SYSTEM_FOLDERS if kind == FOLDER else SYSTEM_FILES):
            continue
        if kind == FOLDER:
            if recursive:
                yield f"{name}/"
            else:
                left_out.add(NOT_RECURSIVE, folder + name)
        elif kind not in (FILE, DEAD_LINK):
            left_out.add(kind, folder + name)
        elif lower[lower.rfind(".") :] in extensions:
            if in_masks or (_may_be_mask(lower) and mask_stem(os.path.splitext(lower)[0]) is not None):
                left_out.add(MASK_NAME, folder + name)
            yield name
        else:
            left_out.add_file(folder + name)


def list_images(folder: str | os.PathLike[str], recursive: bool = True) -> list[str]:
    """
    List the image files in a folder and its subfolders, without hidden ones.

    Links are followed, except to a folder above them. What is left out or unusual is logged once: files of formats
    that Pillow cannot open, folders with results of this package, names of masks, links that lead nowhere, folders
    that cannot be read. A link to an image that does not exist is listed, so that it is reported when it is opened.

    Args:
        folder (`str` or `os.PathLike`): the folder.
        recursive (`bool`, defaults to `True`): whether to list subfolders.

    Returns:
        `list[str]`: paths of the images, sorted.

    Raises:
        OSError: if the folder cannot be read.
        ValueError: if the folder contains no images.
    """
    left_out = LeftOut(folder)
    found: list[str] = []
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        try:
            for name in scan_images(folder, inner, left_out, recursive):
                (waiting if name.endswith("/") else found).append(inner + name)
        except OSError as error:
            if not inner:
                raise
            left_out.add(UNREADABLE, f"{inner} ({error.strerror})")
    left_out.report()
    if not found:
        where = " or its subfolders" if recursive else ""
        raise ValueError(
            f"Folder {os.fspath(folder)!r} contains no images; expected files such as .png or .jpg in the "
            f"folder{where}."
        )
    prefix = os.path.join(folder, "")
    return [prefix + name for name in sorted(found)]


__all__ = [
    "DEAD_LINK",
    "FILE",
    "FOLDER",
    "LOST_LINK",
    "NEEDS_HEIF",
    "NO_EXTENSION",
    "OWN_OUTPUT",
    "SPECIAL",
    "UNREADABLE",
    "UNSUPPORTED",
    "LeftOut",
    "has_image_extension",
    "has_unsupported_extension",
    "image_extensions",
    "image_stem",
    "is_image_folder_name",
    "is_own_output",
    "is_system_path",
    "is_unnamed_image",
    "list_images",
    "mask_folder_part",
    "mask_stem",
    "scan_folder",
    "scan_images",
    "unsupported",
]
