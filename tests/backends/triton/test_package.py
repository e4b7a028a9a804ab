"""Packages: models written as `model.py` and `kernels.py`, tested by themselves."""

import ast
import copy
import importlib
import json
import os
import re
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs the extra `triton`")

from torch import nn
from torch.nn import functional as F

import regraft
from benchmarks.fixtures import vision_ops
from regraft import kernels
from regraft.backends.triton.kernel_source import KernelSource
from regraft.backends.triton.package import save_package
from regraft.ir.errors import UsageError
from tests.backends.triton.harness import interpreted

# numpy's, of lanes that are masked; checks of conversions run in threads
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

WIDTH, HEADS = 16, 2


class Layer(nn.Module):
    def __init__(self, activation, is_causal):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)
        self.activation, self.is_causal = activation, is_causal

    def forward(self, x):
        B, S, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(B, S, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        x = x + self.out(y.transpose(1, 2).reshape(B, S, WIDTH))
        return x + self.down(self.activation(self.up(self.norm2(x))))


class Decoder(nn.Module):
    def __init__(self, num_layers=2):
        super().__init__()
        self.embedding = nn.Embedding(19, WIDTH)
        layers = [Layer(F.silu, is_causal=True) for _ in range(num_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.embedding.weight)


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 4, WIDTH))
        self.layers = nn.ModuleList([Layer(F.gelu, is_causal=False)])
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            x = layer(x)
        return torch.softmax(self.head(x.mean(1)), -1)


