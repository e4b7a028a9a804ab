"""Generated samples: sizes that exercise every symbol, values that exercise every branch.

A set of samples holds two or more bindings of every symbol (1 and odd sizes, batch 2; past 0 and
more), left, right and interior padding, indices at both ends of their range, and large and
integer-valued floats. Sizes that the source itself cannot run are replaced by larger ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.ir.dims import Dim, Symbol, bind
from regraft.ir.errors import UnsupportedError
from regraft.ir.evaluate import bind_inputs
from regraft.ir.graph import Value
from regraft.ir.module import Module
from regraft.ir.types import DType, TensorType
from regraft.passes.analysis.domains import Domain, input_domains

Array = np.ndarray[Any, Any]
Binding = dict[str, int]

_LADDER = (7, 16, 32, 48, 64, 128, 224, 320, 640)
"""Sizes tried for symbols other than the leading one until the source runs."""

MAX_ELEMENTS = 1 << 22
"""Largest generated input; bindings that exceed it are not tried."""

_LEADING = (2, 1, 3)

_MAX_TIES = 4
"""Single further symbols, and pairs of them, that are tried as the batch where nothing runs."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Inputs by name, the sizes they have, and how they were made."""

    inputs: Mapping[str, Any]
    binding: Mapping[str, int]
    style: str


def generate_samples(
    module: Module,
    runs: Callable[[Mapping[str, Any]], bool],
    *,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    max_samples: int | None = None,
    last_resort: Callable[[Mapping[str, Any]], bool] | None = None,
) -> list[Sample]:
    """Returns at least three samples that the source can run, `max_samples` when given.

    Args:
        module: The source module.
        runs: Whether the source runs on given inputs.
        dims: Sizes that the user fixed for samples.
        seed: Seed of the values.
        max_samples: Stop at so many; the sizes found first are then the only ones.
        last_resort: Asked instead of `runs` where that finds nothing, as where outputs are empty
            at every size.

    Raises:
        UnsupportedError: When an input has no generator or no sizes run.
    """
    domains = input_domains(module.graph)
    inner = _inner_sizes(module)

    def runs_full(inputs: Mapping[str, Any]) -> bool:
        binding = bind_inputs(module.graph, inputs)
        return not _leaves_nothing(inner, binding) and runs(inputs)

    try:
        return _generate(module, runs_full, dims or {}, domains, seed, max_samples)
    except UnsupportedError:
        return _generate(module, last_resort or runs, dims or {}, domains, seed, max_samples)


def _inner_sizes(module: Module) -> list[Dim]:
    """Returns the sizes that inference computes from those of the inputs."""
    values = (value for node in module.graph for value in node.outputs)
    sizes = {dim for value in values for dim in value.shape or () if isinstance(dim, Dim)}
    return sorted(sizes, key=str)


def _leaves_nothing(sizes: Sequence[Dim], binding: Mapping[str, int]) -> bool:
    """Whether inputs that hold something have an inner axis without positions.

    Of a window larger than the image, one runtime makes nothing, another one position, and a third
    refuses it.
    """
    if 0 in binding.values():
        return False
    bound = (bind(dim, binding) for dim in sizes)
    return any(isinstance(size, int) and size <= 0 for size in bound)


def _generate(
    module: Module,
    runs: Callable[[Mapping[str, Any]], bool],
    dims: Mapping[str, int],
    domains: Mapping[str, Domain],
    seed: int,
    max_samples: int | None,
) -> list[Sample]:
    if max_samples == 1:
        return [_first_sample(module, runs, dims, domains, seed)]
    bindings = _choose_bindings(module, runs, dims, domains, seed)
    samples = []
    for number, binding in enumerate(bindings):
        style = STYLES[number % len(STYLES)]
        inputs = make_inputs(module, binding, style, domains, seed + number)
        if runs(inputs):
            samples.append(Sample(inputs, binding, style))
    if not samples:
        raise UnsupportedError("the source ran on no generated sample", hint="give --inputs")
    return samples


