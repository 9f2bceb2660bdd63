"""Adapt a checkpoint to a product: references, thresholds and a report, from photos of good parts."""

import copy
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..models.vip2clip.decision_vip2clip import min_calibration_images
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..models.vip2clip.pipeline_steps_vip2clip import with_references
from ..models.vip2clip.provenance_vip2clip import BackboneReference
from ..models.vip2clip.reference_bank_vip2clip import ReferenceBank
from ..models.vip2clip.reference_records_vip2clip import DEFAULT_MAX_PATCHES, ReferenceOptions
from ..utils.files import check_new_folder
from .adaptation import Adaptation
from .defect_photos import list_defects
from .photos import list_photos
from .report import write_report
from .saving import save_adapted
from .steps import Steps


def adapt(
    model_or_checkpoint: AnomalyDetectionPipeline | str | os.PathLike,
    good_photos: Any,
    output: str | os.PathLike | None = None,
    *,
    update: bool = False,
    false_alarm_rate: float | None = None,
    defects: Any = None,
    miss_cost: float | None = None,
    keep: Iterable[str] = (),
    drop: Iterable[str] = (),
    drop_outliers: bool = False,
    rotations: bool = False,
    aligned: bool = False,
    tile_size: int | None = None,
    tile_overlap: float | None = None,
    bit_depth: int | None = None,
    page: int | None = None,
    max_patches: int | None = DEFAULT_MAX_PATCHES,
    recursive: bool = True,
    device: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Adaptation:
    """
    Adapt a checkpoint to a product with photos of good parts.

    The photos become references. Each is scored with the others, and the thresholds follow from these scores. Of more
    than 200 photos, half but at most 200 are references, and the others choose the thresholds. Photos that look unlike
    the others are reported before thresholds are chosen; `keep`, `drop` and `drop_outliers` decide about them.

    Args:
        model_or_checkpoint ([`AnomalyDetectionPipeline`], `str` or `os.PathLike`):
            Pipeline, folder or Hub id of a checkpoint. To update a folder, the folder.
        good_photos (`str`, `os.PathLike` or iterable, *optional*):
            Photos without defects: a folder, or an iterable of images in any form that the pipeline accepts. `None`
            only to update a folder with `drop` or `defects`.
        output (`str` or `os.PathLike`, *optional*):
            New folder for the adapted checkpoint and its report. By default, nothing is written.
        update (`bool`, defaults to `False`):
            Whether to add the photos to the checkpoint `model_or_checkpoint`, and to replace it. Options of the
            references are those of the checkpoint.
        false_alarm_rate (`float`, *optional*):
            Largest fraction of photos of good parts that are called anomalous, in (0, 1). By default that of the
            updated checkpoint, else 0.05, or the smallest possible rate for fewer than 19 photos.
        defects (`str`, `os.PathLike` or iterable, *optional*):
            Photos of defects, to choose the weight of the zero-shot score and the image threshold. In a folder with
            masks, in any layout of [`load_folder`], the masks choose the pixel threshold.
        miss_cost (`float`, *optional*):
            With `defects`, cost of a missed defect relative to a false alarm. By default, F1 is maximized.
        keep, drop (`Iterable[str]`, *optional*):
            Names of photos to accept although they look unlike the others, and of photos to leave out.
        drop_outliers (`bool`, defaults to `False`):
            Whether to leave out all photos that look unlike the others.
        rotations, aligned, tile_size, tile_overlap, max_patches (*optional*):
            How photos are compared, see [`ReferenceOptions`]. Tiles default to those of the checkpoint.
        bit_depth, page (`int`, *optional*):
            How photos are read, see [`load_image`]. They are stored in the checkpoint.
        recursive (`bool`, defaults to `True`):
            Whether to include the subfolders of folders.
        device (`str`, *optional*):
            Device of the model. By default, the first accelerator if available, otherwise the CPU.
        seed (`int`, defaults to 0):
            Seed of synthetic defects and of the folds of a cross-validation.
        progress (`bool`, defaults to `False`):
            Whether to show progress bars.

    Returns:
        [`Adaptation`]: references, thresholds, and what the report shows.

    Raises:
        OSError: if a folder cannot be read, or `output` exists and is not empty.
        ValueError: if no photo can be read, if there are too few photos for the rate (the message contains the
            required number), if a name in `keep` or `drop` is unknown, or if an option is out of range.

    Example:

    ```python
    >>> from vip2clip_hf import adapt, bundled_checkpoint

    >>> found = adapt(bundled_checkpoint(), "good_photos", "my-part")
    >>> found.image_threshold, found.rate_interval, found.outliers
    ```
    """
    if update and output is not None:
        raise ValueError("output is set together with update, which replaces the checkpoint; expected one of them.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected an integer of at least 0.")
    if output is not None:
        check_new_folder(output)
    reading = {name: value for name, value in (("bit_depth", bit_depth), ("page", page)) if value is not None}
    detector, earlier = _load(model_or_checkpoint, update, device, tile_size, tile_overlap, reading)
    if earlier is None:
        settings = detector.score_settings()
        options = ReferenceOptions(settings["tile_size"], settings["tile_overlap"], rotations, aligned, max_patches)
    else:
        options = earlier.options
        given = {"rotations": rotations, "aligned": aligned, "max_patches": max_patches != DEFAULT_MAX_PATCHES}
        if changed := [name for name, is_set in given.items() if is_set]:
            raise ValueError(f"{changed[0]} is set together with update; expected the options of the references.")
    model: Any = detector.model
    before = model.decision.calibration or {}
    if false_alarm_rate is not None:
        min_calibration_images(false_alarm_rate)  # raises if it is out of range
    elif earlier is not None:
        # A rate that was not chosen depends on the number of photos.
        false_alarm_rate = None if before.get("default_rate") else before.get("false_alarm_rate")
    listed = [] if good_photos is None and earlier is not None else list_photos(good_photos, recursive)
    bad, masks, notes = (None, {}, []) if defects is None else list_defects(defects, recursive)
    steps = Steps(detector, options, list(keep), list(drop), drop_outliers, seed, progress)
    for note in notes:
        steps.note(note)
    if earlier is not None and bad is None and before.get("method") in ("f1", "cost"):
        steps.note(
            "The image threshold was chosen with photos of defects. It is now chosen for a false-alarm rate; pass "
            "defects (--defects) again to choose it with them."
        )
    elif earlier is not None and bad is None and before and not before.get("leave_one_out"):
        steps.note(
            "The thresholds were chosen from photos that are not references. They are now chosen from the references; "
            "use calibrate again to choose them from other photos."
        )
    if area := model.decision.min_region_area:
        steps.note(
            f"min_region_area of the checkpoint is {area:g}. It is now 0: the pixel threshold is for any region."
        )
    found = steps.run(listed, earlier, false_alarm_rate, bad, miss_cost, masks)
    folder = model_or_checkpoint if update else output
    if folder is not None:
        found.folder = Path(folder)  # type: ignore[arg-type]  # an update has a folder, see _load
        _write(detector, found, steps.sources, model_or_checkpoint, update, reading)
    return found


def _load(
    source: AnomalyDetectionPipeline | str | os.PathLike,
    update: bool,
    device: str | None,
    tile_size: int | None,
    tile_overlap: float | None,
    reading: dict[str, Any],
) -> tuple[AnomalyDetectionPipeline, ReferenceBank | None]:
    """Return a pipeline without references, and the references of a checkpoint to update."""
    if isinstance(source, (str, os.PathLike)):
        if update and not (Path(source) / "config.json").is_file():
            raise OSError(f"{os.fspath(source)!r} is not a checkpoint folder; expected one written by adapt.")
        loaded = AnomalyDetectionPipeline.from_pretrained(
            source, device=device, tile_size=tile_size, tile_overlap=tile_overlap, **reading
        )
        if update and loaded.references is None:
            raise OSError(f"{os.fspath(source)!r} has no references; expected a checkpoint folder written by adapt.")
    elif update:
        raise ValueError("update is set with a pipeline; expected the folder of a checkpoint written by adapt.")
    elif tile_size is not None or tile_overlap is not None or reading or device is not None:
        raise ValueError(
            "tile_size, tile_overlap, bit_depth, page or device is set with a pipeline; expected a pipeline that was "
            "created with them."
        )
    else:
        loaded = source
    return with_references(loaded, None), loaded.references if update else None


def _write(
    detector: AnomalyDetectionPipeline,
    found: Adaptation,
    sources: dict[str, Any],
    origin: AnomalyDetectionPipeline | str | os.PathLike,
    update: bool,
    reading: dict[str, Any],
) -> None:
    """Write the folder, with the references and thresholds in the model only meanwhile."""
    model: Any = detector.model
    image_processor = copy.copy(detector.image_processor)
    for name, value in reading.items():
        setattr(image_processor, name, value)
    image_processor.decision = found.decision
    # A checkpoint without backbone stays one, if the backbone can be found again.
    adapters_only = False
    if isinstance(origin, (str, os.PathLike)):
        backbone = BackboneReference.find(origin)
        adapters_only = backbone is not None and backbone.backbone_id is not None
    saved = model.references, model.decision
    model.references, model.decision = found.bank, found.decision
    try:
        report = write_report(with_references(detector, found.bank), found, sources)
        save_adapted(model, image_processor, found.folder or "", report, update=update, adapters_only=adapters_only)
    finally:
        model.references, model.decision = saved


__all__ = ["adapt"]
