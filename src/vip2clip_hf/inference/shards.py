"""Images packed into shards: tar archives, such as those of WebDataset, and Parquet files with the bytes of images."""

import os
import tarfile
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from transformers.utils import logging

from ..data.store_copy import is_hidden
from ..models.vip2clip.image_listing_vip2clip import has_image_extension
from ..utils.extras import extra
from ..utils.file_state import FileState, digest_of
from ..utils.urls import is_safe, join_url
from .located import LocatedImages, Location
from .names import as_text, file_by_position
from .parquet_rows import RowReader, columns_of, ids_of


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa

logger = logging.get_logger(__name__)
# Shards that are indexed at the same time, bytes per request to a store, and blocks that a process keeps.
NUM_THREADS, BLOCK, BLOCKS = 8, 8 * 2**20, 8
_MASK = np.int64(2**63 - 1)


class Index(NamedTuple):
    """Images of a shard: their names below it, and two numbers that tell where each of them is."""

    names: list[bytes]
    first: list[int]
    second: list[int]
    left_out: int = 0


class _ShardImages(LocatedImages):
    """
    Images in shards. The name of an image starts with that of its shard, if there are several.

    Args:
        source ([`PackedSource`]): the shards.
    """

    together = True
    columns: tuple[str, str]

    def __init__(self, source: Any) -> None:
        self.folder, self.shards = source.folder(), source.shards()
        self.remote = self.folder.scheme != "file"
        self.description: dict[str, Any] = {"shards": self.folder.url, "files": source.files, "format": source.kind}
        self._local()

    def _local(self) -> None:
        """Create what each process has for itself."""
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("folder", "shards", "remote", "description")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local()

    def is_here(self, count: int) -> bool:
        """Check that this process sees the shards; only the first is looked up."""
        return self.folder.kind(self.shards[0]) is not None

    def _index(self, shard: str) -> Index:
        raise NotImplementedError

    def names(self) -> "pa.ChunkedArray":
        """
        List the images, in the order of the shards.

        Returns:
            `pyarrow.ChunkedArray` of bytes: names. A damaged shard has one entry more, which ends with a slash.

        Raises:
            OSError: if a shard cannot be read.
            StoreError: if the store cannot be reached, or refuses access.
            ValueError: if there are no images, or a shard has no column with images.
        """
        chunks, tables, left_out = [], [], 0

        def load(shard: str) -> tuple[int, Index]:
            version = self.folder.state(shard)[1]
            return version, self._index(shard)

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for start in range(0, len(self.shards), 4 * NUM_THREADS):  # a few at a time, to limit the memory
                block = self.shards[start : start + 4 * NUM_THREADS]
                for number, (shard, (version, index)) in enumerate(zip(block, pool.map(load, block)), start):
                    prefix = os.fsencode(f"{shard}/") if len(self.shards) > 1 else b""
                    chunks.append(pa.array([prefix + name for name in index.names], pa.binary()))
                    first, second = np.array(index.first, dtype=np.int64), np.array(index.second, dtype=np.int64)
                    # Differs for each image, and changes with the shard.
                    versions = (
                        (first * 1_000_003 + second * 7919 + version) & _MASK if version else np.zeros_like(first)
                    )
                    tables.append(
                        pa.table(
                            {
                                "shard": np.full(len(first), number, dtype=np.int64),
                                self.columns[0]: first,
                                self.columns[1]: second,
                                "version": versions,
                            }
                        )
                    )
                    left_out += index.left_out
        if left_out:
            logger.warning(
                f"{self.folder.url}: {left_out} images that belong to another image of their sample, left out"
            )
        names = pa.chunked_array(chunks, pa.binary())
        if not len(names):
            raise ValueError(f"The shards in {self.folder.url!r} contain no images.")
        self._locations = pa.concat_tables(tables)
        return names

    def _bytes(self, location: Location) -> bytes:
        raise NotImplementedError

    def read(self, position: int, name: bytes, location: Location = ()) -> tuple[Any, FileState]:
        """
        Read an image.

        Args:
            position (`int`): position of the image. Not used.
            name (`bytes`): name of the image.
            location (`tuple[int, ...]`): its row of `locations()`.

        Returns:
            `tuple[Any, FileState]`: the image for `load_image`, and the state. The `inode` is the version.

        Raises:
            OSError: if the image is missing or cut off, or its name cannot be part of a path.
            StoreError: if the store cannot be reached, or refuses access.
        """
        shard, text = self.shards[location[0]], as_text(name)
        if text.endswith("/"):
            raise OSError(f"{shard!r} is damaged; the images after its damaged part are missing from the table.")
        if not is_safe(text):
            raise OSError(
                f"{text!r} in {shard!r} cannot be part of a path, so it is not read; expected a name without empty "
                "parts, '.', '..' and backslashes."
            )
        try:
            content = self._bytes(location)
        except FileNotFoundError as error:
            raise OSError(f"{shard!r} not found; it was deleted after the images were listed.") from error
        path = join_url(self.folder.url, text if len(self.shards) > 1 else f"{shard}/{text}")
        return {"bytes": content, "path": path}, FileState(digest_of(content), len(content), inode=location[3])

    file = staticmethod(file_by_position)


