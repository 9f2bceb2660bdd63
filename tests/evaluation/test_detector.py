"""The seam between methods and the harness: any object with the protocol is evaluated like a model."""

import math
import pickle

import numpy as np
import pytest
import torch

from helpers.evaluations import assert_same_results, model_with_wide_maps
from training.build_tiny.yardsticks import LocalContrast
from vip2clip_hf import (
    AnomalyMetrics,
    Detector,
    ReferenceBank,
    TrainableDetector,
    ViP2ClipDetector,
    ViP2ClipImageProcessor,
)
from vip2clip_hf.data.loading import load_folder
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation.detector import check_detector
from vip2clip_hf.evaluation.evaluator import NO_MAPS, evaluate_detector
from vip2clip_hf.evaluation.map_writer import MapWriter
from vip2clip_hf.evaluation.model_evaluation import evaluate_model
from vip2clip_hf.evaluation.recorder import EvaluationRecorder
from vip2clip_hf.evaluation.reports import settings_lines
from vip2clip_hf.evaluation.sheets import write_sheets
from vip2clip_hf.models.vip2clip.mask_regions_vip2clip import reduce_mask


CATEGORIES = ("stripes", "weave")


class Changed(LocalContrast):
    """Local contrast with another output."""

    def __init__(self, change):
        super().__init__(32)
        self.change, self.batches = change, []

    def score(self, batch):
        self.batches.append(len(batch))
        return self.change(*super().score(batch))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "parts"
    return write_dataset(folder, CATEGORIES, num_normal=3, num_anomalous=1, size=48, num_train=4)


@pytest.fixture
def dataset(root):
    return load_folder(root)


def test_protocol(model, image_processor):
    assert isinstance(LocalContrast(32), Detector)
    assert isinstance(ViP2ClipDetector(model, image_processor), Detector)
    assert not isinstance(LocalContrast(32), TrainableDetector)
    check_detector(LocalContrast(32))
    with pytest.raises(ValueError, match=r"a LocalContrast, has no method train; expected .*train"):
        check_detector(LocalContrast(32), trainable=True)
    with pytest.raises(ValueError, match=r"is the class LocalContrast; expected an object, LocalContrast\(\)"):
        check_detector(LocalContrast)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prepare", None, "has no method prepare; expected name, image_size, prepare"),
        ("score", 3, "has no method score; expected"),
        ("name", "", "name of the detector, a LocalContrast, is ''; expected a text"),
        ("image_size", 0, "image_size of the detector 'local contrast' is 0; expected an integer of at least 1"),
        ("image_size", 32.0, "is 32.0; expected an integer"),
    ],
)
def test_incomplete_detectors(dataset, name, value, message):
    detector = LocalContrast(32)
    setattr(detector, name, value)
    with pytest.raises(ValueError, match=message):
        evaluate_detector(detector, dataset)


def test_missing_attribute(dataset):
    with pytest.raises(ValueError, match="a list, has no attribute name; expected name, image_size"):
        evaluate_detector([], dataset)


def test_own_detector(dataset):
    detector, metrics = LocalContrast(32), AnomalyMetrics()
    result = evaluate_detector(detector, dataset, batch_size=3)
    for row in dataset:
        scores, maps = detector.score(detector.prepare([row["image"].convert("RGB")]))
        mask = np.zeros((48, 48), bool) if row["mask"] is None else np.asarray(row["mask"].convert("L")) > 0
        small = reduce_mask(mask, (32, 32), True).labels
        metrics.update(scores, np.array([row["label"]]), maps, small[None], [row["category"]], np.array([True]))
    assert_same_results(result, metrics.compute())
    assert list(result["categories"]) == list(CATEGORIES)
    settings = {"fpr_limit": 0.3, "aupro_convention": "exact", "detector": "local contrast", "image_size": 32}
    assert result["settings"] == {**settings, "mask_threshold": 0}
    assert "image size 32 x 32, mask values above 0" in settings_lines([{**result, "name": "parts"}])[0]


def test_workers_give_the_same_result(dataset):
    one = evaluate_detector(LocalContrast(32), dataset)
    assert_same_results(one, evaluate_detector(LocalContrast(32), dataset, num_workers=2))


def test_one_detector_per_category(dataset):
    detectors = {name: Changed(lambda scores, maps, k=k: (scores + k, maps)) for k, name in enumerate(CATEGORIES)}
    recorder = EvaluationRecorder(len(dataset))
    result = evaluate_detector(detectors, dataset.shuffle(seed=1), batch_size=5, recorder=recorder)
    assert [detectors[name].batches for name in CATEGORIES] == [[5, 2], [5, 2]]
    expected = np.array(dataset.shuffle(seed=1)["category"]) == "weave"
    assert ((recorder.scores() >= 1) == expected).all()
    assert_same_results(result, evaluate_detector(LocalContrast(32), dataset), 1e-6)
    with pytest.raises(ValueError, match="no detector of the category 'weave'; expected one detector for each of 2"):
        evaluate_detector({"stripes": LocalContrast(32)}, dataset)
    with pytest.raises(ValueError, match="image_size of the detectors is 16 and 32; expected one size"):
        evaluate_detector({"stripes": LocalContrast(32), "weave": LocalContrast(16)}, dataset)


