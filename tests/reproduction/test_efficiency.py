"""Times and memory of detectors and trainings, relative to the vision tower."""

import json
import math

import pytest
import torch

from helpers.tiny import TINY, tiny_config
from helpers.training import write_training_set
from vip2clip_hf import ViP2ClipConfig, ViP2ClipForAnomalyDetection
from vip2clip_hf.reproduction import efficiency
from vip2clip_hf.reproduction.efficiency import (
    VARIANTS,
    VisionTower,
    efficiency_variants,
    measure_inference,
    measure_variants,
    spread,
    trainable_parameters,
)
from vip2clip_hf.reproduction.efficiency_training import measure_training
from vip2clip_hf.training.arguments import DataArguments, ModelArguments, ViP2ClipTrainingArguments
from vip2clip_hf.utils.serialization import to_json


class FakeClock:
    """Every call takes the next of some durations. The memory grows with each reset, and the tower does not count."""

    memory_kind = "fake"

    def __init__(self, durations):
        self.durations, self.calls, self.resets = iter(durations), [], 0

    def timed(self, function):
        self.calls.append("timed")
        return function(), next(self.durations)

    def synchronize(self):
        pass

    def reset_memory(self):
        self.calls.append("reset")
        self.resets += 1

    def peak_memory(self):
        self.calls.append("peak")
        return 1000 * self.resets


class Recorder:
    """A detector and a tower that record the order of calls."""

    name, image_size = "mine", 16

    def __init__(self):
        self.calls = []
        self.tower = self.Tower(self.calls)

    class Tower:
        def __init__(self, calls):
            self.calls = calls

        def prepare(self, images):
            return tuple(images)

        def __call__(self, pixels):
            self.calls.append(("tower", pixels))

    def prepare(self, images):
        return tuple(images)

    def score(self, batch):
        self.calls.append(("score", batch))
        return torch.zeros(len(batch)), None


def test_times_ratios_and_order():
    """Two batches of two images, one warm-up and two repeats."""
    detector = Recorder()
    # In pairs: detector and tower; in every other repeat, tower and detector.
    durations = [9, 9, 9, 9, *(1, 4, 1, 4), *(6, 2, 6, 2)]
    clock = FakeClock(durations)
    found = measure_inference(
        detector, ["a", "b", "c", "d"], tower=detector.tower, batch_size=2, repeats=2, warmup=1, clock=clock
    )
    first, second = ("a", "b"), ("c", "d")
    pair = [("score", first), ("tower", first), ("score", second), ("tower", second)]
    swapped = [pair[1], pair[0], pair[3], pair[2]]
    assert detector.calls == [*pair, *swapped, *pair]  # warm-up, then each of both orders
    # Repeat 1 is swapped: tower 1, detector 4. Repeat 2: detector 6, tower 2.
    assert found["score"] == {"median": 2.5, "mean": 2.5, "sd": pytest.approx(math.sqrt(0.5))}
    assert found["tower"] == {"median": 0.75, "mean": 0.75, "sd": pytest.approx(0.25 * math.sqrt(2))}
    assert found["ratio"] == {"median": 3.5, "mean": 3.5, "sd": pytest.approx(math.sqrt(0.5))}
    assert found["prepare"]["mean"] < 0.1  # not of the fake clock
    assert (found["memory_bytes"], found["memory_kind"]) == (6000, "fake")
    assert clock.calls.count("reset") == clock.calls.count("peak") == 6
    # The memory is read after the detector and before the tower.
    assert clock.calls[:4] == ["reset", "timed", "peak", "timed"]
    names = ("name", "image_size", "batch_size", "num_images", "repeats", "warmup")
    assert [found[name] for name in names] == ["mine", 16, 2, 4, 2, 1]
    assert json.loads(to_json(found)) == found
    assert found["hardware"]["device"] == "cpu"
    assert "torch" in found["versions"]


def test_a_single_repeat_has_no_deviation():
    assert spread([2.0]) == {"median": 2.0, "mean": 2.0, "sd": None}
    assert spread([1.0, 2.0, 6.0])["median"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"repeats": 0}, "repeats is 0; expected at least 1"),
        ({"warmup": -1}, "warmup is -1; expected at least 0"),
        ({"batch_size": 2}, "The number of images is 3; expected a multiple of batch_size, 2"),
    ],
)
def test_wrong_arguments(arguments, message):
    detector = Recorder()
    with pytest.raises(ValueError, match=message):
        measure_inference(detector, ["a", "b", "c"], tower=detector.tower, **arguments)
    assert not detector.calls


def test_the_tower_is_that_of_the_model(model, image_processor, photo):
    tower = VisionTower(model, image_processor)
    pixels = tower.prepare([photo, photo])
    assert pixels.shape == (2, 3, 48, 48)
    with torch.inference_mode():
        expected = model.get_image_features(pixels).last_hidden_state
    torch.testing.assert_close(tower(pixels), expected)


