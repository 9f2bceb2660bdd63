"""What users pass to the pipeline: one image, or several in any container."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .arguments_vip2clip import READING_ARGUMENTS
from .image_loading_vip2clip import DEFAULT_TIMEOUT, list_images, read_image
from .image_sources_vip2clip import shorten
from .image_values_vip2clip import describe, is_unclear_stack
from .logging_vip2clip import get_logger
from .tensors_vip2clip import is_tensor, is_torch_dataset, is_torch_loader
from .tiling_vip2clip import Box, check_elongation, tile_boxes


logger = get_logger(__name__)
ONE_IMAGE = "a path, a URL, bytes, an open file, a PIL image or an array"
# Say the number of tiles if there are more.
MANY_TILES = 256
_BYTES = (bytes, bytearray, memoryview)


class Rows:
    """
    A dataset of another library, by position. Unlike a generator, it has a length and can be pickled.

    Args:
        rows: object with a length, and rows by position. Rows of pandas are read by position as well, not by label.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Any:
        return self.rows.iloc[position] if hasattr(self.rows, "iloc") else self.rows[position]


def as_inputs(inputs: Any) -> Any:
    """
    Convert the input of a call to one image, or to several in a form with an order.

    Args:
        inputs: one or more images, see [`AnomalyDetectionPipeline.__call__`].

    Returns:
        One image, or a list, [`Rows`], a dataset of torch or a generator of images.

    Raises:
        OSError: if a folder cannot be read.
        ValueError: if the input has another type, if it is not clear which images are meant, or if there are none.
    """
    inputs = _value(inputs)
    kind = type(inputs).__name__
    if isinstance(inputs, (str, os.PathLike)):
        return list_images(inputs) if os.path.isdir(inputs) else inputs
    if isinstance(inputs, (Image.Image, dict, *_BYTES)):
        return inputs
    if isinstance(inputs, np.ndarray) or is_tensor(inputs):
        return _from_array(inputs)
    if isinstance(inputs, tuple) and is_pair(inputs):
        return inputs
    if isinstance(inputs, (tuple, list)):
        if not inputs:
            raise ValueError("Expected at least one image, found an empty list.")
        return [_checked(item, position) for position, item in enumerate(inputs)]
    if is_torch_loader(inputs):
        raise ValueError(
            "inputs is a DataLoader; expected images. Pass its dataset without transforms, and batch_size to the "
            "pipeline."
        )
    if is_torch_dataset(inputs):
        return inputs
    if isinstance(inputs, (set, frozenset)):
        raise ValueError(f"inputs is a {kind}, which has no order; expected a list.")
    if (columns := getattr(inputs, "columns", None)) is not None and not callable(columns):
        names = [str(name) for name in getattr(inputs, "column_names", columns)]
        example = "image" if "image" in names or not names else names[0]
        raise ValueError(
            f"inputs is a {kind} with the columns {', '.join(names[:10])}; expected the column with the images, such "
            f"as inputs[{example!r}]."
        )
    if isinstance(inputs, Mapping):
        if "image" in inputs:
            return dict(inputs)
        raise ValueError(f"inputs is a {kind} without 'image'; expected images, such as list(inputs.values()).")
    if callable(getattr(inputs, "read", None)):  # an open file, which would be iterated by line
        return inputs
    has_rows = hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")
    by_position = (
        isinstance(inputs, Sequence)
        or hasattr(inputs, "iloc")
        or type(inputs).__module__.partition(".")[0] == "datasets"
        or not hasattr(inputs, "__iter__")
    )
    if has_rows and by_position:
        rows = Rows(inputs)
        found: Any = getattr(inputs, "column_names", None)
        if not len(rows):
            raise ValueError(f"Expected at least one image, found an empty {kind}.")
        if found is not None and "image" not in found:
            raise ValueError(f"Expected rows with the column 'image', found the columns {sorted(found)}.")
        if isinstance(inputs, Sequence) or hasattr(inputs, "iloc"):
            _checked(rows[0], 0)  # before the caller iterates
        return rows
    if hasattr(inputs, "__iter__"):
        return _iterate(inputs)
    raise ValueError(f"Expected one or more images, found {kind}.")


def _iterate(inputs: Any) -> Iterator[Any]:
    yield from inputs


def _value(item: Any) -> Any:
    """Convert scalars of pyarrow."""
    return item.as_py() if callable(getattr(item, "as_py", None)) else item


def _from_array(inputs: Any) -> Any:
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "OSU":
        if inputs.ndim > 1:
            raise ValueError(f"Expected one axis of images, found {describe(inputs)}; pass a list.")
        items = [os.fsdecode(item) if inputs.dtype.kind == "S" else item for item in inputs.reshape(-1).tolist()]
        return as_inputs(items if inputs.ndim else items[0])
    if inputs.ndim == 4:
        if not len(inputs):
            raise ValueError("Expected at least one image, found an empty array.")
        return list(inputs)
    if is_unclear_stack(inputs):
        raise ValueError(
            f"inputs is {describe(inputs)}, which can be {inputs.shape[0]} gray photos or one color photo; expected a "
            "list of the gray photos, or channels last as of numpy.moveaxis(array, 0, -1)."
        )
    return inputs


def is_pair(item: Any) -> bool:
    """
    Check whether an item is an image with its label, as from datasets of torchvision.

    Args:
        item: the item.

    Returns:
        `bool`: whether it has two parts, of which the second is a number, a dict or `None`.
    """
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        return False
    image, label = item
    is_label = label is None or isinstance(label, (int, float, np.number, np.bool_, dict))
    is_label = is_label or ((isinstance(label, np.ndarray) or is_tensor(label)) and label.ndim == 0)
    return is_label and (
        isinstance(image, (str, os.PathLike, Image.Image, np.ndarray, dict, *_BYTES)) or is_tensor(image)
    )


