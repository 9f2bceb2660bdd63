"""A folder of photos that grows: rows of photos that are gone are kept."""

import os
from pathlib import Path

from ..utils.extras import extra
from ..utils.file_state import FileState
from .images import FolderImages, Images
from .names import packed


with extra("data", "Predicting a folder of images"):
    import pyarrow as pa
    import pyarrow.compute as pc


class GrowingFolder(FolderImages):
    """
    All image files of a folder, and those of an earlier prediction, which can be gone.

    Args:
        root (`pathlib.Path`): the folder.
        leave_out (`pathlib.Path`): output folder of the prediction, to skip.
        table (`pathlib.Path`): table of the earlier prediction, or its copy.
        recursive (`bool`, defaults to `True`): whether to read subfolders.
    """

    def __init__(self, root: Path, leave_out: Path, table: Path, recursive: bool = True) -> None:
        super().__init__(root, leave_out, recursive)
        self._table = table

    def names(self) -> "pa.ChunkedArray":
        """
        List the images that are there now.

        Returns:
            `pyarrow.ChunkedArray` of bytes: sorted names. Empty if all are gone, but there is an earlier prediction.

        Raises:
            OSError: if the folder cannot be read.
            ValueError: if there are no images, now and earlier.
        """
        try:
            return super().names()
        except ValueError:
            if not self._table.exists():
                raise
            return packed([])

    def grow(
        self, now: "pa.ChunkedArray", planned: "pa.ChunkedArray", predicted: "pa.ChunkedArray"
    ) -> "pa.ChunkedArray":
        """
        Add the images of an earlier prediction to those that are there now.

        Args:
            now (`pyarrow.ChunkedArray` of bytes): names of the images that are there.
            planned (`pyarrow.ChunkedArray` of bytes): names of the earlier prediction, in order.
            predicted (`pyarrow.ChunkedArray` of bytes): those of them that have a result.

        Returns:
            `pyarrow.ChunkedArray` of bytes: the names of the earlier prediction, at the same positions, then new ones.
        """
        there = pc.is_in(planned, value_set=now)
        # A subfolder that could not be read is not a photo: its row is dropped when it can be read.
        kept = pc.and_(pc.is_in(planned, value_set=predicted), pc.invert(pc.ends_with(planned, pattern=b"/")))
        earlier = planned.filter(pc.or_(there, kept))
        new = now.filter(pc.invert(pc.is_in(now, value_set=planned)))
        return pa.chunked_array([*earlier.chunks, *new.chunks], pa.binary())

    def is_unchanged(self, position: int, name: bytes, state: FileState) -> bool:
        """
        Check whether the contents of an image are those of an earlier prediction.

        Args:
            position (`int`): position of the image. Not used for folders.
            name (`bytes`): name of the image.
            state (`FileState`): state of the earlier image.

        Returns:
            `bool`: whether the contents are the same, or the image is gone.
        """
        if not name.endswith(b"/") and not os.path.lexists(os.path.join(self.root, os.fsdecode(name))):
            return True
        return super().is_unchanged(position, name, state)


def growing(images: Images, output: str | os.PathLike, table: Path, recursive: bool) -> GrowingFolder:
    """
    Open a folder of images so that rows of images that are gone are kept.

    Args:
        images ([`Images`]): the images.
        output (`str` or `os.PathLike`): output folder of the prediction.
        table (`pathlib.Path`): table in it; for a folder in a store, its copy.
        recursive (`bool`): whether to read subfolders.

    Returns:
        [`GrowingFolder`]: the images.

    Raises:
        ValueError: if they are not those of a local folder.
    """
    if not isinstance(images, FolderImages):
        raise ValueError(
            "append can only be used with a local folder of images; a dataset, shards and a folder in a store are "
            "predicted as a whole."
        )
    return GrowingFolder(Path(images.root), Path(output), table, recursive)


__all__ = ["GrowingFolder", "growing"]
