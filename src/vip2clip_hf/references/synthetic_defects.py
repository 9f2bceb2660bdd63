"""Scores of references with synthetic defects, as a rough estimate of the detection."""

from collections.abc import Sequence

from ..calibration import synthetic_defects
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.pipeline_steps_vip2clip import with_references
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..models.vip2clip.reference_left_out_vip2clip import hide_photo
from .photos import Photo


def score_changed_references(
    detector: AnomalyDetectionPipeline, bank: ReferenceBank, photos: Sequence[Photo], seed: int = 0
) -> list[synthetic_defects.SyntheticDefect]:
    """
    Score photos with synthetic defects. Each is compared with the references without the photo it was made from.

    Args:
        detector ([`AnomalyDetectionPipeline`]): model, image processor and settings.
        bank ([`ReferenceBank`]): the references.
        photos (`Sequence[Photo]`): photos to change. Those among the references are not compared with themselves.
        seed (`int`, defaults to 0): seed of the defects.

    Returns:
        `list[SyntheticDefect]`: at most 24 photos. Empty if there is only one reference.

    Raises:
        OSError: if a photo cannot be read.
    """
    if len(bank) < 2 or not photos:
        return []
    numbers = {photo.name: number for number, photo in enumerate(bank.photos)}

    def detector_of(name: str) -> AnomalyDetectionPipeline:
        return with_references(detector, hide_photo(bank, numbers[name]) if name in numbers else bank)

    pairs = [(photo.name, photo.source) for photo in photos]
    return synthetic_defects.score_synthetic_defects(pairs, detector_of, seed)


__all__ = ["score_changed_references"]
