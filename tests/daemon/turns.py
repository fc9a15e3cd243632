"""Counts turns of the event loop during work in slices."""

from __future__ import annotations

import asyncio
from typing import Self


class Turns:
    """Counts the loop's turns between `__enter__` and `__exit__`; in each turn other work could run."""

    count = 0

    def __enter__(self) -> Self:
        self._counting = asyncio.create_task(self._count())
        return self

    def __exit__(self, *_: object) -> None:
        self._counting.cancel()

    async def _count(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)
