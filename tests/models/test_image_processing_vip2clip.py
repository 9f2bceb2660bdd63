import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessorPil
from transformers.models.auto import image_processing_auto
from transformers.processing_utils import ImagesKwargs

from helpers.tiny import tiny_config
from vip2clip_hf import ViP2ClipAnomalyDetectionOutput, ViP2ClipImageProcessor
from vip2clip_hf.models.vip2clip.image_loading_vip2clip import list_images, load_image


MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def gray_ramp(dtype, top: int) -> np.ndarray:
    return np.linspace(0, top, 40 * 60).reshape(40, 60).astype(dtype)


# Images


def test_pixels_are_resized_and_normalized(image_processor, photo):
    expected = np.asarray(photo.resize((48, 48), Image.Resampling.BICUBIC)) / 255
    expected = np.moveaxis((expected - MEAN) / STD, -1, 0)
    inputs = image_processor(photo, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 48, 48)
    assert inputs["pixel_values"].dtype == torch.float32
    np.testing.assert_allclose(inputs["pixel_values"][0].numpy(), expected, rtol=0, atol=1e-5)
    assert "mask_labels" not in inputs


@pytest.mark.parametrize("kind", ["path", "str", "array", "channels first", "tensor", "float", "list", "batch"])
def test_kinds_of_input(image_processor, photo, tmp_path, kind):
    photo.save(tmp_path / "photo.png")
    array = np.asarray(photo)
    given = {
        "path": tmp_path / "photo.png",
        "str": str(tmp_path / "photo.png"),
        "array": array,
        "channels first": np.moveaxis(array, -1, 0),
        "tensor": torch.from_numpy(array.copy()),
        "float": array.astype(np.float64) / 255,
        "list": [photo],
        "batch": array[None],
    }[kind]
    expected = image_processor(photo, return_tensors="np")["pixel_values"]
    assert np.array_equal(image_processor(given, return_tensors="np")["pixel_values"], expected)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes_become_rgb(photo, mode):
    converted = photo.convert(mode)
    loaded = load_image(converted)
    assert loaded.mode == "RGB"
    assert loaded.size == (60, 40)
    assert np.array_equal(np.asarray(loaded), np.asarray(converted.convert("RGB")))


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_files_are_scaled_not_clipped(tmp_path, extension):
    """Pillow's conversion would clip all values above 255, which are 99.6 % of them."""
    path = tmp_path / f"deep.{extension}"
    Image.fromarray(gray_ramp(np.uint16, 65535)).save(path)
    levels = np.asarray(load_image(path))[..., 0].ravel()
    assert (levels[0], levels[-1]) == (0, 255)
    assert np.abs(levels - np.linspace(0, 255, levels.size)).max() <= 1
    assert np.array_equal(np.asarray(load_image(gray_ramp(np.uint16, 65535)))[..., 0].ravel(), levels)
    as_int32 = Image.fromarray(gray_ramp(np.int32, 65535))
    assert as_int32.mode == "I"
    assert np.array_equal(np.asarray(load_image(as_int32))[..., 0].ravel(), levels)


def test_arrays_of_other_types():
    expected = np.asarray(load_image(gray_ramp(np.uint8, 255)))
    assert np.array_equal(np.asarray(load_image(gray_ramp(np.int64, 255))), expected)
    floats = gray_ramp(np.uint8, 255) / 255
    assert np.array_equal(np.asarray(load_image(floats)), expected)
    assert np.array_equal(np.asarray(load_image(Image.fromarray(floats.astype(np.float32)))), expected)
    assert np.array_equal(np.asarray(load_image(torch.from_numpy(floats)[None])), expected)
    assert np.abs(np.asarray(load_image(torch.from_numpy(floats).bfloat16())).astype(int) - expected).max() <= 1
    assert np.asarray(load_image(gray_ramp(np.uint8, 255) > 127)).max() == 255
    assert np.array_equal(np.asarray(load_image(floats * 1.0000001)), expected)  # rounding
    deep = gray_ramp(np.uint16, 65535)
    for same in (deep.astype(">u2"), deep[:, ::-1][:, ::-1], np.asfortranarray(deep)):
        assert np.array_equal(np.asarray(load_image(same)), np.asarray(load_image(deep)))
    opaque = np.dstack([gray_ramp(np.uint8, 255)] * 3 + [np.full((40, 60), 255, np.uint8)])
    assert np.array_equal(np.asarray(load_image(opaque)), expected)
    transparent = opaque * np.array([1, 1, 1, 0], np.uint8)
    assert np.asarray(load_image(transparent)).min() == 255  # shown on white


