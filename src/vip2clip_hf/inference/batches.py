"""Images of a prediction as batches: read in worker processes, without the images that are already known."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image

from ..models.vip2clip.image_loading_vip2clip import DEFAULT_TIMEOUT
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.pipeline_inputs_vip2clip import load_with_tiles
from ..utils.file_state import UNREADABLE, FileState
from .folder import PredictionFolder
from .images import Images
from .names import Names, SomeNames
from .single import reason_of


# Images of a batch that are downloaded at the same time.
NUM_DOWNLOADS = 16
Item = tuple[int, torch.Tensor | Image.Image | None, str | None, FileState]


class PredictionImages(torch.utils.data.Dataset):
    """
    Images by position.

    An item contains the position, the pixel values (the image itself if there is no image processor; None if it cannot
    be read), the reason if it cannot be read, and the state of its file.

    Args:
        images ([`Images`]): all images of the prediction.
        names ([`Names`] or [`SomeNames`]): their names.
        image_processor ([`ViP2ClipImageProcessor`], *optional*): not set if images are split into tiles.
        reading (`dict[str, Any]`): how to read images, see [`load_image`].
        settings (`dict[str, Any]`): `tile_size` and `tile_overlap`.
    """

    def __init__(
        self,
        images: Images,
        names: Names | SomeNames,
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
            source, state = self.images.read(position, self.names[position], self.names.location(position))
            image, _ = load_with_tiles(source, DEFAULT_TIMEOUT, self.reading, self.settings)
        except (OSError, ValueError) as error:
            return position, None, reason_of(error), state
        if self.image_processor is None:
            return position, image, None, state
        return position, self.image_processor(image, return_tensors="pt")["pixel_values"][0], None, state

    def __getitems__(self, positions: Sequence[int]) -> list[Item]:
        """Items of a batch. Those of a store are downloaded at the same time."""
        if not self.images.remote or len(positions) < 2:
            return [self[position] for position in positions]
        with ThreadPoolExecutor(min(NUM_DOWNLOADS, len(positions))) as pool:
            return list(pool.map(self.__getitem__, positions))


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
        together (`int`, defaults to 1): number of chunks whose batches alternate. With as many workers, each of them
            reads a chunk as a whole, because workers take turns.

    Attributes:
        finished (`list[int]`): chunks without an image to predict.
        last (`dict[int, int]`): position of the last image to predict, by chunk.
    """

    def __init__(self, folder: PredictionFolder, chunks: Sequence[int], batch_size: int, together: int = 1) -> None:
        self._together = max(1, together)
        unknown = {chunk: folder.unknown(chunk) for chunk in chunks}
        self.finished = [chunk for chunk, positions in unknown.items() if not positions]
        self.last = {chunk: positions[-1] for chunk, positions in unknown.items() if positions}
        self._chunks = [positions for positions in unknown.values() if positions]
        self._batch_size = batch_size

    def __len__(self) -> int:
        return sum(-(-len(chunk) // self._batch_size) for chunk in self._chunks)

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, len(self._chunks), self._together):
            group = self._chunks[first : first + self._together]
            for start in range(0, max(map(len, group)), self._batch_size):
                for chunk in group:
                    if start < len(chunk):
                        yield list(chunk[start : start + self._batch_size])


__all__ = ["PredictionBatches", "PredictionImages", "collate_images"]
