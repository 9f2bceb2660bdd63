"""Patch features of photos of good parts, to compare the patches of other photos with."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from .fingerprint_vip2clip import model_fingerprint
from .maps_vip2clip import resize_maps
from .reference_building_vip2clip import build_bank, check_aligned
from .reference_changes_vip2clip import keep_photos, merge_banks
from .reference_checks_vip2clip import check_fingerprint, check_tensors
from .reference_files_vip2clip import VERSION, checksum_of, read_references, write_references
from .reference_left_out_vip2clip import evidence_levels, left_out_photos, position_offset
from .reference_records_vip2clip import DEFAULT_MAX_PATCHES, LeftOutPhoto, ReferenceOptions, ReferencePhoto
from .reference_rule_vip2clip import image_evidence, map_evidence, to_score, zero_shot_weight
from .reference_search_vip2clip import ReferenceRows


logger = logging.get_logger(__name__)


class ReferenceBank:
    """
    Patch features of normal photos of a product. A patch of another photo is anomalous if it is far from all of them.

    Create it with [`ReferenceBank.from_images`], and pass it to the model or the pipeline as `references`. The
    features depend on the model: a bank is refused by a model with other weights or another image size. Banks do not
    change; `add`, `merge` and `without` return a new one.

    Args:
        features (`torch.HalfTensor` of shape `(num_layers, num_patches, width)`):
            L2-normalized patch features of all feature layers but the last (of the only one, if there is one).
        row_photo (`torch.IntTensor` of shape `(num_patches,)`):
            Photo of each patch, in ascending order.
        photos (`Sequence[ReferencePhoto]`):
            The photos.
        view_photo (`torch.IntTensor` of shape `(num_views,)`):
            Photo of each view: the whole photo, or a tile. For very many photos, only some of them have views.
        view_logits (`torch.FloatTensor` of shape `(num_views,)`), view_maps (`(num_views, grid, grid)`):
            Zero-shot logit and patch map of each view.
        view_distances (`torch.FloatTensor` of shape `(num_views, grid, grid)`):
            Distance of each patch to the nearest patch of another photo. Of a single photo, to another patch in it.
        options ([`ReferenceOptions`]):
            How the photos were read.
        fingerprint (`Mapping[str, Any]`):
            What determines the features, from the model.
        reduced (`bool`, defaults to `False`):
            Whether `features` is a subset of the patches.

    Attributes:
        weight (`float`): weight of the zero-shot logit in the score.
        image_level, pixel_level (`float`): evidence that becomes a score, or a value of the map, of 0.5.
    """

    def __init__(
        self,
        features: torch.Tensor,
        row_photo: torch.Tensor,
        photos: Sequence[ReferencePhoto],
        view_photo: torch.Tensor,
        view_logits: torch.Tensor,
        view_maps: torch.Tensor,
        view_distances: torch.Tensor,
        options: ReferenceOptions,
        fingerprint: Mapping[str, Any],
        reduced: bool = False,
    ) -> None:
        self.features, self.row_photo, self.photos = features, row_photo, tuple(photos)
        self.view_photo, self.view_logits = view_photo, view_logits
        self.view_maps, self.view_distances = view_maps, view_distances
        self.options, self.fingerprint, self.reduced = options, dict(fingerprint), reduced
        check_tensors(self.tensors(), len(self.photos))
        self._rows: ReferenceRows | None = None
        self.hidden_rows = (0, 0)
        self._checked: Any = None
        self._checksum: str | None = None
        self._left_out_scores: np.ndarray | None = None
        self.image_size, self.smoothing_sigma = (fingerprint["config"][n] for n in ("image_size", "smoothing_sigma"))
        self.position_offset = position_offset(view_distances) if options.aligned else None
        self.weight = zero_shot_weight(len(photos), view_logits.numpy()) if options.weight is None else options.weight
        self.image_level, self.pixel_level = evidence_levels(self)

    def __len__(self) -> int:
        return len(self.photos)

    def __repr__(self) -> str:
        layers, patches, width = self.features.shape
        return (
            f"{type(self).__name__}({len(self)} photos, {patches} patches of {layers} layers, width {width}, "
            f"{self.nbytes / 1024**2:.1f} MB)"
        )

    @property
    def nbytes(self) -> int:
        """Size of the features in bytes."""
        return self.features.nbytes

    # Building

    @classmethod
    def from_images(
        cls,
        model: Any,
        image_processor: Any,
        images: Any,
        *,
        tile_size: int = 0,
        tile_overlap: float = 0.25,
        rotations: bool = False,
        aligned: bool = False,
        max_patches: int | None = DEFAULT_MAX_PATCHES,
        weight: float | None = None,
        top_k: int | None = None,
        reading: Mapping[str, Any] | None = None,
        batch_size: int = 8,
        progress: bool = False,
    ) -> "ReferenceBank":
        """
        Compute the features of photos of good parts.

        Args:
            model ([`ViP2ClipForAnomalyDetection`]):
                The model, on the device to use.
            image_processor ([`ViP2ClipImageProcessor`]):
                Image processor of the model.
            images:
                Photos without defects: a folder, or an iterable of images in any form that the pipeline accepts.
                Photos with the same pixels are used once, with a warning.
            tile_size, tile_overlap, rotations, aligned, max_patches, weight (*optional*):
                See [`ReferenceOptions`].
            top_k (`int`, *optional*):
                Number of top patches of the zero-shot score. By default, that of `model.decision`, else `top_k` of the
                configuration.
            reading (`Mapping[str, Any]`, *optional*):
                `bit_depth`, `page` and `channel_order`, see [`load_image`]. By default, those of the image processor.
            batch_size (`int`, defaults to 8):
                Number of photos or tiles per batch.
            progress (`bool`, defaults to `False`):
                Whether to show a progress bar.

        Returns:
            [`ReferenceBank`]: the bank.

        Raises:
            OSError: if a photo cannot be read.
            ValueError: if there are no photos, or an option is out of range.
        """
        options = ReferenceOptions(tile_size, tile_overlap, rotations, aligned, max_patches, weight)
        more: dict[str, Any] = {"top_k": top_k, "reading": reading, "batch_size": batch_size, "progress": progress}
        arguments = build_bank(model, image_processor, images, options, **more)
        check_aligned(arguments["options"], len(arguments["photos"]))
        return cls(**arguments)

    def add(self, model: Any, image_processor: Any, images: Any, **options: Any) -> "ReferenceBank":
        """
        Add photos, read with the options of this bank.

        Args:
            model, image_processor, images: see [`ReferenceBank.from_images`].
            options: `top_k`, `reading`, `batch_size` and `progress`, see [`ReferenceBank.from_images`].

        Returns:
            [`ReferenceBank`]: a new bank with the photos of both. Photos that this bank contains are left out.

        Raises:
            OSError, ValueError: see [`ReferenceBank.from_images`].
        """
        self.check_model(model)
        return self.merge(type(self)(**build_bank(model, image_processor, images, self.options, **options)))

    def merge(self, other: "ReferenceBank") -> "ReferenceBank":
        """
        Combine two banks.

        Args:
            other ([`ReferenceBank`]): bank of the same model, with the same options.

        Returns:
            [`ReferenceBank`]: a new bank with the photos of both, without duplicates.

        Raises:
            ValueError: if model or options differ.
        """
        arguments = merge_banks(self, other)
        return self if arguments is None else type(self)(**arguments)

    def without(self, names: Iterable[str]) -> "ReferenceBank":
        """
        Remove photos.

        Args:
            names (`Iterable[str]` or `str`): names of photos to remove.

        Returns:
            [`ReferenceBank`]: a new bank without them.

        Raises:
            ValueError: if a name is unknown or no photo is left.
        """
        names = {names} if isinstance(names, str) else set(names)
        if unknown := sorted(names - {photo.name for photo in self.photos}):
            raise ValueError(
                f"{unknown[0]!r} is not the name of a reference; expected names such as {self.photos[0].name!r}."
            )
        numbers = [number for number, photo in enumerate(self.photos) if photo.name not in names]
        check_aligned(self.options, len(numbers))
        return self if len(numbers) == len(self) else type(self)(**keep_photos(self, numbers))

    # Scoring

    def check_model(self, model: Any) -> None:
        """
        Check that the features of a model can be compared with this bank.

        Args:
            model ([`ViP2ClipForAnomalyDetection`]): the model.

        Raises:
            ValueError: if weights, image size or another field that features depend on differ.
        """
        found = model_fingerprint(model)
        if self._checked != found:
            check_fingerprint(self.fingerprint, found)
            self._checked = found

    def distances(self, patch_embeds: torch.Tensor, projection: torch.nn.Module) -> torch.Tensor:
        """
        Compute the distance of every patch to the nearest patch of the references, averaged over the layers.

        Args:
            patch_embeds (`torch.FloatTensor` of shape `(batch_size, num_layers, num_patches, width)`):
                Patch embeddings of all feature layers, from `get_image_features`.
            projection (`torch.nn.Module`):
                Visual projection of CLIP.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, grid, grid)`: distances in [0, 2], float32 or float64.
        """
        layers, _, width = self.features.shape
        shape, grid, offset = tuple(patch_embeds.shape), math.isqrt(patch_embeds.shape[2]), self.position_offset
        if shape[1] < layers or shape[3] != width or (offset is not None and offset.shape[0] != grid):
            raise ValueError(
                f"patch_embeds has shape {shape}; expected at least {layers} layers of {self.view_maps[0].numel()} "
                f"patches with {width} values, like those of the references."
            )
        found = self.rows_on(patch_embeds.device, projection).distances(patch_embeds, self.hidden_rows)
        found = found.unflatten(1, (grid, grid))
        return found if offset is None else found * offset.to(found)

    def maps(self, distances: torch.Tensor) -> torch.Tensor:
        """
        Upsample distances to the size of the model and smooth them.

        Args:
            distances (`torch.FloatTensor` of shape `(batch_size, grid, grid)`): from [`distances`].

        Returns:
            `torch.FloatTensor` of shape `(batch_size, image_size, image_size)`: distance maps, in [0, 2].
        """
        return resize_maps(distances, self.image_size, self.smoothing_sigma).clamp(min=0)

    def combined_scores(self, reference_scores: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """
        Combine distances and zero-shot logits of images to scores.

        Args:
            reference_scores (`torch.FloatTensor` of shape `(batch_size,)`): mean of the largest percent of each map.
            logits (`torch.FloatTensor` of shape `(batch_size,)`): logit of the zero-shot score.

        Returns:
            `torch.FloatTensor` of shape `(batch_size,)`: scores in [0, 1].
        """
        return to_score(image_evidence(reference_scores, logits, self.weight), self.image_level)

    def combined_maps(self, reference_maps: torch.Tensor, anomaly_maps: torch.Tensor) -> torch.Tensor:
        """
        Combine distance maps and zero-shot maps.

        Args:
            reference_maps (`torch.FloatTensor` of shape `(batch_size, height, width)`): distance maps.
            anomaly_maps (`torch.FloatTensor` of shape `(batch_size, height, width)`): zero-shot maps, in [0, 1].

        Returns:
            `torch.FloatTensor` of shape `(batch_size, height, width)`: anomaly maps in [0, 1].
        """
        return to_score(map_evidence(reference_maps, anomaly_maps), self.pixel_level)

    def left_out(self) -> Iterator[LeftOutPhoto]:
        """
        Score every reference like a new photo, with the other references only.

        Yields:
            [`LeftOutPhoto`]: score and map of each photo. For very many photos, of some of them only. Of a single
            photo, its patches are compared with others in it, which says little.
        """
        return left_out_photos(self)

    def left_out_scores(self) -> np.ndarray:
        """
        Return the scores of all references, see [`left_out`].

        Returns:
            `np.ndarray` of shape `(num_photos,)`: float32 in [0, 1], in ascending order.
        """
        if self._left_out_scores is None:
            self._left_out_scores = np.sort(np.asarray([one.score for one in self.left_out()], dtype=np.float32))
        return self._left_out_scores

    # Files

    def checksum(self) -> str:
        """
        Compute a checksum of features, photos and options, to identify the bank in results.

        Returns:
            `str`: 16 hexadecimal digits.
        """
        if self._checksum is None:
            self._checksum = checksum_of(self.description(), self.tensors())
        return self._checksum

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """
        Write `references.json` and `references.safetensors`. In a checkpoint folder, the checkpoint then uses them.

        Both files are written under temporary names first, so an interruption leaves earlier references as they were.

        Args:
            save_directory (`str` or `os.PathLike`): folder to write to. It is created if it does not exist.

        Raises:
            OSError: if the folder cannot be written.
        """
        write_references(save_directory, self.description(), self.checksum(), self.tensors())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **hub_kwargs: Any) -> "ReferenceBank":
        """
        Load the references of a checkpoint, or of a folder that `save_pretrained` has written.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Folder or Hub id.
            hub_kwargs:
                Options to load from the Hub, such as `revision`, `token` and `subfolder`.

        Returns:
            [`ReferenceBank`]: the bank.

        Raises:
            OSError: if there are no references, or a file is damaged.
        """
        found = cls.find(pretrained_model_name_or_path, **hub_kwargs)
        if found is None:
            raise OSError(
                f"{os.fspath(pretrained_model_name_or_path)!r} does not contain references.json; expected the folder "
                "of a detector with references."
            )
        return found

    @classmethod
    def find(cls, pretrained_model_name_or_path: str | os.PathLike, **hub_kwargs: Any) -> "ReferenceBank | None":
        """Load the references of a checkpoint like `from_pretrained`, or return `None` if there are none."""
        return read_references(cls, pretrained_model_name_or_path, hub_kwargs)

    # Helpers

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of `references.safetensors` by name."""
        names = ("features", "row_photo", "view_photo", "view_logits", "view_maps", "view_distances")
        return {name: getattr(self, name) for name in names}

    def description(self) -> dict[str, Any]:
        """Return the content of `references.json`, without the checksum."""
        return {
            "version": VERSION,
            "options": asdict(self.options),
            "reduced": self.reduced,
            "fingerprint": self.fingerprint,
            "photos": [asdict(photo) for photo in self.photos],
        }

    def rows_on(self, device: torch.device, projection: torch.nn.Module) -> ReferenceRows:
        """Return the features, prepared for a device once."""
        if self._rows is None or self._rows.device != device:
            self._rows = ReferenceRows(self.features, device, projection)
        return self._rows

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: not what is prepared for a device."""
        return {**self.__dict__, "_rows": None}


__all__ = ["ReferenceBank"]
