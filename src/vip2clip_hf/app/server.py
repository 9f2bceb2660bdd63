"""Build and serve the web app: upload photos, get scores, decisions, heatmaps and masks in a browser.

[`AnomalyDetectionPipeline`] computes the results, [`vip2clip_hf.app.results`] stores them and
[`vip2clip_hf.app.page`] shows them.
"""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..checkpoints.bundled import bundled_checkpoint
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from ..utils.addresses import is_loopback
from .results import MAX_FILE_SIZE, MAX_IMAGES, PhotoInspector


if TYPE_CHECKING:
    import gradio

# Less than Pillow's default of 89 megapixels: a photo of that size takes several gigabytes of memory.
MAX_PIXELS = 50_000_000


def build_app(
    model: str | os.PathLike | AnomalyDetectionPipeline | None = None,
    device: str | None = None,
    *,
    max_images: int = MAX_IMAGES,
    max_file_size: float = MAX_FILE_SIZE,
    api: bool = False,
) -> "gradio.Blocks":
    """
    Build the web app, to launch it or to mount it in another server. [`launch`] serves it with safe settings.

    Args:
        model (`str`, `os.PathLike` or [`AnomalyDetectionPipeline`], *optional*):
            Checkpoint folder or Hub id, or a pipeline; defaults to the small bundled checkpoint.
        device (`str`, *optional*):
            Device to run on; defaults to the first accelerator. Ignored if `model` is a pipeline.
        max_images (`int`, defaults to 100):
            Maximum number of photos at a time.
        max_file_size (`float`, defaults to 20):
            Maximum size of a file, in megabytes.
        api (`bool`, defaults to `False`):
            Whether to add public endpoints for `gradio_client`.

    Returns:
        `gradio.Blocks`: the web app.

    Raises:
        ImportError: if gradio or scipy is not installed.
        OSError: if the checkpoint cannot be read.
        ValueError: if the checkpoint is of another model type, or a limit is not positive.
    """
    from .page import Page

    if isinstance(model, AnomalyDetectionPipeline):
        detector = model
    else:
        detector = AnomalyDetectionPipeline.from_pretrained(
            bundled_checkpoint() if model is None else model, device=device
        )
    page = Page(PhotoInspector(detector, max_images, max_file_size), _model_name(model))
    return page.build(bundled=model is None, api=api)


def _model_name(model: str | os.PathLike | AnomalyDetectionPipeline | None) -> str:
    """Return the displayed name of a model: the Hub id, or the folder name without its path."""
    if model is None:
        return bundled_checkpoint().name
    if isinstance(model, AnomalyDetectionPipeline):
        model = getattr(model.model, "name_or_path", "") or "a pipeline"
    return os.path.basename(os.path.abspath(model)) if os.path.isdir(model) else str(model)


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """Create a folder for all temporary files of this process and remove it at the end, also on SIGTERM."""
    folder = Path(tempfile.mkdtemp(prefix="vip2clip-app-"))  # readable by this user only
    before, temporary = dict(os.environ), tempfile.tempdir
    os.environ.update(
        GRADIO_TEMP_DIR=str(folder),
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_RUN_HISTORY="False",
        MPLCONFIGDIR=str(folder / "matplotlib"),  # gradio imports matplotlib if it is installed
    )
    tempfile.tempdir = str(folder)
    handler = None
    if threading.current_thread() is threading.main_thread():
        handler = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield folder
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
        tempfile.tempdir = temporary
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


def launch(
    model: str | os.PathLike | AnomalyDetectionPipeline | None = None,
    device: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_images: int = MAX_IMAGES,
    max_file_size: float = MAX_FILE_SIZE,
    max_pixels: int = MAX_PIXELS,
    open_browser: bool = False,
    api: bool = False,
) -> None:
    """
    Serve the web app until the process is stopped.

    Uploads and results are stored in a temporary folder of this process. They are deleted after one hour, and the
    folder is deleted at the end. The app writes nothing else, sends nothing, loads nothing from other servers, and
    binds only the address `host`. The memory of a session is freed 15 minutes after its page was closed.

    Args:
        model, device, max_images, max_file_size, api:
            See [`build_app`].
        host (`str`, defaults to "127.0.0.1"):
            Address to bind. An address that is not a loopback address exposes the app to the network and prints a
            warning.
        port (`int`, defaults to 7860):
            Port to bind.
        max_pixels (`int`, defaults to 50,000,000):
            Maximum number of pixels of a photo. Larger photos are refused before they are decoded. Sets
            `PIL.Image.MAX_IMAGE_PIXELS` while the app is running.
        open_browser (`bool`, defaults to `False`):
            Whether to open the app in the browser of this machine.

    Raises:
        ImportError: if gradio or scipy is not installed.
        OSError: if the checkpoint cannot be read, or the address cannot be bound.
        ValueError: if the checkpoint is of another model type, or a limit is not positive.
    """
    if max_pixels < 1:
        raise ValueError(f"max_pixels is {max_pixels!r}; expected a positive number of pixels.")
    if not is_loopback(host):
        print(
            f"Warning: with --host {host}, anyone on the network can use the app without a password. Omit --host to "
            "allow connections from this machine only.",
            file=sys.stderr,
        )
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        with _private_folder():
            # Import inside the block: gradio reads the temporary folder on import.
            from starlette.middleware import Middleware

            from .guard import Guard
            from .page import CSS, KEPT_SESSIONS, THEME

            page = build_app(model, device, max_images=max_images, max_file_size=max_file_size, api=api)

            def free(session: str) -> None:
                """Free the state of a session."""
                holder = page.state_holder
                with holder.lock:
                    holder.session_data.pop(session, None)
                    holder.time_last_used.pop(session, None)

            try:
                _, address, _ = page.launch(
                    server_name=host,
                    server_port=port,
                    inbrowser=open_browser,
                    max_file_size=int(max_file_size * 1024**2),
                    share=False,
                    prevent_thread_lock=True,
                    quiet=True,
                    show_error=False,
                    allowed_paths=[],
                    state_session_capacity=KEPT_SESSIONS,
                    ssr_mode=False,
                    pwa=False,
                    mcp_server=False,
                    enable_monitoring=False,
                    footer_links=[],
                    theme=THEME,
                    css=CSS,
                    app_kwargs={"middleware": [Middleware(Guard, free=free)]},
                )
            except OSError as error:
                raise OSError(
                    f"Address {host}, port {port} cannot be bound ({error}). Choose another with --port or --host."
                ) from error
            print(f"Serving on {address} (press Ctrl+C to stop)", flush=True)
            try:
                page.block_thread()
            finally:
                page.close(verbose=False)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


__all__ = ["build_app", "is_loopback", "launch"]
