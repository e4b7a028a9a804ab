"""Example calls of reductions, indexing, scattering, order, creation and random numbers."""

from __future__ import annotations

from itertools import product

import torch

from tests.frontends.torch.calls import Call, call
from tests.frontends.torch.tensors import bools, distinct, floats, ints

F16, BF16, F32, F64, I32 = torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32
X = floats(2, 3, 4)
D = distinct(2, 3, 4)


def _reductions() -> list[Call]:
    items = []
    for x in (X, ints(2, 3), bools(2, 3), floats(2, 5, dtype=F16), torch.tensor(2.0)):
        items += [call("sum.default", x), call("prod.default", x), call("any.default", x)]
        items += [call("all.default", x), call("max.default", x), call("min.default", x)]
        items.append(call("count_nonzero.default", x))
        items += [call("amax.default", x), call("amin.default", x)]
    for dim, keep in product(([0], [-1], [0, 2], [], None), (False, True)):
        items += [
            call("sum.dim_IntList", X, dim, keep),
            call("mean.dim", X, dim, keep),
            call("var.correction", X, dim, correction=1, keepdim=keep),
            call("var.correction", X, dim, correction=0, keepdim=keep),
            call("std.correction", X, dim, keepdim=keep),
            call("var.correction", X, dim, correction=0.5, keepdim=keep),
        ]
        if dim is not None:
            items += [call("amax.default", X, dim, keep), call("amin.default", X, dim, keep)]
            items += [call("logsumexp.default", X, dim or [0], keep)]
        items += [
            call("linalg_vector_norm.default", X, p, dim, keep)
            for p in (2, 1, 0, 3.0, float("inf"), -float("inf"), 0.5)
        ]
    for keep in (False, True):
        items += [call(f"{name}.dim", D, 1, keep) for name in ("max", "min")]
        items += [call(f"{name}.dim", X > 0, -1, keep) for name in ("any", "all")]
        items += [call(f"{name}.dims", X > 0, [0, -1], keep) for name in ("any", "all")]
        items += [
            call(f"{name}.default", D, d, keep)
            for name in ("argmax", "argmin")
            for d in (0, -1, None)
        ]
        items.append(call("prod.dim_int", X, 1, keep))
        items += [call("aminmax.default", X, dim=d, keepdim=keep) for d in (1, None)]
        items += [
            call(f"{n}.dim", X, [1], True, keep) for n in ("var", "std", "var_mean", "std_mean")
        ]
        items += [
            call(f"{n}.correction", X, [1], correction=1, keepdim=keep)
            for n in ("var_mean", "std_mean")
        ]
    for name in ("var", "std", "var_mean", "std_mean"):
        items += [call(f"{name}.default", X), call(f"{name}.default", X, False)]
    return items


_MORE_REDUCTIONS = (
    call("mean.default", X),
    call("mean.default", ints(4), dtype=F32),
    call("mean.dim", floats(3, 50, dtype=F16), [1], depth=50),
    call("sum.default", X, dtype=F64),
    call("sum.dim_IntList", ints(2, 3), [1], dtype=F32),
    call("sum.dim_IntList", bools(2, 3), [1]),
    call("sum.dim_IntList", torch.tensor(2.0), [0]),
    call("max.dim", torch.tensor(2.0), 0),
    call("max.dim", ints(3, 4), 1),
    call("argmax.default", torch.tensor(2.0)),
    call("argmax.default", torch.tensor([[1.0, 3.0, 3.0]]), 1),
    call("any.dims", bools(2, 3), None),
    call("all.dims", bools(2, 3), None),
    call("any.default", torch.tensor([0, 3], dtype=torch.uint8)),
    call("count_nonzero.dim_IntList", ints(3, 4, low=0, high=2), [1]),
    call("_is_all_true.default", bools(4)),
    call("_is_any_true.default", bools(4)),
    call("norm.Scalar", X),
    call("norm.Scalar", X, 1),
    call("norm.ScalarOpt_dim", X, 2, [1], True),
    call("norm.ScalarOpt_dim", X, None, [1]),
    call("norm.ScalarOpt_dim_dtype", X, 2, [1], False, dtype=F64),
    call("norm.ScalarOpt_dtype", X, 2, dtype=F64),
    call("frobenius_norm.dim", X, [1, 2]),
    call("softmax.int", X, -1),
    call("softmax.int", X, 1, F64),
    call("softmax.int", floats(3, 4, dtype=F16), 1, F32),
    call("softmax.int", torch.tensor(1.0), 0),
    call("_softmax.default", X, 1, False),
    call("special_softmax.default", X, 1),
    call("log_softmax.int", X, -1),
    call("_log_softmax.default", X, 0, False),
    call("special_log_softmax.default", X, 1),
    call("cumsum.default", X, 1),
    call("cumsum.default", ints(2, 3, dtype=I32), -1),
    call("cumsum.default", bools(5), 0),
    call("cumsum.default", X, 1, dtype=F64),
    call("cumsum.default", torch.tensor(1.0), 0),
    call("cumprod.default", X, 1),
)

