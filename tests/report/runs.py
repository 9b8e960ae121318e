"""Run directories made on the fly: one as a ResNet-56 run leaves it, one with next to nothing in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CLASSES = ["cat", "dog", "horse", "<b>frog & toad</b>"]
RECIPE = "# all in force\nmodel: resnet56\ndata: {source: cifar10}\nnote: '<script>alert(1)</script>'\nseed: 0\n"


def _layers() -> list[tuple[str, int, int, int]]:
    """ResNet-56: (name, O, I, taps)."""
    rows = [("conv1", 16, 3, 9)]
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(9):
            first = width // 2 if stage > 1 and block == 0 else width
            rows += [(f"layer{stage}.{block}.conv1", width, first, 9), (f"layer{stage}.{block}.conv2", width, width, 9)]
    return [*rows, ("fc", 10, 64, 1)]


def hybrid_mask(rng: np.random.Generator, out: int, channels: int, taps: int, block: int, kept: int) -> np.ndarray:
    """A 2:4 mask [out, taps * channels] with ``kept`` block columns in every block row."""
    groups = out * taps * channels // 4
    mask = np.zeros((groups, 4), dtype=np.uint8)
    order = np.argsort(rng.random((groups, 4)), axis=1)
    np.put_along_axis(mask, order[:, :2], 1, axis=1)
    mask = mask.reshape(out, taps * channels)
    per_tap = -(-channels // block)
    for top in range(0, out, block):
        for dead in rng.permutation(taps * per_tap)[kept:]:
            left = dead // per_tap * channels + dead % per_tap * block
            mask[top : top + block, left : left + block] = 0
    return mask


def write_run(directory: Path, classes: list[str] | None = None, recipe: str = RECIPE) -> Path:
    """Writes a whole run directory."""
    classes = CLASSES if classes is None else classes
    rng = np.random.default_rng(0)
    directory.mkdir(parents=True, exist_ok=True)
    layers = _layers()
    left = [{"name": "conv1", "reason": "first convolution"}, {"name": "fc", "reason": "fewer than 16 outputs"}]
    dense = {
        "top1_full": 0.912, "top1_kept": 0.934, "params": 853018, "nonzero": 853018, "macs": 125485696,
        "effective_macs": 125485696, "channels": 2032, "volume": 532480, "bytes": 3451984,
    }  # fmt: skip
    summary = {
        "billhook": "0.1.0", "method": "crisp", "seed": 0, "model": "resnet56", "data": "cifar10", "classes": classes,
        "epochs": 30,
        "budget": [{"quantity": "sparsity", "relation": ">=", "bound": 0.9, "value": 0.901, "unit": "ratio",
                    "value_absolute": 769000, "met": True}],
        "dense": dense,
        "dense_finetuned": {"top1_full": 0.931, "top1_kept": 0.952},
        "pruned": {**dense, "top1_full": 0.92, "top1_kept": 0.946, "nonzero": 84018, "effective_macs": 15900123,
                   "bytes": 437001, "sparsity": 0.901, "bytes_packed": None, "latency_ms": None},
        "equivalence": {"max_abs_difference": 1.2e-6, "scale": 14.2},
        "layers_left_dense": left,
        "seconds": {"baseline": 1.0, "control": 300.0, "prune": 100.0, "fine_tune": 300.0, "total": 701.0},
        "peak_rss_bytes": 1_834_000_000,
        "environment": {"python": "3.11.9", "torch": "2.13.0", "cpu": "some <fast> CPU", "threads": 2},
    }  # fmt: skip
    (directory / "summary.json").write_text(json.dumps(summary))
    (directory / "recipe.yaml").write_text(recipe)
    lines = []
    for epoch in range(1, 31):
        common = {"event": "epoch", "epoch": epoch, "lr": 0.01, "seconds": 10.0}
        lines.append({**common, "phase": "control", "loss": 0.3 / epoch, "train_top1": 0.95,
                      "val_top1_kept": 0.955 - 0.05 / epoch, "val_top1_full": 0.93})  # fmt: skip
    for epoch in range(1, 31):
        phase = "prune" if epoch <= 12 else "fine_tune"
        sparsity = min(0.9, 0.3 + 0.05 * epoch)
        if phase == "prune" and epoch % 2:
            lines.append({"phase": phase, "event": "mask", "epoch": epoch - 1, "round": epoch // 2, "changed": 0.031,
                          "sparsity": sparsity, "returned": 1204})  # fmt: skip
        val = 0.93 - 0.012 * epoch if epoch <= 12 else 0.948 - 0.15 / (epoch - 10)
        lines.append({"phase": phase, "event": "epoch", "epoch": epoch, "loss": 0.4, "train_top1": 0.9, "lr": 0.01,
                      "val_top1_kept": val, "val_top1_full": 0.9, "sparsity": sparsity, "seconds": 10.0})  # fmt: skip
    (directory / "history.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"phase": "fine_')
    (directory / "architecture.json").write_text(
        json.dumps(
            {
                "spec": "resnet56",
                "label_map": [["n01", name] for name in classes],
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
                "input_size": [3, 32, 32],
                "versions": {"torch": "2.13.0"},
                "hashes": {"model.safetensors": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
                "patterns": {"layer1.0.conv1": "2:4"},
            }
        )
    )
    weights = np.array([out * channels * taps for _, out, channels, taps in layers])
    nonzero = np.where(
        [name in ("conv1", "fc") for name, *_ in layers], weights, weights * 0.02 + rng.random(56) * weights * 0.2
    )
    sizes = np.array([1024] * 19 + [256] * 18 + [64] * 18 + [1])
    number = len(classes)
    control = np.clip(0.95 + 0.03 * rng.standard_normal(number), 0, 1)
    pruned = np.clip(control - 0.01 + 0.02 * rng.standard_normal(number), 0, 1)
    pruned[-1] = np.nan
    confusion = rng.poisson(8.0 * 4 / number, (number, number)) + np.diag(np.full(number, 900))
    arrays = {
        "class_names": np.array(classes), "per_class_dense": control - 0.02, "per_class_control": control,
        "per_class_pruned": pruned, "confusion_pruned": confusion,
        "layer_names": np.array([name for name, *_ in layers]), "layer_weights": weights,
        "layer_nonzero": nonzero.astype(np.int64), "layer_macs": weights * sizes,
        "layer_effective_macs": nonzero.astype(np.int64) * sizes,
    }  # fmt: skip
    for name, out, channels, taps, block, kept in (
        ("layer1.0.conv1", 16, 16, 9, 16, 4), ("layer2.3.conv2", 32, 32, 9, 16, 5),
        ("layer3.8.conv2", 64, 64, 9, 16, 7), ("layer3.0.shortcut", 64, 32, 1, 16, 1),
    ):  # fmt: skip
        arrays[f"mask/{name}"] = hybrid_mask(rng, out, channels, taps, block, kept)
        arrays[f"mask_meta/{name}"] = np.array([taps, channels, block, 2, 4, kept])
    np.savez(directory / "report_data.npz", **arrays)
    return directory


def write_channel_run(directory: Path) -> Path:
    """Writes the run of a channel method: the same network, half of the inner channels gone, one branch entirely."""
    write_run(directory)
    summary = json.loads((directory / "summary.json").read_text())
    summary["method"] = "taylor"
    summary["budget"] = [{"quantity": "macs", "relation": "<=", "bound": 0.6, "value": 0.58, "unit": "ratio",
                          "value_absolute": 72_000_000, "met": True}]  # fmt: skip
    summary["layers_left_dense"] = [{"name": "fc", "reason": "its channels are the network's output"}]
    (directory / "summary.json").write_text(json.dumps(summary))
    lines = [{"phase": "prune", "event": "channels", "round": 1, "step": 0, "epoch": 0.0, "params": 500_000,
              "macs": 72_000_000, "channels": 1600, "seconds": 0.0}]  # fmt: skip
    for epoch in (1, 2, 3):
        lines.append({"phase": "prune", "event": "epoch", "epoch": epoch, "loss": 0.4, "train_top1": 0.9, "lr": 0.01,
                      "val_top1_kept": 0.9, "val_top1_full": 0.9, "seconds": 10.0})  # fmt: skip
    (directory / "history.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    layers = _layers()
    names = [name for name, *_ in layers]
    dense = np.array([out if name != "fc" else 0 for name, out, *_ in layers])
    kept = np.array([out // 2 if name.endswith("conv1") and "." in name else out for name, out, *_ in layers])
    kept[-1] = 0
    gone = [names.index("layer2.4.conv1"), names.index("layer2.4.conv2")]
    kept[gone] = 0
    params = np.array([out * channels * taps for _, out, channels, taps in layers])
    left = params // 2
    left[gone] = 0
    with np.load(directory / "report_data.npz") as held:
        arrays = {key: held[key] for key in held.files if not key.startswith("mask")}
    alive = [index for index in range(len(names)) if index not in gone]
    arrays["layer_names"] = np.array(names)[alive]
    for key in ("layer_weights", "layer_nonzero"):
        arrays[key] = left[alive]
    for key in ("layer_macs", "layer_effective_macs"):
        arrays[key] = 64 * left[alive]
    arrays |= {
        "channels/names": np.array(names), "channels/dense": dense, "channels/kept": kept,
        "channels/dense_macs": 64 * params, "channels/macs": 64 * left,
        "channels/dense_params": params, "channels/params": left,
    }  # fmt: skip
    np.savez(directory / "report_data.npz", **arrays)
    return directory


def write_minimal(directory: Path) -> Path:
    """Writes a run of ``--control none`` whose accuracy was never measured, with summary.json alone."""
    directory.mkdir(parents=True, exist_ok=True)
    summary = {
        "billhook": "0.1.0", "method": "l1", "model": "tinycnn", "data": "digits", "classes": None,
        "budget": [{"quantity": "macs", "relation": "<=", "bound": 0.5, "value": 0.61, "unit": "ratio", "met": False}],
        "dense": {"top1_full": None, "top1_kept": None, "params": 1000, "nonzero": 1000, "macs": 5000, "bytes": 4100},
        "dense_finetuned": None,
        "pruned": {"top1_full": None, "top1_kept": None, "params": 700, "nonzero": 700, "macs": 3050, "bytes": None},
        "equivalence": None, "layers_left_dense": [], "seconds": None, "peak_rss_bytes": 0,
    }  # fmt: skip
    (directory / "summary.json").write_text(json.dumps(summary))
    return directory
