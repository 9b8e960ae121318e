"""No network without a path: where all branches of a stage are gone, what a padded shortcut brings has to stay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from billhook.methods.kept import Kept
from billhook.surgery.groups import Grouping, Member

_Masks = dict[str, NDArray[np.bool_]]


def with_paths(
    grouping: Grouping, kept: Mapping[str, NDArray[np.int64]], scores: Mapping[str, NDArray[np.float64]]
) -> Kept:
    """The choice, or one as large in which every stream carries something of the image.

    A residual stream may keep channels that nobody writes: the branches that wrote them are gone, or read nothing but
    the stream itself, and the shortcut without weights, which is all that is left, brings others. Such a network
    computes a constant. The lowest-scored of these channels then gives its place to the best one that the shortcut
    brings: as many stay, so nothing costs more or less.

    Args:
        grouping: The groups.
        kept: Channels that stay, ascending, by group.
        scores: ``[channels]`` of each group; the more important, the higher.
    """
    chosen = dict(kept)
    for name, group in grouping.groups.items():
        shortcuts = [member for member in group.writers if member.layer in grouping.maps]
        if not shortcuts or not len(chosen[name]) or group.sections > 1:
            continue
        lit = _lit(grouping, chosen)
        if lit[name].any():
            continue
        brought = np.zeros(group.channels, dtype=bool)
        for member in shortcuts:
            brought |= _brought(grouping, member, lit)
        if not brought.any():
            continue
        score, channels = np.asarray(scores[name], dtype=np.float64), chosen[name]
        best = np.flatnonzero(brought)[np.argmax(score[brought])]
        worst = channels[np.argmin(score[channels])]
        chosen[name] = np.sort(np.where(channels == worst, best, channels))
    return chosen


def has_path(grouping: Grouping, kept: Mapping[str, NDArray[np.int64]]) -> bool:
    """Whether every stream depends on the image; the inside of a branch need not.

    Args:
        grouping: The groups.
        kept: Channels that stay, by group.
    """
    lit = _lit(grouping, kept)
    return all(lit[name].any() for name, group in grouping.groups.items() if len(kept[name]) and group.branch is None)


class Passage:
    """Leaves a path while groups go down to their numbers, one after the other.

    The other groups are taken to keep what they have, or nothing where that is their number. What leads then, and goes
    on leading with every group that is settled, leads in the end.

    Args:
        grouping: The groups.
        kept: Channels that stay so far, by group.
        wanted: How many are to stay in the end, of groups that still lose some.
    """

    def __init__(self, grouping: Grouping, kept: Mapping[str, NDArray[np.int64]], wanted: Mapping[str, int]) -> None:
        self.grouping = grouping
        self.kept = {name: stay if wanted.get(name) != 0 else stay[:0] for name, stay in kept.items()}
        self.leads = has_path(grouping, self.kept)

    def settle(self, name: str, order: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        """The channels that a group keeps: the first ones, or with the last of them exchanged for one that leads.

        Args:
            name: Of the group.
            order: ``[sections, channels]``: those that it has, the most important first.
            number: How many stay.
        """
        stay = self.kept[name] = first_of(order, number)
        if not number or len(order) > 1 or not self.leads or has_path(self.grouping, self.kept):
            return stay
        for spare in order[0, number:]:
            self.kept[name] = np.sort(np.append(order[0, : number - 1], spare))
            if has_path(self.grouping, self.kept):
                return self.kept[name]
        self.kept[name] = stay
        return stay


def first_of(order: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """So many channels, ascending, the first ones of every section.

    Args:
        order: ``[sections, channels]``.
        number: In all sections together.
    """
    return np.sort(order[:, : number // len(order)].ravel())


def _lit(grouping: Grouping, kept: Mapping[str, NDArray[np.int64]]) -> _Masks:
    """``[channels]`` of each group: kept ones that depend on the image. Grown from the layers that read no group."""
    gone = {
        layer
        for name, group in grouping.groups.items()
        if group.branch is not None and not len(kept[name])
        for layer in (*group.branch.inside, *group.branch.ends, *(member.layer for member in group.readers))
    }
    reads: dict[str, list[str]] = {}
    for name, group in grouping.groups.items():
        for member in group.readers:
            reads.setdefault(member.layer, []).append(name)
    lit = {name: np.zeros(group.channels, dtype=bool) for name, group in grouping.groups.items()}
    growing = True
    while growing:
        growing = False
        for name, group in grouping.groups.items():
            stays = np.zeros(group.channels, dtype=bool)
            stays[kept[name]] = True
            before = int(lit[name].sum())
            for member in group.writers:
                if member.layer in grouping.maps:
                    lit[name] |= stays & _brought(grouping, member, lit)
                elif member.layer not in gone:
                    sources = reads.get(member.layer, [])
                    if not sources or any(lit[source].any() for source in sources):
                        lit[name] |= stays
            growing |= int(lit[name].sum()) > before
    return lit


def _brought(grouping: Grouping, writer: Member, lit: _Masks) -> NDArray[np.bool_]:
    """``[channels]``: those of a stream that a padded shortcut fills with something of the image."""
    source = np.array(grouping.maps[writer.layer], dtype=np.int64)
    reading = [
        (name, reader)
        for name, group in grouping.groups.items()
        for reader in group.readers
        if reader.layer == writer.layer
    ]
    # A shortcut that was cut before may hand on none of the last channels that it takes.
    last = max([int(source.max(initial=-1)), *(int(reader.index.max(initial=-1)) for _, reader in reading)])
    inputs = np.ones(last + 1, dtype=bool)  # what no group owns is always there
    for name, reader in reading:
        inputs[reader.index.ravel()] = np.repeat(lit[name], reader.index.shape[1])
    positions = source[writer.index]
    return np.asarray(((positions >= 0) & inputs[np.maximum(positions, 0)]).any(axis=1), dtype=bool)
