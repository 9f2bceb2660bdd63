"""Collect items of many requests into batches, in one thread."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")


class Abandoned(Exception):
    """Nobody waits for the result any more."""


class BatchWorker(Generic[Item, Result]):
    """
    Run a function on batches, in one thread.

    A batch starts when it is full, or when its first item has waited for `max_wait` seconds. While a batch runs, the
    next one is collected. If a batch fails, its items run one by one, so that one of them does not fail the others.

    Args:
        run (`Callable[[Sequence[Item]], Sequence[Result]]`):
            Computes a result for each item.
        max_batch (`int`):
            Maximum number of items in a batch.
        max_wait (`float`):
            Seconds.
        wanted (`Callable[[Item], bool]`):
            Whether the result of an item is still wanted. Called when its batch starts.
        observe (`Callable[[int, float], None]`, *optional*):
            Called with the number of items and the seconds of each batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        max_batch: int,
        max_wait: float,
        wanted: Callable[[Item], bool] = lambda item: True,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self._run, self._max_batch, self._max_wait = run, max_batch, max_wait
        self._wanted, self._observe = wanted, observe
        self._items: deque[tuple[Item, Future[Result], float]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="vip2clip-batches", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, item: Item) -> "Future[Result]":
        """
        Add an item.

        Args:
            item: the item.

        Returns:
            `concurrent.futures.Future`: its result. It raises [`Abandoned`] if the result was not wanted any more.

        Raises:
            RuntimeError: if the worker is closed.
        """
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("The worker is closed.")
            self._items.append((item, future, time.monotonic()))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Compute the items that were added, then stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _collect(self) -> list[tuple[Item, "Future[Result]", float]]:
        """Return the next batch, or nothing if the worker is closed and empty."""
        with self._changed:
            while not self._items:
                if self._closed:
                    return []
                self._changed.wait()
            deadline = self._items[0][2] + self._max_wait
            while len(self._items) < self._max_batch and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return [self._items.popleft() for _ in range(min(self._max_batch, len(self._items)))]

    def _work(self) -> None:
        while batch := self._collect():
            wanted = []
            for item, future, _ in batch:
                if self._wanted(item):
                    wanted.append((item, future))
                else:
                    future.set_exception(Abandoned())
            if wanted:
                self._compute(wanted)

    def _compute(self, batch: list[tuple[Item, "Future[Result]"]]) -> None:
        start = time.perf_counter()
        try:
            results = self._run([item for item, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"The batch has {len(results)} results; expected {len(batch)}.")
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:
                for one in batch:
                    self._compute([one])
            return
        if self._observe is not None:
            self._observe(len(batch), time.perf_counter() - start)
        for (_, future), result in zip(batch, results):
            future.set_result(result)


__all__ = ["Abandoned", "BatchWorker"]
