"""Every module class of `torch.nn` at a small size, with the arguments that it is called with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.frontends.torch.tensors import distinct, floats, ints

F64 = torch.float64


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a class.

    Args:
        kind: Name of the class.
        make: Returns a module.
        args: What it is called with.
    """

    kind: str
    make: Callable[[], nn.Module]
    args: tuple[Any, ...]

    def __str__(self) -> str:
        return self.kind


NOT_CALLED = {
    "Container": "deprecated base class",
    "DataParallel": "runs on several GPUs",
    "Module": "base class",
    "ModuleDict": "has no forward",
    "ModuleList": "has no forward",
    "ParameterDict": "has no forward",
    "ParameterList": "has no forward",
    "RNNBase": "base class",
    "RNNCellBase": "base class",
}
"""Classes of `torch.nn` that nobody calls, with the reason."""


IN_TORCH_ALONE = frozenset({"FractionalMaxPool2d", "FractionalMaxPool3d"})
"""Classes that no ONNX operator computes: they come back as PyTorch modules alone."""

REFUSED = {
    "AdaptiveLogSoftmaxWithLoss": "decides by the content of a tensor",
    "CTCLoss": "cannot be exported",
    "GaussianNLLLoss": "decides by the content of a tensor",
}
"""Classes that `torch.export` refuses, and what it says."""


def use(kind: str, *options: Any, given: Sequence[Any], **keywords: Any) -> Use:
    """Returns a use of `torch.nn.<kind>(*options, **keywords)`."""
    return Use(kind, lambda: getattr(nn, kind)(*options, **keywords), tuple(given))


X1, X2, X3 = floats(2, 4, 8), floats(2, 4, 8, 6), floats(2, 4, 6, 4, 8)
POINTS, LABELS = floats(3, 5), torch.tensor([1, 0, 4])
PROBABILITIES = torch.sigmoid(floats(3, 5))
SIGNS = torch.tensor([1.0, -1.0, 1.0])
SEQ, STEPS = floats(2, 3, 4), floats(5, 2, 4)
LOG_PROBABILITIES = torch.log_softmax(floats(6, 2, 5), -1)

_POINTWISE = tuple(
    use(kind, *options, given=(POINTS,))
    for kind, *options in (
        ("AlphaDropout",), ("CELU", 0.7), ("Dropout",), ("ELU", 0.7), ("GELU",),
        ("GELU", "tanh"), ("Hardshrink", 0.3), ("Hardsigmoid",), ("Hardswish",),
        ("Hardtanh", -0.4, 0.6), ("Identity",), ("LeakyReLU", 0.2), ("LogSigmoid",),
        ("LogSoftmax", 1), ("Mish",), ("PReLU",), ("RReLU",), ("ReLU",), ("ReLU6",), ("SELU",),
        ("SiLU",), ("Sigmoid",), ("Softmax", 1), ("Softmin", 1), ("Softplus", 2.0, 0.5),
        ("Softshrink", 0.2), ("Softsign",), ("Tanh",), ("Tanhshrink",), ("Threshold", 0.1, 0.5),
        ("Flatten",), ("Unflatten", 1, (5, 1)), ("LayerNorm", 5), ("RMSNorm", 5), ("Linear", 5, 3),
    )
)  # fmt: skip

_POOLS = tuple(
    use(f"{kind}{rank}d", *options, given=(distinct(*x.shape),))
    for rank, x in ((1, X1), (2, X2), (3, X3))
    for kind, *options in (
        ("AdaptiveAvgPool", 2), ("AdaptiveAvgPool", 3), ("AdaptiveMaxPool", 2),
        ("AdaptiveMaxPool", 3), ("AvgPool", 2), ("AvgPool", 3, 2, 1, True, False), ("LPPool", 2, 2),
        ("LPPool", 1.0, 3, 2), ("MaxPool", 2), ("MaxPool", 3, 2, 1, 1, True),
    )
)  # fmt: skip

_PADS = tuple(
    use(f"{kind}Pad{rank}d", (1, 2) * rank, *options, given=(x,))
    for rank, x in ((1, X1), (2, X2), (3, X3))
    for kind, *options in (
        ("Circular",), ("Constant", 0.5), ("Reflection",), ("Replication",), ("Zero",),
    )
)  # fmt: skip

_CONVS = tuple(
    use(f"{lazy}Conv{kind}{rank}d", *sizes, *options, given=(x,), **keywords)
    for rank, x in ((1, X1), (2, X2), (3, X3))
    for lazy, sizes in (("", (4, 6)), ("Lazy", (6,)))
    for kind, options, keywords in (
        ("", (3, 2, 1), {}),
        ("", (3,), {"padding": "same", "dilation": 2, "groups": 2, "padding_mode": "circular"}),
        ("Transpose", (3, 2, 1, 1), {}),
        ("Transpose", (3,), {"groups": 2, "bias": False, "dilation": 2}),
    )
)

