"""Budgets: reading them, and saying whether they are met."""

import pytest

from billhook.cost.budget import QUANTITIES, Budget, parse_budgets
from billhook.errors import UsageError


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("sparsity>=90%", Budget("sparsity", 0.9, "ratio")),
        ("sparsity>=0.9", Budget("sparsity", 0.9, "ratio")),
        ("sparsity >= 87.5 %", Budget("sparsity", 0.875, "ratio")),
        ("  SPARSITY>=90%  ", Budget("sparsity", 0.9, "ratio")),
        ("sparsity>=0.5%", Budget("sparsity", 0.005, "ratio")),
        ("params<=30%", Budget("params", 0.3, "ratio")),
        ("params<=100%", Budget("params", 1.0, "ratio")),
        ("params<=300k", Budget("params", 300e3, "count")),
        ("params<=300K", Budget("params", 300e3, "count")),
        ("macs<=1.2G", Budget("macs", 1.2e9, "count")),
        ("macs<=300M", Budget("macs", 300e6, "count")),
        ("macs<=1T", Budget("macs", 1e12, "count")),
        ("macs<=125485696", Budget("macs", 125_485_696, "count")),
        ("macs<=3e6", Budget("macs", 3e6, "count")),
        ("macs<=3e+6", Budget("macs", 3e6, "count")),
        ("effective_macs<=25%", Budget("effective_macs", 0.25, "ratio")),
        ("channels<=1000", Budget("channels", 1000, "count")),
        ("volume<=50%", Budget("volume", 0.5, "ratio")),
        ("bytes<=4MB", Budget("bytes", 4e6, "bytes")),
        ("bytes<=4MiB", Budget("bytes", 4 * 2**20, "bytes")),
        ("bytes<=64kb", Budget("bytes", 64e3, "bytes")),
        ("bytes<=64KiB", Budget("bytes", 65536, "bytes")),
        ("bytes<=1GB", Budget("bytes", 1e9, "bytes")),
        ("bytes<=1GiB", Budget("bytes", 2**30, "bytes")),
        ("bytes<=500000", Budget("bytes", 500_000, "bytes")),
        ("bytes<=500000B", Budget("bytes", 500_000, "bytes")),
        ("bytes<=4M", Budget("bytes", 4e6, "bytes")),
        ("bytes<=10%", Budget("bytes", 0.1, "ratio")),
        ("latency<=12ms", Budget("latency", 12, "ms")),
        ("latency<=0.5s", Budget("latency", 500, "ms")),
        ("latency<=800us", Budget("latency", 0.8, "ms")),
        ("latency<=50%", Budget("latency", 0.5, "ratio")),
    ],
)
def test_read(text, budget):
    read = Budget.parse(text)
    assert (read.quantity, read.unit) == (budget.quantity, budget.unit)
    assert read.bound == pytest.approx(budget.bound, rel=1e-12)
    # what it prints, it reads
    again = Budget.parse(str(read))
    assert (again.quantity, again.unit, again.relation) == (read.quantity, read.unit, read.relation)
    assert again.bound == pytest.approx(read.bound, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not of the form"),
        ("90%", "not of the form"),
        ("sparsity", "not of the form"),
        ("sparsity>=", "not of the form"),
        ("sparsity>=abc", "not of the form"),
        ("sparsity>=nan", "not of the form"),
        ("macs<=inf", "not of the form"),
        ("sparsity>=90%%", "unknown unit|must be a percentage"),
        ("sparsty>=90%", "did you mean 'sparsity'"),
        ("flops<=30%", "unknown budget quantity 'flops'"),
        ("sparsity<=90%", "must read sparsity>=BOUND"),
        ("sparsity>90%", "must read sparsity>=BOUND"),
        ("sparsity==90%", "must read sparsity>=BOUND"),
        ("macs>=30%", "must read macs<=BOUND"),
        ("macs<30%", "must read macs<=BOUND"),
        ("macs=<30%", "must read macs<=BOUND"),
        ("sparsity>=0%", "out of range"),
        ("sparsity>=100%", "out of range"),
        ("sparsity>=120%", "out of range"),
        ("sparsity>=-5%", "out of range"),
        ("sparsity>=90", "must be a percentage"),
        ("sparsity>=1", "must be a percentage"),
        ("sparsity>=3M", "must be a percentage"),
        ("macs<=0", "out of range"),
        ("macs<=0%", "out of range"),
        ("macs<=101%", "out of range"),
        ("macs<=-3M", "out of range"),
        ("macs<=1e999", "out of range"),
        ("macs<=0.3", "less than one.*30%"),
        ("bytes<=0.5", "less than one.*50%"),
        ("macs<=3X", "unknown unit 'X'"),
        ("macs<=4MB", "unknown unit 'MB'"),
        ("macs<=12ms", "unknown unit 'ms'"),
        ("bytes<=4ms", "unknown unit 'ms'"),
        ("bytes<=1..2MB", "not a number"),
        ("latency<=12", "needs a unit"),
        ("latency<=12M", "needs a unit"),
        ("latency<=0ms", "out of range"),
    ],
)
def test_refused(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        Budget.parse(text)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_several():
    budgets = parse_budgets(["sparsity>=90%", "bytes<=1MB"])
    assert [b.quantity for b in budgets] == ["sparsity", "bytes"]
    with pytest.raises(UsageError, match="no budget given"):
        parse_budgets([])
    with pytest.raises(UsageError, match="names macs twice"):
        parse_budgets(["macs<=50%", "sparsity>=50%", "macs<=30%"])


DENSE = {
    "params": 1000,
    "macs": 20_000,
    "effective_macs": 20_000,
    "channels": 64,
    "volume": 4096,
    "bytes": 4200,
    "latency_ms": 10.0,
}


@pytest.mark.parametrize(
    ("text", "pruned", "value", "absolute", "unit", "met"),
    [
        ("sparsity>=90%", {"sparsity": 0.9, "zeros": 900}, 0.9, 900, "ratio", True),
        ("sparsity>=90%", {"sparsity": 0.899, "zeros": 899}, 0.899, 899, "ratio", False),
        ("macs<=50%", {"macs": 10_000}, 0.5, 10_000, "ratio", True),
        ("macs<=50%", {"macs": 10_001}, 0.50005, 10_001, "ratio", False),
        ("macs<=10k", {"macs": 10_000}, 10_000, 10_000, "count", True),
        ("macs<=10k", {"macs": 10_001}, 10_001, 10_001, "count", False),
        ("effective_macs<=25%", {"effective_macs": 4000}, 0.2, 4000, "ratio", True),
        ("params<=30%", {"params": 300}, 0.3, 300, "ratio", True),
        ("channels<=32", {"channels": 33}, 33, 33, "count", False),
        ("volume<=50%", {"volume": 2048}, 0.5, 2048, "ratio", True),
        ("bytes<=2kB", {"bytes": 2000}, 2000, 2000, "bytes", True),
        ("bytes<=50%", {"bytes": 2101}, 2101 / 4200, 2101, "ratio", False),
        # a latency is met up to 1.02 of its bound
        ("latency<=5ms", {"latency_ms": 5.1}, 5.1, 5.1, "ms", True),
        ("latency<=5ms", {"latency_ms": 5.11}, 5.11, 5.11, "ms", False),
        ("latency<=50%", {"latency_ms": 5.1}, 0.51, 5.1, "ratio", True),
    ],
)
def test_report(text, pruned, value, absolute, unit, met):
    budget = Budget.parse(text)
    entry = budget.report(DENSE, pruned)
    assert entry["value"] == pytest.approx(value)
    assert entry["value_absolute"] == pytest.approx(absolute)
    assert isinstance(entry["value_absolute"], float if budget.quantity == "latency" else int)
    assert (entry["unit"], entry["met"]) == (unit, met)
    assert (entry["quantity"], entry["relation"], entry["bound"]) == (budget.quantity, budget.relation, budget.bound)
    assert set(entry) == {"quantity", "relation", "bound", "value", "unit", "value_absolute", "met"}


@pytest.mark.parametrize("quantity", [q for q in QUANTITIES if q != "sparsity"])
def test_absolute(quantity):
    key = "latency_ms" if quantity == "latency" else quantity
    assert Budget.parse(f"{quantity}<=25%").absolute(DENSE) == DENSE[key] / 4
    assert Budget(quantity, 7.0, "count").absolute(DENSE) == 7.0


def test_a_percentage_is_the_decimal_that_was_written():
    assert Budget.parse("sparsity>=99.9%").bound == 0.999
