"""What all stages share: sizes, tokens, and ViP²-CLIP around a CLIP."""

from transformers import CLIPModel

from vip2clip_hf import ViP2ClipForAnomalyDetection


# Crops the tower is taught on, and the grid of patches they have.
CROP, PATCH = 224, 16


# Blocks of the student that stand for blocks of a teacher with 12, and what the adapters then align.
STUDENT_BLOCKS, TEACHER_BLOCKS = (2, 3, 5, 6), (3, 6, 9, 12)


# Ids of the only four tokens that prompts of ViP²-CLIP need.
TOKENS = {"bos_token_id": 0, "normal_token_ids": (1,), "anomalous_token_ids": (2,), "eos_token_id": 3}


def wrap(clip: CLIPModel, layers: tuple[int, ...], image_size: int = CROP, **options) -> ViP2ClipForAnomalyDetection:
    """ViP²-CLIP around a CLIP: its vision features are what is taught and learned."""
    if clip.config.text_config.vocab_size == 4:
        options = {**TOKENS, "normal_word": None, "anomalous_word": None, **options}
    settings = {"variant": "release", "image_size": image_size, "feature_layers": layers, "top_k": 15, **options}
    return ViP2ClipForAnomalyDetection.from_clip(clip, **settings)
