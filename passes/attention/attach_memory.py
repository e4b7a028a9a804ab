"""The pass `attach-memory`: attention that also looks into a bank of keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from regraft.ir.builder import Builder
from regraft.ir.dims import Dim, DimLike
from regraft.ir.errors import UsageError
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import (
    fill,
    linalg,
    logical,
    repeating,
    reshaping,
    response_norm,
    selecting,
    slicing,
)
from regraft.ir.ops.attention import attention
from regraft.ir.types import DType, TensorType
from regraft.passes.fusion.fuse import Fuse
from regraft.passes.protocol import Context, Contract, Lossy, PassResult, Skip

KEYS, VALUES = "memory_keys", "memory_values"
_HIDDEN = -1e9


@dataclass(frozen=True, slots=True)
class AttachMemory:
    """Lets every attention layer attend to the keys of a bank that are most like its queries.

    ## What it does
    Every layer gets two inputs, `memory_keys.<layer>` f32[1, heads, memory, size] and
    `memory_values.<layer>`, that stand before the sequence's own keys: every query sees all that it
    saw, and the `k` keys of the bank whose direction is most like its own, in one softmax. With
    `mode=collect` the module returns them instead: what it returns for a text is the bank of that
    text. No training is needed.

    ## When it applies
    To attention in the main graph, causal or not, without a window and without lengths. Keys are
    taken as attention reads them, after rotary embedding where there is one: whoever makes a bank
    chooses the positions by `position_ids`, where the module has them.

    ## Example
    ```
    %y = attention(%q, %k, %v) {causal_offset = 0}
    ```
    becomes
    ```
    %y = attention(%q, concat(%memory_keys.0, %k), concat(%memory_values.0, %v), %mask)
         {causal_offset = memory}
    ```

    ## Exactness
    Inputs and outputs are others. With an empty bank the module is what it was; with the bank of a
    prefix and all its keys, a decoder goes on as if it had read the prefix.

    ## References
    Klett and Ahle, Extended Mind Transformers, 2024.

    Args:
        k: Keys of the bank per query and head; all where it has fewer.
        mode: `attach` adds inputs, `collect` outputs.
        layers: Numbers of the attention layers, from 0; all when empty.
    """

    name: ClassVar[str] = "attach-memory"
    contract: ClassVar[Contract] = Lossy("inputs and outputs")

    k: int = 8
    mode: Literal["attach", "collect"] = "attach"
    layers: tuple[int, ...] = ()

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Adds the inputs, or the outputs.

        Raises:
            UsageError: For a number of keys below 0, or a layer that is not there.
        """
        if self.k < 0:
            raise UsageError(
                f"pass `{self.name}`, option `k`: {self.k} is not allowed", hint="it is 0 or more"
            )
        raised = Fuse().run(module, ctx)
        graph = module.graph
        nodes = [node for node in graph if node.op is attention]
        unknown = [number for number in self.layers if not 0 <= number < len(nodes)]
        if unknown:
            raise UsageError(
                f"pass `{self.name}`, option `layers`: no layer {', '.join(map(str, unknown))}",
                hint=f"{len(nodes)} layers of attention were recognized",
            )
        skipped: list[Skip] = []
        count = 0
        size: Dim | None = None
        for number, node in enumerate(nodes):
            if self.k == 0 or (self.layers and number not in self.layers):
                continue
            reason = _misfit(node)
            if reason:
                skipped.append(Skip(str(node.output.name), f"memory: {reason}"))
                continue
            if self.mode == "collect":
                for name, value in zip((KEYS, VALUES), node.inputs[1:3], strict=True):
                    assert value is not None, "attention has keys and values"
                    graph.add_output(f"{name}.{number}", value)
            else:
                if size is None:
                    size = Dim.of(graph.scope.symbol("memory", lo=0))
                _attach(node, number, size, self.k, graph)
            count += 1
        return PassResult(raised.changed or count > 0, {self.mode: count}, tuple(skipped))


