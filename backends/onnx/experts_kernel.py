"""Which layers of experts ONNX Runtime's kernel computes."""

from __future__ import annotations

from regraft.ir.dims import DimLike
from regraft.ir.graph import Node
from regraft.ir.ops.moe_hidden import is_bounded
from regraft.ir.types import DType

# its `gelu` is the tanh approximation
PLAIN = {"relu": "relu", "gelu_tanh": "gelu", "silu": "silu"}
GATED = {"silu": 1.0, "quick_gelu": 1.702}
"""Alpha of the swish on the gate."""

_UP, _GATE, _SCORE_BIAS, _GAIN = 2, 4, 8, 9


def sizes_of(node: Node) -> tuple[DimLike, ...] | None:
    """Returns the sizes of the first matrices, [E, F, D]."""
    up = node.inputs[_UP]
    return None if up is None else up.shape


def has_kernel(node: Node) -> bool:
    """Returns whether the runtime's kernel computes what a node of `moe` means."""
    attrs, x = node.attrs, node.inputs[0]
    return (
        attrs["activation"] in (PLAIN if node.inputs[_GATE] is None else GATED)
        and attrs["scoring"] in ("softmax", "topk_softmax", "sigmoid")
        and attrs["select"] == "top_k"
        and not attrs["capacity"]
        and not attrs["weigh_input"]
        and not attrs["norm_epsilon"]
        and (attrs["bounds"] == "clip" or not attrs["limit"])
        and attrs["gate_limit"] in (0, attrs["limit"])
        and all(node.inputs[idx] is None for idx in (_SCORE_BIAS, _GAIN))
        and x is not None
        and x.rank in (2, 3)
        and x.shape == node.output.shape
        and x.dtype in (DType.F32, DType.F16)
        and node.inputs[1] is not None
        and node.inputs[1].dtype is x.dtype
        and (node.inputs[_GATE] is not None or not is_bounded(attrs))
        and all(isinstance(size, int) for size in sizes_of(node) or (None,))
    )