def test_variants(model, image_processor, photo):
    """All variants give the results of the model within their precision, and leave it as it is."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    seen = []
    for variant in efficiency_variants(model, image_processor, backend="eager"):
        batch = variant.detector.prepare([photo])
        scores, maps = variant.detector.score(batch)
        seen.append((variant.name, variant.tower.model.dtype, variant.compiled))
        assert (variant.tower.model is model) == (variant.dtype == torch.float32)
        with torch.inference_mode():
            expected = model(batch)
        tolerance = 1e-5 if variant.dtype == torch.float32 else 0.03
        torch.testing.assert_close(scores.float(), expected.scores, atol=tolerance, rtol=0)
        torch.testing.assert_close(maps.float(), expected.anomaly_maps, atol=tolerance, rtol=0)
        compiled = "get_image_features" in vars(variant.detector.model)
        assert compiled == variant.compiled
        assert variant.parameters == trainable_parameters(model)
    assert seen == [(name, *VARIANTS[name]) for name in VARIANTS]
    assert "get_image_features" not in vars(model)
    assert model.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    with pytest.raises(ValueError, match="The variant is 'int8'; expected 'float32'"):
        next(efficiency_variants(model, image_processor, names=["int8"]))


def test_measure_variants(model, image_processor, photo):
    shown = []
    arguments = {"names": ["float32", "bfloat16-compiled"], "batch_sizes": (1, 2), "backend": "eager"}
    results = measure_variants(
        model, image_processor, [photo] * 3, repeats=2, warmup=1, report=shown.append, **arguments
    )
    assert results == shown
    found = [(one["variant"], one["dtype"], one["compile"], one["batch_size"], one["num_images"]) for one in results]
    assert found == [
        ("float32", "float32", False, 1, 3), ("float32", "float32", False, 2, 2),
        ("bfloat16-compiled", "bfloat16", True, 1, 3), ("bfloat16-compiled", "bfloat16", True, 2, 2),
    ]  # fmt: skip
    for one in results:
        assert one["image_size"] == TINY["image_size"]
        assert one["score"]["median"] > one["tower"]["median"] > 0  # a part of it
        assert one["ratio"]["median"] > 1
        assert one["memory_bytes"] > 1e8
        assert one["trainable_parameters"] == trainable_parameters(model)
    to_json(results)
    with pytest.raises(ValueError, match="The number of images is 3; expected at least 8, one batch"):
        measure_variants(model, image_processor, [photo] * 3, batch_sizes=(8,))
    with pytest.raises(ValueError, match="warmup is 0; expected at least 1"):
        measure_variants(model, image_processor, [photo] * 3, warmup=0, **arguments)


def test_a_gpu_does_not_hold_the_model_and_a_copy(image_processor, monkeypatch):
    """With a fake device: the model is on the CPU while a copy is measured, and returns also after an error."""
    moves = []

    class Model(ViP2ClipForAnomalyDetection):
        device = property(lambda self: torch.device("cuda"))

        def to(self, target):
            moves.append((self is model, str(target)))
            return super().to(target) if isinstance(target, torch.dtype) else self

    model = Model(tiny_config())
    emptied = []
    monkeypatch.setattr(efficiency.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(efficiency.torch.cuda, "empty_cache", lambda: emptied.append(len(moves)))
    variants = efficiency_variants(model, image_processor, names=["float32", "bfloat16"])
    next(variants)
    assert moves == []
    next(variants)
    before = [(True, "cpu"), (False, "torch.bfloat16"), (False, "cuda")]
    assert moves == before
    variants.close()  # as after an error in the measurement
    assert moves == [*before, (True, "cuda")]
    assert emptied == [3]


def test_trainable_parameters_of_the_paper():
    """Table 3 of the paper: 4.15 M."""
    with torch.device("meta"):
        model = ViP2ClipForAnomalyDetection(ViP2ClipConfig())
    assert f"{trainable_parameters(model) / 1e6:.2f}" == "4.15"


@pytest.fixture
def training(clip_folder, tmp_path):
    data = write_training_set(tmp_path / "data")
    layers = list(TINY["feature_layers"])
    return (
        ModelArguments(clip=str(clip_folder), image_size=48, feature_layers=layers, top_k=5),
        DataArguments(train_data=[str(data)]),
        ViP2ClipTrainingArguments(
            output_dir=str(tmp_path / "out"), per_device_train_batch_size=2, num_train_epochs=3, use_cpu=True
        ),
    )


def test_measure_training(training, tmp_path):
    results = measure_training(*training)
    assert [one["cache"] for one in results] == [False, True]
    for one in results:
        assert (one["num_images"], one["num_steps"], one["batch_size"], one["measured_steps"]) == (14, 21, 2, 3)
        passes = 14 * one["cache_image_seconds"] if one["cache"] else 0
        assert (one["cache_image_seconds"] is None) == (not one["cache"])
        assert one["seconds"] == pytest.approx(21 * one["step_seconds"] + passes)
        assert one["image_seconds"] == one["step_seconds"] / 2
        assert one["step_ratio"] == pytest.approx(one["image_seconds"] / one["tower_image_seconds"])
        assert one["ratio"] == pytest.approx(one["seconds"] / 42 / one["tower_image_seconds"])
        assert one["extrapolated"]
        assert one["memory_bytes"] > 1e8
        assert one["trainable_parameters"] > 0
    assert results[0]["step_ratio"] > 1  # a step contains the tower
    to_json(results)
    assert not (tmp_path / "out").exists()


def test_measured_trainings_and_other_numbers_of_images(training):
    (one,) = measure_training(*training, caches=[True], num_images=1001)
    assert (one["num_images"], one["num_steps"]) == (1001, 3 * 501)
    assert one["seconds"] == pytest.approx(1503 * one["step_seconds"] + 1001 * one["cache_image_seconds"])
    (one,) = measure_training(*training, caches=[False], measured={False: 84.0, True: 1.0})
    assert (one["seconds"], one["extrapolated"]) == (84.0, False)
    assert one["ratio"] == pytest.approx(2 / one["tower_image_seconds"])
    with pytest.raises(ValueError, match="num_images is 0; expected at least 1"):
        measure_training(*training, num_images=0)
