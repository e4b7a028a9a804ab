"""What attention's softmax can be replaced by: one table of data.

A variant says what it needs, at which parameters it changes nothing, and how it is built. Those
that act on scores alone become factors of the queries; those that turn scores into other weights
become the operator's normalizer or modifier; gates multiply its result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from regraft.ir.graph import Node, Value
from regraft.ir.ops import activation, arithmetic, functions, linalg, reshaping
from regraft.passes.attention.site import Site

Options = Mapping[str, float]

NO_SINK = -1e4
"""A sink of this or less takes no weight, nor a gradient: none is added."""

_SHARED_SIZE = 4
"""Hidden size of the small network of `principled`."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One replacement.

    Args:
        name: As the option `variant` has it.
        about: What the weights become, for the documentation.
        build: Builds what replaces the result of an attention.
        options: Its options with their defaults.
        identity: Whether it changes nothing with these options.
        misfit: Why it does not fit a node, or "".
        source: The paper.
    """

    name: str
    about: str
    build: Callable[[Site, Options], Value]
    options: Options = field(default_factory=dict)
    identity: Callable[[Options], bool] = lambda options: False
    misfit: Callable[[Node], str] = lambda node: ""
    source: str = ""


def _needs_causal(node: Node) -> str:
    if node.attrs["causal_offset"] is None or node.attrs["window"][1] != 0:
        return "it is not known to be causal: later queries would decide what earlier ones see"
    if node.attrs["causal_offset"] != 0:
        return "its queries begin after the first key: what earlier queries chose is not at hand"
    return ""


def _has_sinks(node: Node) -> str:
    return "" if node.operand("sinks") is None else "it has sinks already"


def _is_unclipped(o: Options) -> bool:
    return o["gamma"] == 0 and o["zeta"] == 1 and o["alpha"] == 0


def _clipped(s: Site, o: Options) -> Value:
    if _is_unclipped(o):  # the softmax keeps rows that a mask lowers as a whole
        return s.attend()
    return s.weigh("clipped", o["gamma"], o["zeta"], o["alpha"])


def _gated(s: Site, o: Options) -> Value:
    share = o["share"]
    weights = s.parameter("gate", np.zeros((s.heads, s.size)))
    bias = s.parameter("gate_bias", np.full(s.heads, math.log(share / (1 - share))))
    b = s.b
    logits = b.op(reshaping.unsqueeze, s.dot(s.operand("q"), weights), axes=(3,))
    gate = s.sigmoid(s.add(logits, s.per_head(bias)))
    return s.mul(s.attend(), s.mul(gate, s.number_of(1 / share)))


def _softplus(s: Site, o: Options) -> Value:
    """Unit queries and keys; log d times log n scales the scores.

    Source: Gao et al., Softplus Attention with Re-weighting, 2025, eq. 5 to 8.
    """
    q = s.mul(s.unit(s.operand("q")), s.log_keys())
    k = s.unit(s.operand("k"))
    scale = math.log(s.size)
    return s.weigh("softplus", o["power"], o["offset"], scale=scale, q=q, k=k)


def _entmax(s: Site, o: Options) -> Value:
    if not o["learned"]:
        return s.attend() if o["alpha"] == 1 else s.weigh("entmax", o["alpha"])
    # alpha = 1 + sigmoid(a), between softmax and sparsemax; Correia et al. 2019, section 4
    share = min(max(o["alpha"] - 1, 1e-3), 1 - 1e-3)
    a = s.parameter("alpha", np.full(s.heads, math.log(share / (1 - share))))
    return s.weigh("entmax", alpha=s.add(s.sigmoid(a), s.number_of(1.0)))


def _sinks(s: Site, o: Options) -> Value:
    if _has_no_sink(o):  # it would only take the rows that a mask lowers as a whole
        return s.attend()
    return s.attend({"sinks": s.parameter("sinks", np.full(s.heads, o["sink"]))})


def _has_no_sink(o: Options) -> bool:
    return o["sink"] <= NO_SINK


def _off_by_one(s: Site, o: Options) -> Value:
    return s.attend({"sinks": s.b.constant(np.zeros(s.heads), s.dtype)})


def _qk_norm(s: Site, o: Options) -> Value:
    gains = [s.parameter(f"{name}_norm", np.full(s.size, o["gain"])) for name in "qk"]
    q, k = (s.rms_norm(s.operand(n), gain) for n, gain in zip("qk", gains, strict=True))
    return s.attend({"q": q, "k": k})


def _softcap(s: Site, o: Options) -> Value:
    return s.attend(softcap=o["cap"] or s.node.attrs["softcap"])  # 0 leaves the model's own


def _scalable(s: Site, o: Options) -> Value:
    slope = s.parameter("slope", np.full(s.heads, o["slope"]))
    factor = s.add(s.mul(s.per_head(slope), s.log_keys()), s.number_of(o["bias"]))
    return s.attend({"q": s.mul(s.operand("q"), factor)})


def _temperature(s: Site, o: Options) -> Value:
    return s.attend(scale=s.node.attrs["scale"] / o["tau"])


def _principled(s: Site, o: Options) -> Value:
    """A temperature of the query's content and of the number of keys, one of the values' content.

    Source: Zhang et al., Selective Attention: Enhancing Transformer through Principled Context
    Control, 2024, section 3.
    """
    beta = s.parameter("beta", np.full(s.heads, o["beta"]))
    b = s.b
    fall = b.op(functions.exp, b.op(arithmetic.neg, b.op(functions.exp, s.per_head(beta))))
    place = s.add(s.mul(fall, s.log_keys()), s.number_of(1.0))
    q = s.mul(s.mul(s.operand("q"), _token_factor(s, "q")), place)
    return s.attend({"q": q, "v": s.mul(s.operand("v"), _token_factor(s, "v"))})


def _token_factor(s: Site, name: str) -> Value:
    """Returns 1 + tanh(a small network of each token), 1 to begin with; [B, H, S, 1]."""
    x = s.operand(name)
    size = (x.shape or ())[3]
    rng = np.random.default_rng(s.number)
    drawn = rng.standard_normal((int(str(size)), _SHARED_SIZE)) / math.sqrt(int(str(size)))
    hidden = s.tanh(s.b.op(linalg.matmul, x, s.parameter(f"{name}_in", drawn)))
    out = s.b.op(linalg.matmul, hidden, s.parameter(f"{name}_out", np.zeros((_SHARED_SIZE, 1))))
    return s.add(s.tanh(out), s.number_of(1.0))


def _selective(s: Site, o: Options) -> Value:
    return s.attend(
        modifier="selective", modifier_parameters=(float(o["budget"]),), softmax_dtype=s.wide
    )


def _threshold(s: Site, o: Options) -> Value:
    gain = s.b.constant(np.ones(s.size), s.dtype)
    q, k = (s.rms_norm(s.operand(n), gain) for n in "qk")
    logits = s.dot(q, s.parameter("forget", np.zeros((s.heads, s.size))))
    softplus = s.b.op(activation.softplus, s.b.op(arithmetic.neg, logits))
    return s.attend(
        {"q": q, "k": k, "gates": s.b.op(arithmetic.neg, softplus)},
        modifier="threshold",
        softmax_dtype=s.wide,
    )


def _table(*variants: Variant) -> Mapping[str, Variant]:
    return {variant.name: variant for variant in variants}


VARIANTS: Mapping[str, Variant] = _table(
    Variant(
        "stablemax", "x + 1 or 1 / (1 - x), over its sum", lambda s, o: s.weigh("stablemax"),
        source="Prieto et al., Grokking at the Edge of Numerical "
        "Stability, 2025",
    ),
    Variant(
        "clipped", "clip((zeta - gamma) softmax + gamma, 0, 1), gamma less alpha / n", _clipped,
        {"gamma": 0.0, "zeta": 1.0, "alpha": 0.0},
        _is_unclipped,
        source="Bondarenko et al., Quantizable Transformers, 2023",
    ),
    Variant(
        "gated", "softmax; the result of each head times sigmoid(gate of its query) / share",
        _gated, {"share": 0.5}, lambda o: True,
        source="Bondarenko et al., Quantizable Transformers, 2023",
    ),
    Variant(
        "softplus", "softplus of the cosine times log d log n, over its sum (LSSA)", _softplus,
        {"power": 0.0, "offset": 1.0},
        source="Gao et al., Softplus Attention with Re-weighting, 2025",
    ),
    Variant(
        "softplus-sharp", "the same, relu(n A - offset)^power over its sum (LSSAR)", _softplus,
        {"power": 3.0, "offset": 1.0},
        source="Gao et al., Softplus Attention with Re-weighting, 2025",
    ),
    Variant(
        "entmax", "alpha-entmax: sparse weights; alpha fixed, or learned per head", _entmax,
        {"alpha": 1.5, "learned": 0.0}, lambda o: o["alpha"] == 1 and not o["learned"],
        source="Correia et al., Adaptively Sparse Transformers, 2019",
    ),
    Variant(
        "sparsemax", "alpha-entmax with alpha 2", lambda s, o: s.weigh("entmax", 2.0),
        source="Martins and Astudillo, From Softmax to Sparsemax, 2016",
    ),
    Variant(
        "off-by-one", "exp(x) / (1 + sum)", _off_by_one, misfit=_has_sinks,
        source="Miller, Attention Is Off By One, 2023",
    ),
    Variant(
        "sinks", "a learned further score per head joins the sum", _sinks, {"sink": 0.0},
        _has_no_sink, _has_sinks,
        source="Xiao et al., Efficient Streaming Language Models with Attention Sinks, 2024",
    ),
    Variant(
        "qk-norm", "softmax of queries and keys of mean square gain^2", _qk_norm, {"gain": 1.0},
        source="Henry et al., Query-Key Normalization for Transformers, 2020",
    ),
    Variant(
        "softcap", "softmax of cap tanh(x / cap)", _softcap, {"cap": 50.0},
        lambda o: o["cap"] == 0, source="Gemma Team, Gemma 2, 2024",
    ),
    Variant(
        "scalable", "softmax of (slope log n + bias) x, slope learned per head", _scalable,
        {"slope": 0.0, "bias": 1.0}, lambda o: o["slope"] == 0 and o["bias"] == 1,
        source="Nakanishi, Scalable-Softmax Is Superior for Attention, 2025",
    ),
    Variant(
        "temperature", "softmax of x / tau", _temperature, {"tau": 1.0}, lambda o: o["tau"] == 1,
        source="Zhou et al., Length-Induced Embedding Collapse, 2024",
    ),
    Variant(
        "principled", "softmax of x times factors of the query and of log n; values as well",
        _principled, {"beta": 1.5}, lambda o: o["beta"] >= 10,
        source="Zhang et al., Selective Attention: Enhancing Transformer through Principled "
        "Context Control, 2024",
    ),
    Variant(
        "top-k", "softmax over the k largest scores", lambda s, o: s.weigh("top_k", o["k"]),
        {"k": 32.0}, source="Gupta et al., Memory-efficient Transformers via Top-k Attention, 2021",
    ),
    Variant(
        "selective", "softmax of x less what earlier queries chose by the first head", _selective,
        {"budget": 0.0}, misfit=_needs_causal,
        source="Leviathan et al., Selective Attention Improves Transformer, 2025",
    ),
    Variant(
        "threshold", "softmax over positive scores, each with its learned distance", _threshold,
        source="Opper et al., TRA: Better Length Generalisation with Threshold Relative "
        "Attention, 2025",
    ),
    Variant(
        "two-pass", "the softmax, mantissa and exponent apart", lambda s, o: s.weigh("two_pass"),
        identity=lambda o: True,
        source="Dukhan and Ablavatski, The Two-Pass Softmax Algorithm, 2020",
    ),
)  # fmt: skip
"""All variants by name."""
