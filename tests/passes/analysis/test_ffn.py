"""Feed-forward blocks in all forms, and what looks like one but is none."""

from __future__ import annotations

import pytest

from regraft.ir.module import Module
from regraft.passes.analysis.blocks import FfnBlock, recognize
from tests.passes.analysis import test_unary_functions
from tests.passes.analysis.spelled import spelled

WEIGHTS = {
    "u": "f32[16, 64]",
    "g": "f32[16, 64]",
    "d": "f32[64, 16]",
    "ub": "f32[64]",
    "db": "f32[16]",
}


def only(module: Module) -> FfnBlock:
    found = recognize(module)
    assert found.moe == ()
    (block,) = found.ffn
    return block


def none(module: Module) -> None:
    found = recognize(module)
    assert found.ffn == ()
    assert found.moe == ()


PLAIN = """
    %p = matmul(%x, %u)
    %h = add(%ub, %p)
    %a = gelu(%h)
    %o = matmul(%a, %d)
    %y = add(%o, %db)"""


def test_plain_block() -> None:
    module = spelled(PLAIN, weights=WEIGHTS)
    block = only(module)
    assert (block.input.name, block.output.name) == ("x", "y")
    assert (block.activation, block.hidden, block.axis) == ("gelu", 64, -1)
    assert block.gate is None
    assert (block.up.weight.name, block.up.bias.name) == ("u", "ub")
    assert (block.down.weight.name, block.down.bias.name) == ("d", "db")
    assert (block.up.weight_out, block.down.weight_in) == (-1, -2)
    assert [node.op.name for node in block.nodes].count("matmul") == 2


@pytest.mark.parametrize("body", test_unary_functions.TANH_GELU.values())
def test_activation_in_any_spelling(body: str) -> None:
    act = body.replace("%", "%s_").replace("%s_x", "%h").replace("%s_y", "%t")
    module = spelled(f"%h = matmul(%x, %u)\n{act}\n%y = matmul(%t, %d)", weights=WEIGHTS)
    assert only(module).activation == "gelu_tanh"


@pytest.mark.parametrize("product", ["mul(%a, %v)", "mul(%v, %a)"])
def test_gate_and_up_of_two_products(product: str) -> None:
    body = f"""
        %h = matmul(%x, %g)
        %s = sigmoid(%h)
        %a = mul(%h, %s)
        %v = matmul(%x, %u)
        %m = {product}
        %y = matmul(%m, %d)"""
    block = only(spelled(body, weights=WEIGHTS))
    assert block.activation == "silu"
    assert block.gate is not None
    assert (block.gate.weight.name, block.up.weight.name) == ("g", "u")


def test_gate_and_up_of_one_product() -> None:
    halves = {
        "split": "%h, %v = split(%p) {axis = 2, sizes = [64, 64]}",
        "slices": """%h = slice(%p) {starts = [0], ends = [64], axes = [2]}
            %v = slice(%p) {starts = [64], ends = [128], axes = [2]}""",
    }
    for lines in halves.values():
        body = f"""
            %p = matmul(%x, %w)
            {lines}
            %a = gelu(%h)
            %m = mul(%a, %v)
            %y = matmul(%m, %d)"""
        block = only(spelled(body, weights={"w": "f32[16, 128]", "d": "f32[64, 16]"}))
        assert block.gate is block.up
        assert (block.hidden, block.activation) == (64, "gelu")


def test_sigmoid_gate_is_gated() -> None:
    body = """
        %h = matmul(%x, %g)
        %a = sigmoid(%h)
        %v = matmul(%x, %u)
        %m = mul(%a, %v)
        %y = matmul(%m, %d)"""
    block = only(spelled(body, weights=WEIGHTS))
    assert (block.activation, block.gate is not None) == ("sigmoid", True)


