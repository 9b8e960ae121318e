"""The adapter over Torch-Pruning's dependency graph: from a network to its channel groups.

The graph is traced on a copy, in containers of its own, and gives nothing but structure: which layers' channels hang
together. What is removed, and how, is decided in :mod:`billhook.surgery.channels`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from billhook.errors import InputError
from billhook.models import PadShortcut
from billhook.surgery.groups import Branch, ChannelGroup, Grouping, Member, Side
from billhook.surgery.twin import twin
from billhook.surgery.watch import reshaping_layer, run_once, shared_layers

_THROUGH = ("BN", "DEPTHWISE_CONV", "PRELU", "IN")
_CARRIERS = ("CONCAT", "SPLIT", "ELEMENTWISE", "RESHAPE", "UNBIND", "EXPAND", "SLICE")
_REFUSED = {
    "LN": "a LayerNorm normalises over the channels: without some of them the others change",
    "GN": "a GroupNorm normalises over the channels: without some of them the others change",
    "MHA": "attention splits its channels into heads",
    "LSTM": "a recurrent layer reads the channels",
    "EMBED": "an embedding carries the channels",
    "OUTPUT": "its channels are the network's output",
}


class _Refused(Exception):
    """A group that cannot be cut: the reason."""


def trace_groups(module: nn.Module, input_size: int | tuple[int, int], channels: int = 3) -> Grouping:
    """Find all channel groups by following one image through the network.

    Args:
        module: The network; left as it is.
        input_size: Height and width of the image in pixels.
        channels: Of the image.

    Raises:
        InputError: The network cannot take the image, or nothing can be traced.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    try:
        stand_in = copy.deepcopy(module).cpu().float()
    except Exception as error:  # a weight that another tensor was computed into, say
        raise InputError(
            f"the channels of {type(module).__name__} cannot be traced: it cannot be copied ({error})",
            "fold computed weights first, or prune its weights instead (crisp, magnitude)",
        ) from error
    return _Tracer(stand_in, torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0))).grouping()


def trace_trial(module: nn.Module, image: torch.Tensor) -> Grouping:
    """The same, of a network that is a copy already: its tensors are not copied again.

    Args:
        module: The network; its layers are left as they are, its tensors as a forward pass leaves them.
        image: ``[1, channels, height, width]``, in the network's precision.

    Raises:
        InputError: The network cannot take the image, or nothing can be traced.
    """
    own: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in module.parameters()}
    own |= {id(buffer): buffer.detach() for buffer in module.buffers()}
    stand_in, image = twin(module, own).cpu(), image.cpu()
    if image.dtype != torch.float64:
        stand_in, image = stand_in.float(), image.float()
    return _Tracer(stand_in, image).grouping()


