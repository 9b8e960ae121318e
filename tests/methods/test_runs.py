"""Whole plans on tiny networks: the pattern holds, the budget is met, the overshoot is small."""

import numpy as np
import pytest
import torch

from billhook import artifact
from billhook.errors import InputError, UsageError
from billhook.methods import CHANNEL_METHODS, METHODS, BlockOnly, find_method, make_config
from billhook.patterns import check_hybrid, to_matrix

from .problems import NETWORKS, Ragged, carry_out, ready


def smallest_unit(done, quantity="sparsity"):
    """What the smallest rank column that could still go, or that went, is worth; of unstructured one weight."""
    chooser = done.prepared.plan.chooser
    units = []
    for target in done.prepared.plan.targets:
        grid = getattr(chooser, "grids", {}).get(target.name)
        weights = 1 if grid is None else round(target.outputs * int(grid.widths().max()) * chooser.density)
        units.append(
            {
                "sparsity": weights / done.cost.params,
                "effective_macs": weights * target.positions,
                "bytes": weights * 4.5 + (grid.rows if grid is not None else 0),
            }[quantity]
        )
    return max(units)


def assert_pattern(done):
    """Masks obey the pattern, closed weights are zero, and open ones are not."""
    config = done.prepared.config
    state = dict(done.small.named_parameters())
    for name, info in done.patterns.items():
        mask = torch.from_numpy(np.ascontiguousarray(info.mask))
        assert mask.shape == state[name].shape
        assert torch.all(state[name][~mask] == 0)
        assert (state[name][mask] == 0).float().mean() < 0.01
        if info.kind == "hybrid":
            assert check_hybrid(to_matrix(mask), config.pattern) >= 1
            assert (info.n, info.m, info.block) == (*config.pattern.nm, config.block)
        else:
            assert mask.any()
    assert done.patterns.keys() == {t.parameter for t in done.prepared.plan.targets}


@pytest.mark.parametrize("target", [0.55, 0.7, 0.8, 0.87])
@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("crisp", {"nm": "2:4", "block": 16}),
        ("crisp", {"nm": "2:4", "block": 4, "normalise": "sum"}),
        ("crisp", {"nm": "1:4", "block": 8, "schedule": "linear"}),
        ("crisp", {"nm": "3:4", "block": 4, "ste": False, "saliency": "training"}),
        ("crisp", {"nm": "1:1", "block": 8}),
        ("block-only", {"block": 8}),
        ("magnitude", {}),
        ("saliency", {}),
    ],
)
def test_sparsity_is_met_and_hardly_exceeded(method, fields, target):
    done = carry_out(ready("ragged", method, f"sparsity>={target}", **fields))
    assert_pattern(done)
    reached = 1 - done.cost.nonzero / done.cost.params
    assert reached >= target
    start = done.prepared.plan.chooser.accounting
    if start.sparsity_of(start.start) < target:
        assert done.sparsity - target <= max(0.001, smallest_unit(done))
    assert done.outcome.history[-1]["sparsity"] == pytest.approx(done.sparsity)


@pytest.mark.parametrize("budget", ["effective_macs<=50%", "effective_macs<=300k", "bytes<=50%", "bytes<=50kB"])
@pytest.mark.parametrize("method", ["crisp", "block-only", "magnitude", "saliency"])
def test_macs_and_bytes_are_met_and_hardly_exceeded(method, budget, tmp_path):
    fields = {"block": 8} if method in ("crisp", "block-only") else {}
    prepared = ready("ragged", method, budget, **fields)
    done = carry_out(prepared)
    assert_pattern(done)
    goal = prepared.setting.problem.budgets[0]
    bound = goal.absolute(prepared.setting.dense)
    size = artifact.write_model(tmp_path, done.small, done.patterns, {"hashes": {}})
    value = size if goal.quantity == "bytes" else done.cost.effective_macs
    assert value <= bound
    accounting = prepared.plan.chooser.accounting
    if accounting.need()[0] > 0:
        # biases that are zero count too, hence a percent of slack
        assert bound - value <= max(0.01 * bound, smallest_unit(done, goal.quantity)) + 0.001 * bound


def test_several_budgets_are_all_met():
    goals = ["sparsity>=60%", "bytes<=45%", "effective_macs<=35%"]
    prepared = ready("ragged", "crisp", goals, block=8)
    done = carry_out(prepared)
    assert_pattern(done)
    dense = prepared.setting.dense
    assert done.sparsity >= 0.6
    assert done.bytes <= 0.45 * dense["bytes"]
    assert done.cost.effective_macs <= 0.35 * dense["macs"]


def test_nm_alone_ends_at_its_own_sparsity():
    done = carry_out(ready("ragged", "nm-only", "sparsity>=30%", nm="2:4"))
    assert_pattern(done)
    weights = sum(t.weights for t in done.prepared.plan.targets)
    assert done.sparsity == pytest.approx(0.5 * weights / done.cost.params)


def test_less_than_nm_gives_is_met_with_a_note():
    prepared = ready("ragged", "crisp", "sparsity>=20%")
    assert any("2:4 alone gives" in note and "no block is pruned" in note for note in prepared.plan.notes)
    done = carry_out(prepared)
    assert_pattern(done)
    for info in done.patterns.values():
        mask = to_matrix(torch.from_numpy(np.ascontiguousarray(info.mask)))
        assert mask.float().mean() == 0.5


