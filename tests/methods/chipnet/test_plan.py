"""Whole runs of ChipNet on tiny networks: budgets are met, the smaller network computes the same, the best is kept."""

import pytest
import torch

from billhook.artifact import GATES
from billhook.cost import count
from billhook.errors import InfeasibleError, InputError, Interrupted, UsageError
from billhook.formats import write_safetensors
from billhook.methods import make_config
from billhook.methods.chipnet import (
    SavedGates,
    gates_of,
    lay_out,
    read_gates,
)
from billhook.models import build
from billhook.progress import Progress
from billhook.training.checkpoint import Journal

from ..problems import NETWORKS, carry_out, check_conformance, ready

SIZES = {"mobilenet_v2": 32}


@pytest.mark.parametrize("coupling", ["group", "independent"])
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_conformance(network, coupling):
    size = SIZES.get(network, 8)
    done = carry_out(ready(network, "chipnet", "params<=50%", size=size, keep=[0, 2], coupling=coupling, batch_size=6))
    masked = check_conformance(done)
    assert count(masked, size).params == done.prepared.setting.cost.params
    assert gates_of(done.full) is None
    assert gates_of(masked) is None


@pytest.mark.parametrize("quantity", ["channels", "volume", "params", "macs", "bytes", "sparsity"])
def test_every_quantity(quantity):
    budget = "sparsity>=60%" if quantity == "sparsity" else f"{quantity}<=40%"
    done = carry_out(ready("resnet20", "chipnet", budget, batch_size=12))
    if quantity == "bytes":
        assert done.bytes <= 0.4 * done.prepared.setting.dense["bytes"]
        return
    left = done.cost.totals()["params" if quantity == "sparsity" else quantity]
    share = left / done.prepared.setting.dense["params" if quantity == "sparsity" else quantity]
    assert 0.38 <= share <= 0.4


