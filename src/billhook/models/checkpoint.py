"""Reading weights from files, and putting them into networks, strictly."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from billhook.errors import InputError
from billhook.models.registry import look_alike

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put in front
_COUNTER = "num_batches_tracked"


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, on the CPU, floats in at least single precision.

    Reads safetensors, and PyTorch's own files without running any code in them. A ``state_dict`` inside a training
    checkpoint is unwrapped, and a prefix that DistributedDataParallel or torch.compile left is dropped.

    Raises:
        InputError: The file is missing, broken, holds no tensors, or would have to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights file at {path}", "give the path of a .safetensors, .pt or .pth file")
    if path.suffix == ".safetensors":
        try:
            content: object = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise _broken(path, error) from error
    else:
        content = _load_torch(path)
    state = _strip(_unwrap(content))
    if not state:
        raise InputError(f"weights file {path} holds no tensors", "save the network's state_dict()")
    return {key: value.float() if _is_narrow(value) else value for key, value in state.items()}


def _load_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly anything on a broken file
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise InputError(
                f"weights file {path} holds pickled code, which is not run",
                "re-save it as safetensors: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')",
            ) from error
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> InputError:
    lines = str(error).splitlines()
    said = lines[0][:160] if lines else type(error).__name__
    return InputError(f"weights file {path} cannot be read: {said}", "it may be truncated; copy or download it again")


def _unwrap(content: object) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        content = inner
    return {}


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while state:
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _is_narrow(value: Tensor) -> bool:
    return value.is_floating_point() and value.element_size() < 4


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies the tensors into the network, all of them or none.

    BatchNorm's batch counters may be absent on either side; nothing else may.

    Args:
        module: The network; changed in place.
        state: Name to tensor, as ``load_checkpoint`` gives them.
        source: Where they come from, for messages.

    Raises:
        InputError: Names or shapes do not match; lists what is missing, unexpected and of another shape.
    """
    own = module.state_dict()
    if own and all(key.startswith("module.") for key in own) and not any(key.startswith("module.") for key in state):
        # The network itself calls its only child "module": load_checkpoint took that for a wrapper's prefix.
        state = {f"module.{key}": value for key, value in state.items()}
    missing = [key for key in own if key not in state and not key.endswith(_COUNTER)]
    unexpected = [key for key in state if key not in own and not key.endswith(_COUNTER)]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    problems = [
        _few("missing", missing),
        _few("unexpected", unexpected),
        _few("of another shape", shapes),
    ]
    if any(problems):
        like = look_alike(state)
        hint = f"these weights look like {like}" if like else "check that the spec and its options fit the weights"
        raise InputError(f"weights of {source} do not fit the network: {'; '.join(filter(None, problems))}", hint)
    fitting = OrderedDict((key, value) for key, value in state.items() if key in own)
    # Files hold no versions of modules, and torchvision's MNASNet insists on one: the shapes are those of this version.
    vars(fitting)["_metadata"] = getattr(own, "_metadata", None)
    module.load_state_dict(fitting, strict=False)


def _few(what: str, items: Sequence[str], shown: int = 3) -> str:
    if not items:
        return ""
    return f"{len(items)} {what} ({', '.join(items[:shown])}{', ...' if len(items) > shown else ''})"


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a network's tensors, batch counters left out."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor) or key.endswith(_COUNTER):
            continue
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
