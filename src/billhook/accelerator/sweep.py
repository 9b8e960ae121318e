"""What hybrid patterns would buy: N:M x block size x share of pruned blocks, and how far one has to go for a factor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

from billhook.accelerator.gemm import Gemm, Pattern
from billhook.accelerator.machine import DENSE, Machine, parse_nm
from billhook.accelerator.outcome import LEVELS
from billhook.accelerator.simulate import TOTAL, densely, run_layer
from billhook.errors import UsageError

NM = ((1, 4), (2, 4), (3, 4))
BLOCKS = (16, 32, 64)
SHARES = (0.0, 0.25, 0.5, 0.625, 0.75, 0.875, 0.9375, 0.96875)
"""Shares of the block columns that are pruned; every layer keeps at least one."""

TARGETS = (7.0, 14.0)
FINEST = 0.01
"""Step in which a share is looked for."""

HYBRID = "crisp-stc"
Metric = Literal["latency", "energy"]


@dataclass(frozen=True)
class Choice:
    """One pattern of the sweep: N:M, block side, share of the block columns that is pruned."""

    n: int
    m: int
    block: int
    share: float

    @property
    def nm(self) -> str:
        """``2:4``."""
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Reached:
    """How far to go for a factor over the dense machine, in latency or in energy.

    Attributes:
        scope: ``network``, or ``layer``: the first layer that gets there.
        metric: ``latency`` or ``energy``.
        times: The factor.
        met: Whether any pattern of the sweep gets there with at most 99 % of the blocks pruned.
        nm: Of the pattern that needs the lowest sparsity; where none gets there: of the one that comes closest.
        block: Its block size.
        block_sparsity: Its share of pruned blocks.
        sparsity: Zero weights in the layers that take the pattern (of the one layer, for ``layer``).
        value: The factor there.
        layer: Its name, for ``layer``.
        bound_by: What binds there.
    """

    scope: Literal["network", "layer"]
    metric: Metric
    times: float
    met: bool
    nm: str
    block: int
    block_sparsity: float
    sparsity: float
    value: float
    layer: str
    bound_by: str


@dataclass(frozen=True)
class _Sum:
    """Figures of one or several layers."""

    cycles: float
    energy_pj: float
    levels: tuple[float, ...]
    bound: str


def parse_choice(nm: str | None, block: int, share: float) -> Choice | None:
    """One pattern from the command line; None where nothing is said.

    Raises:
        UsageError: No N:M pattern, blocks that M does not divide, or pruned blocks without a size.
    """
    if nm is None and not block and not share:
        return None
    try:
        n, m = parse_nm(nm) if nm is not None else (1, 1)
    except ValueError as error:
        raise UsageError(f"--nm {error}") from error
    if block % m:
        raise UsageError(f"--block {block}: M = {m} does not divide it")
    if share and not block:
        raise UsageError("--blocks-pruned needs the size of a block", "such as --block 64")
    return Choice(n, m, block, share)


def apply_choice(gemm: Gemm, choice: Choice) -> Gemm:
    """A layer under a pattern of the sweep; unchanged where M does not divide its channels.

    The weakest floor(share x C) block columns go, and at least one stays.
    """
    if gemm.groups > 1 or gemm.channels % choice.m:
        return gemm
    bare = Pattern(choice.n, choice.m, choice.block)
    pruned = replace(gemm, pattern=bare, weight_density=1.0)
    if not choice.block:
        return pruned
    columns = pruned.geometry.block_columns
    kept = max(1, columns - int(columns * choice.share + 1e-9))
    return replace(pruned, pattern=replace(bare, kept=kept))


@dataclass(frozen=True)
class _Shape:
    """Equal layers of the network.

    Attributes:
        gemm: One of them, with all its weights.
        prunable: Whether they take a pattern.
        count: How many there are.
        base: Them on the dense machine.
    """

    gemm: Gemm
    prunable: bool
    count: int
    base: _Sum


class Sweep:
    """The sweep over one network.

    Args:
        gemms: Its layers; their own zeros are of no account.
        prunable: Names of those that take a pattern.
        machines: The designs, the dense one among them.
    """

    def __init__(self, gemms: Sequence[Gemm], prunable: frozenset[str], machines: Sequence[Machine]) -> None:
        self.machines = {machine.name: machine for machine in machines}
        self.dense = self.machines[DENSE]
        # Networks repeat themselves: every shape is looked at once, under the name of its first layer.
        names: dict[tuple[Gemm, bool], str] = {}
        counts: Counter[tuple[Gemm, bool]] = Counter()
        for gemm in gemms:
            key = (replace(densely(gemm), name=""), gemm.name in prunable)
            names.setdefault(key, gemm.name)
            counts[key] += 1
        self.shapes = [
            _Shape(replace(key[0], name=names[key]), key[1], count, self._run(key[0], DENSE))
            for key, count in counts.items()
        ]
        self.whole = _add((shape.base, shape.count) for shape in self.shapes)
        self._pruned: dict[tuple[int, Choice], Gemm] = {}
        self._seen: dict[tuple[int, str, Pattern | None], _Sum] = {}

    def rows(
        self, nms: Sequence[tuple[int, int]] = NM, blocks: Sequence[int] = BLOCKS, shares: Sequence[float] = SHARES
    ) -> list[dict[str, Any]]:
        """Totals of every design at every pattern, as plain data: the keys of a simulation's rows and the pattern."""
        found = []
        dense = self.whole
        for n, m in nms:
            for block in blocks:
                for share in shares:
                    choice = Choice(n, m, block, share)
                    for name, machine in self.machines.items():
                        total = self._total(choice, name)
                        latency = total.cycles / machine.clock_mhz
                        found.append(
                            {
                                "design": name,
                                "layer": TOTAL,
                                "cycles": total.cycles,
                                "energy_uj": total.energy_pj / 1e6,
                                "speedup": dense.cycles / self.dense.clock_mhz / latency,
                                "bound_by": total.bound,
                                "latency_us": latency,
                                "energy_ratio": dense.energy_pj / total.energy_pj,
                                "energy_delay": total.energy_pj / 1e6 * latency,
                                "energy_by_level": {
                                    level: pj / 1e6 for level, pj in zip(LEVELS, total.levels, strict=True)
                                },
                                "nm": choice.nm,
                                "block": block,
                                "block_sparsity": share,
                                "sparsity": self.sparsity(choice),
                            }
                        )
        return found

    def sparsity(self, choice: Choice) -> float:
        """Share of zero weights in the layers that take the pattern."""
        pruned = [(index, shape) for index, shape in enumerate(self.shapes) if shape.prunable]
        weights = sum(shape.count * shape.gemm.weights for _, shape in pruned)
        left = sum(shape.count * self._apply(index, choice).nonzeros for index, shape in pruned)
        return 1 - left / weights if weights else 0.0

    def reached(self, targets: Sequence[float] = TARGETS) -> list[Reached]:
        """For every factor: the pattern that gets there with the fewest zeros, in the network and in any one layer."""
        found = []
        metrics: tuple[Metric, ...] = ("latency", "energy")
        for metric in metrics:
            for times in targets:
                found.append(self._search("network", metric, times, partial(self._network, metric)))
                found.append(self._search("layer", metric, times, partial(self._best_layer, metric)))
        return found

    def _search(
        self,
        scope: Literal["network", "layer"],
        metric: Metric,
        times: float,
        look: Callable[[Choice], tuple[float, str, float, str]],
    ) -> Reached:
        """The lowest sparsity that gets there: more pruned blocks never make a design slower, so it is bisected."""
        best: Reached | None = None
        finest = round(1 / FINEST)
        for n, m in NM:
            for block in BLOCKS:
                low, high = -1, finest - 1  # the last share that fails, the first that is known to do
                at = Choice(n, m, block, high / finest)
                if look(at)[0] >= times:
                    while high - low > 1:
                        middle = (low + high) // 2
                        if look(Choice(n, m, block, middle / finest))[0] >= times:
                            high = middle
                        else:
                            low = middle
                    at = Choice(n, m, block, high / finest)
                value, layer, sparsity, bound = look(at)
                new = Reached(
                    scope, metric, times, value >= times, at.nm, block, at.share, sparsity, value, layer, bound
                )
                if best is None or _better(new, best):
                    best = new
        assert best is not None
        return best

    def _network(self, metric: Metric, choice: Choice) -> tuple[float, str, float, str]:
        total = self._total(choice, HYBRID)
        return self._times(total, self.whole, metric), "", self.sparsity(choice), total.bound

    def _best_layer(self, metric: Metric, choice: Choice) -> tuple[float, str, float, str]:
        best = (0.0, "", 0.0, "")
        for index, shape in enumerate(self.shapes):
            if shape.prunable:
                outcome = self._layer(index, choice, HYBRID)
                value = self._times(outcome, shape.base, metric)
                if value > best[0]:
                    best = (value, shape.gemm.name, 1 - self._apply(index, choice).density, outcome.bound)
        return best

    def _times(self, after: _Sum, before: _Sum, metric: Metric) -> float:
        if metric == "energy":
            return before.energy_pj / after.energy_pj
        return (before.cycles / self.dense.clock_mhz) / (after.cycles / self.machines[HYBRID].clock_mhz)

    def _total(self, choice: Choice, name: str) -> _Sum:
        return _add((self._layer(index, choice, name), shape.count) for index, shape in enumerate(self.shapes))

    def _apply(self, index: int, choice: Choice) -> Gemm:
        found = self._pruned.get((index, choice))
        if found is None:
            found = self._pruned[index, choice] = apply_choice(self.shapes[index].gemm, choice)
        return found

    def _layer(self, index: int, choice: Choice, name: str) -> _Sum:
        shape, sees = self.shapes[index], self.machines[name].sparsity
        gemm = self._apply(index, choice) if shape.prunable else shape.gemm
        pattern = gemm.pattern
        if pattern is not None and not sees.blocks and not sees.unstructured:
            # It sees N:M alone, or not even that: the same for all blocks.
            pattern = Pattern(pattern.n, pattern.m) if sees.patterns else None
        found = self._seen.get((index, name, pattern))
        if found is None:
            found = self._run(gemm if pattern is gemm.pattern else replace(gemm, pattern=pattern), name)
            self._seen[index, name, pattern] = found
        return found

    def _run(self, gemm: Gemm, name: str) -> _Sum:
        outcome = run_layer(gemm, self.machines[name])
        levels = tuple(outcome.energy_pj[level] for level in LEVELS)
        return _Sum(outcome.cycles, outcome.total_pj, levels, outcome.bound_by)


def _better(new: Reached, best: Reached) -> bool:
    if new.met != best.met:
        return new.met
    return (new.sparsity, -new.value) < (best.sparsity, -best.value) if new.met else new.value > best.value


def _add(parts: Any) -> _Sum:
    cycles = energy = 0.0
    levels = [0.0] * len(LEVELS)
    bound: Counter[str] = Counter()
    for part, count in parts:
        cycles += count * part.cycles
        energy += count * part.energy_pj
        bound[part.bound] += count * part.cycles
        for index, value in enumerate(part.levels):
            levels[index] += count * value
    return _Sum(cycles, energy, tuple(levels), bound.most_common(1)[0][0])


def as_rows(reached: Sequence[Reached]) -> list[Mapping[str, Any]]:
    """For JSON."""
    return [asdict(entry) for entry in reached]
