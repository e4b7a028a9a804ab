"""Where a module can be quantized: linear layers by a constant matrix, and tables that are read."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regraft.ir.constants import constant_of, is_constant, weight, weight_of
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.matrix_rows import MatrixRows, rows_of
from regraft.ir.ops import (
    arithmetic,
    conv,
    einsum,
    gathering,
    linalg,
    quant,
    quant_linalg,
    slicing,
)
from regraft.ir.types import DType
from regraft.passes.calibration.products import constant_products
from regraft.passes.protocol import Skip

Array = np.ndarray[Any, Any]

_ANY_SIZE = 1 << 62


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """`node = x . weight (+ bias)`, the sum over the last axis of x.

    Args:
        node: The product, a matmul or a gemm.
        x: f32[..., K].
        weight: The constant: f32[K, N], or [N, K] where `transposed`.
        bias: f32[N] or what broadcasts to it, None without one.
        transposed: Whether the weight lies as [N, K].
    """

    node: Node
    x: Value
    weight: Value
    bias: Value | None
    transposed: bool

    def with_bias(self) -> tuple[Node, Value | None]:
        """Returns the last node and the bias, an addition of a constant vector taken as one."""
        users = self.node.output.users
        if self.bias is not None or len(users) != 1 or self.node.output.num_uses != 1:
            return self.node, self.bias
        total = users[0]
        if total.op is not arithmetic.add:
            return self.node, None
        other = total.inputs[1] if total.inputs[0] is self.node.output else total.inputs[0]
        if other is None or other.shape != (self.sizes[1],) or not is_constant(other):
            return self.node, None
        return total, other

    @property
    def name(self) -> str:
        """Name of the weight, or of the result."""
        return weight_name(self.weight) or self.node.output.name or self.node.op.name

    @property
    def sizes(self) -> tuple[int, int]:
        """K and N."""
        first, second = [size for size in self.weight.shape or () if isinstance(size, int)]
        return (second, first) if self.transposed else (first, second)

    def rows(self) -> MatrixRows:
        """Returns the matrix [K, N] as it lies: by rows of outputs where it is transposed."""
        held = weight_of(self.weight)
        if held is None:
            raise AssertionError("the weight of a linear layer is constant")
        rows = rows_of(held)
        return replace(rows, transposed=rows.transposed != self.transposed)

    def matrix(self) -> Array:
        """Returns f32[K, N]."""
        array = constant_of(self.weight, _ANY_SIZE)
        if array is None:
            raise AssertionError("the weight of a linear layer is constant")
        return np.asarray(array.T if self.transposed else array, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """`node = table[indices]`, rows of a constant matrix f32[V, D]."""

    node: Node
    table: Value
    indices: Value

    @property
    def num_numbers(self) -> int:
        """V x D."""
        return math.prod(size for size in self.table.shape or () if isinstance(size, int))

    @property
    def name(self) -> str:
        """Name of the table, or of the result."""
        return weight_name(self.table) or self.node.output.name or self.node.op.name


def weight_name(value: Value) -> str | None:
    """Returns the name of the weight that a value is, None for other values."""
    maker = value.producer
    return maker.attrs["name"] if maker is not None and maker.op is weight else None


_F32 = frozenset({DType.F32})
FLOATS = frozenset({DType.F32, DType.F16, DType.BF16, DType.F64})


def linears(graph: Graph, kinds: Collection[DType] = _F32) -> Iterator[Linear]:
    """Iterates over the linear layers of a graph, in its order.

    Args:
        graph: The graph.
        kinds: Element types.
    """
    for node in graph:
        if node.op is linalg.matmul:
            x, weight = node.inputs[0], node.inputs[1]
            bias, transposed = None, False
        elif node.op is linalg.gemm:
            x, weight, bias = node.inputs[:3]
            attrs = node.attrs
            if attrs["trans_a"] or attrs["alpha"] != 1.0 or attrs["beta"] != 1.0:
                continue
            transposed = bool(attrs["trans_b"])
        else:
            continue
        if x is None or weight is None or not _is_matrix(weight, kinds) or is_constant(x):
            continue
        if x.rank is None or x.rank < 2 or x.dtype is not weight.dtype:
            continue
        if not is_remainder(node):
            yield Linear(node, x, weight, bias, transposed)


def is_remainder(node: Node) -> bool:
    """Whether a product is the float part of a quantized layer: a few channels, added to the rest.

    It was left in float on purpose, and is no layer by itself.
    """
    x, users = node.inputs[0], node.output.users
    picked = None if x is None else x.producer
    if picked is None or picked.op not in (gathering.gather, slicing.slice_):
        return False
    if len(users) != 1 or users[0].op is not arithmetic.add:
        return False
    others = [value for value in users[0].inputs if value is not node.output and value is not None]
    makers = [value.producer for value in others if value.producer is not None]
    for maker in list(makers):
        if maker.op is arithmetic.mul:  # by the scale of the row
            makers += [v.producer for v in maker.inputs if v is not None and v.producer is not None]
    return any(maker.op is linalg.matmul and _by_codes(maker) for maker in makers)


def _by_codes(node: Node) -> bool:
    matrix = node.inputs[1]
    return (
        matrix is not None
        and matrix.producer is not None
        and (matrix.producer.op is quant.dequantize)
    )


def num_by_codes(graph: Graph) -> int:
    """Returns how many products of a graph are by integer codes already."""
    products = [node for node in graph if node.op in (linalg.matmul, linalg.gemm, conv.conv)]
    return sum(map(_by_codes, products)) + sum(node.op in quant_linalg.OPS for node in graph)


def tables(graph: Graph, kinds: Collection[DType] = _F32) -> Iterator[Table]:
    """Iterates over the reads of constant tables by varying indices.

    Args:
        graph: The graph.
        kinds: Element types.
    """
    for node in graph:
        if node.op is not gathering.gather or node.attrs["axis"] != 0:
            continue
        table, indices = node.inputs[0], node.inputs[1]
        if table is None or indices is None or not _is_matrix(table, kinds) or is_constant(indices):
            continue
        yield Table(node, table, indices)


def left_in_float(graph: Graph) -> list[Skip]:
    """Returns the products by float constants that are no site, each with the reason."""
    sites = {site.node for site in linears(graph, FLOATS)}
    found: list[Skip] = []
    for each in constant_products(graph):
        if isinstance(each, Skip):
            found.append(each)
        elif is_remainder(each.node):
            continue
        elif each.node not in sites and each.node.op in (linalg.matmul, linalg.gemm, einsum.einsum):
            found.append(Skip(each.name, _reason(each.node, each.weight)))
    return found


def _reason(node: Node, matrix: Value) -> str:
    if node.op is einsum.einsum:
        return "`einsum`: run `canonicalize`, which makes a matrix product of most"
    if node.inputs[0] is matrix:
        return "the constant is the left factor of the product"
    if matrix.rank != 2:
        return f"its constant is a stack of matrices, of shape {list(matrix.shape or ())}"
    if node.op is linalg.gemm:
        return "`gemm` with factors, or with its input transposed"
    return "its input has one axis, or another element type than its constant"


def _is_matrix(value: Value, kinds: Collection[DType]) -> bool:
    shape = value.shape
    if value.dtype not in kinds or shape is None or len(shape) != 2:
        return False
    return is_constant(value) and all(isinstance(size, int) and size > 0 for size in shape)
