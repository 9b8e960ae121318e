"""Networks of torchvision and timm as they are installed: random weights, a small image, counted.

`make test-full` installs both. Nothing is downloaded: default weights come from caches that the tests fill.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from billhook.cost import count
from billhook.errors import UsageError
from billhook.models import build, find_head, open_network, weights_hash
from billhook.models.foreign import _library

pytestmark = pytest.mark.slow


def installed(*names: str) -> pytest.MarkDecorator:
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    reason = (
        f"{' and '.join(absent)} not installed: `make test-full` does, or pip install 'billhook[{','.join(names)}]'"
    )
    return pytest.mark.skipif(bool(absent), reason=reason)


TORCHVISION = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "densenet169",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mnasnet1_0",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "regnet_x_1_6gf",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet101",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "squeezenet1_0",
    "squeezenet1_1",
    "vgg11_bn",
    "vgg16",
    "wide_resnet50_2",
]
TIMM = [
    "convnext_atto",
    "cspresnet50",
    "darknet53",
    "densenet121",
    "dla34",
    "dpn48b",
    "efficientnet_lite0",
    "fbnetc_100",
    "ghostnet_100",
    "hardcorenas_a",
    "hrnet_w18_small",
    "lcnet_050",
    "mixnet_s",
    "mnasnet_small",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "regnetx_002",
    "repvgg_a0",
    "res2net50_14w_8s",
    "resnet10t",
    "resnet18d",
    "resnetv2_50",
    "rexnet_100",
    "selecsls42",
    "semnasnet_075",
    "seresnet18",
    "tf_efficientnetv2_b0",
    "xception41",
]
SPECS = [
    *(pytest.param(f"torchvision:{name}", marks=installed("torchvision")) for name in TORCHVISION),
    *(pytest.param(f"timm:{name}", marks=installed("torchvision", "timm")) for name in TIMM),
]


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("spec", SPECS)
def test_it_is_built_run_and_counted(spec):
    network = open_network(spec, classes=7)
    assert (network.classes, network.builtin, network.initialised, network.weights_hash) == (7, True, False, None)
    size = 96 if "inception" in spec else 64
    image = torch.randn(1, 3, size, size)
    cost = count(network.module, size)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        assert network.module(image).shape == (1, 7)
    assert 2 * cost.macs == flops.get_total_flops()
    assert cost.params == sum(parameter.numel() for parameter in network.module.parameters())
    assert cost.layers[0].first
    assert find_head(network.module) in {layer.name for layer in cost.layers}


@installed("torchvision")
@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "vgg16",
        "vgg16_bn",
    ],
)
def test_ours_has_the_names_and_the_function_of_torchvisions(name):
    ours = build(name)
    theirs = open_network(f"torchvision:{name}").module
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=0)


@installed("torchvision")
def test_torchvisions_transforms_work():
    _library("torchvision")
    from torchvision.transforms import v2

    resized = v2.Compose([v2.Resize(8), v2.CenterCrop(6)])(torch.zeros(3, 10, 12, dtype=torch.uint8))
    assert resized.shape == (3, 6, 6)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        pytest.param("torchvision:resnet81", "did you mean 'resnet18'", marks=installed("torchvision")),
        pytest.param("torchvision:fasterrcnn_resnet50_fpn", "no network", marks=installed("torchvision")),
        pytest.param("timm:resnet10", "did you mean 'resnet10t'", marks=installed("torchvision", "timm")),
    ],
)
def test_a_wrong_name_suggests_the_nearest(spec, says):
    with pytest.raises(UsageError) as caught:
        open_network(spec)
    assert says in str(caught.value)


def opened(spec: str, **environment: object) -> str:
    """The hash of the default weights, loaded in a process of its own: the clients read their settings once."""
    code = f"from billhook.models import open_network\nprint(open_network({spec!r}, weights='default').weights_hash)"
    variables = os.environ | {key: str(value) for key, value in environment.items()}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def random_network(spec: str) -> nn.Module:
    return open_network(spec, seed=5).module


@installed("torchvision")
def test_default_weights_of_torchvision(tmp_path):
    module = random_network("torchvision:squeezenet1_1")
    address: str = _library("torchvision").get_model_weights("squeezenet1_1").DEFAULT.url
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(module.state_dict(), folder / Path(address).name)
    assert opened("torchvision:squeezenet1_1", TORCH_HOME=tmp_path) == weights_hash(module)


@installed("torchvision", "timm")
def test_default_weights_of_timm(tmp_path):
    from safetensors.torch import save_file

    module = random_network("timm:resnet10t")
    config = vars(module)["pretrained_cfg"]
    revision = 40 * "a"
    repository = tmp_path / f"models--{config['hf_hub_id'].replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots" / revision).mkdir(parents=True)
    save_file(module.state_dict(), repository / "snapshots" / revision / "model.safetensors")
    assert opened("timm:resnet10t", HF_HUB_CACHE=tmp_path, HF_HUB_OFFLINE=1) == weights_hash(module)