def test_without_maps(dataset, tmp_path):
    detector = Changed(lambda scores, maps: (scores, None))
    result, full = evaluate_detector(detector, dataset), evaluate_detector(LocalContrast(32), dataset)
    pairs = zip(result["categories"].values(), full["categories"].values())
    for found, other in ((result["mean"], full["mean"]), *pairs):
        assert found["image_auroc"] == other["image_auroc"]
        assert math.isnan(found["pixel_auroc"])
        assert NO_MAPS in found["undefined"]["pixel_auroc"]
    assert result["mean"]["undefined"]["pixel_aupro"] == f"{NO_MAPS} (stripes, weave)"
    maps = MapWriter(tmp_path / "maps", dataset["category"], dataset["image_id"], 32)
    with pytest.raises(ValueError, match="'local contrast' returns no anomaly maps; expected maps to save"):
        evaluate_detector(detector, dataset, recorder=EvaluationRecorder(len(dataset), maps=maps))
    with pytest.raises(ValueError, match="returns no anomaly maps; expected maps to draw"):
        write_sheets(detector, dataset, tmp_path / "sheets")
    some = Changed(lambda scores, maps: (scores, maps if len(some.batches) < 2 else None))
    with pytest.raises(ValueError, match="returns maps for some batches; expected all or none"):
        evaluate_detector(some, dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, m: s, "returns a Tensor; expected scores and maps"),
        (lambda s, m: (s, m, m), "returns 3 values; expected scores and maps"),
        (lambda s, m: (s[1:], m), r"scores of shape \(7,\); expected \(8,\), one score per image"),
        (lambda s, m: (s, m[:, 1:]), r"maps of shape \(8, 31, 32\); expected \(8, 32, 32\)"),
        (lambda s, m: (s.tolist(), m), "scores of type list; expected a tensor"),
        (lambda s, m: (None, m), "scores of type NoneType; expected a tensor"),
        (lambda s, m: (s / 0, m), "scores contains NaN or infinite values"),
        (lambda s, m: (s, m * math.nan), "The map at position 0 contains NaN or infinite values"),
    ],
)
def test_wrong_output(dataset, change, message):
    with pytest.raises(ValueError, match=rf"{message}.* The images of the batch are \['stripes/"):
        evaluate_detector(Changed(change), dataset)


def test_errors_of_prepare_name_the_images(dataset):
    class Refusing(LocalContrast):
        def prepare(self, images):
            raise ValueError("Too small.")

    with pytest.raises(ValueError, match=r"Too small. The images of the batch are \['stripes/"):
        evaluate_detector(Refusing(32), dataset)


def test_gradients_are_dropped(dataset):
    learned = torch.nn.Parameter(torch.ones(()))
    result = evaluate_detector(Changed(lambda scores, maps: (scores * learned, maps * learned)), dataset)
    assert_same_results(result, evaluate_detector(LocalContrast(32), dataset))


def test_resume_after_an_interrupt(dataset, tmp_path):
    def stop(scores, maps):
        if len(detector.batches) == 4:
            raise KeyboardInterrupt
        return scores, maps

    detector = Changed(stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate_detector(detector, dataset, batch_size=2, recorder=EvaluationRecorder(len(dataset), tmp_path))
    rest = Changed(lambda scores, maps: (scores, maps))
    result = evaluate_detector(rest, dataset, batch_size=2, recorder=EvaluationRecorder(len(dataset), tmp_path))
    assert sum(rest.batches) == len(dataset) - 6
    assert_same_results(result, evaluate_detector(LocalContrast(32), dataset), 1e-6)


def test_left_out_images(dataset):
    name = dataset["image_id"][0]
    result = evaluate_detector(LocalContrast(32), dataset, left_out={name: "seen"})
    assert_same_results(result, evaluate_detector(LocalContrast(32), dataset.select(range(1, len(dataset)))), 1e-6)


def test_the_model_is_a_detector(clip, image_processor, root, dataset):
    model = model_with_wide_maps(clip)
    banks = {
        name: ReferenceBank.from_images(model, image_processor, str(root / name / "train" / "good"))
        for name in CATEGORIES
    }
    detectors = {name: ViP2ClipDetector(model, image_processor, references=bank) for name, bank in banks.items()}
    assert_same_results(
        evaluate_detector(detectors, dataset), evaluate_model(model, image_processor, dataset, references=banks)
    )
    detector = ViP2ClipDetector(model.train(), image_processor, name="ours")
    plain = evaluate_detector(detector, dataset)
    assert model.training  # as before
    assert_same_results(plain, evaluate_model(model, image_processor, dataset))
    assert plain["settings"]["detector"] == "ours"
    assert len(pickle.dumps(detector.prepare)) < 10_000  # workers get no copy of the model


def test_an_image_processor_of_another_size_is_refused(model, dataset):
    with pytest.raises(ValueError, match="produces images of 40 x 40 pixels; expected 48 x 48"):
        evaluate_detector(ViP2ClipDetector(model, ViP2ClipImageProcessor(size=40)), dataset)
    with pytest.raises(ValueError, match=r"a Linear, has no config\.image_size"):
        ViP2ClipDetector(torch.nn.Linear(1, 1), ViP2ClipImageProcessor(do_resize=False))


def test_sheets_of_any_detector(dataset, tmp_path):
    paths = write_sheets(LocalContrast(32), dataset, tmp_path, count=2)
    assert [path.name for path in paths] == ["stripes.png", "weave.png"]