def test_gemm_on_flattened_tokens() -> None:
    body = """
        %r = reshape(%x) {shape = [B*S, 16]}
        %h = gemm(%r, %u, %ub) {trans_b = true}
        %a = relu(%h)
        %o = gemm(%a, %d, %db) {trans_b = true}
        %y = reshape(%o) {shape = [B, S, 16]}"""
    weights = {"u": "f32[64, 16]", "d": "f32[16, 64]", "ub": "f32[64]", "db": "f32[16]"}
    block = only(spelled(body, weights=weights))
    assert (block.activation, block.hidden) == ("relu", 64)
    assert (block.up.weight_in, block.up.weight_out, block.down.weight_in) == (-1, -2, -1)


def test_convolutions_of_window_one() -> None:
    conv = "{strides = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1]}"
    body = f"""
        %h = conv(%x, %u, %ub) {conv}
        %a = gelu(%h)
        %y = conv(%a, %d, %db) {conv}"""
    weights = {"u": "f32[64, 16, 1, 1]", "d": "f32[16, 64, 1, 1]", "ub": "f32[64]", "db": "f32[16]"}
    block = only(spelled(body, shape="B, 16, H, W", weights=weights))
    assert block.down.is_convolution
    assert (block.axis, block.hidden) == (-3, 64)


def test_depthwise_convolution_between() -> None:
    conv = "{strides = [1, 1], pads = [1, 1, 1, 1], dilations = [1, 1], groups = 64}"
    body = f"""
        %h = matmul(%x, %u)
        %t = transpose(%h) {{perm = [0, 2, 1]}}
        %i = reshape(%t) {{shape = [B, 64, 6, 5]}}
        %c = conv(%i, %k) {conv}
        %f = reshape(%c) {{shape = [B, 64, 30]}}
        %r = transpose(%f) {{perm = [0, 2, 1]}}
        %a = gelu(%r)
        %y = matmul(%a, %d)"""
    weights = {"u": "f32[16, 64]", "d": "f32[64, 16]", "k": "f32[64, 1, 3, 3]"}
    block = only(spelled(body, shape="B, 30, 16", weights=weights))
    assert block.depthwise is not None
    assert block.depthwise.op.name == "conv"


def test_token_mixing_by_transposes() -> None:
    body = """
        %t = transpose(%x) {perm = [0, 2, 1]}
        %h = matmul(%t, %u)
        %a = gelu(%h)
        %o = matmul(%a, %d)
        %y = transpose(%o) {perm = [0, 2, 1]}"""
    block = only(spelled(body, shape="B, 16, 8", weights=WEIGHTS))
    assert (block.input.name, block.axis) == ("x", -2)


def test_token_mixing_by_a_weight_on_the_left() -> None:
    body = "%h = matmul(%u, %x)\n%a = gelu(%h)\n%y = matmul(%d, %a)"
    weights = {"u": "f32[64, 16]", "d": "f32[16, 64]"}
    block = only(spelled(body, shape="B, 16, 8", weights=weights))
    assert (block.axis, block.up.weight_out, block.down.weight_in) == (-2, -2, -1)


def test_norm_of_the_hidden_channels() -> None:
    body = """
        %h = matmul(%x, %u)
        %a = gelu(%h)
        %n = layer_norm(%a, %ub)
        %y = matmul(%n, %d)"""
    block = only(spelled(body, weights=WEIGHTS))
    assert block.norm is not None
    assert block.norm.kind == "layer_norm"


def test_squared_relu() -> None:
    body = "%h = matmul(%x, %u)\n%r = relu(%h)\n%a = mul(%r, %r)\n%y = matmul(%a, %d)"
    assert only(spelled(body, weights=WEIGHTS)).activation == "relu2"


