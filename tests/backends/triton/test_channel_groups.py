"""Norms of groups of channels, with what is around them: results, gradients, source."""

import json
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn import functional as F

import regraft
from regraft.backends.triton.package import load_package
from tests.backends.triton.harness import check, interpreted, laid_out
from tests.backends.triton.test_generated_kernels import generated, packaged, values

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

GROUPS, CHANNELS = 16, 48


def images(*plane, seed=0, dtype=torch.float32):
    return values(2, CHANNELS, *(plane or (5, 7)), seed=seed, dtype=dtype)


def channels(seed, dtype=torch.float32):
    return values(CHANNELS, seed=seed, dtype=dtype)


def activated(x, gain, bias):
    return F.silu(F.group_norm(x, GROUPS, gain, bias))


def residual(x, gain, bias, other):
    """As a block of a UNet has it, with a residual sum."""
    return F.silu(F.group_norm(x, GROUPS, gain, bias, eps=1e-6)) + other


def conditioned(x, shift, gain, bias, factor):
    """A shift per image and channel before the norm, a factor of both behind it."""
    made = F.group_norm(x + shift[:, :, None, None], GROUPS, gain, bias)
    return F.silu(made * (1 + factor[:, :, None, None])), x + made


def plain(x, other):
    return F.gelu(F.group_norm(x * 2 + other, GROUPS))


def alone(x, gain, bias):
    return F.group_norm(x, GROUPS, gain, bias)


def scaled(x, gain, bias, factor):
    return F.group_norm(x, GROUPS, gain, bias) * factor + x


CHAINS = {
    "activated": (
        activated,
        lambda *plane: (images(*plane), channels(1), channels(2)),
        "group_norm_swish",
    ),
    "residual": (
        residual,
        lambda *plane: (images(*plane), channels(1), channels(2), images(*plane, seed=3)),
        "group_norm_swish_add",
    ),
    "conditioned": (
        conditioned,
        lambda *plane: (images(*plane), values(2, CHANNELS, seed=1), channels(2), channels(3),
                        values(2, CHANNELS, seed=4)),
        "add_group_norm_add_and_3",
    ),
    "plain": (
        plain,
        lambda *plane: (images(*plane), images(*plane, seed=1)),
        "mul_add_group_norm_gelu",
    ),
    "alone": (
        alone,
        lambda *plane: (images(*plane), channels(1), channels(2)),
        "group_norm",
    ),
    "scaled": (
        scaled,
        lambda *plane: (images(*plane), channels(1), channels(2), values(1, seed=3)),
        "group_norm_mul_add",
    ),
}  # fmt: skip


def with_short_tiles(kernels, monkeypatch, most=64):
    bucket = {"up_to": 1, "rows": 1, "max_block": most, "warps": 4, "per_processor": 1}
    for entry in ("generated_rows", "generated_gradient_rows"):
        monkeypatch.setitem(kernels.CONFIGS, entry, {"default": {"any": [bucket]}})


@pytest.mark.parametrize("name", CHAINS)
def test_a_norm_of_groups_and_what_is_around_it_are_one_kernel(name, tmp_path):
    function, inputs, kernel = CHAINS[name]
    net, kernels = packaged(function, inputs(), tmp_path / "package")
    assert generated(kernels) == [kernel]
    check(net, function, inputs())


@pytest.mark.parametrize(
    ("name", "plane"),
    [("residual", (3, 43)), ("residual", (17,)), ("conditioned", (1, 1)),
     ("conditioned", (2, 3, 5))],
)  # fmt: skip
def test_groups_of_several_tiles(name, plane, tmp_path, monkeypatch):
    """Tiles of several channels of a plane, of parts of one, and those that end in both."""
    function, inputs = by_rank(name, len(plane))
    net, kernels = packaged(function, inputs(*plane), tmp_path / "package")
    assert len(generated(kernels)) == 1
    with_short_tiles(kernels, monkeypatch)
    check(net, function, inputs(*plane))


def by_rank(name, rank):
    """Returns a chain with its operands for images of one axis, two or three."""
    function, inputs, _ = CHAINS[name]
    if name != "conditioned" or rank == 2:
        return function, inputs
    ones = (1,) * rank

    def of_rank(x, shift, gain, bias, factor):
        made = F.group_norm(x + shift.reshape(*shift.shape, *ones), GROUPS, gain, bias)
        return F.silu(made * (1 + factor.reshape(*factor.shape, *ones))), x + made

    return of_rank, inputs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["residual", "conditioned", "scaled"])
def test_of_few_bits(name, dtype, tmp_path):
    function, inputs, _ = CHAINS[name]
    given = tuple(laid_out(x.to(dtype), "contiguous") for x in inputs())
    net, _ = packaged(function, given, tmp_path / "package")
    check(net, function, given)


@pytest.mark.parametrize("groups", [48, 24])
def test_groups_of_one_channel_and_of_two(groups, tmp_path):
    def function(x, gain, bias):
        return F.relu(F.group_norm(x, groups, gain, bias))

    given = (images(), channels(1), channels(2))
    net, kernels = packaged(function, given, tmp_path / "package")
    assert generated(kernels) == ["group_norm_relu"]
    check(net, function, given)


