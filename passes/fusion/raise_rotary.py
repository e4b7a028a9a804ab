"""Plans to raise rotary position embedding to the operator `rotary_embedding`."""

from __future__ import annotations

from collections.abc import Iterable

from regraft.ir.builder import Builder
from regraft.ir.dims import DimLike
from regraft.ir.graph import Graph, Node, Value
from regraft.ir.ops import reshaping, rotary, slicing
from regraft.ir.rewrite import Rewriter
from regraft.passes.analysis.rotary import Rotary
from regraft.passes.analysis.rotary_tables import half_table
from regraft.passes.fusion.plan import Plan, Raise
from regraft.passes.fusion.prove import Prover
from regraft.passes.protocol import Skip


def plan_rotary(found: Iterable[Rotary], plan: Plan, prover: Prover) -> None:
    """Adds every embedding that evaluates as the operator does."""
    for each in found:
        node = each.output.producer
        if node is None:
            raise AssertionError("an embedding ends in a node")
        reason = ""
        for is_swapped in (False, True):
            reason = _refuted(each, is_swapped, prover)
            if not reason:
                plan.add(node, "raise-rotary-embedding", _raised(each, is_swapped))
                break
        else:
            plan.skipped.append(Skip(str(each.output.name), f"rotary embedding: {reason}"))


def _refuted(each: Rotary, is_swapped: bool, prover: Prover) -> str:
    graph = each.output.owner
    if graph is None:
        raise AssertionError("the place is gone")
    scratch = Graph(graph.scope)
    made = build(each, is_swapped, Builder(scratch))
    reason = prover.refute(each.output, made, scratch)
    for node in reversed(scratch):
        scratch.erase(node)
    return reason


def _raised(each: Rotary, is_swapped: bool) -> Raise:
    def apply(node: Node, rw: Rewriter) -> None:
        rw.replace(node, build(each, is_swapped, rw.builder(node)))

    return apply


def build(each: Rotary, is_swapped: bool, b: Builder) -> Value:
    """Builds the operator; x gets the layout [B, H, S, D] and its result the layout of x."""
    x, shape = each.source, each.output.shape
    if x.shape is None or shape is None:
        raise AssertionError("an embedding has a shape")
    tables = [_table(b, table, each) for table in each.tables]
    cos, sin = reversed(tables) if is_swapped else tables
    if x.shape[-1] != each.size:
        last, end = len(shape) - 1, each.start + each.size
        x = b.op(slicing.slice_, x, starts=(each.start,), ends=(end,), axes=(last,), steps=(1,))
    if len(shape) == 3:
        x = b.op(reshaping.reshape, x, shape=(shape[0], 1, *shape[1:]))
    perm = (0, 2, 1, 3) if each.rows == 1 and len(shape) == 4 else None
    if perm is not None:
        x = b.op(reshaping.transpose, x, perm=perm)
    out = b.op(
        rotary.rotary_embedding,
        x,
        cos,
        sin,
        interleaved=each.interleaved,
        rotary_size=None if each.rotary_size == each.size else each.rotary_size,
    )
    if perm is not None:
        out = b.op(reshaping.transpose, out, perm=perm)
    return b.op(reshaping.reshape, out, shape=shape) if len(shape) == 3 else out


def _table(b: Builder, table: Value, each: Rotary) -> Value:
    """Returns a table as [B, S, R / 2] or [S, R / 2]."""
    shape, rank = table.shape, each.output.rank
    if shape is None or rank is None:
        raise AssertionError("tables have shapes")
    if shape[-1] == each.rotary_size:
        table = half_table(b, table, each.interleaved)
        shape = table.shape or ()
    full = (1,) * (rank - len(shape)) + tuple(shape)
    wanted: tuple[DimLike, ...] = (full[0], full[each.rows], full[-1])
    if wanted[0] == 1:
        wanted = wanted[1:]
    return table if wanted == shape else b.op(reshaping.reshape, table, shape=wanted)
