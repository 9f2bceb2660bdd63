"""HEIC photos, as phones take them: read with pillow-heif, if it is installed. Needs Pillow only."""

import importlib
import importlib.util
from functools import lru_cache


HEIF_EXTENSIONS = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
# Brands in the first box of a file, after "ftyp": HEVC in still images and sequences, and images of any codec.
_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1"}
)


@lru_cache(maxsize=1)
def register_heif() -> bool:
    """
    Make Pillow open HEIC photos, if pillow-heif is installed.

    Returns:
        `bool`: whether it is installed.

    Raises:
        OSError: if it is installed, but broken.
    """
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except Exception as error:  # such as an OSError for a missing library of the system
        raise OSError(f"pillow-heif, which reads HEIC photos, cannot be imported: {error}") from error
    return True


def is_heif(start: bytes) -> bool:
    """
    Whether a file is a HEIC photo.

    Args:
        start (`bytes`): the first 64 bytes of the file, or more.

    Returns:
        `bool`: True for HEIC. False for AVIF, which has the same container, and which Pillow opens itself.
    """
    if start[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(start[:4], "big"), 64)
    brands = {start[place : place + 4] for place in (8, *range(16, size, 4))}
    return bool(brands & _BRANDS) and not brands & {b"avif", b"avis"}


def check_heif(start: bytes, shown: str) -> None:
    """
    Prepare to open an image file: HEIC photos need pillow-heif.

    Args:
        start (`bytes`): the first 64 bytes of the file, or more.
        shown (`str`): name of the file for the message.

    Raises:
        OSError: if the file is a HEIC photo, and pillow-heif is not installed.
    """
    if is_heif(start) and not register_heif():
        raise OSError(
            f"{shown} is a HEIC photo. Reading it needs pillow-heif, which is not installed: "
            "pip install 'vip2clip_hf[heic]'."
        )


__all__ = ["HEIF_EXTENSIONS", "check_heif", "is_heif", "register_heif"]
