"""Banks of references: photos of every kind, adding and removing photos, options, scores of left-out photos."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.references import brute_distances, part, parts, write_parts
from helpers.tiny import tiny_config
from vip2clip_hf import ReferenceBank, ViP2ClipForAnomalyDetection, ViP2ClipImageProcessor
from vip2clip_hf.models.vip2clip import (
    reference_building_vip2clip as building,
    reference_changes_vip2clip as changes,
    reference_search_vip2clip as search,
)
from vip2clip_hf.models.vip2clip.reference_distances_vip2clip import covering_rows


@pytest.fixture
def build(model, image_processor):
    return lambda images, **options: ReferenceBank.from_images(model, image_processor, images, **options)


@pytest.fixture
def embeds(model, image_processor):
    """Patch embeddings of photos."""

    def compute(images):
        pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            return model.get_image_features(pixel_values).patch_embeds

    return compute


def assert_same_bank(one: ReferenceBank, two: ReferenceBank):
    assert one.photos == two.photos
    assert one.options == two.options
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, two.tensors()[name]), name
    assert (one.weight, one.image_level, one.pixel_level) == (two.weight, two.image_level, two.pixel_level)
    assert one.checksum() == two.checksum()


# What is stored


def test_the_bank_holds_all_layers_but_the_last(model, build, embeds):
    images = parts(3)
    bank = build(images)
    assert len(bank) == 3
    assert bank.features.shape == (2, 3 * 36, 16)
    assert bank.features.dtype == torch.float16
    torch.testing.assert_close(bank.features.float()[:, 36:72], embeds(images)[1, :2], atol=1e-3, rtol=0)
    assert bank.row_photo.tolist() == [0] * 36 + [1] * 36 + [2] * 36
    assert bank.nbytes == 2 * 2 * 108 * 16
    assert "3 photos, 108 patches of 2 layers" in repr(bank)
    with torch.no_grad():
        outputs = model(torch.cat([ViP2ClipImageProcessor(size=48)([image], return_tensors="pt")["pixel_values"]
                                   for image in images]))  # fmt: skip
    torch.testing.assert_close(bank.view_logits, outputs.logits[:, 1] - outputs.logits[:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(bank.view_maps, outputs.layer_maps[:, :, 1].mean(dim=1), atol=1e-5, rtol=0)


def test_a_model_with_one_layer(image_processor):
    model = ViP2ClipForAnomalyDetection(tiny_config(feature_layers=(4,))).eval()
    bank = ReferenceBank.from_images(model, image_processor, parts(2))
    assert bank.features.shape[0] == 1
    assert model(torch.randn(1, 3, 48, 48), references=bank).scores.shape == (1,)


@pytest.mark.parametrize(
    "kind", ["list", "generator", "folder", "arrays", "rows", "pairs", "dataset", "tensor", "paths"]
)
def test_photos_in_every_form(build, tmp_path, kind):
    images = parts(3)
    arrays = [np.asarray(image) for image in images]
    found = {
        "list": images,
        "generator": (image for image in images),
        "arrays": np.stack(arrays),
        "rows": [{"image": image} for image in images],
        "pairs": [(image, 0) for image in images],
        "dataset": _Dataset(images),
        "tensor": torch.from_numpy(np.stack(arrays)),
    }
    paths = write_parts(tmp_path / "good", 3)
    bank = build({**found, "folder": tmp_path / "good", "paths": paths}[kind])
    assert torch.equal(bank.features, build(images).features)
    named = ["00.png", "01.png", "02.png"] if kind in ("folder", "paths") else ["photo 1", "photo 2", "photo 3"]
    assert [photo.name for photo in bank.photos] == named


class _Dataset(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        return {"image": self.images[number]}


def test_one_photo_and_batches(build, model):
    model.train()
    one = build(part(0))
    assert len(one) == 1
    assert model.training
    assert torch.isfinite(one.view_distances).all()
    assert float(one.view_distances.max()) > 0
    assert [photo.photo.name for photo in one.left_out()] == ["photo 1"]
    several = build(parts(5), batch_size=2)
    torch.testing.assert_close(several.features, build(parts(5), batch_size=5).features, atol=1e-3, rtol=0)


def test_no_photos(build, tmp_path):
    for nothing in ([], (image for image in []), tmp_path):
        with pytest.raises(ValueError, match=r"at least one|no images|contains no"):
            build(nothing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_patches": 0}, "max_patches is 0"),
        ({"max_patches": 2.5}, "max_patches is 2.5"),
        ({"tile_size": 8}, "tile_size"),
        ({"tile_size": 32, "aligned": True}, "aligned is set together with tile_size"),
        ({"rotations": True, "aligned": True}, "aligned is set together with rotations"),
        ({"aligned": True}, "aligned is set with 3 references; expected at least 4"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_options_out_of_range(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(parts(3), **options)


def test_options_of_numpy_can_be_saved(build, tmp_path):
    bank = build(parts(3), tile_size=np.int64(32), max_patches=np.int64(1000), rotations=np.bool_(True))
    bank.save_pretrained(tmp_path)
    assert_same_bank(ReferenceBank.from_pretrained(tmp_path), bank)


def test_identical_photos_are_used_once(build, caplog):
    image = part(0)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        bank = build([image, part(1), image.copy(), np.asarray(image)])
    assert len(bank) == 2
    assert "2 references have the same pixels as others and are used once: photo 3 (same as photo 1)" in caplog.text
    assert len(build([image] * 3)) == 1
    flat = build([Image.new("RGB", (48, 48), (128, 128, value)) for value in (1, 2)])
    assert np.isfinite([flat.weight, flat.image_level, flat.pixel_level]).all()
    assert all(0 <= one.score < 0.5 for one in flat.left_out())


def test_mixed_photos_are_reported_once(build, caplog):
    gray = Image.fromarray(np.asarray(part(1).convert("L")))
    images = [part(0), gray, part(2, size=(60, 40)), part(3).convert("RGBA"), part(4).convert("P"), part(5, (30, 70))]
    with caplog.at_level(logging.WARNING, logger="transformers"):
        bank = build(images)
        build(images)
    assert len(bank) == 6
    assert caplog.text.count("differ in size, from 30 x 70 to 60 x 40 pixels") == 1
    assert caplog.text.count("Some references are gray and some are in color") == 1
    only_gray = [Image.fromarray(np.asarray(image.convert("L"))) for image in parts(3)]
    caplog.clear()
    assert len(build(only_gray)) == 3
    assert not caplog.text


def test_names_that_repeat_or_are_not_text(build, tmp_path):
    bad = (str(tmp_path) + "/").encode() + b"\xff.png"
    folders = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        part(seed).save(folder / "same.png")
    with open(bad, "wb") as file:
        part(2).save(file, "png")
    bank = build([folders[0] / "same.png", folders[1] / "same.png", bad.decode("utf-8", "surrogateescape")])
    assert [photo.name for photo in bank.photos] == ["same.png", "same.png (2)", "?.png"]
    bank.save_pretrained(tmp_path / "bank")
    assert_same_bank(ReferenceBank.from_pretrained(tmp_path / "bank"), bank)
    assert {photo.name for photo in build(tmp_path).photos} == {"a/same.png", "b/same.png", "?.png"}


def test_an_unreadable_photo_is_named(build, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(OSError, match=r"broken\.png"):
        build([part(0), tmp_path / "broken.png"])


def test_features_that_are_not_finite(model, build):
    with torch.no_grad():
        model.clip.visual_projection.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        build(parts(2))


def test_a_model_without_weights(image_processor):
    with torch.device("meta"):
        model = ViP2ClipForAnomalyDetection(tiny_config())
    with pytest.raises(ValueError, match="device 'meta'"):
        ReferenceBank.from_images(model, image_processor, parts(2))


# Adding and removing photos


@pytest.mark.parametrize("least", [1, 1 << 30])
@pytest.mark.parametrize("options", [{}, {"tile_size": 32}, {"rotations": True}, {"aligned": True}])
def test_changed_banks_equal_those_built_at_once(model, image_processor, build, monkeypatch, options, least):
    monkeypatch.setattr(search, "LEAST_ROWS", least)
    options = {"batch_size": 1, **options}
    images = parts(6)
    whole = build(images, **options)
    merged = build(images[:4], **options)
    merged = merged.add(model, image_processor, images[4:], batch_size=1)
    assert [photo.name for photo in merged.photos[4:]] == ["photo 1 (2)", "photo 2 (2)"]
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, merged.tensors()[name]), name
    assert (merged.weight, merged.image_level, merged.pixel_level) == (
        whole.weight, whole.image_level, whole.pixel_level
    )  # fmt: skip
    assert_same_bank(whole.without(["photo 5", "photo 6"]), build(images[:4], **options))
    assert whole.without([]) is whole


def test_merging_skips_known_photos(build, caplog):
    one, two = build(parts(3)), build(parts(3, first=1))
    with caplog.at_level(logging.WARNING, logger="transformers"):
        merged = one.merge(two)
    assert "2 photos are already among the references" in caplog.text
    assert len(merged) == 4
    assert merged.photos[3].name == "photo 3 (2)"
    assert torch.equal(merged.features, build(parts(4)).features)
    assert one.merge(one) is one


def test_merging_other_banks(model, image_processor, build):
    bank = build(parts(2))
    with pytest.raises(ValueError, match="were read with"):
        bank.merge(build(parts(2), tile_size=32))
    with pytest.raises(ValueError, match="other is of type list; expected a ReferenceBank"):
        bank.merge(parts(2))
    other = ViP2ClipForAnomalyDetection(tiny_config()).eval()
    with pytest.raises(ValueError, match=r"different models \(the weights of the adapters"):
        bank.merge(ReferenceBank.from_images(other, image_processor, parts(2)))
    with pytest.raises(ValueError, match="belong to another model"):
        bank.add(other, image_processor, parts(2))


def test_removing_photos(build):
    bank = build(parts(5))
    assert [photo.name for photo in bank.without("photo 2").photos] == ["photo 1", "photo 3", "photo 4", "photo 5"]
    with pytest.raises(ValueError, match=r"'x' is not the name of a reference; expected names such as 'photo 1'"):
        bank.without(["x"])
    with pytest.raises(ValueError, match="at least one photo to remain"):
        bank.without(photo.name for photo in bank.photos)
    with pytest.raises(ValueError, match="aligned is set with 3 references"):
        build(parts(4), aligned=True).without("photo 1")
    with pytest.raises(ValueError, match="subset of the patches"):
        build(parts(5), max_patches=50).without("photo 1")


def test_few_photos_are_scored_of_very_many(build, monkeypatch):
    for module in (building, changes):
        monkeypatch.setattr(module, "MAX_LEFT_OUT", 4)
    bank = build(parts(9))
    assert len(bank) == 9
    assert len(bank.view_photo.unique()) == 4
    assert len(list(bank.left_out())) == 4
    assert bank.view_photo.tolist() != [0, 1, 2, 3]
    merged = build(parts(5)).merge(build(parts(4, first=5)))
    assert len(merged.view_photo.unique()) == 4
    own = bank.row_photo == int(bank.view_photo[1])
    features = torch.nn.functional.normalize(bank.features.double(), dim=-1)
    expected = brute_distances(features[:, own], features[:, ~own]).mean(dim=0).view(6, 6)
    torch.testing.assert_close(bank.view_distances[1].double(), expected, atol=1e-6, rtol=0)


# Left-out photos


@pytest.mark.parametrize("options", [{}, {"rotations": True}, {"tile_size": 32}])
def test_left_out_distances_are_those_to_the_other_photos(model, image_processor, build, embeds, options):
    images = parts(4)
    bank = build(images, **options)
    found = list(bank.left_out())
    for number, photo in enumerate(bank.photos):
        others = bank.without([photo.name])
        views = bank.view_photo == number
        boxes = [(0, 0, 32, 32), (16, 0, 48, 32), (0, 16, 32, 48), (16, 16, 48, 48)]
        crops = [images[number].crop(box) for box in boxes] if options.get("tile_size") else [images[number]]
        distances = others.distances(embeds(crops).half().float(), model.clip.visual_projection)
        torch.testing.assert_close(bank.view_distances[views], distances, atol=1e-5, rtol=0)
        assert found[number].photo == photo
        assert abs(found[number].distance - _top(bank.maps(distances))) < 1e-4
        assert 0 <= found[number].zero_shot_score <= 1
        assert 0 <= found[number].score <= 1
        # Up to the rounding to half precision, weight and level, that is what the model computes.
        with torch.no_grad():
            pixel_values = image_processor(crops, return_tensors="pt")["pixel_values"]
            outputs = model(pixel_values, references=others)
        assert abs(found[number].distance - float(outputs.reference_scores.max())) < 1e-3
        others.weight, others.image_level, others.pixel_level = bank.weight, bank.image_level, bank.pixel_level
        with torch.no_grad():
            outputs = model(pixel_values, references=others)
        assert abs(found[number].score - float(outputs.scores.max())) < 0.02
        assert found[number].anomaly_map.shape == (48, 48)
        assert found[number].anomaly_map.dtype == np.float32
        if len(crops) == 1:
            np.testing.assert_allclose(found[number].anomaly_map, outputs.anomaly_maps[0], atol=0.02)


def _top(maps):
    return max(float(one.flatten().sort(descending=True).values[:24].mean()) for one in maps)  # 1 % of 48 x 48


def test_level_and_weight_come_from_the_left_out_photos(build):
    bank = build(parts(8))
    scores = [one.score for one in bank.left_out()]
    assert max(scores) < 0.9
    assert min(scores) < 0.5
    assert 0.15 / 3 < bank.weight <= 0.4


# Rotations


def test_turned_photos_are_found_only_with_rotations(model, build, embeds):
    images, projection = parts(2), model.clip.visual_projection
    plain, turned = build(images), build(images, rotations=True)
    assert turned.features.shape[1] == 8 * plain.features.shape[1]
    torch.testing.assert_close(turned.view_maps, plain.view_maps)
    transposes = (Image.Transpose.ROTATE_90, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSVERSE)
    photos = embeds([images[1].transpose(transpose) for transpose in transposes])
    assert float(turned.distances(photos, projection).max()) < 1e-4
    assert (plain.distances(photos, projection).amax(dim=(1, 2)) > 100 * 1e-4).all()


def test_eight_different_variants():
    photo = part(0)
    variants = {photo.tobytes()} | {photo.transpose(turn).tobytes() for turn in building.TURNS[1:]}
    assert len(variants) == len(building.TURNS) == 8


# Aligned parts


def test_aligned_raises_the_contrast_of_a_defect_at_a_steady_place(model, build, embeds):
    """A defect at a place that never changes is clearer if another place, such as a label, always changes."""

    def labelled(seed: int, spot: bool = False) -> Image.Image:
        pixels = np.asarray(part(0)).copy()
        pixels[24:, 24:] = np.random.default_rng(seed).integers(0, 256, size=(24, 24, 3))
        if spot:
            pixels[28:32, 4:8] += 12
        return Image.fromarray(pixels)

    images = [labelled(seed) for seed in range(8)]
    photo, projection = embeds([labelled(100, spot=True)]), model.clip.visual_projection
    plain, aligned = build(images), build(images, aligned=True)

    def contrast(bank):
        found = bank.distances(photo, projection)[0]
        return float(found[3, :2].max() / found[3:, 3:].max())

    assert contrast(aligned) > 2 * contrast(plain)
    offset = aligned.position_offset
    assert plain.position_offset is None
    assert offset.shape == (6, 6)
    assert abs(float(offset.log().mean())) < 1e-5
    expected = plain.distances(photo, projection) * offset
    torch.testing.assert_close(aligned.distances(photo, projection), expected)


# Subsets of many photos


def test_at_most_max_patches_are_kept(build, caplog):
    with caplog.at_level(logging.WARNING, logger="transformers"):
        bank = build(parts(10), max_patches=100)
    assert "more than 100 patches; a subset of 100 patches" in caplog.text
    whole = build(parts(10))
    assert bank.reduced
    assert not whole.reduced
    assert bank.features.shape[1] == 100
    assert bool((bank.row_photo.diff() >= 0).all())
    assert len(bank) == 10
    assert len(list(bank.left_out())) == 10
    assert torch.equal(bank.features, build(parts(10), max_patches=100).features)
    # Every stored patch is one of the patches of the photos.
    cosines = bank.features[0].float() @ whole.features[0].float().T
    assert float((1 - cosines.amax(dim=1)).max()) < 1e-3
    merged = bank.merge(build(parts(2, first=10), max_patches=100))
    assert merged.reduced
    assert merged.features.shape[1] == 100
    assert len(merged) == 12
    assert torch.isfinite(merged.view_distances).all()


@pytest.mark.slow
def test_ten_thousand_photos_need_little_memory():
    collected = building._Collected(building.ReferenceOptions(max_patches=2000))
    generator, largest = torch.Generator().manual_seed(0), 0
    for number in range(10_000):
        features = torch.nn.functional.normalize(torch.randn(2, 36, 16, generator=generator), dim=-1).half()
        photo = building.ReferencePhoto(f"{number}", f"{number}", 48, 48)
        collected.add(photo, [(features, 0.0, torch.zeros(6, 6))])
        largest = max(largest, sum(block.shape[1] for block in collected._blocks))
    assert largest <= 2 * 2000
    assert len(collected.views) == building.MAX_LEFT_OUT
    rows, row_photo = collected.reduce()
    assert rows.shape == (2, 2000, 16)
    assert bool((row_photo.diff() >= 0).all())
    assert int(row_photo.min()) < 3000
    assert int(row_photo.max()) > 7000
    assert torch.equal(covering_rows(rows, 2000), torch.arange(2000))
