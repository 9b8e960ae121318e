"""The adapter for a torchvision whose operators do not load: what it mends, and what it leaves alone."""

import json
import subprocess
import sys
from subprocess import PIPE

import pytest

from billhook.models.torchvision_adapter import with_operators

# What torchvision 0.28 does first, and enough of torchvision.models for a spec. The list tells how often each part ran.
EXTENSION = "import builtins\nbuiltins.runs = [*getattr(builtins, 'runs', []), 'extension']\n"
PACKAGE = """
from . import extension
import torch

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets

@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold):
    return dets

from torchvision import models
"""
MODELS = """
from torch import nn

def list_models(module=None):
    return ["small"]

def get_model(name, weights=None, num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))
"""


@pytest.fixture
def folder(tmp_path):
    """A torchvision that raises the very error, as an installed package would."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "extension.py").write_text(EXTENSION)
    (tmp_path / "torchvision" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "torchvision" / "models.py").write_text(MODELS)
    (tmp_path / "timm.py").write_text("import torchvision\nfrom torchvision.models import get_model as create_model\n")
    (tmp_path / "nets.py").write_text(
        "from torchvision.models import get_model\n\ndef net():\n    return get_model(0)\n"
    )
    late = "def net():\n    from torchvision.models import get_model\n    return get_model(0)\n"
    (tmp_path / "late.py").write_text(late)
    return tmp_path


# An operator that is declared stays declared: each piece of code gets a process of its own, the copy of one that has
# imported PyTorch and nothing else.
COPIES = """
import json, os, sys, tempfile, traceback
import torch, billhook.models

for line in sys.stdin:
    folder, code = json.loads(line)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if not child:
            status = 1
            try:
                os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
                os.chdir(folder)
                sys.path.insert(0, folder)
                exec(compile(code, "code", "exec"), {"__name__": "__main__"})
                status = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
        status = os.waitpid(child, 0)[1]
        print(json.dumps([status, *(file.seek(0) or file.read() for file in (out, err))]), flush=True)
"""


@pytest.fixture(scope="module")
def copies():
    with subprocess.Popen([sys.executable, "-c", COPIES], stdin=PIPE, stdout=PIPE, text=True) as process:
        yield process


@pytest.fixture
def python(copies, folder):
    """Runs code in the folder and hands back what it prints."""

    def run(code):
        copies.stdin.write(json.dumps([str(folder), code]) + "\n")
        copies.stdin.flush()
        status, out, err = json.loads(copies.stdout.readline())
        assert status == 0, err
        return out.strip()

    return run


def test_the_stand_in_raises_the_very_error(python):
    code = "try:\n    import torchvision\nexcept RuntimeError as error:\n    print(error)"
    assert python(code) == "operator torchvision::nms does not exist"


def test_the_import_is_mended(python):
    code = (
        "from billhook.models import open_network\n"
        "network = open_network('torchvision:small', 7)\n"
        "open_network('torchvision:small', 3)\n"
        "import builtins, torch, torchvision\n"
        "print(network.classes, builtins.runs, torch.ops.torchvision.qnms.default._schema)"
    )
    schema = "torchvision::qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert python(code) == f"7 ['extension', 'extension'] {schema}"


def test_what_has_no_implementation_says_so(python):
    code = (
        "import torch\nfrom billhook.models import open_network\nopen_network('torchvision:small')\n"
        "try:\n    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)\n"
        "except NotImplementedError as error:\n    print('torchvision::nms' in str(error))"
    )
    assert python(code) == "True"


@pytest.mark.parametrize("spec", ["nets.py:net", "nets:net", "late.py:net"])
def test_networks_of_ones_own_may_stand_on_torchvision(python, spec):
    code = f"from billhook.models import open_network\nprint(open_network({spec!r}).classes)"
    assert python(code) == "10"


def test_timm_may_stand_on_it(python):
    code = "from billhook.models.foreign import _library\nprint(_library('timm').create_model(0))"
    assert "Linear(in_features=12, out_features=10" in python(code)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::roi_align does not exist"),
        RuntimeError("operator other::nms does not exist"),
        RuntimeError("CUDA driver version is insufficient"),
        ImportError("operator torchvision::nms does not exist"),
        ValueError("anything"),
    ],
)
def test_another_error_passes_through_at_once(error):
    calls = []

    def load():
        calls.append(1)
        raise error

    with pytest.raises(type(error)) as caught:
        with_operators(load)
    assert caught.value is error
    assert len(calls) == 1


def test_another_error_of_torchvision_is_one_clear_line(python, folder):
    (folder / "torchvision" / "__init__.py").write_text("raise RuntimeError('built for another PyTorch')\n")
    code = (
        "from billhook.errors import UsageError\nfrom billhook.models import open_network\n"
        "try:\n    open_network('torchvision:small')\nexcept UsageError as error:\n    print(error)\n"
        "import torch\nprint(hasattr(torch.ops.torchvision, 'nms'))"
    )
    first, second = python(code).splitlines()
    assert first.startswith("torchvision cannot be imported: built for another PyTorch (pip install torchvision, ")
    assert second == "False"


def test_what_still_fails_after_the_repair_is_told(python, folder):
    (folder / "torchvision" / "models.py").write_text("raise RuntimeError('and another thing')\n")
    code = (
        "from billhook.errors import UsageError\nfrom billhook.models import open_network\n"
        "try:\n    open_network('torchvision:small')\nexcept UsageError as error:\n    print(error.message)"
    )
    assert python(code) == "torchvision cannot be imported: and another thing"


def test_nothing_is_imported_that_nobody_named(python):
    assert python("import sys; print([m for m in ('torchvision', 'timm') if m in sys.modules])") == "[]"


def test_one_copy_knows_nothing_of_another(python):
    assert python("import sys; sys.mark = 1; print(sys.mark)") == "1"
    assert python("import sys; print(hasattr(sys, 'mark'))") == "False"
