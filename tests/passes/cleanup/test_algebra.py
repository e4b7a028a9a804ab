"""Arithmetic identities: where they apply, and the neighbours where they must not."""

import pytest

from tests.passes.cleanup.rewriting import canonical

F = "%x : f32[B, 4]"
I = "%x : i32[B, 4]"  # noqa: E741 (the integer header)
L = "%x : bool[B, 4]"


@pytest.mark.parametrize(
    ("inputs", "body", "expected"),
    [
        (F, "%k = literal f32[] 0\n%y = add(%x, %k)", "x"),
        (F, "%k = literal f32[] 0\n%y = add(%k, %x)", "x"),
        (F, "%k = literal f32[4] splat 0\n%y = add(%x, %k)", "x"),
        (F, "%k = literal f32[] 1\n%y = add(%x, %k)", "add(x, 1.0)"),
        (F, "%k = literal f32[4] [0, 0, 0, 1]\n%y = add(%x, %k)", "add(x, [0.0,0.0,0.0,1.0])"),
        # the sum has more axes than x
        (F, "%k = literal f32[2, 1, 1] splat 0\n%y = add(%x, %k)", "add(x, [[[0.0]],[[0.0]]])"),
        (F, "%k = literal f32[] 0\n%y = sub(%x, %k)", "x"),
        (F, "%k = literal f32[] 0\n%y = sub(%k, %x)", "sub(0.0, x)"),
        (F, "%k = literal f32[] 1\n%y = mul(%x, %k)", "x"),
        (F, "%k = literal f32[1, 1] splat 1\n%y = mul(%k, %x)", "x"),
        # 0 times infinity is NaN
        (F, "%k = literal f32[] 0\n%y = mul(%x, %k)", "mul(x, 0.0)"),
        (I, "%k = literal i32[] 0\n%y = mul(%x, %k)", "mul(x, 0)"),
        (F, "%k = literal f32[] 1\n%y = div(%x, %k)", "x"),
        (F, "%k = literal f32[] 1\n%y = div(%k, %x)", "div(1.0, x)"),
        (F, "%k = literal f32[] 1\n%y = pow(%x, %k)", "x"),
        (F, "%k = literal f32[] 2\n%y = pow(%x, %k)", "mul(x, x)"),
        (F, "%k = literal i64[] 2\n%y = pow(%x, %k)", "mul(x, x)"),
        (F, "%a = abs(%x)\n%k = literal f32[] 0.5\n%y = pow(%a, %k)", "sqrt(abs(x))"),
        # -Inf ** 0.5 is Inf and -0.0 ** 0.5 is 0.0: a root would differ
        (F, "%k = literal f32[] 0.5\n%y = pow(%x, %k)", "pow(x, 0.5)"),
        (F, "%a = relu(%x)\n%k = literal f32[] 0.5\n%y = pow(%a, %k)", "pow(relu(x), 0.5)"),
        (F, "%a = abs(%x)\n%k = literal f32[] 3\n%y = pow(%a, %k)", "pow(abs(x), 3.0)"),
        (F, "%a = neg(%x)\n%y = neg(%a)", "x"),
        (F, "%a = neg(%x)\n%y = abs(%a)", "abs(neg(x))"),
        (L, "%a = logical_not(%x)\n%y = logical_not(%a)", "x"),
        (F, "%a = relu(%x)\n%y = relu(%a)", "relu(x)"),
        (F, "%a = abs(%x)\n%y = abs(%a)", "abs(x)"),
        (F, "%a = relu(%x)\n%y = abs(%a)", "relu(x)"),
        (F, "%a = abs(%x)\n%y = relu(%a)", "relu(abs(x))"),
        (F, "%y = max(%x, %x)", "x"),
        (F, "%k = literal f32[] inf\n%y = min(%x, %k)", "x"),
        (F, "%k = literal f32[] -inf\n%y = max(%k, %x)", "x"),
        (F, "%k = literal f32[] inf\n%y = max(%x, %k)", "max(x, inf)"),
        (F, "%a = literal f32[] 1\n%b = literal f32[] 2\n%m = max(%x, %a)\n%y = max(%b, %m)",
         "max(x, 2.0)"),
        (F, "%a = literal f32[] 1\n%b = literal f32[] 2\n%m = min(%a, %x)\n%y = max(%b, %m)",
         "max(2.0, min(1.0, x))"),
        (I, "%k = literal i32[] 0\n%y = bitwise_or(%x, %k)", "x"),
    ],
)  # fmt: skip
def test_identity(inputs: str, body: str, expected: str) -> None:
    assert canonical(f"{body}\nreturn %y", inputs) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("%a = clip(%x) {min = 0.0}\n%y = clip(%a) {max = 6.0}", "clip(x, max=6.0, min=0.0)"),
        ("%a = clip(%x) {min = -1.0, max = 4.0}\n%y = clip(%a) {min = 0.0, max = 9.0}",
         "clip(x, max=4.0, min=0.0)"),
        ("%a = relu(%x)\n%y = clip(%a) {max = 6.0}", "clip(x, max=6.0, min=0.0)"),
        ("%a = clip(%x) {min = 0.0, max = 6.0}\n%y = relu(%a)", "clip(x, max=6.0, min=0.0)"),
        ("%a = clip(%x) {min = -1.0, max = 6.0}\n%y = relu(%a)",
         "relu(clip(x, max=6.0, min=-1.0))"),
        # intervals that do not meet
        ("%a = clip(%x) {max = -1.0}\n%y = clip(%a) {min = 1.0}",
         "clip(clip(x, max=-1.0), min=1.0)"),
        ("%y = clip(%x)", "x"),
    ],
)  # fmt: skip
def test_clip(body: str, expected: str) -> None:
    assert canonical(f"{body}\nreturn %y", F) == expected


