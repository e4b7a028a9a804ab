"""Compiles the kernels that a package launches, for GPUs that are not there.

The model runs its example on a CPU while every launch is noted; each distinct one is compiled for
each target. A binary takes for granted what the launch shows of widths and strides (1, multiples of
16), and nothing of counts of rows, which change from call to call. Where a table buckets by such a
count, all buckets are compiled. Gradients are not: binaries serve.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef
from triton.compiler import ASTSource
from triton.runtime.interpreter import InterpretedFunction

from regraft.backends.triton import launcher
from regraft.backends.triton.ahead_of_time import ALIGNED, TARGETS
from regraft.backends.triton.kernels.form import is_count
from regraft.backends.triton.selftest import tensors_in
from regraft.ir.errors import UsageError

LAUNCHER, FOLDER, MANIFEST = "aot.py", "binaries", "manifest.json"
BUCKETED_BY_COUNT = (
    "linear", "gated", "generated", "generated_linear", "generated_linear_rows",
    "generated_rows_linear", "grouped",
    "grouped_hidden", "low_bit", "low_bit_integer",
)  # fmt: skip
"""Entries of the table of configurations whose size is not one of the model alone."""

_OPTIONS = ("num_warps", "num_stages")


def check_targets(targets: Sequence[str]) -> None:
    """Checks the names of targets.

    Raises:
        UsageError: For one that kernels are not compiled for.
    """
    for target in targets:
        if target not in TARGETS:
            raise UsageError(f"unknown target of --aot `{target}`", hint=", ".join(TARGETS))


@dataclass(frozen=True, slots=True)
class Launch:
    """One way in which a kernel is launched.

    Args:
        kernel: The kernel.
        constants: Values of its compile-time constants and of arguments that are 1.
        arguments: Name and type of the others.
        divisible: Those that are multiples of 16.
        options: Warps and stages.
    """

    kernel: Any
    constants: tuple[tuple[str, Any], ...]
    arguments: tuple[tuple[str, str], ...]
    divisible: tuple[str, ...]
    options: tuple[tuple[str, int], ...]


class Launches:
    """Notes launches instead of making them, in place of `wrap_triton`."""

    def __init__(self) -> None:
        self.found: dict[Launch, None] = {}

    def __call__(self, kernel: Any) -> Mapping[Any, Callable[..., None]]:
        """Returns what notes a launch of the kernel where a grid and arguments are given."""
        return _Noted(self, kernel)  # type: ignore[return-value]  # it is indexed, no more

    def note(self, kernel: Any, args: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Notes a launch, once for what would be compiled of it."""
        given = dict(zip(kernel.arg_names, args, strict=False)) | dict(named)
        options = tuple((name, given.pop(name)) for name in _OPTIONS if name in given)
        constexprs = {kernel.arg_names[idx] for idx in kernel.constexprs}
        constants, arguments, divisible = [], [], []
        for name in kernel.arg_names:
            value = given[name]
            if name in constexprs or _is_one(name, value):
                constants.append((name, value))
                continue
            arguments.append((name, _type_of(value)))
            is_multiple = isinstance(value, Tensor) or (
                isinstance(value, int) and value % 16 == 0 and not is_count(name)
            )
            if is_multiple:
                divisible.append(name)
        launch = Launch(kernel, tuple(constants), tuple(arguments), tuple(divisible), options)
        self.found.setdefault(launch)


def _is_one(name: str, value: Any) -> bool:
    return isinstance(value, int) and value == 1 and not is_count(name)


class _Noted:
    def __init__(self, launches: Launches, kernel: Any) -> None:
        self._launches = launches
        self._kernel = kernel

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **named: self._launches.note(self._kernel, args, named)


def _type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return launcher.POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def launches_of(
    net: nn.Module, example: Mapping[str, Any], kernels: ModuleType, *, target: str
) -> list[Launch]:
    """Returns the distinct launches of a call of a model on a CPU.

    Args:
        net: The model of a package.
        example: Its arguments, as the self-test has them.
        kernels: The package's kernels; changed while this runs.
        target: What they are for: some kernels have configurations for it.

    Raises:
        UsageError: Triton's interpreter is on.
    """
    noted = Launches()
    operators = [item for item in vars(kernels).values() if isinstance(item, CustomOpDef)]
    for item in vars(kernels).values():
        if isinstance(item, InterpretedFunction):
            raise UsageError("--aot compiles kernels, TRITON_INTERPRET=1 interprets them")
    before = kernels.wrap_triton, kernels.choose
    kernels.wrap_triton = noted  # type: ignore[attr-defined]  # the module has the name
    try:
        for operator in operators:
            operator.register_kernel("cpu")(_also(operator.launch, operator.on_cpu))
        for bucket in range(_most_buckets(kernels)):
            kernels.choose = _bucket(kernels, before[1], bucket, target)  # type: ignore[attr-defined]
            with torch.no_grad():
                list(tensors_in(net(*example["args"], **example["kwargs"])))
    finally:
        kernels.wrap_triton, kernels.choose = before  # type: ignore[attr-defined]
        for operator in operators:
            operator.register_kernel("cpu")(operator.on_cpu)
    return list(noted.found)