def test_undecoded_images_of_datasets(photo, tmp_path, image_processor):
    photo.save(tmp_path / "photo.png")
    content = (tmp_path / "photo.png").read_bytes()
    for given in ({"path": str(tmp_path / "photo.png"), "bytes": None}, {"path": None, "bytes": content}):
        assert np.array_equal(np.asarray(load_image(given)), np.asarray(photo))
    mask = Image.fromarray(np.full((40, 60), 255, np.uint8))
    mask.save(tmp_path / "mask.png")
    given = {"path": "elsewhere.png", "bytes": (tmp_path / "mask.png").read_bytes()}
    assert image_processor(photo, segmentation_maps=[given])["mask_labels"][0].all()
    with pytest.raises(OSError, match="elsewhere"):
        load_image({"path": "elsewhere.png", "bytes": content[:300]})


def test_exif_orientation_is_applied(photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees for display
    photo.save(tmp_path / "turned.png", exif=exif)
    assert load_image(tmp_path / "turned.png").size == (40, 60)
    assert np.array_equal(np.asarray(load_image(tmp_path / "turned.png")), np.rot90(np.asarray(photo), -1))
    mask = np.zeros((40, 60), np.uint8)
    mask[:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png", exif=exif)
    processor = ViP2ClipImageProcessor(size=48)
    labels = processor(tmp_path / "turned.png", segmentation_maps=tmp_path / "mask.png")["mask_labels"][0]
    assert labels[:, 24:].all()
    assert not labels[:, :24].any()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), r"at least one pixel.*\(0, 5, 3\)"),
        (Image.new("RGB", (0, 7)), "0 x 7 pixels"),
        (np.full((4, 4), np.nan), "NaN or infinity"),
        (np.full((4, 4), np.inf), "NaN or infinity"),
        (np.full((4, 4, 3), 200.0), r"floats in \[0, 1\].*200.*uint8"),
        (np.full((4, 4), -0.5), r"floats in \[0, 1\]"),
        (np.full((4, 4), 300), "8-bit values.*uint16"),
        (np.full((4, 4), -1), "8-bit values"),
        (np.zeros((5, 5, 7), np.uint8), r"expected an array.*\(5, 5, 7\)"),
        (np.zeros(5, np.uint8), r"expected an array.*\(5,\)"),
        (np.zeros((4, 4), complex), "expected numbers"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), "expected 16-bit values"),
        (None, "found NoneType"),
        (17, "found int"),
    ],
)
def test_bad_images(image_processor, image, message):
    with pytest.raises(ValueError, match=f"(?i){message}"):
        image_processor(image)


