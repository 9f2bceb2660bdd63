"""Scores of photos of good parts, compared with references other than themselves."""

from collections.abc import Sequence

from tqdm.auto import tqdm

from ..models.vip2clip.decision_vip2clip import region_score
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from .photos import Photo
from .reading import ReadPhotos, read_photo


Scores = tuple[dict[str, float], dict[str, float]]  # score and largest value of the map by name


def left_out_scores(bank: ReferenceBank) -> Scores:
    """
    Score every reference with the others.

    Args:
        bank ([`ReferenceBank`]): the references.

    Returns:
        `tuple[dict[str, float], dict[str, float]]`: score, and largest value of the anomaly map, by name. Empty for a
        single reference, which has nothing to be compared with.
    """
    scores, peaks = dict[str, float](), dict[str, float]()
    if len(bank) > 1:
        for one in bank.left_out():
            scores[one.photo.name], peaks[one.photo.name] = one.score, region_score(one.anomaly_map)
    return scores, peaks


def held_out_scores(
    detector: AnomalyDetectionPipeline, photos: Sequence[Photo], first: dict[str, str], progress: bool = False
) -> tuple[Scores, ReadPhotos]:
    """
    Score photos that are not references. Memory does not depend on their number.

    Args:
        detector ([`AnomalyDetectionPipeline`]): the pipeline, with the references.
        photos (`Sequence[Photo]`): the photos.
        first (`dict[str, str]`): names of the references by the hash of their pixels. Gets the photos.
        progress (`bool`, defaults to `False`): whether to show a progress bar.

    Returns:
        `tuple[tuple[dict[str, float], dict[str, float]], ReadPhotos]`: as in [`left_out_scores`]; and what was read.
    """
    scores, peaks, read = dict[str, float](), dict[str, float](), ReadPhotos()
    for photo in tqdm(photos, desc="calibrating", disable=not progress):
        image = read_photo(detector, photo, read, first)
        if image is not None:
            result = detector.decision_map(image)
            scores[photo.name], peaks[photo.name] = result["score"], region_score(result["anomaly_map"])
    return (scores, peaks), read


__all__ = ["Scores", "held_out_scores", "left_out_scores"]
