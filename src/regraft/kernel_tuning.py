"""Finds launch configurations by time: `regraft tune --target triton`.

From the default of a bucket, one value at a time moves to its neighbours for as long as the kernel
becomes faster. What is found goes into a table of this machine by device and dtype, which packages
are written with; GPUs that it does not name keep the defaults.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from regraft.backends.triton.kernels import configs
from regraft.ir.errors import UnsupportedError, UsageError
from regraft.passes.pipeline import suggest
from regraft.tuned_calls import CALLS, WIDEST, Call

MIN_GAIN = 0.02
"""Of the time; less is noise."""
MAX_SIZE = 16384
"""Of a bucket without an end."""

_DOUBLED = (
    "rows", "block", "elements", "m", "n", "k", "key_m", "key_n", "max_block", "heads", "chunk",
)  # fmt: skip
_LISTED: Mapping[str, tuple[int, ...]] = {
    "warps": (1, 2, 4, 8, 16),
    "gradient_warps": (1, 2, 4, 8, 16),
    "key_warps": (1, 2, 4, 8, 16),
    "in_place_warps": (8, 16, 32),
    "stages": (1, 2, 3, 4, 5),
    "group": (1, 4, 8, 16),
    "per_processor": (1, 2, 4, 8),
}

Timer = Callable[[str, configs.Config, Call], float]
"""(kernel, configuration, call) -> seconds."""
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class KernelTuning:
    """What tuning found.

    Args:
        device: Name of the GPU.
        table: Kernel -> device -> dtype -> buckets, of this device alone.
        gains: Kernel, dtype, bucket, and the time of the default over the time of what was found.
        failures: Configurations that the GPU has no room for.
    """

    device: str
    table: dict[str, dict[str, dict[str, list[dict[str, int]]]]]
    gains: tuple[tuple[str, str, int, float], ...]
    failures: tuple[str, ...]

    def to_json(self) -> str:
        """Returns the table as it is stored."""
        return json.dumps(self.table, indent=1) + "\n"


def check_kernels(kernels: Sequence[str]) -> None:
    """Checks names of kernels.

    Raises:
        UsageError: For one that cannot be tuned.
    """
    for name in kernels:
        if name not in CALLS:
            raise UsageError(f"unknown kernel `{name}`", hint=suggest(name, list(CALLS)))


def gpu_name() -> str:
    """Returns the name of the GPU.

    Raises:
        UnsupportedError: There is none.
    """
    if not torch.cuda.is_available():
        raise UnsupportedError(
            "`tune --target triton` times kernels on a GPU, and PyTorch finds none",
            hint="run it where the models will run; other GPUs take the defaults",
        )
    name: str = torch.cuda.get_device_name()
    return name


def tune_kernels(
    kernels: Sequence[str] = (),
    *,
    device: str | None = None,
    timer: Timer | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> KernelTuning:
    """Times configurations of every kernel, dtype and bucket.

    Args:
        kernels: Tune these alone; default: all that have a call to time.
        device: Name of the device; default: that of the GPU.
        timer: Returns the seconds of a call; default: the median on the GPU.
        quick: bf16 alone, and the defaults' neighbours alone.
        progress: Called with (index, total, what) before each bucket.

    Raises:
        UnsupportedError: Without a GPU.
        UsageError: For an unknown kernel.
    """
    check_kernels(kernels)
    device = gpu_name() if device is None else device
    timer = timed_on_gpu if timer is None else timer
    table: dict[str, dict[str, dict[str, list[dict[str, int]]]]] = {}
    gains: list[tuple[str, str, int, float]] = []
    failures: list[str] = []
    dtypes = (torch.bfloat16,) if quick else (torch.bfloat16, torch.float16, torch.float32)
    work = [
        (kernel, dtype, bucket, size)
        for kernel in kernels or CALLS
        for dtype in dtypes
        for bucket, size in buckets(kernel, dtype)
    ]
    for idx, (kernel, dtype, bucket, size) in enumerate(work):
        name = str(dtype).removeprefix("torch.")
        if progress is not None:
            progress(idx, len(work), f"{kernel} {name} up to {bucket['up_to']}")
        call = CALLS[kernel](size, dtype)
        found, gain = _descend(kernel, bucket, call, timer, failures, rounds=1 if quick else 8)
        table.setdefault(kernel, {}).setdefault(device, {}).setdefault(name, []).append(found)
        gains.append((kernel, name, bucket["up_to"], gain))
    return KernelTuning(device, table, tuple(gains), tuple(dict.fromkeys(failures)))


def timed_on_gpu(kernel: str, config: configs.Config, call: Call) -> float:
    """Returns the median time of a call; a configuration without room raises `OutOfResources`."""
    from triton.testing import do_bench  # it wants a driver

    return float(do_bench(call, warmup=10, rep=50, return_mode="median")) * 1e-3


def buckets(kernel: str, dtype: torch.dtype) -> Iterator[tuple[dict[str, int], int]]:
    """Yields the default's buckets and the size that each is timed at."""
    usual = configs.read_table()[kernel][configs.DEFAULT_DEVICE]
    name = str(dtype).removeprefix("torch.")
    before = 0
    for bucket in usual.get(name) or usual[configs.ANY_DTYPE]:
        size = bucket["up_to"]
        if size > MAX_SIZE:
            size = WIDEST.get(kernel, max(2 * before, 1024))
        before = bucket["up_to"]
        yield dict(bucket), size


