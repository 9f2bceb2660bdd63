"""Origin of a checkpoint: its training datasets and its CLIP backbone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but exported lazily

from .checkpoint_files_vip2clip import CheckpointFile


BACKBONE_DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass
class _BackboneOrigin(CheckpointFile):
    """Fields of both files: Hub id and commit of the CLIP backbone."""

    backbone_id: str | None = None
    backbone_revision: str | None = None

    def __post_init__(self) -> None:
        self.check_values()

    def check_values(self) -> None:
        """
        Check every value.

        Raises:
            ValueError: if a value is not allowed.
        """
        if self.backbone_revision is not None and not isinstance(self.backbone_revision, str):
            raise ValueError(f"backbone_revision is {self.backbone_revision!r}; expected a string.")
        if self.backbone_id is None:
            return
        try:
            validate_repo_id(self.backbone_id)
        except HFValidationError as error:
            raise ValueError(
                f"backbone_id is {self.backbone_id!r}; expected a Hub id such as 'openai/clip-vit-base-patch16', "
                "not a path."
            ) from error


@dataclass
class Provenance(_BackboneOrigin):
    """
    Origin of a checkpoint. It is stored in `provenance.json`, next to `config.json`. It does not change any result.

    Args:
        backbone_id, backbone_revision (`str`, *optional*):
            Hub id and commit of the CLIP checkpoint the model was built from. Never a local path.
        training_sets (`list[dict[str, Any]]`, *optional*, defaults to an empty list):
            Datasets the adapters were trained on, as returned by [`vip2clip_hf.data.describe_training_set`]: name,
            benchmark, split, categories, counts, and hashes of all images. Evaluating on one of them logs a warning.
        backbone_attribution (`str`, *optional*):
            Origin and licence of the weights of the backbone, for the model card, if its licence demands attribution.
            Checkpoints that are derived from this one keep it.
        training_recorded (`bool`, defaults to `True`):
            Whether `training_sets` contains all training data. False if the weights were changed without adding to
            it, for example by a plain `Trainer`, and for converted checkpoints: results are then not known to be
            zero-shot.

    Raises:
        ValueError: if a value is not allowed.

    Example:

    ```python
    >>> from vip2clip_hf import ViP2ClipForAnomalyDetection

    >>> model = ViP2ClipForAnomalyDetection.from_pretrained("path/to/checkpoint")
    >>> [entry["name"] for entry in model.provenance.training_sets]
    ['mvtec']
    ```
    """

    file_name: ClassVar[str] = "provenance.json"

    training_sets: list[dict[str, Any]] = field(default_factory=list)
    backbone_attribution: str | None = None
    training_recorded: bool = True

    def to_dict(self) -> dict[str, Any]:
        """
        Convert to a dict that can be saved as JSON.

        Returns:
            `dict[str, Any]`: the fields. Without `training_recorded` if it is True and without `backbone_attribution`
            if it is not set, as in earlier versions.
        """
        content = super().to_dict()
        if self.backbone_attribution is None:
            del content["backbone_attribution"]
        if self.training_recorded:
            del content["training_recorded"]
        return content

    def check_values(self) -> None:
        """Check every value. Raises a `ValueError` if one is not allowed."""
        super().check_values()
        if not isinstance(self.training_recorded, bool):
            raise ValueError(f"training_recorded is {self.training_recorded!r}; expected True or False.")
        if self.backbone_attribution is not None and not isinstance(self.backbone_attribution, str):
            raise ValueError(f"backbone_attribution is {self.backbone_attribution!r}; expected a string.")
        found = self.training_sets
        if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
            raise ValueError(f"training_sets is {found!r}; expected a list of dicts.")

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Convert the fields that `config.json` of version 0.1 contains."""
        names = ("backbone_id", "backbone_revision", "training_sets")
        return {name: config[name] for name in names if config.get(name) is not None}


@dataclass
class BackboneReference(_BackboneOrigin):
    """
    CLIP backbone of an adapters-only checkpoint. It is stored in `backbone.json`, next to `config.json`. A checkpoint
    with this file contains only the adapters.

    The file is not called `adapter_config.json`, as in PEFT: transformers then looks for adapters of PEFT and loads
    the backbone instead of the model.

    Args:
        backbone_id, backbone_revision (`str`, *optional*):
            Hub id and commit of the backbone. `None` if it is not on the Hub.
        checksum (`str`, *optional*):
            Checksum of the weights of the backbone, see [`backbone_checksum`].
        dtype (`str`, defaults to `"float32"`):
            Dtype that the checksum was computed in.

    Raises:
        ValueError: if a value is not allowed.
    """

    file_name: ClassVar[str] = "backbone.json"

    checksum: str | None = None
    dtype: str = "float32"

    def check_values(self) -> None:
        """Check every value. Raises a `ValueError` if one is not allowed."""
        super().check_values()
        if self.checksum is not None and not isinstance(self.checksum, str):
            raise ValueError(f"checksum is {self.checksum!r}; expected a string.")
        if self.dtype not in BACKBONE_DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; expected one of {', '.join(BACKBONE_DTYPES)}.")

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Convert the fields that `config.json` of version 0.1 contains. `None` for a complete checkpoint."""
        if not config.get("adapters_only"):
            return None
        return {
            "backbone_id": config.get("backbone_id"),
            "backbone_revision": config.get("backbone_revision"),
            "checksum": config.get("backbone_checksum"),
            "dtype": config.get("backbone_dtype") or "float32",
        }


__all__ = ["BackboneReference", "Provenance"]