_B, _S = torch.arange(2)[:, None], torch.tensor([[0, 2, 1]])
_WHERE = torch.tensor([[0, 1], [2, 0]])
_INDEXING = (
    call("index.Tensor", X, [None, torch.tensor([0, 2, -1])]),
    call("index.Tensor", X, [_WHERE % 2]),
    call("index.Tensor", X, [_WHERE % 2, _WHERE]),
    call("index.Tensor", X, [None, _WHERE, _WHERE]),
    call("index.Tensor", X, [_WHERE % 2, None, _WHERE]),
    call("index.Tensor", X, [_B, _S]),
    call("index.Tensor", X, [_B, None, _S]),
    call("index.Tensor", X, [None, _S.T, torch.tensor([[0, 3]])]),
    call("index.Tensor", X, [_S.T % 2, torch.tensor([[0, 2]])]),
    call("index.Tensor", X, [torch.tensor([0, 1]), torch.tensor([1, -1])]),
    call("index.Tensor", X, [torch.tensor(1), torch.tensor([1, -1])]),
    call("index.Tensor", X, [torch.tensor(1), None, torch.tensor([1, -1])]),
    call("index.Tensor", X, [torch.tensor(1)]),
    call("index.Tensor", X, [torch.tensor([[True, False, True], [False, True, True]])]),
    call("index.Tensor", X, [torch.tensor([True, False])]),
    call("index.Tensor", X, [None, torch.tensor([True, False, True])]),
    call("index.Tensor", X, [torch.tensor([0, 1]), torch.tensor([True, False, True])]),
    call("_unsafe_index.Tensor", X, [None, torch.tensor([0, 2])]),
    call("index_select.default", X, 1, torch.tensor([2, 0, 2])),
    call("index_select.default", X, -1, torch.tensor(1)),
    call("index_select.default", torch.tensor(3.0), 0, torch.tensor([0])),
    call("gather.default", X, 1, ints(2, 2, 4, low=0, high=3)),
    call("gather.default", X, -1, ints(1, 2, 4, low=0, high=3)),
    call("gather.default", torch.tensor(3.0), 0, torch.tensor(0)),
    call("take_along_dim.default", X, ints(2, 1, 4, low=0, high=3), 1),
    call("take_along_dim.default", X, ints(1, 3, 2, low=0, high=4), -1),
    call("take_along_dim.default", X, torch.tensor([3, 5])),
    call("take.default", X, torch.tensor([[3, 5], [0, -1]])),
    call("embedding.default", floats(7, 3), ints(2, 4, low=0, high=7)),
    call("embedding.default", floats(7, 3), ints(2, dtype=I32, low=0, high=7), 1),
    call("one_hot.default", ints(2, 3, low=0, high=4), 4),
    call("masked_select.default", X, bools(3, 4)),
    call("masked_select.default", floats(3, 1), bools(3, 4)),
    call("nonzero.default", bools(3, 4)),
    call("argwhere.default", ints(3, 4, low=0, high=2)),
    call("nonzero_numpy.default", bools(3, 4)),
    call("where.default", bools(3, 4)),
    call("index_fill.int_Scalar", X, 1, torch.tensor([0, -1]), 3.0),
    call("index_fill.int_Tensor", X, -1, torch.tensor([0]), torch.tensor(2.0)),
    call("isin.Tensor_Tensor", ints(2, 5), torch.tensor([1, 3])),
    call("isin.Tensor_Tensor", ints(2, 5), torch.tensor([1, 3]), invert=True),
)

