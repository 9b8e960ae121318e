"""Networks of the user's own, of libraries, and modules that are passed in."""

import logging
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from billhook.errors import InputError, UsageError
from billhook.models import build, open_network

SOURCE = """
import torch
from torch import nn
import neighbour

LEVEL = 3
ready = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(neighbour.INPUTS, 4))

def sized(num_classes=6, **extra):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))

class Net(nn.Sequential):
    def __init__(self, num_classes=6):
        super().__init__(nn.Flatten(), nn.Linear(12, num_classes))

def broken():
    raise ValueError("no such luck")

def chatty():
    print("building")
    return ready

def leaves():
    raise SystemExit(3)

def wrong():
    return {"a": 1}

def headless():
    return nn.ReLU()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "neighbour.py").write_text("INPUTS = 12\n")
    (tmp_path / "my_nets.py").write_text(SOURCE)
    (tmp_path / "bad_syntax.py").write_text("def f(:\n")
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in {"neighbour", "my_nets", "bad_syntax", "needs_more"}:
            del sys.modules[name]


@pytest.mark.parametrize("where", ["my_nets", "my_nets.py", "{folder}/my_nets.py"])
@pytest.mark.parametrize(
    ("factory", "classes", "outputs"),
    [("fixed", None, 4), ("fixed", 4, 4), ("sized", None, 6), ("sized", 9, 9), ("Net", 3, 3), ("ready", None, 2)],
)
def test_user_factories(folder, where, factory, classes, outputs):
    path = list(sys.path)
    spec = f"{where.format(folder=folder)}:{factory}"
    network = open_network(spec, classes)
    assert (network.spec, network.classes, network.builtin, network.initialised) == (spec, outputs, False, False)
    assert (network.mean, network.input_size) == ((0.485, 0.456, 0.406), 224)
    assert sys.path == path


def test_user_factory_is_seeded_and_loads_weights(folder):
    one, two = open_network("my_nets.py:Net", seed=1), open_network("my_nets.py:Net", seed=1)
    assert one.weights_hash == two.weights_hash
    assert one.weights_hash != open_network("my_nets.py:Net", seed=2).weights_hash
    save_file(build("my_nets.py:Net", classes=5).state_dict(), folder / "w.safetensors")
    loaded = open_network("my_nets.py:Net", weights=folder / "w.safetensors", seed=3)
    assert loaded.classes == 5
    assert loaded.initialised


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("nowhere.py:f", UsageError, "no file nowhere.py"),
        ("nowhere_at_all:f", UsageError, "no module is called 'nowhere_at_all'"),
        (":f", UsageError, "no module name"),
        ("my_nets.py:Nett", UsageError, "did you mean 'Net'"),
        ("my_nets:", UsageError, "nothing called ''"),
        ("my_nets.py:LEVEL", UsageError, "is a int, not a function"),
        ("my_nets.py:broken", InputError, "my_nets.py:broken failed: ValueError: no such luck"),
        ("my_nets.py:leaves", InputError, "my_nets.py:leaves ends the program: sys.exit(3)"),
        ("my_nets.py:wrong", InputError, "returned a dict"),
        ("my_nets.py:headless", InputError, "no classifier"),
        ("bad_syntax.py:f", InputError, "SyntaxError"),
        ("needs_more:f", InputError, "not_installed_anywhere"),
    ],
)
def test_what_can_go_wrong(folder, spec, error, says):
    with pytest.raises(error) as caught:
        open_network(spec)
    assert says in str(caught.value)


def test_a_factory_that_takes_no_classes_must_fit(folder):
    with pytest.raises(InputError, match="4 outputs, and 5 classes"):
        open_network("my_nets.py:fixed", classes=5)
    with pytest.raises(UsageError, match="'default' are not known"):
        open_network("my_nets.py:fixed", weights="default")


def test_passed_module_is_used_as_it_is(tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    network = open_network(module)
    assert network.module is module
    assert module.training
    assert (network.spec, network.classes, network.builtin) == ("module:Sequential", 4, False)
    assert network.initialised
    assert network.weights_hash is not None
    with pytest.raises(InputError, match="4 outputs, and 3 classes"):
        open_network(module, classes=3)


def test_passed_module_is_copied_before_weights_go_in(tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    before = module[1].weight.detach().clone()
    save_file({"1.weight": torch.ones(4, 12), "1.bias": torch.ones(4)}, tmp_path / "w.safetensors")
    network = open_network(module, weights=tmp_path / "w.safetensors")
    assert torch.equal(module[1].weight, before)
    assert network.module.get_parameter("1.weight").sum() == 48


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_library_that_is_absent(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.models", None)  # it may be there from another test
    with pytest.raises(UsageError, match=f"pip install {library}"):
        open_network(f"{library}:resnet18")


def test_torchvision(monkeypatch):
    asked = []

    def get_model(name, weights=None, num_classes=1000):
        asked.append((name, weights))
        return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))

    models = types.ModuleType("torchvision.models")
    models.list_models = lambda module=None: ["alexnet", "resnet18"]
    models.get_model = get_model
    package = types.ModuleType("torchvision")
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    network = open_network("torchvision:resnet18", classes=7)
    assert (network.classes, network.builtin, network.initialised, network.weights_hash) == (7, True, False, None)
    own = open_network("torchvision:resnet18", weights="default")
    assert own.initialised
    assert own.weights_hash is not None
    assert asked == [("resnet18", None), ("resnet18", "DEFAULT")]
    with pytest.raises(InputError, match="1000 outputs, and 7 classes"):
        open_network("torchvision:resnet18", classes=7, weights="default")
    with pytest.raises(UsageError, match="did you mean 'resnet18'"):
        open_network("torchvision:resnet81")


def test_timm(monkeypatch):
    def create_model(name, pretrained=False, num_classes=1000):
        module = nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))
        module.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "input_size": (3, 160, 160)}
        return module

    timm = types.ModuleType("timm")
    timm.is_model = lambda name: name == "resnet10t"
    timm.list_models = lambda: ["resnet10t"]
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    network = open_network("timm:resnet10t.c3_in1k", classes=3)
    assert (network.mean, network.std, network.input_size) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 160)
    assert (network.classes, network.builtin) == (3, True)
    with pytest.raises(UsageError, match="did you mean 'resnet10t'"):
        open_network("timm:resnet10")


def offline(*lines):
    def fail(*args, **kwargs):
        raise OSError("\n".join(lines))

    return fail


def library(monkeypatch, name, make):
    """Stands in for a library whose factory is ``make``."""
    fake = types.ModuleType("torchvision.models" if name == "torchvision" else name)
    fake.list_models = lambda module=None: ["net"]
    fake.is_model = lambda model: model == "net"
    fake.get_model = fake.create_model = make
    package = types.ModuleType("torchvision")
    package.models = fake
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_default_weights_without_a_network_are_one_clear_line(monkeypatch, name):
    library(monkeypatch, name, offline("", "no route to host " + 60 * "and so on ", "a second line"))
    with pytest.raises(InputError) as caught:
        open_network(f"{name}:net", weights="default")
    start = f"the default weights of {name}:net cannot be loaded: OSError: no route to host and so on"
    assert caught.value.message.startswith(start)
    assert caught.value.message.endswith(" ...")
    assert len(caught.value.message) < 300
    assert "second" not in str(caught.value)
    assert "check the network connection" in caught.value.hint


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_a_library_that_cannot_build_the_network_is_named(monkeypatch, name):
    library(monkeypatch, name, offline("no such argument"))
    with pytest.raises(InputError, match=f"{name}:net failed: OSError: no such argument") as caught:
        open_network(f"{name}:net", classes=3)
    assert "weights" not in str(caught.value)


def test_the_hub_client_is_quiet_for_the_attempt_only(monkeypatch, caplog):
    logger = logging.getLogger("huggingface_hub")
    before = logger.level

    def make(*args, **kwargs):
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 1s")
        raise OSError("gone")

    library(monkeypatch, "timm", make)
    with pytest.raises(InputError, match="OSError: gone"):
        open_network("timm:net", weights="default")
    assert not caplog.records
    assert logger.level == before


def test_a_download_is_not_announced_where_results_are_printed(monkeypatch, capsys):
    def make(*args, **kwargs):
        sys.stdout.write('Downloading: "https://somewhere/net.pth" to cache\n')
        sys.stderr.write("100%\n")
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))

    library(monkeypatch, "torchvision", make)
    open_network("torchvision:net", weights="default")
    assert capsys.readouterr() == ("", "100%\n")


def test_what_a_factory_prints_is_no_result(folder, capsys):
    assert open_network("my_nets.py:chatty").classes == 2
    assert capsys.readouterr() == ("", "building\n")
