"""Compiles kernels for a GPU that is not there, and reads what came out.

`python -m regraft.backends.triton.ahead_of_time sm_90 sm_80 gfx942` prints one JSON line per
kernel and target. Triton's wheel brings ptxas and LLVM along; no driver is needed. Not possible
in a process with `TRITON_INTERPRET=1`, where kernels are Python functions.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.interpreter import InterpretedFunction

from regraft.backends.triton.kernels.form import Bound, Form
from regraft.backends.triton.kernels.forms import forms

ALIGNED = [["tt.divisibility", 16]]
"""What the launcher finds of a pointer or an integer that is a multiple of 16."""

ONE_EACH = "--one-each"
"""Of each kernel the first form alone."""

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a kernel became on a target.

    Args:
        form: Name of the form.
        kernel: Name of the kernel.
        target: Name of the target.
        bound: What limits the kernel (`memory` or `matmul`).
        binary_bytes: Size of the cubin or hsaco.
        shared_bytes: Shared memory of a program.
        spilled: Bytes of registers that did not fit and went to memory (cuda: stores and loads
            of a thread; hip: scratch memory of a lane). Scalar registers of AMD that lie in lanes
            of vector registers are none: they stay on the chip.
        wide_accesses: Loads and stores of 16 bytes, in global memory.
        narrow_accesses: Loads and stores of fewer bytes.
        matrix_instructions: wgmma, mma and mfma instructions by name.
    """

    form: str
    kernel: str
    target: str
    bound: str
    binary_bytes: int
    shared_bytes: int
    spilled: int
    wide_accesses: int
    narrow_accesses: int
    matrix_instructions: dict[str, int]


def compile_form(form: Form, target: str) -> Compiled:
    """Returns what came of compiling `form` for `target`, a key of `TARGETS`.

    Raises:
        RuntimeError: Triton's interpreter is on.
    """
    if isinstance(form.kernel, InterpretedFunction):
        raise RuntimeError(  # noqa: TRY004 - the process is wrong, not the argument
            "kernels are interpreted in this process, expected functions to compile\n"
            "hint: unset TRITON_INTERPRET before Triton is imported"
        )
    if TARGETS[target].backend == "hip" and form.hip:
        own = dict(form.hip)
        warps = own.pop("warps", form.warps)
        form = replace(form, constants={**form.constants, **own}, warps=warps)
    source = _source(form)
    # stated because its default differs between versions of Triton
    options = {"num_warps": form.warps, "num_stages": form.stages, "enable_fp_fusion": True}
    if TARGETS[target].backend == "hip":
        options["num_stages"] = min(form.stages, 2)
    built = triton.compile(source, target=TARGETS[target], options=options)
    return read_compiled(form.name, form.kernel.__name__, form.bound, target, built)


def read_compiled(name: str, kernel: str, bound: Bound, target: str, built: Any) -> Compiled:
    """Returns what is told of a kernel that Triton compiled.

    Args:
        name: Of the form.
        kernel: Of the kernel.
        bound: What limits it.
        target: A key of `TARGETS`.
        built: What `triton.compile` returned.
    """
    read = _read_hip if TARGETS[target].backend == "hip" else _read_cuda
    return read(name, kernel, bound, target, built)


def _source(form: Form) -> ASTSource:
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], object] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for idx, name in enumerate(form.kernel.arg_names):
        if name in form.constants:
            signature[name] = "constexpr"
            constants[(idx,)] = form.constants[name]
            continue
        if name.endswith("_ptr"):
            signature[name] = f"*{_element(form, name)}"
            attributes[(idx,)] = ALIGNED
            continue
        signature[name] = "fp32" if name in form.floats else "i32"
        if name not in form.floats and name not in form.unaligned:
            attributes[(idx,)] = ALIGNED
    return ASTSource(form.kernel, signature, constexprs=constants, attrs=attributes)


def _element(form: Form, name: str) -> str:
    """Returns Triton's name of what an argument points to."""
    others = (
        (form.wide, "fp32"), (form.wholes, "i64"), (form.bytes, "u8"), (form.signed_bytes, "i8"),
    )  # fmt: skip
    return next((element for names, element in others if name in names), form.dtype)


