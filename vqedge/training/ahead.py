"""What a step needs, made while the step before it runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

from typing_extensions import Self

T = TypeVar("T")


class Ahead(Generic[T]):
    """Makes the next step's things in a thread of its own while this step's are used.

    Args:
        make: a pure function of the step's number; reads nothing that a step changes.
        end: how many steps there are; none is made beyond.
    """

    def __init__(self, make: Callable[[int], T], end: int) -> None:
        self._make, self._end = make, end
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._begun: dict[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        """What is made of a step; whatever was wrong with making it is raised here."""
        made = self._begun.pop(step, None) or self._pool.submit(self._make, step)
        found = made.result()
        if step + 1 < self._end:
            self._begun[step + 1] = self._pool.submit(self._make, step + 1)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
