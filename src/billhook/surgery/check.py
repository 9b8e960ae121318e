"""Does a plan fit a network? Plans are read from files, and no file may crash a program or fill its memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from billhook.errors import InputError
from billhook.models import PadShortcut
from billhook.surgery.plan import ChannelPlan, LayerCut
from billhook.surgery.tensors import Positions, is_depthwise, layer_channels


def check_plan(module: nn.Module, plan: ChannelPlan) -> None:
    """Refuse a plan that is not of this network, before anything is made.

    Every layer is looked at by itself; whether neighbours agree shows when the network runs.

    Args:
        module: The network before.
        plan: What stays.

    Raises:
        InputError: A layer that is not there, or positions that it does not have.
    """
    parts = dict(module.named_modules(remove_duplicate=False))
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, cut in plan.layers.items():
        try:
            if name and name in parts:
                _check_layer(parts[name], cut)
            elif name in parameters:
                _check_parameter(parts[name.rpartition(".")[0]], parameters[name].shape, cut)
            else:
                raise ValueError("there is no such layer")
        except (TypeError, ValueError) as error:
            raise InputError(f"the channels of '{name}' do not fit this network: {error}") from error


def _check_parameter(owner: nn.Module, shape: Sequence[int], cut: LayerCut) -> None:
    if isinstance(owner, _ConvNd | nn.Linear | _NormBase | nn.PReLU):
        raise ValueError(f"it is part of a {type(owner).__name__}")
    if cut.dim is None or cut.out is None or cut != LayerCut(cut.out, dim=cut.dim):
        raise ValueError("a parameter on its own has positions along one dimension, and nothing else")
    if not 0 <= cut.dim < len(shape):
        raise ValueError(f"it has {len(shape)} dimensions")
    _check_positions(cut.out, shape[cut.dim])


def _check_layer(part: nn.Module, cut: LayerCut) -> None:
    outputs, inputs = layer_channels(part, "out"), layer_channels(part, "in")
    if cut.dim is not None:
        raise ValueError("a layer has no dimension to be named")
    if cut.role in ("silent", "idle"):
        if cut != LayerCut(role=cut.role):
            raise ValueError("a layer that is gone has no channels")
        return
    if cut.out is not None:
        _check_positions(cut.out, outputs)
    left = outputs if cut.out is None else len(cut.out)
    if cut.role == "constant":
        if isinstance(part, PadShortcut | nn.PReLU | nn.Linear) or cut.inside not in (None, ()) or cut.gather:
            raise ValueError("it cannot be a constant")
    else:
        both = isinstance(part, _NormBase | nn.PReLU) or is_depthwise(part)
        if cut.inside is not None:
            if both:
                raise ValueError("its inputs are its outputs")
            _check_positions(cut.inside, inputs)
        if isinstance(part, _ConvNd) and not both:
            _check_groups(part, cut)
        read = left if both else inputs if cut.inside is None else len(cut.inside)
        if cut.gather is not None and (not is_wirable(part) or len(cut.gather) != read):
            raise ValueError(f"it reads {read} channels")
        if cut.gather is not None:
            _check_positions(cut.gather, inputs)
    if cut.scatter is not None:
        if not is_wirable(part) or len(cut.scatter) > outputs:
            raise ValueError("its outputs cannot be put there")
        if [position for position in cut.scatter if position != -1] != list(range(left)):
            raise ValueError(f"each of its {left} outputs goes to one place, in order")


def _check_positions(positions: Positions, total: int) -> None:
    if not positions:
        raise ValueError("none is left")
    if positions[0] < 0 or positions[-1] >= total:
        raise ValueError(f"it has {total} of them")
    if list(positions) != sorted(set(positions)):
        raise ValueError("they are not in order")


def _check_groups(part: _ConvNd, cut: LayerCut) -> None:
    if part.groups == 1:
        return
    if isinstance(part, _ConvTransposeNd):
        raise ValueError("a grouped transposed convolution keeps all")
    for positions, total in ((cut.out, part.out_channels), (cut.inside, part.in_channels)):
        run = total // part.groups
        counts = [0] * part.groups
        for position in positions or ():
            counts[position // run] += 1
        if len(set(counts)) > 1:
            raise ValueError(f"each of its {part.groups} groups must keep equally many")


def is_wirable(part: nn.Module) -> bool:
    """A map of channels can stand in front of it or behind it: the layer works on images."""
    return isinstance(
        part, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d | nn.InstanceNorm2d | nn.SyncBatchNorm | nn.PReLU
    )
