"""The small checkpoint and the example photos that come with the package."""

from pathlib import Path


_CHECKPOINT = Path(__file__).parent / "vip2clip-tiny"
_EXAMPLES = Path(__file__).parents[1] / "examples"


def bundled_checkpoint() -> Path:
    """
    Folder of `vip2clip-tiny`, for `from_pretrained` and the pipeline: a CLIP of 3 million weights with trained
    adapters, to try things out and to test with. Its README.md has its figures; checkpoints on CLIP ViT-L/14 are much
    better.

    Raises:
        OSError: the package was installed without it.
    """
    if not (_CHECKPOINT / "model.safetensors").is_file():
        raise OSError(f"The bundled checkpoint is missing from {str(_CHECKPOINT)!r}; install vip2clip_hf again.")
    return _CHECKPOINT


def example_photos() -> Path:
    """
    Folder of four example photos of hazelnuts, two of them damaged (`*_mask.png` marks where); its README.md says
    whose they are.

    Raises:
        OSError: the package was installed without them.
    """
    if not (_EXAMPLES / "README.md").is_file():
        raise OSError(f"The example photos are missing from {str(_EXAMPLES)!r}; install vip2clip_hf again.")
    return _EXAMPLES


__all__ = ["bundled_checkpoint", "example_photos"]
