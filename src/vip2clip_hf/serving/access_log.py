"""The log of requests."""

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

from starlette.types import Scope


logger = logging.getLogger(__name__)


def access_line(scope: Scope, request_id: str, status: int, seconds: float, facts: dict[str, Any]) -> str:
    """
    Write the line of the log for a request. It contains neither names of photos, nor queries, nor keys.

    Args:
        scope (`Scope`): the request.
        request_id (`str`): its id.
        status (`int`): status of the response, 0 if there was none.
        seconds (`float`): duration.
        facts (`dict[str, Any]`): `images`, `failed` and `bytes` of a prediction; `status` if it is not that of a
            response.

    Returns:
        `str`: JSON without line breaks.
    """
    client = scope.get("client")
    line: dict[str, Any] = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "request_id": request_id,
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": status,
        "seconds": round(seconds, 4),
    }
    return json.dumps({**line, **facts})


def print_line(text: str) -> None:
    """
    Print a line of the log. A closed or full standard output does not stop the server.

    Args:
        text (`str`): the line.
    """
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        logger.debug("A line of the log could not be written.", exc_info=True)


__all__ = ["access_line", "print_line"]