def test_integer_times_zero_of_its_own_shape_is_zero() -> None:
    body = "%k = literal i32[2, 2] splat 0\n%y = mul(%x, %k)\nreturn %y"
    assert canonical(body, "%x : i32[2, 2]") == "[[0,0],[0,0]]"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("%t = literal bool[] true\n%y = where(%t, %x, %z)", "x"),
        ("%t = literal bool[4] [false, false, false, false]\n%y = where(%t, %x, %z)", "z"),
        ("%t = literal bool[4] [true, false, true, true]\n%y = where(%t, %x, %z)",
         "where([True,False,True,True], x, z)"),
        ("%y = where(%c, %x, %x)", "x"),
        ("%y = where(%c, %x, %z)", "where(c, x, z)"),
    ],
)  # fmt: skip
def test_where(body: str, expected: str) -> None:
    inputs = "%x : f32[B, 4], %z : f32[B, 4], %c : bool[B, 4]"
    assert canonical(f"{body}\nreturn %y", inputs) == expected


@pytest.mark.parametrize(
    ("op", "value", "expected"),
    [
        ("logical_and", "true", "x"),
        ("logical_and", "false", "logical_and(x, False)"),  # the constant has another shape
        ("logical_or", "false", "x"),
        ("logical_xor", "false", "x"),
        ("logical_xor", "true", "logical_xor(x, True)"),
    ],
)
def test_truth_table(op: str, value: str, expected: str) -> None:
    body = f"%t = literal bool[] {value}\n%y = {op}(%x, %t)\nreturn %y"
    assert canonical(body, L) == expected


def test_gemm_loses_a_zero_bias_only() -> None:
    head = "weight @w : f32[4, 3] role=param = random(1)"
    body = "%w = weight @w\n%b = literal f32[3] splat {}\n%y = gemm(%x, %w, %b)\nreturn %y"
    assert canonical(body.format(0), F, head) == "gemm(x, @w)"
    assert canonical(body.format(1), F, head) == "gemm(x, @w, [1.0,1.0,1.0])"
