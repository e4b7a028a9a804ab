"""Importers of random tensors; their numbers differ from PyTorch's, their distribution does not."""

from __future__ import annotations

from regraft.frontends.torch.call import CallImport, Import, Importer, UnsupportedCallError, row
from regraft.frontends.torch.ops.repeat import expanded
from regraft.frontends.torch.ops.shape import shape_of
from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, random, rounding
from regraft.ir.types import DType


def _uniform(c: CallImport) -> Value:
    low, high = c.args.get("from", 0.0), c.args.get("to", 1.0)
    return c.b.op(random.random_uniform, shape=c.shape, dtype=c.dtype, low=float(low),
                  high=float(high))  # fmt: skip


def _normal(c: CallImport) -> Value:
    mean, scale = c.args.get("mean", 0.0), c.args.get("std", 1.0)
    if not isinstance(mean, int | float) or not isinstance(scale, int | float):
        noise = c.b.op(random.random_normal, shape=c.shape, dtype=c.dtype)
        spread = c.b.op(arithmetic.mul, noise, c.operand("std"))
        return c.b.op(arithmetic.add, spread, c.operand("mean"))
    return c.b.op(random.random_normal, shape=c.shape, dtype=c.dtype, mean=float(mean),
                  scale=float(scale))  # fmt: skip


def _integers(*, has_low: bool) -> Importer:
    def run(c: CallImport) -> Value:
        low, high = c.args["low"] if has_low else 0, c.args["high"]
        if not isinstance(low, int) or not isinstance(high, int):
            raise UnsupportedCallError("symbolic bounds")
        drawn = c.b.op(random.random_uniform, shape=c.shape, dtype=DType.F32, low=float(low),
                       high=float(high))  # fmt: skip
        return c.cast(c.b.op(rounding.floor, drawn), c.dtype)

    return run


def _bernoulli(c: CallImport) -> Value:
    x = c.value("self")
    p = c.args.get("p")
    if p is not None:
        x = expanded(c, c.operand("p", DType.F32), shape_of(x))
    return c.cast(c.b.op(random.bernoulli, x), c.dtype)


IMPORTS: tuple[Import, ...] = (
    row(
        _uniform, "aten.rand.default", "aten.rand_like.default", "aten.uniform.default",
        "aten.rand.generator",
    ),
    row(
        _normal, "aten.randn.default", "aten.randn_like.default", "aten.normal_functional.default",
        "aten.normal.default", "aten.normal.float_float", "aten.normal.Tensor_float",
        "aten.normal.float_Tensor", "aten.normal.Tensor_Tensor", "aten.randn.generator",
    ),
    row(_integers(has_low=False), "aten.randint.default", "aten.randint_like.default"),
    row(_integers(has_low=True), "aten.randint.low", "aten.randint_like.low_dtype"),
    row(
        _bernoulli,
        "aten.bernoulli.default", "aten.bernoulli.p", "aten.bernoulli.float",
        "aten.bernoulli.Tensor",
    ),
)  # fmt: skip
