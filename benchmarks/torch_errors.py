"""What a user reads when a capture is refused: one row an error, which names place and way out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.measure import Measurement, Row, Settings, held


def _said(make: Callable[[], object], *words: str) -> tuple[bool, str]:
    """Returns whether a call is refused with these words in message or hint, and what it says."""
    from regraft.ir.errors import RegraftError

    try:
        make()
    except RegraftError as error:
        text = f"{error.message} hint: {error.hint}"
        return all(word in text for word in words), " ".join(text.split())[:300]
    return False, "nothing was refused"


def errors(settings: Settings) -> Iterable[Row]:
    """Every error that issue 4 names."""
    import torch
    from torch import nn
    from torch.export import Dim

    import regraft
    from benchmarks.torch_compared import quiet
    from regraft.frontends.torch.capture import capture

    quiet()

    class Decides(nn.Module):  # type: ignore[misc]  # torch is untyped where it is not installed
        def forward(self, x: Any) -> Any:
            if x.sum() > 0:
                return x + 1
            return x

    class Fixed(nn.Module):  # type: ignore[misc]  # torch is untyped where it is not installed
        def forward(self, x: Any) -> Any:
            return x.view(4, -1)

    twice = torch.library.custom_op(
        "regraft_bench::twice", lambda x: x * 2, mutates_args=(), schema="(Tensor x) -> Tensor"
    )
    twice.register_fake(torch.empty_like)

    class Custom(nn.Module):  # type: ignore[misc]  # torch is untyped where it is not installed
        def forward(self, x: Any) -> Any:
            return twice(twice(x))

    rows, linear = {"x": {0: "rows"}}, nn.Linear(3, 3)
    few = {"x": {0: Dim("rows", min=5, max=8)}}
    batch = {"input": {0: "batch"}}
    meta = nn.Linear(2, 2, device="meta")
    cases: tuple[tuple[str, Callable[[], object], tuple[str, ...]], ...] = (
        ("control flow on data", lambda: capture(Decides(), (torch.randn(3),)),
         ("torch_errors.py", "if x.sum() > 0:", "torch.where")),
        ("a dynamic axis that the code fixes",
         lambda: capture(Fixed(), (torch.randn(4, 3),), dynamic_shapes=rows),
         ("axis 0 of `x`", "(4)")),
        ("an example outside the range of its axis",
         lambda: capture(Fixed(), (torch.randn(4, 3),), dynamic_shapes=few), ("rows", "5 to 8")),
        ("a batch of 1 on a dynamic axis",
         lambda: capture(linear, (torch.randn(1, 3),), dynamic_shapes=batch), ("2 or more",)),
        ("meta tensors", lambda: capture(meta, (torch.randn(2, 2, device="meta"),)),
         ("weight", "without data")),
        ("a custom operator", lambda: capture(Custom(), (torch.randn(3),)),
         ("regraft_bench.twice.default", "x 2", "torch_errors.py", "torch_importers")),
    )  # fmt: skip
    for name, make, words in cases:
        yield held(name, *_said(make, *words))
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".pt", ".pth", ".bin", ".ckpt"):
            path = Path(folder, f"model{suffix}")
            torch.save(linear.state_dict(), path)
            refused = _said(lambda p=path: regraft.load(p), "code")  # type: ignore[misc]  # the loop's path
            yield held(f"a pickled checkpoint, `{suffix}`", *refused)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("errors", "refusals that name the line and what to do", errors),
)
