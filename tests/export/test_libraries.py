"""Networks of torchvision and timm: as many ways of writing things as there are authors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from billhook.models import build

from .networks import settle
from .test_lower import check

VISION = (
    "alexnet densenet121 efficientnet_b0 googlenet inception_v3 mnasnet0_5 mobilenet_v3_small regnet_y_400mf resnet18 "
)
VISION += "shufflenet_v2_x0_5 squeezenet1_0"
TIMM = (
    "dla34 dpn68 ghostnet_050 hardcorenas_a repvgg_a0 resnetv2_50 rexnet_100 seresnet18 tf_efficientnet_lite0 vovnet39a"
)
NAMES = [("torchvision", name) for name in VISION.split()] + [("timm", name) for name in TIMM.split()]


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name"), NAMES)
def test_networks_of_libraries(library: str, name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    module = settle(build(f"{library}:{name}", 10))
    check(module, 96 if name == "inception_v3" else 64, tmp_path)
