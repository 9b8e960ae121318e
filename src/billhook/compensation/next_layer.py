"""Compensation without an added layer: the readers of removed channels take their share from the channels that stay.

On a calibration set every channel that goes is approached by those that stay, as the reader takes them in, by least
squares: ``a_R = Lambda a_S + c``. With ``W`` the reader's weights, ``W_S <- W_S + W_R Lambda`` and the bias grows by
``W_R c``. Nothing else changes, and the removed channels are not read any more.

The product with ``Lambda`` is exact in every layer: it is the same at all places, so it may be taken before the
convolution or inside it, and zeros of the padding stay zeros. The constant is exact in linear layers and wherever
convolutions read no padding of zeros. Where they do, a bias adds it at the border too, as if the padding held it. The
fit knows: it is made over what the taps read (:class:`~billhook.compensation.moments.Moments`), zeros included.

A constant is worth having: activations behind a rectifier are not zero in the mean, and one that merely stands for a
mean would otherwise have to be made of others. It never makes the fit worse. It needs a place to go: a bias, or the
running mean of a BatchNorm that alone follows, which costs nothing. A reader with neither is fitted without.

The idea of filling in from the remaining feature maps is in ThiNet (Luo et al. 2017) and He et al. (2017), who solve
for all of the reader's weights; here the map is between channels, so that it is small and serves any filter selection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from billhook.compensation.backward import backward_on_gram
from billhook.compensation.gram import DEPENDENT
from billhook.compensation.matrices import runs
from billhook.compensation.moments import Moments, centred, compensable
from billhook.compensation.selection import Indices, Matrix, Selection
from billhook.errors import UsageError
from billhook.surgery import ChannelGroup

RIDGES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that are tried, on channels of unit variance; 0 is least squares, of the smallest norm where that is open."""

_ALIKE = 1e-9  # of the energy: what two ridges may differ by and be as good, so that exact dependences stay exact


@dataclass(frozen=True)
class ReaderMap:
    """Removed channels of a group as one reader can make them up.

    Attributes:
        layer: The reader.
        kept: Channels of the group that stay, ascending.
        removed: The others, ascending.
        matrix: ``[removed, kept]``; zero between the blocks of a grouped reader.
        constant: ``[removed]``; None where the reader has no place for it.
        shift: The layer that takes the constant up, if any.
        ridge: What was used.
        error: Squared error over all removed channels, on the whole calibration set, relative to removing them without
            compensation.
        unseen_error: The same on images that the map was not fitted to (cross-validation); None where it was not asked.
        short: Fewer places were seen than channels stay: the ridge is all that the map rests on. Worth a warning.
    """

    layer: str
    kept: Indices
    removed: Indices
    matrix: Matrix
    constant: Matrix | None
    shift: str | None
    ridge: float
    error: float
    unseen_error: float | None
    short: bool


