"""Second moments of what the readers of a channel group take in, added up over a calibration set in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from billhook.compensation.matrices import runs
from billhook.errors import InputError, UsageError
from billhook.surgery import ChannelGroup, Grouping, Member
from billhook.surgery.tensors import is_depthwise

_AT_ONCE = 1 << 22  # values that become float64 at the same time

SPECK = 1e-12
"""A variance below this share of the mean square is what rounding left of a constant."""


@dataclass
class Moments:
    """What one reader takes in of a group's channels, as sums over samples.

    A sample is one value of every channel under one tap of the reader: at every output position, each tap of a
    convolution reads one place of the map, so places are counted as often as they are read, those between the steps of
    a stride not at all, and the zeros of the padding as often as they are. A linear layer behind a flattened map reads
    one sample per place.

    Attributes:
        member: The reader, and where the group's channels lie in it.
        blocks: Groups of the reader, when it is a grouped convolution: channels of different blocks never meet.
        shift: The layer that can take up a constant behind the reader: itself when it has a bias, else a BatchNorm that
            sees its output and nothing else does; None where there is neither.
        second: ``[folds, blocks, c, c]``: sums of products of the channels of a block. Images go to the folds in turn.
        first: ``[folds, blocks, c]``: sums of the channels.
        count: ``[folds]``: samples.
        vectors: ``[folds]``: places that were read, each counted once: how much was seen.
    """

    member: Member
    blocks: int
    shift: str | None
    second: Tensor
    first: Tensor
    count: Tensor
    vectors: Tensor

    @classmethod
    def empty(cls, member: Member, blocks: int, folds: int, shift: str | None = None) -> Moments:
        """Sums of nothing."""
        size = len(member.index) // blocks
        sums = [torch.zeros(folds, *shape, dtype=torch.float64) for shape in ((blocks, size, size), (blocks, size))]
        counts = [torch.zeros(folds, dtype=torch.float64) for _ in range(2)]
        return cls(member, blocks, shift, *sums, *counts)

    @property
    def channels(self) -> int:
        """Channels of the group."""
        return len(self.member.index)

    def add(self, values: Tensor, weights: Tensor | None = None, unseen: float = 0.0, start: int = 0) -> None:
        """Add samples.

        Args:
            values: ``[images, channels, places]``.
            weights: ``[places]``: how often each place is read; None: once.
            unseen: Reads of zeros besides, per image.
            start: Number of the first image, which says its fold.
        """
        folds, places = len(self.count), values.shape[2]
        step = max(1, _AT_ONCE // max(1, values[0].numel())) if len(values) else 1
        for fold in range(folds):
            part = values[(fold - start) % folds :: folds]
            for some in torch.split(part, step):
                # Not every device knows float64.
                some = some if some.device.type in ("cpu", "cuda") else some.cpu()
                rows = runs(some.double(), 1, self.blocks).permute(1, 2, 0, 3)
                read = rows if weights is None else rows * weights.to(rows)
                read, rows = read.flatten(2), rows.flatten(2)
                self.second[fold] += (read @ rows.mT).cpu()
                self.first[fold] += read.sum(dim=2).cpu()
            reads = places if weights is None else float(weights.sum())
            self.count[fold] += len(part) * (reads + unseen)
            self.vectors[fold] += len(part) * (places if weights is None else int((weights > 0).sum()))

    def sum_over(self, total: Callable[[Tensor], Tensor]) -> None:
        """Add the sums of all processes up, in place.

        Args:
            total: A tensor to its sum over all processes.
        """
        for name in ("second", "first", "count", "vectors"):
            setattr(self, name, total(getattr(self, name)))

    def check(self) -> None:
        """Refuse sums that mean nothing.

        Raises:
            InputError: Activations that are not finite.
        """
        if not torch.isfinite(self.second).all():
            raise InputError(f"what '{self.member.layer}' takes in is not finite", "check the weights and the images")


def centred(second: Tensor, first: Tensor, count: Tensor, constant: bool) -> Tensor:
    """Products of deviations from the mean, ``[..., c, c]``; from zero when there is no constant."""
    if not constant or float(count) == 0:
        return second
    deviations = second - first[..., :, None] * first[..., None, :] / count
    still = deviations.diagonal(dim1=-2, dim2=-1) <= SPECK * second.diagonal(dim1=-2, dim2=-1)
    return deviations.masked_fill(still[..., :, None] | still[..., None, :], 0)


def collect_moments(
    module: nn.Module,
    grouping: Grouping,
    batches: Iterable[Tensor],
    groups: Sequence[str] | None = None,
    *,
    folds: int = 4,
) -> dict[str, dict[str, Moments]]:
    """Run a calibration set through the network, once, and add up what the readers of channel groups take in.

    The network runs in eval mode without gradients; training flags come back as they were.

    Args:
        module: The network; left as it is.
        grouping: Its channel groups.
        batches: Images ``[n, 3, H, W]``, on the network's device.
        groups: Names of the groups that are wanted; None: all.
        folds: Parts that images are dealt to in turn, for cross-validation.

    Returns:
        Group → reader → moments, of the readers with weights that ran.

    Raises:
        UsageError: A group that is not there, or fewer than two folds.
        InputError: No images, or activations that are not finite.
    """
    if folds < 2:
        raise UsageError("cross-validation needs two folds or more", "folds=4")
    found: dict[str, dict[str, Moments]] = {}
    by_layer: dict[str, list[Moments]] = {}
    for name in grouping.groups if groups is None else groups:
        if name not in grouping.groups:
            raise UsageError(f"there is no channel group '{name}'")
        found[name] = {}
        for member in compensable(module, grouping.groups[name]):
            blocks = int(getattr(module.get_submodule(member.layer), "groups", 1))
            found[name][member.layer] = Moments.empty(member, blocks, folds)
            by_layer.setdefault(member.layer, []).append(found[name][member.layer])
    watch = _Watch(module, grouping, by_layer)
    with watch.running(), torch.no_grad():
        for batch in batches:
            module(batch)
            watch.next(len(batch))
    if not watch.images:
        raise InputError("activations need images, and there are none")
    for name, readers in found.items():
        found[name] = {layer: moments for layer, moments in readers.items() if float(moments.count.sum()) > 0}
        for layer, moments in found[name].items():
            moments.shift = watch.shift(layer)
            moments.check()
    return found


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for as long as the context lasts; training flags come back as they were."""
    flags = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in flags:
            part.training = training


