"""Write one complete checkpoint folder: weights, configuration, image processor, code, model card. Publish it."""

import copy
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi

from .backbone_vip2clip import backbone_checksum
from .image_processing_vip2clip import ViP2ClipImageProcessor
from .modeling_vip2clip import ViP2ClipForAnomalyDetection


# The files that make a checkpoint work where this package is not installed.
CODE_FILES = tuple(
    Path(__file__).with_name(f"{name}.py")
    for name in (
        "adapters_vip2clip",
        "backbone_vip2clip",
        "configuration_vip2clip",
        "image_processing_vip2clip",
        "loss_vip2clip",
        "maps_vip2clip",
        "modeling_vip2clip",
        "pipeline_anomaly_detection",
    )
)
AUTO_MAP = {
    "AutoConfig": "configuration_vip2clip.ViP2ClipConfig",
    "AutoModel": "modeling_vip2clip.ViP2ClipForAnomalyDetection",
}
PROCESSOR_AUTO_MAP = {"AutoImageProcessor": "image_processing_vip2clip.ViP2ClipImageProcessor"}
CUSTOM_PIPELINES = {
    "anomaly-detection": {
        "impl": "pipeline_anomaly_detection.AnomalyDetectionPipeline",
        "pt": ["AutoModel"],
        "type": "image",
    }
}
_WEIGHT_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


def save_checkpoint(
    model: ViP2ClipForAnomalyDetection,
    image_processor: ViP2ClipImageProcessor,
    folder: str | os.PathLike,
    *,
    adapters_only: bool = False,
    push_to_hub: bool | str = False,
    token: str | bool | None = None,
    private: bool | None = None,
    commit_message: str = "Upload ViP²-CLIP checkpoint",
    max_shard_size: int | str = "5GB",
) -> Path:
    """
    Write a folder that loads with `from_pretrained`, with or without this package installed.

    The files are written aside first and then moved into place one by one: when anything fails before that, an
    existing folder stays as it was. Other files in the folder are left alone.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]):
            The model.
        image_processor ([`ViP2ClipImageProcessor`]):
            Its image processor; must produce images of the model's `image_size`.
        folder (`str` or `os.PathLike`):
            Where to write.
        adapters_only (`bool`, defaults to `False`):
            Leave out the frozen CLIP (at ViT-L/14 about 17 MB instead of 1.7 GB). The folder then states the Hub id
            and revision of its CLIP, where known, and the checksum of the weights; loading fetches and compares them.
        push_to_hub (`bool` or `str`, defaults to `False`):
            Publish the folder: `True` under its own name, a string as that repository (`"org/name"`).
        token, private, commit_message:
            As in `huggingface_hub.HfApi.create_repo` and `upload_folder`.
        max_shard_size (`int` or `str`, defaults to `"5GB"`):
            Size above which the weights are split over several files.

    Returns:
        `pathlib.Path`: the folder.

    Raises:
        ValueError: the image processor does not fit the model.
        OSError: the folder cannot be written.
    """
    expected = {"height": model.config.image_size, "width": model.config.image_size}
    found = {name: value for name, value in dict(image_processor.size).items() if value is not None}
    if found != expected:
        raise ValueError(
            f"The image processor makes images of size {found}, the model takes {expected}; use "
            f"ViP2ClipImageProcessor(size={model.config.image_size})."
        )
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OSError(f"{folder} is a file; expected a folder or a path that does not exist yet.")
    folder.parent.mkdir(parents=True, exist_ok=True)

    # Beside a new folder, inside an existing one: in both cases moving is a rename on the same disk.
    staged = Path(tempfile.mkdtemp(prefix=".vip2clip-", dir=folder if folder.exists() else folder.parent))
    try:
        _write(model, image_processor, staged, adapters_only, max_shard_size)
        names = sorted(path.name for path in staged.iterdir())
        if folder.exists():
            # A file of weights left from an earlier, differently split checkpoint would be loaded instead.
            for path in folder.iterdir():
                if _WEIGHT_FILE.fullmatch(path.name) and path.name not in names:
                    path.unlink()
            for name in names:
                os.replace(staged / name, folder / name)
            staged.rmdir()
        else:
            staged.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
            staged.rename(folder)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise

    if push_to_hub:
        api = HfApi(token=token)
        repo_id = api.create_repo(
            push_to_hub if isinstance(push_to_hub, str) else folder.resolve().name, private=private, exist_ok=True
        ).repo_id
        api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=names, commit_message=commit_message)
    return folder


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _write(model, image_processor, folder: Path, adapters_only: bool, max_shard_size: int | str):
    model.save_pretrained(
        folder,
        state_dict=model.adapter_state_dict() if adapters_only else None,
        max_shard_size=max_shard_size,
    )
    image_processor.save_pretrained(folder)
    config_entries = {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES, "adapters_only": adapters_only}
    if adapters_only:
        config_entries["backbone_checksum"] = backbone_checksum(model.clip.state_dict(), model.clip.dtype)
        config_entries["backbone_dtype"] = str(model.clip.dtype).removeprefix("torch.")
    _add_to_json(folder / "config.json", config_entries)
    _add_to_json(folder / "preprocessor_config.json", {"auto_map": PROCESSOR_AUTO_MAP})
    for path in CODE_FILES:
        shutil.copyfile(path, folder / path.name)
    for path in folder.iterdir():  # some writers make files that only their owner can read
        path.chmod(0o666 & ~_umask())
    config = copy.deepcopy(model.config)
    config.adapters_only = adapters_only
    (folder / "README.md").write_text(model_card(config), encoding="utf-8")


def _add_to_json(path: Path, entries: dict):
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **entries}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def model_card(config) -> str:
    """Text of the README.md of a checkpoint: what it is and how to use it."""
    backbone = config.backbone_id or "a CLIP checkpoint that is not named"
    base_model = f"base_model: {config.backbone_id}\n" if config.backbone_id else ""
    layers = ", ".join(map(str, config.feature_layers))
    content = (
        f"The folder holds the adapters only; the frozen backbone, {backbone}, is fetched when the model is loaded."
        if config.adapters_only
        else f"The folder holds the adapters and the frozen backbone, {backbone}."
    )
    return f"""---
library_name: transformers
{base_model}tags:
- anomaly-detection
- zero-shot
- vip2clip
---

# ViP²-CLIP

Zero-shot visual anomaly detection: score, decision and map for photos of things the model was not trained on.

{content} Images of {config.image_size} x {config.image_size} pixels, feature layers {layers}, top-k {config.top_k}.

```python
from vip2clip_hf import AnomalyDetectionPipeline

detector = AnomalyDetectionPipeline.from_pretrained("this repository")
result = detector("photo.jpg", heatmap=True)
print(result["score"], result["label"])
```

Without the package, running the code in this repository:

```python
from transformers import pipeline

detector = pipeline("anomaly-detection", model="this repository", trust_remote_code=True)
```

## Citation

Ziteng Yang, Jingzehua Xu, Yanshu Li, Zepeng Li, Yeqiang Wang, Xinghui Li: ViP²-CLIP: Visual-Perception Prompting with
Unified Alignment for Zero-Shot Anomaly Detection. arXiv:2505.17692, 2025.
"""


__all__ = ["model_card", "save_checkpoint"]