def _checked(item: Any, position: int) -> Any:
    """Refuse an item of a list that cannot be an image, before the first is computed."""
    item = _value(item)
    name = f"The input at position {position}"
    if (isinstance(item, np.ndarray) or is_tensor(item)) and item.ndim == 4:
        raise ValueError(
            f"{name} is a batch of shape {tuple(item.shape)}; expected one image. Pass each batch on its own."
        )
    if isinstance(item, (tuple, list)) and not is_pair(item):
        raise ValueError(f"{name} is a {type(item).__name__} of {len(item)}; expected {ONE_IMAGE}, or (image, label).")
    known = (str, os.PathLike, Image.Image, np.ndarray, dict, tuple, list, *_BYTES)
    if not isinstance(item, known) and not is_tensor(item) and not callable(getattr(item, "read", None)):
        raise ValueError(f"{name} is of type {type(item).__name__}; expected {ONE_IMAGE}.")
    return item


def image_of(item: Any) -> Any:
    """
    Return the image of an item: of a row of a dataset, or of a pair of image and label.

    Args:
        item: the item.

    Returns:
        The image, for [`load_image`].

    Raises:
        ValueError: if a row has no column `image`, or the item contains several images.
    """
    item = _value(item)
    if is_pair(item):
        logger.warning_once("The inputs are pairs of image and label; the labels are not used.")
        item = item[0]
    if isinstance(item, Mapping) and not {"bytes", "path"} & set(item):
        if "image" not in item:
            raise ValueError(f"Expected rows with the column 'image', found the columns {sorted(item)}.")
        item = _value(item["image"])
    if (isinstance(item, np.ndarray) or is_tensor(item)) and item.ndim == 4:
        raise ValueError(
            f"Expected one image, found a batch of shape {tuple(item.shape)}; pass each batch on its own."
        )
    if isinstance(item, (tuple, list)):
        raise ValueError(f"Expected one image, found a {type(item).__name__} of {len(item)}; pass one image per item.")
    return item


def load_with_tiles(
    image: Any, timeout: float | None, reading: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Image.Image, list[Box]]:
    """
    Load an image and compute its tiles.

    Args:
        image: an item of the input of the pipeline.
        timeout (`float`, *optional*): seconds to wait for the server of a URL.
        reading (`Mapping[str, Any]`): `bit_depth`, `page` and `channel_order`, see [`load_image`].
        settings (`Mapping[str, Any]`): `tile_size` and `tile_overlap`.

    Returns:
        `tuple[PIL.Image.Image, list[tuple[int, int, int, int]]]`: the upright image in mode RGB, and its tiles, empty
        if it is not split.

    Raises:
        OSError: if the image cannot be read.
        ValueError: if it is of another kind, or has too many tiles. The message starts with the name of the file.
    """
    image = image_of(image)
    loaded, _ = read_image(image, timeout, **reading)
    boxes: list[Box] = []
    if settings["tile_size"]:
        try:
            boxes = tile_boxes(loaded.height, loaded.width, settings["tile_size"], settings["tile_overlap"])
        except ValueError as error:
            path = image.get("path") if isinstance(image, Mapping) else image
            if not isinstance(path, (str, os.PathLike)):
                raise
            raise ValueError(f"{shorten(os.fsdecode(path))}: {error}") from error
    if not boxes:
        check_elongation(loaded.height, loaded.width)
    if len(boxes) > MANY_TILES:
        logger.warning_once(f"Photos of {loaded.width} x {loaded.height} pixels are split into {len(boxes)} tiles.")
    return loaded, boxes


def chosen_reading(options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return how images are read.

    Args:
        options (`Mapping[str, Any]`): arguments of a call, with those of the image processor.

    Returns:
        `dict[str, Any]`: `bit_depth`, `page` and `channel_order`, without defaults.
    """
    return {name: options[name] for name in READING_ARGUMENTS if options.get(name, "rgb") != "rgb"}


class ReadsPhotos:
    """What the pipeline and the runtime share to read photos. Both store their options in their own way."""

    def _photo_options(self) -> dict[str, Any]:
        """Return options of the image processor, replaced by defaults of the call arguments."""
        raise NotImplementedError

    def score_settings(self) -> dict[str, Any]:
        """Return the settings that scores depend on."""
        raise NotImplementedError

    def reading_options(self) -> dict[str, Any]:
        """
        Return how images are read.

        Returns:
            `dict[str, Any]`: `bit_depth`, `page` and `channel_order`, without defaults.
        """
        return chosen_reading(self._photo_options())

    def load(self, image: Any) -> Image.Image:
        """
        Load an image as a call does, and check that it can be split into tiles.

        Args:
            image: an image, as in a call.

        Returns:
            `PIL.Image.Image`: the upright image, in mode RGB. A call with it has the same result.

        Raises:
            OSError: if the image cannot be read.
            ValueError: if the image is of another kind or has too many tiles.
        """
        timeout = self._photo_options().get("timeout", DEFAULT_TIMEOUT)
        return load_with_tiles(image, timeout, self.reading_options(), self.score_settings())[0]


__all__ = ["ReadsPhotos", "Rows", "as_inputs", "chosen_reading", "image_of", "is_pair", "load_with_tiles"]