def llama():
    vision_ops.declare()  # before transformers looks for them
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    config = transformers.LlamaConfig(
        num_hidden_layers=1, hidden_size=WIDTH, intermediate_size=24, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=11, max_position_embeddings=32, eos_token_id=1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


TOKENS = torch.arange(5)[None] % 4
MODELS = {
    "decoder": (
        Decoder,
        (TOKENS,),
        {},
        {"layer_norm_linear", "linear_add", "linear_add_layer_norm", "linear", "attention"},
    ),
    "vision": (
        Vision,
        (torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8),),
        {},
        {"layer_norm_linear", "linear_add", "linear_softmax", "attention"},
    ),
    "llama": (
        llama,
        (TOKENS,),
        {"use_cache": False},
        {"rms_norm", "linear_add_rms_norm", "linear_swish_mul", "rope", "attention"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def made(request, tmp_path_factory):
    build, args, kwargs, called = MODELS[request.param]
    torch.manual_seed(0)
    net = build().eval()
    with torch.no_grad():
        for parameter in net.parameters():  # zeros and ones would be folded away
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("packages") / request.param
    with interpreted():
        result = regraft.convert(net, folder, args=args, kwargs=kwargs, target="triton")
    assert result.check.ok
    return folder, net, args, kwargs, called


def unbroken(text):
    """Returns source with what stands within brackets on one line."""
    return re.sub(r"\s+", " ", re.sub(r"(?<=[(\[{])\s+|,?\s+(?=[)\]}])", "", text))


def imported(folder, name):
    """Returns a file of a package, imported as users would."""
    sys.path.insert(0, str(folder.parent))
    try:
        importlib.invalidate_caches()
        return importlib.import_module(f"{folder.name}.{name}")
    finally:
        sys.path.remove(str(folder.parent))


def test_a_package_passes_its_self_test_in_the_interpreter(made, capsys):
    folder, *_, called = made
    with interpreted():
        assert imported(folder, "selftest").main(["--device", "cpu"]) == 0
    assert "gradients of" in capsys.readouterr().out
    text = (folder / "model.py").read_text()
    assert all(f"kernels.{name}(" in text for name in called), text


def test_a_package_needs_torch_and_triton_alone(made):
    folder = made[0]
    allowed = {"torch", "triton", "model", "kernels", *sys.stdlib_module_names}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.partition(".")[0] in allowed
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.py", "kernels.py", "weights.safetensors", "selftest.py"}


def test_kernels_of_a_package_are_those_it_calls(made):
    folder, *_, called = made
    text = (folder / "kernels.py").read_text()
    body = ast.parse(text).body
    defined = {n.name for n in body if isinstance(n, ast.FunctionDef)}
    made = {n.targets[0].id for n in body if isinstance(n, ast.Assign)}
    assert called <= defined | made
    assert ("softmax_kernel" in defined) == ("softmax" in called)
    assert '"softmax": {' not in text or "softmax" in called
    assert "Source: " in text


def trained(net, args, kwargs):
    """Returns the losses of three steps."""
    losses = []
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        found = net(*args, **kwargs)
        output = found if isinstance(found, torch.Tensor) else found["logits"]
        loss = output.square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_package_trains_as_the_model_does(made):
    folder, net, args, kwargs, _ = made
    with interpreted():
        found = trained(imported(folder, "model").load(), args, kwargs)
    expected = trained(net, args, kwargs)
    assert expected[2] < expected[0]
    # three steps of f32, whose losses are means of a few hundred squares
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("made", ["decoder"], indirect=True)
def test_a_package_trains_in_autocast(made):
    folder, net, args, *_ = made
    package, net = imported(folder, "model").load(), copy.deepcopy(net)
    net.load_state_dict(package.state_dict())
    net.zero_grad()
    with torch.autocast("cpu", torch.float16):
        with interpreted():
            output = package(*args)
        assert output.dtype == net(*args).dtype
    exact = net(*args)
    with interpreted():
        output.float().square().mean().backward()
    exact.square().mean().backward()
    # some values of two layers are rounded to f16 one after the other
    bound = 8 * 2**-11
    assert (output - exact).abs().max() <= bound * exact.abs().max()
    same = dict(net.named_parameters())
    for name, parameter in package.named_parameters():
        assert (parameter.grad - same[name].grad).norm() <= bound * same[name].grad.norm()


@pytest.mark.parametrize("made", ["decoder"], indirect=True)
def test_kernels_of_a_package_are_read_again(made, tmp_path):
    folder, _, args, *_ = made
    (tmp_path / "read_again").symlink_to(folder)
    package = imported(tmp_path / "read_again", "model")
    with interpreted(), torch.autocast("cpu", torch.float16):
        expected = package.load()(*args)
        importlib.reload(package.kernels)
        assert torch.equal(package.load()(*args), expected)


@pytest.mark.parametrize("made", ["decoder"], indirect=True)
def test_a_package_lies_in_a_folder_of_any_name(made, tmp_path):
    (tmp_path / "7-modèles").symlink_to(made[0])
    package = imported(tmp_path / "7-modèles", "model")
    assert re.fullmatch(r"_7_mod_xe8les_kernels_[0-9a-f]{8}", package.kernels.NAMESPACE)


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, y):
        return (x.tanh() * self.factor + y).sigmoid()


def test_packages_whose_names_look_alike_have_their_own_operators(tmp_path):
    x, y = torch.linspace(-1, 1, 6).reshape(2, 3), torch.ones(2, 3)
    nets = []
    for factor, name in enumerate(("look_alike", "look-alike", "look/alike"), 2):
        (tmp_path / name).mkdir(parents=True)
        save_package(regraft.capture(Scaled(factor).eval(), (x, y)), tmp_path / name)
        top, _, below = name.partition("/")
        net = imported(tmp_path / top, f"{below}.model".lstrip(".")).load()
        nets.append((net, Scaled(factor)))
    for net, model in nets:
        torch.testing.assert_close(net(x, y), model(x, y))


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("elu", 'feature_map="elu", normalize=True'),
        ("hedgehog", 'feature_map="hedgehog", normalize=True'),
        ("lightning", "self.constant.squeeze(3)"),
    ],
)
def test_a_linearized_decoder_passes_its_self_test(tmp_path, method, call):
    torch.manual_seed(0)
    with interpreted():
        regraft.convert(
            Decoder(1).eval(), tmp_path / method, args=(TOKENS,), target="triton", check="off",
            passes=f"canonicalize,fuse,linearize-attention{{method={method}}}",
        )  # fmt: skip
        assert imported(tmp_path / method, "selftest").main(["--device", "cpu"]) == 0
    text = (tmp_path / method / "model.py").read_text()
    assert "kernels.linear_attention(" in text
    assert call in unbroken(text)


def test_the_self_test_fails_where_a_weight_changed(tmp_path, capsys):
    torch.manual_seed(0)
    with interpreted():
        regraft.convert(Vision().eval(), tmp_path / "changed", args=MODELS["vision"][1],
                        target="triton")  # fmt: skip
    path = tmp_path / "changed" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = torch.tensor([3.0]).numpy().tobytes()
    path.write_bytes(content)
    with interpreted():
        assert imported(path.parent, "selftest").main(["--device", "cpu"]) == 1
    assert "FAILED" in capsys.readouterr().err


def test_the_self_test_runs_as_a_script(made):
    folder = made[0]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(folder / "selftest.py")],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=folder.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "self-test passed" in done.stdout


def test_all_kernels_fit_into_one_file():
    source = KernelSource()
    for name in kernels.__all__:
        source.add(getattr(kernels, name))
    names: dict = {"__name__": "all_kernels"}
    tree = ast.parse(source.text(["All."]))
    defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
    assert len(defined) == len(set(defined))
    defined += [n.name for n in tree.body if isinstance(n, ast.ClassDef)]
    assert set(kernels.__all__) <= set(defined)
    assert not names.get("regraft")


