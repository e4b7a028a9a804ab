"""Compiles what the default configurations launch for a GPU that is not there.

A process of its own, without Triton's interpreter: `python -m benchmarks.triton_launches sm_90`
prints a JSON line per launch. `tune`'s calls are made on a CPU at the size of every bucket, in f32,
f16 and bf16, while their launches are noted.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from types import ModuleType
from typing import Any

import torch
from torch._library.custom_ops import CustomOpDef

from regraft import kernel_tuning, tuned_calls
from regraft.backends.triton import kernels as package
from regraft.backends.triton.ahead_of_time import read_compiled
from regraft.backends.triton.binaries import Launch, Launches, compiled
from regraft.backends.triton.kernels import configs
from regraft.backends.triton.kernels.form import Bound
from regraft.backends.triton.kernels.forms import forms

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def modules() -> list[ModuleType]:
    """Returns the files of kernels."""
    names = [item.name for item in pkgutil.iter_modules(package.__path__)]
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def noted(found: Launches, target: str) -> None:
    """From here on, operators on a CPU note what they would launch."""
    choose = configs.choose

    def chosen(*args: Any, **named: Any) -> configs.Config:
        return choose(*args, **{**named, "architecture": target})

    configs.choose = chosen
    for module in modules():
        if hasattr(module, "wrap_triton"):
            module.wrap_triton = found  # type: ignore[attr-defined]  # the module has the name
        for item in vars(module).values():
            if isinstance(item, CustomOpDef):
                item.register_kernel("cpu")(item.launch)
    # shapes decide what is compiled: the smallest at which all alignments are those of large ones
    for name, size in {"ELEMENTS": 1 << 16, "WIDTH": 256, "TOKENS": 256, "WORDS": 512}.items():
        setattr(tuned_calls, name, size)


def calls() -> Iterator[tuple[str, Any]]:
    """Yields a label and a call for every bucket and dtype of the table."""
    for entry, make in tuned_calls.CALLS.items():
        for dtype in _DTYPES:
            name = str(dtype).removeprefix("torch.")
            for bucket, size in kernel_tuning.buckets(entry, dtype):
                yield f"{entry} {name} up to {bucket['up_to']}", make(size, dtype)


def bounds() -> Mapping[str, Bound]:
    """Returns what limits each kernel, by its name."""
    return {form.kernel.__name__: form.bound for form in forms()}


def is_exact(built: Any) -> bool:
    """Whether no product is one that matrix instructions compute: all are of f32 in full."""
    products = [line for line in built.asm["ttir"].splitlines() if " tt.dot " in line]
    return all("xf32> * tensor<" in line and "tf32" not in line for line in products)


def main(target: str) -> None:
    """Prints what every launch became."""
    found, limits = Launches(), bounds()
    labels: dict[Launch, str] = {}
    noted(found, target)
    for label, call in calls():
        call()
        for launch in found.found:
            labels.setdefault(launch, label)
    for launch, label in labels.items():
        name = launch.kernel.__name__
        built = compiled(launch, target)
        row = read_compiled(f"{name}: {label}", name, limits[name], target, built)
        constants = {key: value for key, value in launch.constants if key.startswith("BLOCK")}
        about = {"constants": constants, "is_exact": is_exact(built)}
        print(json.dumps({**asdict(row), **about}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
