"""
Texts of the prompts: states, such as "flawless {}", and templates, such as "a photo of a {}.".

The prompts of a class are `template.format(state.format(class_name))`, for each state, for each template. Sources:

- `single`: prompts of the row "CLIP" in AnomalyCLIP (arXiv:2310.18961).
- `imagenet`: the 80 templates of "Prompt engineering for ImageNet" (OpenAI CLIP), for a normal and an anomalous class.
- `april_gan`: states and templates of APRIL-GAN (arXiv:2305.17382).
- `winclip`: states of WinCLIP (arXiv:2303.14814), and its templates as in anomalib 2.7: one is there twice, two are
  missing.
- `winclip_complete`: the same, with "a" and "the" of all 11 templates, once each.
- `adaclip`: states and templates of AdaCLIP (arXiv:2407.15795).
- `state_words`: the words "good" and "damaged" alone, for text towers that know the state words only, such as that of
  the bundled backbone. It has no class name.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Ensemble(NamedTuple):
    """
    Texts of an ensemble of prompts.

    Args:
        normal_states, anomalous_states (`tuple[str, ...]`): states, with `{}` for the class, or without class.
        templates (`tuple[str, ...]`): templates, each with `{}` for the state.
    """

    normal_states: tuple[str, ...]
    anomalous_states: tuple[str, ...]
    templates: tuple[str, ...]


_NORMAL_STATES = (
    "{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect", "{} without damage",
)  # fmt: skip
_ANOMALOUS_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
_BROKEN_TOO = (_ANOMALOUS_STATES[0], "broken {}", *_ANOMALOUS_STATES[1:])
_IMAGENET_TEMPLATES = (
    "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.", "a photo of the hard to see {}.",
    "a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.", "a bad photo of the {}.",
    "a cropped photo of the {}.", "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
    "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.", "a dark photo of the {}.",
    "a drawing of a {}.", "a photo of my {}.", "the plastic {}.", "a photo of the cool {}.",
    "a close-up photo of a {}.", "a black and white photo of the {}.", "a painting of the {}.", "a painting of a {}.",
    "a pixelated photo of the {}.", "a sculpture of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
    "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.", "a blurry photo of the {}.",
    "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}.", "a {} in a video game.",
    "a photo of one {}.", "a doodle of a {}.", "a close-up photo of the {}.", "a photo of a {}.", "the origami {}.",
    "the {} in a video game.", "a sketch of a {}.", "a doodle of the {}.", "a origami {}.",
    "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}.", "a photo of the clean {}.",
    "a photo of a large {}.", "a rendition of a {}.", "a photo of a nice {}.", "a photo of a weird {}.",
    "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.", "a embroidered {}.",
    "a pixelated photo of a {}.", "itap of the {}.", "a jpeg corrupted photo of the {}.", "a good photo of a {}.",
    "a plushie {}.", "a photo of the nice {}.", "a photo of the small {}.", "a photo of the weird {}.",
    "the cartoon {}.", "art of the {}.", "a drawing of the {}.", "a photo of the large {}.",
    "a black and white photo of a {}.", "the plushie {}.", "a dark photo of a {}.", "itap of a {}.",
    "graffiti of the {}.", "a toy {}.", "itap of my {}.", "a photo of a cool {}.", "a photo of a small {}.",
    "a tattoo of the {}.",
)  # fmt: skip
_APRIL_GAN_TEMPLATES = (
    "a bad photo of a {}.", "a low resolution photo of the {}.", "a bad photo of the {}.",
    "a cropped photo of the {}.", "a bright photo of a {}.", "a dark photo of the {}.", "a photo of my {}.",
    "a photo of the cool {}.", "a close-up photo of a {}.", "a black and white photo of the {}.",
    "a bright photo of the {}.", "a cropped photo of a {}.", "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.", "a photo of the {}.", "a good photo of the {}.", "a photo of one {}.",
    "a close-up photo of the {}.", "a photo of a {}.", "a low resolution photo of a {}.", "a photo of a large {}.",
    "a blurry photo of a {}.", "a jpeg corrupted photo of the {}.", "a good photo of a {}.",
    "a photo of the small {}.", "a photo of the large {}.", "a black and white photo of a {}.",
    "a dark photo of a {}.", "a photo of a cool {}.", "a photo of a small {}.", "there is a {} in the scene.",
    "there is the {} in the scene.", "this is a {} in the scene.", "this is the {} in the scene.",
    "this is one {} in the scene.",
)  # fmt: skip
_WINCLIP_TEMPLATES = (
    "a cropped photo of the {}.", "a close-up photo of a {}.", "a close-up photo of the {}.",
    "a bright photo of a {}.", "a bright photo of the {}.", "a dark photo of the {}.", "a dark photo of a {}.",
    "a jpeg corrupted photo of the {}.", "a jpeg corrupted photo of the {}.", "a blurry photo of the {}.",
    "a blurry photo of a {}.", "a photo of a {}.", "a photo of the {}.", "a photo of a small {}.",
    "a photo of the small {}.", "a photo of a large {}.", "a photo of the large {}.",
    "a photo of the {} for visual inspection.", "a photo of a {} for visual inspection.",
    "a photo of the {} for anomaly detection.", "a photo of a {} for anomaly detection.",
)  # fmt: skip
_WINCLIP_COMPLETE_TEMPLATES = tuple(
    form.format(article, "{}")
    for form in (
        "a cropped photo of {} {}.", "a close-up photo of {} {}.", "a bright photo of {} {}.",
        "a dark photo of {} {}.", "a jpeg corrupted photo of {} {}.", "a blurry photo of {} {}.", "a photo of {} {}.",
        "a photo of {} small {}.", "a photo of {} large {}.", "a photo of {} {} for visual inspection.",
        "a photo of {} {} for anomaly detection.",
    )
    for article in ("a", "the")
)  # fmt: skip

_ADACLIP_TEMPLATES = (
    "a bad photo of a {}.", "a low resolution photo of the {}.", "a bad photo of the {}.",
    "a cropped photo of the {}.",
)  # fmt: skip

ENSEMBLES = {
    "single": Ensemble(("A photo of a normal {}",), ("A photo of an anomalous {}",), ("{}",)),
    "imagenet": Ensemble(("normal {}",), ("anomalous {}",), _IMAGENET_TEMPLATES),
    "april_gan": Ensemble(_NORMAL_STATES, _BROKEN_TOO, _APRIL_GAN_TEMPLATES),
    "winclip": Ensemble(_NORMAL_STATES, _ANOMALOUS_STATES, _WINCLIP_TEMPLATES),
    "winclip_complete": Ensemble(_NORMAL_STATES, _ANOMALOUS_STATES, _WINCLIP_COMPLETE_TEMPLATES),
    "adaclip": Ensemble(_NORMAL_STATES, _BROKEN_TOO, _ADACLIP_TEMPLATES),
    "state_words": Ensemble(("good",), ("damaged",), ("{}",)),
}


def build_prompts(states: Sequence[str], templates: Sequence[str], class_name: str) -> list[str]:
    """
    Write the prompts of a class.

    Args:
        states (`Sequence[str]`): states, with `{}` for the class, or without class.
        templates (`Sequence[str]`): templates, each with `{}` for the state.
        class_name (`str`): name of the class.

    Returns:
        `list[str]`: the prompts, all templates of the first state first.
    """
    # Not str.format: the name of a class may contain braces.
    described = [state.replace("{}", class_name, 1) for state in states]
    return [template.replace("{}", one, 1) for one in described for template in templates]


__all__ = ["ENSEMBLES", "Ensemble", "build_prompts"]
