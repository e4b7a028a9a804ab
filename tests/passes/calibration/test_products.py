"""Products by constants as stacks and rows; what else reads a constant; new content."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regraft.backends.onnx.activations import OrtActivations
from regraft.ir.derive import DerivedWeight
from regraft.ir.module import Module
from regraft.ir.overwrite import overwrite
from regraft.ir.steps import Concat, Literal, Mul, Slice, Source, Transpose
from regraft.ir.text import parse_module
from regraft.ir.weights import ArrayWeight, WeightStore
from regraft.passes.calibration.products import ConstantProduct, constant_products
from regraft.passes.calibration.tied import matrices_of
from regraft.passes.protocol import Skip

Array = np.ndarray[Any, Any]

PRODUCTS = {
    "matmul from the left": ("w : f32[6, 4]", "x : f32[2, 4, 5]", "matmul(%w, %x)"),
    "matmul by a stack": ("w : f32[3, 4, 6]", "x : f32[2, 3, 5, 4]", "matmul(%x, %w)"),
    "one stack for a batch": ("w : f32[3, 4, 6]", "x : f32[5, 4]", "matmul(%x, %w)"),
    "gemm": ("w : f32[4, 6]", "x : f32[4, 5]", "gemm(%x, %w) {trans_a = true}"),
    "gemm from the left": ("w : f32[4, 6]", "x : f32[5, 4]",
                           "gemm(%w, %x) {trans_a = true, trans_b = true}"),
    "conv, one axis": ("w : f32[6, 4, 3]", "x : f32[2, 4, 9]",
                       "conv(%x, %w) {strides = [2], dilations = [2], pads = [1, 0]}"),
    "conv_transpose": ("w : f32[4, 3, 1, 1]", "x : f32[2, 4, 5, 5]",
                       ("conv_transpose(%x, %w) {strides = [1, 1], dilations = [1, 1], pads = "
                        "[0, 0, 0, 0], output_padding = [0, 0], groups = 2}")),
}  # fmt: skip


def module_of(weight: str, x: str, product: str) -> Module:
    return parse_module(f"""
module "m"
weight @{weight} role=param = random(1)
graph(%{x}) {{
  %w = weight @w
  %y = {product}
  return %y
}}
""")


@pytest.mark.parametrize("name", PRODUCTS)
def test_rows_times_the_stack_are_the_results(name: str) -> None:
    module = module_of(*PRODUCTS[name])
    (found,) = constant_products(module.graph)
    assert isinstance(found, ConstantProduct)
    shape = tuple(size for size in found.x.shape or () if isinstance(size, int))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    output = module.graph.outputs[0]
    (item,) = OrtActivations().activations(module, [output], [{"x": x}])
    stack = found.stack()
    np.testing.assert_array_equal(found.layout.unstack(stack), module.weights["w"].numpy())
    got = found.layout.rows(x) @ stack  # [E, R, N]
    # the same numbers, wherever they stand
    eps = float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(
        np.sort(got.ravel()), np.sort(item[output].ravel()), rtol=0, atol=32 * eps
    )


@pytest.mark.parametrize(
    ("weight", "product", "reason"),
    [
        ("w : f32[4, 4]", 'einsum(%x, %w) {equation = "ab,bc->ac"}', "its constant is no plain"),
        ("w : f32[4]", "mul(%x, %w)", None),
    ],
)
def test_what_is_no_product_of_rows_is_named(weight: str, product: str, reason: str | None) -> None:
    found = list(constant_products(module_of(weight, "x : f32[4, 4]", product).graph))
    if reason is None:
        assert not found
        return
    assert isinstance(found[0], Skip)
    assert reason in found[0].reason
    assert "`einsum`" in found[0].reason


def test_products_in_bodies_are_named() -> None:
    module = parse_module("""
module "m"
weight @w : f32[4, 4] role=param = random(1)
graph(%x : f32[4, 4], %c : bool[]) {
  %w = weight @w
  %y = if(%c, %x, %w) {num_captures = 2} body(%a : f32[4, 4], %b : f32[4, 4]) {
    %u = weight @w
    %p = matmul(%a, %u)
    return %p
  } body(%d : f32[4, 4], %e : f32[4, 4]) {
    %n = neg(%d)
    return %n
  }
  return %y
}
""")
    items, skipped = matrices_of(module)
    assert not items
    assert skipped[0].reason == "`matmul` within a body of `if`"


def derived(trees: dict[str, Any]) -> WeightStore:
    store = WeightStore()
    for name, tree in trees.items():
        store.add(name, DerivedWeight(tree))
    return store


def test_new_content_goes_back_to_where_it_was_moved_from() -> None:
    base = np.arange(24, dtype=np.float32).reshape(6, 4)
    source = Source("attn.weight", ArrayWeight(base))
    store = derived({
        "q": Transpose(Slice(source, 0, 0, 3, 1), (1, 0)),
        "k": Transpose(Slice(source, 0, 3, 6, 1), (1, 0)),
    })  # fmt: skip
    new = -np.ones((4, 3), np.float32)
    assert overwrite(store, "q", new) == ("attn.weight",)
    np.testing.assert_array_equal(store["q"].numpy(), new)
    np.testing.assert_array_equal(store["k"].numpy(), base[3:].T)  # the other half is as it was
    assert isinstance(store["q"], DerivedWeight)
    # and again, of what both hold now
    assert overwrite(store, "k", 2 * new) == ("attn.weight",)
    np.testing.assert_array_equal(store["q"].numpy(), new)
    np.testing.assert_array_equal(store["k"].numpy(), 2 * new)


def test_joined_tensors_are_all_written_and_changed_ones_end_their_history() -> None:
    a, b = (Source(name, ArrayWeight(np.full((2, 3), 1, np.float32))) for name in "ab")
    twice = Literal.of(np.full((2, 3), 2, np.float32))
    store = derived({"ab": Concat((a, b), 0), "scaled": Mul(a, twice)})
    assert overwrite(store, "ab", np.full((4, 3), 7, np.float32)) == ("a", "b")
    np.testing.assert_array_equal(store["scaled"].numpy(), np.full((2, 3), 14))  # follows
    assert overwrite(store, "scaled", np.zeros((2, 3), np.float32)) == ("scaled",)
    np.testing.assert_array_equal(store["ab"].numpy(), np.full((4, 3), 7))
    assert store["scaled"].made_from == ("a",)  # type: ignore[attr-defined]


def test_slices_of_one_tensor_are_matrices_of_their_own_and_overlapping_ones_are_not() -> None:
    module = parse_module("""
module "m"
weight @q : f32[4, 3] role=param = random(1)
weight @k : f32[4, 3] role=param = random(2)
graph(%x : f32[5, 4]) {
  %q = weight @q
  %k = weight @k
  %a = matmul(%x, %q)
  %b = matmul(%x, %k)
  return %a, %b
}
""")
    source = Source("qk", ArrayWeight(np.ones((6, 4), np.float32)))
    module.weights.set("q", DerivedWeight(Transpose(Slice(source, 0, 0, 3, 1), (1, 0))))
    module.weights.set("k", DerivedWeight(Transpose(Slice(source, 0, 3, 6, 1), (1, 0))))
    assert [item.name for item in matrices_of(module)[0]] == ["q", "k"]
    module.weights.set("k", DerivedWeight(Transpose(Slice(source, 0, 2, 5, 1), (1, 0))))
    items, skipped = matrices_of(module)
    assert not items
    assert [skip.reason for skip in skipped] == ["it shares `qk` with what `matmul` reads"] * 2
