"""Carrying a plan out: the smaller network, the masked one that computes the same, and the state of an optimiser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from billhook.errors import InputError
from billhook.models import ChannelMap, PadShortcut
from billhook.surgery.check import check_plan
from billhook.surgery.plan import ChannelPlan, LayerCut
from billhook.surgery.tensors import TensorCut, layer_channels, layer_cuts, resize
from billhook.surgery.twin import twin


class Silent(nn.Module):
    """What is left of a layer whose outputs are all gone: a zero that no one reads."""

    def forward(self, x: Tensor) -> Tensor:
        """Anything to zeros ``[1, 1, 1, 1]``."""
        return x.new_zeros(1, 1, 1, 1)


class Constant(nn.Module):
    """What is left of a branch without channels: one value per output channel, wherever it is added.

    Args:
        value: ``[channels]``; None for zeros.
        channels: How many.
    """

    def __init__(self, value: Tensor | None, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.value = None if value is None else nn.Parameter(value)

    def forward(self, x: Tensor) -> Tensor:
        """Anything to ``[1, channels, 1, 1]``."""
        if self.value is None:
            return x.new_zeros(1, self.channels, 1, 1)
        return self.value.view(1, -1, 1, 1)


class Wired(nn.Sequential):
    """A layer with a channel map in front of it or behind it."""


def remove_channels(module: nn.Module, plan: ChannelPlan, *, share: bool = False) -> nn.Module:
    """A smaller copy of the network.

    Args:
        module: The network, or one of the same architecture; left as it is.
        plan: What stays.
        share: Leave what stays whole to both networks, for a look at the smaller one that changes nothing.

    Raises:
        InputError: The plan is not of this network.
    """
    check_plan(module, plan)
    # What is cut is made anew anyway: only what stays whole is copied, at the end.
    small, tensors = _double(module)
    for name, cut in plan.layers.items():
        try:
            _carry_out(small, name, cut)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"the channels of '{name}' do not fit this network: {error}") from error
    if not share:
        _part_with(small.modules(), tensors)
    return small


def _double(module: nn.Module) -> tuple[nn.Module, dict[int, Tensor]]:
    """A copy of the layers that has the same tensors, and those by identity."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return twin(module, tensors), tensors


def _part_with(parts: Iterable[nn.Module], tensors: Mapping[int, Tensor]) -> None:
    """Copies of their own for tensors of layers that are still those of another network."""
    copies: dict[int, Tensor] = {}
    for part in parts:
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None and tensors.get(id(tensor)) is tensor:
                    if id(tensor) not in copies:
                        own = tensor.detach().clone()
                        whole = isinstance(tensor, nn.Parameter)
                        copies[id(tensor)] = nn.Parameter(own, tensor.requires_grad) if whole else own
                    store[name] = copies[id(tensor)]  # type: ignore[assignment]


def mask_channels(module: nn.Module, plan: ChannelPlan, *, share: bool = False) -> nn.Module:
    """A copy of the network in its old shape that computes what the smaller one does: what goes is zero.

    Args:
        module: The network, or one of the same architecture; left as it is.
        plan: What stays.
        share: Leave what is not masked to both networks, for a look at the masked one that changes nothing.

    Raises:
        InputError: The plan is not of this network.
    """
    check_plan(module, plan)
    masked, shared = _double(module)
    touched = {name if entry.dim is None else name.rpartition(".")[0] for name, entry in plan.layers.items()}
    _part_with((masked.get_submodule(name) for name in touched) if share else masked.modules(), shared)
    tensors = dict(masked.named_parameters()) | dict(masked.named_buffers())
    parts = dict(masked.named_modules())
    with torch.no_grad():
        for name, cut in plan.layers.items():
            part = parts.get(name)
            if isinstance(part, PadShortcut):
                _mask_map(part, cut)
            elif cut.role is not None and part is not None:
                _mask_branch(part, cut)
            for tensor, taken in _cuts(part, cut).items():
                full = tensors[f"{name}.{tensor}" if tensor else name]
                taken.clear(full)
                if tensor == "running_var":
                    full[_gone(taken, taken.take(full), full)] = 1
    return masked


