"""A package of its own that extends regraft: an operator, and everything around it."""

from dataclasses import dataclass
from typing import Any, ClassVar

from regraft import Context, Exact, Module, PassResult, Plugin, Reject, Rule
from regraft.backends.onnx.emitter import Emit, EmitContext
from regraft.frontends.onnx.importer import Import, NodeImport
from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of
from regraft.ir.graph import Node, Value
from regraft.ir.ops import OPS
from regraft.ir.opspec import Attr, AttrKind, Operand, OpSpec
from regraft.ir.rewrite import RuleSet, rewrite
from regraft.ir.types import DType


def _body(node: Node, b: Builder) -> Value:
    return b.op(
        OPS["relu"], b.op(OPS["sub"], node.inputs[0], b.constant(node.attrs["by"], DType.F32))
    )


SHIFTED_RELU = OpSpec(
    name="acme.shifted_relu",
    source="max(x - by, 0)",
    operands=(Operand("x"),),
    attrs=(Attr("by", AttrKind.FLOAT),),
    axes="*b -> *b",
    eval=lambda c, x: (x - c.attrs["by"]).clip(0, None),
    body=_body,
)


def read(item: NodeImport) -> Value:
    """Imports `acme:ShiftedRelu`."""
    return item.b.op(SHIFTED_RELU, item.require(0), by=item.attr("by", 0.0))


def write(e: EmitContext) -> None:
    """Writes two nodes; not those of the body, so that a test sees who wrote."""
    shifted = e.op("Sub", e.inputs[0], e.const(e.node.attrs["by"], "float32"))
    e.emit("Max", [shifted, e.const(0, "float32")])


class FindShift(Rule):
    """relu(x - c) -> acme.shifted_relu(x), c a scalar."""

    def pattern(self, p: Any, x: Any, c: Any) -> Any:
        return p.relu(p.sub(x, p.constant(c)))

    def guard(self, m: Any, c: Any) -> Any:
        shift = constant_of(c)
        return float(shift) if shift is not None and shift.ndim == 0 else Reject("no scalar", c)

    def apply(self, plan: float, b: Any, x: Any) -> Any:
        return b.op(SHIFTED_RELU, x, by=plan)


@dataclass(frozen=True, slots=True)
class FindShifts:
    """Raises relu(x - c) to `acme.shifted_relu`."""

    name: ClassVar = "acme-find-shifts"
    contract: ClassVar = Exact()

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Raises to a fixpoint."""
        stats = rewrite(module, RuleSet(FindShift()), observer=ctx.observer)
        return PassResult(bool(stats.counts), dict(stats.counts))


PLUGIN = Plugin(
    api_version=1,
    name="acme",
    passes=(FindShifts,),
    operators=(SHIFTED_RELU,),
    onnx_importers=(Import("ShiftedRelu", {1: read}, domain="acme"),),
    onnx_emitters=(Emit(SHIFTED_RELU, {13: write}),),
)
