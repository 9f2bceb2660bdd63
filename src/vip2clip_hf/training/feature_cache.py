"""Feature cache: embeddings of the frozen backbone, computed once and read in every epoch.

Training needs only the embeddings of an image. The backbone is frozen and its input does not change, so the embeddings
are the same in every epoch. They are stored in memory-mapped arrays with one row per image and view. The name of the
folder is a hash of everything they depend on.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.collator import ViP2ClipCollator, resolve_mask_options, undecoded
from ..models.vip2clip.backbone_vip2clip import backbone_checksum
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.mask_options_vip2clip import MASK_OPTIONS, MaskOptions
from ..utils.distributed import from_all, from_first, world
from ..utils.files import write_atomically
from .augmentation import Augmentation
from .contents import content_hash, reading_code
from .rows import TrainingRows


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.get_logger(__name__)
CACHE_DTYPES = ("float16", "float32")
FORMAT = 1
META_FILE = "meta.json"


class FeatureCache:
    """
    Embeddings, masks and labels of a dataset on disk. Use [`FeatureCache.build`] to create or complete a cache.

    Args:
        folder (`pathlib.Path`): folder of this cache.
        meta (`dict`): contents of `meta.json`: shapes, and the settings the embeddings were computed with.
    """

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder, self.meta = Path(folder), meta
        self._arrays: dict[str, np.memmap] | None = None

    # Building

    @classmethod
    def build(
        cls,
        model: Any,
        image_processor: ViP2ClipImageProcessor,
        dataset: "Dataset",
        folder: str | os.PathLike,
        *,
        dtype: str = "float16",
        augmentation: Augmentation | None = None,
        num_views: int = 1,
        mask_threshold: int | float | None = None,
        mask_options: MaskOptions | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        precision: str = "float32",
        progress: bool = False,
    ) -> "FeatureCache":
        """
        Run the backbone over the dataset and store the embeddings. Rows already stored are not computed again.

        Stored rows are verified by checksums. Damaged rows and incomplete arrays are computed again. If the backbone,
        the image processor, the precision, the augmentation, an image or the code that reads images changes, a
        separate cache is created in `folder`. If torch.distributed is initialized, the processes share the work; they
        need access to the same folder. If two programs build the same cache, one waits for the other.

        Args:
            model ([`ViP2ClipForAnomalyDetection`] or [`TrainableBaselineModel`]):
                Model with the backbone, on the device to use.
            image_processor ([`ViP2ClipImageProcessor`]):
                Image processor of the model.
            dataset (`datasets.Dataset`):
                Dataset returned by [`load_folder`] or [`load_benchmark`].
            folder (`str` or `os.PathLike`):
                Folder for caches. Each cache is stored in its own subfolder.
            dtype (`str`, defaults to `"float16"`):
                Precision of the stored patch embeddings, `"float16"` or `"float32"`.
            augmentation ([`Augmentation`], *optional*):
                Augmentation of the images, required for more than one view.
            num_views (`int`, defaults to 1):
                Number of views stored per image. The first view is the original image.
            mask_threshold (`int` or `float`, *optional*):
                Mask values greater than this are anomalous, see [`ViP2ClipCollator`].
            mask_options ([`MaskOptions`], *optional*):
                How to read masks.
            batch_size (`int`, defaults to 8):
                Number of images per forward pass.
            num_workers (`int`, defaults to 0):
                Number of processes that read images.
            autocast (`Callable[[], AbstractContextManager]`, *optional*):
                Returns the context manager in which the backbone runs. Defaults to no autocast.
            precision (`str`, defaults to `"float32"`):
                Name of the precision in `autocast`. A different name creates a separate cache.
            progress (`bool`, defaults to `False`):
                Whether to show a progress bar.

        Returns:
            [`FeatureCache`]: the complete cache.

        Raises:
            ValueError: if `dtype` is unknown, or if there are several views without an augmentation.
            OSError: if there is not enough disk space, if an image cannot be read, or if the processes do not have
                access to the same folder.
        """
        if dtype not in CACHE_DTYPES:
            raise ValueError(f"cache_dtype is {dtype!r}; expected {' or '.join(CACHE_DTYPES)}.")
        if num_views < 1 or (num_views > 1 and augmentation is None):
            raise ValueError(
                f"num_views is {num_views}; expected 1, or an integer greater than 1 with an augmentation."
            )
        dataset = undecoded(dataset)
        mask_options = resolve_mask_options(image_processor, mask_threshold, mask_options)
        meta = {
            "format": FORMAT,
            "num_rows": len(dataset) * num_views,
            "num_images": len(dataset),
            "num_views": num_views,
            "dtype": dtype,
            "precision": precision,
            "patch_shape": model.feature_shape,
            "image_feature_size": model.image_feature_size,
            "image_size": model.config.image_size,
            "config": model.feature_settings,
            "augmentation": None if augmentation is None else [list(augmentation.kinds), augmentation.seed],
            "code": reading_code(getattr(model, "feature_modules", ())),
            "pillow": PIL.__version__,
        }
        meta = json.loads(json.dumps(meta))  # the same types as in the file
        first = world()[0] == 0
        key = _key(meta, model, image_processor, dataset, mask_options) if first else None
        meta["key"] = from_first(key)
        cache = cls(Path(folder) / meta["key"][:20], meta)
        cache.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{cache.folder}.lock")
        error = None
        if first:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                logger.warning(f"Another program is building {cache.folder}. Waiting for it to finish.")
                lock.acquire()
        try:
            if first:
                try:
                    cache._prepare()
                except OSError as raised:
                    error = raised
            if (error := from_first(error)) is not None:
                raise error
            shared = f"Expected {str(cache.folder)!r} to be a folder that all processes and machines can access."
            if not all(from_all((cache.folder / META_FILE).exists())):
                raise OSError(f"The feature cache was not found by all processes. {shared}")
            missing = cache._missing()
            if missing.size:
                rows = TrainingRows(dataset, augmentation, mask_options)
                collator = ViP2ClipCollator(image_processor, mask_options=mask_options)
                cache._compute(model, rows, collator, missing, batch_size, num_workers, autocast, progress)
            from_all(None)  # wait until all processes have written their rows
            if any(from_all(bool(cache._open()["done"].min() == 0))):
                raise OSError(f"Rows of the feature cache are missing. {shared}")
        finally:
            if first:
                lock.release()
        return cache

    def size_of(self) -> int:
        """Return the size of the arrays in bytes."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self._layout().values())

    def _layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return the shape and dtype of every array."""
        rows, size = self.meta["num_rows"], self.meta["image_size"]
        return {
            "patch_embeds": ((rows, *self.meta["patch_shape"]), self.meta["dtype"]),
            "image_embeds": ((rows, self.meta["image_feature_size"]), "float32"),
            "masks": ((rows, -(-size * size // 8)), "uint8"),
            "labels": ((rows,), "uint8"),
            "valid": ((rows,), "uint8"),
            "checksums": ((rows,), "uint32"),
            "done": ((rows,), "uint8"),
        }

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _prepare(self) -> None:
        """Create the arrays if they do not exist or are incomplete. Check the disk space first."""
        file = self.folder / META_FILE
        if not self._is_complete(file):
            if self.folder.exists():
                logger.warning(f"The feature cache in {self.folder} is incomplete. Building it again.")
                for name in [f"{array}.npy" for array in self._layout()] + [META_FILE]:
                    (self.folder / name).unlink(missing_ok=True)
            needed, free = self.size_of(), shutil.disk_usage(self.folder.parent).free
            count = self.meta["num_rows"]
            logger.info(f"Feature cache: {needed / 1e9:.2f} GB for {count} rows in {self.folder}")
            if needed > free:
                raise OSError(
                    f"The feature cache needs {needed / 1e9:.1f} GB ({count} rows of {needed / count / 1e6:.1f} MB), "
                    f"but {free / 1e9:.1f} GB are free in {str(self.folder.parent)!r}. Use another disk or "
                    "cache_dtype float16, or train without a cache."
                )
            self.folder.mkdir(exist_ok=True)
            for name, (shape, dtype) in self._layout().items():
                np.lib.format.open_memmap(self._path(name), mode="w+", dtype=dtype, shape=shape).flush()
            write_atomically(file, json.dumps(self.meta, indent=1) + "\n")

    def _is_complete(self, file: Path) -> bool:
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
        """Find rows that are not stored or do not match their checksum. The processes share the work."""
        arrays = self._open(writable=True)
        rank, world_size = world()
        done = np.flatnonzero(arrays["done"])
        damaged = [row for row in done[rank::world_size] if self._checksum(row) != arrays["checksums"][row]]
        damaged = [row for part in from_all([int(row) for row in damaged]) for row in part]
        if damaged and rank == 0:
            logger.warning(f"{len(damaged)} rows of the feature cache are damaged. Computing them again.")
            arrays["done"][damaged] = 0
        return from_first(np.flatnonzero(arrays["done"] == 0))

    def _compute(
        self,
        model: Any,
        rows: TrainingRows,
        collator: ViP2ClipCollator,
        missing: np.ndarray,
        batch_size: int,
        num_workers: int,
        autocast: Callable[[], AbstractContextManager],
        progress: bool,
    ) -> None:
        """Compute and store missing rows. The processes share the work."""
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
        hidden, title = not progress or rank > 0, f"Caching features ({self.size_of() / 1e9:.2f} GB)"
        with torch.inference_mode(), tqdm(total=len(share), desc=title, disable=hidden) as bar:
            for numbers, batch in zip(batches, loader):
                with autocast():
                    pixel_values = batch["pixel_values"].to(model.device, non_blocking=True)
                    images = model.get_image_features(pixel_values, return_dict=True)
                    image_embeds, patch_embeds = images.image_embeds, images.patch_embeds
                arrays["patch_embeds"][numbers] = patch_embeds.to(getattr(torch, self.meta["dtype"])).cpu().numpy()
                arrays["image_embeds"][numbers] = image_embeds.float().cpu().numpy()
                arrays["masks"][numbers] = np.packbits(batch["mask_labels"].numpy().reshape(len(numbers), -1), axis=1)
                arrays["labels"][numbers] = batch["labels"].numpy()
                arrays["valid"][numbers] = batch["mask_valid"].numpy()
                for number in numbers:
                    arrays["checksums"][number] = self._checksum(number)
                # Last, because it marks the rows as stored.
                arrays["done"][numbers] = 1
                bar.update(len(numbers))
        for array in arrays.values():
            array.flush()

    def _checksum(self, row: int) -> int:
        arrays, value = self._open(), 0
        for name in ("patch_embeds", "image_embeds", "masks", "labels", "valid"):
            value = zlib.crc32(np.ascontiguousarray(arrays[name][row]).data, value)
        return value

    # Reading

    def _open(self, writable: bool = False) -> dict[str, np.memmap]:
        """Map the arrays into memory."""
        if self._arrays is None or (writable and self._arrays["done"].mode == "r"):
            mode: Literal["r", "r+"] = "r+" if writable else "r"
            self._arrays = {name: np.load(self._path(name), mmap_mode=mode) for name in self._layout()}
        return self._arrays

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}  # each worker process maps the files itself

    def __len__(self) -> int:
        return self.meta["num_rows"]

    def row(self, number: int) -> dict[str, Any]:
        """
        Read a row for [`ViP2ClipCollator`].

        Args:
            number (`int`): number of the row, `view * number of images + position`.

        Returns:
            `dict`: `image_embeds` of shape `(projection_dim,)`, float32; `patch_embeds` of shape `(num_layers,
            num_patches, projection_dim)` in the dtype of the cache; `mask_labels` of shape `(image_size, image_size)`,
            uint8, 0 or 1; `label` (`int`) and `mask_valid` (`bool`).
        """
        arrays, size = self._open(), self.meta["image_size"]
        mask = np.unpackbits(arrays["masks"][number], count=size * size).reshape(size, size)
        return {
            "image_embeds": torch.from_numpy(np.array(arrays["image_embeds"][number])),
            "patch_embeds": torch.from_numpy(np.array(arrays["patch_embeds"][number])),
            "mask_labels": torch.from_numpy(mask),
            "label": int(arrays["labels"][number]),
            "mask_valid": bool(arrays["valid"][number]),
        }


class CachedRows(TrainingRows):
    """
    Rows of a [`FeatureCache`], with embeddings instead of images.

    Args:
        dataset (`datasets.Dataset`): dataset the cache was built from.
        cache ([`FeatureCache`]): the cache.
    """

    def __init__(self, dataset: "Dataset", cache: FeatureCache) -> None:
        super().__init__(dataset)
        self.cache = cache
        self.categories = dataset["category"] if "category" in dataset.column_names else [None] * len(dataset)

    def read(self, view: int, position: int) -> dict[str, Any]:
        """Read a row in one view from the cache."""
        row = self.cache.row(view * len(self) + position)
        return {**row, "image_id": self.image_ids[position], "category": self.categories[position]}


def _key(
    meta: dict[str, Any],
    model: Any,
    image_processor: ViP2ClipImageProcessor,
    dataset: "Dataset",
    mask_options: MaskOptions,
) -> str:
    """Hash everything the rows depend on: weights, settings, and the contents of the image and mask files."""
    masks = dict(mask_options.columns())
    masks.update({name: list(dataset[name]) for name in MASK_OPTIONS.values() if name in dataset.column_names})
    inputs = {
        "backbone": backbone_checksum(_vision_weights(model), model.clip.dtype),
        "vision_config": _settings(model.clip.config.vision_config.to_dict()),
        "image_processor": _settings(image_processor.to_dict()),
        "images": [content_hash(image) for image in dataset["image"]],
        "masks": [content_hash(mask) for mask in dataset["mask"]],
        "labels": list(dataset["label"]),
        "mask_options": [mask_options.columns(), masks],
    }
    return hashlib.sha256(json.dumps([meta, inputs], sort_keys=True, default=str).encode()).hexdigest()


def _vision_weights(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for name, tensor in model.clip.state_dict().items()
        if name.startswith(("vision_model.", "visual_projection."))
    }


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Remove settings that do not affect the embeddings."""
    return {key: value for key, value in settings.items() if not key.startswith("_") and "version" not in key}


__all__ = ["CACHE_DTYPES", "CachedRows", "FeatureCache"]
