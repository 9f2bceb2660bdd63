"""Types of what the pipeline takes, for type checkers and editors."""

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict


if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence
    from typing import IO

    import numpy.typing as npt
    import torch
    from PIL import Image
    from transformers import PreTrainedConfig, PreTrainedModel

    from .decision_config_vip2clip import DecisionConfig
    from .reference_bank_vip2clip import ReferenceBank

# One photo, or a row of a dataset with the column "image". The pipeline also takes the path of a folder and an array
# with four axes, and returns a list then. Types cannot tell them apart, so they count as one photo.
Photo: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | npt.NDArray[Any] | torch.Tensor | "
    "IO[bytes] | Mapping[str, Any]"
)
# A list of photos, of which pairs of image and label and rows of datasets are also accepted.
Photos: TypeAlias = "list[Any] | tuple[Any, ...]"
# Photos that are read one after another.
PhotoStream: TypeAlias = "Iterable[Any] | torch.utils.data.Dataset[Any]"


class CallOptions(TypedDict, total=False):
    """
    Keyword arguments of a call of [`AnomalyDetectionPipeline`], which describes them.

    Use it to pass options on: `options: CallOptions = {"threshold": 0.6}`, then `detector(photo, **options)`.
    """

    batch_size: int | None
    num_workers: int | None
    threshold: float | tuple[float | None, float | None] | None
    top_k: int | None
    heatmap: bool | None
    regions: bool | None
    tile_size: int | None
    tile_overlap: float | None
    timeout: float | None
    bit_depth: int | None
    page: int | None
    channel_order: Literal["rgb", "bgr"] | None
    references: "ReferenceBank | str | os.PathLike[str] | Sequence[Any] | None"


class ModelOptions(TypedDict, total=False):
    """
    Keyword arguments of [`AnomalyDetectionPipeline.from_pretrained`] for the model: those of
    [`ViP2ClipForAnomalyDetection.from_pretrained`] and of the Hub.
    """

    dtype: "str | torch.dtype"
    backbone: "PreTrainedModel | str | os.PathLike[str] | None"
    decision: "DecisionConfig | None"
    config: "PreTrainedConfig | str | os.PathLike[str] | None"
    image_size: int
    attn_implementation: str
    device_map: Any
    revision: str
    token: str | bool | None
    cache_dir: "str | os.PathLike[str] | None"
    force_download: bool
    local_files_only: bool
    proxies: dict[str, str] | None
    subfolder: str
    trust_remote_code: bool
    code_revision: str | None


__all__ = ["CallOptions", "ModelOptions", "Photo", "PhotoStream", "Photos"]
