"""The application: paths, errors, and the life of the model."""

import asyncio
import contextlib
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from PIL import Image
from starlette.exceptions import HTTPException

from .._version import __version__
from .documents import page_of
from .guard import Guard
from .metrics import ServerMetrics
from .predicting import Flag, MapForm, MaskForm, answer_predict
from .schemas import BODY, RESPONSES, ServerInfo
from .service import Service
from .settings import ServerSettings


if TYPE_CHECKING:
    from ..models.vip2clip.pipeline_anomaly_detection import AnomalyDetectionPipeline
    from ..runtime.detector import OnnxDetector


def create_server_app(
    detector: "AnomalyDetectionPipeline | OnnxDetector | Callable[[], AnomalyDetectionPipeline | OnnxDetector]",
    settings: ServerSettings | None = None,
    *,
    name: str = "model",
    local: bool = True,
    failed: Callable[[BaseException], None] | None = None,
) -> FastAPI:
    """
    Create the application that `vip2clip serve` runs, for another server of ASGI.

    The model is used from the start to the end of the application (`lifespan`). During this time,
    `PIL.Image.MAX_IMAGE_PIXELS` is `settings.max_pixels`.

    Args:
        detector ([`AnomalyDetectionPipeline`], [`OnnxDetector`] or `Callable`):
            The pipeline or the exported model, or a function that loads it. The function runs in a thread when the
            application starts; until it returns, `/ready` and `/predict` answer with status 503.
        settings ([`ServerSettings`], *optional*):
            Limits and security; defaults to those of `ServerSettings()`.
        name (`str`, defaults to `"model"`):
            Name of the checkpoint in `/info`.
        local (`bool`, defaults to `True`):
            Whether the server is bound to a loopback address. Requests must then use a name of this machine.
        failed (`Callable[[BaseException], None]`, *optional*):
            Called with the error if the pipeline cannot be loaded.

    Returns:
        `fastapi.FastAPI`: the application.

    Raises:
        ImportError: if a package of the extra `serve` is not installed.
    """
    settings = settings or ServerSettings()
    metrics = ServerMetrics()
    service = Service(settings, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, settings.max_pixels
        # Photos above the limit are refused, so there is nothing to warn about.
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        loading: asyncio.Task[None] | None = None
        try:
            if hasattr(detector, "score_settings") or hasattr(detector, "preprocess"):
                _start(service, detector)
            else:
                loading = asyncio.create_task(_load(service, detector, failed))
            yield
        finally:
            if loading is not None:
                loading.cancel()
            await service.stop()
            Image.MAX_IMAGE_PIXELS = limit

    app = FastAPI(
        title="ViP²-CLIP",
        version=__version__,
        summary="Visual anomaly detection.",
        description="Scores photos and locates defects with one checkpoint.",
        lifespan=lifespan,
        docs_url=None,  # the pages of FastAPI load scripts from another server
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.add_middleware(Guard, settings=settings, metrics=metrics, local=local)
    app.state.service = service
    _add_errors(app)
    _add_paths(app, service, name)
    return app


def _start(service: Service, detector: Any) -> None:
    from .engine import warm_up
    from .engines import engine_of

    engine = engine_of(detector)
    warm_up(engine)
    service.start(engine)


async def _load(service: Service, load: Callable[[], Any], failed: Callable[[BaseException], None] | None) -> None:
    """Load the model in a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if loaded.done():
            return
        if error is None:
            loaded.set_result(None)
        else:
            loaded.set_exception(error)

    def work() -> None:
        error: BaseException | None = None
        try:
            _start(service, load())
        except BaseException as found:
            error = found
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(finish, error)

    threading.Thread(target=work, name="vip2clip-loading", daemon=True).start()
    try:
        await loaded
    except Exception as error:
        if failed is None:
            raise
        failed(error)


def _add_errors(app: FastAPI) -> None:
    """All errors are JSON with a text in `detail`."""

    @app.exception_handler(HTTPException)
    async def problem(request: Request, error: HTTPException) -> Response:
        detail = error.detail or HTTPStatus(error.status_code).phrase
        return JSONResponse({"detail": detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"detail": "; ".join(found)}, 422)


def _add_paths(app: FastAPI, service: Service, name: str) -> None:
    settings = service.settings

    @app.post(
        "/predict",
        summary="Score photos and locate defects.",
        responses=RESPONSES,
        openapi_extra={"requestBody": BODY},
    )
    async def predict(
        request: Request,
        heatmap: Flag = False,
        mask: MaskForm = "none",
        anomaly_map: MapForm = "none",
        regions: bool = Query(True, description="List the regions of the mask."),
    ) -> Response:
        """Results are those of the pipeline. A photo that cannot be read does not fail the others.

        With the header Accept: image/png and one photo, the response is its heatmap, with score and label in headers.
        """
        return await answer_predict(request, service, heatmap, mask, anomaly_map, regions)

    @app.get(
        "/health",
        summary="Whether the server runs. For probes of liveness.",
        response_description="The process can answer.",
        responses={500: {"description": "The thread of the model has stopped; restart the server."}},
    )
    async def health() -> Response:
        if service.failed:
            return JSONResponse({"status": "failed"}, 500)
        return JSONResponse({"status": "ok"})

    @app.get(
        "/ready",
        summary="Whether the model is loaded. For probes of readiness.",
        response_description="The model is loaded.",
        responses={503: {"description": "The model is not loaded yet."}},
    )
    async def ready() -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get(
        "/metrics",
        summary="Metrics in the format of Prometheus.",
        response_class=PlainTextResponse,
        response_description="The metrics.",
    )
    async def metrics() -> Response:
        content, kind = service.metrics.render()
        return Response(content, media_type=kind)

    @app.get(
        "/info",
        summary="The model and the limits of the server.",
        response_model=ServerInfo,
        response_description="The model and the limits.",
        responses={503: {"description": "The model is not loaded yet."}},
    )
    async def info() -> Response:
        model = service.describe()
        if model is None:
            raise HTTPException(503, "The model is not loaded yet.", {"Retry-After": "5"})
        limits = {key: getattr(settings, key) for key in ("max_images", "max_file_bytes", "max_pixels")}
        return JSONResponse({"model": name, "version": __version__, **model, **limits})

    @app.get("/", include_in_schema=False)
    async def start() -> Response:
        return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(page_of(app.openapi(), settings.api_key is not None))


__all__ = ["create_server_app"]