class TarImages(_ShardImages):
    """
    Images in tar archives. Nothing is unpacked to disk.

    In a sample of WebDataset, whose files have the same name up to the first dot, `0001.jpg` is the image, and
    `0001.mask.png` is left out. Hidden files are left out as well. The name of an image is its path in the archive.

    Args:
        source ([`PackedSource`]): the archives.
    """

    columns = ("offset", "size")

    def _local(self) -> None:
        super()._local()
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def _index(self, shard: str) -> Index:
        index = Index([], [], [])
        left_out = 0
        sample: list[tuple[str, int, int]] = []
        with self.folder.open(shard, BLOCK) as file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    for member in _members(archive):
                        if sample and _key(sample[0][0]) != _key(member.name):
                            left_out += _add(index, sample)
                            sample = []
                        sample.append((member.name, member.offset_data, member.size))
            except (tarfile.TarError, EOFError) as error:
                logger.warning(f"{shard!r} in {self.folder.url!r} is damaged ({error}); the images before are used.")
                left_out += _add(index, sample)
                sample = []
                _add(index, [("/", 0, 0)])
        left_out += _add(index, sample)
        return index._replace(left_out=left_out)

    def _bytes(self, location: Location) -> bytes:
        number, offset, size, _ = location
        if not self.remote:
            content = self.folder.read(self.shards[number], offset, offset + size)
        else:
            blocks = [self._block(number, block) for block in range(offset // BLOCK, -(-(offset + size) // BLOCK))]
            start = offset - offset // BLOCK * BLOCK
            content = (blocks[0] if len(blocks) == 1 else b"".join(blocks))[start : start + size]
        if len(content) != size:
            raise OSError(f"{self.shards[number]!r} ends in the middle of an image; expected {size} bytes.")
        return content

    def _block(self, number: int, block: int) -> bytes:
        """A block of a shard in a store: many images with one request. Threads wait for each other."""
        with self._lock:
            if (number, block) not in self._blocks:
                content = self.folder.read(self.shards[number], block * BLOCK, (block + 1) * BLOCK)
                self._blocks[number, block] = content
                while len(self._blocks) > BLOCKS:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end((number, block))
            return self._blocks[number, block]


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The images in an archive. The list of members that `tarfile` keeps would grow with the archive."""
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]
        name = member.name.removeprefix("./")
        if member.isreg() and not member.issparse() and has_image_extension(name) and not is_hidden(name):
            member.name = name
            yield member


def _key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _add(index: Index, sample: list[tuple[str, int, int]]) -> int:
    """Add the images of a sample. Returns how many are left out, because they belong to another one."""
    images = [one for one in sample if one[0].rpartition("/")[2].count(".") == 1]
    kept = images if images and len({_key(one[0]) for one in sample}) == 1 else sample
    for name, offset, size in kept:
        index.names.append(name.encode("utf-8", "surrogateescape"))
        index.first.append(offset)
        index.second.append(size)
    return len(sample) - len(kept)


class ParquetImages(_ShardImages):
    """
    Images in a column of Parquet files: `image` or `bytes`, binary or a struct with the field `bytes`.

    The name of an image is the value of the column `image_id`, `id` or `__key__`, or its row number.

    Args:
        source ([`PackedSource`]): the files.
    """

    columns = ("group", "row")

    def _local(self) -> None:
        super()._local()
        self._readers: deque[tuple[int, RowReader]] = deque(maxlen=2)

    def _index(self, shard: str) -> Index:
        with self.folder.open(shard, 2**20) as file:
            names, groups, rows = ids_of(file, f"{self.folder.url}/{shard}")
        return Index(names, groups, rows)

    def _bytes(self, location: Location) -> bytes:
        number, group, row, _ = location
        with self._lock:
            reader = next((reader for shard, reader in self._readers if shard == number), None)
            if reader is None:
                file = self.folder.open(self.shards[number], BLOCK)
                reader = RowReader(file, columns_of(file, self.shards[number])[0])
                if len(self._readers) == self._readers.maxlen:
                    self._readers[0][1].close()
                self._readers.append((number, reader))
            content = reader.read(group, row)
        if content is None:
            raise OSError(f"Row {row} of {self.shards[number]!r} contains no image.")
        return content


__all__ = ["Index", "ParquetImages", "TarImages"]