def test_one_kernel_serves_all_sizes(tmp_path):
    function, inputs, _ = CHAINS["residual"]
    batch, height = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("height", max=999)
    image = {0: batch, 2: height}
    net, kernels = packaged(
        function, inputs(), tmp_path / "package", dynamic=((image, {}, {}, image),)
    )
    assert generated(kernels) == ["group_norm_swish_add"]
    for count, height in ((1, 5), (3, 11)):
        x = values(count, CHANNELS, height, 7)
        check(net, function, (x, channels(1), channels(2), x.clone()))


def test_images_far_from_zero(tmp_path):
    """A difference of sums of squares would have no digit left in f32."""
    function, inputs, _ = CHAINS["residual"]
    x, *rest = inputs()
    net, _ = packaged(function, (x, *rest), tmp_path / "package")
    given = (laid_out(x * 0.01 + 1000, "contiguous"), *rest)
    with interpreted():
        found = net(*given).double()
    exact, usual = (function(*(a.to(t) for a in given)) for t in (torch.float64, torch.float32))
    assert (found - exact).abs().max() <= 2 * (usual.double() - exact).abs().max()


def test_what_changes_nothing(tmp_path):
    function, inputs, _ = CHAINS["activated"]
    x, gain, bias = inputs()
    net, _ = packaged(function, (x, gain, bias), tmp_path / "package")
    with interpreted():
        usual = net(x, gain, bias)
        # an image knows nothing of others, a group of others
        assert torch.equal(net(x.flip(0), gain, bias), usual.flip(0))
        size = CHANNELS // GROUPS
        order = torch.arange(CHANNELS).reshape(GROUPS, size).flip(0).flatten()
        assert torch.equal(net(x[:, order], gain[order], bias[order]), usual[:, order])
        # a power of two and a shift of all elements are gone, but for the epsilon
        moved = net(x * 1024, gain, bias)
    assert (moved - usual).abs().max() <= 1e-4
    others = x.clone()
    others[:, size:] = torch.nan
    with interpreted():
        found = net(others, gain, bias)
    assert torch.equal(found[:, :size], usual[:, :size])
    assert found[:, size:].isnan().all()


@pytest.mark.parametrize("layout", ["padded rows", "transposed", "every second column"])
def test_operands_of_any_strides(layout, tmp_path):
    function, inputs, _ = CHAINS["residual"]
    given = tuple(laid_out(x, layout) if x.dim() > 1 else x for x in inputs())
    net, _ = packaged(function, given, tmp_path / "package")
    check(net, function, given)


def test_no_images(tmp_path):
    function, inputs, _ = CHAINS["activated"]
    x, gain, bias = inputs()
    batch = {0: torch.export.Dim("batch", max=64)}
    net, _ = packaged(function, (x, gain, bias), tmp_path / "package", dynamic=((batch, {}, {}),))
    with interpreted():
        assert net(x[:0], gain, bias).shape == (0, CHANNELS, 5, 7)


def test_few_groups_are_left_to_pytorch(tmp_path):
    def function(x, gain, bias):
        return F.silu(F.group_norm(x, 4, gain, bias)) + x

    given = (images(), channels(1), channels(2))
    net, kernels = packaged(function, given, tmp_path / "package")
    assert generated(kernels) == ["swish_add"]
    assert "torch.group_norm(args_0, 4, " in (tmp_path / "package" / "model.py").read_text()
    check(net, function, given)


@pytest.mark.parametrize("first", ["bool", "int"])
def test_operands_of_every_element_that_are_no_floats(first, tmp_path):
    """Sizes may be read of them, configurations not."""

    def function(kept, x, gain, bias):
        return F.silu(F.group_norm(x * kept.to(x.dtype), GROUPS, gain, bias))

    kept = (images(seed=5) > 0) if first == "bool" else (images(seed=5) * 3).to(torch.int32)
    given = (images(), channels(1), channels(2))
    net, kernels = packaged(function, (kept, *given), tmp_path / "package")
    assert len(generated(kernels)) == 1
    check(partial(net, kept), partial(function, kept), given)


def test_factors_per_image_of_one_channel(tmp_path):
    """They look as if they were per channel."""

    def function(x, factor):
        return F.silu(F.group_norm(x, 1) * factor)

    given = (values(64, 1, 5, 7), values(64, 1, 1, 1, seed=1))
    net, kernels = packaged(function, given, tmp_path / "package")
    assert not any("norm" in name for name in generated(kernels))
    check(net, function, given)


@pytest.mark.parametrize("shape", [(64, 1, 3, 5), (1, 64, 3, 5)])
def test_reductions_of_whole_images_are_no_groups(shape, tmp_path):
    def function(x):
        y = F.group_norm(x, 1 if shape[1] == 1 else 32)
        return y * 2 - y.amax((1, 2, 3), keepdim=True)

    given = (values(*shape),)
    net, _ = packaged(function, given, tmp_path / "package")
    check(net, function, given)


