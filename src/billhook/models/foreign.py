"""Networks that are not ours: a user's factory, torchvision, timm. Each is imported only when a spec names it."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import inspect
import io
import logging
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from billhook.errors import BillhookError, InputError, UsageError, nearest
from billhook.models.architecture import IMAGENET, Defaults
from billhook.models.torchvision_adapter import with_operators

LIBRARIES = ("torchvision", "timm")


def is_library(spec: str) -> bool:
    """Whether a spec can be rebuilt by name from a library: ``torchvision:NAME`` or ``timm:NAME``."""
    return spec.partition(":")[0] in LIBRARIES


def build_foreign(spec: str, classes: int | None, pretrained: bool = False) -> tuple[nn.Module, Defaults]:
    """The network that a spec with a colon names, and what its images should be.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``package.module:factory`` or ``path/file.py:factory``.
        classes: Head outputs to ask for; a factory that takes no ``num_classes`` is called without.
        pretrained: Let the library download its weights.

    Raises:
        UsageError: No such file, module, attribute or name, or the library is not installed.
        InputError: The user's code or the library raises, gives no ``nn.Module``, or cannot download.
    """
    where, _, name = spec.rpartition(":")
    if where in LIBRARIES:
        return (_torchvision if where == "torchvision" else _timm)(name, classes, pretrained)
    if pretrained:
        raise UsageError(f"weights 'default' are not known for {spec}", "give the path of a weights file")
    return _users(spec, where, name, classes), IMAGENET


def _users(spec: str, where: str, name: str, classes: int | None) -> nn.Module:
    path = Path(where)
    # What the user's code prints is no result of ours, and a document may be printed there.
    with _importable(path.parent if where.endswith(".py") else Path()), contextlib.redirect_stdout(sys.stderr):
        try:
            module = with_operators(lambda: _import_file(path) if where.endswith(".py") else _import_module(where))
            factory = getattr(module, name, None)
            if factory is None:
                public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
                raise UsageError(f"{where} has nothing called '{name}'", nearest(name, public))
            if isinstance(factory, nn.Module):
                return copy.deepcopy(factory)
            if not callable(factory):
                raise UsageError(f"{spec} is a {type(factory).__name__}, not a function", "name a function or a class")
            sized = {"num_classes": classes} if classes and _takes_classes(factory) else {}
            network = with_operators(lambda: factory(**sized))
        except BillhookError:
            raise
        except SystemExit as error:  # else the command would end with that code, and say nothing
            raise InputError(
                f"{spec} ends the program: sys.exit({error.code!r})", "the call is in that code"
            ) from error
        except Exception as error:  # whatever a user's code may raise
            raise InputError(f"{spec} failed: {type(error).__name__}: {error}", "the error is in that code") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{spec} returned a {type(network).__name__}", "it should return a torch.nn.Module")
    return network


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets the user's code import its neighbours, as it could if it were run from its folder."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_billhook_user_{path.stem}", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise UsageError(f"no file {path}", "a network of your own is path/file.py:factory")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there; one that it imports is not
        hint = "a network of your own is package.module:factory or path/file.py:factory"
        raise UsageError(f"no module is called '{name}'", hint) from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"'{name}' is no module name", "write package.module:factory") from error


def _takes_classes(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # a builtin without a signature
        return False
    return any(p.name == "num_classes" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _library(name: str) -> Any:
    try:
        return with_operators(lambda: importlib.import_module("torchvision.models" if name == "torchvision" else name))
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another PyTorch
        hint = f"pip install {name}, in the version that fits your PyTorch; or use a built-in network"
        raise UsageError(f"{name} cannot be imported: {error}", hint) from error


def _made(spec: str, pretrained: bool, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        with _quiet_hub():
            return make()
    except Exception as error:  # the library's, its HTTP client's and the system's
        lines = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {textwrap.shorten(lines[0], 160, placeholder=' ...') if lines else ''}"
        if pretrained:
            raise InputError(
                f"the default weights of {spec} cannot be loaded: {said}",
                "check the network connection, or give the path of a weights file",
            ) from error
        raise InputError(f"{spec} failed: {said}", "the library cannot build this network as asked") from error


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Silences what the libraries say of an attempt that fails: what became of it is in the error."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # PyTorch announces downloads on standard output, where nothing but results belongs; its progress bar is not.
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _torchvision(name: str, classes: int | None, pretrained: bool) -> tuple[nn.Module, Defaults]:
    models = _library("torchvision")
    if name not in models.list_models(module=models):
        raise UsageError(f"torchvision has no network '{name}'", nearest(name, models.list_models(module=models)))
    sized = {} if classes is None or pretrained else {"num_classes": classes}
    weights = "DEFAULT" if pretrained else None
    network = _made(f"torchvision:{name}", pretrained, lambda: models.get_model(name, weights=weights, **sized))
    return network, IMAGENET


def _timm(name: str, classes: int | None, pretrained: bool) -> tuple[nn.Module, Defaults]:
    timm = _library("timm")
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(f"timm has no network '{name}'", nearest(name, timm.list_models()))
    sized = {} if classes is None or pretrained else {"num_classes": classes}
    network = _made(f"timm:{name}", pretrained, lambda: timm.create_model(name, pretrained=pretrained, **sized))
    config: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    return network, Defaults(
        tuple(config.get("mean", IMAGENET.mean)),
        tuple(config.get("std", IMAGENET.std)),
        int(config.get("input_size", (3, IMAGENET.input_size))[-1]),
        int(config.get("num_classes", IMAGENET.classes)),
    )