def test_the_head_is_sliced_and_counts_as_delivered():
    prepared = ready(Ragged(20), "crisp", "sparsity>=70%", classes=20, keep=[*range(0, 20, 2), 1, 3, 5, 7, 9, 11])
    assert [t.name for t in prepared.plan.targets] == ["a", "b", "c", "fc"]
    done = carry_out(prepared)
    assert done.patterns["fc.weight"].mask.shape == (16, 20)
    assert_pattern(done)
    assert done.sparsity >= 0.7
    assert done.cost.params == prepared.setting.delivered.params < prepared.setting.cost.params
    # the rows that are sliced off were never masked
    gone = sorted(set(range(20)) - set(prepared.setting.problem.data.kept))
    assert (done.full.fc.weight[gone] != 0).all()


def test_layers_left_dense_are_named_and_not_touched_by_masks():
    prepared = ready("ragged", "crisp", "sparsity>=60%")
    assert prepared.plan.left_dense == [
        {"name": "first", "reason": "first convolution"},
        {"name": "fc", "reason": "head with 4 outputs (fewer than 16)"},
    ]
    done = carry_out(prepared)
    assert (done.full.first.weight != 0).all()
    assert (done.full.fc.weight != 0).all()


def test_no_layer_takes_the_pattern():
    with pytest.raises(
        InputError, match=r"no layer of module:Ragged takes the pattern \(first: first convolution; a: M"
    ):
        ready("ragged", "crisp", "sparsity>=50%", nm="3:7", block=7)


def test_the_scores_decide_what_stays():
    # With one round at step 0 and a tiny rate, magnitude keeps the largest weights of the network as it came.
    prepared = ready("ragged", "magnitude", "sparsity>=50%", rounds=1)
    weights = {
        t.parameter: prepared.setting.problem.network.module.get_parameter(t.parameter).abs().clone()
        for t in prepared.plan.targets
    }
    done = carry_out(prepared)
    pooled = torch.cat([w.reshape(-1) for w in weights.values()])
    closed = sum(int((~info.mask).sum()) for info in done.patterns.values())
    threshold = pooled.sort().values[closed - 1]
    for name, info in done.patterns.items():
        assert torch.equal(torch.from_numpy(np.ascontiguousarray(info.mask)), weights[name].detach() > threshold)


def test_masks_are_class_aware():
    def masks(keep):
        done = carry_out(
            ready("tiny", "saliency", "sparsity>=40%", keep=keep, rounds=1, saliency_images=40, epochs=2.0)
        )
        return done.patterns["conv2.weight"].mask

    assert (masks([0, 1]) != masks([2, 3])).any()
    assert (masks([0, 1]) == masks([0, 1])).all()


# ---------------------------------------------------------------------- every method on every kind of network

SIZES = {"mobilenet_v2": 32}
METHOD_FIELDS = {"crisp": {}, "nm-only": {}, "block-only": {}, "magnitude": {}, "saliency": {}}


def test_the_table_names_every_method():
    assert METHOD_FIELDS.keys() | set(CHANNEL_METHODS) == METHODS.keys()


@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize("method", sorted(METHOD_FIELDS))
def test_conformance(network, method, tmp_path):
    size = SIZES.get(network, 8)
    prepared = ready(
        network,
        method,
        "sparsity>=20%",
        keep=[0, 2, 3],
        size=size,
        epochs=0.7,
        **METHOD_FIELDS[method],
    )
    done = carry_out(prepared)
    assert_pattern(done)
    assert 1 - done.cost.nonzero / done.cost.params >= 0.2
    images = torch.rand(3, 3, size, size)
    with torch.no_grad():
        out = done.small(images)
        assert out.shape == (3, 3)
        assert torch.isfinite(out).all()
        assert torch.allclose(out, done.full(images)[:, [0, 2, 3]], atol=1e-5)

    setting = prepared.setting
    problem = setting.problem
    described = artifact.architecture(
        problem.network,
        done.small,
        head=setting.head,
        sliced=True,
        data=problem.data,
        preprocess=problem.preprocess,
        patterns=done.patterns,
    )
    artifact.write_model(tmp_path, done.small, done.patterns, described)
    loaded = artifact.load(tmp_path, NETWORKS[network](4))
    with torch.no_grad():
        assert torch.equal(loaded(images), out)
    expected = done.small.state_dict()
    for name, tensor in loaded.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, expected[name]), name


# ---------------------------------------------------------------------- configs


def test_unknown_method():
    with pytest.raises(UsageError, match=r"unknown method 'crips' .*did you mean 'crisp'"):
        find_method("crips")


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("crisp", {"blok": 16}, "no setting 'blok' .*did you mean 'block'"),
        ("magnitude", {"nm": "2:4"}, "'magnitude' has no setting 'nm'"),
        ("crisp", {"nm": "5:4"}, "nm: N = 5 is larger than M = 4"),
        ("crisp", {"nm": "two"}, "nm: 'two' is not of the form N:M"),
        ("crisp", {"nm": "2:4", "block": 6}, "M = 4 does not divide the block size 6"),
        ("crisp", {"block": -1}, "block"),
        ("crisp", {"block": "big"}, "block"),
        ("crisp", {"rounds": 0}, "rounds"),
        ("crisp", {"share": 0}, "share"),
        ("crisp", {"share": 1.5}, "share"),
        ("crisp", {"schedule": "square"}, "schedule"),
        ("crisp", {"score": "taylor"}, "score"),
        ("magnitude", {"score": "saliency"}, "score"),
        ("block-only", {"block": 0}, "block-only has a block size"),
        ("nm-only", {"block": 16}, "nm-only prunes no blocks"),
    ],
)
def test_configs_that_are_refused(method, fields, message):
    with pytest.raises(UsageError, match=message) as caught:
        make_config(method, fields)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_configs_that_are_taken():
    assert make_config("crisp", {"nm": "1:4", "block": 32}).pattern.nm.density == 0.25
    assert make_config("crisp", {"nm": None}).pattern.nm == (1, 1)
    assert BlockOnly(block=8).pattern.block == 8
    assert make_config("nm-only", {}).pattern.block == 0
