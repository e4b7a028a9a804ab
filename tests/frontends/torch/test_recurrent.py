"""Recurrent layers and cells in captures: the length of the sequence stays dynamic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="captures are compared with PyTorch")

from torch import nn  # noqa: E402

from regraft.frontends.torch.capture import capture  # noqa: E402
from tests.frontends.torch.oracle import check_capture  # noqa: E402

SIZES = ({}, {"batch": 3, "length": 9}, {"batch": 1, "length": 2})


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 4)
        self.rnn = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.head = nn.Linear(10, 3)

    def forward(self, ids: Any) -> Any:
        outputs, (hidden, _) = self.rnn(self.embed(ids))
        return self.head(torch.cat([hidden[-2], hidden[-1]], -1)), outputs.mean(1)


def test_a_classifier_takes_every_length(tmp_path: Path) -> None:
    found = check_capture(
        Classifier(), (torch.randint(0, 20, (2, 6)),),
        dynamic={"ids": {0: "batch", 1: "length"}}, sizes=SIZES, folder=tmp_path,
    )  # fmt: skip
    names = [node.op.name for node in found.module.graph.walk()]
    assert names.count("lstm") == 2  # one per layer, both directions in it


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 5)
        self.rnn = nn.RNN(5, 5, nonlinearity="relu", bias=False)
        self.cells = nn.ModuleList(
            (nn.GRUCell(5, 5), nn.RNNCell(5, 5, bias=False), nn.RNNCell(5, 5, nonlinearity="relu"))
        )

    def forward(self, x: Any, h: Any) -> Any:
        outputs, last = self.gru(x, h)
        state = last[0]
        for cell in self.cells:
            state = cell(outputs[0], state)
        return self.rnn(outputs)[0], state, last


def test_layers_and_cells_keep_batch_and_length(tmp_path: Path) -> None:
    check_capture(
        Steps(), (torch.randn(6, 2, 4), torch.randn(1, 2, 5)),
        dynamic={"x": {0: "length", 1: "batch"}, "h": {1: "batch"}}, sizes=SIZES, folder=tmp_path,
    )  # fmt: skip


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, 5)

    def forward(self, x: Any) -> Any:
        hidden = x.new_zeros(x.shape[0], 5)
        state = torch.zeros_like(hidden)
        for step in x.unbind(1):
            hidden, state = self.cell(step, (hidden, state))
        return hidden, state


def test_a_loop_over_a_cell_keeps_the_batch(tmp_path: Path) -> None:
    check_capture(
        Loop(), (torch.randn(2, 3, 4),), dynamic={"x": {0: "batch"}},
        sizes=({}, {"batch": 5}), folder=tmp_path,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # PyTorch's own
def test_projected_states_are_computed_step_by_step(tmp_path: Path) -> None:
    net = nn.LSTM(4, 5, proj_size=3, batch_first=True)
    check_capture(
        net, (torch.randn(2, 3, 4),), dynamic={"input": {0: "batch"}}, sizes=({}, {"batch": 5}),
        folder=tmp_path,
    )  # fmt: skip


def test_the_original_still_computes_after_a_capture() -> None:
    net = nn.GRU(4, 5).eval()
    x = torch.randn(6, 2, 4)
    before = net(x)[0]
    capture(net, (x,))
    assert torch.equal(net(x)[0], before)
