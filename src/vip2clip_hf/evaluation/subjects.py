"""What the evaluation of several datasets needs to know of a model or of another detector."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..data.collator import resolve_mask_options
from ..models.loading import check_model, model_checksum, processor_settings
from ..models.vip2clip.image_loading_vip2clip import load_image, reading_options
from ..models.vip2clip.image_processing_vip2clip import ViP2ClipImageProcessor
from ..models.vip2clip.mask_options_vip2clip import DEFAULT_MASK_OPTIONS, MaskOptions
from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..models.vip2clip.provenance_vip2clip import Provenance
from .detector import Detector, check_detector, check_detectors
from .evaluator import evaluate_detector, wanted_mask_options
from .model_evaluation import detectors_of, evaluate_model
from .reference_sets import EvaluatedSet


if TYPE_CHECKING:
    from datasets import Dataset


class Subject(Protocol):
    """
    A model or a detector under evaluation.

    Attributes:
        image_size (`int`): side of the anomaly maps.
        image_processor ([`ViP2ClipImageProcessor`], *optional*): image processor, which says how images are read.
        references: references of its own, or `None`.
        provenance ([`Provenance`]): datasets it was trained on.
        trained (`bool`): whether it was trained at all.
    """

    image_size: int
    image_processor: Any
    references: Any
    provenance: Any
    trained: bool

    def settings(self) -> dict[str, Any]:
        """Identify the subject in results, as JSON types."""
        ...

    def reading(self) -> dict[str, Any]:
        """How it reads images: `bit_depth` and `page`, if they are set."""
        ...

    def mask_options(self, options: MaskOptions) -> MaskOptions:
        """
        Complete the options of reading masks.

        Args:
            options ([`MaskOptions`]): options of the dataset.

        Returns:
            [`MaskOptions`]: all options.
        """
        ...

    def encode(self, one: EvaluatedSet) -> Any:
        """
        Prepare the references of an evaluation.

        Args:
            one ([`EvaluatedSet`]): the evaluation.

        Returns:
            the references for `detectors` and `evaluate`, or `None`.
        """
        ...

    def detectors(self, categories: Sequence[str], references: Any) -> Mapping[str, Detector]:
        """
        Make the detector of each category.

        Args:
            categories (`Sequence[str]`): names of the categories.
            references: result of `encode`.

        Returns:
            `Mapping[str, Detector]`: detector by category.
        """
        ...

    def evaluate(self, dataset: "Dataset", references: Any, **options: Any) -> dict[str, Any]:
        """
        Evaluate a dataset.

        Args:
            dataset (`datasets.Dataset`): the images.
            references: result of `encode`.
            options: arguments that [`evaluate_model`] and [`evaluate_detector`] have in common.

        Returns:
            `dict[str, Any]`: the result of [`evaluate_model`].
        """
        ...


class ModelSubject:
    """
    ViP²-CLIP as a [`Subject`].

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): model, on the device to run on.
        image_processor ([`ViP2ClipImageProcessor`]): image processor of the model.

    Raises:
        ValueError: if it is another model.
    """

    trained = True

    def __init__(self, model: ViP2ClipForAnomalyDetection, image_processor: ViP2ClipImageProcessor) -> None:
        check_model(model)
        self.model, self.image_processor = model, image_processor
        self.image_size: int = model.config.image_size
        self.references, self.provenance = model.references, model.provenance

    def settings(self) -> dict[str, Any]:
        """See [`Subject`]."""
        return {
            "model_checksum": model_checksum(self.model),
            "image_processor": processor_settings(self.image_processor),
        }

    def reading(self) -> dict[str, Any]:
        """See [`Subject`]."""
        return {k: v for k, v in reading_options(self.image_processor).items() if k in ("bit_depth", "page")}

    def mask_options(self, options: MaskOptions) -> MaskOptions:
        """See [`Subject`]."""
        return resolve_mask_options(self.image_processor, mask_options=options)

    def encode(self, one: EvaluatedSet) -> Any:
        """See [`Subject`]."""
        return one.references(self.model, self.image_processor)

    def detectors(self, categories: Sequence[str], references: Any) -> Mapping[str, Detector]:
        """See [`Subject`]."""
        return detectors_of(self.model, self.image_processor, categories, references)

    def evaluate(self, dataset: "Dataset", references: Any, **options: Any) -> dict[str, Any]:
        """See [`Subject`]."""
        return evaluate_model(self.model, self.image_processor, dataset, references=references, **options)


class DetectorSubject:
    """
    A detector as a [`Subject`].

    Args:
        detector ([`Detector`]):
            The method. Its attribute `settings` (JSON types) identifies it, to resume an evaluation. Optional:
            `for_category(name)` and `with_references(photos_by_category)`, which return detectors, `references` of its
            own, `image_processor`, `provenance`, `trained`, `dtype` and `map_maximum`.

    Raises:
        ValueError: if it is not a detector, or has no settings.
    """

    def __init__(self, detector: Detector) -> None:
        check_detector(detector)
        if not isinstance(getattr(detector, "settings", None), Mapping):
            raise ValueError(
                f"The detector {detector.name!r} has no attribute settings; expected a dict that identifies it, to "
                "resume an interrupted evaluation."
            )
        self.detector = detector
        self.image_size = detector.image_size
        self.image_processor = getattr(detector, "image_processor", None)
        self.references = getattr(detector, "references", None)
        self.provenance = getattr(detector, "provenance", None) or Provenance()
        self.trained: bool = getattr(detector, "trained", True)

    def settings(self) -> dict[str, Any]:
        """See [`Subject`]."""
        own: Any = self.detector
        found = {"method": self.detector.name, "detector": dict(own.settings)}
        if self.image_processor is not None:
            found["image_processor"] = processor_settings(self.image_processor)
        return found

    def reading(self) -> dict[str, Any]:
        """See [`Subject`]."""
        if self.image_processor is None:
            return {}
        return {k: v for k, v in reading_options(self.image_processor).items() if k in ("bit_depth", "page")}

    def mask_options(self, options: MaskOptions) -> MaskOptions:
        """See [`Subject`]."""
        if self.image_processor is None:
            return options.over(DEFAULT_MASK_OPTIONS)
        return resolve_mask_options(self.image_processor, mask_options=options)

    def encode(self, one: EvaluatedSet) -> Any:
        """See [`Subject`]. The detector encodes the photos."""
        if one.bank is not None:
            return one.bank
        reading = self.reading()
        return {
            name: [load_image(row["image"], **reading) for row in rows] for name, rows in one.photos.items()
        } or None

    def detectors(self, categories: Sequence[str], references: Any) -> Mapping[str, Detector]:
        """See [`Subject`]."""
        detector: Any = self.detector
        if references is not self.references:
            if not callable(getattr(detector, "with_references", None)):
                raise ValueError(f"The detector {detector.name!r} does not use references; remove --num-references.")
            detector = detector.with_references(references)
        return check_detectors(detector, categories)

    def evaluate(self, dataset: "Dataset", references: Any, **options: Any) -> dict[str, Any]:
        """See [`Subject`]."""
        wanted = wanted_mask_options(options["mask_options"], options["aupro_convention"])
        options["mask_options"] = self.mask_options(wanted)
        detectors = self.detectors(dataset["category"], references)
        result = evaluate_detector(detectors, dataset, **{**options, **self.reading()})
        result["settings"]["dtype"] = getattr(self.detector, "dtype", None)
        if references is not None:
            counts = map(len, references.values() if isinstance(references, Mapping) else [references])
            result["references"] = min(counts)
        return result


def map_maximum_of(detectors: Mapping[str, Detector]) -> float:
    """
    Return what the maps of detectors are divided by to draw methods on one scale.

    Args:
        detectors (`Mapping[str, Detector]`): detector by category.

    Returns:
        `float`: their attribute `map_maximum`, by default 1.0.
    """
    return float(getattr(next(iter(detectors.values())), "map_maximum", 1.0))


def check_categories(class_names: Mapping[str, str], categories: Sequence[str]) -> None:
    """
    Check the categories that class names are for.

    Args:
        class_names (`Mapping[str, str]`): class name by category.
        categories (`Sequence[str]`): categories of the photos.

    Raises:
        ValueError: if there is no photo of a category.
    """
    known = list(dict.fromkeys(categories))
    if unknown := [name for name in class_names if name not in known]:
        raise ValueError(
            f"class_name (--class-name) contains the category {unknown[0]!r}; expected {', '.join(map(repr, known))}."
        )


def subject_of(model: Any, image_processor: Any) -> Subject:
    """
    Prepare a model or a detector for an evaluation.

    Args:
        model ([`ViP2ClipForAnomalyDetection`] or [`Detector`]): model, or a detector of any method.
        image_processor ([`ViP2ClipImageProcessor`], *optional*): image processor of the model. `None` for a detector.

    Returns:
        [`Subject`]: the subject.

    Raises:
        ValueError: if it is another object.
    """
    if image_processor is None:
        return DetectorSubject(model)
    return ModelSubject(model, image_processor)


__all__ = ["DetectorSubject", "ModelSubject", "Subject", "check_categories", "map_maximum_of", "subject_of"]
