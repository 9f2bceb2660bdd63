"""The small checkpoint that comes with the package."""

from pathlib import Path


_FOLDER = Path(__file__).parent / "checkpoints" / "vip2clip-tiny"


def bundled_checkpoint() -> Path:
    """
    Folder of `vip2clip-tiny`, for `from_pretrained` and the pipeline: a CLIP of 3 million weights with trained
    adapters, to try things out and to test with. Its README.md has its figures; checkpoints on CLIP ViT-L/14 are much
    better.

    Raises:
        OSError: the package was installed without it.
    """
    if not (_FOLDER / "model.safetensors").is_file():
        raise OSError(f"The bundled checkpoint is missing from {str(_FOLDER)!r}; install vip2clip_hf again.")
    return _FOLDER


__all__ = ["bundled_checkpoint"]