def _descend(
    kernel: str,
    start: dict[str, int],
    call: Call,
    timer: Timer,
    failures: list[str],
    *,
    rounds: int,
) -> tuple[dict[str, int], float]:
    """Returns the fastest configuration found, and the gain over the first."""
    best, first = start, _seconds(kernel, start, call, timer, failures)
    least = first
    tried = {tuple(start.items())}
    for _ in range(rounds):
        before = least
        for candidate in _neighbours(best):
            if tuple(candidate.items()) in tried:
                continue
            tried.add(tuple(candidate.items()))
            seconds = _seconds(kernel, candidate, call, timer, failures)
            if seconds < least * (1 - MIN_GAIN):
                best, least = candidate, seconds
        if least >= before:
            break
    return best, first / least


def _neighbours(config: dict[str, int]) -> Iterator[dict[str, int]]:
    for key, value in config.items():
        if key in _LISTED:
            steps = _LISTED[key]
            place = min(range(len(steps)), key=lambda i: abs(steps[i] - value))
            others = [steps[i] for i in (place - 1, place + 1) if 0 <= i < len(steps)]
        elif key in _DOUBLED:
            least = 16 if key in ("m", "n", "k", "key_m", "key_n", "chunk") else 1
            others = [other for other in (value // 2, value * 2) if other >= least]
        else:
            continue
        for other in others:
            yield {**config, key: other}


def _seconds(
    kernel: str, config: dict[str, int], call: Call, timer: Timer, failures: list[str]
) -> float:
    with trial(kernel, config):
        try:
            return timer(kernel, config, call)
        except OutOfResources as error:
            failures.append(f"{kernel} {config}: {error}")
            return float("inf")


@contextmanager
def trial(kernel: str, config: configs.Config) -> Iterator[None]:
    """Every launch of a kernel within takes one configuration."""
    table: Any = configs.read_table()
    before = table[kernel]
    table[kernel] = {configs.DEFAULT_DEVICE: {configs.ANY_DTYPE: [config]}}
    try:
        yield
    finally:
        table[kernel] = before


def merge_into(path: Path, tuning: KernelTuning) -> str:
    """Returns the text of a table of this machine with what was found put in."""
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for kernel, devices in tuning.table.items():
        for device, dtypes in devices.items():
            known.setdefault(kernel, {}).setdefault(device, {}).update(dtypes)
    return json.dumps(known, indent=1) + "\n"
