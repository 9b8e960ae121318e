"""Finding the classifier in other people's networks."""

import pytest
from torch import nn

from billhook.errors import InputError
from billhook.models import find_head, head_outputs


def squeezenet_like() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Dropout(),
        nn.Conv2d(8, 5, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def dla_like() -> nn.Module:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout())
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), pool, nn.Conv2d(8, 5, 1), nn.Flatten())


class HeadDeclaredFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1))


@pytest.mark.parametrize(
    ("module", "name", "outputs"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 9), nn.Linear(9, 7), nn.Softmax(1)), "3", 7),
        (squeezenet_like(), "3", 5),
        (dla_like(), "3", 5),
        (HeadDeclaredFirst(), "head", 4),
        (nn.Linear(3, 2), "", 2),
    ],
)
def test_find_head(module, name, outputs):
    assert find_head(module) == name
    assert head_outputs(module) == outputs


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1)),
        nn.Sequential(nn.Conv2d(3, 8, 1)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)),
        nn.ReLU(),
    ],
)
def test_no_head(module):
    with pytest.raises(InputError, match="no classifier"):
        find_head(module)
