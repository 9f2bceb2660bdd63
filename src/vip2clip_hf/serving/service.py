"""From uploads to results: limits, threads and batches."""

import asyncio
import functools
import json
import logging
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..utils.pictures import png_bytes
from .batching import Abandoned, BatchWorker
from .limits import Budget, WaitingBudget
from .metrics import ServerMetrics
from .records import Answer, PhotoError, Upload, Wanted
from .settings import ServerSettings
from .urls import FetchError, UrlFetcher


if TYPE_CHECKING:
    from .engine import Engine, Prepared


Found = TypeVar("Found")
logger = logging.getLogger(__name__)
# Threads that fetch URLs: other servers can be slow, so they do not use those that decode photos.
FETCHERS = 8
# Photos of the largest size that are decoded at a time.
LARGEST_AT_ONCE = 4


class _Request:
    """Whether the client still waits."""

    abandoned = False


@dataclass
class _Running:
    """The threads of a service and what they run."""

    engine: "Engine"
    worker: "BatchWorker[tuple[_Request, Prepared], dict[str, Any]]"
    pool: ThreadPoolExecutor
    fetching: ThreadPoolExecutor


class Service:
    """
    Compute the results of requests. Used by one event loop.

    Args:
        settings ([`ServerSettings`]): limits.
        metrics ([`ServerMetrics`]): metrics.
    """

    def __init__(self, settings: ServerSettings, metrics: ServerMetrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.queue, self.uploads = Budget(settings.queue), Budget(settings.max_upload_bytes)
        self._decoded = WaitingBudget(LARGEST_AT_ONCE * settings.max_pixels)
        self._running: _Running | None = None
        self._fetcher = UrlFetcher(
            settings.allow_urls, settings.max_file_bytes, settings.url_timeout, settings.allow_private_urls
        )
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._seconds = 0.1  # of the model for one photo, smoothed
        metrics.watch("vip2clip_queue_images", "Photos accepted and not answered.", lambda: self.queue.used)
        metrics.watch("vip2clip_upload_bytes", "Bytes of uploads in memory.", lambda: self.uploads.used)
        metrics.watch("vip2clip_ready", "1 if the model is loaded.", lambda: float(self.ready))

    @property
    def ready(self) -> bool:
        """Whether requests can be answered."""
        return self._running is not None and self._running.worker.alive

    @property
    def failed(self) -> bool:
        """Whether the thread of the model has stopped unexpectedly."""
        return self._running is not None and not self._running.worker.alive

    def start(self, engine: "Engine") -> None:
        """
        Start the threads.

        Args:
            engine ([`Engine`]): steps of the pipeline.
        """
        worker: BatchWorker[tuple[_Request, Prepared], dict[str, Any]] = BatchWorker(
            lambda items: engine.forward([prepared for _, prepared in items]),
            self.settings.max_batch,
            self.settings.max_wait / 1000,
            wanted=lambda item: not item[0].abandoned,
            observe=self._observe,
        )
        threads = max(2, min(8, os.cpu_count() or 2))
        self._running = _Running(
            engine,
            worker,
            ThreadPoolExecutor(threads, "vip2clip-photos"),
            ThreadPoolExecutor(FETCHERS, "vip2clip-urls"),
        )

    async def stop(self) -> None:
        """Finish what was accepted, then stop the threads."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        running, self._running = self._running, None
        if running is not None:
            await asyncio.to_thread(running.worker.close)
            running.pool.shutdown()
            running.fetching.shutdown(wait=False, cancel_futures=True)

    def describe(self) -> dict[str, Any] | None:
        """
        Describe the model.

        Returns:
            `dict[str, Any]`, *optional*: result of [`Engine.describe`], or `None` if the model is not loaded.
        """
        return None if self._running is None else self._running.engine.describe()

    def _observe(self, images: int, seconds: float) -> None:
        self._seconds += 0.2 * (seconds / images - self._seconds)
        self.metrics.observe_batch(images, seconds)

    def retry_after(self) -> int:
        """
        Estimate when the queue has room.

        Returns:
            `int`: seconds, in [1, 60].
        """
        return min(60, max(1, math.ceil(self.queue.used * self._seconds)))

    def check_url(self, url: str) -> PhotoError | None:
        """
        Check that a photo may be fetched.

        Args:
            url (`str`): the URL.

        Returns:
            [`PhotoError`], *optional*: why it may not.
        """
        try:
            self._fetcher.check(url)
        except FetchError as error:
            return PhotoError(error.status, str(error))
        return None

    async def answer(
        self, uploads: Sequence[Upload], wanted: Wanted, gone: Awaitable[None]
    ) -> list[Answer | PhotoError] | None:
        """
        Compute the results of a request. The caller has taken a place in the queue for each photo, and the bytes of
        their contents; this method gives them back.

        Args:
            uploads (`Sequence[Upload]`): the photos.
            wanted ([`Wanted`]): what to compute.
            gone (`Awaitable[None]`): returns when the client has closed the connection.

        Returns:
            `list[Answer | PhotoError]`, *optional*: for each photo, the result or why there is none. `None` if the
            client has closed the connection.

        Raises:
            RuntimeError: if the model is not loaded.
        """
        if self._running is None:
            raise RuntimeError("The model is not loaded; expected a service that was started.")
        request, loop = _Request(), asyncio.get_running_loop()
        tasks = [loop.create_task(self._one(upload, wanted, request, self._running)) for upload in uploads]
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        watch = asyncio.ensure_future(gone)
        deadline = loop.time() + self.settings.timeout
        waiting: set[asyncio.Future[Any]] = set(tasks)
        try:
            while waiting and not watch.done() and loop.time() < deadline:
                _, pending = await asyncio.wait(
                    {*waiting, watch}, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED
                )
                waiting = pending - {watch}
        finally:
            request.abandoned = True  # what is not finished stops at its next step
            lost = watch.done() and bool(waiting)
            watch.cancel()
        return None if lost else [self._outcome(task) for task in tasks]

    def _ended(self, task: "asyncio.Task[Answer]") -> None:
        """Record the outcome of a photo, also if nobody waits for it any more."""
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            record = task.result().record
            self.metrics.images.labels("ok").inc()
            self.metrics.predictions.labels(record["label"]).inc()
            self.metrics.scores.observe(record["score"])
            return
        status = error.status if isinstance(error, PhotoError) else 500
        outcome = {503: "busy", 504: "timeout", 500: "error"}.get(status, "rejected")
        self.metrics.images.labels(outcome).inc()
        if not isinstance(error, PhotoError):
            logger.error("A photo could not be processed.", exc_info=error)

    def _outcome(self, task: "asyncio.Task[Answer]") -> Answer | PhotoError:
        if not task.done():
            return PhotoError(504, f"There was no result within {self.settings.timeout:g} s.")
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, PhotoError):
            return error
        return PhotoError(500, "The photo could not be processed; the log of the server contains the reason.")

    async def _one(self, upload: Upload, wanted: Wanted, request: _Request, running: _Running) -> Answer:
        """Compute the result of a photo."""
        size, pixels = len(upload.content or b""), 0
        try:
            if upload.error is not None:
                raise upload.error
            content = upload.content
            if content is None:
                content = await self._fetch(upload.name, running)
                size = len(content)
            _check(request)
            pixels = await self._measure(content, running)
            _check(request)
            prepared = await self._prepare(content, upload.name, wanted, running)
            upload.content, content = None, b""
            self.uploads.give(size)
            size = 0
            outputs = await asyncio.wrap_future(running.worker.submit((request, prepared)))
            return await _in(running.pool, _finish, running.engine, upload.name, outputs, prepared.notices, wanted)
        except Abandoned:
            raise PhotoError(504, f"There was no result within {self.settings.timeout:g} s.") from None
        except MemoryError:
            raise PhotoError(503, "There is not enough memory for the photo; try again later.") from None
        finally:
            upload.content = None
            self.uploads.give(size)
            self._decoded.give(pixels)
            self.queue.give(1)

    async def _fetch(self, url: str, running: _Running) -> bytes:
        try:
            content = await _in(running.fetching, self._fetcher.fetch, url)
        except FetchError as error:
            raise PhotoError(error.status, str(error)) from error
        if not self.uploads.take(len(content)):
            raise PhotoError(503, "Too many photos are in memory; try again later.")
        return content

    async def _measure(self, content: bytes, running: _Running) -> int:
        """Wait until the photo may be decoded. Return the number of pixels to give back."""
        from .engine import measure_photo

        try:
            pixels = await _in(running.pool, measure_photo, content, self.settings.max_pixels)
        except (OSError, ValueError) as error:
            raise _unreadable(error) from error
        return await self._decoded.take(pixels)

    async def _prepare(self, content: bytes, name: str, wanted: Wanted, running: _Running) -> "Prepared":
        try:
            return await _in(running.pool, running.engine.prepare, content, name, wanted.heatmap or wanted.picture)
        except (OSError, ValueError) as error:  # of the photo: nothing else is read here
            raise _unreadable(error) from error

    async def to_json(self, content: Any) -> bytes:
        """
        Write JSON in a thread, because pictures can be large.

        Args:
            content: JSON-serializable content.

        Returns:
            `bytes`: UTF-8 text.
        """
        return await asyncio.to_thread(_to_json, content)


async def _in(pool: ThreadPoolExecutor, function: Callable[..., Found], *arguments: Any) -> Found:
    return await asyncio.get_running_loop().run_in_executor(pool, functools.partial(function, *arguments))


def _check(request: _Request) -> None:
    if request.abandoned:
        raise Abandoned


def _unreadable(error: Exception) -> PhotoError:
    return PhotoError(422, str(error) or type(error).__name__)


def _finish(engine: "Engine", name: str, outputs: dict[str, Any], notices: list[str], wanted: Wanted) -> Answer:
    result = engine.finish(outputs, wanted.regions)
    picture = png_bytes(result.pop("heatmap")) if wanted.picture else None
    record = {"name": name, **result.to_dict(mask=wanted.mask, anomaly_map=wanted.anomaly_map)}
    if notices:
        record["notices"] = notices
    return Answer(record, picture)


def _to_json(content: Any) -> bytes:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


__all__ = ["Service"]