_IDX = torch.tensor([[0, 2, 1, 0], [1, 0, 2, 2]])
_BASE = floats(3, 4)
_SCATTER = (
    call("scatter.src", _BASE, 0, _IDX, floats(2, 4)),
    call("scatter.src", _BASE, 0, _IDX[:1, :2], floats(2, 4)),
    call("scatter.src", _BASE, 1, torch.tensor([[3], [0]]), floats(3, 4)),
    call("scatter.value", _BASE, 0, _IDX, 2.0),
    call("scatter.value", torch.zeros(2, 4, dtype=torch.int64), -1, _IDX[:, :1], 1),
    call("scatter.reduce", _BASE, 0, _IDX, floats(2, 4), reduce="add"),
    call("scatter.reduce", _BASE, 0, _IDX, floats(2, 4), reduce="multiply"),
    call("scatter.value_reduce", _BASE, 0, _IDX, 2.0, reduce="add"),
    call("scatter.src", torch.tensor(1.0), 0, torch.tensor(0), torch.tensor(2.0)),
    call("scatter_add.default", _BASE, 0, _IDX, floats(2, 4)),
    *(
        call("scatter_reduce.two", _BASE, 0, _IDX, floats(2, 4), kind, include_self=own)
        for kind in ("sum", "prod", "mean", "amax", "amin")
        for own in (True, False)
    ),
    *(
        call("scatter_reduce.two", ints(3, 4), 0, _IDX, ints(2, 4), kind, include_self=own)
        for kind in ("sum", "mean", "amax", "amin")
        for own in (True, False)
    ),
    call("index_put.default", X, [torch.tensor([0, 1])], floats(2, 3, 4)),
    call("index_put.default", X, [torch.tensor([0, 1]), torch.tensor([2, 0])], floats(4)),
    call("index_put.default", X, [None, torch.tensor([2, 0])], floats(4)),
    call("index_put.default", X, [None, torch.tensor([2, 0]), torch.tensor([1, 3])], floats(2, 2)),
    call("index_put.default", X, [torch.tensor([0, 1]), None, torch.tensor([1, 3])], floats(2, 3)),
    call("index_put.default", X, [torch.tensor([0, 0])], floats(4), True),
    call("index_put.default", X, [X > 0], torch.tensor(0.0)),
    call("index_put.default", X, [torch.tensor([True, False])], torch.tensor([0.5])),
    call("index_put.default", X, [torch.tensor([True, False])], floats(1, 3, 4)),
    call("index_put.default", X, [_B, _S], floats(2, 3, 4)),
    call("_unsafe_index_put.default", X, [torch.tensor([0])], floats(1, 3, 4)),
    call("index_add.default", X, 1, torch.tensor([0, 2, 0]), floats(2, 3, 4), alpha=2),
    call("index_copy.default", X, -1, torch.tensor([3, 0]), floats(2, 3, 2)),
    call("slice_scatter.default", X, floats(2, 3, 2), 2, 1, 3),
    call("slice_scatter.default", X, floats(2, 3, 2), 2, -2, 9223372036854775807),
    call("slice_scatter.default", X, floats(2, 3, 4), 2),
    call("slice_scatter.default", X, floats(2, 3, 2), 2, 0, 4, 2),
    call("select_scatter.default", X, floats(2, 4), 1, -1),
    call("select_scatter.default", X, floats(2, 4), 1, 0),
    call("masked_scatter.default", X, X > 0, floats(30)),
    call("masked_scatter.default", X, bools(3, 4), floats(24)),
    call("put.default", X, torch.tensor([1, 5, -1]), floats(3)),
    call("put.default", X, torch.tensor([1, 1]), floats(2), True),
    call("fill.Scalar", X, 2.0),
    call("fill.Tensor", X, torch.tensor(3)),
    call("zero.default", X),
    call("histc.default", torch.tensor([0.0, 1.0, 1.0, 3.0, 3.0, 5.0, -1.0]), 4, 0, 3),
    call("histc.default", floats(20, low=0, high=1), 5, 0, 1),
)

_ORDER = (
    call("sort.default", D, 1),
    call("sort.default", D, -1, True),
    call("sort.default", torch.tensor(1.0)),
    call("sort.stable", ints(2, 7), stable=True, dim=1),
    call("sort.stable", ints(2, 7), stable=True, dim=1, descending=True),
    call("sort.stable", bools(2, 7), stable=True, dim=1),
    call("argsort.default", D, 0),
    call("argsort.stable", ints(2, 7), stable=True, dim=1, descending=True),
    call("msort.default", D),
    call("topk.default", D, 2),
    call("topk.default", D, 2, 1, False),
    call("topk.default", torch.tensor(1.0), 1),
    call("kthvalue.default", D, 2, 1),
    call("kthvalue.default", D, 2, 1, True),
    call("median.dim", D, -1),
    call("median.dim", D, 1, True),
    call("bucketize.Tensor", floats(2, 5), torch.tensor([-1.0, 0.0, 1.0])),
    call("bucketize.Tensor", ints(7), torch.tensor([-1, 0, 2]), right=True, out_int32=True),
    call("bucketize.Tensor", ints(7), torch.tensor([-1, 0, 2])),
    call("bucketize.Scalar", 0.5, torch.tensor([-1.0, 0.0, 1.0])),
    call("searchsorted.Tensor", torch.tensor([-1.0, 0.0, 1.0]), floats(5)),
    call(
        "searchsorted.Tensor",
        torch.tensor([[-1.0, 0.0, 1.0], [0.0, 1.0, 2.0]]),
        floats(2, 5),
        right=True,
    ),
    call("searchsorted.Scalar", torch.tensor([-1.0, 0.0, 1.0]), 0.0, side="right"),
    call("_unique2.default", ints(3, 4), True, True, True),
    call("unique_dim.default", torch.tensor([[1, 2], [0, 3], [1, 2]]), 0, True, True, True),
)

