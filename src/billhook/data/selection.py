"""``select``: which images of a source a run uses, and which head outputs they stand for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from billhook.data.decode import BrokenImage, report_broken
from billhook.data.images import ImageSet
from billhook.data.labels import LabelSource, label_map, parse_classes, resolve_classes
from billhook.data.preprocess import Preprocess
from billhook.data.source import Labels, Rows, Source
from billhook.data.splits import cap, split_off
from billhook.errors import InputError, UsageError

VAL_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Data:
    """The images of a run.

    Attributes:
        name: The source's name.
        outputs: The name of every head output.
        ids: Its id, where the labels or the folders have ids.
        kept: Head outputs kept, ascending.
        subset: Whether classes were asked for.
        train: Training images of the kept classes.
        val: Validation images.
        test: Test images.
        fingerprint: sha256 hex of what defines the images; the same wherever the data lie.
    """

    name: str
    outputs: tuple[str, ...]
    ids: tuple[str, ...] | None
    kept: tuple[int, ...]
    subset: bool
    train: ImageSet
    val: ImageSet
    test: ImageSet
    fingerprint: str

    @property
    def kept_names(self) -> tuple[str, ...]:
        """Names of the kept head outputs."""
        return tuple(self.outputs[output] for output in self.kept)

    def label_entries(self, outputs: Sequence[int] | None = None) -> list[str | list[str]]:
        """Entries of a label file for these head outputs (default: all)."""
        chosen = range(len(self.outputs)) if outputs is None else outputs
        return [[self.ids[o], self.outputs[o]] if self.ids is not None else self.outputs[o] for o in chosen]


def select(
    source: Source,
    *,
    outputs: int | None = None,
    labels: LabelSource | None = None,
    classes: Sequence[str | int] | None = None,
    limit_train: int | None = None,
    images_per_class: int | None = None,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    only_test: bool = False,
) -> Data:
    """Select classes and images.

    Where the source has no validation split, 10 % of the training images (after the caps) become one, stratified and
    seeded. Encoded images are looked at cheaply now, so that missing, truncated and foreign files are left out; what
    only decoding shows is left out of its batch later.

    Args:
        source: The data.
        outputs: Number of head outputs; None: the label file's or the data's number of classes.
        labels: A label file that matches classes to head outputs, or its entries.
        classes: Classes to keep: names, ids or indices of head outputs; None: all that the data have.
        limit_train: At most this many training (and validation) images, over all kept classes.
        images_per_class: At most this many of each class.
        seed: Randomness of caps and split.
        only_test: Test images are all that is needed: the other sets are empty and nothing is asked of them.
        preprocess: When given, the images are decoded now, where they fit in memory, and not on first use.

    Raises:
        UsageError: A class or a cap is wrong.
        InputError: The data do not fit the head, lack images of a kept class, or hold too many broken ones.
    """
    if isinstance(classes, str):
        classes = parse_classes(classes)
    for flag, value in (("--limit-train", limit_train), ("--images-per-class", images_per_class)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} {value} is not positive", "give at least 1")
    table = label_map(source, outputs, labels, strict=classes is None)
    if classes is None:
        kept = tuple(sorted(output for output in table.outputs if output is not None))
    else:
        kept = resolve_classes(classes, table, source)
    if limit_train is not None and limit_train < len(kept):
        raise UsageError(
            f"--limit-train {limit_train} is below the number of kept classes ({len(kept)})",
            "give at least one image per class",
        )
    to_output = np.array([-1 if output is None else output for output in table.outputs], dtype=np.int64)
    pools = {split: _kept_rows(rows, to_output, kept) for split, rows in source.splits.items()}
    if only_test:
        pools = {split: rows if split == "test" else rows[:0] for split, rows in pools.items()}
    needed = ("test",) if only_test else ("train", "test")
    _require(source, {split: pools[split] for split in needed}, to_output, kept, table.names)

    train_rows = source.splits["train"]
    pool = cap(
        pools["train"],
        train_rows.labels[pools["train"]],
        source.classes,
        limit=limit_train,
        per_class=images_per_class,
        seed=seed,
    )
    if "val" in source.splits:
        chosen = {"train": (train_rows, pool), "val": (source.splits["val"], pools["val"])}
    else:
        train, val = split_off(pool, train_rows.labels[pool], source.classes, VAL_SHARE, seed=seed, tag="val")
        chosen = {"train": (train_rows, train), "val": (train_rows, val)}
    chosen["test"] = (source.splits["test"], pools["test"])

    sets = _without_broken(chosen, to_output)
    _require(source, {split: sets[split].indices for split in needed}, to_output, kept, table.names)
    if preprocess is not None:
        for split, images in sets.items():
            images.prepare(preprocess, train=split == "train")
    fingerprint = _fingerprint(
        sets,
        {
            "outputs": table.names,
            "kept": kept,
            "limit_train": limit_train,
            "images_per_class": images_per_class,
            "seed": seed,
        },
    )
    return Data(
        source.name,
        table.names,
        table.ids,
        kept,
        classes is not None,
        sets["train"],
        sets["val"],
        sets["test"],
        fingerprint,
    )


def class_table(source: Source) -> list[dict[str, Any]]:
    """Images per class and split, after the validation split of seed 0 where the source brings none.

    Returns:
        One dictionary per class: "name", "id" (where there is one), "train", "val", "test".
    """
    count = len(source.classes)
    labels = {split: rows.labels for split, rows in source.splits.items()}
    if "val" not in labels:
        whole = labels["train"]
        train, val = split_off(np.arange(len(whole)), whole, source.classes, VAL_SHARE, seed=0, tag="val")
        labels |= {"train": whole[train], "val": whole[val]}
    counts = {split: np.bincount(labels[split], minlength=count) for split in ("train", "val", "test")}
    return [
        {"name": name}
        | ({"id": source.ids[index]} if source.ids else {})
        | {split: int(numbers[index]) for split, numbers in counts.items()}
        for index, name in enumerate(source.classes)
    ]


def _kept_rows(rows: Rows, to_output: Labels, kept: Sequence[int]) -> Labels:
    return np.flatnonzero(np.isin(to_output[rows.labels], kept)).astype(np.int64)


def _require(
    source: Source, used: dict[str, Labels], to_output: Labels, kept: Sequence[int], names: Sequence[str]
) -> None:
    for split, rows in used.items():
        present = set(to_output[source.splits[split].labels[rows]].tolist())
        word = "training" if split == "train" else split
        for output in kept:
            if output not in present:
                raise InputError(
                    f"class '{names[output]}' has no {word} images in {source.name}",
                    "add images, or leave the class out with --classes",
                )


def _without_broken(chosen: dict[str, tuple[Rows, Labels]], to_output: Labels) -> dict[str, ImageSet]:
    """Image sets without the images that cannot be read.

    Raises:
        InputError: More than 1 % of all images needed are broken.
    """
    sets: dict[str, ImageSet] = {}
    broken: list[BrokenImage] = []
    for split, (rows, indices) in chosen.items():
        bad: dict[int, BrokenImage] = {}
        for index in indices.tolist():
            if not rows.intact(index):
                try:
                    rows.pil(index)
                except BrokenImage as error:
                    bad[index] = error
        good = np.array([index for index in indices.tolist() if index not in bad], dtype=np.int64)
        outputs = torch.from_numpy(to_output[rows.labels[good]])
        sets[split] = ImageSet(rows, good, outputs, [error.name for error in bad.values()])
        broken += bad.values()
    report_broken(sorted(broken, key=lambda error: error.name), sum(len(indices) for _, indices in chosen.values()))
    return sets


def _fingerprint(sets: dict[str, ImageSet], request: dict[str, Any]) -> str:
    total = hashlib.sha256(json.dumps(request, sort_keys=True).encode())
    for split, images in sorted(sets.items()):
        total.update(f"{split} {len(images)}\n".encode())
        total.update(np.ascontiguousarray(images.labels.numpy()).tobytes())
        total.update(images.rows.digest(images.indices))
    return total.hexdigest()
