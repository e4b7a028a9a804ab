"""Spaces of positions: unification, refinement, pins, kept positions."""

import numpy as np
import pytest

from regraft.ir.dims import Dim
from regraft.passes.analysis.coupling.positions import kept_positions, unit_of
from regraft.passes.analysis.coupling.spaces import (
    Form,
    Pin,
    Space,
    cut,
    find,
    leaves_of,
    pin,
    product_of,
    sum_of,
    unify,
)

WHY = Pin("op", "node", "axis 0", "because")


def test_equal_leaves_become_one() -> None:
    a, b, c = Space(4), Space(4), Space(4)
    unify(a, b, WHY)
    unify(b, c, WHY)
    assert find(a) is find(c)
    assert find(a).pin is None


def test_a_pin_reaches_what_is_unified_before_and_after() -> None:
    a, b, c = Space(4), Space(4), Space(4)
    unify(a, b, WHY)
    pin(a, WHY)
    unify(c, b, WHY)
    assert find(c).pin is WHY


def test_the_first_reason_stays() -> None:
    a = Space(4)
    pin(a, WHY)
    pin(a, Pin("other", "", "", ""))
    assert find(a).pin is WHY


def test_different_sizes_pin_both() -> None:
    a, b = Space(4), Space(5)
    unify(a, b, WHY)
    assert a.pin is WHY
    assert b.pin is WHY


def test_a_leaf_takes_the_form_of_a_product() -> None:
    whole, heads, size = Space(12), Space(3), Space(4)
    unify(whole, product_of([heads, size]), WHY)
    assert find(whole).form is Form.PRODUCT
    assert leaves_of(whole) == [heads, size]


def test_products_refine_each_other() -> None:
    a, b, c, d = Space(4), Space(6), Space(2), Space(12)
    unify(product_of([a, b]), product_of([c, d]), WHY)
    # 4 x 6 and 2 x 12: 2 x 2 x 6
    assert [leaf.size for leaf in leaves_of(d)] == [2, 6]
    assert leaves_of(a)[0] is find(c)
    assert leaves_of(d)[1] is find(b)
    assert all(leaf.pin is None for leaf in leaves_of(d))


def test_products_that_do_not_nest_are_pinned() -> None:
    a, b = product_of([Space(4), Space(3)]), product_of([Space(3), Space(4)])
    unify(a, b, WHY)
    assert all(leaf.pin is WHY for leaf in [*leaves_of(a), *leaves_of(b)])


def test_a_shuffled_axis_that_meets_itself_ties_positions_that_change_places() -> None:
    groups, size = Space(2), Space(4)
    unify(product_of([groups, size]), product_of([size, groups]), WHY)
    # three bits turn in a circle: all are one leaf, which holds 1, 2 or 8 of the 8 positions
    assert len(set(leaves_of(product_of([groups, size])))) == 1


def test_sums_are_cut_where_either_ends() -> None:
    a, b, c, d = Space(4), Space(6), Space(7), Space(3)
    unify(sum_of([a, b]), sum_of([c, d]), WHY)
    assert [leaf.size for leaf in leaves_of(c)] == [4, 3]
    assert leaves_of(c)[0] is find(a)
    assert leaves_of(b) == leaves_of(c)[1:] + leaves_of(d)


def test_three_blocks_with_a_sum_tie_its_parts() -> None:
    q, k, v, three, rest = Space(6), Space(6), Space(6), Space(3), Space(6)
    unify(product_of([three, rest]), sum_of([q, k, v]), WHY)
    assert find(q) is find(k) is find(v) is find(rest)
    assert find(q).pin is None


def test_a_sum_that_cuts_through_blocks_is_pinned() -> None:
    blocks = product_of([Space(3), Space(4)])
    parts = sum_of([Space(6), Space(6)])
    unify(blocks, parts, WHY)
    assert all(leaf.pin is WHY for leaf in leaves_of(blocks))


def test_symbolic_sizes_unify_by_their_polynomials() -> None:
    batch, heads = Space(Dim.of("B")), Space(12)
    merged = Space(Dim.of("B") * 12)
    unify(merged, product_of([batch, heads]), WHY)
    assert leaves_of(merged) == [batch, heads]
    assert heads.pin is None


def test_cut_of_blocks_needs_whole_blocks() -> None:
    assert cut(product_of([Space(3), Space(4)]), 6) is None
    pieces = cut(product_of([Space(3), Space(4)]), 8)
    assert pieces is not None
    assert [piece.size for piece in pieces] == [8, 4]


def test_freedom_stays_where_both_choose_over_the_same_blocks() -> None:
    groups, other = Space(3), Space(3)
    a, b = Space(4, outer=groups), Space(4, outer=other)
    unify(product_of([groups, a]), product_of([other, b]), WHY)
    assert find(a).outer is not None
    plain = Space(4)
    unify(plain, a, WHY)
    assert find(a).outer is None


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({"h": [0, 2]}, [0, 1, 2, 3, 8, 9, 10, 11]),
        ({"d": [1, 3]}, [1, 3, 5, 7, 9, 11]),
        ({"h": [1], "d": [0]}, [4]),
    ],
)
def test_kept_positions_of_a_product(kept: dict[str, list[int]], expected: list[int]) -> None:
    spaces = {"h": Space(3), "d": Space(4)}
    axis = product_of([spaces["h"], spaces["d"]])
    arrays = {spaces[name]: np.array(rows) for name, rows in kept.items()}
    assert kept_positions(axis, arrays).tolist() == expected


def test_kept_positions_of_blocks_that_choose() -> None:
    groups = Space(2)
    size = Space(4, outer=groups)
    axis = sum_of([Space(2), product_of([groups, size])])
    kept = {size: np.array([[0, 1], [2, 3]])}
    assert kept_positions(axis, kept).tolist() == [0, 1, 2, 3, 8, 9]
    kept[groups] = np.array([1])
    assert kept_positions(axis, kept).tolist() == [0, 1, 8, 9]


def test_blocks_that_choose_over_a_leaf_that_stands_twice() -> None:
    two = Space(2)
    size = Space(3, outer=product_of([two, two]))
    kept = {size: np.array([[0], [1], [2], [0]])}
    axis = product_of([two, two, size])
    assert kept_positions(axis, kept).tolist() == [0, 4, 8, 9]
    assert unit_of(axis, size).tolist() == list(range(12))


def test_units_of_an_axis() -> None:
    heads, size = Space(2), Space(3)
    axis = sum_of([product_of([heads, size]), Space(1), heads])
    assert unit_of(axis, heads).tolist() == [0, 0, 0, 1, 1, 1, -1, 0, 1]
    assert unit_of(axis, size).tolist() == [0, 1, 2, 0, 1, 2, -1, -1, -1]
