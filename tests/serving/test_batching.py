"""Batches of many threads, and limits that are waited for."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vip2clip_hf.serving.batching import Abandoned, BatchWorker
from vip2clip_hf.serving.limits import Budget, WaitingBudget


pytestmark = pytest.mark.xdist_group("serving")


def test_a_full_batch_does_not_wait():
    seen = []
    worker = BatchWorker(lambda items: [seen.append(list(items)) or item for item in items], 3, 60)
    start = time.monotonic()
    futures = [worker.submit(number) for number in range(3)]
    assert [future.result(30) for future in futures] == [0, 1, 2]
    assert seen[0] == [0, 1, 2]
    assert time.monotonic() - start < 30
    last = worker.submit(3)
    worker.close()  # what was added is computed, without waiting for others
    assert last.result(0) == 3
    assert not worker.alive
    with pytest.raises(RuntimeError, match="closed"):
        worker.submit(4)


def test_the_first_item_waits_for_a_limited_time():
    sizes = []
    worker = BatchWorker(lambda items: sizes.append(len(items)) or items, 8, 0.05)
    assert worker.submit("a").result(30) == "a"
    assert sizes == [1]
    worker.close()


def test_batches_are_collected_while_one_runs():
    sizes, gate = [], threading.Event()

    def run(items):
        gate.wait(30)
        sizes.append(len(items))
        return items

    worker = BatchWorker(run, 4, 0)
    futures = [worker.submit(0)]
    while worker._items:
        pass
    futures += [worker.submit(number) for number in range(1, 10)]
    gate.set()
    assert [future.result(30) for future in futures] == list(range(10))
    assert sizes == [1, 4, 4, 1]
    worker.close()


def test_failures_stay_alone():
    """Items of a batch that fails run one by one."""
    observed = []

    def run(items):
        if 3 in items:
            raise ValueError("three")
        return [2 * item for item in items]

    worker = BatchWorker(run, 8, 0.2, observe=lambda size, seconds: observed.append(size))
    futures = [worker.submit(number) for number in range(5)]
    results = [future.exception(30) or future.result() for future in futures]
    assert [str(result) for result in results] == ["0", "2", "4", "three", "8"]
    assert observed == [1, 1, 1, 1]
    short = BatchWorker(lambda items: [], 8, 0)
    with pytest.raises(RuntimeError, match="0 results; expected 1"):
        short.submit(1).result(30)
    worker.close()
    short.close()


def test_results_that_nobody_wants_are_not_computed():
    seen = []
    worker = BatchWorker(lambda items: seen.extend(items) or items, 4, 0.1, wanted=lambda item: item != "b")
    futures = [worker.submit(item) for item in "abc"]
    assert [future.result(30) for future in futures[::2]] == ["a", "c"]
    with pytest.raises(Abandoned):
        futures[1].result(30)
    assert seen == ["a", "c"]
    worker.close()


def test_many_threads():
    worker = BatchWorker(lambda items: [item * item for item in items], 7, 0.001)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: worker.submit(number).result(60), range(500)))
    assert found == [number * number for number in range(500)]
    worker.close()


def test_budget():
    budget = Budget(3)
    assert budget.take(2)
    assert not budget.take(2)
    budget.give(2)
    assert budget.take(3)


def test_waiting_budget():
    """In order, also for large amounts; one that is not awaited any more does not block the others."""
    order = []

    async def use(budget, name, amount, seconds=0.0):
        taken = await budget.take(amount)
        order.append(name)
        await asyncio.sleep(seconds)
        budget.give(taken)

    async def run():
        budget = WaitingBudget(10)
        tasks = [asyncio.create_task(use(budget, *one)) for one in (("a", 8, 0.05), ("b", 100), ("c", 1), ("d", 9))]
        await asyncio.sleep(0.01)
        assert order == ["a"]  # c would fit, but b is before it
        lost = asyncio.create_task(budget.take(5))
        await asyncio.sleep(0)
        lost.cancel()
        await asyncio.gather(*tasks)
        assert budget._budget.used == 0
        assert await budget.take(10) == 10
        waiting = asyncio.create_task(budget.take(4))
        await asyncio.sleep(0)
        budget.give(10)
        waiting.cancel()  # it has its turn already
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert budget._budget.used == 0

    asyncio.run(run())
    assert order == ["a", "b", "c", "d"]