def test_a_gain_that_something_else_reads(tmp_path):
    """It has no place of its own among the channels: the norm stays PyTorch's."""

    def function(x, gain, bias):
        return F.silu(F.group_norm(x, GROUPS, gain, bias)) + gain.sum()

    given = (images(), channels(1), channels(2))
    net, kernels = packaged(function, given, tmp_path / "package")
    assert not any("norm" in name for name in generated(kernels))
    check(net, function, given)


class Block(nn.Module):
    """Of a UNet: the bias of a convolution begins the chain of its norm."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(16, 32), nn.Conv2d(32, 48, 3, padding=1)
        self.norm_2, self.conv_2 = nn.GroupNorm(16, 48), nn.Conv2d(48, 32, 3, padding=1)

    def forward(self, x):
        made = self.conv(F.silu(self.norm(x)))
        return x + self.conv_2(F.silu(self.norm_2(made)))


def test_a_block_of_a_unet(tmp_path):
    torch.manual_seed(0)
    net = Block().eval()
    x = values(2, 32, 5, 7)
    made, kernels = packaged(net, (x,), tmp_path / "package")
    assert generated(kernels) == ["group_norm_swish", "add_group_norm_swish", "add_add"]
    wide = Block().eval().double()
    wide.load_state_dict(net.state_dict())
    check(made, lambda x: (wide if x.dtype is torch.float64 else net)(x), (x,))


@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
def test_operators_pass_opcheck_and_stay_one_node(tmp_path):
    function, inputs, name = CHAINS["residual"]
    net, kernels = packaged(function, inputs(), tmp_path / "package")
    given = tuple(x.clone().requires_grad_() for x in inputs())
    with interpreted():
        torch.library.opcheck(
            getattr(kernels, name),
            given,
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )
    nodes = torch.export.export(net, inputs()).run_decompositions().graph.nodes
    assert sum(name in str(node.target) for node in nodes) == 1


def test_source_and_partition_say_what_is_computed(tmp_path):
    function, inputs, name = CHAINS["residual"]
    folder = tmp_path / "package"
    packaged(function, inputs(), folder)
    text = (folder / "kernels.py").read_text()
    assert f"def reference_{name}(" in text
    assert "torch.group_norm(args, 16, norm_weight, norm_bias, 1e-06)" in text
    assert "# group_norm: " in text
    (row,) = json.loads((folder / "partition.json").read_text())["generated"]
    assert row["nodes"] == ["group_norm", "swish", "add"]
    assert row["gradient"] == "kernel"
    size = 2 * CHANNELS * 5 * 7 * 4
    # the norm's second reading, and two tensors written and read again
    assert row["saved_bytes"] == 5 * size
    assert row["estimated_s"] < row["separate_s"]


def from_onnx(nodes, shapes):
    """Returns a model of ONNX of an image and of constants by name."""
    generator = np.random.default_rng(0)
    constants = {
        name: made if isinstance(made, np.ndarray) else generator.random(made, np.float32)
        for name, made in shapes.items()
    }
    image = [2, CHANNELS, 5, 7]
    graph = helper.make_graph(
        [*nodes, helper.make_node("Sigmoid", ["y"], ["gate"]),
         helper.make_node("Mul", ["y", "gate"], ["z"])],
        "groups",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, image)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


OPERATOR = (
    [helper.make_node("GroupNormalization", ["x", "gain", "bias"], ["y"], num_groups=GROUPS)],
    {"gain": (CHANNELS,), "bias": (CHANNELS,)},
)
PARTS = (
    [
        helper.make_node("Reshape", ["x", "grouped"], ["rows"]),
        helper.make_node("InstanceNormalization", ["rows", "one", "zero"], ["normal"]),
        helper.make_node("Reshape", ["normal", "image"], ["again"]),
        helper.make_node("Mul", ["again", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["y"]),
    ],
    {
        "gain": (CHANNELS, 1, 1), "bias": (CHANNELS, 1, 1),
        "one": np.ones(GROUPS, np.float32), "zero": np.zeros(GROUPS, np.float32),
        "grouped": np.array([0, GROUPS, -1]), "image": np.array([2, CHANNELS, 5, 7]),
    },
)  # fmt: skip


@pytest.mark.parametrize("model", [OPERATOR, PARTS], ids=["operator", "parts"])
def test_norms_of_onnx_are_recognised_by_what_they_compute(model, tmp_path):
    """An operator of ONNX, and what exporters write of one for older opsets."""
    path, folder = tmp_path / "model.onnx", tmp_path / "package"
    onnx.save(from_onnx(*model), path)
    regraft.convert(path, folder, target="triton")
    (row,) = json.loads((folder / "partition.json").read_text())["generated"]
    assert row["nodes"] == ["group_norm", "swish"]
    net = load_package(folder)
    x = values(2, CHANNELS, 5, 7)
    with interpreted():
        found = net(x)
    (expected,) = ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})
    # both are of f32: sums of 105 elements, of size 1 when normalized
    bound = 105 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=bound, atol=bound)
