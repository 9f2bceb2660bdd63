"""The page of `vip2clip app`: photos in, scores, decisions, maps and masks out, in a browser.

Everything is computed by [`AnomalyDetectionPipeline`]; what is between it and the page is in
[`vip2clip_hf.app.results`], the page itself in [`vip2clip_hf.app.page`].
"""

import contextlib
import ipaddress
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..checkpoints.bundled import bundled_checkpoint
from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
from .results import MAX_FILE_SIZE, MAX_IMAGES, PhotoInspector


if TYPE_CHECKING:
    import gradio

# Photos of 50 megapixels are read; the 89 that Pillow allows would take some gigabytes each.
MAX_PIXELS = 50_000_000


def build_app(
    model: str | os.PathLike | AnomalyDetectionPipeline | None = None,
    device: str | None = None,
    *,
    max_images: int = MAX_IMAGES,
    max_file_size: float = MAX_FILE_SIZE,
) -> "gradio.Blocks":
    """
    The page, to be launched or mounted into another server. [`launch`] does the former with safe settings.

    Args:
        model (`str`, `os.PathLike` or [`AnomalyDetectionPipeline`], *optional*):
            Folder or Hub id of a checkpoint, or a pipeline; the small checkpoint of the package when not given.
        device (*optional*): where to run; the first accelerator when not given.
        max_images (`int`, defaults to 50): photos at a time.
        max_file_size (`float`, defaults to 20): megabytes a file may have.

    Raises:
        ImportError: gradio or scipy are missing.
        OSError: a checkpoint that cannot be read.
        ValueError: a checkpoint of another kind, or limits that are not positive.
    """
    from .page import Page

    detector = model
    if not isinstance(model, AnomalyDetectionPipeline):
        detector = AnomalyDetectionPipeline.from_pretrained(
            bundled_checkpoint() if model is None else model, device=device
        )
    page = Page(PhotoInspector(detector, max_images, max_file_size), _model_name(model))
    return page.build(bundled=model is None)


def _model_name(model: Any) -> str:
    """What the page calls a checkpoint: a Hub id, or the last part of a path, not where it lies."""
    if model is None:
        return bundled_checkpoint().name
    if isinstance(model, AnomalyDetectionPipeline):
        model = getattr(model.model, "name_or_path", "") or "a pipeline"
    return os.path.basename(os.path.abspath(model)) if os.path.isdir(model) else str(model)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder that takes all temporary files of this process, and is removed at the end, also when it is told to
    terminate."""
    folder = Path(tempfile.mkdtemp(prefix="vip2clip-app-"))  # for this user only
    before, temporary = dict(os.environ), tempfile.tempdir
    os.environ.update(
        GRADIO_TEMP_DIR=str(folder),
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_RUN_HISTORY="False",
        MPLCONFIGDIR=str(folder / "matplotlib"),  # gradio loads matplotlib where there is one
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
):
    """
    Serve the page until the process is stopped.

    Uploads and results go to a temporary folder of this process, are deleted after an hour, and with the folder at
    the end. Nothing is written elsewhere, nothing is sent anywhere, and no address but that of the host is bound.

    Args:
        model, device, max_images, max_file_size: see [`build_app`].
        host (`str`, defaults to "127.0.0.1"):
            Address to bind. Any but a loopback address lets others on the network in, for which there is a warning.
        port (`int`, defaults to 7860): its port.
        max_pixels (`int`, defaults to 50,000,000): pixels a photo may have; larger ones are refused before they are
            decoded. Sets `PIL.Image.MAX_IMAGE_PIXELS` while the page is served.
        open_browser (`bool`, defaults to `False`): whether to show the page in the browser of this machine.

    Raises:
        ImportError: gradio or scipy are missing.
        OSError: a checkpoint that cannot be read, or an address that cannot be bound.
        ValueError: a checkpoint of another kind, or limits that are not positive.
    """
    if max_pixels < 1:
        raise ValueError(f"max_pixels is {max_pixels!r}; expected a positive number of pixels.")
    if not is_loopback(host):
        print(
            f"Warning: on {host} everyone who reaches this machine over the network can use the page, without a "
            "password. Leave --host out to keep it to this machine.",
            file=sys.stderr,
        )
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        with _private_folder():
            # Not before: with its import gradio takes the folder it finds.
            from .page import CSS, KEPT_SESSIONS, THEME

            page = build_app(model, device, max_images=max_images, max_file_size=max_file_size)
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
                )
            except OSError as error:
                raise OSError(
                    f"Address {host}, port {port} cannot be bound ({error}); choose another with --port or --host."
                ) from error
            print(f"Serving on {address} (Ctrl+C ends it)", flush=True)
            try:
                page.block_thread()
            finally:
                page.close(verbose=False)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


__all__ = ["build_app", "is_loopback", "launch"]
