"""Element-wise chains around a product: what may be computed with it, whatever that costs.

After a product: nodes of its shape that read it, and what only those read. Before it: nodes that
only make its rows, reductions and norms of rows among them. A product with its chains is computed
at one place, the last of its nodes, so nothing outside may read a result of it earlier.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from regraft.backends.triton.chain_forms import FLOATS, form_of
from regraft.backends.triton.region_nodes import (
    MAX_NODES,
    REDUCTIONS,
    ROW_OPS,
    Shape,
    common_space,
    inputs_of,
    is_computable,
    outputs_of,
    reads_of,
    reduced_of,
    takes,
)
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops.arithmetic import add
from regraft.ir.ops.linalg import matmul
from regraft.ir.ops.repeating import expand
from regraft.ir.ops.reshaping import reshape

Takes = Callable[[Node], bool]
MAX_ROW = 256
"""Columns of a product whose rows one tile holds, so that what follows may reduce them."""


@dataclass(frozen=True, slots=True, eq=False)
class Core:
    """A product of rows and a matrix, with its bias.

    Args:
        product: The node.
        sum: The node that adds a bias, where there is one.
        flat: The node that joined the leading axes of the rows, where the result has them again.
        view: The node that gives them to the result.
    """

    product: Node
    sum: Node | None
    flat: Node | None = None
    view: Node | None = None

    @property
    def result(self) -> Value:
        """The product, the bias added."""
        return (self.view or self.sum or self.product).output

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What it is made of, and nothing else reads."""
        only = self.flat if self.flat is not None and self.flat.output.num_uses == 1 else None
        found = (only, self.product, self.sum, self.view)
        return tuple(node for node in found if node is not None)

    @property
    def is_shaped_after(self) -> bool:
        """Whether what follows says which leading axes the result has, not the rows."""
        return self.view is not None and self.flat is None

    @property
    def rows(self) -> Value:
        """The left factor."""
        return _known((self.flat or self.product).inputs[0])

    @property
    def weight(self) -> Value:
        """The right factor, of rank 2."""
        return _known(self.product.inputs[1])

    @property
    def bias(self) -> Value | None:
        """What is added."""
        if self.sum is None:
            return None
        return next(_known(v) for v in self.sum.inputs if v is not self.product.output)


def _known(value: Value | None) -> Value:
    if value is None:
        raise AssertionError("a missing operand")
    return value


def cores_of(nodes: Sequence[Node]) -> Iterator[Core]:
    """Yields the products that a template takes."""
    inside = set(nodes)
    for node in nodes:
        if node.op is not matmul or not _is_product(node):
            continue
        users = [user for user, _ in node.output.uses]
        added = users[0] if len(users) == 1 and isinstance(users[0], Node) else None
        is_biased = added in inside and _adds_bias(added, node)
        yield _viewed(Core(node, added if is_biased else None), inside)


def _viewed(core: Core, inside: set[Node]) -> Core:
    """Returns a product with the views around it, where they undo each other."""
    users = [user for user, _ in core.result.uses]
    view = users[0] if len(users) == 1 and isinstance(users[0], Node) else None
    columns = (core.result.shape or ())[-1:]
    if view is None or view not in inside or view.op is not reshape:
        return core
    shape = view.output.shape
    if shape is None or len(shape) < 2 or shape[-1:] != columns:
        return core
    flat = core.rows.producer
    if flat is not None and flat in inside and flat.op is reshape:
        x = flat.inputs[0]
        if x is not None and x.shape == (*shape[:-1], *(core.rows.shape or ())[-1:]):
            return Core(core.product, core.sum, flat, view)
    others = [v for user in view.output.users for v in user.inputs if v is not view.output]
    is_placed = any(value is not None and value.shape == shape for value in others)
    return Core(core.product, core.sum, None, view) if is_placed and core.rows.rank == 2 else core


def _adds_bias(added: Node | None, product: Node) -> bool:
    """Whether a node adds one element per column, all of one dtype."""
    if added is None or added.op is not add or added.output.shape != product.output.shape:
        return False
    biases = [value for value in added.inputs if value is not product.output]
    columns = (product.output.shape or ())[-1:]
    return len(biases) == 1 and all(
        value is not None and value.shape == columns and value.dtype is product.output.dtype
        for value in biases
    )


def _is_product(node: Node) -> bool:
    x, weight = node.inputs[:2]
    if x is None or weight is None or x.shape is None or node.output.shape is None:
        return False
    is_typed = x.dtype in FLOATS and weight.dtype is x.dtype and node.output.dtype is x.dtype
    return is_typed and len(x.shape) >= 2 and weight.rank == 2


def epilogues(core: Core, places: Mapping[Node, int], can_take: Takes) -> Iterator[list[Node]]:
    """Yields what may be computed after a product: the longest chain, and its beginnings.

    Args:
        core: The product.
        places: The order of the nodes.
        can_take: Whether a node is free.
    """
    groups = _groups(core, places, can_take)
    while groups:
        chain = sorted((node for group in groups for node in group), key=places.__getitem__)
        if _is_epilogue(core, chain, places):
            yield chain
        groups.pop()


