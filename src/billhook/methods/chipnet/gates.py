"""ChipNet's gates (2102.07156): a real number per channel, mapped into [0, 1], times what a layer puts out.

``z~ = 1 / (1 + exp(-beta * psi))`` and ``z = 1 - exp(-gamma * z~) + z~ * exp(-gamma)``: the logistic function, then the
continuous Heaviside, which leaves 0 and 1 where they are and is a step in the limit of large gamma.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from billhook.methods.chipnet.places import Layout

Initialise = Literal["identity", "published"]
"""Whether the network's weights make up for what gates begin with (:meth:`Gates.compensate`), or nothing does."""

JITTER = 0.01
"""Width of the uniform noise that gates begin with; it decides which of two equal channels goes first."""


def logistic(psi: Tensor, beta: Tensor | float) -> Tensor:
    """``z~``, in (0, 1)."""
    return torch.sigmoid(beta * psi)


def heaviside(soft: Tensor, gamma: Tensor | float) -> Tensor:
    """``z`` of ``z~``: 0 and 1 stay, and what is between them rises the more the larger gamma is."""
    gamma = torch.as_tensor(gamma, dtype=soft.dtype, device=soft.device)
    return -torch.expm1(-gamma * soft) + soft * torch.exp(-gamma)


def gate_values(psi: Tensor, beta: Tensor | float, gamma: Tensor | float) -> Tensor:
    """``z`` of ``psi``."""
    return heaviside(logistic(psi, beta), gamma)


