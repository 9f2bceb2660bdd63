"""The handler of Inference Endpoints: loaded from the checkpoint folder, as the endpoint does."""

import base64
import importlib.util
import io
import json
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from helpers.hub_stub import running_hub
from helpers.processes import run_program
from helpers.tiny import TINY, tiny_config
from vip2clip_hf import (
    AnomalyDetectionPipeline,
    ViP2ClipForAnomalyDetection,
    ViP2ClipImageProcessor,
    __version__,
    push_checkpoint,
    save_checkpoint,
    write_endpoint,
)
from vip2clip_hf.baselines.methods import create_model
from vip2clip_hf.baselines.saving import write_baseline
from vip2clip_hf.cli.entry import app
from vip2clip_hf.models.vip2clip.results_vip2clip import decode_result


pytestmark = pytest.mark.xdist_group("endpoint")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = ViP2ClipForAnomalyDetection(tiny_config()).eval()
    processor = ViP2ClipImageProcessor(size=TINY["image_size"])
    return save_checkpoint(model, processor, tmp_path_factory.mktemp("hub") / "checkpoint", with_endpoint=True)


def load_handler(folder):
    """What the server of the endpoint does: the folder is on the path, and the module is called handler."""
    spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
    sys.path.insert(0, str(folder))
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module.EndpointHandler(str(folder))


@pytest.fixture(scope="module")
def handler(folder):
    return load_handler(folder)


@pytest.fixture
def content(photo) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, format="PNG")
    return buffer.getvalue()


def test_forms_of_images(handler, folder, photo, content):
    expected = AnomalyDetectionPipeline.from_pretrained(folder, device="cpu")(photo, regions=True)
    text = base64.b64encode(content).decode()
    forms = [content, bytearray(content), text, f"data:image/png;base64,{text}", photo]
    found = handler({"inputs": forms})
    assert len(found) == len(forms)
    assert all(one == found[0] for one in found)
    for form in forms:
        assert handler({"inputs": form}) == found[0]
    assert handler({"inputs": text, "parameters": None, "options": {"wait_for_model": True}}) == found[0]
    assert json.loads(json.dumps(found[0], allow_nan=False)) == found[0]
    assert set(found[0]) == {"score", "label", "size", "regions", "mask"}
    assert found[0]["score"] == pytest.approx(expected["score"], abs=1e-6)
    decoded = decode_result(found[0])
    assert (decoded["mask"] == expected["mask"]).all()
    assert decoded["regions"] == expected["regions"]


def test_parameters(handler, content):
    def ask(**parameters):
        return handler({"inputs": content, "parameters": parameters})

    assert ask(threshold=0)["label"] == "anomalous"
    assert ask(threshold="1.0")["label"] == "normal"  # in the address of a request
    assert "regions" not in ask(regions=False)
    assert "regions" not in ask(regions="False")
    assert "mask" not in ask(mask="none")
    found = ask(mask="png", anomaly_map="png", heatmap=True, tile_size=32)
    for name, mode in (("mask", "L"), ("anomaly_map", "I;16"), ("heatmap", "RGB")):
        picture = Image.open(io.BytesIO(base64.b64decode(found[name]["png"])))
        assert (picture.size, picture.mode) == ((60, 40), mode)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PNG", "The request is bytes; expected an object with inputs."),
        ({"image": ""}, "The request is ['image']; expected an object with inputs."),
        ({"inputs": "", "heatmap": True}, "The request has 'heatmap'; expected inputs and parameters."),
        ({"inputs": []}, "inputs has 0 images; expected 1 to 64."),
        ({"inputs": [b""] * 65}, "inputs has 65 images"),
        ({"inputs": 5}, "An image is int; expected the file as base64, or bytes."),
        ({"inputs": None}, "An image is NoneType"),
        ({"inputs": ""}, "'' is not base64; expected the whole file of an image"),
        ({"inputs": "https://example.org/photo.jpg"}, "'https://example.org/photo.jpg' is not base64"),
        ({"inputs": "/etc/passwd"}, "'/etc/passwd' is not base64"),
        ({"inputs": "file:///etc/passwd"}, "is not base64"),
        ({"inputs": "data:image/png;base64,????"}, "is not valid base64"),
        ({"inputs": base64.b64encode(b"no image at all").decode()}, "cannot be read as an image"),
        ({"inputs": b""}, "is empty; expected an image file"),
        ({"inputs": b"1", "parameters": []}, "parameters is '[]'; expected an object."),
        ({"inputs": b"1", "parameters": {"references": "/"}}, "The parameter 'references' is not known; expected"),
        ({"inputs": b"1", "parameters": {"timeout": 5}}, "The parameter 'timeout' is not known"),
        ({"inputs": b"1", "parameters": {"mask": "gif"}}, "mask is 'gif'; expected rle, png or none."),
        ({"inputs": b"1", "parameters": {"heatmap": 1}}, "heatmap is '1'; expected true or false."),
        ({"inputs": b"1", "parameters": {"top_k": "many"}}, "top_k is 'many'; expected a number, true or false."),
    ],
)
def test_errors_are_json(handler, data, message):
    found = handler(data)
    assert set(found) == {"error"}
    assert message in found["error"]
    json.dumps(found)