def compensable(module: nn.Module, group: ChannelGroup) -> tuple[Member, ...]:
    """The readers of a group whose weights can take up what removed channels did.

    A map without weights (a padded shortcut) hands channels on as they are: those that are removed are zero behind it.
    """
    found = []
    for member in group.readers:
        layer = module.get_submodule(member.layer) if member.dim is None else None
        if isinstance(layer, _ConvNd | nn.Linear) and not is_depthwise(layer):
            found.append(member)
    return tuple(found)


def reads(layer: _ConvNd, sizes: Sequence[int]) -> tuple[Tensor | None, float]:
    """How often a convolution reads each place of a map.

    Args:
        layer: The convolution; its padding is of zeros, or was added to the map already.
        sizes: Sides of the map.

    Returns:
        ``[places]``, None where every place is read once and nothing else is; and how often it reads the padding.
    """
    pads = list(layer._reversed_padding_repeated_twice) if layer.padding_mode == "zeros" else [0] * 2 * len(sizes)
    total = torch.ones(1, dtype=torch.float64)
    everything = 1
    for axis, size in enumerate(sizes):
        kernel, stride, dilation = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
        low, high = pads[2 * (len(sizes) - 1 - axis) :][:2]
        steps = (size + low + high - dilation * (kernel - 1) - 1) // stride + 1
        places = (torch.arange(steps)[:, None] * stride + torch.arange(kernel)[None] * dilation - low).flatten()
        inside = places[(places >= 0) & (places < size)]
        total = (total[:, None] * torch.bincount(inside, minlength=size).double()[None]).flatten()
        everything *= steps * kernel
    unseen = everything - float(total.sum())
    return (None if not unseen and bool((total == 1).all()) else total), unseen