def test_bad_files(image_processor, photo, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.png.*check the path"):
        image_processor(tmp_path / "absent.png")
    (tmp_path / "notes.png").write_text("nothing to see")
    with pytest.raises(OSError, match=r"notes\.png.*cannot be read as an image; expected a format Pillow supports"):
        image_processor(tmp_path / "notes.png")
    for extension in ("png", "jpg"):
        photo.resize((600, 400)).save(tmp_path / f"whole.{extension}")
        content = (tmp_path / f"whole.{extension}").read_bytes()
        (tmp_path / f"half.{extension}").write_bytes(content[: len(content) // 2])
        with pytest.raises(OSError, match=rf"half\.{extension}.*truncated or damaged"):
            image_processor(tmp_path / f"half.{extension}")
    with pytest.raises(OSError, match="truncated or damaged"):  # opened by the caller, but not decoded yet
        image_processor(Image.open(tmp_path / "half.jpg"))
    with pytest.raises(OSError, match="is a folder; expected an image file"):
        image_processor(tmp_path)
    with pytest.raises(ValueError, match="empty list"):
        image_processor([])


def test_too_many_pixels(image_processor, photo, tmp_path, monkeypatch):
    photo.save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match=r"too large; expected at most 100 pixels.*MAX_IMAGE_PIXELS"):
        image_processor(tmp_path / "photo.png")


@pytest.fixture
def server(photo):
    """Serve an image at /photo.png."""
    content = io.BytesIO()
    photo.save(content, "png")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/photo.png"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(content.getvalue() if found else b"")

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_urls(server, photo):
    assert np.array_equal(np.asarray(load_image(f"{server}/photo.png", timeout=10)), np.asarray(photo))
    with pytest.raises(OSError, match=r"absent\.png.*could not be downloaded .*404.*check the URL and the connection"):
        load_image(f"{server}/absent.png", timeout=10)
    with pytest.raises(OSError, match="could not be downloaded"):
        load_image("HTTP://127.0.0.1:9/photo.png", timeout=10)


def test_list_images(tmp_path, photo):
    for name in ("b.PNG", "a.jpg", "notes.txt", "._a.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert list_images(tmp_path) == [str(tmp_path / "a.jpg"), str(tmp_path / "b.PNG")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no images"):
        list_images(tmp_path / "empty")


# Masks


def test_masks_are_resized_like_the_release(image_processor, photo):
    """Set anomalous pixels to 255, resize with Pillow (bilinear), then threshold at one half."""
    mask = np.zeros((40, 60), np.uint8)
    mask[7:21, 11:40] = 3
    expected = Image.fromarray((mask > 0).astype(np.uint8) * 255).resize((48, 48), Image.Resampling.BILINEAR)
    expected = (np.asarray(expected) / 255 > 0.5).astype(np.uint8)
    given = [mask, Image.fromarray(mask), torch.from_numpy(mask), mask[..., None], mask > 0, mask / 255]
    for one in given:
        labels = image_processor(photo, segmentation_maps=one, return_tensors="pt")["mask_labels"]
        assert labels.dtype == torch.uint8
        assert np.array_equal(labels[0].numpy(), expected)
    assert 0.15 < expected.mean() < 0.2


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "I;16"])
def test_modes_of_masks(image_processor, photo, tmp_path, mode):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:40] = 255
    expected = image_processor(photo, segmentation_maps=mask)["mask_labels"][0]
    if mode == "I;16":
        Image.fromarray(mask.astype(np.uint16)).save(tmp_path / "mask.png")
    else:
        Image.fromarray(mask).convert(mode).save(tmp_path / "mask.png")
    actual = image_processor(photo, segmentation_maps=tmp_path / "mask.png")["mask_labels"][0]
    assert np.array_equal(actual, expected)


def test_mask_threshold(photo):
    """Lossy masks have small values around the defect."""
    mask = np.full((40, 60), 9, np.uint8)
    mask[10:30, 20:40] = 250
    processor = ViP2ClipImageProcessor(size=48)
    assert processor(photo, segmentation_maps=mask)["mask_labels"][0].all()
    marked = processor(photo, segmentation_maps=mask, mask_threshold=127)["mask_labels"][0]
    assert 0.1 < marked.mean() < 0.3
    assert np.array_equal(
        ViP2ClipImageProcessor(size=48, mask_threshold=127)(photo, segmentation_maps=mask)["mask_labels"][0], marked
    )


def test_missing_masks_and_batches(image_processor, photo):
    mask = np.ones((40, 60), bool)
    labels = image_processor([photo, photo], segmentation_maps=[None, mask], return_tensors="pt")["mask_labels"]
    assert labels.shape == (2, 48, 48)
    assert labels[0].sum() == 0
    assert labels[1].all()
    for stacked in (np.stack([~mask, mask]), torch.from_numpy(np.stack([~mask, mask])).bfloat16()):
        labels = image_processor([photo, photo], segmentation_maps=stacked, return_tensors="pt")["mask_labels"]
        assert labels.float().mean(dim=(1, 2)).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((60, 40)), r"position 0 has 60 x 40 pixels .* expected 40 x 60"),
        (np.zeros((40, 60, 3)), "mask of shape"),
        (np.full((40, 60), np.nan), "finite mask values"),
        ([np.zeros((40, 60))] * 2, "one segmentation map per image, found 2 for 1"),
        ([{"bytes": None, "path": None}], "a dict with 'bytes' or 'path', found the keys"),
    ],
)
def test_bad_masks(image_processor, photo, mask, message):
    with pytest.raises(ValueError, match=message):
        image_processor(photo, segmentation_maps=mask)


# Saving and loading


