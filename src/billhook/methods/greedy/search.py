"""HBGS and HBGTS: round after round, the group that suffers least loses a few channels, until all budgets are met."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from billhook.cost.budget import Budget
from billhook.errors import Interrupted, RunError
from billhook.methods.base import Outcome, Setting
from billhook.methods.channel_choice import overheads
from billhook.methods.channel_latency import MARGIN, stand_in
from billhook.methods.channel_run import FORWARD, ChannelRun, counted, short_note
from billhook.methods.greedy.config import HBGTS, FPOMPSearch, SearchConfig
from billhook.methods.greedy.end_errors import EndErrors
from billhook.methods.greedy.goals import END, Goals, next_count
from billhook.methods.greedy.plan import GreedyPlan, agreed, since
from billhook.methods.greedy.shrinking import Candidate, Errors, Loss, Shrinking
from billhook.methods.kept import how_many
from billhook.training.interrupt import Interrupts

FEWEST = 16
"""Calibration images that a round looks at, whatever the run allows."""

SAVE_EVERY = 20.0
"""Seconds between two saves of the search."""

TINY = 1e-12


class SearchPlan(GreedyPlan):
    """A feasible run that chooses a group in every round.

    Args:
        setting: What is asked, and where it runs.
        config: Of the method.

    Attributes:
        rounds: About how many there will be.
        calibration: Images that activations are measured on, each time.
        selection: Images that candidates are compared on, each time.

    Raises:
        InputError: No channel can be removed.
        InfeasibleError: The budget is below what must be left.
        UsageError: A budget that the method cannot move.
    """

    config: SearchConfig

    def __init__(self, setting: Setting, config: SearchConfig) -> None:
        super().__init__(setting, config)
        problem = setting.problem
        self.at_end = isinstance(config, HBGTS | FPOMPSearch)
        groups = self.limits.grouping.groups
        self.counts = {name: self.limits.floor.counts(group) for name, group in groups.items()}
        step, end = config.step, config.step_end
        self.step_end = end if end is not None else max(1, step // 2) if step >= 1 else step / 2
        self.goals = self.goals_with(self.counted_as())
        self.rounds = max(1, self.goals.rounds(self.counts, step, self.step_end))
        # A round looks at all groups after a while, and at about three of them otherwise; at some as a whole, too.
        looked = min(len(groups), len(groups) / config.stale + 3)
        looked *= 1 + len(self.hanging(self.cost.channels)) / max(1, len(groups))
        looks = self.removable.looks
        images = config.calibration * looks + config.selection * self.passes(looked)
        ratio = min(1.0, config.allowance * problem.images / (self.rounds * images * FORWARD))
        most = len(problem.data.train)
        self.calibration = min(most, max(FEWEST, int(ratio * config.calibration)))
        self.selection = min(most, config.selection, max(FEWEST // 2, int(ratio * config.selection)))
        self.expected = self.rounds * FORWARD * (self.calibration * looks + self.selection * self.passes(looked))
        if ratio < 1:
            measures = f"measures on {self.calibration} images, and " if looks else ""
            self.notes.append(
                f"{config.name} {measures}compares on {self.selection} images, in each of about {self.rounds} "
                f"rounds: {100 * config.allowance:g} % of the run's images allow no more"
            )
        self.steps = self.steps_without(self.expected)
        every = config.finetune_every
        self.finetunings = (self.rounds - 1) // every if every else 0
        self.each = self.each_finetuning(self.finetunings)
        self.share = min(1.0, self.finetunings * self.each / self.steps)

    def passes(self, candidates: float) -> float:
        """Passes of the whole network that comparing so many candidates comes to."""
        return 1 + candidates / 2 if self.at_end else self.removable.passes(candidates)

    def hanging(self, numbers: NDArray[np.int64]) -> set[str]:
        """Groups inside branches on which more than a channel's cost hangs: they may go at a stroke.

        Args:
            numbers: ``[groups]``: channels that they have.
        """
        if not self.config.whole_branches:
            return set()
        beside = overheads(list(self.counts.values()), self.cost, self.goals.ceilings, numbers)
        return {name for name, number in zip(self.counts, beside.tolist(), strict=True) if number}

    def goals_with(self, more: Sequence[Budget]) -> Goals:
        """The budgets that can be counted, and more of them."""
        return Goals([*self.limits.budgets, *more], self.cost, self.setting.dense, self.removable.gross)

    # ------------------------------------------------------------------ the run
    def carry_out(self, run: ChannelRun, module: nn.Module) -> Outcome:
        """Search, remove, fine-tune."""
        small = self.removed(run)
        searched = run.seconds
        steps, self.steps = self.steps, self.steps + self._done
        run.train(small, "prune", steps)
        self.share = searched / run.seconds if run.seconds else 0.0
        return self.handed_back(run, small)

    def removed(self, run: ChannelRun) -> nn.Module:
        """The smaller network, before the long fine-tuning; :attr:`steps` are then those that are left for it."""
        search = _Search(self, run)
        search.run()
        state = search.state
        small = self.finish(run, search.network, state.round, search_seconds=round(state.seconds, 3))
        self._done = state.steps
        self.steps = max(1, self.steps_without(state.images) - state.steps)
        return small

    def errors(self, network: Shrinking) -> Errors:
        """How candidates are compared."""
        setting, config = self.setting, self.config
        images = self.images(self.selection, 2)
        kept = setting.problem.data.kept
        if isinstance(config, HBGTS | FPOMPSearch):
            labelled = self.labelled(images)
            return EndErrors(self.original(), network, labelled, tap=config.tap, head=setting.head, kept=kept)
        return network.layer_errors(self.original(), self.bare(images), {setting.head: kept})


@dataclass
class _State:
    """Counters of a search."""

    round: int = 0
    refreshed: int = 0
    images: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    counted: float | None = None


class _Search:
    def __init__(self, plan: SearchPlan, run: ChannelRun) -> None:
        self.plan, self.run_, self.config = plan, run, plan.config
        self.setting = plan.setting
        self.network = plan.begin(plan.calibration)
        self.looks = plan.removable.looks
        self.errors = plan.errors(self.network)
        self.goals = plan.goals
        self.state = _State()
        self.cache: dict[str, tuple[Candidate, Loss]] = {}
        self.short = False
        self._restore()

    # ------------------------------------------------------------------ rounds
    def run(self) -> None:
        """Rounds until every budget is met."""
        started, last = perf_counter() - self.state.seconds, -math.inf
        config, state, room = self.config, self.state, self.setting.room
        if self.goals.met(self.network.numbers):
            self._tighten()
        furthest = self.goals.gone(self.network.numbers)
        with Interrupts() as interrupts, self.run_.progress.bar("search", 100, int(100 * furthest)) as bar:
            while not self.goals.met(self.network.numbers):
                fresh = not self.cache
                if fresh:
                    self.network.forget()  # so that a resumed run knows as much as this one
                if fresh and perf_counter() - last > SAVE_EVERY:
                    self._save()
                    last = perf_counter()
                self._round()
                gone = self.goals.gone(self.network.numbers)  # what one removal adds may exceed what it saves
                bar.advance(100 * max(0.0, gone - furthest))
                furthest = max(furthest, gone)
                state.seconds = perf_counter() - started
                if config.finetune_every and state.round % config.finetune_every == 0:
                    self._finetune()
                if state.round - state.refreshed >= config.stale:
                    self.cache.clear()
                    self.network.forget()
                    state.refreshed = state.round
                if self.goals.met(self.network.numbers):
                    self._tighten()
                if room.any(interrupts.pending is not None):
                    number = interrupts.pending or 15
                    if not self.cache:
                        self._save()  # else rounds since the last save are done again
                    raise Interrupted(
                        f"{'interrupted' if number == 2 else 'terminated'} after round {state.round} of the search",
                        "continue with --resume",
                        signal_number=number,
                    )
        if self.short:
            self.plan.notes.append(short_note(self.plan.calibration))

    def _round(self) -> None:
        started = perf_counter()
        network, state = self.network, self.state
        self._look()
        numbers = network.numbers
        name, score = "", math.inf
        for other in self.cache:
            worth = self._worth(other, self.cache[other], numbers)
            if (worth < score or not name) and network.leads(other, self.cache[other][0]):
                name, score = other, worth
        if not name:
            raise RunError("no channel is left that could go, and a budget is not met", "lower least or round_to")
        candidate, loss = self.cache[name]
        least = self._least(name, candidate, numbers)
        if least != len(candidate.kept):
            candidate = network.propose({name: least})[name]
            state.images += FORWARD * self.plan.calibration * self.looks
        self.short |= candidate.short
        errors = {group: _short(self._error(found)) for group, (_, found) in self.cache.items()}
        for other in network.remove(name, candidate):
            self.cache.pop(other, None)
        state.round += 1
        totals = self.plan.cost.totals(how_many(network.kept))
        self._write(
            {
                "event": "round",
                "round": state.round,
                "group": name,
                "kept": len(candidate.kept),
                "of": self.plan.limits.grouping.groups[name].channels,
                "error": _short(self._error(loss)),
                "errors": errors,
            }
            | counted(totals)
            | {"images": round(state.images), "round_seconds": since(started)},
            self.run_.seconds + perf_counter() - started,
        )

    def _look(self) -> None:
        """Propose and compare what is not in the cache."""
        plan, network = self.plan, self.network
        step = self.config.step if self.goals.gone(network.numbers) < END else plan.step_end
        wanted = {}
        for name, kept in network.kept.items():
            count = next_count(plan.counts[name], len(kept), step)
            if count is not None and name not in self.cache:
                wanted[name] = count
        if not wanted:
            return
        found = self._compare(wanted)
        numbers = network.numbers
        hanging = plan.hanging(numbers)
        whole = {name: 0 for name, count in wanted.items() if count and name in hanging}
        for name, entire in (self._compare(whole) if whole else {}).items():
            if self._worth(name, entire, numbers) < self._worth(name, found[name], numbers):
                found[name] = entire
        self.cache |= found

    def _compare(self, wanted: Mapping[str, int]) -> dict[str, tuple[Candidate, Loss]]:
        """What groups would be with so many channels, and what that does."""
        plan = self.plan
        proposed = self.network.propose(wanted)
        found = self._measure(proposed)
        self.state.images += FORWARD * plan.selection * plan.passes(len(wanted))
        self.state.images += FORWARD * plan.calibration * self.looks
        return {name: (proposed[name], found[name]) for name in wanted}

    def _measure(self, proposed: Mapping[str, Candidate]) -> dict[str, Loss]:
        """Errors of all candidates, each process its share of them."""
        room = self.setting.room
        names = list(proposed)
        mine = names[room.rank :: room.world]
        found = self.errors.measure({name: self.network.changes(name, proposed[name]) for name in mine}) if mine else {}
        table = torch.zeros(len(names), 2, dtype=torch.float64)
        for name, loss in found.items():
            table[names.index(name)] = torch.tensor(loss, dtype=torch.float64)
        table = room.sum(table.to(room.device)).cpu()
        if not bool(torch.isfinite(table).all()):
            raise RunError("the error of a candidate is not finite", "look at the weights, and lower --lr")
        return {name: (float(now), float(after)) for name, (now, after) in zip(names, table.tolist(), strict=True)}

    def _worth(self, name: str, found: tuple[Candidate, Loss], numbers: NDArray[np.int64]) -> float:
        """What a candidate costs; the smallest is taken."""
        candidate, (now, after) = found
        if self.config.weigh == "error":
            return after
        kept = numbers.copy()
        kept[self.plan.cost.index[name]] = len(candidate.kept)
        # What rounding, or luck, makes better costs next to nothing; what saves nothing comes last.
        return max(after - now, TINY) / max(self.goals.saved(numbers, kept), TINY)

    def _error(self, loss: Loss) -> float:
        return math.sqrt(loss[1]) if self.errors.power == 2 else loss[1]

    def _least(self, name: str, candidate: Candidate, numbers: NDArray[np.int64]) -> int:
        """How many channels a group keeps when no more go than the budgets still ask for."""
        kept = numbers.copy()
        place = self.plan.cost.index[name]
        for count in self.plan.counts[name]:
            if len(candidate.kept) <= count < numbers[place]:
                kept[place] = count
                if self.goals.met(kept):
                    return count
        return len(candidate.kept)

    def _tighten(self) -> None:
        """Ask for less when the network is too slow yet."""
        limits, plan, state = self.plan.limits, self.plan, self.state
        if not limits.clocked:
            return
        late = agreed(self.setting.room, limits.milliseconds(self.network.kept) / limits.bound)
        if late <= 1:
            return
        totals = plan.cost.totals(how_many(self.network.kept))
        state.counted = totals[limits.quantity] * min(0.97, MARGIN / late)
        self._ask()

    def _ask(self) -> None:
        counted = self.state.counted
        more = () if counted is None else (stand_in(self.plan.limits.quantity, counted),)
        self.goals = self.plan.goals_with(more)

    # ------------------------------------------------------------------ fine-tuning
    def _finetune(self) -> None:
        plan, state = self.plan, self.state
        number = state.round // self.config.finetune_every
        if not plan.each or number > plan.finetunings or self.goals.met(self.network.numbers):
            return
        small = self.network.small()
        self.run_.train(small, f"round-{number}", plan.each, recipe=plan.gently(self.config.rate))
        self.network.take_back(small)
        state.steps += plan.each
        self.cache.clear()
        self.network.forget()
        state.refreshed = state.round

    # ------------------------------------------------------------------ history and state
    def _write(self, line: dict[str, Any], seconds: float) -> None:
        run = self.run_
        run.history.append({"phase": "prune", "step": 0, "epoch": 0.0} | line | {"seconds": round(seconds, 3)})
        run.progress.line(run.history[-1])
        if self.setting.room.is_main:
            run.on_history(run.history)

    def _save(self) -> None:
        kept = {name: channels.tolist() for name, channels in self.network.kept.items()}
        meta = {"state": vars(self.state), "kept": kept, "history": self.run_.history, "short": self.short}
        self.run_.journal.save("search", self.network.tensors(), json.loads(json.dumps(meta)))

    def _restore(self) -> None:
        saved = self.run_.journal.load("search")
        if saved is None:
            return
        tensors, meta = saved
        self.state = _State(**meta["state"])
        self.network.restore(meta["kept"], tensors)
        self.run_.history = meta["history"]
        self.short = meta["short"]
        if self.state.counted is not None:
            self._ask()


def _short(value: float) -> float:
    return float(f"{value:.4g}")
