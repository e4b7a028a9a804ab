"""Forms of layers of experts: ONNX Runtime's kernel, or experts that gather their tokens.

Both compute the chosen experts alone. The kernel takes less time for few tokens, the products of
gathered tokens for many; where these part depends on how many tokens an expert gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regraft.backends.onnx.experts_kernel import has_kernel
from regraft.backends.onnx.legalize.costs import Features
from regraft.backends.onnx.legalize.site import Build, Limits
from regraft.backends.onnx.moe_gathered import gathered
from regraft.backends.onnx.ops.moe import GATHERED_SINCE
from regraft.ir.dims import product
from regraft.ir.graph import Node
from regraft.ir.ops import moe, quant
from regraft.ir.ops.shapes import operands_of
from regraft.ir.opspec import OpSpec
from regraft.ir.types import DType

TOKENS: tuple[int, ...] = (1, 4, 16, 64, 256)
"""Numbers of tokens assumed where nothing fixes them: one that is generated, to short texts."""

_MANY_TOKENS = 16
"""From here on gathering is the standard form: what is not measured keeps it."""


@dataclass(frozen=True, slots=True)
class ExpertsSite:
    """Where a layer of experts stands that the kernel computes as well."""

    name: str = "moe"
    roots: tuple[OpSpec, ...] = (moe.moe,)

    def features(self, node: Node, limits: Limits) -> Features | None:
        """Returns whether experts are gated; tokens, experts, choices and channels."""
        x, _, up, _ = operands_of(node, 4)
        if up.producer is not None and up.producer.op is quant.dequantize:
            return None  # codes have one kernel
        if not has_kernel(node) or x.dtype is not DType.F32 or limits.max_opset < GATHERED_SINCE:
            return None
        E, F, D = (int(str(size)) for size in up.shape or ())
        return Features(
            {"gated": "no" if node.inputs[4] is None else "yes"},
            {"T": _tokens(node, limits), "E": (E,), "k": (node.attrs["top_k"],), "D": (D,),
             "F": (F,)},
        )  # fmt: skip

    def forms(self, node: Node, limits: Limits) -> Mapping[str, Build | None]:
        """Returns both forms, the standard one first."""
        forms: dict[str, Build | None] = {
            "kernel": None, "gathered": lambda b: gathered(node, b)
        }  # fmt: skip
        is_many = min(_tokens(node, limits)) >= _MANY_TOKENS
        return dict(sorted(forms.items(), key=lambda item: (item[0] == "kernel") == is_many))


def _tokens(node: Node, limits: Limits) -> tuple[int, ...]:
    x = operands_of(node, 1)[0]
    return limits.sizes(product((x.shape or ())[:-1]), TOKENS)
