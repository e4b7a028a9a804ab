"""The numpy evaluator: the oracle that says what a module means.

Float operators compute in f32 (f64 for f64 values, and for everything with `oracle=True`) and round
to the declared element type at each node; integers compute in their own type. Weights are loaded
where they are used and values are dropped after their last use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from regraft.ir.dims import Dim, bind, is_input_size
from regraft.ir.errors import InputError, RegraftError, UnsupportedError
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.opspec import AttrKind, Trait
from regraft.ir.types import DType, TensorType, dtype_of, dtype_or_none

Array = np.ndarray[Any, Any]
Env = dict[str, int]
Observe = Callable[[Value, Any], Any]

_WIDE = {np.dtype(np.float32), np.dtype(np.float64)}


class EvalContext:
    """What an operator's `eval` may ask for besides its operands.

    Attributes:
        node: The node under evaluation.
        attrs: Its attributes with every Dim bound to an int.
        oracle: Whether floats carry f64.
        seed: Seed of random operators.
    """

    __slots__ = ("_run_body", "attrs", "env", "node", "oracle", "seed")

    def __init__(
        self,
        node: Node,
        attrs: Mapping[str, Any],
        env: Env,
        *,
        oracle: bool = False,
        seed: int = 0,
        run_body: Callable[[Graph, Sequence[Any]], list[Any]] | None = None,
    ) -> None:
        self.node = node
        self.attrs = attrs
        self.env = env
        self.oracle = oracle
        self.seed = seed
        self._run_body = run_body

    def param(self, name: str, operand: Array | None) -> Any:
        """Returns an *either* parameter: the attribute when set, else the operand's content.

        Integers come back as an int or a tuple of ints, other arrays as they are.
        """
        value = self.attrs.get(name)
        if value is not None:
            return value
        if operand is None:
            return None
        if operand.dtype.kind in "iu" and operand.ndim <= 1:
            return operand.item() if operand.ndim == 0 else tuple(int(x) for x in operand)
        return operand

    def run_body(self, idx: int, inputs: Sequence[Any]) -> list[Any]:
        """Evaluates a body graph on operands and captures."""
        if self._run_body is None:
            raise AssertionError("this context cannot run bodies")
        return self._run_body(self.node.bodies[idx], inputs)

    def dtype(self, result: int = 0) -> DType | None:
        """Returns the declared element type of a result."""
        return self.node.outputs[result].dtype

    def rng(self) -> np.random.Generator:
        """Returns a generator seeded by the run's seed and the node's own `seed` attribute."""
        own = self.attrs.get("seed")
        return np.random.default_rng([self.seed, 0 if own is None else abs(hash(float(own)))])


def evaluate(
    module: Module,
    inputs: Mapping[str, Any],
    *,
    oracle: bool = False,
    seed: int = 0,
    observe: Observe | None = None,
) -> dict[str, Any]:
    """Returns the outputs of a module by name.

    Args:
        module: The module.
        inputs: One array (list for a sequence, None for an absent optional) per graph input.
        oracle: Compute floats in f64 and do not round between nodes.
        seed: Seed of random operators.
        observe: Called with every value and its content as it is computed, in bodies too; what it
            returns, unless None, takes the place of the content.

    Raises:
        InputError: When an input is missing, or its shape or element type does not fit.
        UnsupportedError: When the module holds an operator without a numpy meaning.
    """
    env = bind_inputs(module.graph, inputs)
    values = [inputs[str(value.name)] for value in module.graph.inputs]
    results = evaluate_graph(module.graph, values, env, oracle=oracle, seed=seed, observe=observe)
    for item in module.assumptions:
        left, right = bind(item.left, env), bind(item.right, env)
        if isinstance(left, int) and isinstance(right, int) and left != right:
            if 1 in (left, right) and is_input_size(item.left) and is_input_size(item.right):
                continue  # they broadcast, and the types say so
            raise InputError(
                f"assumed `{item.left}` = `{item.right}` ({item.reason}), "
                f"but the inputs give {left} and {right}"
            )
    return dict(zip(module.graph.output_names, results, strict=True))


def bind_inputs(graph: Graph, inputs: Mapping[str, Any]) -> Env:
    """Checks sample inputs against the declared types and returns the size of every input symbol.

    Raises:
        InputError: Naming the input, what was expected and what came.
    """
    env: Env = {}
    for value in graph.inputs:
        name = str(value.name)
        if name not in inputs:
            raise InputError(
                f"input `{name}` is missing", hint=f"the model takes {name}: {value.type}"
            )
        array = inputs[name]
        type_ = value.type
        if not isinstance(type_, TensorType):
            continue
        if not isinstance(array, np.ndarray):
            if type_.dtype is None:
                continue
            raise InputError(
                f"input `{name}`: expected {type_}, got {type(array).__name__}",
                hint="give a numpy array",
            )
        found = dtype_or_none(array)
        if type_.dtype is not None and found is not type_.dtype:
            raise InputError(
                f"input `{name}`: expected {type_}, got {found or array.dtype}{list(array.shape)}",
                hint=f"convert it to {type_.dtype}",
            )
        if type_.shape is None:
            continue
        if len(type_.shape) != array.ndim or not all(
            _bind_dim(dim, size, env) for dim, size in zip(type_.shape, array.shape, strict=True)
        ):
            raise InputError(
                f"input `{value.name}`: expected {type_}, got shape {list(array.shape)}",
                hint=f"sizes known so far: {env}" if env else "give an array of that shape",
            )
    return env


def _bind_dim(dim: int | Dim, size: int, env: Env) -> bool:
    if isinstance(dim, int):
        return dim == size
    symbol = dim.as_symbol()
    if symbol is None:
        bound = bind(dim, env)
        return not isinstance(bound, int) or bound == size
    return env.setdefault(symbol.name, size) == size


def evaluate_graph(
    graph: Graph,
    inputs: Sequence[Any],
    env: Env,
    *,
    oracle: bool = False,
    seed: int = 0,
    observe: Observe | None = None,
) -> list[Any]:
    """Evaluates one graph on positional inputs; `env` gains the sizes of defined symbols."""
    return _Run(env, oracle, seed, observe).graph(graph, inputs)


class _Run:
    """One evaluation of a graph: the values alive, and how often each is still needed."""

    __slots__ = ("env", "observe", "oracle", "seed", "uses_left", "values")

    def __init__(self, env: Env, oracle: bool, seed: int, observe: Observe | None) -> None:
        self.env = env
        self.oracle = oracle
        self.seed = seed
        self.observe = observe
        self.values: dict[Value, Any] = {}
        self.uses_left: dict[Value, int] = {}

    def graph(self, graph: Graph, inputs: Sequence[Any]) -> list[Any]:
        for value, array in zip(graph.inputs, inputs, strict=True):
            self.define(value, _widen(array) if self.oracle else array)
        for node in graph:
            if not node.op.traits & Trait.CONSTANT:
                self.run(node, [self.fetch(value) for value in node.inputs])
                self.release(node)
        return [self.fetch(value) for value in graph.outputs]

    def run(self, node: Node, operands: Sequence[Any]) -> None:
        results = evaluate_node(
            node, operands, self.env, oracle=self.oracle, seed=self.seed, run_body=self.body
        )
        for value, result in zip(node.outputs, results, strict=False):
            self.define(value, result)
            if value.num_uses:
                self.uses_left[value] = value.num_uses
            else:
                del self.values[value]

    def define(self, value: Value, array: Any) -> None:
        if self.observe is not None:
            other = self.observe(value, array)
            array = array if other is None else other
        self.values[value] = array
        bind_type(value, array, self.env)

    def fetch(self, value: Value | None) -> Any:
        if value is None:
            return None
        if value not in self.values and value.producer is not None:
            self.run(value.producer, ())  # constants load where they are used, not all at once
        return self.values[value]

    def release(self, node: Node) -> None:
        for used in node.inputs:
            if used is not None and used in self.uses_left:
                self.uses_left[used] -= 1
                if not self.uses_left[used]:
                    del self.values[used], self.uses_left[used]

    def body(self, graph: Graph, inputs: Sequence[Any]) -> list[Any]:
        return _Run(dict(self.env), self.oracle, self.seed, self.observe).graph(graph, inputs)


def evaluate_node(
    node: Node,
    operands: Sequence[Any],
    env: Env,
    *,
    oracle: bool = False,
    seed: int = 0,
    run_body: Callable[[Graph, Sequence[Any]], list[Any]] | None = None,
) -> list[Any]:
    """Evaluates one node on its operands; adds the node to any error it raises.

    Raises:
        UnsupportedError: When the operator has no numpy meaning.
    """
    op = node.op
    if op.eval is None:
        name = node.attrs.get("op_type", op.name)
        raise UnsupportedError(f"operator `{name}` has no numpy meaning: it cannot be evaluated")
    context = EvalContext(
        node, bound_attrs(node, env), env, oracle=oracle, seed=seed, run_body=run_body
    )
    as_is = bool(op.traits & (Trait.RAW | Trait.DATA_MOVEMENT))
    if not as_is and not oracle:
        operands = [_to_compute(x) for x in operands]
    try:
        with np.errstate(all="ignore"):
            results = op.eval(context, *operands)
    except RegraftError:
        raise
    except Exception as error:
        types = ", ".join("none" if v is None else str(v.type) for v in node.inputs)
        error.add_note(f"while evaluating {node!r} of ({types}), from {', '.join(node.loc)}")
        raise
    results = list(results) if isinstance(results, tuple) else [results]
    for i, (value, result) in enumerate(zip(node.outputs, results, strict=False)):
        if isinstance(result, np.generic):
            result = np.asarray(result)
        if isinstance(result, np.ndarray):
            result = _widen(result) if oracle else _round(result, value.dtype)
        results[i] = result
    return results


def bound_attrs(node: Node, env: Env) -> Mapping[str, Any]:
    """Returns the node's attributes with every Dim replaced by its size."""
    attrs = node.attrs
    for attr in node.op.all_attrs.values():
        if attr.kind in (AttrKind.DIM, AttrKind.DIMS) and attrs[attr.name] is not None:
            value = attrs[attr.name]
            if isinstance(value, Dim) or (
                isinstance(value, tuple) and any(isinstance(v, Dim) for v in value)
            ):
                attrs = {**attrs, attr.name: _bind_attr(node, attr.name, value, env)}
    return attrs