NEGATIVE = {
    "classifier head": (
        """%h = matmul(%x, %u)
        %a = tanh(%h)
        %y = matmul(%a, %d)""",
        {"u": "f32[16, 64]", "d": "f32[64, 10]"},
    ),
    "perceptron of three layers": (
        """%h = matmul(%x, %u)
        %a = relu(%h)
        %o = matmul(%a, %d)
        %b = relu(%o)
        %y = matmul(%b, %e)""",
        {"u": "f32[16, 16]", "d": "f32[16, 16]", "e": "f32[16, 10]"},
    ),
    "hidden channels used twice": (
        """%h = matmul(%x, %u)
        %a = gelu(%h)
        %o = matmul(%a, %d)
        %q = matmul(%a, %d)
        %y = mul(%o, %q)""",
        {"u": "f32[16, 64]", "d": "f32[64, 16]"},
    ),
    "two varying operands": (
        """%t = transpose(%x) {perm = [0, 2, 1]}
        %s = matmul(%x, %t)
        %a = relu(%s)
        %y = matmul(%a, %x)""",
        {},
    ),
    "gate from elsewhere": (
        """%h = matmul(%x, %u)
        %a = gelu(%h)
        %c = mul(%x, %x)
        %v = matmul(%c, %g)
        %m = mul(%a, %v)
        %y = matmul(%m, %d)""",
        {"u": "f32[16, 64]", "g": "f32[16, 64]", "d": "f32[64, 16]"},
    ),
    "router": (
        """%h = matmul(%x, %u)
        %a = softmax(%h)
        %y = matmul(%a, %d)""",
        {"u": "f32[16, 64]", "d": "f32[64, 16]"},
    ),
    "inverted residual": (
        """%h = conv(%x, %u) {strides = [1], pads = [0, 0], dilations = [1]}
        %a = relu(%h)
        %c = conv(%a, %k) {strides = [1], pads = [1, 1], dilations = [1], groups = 64}
        %b = relu(%c)
        %y = conv(%b, %d) {strides = [1], pads = [0, 0], dilations = [1]}""",
        {"u": "f32[64, 16, 1]", "k": "f32[64, 1, 3]", "d": "f32[16, 64, 1]"},
    ),
}


@pytest.mark.parametrize(("body", "weights"), NEGATIVE.values(), ids=NEGATIVE)
def test_what_is_no_block(body: str, weights: dict[str, str]) -> None:
    shape = "B, 16, S" if "conv" in body else "B, S, 16"
    none(spelled(body, shape=shape, weights=weights))


@pytest.mark.parametrize("gate", ["sigmoid(%e)", "hard_sigmoid(%e)"])
def test_squeeze_and_excitation_is_no_block(gate: str) -> None:
    conv = "{strides = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1]}"
    body = f"""
        %m = reduce_mean(%x) {{axes = [2, 3]}}
        %h = conv(%m, %u) {conv}
        %a = relu(%h)
        %e = conv(%a, %d) {conv}
        %s = {gate}
        %y = mul(%x, %s)"""
    weights = {"u": "f32[4, 16, 1, 1]", "d": "f32[16, 4, 1, 1]"}
    none(spelled(body, shape="B, 16, H, W", weights=weights))


def test_excitation_without_its_gate_is_pooled_still() -> None:
    body = """
        %m = reduce_mean(%x) {axes = [1], keepdims = false}
        %h = matmul(%m, %u)
        %a = relu(%h)
        %y = matmul(%a, %d)"""
    none(spelled(body, weights=WEIGHTS))


def test_experts_on_picked_tokens_are_one_layer() -> None:
    expert = """
        %t{i} = gather(%f, %i{i}) {{axis = 0}}
        %h{i} = matmul(%t{i}, %u{i})
        %a{i} = swish(%h{i})
        %o{i} = matmul(%a{i}, %d{i})"""
    body = """
        %f = reshape(%x) {shape = [B*S, 16]}
        %r = matmul(%f, %w)
        %p = softmax(%r)
        %v, %k = top_k(%p) {k = 1}
        %i0 = squeeze(%k) {axes = [1]}
        %i1 = neg(%i0)"""
    body += "".join(expert.format(i=i) for i in range(2)) + "\n%y = add(%o0, %o1)"
    weights = {"w": "f32[16, 2]"}
    for i in range(2):
        weights |= {f"u{i}": "f32[16, 32]", f"d{i}": "f32[32, 16]"}
    found = recognize(spelled(body, weights=weights))
    assert found.ffn == ()
    (layer,) = found.moe
    assert (layer.input.name, layer.num_experts, layer.top_k) == ("x", 2, 1)
    assert layer.router is not None
    assert layer.router.weight.name == "w"
    assert [expert.up.weight.name for expert in layer.experts] == ["u0", "u1"]


