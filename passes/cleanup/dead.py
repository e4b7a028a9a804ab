"""Dead code: unused nodes, results of branches and loops, captures and weights.

A node whose values are unused stays while a size attribute speaks of a size that only its result
shows (the length of a `nonzero`).
"""

from __future__ import annotations

from regraft.ir.constants import is_constant, weight
from regraft.ir.dims import Symbol
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.module import Module
from regraft.ir.ops import control
from regraft.ir.rewrite.liveness import defined_symbols, is_droppable, needed_symbols


def drop_dead_code(module: Module) -> int:
    """Erases what cannot reach an output and returns the number of things erased.

    Cost: O(nodes).
    """
    num = _drop_nodes(module.graph, set())
    used = {node.attrs["name"] for node in module.graph.walk() if node.op is weight}
    used |= {state.input for state in module.states}  # what a buffer holds at first
    store = module.weights
    used = {store.aliases.get(name, name) for name in used}
    for name in [name for name in store if name not in used]:
        store.remove(name)
        num += 1
    return num


def _drop_nodes(graph: Graph, needed: set[Symbol]) -> int:
    """Erases backwards; `needed` collects the defined symbols that kept nodes speak of."""
    num = 0
    for node in reversed(graph):
        is_unused = not any(value._uses for value in node.outputs) and is_droppable(node)
        if is_unused and (not needed or needed.isdisjoint(defined_symbols(node))):
            graph.erase(node)
            num += 1
            continue
        if node.bodies and node.op in (control.if_, control.loop, control.scan):
            num += _drop_results(node)
            num += sum(_drop_nodes(body, needed) for body in node.bodies)
            num += _drop_captures(node)
        elif node.bodies:
            for body in node.bodies:
                num += _drop_nodes(body, needed)
        needed.update(needed_symbols(node))
    return num


def _drop_results(node: Node) -> int:
    """Removes unused results of an `if`, and unused scanned results of a `loop` or `scan`."""
    first, offset = 0, 0
    if node.op is not control.if_:
        first = node.attrs["num_carried"]
        offset = 1 if node.op is control.loop else 0
    kept: list[Value] = []
    gone: list[int] = []
    for idx, value in enumerate(node.outputs):
        if value._uses or idx < first or (idx == len(node.outputs) - 1 and not kept):
            kept.append(value)
        else:
            gone.append(idx)
    for idx in reversed(gone):
        for body in node.bodies:
            body.remove_output(idx + offset)
    if not gone:
        return 0
    for idx, value in enumerate(kept):
        value.index = idx
    node.outputs = tuple(kept)
    for name in ("output_axes", "output_reversed"):
        if name in node.attrs:
            items = node.attrs[name]
            node.attrs[name] = tuple(x for i, x in enumerate(items) if i + first not in gone)
    return len(gone)


def _drop_captures(node: Node) -> int:
    """Copies captured constants into the bodies, joins equal captures, removes unused ones."""
    num = node.attrs["num_captures"]
    first = len(node.inputs) - num
    seen: dict[Value, int] = {}
    removed = 0
    for pos in reversed(range(num)):
        outer = node.inputs[first + pos]
        inner = [body.inputs[len(body.inputs) - num + pos] for body in node.bodies]
        if outer is None:
            continue
        if is_constant(outer):
            for body, value in zip(node.bodies, inner, strict=True):
                _copy_into(body, outer, value)
        elif outer in seen:
            for body, value in zip(node.bodies, inner, strict=True):
                value.replace_all_uses_with(body.inputs[len(body.inputs) - num + seen[outer]])
        if any(value._uses for value in inner):
            seen[outer] = pos
            continue
        for value in inner:
            if value.graph is not None:
                value.graph.remove_input(value.index)
        node.set_operands([*node.inputs[: first + pos], *node.inputs[first + pos + 1 :]])
        num -= 1
        removed += 1
        seen = {value: idx - 1 for value, idx in seen.items()}
    node.attrs["num_captures"] = num
    return removed


def _copy_into(body: Graph, outer: Value, inner: Value) -> None:
    producer = outer.producer
    if producer is None or not inner._uses:
        return
    copy = body.create(producer.op, (), producer.attrs, before=body.first)
    copy.output.name = outer.name
    inner.replace_all_uses_with(copy.output)
