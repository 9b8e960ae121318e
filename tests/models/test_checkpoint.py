"""Weights files: formats, wrappers, prefixes, broken ones, and strict loading."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from billhook.errors import InputError, UsageError
from billhook.models import build, load_checkpoint, load_into, open_network, weights_hash


@pytest.fixture
def state():
    return build("tinycnn").state_dict()


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


class NeedsCode:
    pass


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_formats(tmp_path, state, suffix):
    path = tmp_path / f"net{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    assert same(load_checkpoint(path), state)
    assert same(load_checkpoint(str(path)), state)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_and_prefixes(tmp_path, state, key, prefix):
    path = tmp_path / "net.pt"
    torch.save({key: {prefix + name: value for name, value in state.items()}, "epoch": 3, "optimizer": {}}, path)
    assert same(load_checkpoint(path), state)


def test_prefix_that_not_all_keys_share_stays(tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"module.weight": torch.ones(1), "scale": torch.ones(1)}, path)
    assert set(load_checkpoint(path)) == {"module.weight", "scale"}


def test_narrow_floats_become_float32(tmp_path):
    path = tmp_path / "net.safetensors"
    tensors = {"half": torch.tensor([0.1]).half(), "brain": torch.tensor([0.1]).bfloat16(), "count": torch.tensor([3])}
    save_file(tensors, path)
    loaded = load_checkpoint(path)
    assert {key: value.dtype for key, value in loaded.items()} == {
        "half": torch.float32,
        "brain": torch.float32,
        "count": torch.int64,
    }
    assert loaded["half"].item() == tensors["half"].item()


def test_pickled_code_is_not_run(tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"model": NeedsCode()}, path)
    with pytest.raises(InputError, match="re-save it as safetensors") as caught:
        load_checkpoint(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_truncated_files(tmp_path, state, suffix, keep):
    path = tmp_path / f"net{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="cannot be read") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_truncated_legacy_file(tmp_path, state):
    path = tmp_path / "net.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert same(load_checkpoint(path), state)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(path)


def test_text_is_no_weights_file(tmp_path):
    path = tmp_path / "net.pth"
    path.write_text("hello")
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(path)


def test_missing_folder_and_empty(tmp_path):
    with pytest.raises(InputError, match="no weights file"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(InputError, match="no weights file"):
        load_checkpoint(tmp_path)
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(InputError, match="holds no tensors"):
        load_checkpoint(tmp_path / "empty.pt")


def test_load_into_needs_no_batch_counters(state):
    bare = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    module = build("tinycnn")
    with torch.no_grad():
        module.get_parameter("fc.weight").zero_()
    load_into(module, bare, "test")
    assert same(module.state_dict(), state)
    folded = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False))
    load_into(
        folded, {"0.weight": torch.ones(2), "0.bias": torch.ones(2), "0.num_batches_tracked": torch.tensor(1)}, "x"
    )
    assert folded.get_parameter("0.bias").sum() == 2


def test_load_into_lists_what_does_not_fit_and_changes_nothing(state):
    module = build("tinycnn")
    before = copy.deepcopy(module.state_dict())
    wrong = {key: value + 1 for key, value in state.items()}
    del wrong["bn1.running_var"]
    wrong["extra"] = torch.ones(1)
    wrong["conv1.weight"] = torch.ones(16, 3, 3, 3)
    with pytest.raises(InputError) as caught:
        load_into(module, wrong, "some.pt")
    text = str(caught.value)
    for part in ("some.pt", "1 missing (bn1.running_var)", "1 unexpected (extra)", "conv1.weight (16, 3, 3, 3)"):
        assert part in text
    assert same(module.state_dict(), before)


def test_long_lists_are_cut(state):
    with pytest.raises(InputError, match=r"96 missing \([^()]+, \.\.\.\)"):
        load_into(build("resnet20"), {"linear.weight": torch.ones(10, 64)}, "x")


@pytest.mark.parametrize(
    ("built", "weights_of", "like"),
    [
        ("resnet20", "resnet32", "look like resnet32"),
        ("resnet20,shortcut=a", "resnet20,shortcut=conv", "look like resnet20,shortcut=conv"),
        ("resnet18", "resnet34,stem=cifar,width=0.25", "look like resnet34,stem=cifar,width=0.25"),
        ("resnet56", "mobilenet_v2", "look like mobilenet_v2"),
        ("vgg16_bn,stem=cifar,width=0.25", "vgg16,stem=cifar,width=0.25", "look like vgg16,stem=cifar,width=0.25"),
        ("wrn26_12,width=1", "preresnet20", "look like preresnet20"),
    ],
)
def test_hint_names_the_architecture_that_fits(tmp_path, built, weights_of, like):
    path = tmp_path / "w.safetensors"
    save_file(build(weights_of, classes=7).state_dict(), path)
    with pytest.raises(InputError, match=like):
        build(built, weights=path)


def test_a_network_whose_only_child_is_called_module(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 3)

    source, target = Wrapper(), Wrapper()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_into(target, load_checkpoint(tmp_path / "w.pt"), "w.pt")
    assert same(source.state_dict(), target.state_dict())


def test_options_and_classes_are_read_from_the_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(build("resnet18,stem=cifar,width=0.25", classes=7).state_dict(), path)
    network = open_network("resnet18", weights=path)
    assert (network.spec, network.classes, network.input_size) == ("resnet18,stem=cifar,width=0.25", 7, 32)
    assert network.initialised
    assert open_network("resnet18,stem=cifar", weights=path).spec == network.spec
    with pytest.raises(InputError, match="7 outputs, and 5 classes"):
        open_network("resnet18", classes=5, weights=path)
    save_file(build("resnet20,shortcut=conv").state_dict(), path)
    assert open_network("resnet20", weights=path).spec == "resnet20,shortcut=conv"


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("resnext50_32x4d,stem=cifar,width=0.125", 32),
        ("vgg16,width=0.0625", 224),
        ("vgg16_bn,stem=cifar,width=0.25", 32),
        ("wrn26_12,width=2", 32),
        ("preresnet20", 32),
    ],
)
def test_options_of_the_larger_networks_are_read_from_the_weights(tmp_path, spec, size):
    path = tmp_path / "w.safetensors"
    module = build(spec, classes=7)
    save_file(module.state_dict(), path)
    network = open_network(spec.partition(",")[0], weights=path)
    assert (network.spec, network.classes, network.input_size) == (spec, 7, size)
    assert same(network.module.state_dict(), module.state_dict())


def test_weights_hash_is_of_the_values(tmp_path):
    module = build("tinycnn", classes=3)
    save_file(module.state_dict(), tmp_path / "a.safetensors")
    torch.save({"model": module.state_dict()}, tmp_path / "b.pt")
    first = open_network("tinycnn", weights=tmp_path / "a.safetensors")
    assert first.weights_hash == open_network("tinycnn", weights=tmp_path / "b.pt").weights_hash
    assert first.weights_hash == weights_hash(module.to(memory_format=torch.channels_last))
    with torch.no_grad():
        module.get_parameter("fc.bias")[0] += 1e-6
    assert first.weights_hash != weights_hash(module)


def test_usage_errors_of_open_network(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'tinycnn'"):
        open_network("tinycn", weights=tmp_path / "missing.pt")
    with pytest.raises(UsageError, match="'default' are not known"):
        open_network("tinycnn", weights="default")
    with pytest.raises(UsageError, match="classes=0"):
        open_network("tinycnn", classes=0)


class Versioned(nn.Linear):
    """Asks for the version that its state was saved with, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") != 2:
            raise ValueError("version should be set to 2")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_a_network_that_asks_for_a_version_is_loaded(tmp_path):
    source, target = Versioned(3, 2), Versioned(3, 2)
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    load_into(target, load_checkpoint(tmp_path / "net.safetensors"), "net.safetensors")
    assert same(target.state_dict(), source.state_dict())
