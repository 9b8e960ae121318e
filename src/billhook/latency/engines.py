"""Engines, all asked in the same way: one network, one input, so many threads, then the same run again and again.

Each is imported when it is opened. The input and the outputs are float32 arrays in the process's own memory.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from billhook import runtime
from billhook.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import nn

Floats = NDArray[np.float32]


class Engine(Protocol):
    """A network that is ready to run on its input.

    Attributes:
        precision: Of the arithmetic, as the engine itself says: ``f32``, ``bf16``, ...
    """

    precision: str

    def run(self) -> Floats:
        """Run once; the outputs, [N, classes]."""
        ...


class PyTorch:
    """A module as it stands, without a compiler."""

    precision = "f32"

    def __init__(self, network: nn.Module, image: Floats, threads: int, precision: str | None) -> None:
        import torch

        del precision
        torch.set_num_threads(threads)
        self._torch, self._module, self._image = torch, network.eval(), torch.from_numpy(image)

    def run(self) -> Floats:
        """Run once."""
        with self._torch.inference_mode():
            result: Floats = self._module(self._image).numpy()
        return result


class OnnxRuntime:
    """An ONNX file, with the graph optimisations that are the default."""

    precision = "f32"

    def __init__(self, network: Path, image: Floats, threads: int, precision: str | None) -> None:
        del precision
        ort = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])
        self._feed = {self._session.get_inputs()[0].name: image}

    def run(self) -> Floats:
        """Run once."""
        result: Floats = self._session.run(None, self._feed)[0]
        return result


class OpenVino:
    """An ONNX file. Without a precision it takes the one it likes best on this CPU, which may be less than float32."""

    def __init__(self, network: Path, image: Floats, threads: int, precision: str | None) -> None:
        vino = importlib.import_module("openvino")
        core = vino.Core()
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
        if precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = precision
        compiled = core.compile_model(core.read_model(str(network)), "CPU", settings)
        self.precision: str = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self._request, self._image = compiled.create_infer_request(), image

    def run(self) -> Floats:
        """Run once; the outputs are the engine's own memory."""
        found = self._request.infer([self._image], share_inputs=True, share_outputs=True)
        result: Floats = found[0]
        return result


class DeepSparse:
    """An ONNX file in an engine that makes use of zeros; its last version, 1.8.0, needs numpy 1."""

    precision = "f32"

    def __init__(self, network: Path, image: Floats, threads: int, precision: str | None) -> None:
        del precision
        deepsparse = importlib.import_module("deepsparse")
        self._engine = deepsparse.Engine(model=str(network), batch_size=len(image), num_cores=threads)
        self._feed = [image]

    def run(self) -> Floats:
        """Run once."""
        result: Floats = self._engine.run(self._feed)[0]
        return result


class Billhook:
    """A packed file."""

    def __init__(self, network: Path, image: Floats, threads: int, precision: str | None) -> None:
        self.precision = precision or "f32"
        self.network: Any = runtime.load(network, threads=threads, precision=self.precision)
        self._image = image

    def run(self) -> Floats:
        """Run once."""
        result: Floats = self.network(self._image)
        return result


ENGINES: dict[str, Any] = {
    "billhook": Billhook,
    "torch": PyTorch,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "deepsparse": DeepSparse,
}
"""By name; each takes (network, image, threads, precision)."""


def installed(name: str) -> bool:
    """Whether a package is there; it is not imported."""
    return importlib.util.find_spec(name) is not None


def open_engine(
    name: str, network: nn.Module | Path, image: Floats, threads: int, precision: str | None = None
) -> Engine:
    """Make a network ready in an engine.

    Args:
        name: A key of :data:`ENGINES`.
        network: A module for ``torch``, a packed file for ``billhook``, an ONNX file for all others.
        image: float32 [N, C, H, W]; the input of every run.
        threads: That the engine may use.
        precision: ``f32`` or ``bf16``; None: the engine's own choice. Engines that have no choice ignore it.

    Raises:
        UsageError: There is no such engine.
    """
    if name not in ENGINES:
        raise UsageError(f"there is no engine '{name}'", nearest(name, ENGINES))
    engine: Engine = ENGINES[name](network, np.ascontiguousarray(image, np.float32), threads, precision)
    return engine


def write_onnx(module: nn.Module, shape: Sequence[int], path: Path, opset: int | None = None) -> Path:
    """The network as an ONNX file for inputs of one shape, BatchNorm folded.

    Args:
        module: On the CPU.
        shape: [N, C, H, W].
        path: The file.
        opset: Version of the operators, for engines that stopped reading new ones; None: the exporter's choice.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (torch.zeros(*shape),), str(path), dynamo=False, opset_version=opset, input_names=["image"]
        )
    return path
