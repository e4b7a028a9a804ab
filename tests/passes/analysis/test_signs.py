"""Signs of floats: what is proven holds for zeros of both signs, infinities and huge numbers."""

import numpy as np
import pytest

from regraft.ir.evaluate import evaluate
from regraft.passes.analysis.signs import Sign, sign_of
from tests.passes.cleanup.rewriting import parse

PROVEN = {
    "%y = abs(%x)": Sign.PLUS,
    "%y = exp(%x)": Sign.PLUS,
    "%y = sigmoid(%x)": Sign.PLUS,
    "%y = softplus(%x)": Sign.PLUS,
    "%y = relu(%x)": Sign.NOT_BELOW_ZERO,
    "%y = sqrt(%x)": Sign.NOT_BELOW_ZERO,
    "%y = mul(%x, %x)": Sign.PLUS,
    "%y = mul(%x, %z)": Sign.UNKNOWN,
    "%a = abs(%x)\n%e = exp(%z)\n%y = mul(%a, %e)": Sign.PLUS,
    "%k = literal f32[] 2\n%y = pow(%x, %k)": Sign.PLUS,
    "%k = literal f32[] 3\n%y = pow(%x, %k)": Sign.UNKNOWN,
    "%k = literal f32[] -1\n%a = relu(%x)\n%y = pow(%a, %k)": Sign.UNKNOWN,
    "%k = literal f32[] 1e-5\n%a = relu(%x)\n%y = add(%a, %k)": Sign.PLUS,
    "%k = literal f32[] 1e-5\n%y = add(%x, %k)": Sign.UNKNOWN,
    "%a = relu(%x)\n%b = relu(%z)\n%y = add(%a, %b)": Sign.NOT_BELOW_ZERO,
    "%y = sub(%x, %z)": Sign.UNKNOWN,
    "%a = abs(%x)\n%b = abs(%z)\n%y = div(%a, %b)": Sign.PLUS,
    "%a = abs(%x)\n%b = relu(%z)\n%y = div(%a, %b)": Sign.UNKNOWN,
    "%a = relu(%x)\n%b = abs(%z)\n%y = div(%a, %b)": Sign.NOT_BELOW_ZERO,
    "%a = abs(%x)\n%y = reciprocal(%a)": Sign.PLUS,
    "%a = relu(%x)\n%y = reciprocal(%a)": Sign.UNKNOWN,
    "%k = literal f32[] 1e-5\n%y = max(%x, %k)": Sign.PLUS,
    "%k = literal f32[] 0\n%y = max(%x, %k)": Sign.NOT_BELOW_ZERO,
    "%a = abs(%x)\n%y = min(%a, %x)": Sign.UNKNOWN,
    "%k = literal f32[] 0.5\n%y = clip(%x, %k)": Sign.PLUS,
    "%k = literal f32[] 0\n%y = clip(%x, %k)": Sign.NOT_BELOW_ZERO,
    "%k = literal f32[] 0.5\n%h = literal f32[] -1\n%y = clip(%x, %k, %h)": Sign.UNKNOWN,
    "%a = mul(%x, %x)\n%y = reduce_mean(%a) {axes = [1]}": Sign.PLUS,
    "%y = reduce_max(%x) {axes = [1]}": Sign.UNKNOWN,
    "%y = reduce_l2(%x) {axes = [1]}": Sign.PLUS,
    "%a = abs(%x)\n%t = transpose(%a) {perm = [1, 0]}\n%y = cast(%t) {to = f16}": Sign.PLUS,
    "%y = cast(%i) {to = f32}": Sign.UNKNOWN,
    "%s = shape(%x)\n%y = cast(%s) {to = f32}": Sign.PLUS,
    "%c = is_nan(%z)\n%a = abs(%x)\n%b = exp(%z)\n%y = where(%c, %a, %b)": Sign.PLUS,
    "%k = literal f32[2] [-0.0, 1]\n%y = add(%k, %k)": Sign.NOT_BELOW_ZERO,
}
EDGES = np.float32([-np.inf, -1e30, -1.5, -1e-40, -0.0, 0.0, 1e-40, 0.5, 1e30, np.inf, np.nan, -2])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("body", "sign"), PROVEN.items())
def test_sign_is_proven_and_true(body: str, sign: Sign) -> None:
    module = parse(
        f"graph(%x : f32[B, 12], %z : f32[B, 12], %i : i64[B, 12]) {{\n{body}\nreturn %y\n}}"
    )
    assert sign_of(module.graph.outputs[0]) is sign
    x = np.broadcast_to(EDGES, (12, 12))
    inputs = {"x": x, "z": x.T, "i": np.arange(144).reshape(12, 12) - 70}
    y = evaluate(module, inputs)["y"].astype(np.float64)
    y = y[~np.isnan(y)]
    if sign is Sign.PLUS:
        assert not np.signbit(y).any()
    if sign is Sign.NOT_BELOW_ZERO:
        assert not (y < 0).any()


def test_long_chains_are_left() -> None:
    chain = "\n".join(f"%a{n + 1} = reshape(%a{n}) {{shape = [12]}}" for n in range(99))
    module = parse(f"graph(%x : f32[12]) {{\n%a0 = abs(%x)\n{chain}\nreturn %a99\n}}")
    assert sign_of(module.graph.outputs[0]) is Sign.UNKNOWN
