"""Callbacks that tie the library's Trainer to ours."""

import contextlib
import math
import sys
import time
from collections.abc import Callable

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback


class TrainingHooks(TrainerCallback):
    """
    Calls a function when training begins and one when an epoch begins.

    Args:
        on_begin (`Callable[[int], None]`): called with the step at which training begins.
        on_epoch (`Callable[[int], None]`): called with the number of the epoch, from 0. What the library's Trainer
            sets on its sampler does not reach it on every path.
    """

    def __init__(self, on_begin: Callable[[int], None], on_epoch: Callable[[int], None]):
        self.on_begin, self.on_epoch = on_begin, on_epoch

    def on_train_begin(self, args, state, control, **kwargs):
        self.on_begin(state.global_step)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.on_epoch(math.floor((state.epoch or 0) + 1e-6))


class LossProgress(ProgressCallback):
    """
    The library's progress bar, with the loss.

    Args:
        last_loss (`Callable[[], float or torch.Tensor]`): loss of the last batch.
    """

    def __init__(self, last_loss: Callable[[], float | torch.Tensor]):
        super().__init__()
        self.last_loss, self._shown_at = last_loss, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        # Reading the loss waits for the device: once a second is enough.
        if state.is_world_process_zero and time.monotonic() - self._shown_at > 1:
            self.training_bar.set_postfix(loss=f"{float(self.last_loss()):.3f}", refresh=False)
            self._shown_at = time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            super().on_log(args, state, control, logs=logs, **kwargs)


class LogPrinter(PrinterCallback):
    """Prints the logs where there is no progress bar, to stderr."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        with contextlib.redirect_stdout(sys.stderr):
            super().on_log(args, state, control, logs=logs, **kwargs)


__all__ = ["LogPrinter", "LossProgress", "TrainingHooks"]
