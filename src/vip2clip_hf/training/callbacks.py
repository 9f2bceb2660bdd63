"""Callbacks of [`ViP2ClipTrainer`]."""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)


class TrainingHooks(TrainerCallback):
    """
    Call functions at the beginning of training and of each epoch.

    Args:
        on_begin (`Callable[[int], None]`): called with the step at which training begins.
        on_epoch (`Callable[[int], None]`): called with the number of the epoch, from 0. Used to set the epoch of the
            sampler, which `Trainer` does not do in all cases.
    """

    def __init__(self, on_begin: Callable[[int], None], on_epoch: Callable[[int], None]) -> None:
        self.on_begin, self.on_epoch = on_begin, on_epoch

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.on_begin(state.global_step)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.on_epoch(math.floor((state.epoch or 0) + 1e-6))


class _LogToStderr(TrainerCallback):
    """Mixin: a callback of transformers logs to stderr, because stdout is for results."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            super().on_log(*args, **kwargs)


class LossProgress(_LogToStderr, ProgressCallback):
    """
    Show the progress bar of transformers with the loss.

    Args:
        last_loss (`Callable[[], float | torch.Tensor]`): returns the loss of the last batch.
    """

    def __init__(self, last_loss: Callable[[], float | torch.Tensor]) -> None:
        super().__init__()
        self.last_loss, self._shown_at = last_loss, 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_step_end(args, state, control, **kwargs)
        # At most once per second, because reading the loss waits for the device.
        bar: Any = self.training_bar  # transformers sets it to None until training begins
        if bar is not None and time.monotonic() - self._shown_at > 1:
            bar.set_postfix(loss=f"{float(self.last_loss()):.3f}", refresh=False)
            self._shown_at = time.monotonic()


class LogPrinter(_LogToStderr, PrinterCallback):
    """Print the logs to stderr if the progress bar is off."""


def replace_loggers(trainer: Trainer, last_loss: Callable[[], float | torch.Tensor]) -> None:
    """
    Replace the progress bar and the printer of transformers by those of this module.

    Args:
        trainer (`Trainer`): the trainer; changed in place. Callbacks of other classes are kept.
        last_loss (`Callable[[], float | torch.Tensor]`): returns the loss of the last batch.
    """
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback) is ProgressCallback:
            trainer.remove_callback(callback)
            trainer.add_callback(LossProgress(last_loss))
        elif type(callback) is PrinterCallback:
            trainer.remove_callback(callback)
            trainer.add_callback(LogPrinter())


__all__ = ["LogPrinter", "LossProgress", "TrainingHooks", "replace_loggers"]
