"""Prints what kernels transpose of their products before they multiply it again.

A process of its own, without Triton's interpreter: `python -m tests.backends.triton.turned_products
sm_90` prints a JSON line per form, with the transposed values that a product of matrices leads to.
Triton 3.4 to 3.7 compile those to wrong code on sm_90 where accumulators are those of wgmma
(flash-linear-attention's issues 640 and 984), which nothing but a GPU would show.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence

import triton
import triton.language as tl
from triton._C.libtriton import ir, passes

from regraft.backends.triton.kernels.form import Bound, Form
from regraft.backends.triton.kernels.forms import forms
from tests.backends.triton.floats_as_f64 import code_of

_NAME = re.compile(r"%[\w.]+(?:#\d+)?")


@triton.jit
def turned_kernel(x_ptr, BLOCK: tl.constexpr):  # noqa: N803 - a constant of Triton
    """Transposes a product, once through a sum that a loop carries."""
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + at)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for _ in range(4):
        total = tl.dot(x, tl.trans(x), total)
    tl.store(x_ptr + at, tl.dot(tl.trans(tl.exp(total).to(x.dtype)), x).to(x.dtype))


@triton.jit
def sometimes_turned_kernel(x_ptr, BLOCK: tl.constexpr):  # noqa: N803 - a constant of Triton
    """The same of a product that only some steps of the loop add."""
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + at)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for step in range(4):
        if tl.load(x_ptr + step) != 0:
            total = tl.dot(x, tl.trans(x), total)
    tl.store(x_ptr + at, tl.dot(tl.trans(tl.exp(total).to(x.dtype)), x).to(x.dtype))


TURNED = tuple(
    Form(name, kernel, "bf16", {"BLOCK": 64}, Bound.MATMUL, 4)
    for name, kernel in (("turned", turned_kernel), ("sometimes turned", sometimes_turned_kernel))
)
"""What has to be found."""


def turned_products(code: str) -> list[str]:
    """Returns the lines of a kernel's code that transpose what a product led to.

    Values are followed through every operation but loads, and through what loops carry.
    """
    made: dict[str, tuple[str, list[str]]] = {}
    open_regions: list[tuple[str, list[str]]] = []
    for line in (text.strip() for text in code.splitlines()):
        if line.startswith("} else"):
            continue  # the other region of the same operation
        if line.startswith("}"):
            open_regions.pop()
        results, _, does = line.partition(" = ") if line.startswith("%") else ("", "", line)
        name = results.partition(":")[0]
        operands = _NAME.findall(does)
        if does.startswith("scf.yield"):
            owner, carried = open_regions[-1]
            for idx, value in enumerate(operands):
                sources = [value, *carried[idx : idx + 1]]
                for key in (f"{owner}#{idx}", owner):
                    made.setdefault(key, ("", []))[1].extend(sources)
        elif "iter_args(" in does:
            pairs = re.findall(r"(%\w+) = (%[\w#]+)", does.partition("iter_args(")[2])
            # an argument is what entered the loop, and what its result is
            for idx, (argument, entered) in enumerate(pairs):
                made[argument] = ("", [entered, f"{name}#{idx}"])
                made[f"{name}#{idx}"] = ("", [])
            made[name] = ("", [])
            if line.endswith("{"):
                open_regions.append((name, [entered for _, entered in pairs]))
            continue
        elif name and not line.endswith("{"):
            made[name] = (does, [] if does.startswith("tt.load") else operands)
        if line.endswith("{"):
            open_regions.append((name, []))
    return [
        does
        for does, operands in made.values()
        if does.startswith("tt.trans") and _leads_from_product(operands, made)
    ]


def _leads_from_product(values: Sequence[str], made: dict[str, tuple[str, list[str]]]) -> bool:
    seen: set[str] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        does, operands = made.get(value, ("", []))
        if does.startswith("tt.dot"):
            return True
        waiting.extend(operands)
    return False


def main(arguments: Sequence[str]) -> None:
    """Prints a line per form."""
    for form in (*forms(), *TURNED):
        module, context = code_of(form, arguments[0])
        manager = ir.pass_manager(context)
        passes.common.add_inliner(manager)
        manager.run(module, "inlined")
        found = turned_products(str(module))
        print(json.dumps({"form": form.name, "products": str(module).count("tt.dot"),
                          "turned": found}))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