def _read_cuda(name: str, kernel: str, bound: Bound, target: str, built: Any) -> Compiled:
    ptx: str = built.asm["ptx"]
    accesses = re.findall(r"\b(?:ld|st)\.global(\.[\w:.]*)", ptx)
    wide = sum(1 for access in accesses if access_bytes(access) == 16)
    # asynchronous copies to shared memory, which feed matrix products
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global\b[^,]*,[^,]*, (0x[0-9a-f]+|\d+)", ptx)
    wide += sum(1 for size in copies if int(size, 0) == 16)
    return Compiled(
        name,
        kernel,
        target,
        bound.value,
        len(built.asm["cubin"]),
        built.metadata.shared,
        cuda_spills(ptx, built.asm["cubin"], TARGETS[target]),
        wide,
        len(accesses) + len(copies) - wide,
        _counted(r"\b(wgmma\.mma_async|mma)\.sync", ptx),
    )


def access_bytes(suffix: str) -> int:
    """Returns the bytes that `.v4.b32` and the like move."""
    width = re.search(r"\.[bfsu](\d+)$", suffix)
    lanes = re.search(r"\.v(\d)", suffix)
    return (int(width[1]) // 8 if width else 0) * (int(lanes[1]) if lanes else 1)


def cuda_spills(ptx: str, cubin: bytes, target: GPUTarget) -> int:
    """Returns the bytes that ptxas spills to local memory, loads and stores together."""
    architecture = re.search(r"\.target (sm_\w+)", ptx)
    assert architecture is not None, "PTX names its target"
    with tempfile.TemporaryDirectory() as folder:
        if not _has_stack(cubin, Path(folder) / "kernel.cubin"):
            return 0
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx, encoding="utf-8")
        done = subprocess.run(
            [
                get_ptxas(target.arch).path,
                "-v",
                f"--gpu-name={architecture[1]}",
                path.name,
                "-o",
                "k",
            ],
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,
        )
    found = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    assert found, f"ptxas -v reports spills: {done.stderr}"
    return sum(int(count) for count in found)


def _has_stack(cubin: bytes, path: Path) -> bool:
    """Whether threads have memory of their own, as they do where registers are spilled."""
    path.write_bytes(cubin)
    done = subprocess.run(
        [knobs.nvidia.cuobjdump.path, "-res-usage", path.name],
        capture_output=True, text=True, check=True, cwd=path.parent,
    )  # fmt: skip
    found = re.findall(r"\bSTACK:(\d+)", done.stdout)
    assert found, f"cuobjdump -res-usage reports stacks: {done.stdout}"
    return any(int(size) > 0 for size in found)


def _read_hip(name: str, kernel: str, bound: Bound, target: str, built: Any) -> Compiled:
    text: str = built.asm["amdgcn"]
    accesses = re.findall(r"\b(?:global|buffer)_(?:load|store)_(\w+)", text)
    wide = sum(1 for access in accesses if access == "dwordx4")
    scratch = re.findall(r"\.private_segment_fixed_size:\s*(\d+)", text)
    assert scratch, "the assembler's metadata states scratch memory"
    return Compiled(
        name,
        kernel,
        target,
        bound.value,
        len(built.asm["hsaco"]),
        built.metadata.shared,
        sum(int(count) for count in scratch),
        wide,
        len(accesses) - wide,
        _counted(r"\b(v_mfma)_\w+", text),
    )


def _counted(pattern: str, text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in re.findall(pattern, text):
        counts[name] = counts.get(name, 0) + 1
    return counts


def main(arguments: Sequence[str]) -> None:
    """Prints what every form became on every target that is named, or on all."""
    targets = [argument for argument in arguments if argument != ONE_EACH]
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise SystemExit(f"error: unknown target `{unknown[0]}`, expected {', '.join(TARGETS)}")
    chosen = list(forms())
    if ONE_EACH in arguments:
        chosen = list({form.kernel: form for form in reversed(chosen)}.values())
    for target in targets or tuple(TARGETS):
        for form in chosen:
            print(json.dumps(asdict(compile_form(form, target))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
