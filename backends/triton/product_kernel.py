"""Writes the kernel of a product with chains before and after it: one tile per program."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.backends.triton.chain_kernel import (
    PLACE,
    KernelWriter,
    is_per_column,
    load_line,
    places_of,
    statement,
)
from regraft.backends.triton.chain_steps import Kind, Lowered, Lowering, Operand
from regraft.backends.triton.product_regions import ProductRegion
from regraft.backends.triton.region_nodes import inputs_of
from regraft.backends.triton.regions import Region
from regraft.ir.graph import Value
from regraft.ir.types import DType

PRODUCT = "product"
"""The variable of the product, its bias added."""
TAKEN = frozenset({
    "x", "weight", "bias", "k", "K", "w", "w_tile", "columns", "place_of_tile", "product_of",
    "product_gradients",
})  # fmt: skip
"""Names that no variable of a chain has."""


def chain_of(
    region: ProductRegion, *, is_before: bool, others: Sequence[Value] | None = None
) -> Region:
    """Returns one of the chains as a region of its own.

    Args:
        region: The product and its chains.
        is_before: Which of them.
        others: What the later chain reads besides the product, which is then an operand as well.
    """
    core = region.core
    nodes = region.before if is_before else region.after
    if others is None:
        inputs = tuple(value for value in inputs_of(nodes) if value is not core.result)
    else:
        inputs = (core.result, *others)
    outputs = (core.rows,) if is_before else region.outputs
    space = (core.rows if is_before else core.result).shape or ()
    return Region(nodes, inputs, outputs, region.anchor, space, (), 0.0, 0.0, 0)


class ProductKernelWriter:
    """Writes one kernel.

    Attributes:
        region: What it computes.
        before: The steps that make the rows, None where those are an operand.
        after: The steps that follow.
        inputs: Operands of the steps that make the rows.
        has_rows: Whether rows of the product are reduced, so that a tile has all columns.
        outs: Variables of the tensors that results are stored in, by the results.
    """

    def __init__(self, region: ProductRegion) -> None:
        self.region = region
        taken = set(TAKEN)
        self.before: Lowered | None = None
        self._writer: KernelWriter | None = None
        if region.before:
            chain = chain_of(region, is_before=True)
            self.before = Lowering(chain, taken={*taken, PRODUCT}, width="K").lowered()
            self._writer = KernelWriter(chain, self.before, ("K", "BLOCK_M", "BLOCK_K"))
            taken |= {name for op in self.before.operands for name in (op.name, f"{op.name}_ptr")}
            taken |= {n for step in self.before.steps for n in (step.name, f"{step.name}_total")}
        chain = chain_of(region, is_before=False)
        self.after = Lowering(chain, {region.core.result: PRODUCT}, taken).lowered()
        self.inputs: tuple[Operand, ...] = () if self.before is None else self.before.operands
        self.has_rows = any(step.kind is not Kind.MAP for step in self.after.steps)
        self.outs = {name: f"{name}_out" for name in self.after.results}

    @property
    def names(self) -> list[str]:
        """The operands of a call, in order."""
        rows = ["x"] if self.before is None else [op.name for op in self.inputs]
        bias = [] if self.region.core.bias is None else ["bias"]
        return [*rows, "weight", *bias, *(op.name for op in self.after.operands)]

    def kernel(self) -> list[str]:
        """Returns the lines of the kernel."""
        pointers = [f"{name}_ptr" for name in (*self.names, *self.outs.values())]
        first = ["x_stride"] if self.before is None else [p for op in self.inputs
                                                          for p in places_of(op)]  # fmt: skip
        places = [*first, "weight_n_stride", "weight_k_stride"]
        places += [place for op in self.after.operands for place in places_of(op)]
        lines = ["@triton.jit", f"def {PLACE}_kernel("]
        lines += [f"    {name}," for name in (*pointers, "num_rows", "N", "K", *places)]
        constants = ("PRECISION", "BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP")
        lines += [f"    {name}: tl.constexpr," for name in constants]
        lines.append("):")
        body = [
            f'"""Writes a tile of what `reference_{PLACE}` returns."""',
            "m, n = place_of_tile(num_rows, N, BLOCK_M, BLOCK_N, GROUP)",
            "row = m.to(tl.int64)",
            "rows = row[:, None]",
        ]
        body += self._product()
        if self.region.core.bias is not None:
            bias = "tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]"
            body.append(f"{PRODUCT} += {bias}")
        body += self._epilogue()
        return [*lines, *(f"    {line}" for line in body)]

    def _product(self) -> list[str]:
        """Returns the lines that compute the tile of the product."""
        if self._writer is None or self.before is None:
            return [
                f"{PRODUCT} = product_of(",
                "    x_ptr, weight_ptr, m, n, num_rows, N, K, x_stride, weight_n_stride,",
                "    weight_k_stride, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,",
                ")",
            ]
        once = [op for op in self.inputs if not is_per_column(op)]
        lines = ["k = tl.arange(0, BLOCK_K)", "columns = k[None, :]"]
        lines += [load_line(op, "columns", "K") for op in once]
        passes, done = self._writer.reductions()
        lines += passes
        (x,) = self.before.results
        lines += [
            "w_tile = (",
            "    weight_ptr",
            "    + (n % N).to(tl.int64)[None, :] * weight_n_stride",
            "    + k.to(tl.int64)[:, None] * weight_k_stride",
            ")",
            f"{PRODUCT} = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)",
            "for start in range(0, K, BLOCK_K):",
        ]
        body = self._writer.block_of({x}, done)
        body += [
            "w = tl.load(w_tile, mask=k[:, None] < K - start, other=0.0)",
            f"x = tl.where(mask, {x}, 0.0).to(w.dtype)",
            f"{PRODUCT} = tl.dot(x, w, {PRODUCT}, input_precision=PRECISION)",
            "w_tile += BLOCK_K * weight_k_stride",
        ]
        return [*lines, *(f"    {line}" for line in body)]

    def _epilogue(self) -> list[str]:
        """Returns the lines that follow the product and store the results."""
        lines = ["column = n[None, :]", "mask = (rows < num_rows) & (column < N)"]
        lines += [load_line(op, "column") for op in self.after.operands]
        for step in self.after.steps:
            lines += statement(step)
        for (name, out), value in zip(self.outs.items(), self.region.outputs, strict=True):
            text = name if value.dtype is DType.BOOL else f"{name}.to({out}_ptr.dtype.element_ty)"
            lines.append(f"tl.store({out}_ptr + rows * N + column, {text}, mask=mask)")
        return lines
