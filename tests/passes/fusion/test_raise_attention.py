"""Attention in every spelling becomes one `attention`; what only looks like it stays."""

from __future__ import annotations

import pytest

from regraft.ir.graph import Node
from regraft.ir.module import Module
from regraft.passes.analysis.attention import AttentionFinder
from regraft.passes.cleanup import Canonicalize
from regraft.passes.fusion import Fuse
from regraft.passes.fusion.plan import Plan
from regraft.passes.fusion.prove import Prover
from regraft.passes.fusion.raise_attention import plan_attention
from regraft.passes.protocol import Context
from tests.passes.analysis.spelled import spelled
from tests.passes.fusion.test_fuse import assert_equal, operators

QKV = "%q : f32[B, 4, S, 8], %k : f32[B, 4, T, 8], %v : f32[B, 4, T, 6]"
SELF = "%q : f32[B, 4, S, 8], %k : f32[B, 4, S, 8], %v : f32[B, 4, S, 6]"
HIDDEN = "%x : f32[B, S, 32]"

SCORES = """
    %kt = transpose(%k) {perm = [0, 1, 3, 2]}
    %s = matmul(%q, %kt)
"""
SUM = """
    %p = softmax(%z)
    %y = matmul(%p, %v)
"""
RANGES = """
    %t = range() {dtype = i64, start = 0, limit = S, delta = 1}
    %rows = reshape(%t) {shape = [S, 1]}
    %ahead = less_or_equal(%t, %rows)
"""


def raised(body: str, inputs: str, weights: dict[str, str] | None = None) -> Module:
    """Returns the module after canonicalize and fuse, equal to its source and final."""
    module = spelled(body, weights=weights, inputs=inputs)
    Canonicalize().run(module, Context())
    source = module.clone()
    Fuse().run(module, Context())
    Canonicalize().run(module, Context())
    assert_equal(source, module)
    assert not Fuse().run(module, Context()).changed
    assert not Canonicalize().run(module, Context()).changed
    return module


def the_attention(module: Module) -> Node:
    (found,) = (node for node in module.graph if node.op.name == "attention")
    assert "softmax" not in operators(module)
    return found


SCALES = {
    "on the scores": SCORES + "%z = mul(%s, 0.25)" + SUM,
    "divided": SCORES + "%z = div(%s, 4.0)" + SUM,
    "on the queries": "%a = mul(%q, 0.25)" + SCORES.replace("%q", "%a") + "%z = mul(%s, 1.0)" + SUM,
    "its root on both": """
        %a = mul(%q, 0.5)
        %b = mul(%k, 0.5)
        %kt = transpose(%b) {perm = [0, 1, 3, 2]}
        %z = matmul(%a, %kt)
    """
    + SUM,
}


@pytest.mark.parametrize("name", SCALES)
def test_scale_is_read_wherever_it_stands(name: str) -> None:
    node = the_attention(raised(SCALES[name], QKV))
    assert node.attrs["scale"] == pytest.approx(0.25)
    assert node.inputs[3] is None
    assert operators_of(node) == ["attention"]


def operators_of(node: Node) -> list[str]:
    graph = node.graph
    assert graph is not None
    return [each.op.name for each in graph if each.op.name not in ("literal", "weight")]