def test_round_trip(tmp_path, photo):
    processor = ViP2ClipImageProcessor(size=32, mask_threshold=127, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    loaded = ViP2ClipImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert np.array_equal(loaded(photo)["pixel_values"], processor(photo)["pixel_values"])
    assert ViP2ClipImageProcessor.from_pretrained(tmp_path, size=24)(photo)["pixel_values"][0].shape == (3, 24, 24)


@pytest.mark.parametrize("torchvision", [True, False])
def test_auto_class_with_and_without_torchvision(tmp_path, monkeypatch, caplog, torchvision):
    tiny_config().save_pretrained(tmp_path)
    ViP2ClipImageProcessor(size=48).save_pretrained(tmp_path)
    monkeypatch.setattr(image_processing_auto, "is_torchvision_available", lambda: torchvision)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is ViP2ClipImageProcessor
    assert caplog.text == ""


def test_size_must_have_height_and_width(photo):
    with pytest.raises(ValueError, match="expected height and width"):
        ViP2ClipImageProcessor(size={"shortest_edge": 48})(photo)


@pytest.mark.parametrize(
    "option", [{"do_center_crop": True, "crop_size": 24}, {"input_data_format": "channels_first"}]
)
def test_unsupported_options_raise_an_error(image_processor, photo, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} is .* remove the argument"):
        image_processor(photo, **option)


# Options


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size", [None, 48])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, torch.float16])
def test_floats_without_rescaling_stay_in_0_1(photo, normalize, size, dtype):
    """Not 0 to 255, the values of the 8-bit image in between."""
    options = {"do_normalize": normalize, "do_resize": size is not None, "size": size, "return_tensors": "np"}
    bytes_ = np.asarray(photo)
    floats = (
        torch.from_numpy(bytes_ / 255).to(dtype) if isinstance(dtype, torch.dtype) else (bytes_ / 255).astype(dtype)
    )
    expected = ViP2ClipImageProcessor(**options)(photo)["pixel_values"]
    found = ViP2ClipImageProcessor(do_rescale=False, **options)(floats)["pixel_values"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2 if dtype == torch.float16 else 1e-5)
    if not normalize:
        assert 0.9 < found.max() <= 1
    gray = Image.fromarray((bytes_[..., 0] / 255).astype(np.float32))  # mode F
    assert ViP2ClipImageProcessor(do_rescale=False, do_normalize=False)(gray)["pixel_values"][0].max() <= 1


@pytest.mark.parametrize("do_resize", [True, False])
@pytest.mark.parametrize("do_rescale", [True, False])
@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize(
    "others",
    [
        {},
        {"rescale_factor": 1 / 127.5, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]},
        {"resample": Image.Resampling.NEAREST, "size": {"height": 30, "width": 50}},
        {"resample": 1, "image_mean": 0.5, "image_std": 0.5},
    ],
)
def test_options_equal_those_of_the_image_processor_of_clip(photo, do_resize, do_rescale, do_normalize, others):
    options = {"size": {"height": 24, "width": 24}, "return_tensors": "np", **others}
    options.update(do_resize=do_resize, do_rescale=do_rescale, do_normalize=do_normalize)
    expected = CLIPImageProcessorPil(do_center_crop=False, **options)(photo)["pixel_values"]
    for found in (ViP2ClipImageProcessor(**options)(photo), ViP2ClipImageProcessor()(photo, **options)):
        assert found["pixel_values"].dtype == np.float32
        np.testing.assert_allclose(found["pixel_values"], expected, rtol=1e-6, atol=1e-6)


