"""Gates: their values, and what a gated network computes, against outputs multiplied by hand."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from billhook.methods.chipnet import Gates, gate_values, gates_of, harden, heaviside, lay_out, logistic
from billhook.methods.chipnet.threshold import choice_of
from billhook.surgery import Grouping, mask_channels, plan_channels, remove_channels

from .networks import BUILD, IMAGES, Residual, random_mask, tiny

COUPLINGS = ["group", "independent"]
STREAMS = ["residual", "plain", "pre", "ends", "chain", "resnet20", "preresnet"]


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


# ---------------------------------------------------------------------- values
@pytest.mark.parametrize("gamma", [2.0, 16.0, 256.0])
def test_the_heaviside_leaves_zero_and_one(gamma):
    torch.testing.assert_close(heaviside(tensor(0, 1), gamma), tensor(0, 1), rtol=0, atol=1e-12)


def test_published_values():
    # z(0.5) of gamma 2 (the first epoch), z(0.1) of 32, z(0.01) of 256.
    found = [float(heaviside(tensor(at), gamma)[0]) for at, gamma in ((0.5, 2), (0.1, 32), (0.01, 256))]
    assert found == pytest.approx([0.6998, 0.9592, 0.9227], abs=1e-4)
    assert float(logistic(tensor(1.0), 2.0)[0]) == pytest.approx(0.880797, abs=1e-6)


@settings(max_examples=40)
@given(
    st.lists(st.floats(-30, 30), min_size=2, max_size=6, unique=True),
    st.floats(0.5, 6),
    st.floats(0.01, 256),
)
def test_values_rise_with_psi_within_bounds(psi, beta, gamma):
    row = torch.tensor(sorted(psi), dtype=torch.float64)
    soft, values = logistic(row, beta), gate_values(row, beta, gamma)
    assert (values >= soft - 1e-12).all()
    assert (values <= 1 + 1e-12).all()
    assert (values.diff() >= -1e-12).all()


def test_gates_begin_as_told():
    published = tiny("residual").gates(seed=3)
    assert 0 <= published.psi.detach().min() < published.psi.detach().max() < 0.01
    assert published.values().tolist() == pytest.approx([0.70] * published.layout.total, abs=2e-3)
    again = tiny("residual").gates(seed=3)
    assert torch.equal(published.psi, again.psi)
    assert not torch.equal(published.psi, tiny("residual").gates(seed=4).psi)


# ---------------------------------------------------------------------- places
def names(layout):
    return {vector.name: [place.name for place in vector.places] for vector in layout.vectors}


def test_gates_of_a_group_stand_behind_everything_that_writes_it():
    assert names(tiny("residual").layout()) == {
        "stem": ["norm", "an2", "bn2"],
        "a1": ["an1"],
        "b1": ["bn1"],
    }
    # The convolutions that write the stream, and the normalisations that read it.
    assert names(tiny("pre").layout()) == {"stem": ["stem", "c2", "bn1", "bn"], "c1": ["bn2"]}
    assert names(tiny("concat").layout()) == {"a": ["a", "bn"], "b": ["b", "bn"], "c": ["c"]}
    assert names(tiny("shared norm").layout())["stem"] == ["stem", "other", "bn"]
    assert names(tiny("scaled").layout()) == {
        "up": ["up"],
        "grouped": ["norm", "depthwise", "scale", "shift"],
        "turn": ["turn"],
    }


def test_independent_gates_are_one_vector_for_each_place_of_a_stream():
    layout = tiny("residual").layout("independent")
    assert names(layout) == {name: [name] for name in ("norm", "an2", "bn2")} | {"a1": ["an1"], "b1": ["bn1"]}
    assert [writer.inner for writer in layout.streams[0].writers] == [None, "a1", "b1"]
    pre = tiny("pre").layout("independent")
    assert set(names(pre)) == {"stem", "c2", "bn1", "bn", "c1"}
    # Two layers read the normalisation; sections and concatenations: they share.
    assert [stream.group.name for stream in tiny("shared norm").layout("independent").streams] == ["a"]
    assert not tiny("concat").layout("independent").streams
    assert not tiny("scaled").layout("independent").streams


def test_a_map_of_channels_has_gates_with_its_group_only():
    assert "layer2.0.downsample" in names(tiny("resnet20").layout())["layer2.0.downsample"]
    layout = tiny("resnet20").layout("independent")
    second = layout.streams[1]
    assert (second.writers[0].vector, second.writers[0].former) == (None, "conv1")
    assert second.writers[0].source.tolist() == [-1] * 8 + list(range(16)) + [-1] * 8


def test_a_network_without_groups_has_no_gates():
    layout = lay_out(nn.Linear(2, 2), Grouping({}))
    gates = Gates(layout)
    network = nn.Linear(2, 2)
    gates.attach(network)
    assert gates.values().shape == (0,)
    assert network(torch.ones(1, 2)).shape == (1, 2)


# ---------------------------------------------------------------------- what a gated network computes
def by_hand(module, gates):
    """The outputs of the places multiplied by their gates, one hook each; bare parameters by hand."""
    handles, saved = [], {}
    for piece, vector in zip(torch.split(gates.values(), list(gates.layout.sizes)), gates.layout.vectors, strict=True):
        for place in vector.places:
            factor = torch.ones(place.size, dtype=piece.dtype)
            for column in place.index.T:
                factor = factor.index_put((torch.from_numpy(column),), piece)
            if place.dim is not None:
                owner = module.get_submodule(place.name.rpartition(".")[0])
                saved[place.name] = (owner, module.get_parameter(place.name))
                last = place.name.rpartition(".")[2]
                del owner._parameters[last]
                setattr(owner, last, saved[place.name][1] * factor.view(-1, 1, 1))
                continue

            def hook(part, inputs, output, factor=factor):
                return output * factor.view(1, -1, *[1] * (output.dim() - 2))

            handles.append(module.get_submodule(place.name).register_forward_hook(hook))
    try:
        return module(IMAGES)
    finally:
        for handle in handles:
            handle.remove()
        for name, (owner, parameter) in saved.items():
            delattr(owner, name.rpartition(".")[2])
            owner.register_parameter(name.rpartition(".")[2], parameter)


def gradients(output, module, gates):
    own = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.autograd.grad(output.square().sum(), [gates.psi, *own], allow_unused=True)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BUILD)
def test_outputs_and_gradients_are_those_of_multiplied_outputs(name, training, coupling):
    case = tiny(name)
    module = copy.deepcopy(case.module).train(training)
    gates = case.gates(coupling)
    with torch.no_grad():
        gates.psi.copy_(torch.randn(len(gates.psi), generator=torch.Generator().manual_seed(1)))
    expected = by_hand(module, gates)
    wanted = gradients(expected, module, gates)
    gates.attach(module)
    found = module(IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (found - case.module(IMAGES)).abs().max() > 1e-4
    for one, other in zip(gradients(found, module, gates), wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8 * float(other.abs().max()) + 1e-12)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", BUILD)
def test_closed_gates_are_channels_that_surgery_removes(name, coupling):
    case = tiny(name)
    gates = case.gates(coupling)
    module = copy.deepcopy(case.module)
    gates.attach(module)
    for seed in range(2):
        mask = random_mask(gates.layout, seed)
        choice = choice_of(mask, np.zeros(len(mask)), gates.layout)
        gates.harden(mask)
        with torch.no_grad():
            expected = module(IMAGES)
            plan = plan_channels(case.module, case.grouping, choice.kept, choice.own)
            for network in (mask_channels(case.module, plan), remove_channels(case.module, plan)):
                torch.testing.assert_close(network(IMAGES), expected, rtol=1e-9, atol=1e-9)
    gates.soften()
    gates.advance(1.0, 1e6)
    with torch.no_grad():  # every gate a step away from 0 is open
        torch.testing.assert_close(module(IMAGES), case.module(IMAGES), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------- on and off
def test_nothing_is_left_when_they_are_taken_off():
    case = tiny("scaled")
    module, gates = copy.deepcopy(case.module), case.gates()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    parameters = dict(module.named_parameters())
    gates.attach(module)
    assert gates_of(module) is gates
    module(IMAGES).sum().backward()
    assert {name: id(p) for name, p in module.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    assert list(module.state_dict()) == list(before)
    gates.detach(module)
    assert gates_of(module) is None
    for part in module.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
        assert not part._forward_hooks_always_called
        assert "weight" not in part.__dict__
    assert torch.equal(module(IMAGES), case.module(IMAGES))


def test_only_their_own_hooks_go():
    module, gates = copy.deepcopy(tiny("residual").module), tiny("residual").gates()
    seen = []
    module.norm.register_forward_hook(lambda *arguments: seen.append(1))
    gates.attach(module)
    gates.detach(module)
    module(IMAGES)
    assert seen == [1]


def test_a_copy_has_gates_of_its_own():
    module, gates = copy.deepcopy(tiny("residual").module), tiny("residual").gates()
    gates.attach(module)
    module(IMAGES).sum().backward()
    other = copy.deepcopy(module)
    assert torch.equal(other(IMAGES), module(IMAGES))
    theirs = gates_of(other)
    assert theirs is not None
    assert theirs is not gates
    with torch.no_grad():
        theirs.psi.zero_()
    assert not torch.allclose(other(IMAGES), module(IMAGES))
    both = copy.deepcopy((module, gates))
    assert gates_of(both[0]) is both[1]
    theirs.detach(other)
    assert torch.equal(other(IMAGES), tiny("residual").module(IMAGES))
    assert gates_of(module) is gates


def test_a_forward_that_fails_leaves_the_layers_whole():
    module, gates = copy.deepcopy(tiny("residual").module), tiny("residual").gates()
    gates.attach(module)
    with pytest.raises(RuntimeError):
        module(torch.zeros(1, 4, 8, 8).double())
    assert all("weight" not in part.__dict__ for part in module.modules())
    assert gates._pieces is None
    copy.deepcopy(module)


def test_they_refuse_a_second_set_and_another_network():
    module, gates = copy.deepcopy(tiny("residual").module), tiny("residual").gates()
    gates.attach(module)
    with pytest.raises(ValueError, match="gates already"):
        tiny("residual").gates().attach(module)
    other = Residual()
    del other.an1
    with pytest.raises(ValueError, match="no 'an1'"):
        gates.attach(other)
    assert not any(part._forward_hooks for part in other.modules())
    with pytest.raises(ValueError, match="gates, not"):
        gates.harden(np.ones(3, dtype=bool))


def test_state_and_transfer():
    gates, other = (tiny("residual").gates(seed=seed) for seed in (0, 1))
    gates.advance(1.2, 64.0)
    gates.harden(np.ones(gates.layout.total, dtype=bool))
    state = gates.state_dict()
    assert set(state) == {"psi", "beta", "gamma"}
    other.load_state_dict(state)
    assert torch.equal(other.values(), gates.values())
    third = tiny("residual").gates(seed=2)
    third.take(gates.named())
    torch.testing.assert_close(third.psi, gates.psi, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="'a1' needs 3 gates"):
        third.take({name: row for name, row in gates.named().items() if name != "a1"})


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["residual", "pre", "scaled"])
def test_autocast_and_channels_last(name, layout):
    case = tiny(name)
    module = copy.deepcopy(case.module).float().train().to(memory_format=layout)
    gates = case.gates().float()
    x = IMAGES.float().to(memory_format=layout)
    gates.attach(module)
    expected = module(x)
    expected.square().sum().backward()
    wanted, gates.psi.grad = gates.psi.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x)
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    scale = float(expected.detach().abs().max())
    assert (found.detach().float() - expected.detach()).abs().max() < 0.1 * scale
    assert gates.psi.grad.dtype == torch.float32
    assert float((gates.psi.grad - wanted).abs().max()) < 0.3 * float(wanted.abs().max())


def test_a_part_of_the_network_on_its_own():
    module, gates = copy.deepcopy(tiny("residual").module), tiny("residual").gates()
    x = torch.rand(2, 4, 5, 5).double()
    whole = module.norm(x)
    gates.attach(module)
    factor = gates.values()[:4].view(1, -1, 1, 1)
    torch.testing.assert_close(module.norm(x), whole * factor)


def test_harden_takes_what_the_threshold_chose():
    case = tiny("residual")
    gates = case.gates()
    choice = harden(gates.named(), gates.layout, case.cost, [], case.dense)
    assert choice.mask.all()
    gates.harden(choice.mask)
    module = copy.deepcopy(case.module)
    gates.attach(module)
    assert torch.equal(module(IMAGES), case.module(IMAGES))


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", BUILD)
def test_open_gates_fold_into_the_weights_of_what_surgery_leaves(name, coupling):
    case = tiny(name)
    module, gates = copy.deepcopy(case.module), case.gates(coupling)
    with torch.no_grad():
        gates.psi.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    gates.attach(module)
    mask = random_mask(gates.layout, 1)
    choice = choice_of(mask, np.zeros(len(mask)), gates.layout)
    gates.harden(mask, keep=True)
    assert gates.mask is not None
    kept = gates.mask[torch.from_numpy(mask)]
    values = gates.values().detach()[torch.from_numpy(mask)]
    assert bool(((kept == values) | (kept == 1)).all())
    assert gates.rigid or torch.equal(kept, values)
    assert (kept == values).any()
    with torch.no_grad():
        expected = module(IMAGES)
        gates.fold(module, mask)
        gates.detach(module)
        small = remove_channels(module, plan_channels(module, case.grouping, choice.kept, choice.own))
        torch.testing.assert_close(small(IMAGES), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", [name for name in BUILD if name != "scaled"])
def test_compensated_weights_leave_the_network_what_it_was(name, coupling):
    case = tiny(name)
    module = copy.deepcopy(case.module)
    gates = case.gates(coupling)
    gates.compensate(module)
    assert (module(IMAGES) - case.module(IMAGES)).abs().max() > 1e-3
    gates.attach(module)
    torch.testing.assert_close(module(IMAGES), case.module(IMAGES), rtol=1e-9, atol=1e-9)
