"""Every network that we promise to cut is cut, and computes, learns, costs, loads and exports what it should."""

import copy
import io
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import billhook
from billhook import artifact
from billhook.cost import count
from billhook.data import Preprocess
from billhook.errors import InputError
from billhook.models import REGISTRY, find_head, open_network
from billhook.surgery import (
    ChannelPlan,
    channel_groups,
    expand_channels,
    mask_channels,
    plan_channels,
    remove_channels,
    slice_head,
)
from billhook.surgery.channel_cost import QUANTITIES, ChannelCost
from billhook.surgery.channels import tensor_cuts
from models.test_libraries import SPECS, installed
from surgery.cases import CLASSES, Case, draw, images, settle, size_of

PAGE = Path(__file__).parents[2] / "docs" / "surgery.md"
BEGIN, END = "<!-- refused: begin (written by tests/surgery/test_conformance.py) -->", "<!-- refused: end -->"

FAST = [
    "resnet20",
    "resnet20,shortcut=conv",
    "resnet18,width=0.25",
    "preresnet20",
    "mobilenet_v2,width=0.5",
    "vgg16_bn,stem=cifar,width=0.25",
    "resnext50_32x4d,stem=cifar,width=0.5",
    "wrn26_12,width=1",
    "tinycnn",
]
# The giants in the shape that they have, with a quarter of the channels: no index depends on how many there are.
NARROW = {name: f"{name},width=0.25" for name in ("resnext101_32x8d", "resnext101_32x16d", "vgg16", "vgg16_bn")}
NARROW["wrn26_12"] = "wrn26_12,width=4"
LONG = [NARROW.get(name, name) for name in REGISTRY if name not in FAST] + ["resnext50_32x4d,stem=cifar"]

REFUSED_WHOLE = {
    "torchvision:shufflenet_v2_x0_5": "'stage2.0' reshapes its channels, which mixes them",
    "torchvision:shufflenet_v2_x1_0": "'stage2.0' reshapes its channels, which mixes them",
}
"""Library networks without a single group, and why."""

LIBRARIES = [str(param.values[0]) for param in SPECS]
CASES = [
    *FAST,
    *(pytest.param(spec, marks=pytest.mark.slow) for spec in LONG),
    *(
        pytest.param(*param.values, marks=[*param.marks, pytest.mark.slow])
        for param in SPECS
        if param.values[0] not in REFUSED_WHOLE
    ),
]
QUIET = pytest.mark.filterwarnings("ignore:The default weight initialization")

_seen: dict[str, tuple[int, dict[str, str]]] = {}


def look(spec, grouping):
    """Note what is refused, for the table."""
    _seen[spec] = (len(grouping.groups), dict(grouping.refused))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    case = Case(request.param)
    look(request.param, case.grouping)
    return case


def outputs(module, x):
    with torch.no_grad():
        return module(x)


def largest(tensor):
    return float(tensor.abs().max())


def rounding(single, double):
    """How far two computations of the same in single precision may be apart where it costs digits by itself."""
    return 4 * largest(single.double() - double)


# ---------------------------------------------------------------------- what is computed
@QUIET
def test_masked_removed_and_expanded_compute_the_same(case):
    for cut in case.cuts.values():
        masked, small = (outputs(network, case.images) for network in (cut.masked, cut.small))
        large = outputs(expand_channels(cut.small, case.module, cut.plan).eval(), case.images)
        # The difference of two images: a constant, which any network has, is no excuse.
        scale = largest(masked[0] - masked[1])
        assert scale > 1e-5 * largest(masked)
        assert largest(small - masked) < 1e-10 * scale
        assert largest(large - masked) < 1e-10 * scale
        assert largest(outputs(case.module, case.images) - masked) > scale / 10
        x = case.images.float()
        masked32, small32 = outputs(copy.deepcopy(cut.masked).float(), x), outputs(cut.small32, x)
        assert largest(small32 - masked32) < 1e-4 * largest(masked32) + rounding(masked32, masked)