def _first_sample(
    module: Module,
    runs: Callable[[Mapping[str, Any]], bool],
    dims: Mapping[str, int],
    domains: Mapping[str, Domain],
    seed: int,
) -> Sample:
    for leading in _leading_sets(module):
        for size in (3, *_LADDER):
            binding = {
                s.name: dims.get(s.name, clamp_size(_LEADING[0] if s.name in leading else size, s))
                for s in input_symbols(module)
            }
            inputs = make_inputs(module, binding, STYLES[0], domains, seed)
            if runs(inputs):
                return Sample(inputs, binding, STYLES[0])
    raise UnsupportedError("the source runs at none of the generated sizes", hint="give --inputs")


def _choose_bindings(
    module: Module,
    runs: Callable[[Mapping[str, Any]], bool],
    dims: Mapping[str, int],
    domains: Mapping[str, Domain],
    seed: int,
) -> list[Binding]:
    symbols = input_symbols(module)
    if not symbols:
        base: Binding = {}
        if not runs(make_inputs(module, base, "normal", domains, seed)):
            raise UnsupportedError("the source does not run on a generated sample")
        return [base, base, base]

    def binding(
        leading: Collection[str], lead: int, size: int, *, distinct: bool = False
    ) -> Binding:
        made: Binding = {}
        for number, symbol in enumerate(symbols):
            wanted = lead if symbol.name in leading else size + 2 * number * distinct
            made[symbol.name] = dims.get(symbol.name, clamp_size(wanted, symbol))
        return made

    def works(candidate: Binding) -> bool:
        if max(_num_elements(v, candidate) for v in module.graph.inputs) > MAX_ELEMENTS:
            return False
        return runs(make_inputs(module, candidate, "normal", domains, seed))

    found: list[Binding] = []
    for number, leading in enumerate(_leading_sets(module)):
        tries: list[Binding] = []
        for lead in _LEADING if number == 0 else _LEADING[:1]:
            tries.append(binding(leading, lead, _LADDER[0], distinct=True))
            tries += [binding(leading, lead, size) for size in _LADDER]
        _add_first(found, tries, works)
        if found:
            break
    else:
        raise UnsupportedError(
            "the source runs at none of the generated sizes",
            hint="give real samples with --inputs, or sizes with --dims",
        )
    sizes = [size for name, size in found[0].items() if name not in leading]
    base_size = max(sizes, default=1)
    others = [binding(leading, 1, size) for size in (0, 1, 3, *_LADDER, base_size)]
    more = [binding(leading, 3, base_size + delta) for delta in (2, 1, 16, 32, 0)]
    _add_first(found, others, works)
    _add_first(found, more, works)
    return [*found, found[-1], found[-1]][:3]


def _add_first(
    found: list[Binding], tries: Sequence[Binding], works: Callable[[Binding], bool]
) -> None:
    """Adds the first new binding that works, if any."""
    pick = next((b for b in tries if b not in found and works(b)), None)
    if pick is not None:
        found.append(pick)


def input_symbols(module: Module) -> list[Symbol]:
    """Returns the input symbols in the types of the graph's inputs, in order."""
    seen: dict[Symbol, None] = {}
    for value in module.graph.inputs:
        for dim in value.shape or ():
            if isinstance(dim, Dim):
                seen.update(dict.fromkeys(sorted(dim.symbols(), key=lambda s: s.name)))
    return list(seen)


def leading_symbols(module: Module) -> set[str]:
    """Returns the symbols in the first axes of the inputs: batch, in most models."""
    names = set()
    for value in module.graph.inputs:
        shape = value.shape
        if shape and isinstance(shape[0], Dim):
            names |= {symbol.name for symbol in shape[0].symbols()}
    return names


def _leading_sets(module: Module) -> Iterator[Collection[str]]:
    """Yields sets of symbols that may all be the batch, the likeliest first.

    An exporter that names no sizes gives the batch of a recurrent state, which is not its first
    axis, a symbol of its own, and nothing may say before run time that both are one.
    """
    leading = leading_symbols(module)
    yield leading
    others = [s.name for s in input_symbols(module) if s.name not in leading]
    for count in (1, 2):
        for more in itertools.islice(itertools.combinations(others, count), _MAX_TIES):
            yield leading | set(more)