def test_a_model_without_kernels_is_a_package(tmp_path):
    net = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)).eval()
    regraft.convert(net, tmp_path / "plain", args=(torch.ones(2, 8),), target="triton")
    text = (tmp_path / "plain" / "model.py").read_text()
    assert "F.linear(" in text
    assert "kernels" not in text
    assert not (tmp_path / "plain" / "kernels.py").exists()


class Large(nn.Module):
    """Products that cost more in a template than what it saves."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.LayerNorm(4096), nn.LayerNorm(4096)
        self.gate, self.up = nn.Linear(4096, 4096), nn.Linear(4096, 4096)
        self.down, self.out = nn.Linear(4096, 4096), nn.Linear(4096, 4096)

    def forward(self, x):
        x = x + self.out(self.norm(x))
        return self.last(x + self.down(F.silu(self.gate(x)) * self.up(x)))


def test_a_package_of_large_products_calls_kernels_beside_them(tmp_path):
    with torch.device("meta"):
        net = Large().eval().bfloat16()
    net = net.to_empty(device="cpu")
    args = (torch.empty(2048, 4096, dtype=torch.bfloat16),)
    save_package(regraft.capture(net, args), tmp_path)
    text = (tmp_path / "model.py").read_text()
    assert all(f"kernels.{name}(" in text for name in ("layer_norm", "add_layer_norm", "swiglu"))
    assert text.count("F.linear(") == 4
    partition = json.loads((tmp_path / "partition.json").read_text())
    assert partition["generated"] == []
    assert all(row["separate_s"] < row["estimated_s"] for row in partition["refused"])
    assert len(partition["refused"]) == 4


def test_a_package_is_a_folder(tmp_path):
    with pytest.raises(UsageError, match="writes a folder"):
        regraft.convert(Vision(), tmp_path / "model.py", args=MODELS["vision"][1], target="triton")


@pytest.mark.parametrize(
    ("target", "aot", "message"),
    [("torch", ("sm_90",), "has none of"), ("triton", ("sm_12",), "unknown target")],
)
def test_binaries_that_cannot_be_made_are_refused(tmp_path, target, aot, message):
    with pytest.raises(UsageError, match=message):
        regraft.convert(
            Vision(), tmp_path / "out", args=MODELS["vision"][1], target=target, aot=aot
        )


AOT = """
import sys, torch, regraft
from tests.backends.triton.test_package import Decoder, TOKENS
torch.manual_seed(0)
regraft.convert(Decoder().eval(), sys.argv[1], args=(TOKENS,), target="triton",
                aot=("sm_90", "sm_80", "gfx942"))
"""


UNIFIED = """
import sys, regraft
from tests.backends.triton.test_unified_maximum import step
net, inputs = step()
names = ("x", "keys", "values")
sample = {name: x.numpy() for name, x in zip(names, inputs)}
regraft.convert(net, sys.argv[1], args=inputs, target="triton", check="off", calibrate=[sample],
                aot=("sm_90", "sm_80", "gfx942"))
"""


def binaries_of(script, folder):
    """Returns the rows of the manifest that a conversion in a process of its own writes."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "out")],
        capture_output=True,
        text=True,
        env={
            **environment,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TRITON_CACHE_DIR": str(folder / "cache"),
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    manifest = folder / "out" / "binaries" / "manifest.json"
    return json.loads(manifest.read_text())["binaries"]


@pytest.mark.slow
def test_binaries_have_the_unified_maximum(tmp_path):
    rows = binaries_of(UNIFIED, tmp_path)
    rows = [row for row in rows if row["kernel"] == "decode_kernel"]
    assert {row["target"] for row in rows} == {"sm_90", "sm_80", "gfx942"}
    assert all(row["constants"]["UNIFIED"] for row in rows)


@pytest.mark.slow
def test_binaries_of_a_package_fit_its_launches(tmp_path):
    rows = binaries_of(AOT, tmp_path)
    folder = tmp_path / "out" / "binaries"
    assert {row["target"] for row in rows} == {"sm_90", "sm_80", "gfx942"}
    assert {row["kernel"] for row in rows} == {
        f"{name}_kernel"
        for name in (
            "attention", "layer_norm_linear", "layer_norm_linear_2", "linear",
            "linear_add", "linear_add_layer_norm",
        )
    }  # fmt: skip
    for row in rows:
        binary = (folder / row["file"]).read_bytes()
        assert binary[:4] == b"\x7fELF"
        assert row["scratch_pointers"] >= 0
