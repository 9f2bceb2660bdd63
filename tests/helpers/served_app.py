"""A running page of the web app with endpoints."""

import atexit
import contextlib
import functools
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served_app(folder: Path, **options) -> Iterator[str]:
    """Serve the bundled checkpoint in this process, with uploads in a folder. Gives the address."""
    from vip2clip_hf import build_app

    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    page = build_app(api=True, **options)
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1", server_port=free_port(), prevent_thread_lock=True, quiet=True
        )
        yield address
    finally:
        page.close(verbose=False)
        os.environ.pop("GRADIO_TEMP_DIR")
        if before is not None:
            os.environ["GRADIO_TEMP_DIR"] = before


@functools.cache
def address_for_docs() -> str:
    """Serve until the process ends."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    return stack.enter_context(served_app(Path(folder)))
