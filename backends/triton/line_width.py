"""Breaks lines of generated Python that are too long to read: at brackets, commas and operators."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence

MAX_COLUMNS = 100

_OPENING, _CLOSING = "([{", ")]}"
_AROUND = (("", ""), ("", " pass"), ("made(\n", "\n)"), ("{\n", "\n}"), ("made(0\n", "\n)"))
"""What makes a line a program: nothing, a body, brackets, those and an operand before it."""
_ASSIGNED = re.compile(r"[\w, .]+? (?:[-+*/@|&]?=) ")
_KEYWORD = re.compile(r"(?:return|yield|del) ")
_OPERATORS = ((" or ", " and "), (" | ", " & "), (" + ", " - "), (" * ", " / "))
"""Of one precedence each, those that bind least first."""


def within_columns(text: str, columns: int = MAX_COLUMNS) -> str:
    """Returns Python source whose long lines are broken; what it means stays as it is.

    Lines within strings of several lines stay, as do those whose brackets end on another line, and
    words that are longer than a line.

    Args:
        text: The source.
        columns: What a line may have.
    """
    lines: list[str] = []
    quoted = False
    for line in text.split("\n"):
        is_inside = quoted or line.count('"""') == 1
        quoted ^= line.count('"""') % 2 == 1
        if len(line) <= columns or is_inside:
            lines.append(line)
            continue
        code = line.lstrip()
        rows = _broken(code, line[: len(line) - len(code)], columns)
        lines += rows if _is_the_same(code, rows) else [line]
    return "\n".join(lines)


def _is_the_same(code: str, rows: Sequence[str]) -> bool:
    """Whether rows mean what a line did: a comment, a docstring, a statement or an element."""
    if code.startswith(("#", '"""')):
        return True
    broken = textwrap.dedent("\n".join(rows))
    for before, behind in _AROUND:
        try:
            meant = ast.dump(ast.parse(f"{before}{code}{behind}"))
        except SyntaxError:
            continue
        try:
            return ast.dump(ast.parse(f"{before}{broken}{behind}")) == meant
        except SyntaxError:
            return False
    return False


def _broken(code: str, margin: str, columns: int) -> list[str]:
    """Returns the lines of a comment, a docstring of one line, a statement or an element."""
    if code.startswith("# "):
        return _filled(code[2:], f"{margin}# ", columns)
    if "  # " in code:
        return [f"{margin}{code}"]
    if code.startswith('"""'):
        words = code.removeprefix('"""').removesuffix('"""')
        body = _filled(f'"""{words}', margin, columns)
        return [*body, f'{margin}"""']
    if code.endswith(","):
        return _element(code.removesuffix(","), margin, ",", columns)
    if not _is_balanced(code):
        return [f"{margin}{code}"]
    begin = _ASSIGNED.match(code) or _KEYWORD.match(code)
    if begin is None:
        return _bracketed(code, margin, "", columns)
    value, inner = code.removeprefix(begin[0]), f"{margin}    "
    targets = begin[0].removesuffix(" = ")
    if len(margin) + len(begin[0]) >= columns:
        return [f"{margin}(", *_elements(targets, inner, columns), f"{margin}) = {value}"]
    if len(_split(value, (", ",))) > 1:
        return [f"{margin}{begin[0]}(", *_elements(value, inner, columns), f"{margin})"]
    if len(_by_operator(value)) == 1:
        return _bracketed(code, margin, "", columns)
    whole = f"{inner}{value}"
    rows = [whole] if len(whole) <= columns else _element(value, inner, "", columns)
    return [f"{margin}{begin[0]}(", *rows, f"{margin})"]


def _element(code: str, margin: str, end: str, columns: int) -> list[str]:
    """Returns the lines of what stands within brackets, where a line may end anywhere."""
    parts = _by_operator(code) if _is_balanced(code) else []
    if len(parts) < 2:
        return _bracketed(code, margin, end, columns)
    rows = _rows(parts, margin, columns)
    return [*rows[:-1], f"{rows[-1]}{end}"]


def _rows(parts: Sequence[str], margin: str, columns: int) -> list[str]:
    """Returns a row per operand, each behind its operator."""
    rows: list[str] = []
    for part in parts:
        row = f"{margin}{part}"
        rows += [row] if len(row) <= columns else _bracketed(part, margin, "", columns)
    return rows


def _bracketed(code: str, margin: str, end: str, columns: int) -> list[str]:
    """Returns code broken within the longest of its outer brackets."""
    start, stop = max(_brackets(code), key=lambda pair: pair[1] - pair[0], default=(0, 0))
    body = code[start + 1 : stop]
    if not body:
        return [f"{margin}{code}{end}"]
    inner = f"{margin}    "
    first, last = f"{margin}{code[: start + 1]}", f"{margin}{code[stop:]}{end}"
    if len(inner) + len(body) <= columns:
        return [first, f"{inner}{body}", last]
    return [first, *_elements(body, inner, columns), last]


def _elements(body: str, margin: str, columns: int) -> list[str]:
    """Returns a row per element of what stands within brackets."""
    elements = _split(body, (" for ",))
    end = ""
    if len(elements) == 1:
        elements = [each.removesuffix(",") for each in _split(body, (", ",))]
        end = "," if len(elements) > 1 or body.endswith(",") else ""
    rows: list[str] = []
    for element in elements:
        row = f"{margin}{element}{end}"
        rows += [row] if len(row) <= columns else _element(element, margin, end, columns)
    return rows


def _filled(words: str, margin: str, columns: int) -> list[str]:
    return textwrap.wrap(
        words, columns, initial_indent=margin, subsequent_indent=margin,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _by_operator(code: str) -> list[str]:
    """Returns the operands of the operator that binds least, each behind its operator."""
    for operators in _OPERATORS:
        parts = _split(code, operators)
        if len(parts) > 1:
            return parts
    return [code]


def _split(code: str, marks: Sequence[str]) -> list[str]:
    """Returns code cut at marks outside of brackets; of marks of operators, the part keeps it."""
    parts, begin = [], 0
    for place, depth in _depths(code):
        mark = next((each for each in marks if depth == 0 and code.startswith(each, place)), None)
        if mark is not None:
            parts.append(code[begin:place].strip())
            begin = place + len(mark) if mark == ", " else place
    return [*parts, code[begin:].strip()]


def _brackets(code: str) -> Iterator[tuple[int, int]]:
    """Yields where outer brackets open and close."""
    start, before = 0, 0
    for place, depth in _depths(code):
        if depth and not before:
            start = place
        elif before and not depth:
            yield start, place
        before = depth


def _is_balanced(code: str) -> bool:
    depths = [0, *(depth for _, depth in _depths(code))]
    return depths[-1] == 0 and min(depths) == 0


def _depths(code: str) -> Iterator[tuple[int, int]]:
    """Yields the places outside of strings, with how many brackets are open after them."""
    depth, quote, place = 0, "", 0
    while place < len(code):
        letter = code[place]
        if quote:
            place += letter == "\\"
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in _OPENING) - (letter in _CLOSING)
            yield place, depth
        place += 1
