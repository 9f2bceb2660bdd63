"""Shared by all stages: sizes, tokens, and a ViP²-CLIP model on a CLIP backbone."""

from typing import Any

from transformers import CLIPModel

from vip2clip_hf import ViP2ClipConfig, ViP2ClipForAnomalyDetection
from vip2clip_hf.models.small_text_tower import VOCABULARY


# Side of the training crops of the tower, and of a patch, in pixels.
CROP, PATCH = 224, 16
# Blocks of the student, which are also the feature layers of the adapters, and the blocks of a 12-block teacher that
# they learn from.
STUDENT_BLOCKS, TEACHER_BLOCKS = (2, 3, 5, 6), (3, 6, 9, 12)
# Ids of the tokens in the vocabulary of a distilled tower. Prompts of ViP²-CLIP need no other tokens.
TOKENS = {
    "bos_token_id": 0, "normal_token_ids": (1,), "anomalous_token_ids": (2,), "eos_token_id": 3,
    "normal_word": None, "anomalous_word": None,
}  # fmt: skip


def state_words(variant: str) -> dict[str, Any]:
    """Return the state words of a variant, and their token ids in the vocabulary of the state words."""
    config = ViP2ClipConfig.from_variant(variant)
    settings: dict[str, Any] = {"bos_token_id": VOCABULARY["<start>"], "eos_token_id": VOCABULARY["<end>"]}
    for kind, word in (("normal", str(config.normal_word)), ("anomalous", str(config.anomalous_word))):
        settings.update({f"{kind}_word": word, f"{kind}_token_ids": (VOCABULARY[word],)})
    return settings


def wrap(
    clip: CLIPModel, layers: tuple[int, ...], image_size: int = CROP, **options: Any
) -> ViP2ClipForAnomalyDetection:
    """Create a ViP²-CLIP model on a CLIP backbone. Student and teacher are compared by its vision features."""
    vocab_size = clip.config.text_config.vocab_size
    if vocab_size == 4:
        options = {**TOKENS, **options}
    elif vocab_size == len(VOCABULARY):
        options = {**state_words(options.get("variant", "release")), **options}
    settings: dict[str, Any] = {
        "variant": "release",
        "image_size": image_size,
        "feature_layers": layers,
        "top_k": 15,
        **options,
    }
    return ViP2ClipForAnomalyDetection.from_clip(clip, **settings)
