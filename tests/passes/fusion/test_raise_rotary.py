"""Rotary position embedding in every spelling becomes one `rotary_embedding`."""

from __future__ import annotations

import pytest

from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.passes.cleanup import Canonicalize
from regraft.passes.fusion import Fuse
from regraft.passes.protocol import Context
from tests.passes.analysis.spelled import spelled
from tests.passes.fusion.test_fuse import assert_equal, operators

X = "%x : f32[B, 4, S, 16]"

ANGLES = """
    %t = range() {dtype = i64, start = 0, limit = S, delta = 1}
    %i = reshape(%t) {shape = [S, 1]}
    %f = cast(%i) {to = f32}
    %a = mul(%f, %freq)
"""
HALF_TABLES = (
    ANGLES
    + """
    %full = concat(%a, %a) {axis = 1}
    %cos = cos(%full)
    %sin = sin(%full)
"""
)
INTERLEAVED_TABLES = (
    ANGLES
    + """
    %u = reshape(%a) {shape = [S, 8, 1]}
    %e = expand(%u) {shape = [S, 8, 2]}
    %full = reshape(%e) {shape = [S, 16]}
    %cos = cos(%full)
    %sin = sin(%full)
"""
)
ROTATE_HALF = """
    %x1 = slice(%x) {starts = [0], ends = [8], axes = [3], steps = [1]}
    %x2 = slice(%x) {starts = [8], ends = [16], axes = [3], steps = [1]}
    %n = neg(%x2)
    %r = concat(%n, %x1) {axis = 3}
    %p1 = mul(%x, %cos)
    %p2 = mul(%r, %sin)
    %y = add(%p1, %p2)
"""
ROTATE_NEIGHBOURS = """
    %x1 = slice(%x) {starts = [0], ends = [16], axes = [3], steps = [2]}
    %x2 = slice(%x) {starts = [1], ends = [16], axes = [3], steps = [2]}
    %n = neg(%x2)
    %n4 = reshape(%n) {shape = [B, 4, S, 8, 1]}
    %x4 = reshape(%x1) {shape = [B, 4, S, 8, 1]}
    %st = concat(%n4, %x4) {axis = 4}
    %r = reshape(%st) {shape = [B, 4, S, 16]}
    %p1 = mul(%x, %cos)
    %p2 = mul(%r, %sin)
    %y = add(%p1, %p2)
"""
FOUR_PRODUCTS = (
    ANGLES
    + """
    %cos = cos(%a)
    %sin = sin(%a)
    %x1, %x2 = split(%x) {axis = 3, sizes = [8, 8]}
    %a1 = mul(%x1, %cos)
    %a2 = mul(%x2, %sin)
    %b1 = mul(%x2, %cos)
    %b2 = mul(%x1, %sin)
    %first = sub(%a1, %a2)
    %second = add(%b1, %b2)
    %y = concat(%first, %second) {axis = 3}
"""
)
NEIGHBOURS_FOUR_PRODUCTS = (
    ANGLES
    + """
    %cos = cos(%a)
    %sin = sin(%a)
    %x1 = slice(%x) {starts = [0], ends = [16], axes = [3], steps = [2]}
    %x2 = slice(%x) {starts = [1], ends = [16], axes = [3], steps = [2]}
    %a1 = mul(%x1, %cos)
    %a2 = mul(%x2, %sin)
    %b1 = mul(%x2, %cos)
    %b2 = mul(%x1, %sin)
    %first = sub(%a1, %a2)
    %second = add(%b1, %b2)
    %f4 = reshape(%first) {shape = [B, 4, S, 8, 1]}
    %s4 = reshape(%second) {shape = [B, 4, S, 8, 1]}
    %st = concat(%f4, %s4) {axis = 4}
    %y = reshape(%st) {shape = [B, 4, S, 16]}
"""
)

SPELLINGS = {
    "rotate half": (HALF_TABLES + ROTATE_HALF, False),
    "rotate neighbours": (INTERLEAVED_TABLES + ROTATE_NEIGHBOURS, True),
    "four products": (FOUR_PRODUCTS, False),
    "four products of neighbours": (NEIGHBOURS_FOUR_PRODUCTS, True),
}


def raised(body: str, inputs: str = X, weights: dict[str, str] | None = None) -> Module:
    """Returns the module after canonicalize and fuse, equal to its source and final."""
    module = spelled(body, weights=weights or {"freq": "f32[8]"}, inputs=inputs)
    Canonicalize().run(module, Context())
    source = module.clone()
    Fuse().run(module, Context())
    Canonicalize().run(module, Context())
    assert_equal(source, module)
    assert not Fuse().run(module, Context()).changed
    return module


def the_rotary(module: Module) -> Node:
    (found,) = (node for node in module.graph if node.op.name == "rotary_embedding")
    return found


@pytest.mark.parametrize("name", SPELLINGS)
def test_pairs_are_found(name: str) -> None:
    body, interleaved = SPELLINGS[name]
    module = raised(body)
    node = the_rotary(module)
    assert node.attrs["interleaved"] is interleaved
    assert node.attrs["rotary_size"] is None
    assert str(node.inputs[1]).endswith("f32[S, 8]")
    assert {"concat", "neg", "slice", "split"}.isdisjoint(operators(module))


def test_only_the_first_channels_turn() -> None:
    body = HALF_TABLES + ROTATE_HALF.replace("%x", "%head").replace("%head1", "%x1").replace(
        "%head2", "%x2"
    ).replace("%y = ", "%turned = ")
    body = (
        "%head = slice(%x) {starts = [0], ends = [16], axes = [3], steps = [1]}\n"
        "%rest = slice(%x) {starts = [16], ends = [24], axes = [3], steps = [1]}\n"
        + body
        + "%y = concat(%turned, %rest) {axis = 3}"
    )
    node = the_rotary(raised(body, "%x : f32[B, 4, S, 24]"))
    assert node.attrs["rotary_size"] == 16


def test_positions_before_heads_are_moved() -> None:
    body = (
        HALF_TABLES.replace("%cos = cos(%full)", "%c2 = cos(%full)").replace(
            "%sin = sin(%full)", "%s2 = sin(%full)"
        )
        + """
        %cos = reshape(%c2) {shape = [S, 1, 16]}
        %sin = reshape(%s2) {shape = [S, 1, 16]}
        """
        + ROTATE_HALF
    )
    node = the_rotary(raised(body, "%x : f32[B, S, 4, 16]"))
    assert node.inputs[0] is not None
    assert [str(size) for size in node.inputs[0].shape or ()] == ["B", "4", "S", "16"]


def test_what_turns_no_pairs_stays() -> None:
    body = (HALF_TABLES + ROTATE_HALF).replace("concat(%n,", "concat(%x2,")
    assert "rotary_embedding" not in operators(raised(body))


def test_tables_whose_halves_differ_stay() -> None:
    weights = {"cos": "f32[9, 16]", "sin": "f32[9, 16]"}
    module = raised(ROTATE_HALF, "%x : f32[B, 4, 9, 16]", weights)
    assert "rotary_embedding" not in operators(module)
