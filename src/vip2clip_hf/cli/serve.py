"""`vip2clip serve`."""

from pathlib import Path
from typing import Annotated

import typer

from ..utils.extras import require
from .detector_options import Threshold, TopK, check_references, detector_options
from .model_argument import check_model
from .options import (
    Backbone,
    BitDepth,
    Device,
    Dtype,
    Model,
    NoReferences,
    Page,
    References,
    TileOverlap,
    TileSize,
    checkpoint_or_bundled,
    shows_progress,
    usage_error,
)
from .runtimes import ENGINES, Runtime, check_export, check_runtime, runtime_options


def serve(
    model: Model = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to bind. Any non-loopback address needs an API key, or --allow-anonymous."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to bind; 0 for a free one.")] = 8000,
    runtime: Runtime = None,
    device: Device = None,
    dtype: Dtype = "float32",
    backbone: Backbone = None,
    threshold: Threshold = None,
    top_k: TopK = None,
    tile_size: TileSize = None,
    tile_overlap: TileOverlap = None,
    references: References = None,
    no_references: NoReferences = False,
    bit_depth: BitDepth = None,
    page: Page = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Photos per batch; 1 for no batching.")] = 8,
    max_wait: Annotated[
        float, typer.Option(min=0, max=60000, help="Milliseconds that a photo waits for others of its batch.")
    ] = 10,
    queue: Annotated[
        int, typer.Option(min=1, help="Photos accepted and not answered. Further requests get status 503.")
    ] = 64,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to receive a request, and seconds to answer it.")
    ] = 60,
    max_images: Annotated[int, typer.Option(min=1, help="Photos in a request.")] = 16,
    max_file_size: Annotated[float, typer.Option(min=0.001, help="Size of a photo, in MB.")] = 20,
    max_upload_memory: Annotated[
        float, typer.Option(min=0.001, help="Size of the photos of all requests at a time, in MB.")
    ] = 512,
    max_pixels: Annotated[
        int,
        typer.Option(min=1, help="Number of pixels of a photo. Larger photos are refused before decoding."),
    ] = 50_000_000,
    allow_urls: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST", help="Host that photos may be fetched from. Repeatable.", show_default="no URLs"
        ),
    ] = None,
    allow_private_urls: Annotated[
        bool, typer.Option("--allow-private-urls", help="These hosts may be in a private network.")
    ] = False,
    url_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to fetch a photo.")] = 10,
    allow_hosts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST", help="Name of this server in the Host header of requests. Repeatable.",
            show_default="on a loopback address, names of this machine; otherwise any",
        ),
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Serve the network without an API key.")
    ] = False,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate chain (PEM), for https.", show_default=False)
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of --tls-cert (PEM).", show_default=False)] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="Print a line of JSON for each request.")
    ] = True,
) -> None:  # fmt: skip
    """Serve a checkpoint over HTTP (extra: serve).

    POST /predict takes photos and returns scores, decisions and regions as JSON. GET /health, /ready and /metrics are
    for probes, GET /docs describes the API. Photos of several requests share a batch.

    If the environment variable VIP2CLIP_API_KEY is set, requests need the header "Authorization: Bearer KEY". SIGTERM
    and Ctrl+C stop the server after it has answered the requests that it has accepted, with exit code 0.

    \b
    Examples:
      vip2clip serve --model org/vip2clip
      curl -F images=@photo.jpg http://127.0.0.1:8000/predict
      vip2clip serve --model exported --runtime onnx  # without torch
      VIP2CLIP_API_KEY=... vip2clip serve --host 0.0.0.0 --port 8443 --tls-cert cert.pem --tls-key key.pem
    """
    check_references(references, no_references)
    if (tls_cert is None) != (tls_key is None):
        raise usage_error("--tls-cert and --tls-key belong together; pass both.")
    check_runtime(runtime, model, None, backbone, references, dtype)
    if runtime is None:
        check_model("serve", model)
    require("serve", "The server", "fastapi", "uvicorn", "prometheus_client", "python_multipart", load=False)
    from ..serving.keys import api_key_from_environment
    from ..serving.settings import ExposureError, ServerSettings

    try:
        settings = ServerSettings(
            max_batch=max_batch,
            max_wait=max_wait,
            queue=queue,
            timeout=timeout,
            max_images=max_images,
            max_file_size=max_file_size,
            max_upload_memory=max_upload_memory,
            max_pixels=max_pixels,
            allow_urls=tuple(allow_urls or ()),
            allow_private_urls=allow_private_urls,
            url_timeout=url_timeout,
            allow_hosts=tuple(allow_hosts or ()),
            api_key=api_key_from_environment(),
            access_log=access_log,
        )
    except ValueError as error:
        raise usage_error(str(error)) from error
    options = detector_options(
        references=references, no_references=no_references, threshold=threshold, device=device, dtype=dtype,
        backbone=backbone, top_k=top_k, tile_size=tile_size, tile_overlap=tile_overlap, bit_depth=bit_depth, page=page,
    )  # fmt: skip
    if references is not None:  # before "Serving on" is printed
        from ..models.vip2clip.image_listing_vip2clip import list_images

        list_images(references)
    if runtime is not None and model is not None:
        check_export(model, runtime)
        options = runtime_options(options)
    model = checkpoint_or_bundled(model)
    shows_progress()
    from ..serving.running import serve_detector

    try:
        serve_detector(
            model,
            settings,
            host=host,
            port=port,
            allow_anonymous=allow_anonymous,
            runtime=None if runtime is None else ENGINES[runtime],
            tls=None if tls_cert is None or tls_key is None else (str(tls_cert), str(tls_key)),
            **options,
        )
    except ExposureError as error:
        raise usage_error(str(error)) from error


__all__ = ["serve"]
