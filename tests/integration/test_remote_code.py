"""Load a saved checkpoint in a new process without the package."""

import ast
import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers.tiny import TINY, change_weights
from vip2clip_hf import AnomalyDetectionPipeline, ReferenceBank, ViP2ClipForAnomalyDetection
from vip2clip_hf.checkpoints.saving import CODE_FILES
from vip2clip_hf.hub.publishing import save_checkpoint


ALLOWED = {"torch", "transformers", "huggingface_hub", "safetensors", "numpy", "PIL", "typing_extensions"}


def run(code: str, tmp_path, **variables: str) -> dict:
    """Run code in a new interpreter without vip2clip_hf and parse the last line it prints as JSON."""
    blocked = "import sys\nsys.modules['vip2clip_hf'] = None\nimport json\n"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", blocked + code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_checkpoint_loads_without_the_package(clip_folder, image_processor, tmp_path, photo, pixel_values):
    model = ViP2ClipForAnomalyDetection.from_clip(clip_folder, **TINY)
    change_weights(model.fine_grained_perception)
    save_checkpoint(model, image_processor, tmp_path / "full")
    save_checkpoint(model, image_processor, tmp_path / "adapters", adapters_only=True)
    photo.save(tmp_path / "photo.png")
    save_file({"pixel_values": pixel_values}, tmp_path / "input.safetensors")
    with torch.no_grad():
        expected = model(pixel_values)
        photo_score = model(**image_processor(photo, return_tensors="pt")).scores.item()
    found = run(
        """
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, pipeline

try:
    import vip2clip_hf
    raise SystemExit("the package can be imported")
except ImportError:
    pass
pixel_values = load_file("input.safetensors")["pixel_values"]
config = AutoConfig.from_pretrained("full", trust_remote_code=True)
model = AutoModel.from_pretrained("full", trust_remote_code=True)
adapters = AutoModel.from_pretrained("adapters", trust_remote_code=True, backbone="clip")
processor = AutoImageProcessor.from_pretrained("full", trust_remote_code=True)
named = pipeline("anomaly-detection", model="full", trust_remote_code=True, device="cpu")
inferred = pipeline(model="full", trust_remote_code=True, device="cpu")
fresh = AutoModel.from_config(config, trust_remote_code=True)
with torch.no_grad():
    save_file({"maps": model(pixel_values).anomaly_maps, "adapters": adapters(pixel_values).anomaly_maps},
              "output.safetensors")
result = named("photo.png", heatmap=True)
print(json.dumps({
    "module": type(model).__module__,
    "trainable": sorted({n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}),
    "clip_training": model.train().clip.training,
    "size": processor.size["height"],
    "scores": [result["score"], inferred("photo.png")["score"]],
    "heatmap": result["heatmap"].size,
    "fresh": sum(p.numel() for p in fresh.parameters()),
}))
""",
        tmp_path,
    )
    assert found["module"].startswith("transformers_modules")
    assert found["trainable"] == ["fine_grained_perception", "image_conditioned_adapter", "prompt_learner"]
    assert found["clip_training"] is False
    assert found["size"] == 48
    assert found["scores"] == pytest.approx([photo_score] * 2, abs=1e-6)
    assert found["heatmap"] == [60, 40]
    assert found["fresh"] == sum(p.numel() for p in model.parameters())
    maps = load_file(tmp_path / "output.safetensors")
    torch.testing.assert_close(maps["maps"], expected.anomaly_maps)
    torch.testing.assert_close(maps["adapters"], expected.anomaly_maps)


@pytest.mark.slow
def test_references_without_the_package(clip_folder, image_processor, tmp_path, photo):
    model = ViP2ClipForAnomalyDetection.from_clip(clip_folder, **TINY).eval()
    change_weights(model)
    model.references = ReferenceBank.from_images(model, image_processor, [photo, photo.rotate(90)])
    save_checkpoint(model, image_processor, tmp_path / "part")
    other = photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    other.save(tmp_path / "photo.png")
    photo.save(tmp_path / "good.png")
    detector = AnomalyDetectionPipeline(model=model, image_processor=image_processor, device="cpu")
    calls = ({}, {"references": None}, {"references": [photo]})
    expected = [detector(other, **options)["score"] for options in calls]
    assert len({round(score, 6) for score in expected}) == 3
    found = run(
        """
from PIL import Image
from transformers import pipeline

detector = pipeline("anomaly-detection", model="part", trust_remote_code=True, device="cpu")
calls = ({}, {"references": None}, {"references": [Image.open("good.png")]})
print(json.dumps({
    "scores": [detector("photo.png", **options)["score"] for options in calls],
    "references": [detector.references.checksum(), len(detector.references)],
}))
""",
        tmp_path,
    )
    assert found["scores"] == pytest.approx(expected, abs=1e-6)
    assert found["references"] == [model.references.checksum(), 2]


def test_imports_of_remote_code():
    """Files import each other only with `from .name import`, and otherwise only base dependencies."""
    names = {path.stem for path in CODE_FILES}
    for path in CODE_FILES:
        source = path.read_text(encoding="utf-8")
        for line in source.splitlines():
            assert not line.strip().startswith("from . import"), f"{path.name}: {line}"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= 1
                if node.level == 1:
                    assert node.module in names, f"{path.name} needs {node.module}, which is not shipped"
                    continue
                modules = [node.module]
            else:
                continue
            for module in modules:
                top = module.split(".")[0]
                assert top in ALLOWED | set(sys.stdlib_module_names), f"{path.name} imports {module}"