_CREATION = (
    *(
        call(f"{name}.default", [2, 3], dtype=d)
        for name in ("zeros", "ones")
        for d in (F32, F16, torch.bool)
    ),
    call("zeros.default", []),
    *(call(f"{name}_like.default", X) for name in ("zeros", "ones")),
    call("zeros_like.default", X, dtype=torch.int64),
    call("new_zeros.default", X, [2]),
    call("new_ones.default", X, [2], dtype=torch.bool),
    call("empty.memory_format", [2, 3], types_only=True),
    call("empty_like.default", X, types_only=True),
    call("new_empty.default", X, [2], types_only=True),
    call("empty_strided.default", [2, 3], [3, 1], types_only=True),
    call("new_empty_strided.default", X, [2, 3], [3, 1], types_only=True),
    call("empty_permuted.default", [2, 3], [0, 1], types_only=True),
    call("full.default", [2, 3], 2.5),
    call("full.default", [2], 3),
    call("full.default", [], True),
    call("full.default", [2], -torch.inf, dtype=F16),
    call("full.default", [2], torch.finfo(F32).min),
    call("full_like.default", X, 2, dtype=torch.int64),
    call("new_full.default", X, [3], 7),
    call("scalar_tensor.default", 2.5),
    call("scalar_tensor.default", 2, dtype=torch.int64),
    call("arange.default", 5),
    call("arange.default", 5, dtype=F32),
    call("arange.default", 2.5),
    call("arange.default", 0),
    call("arange.start", 2, 7),
    call("arange.start", 2, 7, dtype=F16),
    call("arange.start_step", 7, 0, -2),
    call("arange.start_step", 0, 1, 0.1),
    call("arange.start_step", 0, 8, 2, dtype=I32),
    call("linspace.default", -1.0, 1.0, 7),
    call("linspace.default", 0, 10, 4, dtype=F64),
    call("linspace.default", 3, 5, 1),
    call("eye.default", 3),
    call("eye.m", 3, 4, dtype=torch.bool),
    call("tril_indices.default", 3, 4, 1),
    call("triu_indices.default", 4, 3, -1, dtype=I32),
    *(
        call(f"{name}_window.{kind}", 8, *args)
        for name in ("hann", "hamming", "blackman")
        for kind, args in (("default", ()), ("periodic", (False,)))
    ),
)

_RANDOM = tuple(
    call(target, *args, types_only=True)
    for target, args in (
        ("rand.default", ([2, 3],)),
        ("rand_like.default", (X,)),
        ("randn.default", ([2, 3],)),
        ("randn_like.default", (X,)),
        ("uniform.default", (X, -1.0, 1.0)),
        ("normal_functional.default", (X, 1.0, 2.0)),
        ("normal.float_float", (0.0, 1.0, [3])),
        ("normal.Tensor_float", (X, 1.0)),
        ("normal.float_Tensor", (0.0, X.abs())),
        ("normal.Tensor_Tensor", (X, X.abs())),
        ("randint.default", (5, [2, 3])),
        ("randint.low", (2, 5, [2, 3])),
        ("randint_like.default", (X, 5)),
        ("randint_like.low_dtype", (X, 2, 5)),
        ("bernoulli.default", (X.abs() / 2,)),
        ("bernoulli.p", (X, 0.3)),
        ("bernoulli.Tensor", (X, X.abs() / 2)),
    )
)

_SEEDED = tuple(
    call(f"{name}.generator", [2, 3], generator=None, types_only=True) for name in ("rand", "randn")
)

CALLS: tuple[Call, ...] = (
    *_reductions(),
    *_MORE_REDUCTIONS,
    *_INDEXING,
    *_SCATTER,
    *_ORDER,
    *_CREATION,
    *_RANDOM,
    *_SEEDED,
)
