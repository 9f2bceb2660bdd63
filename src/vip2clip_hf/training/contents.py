"""Contents of training data and the code that reads them, to notice changes under the same names."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.collator import undecoded
from ..models.vip2clip import image_processing_vip2clip
from ..models.vip2clip.mask_options_vip2clip import MASK_OPTIONS
from ..utils.code_version import code_version


if TYPE_CHECKING:
    from datasets import Dataset


# Modules that turn a file into pixels, masks and embeddings, in addition to the readers of images and masks.
CODE = (
    "vip2clip_hf.models.vip2clip.modeling_vip2clip",
    "vip2clip_hf.data.collator",
    "vip2clip_hf.training.augmentation",
)
# Columns with the settings for the mask of each row.
MASK_COLUMNS = set(MASK_OPTIONS.values())


def content_hash(image: dict[str, Any] | None) -> str | None:
    """
    Hash an image file.

    Args:
        image (`dict`, *optional*): undecoded image `{"path": ..., "bytes": ...}`.

    Returns:
        `str`, *optional*: SHA-256 of the file, as 64 hexadecimal digits. `None` without an image.

    Raises:
        OSError: if the file cannot be read.
    """
    if image is None:
        return None
    if image.get("bytes") is not None:
        return hashlib.sha256(image["bytes"]).hexdigest()
    if _is_url(image):
        raise OSError(f"{image['path']!r} is a URL, whose contents can change; expected a file. Download the images.")
    try:
        with open(Path(image["path"]), "rb") as file:
            return _hash_file(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Image file {image['path']!r} not found; check the path.") from error


def _is_url(image: Mapping[str, Any]) -> bool:
    return image.get("bytes") is None and str(image.get("path")).lower().startswith(("http://", "https://"))


def _hash_file(file: Any) -> str:
    found = hashlib.sha256()
    while block := file.read(1 << 20):
        found.update(block)
    return found.hexdigest()


def reading_code(modules: Iterable[str] = ()) -> str:
    """
    Hash the code and the constants that turn the file of an image into pixels, masks and embeddings.

    Args:
        modules (`Iterable[str]`, *optional*): names of further modules, of the method that computes the embeddings.

    Returns:
        `str`: see [`code_version`].
    """
    folder = Path(image_processing_vip2clip.__file__).parent
    readers = [path.stem for pattern in ("image_*.py", "mask_*.py") for path in folder.glob(pattern)]
    return code_version([*CODE, *(f"vip2clip_hf.models.vip2clip.{name}" for name in readers), *sorted(modules)])


def describe_contents(
    dataset: "Dataset", mask_settings: Mapping[str, Any] | None = None, *, class_names: bool = False
) -> dict[str, str]:
    """
    Describe what a model is trained on: the contents of all images and masks, in order, and their labels.

    Args:
        dataset (`datasets.Dataset`): dataset to train on. Names of files do not matter. Of images at URLs, only the
            URLs are compared.
        mask_settings (`Mapping[str, Any]`, *optional*): how the trainer reads masks, such as `mask_threshold`. Columns
            of the dataset with these names replace them.
        class_names (`bool`, defaults to `False`): whether the categories are class names in prompts.

    Returns:
        `dict[str, str]`: number and hash of `images`, `masks` and `labels`, and of `categories` if they are class
        names, and the settings for masks. Two datasets with the same values give the same training.

    Raises:
        OSError: if a file cannot be read.
    """
    dataset = undecoded(dataset)
    labels = list(dataset["label"])
    images = [_identify(image) for image in dataset["image"]]
    masks = [_identify(mask) for mask in dataset["mask"]] if "mask" in dataset.column_names else []
    settings: dict[str, Any] = {name: value for name, value in (mask_settings or {}).items() if value is not None}
    for name in sorted(set(dataset.column_names) & MASK_COLUMNS):
        values = list(dataset[name])
        kinds = sorted(set(map(str, values)))
        settings[name] = kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:5])} ({_digest(values)})"
    names: dict[str, str] = {}
    if class_names:
        categories = list(dataset["category"]) if "category" in dataset.column_names else []
        names["categories"] = f"{len(set(categories))} ({_digest(categories)})"
    return {
        "images": f"{len(images)} ({_digest(images)})",
        "masks": f"{sum(mask is not None for mask in masks)} ({_digest(masks)})",
        "labels": f"{labels.count(0)} normal, {labels.count(1)} anomalous ({_digest(labels)})",
        **names,
        **{name: str(value) for name, value in sorted(settings.items())},
    }


def _identify(image: dict[str, Any] | None) -> str | None:
    """Hash a file. An image at a URL is not downloaded."""
    return str(image["path"]) if image is not None and _is_url(image) else content_hash(image)


def _digest(values: Iterable[Any]) -> str:
    return hashlib.sha256(repr(list(values)).encode()).hexdigest()[:12]


__all__ = ["content_hash", "describe_contents", "reading_code"]
