"""Families of `transformers`, tiny and random: captured, canonicalized, compared with eager mode.

Every model goes to ONNX Runtime and to the generated PyTorch module, and is evaluated at the sizes
of the example and two others. `python -m benchmarks.torch_families NAME …` measures some of them
and prints a line each, without keeping it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.measure import Measurement, Row, Settings
from benchmarks.torch_coverage import rows_of, told
from benchmarks.torch_kept import asked, covered, kept_path
from benchmarks.torch_worker import measured

LIMIT_S = 600.0
MIN_FAMILIES = 60
PACKAGES = ("torch", "transformers", "onnxruntime")


def measure_family(name: str) -> dict[str, Any]:
    """Returns what `compared` says about one family; runs in a process of its own."""
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()  # where torchvision is installed without them, no model can be imported
    import transformers

    from benchmarks.fixtures.capture_models import MODELS
    from benchmarks.torch_compared import compared, first_line, quiet

    quiet()
    transformers.logging.set_verbosity_error()
    model = next(model for model in MODELS if model.name == name)
    about = {"kind": model.kind, "inputs": sorted(model.inputs), "sizes": len(model.sizes)}
    try:
        net = model.build()
    except Exception as error:  # a configuration that the library refuses is a line of the table
        reason = first_line(error)
        return {
            **about, "ok": False, "stage": "build", "reason": reason, "refused": None,
            "overloads": {},
        }  # fmt: skip
    kwargs = {**model.sample({}, 0), **model.fixed}
    samples = [(model.sample(sizes, seed), sizes) for seed, sizes in enumerate(model.sizes)]
    return {**about, **compared(net, kwargs, model.dynamic, samples)}


def questions() -> Mapping[str, str]:
    """Returns the digest of every family's configuration, without importing PyTorch here."""
    from multiprocessing import get_context

    with get_context("spawn").Pool(1) as pool:
        found: dict[str, str] = pool.apply(_questions)
    return found


def _questions() -> dict[str, str]:
    from benchmarks.fixtures import vision_ops

    vision_ops.declare()
    from benchmarks.fixtures.capture_models import MODELS

    return {model.name: asked(repr(model), PACKAGES) for model in MODELS}


def families(settings: Settings) -> Iterable[Row]:
    """Every family of `transformers` in the tables."""
    lines, num_measured = covered(
        kept_path("transformers"), questions(), measure_family, told,
        limit_s=LIMIT_S, settings=settings,
    )  # fmt: skip
    yield from rows_of("transformers", lines, num_measured, MIN_FAMILIES)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement(
        "transformers", "families of transformers: captured, in ONNX Runtime, generated", families
    ),
)

if __name__ == "__main__":
    for each, answer in measured(
        sys.argv[1:] or list(questions()), measure_family, limit_s=LIMIT_S
    ):
        print(told(each, answer) if isinstance(answer, dict) else f"{each}: {answer}", flush=True)