def _also(launch: Callable[..., Any], on_cpu: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        launch(*args)  # is noted; what it allocates stays empty
        return on_cpu(*args)

    return run


def _most_buckets(kernels: ModuleType) -> int:
    table = kernels.read_table()
    counts = [
        len(buckets)
        for name in BUCKETED_BY_COUNT
        for dtypes in table.get(name, {}).values()
        for buckets in dtypes.values()
    ]
    return max(counts, default=1)


def _bucket(
    kernels: ModuleType, choose: Callable[..., Any], idx: int, target: str
) -> Callable[..., Any]:
    """Returns `choose` with the given bucket where the size is one of a call."""

    def chosen(kernel: str, device: str, dtype: str, size: int, **_: str) -> Any:
        if kernel not in BUCKETED_BY_COUNT:
            return choose(kernel, device, dtype, size, architecture=target)
        buckets = kernels.buckets_of(kernel, device, dtype, architecture=target)
        return buckets[min(idx, len(buckets) - 1)]

    return chosen


def write_binaries(
    folder: Path, net: nn.Module, example: Mapping[str, Any], targets: Sequence[str]
) -> list[Path]:
    """Compiles what a package launches and writes binaries, manifest and launcher.

    Args:
        folder: The package.
        net: Its model, as `load_package` gave it.
        example: A call of it, as the self-test has it.
        targets: Keys of `TARGETS`.

    Returns:
        The files written.
    """
    name = f"{type(net).__module__.rpartition('.')[0]}.kernels"
    files, rows = [], []
    for target in targets:
        known = sys.modules.get(name)
        launches = launches_of(net, example, known, target=target) if known is not None else []
        (folder / FOLDER / target).mkdir(parents=True, exist_ok=True)
        for launch in launches:
            row, binary = _compiled(launch, target)
            path = folder / row["file"]
            path.write_bytes(binary)
            row["file"] = str(Path(row["file"]).relative_to(FOLDER))
            rows.append(row)
            files.append(path)
    manifest = folder / FOLDER / MANIFEST
    manifest.parent.mkdir(exist_ok=True)
    text = json.dumps({"triton": triton.__version__, "binaries": rows}, indent=1)
    manifest.write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(launcher.__file__, folder / LAUNCHER)
    return [*files, manifest, folder / LAUNCHER]


def compiled(launch: Launch, target: str) -> Any:
    """Returns what Triton makes of a launch for a target."""
    kernel, types = launch.kernel, dict(launch.arguments)
    places = {name: (idx,) for idx, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        {name: types.get(name, "constexpr") for name in kernel.arg_names},
        constexprs={places[name]: value for name, value in launch.constants},
        attrs={places[name]: ALIGNED for name in launch.divisible},
    )
    options = dict(launch.options)
    stages = options.get("num_stages", 3)
    is_hip = TARGETS[target].backend == "hip"
    options["num_stages"] = min(stages, 2) if is_hip else stages
    return triton.compile(source, target=TARGETS[target], options=options)


def _compiled(launch: Launch, target: str) -> tuple[dict[str, Any], bytes]:
    """Returns a row of the manifest, and the binary."""
    kernel = launch.kernel
    built = compiled(launch, target)
    stages = dict(launch.options).get("num_stages", 3)
    is_hip = TARGETS[target].backend == "hip"
    suffix = "hsaco" if is_hip else "cubin"
    binary: bytes = built.asm[suffix]
    digest = hashlib.sha256(binary).hexdigest()
    return {
        "kernel": kernel.__name__,
        "target": target,
        "file": f"{FOLDER}/{target}/{kernel.__name__}-{digest[:12]}.{suffix}",
        "symbol": built.metadata.name,
        "constants": dict(launch.constants),
        "divisible": launch.divisible,
        "arguments": launch.arguments,
        "scratch_pointers": _num_parameters(built, is_hip) - len(launch.arguments),
        "shared": built.metadata.shared,
        "warps": built.metadata.num_warps,
        "stages": stages,
        "threads_per_warp": TARGETS[target].warp_size,
        "sha256": digest,
        "source": hashlib.sha256(kernel.src.encode()).hexdigest(),
    }, binary


def _num_parameters(built: Any, is_hip: bool) -> int:
    if is_hip:
        return len(re.findall(r"\.value_kind:\s*(?:global_buffer|by_value)", built.asm["amdgcn"]))
    entry = re.search(r"\.entry [^(]*\((.*?)\)", built.asm["ptx"], re.DOTALL)
    assert entry is not None, "PTX has an entry"
    return entry[1].count(".param")