def test_stacked_weights_are_a_layer_of_experts() -> None:
    body = "%h = matmul(%x, %u)\n%a = gelu(%h)\n%y = matmul(%a, %d)"
    weights = {"u": "f32[4, 16, 32]", "d": "f32[4, 32, 16]"}
    found = recognize(spelled(body, shape="4, S, 16", weights=weights))
    assert found.ffn == ()
    (layer,) = found.moe
    assert (layer.num_experts, layer.router) == (4, None)


def test_weights_picked_for_every_token() -> None:
    """Each token meets copies of its experts' matrices and biases."""
    body = """
        %f = reshape(%x) {shape = [B*S, 16]}
        %r = matmul(%f, %w)
        %v, %k = top_k(%r) {k = 1}
        %i = squeeze(%k) {axes = [1]}
        %gu = gather(%u, %i) {axis = 0}
        %gb = gather(%ub, %i) {axis = 0}
        %gd = gather(%d, %i) {axis = 0}
        %c = reshape(%f) {shape = [B*S, 16, 1]}
        %m = matmul(%gu, %c)
        %h = reshape(%m) {shape = [B*S, 64]}
        %b = add(%h, %gb)
        %one = slice(%b) {starts = [0], ends = [64], axes = [1], steps = [2]}
        %two = slice(%b) {starts = [1], ends = [64], axes = [1], steps = [2]}
        %a = swish(%one)
        %p = mul(%a, %two)
        %q = reshape(%p) {shape = [B*S, 32, 1]}
        %y = matmul(%gd, %q)"""
    weights = {"w": "f32[16, 4]", "u": "f32[4, 64, 16]", "ub": "f32[4, 64]", "d": "f32[4, 16, 32]"}
    found = recognize(spelled(body, weights=weights))
    assert found.ffn == ()
    (layer,) = found.moe
    assert (layer.input.name, layer.num_experts, layer.top_k) == ("x", 4, 1)
    (experts,) = layer.experts
    assert (experts.up.weight.name, experts.down.weight.name) == ("u", "d")
    assert (experts.hidden, experts.gate is experts.up) == (32, True)


def test_grouped_convolution_between_two_activations() -> None:
    body = """
        %h = conv(%x, %u) {strides = [1], pads = [0, 0], dilations = [1]}
        %a = gelu(%h)
        %c = conv(%a, %k) {strides = [1], pads = [1, 1], dilations = [1], groups = 8}
        %b = gelu(%c)
        %y = conv(%b, %d) {strides = [1], pads = [0, 0], dilations = [1]}"""
    weights = {"u": "f32[64, 16, 1]", "k": "f32[64, 8, 3]", "d": "f32[16, 64, 1]"}
    block = only(spelled(body, shape="B, 16, S", weights=weights))
    assert block.depthwise is not None


def test_canonical_experts() -> None:
    body = "%r = matmul(%x, %w)\n%y = moe(%x, %r, %u, %d) {top_k = 2}"
    weights = {"w": "f32[16, 4]", "u": "f32[4, 32, 16]", "d": "f32[4, 16, 32]"}
    (layer,) = recognize(spelled(body, weights=weights)).moe
    assert (layer.num_experts, layer.top_k) == (4, 2)
    assert layer.router is not None


def test_describe_is_json() -> None:
    document = recognize(spelled(PLAIN, weights=WEIGHTS)).describe()
    assert document["ffn"] == [
        {
            "input": "x", "output": "y", "activation": "gelu", "gated": False, "hidden": 64,
            "axis": -1, "convolution": False, "depthwise": False,
            "weights": {"up": "u", "gate": None, "down": "d"},
        }
    ]  # fmt: skip
    assert set(document) == {"attention", "ffn", "norm", "moe", "layers"}