def _groups(core: Core, places: Mapping[Node, int], can_take: Takes) -> list[list[Node]]:
    """Returns the nodes that read a product, each after what it alone reads."""
    space = core.result.shape or ()
    inside: set[Node] = set(core.nodes)
    found: list[list[Node]] = []
    waiting: list[tuple[int, Node]] = []
    _push(waiting, core.result, places)
    while waiting and len(inside) < MAX_NODES:
        _, node = heapq.heappop(waiting)
        if node in inside or not _is_after(core, node, can_take):
            continue
        if not all(_fits(value, space) for value in reads_of(node)):
            continue
        group = _sides(node, inside, space, can_take)
        found.append(group)
        inside.update(group)
        _push(waiting, node.outputs[0], places)
    return found


def _push(waiting: list[tuple[int, Node]], value: Value, places: Mapping[Node, int]) -> None:
    for user in value.users:
        if user in places:
            heapq.heappush(waiting, (places[user], user))


def _is_after(core: Core, node: Node, can_take: Takes) -> bool:
    """Whether a node may follow a product: element-wise, or of rows that one tile holds."""
    space = core.result.shape or ()
    shape, width = node.outputs[0].shape, space[-1]
    is_element = _is_element(node, can_take)
    if is_element and shape == space:
        return True
    if not isinstance(width, int) or width > MAX_ROW or not can_take(node) or not takes(node):
        return False
    if reduced_of(node) > 1:
        return False
    # what reductions give has one column; one that drops its axis ends a chain
    return (is_element or is_of_rows(node)) and shape in (space, (*space[:-1], 1))


def is_of_rows(node: Node) -> bool:
    """Whether a node reduces rows."""
    return node.op in REDUCTIONS or node.op in ROW_OPS


def _sides(node: Node, inside: set[Node], space: Shape, can_take: Takes) -> list[Node]:
    """Returns a node after the nodes that only it reads, directly or not."""
    group = [node]
    for each in group:
        for value in reads_of(each):
            made = value.producer
            if made is None or made in inside or made in group or not _is_element(made, can_take):
                continue
            is_own = all(user in group for user, _ in value.uses)
            if is_own and all(_fits(operand, space) for operand in reads_of(made)):
                group.append(made)
    return group[::-1]


def _is_element(node: Node, can_take: Takes) -> bool:
    is_other = is_of_rows(node) or node.op is expand
    return can_take(node) and not is_other and takes(node) and form_of(node) is not None


def _fits(value: Value, space: Shape) -> bool:
    return value.shape is not None and common_space([space, value.shape]) == space


def _is_epilogue(core: Core, chain: Sequence[Node], places: Mapping[Node, int]) -> bool:
    if not is_computable(chain, set()):
        return False
    if core.is_shaped_after and shaped_like(core, inputs_of(chain)) is None:
        return False
    anchor = max(chain, key=places.__getitem__)
    for value in outputs_of([*core.nodes, *chain]):
        if value.producer is anchor:
            continue
        for user, _ in value.uses:
            if isinstance(user, Graph) or user in core.nodes or user in chain:
                continue
            # a part of its own is called where its first node stands, which may be earlier
            if user not in places or places[user] < places[anchor]:
                return False
    return all(value.shape == core.result.shape for value in outputs_of(chain))


def shaped_like(core: Core, values: Sequence[Value]) -> Value | None:
    """Returns a value with the shape of a product, other than that."""
    others = (v for v in values if v is not core.result and v.shape == core.result.shape)
    return next(others, None)


def prologue(core: Core, can_take: Takes) -> list[Node]:
    """Returns what only makes the rows of a product, in reversed order of dependence."""
    space = core.rows.shape or ()
    found: dict[Node, None] = {}
    waiting = [core.rows]
    while waiting:
        value = waiting.pop()
        made = value.producer
        if made is None or made in found or not can_take(made) or not takes(made):
            continue
        if made.op is expand or reduced_of(made) > 1 or value is not made.outputs[0]:
            continue
        readers = {user for user, _ in value.uses}
        # it waits for its last reader, if that is taken at all
        if not readers <= {*core.nodes, *found} or not all(
            _fits(operand, space) for operand in reads_of(made)
        ):
            continue
        found[made] = None
        waiting += reads_of(made)
    return list(found)


def is_prologue(core: Core, chain: Sequence[Node]) -> bool:
    """Whether a chain in order makes the rows of a product and nothing else."""
    wide = core.rows.shape
    return (
        bool(chain)
        and is_computable(chain, set())
        and outputs_of(chain) == [core.rows]
        and any(value.shape == wide and value.dtype in FLOATS for value in inputs_of(chain))
    )