SOFTMAXES = {
    "exp over its sum": """
        %small = mul(%s, 0.001)
        %e = exp(%small)
        %total = reduce_sum(%e) {axes = [3], keepdims = true}
        %p = div(%e, %total)
    """,
    "the largest taken off": """
        %m = reduce_max(%s) {axes = [3], keepdims = true}
        %d = sub(%s, %m)
        %e = exp(%d)
        %total = reduce_sum(%e) {axes = [3], keepdims = true}
        %inverse = reciprocal(%total)
        %p = mul(%e, %inverse)
    """,
    "exp of log_softmax": """
        %l = log_softmax(%s)
        %p = exp(%l)
    """,
    "less the logarithm of its sum": """
        %l = reduce_log_sum_exp(%s) {axes = [3], keepdims = true}
        %d = sub(%s, %l)
        %p = exp(%d)
    """,
    "NaN guard": """
        %w = softmax(%s)
        %nan = is_nan(%w)
        %p = where(%nan, 0.0, %w)
    """,
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax_is_found_in_every_spelling(name: str) -> None:
    the_attention(raised(SCORES + SOFTMAXES[name] + "%y = matmul(%p, %v)", QKV))


LAYOUTS = {
    "batch and heads folded": (
        HIDDEN,
        """
        %qh = reshape(%x) {shape = [B, S, 4, 8]}
        %qt = transpose(%qh) {perm = [0, 2, 1, 3]}
        %qf = reshape(%qt) {shape = [4 * B, S, 8]}
        %kt = transpose(%qf) {perm = [0, 2, 1]}
        %s = matmul(%qf, %kt)
        %p = softmax(%s)
        %o = matmul(%p, %qf)
        %ou = reshape(%o) {shape = [B, 4, S, 8]}
        %ot = transpose(%ou) {perm = [0, 2, 1, 3]}
        %y = reshape(%ot) {shape = [B, S, 32]}
        """,
    ),
    "sequence first, heads folded into the batch": (
        "%x : f32[S, B, 32]",
        """
        %qh = reshape(%x) {shape = [S, 4 * B, 8]}
        %qf = transpose(%qh) {perm = [1, 0, 2]}
        %kt = transpose(%qh) {perm = [1, 2, 0]}
        %s = matmul(%qf, %kt)
        %p = softmax(%s)
        %o = matmul(%p, %qf)
        %ot = transpose(%o) {perm = [1, 0, 2]}
        %y = reshape(%ot) {shape = [S, B, 32]}
        """,
    ),
    "einsum": (
        "%q : f32[B, S, 4, 8], %k : f32[B, T, 4, 8], %v : f32[B, T, 4, 6]",
        """
        %s = einsum(%q, %k) {equation = "bshd,bthd->bhst"}
        %p = softmax(%s)
        %y = einsum(%p, %v) {equation = "bhst,bthe->bshe"}
        """,
    ),
    "keys first, values transposed": (
        QKV,
        """
        %qt = transpose(%q) {perm = [0, 1, 3, 2]}
        %s = matmul(%k, %qt)
        %p = softmax(%s) {axis = 2}
        %vt = transpose(%v) {perm = [0, 1, 3, 2]}
        %y = matmul(%vt, %p)
        """,
    ),
    "packed projection": (
        "%x : f32[B, S, 96]",
        """
        %h = reshape(%x) {shape = [B, S, 3, 4, 8]}
        %t = transpose(%h) {perm = [2, 0, 3, 1, 4]}
        %i0 = literal i64[] 0
        %i1 = literal i64[] 1
        %i2 = literal i64[] 2
        %q = gather(%t, %i0)
        %k = gather(%t, %i1)
        %v = gather(%t, %i2)
        %kt = transpose(%k) {perm = [0, 1, 3, 2]}
        %s = matmul(%q, %kt)
        %p = softmax(%s)
        %y = matmul(%p, %v)
        """,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_become_batch_heads_length_size(name: str) -> None:
    inputs, body = LAYOUTS[name]
    node = the_attention(raised(body, inputs))
    q, k, v = node.inputs[:3]
    assert q is not None
    assert k is not None
    assert v is not None
    assert [str(x.shape[1]) for x in (q, k, v) if x.shape] == ["4", "4", "4"]
    assert [str(x.shape[0]) for x in (q, k, v) if x.shape] == ["B", "B", "B"]


GROUPS = {
    "expand": """
        %u = reshape(%k) {shape = [B, 2, 1, S, 8]}
        %e = expand(%u) {shape = [B, 2, 2, S, 8]}
        %r = reshape(%e) {shape = [B, 4, S, 8]}
    """,
    "gather": """
        %i = literal i64[4] [0, 0, 1, 1]
        %r = gather(%k, %i) {axis = 1}
    """,
    "tile": """
        %u = reshape(%k) {shape = [B, 2, 1, S, 8]}
        %e = tile(%u) {repeats = [1, 1, 2, 1, 1]}
        %r = reshape(%e) {shape = [B, 4, S, 8]}
    """,
}


@pytest.mark.parametrize("name", GROUPS)
def test_repeated_key_heads_become_groups(name: str) -> None:
    body = GROUPS[name] + SCORES.replace("%k)", "%r)") + "%p = softmax(%s)\n%y = matmul(%p, %r)"
    inputs = "%q : f32[B, 4, S, 8], %k : f32[B, 2, S, 8]"
    node = the_attention(raised(body, inputs))
    assert node.attrs["kv_groups"] == 2
    assert operators_of(node) == ["attention"]


def test_one_key_head_for_all_queries_is_a_group_of_all() -> None:
    inputs = "%q : f32[B, 4, S, 8], %k : f32[B, 1, T, 8], %v : f32[B, 1, T, 6]"
    node = the_attention(raised(SCORES + "%z = mul(%s, 1.0)" + SUM, inputs))
    assert node.attrs["kv_groups"] == 4


def test_repeated_blocks_of_heads_are_no_groups() -> None:
    body = """
        %i = literal i64[4] [0, 1, 0, 1]
        %r = gather(%k, %i) {axis = 1}
        %kt = transpose(%r) {perm = [0, 1, 3, 2]}
        %s = matmul(%q, %kt)
        %p = softmax(%s)
        %y = matmul(%p, %r)
    """
    node = the_attention(raised(body, "%q : f32[B, 4, S, 8], %k : f32[B, 2, S, 8]"))
    assert node.attrs["kv_groups"] == 1


WINDOWS = {
    "less_or_equal of ranges": (RANGES + "%hide = logical_not(%ahead)", (-1, 0)),
    "trilu of ones": (
        """
        %one = literal f32[1, 1] splat 1
        %ones = expand(%one) {shape = [S, S]}
        %low = trilu(%ones) {upper = false}
        %hide = equal(%low, 0.0)
        """,
        (-1, 0),
    ),
    "sliding window": (
        RANGES
        + """
        %three = literal i64[] 3
        %first = sub(%rows, %three)
        %near = greater(%t, %first)
        %seen = logical_and(%near, %ahead)
        %hide = logical_not(%seen)
        """,
        (2, 0),
    ),
    "both sides": (
        RANGES
        + """
        %two = literal i64[] 2
        %d = sub(%t, %rows)
        %a = abs(%d)
        %hide = greater(%a, %two)
        """,
        (2, 2),
    ),
}


@pytest.mark.parametrize("fill", ["-inf", "-1000000000.0", "-3.4028235e38"])
@pytest.mark.parametrize("name", WINDOWS)
def test_masks_of_positions_become_windows(name: str, fill: str) -> None:
    ranges, window = WINDOWS[name]
    body = (
        f"%fill = literal f32[] {fill}\n" + ranges + SCORES + "%z = where(%hide, %fill, %s)" + SUM
    )
    node = the_attention(raised(body, SELF))
    assert node.attrs["causal_offset"] == 0
    assert node.attrs["window"] == window
    assert node.inputs[3] is None
    assert operators_of(node) == ["attention"]


def test_added_triangle_is_a_causal_mask() -> None:
    body = (
        RANGES
        + SCORES
        + """
        %low = literal f32[] -inf
        %m = where(%ahead, 0.0, %low)
        %z = add(%s, %m)
        """
        + SUM
    )
    node = the_attention(raised(body, SELF))
    assert node.attrs["causal_offset"] == 0
    assert node.inputs[3] is None


def test_causal_and_padding_part() -> None:
    body = (
        RANGES
        + SCORES
        + """
        %pad = reshape(%m) {shape = [B, 1, 1, S]}
        %seen = logical_and(%ahead, %pad)
        %low = literal f32[] -inf
        %added = where(%seen, 0.0, %low)
        %z = add(%s, %added)
        %w = softmax(%z)
        %nan = is_nan(%w)
        %p = where(%nan, 0.0, %w)
        %y = matmul(%p, %v)
        """
    )
    node = the_attention(raised(body, SELF + ", %m : bool[B, S]"))
    assert node.attrs["causal_offset"] == 0
    assert str(node.inputs[3]).endswith("bool[B, 1, 1, S]")


def test_finite_padding_keeps_rows_without_a_key() -> None:
    """A row whose keys are all hidden is uniform in the source, and stays so."""
    body = (
        RANGES
        + SCORES
        + """
        %pad = reshape(%m) {shape = [B, 1, 1, S]}
        %seen = logical_and(%ahead, %pad)
        %low = literal f32[] -3.4028235e38
        %added = where(%seen, 0.0, %low)
        %z = add(%s, %added)
        """
        + SUM
    )
    node = the_attention(raised(body, SELF + ", %m : bool[B, S]"))
    assert node.attrs["causal_offset"] is None
    assert str(node.inputs[3]).endswith("f32[B, 1, S, S]")


@pytest.mark.parametrize("fill", ["-1e4", "-1e9", "-3.4028235e38"])
def test_scores_that_a_number_replaces_leave_nothing_of_themselves(fill: str) -> None:
    """Rows without a key are uniform where `where` fills, also in exact arithmetic."""
    body = (
        RANGES
        + SCORES
        + f"""
        %pad = reshape(%m) {{shape = [B, 1, 1, S]}}
        %full = constant_of_shape() {{shape = [B, 4, S, S], value = f32[1] [{fill}]}}
        %a = where(%pad, %s, %full)
        %z = where(%ahead, %a, %full)
        """
        + SUM
    )
    node = the_attention(raised(body, SELF + ", %m : bool[B, S]"))
    assert str(node.inputs[3]).endswith("f32[B, 1, S, S]")


def test_scores_times_a_triangle_less_a_number_beside_padding() -> None:
    """`s * m - 1e4 * (1 - m)` replaces scores, also where padding keeps it from being a window."""
    body = (
        RANGES
        + SCORES
        + """
        %one = literal f32[] 1.0
        %low = literal f32[] -1e4
        %seen = cast(%ahead) {to = f32}
        %rest = sub(%one, %seen)
        %number = mul(%rest, %low)
        %part = mul(%s, %seen)
        %a = add(%part, %number)
        %pad = reshape(%m) {shape = [B, 1, 1, S]}
        %least = literal f32[] -3.4028235e38
        %more = where(%pad, 0.0, %least)
        %z = add(%a, %more)
        """
        + SUM
    )
    node = the_attention(raised(body, SELF + ", %m : bool[B, S]"))
    assert str(node.inputs[3]).endswith("f32[B, 1, S, S]")


def test_a_scale_that_is_computed_is_a_number() -> None:
    body = (
        SCORES
        + """
        %size = literal f32[] 16.0
        %root = sqrt(%size)
        %z = div(%s, %root)
        """
        + SUM
    )
    module = spelled(body, inputs=QKV)
    Fuse().run(module, Context())
    assert the_attention(module).attrs["scale"] == 0.25


def test_a_factor_of_each_head_goes_to_the_result() -> None:
    body = SCORES + "%w = softmax(%s)\n%p = mul(%w, %gate)\n%y = matmul(%p, %v)"
    node = the_attention(raised(body, QKV, {"gate": "f32[4, 1, 1]"}))
    (user,) = node.output.users
    assert user.op.name == "mul"


def test_soft_cap_and_bias() -> None:
    body = (
        SCORES
        + """
        %a = mul(%s, 0.05)
        %c = tanh(%a)
        %d = mul(%c, 20.0)
        %z = add(%d, %bias)
        """
        + SUM
    )
    node = the_attention(raised(body, QKV + ", %bias : f32[4, S, T]"))
    assert node.attrs["softcap"] == pytest.approx(20.0)
    assert node.attrs["scale"] == pytest.approx(1.0)
    assert node.inputs[3] is not None


def test_bias_is_scaled_with_the_scores() -> None:
    body = SCORES + "%a = add(%s, %bias)\n%z = mul(%a, 0.5)" + SUM
    node = the_attention(raised(body, QKV + ", %bias : f32[B, 4, 1, T]"))
    assert node.attrs["scale"] == pytest.approx(0.5)


def test_temperature_per_head_goes_to_the_queries() -> None:
    body = SCORES + "%z = mul(%s, %tau)" + SUM
    node = the_attention(raised(body, QKV, {"tau": "f32[4, 1, 1]"}))
    assert node.inputs[0] is not None
    assert node.inputs[0].producer is not None
    assert node.inputs[0].producer.op.name == "mul"


def test_sinks_take_weight_without_a_value() -> None:
    body = (
        SCORES
        + """
        %u = reshape(%sink) {shape = [1, 4, 1, 1]}
        %e = expand(%u) {shape = [B, 4, S, 1]}
        %j = concat(%s, %e) {axis = 3}
        %w = softmax(%j)
        %p = slice(%w) {starts = [0], ends = [T], axes = [3], steps = [1]}
        %y = matmul(%p, %v)
        """
    )
    node = the_attention(raised(body, QKV, {"sink": "f32[4]"}))
    assert str(node.inputs[5]).endswith("f32[4]")


def test_windows_of_an_image_share_their_masks() -> None:
    """[images * windows, heads, S, T] with a mask per window needs no copy per image."""
    body = """
        %q = reshape(%x) {shape = [3 * B, 4, 5, 8]}
        %kt = transpose(%q) {perm = [0, 1, 3, 2]}
        %s = matmul(%q, %kt)
        %b = add(%s, %bias)
        %u = reshape(%b) {shape = [B, 3, 4, 5, 5]}
        %z = add(%u, %mask)
        %r = reshape(%z) {shape = [3 * B, 4, 5, 5]}
        %p = softmax(%r)
        %y = matmul(%p, %q)
    """
    inputs = "%x : f32[B, 3, 4, 5, 8]"
    weights = {"bias": "f32[1, 4, 5, 5]", "mask": "f32[1, 3, 1, 5, 5]"}
    node = the_attention(raised(body, inputs, weights))
    assert str(node.inputs[3]).endswith("f32[1, 12, 5, 5]")


NEGATIVES = {
    "classifier": (
        HIDDEN,
        {"w": "f32[32, 10]"},
        "%l = matmul(%x, %w)\n%y = softmax(%l)",
    ),
    "classifier with a class embedding": (
        HIDDEN,
        {"w": "f32[32, 10]", "e": "f32[10, 8]"},
        "%l = matmul(%x, %w)\n%p = softmax(%l)\n%y = matmul(%p, %e)",
    ),
    "softmax over channels, decoded by time": (
        HIDDEN,
        {"w": "f32[32, 10]"},
        "%l = matmul(%x, %w)\n%t = transpose(%l) {perm = [1, 0, 2]}\n%y = log_softmax(%t)",
    ),
    "router": (
        HIDDEN,
        {"w": "f32[32, 4]", "u": "f32[4, 32]"},
        """
        %l = matmul(%x, %w)
        %p = softmax(%l)
        %h = mul(%x, 2.0)
        %e = matmul(%p, %u)
        %y = mul(%h, %e)
        """,
    ),
    "gate of channels": (
        "%x : f32[B, 8, H, W]",
        {"w": "f32[8, 8]"},
        """
        %m = reduce_mean(%x) {axes = [2, 3], keepdims = false}
        %l = matmul(%m, %w)
        %p = softmax(%l)
        %g = reshape(%p) {shape = [B, 8, 1, 1]}
        %y = mul(%x, %g)
        """,
    ),
    "pooling without values": (
        HIDDEN,
        {"w": "f32[32, 1]"},
        "%l = matmul(%x, %w)\n%p = softmax(%l) {axis = 1}\n%y = reduce_sum(%p) {axes = [1]}",
    ),
}


@pytest.mark.parametrize("name", NEGATIVES)
def test_what_only_looks_like_attention_stays(name: str) -> None:
    inputs, weights, body = NEGATIVES[name]
    assert "attention" not in operators(raised(body, inputs, weights))


def test_channels_mixed_by_positions_are_reported() -> None:
    body = """
        %h = reshape(%x) {shape = [B, S, 4, 8]}
        %q = transpose(%h) {perm = [0, 2, 3, 1]}
        %k = transpose(%h) {perm = [0, 2, 1, 3]}
        %s = matmul(%q, %k)
        %p = softmax(%s)
        %o = matmul(%p, %q)
        %t = transpose(%o) {perm = [0, 3, 1, 2]}
        %y = reshape(%t) {shape = [B, S, 32]}
    """
    module = spelled(body, inputs=HIDDEN)
    result = Fuse().run(module, Context())
    assert "attention" not in operators(module)
    assert [skip.reason for skip in result.skipped] == [
        "attention: it mixes channels: positions are summed over"
    ]


def test_weights_that_are_an_output_are_left_alone() -> None:
    body = SCORES + "%p = softmax(%s)\n%o = matmul(%p, %v)\n%c = reduce_sum(%p) {axes = [3]}"
    module = spelled(body + "\n%y = mul(%o, %c)", inputs=QKV)
    result = Fuse().run(module, Context())
    assert "attention" not in operators(module)
    assert "used elsewhere" in result.skipped[0].reason


def test_equal_layers_are_proved_once() -> None:
    body, x = [], "%x"
    for i in range(12):
        body += [
            f"%h{i} = reshape({x}) {{shape = [B, S, 4, 8]}}",
            f"%q{i} = transpose(%h{i}) {{perm = [0, 2, 1, 3]}}",
            f"%k{i} = transpose(%h{i}) {{perm = [0, 2, 3, 1]}}",
            f"%s{i} = matmul(%q{i}, %k{i})",
            f"%p{i} = softmax(%s{i})",
            f"%o{i} = matmul(%p{i}, %q{i})",
            f"%t{i} = transpose(%o{i}) {{perm = [0, 2, 1, 3]}}",
            f"%r{i} = reshape(%t{i}) {{shape = [B, S, 32]}}",
            f"%x{i} = tanh(%r{i})",
        ]
        x = f"%x{i}"
    module = spelled("\n".join([*body, f"%y = mul({x}, 2.0)"]), inputs=HIDDEN)
    prover, plan = Prover(), Plan()
    plan_attention(AttentionFinder().find(module.graph), plan, prover)
    assert len(plan.places) == 12
    assert (prover.num_proved, prover.num_evaluated, prover.num_unproved) == (12, 1, 0)


def test_a_wrong_form_is_refuted() -> None:
    module = spelled(SCORES + "%z = mul(%s, 0.25)" + SUM, inputs=QKV)
    (found,) = AttentionFinder().find(module.graph)
    found.scale = 0.3
    plan = Plan()
    plan_attention([found], plan, Prover())
    assert not plan.places
    assert "differs by" in plan.skipped[0].reason


def test_weights_that_are_divided_by_their_sum_after_the_values() -> None:
    body = (
        SCORES
        + """
    %z = mul(%s, 0.25)
    %most = reduce_max(%z) {axes = [-1], keepdims = true}
    %apart = sub(%z, %most)
    %e = exp(%apart)
    %total = reduce_sum(%e) {axes = [-1], keepdims = true}
    %met = matmul(%e, %v)
    %y = div(%met, %total)
    """
    )
    node = the_attention(raised(body, QKV))
    assert node.attrs["scale"] == 0.25
