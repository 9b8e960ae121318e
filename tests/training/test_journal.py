"""The resume journal: round trip, atomic replacement, damage, a full disk."""

import resource

import pytest
import torch
from torch import nn

from billhook.errors import InputError, RunError
from billhook.training.checkpoint import Journal, load_optimizer, optimizer_tensors, split_prefix

TENSORS = {"model/a": torch.arange(6.0).reshape(2, 3), "plugin/mask": torch.ones(2, 2, dtype=torch.uint8)}
META = {"step": 3, "history": [{"epoch": 1.0, "note": "ü"}], "none": None}


def test_round_trip(tmp_path):
    journal = Journal(tmp_path / "deep" / "er")
    assert journal.load("prune") is None
    journal.save("prune", TENSORS, META)
    tensors, meta = journal.load("prune")
    assert meta == META
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in tensors)
    assert tensors["plugin/mask"].dtype == torch.uint8
    assert journal.load("control") is None


def test_channels_last_and_shared_tensors_are_kept_by_value(tmp_path):
    weight = torch.rand(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    Journal(tmp_path).save("x", {"a": weight, "b": weight, "part": weight[1:]}, {})
    tensors, _ = Journal(tmp_path).load("x")
    assert torch.equal(tensors["a"], weight)
    assert torch.equal(tensors["b"], weight)
    assert torch.equal(tensors["part"], weight[1:])


def test_saving_replaces_in_one_rename(tmp_path):
    journal = Journal(tmp_path)
    journal.save("prune", {"a": torch.zeros(1)}, {"step": 1})
    first = (tmp_path / "prune.safetensors").stat().st_ino
    journal.save("prune", {"a": torch.ones(1)}, {"step": 2})
    assert (tmp_path / "prune.safetensors").stat().st_ino != first
    assert journal.load("prune")[1] == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["prune.safetensors"]


def test_without_a_directory_or_the_right_to_write_nothing_is_kept(tmp_path):
    Journal(None).save("prune", TENSORS, META)
    assert Journal(None).load("prune") is None
    Journal(tmp_path, writes=False).save("prune", TENSORS, META)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "no meta", "meta"])
def test_a_damaged_file_is_named(tmp_path, damage):
    journal = Journal(tmp_path)
    journal.save("prune", TENSORS, META)
    path = tmp_path / "prune.safetensors"
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-5])
    elif damage == "noise":
        path.write_bytes(b"\xff" * len(content))
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        from safetensors.torch import save_file

        save_file({"a": torch.ones(1)}, path, metadata=None if damage == "no meta" else {"state": "{not json"})
    with pytest.raises(InputError, match=r"prune\.safetensors is damaged") as caught:
        journal.load("prune")
    assert "--overwrite" in caught.value.hint


def test_a_full_disk_leaves_the_old_state(tmp_path):
    journal = Journal(tmp_path)
    journal.save("prune", TENSORS, META)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system refuses to write files beyond this size: a disk that is full, without filling one.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(RunError, match="cannot save the run's state") as caught:
            journal.save("prune", {"a": torch.ones(1 << 20)}, {"step": 4})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 1
    assert "--resume" in caught.value.hint
    assert journal.load("prune")[1] == META
    assert [path.name for path in tmp_path.iterdir()] == ["prune.safetensors"]


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot save"):
        Journal(tmp_path / "file" / "below").save("prune", TENSORS, META)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.AdamW(p, 0.1),
    ],
)
def test_an_optimisers_state_goes_round(make):
    def step(net, optimizer):
        optimizer.zero_grad()
        net(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()

    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = make(net.parameters())
    step(net, optimizer)
    other = nn.Linear(3, 2)
    other.load_state_dict(net.state_dict())
    fresh = make(other.parameters())
    load_optimizer(fresh, {name: t.clone() for name, t in optimizer_tensors(optimizer).items()})
    step(net, optimizer)
    step(other, fresh)
    assert torch.equal(net.weight, other.weight)
    assert torch.equal(net.bias, other.bias)


def test_split_prefix():
    assert split_prefix({"a/b/c": TENSORS["model/a"], "ab/c": TENSORS["model/a"]}, "a").keys() == {"b/c"}
