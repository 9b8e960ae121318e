"""HBGTS: how much the end of the network suffers when a group loses channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from billhook.compensation.moments import evaluating
from billhook.methods.greedy.changes import Changes, Running, applied
from billhook.methods.greedy.config import Tap
from billhook.methods.greedy.layer_errors import evaluated
from billhook.methods.greedy.shrinking import Loss

HELD = 1 << 28
"""Bytes of intermediate maps that are held at the same time: images run through in portions that keep to it."""

PORTION = 64

Labelled = tuple[Tensor, Tensor]
"""Images and their labels."""


class SharedPrefix:
    """A network that is run many times on the same images, each time with other layers changed.

    What comes before the first changed layer is the same in all runs. It is computed once; then every part of the
    network that was finished before that layer began, and that ran once, hands out what it put out the first time.
    The rest runs as the network's own ``forward`` has it, so nothing has to be known of its structure: where it has no
    such parts, everything runs.

    Args:
        module: The network, in eval mode for as long as this is used.
        example: Images that show the order in which it runs.
        starts: Sets of layers that will be changed together.
    """

    def __init__(self, module: nn.Module, example: Tensor, starts: Iterable[Iterable[str]]) -> None:
        self.module = module
        self._parts = dict(module.named_modules())
        self._began: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._touched: set[str] = set()
        sizes = self._look(example)
        self._skipped = {key: self._before(key) for key in {self._first(layers) for layers in starts}}
        self._needed = {name for names in self._skipped.values() for name in names}
        self.bytes_per_image = sum(sizes[name] for name in self._needed) / len(example)
        self._outputs: dict[str, Tensor] = {}

    def record(self, images: Tensor) -> Tensor:
        """Run everything, and hold what is needed; returns what the network puts out."""
        self._outputs.clear()

        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def keep(part: nn.Module, inputs: Any, output: Tensor) -> None:
                self._outputs[name] = output.clone() if name in self._touched else output

            return keep

        with ExitStack() as hooks:
            for name in self._needed:
                hooks.enter_context(self._parts[name].register_forward_hook(hook(name)))
            output: Tensor = self.module(images)
        return output

    def run(self, images: Tensor, layers: Iterable[str]) -> Tensor:
        """Run what comes after the first of these layers, on the images of :meth:`record`."""
        with self._skipping(self._skipped[self._first(layers)]):
            output: Tensor = self.module(images)
        return output

    @contextmanager
    def _skipping(self, names: Sequence[str]) -> Iterator[None]:
        def given(name: str) -> Callable[..., Tensor]:
            # What is written to in place must not be what the next run begins with.
            return lambda *a, **k: self._outputs[name].clone() if name in self._touched else self._outputs[name]

        try:
            for name in names:
                self._parts[name].__dict__["forward"] = given(name)
            yield
        finally:
            for name in names:
                del self._parts[name].__dict__["forward"]

    def _look(self, example: Tensor) -> dict[str, int]:
        """When each part ran, and which outputs were changed in place; bytes of the outputs."""
        clock = 0
        outputs: dict[str, tuple[Any, int]] = {}
        sizes: dict[str, int] = {}

        def begin(name: str) -> Callable[[nn.Module, Any], None]:
            def hook(part: nn.Module, inputs: Any) -> None:
                nonlocal clock
                clock += 1
                self._began.setdefault(name, clock)
                self._calls[name] = self._calls.get(name, 0) + 1

            return hook

        def end(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(part: nn.Module, inputs: Any, output: Any) -> None:
                nonlocal clock
                clock += 1
                self._ended[name] = clock
                if isinstance(output, Tensor) and "forward" not in part.__dict__:
                    outputs[name] = (output, output._version)
                    sizes[name] = output.numel() * output.element_size()

            return hook

        with ExitStack() as hooks:
            for name, part in self._parts.items():
                if name:
                    hooks.enter_context(part.register_forward_pre_hook(begin(name)))
                    hooks.enter_context(part.register_forward_hook(end(name)))
            self.module(example)
        self._touched = {name for name, (tensor, version) in outputs.items() if tensor._version != version}
        self._calls = {name: calls for name, calls in self._calls.items() if name in outputs}
        return sizes

    def _first(self, layers: Iterable[str]) -> str:
        """The layer that runs first; without one that runs, nothing changes and the last part stands for it."""
        ran = [name for name in layers if name in self._began]
        return min(ran, key=lambda name: self._began[name], default=max(self._ended, key=lambda n: self._ended[n]))

    def _before(self, layer: str) -> list[str]:
        """The largest parts that ran once and were finished before a layer began."""
        found: list[str] = []
        for name in sorted(self._calls, key=lambda name: name.count(".")):
            once = self._calls[name] == 1 and self._ended[name] < self._began[layer]
            if once and not any(name.startswith(f"{other}.") for other in found):
                found.append(name)
        return found


class EndErrors:
    """Errors at the end of the network, for each of many candidates.

    ``logits`` and ``last-block`` (what the classifier takes in) give relative squared errors against the original
    network, ``cross-entropy`` the loss, and ``accuracy`` the share of images that are classified wrongly, all of them
    over the kept classes. At the ``last-block`` channels that the classifier does not read any more are zeros, whatever
    it makes up for: they are there until the network is cut, and would go for nothing.

    Args:
        original: The network before anything was removed, on the same device.
        current: The network as it is.
        batches: Images and labels to compare on; the same with each call.
        tap: Where the error is measured.
        head: Name of the classifier.
        kept: Its outputs of the kept classes.
    """

    def __init__(
        self,
        original: nn.Module,
        current: Running,
        batches: Callable[[int], Iterable[Labelled]],
        *,
        tap: Tap,
        head: str,
        kept: Sequence[int],
    ) -> None:
        self.original, self.current, self.batches = original, current, batches
        self.tap, self.head, self.kept = tap, head, list(kept)
        self._targets: list[Tensor] = []
        self._portion = 0

    @property
    def power(self) -> int:
        """2 where errors are ratios of squares."""
        return 2 if self.tap in ("logits", "last-block") else 1

    @torch.no_grad()
    def measure(self, candidates: Mapping[str, Changes], *, shared: bool = True) -> dict[str, Loss]:
        """Errors of candidates, by group: now, and with each of them.

        Args:
            candidates: By group.
            shared: Run what they have in common once; otherwise everything for each of them.
        """
        module = self.current.module
        sums = torch.zeros(len(candidates) + 1, 2, dtype=torch.float64)
        prefix: SharedPrefix | None = None
        with evaluating(module):
            for number, (images, labels) in enumerate(self._portions(module, candidates)):
                prefix = prefix or SharedPrefix(module, images[:1], [c.layers for c in candidates.values()])
                with self._tapped(module) as features:
                    target = self._target(number, images)
                    sums[0] += self._error(prefix.record(images), features, labels, target)
                    for place, change in enumerate(candidates.values(), 1):
                        with applied(module, change):
                            output = prefix.run(images, change.layers) if shared else module(images)
                        sums[place] += self._error(output, features, labels, target)
        errors = torch.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], 0.0).tolist()
        return {name: (errors[0], error) for name, error in zip(candidates, errors[1:], strict=True)}

    def _portions(self, module: nn.Module, candidates: Mapping[str, Changes]) -> Iterable[Labelled]:
        """Batches so small that what is held of them keeps to :data:`HELD`; found once, for targets belong to them."""
        if not self._portion:
            images, _ = next(iter(self.batches(1)))
            prefix = SharedPrefix(module, images, [change.layers for change in candidates.values()])
            self._portion = int(max(1, min(PORTION, HELD // max(1, prefix.bytes_per_image))))
        return self.batches(self._portion)

    @contextmanager
    def _tapped(self, module: nn.Module) -> Iterator[list[Tensor]]:
        """What the classifier took in last."""
        features: list[Tensor] = []

        def hook(part: nn.Module, inputs: tuple[Any, ...]) -> None:
            features[:] = [_read(part, inputs[0]) if self.tap == "last-block" else inputs[0]]

        with module.get_submodule(self.head).register_forward_pre_hook(hook):
            yield features

    def _target(self, number: int, images: Tensor) -> Tensor:
        """The same of the original network; small, and held."""
        if self.power == 1:
            return images.new_zeros(0)
        if number == len(self._targets):
            with self._tapped(self.original) as features:
                output = evaluated(self.original, images)
            self._targets.append((output[:, self.kept] if self.tap == "logits" else features[0]).clone())
        return self._targets[number]

    def _error(self, output: Tensor, features: list[Tensor], labels: Tensor, target: Tensor) -> Tensor:
        """The error's numerator and denominator."""
        if self.power == 2:
            found = output[:, self.kept] if self.tap == "logits" else features[0]
            squares = [torch.linalg.vector_norm(part.float()).double().square() for part in (found - target, target)]
            return torch.stack(squares).cpu()
        logits = output[:, self.kept].float()
        place = torch.full((int(max(self.kept)) + 1,), -1, device=labels.device)
        place[self.kept] = torch.arange(len(self.kept), device=labels.device)
        if self.tap == "accuracy":
            wrong = (logits.argmax(dim=1) != place[labels]).sum().double()
        else:
            wrong = functional.cross_entropy(logits, place[labels], reduction="sum").double()
        return torch.stack([wrong, wrong.new_tensor(float(len(labels)))]).cpu()


def _read(head: nn.Module, taken: Tensor) -> Tensor:
    """What a classifier takes in, with zeros where it has no weights."""
    if not isinstance(head, nn.Linear | nn.Conv2d) or getattr(head, "groups", 1) > 1:
        return taken
    read = head.weight.detach() != 0
    inputs = read.any(dim=0) if isinstance(head, nn.Linear) else read.any(dim=(0, 2, 3))[:, None, None]
    return taken * inputs