class Gates(nn.Module):
    """All gates of a network, and what puts them on it.

    Multiplying what a normalisation, a convolution or a linear layer puts out is multiplying its weight and bias by
    output channel, which costs next to nothing: that is what is done while such a layer runs. What other layers put
    out is multiplied itself. The network's own parameters are what they were, and so is its state dictionary.

    A copy of a network that is gated is gated by copies of the gates (:func:`gates_of` finds them). Who copies both
    copies them together: ``network, gates = copy.deepcopy((network, gates))``.

    Args:
        layout: The places.
        beta: To begin with.
        gamma: To begin with.
        seed: Of the noise that gates begin with: psi is uniform in [0, 0.01), so that z is about 0.7 when gamma is 2.

    Attributes:
        psi: ``[gates]``: the only parameter; :meth:`named` splits it.
        beta: Of the logistic function.
        gamma: Of the Heaviside.
        mask: ``[gates]``: what stands in for the gates (:meth:`harden`), or nothing.
    """

    beta: Tensor
    gamma: Tensor
    mask: Tensor | None

    def __init__(
        self,
        layout: Layout,
        *,
        beta: float = 1.0,
        gamma: float = 2.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.layout = layout
        noise = torch.rand(layout.total, generator=torch.Generator().manual_seed(seed % 2**63))
        self.psi = nn.Parameter(JITTER * noise)
        self.register_buffer("beta", torch.tensor(float(beta)))
        self.register_buffer("gamma", torch.tensor(float(gamma)))
        self.register_buffer("mask", None, persistent=False)
        self.factors = _factors(layout)
        self.starts: dict[str, Tensor] = {}  # by place, of compensated gates on what has no weights
        self.rigid: set[int] = set()  # vectors on such places, once the gates are on a network
        self._pieces: tuple[Tensor, ...] | None = None  # of the forward pass that is running

    # ------------------------------------------------------------------ values
    def logistic(self) -> Tensor:
        """``[gates]``: z~."""
        return logistic(self.psi, self.beta)

    def values(self) -> Tensor:
        """``[gates]``: z."""
        return gate_values(self.psi, self.beta, self.gamma)

    def advance(self, beta: float, gamma: float) -> None:
        """Set beta and gamma."""
        self.beta.fill_(beta)
        self.gamma.fill_(gamma)

    def harden(self, mask: Tensor | NDArray[np.bool_], *, keep: bool = False) -> None:
        """Let zeros and ones stand in for the gates until :meth:`soften`.

        Args:
            mask: ``[gates]``: open ones.
            keep: Open gates stay at their values, where weights can take them up (:meth:`fold`).

        Raises:
            ValueError: Another number of gates.
        """
        mask = torch.as_tensor(mask)
        if mask.shape != self.psi.shape:
            raise ValueError(f"there are {len(self.psi)} gates, not {tuple(mask.shape)}")
        self.mask = mask.to(self.psi) * self._kept(keep)

    def soften(self) -> None:
        """Back to what psi says."""
        self.mask = None

    def named(self) -> dict[str, NDArray[np.float32]]:
        """psi by the names of the vectors, to be saved, looked at, or put on another network's gates."""
        row = self.psi.detach().float().cpu().numpy().copy()
        return cast(dict[str, NDArray[np.float32]], self.layout.split(row))

    @torch.no_grad()
    def take(self, named: Mapping[str, NDArray[np.floating[Any]]]) -> None:
        """Set psi to what :meth:`named` said of a network of the same architecture.

        Raises:
            ValueError: A vector is missing, or has another length.
        """
        self.psi.copy_(torch.from_numpy(self.layout.join(named)))

    def pieces(self) -> tuple[Tensor, ...]:
        """What layers are multiplied by now, by vector; worked out once in a forward pass."""
        if self._pieces is not None:
            return self._pieces
        row = self.values() if self.mask is None else self.mask
        return torch.split(row, list(self.layout.sizes))

    @torch.no_grad()
    def _kept(self, keep: bool) -> Tensor:
        """What open gates multiply by when they are hard."""
        row = self.values() if keep else torch.ones_like(self.psi)
        for number, part in enumerate(torch.split(row, list(self.layout.sizes))):
            if number in self.rigid:
                part.fill_(1)
        return row

    # ------------------------------------------------------------------ on and off
    @torch.no_grad()
    def fold(self, network: nn.Module, mask: Tensor | NDArray[np.bool_]) -> None:
        """Multiply weights by the open gates that are put on them, which are one from now on; shut ones change nothing.

        Args:
            network: With these gates on it; changed in place.
            mask: ``[gates]``: open ones.
        """
        row = torch.where(torch.as_tensor(mask).to(self.psi.device), self._kept(True), 1)
        pieces = torch.split(row, list(self.layout.sizes))
        for name, factor in self.factors.items():
            self._scale(network, name, factor.of(pieces))

    @torch.no_grad()
    def compensate(self, network: nn.Module) -> None:
        """Divide weights by the gates that are about to multiply them, so that the network computes what it did.

        The gates stay where their gradient is large. What layers without such weights put out is multiplied by how open
        a gate is against its beginning from now on, and never by more than one: an open gate leaves it as it is.

        Args:
            network: Changed in place; without gates on it yet.
        """
        for name, factor in self.factors.items():
            row = factor.of(self.pieces())
            if not self._scale(network, name, 1 / row):
                self.starts[name] = row.clone()

    def _scale(self, network: nn.Module, name: str, row: Tensor) -> bool:
        """Multiply the weights of a place; returns whether it has any."""
        tensors: list[tuple[Tensor | None, int]]
        dim = self.factors[name].dim
        if dim is None:
            part = network.get_submodule(name)
            tensors = [(part._parameters[key], along) for key, along in _by_output(part).items()]
        else:
            tensors = [(network.get_parameter(name), dim)]
        for tensor, along in tensors:
            if tensor is not None:
                shape = [1] * tensor.dim()
                shape[along] = -1
                tensor.mul_(row.to(tensor).view(shape))
        return bool(tensors)

    def attach(self, network: nn.Module) -> None:
        """Put the gates on a network; it computes with them until :meth:`detach`.

        Raises:
            ValueError: It has gates already, or lacks a place for one.
        """
        if gates_of(network) is not None:
            raise ValueError("the network has gates already")
        parts = dict(network.named_modules())
        hooks = {}
        for name, factor in self.factors.items():
            owner, _, last = ("", "", name) if factor.dim is None else name.rpartition(".")
            if (name if factor.dim is None else owner) not in parts:
                raise ValueError(f"the network has no '{name}' for a gate")
            if factor.dim is None:
                hooks[name] = _Gate(self, name, _by_output(parts[name]))
                self.rigid |= set() if hooks[name].tensors else set(factor.vectors)
            else:
                hooks[name] = _Gate(self, name, {last: factor.dim})
        for name, gate in hooks.items():
            place = parts[name if self.factors[name].dim is None else name.rpartition(".")[0]]
            place.register_forward_pre_hook(gate.enter)
            place.register_forward_hook(gate.leave, always_call=True)
        watch = _Pass(self)
        network.register_forward_pre_hook(watch.enter, prepend=True)
        network.register_forward_hook(watch.leave, always_call=True)

    def detach(self, network: nn.Module) -> None:
        """Take these gates off the network, whose output is what it was before them."""
        for part in network.modules():
            for hooks in (part._forward_pre_hooks, part._forward_hooks):
                for key in [key for key, hook in hooks.items() if getattr(_of(hook), "gates", None) is self]:
                    del hooks[key]
                    part._forward_hooks_always_called.pop(key, None)


def gates_of(network: nn.Module) -> Gates | None:
    """The gates that a network computes with; None where it has none."""
    for hook in network._forward_pre_hooks.values():
        watch = _of(hook)
        if isinstance(watch, _Pass):
            return watch.gates
    return None


# ---------------------------------------------------------------------- what runs in a forward pass
class _Pass:
    """Works the gates out once for a whole pass through the network."""

    def __init__(self, gates: Gates) -> None:
        self.gates = gates

    def enter(self, network: nn.Module, inputs: Any) -> None:
        self.gates._pieces = None
        self.gates._pieces = self.gates.pieces()

    def leave(self, network: nn.Module, inputs: Any, output: Any) -> None:
        self.gates._pieces = None


class _Gate:
    """Multiplies what one layer puts out.

    Args:
        gates: Whose.
        name: Of the place.
        tensors: Parameters of the layer that are multiplied in its stead, and along which dimension; empty: its output.
    """

    def __init__(self, gates: Gates, name: str, tensors: Mapping[str, int]) -> None:
        self.gates, self.name, self.tensors = gates, name, dict(tensors)

    def enter(self, layer: nn.Module, inputs: Any) -> None:
        factor = self._factor() if self.tensors else None
        for name, dim in self.tensors.items():
            own = layer._parameters[name]
            if own is None or factor is None:
                continue
            shape = [1] * own.dim()
            shape[dim] = -1
            # An attribute of the layer itself goes before its parameter of that name, which stays where it is.
            layer.__dict__[name] = own * factor.to(own.dtype).view(shape)

    def leave(self, layer: nn.Module, inputs: Any, output: Any) -> Any:
        for name in self.tensors:
            layer.__dict__.pop(name, None)
        if self.tensors or not isinstance(output, Tensor):
            return None
        factor = self._factor()
        if self.name in self.gates.starts:
            factor = (factor / self.gates.starts[self.name]).clamp(max=1)
        factor = factor.to(output.dtype)
        return output * factor.view(1, -1, *[1] * (output.dim() - 2))

    def _factor(self) -> Tensor:
        return self.gates.factors[self.name].of(self.gates.pieces())


class _Factor:
    """What one place is multiplied by.

    Attributes:
        dim: Of a parameter that stands on its own.
        vectors: Numbers of the vectors that own parts of it.
        source: ``[positions]`` of the place: which of these vectors' gates, one after the other, belongs to it; behind
            them stands a one. None: the one vector as it is.
    """

    def __init__(self, dim: int | None, vectors: tuple[int, ...], source: Tensor | None) -> None:
        self.dim, self.vectors, self.source = dim, vectors, source

    def of(self, pieces: tuple[Tensor, ...]) -> Tensor:
        """``[positions]``."""
        first = pieces[self.vectors[0]]
        if self.source is None:
            return first
        if self.source.device != first.device:
            self.source = self.source.to(first.device)
        row = torch.cat([*(pieces[number] for number in self.vectors), first.new_ones(1)])
        return row.index_select(0, self.source)


def _factors(layout: Layout) -> dict[str, _Factor]:
    """By place; several vectors may own parts of one (a normalisation of concatenated maps)."""
    found: dict[str, list[tuple[int, NDArray[np.int64]]]] = {}
    dims: dict[str, int | None] = {}
    sizes: dict[str, int] = {}
    for number, vector in enumerate(layout.vectors):
        for place in vector.places:
            found.setdefault(place.name, []).append((number, place.index))
            dims[place.name], sizes[place.name] = place.dim, place.size
    factors = {}
    for name, owners in found.items():
        numbers = tuple(number for number, _ in owners)
        total = sum(layout.sizes[number] for number in numbers)
        source = np.full(sizes[name], total, dtype=np.int64)
        start = 0
        for number, index in owners:
            source[index] = start + np.arange(layout.sizes[number])[:, None]
            start += layout.sizes[number]
        plain = len(numbers) == 1 and np.array_equal(source, np.arange(total))
        factors[name] = _Factor(dims[name], numbers, None if plain else torch.from_numpy(source))
    return factors


def _by_output(layer: nn.Module) -> dict[str, int]:
    """Parameters of a layer by which what it puts out is scaled; none where it cannot be done so."""
    whole = isinstance(layer, _NormBase) and layer.affine
    matrix = isinstance(layer, _ConvNd | nn.Linear) and not isinstance(layer, _ConvTransposeNd)
    return {"weight": 0, "bias": 0} if whole or matrix else {}


def _of(hook: Any) -> Any:
    return getattr(hook, "__self__", None)