UNUSABLE_OPTIONS = [
    ({"do_center_crop": True}, "do_center_crop is True.*does not support"),
    ({"crop_size": 24}, "crop_size is 24.*does not support"),
    ({"crop_size": {"height": 24, "width": 24}, "do_center_crop": False}, "crop_size is .*does not support"),
    ({"do_pad": True}, "do_pad is True.*does not support"),
    ({"pad_size": {"height": 64, "width": 64}}, "pad_size is .*does not support"),
    ({"image_seq_length": 9}, "image_seq_length is 9.*does not support"),
    ({"num_workers": 2}, "'num_workers' is not an argument of ViP2ClipImageProcessor; expected do_convert_rgb, "),
    ({"sise": 48}, "'sise' is not an argument"),
    ({"data_format": "channels_last"}, "data_format is 'channels_last'; expected 'channels_first'"),
    ({"input_data_format": "last"}, "input_data_format is 'last'; expected 'channels_first' or 'channels_last'"),
    ({"device": "cuda"}, "device is 'cuda'; expected 'cpu'"),
    ({"device": torch.device("meta")}, "device is 'meta'; expected 'cpu'"),
    ({"return_tensors": "tf"}, "return_tensors is 'tf'; expected 'pt' or 'np'"),
    ({"size": {"shortest_edge": 48}}, "size is {'shortest_edge': 48}; expected height and width"),
    ({"size": {"shortest_edge": 48, "longest_edge": 90}}, "expected height and width"),
    ({"size": {"longest_edge": 48}}, "expected height and width"),
    ({"size": {"max_height": 48, "max_width": 48}}, "expected height and width"),
    ({"size": {"min_pixels": 48, "max_pixels": 480}}, "expected height and width"),
    ({"size": {"height": 48}}, "expected height and width"),
    ({"size": {"height": 48, "width": 0}}, "expected height and width"),
    ({"size": -48}, "size is -48; expected height and width"),
    ({"size": 48.5}, "expected height and width"),
    ({"size": True}, "expected height and width"),
    ({"size": (48, 48, 3)}, "expected height and width"),
    ({"size": "48"}, "expected height and width"),
    ({"size": 48, "default_to_square": False}, "size is 48 with default_to_square=False; expected height and width"),
    ({"default_to_square": 1}, "default_to_square is 1; expected True or False"),
    ({"resample": 17}, "resample is 17; expected a PIL.Image.Resampling or its number"),
    ({"resample": "bicubic"}, "resample is 'bicubic'; expected a PIL.Image.Resampling"),
    ({"resample": True}, "resample is True; expected"),
    ({"do_convert_rgb": "yes"}, "do_convert_rgb is 'yes'; expected True or False"),
    ({"do_resize": 1}, "do_resize is 1; expected True or False"),
    ({"do_rescale": "no"}, "do_rescale is 'no'; expected True or False"),
    ({"do_normalize": 0.0}, "do_normalize is 0.0; expected True or False"),
    ({"rescale_factor": 0}, "rescale_factor is 0; expected a finite number greater than 0"),
    ({"rescale_factor": float("inf")}, "rescale_factor is inf; expected a finite number"),
    ({"rescale_factor": "1/255"}, "rescale_factor is '1/255'; expected"),
    ({"image_std": 0}, "image_std is 0; expected a finite number greater than 0"),
    (
        {"image_std": [0.5, 0.0, 0.5]},
        r"image_std is \[0.5, 0.0, 0.5\]; expected a finite number greater than 0 for each",
    ),
    ({"image_std": float("nan")}, "image_std is nan; expected"),
    ({"image_std": -0.5}, "image_std is -0.5; expected"),
    ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean is .*expected a finite number for each channel"),
    ({"image_mean": []}, "image_mean is .*expected a finite number for each channel"),
    ({"image_mean": "0.5"}, "image_mean is '0.5'; expected a finite number"),
    ({"mask_threshold": float("nan")}, "mask_threshold is nan; expected a finite number"),
    ({"mask_threshold": "127"}, "mask_threshold is '127'; expected a finite number"),
    ({"mask_threshold": True}, "mask_threshold is True; expected a finite number"),
]


@pytest.mark.parametrize(("options", "message"), UNUSABLE_OPTIONS)
def test_options_that_would_be_ignored_raise_an_error(image_processor, photo, options, message):
    with pytest.raises(ValueError, match=message):
        image_processor(photo, **options)
    with pytest.raises(ValueError, match=message):
        ViP2ClipImageProcessor(**options)
    for name, value in options.items():
        if name in ImagesKwargs.__annotations__ and len(options) == 1:
            changed = ViP2ClipImageProcessor(size=48)
            setattr(changed, name, value)
            with pytest.raises(ValueError, match=message):
                changed(photo)


def test_every_option_of_the_library_works_or_raises_an_error(photo):
    """Options that future versions of transformers add raise an error until they are supported."""
    tested = {name for options, _ in UNUSABLE_OPTIONS for name in options} | {"disable_grouping"}
    assert set(ImagesKwargs.__annotations__) <= tested

    class Kwargs(ViP2ClipImageProcessor.valid_kwargs, total=False):
        new_option: int

    class Newer(ViP2ClipImageProcessor):
        valid_kwargs = Kwargs

    assert Newer(size=24)(photo)["pixel_values"][0].shape == (3, 24, 24)
    with pytest.raises(ValueError, match="new_option is 3, but this image processor does not support it"):
        Newer(new_option=3)