def test_more_errors(handler, content, monkeypatch, caplog):
    found = handler({"inputs": [content, b"damaged", content]})
    assert ["error" in one for one in found] == [False, True, False]
    assert "threshold is 2; expected" in handler({"inputs": content, "parameters": {"threshold": 2}})["error"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert "is too large; expected at most 2,000 pixels" in handler({"inputs": content})["error"]
    with Image.open(io.BytesIO(content)) as opened:
        assert handler({"inputs": opened})["error"] == "The image has 60 x 40 pixels; expected at most 2,000."
    monkeypatch.undo()

    def fail(*args, **kwargs):
        raise RuntimeError("CUDA out of memory.\nDetails")

    monkeypatch.setattr(handler.detector.model, "forward", fail)
    assert handler({"inputs": content}) == {"error": "RuntimeError: CUDA out of memory."}
    assert "A request failed." in caplog.text


def test_files(folder, tmp_path):
    requirements = (folder / "requirements.txt").read_text()
    assert requirements.splitlines()[1:] == [f"vip2clip_hf=={__version__}", "scipy>=1.11"]
    (folder / "requirements.txt").write_text("my-package\n")
    write_endpoint(folder)
    assert (folder / "requirements.txt").read_text() == "my-package\n"  # kept
    (folder / "requirements.txt").write_text(requirements)
    write_endpoint(folder, "vip2clip_hf @ https://example.org/vip2clip_hf-1-py3-none-any.whl")
    assert "vip2clip_hf @ https://example.org/" in (folder / "requirements.txt").read_text()
    with pytest.raises(ValueError, match=r"endpoint_requirement is 'a\\nb'; expected one line"):
        write_endpoint(folder, "a\nb")
    with pytest.raises(OSError, match=r"does not contain a config\.json that can be read"):
        write_endpoint(tmp_path)
    write_baseline(create_model("april-gan", "bundled", image_size=64), ViP2ClipImageProcessor(size=64), tmp_path)
    with pytest.raises(OSError, match="There is no handler for other methods"):
        push_checkpoint(tmp_path, "org/part", with_endpoint=True)
    write_endpoint(folder)


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield hub


def test_push(folder, hub):
    (folder / "secret.txt").write_text("not to be published")
    for option in ((), ("--private", "--with-endpoint", "--json", "--message", "With a handler")):
        done = CliRunner().invoke(app, ["push", str(folder), "org/part", *option])
        assert done.exit_code == 0, done.exception
        published = hub.repositories["org/part"]
        assert "secret.txt" not in published
        assert ("handler.py" in published) == ("requirements.txt" in published) == bool(option)
    assert hub.commits == ["Upload ViP²-CLIP checkpoint", "With a handler"]
    report = json.loads(done.stdout)
    assert (report["repository"], report["with_endpoint"]) == ("org/part", True)
    assert published["handler.py"] == (folder / "handler.py").read_bytes()
    push_checkpoint(folder, "org/part")
    assert published["handler.py"]  # kept
    hub.refuse = True
    done = CliRunner().invoke(app, ["push", str(folder), "org/part"])
    assert "403" in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent", "org/part"], "'absent' is not a folder; expected a checkpoint folder"),
        ([".", "org/part", "--endpoint-requirement", "x"], "can only be used with --with-endpoint"),
    ],
)
def test_wrong_arguments(arguments, message):
    done = CliRunner().invoke(app, ["push", *arguments])
    assert message in f"{done.output}{done.exception}"


SERVER = """
import base64, importlib.util, json, sys

folder, photo = sys.argv[1:]
spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
sys.path.insert(0, folder)
handler = importlib.util.module_from_spec(spec)
sys.modules["handler"] = handler
spec.loader.exec_module(handler)
answer = handler.EndpointHandler(folder)
content = open(photo, "rb").read()
print(json.dumps([answer({"inputs": content}), answer({"inputs": base64.b64encode(content).decode()})]))
"""


@pytest.mark.slow
def test_new_process(folder, content, tmp_path, handler):
    """No import of the package before the handler."""
    (tmp_path / "photo.png").write_bytes(content)
    done = run_program("-c", SERVER, str(folder), str(tmp_path / "photo.png"), cwd=tmp_path)
    first, second = json.loads(done.stdout)
    assert first == second == handler({"inputs": content})