def expand_channels(small: nn.Module, module: nn.Module, plan: ChannelPlan) -> nn.Module:
    """A copy of ``module`` in its own shape that computes what ``small`` does.

    Args:
        small: What :func:`remove_channels` made of such a network, trained further perhaps.
        module: The network before channels were removed; left as it is.
        plan: What stayed.
    """
    large = mask_channels(module, plan)
    new, cuts = small.state_dict(), tensor_cuts(module, plan)
    with torch.no_grad():
        for name, tensor in large.state_dict().items():
            if name in cuts:
                small_tensor = new[_new_name(name, plan)]
                tensor.copy_(cuts[name].put(small_tensor, tensor))
                if name.endswith("running_var"):
                    tensor[_gone(cuts[name], small_tensor, tensor)] = 1
        for name, cut in plan.layers.items():
            value = new.get(_new_name(f"{name}.value", plan)) if cut.role == "constant" else None
            if value is not None:
                _hold(large.get_submodule(name), value, cut)
    parts = dict(small.named_modules())
    for name, part in large.named_modules():
        if isinstance(part, PadShortcut):
            less = parts.get(f"{name}.layer", parts.get(name))
            if isinstance(less, PadShortcut):
                _widen_map(part, less, plan.layers.get(name))
    return large


def cut_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, small: nn.Module, plan: ChannelPlan) -> None:
    """Hand an optimiser over from ``module`` to ``small``, its state cut with the same positions as the weights.

    Args:
        optimizer: Over parameters of ``module``; changed in place.
        module: The network before.
        small: The network after.
        plan: What stays.
    """
    cuts = tensor_cuts(module, plan)
    after = dict(small.named_parameters())
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in optimizer.param_groups:
        parameters = []
        for parameter in group["params"]:
            state = optimizer.state.pop(parameter, None)
            name = names.get(id(parameter), "")
            cut = cuts.get(name) if name else TensorCut()
            if cut is None:
                continue  # the layer is gone
            new = after[_new_name(name, plan)] if name else parameter
            if state is not None:
                optimizer.state[new] = {
                    key: cut.take(value) if isinstance(value, Tensor) and value.shape == parameter.shape else value
                    for key, value in state.items()
                }
            parameters.append(new)
        group["params"] = parameters
    _adopt_constants(optimizer, small, plan)


def cut_state(state: Mapping[str, Tensor], module: nn.Module, plan: ChannelPlan) -> dict[str, Tensor]:
    """A state dictionary of ``module`` (a moving average of its weights, say) cut to the smaller network's.

    Constants of branches that are gone are not in it: they begin as the smaller network's.
    """
    cuts = tensor_cuts(module, plan)
    return {_new_name(name, plan): cuts[name].take(tensor) for name, tensor in state.items() if name in cuts}


def tensor_cuts(module: nn.Module, plan: ChannelPlan) -> dict[str, TensorCut]:
    """How each tensor of the state dictionary is cut; those of layers that are gone are not among them."""
    parts = dict(module.named_modules())
    found = {}
    for name in module.state_dict():
        layer, _, last = name.rpartition(".")
        cut = plan.layers.get(name) or plan.layers.get(layer)
        if cut is None:
            found[name] = TensorCut()
        elif cut.role is None:
            cuts = _cuts(parts.get(layer), cut) if name not in plan.layers else {last: _cuts(None, cut)[""]}
            found[name] = cuts.get(last, TensorCut())
    return found


def _carry_out(small: nn.Module, name: str, cut: LayerCut) -> None:
    parent_name, _, last = name.rpartition(".")
    parent = small.get_submodule(parent_name)
    if cut.dim is not None:
        old = getattr(parent, last)
        setattr(parent, last, nn.Parameter(_cuts(None, cut)[""].take(old.detach()), old.requires_grad))
        return
    layer = small.get_submodule(name)
    if cut.role is not None:
        layer = _remains(layer, cut)
        setattr(parent, last, layer)
    else:
        resize(layer, cut.out, cut.inside)
    if cut.gather is not None or cut.scatter is not None:
        wired = Wired()
        if cut.gather is not None:
            wired.add_module("gather", ChannelMap(cut.gather))
        wired.add_module("layer", layer)
        if cut.scatter is not None:
            wired.add_module("scatter", ChannelMap(cut.scatter))
        setattr(parent, last, wired)


def _remains(layer: nn.Module, cut: LayerCut) -> nn.Module:
    if cut.role == "silent":
        return Silent()
    if cut.role == "idle":
        return nn.Identity()
    value = _constant(layer)
    channels = layer_channels(layer, "out")
    if cut.out is not None:
        channels, value = len(cut.out), None if value is None else value[list(cut.out)]
    if cut.inside == () and value is not None:
        value = torch.zeros_like(value)
    return Constant(value, channels)


