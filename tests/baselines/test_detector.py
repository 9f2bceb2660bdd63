"""The baselines in the evaluation: class names, references of each category, workers, and the reproduction."""

import dataclasses
import pickle

import pytest
import torch
from PIL import Image

from helpers.reproduction import generated
from helpers.rivals import clip_tokenizer, tiny_text_clip
from helpers.tiny import change_weights
from vip2clip_hf import Detector, ViP2ClipImageProcessor, evaluate_detector, load_folder
from vip2clip_hf.baselines import BaselineDetector, ClipForAnomalyDetection, WinClipForAnomalyDetection
from vip2clip_hf.data.synthetic.dataset import write_dataset
from vip2clip_hf.evaluation.detector import check_detectors
from vip2clip_hf.reproduction import read_plan, reproduce
from vip2clip_hf.reproduction.plan import Direction


CATEGORIES = ("stripes", "weave")
METHODS = {"CLIP": ClipForAnomalyDetection, "WinCLIP": WinClipForAnomalyDetection}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "parts"
    return write_dataset(folder, CATEGORIES, num_normal=3, num_anomalous=1, size=48, num_train=4)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return tiny_text_clip()


def create(name: str, clip, **options) -> BaselineDetector:
    model = METHODS[name].from_clip(clip, clip_tokenizer())
    return BaselineDetector(model, ViP2ClipImageProcessor(size=model.config.image_size), **options)


@pytest.mark.parametrize("name", METHODS)
def test_in_the_evaluation(name, clip, root):
    detector = create(name, clip)
    assert isinstance(detector, Detector)
    assert (detector.name, detector.image_size) == (name, 32)
    asked, texts = [], detector.model.get_text_embeds
    detector.model.get_text_embeds = lambda text=None: asked.append(text) or texts(text)
    found = evaluate_detector(detector, load_folder(root), batch_size=2)
    assert asked == list(CATEGORIES)  # once each
    assert list(found["categories"]) == list(CATEGORIES)
    assert 0 <= found["mean"]["pixel_auroc"] <= 1
    # The same as one detector per category.
    by_category = {one: detector.for_category(one) for one in CATEGORIES}
    assert evaluate_detector(by_category, load_folder(root), batch_size=2)["mean"] == found["mean"]
    assert evaluate_detector(detector, load_folder(root), batch_size=2, num_workers=1)["mean"] == found["mean"]
    assert pickle.loads(pickle.dumps(detector.prepare))([Image.new("RGB", (9, 7))]).shape == (1, 3, 32, 32)


def test_class_names(clip):
    for name, expected in (("CLIP", "metal nut"), ("WinCLIP", "metal_nut")):
        assert create(name, clip).for_category("metal_nut").class_name == expected
        assert create(name, clip, class_name="part").for_category("metal_nut").class_name == "part"
        own = create(name, clip, class_name={"pcb1": "board"})
        assert own.for_category("pcb1").class_name == "board"
        assert own.for_category("metal_nut").class_name == expected
        with pytest.raises(ValueError, match="mapping by category; expected the detector of a category"):
            own.score(torch.zeros(1, 3, 32, 32))
    detector = create("CLIP", clip)
    scores, maps = detector.score(torch.zeros(2, 3, 32, 32))  # outside an evaluation: "object"
    expected = detector.model(torch.zeros(2, 3, 32, 32), class_name="object")
    torch.testing.assert_close(scores, expected.scores)
    torch.testing.assert_close(maps, expected.anomaly_maps)


def test_few_shot(clip, root):
    photos = {
        one: [row["image"] for row in load_folder(root, split="train", categories=[one])][:2] for one in CATEGORIES
    }
    detector = create("WinCLIP", clip, references=photos)
    found = evaluate_detector(detector, load_folder(root))
    zero_shot = evaluate_detector(create("WinCLIP", clip), load_folder(root))
    assert found["mean"] != zero_shot["mean"]
    # Photos and their embeddings are the same references.
    of_category = detector.for_category("weave")
    encoded = of_category.model.encode_images(of_category.prepare(photos["weave"]))
    batch = of_category.prepare([Image.effect_noise((40, 40), 60).convert("RGB")])
    other = create("WinCLIP", clip, references=encoded, class_name="weave")
    torch.testing.assert_close(of_category.score(batch)[1], other.score(batch)[1])
    assert not torch.allclose(of_category.score(batch)[1], detector.for_category("stripes").score(batch)[1])


def test_references_that_are_refused(clip, root):
    photo = Image.new("RGB", (32, 32))
    with pytest.raises(ValueError, match="ClipForAnomalyDetection does not use references"):
        create("CLIP", clip, references=[photo])
    with pytest.raises(ValueError, match=r"no references of the category 'stripes'.* found 'weave'"):
        evaluate_detector(create("WinCLIP", clip, references={"weave": [photo]}), load_folder(root))
    with pytest.raises(ValueError, match="references contains 0 photos"):
        create("WinCLIP", clip, references=[]).score(torch.zeros(1, 3, 32, 32))


def test_settings_identify_the_detector(clip):
    photos = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    detectors = [
        create("CLIP", clip), create("CLIP", clip, class_name="nut"), create("WinCLIP", clip),
        create("WinCLIP", clip, references=photos), create("WinCLIP", clip, references=photos[:1]),
        create("WinCLIP", clip, references={"a": photos}), create("CLIP", tiny_text_clip()),
    ]  # fmt: skip
    change_weights(detectors[-1].model)
    settings = [str(one.settings) for one in detectors]
    assert len(set(settings)) == len(settings)
    assert str(create("CLIP", clip).settings) == settings[0]


def test_the_mode_of_the_model_is_kept(clip):
    detector = create("CLIP", clip)
    detector.model.train()
    detector.score(torch.zeros(1, 3, 32, 32))
    assert detector.model.training


def test_detectors_without_categories_stay_one_object():
    """Only detectors with `for_category` are asked for one of each category."""

    class Plain:
        name, image_size = "plain", 8

        def prepare(self, images): ...

        def score(self, batch): ...

    plain = Plain()
    assert all(one is plain for one in check_detectors(plain, CATEGORIES).values())


@pytest.mark.slow
def test_reproduce(clip, tmp_path):
    """Rows of a reproduced table. ViP²-CLIP is trained on one category and evaluated on another."""
    plan = dataclasses.replace(
        read_plan("small", seeds=[111]),
        datasets={"surfaces": "generated: stripes", "things": "generated: dots"},
        protocol=(Direction(("surfaces",), ("things",)),),
        generated={"num_normal": 2, "num_anomalous": 1, "size": 48},
        training={"num_train_epochs": 1, "average_weights_from": 0, "save_strategy": "no"},
        model={"image_size": 48, "top_k": 3, "smoothing_sigma": 2.0},
        methods={},
    )
    detectors = {name: lambda name=name: create(name, clip) for name in METHODS}
    found = reproduce(plan, ["table 1"], tmp_path / "out", detectors=detectors, device="cpu")
    assert found["problems"] == []
    text = "\n".join(path.read_text() for path in (tmp_path / "out").glob("*.md"))
    for name, detector in detectors.items():
        mean = evaluate_detector(detector(), load_folder(generated(tmp_path / "out", "things")))["mean"]
        assert name in text
        assert f"({100 * mean['image_auroc']:.1f}, {100 * mean['image_ap']:.1f}, " in text
