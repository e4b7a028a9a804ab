"""Which values an input may take, read off how the graph uses it.

An integer that indexes a table of N rows lies in [0, N); one that is compared with constants takes
those constants; one that becomes a condition or an additive mask is 0 or 1, and so is one whose
running sum indexes a table: it counts positions. Generated samples use these domains, so that they
are valid for the model without asking the user.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from regraft.ir.constants import constant_of
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import OPS
from regraft.ir.types import DType

_FOLLOW = frozenset(
    OPS[name]
    for name in (
        "cast", "identity", "reshape", "transpose", "squeeze", "unsqueeze", "expand", "slice",
        "concat", "split", "tile", "pad",
    )
    if name in OPS
)  # fmt: skip
_SUMS = frozenset({"cumsum", "reduce_sum"})
_CONDITIONS = frozenset(OPS[name] for name in ("not", "and", "or", "xor") if name in OPS)


@dataclass(slots=True)
class Domain:
    """What is known of an input's values.

    Attributes:
        high: Exclusive upper bound from indexing, or None.
        choices: Constants that the input is compared with.
        is_mask: Whether it is used as a condition or a 0/1 mask.
        is_counted: Whether a sum of it indexes a table: it is 0 or 1 then, whatever it indexes.
    """

    high: int | None = None
    choices: set[int] = field(default_factory=set)
    is_mask: bool = False
    is_counted: bool = False

    def note_high(self, high: int) -> None:
        """Keeps the smallest bound."""
        self.high = high if self.high is None else min(self.high, high)


def input_domains(graph: Graph) -> dict[str, Domain]:
    """Returns the domain of every integer or bool input; cost O(uses reached)."""
    domains = {}
    for value in graph.inputs:
        dtype = value.dtype
        if dtype is not None and (dtype.is_integer or dtype is DType.BOOL):
            domains[str(value.name)] = _trace(value)
    return domains


def _trace(start: Value) -> Domain:
    domain = Domain()
    seen: set[tuple[Value, bool]] = set()
    stack = [(start, False)]  # a value, and whether it is a sum over what was started with
    while stack:
        value, is_sum = stack.pop()
        if (value, is_sum) in seen:
            continue
        seen.add((value, is_sum))
        for user, idx in value.uses:
            if isinstance(user, Node):
                found = _follow(user, idx, value, domain, is_sum)
                stack += [(each, is_sum or user.op.name in _SUMS) for each in found]
    if domain.is_counted:
        domain.high, domain.is_mask = None, True
    return domain


def _follow(node: Node, idx: int, value: Value, domain: Domain, is_sum: bool) -> Iterator[Value]:
    op = node.op
    if op in _FOLLOW:
        if node.output.dtype is DType.BOOL and value.dtype is not DType.BOOL:
            domain.is_mask = True
        elif not (node.output.dtype is not None and node.output.dtype.is_float):
            yield from node.outputs
        else:
            domain.is_mask = domain.is_mask or _is_additive_mask(node)
        return
    if node.bodies:
        yield from _body_inputs(node, idx)
        return
    if op in _CONDITIONS or (op.name == "where" and idx == 0):
        domain.is_mask = True
        return
    match op.name:
        case "gather" | "gather_elements" | "gather_nd" | "one_hot":
            if is_sum and idx == 1:
                domain.is_counted = True
            else:
                _note_index(node, idx, domain)
            if op.name == "gather" and idx == 0:
                yield from node.outputs
        case "equal" | "greater" | "less" | "greater_or_equal" | "less_or_equal":
            other = node.inputs[1 - idx]
            array = constant_of(other, 1024)
            if array is not None and array.dtype.kind in "iu":
                domain.choices.update(int(x) for x in array.reshape(-1)[:16])
        case "mul" | "cumsum" | "reduce_sum" | "sub" | "add" | "where":
            yield from node.outputs
        case _:
            return


def _body_inputs(node: Node, idx: int) -> Iterator[Value]:
    from_end = len(node.inputs) - idx
    for body in node.bodies:
        if from_end <= len(body.inputs):
            yield body.inputs[len(body.inputs) - from_end]


def _note_index(node: Node, idx: int, domain: Domain) -> None:
    if node.op.name == "one_hot":
        depth = constant_of(node.inputs[1], 1024)
        if idx == 0 and depth is not None:
            domain.note_high(int(depth.reshape(-1)[0]))
        return
    data = node.inputs[0]
    if idx != 1 or data is None or data.shape is None:
        return
    if node.op.name == "gather_nd":
        sizes = [dim for dim in data.shape if isinstance(dim, int)]
        if sizes:
            domain.note_high(min(sizes))
        return
    size = data.shape[node.attrs["axis"]] if data.shape else 1
    if isinstance(size, int):
        domain.note_high(size)


def _is_additive_mask(cast: Node) -> bool:
    """Whether the float copy of an integer is used as `1 - x` or multiplied by a large constant."""
    return any(
        user.op.name in ("sub", "mul", "equal", "where", "reduce_sum") for user in cast.output.users
    )