def _constant(layer: nn.Module) -> Tensor | None:
    """What a layer puts out for an input of zeros, per channel; None: zero, and nothing to learn."""
    if isinstance(layer, _NormBase):
        if layer.running_mean is None or layer.running_var is None:
            return None if layer.bias is None else layer.bias.detach().clone()
        value = -layer.running_mean / torch.sqrt(layer.running_var + layer.eps)
        if layer.affine:
            value = layer.bias + layer.weight * value
        return value.detach().clone()
    bias = getattr(layer, "bias", None)
    return None if bias is None else bias.detach().clone()


def _mask_branch(part: nn.Module, cut: LayerCut) -> None:
    """The old layers in the shape of what is left of them: zeros, and the constant of the last one."""
    value = _constant(part) if cut.role == "constant" else None
    weight, bias = getattr(part, "weight", None), getattr(part, "bias", None)
    for tensor in (weight, bias):
        if tensor is not None:
            tensor.zero_()
    if isinstance(part, _NormBase) and part.running_mean is not None and part.running_var is not None:
        part.running_mean.zero_()
        part.running_var.fill_(1)
    if value is not None:
        if cut.out is not None:
            value = value[list(cut.out)]
        _hold(part, torch.zeros_like(value) if cut.inside == () else value, cut)


def _hold(part: nn.Module, value: Tensor, cut: LayerCut) -> None:
    """Make a layer whose input is zero put this constant out: by its bias, or by its mean where it has none."""
    bias = getattr(part, "bias", None)
    if bias is not None:
        bias.copy_(TensorCut(() if cut.out is None else ((0, cut.out),)).put(value, bias))
    elif isinstance(part, _NormBase) and part.running_mean is not None and part.running_var is not None:
        whole = TensorCut(() if cut.out is None else ((0, cut.out),)).put(value, part.running_mean)
        part.running_mean.copy_(-whole * torch.sqrt(part.running_var + part.eps))


def _mask_map(part: PadShortcut, cut: LayerCut) -> None:
    source = part.source()
    if cut.inside is not None:
        source = [channel if channel in cut.inside else -1 for channel in source]
    if cut.out is not None:
        source = [channel if number in cut.out else -1 for number, channel in enumerate(source)]
    part.channels = ChannelMap(source)


def _widen_map(part: PadShortcut, small: PadShortcut, cut: LayerCut | None) -> None:
    """Hand on what the smaller one hands on, and nothing else: it may have lost channels in its own shape since."""
    out, inside = (None, None) if cut is None else (cut.out, cut.inside)
    source = [-1] * len(part.source())
    for number, channel in enumerate(small.source()):
        if channel >= 0:
            source[number if out is None else out[number]] = channel if inside is None else inside[channel]
    if source != part.source():
        part.channels = ChannelMap(source).to(small.channels.source.device if small.channels is not None else "cpu")


def _cuts(part: nn.Module | None, cut: LayerCut) -> dict[str, TensorCut]:
    """How a layer's tensors are cut; of a parameter that stands on its own: under the empty name."""
    if cut.role is not None or isinstance(part, PadShortcut):
        return {}
    if cut.dim is not None:
        assert cut.out is not None  # check_plan has seen to it
        return {"": TensorCut(((cut.dim, cut.out),))}
    assert part is not None
    return layer_cuts(part, cut.out, cut.inside)


def _gone(cut: TensorCut, small: Tensor, large: Tensor) -> Tensor:
    """Where ``put`` leaves a large tensor empty."""
    return cut.put(torch.ones_like(small), large) == 0


def _new_name(name: str, plan: ChannelPlan) -> str:
    layer, _, last = name.rpartition(".")
    cut = plan.layers.get(layer)
    wired = cut is not None and (cut.gather is not None or cut.scatter is not None)
    return f"{layer}.layer.{last}" if wired else name


def _adopt_constants(optimizer: torch.optim.Optimizer, small: nn.Module, plan: ChannelPlan) -> None:
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, cut in plan.layers.items():
        part = small.get_submodule(name) if cut.role == "constant" else None
        part = part.get_submodule("layer") if isinstance(part, Wired) else part
        if isinstance(part, Constant) and part.value is not None and id(part.value) not in known:
            optimizer.param_groups[-1]["params"].append(part.value)
