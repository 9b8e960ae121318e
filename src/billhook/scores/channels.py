"""Importance of channels: the criteria that channel pruning is usually compared with.

A score belongs to a channel of a group, that is, to every place where the channel lives. Convolutions and linear layers
that put it out are its writers; a depthwise convolution that carries it on counts as one, a map without weights does
not. Where a channel owns several positions of a layer, its score there is the mean over them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from billhook.data import Batch, ImageSet, Preprocess
from billhook.data.splits import seed_of
from billhook.errors import InputError, UsageError, nearest
from billhook.surgery.groups import ChannelGroup, Grouping, Member
from billhook.training.precision import Room

ChannelScore = Literal["random", "l1", "l2", "fpgm", "slimming", "taylor", "activation"]
"""A criterion; what each computes stands at :func:`channel_scores`."""

Normalisation = Literal["none", "mean", "max", "sum", "l2"]
"""What the scores of a group are divided by: nothing, their mean, largest, sum or Euclidean norm."""

Scores = dict[str, NDArray[np.float64]]


def channel_scores(
    kind: ChannelScore,
    module: nn.Module,
    grouping: Grouping,
    images: ImageSet | None,
    preprocess: Preprocess | None,
    room: Room,
    *,
    seed: int = 0,
    micro_batch: int = 16,
) -> Scores:
    """The importance of every channel of every group; the least important go first.

    * ``random``: uniform on [0, 1), a function of (seed, group).
    * ``l1`` (Li et al. 2017), ``l2``: the norm of the channel's filter.
    * ``fpgm`` (He et al. 2019): the sum of Euclidean distances from its filter to all others of the layer.
    * ``slimming`` (Liu et al. 2017): ``|gamma|``, mean over the group's BatchNorms; ``l1`` in the groups that
      :func:`without_batchnorm` names.
    * ``taylor`` (Molchanov et al. 2019): the squared gradient of the loss with respect to a gate of value one on the
      channel, mean over micro-batches, sum over the places that :func:`gated_members` names. The loss is the mean
      cross-entropy over the full head. On the kept classes' images it is class-aware.
    * ``activation``: mean absolute value, over images and positions, of what the group's readers take in.

    Filters and activations are divided by their mean over the group's channels in each layer before the mean over
    layers is taken, so that every layer of a stream counts alike. No group is compared with another here:
    :func:`normalised` is for that. Networks run in eval mode, and training flags come back as they were.

    Args:
        kind: The criterion.
        module: The network; left as it is.
        grouping: Its channel groups.
        images: Of the kept classes; only ``taylor`` and ``activation`` look at them.
        preprocess: Evaluation transform; likewise.
        room: Device, precision, processes; each process takes every world-th micro-batch.
        seed: Of ``random``.
        micro_batch: Images per gradient or forward pass. The last one may be smaller and weighs as much in ``taylor``.

    Returns:
        A float64 array ``[channels]`` per group, not negative, in the order of the grouping.

    Raises:
        UsageError: An unknown criterion, no images where they are needed, or a group that the criterion cannot judge.
        InputError: Scores that are not finite.
    """
    if kind not in get_args(ChannelScore):
        raise UsageError(f"unknown channel score '{kind}'", nearest(kind, get_args(ChannelScore)))
    if kind in ("taylor", "activation"):
        if images is None or preprocess is None or not len(images):
            raise UsageError(f"the {kind} score of channels needs images", "l1, l2, fpgm and slimming need none")
        judge = _taylor if kind == "taylor" else _activation
        scores = judge(module, grouping, images, preprocess, room, micro_batch)
    elif kind == "random":
        groups = grouping.groups.values()
        scores = {g.name: np.random.default_rng(seed_of("channels", seed, g.name)).random(g.channels) for g in groups}
    elif kind == "slimming":
        scores = _slimming(module, grouping)
    else:
        scores = _by_filters(module, grouping, _OF_FILTERS[kind])
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise InputError(f"the {kind} scores of the channels of '{name}' are not finite", "check the weights")
    return scores


def normalised(scores: Scores, how: Normalisation) -> Scores:
    """Scores of different groups made comparable, for one threshold over the whole network.

    Args:
        scores: Per group, not negative, ``[channels]``.
        how: Each group is divided by its ``mean``, its ``max``, its ``sum`` or its ``l2`` norm (Molchanov et al.
            2017); ``none`` compares them as they are. A group of zeros stays one.

    Raises:
        UsageError: An unknown normalisation.
    """
    if how not in _DIVISORS:
        raise UsageError(f"unknown normalisation of channel scores '{how}'", nearest(how, _DIVISORS))
    return {name: _over(values, float(_DIVISORS[how](values))) for name, values in scores.items()}


_DIVISORS: dict[str, Callable[[NDArray[np.float64]], Any]] = {
    "none": lambda values: 1.0,
    "mean": np.mean,
    "max": np.max,
    "sum": np.sum,
    "l2": np.linalg.norm,
}


def _over(values: NDArray[np.float64], divisor: float) -> NDArray[np.float64]:
    # A NaN divides, so that it is noticed; a zero means that all are zero.
    return values.copy() if divisor == 0 else values / divisor


# ---------------------------------------------------------------------------------------------------------------------
# Where the channels of a group live


def _layer(module: nn.Module, member: Member) -> nn.Module | None:
    """The member's module; None for a parameter that stands on its own."""
    return module.get_submodule(member.layer) if member.dim is None else None


