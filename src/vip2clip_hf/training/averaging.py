"""Average the weights of the adapters over the last steps of a training."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..models.vip2clip.modeling_vip2clip import ViP2ClipForAnomalyDetection
from ..utils.files import write_atomically


logger = logging.get_logger(__name__)
AVERAGE_FILE = "averaged_weights.safetensors"


class WeightAveraging(TrainerCallback):
    """
    Average the weights of the adapters over all optimizer steps after a number of epochs, and use the average at the
    end of training.

    During training, the weights themselves are trained, saved and evaluated. The average is computed in float64, on
    devices without it in float32. Every process computes the same average, because all have the same weights.

    Args:
        model ([`ViP2ClipForAnomalyDetection`]): the model, not wrapped. Its weights are replaced at the end.
        start (`float`): number of epochs before the average begins. 1 averages from the first step of the second
            epoch.
    """

    def __init__(self, model: ViP2ClipForAnomalyDetection, start: float) -> None:
        self.model, self.start = model, start
        self.count, self.mean = 0, dict[str, torch.Tensor]()

    def reset(self) -> None:
        """Forget the average of an earlier training."""
        self.count, self.mean = 0, {}

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        # The epoch after the step: the first step of the second epoch ends after 1.
        if (state.epoch or 0) <= self.start + 1e-6:
            return
        self.count += 1
        for name, weight in self._weights().items():
            if self.count == 1:
                self.mean[name] = weight.detach().to(_precision(weight.device), copy=True)
            else:
                mean = self.mean[name]
                mean.add_((weight.detach().to(mean.dtype) - mean) / self.count)

    @torch.no_grad()
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.count == 0:
            logger.warning(
                f"Training stopped at epoch {state.epoch or 0:g}, before average_weights_from={self.start:g}: the "
                "weights of the last step are kept."
            )
            return
        for name, weight in self._weights().items():
            weight.copy_(self.mean[name])

    def save(self, folder: str | os.PathLike) -> None:
        """
        Write the average to a checkpoint.

        Args:
            folder (`str` or `os.PathLike`): the checkpoint.

        Raises:
            OSError: if the file cannot be written.
        """
        metadata = {"count": str(self.count), "start": repr(float(self.start))}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.mean.items()}
        write_atomically(Path(folder, AVERAGE_FILE), save(tensors, metadata))

    def load(self, folder: str | os.PathLike, epoch: float) -> None:
        """
        Read the average from a checkpoint.

        Args:
            folder (`str` or `os.PathLike`): the checkpoint.
            epoch (`float`): epoch of the checkpoint.

        Raises:
            OSError: if the file is damaged.
            ValueError: if steps before the checkpoint belong to the average, but it does not contain them.
        """
        self.reset()
        path = Path(folder, AVERAGE_FILE)
        if path.is_file():
            try:
                with safe_open(path, framework="pt") as file:
                    metadata = file.metadata() or {}
                    count, start = int(metadata["count"]), float(metadata["start"])
                    mean = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            except (SafetensorError, KeyError, ValueError) as error:
                raise OSError(f"{str(path)!r} is damaged ({error}); resume from another checkpoint.") from error
            if start == self.start and (count == 0 or set(mean) == set(self._weights())):
                weights = self._weights()
                devices = {name: weights[name].device for name in mean}
                self.count = count
                self.mean = {n: t.to(device=devices[n], dtype=_precision(devices[n])) for n, t in mean.items()}
                return
        if epoch > self.start + 1e-6:
            raise ValueError(
                f"{os.fspath(folder)!r} was saved at epoch {epoch:g} and does not contain the average of the weights "
                f"from epoch {self.start:g} on; expected average_weights_from of at least {epoch:g}, or the value the "
                "run was started with."
            )

    def _weights(self) -> dict[str, torch.nn.Parameter]:
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}


def _precision(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


__all__ = ["AVERAGE_FILE", "WeightAveraging"]
