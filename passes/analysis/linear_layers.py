"""Linear layers, whatever their operator: matmul, gemm or a convolution of window 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from regraft.ir.dims import DimLike, known_equal, product
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import arithmetic, cast, conv, gathering, linalg, logical, reduce, reshaping
from regraft.passes.cleanup.facts import same_type, uniform

IsConstant = Callable[[Value], bool]


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """`output = x . weight + bias` along one axis of `x`.

    Args:
        input: The varying operand.
        output: The result, the bias included.
        weight: The constant operand.
        bias: The constant that is added, or None.
        in_axis: The axis of `input` that is summed over, counted from the end.
        out_axis: The axis of `output` that takes its place, counted from the end.
        weight_in: The axis of the weight that is summed over, counted from the end.
        weight_out: The axis of the weight that becomes `out_axis`, counted from the end.
        num_experts: How many weights are stacked along the first axis; 1 for a plain layer.
        picked: The indices that pick an expert's weight for every row of the batch, or None.
        nodes: What computes it, the last node first.
        owners: Of rows sorted by expert, bool[experts, rows], whose matrix multiplies a row; None
            where rows are not sorted.
    """

    input: Value
    output: Value
    weight: Value
    bias: Value | None
    in_axis: int
    out_axis: int
    weight_in: int
    weight_out: int
    num_experts: int
    nodes: tuple[Node, ...]
    picked: Value | None = None
    owners: Value | None = None

    @property
    def in_size(self) -> DimLike | None:
        """Size of the axis that is summed over."""
        return None if self.weight.shape is None else self.weight.shape[self.weight_in]

    @property
    def out_size(self) -> DimLike | None:
        """Size of the new axis."""
        return None if self.weight.shape is None else self.weight.shape[self.weight_out]

    @property
    def is_convolution(self) -> bool:
        """Whether it is spelled as a convolution of window 1."""
        return self.nodes[-1].op is conv.conv


def linear_layers(graph: Graph, is_constant: IsConstant) -> dict[Value, Linear]:
    """Returns the linear layers of one graph by their result, with and without the bias."""
    found: dict[Value, Linear] = {}
    for node in graph:
        layer = _plain(node, is_constant)
        if layer is None:
            continue
        found[layer.output] = layer
        biased = _biased(layer, is_constant)
        if biased is not None:
            found[biased.output] = biased
    return found


def _plain(node: Node, is_constant: IsConstant) -> Linear | None:
    if node.op is linalg.matmul:
        return _matmul(node, is_constant)
    if node.op is linalg.gemm:
        return _gemm(node, is_constant)
    if node.op is conv.conv and is_window_of_one(node):
        x, weight, bias = node.inputs[0], node.inputs[1], node.inputs[2]
        if x is None or weight is None or x.rank is None or not is_constant(weight):
            return None
        axis = 1 - x.rank
        return Linear(x, node.output, weight, bias, axis, axis, axis, axis - 1, 1, (node,))
    if node.op is reduce.reduce_sum:
        return _grouped(node, is_constant)
    return None


def _grouped(node: Node, is_constant: IsConstant) -> Linear | None:
    """Returns the product of rows by the matrices of their experts, or None.

    Every matrix multiplies every row, and of each row's results one is taken and the others are
    zero before they are summed: how a grouped product is written.
    """
    choice = None if node.inputs[0] is None else node.inputs[0].producer
    if choice is None or choice.op is not logical.where or only_user(choice.output) is not node:
        return None
    mask, every, zero = choice.inputs
    maker = None if every is None else every.producer
    if maker is None or mask is None or maker.op is not linalg.matmul or uniform(zero) != 0:
        return None
    axes = node.static("axes")
    layer = _matmul(maker, is_constant)
    if layer is None or layer.picked is not None or layer.num_experts < 2 or axes != (0,):
        return None
    rows = layer.input.producer
    shape = layer.input.shape
    if rows is None or rows.op not in MOVES or rows.inputs[0] is None or layer.out_axis != -1:
        return None
    if shape is None or len(shape) != 3 or shape[0] != 1 or rows.inputs[0].rank != 2:
        return None
    owners = mask
    while owners.producer is not None and owners.producer.op in MOVES:
        before = owners.producer.inputs[0]
        if before is None or owners.rank == 2:
            break
        owners = before
    if owners.rank != 2 or node.output.rank != 2:
        return None
    return replace(
        layer, input=rows.inputs[0], output=node.output, owners=owners,
        nodes=(node, choice, *layer.nodes, rows),
    )  # fmt: skip


def _matmul(node: Node, is_constant: IsConstant) -> Linear | None:
    a, b = node.inputs[0], node.inputs[1]
    if a is None or b is None or a.rank is None or b.rank is None or a.rank < 2 or b.rank < 2:
        return None
    stacks = _picked_stack(a, is_constant), _picked_stack(b, is_constant)
    fixed = [is_constant(v) or stack is not None for v, stack in zip((a, b), stacks, strict=True)]
    if fixed[0] == fixed[1]:
        return None
    x, weight, left = (b, a, True) if fixed[0] else (a, b, False)
    gather = stacks[0] if left else stacks[1]
    picked = None
    if gather is not None and gather.inputs[0] is not None:
        weight, picked = gather.inputs[0], gather.inputs[1]
    experts = 1
    for size in (weight.shape or ())[:-2]:
        if not isinstance(size, int):
            return None
        experts *= size
    at, ends = (-2, (-1, -2)) if left else (-1, (-2, -1))
    return Linear(x, node.output, weight, None, at, at, *ends, experts, (node,), picked)


def _picked_stack(value: Value, is_constant: IsConstant) -> Node | None:
    """Returns the gather that picks of the matrices [E, m, n] for every row, or None.

    It picks one, or one per choice where a row chooses several.
    """
    node = picking_of(value, max_rank=2)
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    data, indices = node.inputs[0], node.inputs[1]
    return node if data.rank == 3 and is_constant(data) and not is_constant(indices) else None


def picking_of(value: Value, max_rank: int = 1) -> Node | None:
    """Returns the gather whose result holds one entry of the first axis per row, or None.

    Args:
        value: The result.
        max_rank: Highest rank of the indices; with 2, a row may have several entries.
    """
    node = value.producer
    if node is None or node.op not in (gathering.gather, gathering.gather_nd):
        return None
    indices = node.inputs[1]
    if indices is None or indices.shape is None:
        return None
    if node.op is gathering.gather:
        is_fine = node.attrs["axis"] == 0 and 1 <= len(indices.shape) <= max_rank
        return node if is_fine else None
    is_column = indices.rank == 2 and indices.shape[1] == 1 and node.attrs["batch_dims"] == 0
    return node if is_column else None


def _gemm(node: Node, is_constant: IsConstant) -> Linear | None:
    a, b, bias = node.inputs[0], node.inputs[1], node.inputs[2]
    if a is None or b is None or is_constant(a) == is_constant(b):
        return None
    if bias is not None and not is_constant(bias):
        return None
    trans_a, trans_b = node.attrs["trans_a"], node.attrs["trans_b"]
    if is_constant(b):
        weight_in = -1 if trans_b else -2
        return Linear(
            a,
            node.output,
            b,
            bias,
            -2 if trans_a else -1,
            -1,
            weight_in,
            -3 - weight_in,
            1,
            (node,),
        )
    weight_in = -2 if trans_a else -1
    return Linear(
        b, node.output, a, bias, -1 if trans_b else -2, -2, weight_in, -3 - weight_in, 1, (node,)
    )


def is_window_of_one(node: Node) -> bool:
    """Returns whether a convolution maps channels position by position."""
    weight, attrs = node.inputs[1], node.attrs
    if weight is None or weight.shape is None or attrs["groups"] != 1:
        return False
    return (
        all(size == 1 for size in weight.shape[2:])
        and all(stride == 1 for stride in attrs["strides"] or ())
        and all(pad == 0 for pad in attrs["pads"] or ())
    )


def _biased(layer: Linear, is_constant: IsConstant) -> Linear | None:
    """Returns the layer with the constant that is added to its only use."""
    node = only_user(layer.output)
    if layer.bias is not None or node is None or node.op is not arithmetic.add:
        return None
    other = node.inputs[1] if node.inputs[0] is layer.output else node.inputs[0]
    if other is None or not is_constant(other) or not same_type(layer.output, node.output):
        return None
    return replace(layer, output=node.output, bias=other, nodes=(node, *layer.nodes))


def only_user(value: Value) -> Node | None:
    """Returns the one node that uses a value once, None when there are others or outputs."""
    if value.num_uses != 1:
        return None
    ((user, _),) = value.uses
    return user if isinstance(user, Node) else None


MOVES = frozenset(
    {reshaping.reshape, reshaping.transpose, reshaping.squeeze, reshaping.unsqueeze, cast.cast,
     cast.identity}
)  # fmt: skip
"""Operators that keep every element; `moved_axis` follows an axis through them."""


def moved_axis(node: Node, axis: int) -> int | None:
    """Returns where a move puts an axis of its operand, None when it splits or merges it.

    Args:
        node: A node whose operator is in `MOVES`.
        axis: Counted from the end, as is the result.
    """
    x, out = node.inputs[0], node.outputs[0].shape
    if x is None or x.shape is None or out is None:
        return axis if node.op in (cast.cast, cast.identity) else None
    shape = x.shape
    if node.op is reshaping.transpose:
        perm = node.attrs["perm"] or tuple(range(len(shape)))[::-1]
        return int(perm.index(axis % len(shape))) - len(shape)
    if shape == out:
        return axis
    after = product(shape[len(shape) + axis + 1 :])
    for other in range(-1, -len(out) - 1, -1):
        same = known_equal(out[other], shape[axis])
        if same and known_equal(product(out[len(out) + other + 1 :]), after):
            return other
    return None