def _bind_attr(node: Node, name: str, value: Any, env: Env) -> Any:
    bound = tuple(bind(v, env) for v in value) if isinstance(value, tuple) else bind(value, env)
    for dim in bound if isinstance(bound, tuple) else (bound,):
        if isinstance(dim, Dim):
            raise InputError(f"{node.op.name}: `{name}` = {value}: size of `{dim}` is not known")
    return bound


def bind_type(value: Value, array: Any, env: Env) -> None:
    """Adds the sizes of symbols that a value's content tells to `env`."""
    shape = value.shape
    if shape is not None and isinstance(array, np.ndarray) and array.ndim == len(shape):
        for dim, size in zip(shape, array.shape, strict=True):
            if isinstance(dim, Dim):
                symbol = dim.as_symbol()
                if symbol is not None and (symbol.defined or symbol.name not in env):
                    env[symbol.name] = size


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or (array.dtype.kind == "V" and dtype_of(array).is_float)


def _to_compute(x: Any) -> Any:
    if isinstance(x, np.ndarray) and x.dtype not in _WIDE and _is_float(x):
        return x.astype(np.float32)
    return x


def _widen(x: Any) -> Any:
    if isinstance(x, np.ndarray) and x.dtype != np.float64 and _is_float(x):
        return x.astype(np.float64)
    return x


def _round(array: Array, dtype: DType | None) -> Array:
    if dtype is None or array.dtype == dtype.numpy or dtype is DType.STRING:
        return array
    with np.errstate(over="ignore"):  # beyond the type's range is infinity
        return array.astype(dtype.numpy)
