"""Parse errors say where, what was expected, and what to do."""

import pytest

from regraft.ir.errors import ParseError, TypeInferenceError
from regraft.ir.text import parse_module

HEAD = "graph(%x : f32[B, 4]) {\n"


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("", 1, 1, "expected a header line or `graph`, found the end of the text"),
        ("modul", 1, 1, "expected a header line or `graph`, found `modul`"),
        ("module tiny", 1, 8, "expected a string in double quotes, found `tiny`"),
        ('module "a\\q"', 1, 10, 'string "a\\q": Invalid \\escape'),
        ("weight @w : f32[2] = random(3, [2])", 1, 32, "the scale of random elements is a number"),
        ("symbol `odd", 1, 8, "expected the name of a symbol, found"),
        ("symbol B\nsymbol B", 2, 8, "symbol `B` is declared twice"),
        ('state "s" cache "a" -> "b"', 1, 11, "`cache` is no kind of state"),
        ("graph(%x : f33[2]) {", 1, 12, "`f33` is no element type"),
        ("graph(%x : f32 2) {", 1, 16, "expected `[` and the sizes of a tensor type, found `2`"),
        (HEAD + "%y = relu(%x) : f32[C, 4]", 2, 21, "unknown symbol `C`"),
        (HEAD + "%y = rel(%x)", 2, 6, "unknown operator `rel`"),
        (HEAD + "%y = relu(%z)", 2, 11, "value `%z` is not defined here"),
        (HEAD + "%y = relu(%x) {alpha = 1}", 2, 16, "relu: attribute `alpha` is unknown"),
        (HEAD + '%y = clip(%x) {max = "a"}', 2, 16, "clip: `max` is not of kind float"),
        (HEAD + "%y = transpose(%x) {perm = [B]}", 2, 21, "`perm` is not of kind ints"),
        (HEAD + "%y = relu(%x, %x)", 2, 1, "V003: `relu` takes 1 operands, 2 are given"),
        (HEAD + "%y = add(%x)", 2, 1, "V004: operand `b` is missing"),
        (HEAD + "%x = relu(%x)\n", 2, 1, "value `%x` is defined twice"),
        (HEAD + "%y = relu(%x) : f32[B, 5]", 2, 1, "declared f32[B, 5], but inference says"),
        (HEAD + "%y = relu(%x) : f64[B, 4]", 2, 1, "declared f64[B, 4], but inference says"),
        (HEAD + "%y = relu(%x) : f32[4]", 2, 1, "declared f32[4], but inference says"),
        (HEAD + "%y = relu(%x) : f32[B, 4], f32[B]", 2, 1, "1 results have 2 types"),
        (HEAD + "%0 = relu(%x)\nreturn %0", 3, 8, "an anonymous output needs a name"),
        (HEAD + "return %x\n} }", 3, 3, "expected the end of the text, found `}`"),
        (HEAD + "%c = literal f32[2] [1]", 2, 21, "expected 2 elements, found 1"),
        (HEAD + "%c = literal i8[1] [128]", 2, 21, "128 does not fit i8"),
        (HEAD + '%c = literal f32[1] x"00"', 2, 21, "expected 4 bytes, found 1"),
        (HEAD + "%c = literal f16[1] [1e5]", 2, 21, "a number is too large for f16"),
        (HEAD + "%c = literal f32[9999, 999999] splat 0", 2, 32, "too large for a literal"),
        (HEAD + "%c = literal f32[mod(B, 0)] [1]", 2, 18, "`mod` takes two sizes"),
        (HEAD + "%c = literal f32[B^99] [1]", 2, 20, "a power is between 1 and 64"),
        (HEAD + "%c = literal f32[B] [1]", 2, 14, "an array needs an element type and integer"),
        ("weight @w : f32[2]\n", 1, 8, "the text does not hold the elements of weight `w`"),
        ("weight @w : f32[2] role=big", 1, 25, "`big` is no role"),
        ("weight @w : f32[2] = slice(@v)", 1, 28, "no source `v` stands above"),
        ("weight @w : f32[2] = cast(f32[2] [1, 2])", 1, 22, "cast: `dtype` is missing"),
        ("weight @w : f32[2] = splat 0\nweight @w : f32[2] = splat 0", 2, 8, "declared twice"),
        ("alias @a = @b", 1, 12, "no weight `b` stands above"),
        ("weight @w : f32[3] = reshape(f32[2] splat 1, shape=[2, 1])", 1, 8, "declared f32[3]"),
        ("weight @w : f32[3] = reshape(f32[2] splat 1, shape=[3])", 1, 22, "does not fit [3]"),
    ],
)  # fmt: skip
def test_parse_error_names_the_place(text: str, line: int, column: int, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_module(text)
    assert message in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (HEAD + "%y = rel(%x)", "did you mean `relu`?"),
        ("graph(%input : f32[2]) {\n%y = relu(%inputs)", "did you mean `%input`?"),
        (HEAD + "%y = relu(%x) : f32[C, 4]", "declare it in the header: `symbol C`"),
        ("weight @w : f32[2]\n", "pass the module's weights to the parser, or print them inline"),
    ],
)
def test_parse_error_hints_at_the_fix(text: str, hint: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_module(text)
    assert caught.value.hint == hint


def test_inference_error_carries_the_line() -> None:
    with pytest.raises(TypeInferenceError, match="do not broadcast") as caught:
        parse_module("graph(%x : f32[2], %y : f32[3]) {\n%z = add(%x, %y)\nreturn %z\n}")
    assert caught.value.__notes__ == ["line 2, column 1: in this node"]
