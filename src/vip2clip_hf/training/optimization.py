"""Parameter groups of the optimizer."""

from typing import Any

from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection


def parameter_groups(
    model: ViP2ClipForAnomalyDetection, learning_rate: float, perception_learning_rate: float
) -> list[dict[str, Any]]:
    """
    Group the trainable parameters by learning rate.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model.
        learning_rate (`float`): learning rate of the prompts and the image-conditioned adapter.
        perception_learning_rate (`float`): learning rate of the fine-grained perception.

    Returns:
        `list[dict]`: parameter groups for a torch optimizer, with `params` and `lr`. A group without trainable
        parameters is omitted.
    """
    perception = [p for p in model.fine_grained_perception.parameters() if p.requires_grad]
    is_perception = {id(parameter) for parameter in perception}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in is_perception]
    groups = [{"params": others, "lr": learning_rate}, {"params": perception, "lr": perception_learning_rate}]
    return [group for group in groups if group["params"]]


__all__ = ["parameter_groups"]
