"""Finds cross-entropies: of a linear layer whose logits nothing else reads, and of any logits.

`nll_loss(log_softmax(x @ w), labels)`, and each row's `-log_softmax(x @ w)[label]` as PyTorch's
export writes it out, are one call of `kernels.linear_cross_entropy`: the logits of all tokens and
words are never in memory. Between product and softmax there may be casts and what moves rows.
Where something else reads the logits, or no stored matrix makes them, softmax and loss are one
call of `kernels.cross_entropy`.
"""

from __future__ import annotations

from regraft.backends.torch import peepholes
from regraft.backends.triton.kernel_calls import fits
from regraft.ir.dims import DimLike
from regraft.ir.graph import Node, Value
from regraft.ir.ops.arithmetic import neg
from regraft.ir.ops.cast import cast
from regraft.ir.ops.gathering import gather_elements
from regraft.ir.ops.linalg import matmul
from regraft.ir.ops.loss import nll_loss
from regraft.ir.ops.reshaping import reshape
from regraft.ir.ops.softmax import log_softmax
from regraft.ir.types import DType

LOSSES = frozenset({nll_loss, neg})
_WIDE = frozenset({DType.F32, DType.F64})


def labels_of(node: Node) -> Value | None:
    """Returns the labels of a loss, one per row."""
    if node.op is nll_loss:
        return node.inputs[1]
    picking = _picking(node)
    index = _maker(picking[-1].inputs[1]) if picking else None
    return None if index is None else index.inputs[0]


def softmax_of(node: Node) -> tuple[list[Node], Node] | None:
    """Returns what stands between a loss and its softmax over rows of words, and the softmax."""
    taken = _picking(node)
    if taken is None or node.output.dtype is not DType.F32:
        return None
    value = (taken[-1] if taken else node).inputs[0]
    if value is None or value.shape is None or len(value.shape) != 2:
        return None
    softmax = _maker(value)
    if softmax is None or softmax.op is not log_softmax or softmax.attrs["axis"] not in (1, -1):
        return None
    return taken, softmax


def softmax_in(node: Node, inside: set[Node]) -> list[Node] | None:
    """Returns the nodes that a loss of logits in memory takes in, the softmax last."""
    found = softmax_of(node)
    if found is None:
        return None
    taken, softmax = found
    logits = logits_of(softmax)
    widened = _maker(softmax.inputs[0])
    if widened is not None and logits is not softmax.inputs[0]:
        taken = [*taken, widened]
    taken = [*taken, softmax]
    is_free = softmax.output.num_uses == 1 and inside.issuperset(taken)
    return taken if is_free and fits(logits) else None


def logits_of(softmax: Node) -> Value | None:
    """Returns what a softmax reads, or what it was before a cast that nothing else reads."""
    widened = _maker(softmax.inputs[0])
    if widened is not None and _widens(widened) and widened.output.num_uses == 1:
        return widened.inputs[0] if fits(widened.inputs[0]) else softmax.inputs[0]
    return softmax.inputs[0]


def head_of(node: Node, inside: set[Node]) -> list[Node] | None:
    """Returns the nodes that a loss takes in, the product last, where a kernel does all."""
    found = softmax_of(node)
    if found is None:
        return None
    taken, softmax = found
    value = softmax.output
    words = _width(value)
    while True:
        made = _maker(value)
        if made is None or value.num_uses != 1 or _width(value) != words:
            return None
        taken.append(made)
        if made.op is matmul:
            break
        source = made.inputs[0]
        if source is None or (made is not softmax and made.op is not reshape and not _widens(made)):
            return None
        value = source
    is_head = peepholes.is_stored_matrix(made.inputs[1]) and fits(*made.inputs)
    return taken if is_head and inside.issuperset(taken) else None


def _picking(node: Node) -> list[Node] | None:
    """Returns the nodes between a loss and the logarithms that it picks; None: it is no loss."""
    if node.op is nll_loss:
        return [] if node.inputs[2] is None else None
    if node.op is not neg:
        return None
    moved = _maker(node.inputs[0])
    picked = None if moved is None or moved.op is not reshape else _maker(moved.inputs[0])
    if moved is None or picked is None or picked.op is not gather_elements:
        return None
    index = _maker(picked.inputs[1])
    if picked.attrs["axis"] not in (1, -1) or index is None or index.op is not reshape:
        return None
    rows = node.output.shape
    labels = index.inputs[0]
    is_each = rows is not None and len(rows) == 1 and picked.output.shape == (*rows, 1)
    is_row = labels is not None and labels.shape == rows and labels.dtype is DType.I64
    is_alone = all(each.output.num_uses == 1 for each in (moved, picked, index))
    # the index comes before what picks with it: the last is where the logarithms are
    return [moved, index, picked] if is_each and is_row and is_alone else None


def _width(value: Value) -> DimLike | None:
    return None if value.shape is None else value.shape[-1]


def _maker(value: Value | None) -> Node | None:
    return None if value is None else value.producer


def _widens(node: Node) -> bool:
    """Whether a node is a cast to at least f32, as sums in the kernel are."""
    return node.op is cast and node.output.dtype in _WIDE
