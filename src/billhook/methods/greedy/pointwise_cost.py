"""What a network costs whose convolutions stand between 1x1 convolutions, without making it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from billhook.cost import Cost, LayerCost
from billhook.surgery.channel_cost import QUANTITIES

_OWN = ("weights", "macs", "channels", "volume")
_COLUMNS = [_OWN.index({"params": "weights", "nonzero": "weights", "effective_macs": "macs", "bytes": "weights"}
                       .get(name, name)) for name in QUANTITIES]  # fmt: skip
_FILE = QUANTITIES.index("bytes")
_BYTES = 4  # of one fp32 value
_ALIGNMENT = 64  # of what follows the header of a file, at most


class PointwiseCost:
    """The cost of a network as a function of how many inputs and outputs its convolutions keep; exact.

    A side that keeps everything has no 1x1 convolution: it was folded. One that lost a channel has one from the outer
    width to what is left, or back, and pays for it, so the first channel of a side may cost more than it saves. What
    1x1 convolutions put out counts as channels and as volume, too, as it does for every convolution.

    Args:
        cost: Of the dense network with the head as it will be delivered.
        opened: Of the dense network with 1x1 convolutions on both sides of these convolutions.
        sides: By convolution: what its inputs, and what its outputs are called.
        dense_file_bytes: Size of the dense network's file.
    """

    def __init__(self, cost: Cost, opened: Cost, sides: Mapping[str, tuple[str, str]], dense_file_bytes: int) -> None:
        self.cost = cost
        self.quantities: tuple[str, ...] = QUANTITIES
        self.layers = layers = tuple(sides)
        self.names = tuple(name for names in sides.values() for name in names)
        self.index = {name: number for number, name in enumerate(self.names)}
        found = {layer.name: layer for layer in opened.layers}
        convs = [found[f"{layer}.conv"] for layer in layers]
        shapes = [conv.weight_shape for conv in convs]
        widths = [width for conv, s in zip(convs, shapes, strict=True) for width in (s[1] * conv.groups, s[0])]
        self.channels = np.array(widths, dtype=np.int64)
        self._inputs, self._outputs = (self.channels[side::2].astype(np.float64) for side in (0, 1))
        before, after = ([found[f"{layer}.{part}"] for layer in layers] for part in ("before", "after"))
        # What each of the three costs at full width; a convolution puts out its own channels.
        self._conv, self._before, self._after = (_table(part) for part in (convs, before, after))
        self._dense = np.array([getattr(cost, name) for name in ("params", "macs", "channels", "volume")], np.float64)
        self._file = float(dense_file_bytes - _BYTES * cost.params)
        self._headers = _headers(layers, before, after, dense_file_bytes)

    def many(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """Costs of many choices at once.

        Args:
            kept: ``[..., sides]``: channels that each side keeps.

        Returns:
            ``[..., quantities]``, in the order of :data:`~billhook.surgery.channel_cost.QUANTITIES`. ``bytes`` may come
            out a little smaller: its header names shapes of fewer digits.
        """
        return self._costs(kept, kept < self.channels)

    def gross(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """The same with a 1x1 convolution on every side, whether it lost something or not: falls with each removal."""
        return self._costs(kept, np.ones_like(kept, dtype=bool))

    def enlarged(self) -> dict[str, int]:
        """What the network costs with all its channels and all its 1x1 convolutions: what the paper starts from."""
        found = dict(zip(QUANTITIES, self.gross(self.channels).tolist(), strict=True))
        return {name: int(found[name]) for name in ("params", "macs", "channels", "volume")}

    def totals(self, kept: Mapping[str, int]) -> dict[str, float]:
        """Cost of the network once each side keeps that many channels.

        Args:
            kept: By side; those that are not named keep all.

        Raises:
            ValueError: A side that is not there, or more channels than it has.
        """
        return dict(zip(QUANTITIES, self.many(self._vector(kept)).tolist(), strict=True))

    def largest(self, kept: Mapping[str, int], quantity: str) -> str:
        """The convolution that has the most of a quantity, with the 1x1 convolutions around it."""
        vector = self._vector(kept)
        share = self._layers(vector, vector < self.channels)[:, _COLUMNS[QUANTITIES.index(quantity)]]
        return self.layers[int(share.argmax())] if len(share) else ""

    def _vector(self, kept: Mapping[str, int]) -> NDArray[np.int64]:
        vector = self.channels.copy()
        for name, count in kept.items():
            if name not in self.index or not 1 <= count <= self.channels[self.index[name]]:
                raise ValueError(f"'{name}' cannot keep {count} channels")
            vector[self.index[name]] = count
        return vector

    def _layers(self, kept: NDArray[np.int64], opened: NDArray[np.bool_]) -> NDArray[np.float64]:
        """``[..., layers, len(_OWN)]``."""
        inputs, outputs = (kept[..., 0::2] / self._inputs)[..., None], (kept[..., 1::2] / self._outputs)[..., None]
        first, last = opened[..., 0::2, None], opened[..., 1::2, None]
        pairs = np.array([1.0, 1.0, 0.0, 0.0])  # weights and MACs are of pairs of channels, the rest of outputs
        conv = self._conv * outputs * np.where(pairs, inputs, 1.0)
        before = first * self._before * inputs
        after = last * self._after * np.where(pairs, outputs, 1.0)
        return np.asarray(conv + before + after)

    def _costs(self, kept: NDArray[np.int64], opened: NDArray[np.bool_]) -> NDArray[np.float64]:
        own = self._dense + (self._layers(kept, opened) - self._conv).sum(-2)
        totals = cast(NDArray[np.float64], np.rint(own)[..., _COLUMNS])
        first, last = opened[..., 0::2], opened[..., 1::2]
        header = np.stack([first, last, first | last], axis=-1) * self._headers
        totals[..., _FILE] = self._file + _BYTES * totals[..., _FILE] + header.sum((-1, -2)) + _ALIGNMENT
        return totals


def _table(layers: Sequence[LayerCost]) -> NDArray[np.float64]:
    """``[layers, len(_OWN)]``; biases are not part of it, for no side has more or fewer of them."""
    rows = [(int(np.prod(layer.weight_shape)), layer.macs, layer.channels, layer.volume) for layer in layers]
    return np.array(rows, dtype=np.float64).reshape(-1, len(_OWN))


def _headers(
    layers: Sequence[str], before: Sequence[LayerCost], after: Sequence[LayerCost], most: int
) -> NDArray[np.float64]:
    """``[layers, 3]``: what the file's header grows by with the first 1x1, with the second, and with either."""
    digits = len(str(2 * most))

    def entry(name: str, shape: Sequence[int]) -> int:
        return len(f'"{name}.weight":{{"dtype":"F32","shape":{list(shape)},"data_offsets":[,]}},') + 2 * digits

    rows = [
        # A bias moves behind the second 1x1, or to "conv" where there is none.
        (entry(f"{layer}.before", b.weight_shape), entry(f"{layer}.after", a.weight_shape), 2 * len(".after"))
        for layer, b, a in zip(layers, before, after, strict=True)
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)
