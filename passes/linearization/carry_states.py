"""The pass `carry-states`: a module over whole sequences becomes one that goes on where it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from regraft.ir import call_form
from regraft.ir.builder import Builder
from regraft.ir.constants import is_constant
from regraft.ir.dims import Dim, DimLike
from regraft.ir.errors import UsageError
from regraft.ir.graph import Node, Value
from regraft.ir.module import Module, State, StateKind
from regraft.ir.ops import arithmetic, fill, gathering, sizes, slicing
from regraft.ir.ops.attention import attention
from regraft.ir.ops.hybrid_attention import hybrid_attention
from regraft.ir.ops.linear_attention import linear_attention
from regraft.ir.types import DType, TensorType
from regraft.passes.cleanup.dead import drop_dead_code
from regraft.passes.fusion.fuse import Fuse
from regraft.passes.protocol import Context, Contract, Lossy, PassResult

POSITION = "position"
_NEXT = ".next"


@dataclass(frozen=True, slots=True)
class CarryStates:
    """Gives every token mixer its state as an input and an output: decoding, step by step.

    ## What it does
    Linear and hybrid attention read a state and return the next one, of constant size. Causal
    softmax attention, where a stack keeps some, reads keys and values so far and returns those with
    the new ones behind. The position of the first token is a state as well, and everything that is
    computed from positions begins there. The mask of padding, where there is one, becomes all ones:
    a state has no padding. With zero states (and caches of length 0) the module is what it was; fed
    its own states, it goes on: the whole sequence in any parts gives the same as at once.

    ## When it applies
    To causal decoders that see whole sequences: a captured model, or ONNX without a cache. What
    mixes tokens in another way (convolutions, say) is not found, and not given a state.

    ## Example
    ```
    %y, %s = linear_attention(%q, %k, %v)
    ```
    becomes
    ```
    %y, %state.0.next = linear_attention(%q, %k, %v, %state.0)
    ```

    ## Exactness
    Inputs and outputs are others. At zero states, sequences without padding give what they did.

    ## References
    Katharopoulos et al., Transformers are RNNs, 2020.

    Args:
        mask: Input that says which tokens are padding.
    """

    name: ClassVar[str] = "carry-states"
    contract: ClassVar[Contract] = Lossy("inputs and outputs")

    mask: str = "attention_mask"

    def run(self, module: Module, ctx: Context) -> PassResult:
        """Adds states to all mixers, in place.

        Raises:
            UsageError: When there is nothing to give a state, or attention that is not causal.
        """
        Fuse().run(module, ctx)
        graph = module.graph
        mixers = (attention, linear_attention, hybrid_attention)
        nodes = [node for node in graph if node.op in mixers]
        _check(nodes)
        self._without_padding(module)
        length = (nodes[0].inputs[0] or nodes[0].output).shape or ()
        moved = _positions(module, length[2])
        counts = {"states": 0, "caches": 0}
        for number, node in enumerate(nodes):
            if node.op is attention:
                _with_cache(module, node, number)
                counts["caches"] += 1
            else:
                counts["states"] += _with_state(module, node, number)
        drop_dead_code(module)
        for key in (call_form.CALL, call_form.OUTPUTS):
            module.meta.pop(key, None)  # they speak of the inputs before
        stats: dict[str, int | float] = {**counts, "positions": moved}
        return PassResult(True, stats, ())

    def _without_padding(self, module: Module) -> None:
        """Puts ones in place of the mask."""
        graph = module.graph
        names = [value.name for value in graph.inputs]
        if self.mask not in names:
            return
        old = graph.inputs[names.index(self.mask)]
        shape, dtype = old.shape, old.dtype
        if shape is None or dtype is None:
            raise UsageError(f"pass `{self.name}`: the sizes of `{self.mask}` are not known")
        known = {dim for value in graph.inputs if value is not old for dim in value.shape or ()}
        lost = [str(dim) for dim in shape if isinstance(dim, Dim) and dim not in known]
        if lost:
            raise UsageError(
                f"pass `{self.name}`: only `{self.mask}` tells the size {', '.join(lost)}",
                hint="capture the module with a mask of the tokens' sizes",
            )
        b = Builder(graph, graph.first)
        ones = b.op(fill.constant_of_shape, shape=shape, value=np.ones(1, dtype.numpy))
        old.replace_all_uses_with(ones)
        graph.remove_input(names.index(self.mask))


def _check(nodes: list[Node]) -> None:
    if not nodes:
        raise UsageError(
            "pass `carry-states`: nothing mixes tokens by keys and queries",
            hint="`regraft inspect` says what was recognized",
        )
    for node in nodes:
        is_causal = node.attrs.get("causal", True)
        if node.op is attention:
            is_causal = node.attrs["causal_offset"] == 0 and node.attrs["window"] == (-1, 0)
        given = node.op is not attention and any(
            node.operand(name) is not None for name in ("state", "recent") if _has(node, name)
        )
        if not is_causal or given or node.graph is None:
            reason = "has a state already" if given else "is not causal over the whole sequence"
            raise UsageError(f"pass `carry-states`: `{node.outputs[0].name}` {reason}")


def _has(node: Node, operand: str) -> bool:
    return operand in node.op.operand_idx


def _with_state(module: Module, node: Node, number: int) -> int:
    """Adds the states of linear or hybrid attention; returns how many."""
    graph = module.graph
    pairs = [("state", node.outputs[1])]
    if node.op is hybrid_attention:
        pairs.append(("recent", node.outputs[2]))
    for what, after in pairs:
        name = f"{what}.{number}"
        value = graph.add_input(name, after.type)
        node.set_operand(node.op.operand_idx[what], value)
        graph.add_output(name + _NEXT, after)
        module.states += (State(name, name, name + _NEXT, StateKind.RECURRENT),)
    return len(pairs)


def _with_cache(module: Module, node: Node, number: int) -> None:
    """Lets softmax attention see keys and values before its first token."""
    graph = module.graph
    past: DimLike = Dim.of(graph.scope.symbol("past"))
    b = Builder(graph, node, node.loc)
    for slot, what in ((1, "keys"), (2, "values")):
        new = node.inputs[slot]
        if new is None or new.shape is None:
            raise AssertionError("attention has keys and values of known rank")
        name = f"{what}.{number}"
        shape = (*new.shape[:2], past, new.shape[3])
        before = graph.add_input(name, TensorType(new.dtype, shape))
        whole = b.op(slicing.concat, before, new, axis=2)
        node.set_operand(slot, whole)
        graph.add_output(name + _NEXT, whole)
        module.states += (State(name, name, name + _NEXT, StateKind.KV_CACHE),)
    if node.operand("mask") is not None:
        node.set_operand(node.op.operand_idx["mask"], None)  # all ones by now
    node.attrs = {**node.attrs, "causal_offset": past}


def _positions(module: Module, length: DimLike) -> int:
    """Lets whatever counts tokens begin at the position that is a state; returns how many do.

    A count that gathers from a value of this sequence (a mask) is no position, and stays.
    """
    graph = module.graph
    counts = [
        node for node in graph
        if node.op is fill.range_ and node.output.shape == (length,) and node.attrs["start"] == 0
    ]  # fmt: skip
    readers = [
        (node, user) for node in counts for user in node.output.users if not _picks(user, node)
    ]
    if not readers:
        return 0
    position = graph.add_input(POSITION, TensorType(DType.I64, ()))
    for node in counts:
        users = [user for of, user in readers if of is node]
        if not users:
            continue
        b = Builder(graph, node.next, node.loc)
        moved = b.op(arithmetic.add, node.output, position)
        for user in users:
            for idx, operand in enumerate(user.inputs):
                if operand is node.output:
                    user.set_operand(idx, moved)
    b = Builder(graph)
    tokens = next(
        (value, axis) for value in graph.inputs for axis, dim in enumerate(value.shape or ())
        if dim == length
    )  # fmt: skip
    count = b.op(sizes.shape, tokens[0], start=tokens[1], end=tokens[1] + 1)
    from_one = b.op(gathering.gather, count, b.constant(0, DType.I64), axis=0)
    graph.add_output(POSITION + _NEXT, b.op(arithmetic.add, position, from_one))
    module.states += (State(POSITION, POSITION, POSITION + _NEXT, StateKind.BUFFER),)
    return len(readers)


def _picks(user: Node, count: Node) -> bool:
    """Whether a user gathers what it counts from something that is no table of weights."""
    if user.op is not gathering.gather:
        return False
    table: Value | None = user.inputs[0]
    return user.inputs[1] is count.output and table is not None and not is_constant(table)
