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