class _Watch:
    """Hooks on the readers while images run through."""

    def __init__(self, module: nn.Module, grouping: Grouping, wanted: dict[str, list[Moments]]) -> None:
        self.module, self.wanted, self.images = module, wanted, 0
        self.norms = {}
        for group in grouping.groups.values():
            for member in group.members:
                norm = module.get_submodule(member.layer) if member.dim is None else None
                if member.after in wanted and isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                    self.norms[member.layer] = str(member.after)
        self.outputs: dict[str, tuple[Tensor, int]] = {}
        self.direct: dict[str, str] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Eval mode, with the hooks in place."""
        with ExitStack() as stack:
            stack.callback(self.outputs.clear)
            stack.enter_context(evaluating(self.module))
            for name in self.wanted:
                layer = self.module.get_submodule(name)
                stack.enter_context(layer.register_forward_pre_hook(self._read(name), with_kwargs=True))
                stack.enter_context(layer.register_forward_hook(self._wrote(name)))
            for norm, reader in self.norms.items():
                layer = self.module.get_submodule(norm)
                stack.enter_context(layer.register_forward_pre_hook(self._normalised(norm, reader)))
            yield

    def next(self, images: int) -> None:
        """One batch is through."""
        self.images += images
        self.outputs.clear()

    def shift(self, name: str) -> str | None:
        """Where a constant behind a layer can go."""
        layer = self.module.get_submodule(name)
        if isinstance(layer, _ConvTransposeNd):
            return None  # how many taps meet at one place differs from place to place
        return name if layer.bias is not None else self.direct.get(name)

    def _read(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            taken: Tensor = inputs[0] if inputs else next(iter(named.values()))
            for moments in self.wanted[name]:
                moments.add(*_samples(layer, taken.detach(), moments.member), start=self.images)

        return hook

    def _wrote(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            self.outputs[name] = (output, output._version)

        return hook

    def _normalised(self, norm: str, reader: str) -> Callable[[nn.Module, Any], None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            # The same tensor, untouched since: no activation, pooling or addition lies between them.
            output, version = self.outputs.get(reader, (None, 0))
            if output is not None and inputs and inputs[0] is output and output._version == version:
                self.direct[reader] = norm

        return hook


def _samples(layer: nn.Module, taken: Tensor, member: Member) -> tuple[Tensor, Tensor | None, float]:
    """``[images, channels, places]`` of what a layer takes in, how often each is read, and reads of zeros."""
    index = torch.from_numpy(member.index).to(taken.device)
    whole = torch.equal(index.flatten(), torch.arange(index.numel(), device=index.device)) and index.shape[1] == 1
    if isinstance(layer, nn.Linear):
        flat = taken.flatten(1, -2) if taken.ndim > 2 else taken[:, None]
        if not (whole and flat.shape[2] == len(index)):
            flat = flat[:, :, index].transpose(2, 3).flatten(1, 2)
        return flat.transpose(1, 2), None, 0.0
    assert isinstance(layer, _ConvNd)
    if layer.padding_mode != "zeros":
        taken = functional.pad(taken, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    weights, unseen = (None, 0.0) if isinstance(layer, _ConvTransposeNd) else reads(layer, taken.shape[2:])
    values = taken.flatten(2)
    if not (whole and values.shape[1] == len(index)):
        values = values[:, index].flatten(2)
        weights = None if weights is None else weights.repeat(index.shape[1])
        unseen *= index.shape[1]
    return values, weights, unseen
