"""Find the bundled checkpoint and the example photos."""

from pathlib import Path


_CHECKPOINT = Path(__file__).parent / "vip2clip-tiny"
_EXAMPLES = Path(__file__).parents[1] / "examples"


def bundled_checkpoint() -> Path:
    """
    Get the folder of the bundled checkpoint, `vip2clip-tiny`, for `from_pretrained`.

    The checkpoint is a CLIP model with 3 million parameters and trained adapters. It is intended for trying things out
    and for tests. A checkpoint on CLIP ViT-L/14 gives much better results. The measured results of the bundled
    checkpoint are in its README.md.

    Returns:
        `pathlib.Path`: the folder.

    Raises:
        OSError: if the package was installed without it.

    Example:

    ```python
    >>> from vip2clip_hf import AnomalyDetectionPipeline, bundled_checkpoint

    >>> detector = AnomalyDetectionPipeline.from_pretrained(bundled_checkpoint())
    ```
    """
    if not (_CHECKPOINT / "model.safetensors").is_file():
        raise OSError(f"The bundled checkpoint is missing from {str(_CHECKPOINT)!r}; reinstall vip2clip_hf.")
    return _CHECKPOINT


def example_photos() -> Path:
    """
    Get the folder of the example photos: two normal and two damaged hazelnuts.

    `*_mask.png` are the masks of the damaged hazelnuts. README.md contains source and licence of the photos.

    Returns:
        `pathlib.Path`: the folder.

    Raises:
        OSError: if the package was installed without them.
    """
    if not (_EXAMPLES / "README.md").is_file():
        raise OSError(f"The example photos are missing from {str(_EXAMPLES)!r}; reinstall vip2clip_hf.")
    return _EXAMPLES


__all__ = ["bundled_checkpoint", "example_photos"]