def _misfit(node: Node) -> str:
    q, k, v, _, lengths, _, offset, _, gates = node.inputs
    if any(x is None or x.shape is None or x.dtype is None for x in (q, k, v)):
        return "the sizes of its operands are not known"
    if lengths is not None or offset is not None:
        return "its positions are known at run time only"
    if gates is not None or node.attrs["modifier"] != "none":
        return "its scores depend on all positions"
    if node.attrs["causal_offset"] is not None and node.attrs["window"][0] != -1:
        return "its window hides what is before the sequence"
    return ""


def _attach(node: Node, number: int, M: DimLike, k: int, graph: Graph) -> None:
    q, keys, values, mask = node.inputs[:4]
    if q is None or keys is None or values is None:
        raise AssertionError("attention has queries, keys and values")
    b = Builder(graph, node, node.loc)
    B, H, S, _ = q.shape or ()
    given = []
    for name, own in ((KEYS, keys), (VALUES, values)):
        _, heads, _, size = own.shape or ()
        bank = graph.add_input(f"{name}.{number}", TensorType(own.dtype, (1, heads, M, size)))
        given.append(bank)
    joined = []
    for bank, own in zip(given, (keys, values), strict=True):
        _, heads, _, size = own.shape or ()
        wide = b.op(repeating.expand, bank, shape=(B, heads, M, size))
        joined.append(b.op(slicing.concat, wide, own, axis=2))
    near = _nearest(b, q, given[0], node.attrs["kv_groups"], k)
    near = b.op(repeating.expand, near, shape=(B, H, S, M))
    T = (keys.shape or ())[2]
    if mask is None or mask.dtype is DType.BOOL:
        if mask is None:
            own_part = b.op(fill.constant_of_shape, shape=(B, H, S, T), value=np.ones(1, np.bool_))
        else:
            own_part = b.op(repeating.expand, mask, shape=(B, H, S, T))
    else:
        own_part = b.op(repeating.expand, mask, shape=(B, H, S, T))
        zero, hidden = (b.constant(number, mask.dtype) for number in (0.0, _lowest(mask)))
        near = b.op(logical.where, near, zero, hidden)
    seen = b.op(slicing.concat, near, own_part, axis=3)
    offset = node.attrs["causal_offset"]
    attrs = {**node.attrs, "causal_offset": None if offset is None else M + offset}
    inputs = [q, *joined, seen, *node.inputs[4:]]
    made = b.op(attention, *inputs, **attrs)
    graph.replace(node, (made,), rule=AttachMemory.name)


def _lowest(mask: Value) -> float:
    return max(_HIDDEN, float(np.finfo(np.float16).min)) if mask.dtype is DType.F16 else _HIDDEN


def _nearest(b: Builder, q: Value, bank: Value, groups: int, k: int) -> Value:
    """Returns which keys of a bank [1, K, M, D] are among a query's k most like it, bool."""
    _, heads, M, D = bank.shape or ()
    unit = b.op(response_norm.lp_norm, bank, axis=-1, p=2)
    if groups != 1:
        unit = b.op(reshaping.unsqueeze, unit, axes=(2,))
        unit = b.op(repeating.expand, unit, shape=(1, heads, groups, M, D))
        unit = b.op(reshaping.reshape, unit, shape=(1, heads * groups, M, D))
    # the length of a query does not change which keys are most like it
    alike = b.op(linalg.matmul, q, b.op(reshaping.transpose, unit, perm=(0, 1, 3, 2)))
    B, H, S, _ = alike.shape or ()
    numpy = alike.dtype.numpy if alike.dtype is not None else np.float32
    lowest = np.full(1, np.finfo(np.float16).min, numpy)  # as many as are taken: banks may have few
    none = b.op(fill.constant_of_shape, shape=(B, H, S, k), value=lowest)
    best, _ = b.multi(selecting.top_k, b.op(slicing.concat, alike, none, axis=3), k=k, axis=3)
    least = b.op(slicing.slice_, best, starts=(k - 1,), ends=(k,), axes=(3,), steps=(1,))
    return b.op(logical.greater_or_equal, alike, least)
