"""Traps of the file: versions that the target does not load, sizes and outputs badly declared."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from regraft.backends.onnx.emitter import MAX_OPSET
from regraft.backends.onnx.opsets import MAX_IR_VERSION
from regraft.ir.constants import is_constant, opaque
from regraft.ir.dims import Dim
from regraft.ir.types import DType
from regraft.ir.weights import contains_nan
from regraft.lint.rule import LintRule, Severity, Subject, value_name

_ORT = ("ort-cpu", "ort-cuda")
_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_LARGE_BYTES = 1 << 16
_GENERATED = re.compile(r"(.+_)?dim_\d+|unk__\d+|\w*_dynamic_axes_\d+|s\d+|d\d+")


def _opset(subject: Subject) -> Iterator[str]:
    opset = subject.module.meta.get("onnx.opset")
    if opset is not None and opset > MAX_OPSET:
        yield f"the model is written for opset {opset}, the newest that loads is {MAX_OPSET}"


def _ir_version(subject: Subject) -> Iterator[str]:
    version = subject.module.meta.get("onnx.ir_version")
    if version is not None and version > MAX_IR_VERSION:
        yield f"the file has IR version {version}, the newest that loads is {MAX_IR_VERSION}"


def _unknown_operators(subject: Subject) -> Iterator[str]:
    for node in subject.module.graph.walk():
        if node.op is opaque:
            domain = node.attrs["dialect"].removeprefix("onnx:")
            if domain not in _KNOWN_DOMAINS:
                yield f"{domain}.{node.attrs['op_type']} at {value_name(node.outputs[0])}"


def _unnamed_sizes(subject: Subject) -> Iterator[str]:
    for value in subject.module.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            symbol = dim.as_symbol() if isinstance(dim, Dim) else None
            own = re.sub(
                r"\W", "_", f"{value.name}_{axis}"
            )  # what an axis without a name is called
            if symbol is not None and (symbol.name == own or _GENERATED.fullmatch(symbol.name)):
                yield f"axis {axis} of input `{value.name}` (`{symbol.name}`)"


def _unused_inputs(subject: Subject) -> Iterator[str]:
    for value in subject.module.graph.inputs:
        if not value.num_uses:
            yield f"input `{value.name}` is read by nothing"


def _trivial_outputs(subject: Subject) -> Iterator[str]:
    graph = subject.module.graph
    first: dict[object, str] = {}
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        if value in first:
            yield f"output `{name}` is the same as `{first[value]}`"
        elif value.producer is None:
            yield f"output `{name}` is the input `{value.name}`"
        elif is_constant(value):
            yield f"output `{name}` is constant"
        first.setdefault(value, name)


def _not_finite(subject: Subject) -> Iterator[str]:
    weights = subject.module.weights
    for name in weights:
        weight = weights[name]
        if weight.dtype.is_float and weight.dtype.bits >= 16:
            array = weight.numpy()
            if contains_nan(array if weight.dtype is not DType.BF16 else array.astype("f4")):
                yield f"weight `{name}`"


def _duplicates(subject: Subject) -> Iterator[str]:
    weights = subject.module.weights
    by_type: dict[object, list[str]] = {}
    for name in weights:
        if weights[name].nbytes >= _LARGE_BYTES:
            by_type.setdefault((weights[name].dtype, weights[name].shape), []).append(name)
    for names in by_type.values():
        first: dict[bytes, str] = {}
        for name in names if len(names) > 1 else ():
            digest = hashlib.sha256(weights[name].numpy().tobytes()).digest()
            if digest in first:
                yield f"weight `{name}` equals `{first[digest]}`"
            first.setdefault(digest, name)


RULES = (
    LintRule(
        "RG001", "opset-too-new", "The opset is newer than the target loads.",
        "ONNX Runtime refuses a model of an opset that it does not know.",
        f"export with opset {MAX_OPSET} or lower, or `regraft convert SRC -o OUT`, which rewrites "
        "what it can",
        Severity.ERROR, _opset, _ORT,
    ),
    LintRule(
        "RG002", "ir-version-too-new", "The IR version is newer than the target loads.",
        "ONNX Runtime refuses the file whatever operators are in it.",
        "`regraft convert SRC -o OUT` writes a version that loads",
        Severity.ERROR, _ir_version, _ORT,
    ),
    LintRule(
        "RG003", "unknown-operator", "Operators of a domain that the target does not ship.",
        "The target needs a library of custom operators, and no pass can look into them.",
        "register the library where the model runs, or export with standard operators",
        Severity.WARNING, _unknown_operators,
    ),
    LintRule(
        "RG004", "unnamed-size", "Dynamic axes of inputs have no name of their own.",
        "Two axes that are always equal look independent, which blocks rewrites, and generated "
        "samples may give them different sizes.",
        "name them at export (`dynamic_axes`, `dynamic_shapes`), or `--freeze NAME=SIZE`",
        Severity.WARNING, _unnamed_sizes,
    ),
    LintRule(
        "RG005", "unused-input", "Inputs that nothing reads.",
        "Callers prepare data for nothing; often an exporter dropped what used it.",
        "leave them out at export",
        Severity.WARNING, _unused_inputs,
    ),
    LintRule(
        "RG006", "trivial-output", "Outputs that are an input, a constant, or another output.",
        "They are copied at every call; often they are left over from an export.",
        "leave them out at export",
        Severity.WARNING, _trivial_outputs,
    ),
    LintRule(
        "RG007", "weight-not-finite", "Weights that contain NaN.",
        "Outputs that depend on them are NaN; the check proves nothing for them.",
        "find what wrote them: a diverged training run or a damaged file",
        Severity.ERROR, _not_finite,
    ),
    LintRule(
        "RG008", "duplicated-weight", "Large weights that are stored more than once.",
        "The file and the memory hold the same numbers twice.",
        "`regraft convert SRC -o OUT` writes equal weights once",
        Severity.WARNING, _duplicates,
    ),
)  # fmt: skip
"""Rules about the file, in order of their ids."""