_NORMS = (
    *(
        use(f"{lazy}{kind}Norm{rank}d", *(() if lazy else (4,)), given=(x,), **keywords)
        for rank, x in ((1, X1), (2, X2), (3, X3))
        for lazy in ("", "Lazy")
        for kind, keywords in (
            ("Batch", {}),
            ("Batch", {"track_running_stats": False}),
            ("Instance", {"affine": True}),
            ("Instance", {"track_running_stats": True}),
        )
    ),
    use("BatchNorm1d", 5, given=(POINTS,)),
    use("SyncBatchNorm", 4, given=(X2,)),
    use("GroupNorm", 2, 4, given=(X2,)),
    use("LocalResponseNorm", 3, given=(X2,)),
    use("CrossMapLRN2d", 3, given=(X2,)),
)

_IMAGES = (
    use("ChannelShuffle", 2, given=(X2,)),
    use("Dropout1d", given=(X1,)),
    use("Dropout2d", given=(X2,)),
    use("Dropout3d", given=(X3,)),
    use("FeatureAlphaDropout", given=(X2,)),
    use("Fold", (4, 5), (2, 2), given=(floats(2, 12, 12),)),
    use("Unfold", (2, 3), 1, 1, 2, given=(X2,)),
    use("FractionalMaxPool2d", 2, (3, 2), given=(distinct(2, 4, 8, 6),),
        _random_samples=torch.full((2, 4, 2), 0.3)),
    use("FractionalMaxPool3d", 2, (2, 2, 3), given=(distinct(2, 4, 6, 4, 8),),
        _random_samples=torch.full((2, 4, 3), 0.3)),
    use("MaxUnpool1d", 2, given=nn.MaxPool1d(2, return_indices=True)(distinct(2, 4, 8))),
    use("MaxUnpool2d", 2, given=nn.MaxPool2d(2, return_indices=True)(distinct(2, 4, 8, 6))),
    use("MaxUnpool3d", 2, given=nn.MaxPool3d(2, return_indices=True)(distinct(2, 4, 6, 4, 8))),
    use("PixelShuffle", 2, given=(X2,)),
    use("PixelUnshuffle", 2, given=(X2,)),
    use("Softmax2d", given=(X2,)),
    use("Upsample", scale_factor=2, given=(X2,)),
    use("Upsample", scale_factor=2, mode="bicubic", given=(X2,)),
    use("Upsample", (5, 7), mode="bilinear", align_corners=True, given=(X2,)),
    use("Upsample", scale_factor=1.5, mode="linear", given=(X1,)),
    use("Upsample", (5, 7, 3), mode="trilinear", given=(X3,)),
    use("Upsample", (5, 7), mode="nearest-exact", given=(X2,)),
    use("UpsamplingBilinear2d", scale_factor=2, given=(X2,)),
    use("UpsamplingNearest2d", (5, 7), given=(X2,)),
)  # fmt: skip

_PAIRS = (
    use("Bilinear", 5, 4, 3, given=(POINTS, floats(3, 4))),
    use("CosineSimilarity", given=(POINTS, floats(3, 5))),
    use("PairwiseDistance", given=(POINTS, floats(3, 5))),
    use("PairwiseDistance", 1.0, 1e-6, True, given=(POINTS, floats(3, 5))),
    use("GLU", given=(floats(3, 6),)),
    use("LazyLinear", 3, given=(POINTS,)),
    use("Sequential", nn.Linear(5, 4), nn.ReLU(), given=(POINTS,)),
    use("Embedding", 7, 4, padding_idx=1, given=(ints(2, 3, low=0, high=7),)),
    use("Embedding", 7, 4, given=(ints(2, 3, low=0, high=7),), max_norm=None, sparse=True),
    *(
        use("EmbeddingBag", 7, 4, mode=mode, given=(ints(2, 3, low=0, high=7),))
        for mode in ("sum", "mean", "max")
    ),
    *(
        use("EmbeddingBag", 7, 4, mode=mode,
            given=(ints(6, low=0, high=7), torch.tensor([0, 2, 2, 5])))
        for mode in ("sum", "mean", "max")
    ),
    use("EmbeddingBag", 7, 4, mode="sum", include_last_offset=True,
        given=(ints(6, low=0, high=7), torch.tensor([0, 2, 2, 5, 6]), floats(6))),
    use("EmbeddingBag", 7, 4, mode="mean", padding_idx=2,
        given=(torch.tensor([0, 2, 3, 2, 2, 6]), torch.tensor([0, 3]))),
)  # fmt: skip