def test_options_without_effect(image_processor, photo):
    expected = image_processor(photo)["pixel_values"][0]
    options = [{"do_center_crop": False}, {"do_pad": False}, {"default_to_square": True}, {"device": "cpu"}]
    options += [{"device": torch.device("cpu")}, {"disable_grouping": True}, {"data_format": "channels_first"}]
    options += [{"crop_size": None}, {"default_to_square": False, "size": {"height": 48, "width": 48}}]
    for given in options:
        assert np.array_equal(image_processor(photo, **given)["pixel_values"][0], expected)
        assert np.array_equal(ViP2ClipImageProcessor(**{"size": 48, **given})(photo)["pixel_values"][0], expected)


def test_none_is_the_default(image_processor, photo):
    """Not a synonym of False: an image that is not rescaled has values of up to 700."""
    expected = image_processor(photo)["pixel_values"][0]
    names = [name for name in ViP2ClipImageProcessor.valid_kwargs.__annotations__ if name != "size"]
    nothing = dict.fromkeys(names)
    assert np.array_equal(image_processor(photo, size=None, **nothing)["pixel_values"][0], expected)
    assert np.array_equal(ViP2ClipImageProcessor(size=48, **nothing)(photo)["pixel_values"][0], expected)


def test_forms_of_size_and_numbers_of_numpy(photo, tmp_path):
    for size in (24, np.int64(24), (24, 24), [24, 24], {"height": np.int32(24), "width": 24}):
        assert ViP2ClipImageProcessor(size=size)(photo)["pixel_values"][0].shape == (3, 24, 24)
        assert ViP2ClipImageProcessor()(photo, size=size)["pixel_values"][0].shape == (3, 24, 24)
    options = {
        "size": np.int64(24),
        "resample": np.int64(2),
        "rescale_factor": np.float32(0.5),
        "image_mean": np.array([0.1, 0.2, 0.3]),
        "image_std": 1,
        "do_convert_rgb": np.bool_(True),
        "mask_threshold": np.int64(3),
        "device": torch.device("cpu"),
        "input_data_format": "channels_last",
        "data_format": "channels_first",
        "return_tensors": "pt",
        "disable_grouping": False,
        "default_to_square": True,
    }
    processor = ViP2ClipImageProcessor(**options)
    processor.save_pretrained(tmp_path)
    loaded = ViP2ClipImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    array = np.asarray(photo)
    found = loaded(array)["pixel_values"]
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, ViP2ClipImageProcessor()(array, **options)["pixel_values"])


def test_options_in_the_file_of_another_image_processor(tmp_path):
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not support it|expected height and width"):
        ViP2ClipImageProcessor.from_pretrained(tmp_path)
    loaded = ViP2ClipImageProcessor.from_pretrained(tmp_path, size=48, crop_size=None, do_center_crop=False)
    assert loaded(np.zeros((5, 6), np.uint8))["pixel_values"][0].shape == (3, 48, 48)


def test_pixel_values_are_finite(image_processor, photo):
    """The model does not check the values of its inputs."""
    for options in ({"image_std": 1e-45}, {"rescale_factor": 1e300, "do_normalize": False}):
        with pytest.raises(
            ValueError, match=r"pixel_values of the image at position 1 contain NaN or infinite values"
        ):
            image_processor([np.zeros((4, 4), np.uint8), photo], image_mean=0.0, **options)
    with pytest.raises(ValueError, match="NaN or infinity"):
        image_processor(torch.tensor([[0.5, float("nan")]]), do_rescale=False)


# Channels


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_keep_their_channels_without_conversion(channels):
    """Every channel is resized on its own. The fourth one is not treated as transparency."""
    array = np.random.default_rng(0).integers(0, 256, (40, 60, channels), dtype=np.uint8)
    array[:, :20, -1] = 0
    options = {"do_convert_rgb": False, "image_mean": [0.0] * channels, "image_std": [1.0] * channels}
    processor = ViP2ClipImageProcessor(size=48, **options)
    bands = [Image.fromarray(array[..., channel]).resize((48, 48), 3) for channel in range(channels)]
    expected = np.stack([np.asarray(band) for band in bands]).astype(np.float32) / 255
    image = Image.fromarray(array if channels > 1 else array[..., 0])
    for given in (array, np.moveaxis(array, -1, 0), torch.from_numpy(array), image):
        np.testing.assert_allclose(processor(given)["pixel_values"][0], expected, rtol=0, atol=1e-6)


