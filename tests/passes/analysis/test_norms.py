"""Every spelling of a normalization is told by what it computes; near misses say why."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.passes.analysis.group_norms import join_groups
from regraft.passes.analysis.norms import NormBlock, NormFinder, NormSearch
from tests.passes.analysis.spelled import spelled

WEIGHTS = {"g": "f32[16]", "b": "f32[16]"}
GAIN = "\n%s = mul(%n, %g)\n%y = add(%s, %b)"
BARE = "\n%y = identity(%n)"

CENTRE = "%m = reduce_mean(%x) {axes = [2]}\n%c = sub(%x, %m)\n"
LAYER_NORMS = {
    "pow, sqrt, div": CENTRE
    + """%q = pow(%c, 2)
        %v = reduce_mean(%q) {axes = [2]}
        %e = add(%v, 1e-5)
        %r = sqrt(%e)
        %n = div(%c, %r)""",
    "mul, reciprocal": CENTRE
    + """%q = mul(%c, %c)
        %v = reduce_mean(%q) {axes = [-1]}
        %e = add(1e-5, %v)
        %r = sqrt(%e)
        %i = reciprocal(%r)
        %n = mul(%c, %i)""",
    "one over the root": CENTRE
    + """%q = mul(%c, %c)
        %v = reduce_mean(%q) {axes = [2]}
        %e = add(%v, 1e-5)
        %r = sqrt(%e)
        %i = div(1, %r)
        %n = mul(%i, %c)""",
    "power of minus a half": CENTRE
    + """%q = mul(%c, %c)
        %v = reduce_mean(%q) {axes = [2]}
        %e = add(%v, 1e-5)
        %i = pow(%e, -0.5)
        %n = mul(%c, %i)""",
    "mean of squares minus square of mean": """
        %m = reduce_mean(%x) {axes = [2]}
        %q = mul(%x, %x)
        %p = reduce_mean(%q) {axes = [2]}
        %mm = mul(%m, %m)
        %v = sub(%p, %mm)
        %e = add(%v, 1e-5)
        %r = sqrt(%e)
        %c = sub(%x, %m)
        %n = div(%c, %r)""",
    "clamped variance": """
        %m = reduce_mean(%x) {axes = [2]}
        %q = mul(%x, %x)
        %p = reduce_mean(%q) {axes = [2]}
        %mm = mul(%m, %m)
        %v = sub(%p, %mm)
        %w = relu(%v)
        %e = add(%w, 1e-5)
        %r = sqrt(%e)
        %c = sub(%x, %m)
        %n = div(%c, %r)""",
    "sums over the count": """
        %t = reduce_sum(%x) {axes = [2]}
        %m = div(%t, 16)
        %c = sub(%x, %m)
        %q = reduce_sum_square(%c) {axes = [2]}
        %v = mul(%q, 0.0625)
        %e = add(%v, 1e-5)
        %r = sqrt(%e)
        %n = div(%c, %r)""",
}
RMS_NORMS = {
    "pow, sqrt, div": """
        %q = pow(%x, 2)
        %v = reduce_mean(%q) {axes = [2]}
        %e = add(%v, 1e-6)
        %r = sqrt(%e)
        %n = div(%x, %r)""",
    "reciprocal": """
        %q = mul(%x, %x)
        %v = reduce_mean(%q) {axes = [-1]}
        %e = add(%v, 1e-6)
        %r = sqrt(%e)
        %i = reciprocal(%r)
        %n = mul(%i, %x)""",
    "sum of squares": """
        %q = reduce_sum_square(%x) {axes = [2]}
        %v = div(%q, 16)
        %e = add(%v, 1e-6)
        %r = sqrt(%e)
        %n = div(%x, %r)""",
    "unit vector times the root of the count": """
        %q = reduce_sum_square(%x) {axes = [2]}
        %e = add(%q, 1.6e-5)
        %r = sqrt(%e)
        %u = div(%x, %r)
        %n = mul(%u, 4)""",
}


def search(module: Module) -> NormSearch:
    taken: set[Node] = set()
    found = NormFinder().find(module.graph, taken)
    found.norms = join_groups(found.norms, taken)
    return found


def only(module: Module) -> NormBlock:
    (found,) = search(module).norms
    assert found.input is module.graph.inputs[0]
    return found


def names(block: NormBlock) -> tuple[list[str | None], list[str | None]]:
    shift = () if block.shift is None else block.shift.values
    return [v.name for v in block.gain.values], [v.name for v in shift]


@pytest.mark.parametrize("body", LAYER_NORMS.values(), ids=LAYER_NORMS)
def test_layer_norm(body: str) -> None:
    module = spelled(body + GAIN, weights=WEIGHTS)
    found = only(module)
    assert found.output is module.graph.outputs[0]
    assert (found.kind, found.axes, found.epsilon) == ("layer_norm", (-1,), 1e-5)
    assert names(found) == (["g"], ["b"])
    assert found.gain.factor == 1


@pytest.mark.parametrize("body", RMS_NORMS.values(), ids=RMS_NORMS)
def test_rms_norm(body: str) -> None:
    module = spelled(body + "\n%y = mul(%g, %n)", weights={"g": "f32[16]"})
    found = only(module)
    assert found.output is module.graph.outputs[0]
    assert (found.kind, found.axes) == ("rms_norm", (-1,))
    assert found.epsilon == pytest.approx(1e-6, rel=1e-5)  # solved where the sum holds another one
    assert names(found) == (["g"], [])


@pytest.mark.parametrize("body", [*LAYER_NORMS.values(), *RMS_NORMS.values()])
def test_without_gain(body: str) -> None:
    found = only(spelled(body + "\n%y = relu(%n)"))
    assert found.gain.is_one
    assert found.shift is None
    assert found.output.name == "n"


def test_affine_of_the_statistics() -> None:
    """Keras multiplies the inverse deviation by the gain and shifts by bias - mean * that."""
    body = """
        %m = reduce_mean(%x) {axes = [2]}
        %d = sub(%x, %m)
        %q = mul(%d, %d)
        %v = reduce_mean(%q) {axes = [2]}
        %e = add(%v, 0.001)
        %r = sqrt(%e)
        %i = reciprocal(%r)
        %f = mul(%i, %g)
        %a = mul(%x, %f)
        %h = mul(%m, %f)
        %o = sub(%b, %h)
        %y = add(%a, %o)"""
    found = only(spelled(body, weights=WEIGHTS))
    assert (found.kind, found.epsilon) == ("layer_norm", 0.001)
    assert names(found) == (["g"], ["b"])


def test_bias_before_the_gain() -> None:
    body = LAYER_NORMS["pow, sqrt, div"] + "\n%s = add(%n, %b)\n%y = mul(%s, %g)"
    found = only(spelled(body, weights=WEIGHTS))
    assert found.shift is not None
    assert sorted(str(v.name) for v in found.shift.values) == ["b", "g"]


def test_scale_of_what_follows_is_no_gain() -> None:
    body = RMS_NORMS["pow, sqrt, div"] + "\n%q2 = mul(%n, %g)\n%y = mul(%q2, 0.125)"
    found = only(spelled(body, weights={"g": "f32[16]"}))
    assert found.output.name == "q2"
    assert found.gain.factor == 1


def test_norm_of_a_norm_is_two() -> None:
    """Together they are a layer norm of another epsilon, which nobody wrote."""
    first = LAYER_NORMS["pow, sqrt, div"].replace("%", "%a_").replace("%a_x", "%x")
    second = LAYER_NORMS["mul, reciprocal"].replace("%x", "%a_n")
    found = search(spelled(f"{first}\n{second}\n%y = relu(%n)")).norms
    assert [(block.kind, block.input.name) for block in found] == [
        ("layer_norm", "x"),
        ("layer_norm", "a_n"),
    ]


def test_gain_of_one_plus_weight_is_one_constant() -> None:
    body = RMS_NORMS["pow, sqrt, div"] + "\n%h = add(%g, 1)\n%y = mul(%n, %h)"
    assert names(only(spelled(body, weights={"g": "f32[16]"}))) == (["h"], [])


def test_half_model_computes_in_f32() -> None:
    body = """
        %w = cast(%x) {to = f32}
        %q = mul(%w, %w)
        %v = reduce_mean(%q) {axes = [2]}
        %k = literal f32[] 1e-6
        %e = add(%v, %k)
        %r = sqrt(%e)
        %i = reciprocal(%r)
        %n = mul(%w, %i)
        %o = cast(%n) {to = f16}
        %y = mul(%g, %o)"""
    module = spelled(body, dtype="f16", weights={"g": "f16[16]"})
    found = only(module)
    assert found.output is module.graph.outputs[0]
    assert (found.kind, found.epsilon) == ("rms_norm", 1e-6)


def test_interior_of_fewer_bits_is_no_norm_of_the_input() -> None:
    body = """
        %w = cast(%x) {to = f16}
        %q = mul(%w, %w)
        %v = reduce_mean(%q) {axes = [2]}
        %r = sqrt(%v)
        %n = div(%w, %r)
        %y = cast(%n) {to = f32}"""
    (found,) = search(spelled(body)).norms
    assert found.input.name == "w"


def test_shared_statistics_are_two_norms() -> None:
    """Parallel attention and FFN norms of one input differ in gain alone."""
    body = (
        LAYER_NORMS["mul, reciprocal"] + "\n%p = mul(%n, %g)\n%q2 = mul(%n, %b)\n%y = add(%p, %q2)"
    )
    found = search(spelled(body, weights=WEIGHTS)).norms
    assert [names(block)[0] for block in found] == [["g"], ["b"]]


def test_statistics_used_elsewhere_are_kept() -> None:
    body = RMS_NORMS["pow, sqrt, div"] + "\n%y = add(%n, %r)"
    found = search(spelled(body))
    assert found.norms == []
    assert [skip.reason for skip in found.skipped] == [
        "something else uses the inside of this rms_norm"
    ]


def test_unit_vectors() -> None:
    body = """
        %q = reduce_l2(%x) {axes = [2]}
        %n = div(%x, %q)
        %y = relu(%n)"""
    found = only(spelled(body))
    assert (found.kind, found.epsilon) == ("l2_norm", 0.0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            CENTRE
            + """%q = mul(%c, %c)
            %v = reduce_mean(%q) {axes = [2]}
            %r = sqrt(%v)
            %e = add(%r, 0.001)
            %y = div(%c, %e)""",
            "epsilon 0.001 is added to the root of the variance",
        ),
        (
            """%q = reduce_l2(%x) {axes = [2]}
            %e = max(%q, 0.004)
            %n = div(%x, %e)
            %y = mul(%n, 4)""",
            "the root of the mean square is at least 0.001",
        ),
    ],
)
def test_near_norms_say_how_they_differ(body: str, reason: str) -> None:
    found = search(spelled(body))
    assert found.norms == []
    assert [skip.reason for skip in found.skipped] == [reason]


NOT_NORMS = {
    "softmax": """
        %m = reduce_max(%x) {axes = [2]}
        %c = sub(%x, %m)
        %e = exp(%c)
        %s = reduce_sum(%e) {axes = [2]}
        %y = div(%e, %s)""",
    "mean removed": CENTRE + "%y = identity(%c)",
    "weighted pooling": "%s = reduce_sum(%x) {axes = [2]}\n%y = div(%x, %s)",
    "mean absolute value": """
        %a = abs(%x)
        %m = reduce_mean(%a) {axes = [2]}
        %e = add(%m, 1e-5)
        %y = div(%x, %e)""",
    "largest": "%m = reduce_max(%x) {axes = [2]}\n%y = div(%x, %m)",
}


@pytest.mark.parametrize("body", NOT_NORMS.values(), ids=NOT_NORMS)
def test_other_uses_of_statistics_are_no_norms(body: str) -> None:
    assert search(spelled(body)).norms == []


def test_sample_variance_scales_the_gain() -> None:
    body = (
        CENTRE
        + """%q = reduce_sum_square(%c) {axes = [2]}
        %v = div(%q, 15)
        %e = add(%v, 1e-5)
        %r = sqrt(%e)
        %n = div(%c, %r)
        %y = mul(%n, %g)"""
    )
    found = only(spelled(body, weights={"g": "f32[16]"}))
    assert found.gain.factor == pytest.approx((15 / 16) ** 0.5, rel=1e-6)
    assert found.epsilon == pytest.approx(1e-5 * 15 / 16, rel=1e-4)


def test_group_norm_between_reshapes() -> None:
    body = """
        %one = literal f32[4] [1, 1, 1, 1]
        %zero = literal f32[4] [0, 0, 0, 0]
        %r = reshape(%x) {shape = [B, 4, 4*H*W]}
        %i = instance_norm(%r, %one, %zero) {epsilon = 1e-6}
        %k = reshape(%i) {shape = [B, 16, H, W]}
        %s = mul(%k, %g)
        %y = add(%s, %b)"""
    weights = {"g": "f32[16, 1, 1]", "b": "f32[16, 1, 1]"}
    module = spelled(body, shape="B, 16, H, W", weights=weights)
    found = only(module)
    assert found.output is module.graph.outputs[0]
    assert (found.kind, found.groups, found.epsilon) == ("group_norm", 4, 1e-6)
    assert names(found) == (["g"], ["b"])


def test_group_norm_of_spelled_statistics() -> None:
    body = """
        %r = reshape(%x) {shape = [B, 4, 4, 6, 5]}
        %m = reduce_mean(%r) {axes = [2, 3, 4]}
        %c = sub(%r, %m)
        %q = mul(%c, %c)
        %v = reduce_mean(%q) {axes = [2, 3, 4]}
        %e = add(%v, 1e-5)
        %d = sqrt(%e)
        %n = div(%c, %d)
        %k = reshape(%n) {shape = [B, 16, 6, 5]}
        %s = mul(%k, %g)
        %y = add(%s, %b)"""
    weights = {"g": "f32[1, 16, 1, 1]", "b": "f32[1, 16, 1, 1]"}
    found = only(spelled(body, shape="B, 16, 6, 5", weights=weights))
    assert (found.kind, found.groups) == ("group_norm", 4)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_spellings(data: st.DataObject) -> None:
    """Any choice of square, mean, root, division and affine is one norm."""
    lines: list[str] = []
    centred = data.draw(st.booleans())
    if centred:
        mean = data.draw(st.sampled_from(["mean", "sum"]))
        if mean == "mean":
            lines.append("%m = reduce_mean(%x) {axes = [2]}")
        else:
            lines += ["%t = reduce_sum(%x) {axes = [2]}", "%m = mul(%t, 0.0625)"]
        lines.append("%c = sub(%x, %m)")
    c = "%c" if centred else "%x"
    square = data.draw(st.sampled_from([f"mul({c}, {c})", f"pow({c}, 2)"]))
    lines += [f"%q = {square}", "%v = reduce_mean(%q) {axes = [2]}"]
    lines.append(data.draw(st.sampled_from(["%e = add(%v, 1e-5)", "%e = add(1e-5, %v)"])))
    roots = (
        ["%r = sqrt(%e)", f"%n = div({c}, %r)"],
        ["%r = sqrt(%e)", "%i = reciprocal(%r)", f"%n = mul({c}, %i)"],
        ["%r = sqrt(%e)", "%i = div(1, %r)", f"%n = mul(%i, {c})"],
        ["%r = pow(%e, 0.5)", f"%n = div({c}, %r)"],
        ["%i = pow(%e, -0.5)", f"%n = mul({c}, %i)"],
    )
    lines += data.draw(st.sampled_from(roots))
    gain = data.draw(st.sampled_from(["mul(%n, %g)", "mul(%g, %n)"]))
    lines += [f"%s = {gain}", data.draw(st.sampled_from(["%y = add(%s, %b)", "%y = add(%b, %s)"]))]
    found = only(spelled("\n".join(lines), weights=WEIGHTS))
    assert found.kind == ("layer_norm" if centred else "rms_norm")
    assert found.epsilon == 1e-5
    assert names(found) == (["g"], ["b"])
