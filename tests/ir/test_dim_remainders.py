"""Remainders and quotients inside of sizes: padding to a multiple, parts, halves of halves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from regraft.ir.dims import Dim, DimLike, bind, floordiv, mod

S, T = Dim.of("S"), Dim.of("T")


def test_a_length_padded_to_a_multiple_is_a_multiple() -> None:
    padded = S + mod(3 * mod(S, 4), 4)
    assert mod(padded, 4) == 0
    assert floordiv(padded, floordiv(padded, 4)) == 4


def test_a_remainder_by_another_number_stays() -> None:
    assert str(mod(S + mod(S, 6), 4)) == "mod(S + mod(S, 6), 4)"
    assert str(mod(2 * mod(S, 6), 4)) == "mod(2*S, 4)"


def test_halves_of_halves_have_one_form_whatever_stands_between() -> None:
    once = floordiv(S - 1, 2) + 1
    assert floordiv(once - 1, 2) + 1 == floordiv(S - 1, 4) + 1
    assert floordiv(once + 1, 2) == floordiv(once - 1, 2) + 1
    assert str(floordiv(floordiv(S + 1, 2) + T, 3)) == "floordiv(S + 2*T + 1, 6)"
    assert str(floordiv(floordiv(S, 2) + floordiv(T, 2), 3)) == (
        "floordiv(floordiv(S, 2) + floordiv(T, 2), 3)"
    )


def _grown(inner: st.SearchStrategy[DimLike]) -> st.SearchStrategy[DimLike]:
    number = st.integers(1, 9)
    return st.one_of(
        st.builds(lambda a, b: a + b, inner, inner),
        st.builds(lambda a, b: a - b, inner, inner),
        st.builds(lambda a, c: c * a, inner, number),
        st.builds(floordiv, inner, number),
        st.builds(mod, inner, number),
    )


SIZES = st.recursive(st.one_of(st.sampled_from((S, T)), st.integers(-5, 9)), _grown, max_leaves=6)


@given(SIZES, st.integers(1, 8), st.integers(1, 20), st.integers(1, 20))
def test_simplified_division_is_division(size: DimLike, by: int, s: int, t: int) -> None:
    values = {"S": s, "T": t}
    number = bind(size, values)
    assert isinstance(number, int)
    assert bind(floordiv(size, by), values) == number // by
    assert bind(mod(size, by), values) == number % by