_LOSSES = (
    use("AdaptiveLogSoftmaxWithLoss", 5, 9, [3, 6], given=(POINTS, torch.tensor([1, 4, 8]))),
    use("BCELoss", given=(PROBABILITIES, torch.rand(3, 5))),
    use("BCEWithLogitsLoss", pos_weight=torch.rand(5), given=(POINTS, torch.rand(3, 5))),
    use("CTCLoss", given=(LOG_PROBABILITIES, torch.tensor([[1, 2, 3], [2, 2, 4]]),
                          torch.tensor([6, 5]), torch.tensor([3, 2]))),
    use("CosineEmbeddingLoss", 0.1, given=(POINTS, floats(3, 5), SIGNS)),
    use("CrossEntropyLoss", label_smoothing=0.1, given=(POINTS, LABELS)),
    use("CrossEntropyLoss", given=(POINTS, PROBABILITIES)),
    use("CrossEntropyLoss", ignore_index=0, weight=torch.rand(5), given=(POINTS, LABELS)),
    use("GaussianNLLLoss", given=(POINTS, floats(3, 5), torch.rand(3, 5) + 0.1)),
    use("HingeEmbeddingLoss", given=(floats(3), SIGNS)),
    use("HuberLoss", delta=0.3, given=(POINTS, floats(3, 5))),
    use("KLDivLoss", "batchmean", given=(POINTS.log_softmax(1), POINTS.softmax(1))),
    use("KLDivLoss", reduction="sum", log_target=True,
        given=(POINTS.log_softmax(1), floats(3, 5).log_softmax(1))),
    use("L1Loss", given=(POINTS, floats(3, 5))),
    use("LinearCrossEntropyLoss", 5, 4, given=(POINTS, torch.tensor([1, 0, 3]))),
    use("MSELoss", reduction="none", given=(POINTS, floats(3, 5))),
    use("MarginRankingLoss", 0.2, given=(floats(3), floats(3), SIGNS)),
    use("MultiLabelMarginLoss", given=(POINTS, torch.tensor([[1, 3, -1, 0, 2], [0, -1, 1, 2, 3],
                                                             [4, 2, 1, -1, 0]]))),
    use("MultiLabelSoftMarginLoss", given=(POINTS, torch.rand(3, 5).round())),
    use("MultiMarginLoss", given=(POINTS, LABELS)),
    use("NLLLoss", given=(POINTS.log_softmax(1), LABELS)),
    use("NLLLoss2d", given=(X2.log_softmax(1), ints(2, 8, 6, low=0, high=4))),
    use("PoissonNLLLoss", full=True, given=(POINTS, torch.rand(3, 5) * 3)),
    use("SmoothL1Loss", beta=0.3, given=(POINTS, floats(3, 5))),
    use("SoftMarginLoss", given=(floats(3), SIGNS)),
    use("TripletMarginLoss", given=(POINTS, floats(3, 5), floats(3, 5))),
    use("TripletMarginLoss", swap=True, given=(POINTS, floats(3, 5), floats(3, 5))),
    use("TripletMarginWithDistanceLoss", given=(POINTS, floats(3, 5), floats(3, 5))),
)  # fmt: skip


def _net(kind: str, *options: Any, **keywords: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(nn, kind)(*options, **keywords)


_RECURRENT = (
    *(
        Use(kind, _net(kind, 4, 3, num_layers=2, bidirectional=True, **keywords), (STEPS,))
        for kind in ("GRU", "LSTM", "RNN")
        for keywords in ({}, {"batch_first": True, "bias": False})
    ),
    use("RNN", 4, 3, nonlinearity="relu", given=(STEPS, floats(1, 2, 3))),
    use("LSTM", 4, 3, proj_size=2, given=(STEPS, (floats(1, 2, 2), floats(1, 2, 3)))),
    use("LSTM", 4, 3, given=(floats(5, 4),)),
    use("GRUCell", 4, 3, given=(floats(2, 4), floats(2, 3))),
    use("LSTMCell", 4, 3, given=(floats(2, 4), (floats(2, 3), floats(2, 3)))),
    use("RNNCell", 4, 3, given=(floats(2, 4),)),
)

_SMALL = {"dim_feedforward": 6, "batch_first": True}
_ATTENTION = (
    use("MultiheadAttention", 4, 2, given=(SEQ, SEQ, SEQ), batch_first=True),
    use("MultiheadAttention", 4, 2, given=(STEPS, STEPS, STEPS), add_bias_kv=True),
    use("MultiheadAttention", 4, 2, given=(STEPS, STEPS, STEPS), add_zero_attn=True),
    use("MultiheadAttention", 4, 2, given=(floats(2, 5, 4), floats(2, 3, 6), floats(2, 3, 7)),
        kdim=6, vdim=7, bias=False, batch_first=True),
    use("TransformerEncoderLayer", 4, 2, given=(SEQ,), **_SMALL),
    use("TransformerEncoderLayer", 4, 2, given=(SEQ,), norm_first=True, activation="gelu",
        **_SMALL),
    use("TransformerDecoderLayer", 4, 2, given=(SEQ, floats(2, 5, 4)), **_SMALL),
    Use("TransformerEncoder", lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 6), 2), (STEPS,)),
    Use("TransformerDecoder", lambda: nn.TransformerDecoder(
        nn.TransformerDecoderLayer(4, 2, 6), 2), (STEPS, floats(3, 2, 4))),
    use("Transformer", 4, 2, 1, 1, 6, given=(STEPS, floats(3, 2, 4))),
)  # fmt: skip

USES = (
    *_POINTWISE, *_POOLS, *_PADS, *_CONVS, *_NORMS, *_IMAGES, *_PAIRS, *_LOSSES, *_RECURRENT,
    *_ATTENTION,
)  # fmt: skip
