"""Limits on what the server keeps in memory."""

import asyncio
from collections import deque


class Budget:
    """
    A number that must not be exceeded, such as bytes of uploads or photos in the queue.

    Args:
        limit (`int`): the limit.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def take(self, amount: int) -> bool:
        """
        Take an amount, if there is enough left.

        Args:
            amount (`int`): the amount.

        Returns:
            `bool`: whether it was taken.
        """
        if self.used + amount > self.limit:
            return False
        self.used += amount
        return True

    def give(self, amount: int) -> None:
        """
        Give an amount back.

        Args:
            amount (`int`): the amount.
        """
        self.used -= amount


class WaitingBudget:
    """
    A budget whose users wait for their turn, in order. One event loop uses it.

    Args:
        limit (`int`): the limit. Larger amounts count as the limit, and are used alone.
    """

    def __init__(self, limit: int) -> None:
        self._budget = Budget(limit)
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, amount: int) -> int:
        """
        Wait until there is enough left, and take it.

        Args:
            amount (`int`): the amount.

        Returns:
            `int`: what was taken, to give back.
        """
        amount = min(amount, self._budget.limit)
        if self._waiting or not self._budget.take(amount):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((amount, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it was taken for this task already
                    self.give(amount)
                raise
        return amount

    def give(self, amount: int) -> None:
        """
        Give back what was taken.

        Args:
            amount (`int`): result of `take`.
        """
        self._budget.give(amount)
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.cancelled():
                if not self._budget.take(wanted):
                    return
                turn.set_result(None)
            self._waiting.popleft()


__all__ = ["Budget", "WaitingBudget"]