def clamp_size(size: int, symbol: Symbol) -> int:
    """Returns the size nearest to `size` that the symbol's facts allow."""
    size = max(size, symbol.lo)
    size = -(-size // symbol.multiple_of) * symbol.multiple_of
    return size if symbol.hi is None else min(size, symbol.hi)


def _num_elements(value: Value, binding: Binding) -> int:
    total = 1
    for dim in value.shape or ():
        size = bind(dim, binding)
        total *= size if isinstance(size, int) else 1
    return total


STYLES = ("normal", "integers", "large")
"""How values are drawn: unit normal; integer-valued with ids at both ends; normal times 16."""


def make_inputs(
    module: Module, binding: Binding, style: str, domains: Mapping[str, Domain], seed: int
) -> dict[str, Any]:
    """Returns one array per graph input.

    Raises:
        UnsupportedError: For an input that is not a tensor of known type and rank.
    """
    rng = np.random.default_rng([seed, STYLES.index(style)])
    inputs: dict[str, Any] = {}
    for value in module.graph.inputs:
        type_ = value.type
        if not isinstance(type_, TensorType) or type_.dtype is None or type_.shape is None:
            raise UnsupportedError(
                f"no sample can be generated for input `{value.name}: {type_}`",
                hint="give samples with --inputs",
            )
        shape = []
        for dim in type_.shape:
            size = bind(dim, binding)
            if not isinstance(size, int):
                raise UnsupportedError(f"input `{value.name}`: size `{size}` is not bound")
            shape.append(size)
        domain = domains.get(str(value.name), Domain())
        inputs[str(value.name)] = _draw(type_.dtype, tuple(shape), style, domain, rng)
    return inputs


def _draw(
    dtype: DType, shape: tuple[int, ...], style: str, domain: Domain, rng: np.random.Generator
) -> Array:
    if dtype is DType.STRING:
        words = rng.integers(0, 1000, shape)
        return (
            np.vectorize(lambda n: f"w{n}", otypes=[object])(words)
            if words.size
            else np.empty(shape, object)
        )
    if dtype.is_complex:
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype.numpy)
    if dtype.is_float:
        x = rng.standard_normal(shape)
        if style == "integers":
            x = np.round(4 * x)
        elif style == "large":
            x = 16 * x
        return np.asarray(x).astype(dtype.numpy)
    if dtype is DType.BOOL:
        return padding_mask(shape, style).astype(np.bool_)
    if domain.choices and not shape:
        choices = sorted(domain.choices)
        return np.asarray(choices[STYLES.index(style) % len(choices)], dtype.numpy)
    if domain.high is not None:
        ids = rng.integers(0, domain.high, shape)
        flat = ids.reshape(-1)
        if flat.size:
            flat[0], flat[-1] = 0, domain.high - 1
        return ids.astype(dtype.numpy)
    if domain.is_mask or len(shape) >= 1:
        return padding_mask(shape, style).astype(dtype.numpy)
    return np.asarray(1, dtype.numpy)


def padding_mask(shape: Sequence[int], style: str) -> Array:
    """Returns a 0/1 mask padded along the last axis: right, left or inside, by style.

    The first row of every batch is not padded, and no row is fully masked.
    """
    mask = np.ones(shape, np.int64)
    if len(shape) < 2 or shape[-1] < 3 or 0 in shape:
        return mask
    rows = mask.reshape(-1, shape[-1])
    length = shape[-1]
    for i, row in enumerate(rows):
        if i == 0:
            continue
        cut = 1 + i % max(1, length // 2)
        if style == "normal":
            row[length - cut :] = 0
        elif style == "integers":
            row[:cut] = 0
        else:
            row[1 : 1 + min(cut, length - 2)] = 0
    return mask
