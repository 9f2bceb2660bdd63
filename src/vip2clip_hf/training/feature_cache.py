"""Embeddings of the frozen backbone on disk: computed once, read in every epoch.

The backbone sees the same pixels in every epoch and does not change; its embeddings are all that training needs of an
image. They lie in memory-mapped arrays, one row an image (and view), in a folder named after everything they depend
on.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.collator import ViP2ClipCollator, undecoded
from ..models.vip2clip.backbone_vip2clip import backbone_checksum
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..utils.distributed import from_all, from_first, world
from ..utils.files import write_atomically
from .augmentation import Augmentation
from .rows import TrainingRows


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.get_logger(__name__)
CACHE_DTYPES = ("float16", "float32")
# Fields of the configuration that the embeddings depend on.
CONFIG_FIELDS = ("image_size", "feature_layers", "image_embeds_layernorm", "position_interpolation")
FORMAT = 1
META_FILE = "meta.json"


def _content_hash(image: dict[str, Any] | None) -> str | None:
    """Of a whole image file, `{"path": ..., "bytes": ...}`."""
    if image is None:
        return None
    content = image["bytes"] if image.get("bytes") is not None else Path(image["path"]).read_bytes()
    return hashlib.sha256(content).hexdigest()


class FeatureCache:
    """
    The store. [`FeatureCache.build`] makes it, or takes up one that is there.

    Args:
        folder (`pathlib.Path`): the folder of this store.
        meta (`dict`): shapes and what the embeddings were computed from.
    """

    def __init__(self, folder: Path, meta: dict[str, Any]):
        self.folder, self.meta = Path(folder), meta
        self._arrays: dict[str, np.ndarray] | None = None

    # Building

    @classmethod
    def build(
        cls,
        model: ViP2ClipForAnomalyDetection,
        image_processor: ViP2ClipImageProcessor,
        dataset: "Dataset",
        folder: str | os.PathLike,
        *,
        dtype: str = "float16",
        augmentation: Augmentation | None = None,
        num_views: int = 1,
        mask_threshold: int | float | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        precision: str = "float32",
        progress: bool = False,
    ) -> "FeatureCache":
        """
        One pass of the backbone over the data set, or what is missing of it.

        What is there is compared with its checksums; rows that do not match, and arrays that are not whole, are
        computed again. Another backbone, image processor, precision, augmentation or image has a store of its own in
        the same folder. Where torch.distributed is initialised the processes share the work; they have to see the same
        folder. Two programs that build the same store wait for each other.

        Args:
            model ([`ViP2ClipForAnomalyDetection`]):
                Whose backbone; on the device it is to run on.
            image_processor ([`ViP2ClipImageProcessor`]):
                Its image processor.
            dataset (`datasets.Dataset`):
                As `load_folder` and `load_benchmark` give it.
            folder (`str` or `os.PathLike`):
                Folder of all stores.
            dtype (`"float16"` or `"float32"`, defaults to `"float16"`):
                Precision of the patch embeddings on disk.
            augmentation ([`Augmentation`], *optional*), num_views (`int`, defaults to 1):
                Views of every image that are stored; the first is the image as it is.
            mask_threshold (`int` or `float`, *optional*):
                See [`ViP2ClipCollator`].
            batch_size, num_workers (`int`):
                Images that go through the backbone together, processes that read them.
            autocast (`Callable`), precision (`str`):
                Context in which the backbone runs, and what to call it in the key of the store.
            progress (`bool`, defaults to `False`):
                Whether to show a progress bar.

        Raises:
            ValueError: an unknown dtype, or views without an augmentation.
            OSError: the disk is too small (says what is needed), an image cannot be read, or the processes do not see
                the same folder.
        """
        if dtype not in CACHE_DTYPES:
            raise ValueError(f"cache_dtype is {dtype!r}; expected {' or '.join(CACHE_DTYPES)}.")
        if num_views < 1 or (num_views > 1 and augmentation is None):
            raise ValueError(
                f"num_views is {num_views}; several views need an augmentation, and at least one is needed."
            )
        dataset = undecoded(dataset)
        config, size = model.config, model.config.image_size
        grid = config.patch_grid
        meta = {
            "format": FORMAT,
            "num_rows": len(dataset) * num_views,
            "num_images": len(dataset),
            "num_views": num_views,
            "dtype": dtype,
            "precision": precision,
            "patch_shape": [len(config.feature_layers), grid * grid, config.clip_config.projection_dim],
            "image_size": size,
            "config": {name: getattr(config, name) for name in CONFIG_FIELDS},
            "augmentation": None if augmentation is None else [list(augmentation.kinds), augmentation.seed],
        }
        meta = json.loads(json.dumps(meta))  # as it is read again
        first = world()[0] == 0
        key = _key(meta, model, image_processor, dataset, mask_threshold) if first else None
        meta["key"] = from_first(key)
        cache = cls(Path(folder) / meta["key"][:20], meta)
        cache.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{cache.folder}.lock")
        error = None
        if first:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                logger.warning(f"Another program builds {cache.folder}; waiting for it.")
                lock.acquire()
        try:
            if first:
                try:
                    cache._prepare()
                except OSError as raised:
                    error = raised
            if (error := from_first(error)) is not None:
                raise error
            shared = f"Expected a folder {str(cache.folder)!r} that all processes and machines see."
            if not all(from_all((cache.folder / META_FILE).exists())):
                raise OSError(shared)
            missing = cache._missing()
            if missing.size:
                rows = TrainingRows(dataset, augmentation)
                collator = ViP2ClipCollator(image_processor, mask_threshold=mask_threshold)
                cache._compute(model, rows, collator, missing, batch_size, num_workers, autocast, progress)
            from_all(None)  # all have written their rows before any looks
            if any(from_all(bool(cache._open()["done"].min() == 0))):
                raise OSError(f"Rows of the feature cache are missing. {shared}")
        finally:
            if first:
                lock.release()
        return cache

    def size_of(self) -> int:
        """Bytes of the arrays."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self._layout().values())

    def _layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of every array."""
        rows, size = self.meta["num_rows"], self.meta["image_size"]
        return {
            "patch_embeds": ((rows, *self.meta["patch_shape"]), self.meta["dtype"]),
            "image_embeds": ((rows, self.meta["patch_shape"][-1]), "float32"),
            "masks": ((rows, -(-size * size // 8)), "uint8"),
            "labels": ((rows,), "uint8"),
            "valid": ((rows,), "uint8"),
            "checksums": ((rows,), "uint32"),
            "done": ((rows,), "uint8"),
        }

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _prepare(self):
        """Make the arrays, or keep those that are there and whole. What is needed is said before it is taken."""
        file = self.folder / META_FILE
        if not self._is_whole(file):
            if self.folder.exists():
                logger.warning(f"The feature cache in {self.folder} is not whole and is built anew.")
                shutil.rmtree(self.folder)
            needed, free = self.size_of(), shutil.disk_usage(self.folder.parent).free
            count = self.meta["num_rows"]
            logger.info(f"Feature cache: {needed / 1e9:.2f} GB for {count} rows in {self.folder}")
            if needed > free:
                raise OSError(
                    f"The feature cache needs {needed / 1e9:.1f} GB ({count} rows of {needed / count / 1e6:.1f} MB), "
                    f"{free / 1e9:.1f} GB are free in {str(self.folder.parent)!r}; choose another disk, float16, or "
                    "train without."
                )
            self.folder.mkdir()
            for name, (shape, dtype) in self._layout().items():
                np.lib.format.open_memmap(self._path(name), mode="w+", dtype=dtype, shape=shape).flush()
            write_atomically(file, json.dumps(self.meta, indent=1) + "\n")

    def _is_whole(self, file: Path) -> bool:
        try:
            if json.loads(file.read_text(encoding="utf-8")) != self.meta:
                return False
            return all(
                (array := np.load(self._path(name), mmap_mode="r")).shape == shape and array.dtype == dtype
                for name, (shape, dtype) in self._layout().items()
            )
        except (OSError, ValueError):
            return False

    def _missing(self) -> np.ndarray:
        """Rows that are not there, or are not what their checksum says. Every process looks at its share."""
        arrays = self._open(writable=True)
        rank, world_size = world()
        done = np.flatnonzero(arrays["done"])
        damaged = [row for row in done[rank::world_size] if self._checksum(row) != arrays["checksums"][row]]
        damaged = [row for part in from_all([int(row) for row in damaged]) for row in part]
        if damaged and rank == 0:
            logger.warning(f"{len(damaged)} rows of the feature cache are damaged and are computed again.")
            arrays["done"][damaged] = 0
        return from_first(np.flatnonzero(arrays["done"] == 0))

    def _compute(self, model, rows, collator, missing, batch_size, num_workers, autocast, progress):
        arrays = self._open(writable=True)
        rank, world_size = world()
        share = missing[rank::world_size].tolist()
        batches = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
        loader = torch.utils.data.DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=collator,
            num_workers=num_workers,
            pin_memory=model.device.type == "cuda",
        )
        hidden, title = not progress or rank > 0, f"caching features, {self.size_of() / 1e9:.2f} GB"
        with torch.inference_mode(), tqdm(total=len(share), desc=title, disable=hidden) as bar:
            for numbers, batch in zip(batches, loader):
                with autocast():
                    pixel_values = batch["pixel_values"].to(model.device, non_blocking=True)
                    image_embeds, patch_embeds = model.get_vision_features(pixel_values)
                arrays["patch_embeds"][numbers] = patch_embeds.to(getattr(torch, self.meta["dtype"])).cpu().numpy()
                arrays["image_embeds"][numbers] = image_embeds.float().cpu().numpy()
                arrays["masks"][numbers] = np.packbits(batch["mask_labels"].numpy().reshape(len(numbers), -1), axis=1)
                arrays["labels"][numbers] = batch["labels"].numpy()
                arrays["valid"][numbers] = batch["mask_label_valid"].numpy()
                for number in numbers:
                    arrays["checksums"][number] = self._checksum(number)
                # Last: from here on the rows count.
                arrays["done"][numbers] = 1
                bar.update(len(numbers))
        for array in arrays.values():
            array.flush()

    def _checksum(self, row: int) -> int:
        arrays, value = self._open(), 0
        for name in ("patch_embeds", "image_embeds", "masks", "labels", "valid"):
            value = zlib.crc32(np.ascontiguousarray(arrays[name][row]), value)
        return value

    # Reading

    def _open(self, writable: bool = False) -> dict[str, np.ndarray]:
        if self._arrays is None or (writable and self._arrays["done"].mode == "r"):
            mode = "r+" if writable else "r"
            self._arrays = {name: np.load(self._path(name), mmap_mode=mode) for name in self._layout()}
        return self._arrays

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}  # workers map the files themselves

    def __len__(self) -> int:
        return self.meta["num_rows"]

    def row(self, number: int) -> dict[str, Any]:
        """
        One row, for [`ViP2ClipCollator`].

        Returns:
            `dict`: `image_embeds` `(projection_dim,)` float32, `patch_embeds` `(num_layers, num_patches,
            projection_dim)`, `mask_labels` `(image_size, image_size)` uint8, `label` and `mask_label_valid`.
        """
        arrays, size = self._open(), self.meta["image_size"]
        mask = np.unpackbits(arrays["masks"][number], count=size * size).reshape(size, size)
        return {
            "image_embeds": torch.from_numpy(np.array(arrays["image_embeds"][number])),
            "patch_embeds": torch.from_numpy(np.array(arrays["patch_embeds"][number])),
            "mask_labels": torch.from_numpy(mask),
            "label": int(arrays["labels"][number]),
            "mask_label_valid": bool(arrays["valid"][number]),
        }


class CachedRows(TrainingRows):
    """
    Rows of a [`FeatureCache`]: embeddings and masks in place of images.

    Args:
        dataset (`datasets.Dataset`): the dataset the cache was built from.
        cache ([`FeatureCache`]): the cache.
    """

    def __init__(self, dataset: "Dataset", cache: FeatureCache):
        super().__init__(dataset)
        self.cache = cache

    def read(self, view: int, position: int) -> dict[str, Any]:
        row = self.cache.row(view * len(self) + position)
        return {**row, "image_id": self.image_ids[position]}


def _key(meta, model, image_processor, dataset, mask_threshold) -> str:
    """Hash of everything the rows are computed from: weights, settings, and the files of images and masks, whole."""
    if "mask_threshold" in dataset.column_names:
        mask_threshold = list(dataset["mask_threshold"])
    inputs = {
        "backbone": backbone_checksum(_vision_weights(model), model.clip.dtype),
        "vision_config": _settings(model.config.clip_config.vision_config.to_dict()),
        "image_processor": _settings(image_processor.to_dict()),
        "images": [_content_hash(image) for image in dataset["image"]],
        "masks": [_content_hash(mask) for mask in dataset["mask"]],
        "labels": list(dataset["label"]),
        "mask_threshold": mask_threshold,
    }
    return hashlib.sha256(json.dumps([meta, inputs], sort_keys=True, default=str).encode()).hexdigest()


def _vision_weights(model: ViP2ClipForAnomalyDetection) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for name, tensor in model.clip.state_dict().items()
        if name.startswith(("vision_model.", "visual_projection."))
    }


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what says nothing about pixels."""
    return {key: value for key, value in settings.items() if not key.startswith("_") and "version" not in key}


__all__ = ["CACHE_DTYPES", "CachedRows", "FeatureCache"]
