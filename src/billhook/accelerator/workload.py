"""Networks and run directories as lists of matrix products. The one module of this room that needs PyTorch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from billhook import artifact
from billhook.accelerator.gemm import Gemm, Pattern
from billhook.cost import Cost, LayerCost
from billhook.data import open_source
from billhook.errors import InputError, UsageError
from billhook.formats import HybridLayer, hybrid_columns, packed_tensors, read_safetensors
from billhook.methods.targets import find_targets
from billhook.models import Network, find_head, open_network
from billhook.recipe import DataRecipe, open_data
from billhook.training.precision import Room

ASSUMED_DENSITY = 0.5
"""Of activations that were not measured: about what a ReLU leaves. The image itself is dense."""

IMAGES = 64
"""Test images on which densities are measured."""


@dataclass(frozen=True)
class Workload:
    """The layers of a network as matrix products, for one image.

    Attributes:
        model: The spec, or the directory.
        run: Whether it is a run directory.
        gemms: Convolutions and linear layers, in the order in which they run.
        left_dense: Layers that would not take a pattern, with the reason.
        input_size: Height and width of the image.
        activations: Where the densities of the activations come from, as a sentence.
    """

    model: str
    run: bool
    gemms: tuple[Gemm, ...]
    left_dense: Mapping[str, str]
    input_size: tuple[int, int]
    activations: str

    @property
    def prunable(self) -> frozenset[str]:
        """Names of the layers that take a pattern (the sizes of M and of blocks aside)."""
        return frozenset(gemm.name for gemm in self.gemms if gemm.name not in self.left_dense)


def read_workload(
    model: str,
    *,
    weights: str | None = None,
    rebuild: str | None = None,
    data: str | None = None,
    input_size: int | None = None,
) -> Workload:
    """The layers of a model spec or of a run directory.

    Args:
        model: A spec, such as ``resnet50``, or a run directory: then with the patterns that it stores.
        weights: A file, for the spec; only of use together with ``data``.
        rebuild: For a run of the user's own code: the spec to rebuild it from.
        data: Images on which the density of every layer's input is measured.
        input_size: Height and width of the image; None: the network's own.

    Raises:
        UsageError: A wrong name or option, or data for a network of random weights.
        InputError: The network or the data cannot be used.
    """
    run = artifact.names_run(model)
    if data is not None and not run and weights is None:
        raise UsageError(
            f"densities of activations mean nothing in {model} with random weights",
            "give --weights, or a run directory",
        )
    described: dict[str, Any] = {}
    preprocess = None
    if run:
        artifact.refuse_weights(model, weights)
        network, described, preprocess = artifact.load_network(model, rebuild)
        size = input_size or preprocess.input_size
    else:
        network = open_network(model, None, weights, draw="none")
        size = input_size or network.input_size
    calls = _calls(network.module, size)
    stored = _patterns(Path(model)) if run else {}
    gemms = [_with_pattern(call.gemm, stored.get(f"{call.layer}.weight"), model) for call in calls]
    sentence = (
        f"density of the activations: taken for {ASSUMED_DENSITY:g} (1 in the image); --data measures it. "
        "Only the dual-side design looks at it"
    )
    densities = {call.layer: 1.0 if number == 0 else ASSUMED_DENSITY for number, call in enumerate(calls)}
    if data is not None:
        densities, sentence = _measure(network, described, preprocess, data, input_size, run)
    gemms = [
        replace(gemm, activation_density=densities.get(call.layer, ASSUMED_DENSITY))
        for gemm, call in zip(gemms, calls, strict=True)
    ]
    return Workload(model, run, tuple(gemms), _left_dense(network, calls), (size, size), sentence)


@dataclass(frozen=True)
class _Call:
    """One call of a convolution or a linear layer."""

    layer: str
    gemm: Gemm
    module: nn.Module


def _calls(module: nn.Module, size: int) -> list[_Call]:
    """What runs, in order, with the shapes of one image."""
    found: list[_Call] = []
    handles = []
    for name, part in module.named_modules():
        if isinstance(part, _ConvNd | nn.Linear):
            handles.append(part.register_forward_hook(_noting(found, name)))
    try:
        with _quiet(module):
            try:
                # An empty batch has all shapes and costs nothing; not every forward can do with one.
                module(torch.zeros(0, 3, size, size))
            except Exception:  # whatever a forward may raise
                found.clear()
                try:
                    module(torch.zeros(1, 3, size, size))
                except Exception as error:
                    where = f"after layer '{found[-1].layer}'" if found else type(module).__name__
                    raise InputError(
                        f"the network fails on a 3x{size}x{size} image {where}: {error}",
                        "choose the input size that the network is made for",
                    ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise InputError("the network has no convolution and no linear layer: there is nothing to simulate")
    return found


@contextlib.contextmanager
def _quiet(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def _noting(found: list[_Call], name: str) -> Any:
    def hook(part: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        calls = 1 + sum(call.layer == name for call in found)
        title = (name or "(whole)") if calls == 1 else f"{name} ({calls})"
        found.append(_Call(name, _gemm(title, part, args[0], output), part))

    return hook


def _gemm(title: str, part: nn.Module, given: Tensor, output: Tensor) -> Gemm:
    if isinstance(part, nn.Linear):
        positions = math.prod(given.shape[1:-1])
        return Gemm(title, part.out_features, 1, part.in_features, max(1, positions))
    assert isinstance(part, _ConvNd)
    taps = math.prod(part.kernel_size)
    rows, channels = part.out_channels // part.groups, part.in_channels // part.groups
    inputs = math.prod(given.shape[1:])
    if isinstance(part, _ConvTransposeNd):
        # Every input position makes one value per output channel and tap.
        return Gemm(title, rows * taps, 1, channels, math.prod(given.shape[2:]), part.groups, inputs)
    return Gemm(title, rows, taps, channels, math.prod(output.shape[2:]), part.groups, inputs)


def _left_dense(network: Network, calls: Sequence[_Call]) -> dict[str, str]:
    """Layers that take no pattern, by the rule of the pruning methods; M and blocks are looked at later."""
    layers: list[LayerCost] = []
    for call in calls:
        gemm, part = call.gemm, call.module
        assert isinstance(part, _ConvNd | nn.Linear)
        shape = tuple(int(side) for side in part.weight.shape)
        groups = gemm.groups
        kind = "linear" if isinstance(part, nn.Linear) else "conv"
        if isinstance(part, _ConvTransposeNd):
            kind = "transposed"
        elif groups > 1:
            kind = "depthwise" if gemm.channels == 1 else "grouped"
        weights = math.prod(shape)
        layers.append(
            LayerCost(
                name=gemm.name,
                kind=kind,
                params=weights,
                nonzero=weights,
                macs=gemm.macs,
                effective_macs=gemm.macs,
                channels=shape[0],
                volume=gemm.sums,
                bytes=4 * weights,
                weight_shape=shape,
                output_shape=(shape[0], gemm.columns, 1),
                groups=groups,
                first=not layers,
            )
        )
    cost = Cost(tuple(layers), 0, 0, 0, 0, 0, 0, 0, 0, (0, 0))
    _, left = find_targets(cost, find_head(network.module), None, None)
    reasons = {entry["name"]: entry["reason"] for entry in left}
    for call in calls:
        if call.gemm.name != (call.layer or "(whole)"):
            reasons[call.gemm.name] = "its weight is shared with an earlier call"
    return reasons


def _patterns(directory: Path) -> dict[str, Any]:
    """The packed layers of a run, by the name of their weight."""
    tensors, metadata = read_safetensors(directory / artifact.WEIGHTS)
    return {name: item.layer for name, item in packed_tensors(tensors, metadata).items()}


def _with_pattern(gemm: Gemm, layer: Any, model: str) -> Gemm:
    if layer is None:
        return gemm
    try:
        if not isinstance(layer, HybridLayer):
            return replace(gemm, weight_density=layer.values.size / gemm.weights)
        if (layer.rows, layer.taps, layer.inputs) != (gemm.rows, gemm.taps, gemm.channels) or gemm.groups > 1:
            raise ValueError(f"layer '{gemm.name}' is stored as [{layer.rows}, {layer.taps}, {layer.inputs}]")
        columns = None
        if layer.block:
            columns = tuple(tuple(row) for row in np.asarray(hybrid_columns(layer)).tolist())
        return replace(gemm, pattern=Pattern(layer.n, layer.m, layer.block, layer.kept if columns else None, columns))
    except ValueError as error:
        raise InputError(f"{model}: {error}", "copy the run directory again") from error


def _measure(
    network: Network, described: dict[str, Any], preprocess: Any, source_text: str, input_size: int | None, run: bool
) -> tuple[dict[str, float], str]:
    """Share of non-zero inputs of every layer, over test images."""
    source = open_source(source_text)
    recipe = DataRecipe(input_size=input_size)
    labels = None
    if run:
        labels = described["labels"]
        outputs = range(network.classes) if described["head"]["sliced"] else described["head"]["kept"]
        recipe = recipe.model_copy(update={"classes": tuple(outputs)})
    preprocess, data = open_data(
        source, network, recipe, 0, labels=labels, preprocess=preprocess, decode=False, only_test=True
    )
    count = min(IMAGES, len(data.test))
    if not count:
        raise InputError(f"{source_text} holds no test image to measure activations on")
    images = data.test.subset(np.linspace(0, len(data.test) - 1, count).astype(np.int64))
    alive: dict[str, int] = {}
    total: dict[str, int] = {}
    handles = []

    def counting(name: str) -> Any:
        def hook(part: nn.Module, args: tuple[Any, ...]) -> None:
            alive[name] = alive.get(name, 0) + int(torch.count_nonzero(args[0]))
            total[name] = total.get(name, 0) + args[0].numel()

        return hook

    for name, part in network.module.named_modules():
        if isinstance(part, _ConvNd | nn.Linear):
            handles.append(part.register_forward_pre_hook(counting(name)))
    try:
        with _quiet(network.module), Room("cpu", "fp32").autocast(False):
            for batch in images.batches(32, preprocess):
                network.module(batch.images)
    finally:
        for handle in handles:
            handle.remove()
    densities = {name: alive[name] / total[name] if total[name] else 1.0 for name in alive}
    return densities, f"density of the activations: measured on {count} test images of {source.name}"
