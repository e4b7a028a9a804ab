"""Launches kernels from binaries that were compiled when the package was written.

    import aot, kernels, model

    aot.use(kernels)      # from now on: no compiler at the first launch
    net = model.load().cuda()

`binaries/manifest.json` lists them: kernel, target, values of compile-time constants, what the
binary takes for granted (arguments that are 1 or multiples of 16), arguments with their types,
shared memory and warps. A launch that none fits is compiled by Triton as without this file, and
counted in `Binaries.missed`. Calls that `torch.compile` traces are Triton's as well.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "binaries"

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
_SCALARS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
_MAX_PLAIN_SHARED = 48 << 10
_SHARED_ATTRIBUTE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, in HIP too


class Driver(Protocol):
    """Loads and launches binaries."""

    def load(self, binary: bytes, name: str, shared: int) -> Any:
        """Returns the function of a binary, allowed as much shared memory as it needs."""
        ...

    def launch(
        self, function: Any, grid: tuple[int, int, int], threads: int, shared: int, values: Any
    ) -> None:
        """Launches a function on PyTorch's current stream; `values` points to its arguments."""
        ...


class DriverApi:
    """The driver of an NVIDIA or AMD GPU, through ctypes."""

    def __init__(self) -> None:
        self._is_hip = torch.version.hip is not None
        self._library = ctypes.CDLL("libamdhip64.so" if self._is_hip else "libcuda.so.1")
        self._prefix = "hip" if self._is_hip else "cu"

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, self._prefix + name)(*arguments)
        if code:
            raise RuntimeError(f"{self._prefix}{name} failed with code {code}")

    def _enter(self) -> None:
        """Makes the context of PyTorch's current device that of this thread, where it has none.

        A thread that PyTorch has not used, such as one of a pool, has none.
        """
        if self._is_hip:  # its functions find it themselves
            return
        context = ctypes.c_void_p()
        self._call("CtxGetCurrent", ctypes.byref(context))
        if context.value is None:
            device = torch.cuda.current_device()
            self._call("DevicePrimaryCtxRetain", ctypes.byref(context), device)
            self._call("CtxSetCurrent", context)

    def load(self, binary: bytes, name: str, shared: int) -> Any:
        """Returns the function of a binary, allowed as much shared memory as it needs."""
        self._enter()
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("ModuleLoadData", ctypes.byref(module), binary)
        self._call("ModuleGetFunction", ctypes.byref(function), module, name.encode())
        # AMD's driver gives a module's function all that there is
        if shared > _MAX_PLAIN_SHARED and not self._is_hip:
            self._call("FuncSetAttribute", function, _SHARED_ATTRIBUTE, shared)
        return function

    def launch(
        self, function: Any, grid: tuple[int, int, int], threads: int, shared: int, values: Any
    ) -> None:
        """Launches a function on PyTorch's current stream; `values` points to its arguments."""
        self._enter()
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        name = "ModuleLaunchKernel" if self._is_hip else "LaunchKernel"
        self._call(name, function, *grid, threads, 1, 1, shared, stream, values, None)


def current_target() -> str:
    """Returns the name of the GPU's architecture as the manifest has it."""
    if torch.version.hip is not None:
        name: str = torch.cuda.get_device_properties(0).gcnArchName
        return name.partition(":")[0]
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


