"""Damaged texts are refused by an error of ours, whatever is cut, repeated or swapped."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.ir.errors import RegraftError
from regraft.ir.text import parse_module, print_module

CASES = Path(__file__).parents[2] / "cases" / "text"
TEXTS = [path.read_text() for path in sorted(CASES.glob("*.rg"))]
PIECES = [
    "",
    '"',
    "[",
    "]",
    "{",
    "(",
    ")",
    "%",
    "@",
    ",",
    "=",
    "-",
    "1",
    "-1",
    "9" * 30,
    "B",
    "x",
    "f32",
    "[2]",
    "body",
    "literal",
    "weight",
    "splat",
    "none",
    "nan",
    "inf",
    "\n",
    "//",
    '"\\ud800"',
    "\u00fc",
    "?[*]",
    "\\",
    "`",
    "``",
    "min(",
    "exactdiv(B, 0)",
    "floordiv(B, 0)",
    "mod(B, 0)",
    "B^99",
    "B^999999999",
    "max(B, 2, 3)",
    "mod(B)",
    "{",
    "_",
    "role=",
    "defined",
    "lo=-5",
]


@settings(max_examples=1000, deadline=None)
@given(
    st.sampled_from(TEXTS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(PIECES)), max_size=3),
)
def test_damaged_text_is_parsed_or_refused(text: str, edits: list[tuple[float, int, str]]) -> None:
    for where, length, piece in edits:
        pos = int(where * len(text))
        text = text[:pos] + piece + text[pos + length :]
    try:
        module = parse_module(text)
    except RegraftError:
        return
    again = print_module(module)
    assert print_module(parse_module(again)) == again
