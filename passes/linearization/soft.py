"""SOFT: a Gaussian kernel of the queries among themselves, through a few pooled landmarks.

```
P = exp(-|x_i - m_j|^2 / 2)      tokens and landmarks      A = exp(-|m_i - m_j|^2 / 2)
S = P A^-1 P^T                   out = D^-1/2 S D^-1/2 v   D: sums of S's rows
```

The inverse is Newton's iteration, products alone: X <- 2 X - X A X.

Source: Lu et al., Softmax-free Linear Transformers, 2024, eq. 8 to 13.
"""

from __future__ import annotations

import numpy as np

from regraft.ir.graph import Value
from regraft.ir.ops import arithmetic, functions, linalg, reduce, reshaping
from regraft.passes.linearization.place import Place

STEPS = 20
JITTER = 1e-2
"""What the diagonal of A is raised by, so that the iteration converges."""
_START = 1.8
_LEAST = 1e-6


def soft(place: Place, landmarks: int, steps: int = STEPS, jitter: float = JITTER) -> Value:
    """Returns [B, H, N, E].

    Args:
        place: The attention; its keys are left out.
        landmarks: How many the tokens are pooled into; 0 or more than tokens: every token is one.
        steps: Of the iteration.
        jitter: See `JITTER`.
    """
    b = place.b
    N = place.keys[2]
    assert isinstance(N, int), "misfit refuses a number of tokens that is not known"
    count = N if not 0 < landmarks < N else landmarks
    root = place.number_of(abs(place.node.attrs["scale"]) ** 0.5)
    x = pooled = b.op(arithmetic.mul, place.operand("q"), root)
    if count != N:
        pooled = b.op(linalg.matmul, b.constant(_pooling(count, N), place.dtype), x)
    P, A = _gaussian(place, x, pooled), _gaussian(place, pooled, pooled)
    inverse = newton_inverse(place, A, count, steps, jitter)
    flipped = _flipped(place, P)

    def through(right: Value) -> Value:
        inner = b.op(linalg.matmul, inverse, b.op(linalg.matmul, flipped, right))
        return b.op(linalg.matmul, P, inner)

    ones = b.constant(np.ones((N, 1)), place.dtype)
    sums = b.op(arithmetic.max_, through(ones), place.number_of(_LEAST))
    root = b.op(functions.sqrt, sums)
    made = through(b.op(arithmetic.div, place.operand("v"), root))
    return b.op(arithmetic.div, made, root)


def newton_inverse(place: Place, A: Value, size: int, steps: int, jitter: float) -> Value:
    """Returns the inverse of A + jitter I, [B, H, M, M]."""
    b = place.b
    raised = b.op(arithmetic.add, A, b.constant(jitter * np.eye(size), place.dtype))
    sums = b.op(reduce.reduce_sum, raised, axes=(3,), keepdims=True)
    norm = b.op(reduce.reduce_max, sums, axes=(2,), keepdims=True)
    start = b.op(arithmetic.div, place.number_of(_START), b.op(arithmetic.mul, norm, norm))
    X = b.op(arithmetic.mul, raised, start)
    for _ in range(steps):
        twice = b.op(arithmetic.add, X, X)
        again = b.op(linalg.matmul, b.op(linalg.matmul, X, raised), X)
        X = b.op(arithmetic.sub, twice, again)
    return X


def _gaussian(place: Place, x: Value, y: Value) -> Value:
    """Returns exp(-|x_i - y_j|^2 / 2), [B, H, N, M]."""
    b = place.b
    dots = b.op(linalg.matmul, x, _flipped(place, y))
    half = place.number_of(0.5)
    for each, is_row in ((x, False), (y, True)):
        squares = b.op(
            reduce.reduce_sum, b.op(arithmetic.mul, each, each), axes=(3,), keepdims=True
        )
        if is_row:
            squares = _flipped(place, squares)
        dots = b.op(arithmetic.sub, dots, b.op(arithmetic.mul, squares, half))
    return b.op(functions.exp, dots)


def _flipped(place: Place, x: Value) -> Value:
    return place.b.op(reshaping.transpose, x, perm=(0, 1, 3, 2))


def _pooling(count: int, tokens: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Returns which tokens a landmark is the mean of, [count, tokens]: even parts of the line."""
    part = np.arange(tokens) * count // tokens
    member = (part == np.arange(count)[:, None]).astype(np.float64)
    mean: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = member / member.sum(1, keepdims=True)
    return mean