def fit_reader(moments: Moments, kept: Sequence[int] | Indices, *, ridge: float | None = None) -> ReaderMap:
    """The least-squares map from the channels that stay to those that go.

    Args:
        moments: Of the reader.
        kept: Channels of the group that stay.
        ridge: On channels of unit variance. None: of :data:`RIDGES`, the one with the smallest error in
            cross-validation over the folds of the moments; of those as good, the smallest. That costs a fit per fold.
            Least squares without a ridge are not tried where fewer places were seen than channels stay.

    Raises:
        UsageError: No channel left, or a negative ridge.
    """
    stay = np.unique(np.asarray(kept, dtype=np.int64))
    if not len(stay) or stay[0] < 0 or stay[-1] >= moments.channels:
        raise UsageError(f"'{moments.member.layer}' reads {moments.channels} channels: some of them must stay")
    if ridge is not None and not ridge >= 0:
        raise UsageError(f"a ridge is not negative: {ridge}")
    go = np.setdiff1d(np.arange(moments.channels), stay)
    blocks = _blocks(moments, stay, go)
    most = max(len(ins) for ins, _ in blocks)
    folds = [fold for fold in range(len(moments.count)) if float(moments.count[fold]) > 0]
    everything = _Sums.of(moments, folds)
    short = float(moments.vectors.sum()) <= most
    unseen = None
    if ridge is None:
        ridges = RIDGES[1:] if short else RIDGES
        if len(folds) > 1:
            tested = [_Sums.of(moments, [fold]) for fold in folds]
            fitted = [_Sums.of(moments, [other for other in folds if other != fold]) for fold in folds]
            pairs = zip(fitted, tested, strict=True)
            errors = torch.stack([_errors(one, blocks, _fit(rest, blocks, ridges)) for rest, one in pairs]).sum(dim=0)
            energy = _energy(everything, blocks)
            best = int((errors <= errors.min() + _ALIKE * energy).nonzero()[0])
            ridge, unseen = ridges[best], float(errors[best]) / energy if energy else 0.0
        else:
            ridge = ridges[len(ridges) // 2]  # one image: nothing to compare with
    fits = _fit(everything, blocks, [ridge])
    energy = _energy(everything, blocks)
    error = float(_errors(everything, blocks, fits)[0]) / energy if energy else 0.0
    matrix, constant = np.zeros((len(go), len(stay))), np.zeros(len(go))
    for number, ((ins, outs), (maps, constants)) in enumerate(zip(blocks, fits, strict=True)):
        size = moments.channels // moments.blocks
        rows = np.searchsorted(go, outs.numpy() + number * size)
        columns = np.searchsorted(stay, ins.numpy() + number * size)
        matrix[np.ix_(rows, columns)] = maps[0].numpy()
        constant[rows] = constants[0].numpy()
    return ReaderMap(
        moments.member.layer, stay, go, matrix, None if moments.shift is None else constant, moments.shift,
        ridge, error, unseen, short,
    )  # fmt: skip


def absorb(module: nn.Module, group: ChannelGroup, maps: Iterable[ReaderMap]) -> None:
    """Let the readers of a group make removed channels up, in place; they do not read them any more.

    The network keeps its shape; that the channels are removed afterwards (:func:`billhook.surgery.plan_channels`) then
    changes nothing in these readers. Those without a map go on reading them.

    Args:
        module: The network that the maps were fitted on.
        group: The channel group.
        maps: Of some or all of its readers.

    Raises:
        UsageError: A map of a layer that does not read the group.
    """
    with torch.no_grad():
        for name, tensors in taken_up(module, group, maps).items():
            part = module.get_submodule(name)
            for key, tensor in tensors.items():
                cast(Tensor, getattr(part, key)).copy_(tensor)


def taken_up(module: nn.Module, group: ChannelGroup, maps: Iterable[ReaderMap]) -> dict[str, dict[str, Tensor]]:
    """Tensors of the network when the readers of a group make removed channels up; nothing is changed.

    Args:
        module: The network that the maps were fitted on.
        group: The channel group.
        maps: Of some or all of its readers.

    Returns:
        New weights, and the biases or running means that take constants up: layer → name → tensor.

    Raises:
        UsageError: A map of a layer that does not read the group.
    """
    members = {member.layer: member for member in compensable(module, group)}
    found: dict[str, dict[str, Tensor]] = {}
    for fitted in maps:
        if fitted.layer not in members:
            raise UsageError(f"'{fitted.layer}' cannot make up for channels of '{group.name}'")
        layer = cast(_ConvNd | nn.Linear, module.get_submodule(fitted.layer))
        weight, shift = absorbed(layer, members[fitted.layer].index, fitted)
        found.setdefault(fitted.layer, {})["weight"] = weight
        if shift is None or fitted.shift is None:
            continue
        target = module.get_submodule(fitted.shift)
        # (y + shift) less its mean is y less the mean that was.
        name, sign = ("running_mean", -1) if isinstance(target, _BatchNorm) else ("bias", 1)
        before = cast(Tensor, getattr(target, name)).detach()
        found.setdefault(fitted.shift, {})[name] = before + sign * shift.to(before)
    return found


def absorbed(layer: _ConvNd | nn.Linear, index: Indices, fitted: ReaderMap) -> tuple[Tensor, Tensor | None]:
    """The weights of a reader that makes removed channels up, and what its output has to grow by.

    Args:
        layer: The reader; left as it is.
        index: ``[channels, r]``: where the group's channels lie in it (:attr:`billhook.surgery.Member.index`).
        fitted: Its map.

    Returns:
        Weights in their shape, zero for removed channels; ``[outputs]`` or None.
    """
    # On the CPU: not every device knows float64.
    old = layer.weight.detach().to("cpu", torch.float64)
    transposed = isinstance(layer, _ConvTransposeNd)
    wide = (old.transpose(0, 1) if transposed else old).clone()
    groups = int(getattr(layer, "groups", 1))
    # [groups, outputs of a group, inputs of a group, ...]: one block of channels each.
    blocks = wide[None] if transposed else runs(wide, 0, groups)
    inputs = blocks.shape[2]
    matrix = torch.from_numpy(fitted.matrix)
    constant = None if fitted.constant is None else torch.from_numpy(fitted.constant)
    grown = None if constant is None else old.new_zeros(blocks.shape[0], blocks.shape[1])
    for place in range(index.shape[1]):
        stay, go = (torch.from_numpy(index[channels, place]) for channels in (fitted.kept, fitted.removed))
        for number in range(blocks.shape[0]):
            ins, outs = stay // inputs == number, go // inputs == number
            to, out = stay[ins] % inputs, go[outs] % inputs
            lost = blocks[number][:, out]
            blocks[number][:, to] += torch.einsum("oj...,jl->ol...", lost, matrix[outs][:, ins])
            if grown is not None and constant is not None:
                grown[number] += (lost.flatten(2).sum(dim=2) if lost.ndim > 2 else lost) @ constant[outs]
            blocks[number][:, out] = 0
    new = blocks.flatten(0, 1)
    new = new.transpose(0, 1) if transposed else new
    return new.to(layer.weight), None if grown is None else grown.flatten().to(layer.weight)


def select_by_activations(
    module: nn.Module, group: ChannelGroup, readers: Mapping[str, Moments], *, outputs: bool = True
) -> Selection:
    """Order the channels of a group by backward elimination on the moments of what its readers take in.

    Several readers count as if their samples stood in one list, each reader's divided by their energy; they then share
    one map where :func:`fit_reader` gives each its own. With constants the moments are about the mean: a channel that
    never changes costs nothing.

    Args:
        module: The network.
        group: The channel group.
        readers: Moments of its readers.
        outputs: Count errors as they come out of the readers, each tap by itself: an activation that is read by small
            weights matters little. Otherwise as they go in, where a channel that is scaled up matters more though the
            network computes the same.

    Raises:
        UsageError: No reader.
    """
    if not readers:
        raise UsageError(
            f"no layer with weights takes in the channels of '{group.name}'", "choose them by their weights"
        )
    size = group.channels // group.sections
    gram = torch.zeros(group.sections, size, size, dtype=torch.float64)
    targets = torch.zeros_like(gram)
    constant = all(moments.shift is not None for moments in readers.values())
    for moments in readers.values():
        sums = _Sums.of(moments, range(len(moments.count)))
        mine = _sections(centred(sums.second, sums.first, sums.count, constant), group.sections)
        energy = float(mine.diagonal(dim1=1, dim2=2).sum())
        mine = mine / energy if energy > 0 else mine
        gram += mine
        if outputs:
            layer = cast(_ConvNd | nn.Linear, module.get_submodule(moments.member.layer))
            read = _sections(_reading(layer, moments), group.sections)
            whole = float((read * mine).sum())
            targets += read / whole if whole > 0 else read
    return backward_on_gram(gram, targets if outputs else None)


def _reading(layer: _ConvNd | nn.Linear, moments: Moments) -> Tensor:
    """``[blocks, c, c]``: inner products of the weights that each channel meets, tap by tap."""
    weight = layer.weight.detach().to("cpu", torch.float64)
    weight = weight.transpose(0, 1) if isinstance(layer, _ConvTransposeNd) else weight
    flat = weight.flatten(2) if weight.ndim > 2 else weight[..., None]
    blocks = runs(flat, 0, moments.blocks).transpose(1, 2).flatten(2)
    rows = runs(blocks.flatten(0, 1)[torch.from_numpy(moments.member.index)].flatten(1), 0, moments.blocks)
    products: Tensor = rows @ rows.mT
    return products


def _sections(blocks: Tensor, sections: int) -> Tensor:
    """The products within each section, which lies inside a block."""
    per = sections // len(blocks)
    split = runs(runs(blocks, 1, per), 3, per)
    return split.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).flatten(0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Least squares from sums

_Blocks = list[tuple[Tensor, Tensor]]
_Fits = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Sums:
    """Moments of some folds together; ``constant`` says whether maps have one."""

    second: Tensor
    first: Tensor
    count: Tensor
    constant: bool

    @classmethod
    def of(cls, moments: Moments, folds: Iterable[int]) -> _Sums:
        chosen = list(folds)
        second, first, count = (part[chosen].sum(dim=0) for part in (moments.second, moments.first, moments.count))
        return cls(second, first, count, moments.shift is not None)


def _blocks(moments: Moments, kept: Indices, removed: Indices) -> _Blocks:
    """Channels that stay and go, per block, counted within it."""
    size = moments.channels // moments.blocks
    return [
        (torch.from_numpy(kept[kept // size == n] % size), torch.from_numpy(removed[removed // size == n] % size))
        for n in range(moments.blocks)
    ]


def _fit(sums: _Sums, blocks: _Blocks, ridges: Sequence[float]) -> _Fits:
    """Per block: maps ``[ridges, removed, kept]`` and constants ``[ridges, removed]``."""
    spread = centred(sums.second, sums.first, sums.count, sums.constant)
    fits = []
    for number, (ins, outs) in enumerate(blocks):
        inner, cross = spread[number][ins][:, ins], spread[number][ins][:, outs]
        scale = inner.diagonal().clamp(min=0).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        values, vectors = torch.linalg.eigh(inner / scale[:, None] / scale)
        live = values > DEPENDENT * values.max() if len(values) else values > 0
        turned = vectors.T @ (cross / scale[:, None])
        maps = []
        for ridge in ridges:
            inverse = torch.where(live, 1 / (values.clamp(min=0) + ridge), 0.0)
            maps.append((vectors @ (inverse[:, None] * turned) / scale[:, None]).T)
        stack = torch.stack(maps)
        means = sums.first[number] / sums.count
        constants = means[outs] - stack @ means[ins] if sums.constant else torch.zeros(stack.shape[:2]).double()
        fits.append((stack, constants))
    return fits


def _errors(sums: _Sums, blocks: _Blocks, fits: _Fits) -> Tensor:
    """``[ridges]``: squared error of the maps on samples, from their moments."""
    total = torch.zeros(len(fits[0][0]), dtype=torch.float64)
    for number, ((ins, outs), (maps, constants)) in enumerate(zip(blocks, fits, strict=True)):
        second, first = sums.second[number], sums.first[number]
        # The residual is [1, -map, -constant] times (removed, kept, 1).
        total += second[outs, outs].sum() - 2 * (maps * second[outs][:, ins]).sum(dim=(1, 2))
        total += ((maps @ second[ins][:, ins]) * maps).sum(dim=(1, 2))
        total += (constants * (2 * (maps @ first[ins]) - 2 * first[outs] + sums.count * constants)).sum(dim=1)
    return total.clamp(min=0)


def _energy(sums: _Sums, blocks: _Blocks) -> float:
    return float(sum(sums.second[number][outs, outs].sum() for number, (_, outs) in enumerate(blocks)))
