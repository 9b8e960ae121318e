"""The arithmetic of budgets against recounting real masked networks and real files."""

import copy

import numpy as np
import pytest
import torch

from billhook import artifact
from billhook.cost import count
from billhook.errors import InfeasibleError, UsageError
from billhook.methods.accounting import TOLERANCE, Accounting
from billhook.patterns import hybrid_mask, nm_mask, rank_columns
from billhook.surgery import slice_head

from .problems import ready


def accounting_of(prepared) -> Accounting:
    return prepared.plan.chooser.accounting


def random_masks(prepared, removed_share, seed=0):
    """Valid masks with a share of each layer's rank columns (or weights) removed, and the kept weights per layer."""
    chooser, generator = prepared.plan.chooser, torch.Generator().manual_seed(seed)
    masks, kept, columns = {}, {}, {}
    for target in prepared.plan.targets:
        score = torch.rand(target.outputs, target.taps, target.inputs, generator=generator)
        if hasattr(chooser, "grids"):
            grid = chooser.grids[target.name]
            mask = nm_mask(score, chooser.pattern.nm)
            ranks = rank_columns(score * mask, grid, chooser.density)
            removed = int(removed_share * (grid.columns - 1)) if chooser.pattern.block else 0
            columns[target.name] = (ranks.cost, removed, grid.rows)
            mask = hybrid_mask(mask, grid, ranks.order, removed)
        else:
            mask = score >= removed_share
            columns[target.name] = (np.array([int((~mask).sum())]), 1, 0)
        masks[target.parameter], kept[target.name] = target.full_mask(mask), int(mask.sum())
    return masks, kept, columns


def masked_network(prepared, masks):
    """The delivered network with real zeros, its cost, and its file's patterns."""
    setting, chooser = prepared.setting, prepared.plan.chooser
    module = copy.deepcopy(setting.problem.network.module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter[parameter == 0] = 1e-3  # biases start at zero, and would count as pruned
        for name, mask in masks.items():
            module.get_parameter(name).mul_(mask)
    patterns = chooser.patterns(masks)
    if setting.problem.slice_head:
        patterns = artifact.slice_patterns(patterns, setting.head, setting.problem.data.kept)
        module = slice_head(module, setting.head, setting.problem.data.kept)
    return module, count(module, setting.problem.preprocess.input_size), patterns


CASES = [
    ("ragged", "crisp", {"nm": "2:4", "block": 16}),
    ("ragged", "crisp", {"nm": "1:4", "block": 8}),
    ("ragged", "nm-only", {"nm": "1:4"}),
    ("ragged", "block-only", {"block": 16}),
    ("ragged", "magnitude", {}),
    ("resnet20", "crisp", {"nm": "2:4", "block": 16}),
    ("resnet20", "magnitude", {}),
]


@pytest.mark.parametrize(("network", "method", "fields"), CASES)
@pytest.mark.parametrize("keep", [None, [0, 2]])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_against_a_network_that_is_really_masked(network, method, fields, keep, share):
    goals = ["sparsity>=10%", "effective_macs<=90%", "bytes<=90%"]
    prepared = ready(network, method, goals, keep=keep, **fields)
    accounting = accounting_of(prepared)
    masks, kept, columns = random_masks(prepared, share)
    module, cost, patterns = masked_network(prepared, masks)
    zeros = cost.params - cost.nonzero
    assert accounting.zeros_of(kept) == zeros
    assert accounting.sparsity_of(kept) == pytest.approx(zeros / prepared.setting.delivered.params)
    assert accounting.sparsity(masks) == pytest.approx(zeros / prepared.setting.delivered.params)

    dense = prepared.setting.dense
    left = accounting.need(kept)
    assert left[0] == pytest.approx(np.ceil(0.1 * cost.params) - zeros)
    assert left[1] == pytest.approx(cost.effective_macs - 0.9 * dense["effective_macs"], rel=1e-9, abs=1e-3)

    # Starting need less what the columns save is what is left: for bytes up to the rounding of every layer.
    saved = np.zeros(3)
    for target in prepared.plan.targets:
        costs, removed, rows = columns[target.name]
        saved += accounting.cost(target, costs[:removed], rows).sum(axis=0)
    remaining = accounting.need() - saved
    assert remaining[:2] == pytest.approx(left[:2], abs=1e-3)
    size = artifact.file_bytes(artifact.state_arrays(module), patterns)
    excess = size - 0.9 * dense["bytes"]
    # Never less than the file has; more by two bytes of rounding and the shorter numbers in the header, per layer.
    unneeded = 2 * len(prepared.plan.targets) if accounting.need()[2] <= 0 else 0
    assert excess <= remaining[2] + unneeded + 1e-6
    assert remaining[2] - excess <= 8 + 24 * len(prepared.plan.targets)


@pytest.mark.parametrize(("network", "method", "fields"), CASES)
def test_the_file_on_disk_has_the_size_that_is_counted(network, method, fields, tmp_path):
    prepared = ready(network, method, "bytes<=90%", **fields)
    masks, _, _ = random_masks(prepared, 0.5)
    module, _, patterns = masked_network(prepared, masks)
    size = artifact.write_model(tmp_path, module, patterns, {"hashes": {}})
    assert size == (tmp_path / artifact.WEIGHTS).stat().st_size
    assert size == artifact.file_bytes(artifact.state_arrays(module), patterns)


@pytest.mark.parametrize("budget", ["params<=50%", "macs<=50%", "channels<=50%", "volume<=50%"])
@pytest.mark.parametrize("method", ["crisp", "magnitude"])
def test_what_weights_cannot_move_is_refused(budget, method):
    with pytest.raises(UsageError, match=f"the method '{method}' cannot move {budget.split('<')[0]}"):
        ready("ragged", method, budget)


@pytest.mark.parametrize("method", ["magnitude", "saliency"])
def test_latency_is_refused_for_zeros_in_no_pattern(method):
    with pytest.raises(UsageError, match=f"the method '{method}' cannot move latency: zeros in no pattern"):
        ready("ragged", method, "latency<=5ms")


@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        ("crisp", "sparsity>=99.9%", r"one rank column of 16x16 blocks per layer leaves \d\d\.\d\d %"),
        ("nm-only", "sparsity>=90%", r"2:4 without blocks leaves \d\d\.\d\d %"),
        ("block-only", "sparsity>=99.9%", r"one rank column of 16x16 blocks"),
        ("magnitude", "sparsity>=99.9%", r"one weight per layer leaves \d\d\.\d\d %"),
        ("crisp", "effective_macs<=1%", r"leaves \d+\.\d\d % of dense"),
        ("crisp", "bytes<=1%", r"leaves \d+\.\d\d % of dense"),
        ("crisp", "bytes<=5kB", r"leaves \d,\d{3} bytes"),
        ("crisp", "effective_macs<=5k", r"leaves [\d,]+ effective_macs"),
    ],
)
def test_infeasible_says_what_is_reachable(method, budget, message):
    with pytest.raises(InfeasibleError, match=message) as caught:
        ready("ragged", method, budget)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("method", ["crisp", "nm-only", "block-only", "magnitude"])
