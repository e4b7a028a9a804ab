"""Linear layers whose weights can be solved for, and how their values become rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.constants import constant_of, is_constant, literal, weight
from regraft.ir.derive import source_names
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import arithmetic, conv, linalg
from regraft.ir.ops.windows import Index, as_ints, pad_for_windows, windows_of, windows_view
from regraft.ir.overwrite import overwrite

Array = np.ndarray[Any, Any]

_ANY_SIZE = 1 << 62


class Form(Protocol):
    """How one kind of layer is a stack of matrices: `y[g, r] = x[g, r] @ w[g] + b[g]`."""

    @property
    def has_bias(self) -> bool:
        """Whether a bias of one number per column can be added."""

    def matrix(self, array: Array) -> Array:
        """Returns the weight as f64[G, K, N]."""

    def weight(self, matrix: Array) -> Array:
        """Returns the inverse of `matrix`."""

    def num_rows(self, result: Array) -> int:
        """Returns the number of rows in a result, over all its leading positions."""

    def items(self, result: Array) -> Array:
        """Returns, for every row, the position on the first axis it is of, i64[R]."""

    def inputs(self, x: Array, result: Array, rows: Array) -> Array:
        """Returns chosen rows of what is multiplied, f[G, R, K]; `result` gives the sizes."""

    def results(self, result: Array, rows: Array) -> Array:
        """Returns the same rows of the result, f[G, R, N]."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """`x f[..., K] @ w f[K, N]`; `is_turned` where the weight is stored as f[N, K]."""

    is_turned: bool = False
    has_bias: bool = True

    def matrix(self, array: Array) -> Array:
        """Returns f64[1, K, N]."""
        return (array.T if self.is_turned else array).astype(np.float64)[None]

    def weight(self, matrix: Array) -> Array:
        """Returns f64[K, N], or turned."""
        return np.asarray(matrix[0].T if self.is_turned else matrix[0])

    def num_rows(self, result: Array) -> int:
        """Returns the product of the leading axes."""
        return int(prod(result.shape[:-1]))

    def items(self, result: Array) -> Array:
        """Returns the first position of every row."""
        return np.repeat(np.arange(result.shape[0]), prod(result.shape[1:-1]))

    def inputs(self, x: Array, result: Array, rows: Array) -> Array:
        """Returns f[1, R, K]."""
        return np.asarray(x.reshape(-1, x.shape[-1])[rows][None])

    def results(self, result: Array, rows: Array) -> Array:
        """Returns f[1, R, N]."""
        return np.asarray(result.reshape(-1, result.shape[-1])[rows][None])


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution: what it multiplies is a window of the channels of its group."""

    attrs: Mapping[str, Any]
    shape: tuple[int, ...]
    has_bias: bool = True

    @property
    def groups(self) -> int:
        """Number of groups."""
        return int(self.attrs["groups"])

    def matrix(self, array: Array) -> Array:
        """Returns f64[G, C / G * taps, M / G] of f[M, C / G, *taps]."""
        rows = array.astype(np.float64).reshape(self.groups, array.shape[0] // self.groups, -1)
        return np.swapaxes(rows, 1, 2)

    def weight(self, matrix: Array) -> Array:
        """Returns f64[M, C / G, *taps]."""
        return np.swapaxes(matrix, 1, 2).reshape(self.shape)

    def num_rows(self, result: Array) -> int:
        """Returns images times places."""
        return len(result) * int(prod(result.shape[2:]))

    def items(self, result: Array) -> Array:
        """Returns the image of every row."""
        return np.repeat(np.arange(len(result)), prod(result.shape[2:]))

    def inputs(self, x: Array, result: Array, rows: Array) -> Array:
        """Returns f[G, R, C / G * taps]."""
        windows = windows_of(self.attrs, self.shape[2:])
        padded, _, _, counts = pad_for_windows(x, windows)
        kernel = as_ints(windows.kernel)
        view = windows_view(padded, kernel, windows.strides, windows.dilations, counts)
        image, *places = np.unravel_index(rows, (len(x), *counts))
        lead = (slice(None),) * (1 + len(kernel))
        chosen: Index = (image, *lead, *places)
        taken = view[chosen]  # f[R, C, *taps]: apart, so that rows come first
        return np.swapaxes(taken.reshape(len(rows), self.groups, -1), 0, 1)

    def results(self, result: Array, rows: Array) -> Array:
        """Returns f[G, R, M / G]."""
        image, *places = np.unravel_index(rows, (len(result), *result.shape[2:]))
        chosen: Index = (image, slice(None), *places)
        taken = result[chosen]
        return np.swapaxes(taken.reshape(len(rows), self.groups, -1), 0, 1)


@dataclass(frozen=True, slots=True)
class Upsampling:
    """A transposed convolution whose windows do not overlap: every input makes a block."""

    shape: tuple[int, ...]
    has_bias: bool = False  # one number for all places of a block

    def matrix(self, array: Array) -> Array:
        """Returns f64[1, C, M * taps] of f[C, M, *taps]."""
        return array.astype(np.float64).reshape(1, array.shape[0], -1)

    def weight(self, matrix: Array) -> Array:
        """Returns f64[C, M, *taps]."""
        return np.asarray(matrix[0].reshape(self.shape))

    def num_rows(self, result: Array) -> int:
        """Returns images times inputs."""
        return len(result) * prod(self._counts(result))

    def items(self, result: Array) -> Array:
        """Returns the image of every row."""
        return np.repeat(np.arange(len(result)), prod(self._counts(result)))

    def inputs(self, x: Array, result: Array, rows: Array) -> Array:
        """Returns f[1, R, C]."""
        return np.asarray(np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])[rows][None])

    def results(self, result: Array, rows: Array) -> Array:
        """Returns f[1, R, M * taps]."""
        taps, counts = self.shape[2:], self._counts(result)
        sizes = [size for pair in zip(counts, taps, strict=True) for size in pair]
        blocks = result.reshape(*result.shape[:2], *sizes)
        rank = len(taps)
        places = [2 + 2 * i for i in range(rank)]
        order = (0, *places, 1, *[place + 1 for place in places])
        return np.asarray(
            blocks.transpose(order).reshape(-1, result.shape[1] * prod(taps))[rows][None]
        )

    def _counts(self, result: Array) -> list[int]:
        return [size // tap for size, tap in zip(result.shape[2:], self.shape[2:], strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A layer whose weight nothing else reads.

    Args:
        node: The operator.
        weight_idx: Its operand that is the weight.
        form: How it multiplies.
        bias_at: The node and operand that hold the bias, None where there is none.
        result: The result, the bias included.
    """

    node: Node
    weight_idx: int
    form: Form
    bias_at: tuple[Node, int] | None
    result: Value

    @property
    def x(self) -> Value:
        """What is multiplied."""
        value = self.node.inputs[0]
        assert value is not None, "a layer has an operand"
        return value

    @property
    def name(self) -> str:
        """Name of the weight, else of the result."""
        value = self.node.inputs[self.weight_idx]
        return (value.name if value is not None else None) or self.result.name or self.node.op.name

    def matrix(self) -> Array:
        """Returns the weight as f64[G, K, N]."""
        array = constant_of(self.node.inputs[self.weight_idx], _ANY_SIZE)
        assert array is not None, "the weight is constant"
        return self.form.matrix(array)

    def store(self, module: Module, matrix: Array, shift: Array | None) -> None:
        """Writes a weight, and adds to the bias, which is made where there is none.

        Args:
            module: The module.
            matrix: f64[G, K, N].
            shift: f64[G, N], None where the bias stays.
        """
        write_constant(module, self.node, self.weight_idx, self.form.weight(matrix))
        if shift is None or not self.form.has_bias:
            return
        flat = shift.reshape(-1)
        if self.bias_at is not None:
            node, idx = self.bias_at
            old = constant_of(node.inputs[idx], _ANY_SIZE)
            assert old is not None, "the bias is constant"
            write_constant(module, node, idx, old.astype(np.float64) + flat.reshape(old.shape))
            return
        self._create_bias(flat)

    def _create_bias(self, shift: Array) -> None:
        result = self.node.output
        assert result.dtype is not None, "a float layer has a type"
        array = shift.astype(result.dtype.numpy)
        name = f"{self.name}.bias"
        if self.node.op is not linalg.matmul:
            builder = Builder(module_graph(self.node), self.node, self.node.loc)
            self.node.set_operand(2, builder.constant(array, name=name))
            return
        builder = Builder(module_graph(self.node), self.node.next, self.node.loc)
        uses = list(result.uses)
        biased = builder.op(arithmetic.add, result, builder.constant(array, name=name))
        for user, idx in uses:
            user.set_operand(idx, biased)


def module_graph(node: Node) -> Graph:
    """Returns the graph that a node is in."""
    assert node.graph is not None, "a node of the module"
    return node.graph


def write_constant(module: Module, node: Node, idx: int, array: Array) -> None:
    """Makes an operand a constant of new content: under its name where nothing else reads it."""
    value = node.inputs[idx]
    assert value is not None, "the operand is there"
    assert value.dtype is not None, "a constant has a type"
    made = np.ascontiguousarray(array.astype(value.dtype.numpy))
    maker = value.producer
    if maker is not None and maker.op is weight and value.num_uses == 1:
        name = module.weights.resolve(maker.attrs["name"])
        if _readers(module)[name] == 1:
            overwrite(module.weights, name, made)
            return
    builder = Builder(module_graph(node), node, node.loc)
    node.set_operand(idx, builder.constant(made, name=value.name))


def _readers(module: Module) -> Counter[str]:
    """Counts the nodes that read every weight, or another one of the same checkpoint tensor."""
    store = module.weights
    names = [store.resolve(node.attrs["name"]) for node in module.graph.walk() if node.op is weight]
    sources = {name: set(source_names(name, store[name])) for name in names}
    of_source = Counter(source for name in names for source in sources[name])
    found: Counter[str] = Counter()
    for name, made_of in sources.items():
        found[name] = max((of_source[source] for source in made_of), default=1)
    return found


def sites(module: Module) -> Iterator[Site]:
    """Iterates over the layers of the main graph in its order; shared weights are left out."""
    readers = _readers(module)
    for node in module.graph:
        found = _site(node)
        if found is None:
            continue
        value = node.inputs[found.weight_idx]
        maker = None if value is None else value.producer
        if maker is None or value is None or value.num_uses != 1:
            continue
        if maker.op is literal or (
            maker.op is weight and readers[module.weights.resolve(maker.attrs["name"])] == 1
        ):
            yield found


def _site(node: Node) -> Site | None:
    if node.op not in (linalg.matmul, linalg.gemm, conv.conv, conv.conv_transpose):
        return None
    x, held = node.inputs[0], node.inputs[1]
    if x is None or held is None or held.shape is None or is_constant(x):
        return None
    if not is_constant(held) or held.dtype is None or not held.dtype.is_float:
        return None
    shape = tuple(size for size in held.shape if isinstance(size, int))
    if node.op is linalg.matmul:
        if len(shape) != 2 or x.rank is None or x.rank < 2:
            return None
        bias_at, result = _added(node, shape[1])
        return Site(node, 1, Matrix(), bias_at, result)
    bias = node.inputs[2]
    if bias is not None and (bias.rank != 1 or not is_constant(bias)):
        return None
    bias_at = None if bias is None else (node, 2)
    if node.op is linalg.gemm:
        attrs = node.attrs
        if attrs["trans_a"] or attrs["alpha"] != 1 or attrs["beta"] != 1:
            return None
        return Site(node, 1, Matrix(attrs["trans_b"]), bias_at, node.output)
    if node.op is conv.conv:
        return Site(node, 1, Convolution(dict(node.attrs), shape), bias_at, node.output)
    attrs = node.attrs
    is_plain = attrs["groups"] == 1 and attrs["auto_pad"] == "none" and not attrs["output_shape"]
    still = (*attrs["pads"], *attrs["output_padding"], *(d - 1 for d in attrs["dilations"]))
    if not is_plain or any(still) or tuple(attrs["strides"]) != shape[2:]:
        return None
    return Site(node, 1, Upsampling(shape), bias_at, node.output)


def _added(node: Node, width: int) -> tuple[tuple[Node, int] | None, Value]:
    """Returns where the bias of a product is, and the result with it."""
    result = node.output
    users = result.users
    if result.num_uses != 1 or not users or users[0].op is not arithmetic.add or result.is_output:
        return None, result
    user = users[0]
    idx = 1 if user.inputs[0] is result else 0
    other = user.inputs[idx]
    if other is None or not is_constant(other) or other.shape is None:
        return None, result
    if other.shape[-1:] != (width,) or prod(s for s in other.shape if isinstance(s, int)) != width:
        return None, result
    return (user, idx), user.output
