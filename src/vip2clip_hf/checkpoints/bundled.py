"""Find the bundled checkpoint and the example photos."""

from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import CLIPModel


_CHECKPOINT = Path(__file__).parent / "vip2clip-tiny"
_EXAMPLES = Path(__file__).parents[1] / "examples"
# Stands for the backbone of the bundled checkpoint where a CLIP is expected.
BUNDLED = "bundled"


def bundled_checkpoint() -> Path:
    """
    Get the folder of the bundled checkpoint, `vip2clip-tiny`, for `from_pretrained`.

    The checkpoint is an ImageNet ViT-Ti/16 with trained adapters. With references, it is a usable detector; zero-shot,
    it is intended for trying things out. Its README.md contains the measured results.

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
    Get the folder of the example photos: two normal and two damaged hazelnuts, and photos of toys.

    `*_mask.png` are the masks of the damaged hazelnuts. `toys/good` contains 20 photos of good toys, to use as
    references, and `toys/test` two good and three damaged toys. README.md contains sources and licences.

    Returns:
        `pathlib.Path`: the folder.

    Raises:
        OSError: if the package was installed without them.
    """
    if not (_EXAMPLES / "README.md").is_file():
        raise OSError(f"The example photos are missing from {str(_EXAMPLES)!r}; reinstall vip2clip_hf.")
    return _EXAMPLES


def bundled_backbone() -> "CLIPModel":
    """
    Load the frozen CLIP of the bundled checkpoint, to train other adapters. It knows the state words only, see
    [`state_word_tokenizer`].

    Returns:
        `CLIPModel`: the backbone in float32.

    Raises:
        OSError: if the package was installed without the checkpoint.
    """
    from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection

    return ViP2ClipForAnomalyDetection.from_pretrained(bundled_checkpoint(), references=None).clip


__all__ = ["BUNDLED", "bundled_backbone", "bundled_checkpoint", "example_photos"]