def test_channels_and_statistics_must_match():
    image = np.zeros((8, 9, 4), np.uint8)
    with pytest.raises(ValueError, match=r"expected 4 values, one for each channel"):
        ViP2ClipImageProcessor()(image, do_convert_rgb=False)


def test_modes_without_conversion(photo, tmp_path):
    processor = ViP2ClipImageProcessor(do_convert_rgb=False, do_normalize=False, size=8)
    for mode, channels in (("1", 1), ("L", 1), ("RGB", 3), ("RGBA", 4)):
        assert processor(photo.convert(mode))["pixel_values"][0].shape == (channels, 8, 8)
    deep = processor(gray_ramp(np.uint16, 65535), do_rescale=False)["pixel_values"][0]
    assert (deep.shape, deep.max() > 200) == ((1, 8, 8), True)
    for mode in ("P", "CMYK", "LA", "HSV"):
        with pytest.raises(ValueError, match=f"The image has mode '{mode}'; expected 1, L, RGB or RGBA"):
            processor(photo.convert(mode))
    photo.convert("P").save(tmp_path / "palette.png")
    with pytest.raises(ValueError, match=r"palette\.png' has mode 'P'; expected 1, L, RGB or RGBA"):
        processor(tmp_path / "palette.png")


def test_input_data_format(image_processor):
    """Shapes such as (3, 40, 3) are ambiguous. Without the option, the channels are the last axis."""
    array = np.random.default_rng(0).integers(0, 256, (3, 40, 3), dtype=np.uint8)
    last = image_processor(np.ascontiguousarray(array))["pixel_values"][0]
    first = image_processor(np.moveaxis(array, 0, -1))["pixel_values"][0]
    assert not np.array_equal(last, first)
    assert np.array_equal(image_processor(array, input_data_format="channels_last")["pixel_values"][0], last)
    for given in (array, torch.from_numpy(array)):
        assert np.array_equal(image_processor(given, input_data_format="channels_first")["pixel_values"][0], first)
    gray = np.zeros((5, 6), np.uint8)
    assert image_processor(gray, input_data_format="channels_first")["pixel_values"][0].shape == (3, 48, 48)
    with pytest.raises(ValueError, match=r"found an array .*\(40, 60, 3\) with input_data_format 'channels_first'"):
        image_processor(np.zeros((40, 60, 3), np.uint8), input_data_format="channels_first")


# Results


@pytest.fixture
def outputs():
    maps = torch.zeros(2, 48, 48)
    maps[1, :24] = 0.8
    return ViP2ClipAnomalyDetectionOutput(scores=torch.tensor([0.5, 0.75]), anomaly_maps=maps)


def test_post_processing(image_processor, outputs):
    normal, anomalous = image_processor.post_process_anomaly_detection(outputs, target_sizes=[(40, 60), (96, 10)])
    assert (normal["score"], normal["label"]) == (0.5, "normal")  # not greater than the threshold
    assert (anomalous["score"], anomalous["label"]) == (0.75, "anomalous")
    assert normal["anomaly_map"].shape == normal["mask"].shape == (40, 60)
    assert anomalous["anomaly_map"].shape == (96, 10)
    assert anomalous["anomaly_map"].dtype == torch.float32
    assert anomalous["mask"].dtype == torch.bool
    assert not normal["mask"].any()
    assert anomalous["mask"][:47].all()
    assert not anomalous["mask"][49:].any()


def test_post_processing_without_sizes_and_with_thresholds(image_processor, outputs):
    results = image_processor.post_process_anomaly_detection(outputs, threshold=0.8)
    assert [r["label"] for r in results] == ["normal", "normal"]
    assert results[1]["anomaly_map"].shape == (48, 48)
    assert not results[1]["mask"].any()  # 0.8 is not greater than 0.8
    results = image_processor.post_process_anomaly_detection(outputs, threshold=(0.4, 0.9))
    assert [r["label"] for r in results] == ["anomalous", "anomalous"]
    assert not results[1]["mask"].any()
    sizes = torch.tensor([[10, 20], [30, 40]])
    results = image_processor.post_process_anomaly_detection(outputs, target_sizes=sizes)
    assert results[1]["mask"].shape == (30, 40)