@QUIET
def test_one_wrong_index_would_be_seen(case):
    cut = case.cuts["half"]
    parts = dict(case.module.named_modules())
    readers = [
        name
        for name, layer in cut.plan.layers.items()
        if layer.inside and isinstance(parts[name], torch.nn.Conv2d | torch.nn.Linear)
        if getattr(parts[name], "groups", 1) == 1
    ]
    name = readers[len(readers) // 2]
    layer = cut.plan.layers[name]
    total = parts[name].weight.shape[1]
    others = sorted(set(range(total)) - set(layer.inside))[: len(layer.inside)]
    wrong = tuple(sorted((*layer.inside[len(others) :], *others)))
    plan = ChannelPlan({**cut.plan.layers, name: type(layer)(layer.out, wrong)})
    expected = outputs(cut.masked, case.images)
    found = outputs(remove_channels(case.module, plan).eval(), case.images)
    assert largest(found - expected) > 1e-4 * largest(expected[0] - expected[1])


@QUIET
def test_gradients_are_those_of_the_masked_network(case):
    for cut in case.cuts.values():
        masked, small = cut.masked, cut.small
        for network in (masked, small):
            network.zero_grad(set_to_none=True)
            network(case.images).square().sum().backward()
        taken = tensor_cuts(case.module, cut.plan)
        theirs = dict(masked.named_parameters())
        for name, parameter in small.named_parameters():
            if name not in theirs:
                owner = name.removesuffix(".value")
                assert cut.plan.layers[owner].role == "constant"
                full = theirs[f"{owner}.bias"].grad
                out = cut.plan.layers[owner].out
                expected = full if out is None else full[list(out)]
            elif theirs[name].grad is None:
                assert parameter.grad is None, name
                continue
            else:
                expected = taken[name].take(theirs[name].grad)
            found = parameter.grad
            assert found is not None, name
            assert largest(found - expected) <= 1e-9 * largest(expected) + 1e-12, name
        for network in (masked, small):
            network.zero_grad(set_to_none=True)


def single_headed(network):
    """Without the classifiers that torchvision adds to two networks while they train: nothing traces those."""
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(network, name):
            network.aux_logits = False
            setattr(network, name, None)
    return network


@QUIET
def test_it_goes_on_learning(case):
    dense = single_headed(copy.deepcopy(case.module).float().train())
    torch.manual_seed(0)
    dense(images(case.size)).square().mean().backward()
    learning = {name for name, parameter in dense.named_parameters() if parameter.grad is not None}
    assert learning
    del dense
    for cut in case.cuts.values():
        small = single_headed(copy.deepcopy(cut.small32).train())
        torch.manual_seed(0)
        small(images(case.size)).square().mean().backward()
        for name, parameter in small.named_parameters():
            if name in learning or name.endswith(".value"):
                assert parameter.grad is not None, name
                assert torch.isfinite(parameter.grad).all(), name
        left = {name for name, _ in small.named_parameters()}
        lost = {name for name in learning if name not in left}
        assert all(cut.plan.layers[name.rpartition(".")[0]].role is not None for name in lost)


def test_what_stood_in_front_of_a_branch_alone_goes_with_it():
    module, size = open_network("preresnet20", CLASSES).module, size_of("preresnet20")
    grouping = channel_groups(module, size)
    assert grouping.fronts("layer1.1.conv1") == ("layer1.1.bn1",)
    assert grouping.fronts("layer1.1.conv2") == ("layer1.1.bn2",)
    assert grouping.fronts("fc") == ("bn",)
    plan = plan_channels(module, grouping, {"layer1.1.conv2": []})
    assert {name: layer.role for name, layer in plan.layers.items()} == {
        "layer1.1.bn1": "idle",
        "layer1.1.conv1": "silent",
        "layer1.1.bn2": "idle",
        "layer1.1.conv2": "silent",
        "layer1.1.bn3": "idle",
        "layer1.1.conv3": "constant",
    }


@QUIET
def test_it_costs_what_was_said(case):
    network = case.module
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    size = artifact.file_bytes(artifact.state_arrays(network), {})
    costs = ChannelCost(count(network, case.size), case.grouping, size, shapes=shapes)
    dense = costs.totals({})
    assert dense["params"] == sum(parameter.numel() for parameter in network.parameters())
    for cut in case.cuts.values():
        said = costs.totals({name: len(channels) for name, channels in cut.kept.items()})
        small = cut.small32
        found = count(small, case.size)
        assert said["params"] == found.params == sum(parameter.numel() for parameter in small.parameters())
        assert said["macs"] == found.macs
        assert (said["channels"], said["volume"]) == (found.channels, found.volume)
        written = artifact.file_bytes(artifact.state_arrays(small), {})
        assert written <= said["bytes"] <= written + 200 * len(shapes)
        assert all(said[quantity] <= dense[quantity] for quantity in QUANTITIES)
        assert all(said[quantity] < dense[quantity] for quantity in ("params", "macs", "bytes"))


# ---------------------------------------------------------------------- what is delivered
def deliver(folder, case, cut, kept=None):
    """A folder with a network in it, as a run leaves it."""
    head = find_head(case.module)
    small = cut.small32
    if kept is not None:
        small = slice_head(small, head, kept)
    names = [f"class {number}" for number in range(CLASSES)]
    chosen = range(CLASSES) if kept is None else kept
    described = artifact.architecture(
        case.network,
        small,
        head=head,
        sliced=kept is not None,
        data=SimpleNamespace(
            name="none",
            kept=tuple(chosen),
            kept_names=tuple(names[number] for number in chosen),
            label_entries=lambda outputs=None: names if outputs is None else [names[number] for number in outputs],
        ),
        preprocess=Preprocess(case.size, (0.5,) * 3, (0.5,) * 3, case.size),
        patterns={},
        channels=[cut.plan.as_dict()],
    )
    folder.mkdir()
    artifact.write_model(folder, small, {}, described)
    return small


@QUIET
def test_it_is_loaded_bit_by_bit(case, tmp_path):
    for name, cut in case.cuts.items():
        folder = tmp_path / name
        small = deliver(folder, case, cut)
        network = artifact.load_network(folder)[0]
        assert [ChannelPlan.from_dict(plan) for plan in network.channels] == [cut.plan]
        x = case.images.float()
        assert torch.equal(outputs(network.module, x), outputs(small, x))
        assert not network.module.training


def test_loading_needs_no_torch_pruning(tmp_path):
    case = Case("preresnet20")
    cut = case.cuts["fewer branches"]
    small = deliver(tmp_path / "run", case, cut, kept=(7, 1, 4))
    x = case.images.float()
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import sys; sys.modules['torch_pruning'] = None\n"
        "import numpy, torch, billhook\n"
        "network = billhook.load('run')\n"
        "with torch.no_grad():\n"
        "    numpy.save('y.npy', network(torch.from_numpy(numpy.load('x.npy'))).numpy())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "y.npy")
    assert found.shape == (2, 3)
    assert np.array_equal(found, outputs(small, x).numpy())
    assert torch.equal(outputs(billhook.load(tmp_path / "run"), x), outputs(small, x))


def exported(module, x):
    """Outputs of a network in ONNX Runtime, on one thread."""
    import onnxruntime

    file = io.BytesIO()
    # The older exporter: a second where the newer takes ten, and both have to write the same operators.
    torch.onnx.export(module, (x,), file, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@QUIET
@installed("onnx", "onnxruntime")
@pytest.mark.filterwarnings("ignore:Constant folding", "ignore:You are using the legacy TorchScript")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_onnx_runtime_computes_the_same(case):
    # The exporter writes a pooling to 7x7 only where the map is a multiple of that, as at the usual size.
    pools = [part.output_size for part in case.module.modules() if isinstance(part, torch.nn.AdaptiveAvgPool2d)]
    x = case.images.float() if all(size in (1, (1, 1)) for size in pools) else images(224)[:2]
    for cut in case.cuts.values():
        small = cut.small32
        expected = outputs(small, x)
        exact = outputs(cut.small, x.double())
        assert largest(exported(small, x) - expected) < 1e-4 * largest(expected) + rounding(expected, exact)


# ---------------------------------------------------------------------- ragged
class Knot(torch.nn.Module):
    """A stem that is added to, concatenated, normalised, gated and read in groups; a branch that may go."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.inner = torch.nn.Conv2d(8, 6, 1)
        self.inner_bn = torch.nn.BatchNorm2d(6)
        self.back = torch.nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.back_bn = torch.nn.BatchNorm2d(8)
        self.deep = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze = torch.nn.Conv2d(8, 2, 1)
        self.gate = torch.nn.Conv2d(2, 8, 1)
        self.side = torch.nn.Conv2d(8, 5, 1)
        self.up = torch.nn.ConvTranspose2d(13, 12, 2, stride=2)
        self.act = torch.nn.PReLU(12)
        self.grouped = torch.nn.Conv2d(12, 9, 3, groups=3)
        self.line = torch.nn.Linear(36, 7)
        self.head = torch.nn.Linear(7, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.back_bn(self.back(self.inner_bn(self.inner(x)).relu()))
        x = self.deep(x)
        x = x * self.gate(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = self.act(self.up(torch.cat([x, self.side(x)], dim=1)))
        x = torch.nn.functional.adaptive_avg_pool2d(self.grouped(x), 2).flatten(1)
        return self.head(self.line(x).relu())


TINY = {"tinycnn": lambda: open_network("tinycnn", CLASSES).module, "knot": Knot}
_tiny: dict[str, tuple] = {}


def tiny(name):
    if name not in _tiny:
        torch.manual_seed(1)
        module = TINY[name]()
        settle(module, 32)
        _tiny[name] = (module.double().eval(), channel_groups(module, 32))
    return _tiny[name]


@settings(max_examples=25)
@given(name=st.sampled_from(sorted(TINY)), seed=st.integers(0, 3), data=st.data())
def test_any_share_of_any_group(name, seed, data):
    module, grouping = tiny(name)
    kept = {}
    for group in grouping.groups.values():
        share = data.draw(st.floats(0, 1), label=group.name)
        gone = group.branch is not None and data.draw(st.booleans(), label=f"{group.name} gone")
        kept[group.name] = [] if gone else draw(grouping, share, seed=seed)[group.name]
    plan = plan_channels(module, grouping, kept)
    small = remove_channels(module, plan)
    x = images(32)[:2].double()
    masked = outputs(mask_channels(module, plan), x)
    # Three channels of one map may be dead: the scale is that of the output here.
    assert largest(outputs(small, x) - masked) < 1e-10 * largest(masked)
    assert largest(outputs(expand_channels(small, module, plan), x) - masked) < 1e-10 * largest(masked)


def test_the_knot_has_every_kind_of_group():
    groups = tiny("knot")[1].groups
    assert {name: group.sections for name, group in groups.items()} == {
        "stem": 1,
        "inner": 1,
        "squeeze": 1,
        "side": 1,
        "up": 3,
        "grouped": 3,
        "line": 1,
    }
    assert [name for name, group in groups.items() if group.branch is not None] == ["inner"]


# ---------------------------------------------------------------------- what is refused
OUTPUT = "its channels are the network's output"


def refusals(spec):
    """How many groups a network has and what is refused; None groups: the whole of it, under its empty name."""
    if spec not in _seen:
        network = open_network(spec, CLASSES).module
        try:
            look(spec, channel_groups(network, size_of(spec)))
        except InputError as error:
            _seen[spec] = (0, {"": str(error)})
    return _seen[spec]


def pattern(name):
    """A layer's name with a star for each number but those of its last part."""
    path, dot, last = name.rpartition(".")
    return re.sub(r"\d+", "*", path) + dot + last


def folded(names, everything):
    """Layers as patterns, and how many layers of such a name there are."""
    of = Counter(map(pattern, everything))
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(pattern(name), []).append(name)
    return ", ".join(
        f"`{found[0]}`" if len(found) == 1 else f"`{star}` ({len(found)} of {of[star]})"
        for star, found in alike.items()
    )


def rows(spec):
    """The lines of the table for one network."""
    groups, refused = refusals(spec)
    if spec in REFUSED_WHOLE:
        reason = refused[""].partition("cannot be traced: ")[2].partition(" (prune")[0]
        return [f"| {spec} | none | all | {reason} |"]
    layers = open_network(spec, CLASSES).module.named_modules()
    matrices = [name for name, part in layers if isinstance(part, torch.nn.Conv2d | torch.nn.Linear)]
    reasons: dict[str, list[str]] = {}
    for layer, reason in refused.items():
        if reason != OUTPUT:
            # Names and numbers differ from layer to layer, messages from one PyTorch to the next.
            reason = re.sub(r" \(.*\)$", "", re.sub(r"'[^']*'", "a layer", reason))
            reasons.setdefault(reason, []).append(layer)
    return [f"| {spec} | {groups} | {folded(names, matrices)} | {reason} |" for reason, names in reasons.items()]


def listed():
    """What was tried and what is refused, as Markdown."""
    lines = {spec: rows(spec) for spec in LIBRARIES}
    clean = [spec.partition(":") for spec, found in lines.items() if not found]
    return "\n".join(
        [
            "Nothing but the head is refused in",
            "",
            *(
                f"* {library}: " + ", ".join(f"`{name}`" for of, _, name in clean if of == library)
                for library in ("torchvision", "timm")
            ),
            "",
            "| network | groups | refused layers | why |",
            "|---|---|---|---|",
            *(row for found in lines.values() for row in found),
        ]
    )


@QUIET
@pytest.mark.slow
@installed("torchvision", "timm")
def test_nearly_every_library_network_is_cut():
    whole = {spec: refused[""] for spec in LIBRARIES if "" in (refused := refusals(spec)[1])}
    assert set(whole) == set(REFUSED_WHOLE)
    for spec, reason in REFUSED_WHOLE.items():
        assert reason in whole[spec]
    assert 40 * len(whole) <= 2 * len(LIBRARIES)  # 38 of 40 go
    assert sum(spec.startswith("torchvision:") for spec in LIBRARIES) >= 25
    assert sum(spec.startswith("timm:") for spec in LIBRARIES) >= 15


@pytest.mark.parametrize("spec", [*FAST, *(pytest.param(spec, marks=pytest.mark.slow) for spec in LONG)])
def test_of_ours_only_the_head_is_refused(spec):
    groups, refused = refusals(spec)
    assert groups
    assert list(refused.values()) == [OUTPUT]


@QUIET
@pytest.mark.slow
@installed("torchvision", "timm")
def test_the_page_lists_what_is_refused():
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    found, after = rest.split(END)
    expected = f"\n{listed()}\n"
    if os.environ.get("BILLHOOK_UPDATE_DOCS") == "1":
        PAGE.write_text(f"{before}{BEGIN}{expected}{END}{after}")
        return
    assert found == expected, "docs/surgery.md is out of date: BILLHOOK_UPDATE_DOCS=1 pytest " + str(__file__)
