"""Steps from photos of good parts to references and thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers.utils import logging

from ..calibration.detection import advice
from ..calibration.rates import choose_rate, rate_interval
from ..calibration.scores import decision_settings
from ..models.vip2clip.decision_config_vip2clip import DecisionConfig
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.pipeline_steps_vip2clip import with_references
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..models.vip2clip.reference_records_vip2clip import ReferenceOptions
from .adaptation import Adaptation
from .defects import LEAST_TO_WEIGH, choose_with_defects
from .good_scores import Scores, held_out_scores, left_out_scores
from .outliers import find_outliers
from .photos import Photo, split_photos
from .reading import near_duplicates, read_photos
from .scoring import build
from .summary import named
from .synthetic_defects import score_changed_references
from .thresholds import conformal_decision, deciding_photos, labelled_decision


logger = logging.get_logger(__name__)
# Number of times that outliers are dropped. Without them, others can stand out.
ROUNDS = 3


@dataclass
class Steps:
    """
    Steps that share their settings. They run once.

    Args:
        detector ([`AnomalyDetectionPipeline`]): pipeline without references.
        options ([`ReferenceOptions`]): how photos are compared.
        keep, drop (`list[str]`): names of photos to accept and to leave out.
        drop_outliers (`bool`): whether to leave out photos that look unlike the others.
        seed (`int`): seed of synthetic defects and of folds.
        progress (`bool`): whether to show progress bars.

    Attributes:
        sources (`dict[str, Any]`): the new photos by name, for pictures in the report.
    """

    detector: AnomalyDetectionPipeline
    options: ReferenceOptions
    keep: list[str]
    drop: list[str]
    drop_outliers: bool
    seed: int
    progress: bool

    def __post_init__(self) -> None:
        self.sources: dict[str, Any] = {}
        self._first: dict[str, str] = {}  # names of the photos so far by the hash of their pixels
        self._dropped = list(dict.fromkeys(self.drop))
        self._notes: list[str] = []

    def note(self, text: str) -> None:
        """
        Say what was decided, and add it to the report.

        Args:
            text (`str`): a sentence.
        """
        self._notes.append(text)
        logger.warning(text)

    def run(
        self,
        listed: Sequence[Photo],
        earlier: ReferenceBank | None,
        false_alarm_rate: float | None,
        defects: Sequence[Photo] | None,
        miss_cost: float | None,
        masks: Mapping[str, Any] | None = None,
    ) -> Adaptation:
        """
        Build references, choose thresholds and measure them.

        Args:
            listed (`Sequence[Photo]`): photos of good parts.
            earlier ([`ReferenceBank`], *optional*): references to add them to.
            false_alarm_rate, miss_cost (`float`, *optional*): see [`adapt`].
            defects (`Sequence[Photo]`, *optional*): photos of defects.
            masks (`Mapping[str, Any]`, *optional*): masks of defects by name of the photo.

        Returns:
            [`Adaptation`]: the result.
        """
        if miss_cost is not None and defects is None:
            raise ValueError("miss_cost is set without defects; expected photos of defects as well.")
        before = [] if earlier is None else [photo.name for photo in earlier.photos]
        listed = _renamed(listed, before)
        self._check_names([*before, *(photo.name for photo in listed)])
        listed = [photo for photo in listed if photo.name not in self.drop]
        if earlier is not None:
            if removed := [name for name in before if name in self.drop]:
                earlier = earlier.without(removed)
            self._first = {photo.sha256: photo.name for photo in earlier.photos}
        references, others = split_photos(listed)
        if others:
            use = "choose the thresholds" if defects is None else "are not used, because photos of defects are set"
            self.note(f"{len(references)} of the {len(listed)} photos are references; the other {len(others)} {use}.")
        read = read_photos(self.detector, references, self._first, self.progress)
        self.sources = {photo.name: photo.source for photo in read.photos}
        bank = self._build(read.photos, earlier)
        if bank is None:
            reason = next(iter(read.unreadable.values()), "all of them are left out")
            raise ValueError(f"None of the {len(references)} photos can be used as a reference: {reason}")
        bank, scores, outliers = self._without_outliers(bank, read.photos, earlier is None)
        num_split = 0
        if others and defects is None:
            compared = with_references(self.detector, bank)
            scores, more_read = held_out_scores(compared, others, self._first, self.progress)
            outliers += self._outliers_of(scores)
            self.sources.update((photo.name, photo.source) for photo in more_read.photos)
            for name in ("unreadable", "identical", "pictures"):
                getattr(read, name).update(getattr(more_read, name))
            num_split = len(scores[0])
        if outliers:
            logger.warning(
                f"{len(outliers)} photos look unlike the others: {named(outliers)}. Look at them: a defect or a bad "
                "photo among the references raises the thresholds, so that defects are missed. Leave them out with "
                "drop or drop_outliers (--drop NAME, --drop-outliers), or accept them with keep (--keep NAME)."
            )
        used = {*scores[0], *(photo.name for photo in bank.photos)}
        found = Adaptation(
            None, bank, DecisionConfig(), *scores, num_split,
            outliers=outliers,
            kept=[name for name in dict.fromkeys(self.keep) if name in used],
            dropped=list(dict.fromkeys(self._dropped)),
            near_duplicates=near_duplicates({name: one for name, one in read.pictures.items() if name in used}),
            identical={name: other for name, other in read.identical.items() if other not in before},
            unreadable=read.unreadable,
            known=[other for other in read.identical.values() if other in before],
            notes=self._notes,
        )  # fmt: skip
        self._report_duplicates(found)
        self._choose(found, false_alarm_rate, defects, miss_cost, masks)
        names = {photo.name for photo in found.bank.photos}
        photos = [Photo(name, source) for name, source in self.sources.items() if name in names]
        found.synthetic = score_changed_references(self.detector, found.bank, photos, self.seed)
        self._measure(found, photos)
        return found

    def _measure(self, found: Adaptation, photos: Sequence[Photo]) -> None:
        """Store how many defects are found in the decision, and say what would help."""
        detection, known = found.detection, found.decision.calibration
        if detection is None or known is None:
            return
        found.decision = replace(found.decision, calibration={**known, "detection": detection.to_dict()})
        found.advice = advice(
            detection,
            self.detector.model,
            num_good=len(found.bank),
            has_references=True,
            tile_size=found.bank.options.tile_size,
            photo_side=min(self.detector.load(photos[0].source).size) if photos else None,
        )

    def _check_names(self, known: Sequence[str]) -> None:
        for option in ("keep", "drop"):
            if unknown := [name for name in getattr(self, option) if name not in known]:
                raise ValueError(
                    f"{option} contains {unknown[0]!r}, which is not the name of a photo; expected names such as "
                    f"{', '.join(known[:3])}."
                )
        if both := sorted({*self.keep} & {*self.drop}):
            raise ValueError(f"{both[0]!r} is in keep and in drop; expected it in one of them.")

    def _build(self, photos: list[Photo], earlier: ReferenceBank | None) -> ReferenceBank | None:
        if not photos:
            return earlier
        bank = build(self.detector, photos, self.options, self.progress)
        return bank if earlier is None else earlier.merge(bank)

    def _outliers_of(self, scores: Scores) -> list[str]:
        """Find outliers that were not accepted. With `drop_outliers`, drop them and return none."""
        found = [name for name in find_outliers(scores[0]) if name not in self.keep]
        if not self.drop_outliers:
            return found
        self._dropped += found
        for name in found:
            del scores[0][name], scores[1][name]
        return []

    def _without_outliers(
        self, bank: ReferenceBank, photos: list[Photo], at_hand: bool
    ) -> tuple[ReferenceBank, Scores, list[str]]:
        """Score the references. With `drop_outliers`, leave out those unlike the others and repeat."""
        for _ in range(ROUNDS):
            scores = left_out_scores(bank)
            count = len(self._dropped)
            outliers = self._outliers_of(scores)
            dropped = self._dropped[count:]
            if not dropped:
                return bank, scores, outliers
            if bank.reduced and at_hand:  # the features of single photos are not known any more
                kept = [photo for photo in photos if photo.name not in self._dropped]
                bank = build(self.detector, kept, self.options, self.progress)
            else:
                bank = bank.without(dropped)
        scores = left_out_scores(bank)
        return bank, scores, [name for name in find_outliers(scores[0]) if name not in self.keep]

    def _report_duplicates(self, found: Adaptation) -> None:
        if found.identical:
            self.note(f"{len(found.identical)} photos have the same pixels as others and are used once.")
        if found.known:
            self.note(f"{len(found.known)} photos are already among the references and are ignored.")
        if found.near_duplicates:
            pairs = [f"{one} and {other}" for one, other in found.near_duplicates]
            self.note(
                f"{len(pairs)} photos show the same picture as another one: {named(pairs)}. Their scores are too "
                "small, so the false-alarm rate can be higher than stated. Use photos of different parts."
            )

    def _choose(
        self,
        found: Adaptation,
        false_alarm_rate: float | None,
        defects: Sequence[Photo] | None,
        miss_cost: float | None,
        masks: Mapping[str, Any] | None,
    ) -> None:
        """Choose the thresholds."""
        threshold = None
        if defects is not None:
            found.bank, threshold, found.defects = choose_with_defects(
                self.detector, found.bank, defects, masks=masks, miss_cost=miss_cost, seed=self.seed
            )
            found.scores, found.peaks = left_out_scores(found.bank)
            if found.defects.identical:
                self.note(
                    f"{len(found.defects.identical)} photos of defects have the same pixels as a reference or another "
                    f"photo of a defect, and are left out: {named(list(found.defects.identical))}."
                )
            if found.defects.num_photos < LEAST_TO_WEIGH:
                self.note(
                    f"{found.defects.num_photos} photos of defects choose the image threshold only. Choosing the "
                    f"weight of the zero-shot score as well needs at least {LEAST_TO_WEIGH}."
                )
        detector = with_references(self.detector, found.bank)
        if not found.scores:
            if false_alarm_rate is not None:
                choose_rate(len(found.bank), false_alarm_rate, self.note)  # raises, unless 1 photo is enough
            self.note(
                "There is one reference, so no threshold can be chosen. The thresholds are 0.5, an estimate without a "
                "false-alarm rate, and there are no p-values. Add photos with update (--update)."
            )
            found.decision = replace(DecisionConfig(), **decision_settings(detector))
            return
        rate = choose_rate(len(found.scores), false_alarm_rate, self.note)
        found.decision = conformal_decision(
            detector, found.scores, found.peaks, rate, not found.num_split, false_alarm_rate is None
        )
        found.false_alarm_rate, found.rate_interval = rate, rate_interval(len(found.scores), rate)
        found.deciding = {
            level: deciding_photos(values, rate) for level, values in (("image", found.scores), ("pixel", found.peaks))
        }
        if found.defects is not None and threshold is not None:
            pixel_threshold = found.defects.pixel_threshold
            if pixel_threshold is None:
                pixel_threshold = found.pixel_threshold
            found.decision = labelled_decision(
                detector, threshold, pixel_threshold, found.scores, found.peaks, rate,
                false_alarm_rate is None, found.defects.num_photos, miss_cost, found.defects.num_masks,
            )  # fmt: skip


def _renamed(photos: Sequence[Photo], taken: Sequence[str]) -> list[Photo]:
    """Give photos with the name of an earlier reference another name."""
    names, renamed = set(taken), []
    for photo in photos:
        name, number = photo.name, 1
        while name in names:
            number += 1
            name = f"{photo.name} ({number})"
        names.add(name)
        renamed.append(Photo(name, photo.source))
    return renamed


__all__ = ["Steps"]
