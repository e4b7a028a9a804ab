"""A dozen families of the capture coverage, one of each sort."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("torch", reason="captures are compared with PyTorch")
pytest.importorskip("transformers", reason="needs the extra `hf`")

from benchmarks.fixtures import vision_ops

vision_ops.declare()  # where torchvision is installed without them, no model can be imported

import logging  # noqa: E402

import torch  # noqa: E402

from benchmarks.fixtures.capture_model import CaptureModel  # noqa: E402
from benchmarks.fixtures.capture_models import MODELS  # noqa: E402
from benchmarks.torch_compared import compared  # noqa: E402

FAST = (
    "distilbert", "xlm", "gpt2", "llama", "mistral", "qwen2_moe", "t5", "clip", "convnext",
    "segformer", "wav2vec2", "vit",
)  # fmt: skip
COVERED = [pytest.param(model, id=model.name) for model in MODELS if model.name in FAST]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)  # PyTorch prints the graph of a failed export
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore")  # deprecations between these packages
@pytest.mark.parametrize("model", COVERED)
def test_family_equals_the_original_in_both_runtimes(model: CaptureModel) -> None:
    samples = [(model.sample(sizes, seed), sizes) for seed, sizes in enumerate(model.sizes)]
    kwargs = {**model.sample({}, 0), **model.fixed}
    report = compared(model.build(), kwargs, model.dynamic, samples)
    assert report["ok"], f"{report['stage']}: {report['reason']}"
    assert report["overloads"] or report["refused"]