def test_bad_post_processing(image_processor, outputs):
    post_process = image_processor.post_process_anomaly_detection
    with pytest.raises(ValueError, match=r"threshold is 1.5; expected a number in \[0, 1\] or a pair"):
        post_process(outputs, threshold=1.5)
    with pytest.raises(ValueError, match="threshold"):
        post_process(outputs, threshold=(0.5, float("nan")))
    with pytest.raises(ValueError, match="one target size per image, found 1 for 2"):
        post_process(outputs, target_sizes=[(4, 4)])
    for wrong in ("high", (0.1, 0.2, 0.3), [0.5]):
        with pytest.raises(ValueError, match="threshold is"):
            post_process(outputs, threshold=wrong)
    outputs.scores[1] = float("nan")
    with pytest.raises(ValueError, match=r"position 1 is not finite.*bfloat16 or float32"):
        post_process(outputs)
    outputs.scores[1], outputs.anomaly_maps[0, 3, 3] = 0.5, float("inf")
    with pytest.raises(ValueError, match=r"position 0 is not finite"):
        post_process(outputs)


def test_results_are_independent_of_the_outputs(image_processor, outputs):
    outputs.anomaly_maps.requires_grad_()
    result = image_processor.post_process_anomaly_detection(outputs)[0]
    result["anomaly_map"].fill_(1)
    assert result["anomaly_map"].numpy().max() == 1
    assert outputs.anomaly_maps[0].max() == 0


@pytest.mark.parametrize("value", [0.1, 0.3, 0.5, 0.7, 1.0])
def test_a_score_or_pixel_equal_to_the_threshold_is_normal(image_processor, value):
    """Also for thresholds that are not a float32 number, in which maps are stored."""
    maps = torch.full((1, 2, 2), value)
    above = torch.nextafter(maps[0, 0, 0], torch.tensor(2.0))
    if value < 1:
        maps[0, 1, 1] = above
    outputs = {"scores": maps[0, :1, 0], "anomaly_maps": maps}
    exact = maps[0, 0, 0].item()
    for threshold in (exact, (exact, value), (np.float32(value), np.float64(value))):
        (result,) = image_processor.post_process_anomaly_detection(outputs, threshold=threshold)
        assert result["label"] == "normal"
        assert result["mask"].tolist() == [[False, False], [False, value < 1]]
    if value < 1:
        above_outputs = {"scores": above[None], "anomaly_maps": maps}
        (result,) = image_processor.post_process_anomaly_detection(above_outputs, threshold=exact)
        assert result["label"] == "anomalous"


def test_masks_are_those_of_the_resized_map(image_processor):
    """A map of two columns, 0 and 1, becomes 0, 1/4, 3/4, 1 with four columns. A resized mask would be half marked."""
    outputs = {"scores": torch.zeros(1), "anomaly_maps": torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])}
    for threshold, expected in ((0.2, [0, 1, 1, 1]), (0.25, [0, 0, 1, 1]), (0.5, [0, 0, 1, 1]), (0.75, [0, 0, 0, 1])):
        (result,) = image_processor.post_process_anomaly_detection(outputs, [(3, 4)], threshold)
        torch.testing.assert_close(result["anomaly_map"], torch.tensor([0, 0.25, 0.75, 1]).expand(3, 4))
        assert result["mask"].tolist() == [[bool(pixel) for pixel in expected]] * 3


def test_names_of_labels(image_processor, outputs):
    post_process = image_processor.post_process_anomaly_detection
    results = post_process(outputs, id2label={0: "ok", 1: "defect"})
    assert [result["label"] for result in results] == ["ok", "defect"]
    for wrong in ({0: "ok"}, {0: "ok", 1: "defect", 2: "unknown"}, {"0": "ok", "1": "defect"}):
        with pytest.raises(ValueError, match=r"id2label is .*expected names for 0 \(normal\) and 1 \(anomalous\)"):
            post_process(outputs, id2label=wrong)


def test_none_in_a_pair_of_thresholds_is_the_default(image_processor, outputs):
    results = image_processor.post_process_anomaly_detection(outputs, threshold=(None, 0.9))
    assert [result["label"] for result in results] == ["normal", "anomalous"]
    assert not results[1]["mask"].any()
    with pytest.raises(ValueError, match="threshold is True"):
        image_processor.post_process_anomaly_detection(outputs, threshold=True)
