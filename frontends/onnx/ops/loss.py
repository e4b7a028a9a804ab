"""Importers of losses."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.onnx.importer import Import, NodeImport
from regraft.ir.graph import Value
from regraft.ir.ops import loss, softmax


def _nll(item: NodeImport, log_probs: Value) -> Value:
    return item.b.op(
        loss.nll_loss,
        log_probs,
        *item.inputs[1:],
        reduction=item.attr("reduction", "mean"),
        ignore_index=item.attr("ignore_index"),
    )


def _cross_entropy(item: NodeImport) -> Sequence[Value]:
    log_probs = item.b.op(softmax.log_softmax, item.require(0), axis=1)
    return _nll(item, log_probs), log_probs


IMPORTS: tuple[Import, ...] = (
    Import("NegativeLogLikelihoodLoss", {12: lambda item: _nll(item, item.require(0))}),
    Import("SoftmaxCrossEntropyLoss", {12: _cross_entropy}),
)
