"""The `vip2clip` command: one module for each command. Heavy imports are inside the commands, so help is fast."""

from .entry import app, main


__all__ = ["app", "main"]