def test_what_an_infeasible_budget_calls_reachable_is_feasible(method):
    with pytest.raises(InfeasibleError) as caught:
        ready("ragged", method, "sparsity>=99.9%")
    reachable = float(caught.value.message.rpartition("leaves ")[2].removesuffix(" % sparsity"))
    prepared = ready("ragged", method, f"sparsity>={reachable - 0.01:.2f}%")
    assert prepared.plan.feasible[0]["feasible"] is True
    assert prepared.plan.feasible[0]["smallest"] == pytest.approx(reachable / 100, abs=1e-4)
    with pytest.raises(InfeasibleError):
        ready("ragged", method, f"sparsity>={reachable + 0.01:.2f}%")


def test_one_row_per_budget():
    rows = ready("ragged", "crisp", ["sparsity>=60%", "bytes<=45%", "effective_macs<=60%"]).plan.feasible
    assert [row["quantity"] for row in rows] == ["sparsity", "bytes", "effective_macs"]
    assert all(row["feasible"] for row in rows)
    assert rows[0]["asked"] == 0.6
    assert rows[1]["asked"] == pytest.approx(0.45 * rows[1]["dense"])
    assert rows[2]["smallest"] < rows[2]["asked"] < rows[2]["dense"]


def test_the_tolerance_is_within_the_contract():
    prepared = ready("ragged", "crisp", ["sparsity>=60%", "bytes<=45%", "effective_macs<=50%"])
    accounting, dense = accounting_of(prepared), prepared.setting.dense
    params = prepared.setting.delivered.params
    assert accounting.tolerance.tolist() == pytest.approx(
        [TOLERANCE * params, TOLERANCE * dense["bytes"], TOLERANCE * dense["macs"]]
    )
    # One percent of a small bound is less than a thousandth of the dense quantity.
    small = accounting_of(ready("resnet20", "magnitude", ["bytes<=8%", "effective_macs<=9%"]))
    dense = ready("resnet20", "magnitude", "sparsity>=1%").setting.dense
    assert small.tolerance.tolist() == pytest.approx([0.01 * 0.08 * dense["bytes"], 0.01 * 0.09 * dense["macs"]])
