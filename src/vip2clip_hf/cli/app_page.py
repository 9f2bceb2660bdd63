"""`vip2clip app`."""

from typing import Annotated

import typer

from ..utils.extras import require
from .model_argument import check_model
from .options import Device, Model, shows_progress


def app_page(
    model: Model = None,
    host: Annotated[
        str,
        typer.Option(help="Address to bind. Any non-loopback address exposes the app to the network, "
                     "without a password."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to bind.")] = 7860,
    device: Device = None,
    max_images: Annotated[int, typer.Option(min=1, help="Maximum number of photos at a time.")] = 100,
    max_file_size: Annotated[float, typer.Option(min=0.001, help="Maximum size of a file, in MB.")] = 20,
    max_pixels: Annotated[
        int,
        typer.Option(min=1, help="Maximum number of pixels of a photo. Larger photos are refused before decoding."),
    ] = 50_000_000,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the app in a browser on this machine.")
    ] = True,
    api: Annotated[bool, typer.Option("--api", help="Add public endpoints for gradio_client.")] = False,
) -> None:  # fmt: skip
    """Score photos in the browser (extra: app).

    Starts a web app on this machine. Uploads are stored in a temporary folder that is deleted at the end; nothing is
    sent to other servers.

    \b
    Examples:
      vip2clip app
      vip2clip app --model org/vip2clip --port 8000 --no-browser
      vip2clip app --api --no-browser
    """
    check_model("app", model)
    # Not imported here: gradio reads its temporary folder on import.
    require("app", "The web app", "gradio", "scipy", load=False)
    from ..app.server import launch

    shows_progress()
    launch(
        model,
        device,
        host=host,
        port=port,
        max_images=max_images,
        max_file_size=max_file_size,
        max_pixels=max_pixels,
        open_browser=browser,
        api=api,
    )


__all__ = ["app_page"]
