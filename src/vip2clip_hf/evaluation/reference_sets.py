"""Datasets to evaluate with references: photos of good parts, drawn from the split "train" or a folder."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import logging

from ..data.image_hashes import among, picture_hash
from ..data.sources import DataSource
from ..models.vip2clip.image_loading_vip2clip import load_image, reading_options
from ..models.vip2clip.pipeline_inputs_vip2clip import as_inputs
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..utils.contents import image_digests
from ..utils.distributed import world


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)
NUM_THREADS = 4


@dataclass(frozen=True)
class ReferenceChoice:
    """
    Which references to evaluate with.

    Args:
        counts (`tuple[int, ...]`): numbers of references per category. Each is evaluated in addition to zero-shot.
        seeds (`tuple[int, ...]`, defaults to `(0,)`): seeds of the draws. Each count is evaluated with each seed.
        folder (`str`, *optional*): folder with photos of good parts: for all categories, or in subfolders with the
            names of the categories. Without counts, all of its photos are used. By default, references are drawn from
            the normal images of the split "train".
        own (`bool`, defaults to `True`): whether to use the references of the model, if no others are chosen.
    """

    counts: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    folder: str | None = None
    own: bool = True

    def __post_init__(self) -> None:
        for name, least in (("counts", 1), ("seeds", 0)):
            values = getattr(self, name)
            if any(type(value) is not int or value < least for value in values) or len(set(values)) < len(values):
                raise ValueError(f"{name} is {list(values)}; expected different integers of at least {least}.")
        if self.counts and not self.seeds:
            raise ValueError("seeds is empty; expected at least one seed for the draws of the references.")
        if self.folder is not None and not os.path.isdir(self.folder):
            raise OSError(f"The folder of references {self.folder!r} is not found; expected a folder of photos.")


@dataclass(frozen=True)
class EvaluatedSet:
    """
    One evaluation of a dataset: zero-shot, or with references.

    Args:
        source ([`DataSource`]): the dataset.
        dataset (`datasets.Dataset`): its images, not decoded.
        name (`str`): name of the evaluation, for its folder.
        bank ([`ReferenceBank`], *optional*): references of the model, or those of another detector.
        photos (`Mapping[str, Sequence[Mapping[str, Any]]]`, *optional*): drawn photos by category, each with
            `image`, `name` and `digest`.
        count, seed (`int`, *optional*): number of references per category, and seed of the draw.
    """

    source: DataSource
    dataset: "Dataset"
    name: str
    bank: ReferenceBank | None = None
    photos: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    count: int | None = None
    seed: int | None = None

    def settings(self) -> dict[str, Any]:
        """Describe what determines the references, for the key of a result. Empty for zero-shot."""
        if self.bank is not None:
            # Those of other detectors are part of the settings of the detector.
            known = hasattr(self.bank, "checksum")
            return {"references": {"bank": self.bank.checksum() if known else len(self.bank)}}
        if not self.photos:
            return {}
        digest = hashlib.sha256()
        for category, photos in self.photos.items():
            digest.update(repr((category, [(one["name"], one["digest"]) for one in photos])).encode())
        return {"references": {"count": self.count, "seed": self.seed, "photos": digest.hexdigest()[:16]}}

    def fields(self) -> dict[str, Any]:
        """Fields of the result: `dataset`, `reference_seed` and `reference_photos`. Empty for zero-shot."""
        if self.bank is not None:
            names: Any = [photo.name for photo in getattr(self.bank, "photos", ())]
        elif self.photos:
            names = {category: [one["name"] for one in photos] for category, photos in self.photos.items()}
        else:
            return {}
        return {"dataset": self.source.name, "reference_seed": self.seed, "reference_photos": names}

    def references(self, model: Any, image_processor: Any) -> Mapping[str, ReferenceBank] | ReferenceBank | None:
        """
        Compute the features of the references.

        Args:
            model ([`ViP2ClipForAnomalyDetection`]): the model, on the device to run on.
            image_processor ([`ViP2ClipImageProcessor`]): image processor of the model.

        Returns:
            One bank per category, the bank of the model, or `None`.

        Raises:
            OSError: if a photo cannot be read.
        """
        if self.bank is not None:
            return self.bank
        # The scores of an evaluation have the top-k of the configuration.
        return {
            category: ReferenceBank.from_images(
                model, image_processor, [one["image"] for one in photos], top_k=model.config.top_k
            )
            for category, photos in self.photos.items()
        } or None


def evaluated_sets(
    sources: Sequence[DataSource], choice: ReferenceChoice, model: Any, image_processor: Any
) -> list[EvaluatedSet]:
    """
    List the evaluations of datasets: zero-shot and each number of references, drawn with each seed.

    Args:
        sources (`Sequence[DataSource]`): the datasets.
        choice ([`ReferenceChoice`]): which references to evaluate with.
        model ([`ViP2ClipForAnomalyDetection`]): the model, or another object with references of its own.
        image_processor ([`ViP2ClipImageProcessor`]): image processor of the model, which says how photos are read;
            `None` for the defaults.

    Returns:
        `list[EvaluatedSet]`: the evaluations.

    Raises:
        OSError: if a dataset or a photo cannot be read.
        ValueError: if a dataset is invalid, or a category has fewer photos than references.
    """
    reading = {} if image_processor is None else reading_options(image_processor)
    datasets = [source.load() for source in sources]  # to find errors in any of them before references are drawn
    found = []
    for source, dataset in zip(sources, datasets):
        own = model.references if choice.own and not choice.counts and choice.folder is None else None
        if own is not None:
            found.append(EvaluatedSet(source, dataset, f"{source.name}-references", own, count=len(own)))
            continue
        found.append(EvaluatedSet(source, dataset, source.name))
        if not choice.counts and choice.folder is None:
            continue
        pools = ReferencePools(source, dataset, choice.folder, reading)
        if not choice.counts:
            photos = {category: pools.draw(category, None, 0) for category in pools.categories}
            name = f"{source.name}-references"
            found.append(EvaluatedSet(source, dataset, name, None, photos, min(map(len, photos.values()))))
        for seed in choice.seeds if choice.counts else ():
            # The first photos of the largest draw, so that each draw contains the smaller ones.
            drawn = {category: pools.draw(category, max(choice.counts), seed) for category in pools.categories}
            for count in sorted(choice.counts):
                photos = {category: rows[:count] for category, rows in drawn.items()}
                name = f"{source.name}-{count}-references-seed-{seed}"
                found.append(EvaluatedSet(source, dataset, name, None, photos, count, seed))
        pools.warn()
    return found


class ReferencePools:
    """
    Photos to draw references from, by category, without those of the evaluated dataset.

    Args:
        source ([`DataSource`]): the dataset, for its name and its split "train".
        dataset (`datasets.Dataset`): its images, not decoded.
        folder (`str`, *optional*): folder of photos of good parts. By default, the split "train".
        reading (`Mapping[str, Any]`): how to read images, see [`load_image`].
    """

    def __init__(self, source: DataSource, dataset: "Dataset", folder: str | None, reading: Mapping[str, Any]) -> None:
        self.source, self.dataset, self.reading = source, dataset, reading
        self.categories = list(dict.fromkeys(dataset["category"]))
        self.where = "the split 'train'" if folder is None else f"the folder {folder!r}"
        rows = self._train_rows() if folder is None else self._folder_rows(folder)
        self.rows = {category: sorted(rows.get(category, []), key=lambda one: one["name"])
                     for category in self.categories}  # fmt: skip
        self.evaluated = set(image_digests(dataset["image"]))
        self._pictures: np.ndarray | None = None
        self._usable: dict[tuple[str, str | None], bool] = {}
        self.left_out: dict[str, None] = {}

    def _train_rows(self) -> dict[str, list[dict[str, Any]]]:
        advice = "Add normal images to the split 'train', or pass a folder of references (--references)."
        try:
            train = replace(self.source, split="train").load(need_labels=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.source.name} has no split 'train' to draw references from: {error} {advice}"
            ) from error
        rows: dict[str, list[dict[str, Any]]] = {}
        columns = (train[name] for name in ("image_id", "category", "label", "image"))
        for name, category, label, image in zip(*columns):
            if label == 0:
                rows.setdefault(category, []).append({"name": name, "image": image})
        return rows

    def _folder_rows(self, folder: str) -> dict[str, list[dict[str, Any]]]:
        own = {category: Path(folder, category) for category in self.categories if Path(folder, category).is_dir()}
        if own and len(own) < len(self.categories):
            missing = next(category for category in self.categories if category not in own)
            raise ValueError(
                f"The folder of references {folder!r} has no subfolder {missing!r}; expected one for each category of "
                f"{self.source.name}."
            )
        return {
            category: [
                {"name": Path(path).relative_to(folder).as_posix(), "image": {"path": os.fspath(path), "bytes": None}}
                for path in as_inputs(own.get(category, folder))
            ]
            for category in self.categories
        }

    def draw(self, category: str, count: int | None, seed: int) -> list[dict[str, Any]]:
        """
        Draw different photos that are not evaluated: the first ones of a permutation, or all.

        Args:
            category (`str`): name of the category.
            count (`int`, *optional*): number of photos. By default, all.
            seed (`int`): seed of the draw.

        Returns:
            `list[dict]`: the photos, each with `image`, `name` and `digest`.

        Raises:
            ValueError: if there are fewer photos.
        """
        rows = self.rows[category]
        order: Sequence[int] = range(len(rows))
        if count is not None:
            word = int.from_bytes(hashlib.sha256(category.encode("utf-8", "surrogatepass")).digest()[:8], "big")
            order = np.random.default_rng([seed, word]).permutation(len(rows)).tolist()
        chosen: dict[str, dict[str, Any]] = {}
        for row in self._usable_rows([rows[number] for number in order]):
            chosen.setdefault(row["digest"], row)
            if len(chosen) == count:
                break
        if len(chosen) < (count or 1):
            raise ValueError(
                f"{self.where.capitalize()} of {self.source.name} has {len(chosen)} normal images of the category "
                f"{category!r} that are not evaluated; expected at least {count or 1}. Add images, use fewer "
                "references, or pass another folder (--references)."
            )
        return list(chosen.values())

    def _usable_rows(self, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            digest = row.setdefault("digest", image_digests([row["image"]])[0])
            key = (row["name"], digest)
            if key not in self._usable:
                self._usable[key] = digest not in self.evaluated and not self._is_evaluated(row["image"])
            if self._usable[key]:
                yield row
            else:
                self.left_out[row["name"]] = None

    def _is_evaluated(self, image: Any) -> bool:
        """Whether the picture is evaluated in another format."""
        if self._pictures is None:
            with ThreadPoolExecutor(NUM_THREADS) as pool:
                found = pool.map(self._hash, self.dataset["image"])
            self._pictures = np.array([one[0] for one in found if one is not None], dtype=np.uint64).reshape(-1, 4)
        picture = picture_hash(load_image(image, **self.reading))
        return picture is not None and bool(among(picture[None], self._pictures)[0])

    def _hash(self, image: Any) -> np.ndarray | None:
        try:
            return picture_hash(load_image(image, **self.reading))
        except (OSError, ValueError):
            return None  # reported by the evaluation

    def warn(self) -> None:
        """Warn about photos that were left out because they are evaluated."""
        if self.left_out and world()[0] == 0:
            names = list(self.left_out)
            logger.warning(
                f"{self.source.name}: {len(names)} photos of {self.where} are evaluated images and are not used as "
                f"references: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}."
            )


__all__ = ["EvaluatedSet", "ReferenceChoice", "ReferencePools", "evaluated_sets"]
