"""Compiles generated kernels of a few chains for a target; prints a JSON line per launch.

A process of its own: `python -m tests.backends.triton.generated_ahead_of_time sm_90`.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import regraft
from regraft.backends.triton.ahead_of_time import TARGETS, access_bytes, cuda_spills
from regraft.backends.triton.binaries import Launches, compiled, launches_of
from regraft.backends.triton.package import load_package, save_package


def scores(x, mask):
    return torch.softmax(x * 0.125 + (1 - mask[:, None, :]) * -3.0, -1)


def normal(x, gain, bias):
    return F.layer_norm(x * torch.sigmoid(x), x.shape[-1:], gain, bias).tanh()


def pointwise(x, y, bias):
    return F.mish(x + bias) * y + F.hardswish(y).exp()


def residual(x, weight, row, other):
    return other + F.linear(x, weight, row)


def gate(x, weight, up):
    return F.silu(up) * F.linear(x, weight)


def rows(x, gain, weight, other):
    return F.linear(F.rms_norm(x, x.shape[-1:], gain, eps=1e-6), weight) + other


def gated_rows(x, up, weight):
    return F.linear(F.silu(x) * up, weight)


def rows_after(x, weight, other, gain):
    total = F.linear(x, weight) + other
    return total, F.rms_norm(total, total.shape[-1:], gain, eps=1e-6)


def planes(x, y, channels):
    return F.relu(x + channels[:, None, None] + y)


def means(x, channels):
    made = F.silu(x + channels[:, None, None])
    return made, made.mean((2, 3), keepdim=True)


def groups(x, gain, bias, other):
    return F.silu(F.group_norm(x, 32, gain, bias)) + other


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def chains():
    """Yields functions with operands: rows in registers, and longer ones."""
    for width in (256, 4096, 16384):
        x = torch.zeros(2, 4, width, dtype=torch.bfloat16)
        row, mask = x[0, 0].contiguous(), torch.zeros(2, width, dtype=torch.bfloat16)
        yield f"scores-{width}", scores, (x, mask)
        yield f"normal-{width}", normal, (x, row, row.clone())
    yield "pointwise", pointwise, (x, x.clone(), row)
    image, channels = torch.zeros(8, 64, 28, 28, dtype=x.dtype), torch.zeros(64, dtype=x.dtype)
    yield "planes", planes, (image, image.clone(), channels)
    yield "means", means, (image, channels)
    for height in (16, 64):  # of 10 channels: in registers, and gone through in tiles
        image = torch.zeros(8, 320, height, height, dtype=x.dtype)
        gain = torch.zeros(320, dtype=x.dtype)
        yield f"groups-{height}", groups, (image, gain, gain.clone(), image.clone())
    for dtype in (torch.bfloat16, torch.float32):
        x, weight = torch.zeros(2, 4, 256, dtype=dtype), torch.zeros(512, 256, dtype=dtype)
        wide, gain = torch.zeros(2, 4, 512, dtype=dtype), weight[0].clone()
        label = "product" if dtype is torch.bfloat16 else "wide-product"
        yield f"{label}-residual", residual, (x, weight, wide[0, 0].clone(), wide)
        yield f"{label}-gate", gate, (x, weight, wide)
        yield f"{label}-rows", rows, (x, gain, weight, wide)
        yield f"{label}-gated-rows", gated_rows, (x, x.clone(), weight)
        yield f"{label}-after", rows_after, (x, weight[:256].clone(), x.clone(), gain)


def gradients(net, inputs, kernels):
    """Returns the launches of the gradients of a package, its chains around products included."""
    launches = Launches()
    for name, operator in list(vars(kernels).items()):
        if name.endswith(("_gradient", "_prologue")) and hasattr(operator, "on_cpu"):
            operator.register_kernel("cpu")(_noted(operator))
    kernels.wrap_triton = launches
    kernels.InterpretedFunction = object  # what asks calls kernels on a CPU
    made = net(*(x.requires_grad_() for x in inputs))
    sum(x.sum() for x in ((made,) if isinstance(made, torch.Tensor) else made)).backward()
    return list(launches.found)


def _noted(operator):
    def noted(*args):
        operator.launch(*args)
        return operator.on_cpu(*args)

    return noted


def main(target):
    is_hip = TARGETS[target].backend == "hip"
    for name, function, inputs in chains():
        with tempfile.TemporaryDirectory() as text:
            module = regraft.capture(Of(function).eval(), inputs)
            save_package(module, Path(text))
            net = load_package(Path(text))
            kernels = sys.modules[f"{type(net).__module__.rpartition('.')[0]}.kernels"]
            example = {"args": inputs, "kwargs": {}}
            noted = launches_of(net, example, kernels, target=target)
            for launch in [*noted, *gradients(net, inputs, kernels)]:
                built = compiled(launch, target)
                row = {"chain": name, "kernel": launch.kernel.__name__}
                row["tile"] = dict(launch.constants).get("BLOCK_M", 0)
                if is_hip:
                    found = re.findall(
                        r"\.private_segment_fixed_size:\s*(\d+)", built.asm["amdgcn"]
                    )
                    row["spilled"] = sum(map(int, found))
                else:
                    ptx = built.asm["ptx"]
                    accesses = re.findall(r"\b(?:ld|st)\.global(\.[\w:.]*)", ptx)
                    row["spilled"] = cuda_spills(ptx, built.asm["cubin"], TARGETS[target])
                    row["wide"] = sum(access_bytes(access) == 16 for access in accesses)
                    row["narrow"] = len(accesses) - row["wide"]
                    row["wgmma"] = "wgmma.mma_async" in ptx
                    row["copied"] = len(re.findall(r"cp\.async\.cg\.shared\.global", ptx))
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