@pytest.mark.parametrize("coupling", ["group", "independent"])
@pytest.mark.parametrize("quantity", ["channels", "volume", "params", "macs"])
def test_a_sixteenth_leaves_a_network_that_works(quantity, coupling):
    done = carry_out(ready("resnet20", "chipnet", f"{quantity}<=6.25%", coupling=coupling, batch_size=12))
    left = done.cost.totals()[quantity]
    assert left <= 0.0625 * done.prepared.setting.dense[quantity]
    # A path is left from the image to every output: with positive weights alone, images are told apart.
    with torch.no_grad():
        for part in done.small.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.reset_running_stats()
        for parameter in done.small.parameters():
            parameter.fill_(0.1)
        out = done.small(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert out.std(dim=0).min() > 0


def test_the_history_says_what_gates_did():
    done = carry_out(ready("tiny", "chipnet", "macs<=50%", epochs=12.0, share=0.5, batch_size=12))
    looks = [line for line in done.outcome.history if line["event"] == "gates"]
    epochs = [line for line in done.outcome.history if line["event"] == "epoch" and line["phase"] == "gates"]
    assert len(looks) == len(epochs) >= 5
    gates = sum(vector.channels for vector in done.prepared.plan.layout.vectors)
    for line in looks:
        assert sum(line["histogram"]) == gates
        assert 0 < line["open"] < gates
        assert 0.4 <= line["hard_share"][0] <= line["allowed"][0] == pytest.approx(0.5, abs=1e-3)
        assert 0 <= line["between"] <= 1
        assert 0 <= line["hard_top1_kept"] <= 1
    assert [line["gamma"] for line in epochs] == sorted(line["gamma"] for line in epochs)
    assert epochs[-1]["gamma"] > 100 > epochs[0]["gamma"]
    seconds = [line["seconds"] for line in done.outcome.history if "seconds" in line]
    assert seconds == sorted(seconds)


def test_images_of_both_phases_are_those_of_the_run():
    prepared = ready("tiny", "chipnet", "macs<=50%", epochs=10.0, share=0.3, batch_size=4)
    plan, problem = prepared.plan, prepared.setting.problem
    # Epochs are whole batches: what is left of one is nobody's.
    assert plan.fine_steps == int((1 - 4 * plan.gate_steps / problem.images) * problem.steps)
    assert 4 * plan.gate_steps == pytest.approx(0.3 * problem.images, abs=4)
    assert plan.share == pytest.approx(0.3, abs=0.05)


# ---------------------------------------------------------------------- resuming
class Stop(Progress):
    """Interrupts after so many lines."""

    def __init__(self, after):
        self.left = after

    def line(self, event):
        self.left -= 1
        if self.left == 0:
            raise Interrupted("stop", "", signal_number=2)


@pytest.mark.parametrize("after", [1, 3, 7])
def test_an_interrupted_run_ends_in_the_same_network(after, tmp_path):
    def prepared():
        return ready("tiny", "chipnet", "macs<=50%", epochs=6.0, share=0.5, batch_size=12)

    def go(journal, progress):
        one = prepared()
        with torch.random.fork_rng(devices=[]):
            return one.plan.run(one.setting.problem.network.module, None, journal, progress, lambda history: None)

    whole = go(Journal(None), Progress())
    with pytest.raises(Interrupted):
        go(Journal(tmp_path), Stop(after))
    resumed = go(Journal(tmp_path), Progress())
    assert whole.channels == resumed.channels
    first, second = whole.module.state_dict(), resumed.module.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------- gates of another run
def saved(tmp_path, outcome):
    write_safetensors(tmp_path / GATES, *outcome.files[GATES])
    return str(tmp_path)


def test_gates_go_to_another_network(tmp_path):
    host = carry_out(ready("resnet20", "chipnet", "macs<=50%", batch_size=12))
    directory = saved(tmp_path, host.outcome)
    gates = read_gates(directory)
    assert isinstance(gates, SavedGates)
    assert gates.coupling == "group"
    assert gates.gamma >= 2
    target = ready("resnet20", "chipnet", "macs<=50%", classes=3, transfer_from=directory)
    assert target.plan.gate_steps == 0
    assert target.plan.share == 0
    done = carry_out(target)
    assert done.outcome.channels == host.outcome.channels
    assert not any(line["phase"] == "gates" for line in done.outcome.history)
    assert done.cost.macs <= 0.5 * target.setting.dense["macs"]
    # The same gates under another budget: fewer channels, of those that were there.
    smaller = carry_out(ready("resnet20", "chipnet", "macs<=25%", transfer_from=directory))
    opened = read_gates(saved(tmp_path, smaller.outcome)).open
    assert all((opened[name] <= gates.open[name]).all() for name in opened)


def test_from_scratch_begins_with_other_weights(tmp_path):
    host = carry_out(ready("tiny", "chipnet", "macs<=50%", batch_size=12))
    directory = saved(tmp_path, host.outcome)
    far = {}
    for scratch in (False, True):
        # Weights that no initialisation would draw.
        module = NETWORKS["tiny"](4)
        module.conv3.weight.data.fill_(5.0)
        one = ready(module, "chipnet", "macs<=50%", transfer_from=directory, scratch=scratch, epochs=0.1)
        small = dict(carry_out(one).full.named_modules())["conv3"].weight
        far[scratch] = float((small - 5).detach().abs().min())
    assert far[False] < 1 < 4 < far[True]


def test_gates_that_do_not_fit_are_refused(tmp_path):
    host = carry_out(ready("tiny", "chipnet", "macs<=50%", batch_size=12))
    directory = saved(tmp_path, host.outcome)
    with pytest.raises(InputError, match="do not fit"):
        ready("resnet20", "chipnet", "macs<=50%", transfer_from=directory)
    with pytest.raises(InputError, match="holds no gates"):
        ready("resnet20", "chipnet", "macs<=50%", transfer_from=str(tmp_path / "nowhere"))
    (tmp_path / GATES).write_bytes(b"\0" * 50)
    with pytest.raises(InputError):
        ready("tiny", "chipnet", "macs<=50%", transfer_from=directory)
    with pytest.raises(UsageError, match="transfer_from"):
        make_config("chipnet", {"scratch": True})


def test_gates_of_a_deeper_network_are_refused(tmp_path):
    """Every layer of the target has gates of its size there; those of the others would go unused."""
    deeper = carry_out(ready(build("resnet32", 4), "chipnet", "macs<=50%", batch_size=12))
    with pytest.raises(InputError, match=r"do not fit .*: it has no 'layer\d\.3\.conv1'"):
        ready("resnet20", "chipnet", "macs<=50%", transfer_from=saved(tmp_path, deeper.outcome))


@pytest.mark.parametrize("coupling", ["group", "independent"])
def test_gates_of_another_coupling_are_refused(coupling, tmp_path):
    host = carry_out(ready("resnet20", "chipnet", "macs<=50%", batch_size=12, coupling=coupling))
    other = {"group": "independent", "independent": "group"}[coupling]
    with pytest.raises(InputError, match="do not fit") as caught:
        ready("resnet20", "chipnet", "macs<=50%", transfer_from=saved(tmp_path, host.outcome), coupling=other)
    assert f"the same coupling (theirs: {coupling})" in caught.value.hint


def test_gates_and_streams_that_stay_whole(tmp_path):
    host = carry_out(ready("resnet20", "chipnet", "macs<=50%", batch_size=12, streams=True))
    directory = saved(tmp_path, host.outcome)
    done = carry_out(ready("resnet20", "chipnet", "macs<=50%", transfer_from=directory, streams=False))
    assert {name: part.out_channels for name, part in done.small.named_modules() if name == "conv1"} == {"conv1": 16}
    assert 0.48 * done.prepared.setting.dense["macs"] <= done.cost.macs <= 0.5 * done.prepared.setting.dense["macs"]
    # These have no gates on streams to give.
    directory = saved(tmp_path, done.outcome)
    with pytest.raises(InputError, match="'conv1' has none") as caught:
        ready("resnet20", "chipnet", "macs<=50%", transfer_from=directory, streams=True)
    assert "streams=false" in caught.value.hint
    carry_out(ready("resnet20", "chipnet", "macs<=25%", transfer_from=directory, streams=False))
    # Unless told otherwise, they stay whole here too, even under a budget that would have them narrower.
    least = done.prepared.plan.limits.feasibility()[0]["smallest"]
    assert ready("resnet20", "chipnet", f"macs<={1.2 * least}").plan.limits.floor.streams < 1
    assert ready("resnet20", "chipnet", f"macs<={1.2 * least}", transfer_from=directory).plan.limits.floor.streams == 1


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize("coupling", ["group", "independent"])
def test_a_budget_below_the_smallest_network_says_what_can_be_reached(coupling):
    with pytest.raises(InfeasibleError, match=r"cannot be reached: .* leaves"):
        ready("resnet20", "chipnet", "params<=0.01%", coupling=coupling)


def test_a_network_without_channels_to_gate_is_refused():
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3 * 64, 4)

        def forward(self, x):
            return self.fc(x.flatten(1))

    with pytest.raises(InputError, match="no channel"):
        ready(Linear(), "chipnet", "macs<=50%")


def test_layouts_of_the_plan_are_those_asked_for():
    plan = ready("resnet20", "chipnet", "macs<=50%", coupling="independent").plan
    module = NETWORKS["resnet20"](4)
    assert plan.layout.sizes == lay_out(module, plan.limits.grouping, "independent").sizes
    assert plan.layout.streams
