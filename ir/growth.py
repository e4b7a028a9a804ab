"""A file that one thread writes while others read along behind it."""

from __future__ import annotations

from threading import Condition
from types import TracebackType
from typing import Self

from regraft.ir.errors import InputError


class Growth:
    """How far a file is written: who wants bytes that are not there yet waits for them.

    As a context it ends the growth: who still waits then gets an error.
    """

    __slots__ = ("__weakref__", "_changed", "_end_offset", "_ended")

    def __init__(self) -> None:
        self._changed = Condition()
        self._end_offset = 0
        self._ended = False

    def advance(self, end_offset: int) -> None:
        """Says that all bytes before an offset are in the file."""
        with self._changed:
            self._end_offset = end_offset
            self._changed.notify_all()

    def wait(self, end_offset: int) -> None:
        """Returns when all bytes before an offset are in the file.

        Raises:
            InputError: When writing ended before.
        """
        if end_offset <= self._end_offset:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._ended or end_offset <= self._end_offset)
            if end_offset > self._end_offset:
                raise InputError(
                    f"a file was to have {end_offset:,} bytes; {self._end_offset:,} were written"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
