"""Parameter groups: one learning rate for the prompts, another for the fine-grained perception."""

from typing import Any

from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection


def parameter_groups(
    model: ViP2ClipForAnomalyDetection, learning_rate: float, perception_learning_rate: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer: prompts and image-conditioned adapter, and the fine-grained perception where there is
    one."""
    perception = [p for p in model.fine_grained_perception.parameters() if p.requires_grad]
    is_perception = {id(parameter) for parameter in perception}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in is_perception]
    groups = [{"params": others, "lr": learning_rate}, {"params": perception, "lr": perception_learning_rate}]
    return [group for group in groups if group["params"]]


__all__ = ["parameter_groups"]
