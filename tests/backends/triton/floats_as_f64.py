"""Prints what kernels compute in f64 where their numbers are f64, as PyTorch's compiler has them.

A process of its own, without Triton's interpreter: `python -m tests.backends.triton.floats_as_f64
sm_90` prints a JSON line per kernel that takes numbers, with the operations on f64 beside casts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from triton._C.libtriton import ir
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

from regraft.backends.triton.ahead_of_time import TARGETS, _source
from regraft.backends.triton.kernels.form import Form
from regraft.backends.triton.kernels.forms import forms


def code_of(form: Form, target: str, floats: str = "fp32") -> tuple[Any, Any]:
    """Returns a kernel's code before any pass, and the context that has to outlive it.

    Args:
        form: The form.
        target: A key of `TARGETS`.
        floats: Type of the numbers that are no whole ones.
    """
    source = _source(form)
    signature = {
        name: floats if name in form.floats else type_ for name, type_ in source.signature.items()
    }
    source = ASTSource(form.kernel, signature, constexprs=source.constants, attrs=source.attrs)
    backend = make_backend(TARGETS[target])
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    options = backend.parse_options({"num_warps": form.warps, "num_stages": form.stages})
    made = source.make_ir(
        TARGETS[target], options, backend.get_codegen_implementation(options),
        backend.get_module_map(), context,
    )  # fmt: skip
    return made, context


def operations_on_f64(form: Form, target: str) -> list[str]:
    """Returns the lines of a kernel's code, before any pass, that compute in f64."""
    made, _ = code_of(form, target, "fp64")
    lines = str(made).splitlines()
    return [x for x in lines if "f64" in x and "arith.truncf" not in x and "tt.func" not in x]


def main(arguments: Sequence[str]) -> None:
    """Prints a line per kernel and dtype of those that take numbers."""
    seen = set()
    for form in forms():
        key = form.kernel.__name__, form.constants.get("SOFTCAP")
        if not form.floats or key in seen:
            continue
        seen.add(key)
        found = operations_on_f64(replace(form, hip={}), arguments[0])
        print(json.dumps({"kernel": form.kernel.__name__, "form": form.name, "f64": found}))


if __name__ == "__main__":
    main(sys.argv[1:])
