"""Quick copies of networks: what ``copy.deepcopy`` makes, with the tensors that were given."""

import copy

import torch
from torch import nn

from billhook.models import build
from billhook.surgery.twin import twin


def tensors_of(module):
    return {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}


def doubles_of(module):
    return {
        key: nn.Parameter(2 * t.detach()) if isinstance(t, nn.Parameter) else 2 * t
        for key, t in tensors_of(module).items()
    }


class Odd(nn.Module):
    """Layers in a list of Python's own, one layer under two names, a hook, a layer that someone wrote on."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.again = self.a
        self.order = [self.a, self.b]
        self.hooked = nn.ReLU()
        self.calls = []
        self.hooked.register_forward_hook(self.note)
        self.noted = nn.Linear(4, 2)
        self.noted.partner = self.b
        self.tables = nn.ReLU()
        self.tables.table = torch.ones(3)
        self.tied = nn.Linear(4, 2)
        self.tied.weight = self.noted.weight

    def note(self, layer, inputs, output):
        self.calls.append(layer)

    def forward(self, x):
        for layer in self.order:
            x = layer(x)
        x = self.hooked(x).mean((2, 3))
        return self.noted(x) + self.tied(x)


def test_it_is_a_deep_copy_but_for_the_tensors():
    for module in (build("resnet20"), build("mobilenet_v2,width=0.25"), Odd()):
        module.eval()
        found, expected = twin(module, tensors_of(module)), copy.deepcopy(module)
        theirs = dict(expected.named_modules(remove_duplicate=False))
        mine = dict(found.named_modules(remove_duplicate=False))
        assert list(mine) == list(theirs)
        for name, part in module.named_modules(remove_duplicate=False):
            assert mine[name] is not part
            assert type(mine[name]) is type(theirs[name])
            assert vars(mine[name]).keys() == vars(theirs[name]).keys()
            assert repr(mine[name]) == repr(theirs[name])
            for key, value in vars(mine[name]).items():
                if isinstance(value, dict | list | set):
                    assert value is not vars(part)[key], f"{name}.{key} is shared"
        assert all(a is b for a, b in zip(found.parameters(), module.parameters(), strict=True))
        x = torch.randn(2, 3, 16, 16)
        assert torch.equal(found(x), expected(x))


def test_it_has_the_tensors_that_it_is_given():
    module = build("preresnet20")
    given = doubles_of(module)
    found = twin(module, given)
    for (name, new), old in zip(found.state_dict().items(), module.state_dict().values(), strict=True):
        assert torch.equal(new, 2 * old), name
    assert {id(t) for t in (*found.parameters(), *found.buffers())} == {id(t) for t in given.values()}
    some = dict(list(given.items())[::2])
    assert twin(module, some).state_dict().keys() == module.state_dict().keys()
    assert not set(tensors_of(twin(module, some))) & set(tensors_of(module))


def test_layers_that_are_held_elsewhere_too_are_the_copys():
    module = Odd().eval()
    found = twin(module, doubles_of(module))
    assert found.again is found.a
    assert found.order == [found.a, found.b]
    assert found.noted.partner is found.b
    assert found.tied.weight is found.noted.weight
    found(torch.randn(1, 3, 4, 4))
    assert found.calls == [found.hooked]
    assert module.calls == []


def test_a_change_of_the_copy_is_none_of_the_network():
    module = build("resnet20")
    found = twin(module, tensors_of(module))
    found.conv1.out_channels, found.conv1.weight = 1, nn.Parameter(torch.zeros(1))
    found.bn1.register_buffer("running_mean", None)
    found.bn1.register_forward_hook(lambda *given: None)
    found.train(not module.training)
    assert module.conv1.out_channels == 16
    assert module.conv1.weight.shape == (16, 3, 3, 3)
    assert module.bn1.running_mean is not None
    assert not module.bn1._forward_hooks
    assert found.training is not module.training


def test_a_single_layer():
    layer = nn.Conv2d(3, 4, 1)
    assert twin(layer, tensors_of(layer)).weight is layer.weight
