"""Images of a prediction as batches: read in worker processes, without the images that are already known."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from ..models.vip2clip.image_loading_vip2clip import DEFAULT_TIMEOUT
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.pipeline_inputs_vip2clip import load_with_tiles
from ..utils.contents import read_image_bytes
from ..utils.file_state import UNREADABLE, FileState
from .folder import PredictionFolder
from .images import DatasetImages, FolderImages
from .names import Names
from .single import reason_of


Item = tuple[int, torch.Tensor | Image.Image | None, str | None, FileState]


class PredictionImages(torch.utils.data.Dataset):
    """
    Images by position.

    An item contains the position, the pixel values (the image itself if there is no image processor; None if it cannot
    be read), the reason if it cannot be read, and the state of its file.

    Args:
        images ([`FolderImages`] or [`DatasetImages`]): all images of the prediction.
        names ([`Names`]): their names.
        image_processor ([`ViP2ClipImageProcessor`], *optional*): not set if images are split into tiles.
        reading (`dict[str, Any]`): how to read images, see [`load_image`].
        settings (`dict[str, Any]`): `tile_size` and `tile_overlap`.
    """

    def __init__(
        self,
        images: FolderImages | DatasetImages,
        names: Names,
        image_processor: ViP2ClipImageProcessor | None,
        reading: dict[str, Any],
        settings: dict[str, Any],
    ) -> None:
        self.images, self.names, self.image_processor = images, names, image_processor
        self.reading, self.settings = reading, settings
        self.max_pixels = Image.MAX_IMAGE_PIXELS  # spawned workers start with the default of Pillow

    def __getitem__(self, position: int) -> Item:
        Image.MAX_IMAGE_PIXELS = self.max_pixels
        state = FileState(UNREADABLE)
        try:
            # The same bytes are hashed and scored.
            source, state = read_image_bytes(self.images.image(position, self.names[position]))
            image, _ = load_with_tiles(source, DEFAULT_TIMEOUT, self.reading, self.settings)
        except (OSError, ValueError) as error:
            return position, None, reason_of(error), state
        if self.image_processor is None:
            return position, image, None, state
        return position, self.image_processor(image, return_tensors="pt")["pixel_values"][0], None, state


def collate_images(
    items: Sequence[Item],
) -> tuple[list[int], torch.Tensor | list[Image.Image], list[str | None], list[FileState]]:
    """
    Collate items of [`PredictionImages`].

    Args:
        items (`Sequence[tuple]`): the items.

    Returns:
        `tuple`: positions, pixel values of shape `(readable images, 3, height, width)` or a list of images, reasons
        and states.
    """
    positions, images, errors, states = zip(*items)
    readable = [image for image in images if image is not None]
    batch = torch.stack(readable) if readable and isinstance(readable[0], torch.Tensor) else readable
    return list(positions), batch, list(errors), list(states)


class PredictionBatches:
    """
    Batches of positions of the images to predict, created on demand. No batch spans two chunks.

    Args:
        folder ([`PredictionFolder`]): output folder, open.
        chunks (`Sequence[int]`): chunks of this process.
        batch_size (`int`): number of images per batch.

    Attributes:
        finished (`list[int]`): chunks without an image to predict.
        last (`dict[int, int]`): position of the last image to predict, by chunk.
    """

    def __init__(self, folder: PredictionFolder, chunks: Sequence[int], batch_size: int) -> None:
        unknown = {chunk: folder.unknown(chunk) for chunk in chunks}
        self.finished = [chunk for chunk, positions in unknown.items() if not positions]
        self.last = {chunk: positions[-1] for chunk, positions in unknown.items() if positions}
        self._chunks = [positions for positions in unknown.values() if positions]
        self._batch_size = batch_size

    def __len__(self) -> int:
        return sum(-(-len(chunk) // self._batch_size) for chunk in self._chunks)

    def __iter__(self) -> Iterator[list[int]]:
        for chunk in self._chunks:
            for start in range(0, len(chunk), self._batch_size):
                yield list(chunk[start : start + self._batch_size])


__all__ = ["PredictionBatches", "PredictionImages", "collate_images"]