class _Tracer:
    """Builds the graph of a network of its own, which it changes."""

    def __init__(self, stand_in: nn.Module, image: torch.Tensor) -> None:
        import torch_pruning  # type: ignore[import-untyped]  # only pruning needs it; reading an artifact does not

        self.shared = shared_layers(stand_in)
        # Before convolutions stand in for them.
        pads = {name: part for name, part in stand_in.named_modules() if isinstance(part, PadShortcut)}
        self.maps = {name: tuple(part.source()) for name, part in pads.items()}
        self.order = run_once(stand_in.eval(), image)
        stand_in.requires_grad_(True)
        self.network = stand_in
        self.kinds = torch_pruning.ops.OPTYPE
        self.graph = torch_pruning.DependencyGraph()
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            try:
                # Fresh containers in every argument: the library's defaults are shared between its instances.
                self.graph.build_dependency(
                    stand_in,
                    image,
                    unwrapped_parameters=[],
                    customized_pruners={},
                    ignored_layers=[],
                    ignored_params=[],
                    verbose=False,
                )
            except Exception as error:  # whatever a tracer may raise on a network that it does not understand
                why = reshaping_layer(stand_in, image) or error
                raise InputError(
                    f"the channels of {type(stand_in).__name__} cannot be traced: {why}",
                    "prune its weights instead (crisp, magnitude)",
                ) from error
        nodes = self.graph.module2node.values()
        self.nodes = {self.name(node): node for node in nodes if self.name(node) is not None}
        self.updates = torch_pruning.dependency.index_mapping
        splitters = {self.kinds.SPLIT, self.kinds.SLICE, self.kinds.UNBIND, self.kinds.EXPAND}
        self.splits = any(node.type in splitters for node in nodes)

    def name(self, node: Any) -> str | None:
        """A layer's name, or a parameter's; None for an operation."""
        if node.type == self.kinds.PARAMETER:
            return str(self.graph._param_to_name[node.module])
        found = self.graph._module2name.get(node.module)
        return None if found is None else str(found)

    # ------------------------------------------------------------------ groups
    def grouping(self) -> Grouping:
        groups: dict[str, ChannelGroup] = {}
        refused: dict[str, str] = {}
        seen: set[str] = set()
        for root in self._roots():
            if root in seen:
                continue
            members: list[Member] = []
            try:
                members = self._members(root)
                group = self._group(members)
                groups[group.name] = group
            except _Refused as problem:
                refused[root] = str(problem)
            seen |= {root} | {m.layer for m in members if m.side == "out"}
            if root in refused:
                refused |= {m.layer: refused[root] for m in members if m.side == "out"}
        taken = _first_owner(groups.values(), refused)
        kept = {name: group for name, group in groups.items() if name not in taken}
        for name, reason in taken.items():
            refused |= {m.layer: reason for m in groups[name].writers}
        return Grouping(kept, refused, self.maps)

    def _roots(self) -> Iterator[str]:
        for name in self.order:
            node = self.nodes.get(name)
            if node is not None and node.type in (self.kinds.CONV, self.kinds.LINEAR):
                yield name

    def _members(self, root: str) -> list[Member]:
        """Every member of the group that ``root`` writes, in the order of the network."""
        node = self.nodes[root]
        self._refuse_early(node)
        pruner = self.graph.get_pruner_of_module(node.module)
        total = int(pruner.get_out_channels(node.module))
        found = None if self.splits else self._affine(node, pruner, total)
        if found is None:
            found = self._in_full(node, pruner, total)
        members: list[Member] = []
        for (name, side), (target, index) in found.items():
            dim = None
            if target.type == self.kinds.PARAMETER:
                dim = int(target.pruning_dim) % target.module.ndim
            members.append(Member(name, side, index, dim))
        place = {name: number for number, name in enumerate(self.order)}
        members.sort(key=lambda m: (place.get(m.layer, place.get(m.layer.rpartition(".")[0], 0)), m.side != "in"))
        names = {m.layer for m in members}
        return [
            Member(m.layer, m.side, m.index, m.dim, self._feeder(m, names) if m.side != "out" else None)
            for m in members
        ]

    def _refuse_early(self, root: Any) -> None:
        """Refuse what leads to a layer that cannot be cut: the library would follow a transformer for minutes."""
        seen: set[int] = set()
        ahead = list(root.outputs)
        while ahead:
            node = ahead.pop()
            kind = node.type.name
            if id(node) in seen or kind in ("CONV", "LINEAR"):
                continue
            seen.add(id(node))
            if kind in _REFUSED and kind != "OUTPUT":
                raise _Refused(f"{_REFUSED[kind]} ('{self.name(node)}')")
            ahead += node.outputs

    def _affine(
        self, node: Any, pruner: Any, total: int
    ) -> dict[tuple[str, Side], tuple[Any, NDArray[np.int64]]] | None:
        """Members by following the first, a middle and the last channel; None when they do not lie evenly.

        Following all channels of a wide network takes the library seconds. Where nothing is split, the channels of a
        group lie at equal distances in every member.
        """
        probes = sorted({0, total // 2, total - 1})
        seen = [self._follow(node, pruner, [probe]) for probe in probes]
        if any(list(one) != list(seen[0]) for one in seen):
            return None
        found: dict[tuple[str, Side], tuple[Any, NDArray[np.int64]]] = {}
        for key, (target, first, _) in seen[0].items():
            width = len(first)
            if any(len(one[key][1]) != width for one in seen):
                return None
            start, last = np.sort(first), np.sort(seen[-1][key][1])
            step = 1 if total == 1 else int((last - start)[0]) // (total - 1)
            index = start[None, :] + step * np.arange(total, dtype=np.int64)[:, None]
            if any(
                not np.array_equal(np.sort(one[key][1]), index[probe]) for probe, one in zip(probes, seen, strict=True)
            ):
                return None
            found[key] = (target, index)
        return found

    def _in_full(self, node: Any, pruner: Any, total: int) -> dict[tuple[str, Side], tuple[Any, NDArray[np.int64]]]:
        found: dict[tuple[str, Side], tuple[Any, NDArray[np.int64]]] = {}
        for key, (target, positions, roots) in self._follow(node, pruner, list(range(total))).items():
            owners: list[list[int]] = [[] for _ in range(total)]
            for position, owner in zip(positions, roots, strict=True):
                owners[owner].append(int(position))
            width = len(owners[0])
            if any(len(own) != width for own in owners):
                raise _Refused(f"only some of its channels reach '{key[0]}'")
            found[key] = (target, np.sort(np.array(owners, dtype=np.int64), axis=1))
        return found

    def _follow(
        self, node: Any, pruner: Any, channels: list[int]
    ) -> dict[tuple[str, Side], tuple[Any, NDArray[np.int64], list[int]]]:
        """(layer, side) → node, positions and the channels of ``node`` that they belong to."""
        found: dict[tuple[str, Side], tuple[Any, NDArray[np.int64], list[int]]] = {}
        # The library works its index maps out anew for every question; nothing changes between ours.
        with warnings.catch_warnings(), mock.patch.object(self.updates, "update_index_mapping", _nothing):
            warnings.simplefilter("ignore")
            items = self.graph.get_pruning_group(node.module, pruner.prune_out_channels, channels)
        for item in items:
            target, kind = item.dep.target, item.dep.target.type.name
            if kind in _CARRIERS or (kind == "PRELU" and target.module.weight.numel() == 1):
                continue  # one slope for all channels is an activation like any other
            if kind in _REFUSED:
                where = self.name(target)
                raise _Refused(_REFUSED[kind] + (f" ('{where}')" if where else ""))
            name = self.name(target)
            if name is None or (kind not in _THROUGH and kind not in ("CONV", "LINEAR", "PARAMETER")):
                raise _Refused(f"its channels pass an operation that is not understood ({kind.lower()})")
            if any(owner is None for owner in item.root_idxs):
                raise _Refused(f"its channels are repeated on the way to '{name}'")
            side: Side = "through"
            if kind in ("CONV", "LINEAR"):
                out = self.graph.get_pruner_of_module(target.module).prune_out_channels
                side = "out" if item.dep.handler == out else "in"
            if hasattr(target.module, "parametrizations"):
                raise _Refused(f"the weight of '{name}' is computed by a parametrization")
            if "weight" not in getattr(target.module, "_parameters", {"weight": None}):
                raise _Refused(f"the weight of '{name}' is computed, it is no parameter")
            if name in self.shared:
                raise _Refused(f"'{name}' shares its weights with '{self.shared[name]}'")
            if side != "in" and not target.outputs:
                raise _Refused(_REFUSED["OUTPUT"])
            found[name, side] = (target, np.array(item.idxs, dtype=np.int64), list(item.root_idxs))
        return found

    # ------------------------------------------------------------------ what holds inside a group
    def _group(self, members: list[Member]) -> ChannelGroup:
        writers = [m for m in members if m.side == "out"]
        total = len(writers[0].index)
        sections = 1
        for member in members:
            layer = self.nodes[member.layer].module
            size = _size(layer, member)
            if int(member.index.max()) >= size:
                raise _Refused(f"'{member.layer}' has other channels")
            if member.side == "out" and member.index.size != size:
                raise _Refused(f"only some channels of '{member.layer}' belong to it")
            groups = int(getattr(layer, "groups", 1)) if member.side != "through" else 1
            if groups > 1:
                if member.index.shape[1] != 1 or member.index.size != size:
                    raise _Refused(f"the groups of '{member.layer}' lie across its channels")
                if isinstance(layer, nn.modules.conv._ConvTransposeNd):
                    raise _Refused(f"'{member.layer}' is a grouped transposed convolution")
                if not np.array_equal(member.index[:, 0], np.arange(size)):
                    raise _Refused(f"the groups of '{member.layer}' are not in the order of the channels")
                sections = int(np.lcm(sections, groups))
        if total % sections:
            raise _Refused(f"{total} channels do not fall into {sections} equal groups")
        return ChannelGroup(writers[0].layer, total, tuple(members), sections, self._branch(members))

    def _feeder(self, member: Member, names: set[str]) -> str | None:
        """The layer that alone feeds a member, and feeds nothing else."""
        node = self.nodes[member.layer]
        # Past a reshape channels have several places: a reader may, what carries them through may not.
        passed = ("ELEMENTWISE", "RESHAPE") if member.side == "in" or member.index.shape[1] == 1 else ("ELEMENTWISE",)
        while len(sources := [source for source in node.inputs if not _is_leaf(source)]) == 1:
            node = sources[0]
            if len(node.outputs) != 1:
                return None
            name = self.name(node)
            if name in names:
                return name
            if node.type.name not in (*passed, "PRELU"):
                return None
        return None

    def _branch(self, members: list[Member]) -> Branch | None:
        """What becomes constant with the group, when every reader ends in an addition with something else."""
        ends, inside = [], [m.layer for m in members if m.side == "through"]
        readers = [m for m in members if m.side == "in"]
        if not readers or any(m.dim is not None for m in members):
            return None
        operands: dict[int, int] = {}
        for reader in readers:
            if reader.index.size != _size(self.nodes[reader.layer].module, reader):
                return None
            chain, addition = self._to_addition(reader.layer)
            if addition is None:
                return None
            operands[id(addition)] = operands.get(id(addition), 0) + 1
            if operands[id(addition)] == len(addition.inputs):
                return None  # nothing would be left to add to
            if any(getattr(self.nodes[name].module, "bias", None) is not None for name in chain[:-1]):
                return None  # the constant would have to be followed through the layers behind it
            inside += chain[:-1]
            ends.append(chain[-1])
        sources = [m.layer for m in members if m.side == "out"]
        if any(isinstance(self.nodes[name].module, nn.Linear) for name in (*sources, *ends)):
            return None
        return Branch(tuple(sources), tuple(dict.fromkeys(inside)), tuple(ends))

    def _to_addition(self, layer: str) -> tuple[list[str], Any]:
        """The layers from ``layer`` to an addition, and its node; None when something else comes first."""
        node, chain = self.nodes[layer], [layer]
        while True:
            if len(node.outputs) != 1:
                return [], None
            before, node = node, node.outputs[0]
            kind = node.type.name
            if kind == "BN":
                chain.append(str(self.name(node)))
            elif kind != "ELEMENTWISE":
                return [], None
            elif len(node.inputs) > 1:
                adds = "add" in str(getattr(node.grad_fn, "name", lambda: "")()).lower()
                others = [other for other in node.inputs if other is not before]
                return chain, node if adds and others else None


def _nothing(*arguments: Any) -> None:
    """In the place of work that need not be done again."""


def _is_leaf(node: Any) -> bool:
    """A layer's own tensor on its way into it, which the graph shows as an operation without inputs."""
    return not node.inputs and node.type.name in ("ELEMENTWISE", "RESHAPE")


def _size(layer: Any, member: Member) -> int:
    """Channels of a layer on a member's side."""
    if member.dim is not None:
        return int(layer.shape[member.dim])
    weight = layer.weight
    if isinstance(layer, nn.modules.conv._ConvNd):
        return int(layer.in_channels if member.side == "in" else layer.out_channels)
    if isinstance(layer, nn.Linear):
        return int(layer.in_features if member.side == "in" else layer.out_features)
    return int(getattr(layer, "num_features", weight.numel() if weight is not None else 0))


def _first_owner(groups: Any, refused: dict[str, str]) -> dict[str, str]:
    """Groups that claim channels which another group owns, and why they are refused."""
    owned: dict[tuple[str, str], set[int]] = {}
    clashes: dict[str, str] = {}
    for group in groups:
        for member in group.members:
            mine = set(member.index.ravel().tolist())
            theirs = owned.setdefault((member.layer, member.side), set())
            if mine & theirs or len(mine) != member.index.size:
                clashes.setdefault(group.name, f"two groups claim channels of '{member.layer}'")
            theirs |= mine
    return clashes
