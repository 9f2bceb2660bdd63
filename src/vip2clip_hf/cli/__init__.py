"""The `vip2clip` command, one module per command. Commands import heavy packages when they run, to keep help fast."""

from .entry import app, main


__all__ = ["app", "main"]
