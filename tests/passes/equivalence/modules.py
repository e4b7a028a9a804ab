"""Small modules of every structure that factors are moved through, and how folds are judged."""

import numpy as np

from regraft.ir.evaluate import evaluate
from regraft.ir.text import parse_module

CNN = """
module "cnn"
symbol B
weight @a : f32[8, 3, 3, 3] = random(1)
weight @ab : f32[8] = random(2)
weight @dw : f32[8, 1, 3, 3] = random(3)
weight @dwb : f32[8] = random(4)
weight @c : f32[8, 8, 1, 1] = random(5)
weight @cb : f32[8] = random(6)
weight @d : f32[8, 8, 3, 3] = random(7)
weight @head : f32[8, 5] = random(8)

graph(%x : f32[B, 3, 9, 9]) {
  %a = weight @a
  %ab = weight @ab
  %dw = weight @dw
  %dwb = weight @dwb
  %c = weight @c
  %cb = weight @cb
  %d = weight @d
  %head = weight @head
  %h0 = conv(%x, %a, %ab) {pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1]}
  %h1 = relu(%h0)
  %h2 = conv(%h1, %dw, %dwb) {groups = 8, pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1]}
  %h3 = clip(%h2) {min = 0.0, max = 6.0}
  %h4 = conv(%h3, %c, %cb) {pads = [0, 0, 0, 0], strides = [1, 1], dilations = [1, 1]}
  %h5 = relu(%h4)
  %h6 = conv(%h5, %d) {pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1]}
  %h7 = add(%h6, %h5)
  %h8 = relu(%h7)
  %p = global_average_pool(%h8)
  %f = reshape(%p) {shape = [B, 8]}
  %y = matmul(%f, %head)
  return %y
}
"""

TIED = """
module "tied"
symbol B
weight @w : f32[6, 6] role=param = random(1)

graph(%x : f32[B, 6]) {
  %w = weight @w
  %h = matmul(%x, %w)
  %r = relu(%h)
  %y = matmul(%r, %w)
  return %y
}
"""


def module(text):
    return parse_module(text)


def relative_error(before, after, samples):
    """Largest difference of any output over the largest number in it, judged in f64."""
    worst = 0.0
    for sample in samples:
        want, got = evaluate(before, sample, oracle=True), evaluate(after, sample, oracle=True)
        for name, array in want.items():
            assert np.abs(array).max() > 0
            worst = max(worst, float(np.abs(got[name] - array).max() / np.abs(array).max()))
    return worst


def images(count=2):
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(2, 3, 9, 9)).astype(np.float32)} for _ in range(count)]


D, H, F, V = 16, 2, 24, 20
_WEIGHTS = f"""
weight @table : f32[{V}, {D}] role=param = random(1)
weight @q : f32[{D}, {D}] role=param = random(2)
weight @k : f32[{D}, {D}] role=param = random(3)
weight @v : f32[{D}, {D}] role=param = random(4)
weight @vb : f32[{D}] role=param = random(5)
weight @o : f32[{D}, {D}] role=param = random(6)
weight @g1 : f32[{D}] role=param = random(7)
weight @b1 : f32[{D}] role=param = random(8)
weight @g2 : f32[{D}] role=param = random(9)
weight @b2 : f32[{D}] role=param = random(10)
weight @up : f32[{D}, {F}] role=param = random(11)
weight @gate : f32[{D}, {F}] role=param = random(12)
weight @down : f32[{F}, {D}] role=param = random(13)
weight @head : f32[{D}, 7] role=param = random(14)
"""

_READ = "\n".join(
    f"  %{name} = weight @{name}"
    for name in [
        "table",
        "q",
        "k",
        "v",
        "vb",
        "o",
        "g1",
        "b1",
        "g2",
        "b2",
        "up",
        "gate",
        "down",
        "head",
    ]
)

_ATTENTION = f"""
  %qp = matmul(%n1, %q)
  %kp = matmul(%n1, %k)
  %vp0 = matmul(%n1, %v)
  %vp = add(%vp0, %vb)
  %qr = reshape(%qp) {{shape = [B, S, {H}, {D // H}]}}
  %kr = reshape(%kp) {{shape = [B, S, {H}, {D // H}]}}
  %vr = reshape(%vp) {{shape = [B, S, {H}, {D // H}]}}
  %qt = transpose(%qr) {{perm = [0, 2, 1, 3]}}
  %kt = transpose(%kr) {{perm = [0, 2, 1, 3]}}
  %vt = transpose(%vr) {{perm = [0, 2, 1, 3]}}
  %at = attention(%qt, %kt, %vt) {{scale = 0.3}}
  %ar = transpose(%at) {{perm = [0, 2, 1, 3]}}
  %am = reshape(%ar) {{shape = [B, S, {D}]}}
  %ao = matmul(%am, %o)
  %s1 = add(%x, %ao)
"""

_HEADER = """
module "net"
symbol B
symbol S
"""

ENCODER = f"""{_HEADER}{_WEIGHTS}
graph(%ids : i64[B, S]) {{
{_READ}
  %x = gather(%table, %ids) {{axis = 0}}
  %n1 = layer_norm(%x, %g1, %b1) {{axis = -1, epsilon = 0.00001}}
{_ATTENTION}
  %n2 = layer_norm(%s1, %g2, %b2) {{axis = -1, epsilon = 0.00001}}
  %u = matmul(%n2, %up)
  %a = relu(%u)
  %d = matmul(%a, %down)
  %s2 = add(%s1, %d)
  %y = matmul(%s2, %head)
  return %y
}}
"""
"""Norms before the layers, a rectifier."""

POST_NORM = f"""{_HEADER}{_WEIGHTS}
graph(%ids : i64[B, S]) {{
{_READ}
  %x0 = gather(%table, %ids) {{axis = 0}}
  %x = layer_norm(%x0, %g1, %b1) {{axis = -1, epsilon = 0.00001}}
  %n1 = identity(%x)
{_ATTENTION}
  %n2 = layer_norm(%s1, %g2, %b2) {{axis = -1, epsilon = 0.00001}}
  %u = matmul(%n2, %up)
  %a = gelu(%u)
  %d = matmul(%a, %down)
  %s2 = add(%n2, %d)
  %y = layer_norm(%s2, %g1, %b1) {{axis = -1, epsilon = 0.00001}}
  return %y
}}
"""
"""Norms on the residual stream, as in BERT."""

DECODER = f"""{_HEADER}{_WEIGHTS}
graph(%ids : i64[B, S]) {{
{_READ}
  %x = gather(%table, %ids) {{axis = 0}}
  %n1 = rms_norm(%x, %g1) {{axis = -1, epsilon = 0.00001}}
{_ATTENTION}
  %n2 = rms_norm(%s1, %g2) {{axis = -1, epsilon = 0.00001}}
  %u = matmul(%n2, %up)
  %w = matmul(%n2, %gate)
  %z = swish(%w)
  %a = mul(%z, %u)
  %d = matmul(%a, %down)
  %s2 = add(%s1, %d)
  %y = matmul(%s2, %head)
  return %y
}}
"""
"""RMS norms before the layers, a gated feed-forward part."""


def texts(count=3):
    rng = np.random.default_rng(1)
    return [{"ids": rng.integers(0, V, (2, 5))} for _ in range(count)]
