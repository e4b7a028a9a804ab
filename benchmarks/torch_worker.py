"""Processes that measure one model after another, each within a time limit.

A process stays for the next model, for importing PyTorch and its libraries takes longer than a tiny
model; one that runs past its limit, or dies, is replaced.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any

Answer = dict[str, Any]
Measure = Callable[[str], Answer]


def _serve(measure: Measure, calls: Connection) -> None:
    while (name := calls.recv()) is not None:
        calls.send(measure(name))


@dataclass(slots=True)
class Worker:
    """One process, started when it is first needed.

    Args:
        measure: What it calls with the name of a model; a function of a module.
    """

    measure: Measure
    _process: BaseProcess | None = field(default=None, init=False)
    _calls: Connection | None = field(default=None, init=False)

    def ask(self, name: str, limit_s: float) -> Answer | str:
        """Returns what the measurement of a model gave, or why it gave nothing."""
        calls = self._calls or self._start()
        began = time.perf_counter()
        calls.send(name)
        try:
            if calls.poll(limit_s):
                answer: Answer = calls.recv()
                return answer
            reason = f"ran past {limit_s:.0f} s"
        except EOFError:
            reason = f"the process died after {time.perf_counter() - began:.0f} s"
        self.stop()
        return reason

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._calls, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self.measure, theirs), daemon=True)
        self._process.start()
        theirs.close()
        return self._calls

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        if self._process is not None and self._calls is not None:
            self._process.kill()
            self._process.join()
            self._calls.close()
        self._process = self._calls = None


def measured(
    names: Sequence[str], measure: Measure, *, limit_s: float, num_workers: int = 2
) -> Iterator[tuple[str, Answer | str]]:
    """Iterates over models as they are done: name, and what was measured or why nothing was.

    Args:
        names: Names of models.
        measure: Function of a module that measures the model of a name.
        limit_s: Seconds of one model; the first of a process pays its imports.
        num_workers: Number of processes.
    """
    free: SimpleQueue[Worker] = SimpleQueue()
    workers = [Worker(measure) for _ in range(num_workers)]
    for worker in workers:
        free.put(worker)

    def ask(name: str) -> tuple[str, Answer | str]:
        worker = free.get()
        try:
            return name, worker.ask(name, limit_s)
        finally:
            free.put(worker)

    pool = ThreadPoolExecutor(num_workers)
    try:
        for done in as_completed([pool.submit(ask, name) for name in names]):
            yield done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # whoever reads the answers may stop early
        for worker in workers:
            worker.stop()
