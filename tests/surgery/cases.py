"""Networks to cut: every signal in them is of unit size, so that no wrong index hides behind a zero or a constant."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from billhook.models import Network, open_network
from billhook.surgery import ChannelPlan, Grouping, channel_groups, mask_channels, plan_channels, remove_channels

CLASSES = 10
SMALL = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "wrn", "preresnet")
MEDIUM = ("vgg16", "tinycnn")


def size_of(spec: str) -> int:
    """Pixels: as few as the network can take and still tell two images from each other."""
    if spec.startswith(MEDIUM):
        return 32
    return 16 if spec.startswith(SMALL) or "stem=cifar" in spec else 96 if "inception" in spec else 64


def images(size: int) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def settle(module: nn.Module, size: int) -> None:
    """Random parameters, and statistics that fit them.

    Networks are born with scales of zero at the end of branches, with biases of zero and with averages of zero and
    one; then nothing that goes wrong in a branch can be seen. One batch of images scales every layer to unit output.
    """
    generator = torch.Generator().manual_seed(3)
    matrices = {part.weight for part in module.modules() if isinstance(part, _ConvNd | nn.Linear)}
    for name, parameter in module.named_parameters():
        if parameter in matrices:
            continue
        if name.endswith("bias"):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        else:
            parameter.data = torch.rand(parameter.shape, generator=generator) + 0.5
    handles, norms = [], [part for part in module.modules() if isinstance(part, _BatchNorm)]
    for part in module.modules():
        if isinstance(part, _ConvNd | nn.Linear):
            handles.append(part.register_forward_hook(_to_unit))
    momenta = [part.momentum for part in norms]
    for part in norms:
        part.training, part.momentum = True, 1.0
    with torch.no_grad():
        module(images(size))
    for part, momentum in zip(norms, momenta, strict=True):
        part.training, part.momentum = False, momentum
        noise = torch.randn(part.running_mean.shape, generator=generator)
        part.running_mean += 0.1 * part.running_var.sqrt() * noise
        part.running_var *= torch.rand(noise.shape, generator=generator) + 0.5
        part.running_var.clamp_(min=0.1 * float(part.running_var.mean()) + 1e-3)
    for handle in handles:
        handle.remove()


def _to_unit(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    scale = output.std() + 1e-6
    layer.weight.data /= scale
    if layer.bias is not None:
        layer.bias.data /= scale
    return output / scale


def draw(grouping: Grouping, share: float = 0.5, without: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Channels that stay, at random, as many of each section.

    Args:
        share: Of a group's channels; at least one of each section stays.
        without: Share of the groups with a branch that lose all of it.
    """
    rng = np.random.default_rng(seed)
    kept = {}
    for group in grouping.groups.values():
        if group.branch is not None and rng.random() < without:
            kept[group.name] = np.zeros(0, dtype=np.int64)
            continue
        run = group.channels // group.sections
        most = max(1, round(share * run))
        kept[group.name] = np.concatenate(
            [section * run + rng.choice(run, most, replace=False) for section in range(group.sections)]
        )
    return kept


@dataclass
class Cut:
    """One choice of channels on a network, carried out in double precision; the plan has been through JSON."""

    module: nn.Module
    grouping: Grouping
    kept: dict[str, np.ndarray]
    plan: ChannelPlan = field(init=False)

    def __post_init__(self) -> None:
        plan = plan_channels(self.module, self.grouping, self.kept)
        self.plan = ChannelPlan.from_dict(json.loads(json.dumps(plan.as_dict())))
        assert self.plan == plan

    @cached_property
    def small(self) -> nn.Module:
        return remove_channels(self.module, self.plan).eval()

    @cached_property
    def masked(self) -> nn.Module:
        return mask_channels(self.module, self.plan).eval()

    @cached_property
    def small32(self) -> nn.Module:
        """As it is delivered, in single precision."""
        return copy.deepcopy(self.small).float().eval()


class Case:
    """A network, its groups and two cuts: half of every group; and half the branches gone where there are any."""

    def __init__(self, spec: str) -> None:
        self.spec, self.size = spec, size_of(spec)
        self.network: Network = open_network(spec, CLASSES)
        settle(self.network.module, self.size)
        self.grouping = channel_groups(self.network.module, self.size)
        self.module = self.network.module.double()  # no second copy: some have hundreds of megabytes
        self.cuts = {"half": Cut(self.module, self.grouping, draw(self.grouping))}
        if any(group.branch is not None for group in self.grouping.groups.values()):
            fewer = draw(self.grouping, without=0.5, seed=1)
            self.cuts["fewer branches"] = Cut(self.module, self.grouping, fewer)
        self.images = images(self.size)[:2].double()
