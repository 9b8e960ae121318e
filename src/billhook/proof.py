"""The proof of a run: the delivered network, read back from disk bytes, measured beside the dense one and the control.

Test images are read here and nowhere else.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from billhook import artifact, latency
from billhook.control import Control, control_key
from billhook.cost import Cost, count
from billhook.data import Data, Preprocess
from billhook.errors import RunError
from billhook.formats import PatternInfo
from billhook.methods import Setting
from billhook.models import place
from billhook.patterns import to_matrix
from billhook.surgery import ChannelPlan, slice_head
from billhook.training.evaluate import Evaluation, evaluate

EQUIVALENCE_IMAGES = 256
"""Test images on which the masked and the delivered network are compared, output by output."""

PICTURED = 4
"""Masks that the report shows."""


@dataclass
class Proof:
    """Measured results.

    Attributes:
        dense: The network as it came.
        control: The dense network fine-tuned; None without a control.
        delivered: The network read back from its file.
        pruned: The entry ``pruned`` of ``summary.json``, with ``zeros``.
        equivalence: Masked against delivered.
        described: ``architecture.json``.
        report_data: ``report_data.npz``.
        seconds_dense: Time of the dense evaluation.
    """

    dense: Evaluation
    control: Evaluation | None
    delivered: nn.Module
    pruned: dict[str, Any]
    equivalence: dict[str, float]
    described: dict[str, Any]
    report_data: dict[str, NDArray[Any]]
    seconds_dense: float


def prove(
    setting: Setting,
    masked: nn.Module,
    small: nn.Module,
    patterns: dict[str, PatternInfo],
    control: Control,
    channels: Sequence[ChannelPlan] = (),
) -> Proof:
    """Measure everything once.

    Args:
        setting: The run's setting.
        masked: The last masked network with the full head.
        small: The network to deliver.
        patterns: How its masked weights are stored.
        control: The dense fine-tuned network.
        channels: What of the network stayed at each removal of channels, in order.

    Raises:
        RunError: The network's outputs are not finite.
    """
    problem, room = setting.problem, setting.room
    data, preprocess = problem.data, problem.preprocess

    def measure(module: nn.Module, sliced: bool = False) -> Evaluation:
        result = evaluate(place(module, room.device), data.test, preprocess, data.kept, room, sliced=sliced)
        artifact.deliverable(module)
        return result

    refuse_wild(masked, data, preprocess)
    started = time.perf_counter()
    dense = measure(problem.network.module)
    seconds_dense = time.perf_counter() - started
    tuned = control.evaluation
    if control.module is not None:
        tuned = measure(control.module)

    described = artifact.architecture(
        problem.network,
        small,
        head=setting.head,
        sliced=problem.slice_head,
        data=data,
        preprocess=preprocess,
        patterns=patterns,
        channels=[*problem.network.channels, *(plan.as_dict() for plan in channels)],
    )
    between = described["pointwise"] or {}
    described["hashes"]["control"] = control_key(setting) if tuned is not None else None
    with tempfile.TemporaryDirectory() as folder:
        size = artifact.write_model(Path(folder), small, patterns, described)
        own = None if problem.network.builtin else problem.network.module
        # A network that came from a run has been through that run's plans already.
        done = 0 if own is None else len(problem.network.channels)
        delivered = artifact.load_network(folder, own, carried_out=done)[0].module
    final = measure(delivered, sliced=problem.slice_head)
    full = final.top1_full if not problem.slice_head else measure(masked).top1_full

    cost = count(delivered, preprocess.input_size)
    zeros = setting.delivered.params - cost.nonzero  # weights that are gone are zeros too
    pruned = {
        "top1_full": full,
        "top1_kept": final.top1_kept,
        "params": cost.params,
        "nonzero": cost.nonzero,
        "macs": cost.macs,
        "effective_macs": cost.effective_macs,
        "channels": cost.channels,
        "volume": cost.volume,
        "bytes": size,
        "sparsity": zeros / setting.delivered.params,
        "sparsity_without_dense_layers": _masked_sparsity(patterns),
        "zeros": zeros,
        "bytes_packed": None,
        "latency_ms": None,
    } | _timed(setting, delivered, patterns)
    return Proof(
        dense=dense,
        control=tuned,
        delivered=delivered,
        pruned=pruned,
        equivalence=_equivalence(setting, masked, delivered),
        described=described,
        report_data=_report_data(setting, dense, tuned, final, cost, patterns)
        | (_channel_data(setting.cost, cost, between) if channels or between else {}),
        seconds_dense=seconds_dense,
    )


def _timed(setting: Setting, delivered: nn.Module, patterns: dict[str, PatternInfo]) -> dict[str, Any]:
    """Milliseconds of the delivered network against the dense one in turns, where a latency was asked for."""
    if all(budget.quantity != "latency" for budget in setting.problem.budgets):
        return {}
    dense = artifact.deliverable(setting.network.module)
    if setting.rows is not None:
        dense = slice_head(dense, setting.head, setting.rows)
    both, size = {"dense": dense, "pruned": delivered}, setting.problem.preprocess.input_size
    times = latency.measure(both, size, patterns={"pruned": patterns})
    setting.dense["latency_ms"] = times["dense"].p50_ms
    timed = {name: time.as_dict() for name, time in times.items()}
    return {"latency_ms": times["pruned"].p50_ms, "latency": timed}


@torch.no_grad()
def refuse_wild(module: nn.Module, data: Data, preprocess: Preprocess) -> None:
    """Stop before a network is delivered that its last training step destroyed: no later loss would have shown it.

    Raises:
        RunError: An output on the first test images is not finite.
    """
    images = data.test.subset(torch.arange(min(16, len(data.test))))
    for batch in images.batches(16, preprocess):
        if not bool(module.eval()(batch.images).isfinite().all()):
            raise RunError("the trained network's outputs are not finite", "lower --lr or set train.clip")


@torch.no_grad()
def _equivalence(setting: Setting, masked: nn.Module, delivered: nn.Module) -> dict[str, float]:
    """Largest difference of any output, and the largest output, on test images in fp32."""
    data = setting.problem.data
    index = list(data.kept) if setting.problem.slice_head else list(range(setting.problem.network.classes))
    images = data.test.subset(torch.arange(min(EQUIVALENCE_IMAGES, len(data.test))))
    difference = scale = 0.0
    for batch in images.batches(64, setting.problem.preprocess):
        before = masked.eval()(batch.images)[:, index]
        after = delivered.eval()(batch.images)
        difference = max(difference, float((before - after).abs().max()))
        scale = max(scale, float(before.abs().max()))
    return {"max_abs_difference": difference, "scale": scale}


def _masked_sparsity(patterns: dict[str, PatternInfo]) -> float | None:
    """Sparsity of the layers that take the pattern, those left dense not counted; None when none takes one."""
    if not patterns:
        return None
    total = sum(p.mask.size for p in patterns.values())
    return 1 - sum(int(p.mask.sum()) for p in patterns.values()) / max(1, total)


def _report_data(
    setting: Setting,
    dense: Evaluation,
    control: Evaluation | None,
    pruned: Evaluation,
    cost: Cost,
    patterns: dict[str, PatternInfo],
) -> dict[str, NDArray[Any]]:
    layers = [layer for layer in cost.layers if layer.macs]
    data: dict[str, NDArray[Any]] = {
        "class_names": np.array(setting.problem.data.kept_names),
        "per_class_dense": dense.per_class,
        "per_class_pruned": pruned.per_class,
        "confusion_dense": dense.confusion,
        "confusion_pruned": pruned.confusion,
        "layer_names": np.array([layer.name for layer in layers]),
        "layer_weights": np.array([layer.params for layer in layers]),
        "layer_nonzero": np.array([layer.nonzero for layer in layers]),
        "layer_macs": np.array([layer.macs for layer in layers]),
        "layer_effective_macs": np.array([layer.effective_macs for layer in layers]),
    }
    if control is not None:
        data["per_class_control"] = control.per_class
        data["confusion_control"] = control.confusion
    for name in _pictured(patterns):
        info = patterns[name]
        view = to_matrix(torch.from_numpy(np.ascontiguousarray(info.mask)))
        outputs, taps, inputs = view.shape
        layer = name.removesuffix(".weight")
        data[f"mask/{layer}"] = view.reshape(outputs, -1).numpy().astype(np.uint8)
        data[f"mask_meta/{layer}"] = np.array([taps, inputs, info.block, info.n, info.m, _kept_blocks(info, view)])
    return data


def _channel_data(dense: Cost, delivered: Cost, between: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """What each layer with a weight matrix had, and has; zeros where the layer went with its branch.

    What stands around a convolution counts as its own (``between``: names of those with 1x1 convolutions around them).
    """
    layers = {layer.name: layer for layer in dense.layers if layer.macs}
    columns = {what: dict.fromkeys(layers, 0) for what in ("channels", "macs", "params")}
    for layer in delivered.layers:
        name = layer.name
        owner, _, part = name.rpartition(".")
        if owner in between:
            name = owner
        while name not in layers and name.endswith(".layer"):  # a layer between channel maps stands one deeper
            name = name.removesuffix(".layer")
        if layer.macs and name in layers:
            columns["macs"][name] += layer.macs
            columns["params"][name] += layer.params
            if owner not in between or part == "conv":
                columns["channels"][name] = layer.channels

    def column(found: Iterable[int]) -> NDArray[Any]:
        return np.array(list(found), dtype=np.int64)

    return {
        "channels/names": np.array(list(layers)),
        "channels/dense": column(layer.channels for layer in layers.values()),
        "channels/kept": column(columns["channels"].values()),
        "channels/dense_macs": column(layer.macs for layer in layers.values()),
        "channels/macs": column(columns["macs"].values()),
        "channels/dense_params": column(layer.params for layer in layers.values()),
        "channels/params": column(columns["params"].values()),
    }


def _pictured(patterns: dict[str, PatternInfo]) -> list[str]:
    """A few layers spread over the depth of the network."""
    names = list(patterns)
    if len(names) <= PICTURED:
        return names
    return [names[round(i * (len(names) - 1) / (PICTURED - 1))] for i in range(PICTURED)]


def _kept_blocks(info: PatternInfo, view: torch.Tensor) -> int:
    """Block columns that every block row keeps."""
    _, taps, inputs = view.shape
    if not info.block:
        return taps
    first = view[: info.block].any(dim=0)
    pad = -inputs % info.block
    blocks = torch.nn.functional.pad(first, (0, pad)).reshape(taps, -1, info.block)
    return int(blocks.any(dim=2).sum())