class Binaries:
    """Takes the place of `wrap_triton` in a module of kernels.

    Args:
        jit: What launches where no binary fits.
        target: A target of the manifest.
        driver: Loads and launches.
        folder: Where the manifest and the binaries lie.
    """

    def __init__(
        self, jit: Callable[[Any], Any], target: str, driver: Driver, folder: Path = FOLDER
    ) -> None:
        rows = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["binaries"]
        self.rows: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            if row["target"] == target:
                self.rows.setdefault(row["kernel"], []).append(row)
        self.missed = 0
        self._jit = jit
        self._driver = driver
        self._folder = folder
        self._functions: dict[tuple[int, str], Any] = {}

    def __call__(self, kernel: Any) -> _Launcher:
        """Returns what launches a kernel: `binaries(kernel)[grid](...)`."""
        return _Launcher(self, kernel)

    def run(self, kernel: Any, grid: Sequence[int], args: Sequence[Any], named: Any) -> None:
        """Launches a kernel from a binary, or as Triton does."""
        given = dict(zip(kernel.arg_names, args, strict=False)) | named
        name = kernel.__name__
        row = next((row for row in self.rows.get(name, []) if fits(row, name, given)), None)
        if row is None:
            self.missed += 1
            self._jit(kernel)[tuple(grid)](*args, **named)
            return
        # a function is one of a device, which the operator has made the current one
        key = torch.cuda.current_device() if torch.cuda.is_initialized() else 0, row["file"]
        function = self._functions.get(key)
        if function is None:
            binary = (self._folder / row["file"]).read_bytes()
            function = self._driver.load(binary, row["symbol"], row["shared"])
            self._functions[key] = function
        holders, pointers = packed(row, given)
        x, y, z = (*grid, 1, 1)[:3]
        threads = row["warps"] * row["threads_per_warp"]
        self._driver.launch(function, (x, y, z), threads, row["shared"], pointers)
        del holders  # alive until the driver has copied them


class _Launcher:
    def __init__(self, binaries: Binaries, kernel: Any) -> None:
        self._binaries = binaries
        self._kernel = kernel

    def __getitem__(self, grid: Sequence[int]) -> Callable[..., None]:
        def launch(*args: Any, **named: Any) -> None:
            self._binaries.run(self._kernel, grid, args, named)

        return launch


def fits(row: Mapping[str, Any], kernel: str, given: Mapping[str, Any]) -> bool:
    """Returns whether a binary is that of a kernel, and what it takes for granted holds."""
    return (
        row["kernel"] == kernel
        and all(given.get(name) == value for name, value in row["constants"].items())
        and row["warps"] == given.get("num_warps", row["warps"])
        and row["stages"] == given.get("num_stages", row["stages"])
        and all(_address(given[name]) % 16 == 0 for name in row["divisible"])
        and all(_is_of_type(given[name], type_) for name, type_ in row["arguments"])
    )


def _address(value: Any) -> int:
    return value.data_ptr() if isinstance(value, Tensor) else int(value)


def _is_of_type(value: Any, type_: str) -> bool:
    if isinstance(value, Tensor):
        return POINTERS.get(value.dtype) == type_
    if type_ == "i32":
        return isinstance(value, int) and -(2**31) <= value < 2**31
    return type_ in _SCALARS


def packed(row: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[list[Any], Any]:
    """Returns the arguments of a binary as C has them, and an array of pointers to them."""
    holders: list[Any] = []
    for name, type_ in row["arguments"]:
        value = given[name]
        if isinstance(value, Tensor):
            holders.append(ctypes.c_void_p(value.data_ptr()))
        else:
            holders.append(_SCALARS[type_](value))
    # scratch memory, of which these kernels need none
    holders += [ctypes.c_void_p(0) for _ in range(row["scratch_pointers"])]
    pointers = (ctypes.c_void_p * len(holders))(*[ctypes.addressof(each) for each in holders])
    return holders, pointers


def use(kernels: ModuleType) -> Binaries:
    """Makes a module of kernels launch from binaries; returns what counts the misses.

    Raises:
        RuntimeError: There is no GPU, or no binary for it.
    """
    if not torch.cuda.is_available():
        raise RuntimeError(
            "binaries run on a GPU, and PyTorch finds none\n"
            "hint: without `use`, the references run on the CPU"
        )
    target = current_target()
    found = Binaries(kernels.wrap_triton, target, DriverApi())
    if not found.rows:
        raise RuntimeError(
            f"no binary is for {target}, this GPU\n"
            f"hint: convert with `--aot {target}`; without `use`, Triton compiles the kernels"
        )
    kernels.wrap_triton = found  # type: ignore[attr-defined]  # the module has the name
    return found
