"""Loggers that say a message once, also where transformers is not installed."""

import logging
from typing import Any


_said: set[tuple[Any, ...]] = set()


class OnceLogger(logging.LoggerAdapter):
    """A logger of the standard library with the method `warning_once` of the loggers of transformers."""

    def warning_once(self, message: str, *args: Any) -> None:
        """
        Log a warning, unless the same warning was logged before.

        Args:
            message (`str`): the message.
            args: values for its placeholders.
        """
        # transformers adds the method to all loggers when it is imported. Both then share one memory.
        of_transformers = getattr(logging.Logger, "warning_once", None)
        if of_transformers is not None:
            of_transformers(self.logger, message, *args)
        elif (message, *args) not in _said:
            _said.add((message, *args))
            self.logger.warning(message, *args)


def get_logger(name: str) -> OnceLogger:
    """
    Return the logger of a module.

    Args:
        name (`str`): `__name__` of the module.

    Returns:
        [`OnceLogger`]: the logger.
    """
    return OnceLogger(logging.getLogger(name), {})


__all__ = ["OnceLogger", "get_logger"]
