"""Specs: text to choice and back, and the messages for wrong ones."""

import pytest

from billhook.errors import UsageError
from billhook.models import REGISTRY, canonical, open_network, parse_spec


@pytest.mark.parametrize(
    ("text", "name", "options", "back"),
    [
        ("resnet56", "resnet56", {}, "resnet56"),
        (" resnet56 , shortcut = conv ", "resnet56", {"shortcut": "conv"}, "resnet56,shortcut=conv"),
        ("resnet56,shortcut=a", "resnet56", {"shortcut": "a"}, "resnet56"),
        (
            "resnet18,width=0.50,stem=cifar",
            "resnet18",
            {"width": 0.5, "stem": "cifar"},
            "resnet18,stem=cifar,width=0.5",
        ),
        ("resnet18,width=2", "resnet18", {"width": 2.0}, "resnet18,width=2"),
        ("mobilenet_v2,padding=tf", "mobilenet_v2", {"padding": "tf"}, "mobilenet_v2,padding=tf"),
        ("wrn26_12,width=12", "wrn26_12", {"width": 12.0}, "wrn26_12"),
        ("resnext101_32x16d,stem=cifar", "resnext101_32x16d", {"stem": "cifar"}, "resnext101_32x16d,stem=cifar"),
        ("net.py:make", "net.py:make", {}, "net.py:make"),
    ],
)
def test_parse_and_canonical(text, name, options, back):
    assert parse_spec(text) == (name, options)
    assert canonical(name, options) == back
    assert canonical(*parse_spec(back)) == back


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resnet65", "did you mean 'resnet56'"),
        ("", "choose from"),
        ("net.py", "net.py:FACTORY"),
        ("resnet56,shortcut=b", "shortcut is one of: a, conv"),
        ("resnet56,stem=cifar", "options of resnet56: shortcut=a|conv"),
        ("resnet18,width=wide", "width=0.5"),
        ("resnet18,width=-1", "not a positive number"),
        ("resnet18,width=inf", "not a positive number"),
        ("resnet18,width=1e15", "resnet18,width=1000000000000000 is too large for this machine"),
        ("vgg16,width=1e300", "too large for this machine's memory"),
        ("resnet18,width", "not known"),
        ("resnet18,width=1,width=2", "said twice"),
        ("tinycnn,width=2", "takes no options"),
        ("preresnet164,stem=cifar", "takes no options"),
        ("vgg16bn", "did you mean 'vgg16_bn'"),
        ("resnext101_32x8", "did you mean 'resnext101_32x8d'"),
    ],
)
def test_wrong_specs(text, says):
    with pytest.raises(UsageError) as caught:
        open_network(text)
    assert says in str(caught.value)


def test_canonical_refuses_unknown_names():
    with pytest.raises(UsageError, match="did you mean 'tinycnn'"):
        canonical("tinycn", {})


@pytest.mark.parametrize("name", REGISTRY)
def test_every_choice_of_every_option_survives_the_round_trip(name):
    for key, option in REGISTRY[name].options.items():
        for value in option.choices or ("0.25",):
            parsed = parse_spec(f"{name},{key}={value}")
            assert parse_spec(canonical(*parsed))[1].get(key, option.default) == parsed[1][key]
