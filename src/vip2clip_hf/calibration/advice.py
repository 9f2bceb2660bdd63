"""What would help to find more defects."""

from typing import Any

from .detected import SYNTHETIC, Detection


# Fewer good photos than this are few: a threshold from more of them, and a comparison with more, is better.
FEW_PHOTOS = 50
# The width of the vision tower of CLIP ViT-B. Smaller ones see less.
SMALL_WIDTH = 768


def advice(
    detection: Detection | None,
    model: Any,
    *,
    num_good: int,
    has_references: bool,
    tile_size: int,
    photo_side: int | None,
) -> str | None:
    """
    Say what would help to find more defects.

    Args:
        detection ([`Detection`], *optional*): how many are found.
        model ([`ViP2ClipForAnomalyDetection`]): the model.
        num_good (`int`): number of photos of good parts.
        has_references (`bool`): whether photos are compared with photos of good parts.
        tile_size (`int`): side of the tiles, 0 without tiles.
        photo_side (`int`, *optional*): shorter side of the photos in pixels, if it is known.

    Returns:
        `str`, *optional*: one line. `None` if detection is good or unknown.
    """
    if detection is None or not detection.is_poor:
        return None
    side, width = model.config.image_size, model.config.clip_config.vision_config.hidden_size
    found = []
    if not has_references:
        found.append("compare with photos of good parts (vip2clip adapt)")
    if num_good < FEW_PHOTOS:
        found.append(f"use more photos of good parts (now {num_good})")
    if photo_side is not None and not tile_size and photo_side >= 2 * side:
        found.append(f"split the photos into tiles for small defects (--tile-size {max(side, photo_side // 3)})")
    if width < SMALL_WIDTH:
        found.append("use a checkpoint on CLIP ViT-L/14 (--model)")
    if detection.method == SYNTHETIC:
        found.append("choose the threshold with photos of defects (vip2clip adapt --defects)")
    else:
        found.append("train on photos of defects (vip2clip train)")
    return f"Many defects are missed. To find more: {'; '.join(found)}."


__all__ = ["advice"]