def _weighted_writers(module: nn.Module, group: ChannelGroup) -> list[Member]:
    sides = [member for member in group.members if member.side != "in"]
    return [member for member in sides if isinstance(_layer(module, member), _ConvNd | nn.Linear)]


def _batchnorms(module: nn.Module, group: ChannelGroup) -> list[Member]:
    """The group's BatchNorms that have a gamma."""
    found = []
    for member in group.members:
        layer = _layer(module, member)
        if member.side == "through" and isinstance(layer, _BatchNorm) and layer.affine:
            found.append(member)
    return found


def _filters(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight, or its gradient, as one row per output channel."""
    if isinstance(layer, _ConvTransposeNd):
        # Inputs come first, and each group of them has outputs of its own.
        weight = weight.reshape(layer.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)


def _mean_of_layers(layers: list[tuple[Member, NDArray[np.float64]]]) -> NDArray[np.float64]:
    """Scores per position of each layer → scores per channel, every layer divided by its mean first."""
    owned = [positions[member.index].mean(axis=1) for member, positions in layers]
    return np.asarray(np.mean([_over(values, float(values.mean())) for values in owned], axis=0))


# ---------------------------------------------------------------------------------------------------------------------
# From the weights


def _distances(filters: Tensor) -> Tensor:
    return torch.cdist(filters, filters).fill_diagonal_(0).sum(dim=1)


_OF_FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda filters: filters.abs().sum(dim=1),
    "l2": lambda filters: filters.square().sum(dim=1).sqrt(),
    "fpgm": _distances,
}


def _by_filters(module: nn.Module, grouping: Grouping, measure: Callable[[Tensor], Tensor]) -> Scores:
    return {name: _filter_scores(module, group, measure) for name, group in grouping.groups.items()}


def _filter_scores(module: nn.Module, group: ChannelGroup, measure: Callable[[Tensor], Tensor]) -> NDArray[np.float64]:
    layers = []
    for member in _weighted_writers(module, group):
        layer = module.get_submodule(member.layer)
        filters = _filters(layer, cast(Tensor, layer.weight).detach().to("cpu", torch.float64))
        layers.append((member, measure(filters).numpy()))
    if not layers:
        raise UsageError(
            f"no convolution or linear layer writes the channels of '{group.name}'", "score them by activation"
        )
    return _mean_of_layers(layers)


def without_batchnorm(module: nn.Module, grouping: Grouping) -> tuple[str, ...]:
    """Groups that no BatchNorm with a gamma carries: ``slimming`` gives them the scores of ``l1``.

    Those are one in the mean, which gammas seldom are; normalise before one threshold judges both.
    """
    return tuple(name for name, group in grouping.groups.items() if not _batchnorms(module, group))


def _slimming(module: nn.Module, grouping: Grouping) -> Scores:
    scores: Scores = {}
    for name, group in grouping.groups.items():
        gammas = []
        for member in _batchnorms(module, group):
            gamma = cast(Tensor, module.get_submodule(member.layer).weight)
            gammas.append(gamma.detach().to("cpu", torch.float64).abs().numpy()[member.index].mean(axis=1))
        scores[name] = np.mean(gammas, axis=0) if gammas else _filter_scores(module, group, _OF_FILTERS["l1"])
    return scores


# ---------------------------------------------------------------------------------------------------------------------
# From the kept classes' images


@contextmanager
def _frozen(module: nn.Module, live: list[nn.Parameter]) -> Iterator[None]:
    """Eval mode, and gradients for ``live`` alone; flags are restored."""
    flags = [(part, part.training) for part in module.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.eval()
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        for parameter in live:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        for part, training in flags:
            part.training = training


def _share(images: ImageSet, preprocess: Preprocess, room: Room, micro_batch: int) -> Iterator[Batch]:
    """This process's micro-batches; those without a readable image are nobody's."""
    for index, batch in enumerate(images.batches(micro_batch, preprocess)):
        if index % room.world == room.rank and len(batch.labels):
            yield batch


def _example(images: ImageSet, preprocess: Preprocess, room: Room) -> Tensor:
    """One image, the same in every process."""
    return next(batch.images for batch in images.batches(1, preprocess) if len(batch.labels)).to(room.device)


def _everyone(room: Room, total: Tensor) -> Tensor:
    """The sum over all processes, on the CPU: not every device knows float64."""
    return total if room.world == 1 else room.sum(total.to(room.device)).cpu()


def gated_members(module: nn.Module, grouping: Grouping) -> dict[str, tuple[Member, ...]]:
    """Where the ``taylor`` score puts its gates, per group.

    Behind its BatchNorms, when each of its writers feeds one and nothing else, so that a closed gate also closes the
    channel's shift; behind its writers otherwise (as in a pre-activation network, whose BatchNorms see the stream after
    the addition). One kind per group, or some paths would have a gate and others none.

    Args:
        module: The network.
        grouping: Its channel groups.

    Raises:
        UsageError: A group with neither.
    """
    gates: dict[str, tuple[Member, ...]] = {}
    for name, group in grouping.groups.items():
        writers, norms = _weighted_writers(module, group), _batchnorms(module, group)
        sources = {member.layer for member in writers}
        gates[name] = tuple(norm for norm in norms if not writers or norm.after in sources)
        if not sources <= {norm.after for norm in norms}:
            gates[name] = tuple(writers)
        if not gates[name]:
            raise UsageError(f"no layer with weights carries the channels of '{name}'", "score them by activation")
    return gates


def _first(inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return inputs[0] if inputs else next(iter(named.values()))


def _parameters(layer: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in (layer.weight, layer.bias) if isinstance(parameter, nn.Parameter)]


def _gate_gradients(layer: nn.Module, gradients: Mapping[nn.Parameter, Tensor | None]) -> NDArray[np.float64]:
    """dL/dgate of gates of value one behind a layer that is linear in its parameters: the sum of p * dL/dp."""
    products = []
    for parameter in _parameters(layer):
        gradient = gradients[parameter]
        product = torch.zeros_like(parameter) if gradient is None else gradient * parameter.detach()
        products.append(_filters(layer, product).sum(dim=1) if parameter.ndim > 1 else product)
    return torch.stack(products).sum(dim=0).cpu().double().numpy()


def _taylor(
    module: nn.Module, grouping: Grouping, images: ImageSet, preprocess: Preprocess, room: Room, micro_batch: int
) -> Scores:
    gates = gated_members(module, grouping)
    layers = {member.layer: module.get_submodule(member.layer) for members in gates.values() for member in members}
    live = list(dict.fromkeys(parameter for layer in layers.values() for parameter in _parameters(layer)))
    if not live:
        return {}
    sums = {name: np.zeros(group.channels) for name, group in grouping.groups.items()}
    count = torch.zeros((), dtype=torch.float64)
    with _frozen(module, live):
        for batch in _share(images, preprocess, room, micro_batch):
            with room.autocast():
                logits = module(batch.images.to(room.device))
            loss = functional.cross_entropy(logits.float(), batch.labels.to(room.device))
            gradients = dict(zip(live, torch.autograd.grad(loss, live, allow_unused=True), strict=True))
            of_layer = {name: _gate_gradients(layer, gradients) for name, layer in layers.items()}
            for name, members in gates.items():
                for member in members:
                    sums[name] += np.square(of_layer[member.layer][member.index].sum(axis=1))
            count += 1
    batches = _everyone(room, count)
    return {name: (_everyone(room, torch.from_numpy(total)) / batches).numpy() for name, total in sums.items()}


def _activation(
    module: nn.Module, grouping: Grouping, images: ImageSet, preprocess: Preprocess, room: Room, micro_batch: int
) -> Scores:
    readers = {
        name: [member for member in group.readers if member.dim is None] for name, group in grouping.groups.items()
    }
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            taken = _first(inputs, named).float().abs()
            axis = taken.ndim - 1 if isinstance(layer, nn.Linear) else 1
            total = taken.movedim(axis, 0).flatten(1).sum(dim=1).cpu().double()
            sums[name] = sums.get(name, torch.zeros_like(total)) + total

        return hook

    handles = []
    try:
        for name in sorted({member.layer for members in readers.values() for member in members}):
            handles.append(module.get_submodule(name).register_forward_pre_hook(watch(name), with_kwargs=True))
        with _frozen(module, []), torch.no_grad():
            # Which readers run, and how wide they are: every process adds the same up, also one without a share.
            module(_example(images, preprocess, room))
            sums = {name: torch.zeros_like(total) for name, total in sums.items()}
            for batch in _share(images, preprocess, room, micro_batch):
                with room.autocast():
                    module(batch.images.to(room.device))
    finally:
        for handle in handles:
            handle.remove()
    # Sums will do: how many values a reader takes in is one factor of all its channels.
    totals = {name: _everyone(room, total).numpy() for name, total in sums.items()}
    scores: Scores = {}
    for name in grouping.groups:
        layers = [(member, totals[member.layer]) for member in readers[name] if member.layer in totals]
        if not layers:
            raise UsageError(f"no layer takes in the channels of '{name}'", "score them by their weights: l1")
        scores[name] = _mean_of_layers(layers)
    return scores
