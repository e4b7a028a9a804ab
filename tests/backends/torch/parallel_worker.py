"""One process of two that train a generated module; the first trains it alone as well."""

from __future__ import annotations

import copy
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import regraft


def trained(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rank = int(os.environ["RANK"])
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    x, y = torch.randn(4, 6), torch.randn(4, 3)
    module = regraft.capture(net, (x,), dynamic_shapes=({0: "batch"},))
    made = regraft.to_torch(module).train()
    alone = copy.deepcopy(made)
    torch.distributed.init_process_group("gloo")
    parallel = DistributedDataParallel(made)
    trained(parallel, x[rank * 2 : rank * 2 + 2], y[rank * 2 : rank * 2 + 2])
    regraft.read_back(module, parallel)
    torch.save(made.state_dict(), folder / f"{rank}.pt")
    if rank == 0:
        trained(alone, x, y)
        torch.save(alone.state_dict(), folder / "alone.pt")
    torch.distributed.barrier()
    time.sleep(0.2)  # see `joined_group` of regraft.backends.torch.training.processes
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
