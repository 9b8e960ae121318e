"""What channel groups never go below: one noun for those who choose, and as fields of a method's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, lcm

from pydantic import BaseModel, ConfigDict, Field

from billhook.errors import UsageError
from billhook.surgery.groups import ChannelGroup, Grouping


@dataclass(frozen=True)
class Floor:
    """How far a channel group can go.

    Attributes:
        round_to: Kept channels are a multiple of it.
        least: Share of every group that always stays.
        branches: A group whose branch can go may keep no channel (if ``least`` is 0).
        streams: Share of the channels that more than one layer writes, those of a residual stream, that always stays;
            1: streams keep their width.
        originally: Channels that groups had before anything went, by name, which ``least`` and ``streams`` are shares
            of; a group that is not named has all of its channels still.

    Raises:
        UsageError: A value out of range.
    """

    round_to: int = 1
    least: float = 0.0
    branches: bool = True
    streams: float = 0.0
    originally: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.round_to < 1:
            raise UsageError(f"round_to = {self.round_to} is less than 1")
        for name, share, of in (("least", self.least, "group"), ("streams", self.streams, "stream")):
            if not 0 <= share <= 1:
                raise UsageError(
                    f"{name} = {share:g} is not between 0 and 1", f"it is a share of every {of}'s channels"
                )

    def whole(self, group: ChannelGroup) -> bool:
        """Whether a group keeps all its channels, whatever the budget: it is a stream, and streams stay."""
        return self.streams == 1 and group.stream

    def counts(self, group: ChannelGroup) -> list[int]:
        """All numbers of channels that a group may keep, descending.

        All of them, or a multiple of ``round_to`` and of its sections, or none where its branch may go. A group that
        has fewer than such a multiple keeps them all (or none), one that is :meth:`whole` keeps them all.

        Raises:
            ValueError: Sections that are not of one size.
        """
        if group.channels % group.sections:
            raise ValueError(
                f"the {group.channels} channels of '{group.name}' do not fall into {group.sections} sections"
            )
        if self.whole(group):
            return [group.channels]
        step = lcm(self.round_to, group.sections)
        before = self.originally.get(group.name, group.channels)
        share = max(self.least, self.streams) if group.stream else self.least
        bottom = step * max(1, ceil(share * before / step - 1e-9))
        highest = (group.channels - 1) // step * step
        counts = [group.channels, *range(highest, bottom - 1, -step)]
        return [*counts, 0] if self.branches and group.branch is not None and not self.least else counts

    @property
    def raised(self) -> bool:
        """Whether somebody asked for groups to keep more than they have to."""
        return self.least > 0 or self.round_to > 1 or self.streams > 0

    def words(self, grouping: Grouping) -> str:
        """What a network at its smallest keeps, for a message."""
        words = f"{100 * self.least:g} % of every group" if self.least else "one channel of every group"
        if not self.least and self.branches and any(group.branch is not None for group in grouping.groups.values()):
            words += " outside the branches that can go"
        if self.streams > self.least and any(group.stream for group in grouping.groups.values()):
            words += ", and whole streams" if self.streams == 1 else f", and {100 * self.streams:g} % of every stream"
        words += f", in multiples of {self.round_to}" if self.round_to > 1 else ""
        return words + ("," if ", " in words else "")


LOWEST = Floor()
"""One channel of every group, and none inside a branch that can go."""


class RemovalConfig(BaseModel):
    """Settings that all methods have which remove channels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    round_to: int = Field(1, ge=1, description="kept channels are a multiple of it")
    least: float = Field(0.0, ge=0, le=1, description="share of every group that always stays")
    branches: bool = Field(True, description="the inside of a residual branch may go entirely")
    streams: bool | None = Field(
        None,
        description="channels that more than one layer writes (residual streams) may go; null: only where the budgets "
        "cannot well be met by narrower branches",
    )
    streams_least: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of every residual stream that stays where streams may go; null: as much as the budgets "
        "leave room for, nothing with streams=true",
    )
    distil: bool = Field(True, description="distil from the dense network")

    @property
    def floor(self) -> Floor:
        """What groups never go below, whatever the budgets."""
        streams = 1.0 if self.streams is False else self.streams_least or 0.0
        return Floor(self.round_to, self.least, self.branches, streams)

    @property
    def whole_branches(self) -> bool:
        """Whether branches are weighed against each other as a whole, with what hangs on them."""
        return False

    @property
    def either(self) -> bool:
        """Whether the budgets decide how much of streams may go."""
        return self.streams is None and self.streams_least is None
