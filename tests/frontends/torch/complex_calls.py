"""Example calls with complex numbers and Fourier transforms."""

from __future__ import annotations

from itertools import product

import torch

from tests.frontends.torch.calls import Call, call
from tests.frontends.torch.tensors import floats

X = floats(2, 3, 8)
Z = torch.complex(floats(2, 3, 4), floats(2, 3, 4, low=-1))
W = torch.complex(floats(3, 4, low=0.5), floats(3, 4))


def _arithmetic() -> list[Call]:
    items = []
    for name in ("mul", "div", "add", "sub"):
        items += [call(f"{name}.Tensor", Z, W), call(f"{name}.Scalar", Z, 2.0)]
        items.append(call(f"{name}.Tensor", Z, torch.tensor(1 + 2j)))
        items.append(call(f"{name}.Tensor", Z, floats(3, 4, low=0.5)))
        if name != "div":
            items.append(call(f"{name}.Tensor", floats(3, 4), Z))
    return items


def _transforms() -> list[Call]:
    items = []
    for norm in (None, "ortho", "forward"):
        for name, x in product(("fft", "ifft"), (X, Z)):
            items += [
                call(f"fft_{name}.default", x, norm=norm, depth=8),
                call(f"fft_{name}.default", x, 5, 1, norm, depth=8),
                call(f"fft_{name}.default", x, 7, 2, norm, depth=8),
                call(f"fft_{name}.default", x, 3, 2, norm, depth=8),
                call(f"fft_{name}2.default", x, norm=norm, depth=24),
                call(f"fft_{name}n.default", x, None, [0, 2], norm, depth=24),
            ]
        for name, x in (("rfft", X), ("irfft", Z)):
            items += [
                call(f"fft_{name}.default", x, norm=norm, depth=8),
                call(f"fft_{name}.default", x, 4, -1, norm, depth=8),
                call(f"fft_{name}.default", x, 9, -1, norm, depth=16),
                call(f"fft_{name}.default", x, 12, -1, norm, depth=16),
                call(f"fft_{name}2.default", x, norm=norm, depth=24),
                call(f"fft_{name}n.default", x, [2, 4], [1, 2], norm, depth=24),
            ]
    return items


_MOVEMENT = (
    call("reshape.default", Z, [6, 4]),
    call("view.default", Z, [6, -1]),
    call("flatten.using_ints", Z, 1),
    call("permute.default", Z, [2, 0, -2]),
    call("transpose.int", Z, -1, 0),
    call("unsqueeze.default", Z, -1),
    call("unsqueeze.default", Z, 1),
    call("squeeze.dim", Z[:1], 0),
    call("slice.Tensor", Z, -1, 1, 3),
    call("select.int", Z, -1, 2),
    call("split.Tensor", Z, 2, -1),
    call("chunk.default", Z, 2, -1),
    call("unbind.int", Z, -1),
    call("cat.default", [Z, W[None]], 0),
    call("stack.default", [W, W], -1),
    call("expand.default", W[None], [2, 3, 4]),
    call("repeat.default", W, [2, 1, 1]),
    call("flip.default", Z, [-1]),
    call("roll.default", Z, [1], [-1]),
    call("index.Tensor", Z, [None, torch.tensor([2, 0])]),
    call("embedding.default", W, torch.tensor([2, 0])),
    call("sum.dim_IntList", Z, [-1]),
    call("clone.default", Z),
)

CALLS: tuple[Call, ...] = (
    *_arithmetic(),
    *_transforms(),
    *_MOVEMENT,
    call("view_as_complex.default", floats(2, 3, 2)),
    call("view_as_real.default", Z),
    call("complex.default", floats(2, 3), floats(2, 3)),
    call("polar.default", floats(2, 3, low=0), floats(2, 3)),
    call("real.default", Z),
    call("imag.default", Z),
    call("abs.default", Z),
    call("neg.default", Z),
    *(call(f"{name}.default", Z) for name in ("_conj", "conj", "conj_physical", "_conj_physical")),
    call("resolve_conj.default", Z),
    call("to.dtype", Z, torch.complex64),
    *(call(f"{name}.default", Z) for name in ("angle", "exp", "log", "sqrt", "sgn", "square")),
    call("reciprocal.default", W),
    *(call("pow.Tensor_Scalar", W, exponent, depth=8) for exponent in (1, 2, 3, 0.5, -2)),
    call("where.self", floats(2, 1, 4) > 0, W, W * 2),
    call("mm.default", W, W.mT.contiguous(), depth=8),
    call("bmm.default", Z, Z.mT.contiguous(), depth=8),
    call("matmul.default", Z, W.mT.contiguous(), depth=8),
    call("sum.dim_IntList", Z, [], depth=24),
    call("mean.dim", Z, [], depth=24),
    *(
        call(f"fft_{name}.default", x, dim)
        for name in ("fftshift", "ifftshift")
        for x in (X, Z)
        for dim in (None, [1], [-1])
    ),
)
