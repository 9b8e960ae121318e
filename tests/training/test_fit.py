"""The training loop: the same for a seed, the same after an interruption, and each ingredient against a hand loop."""

import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from billhook.errors import Interrupted, RunError
from billhook.training.checkpoint import Journal
from billhook.training.config import TrainConfig
from billhook.training.distil import distillation_loss
from billhook.training.loop import Task, fit
from billhook.training.masked import MaskedWeights
from billhook.training.optim import learning_rate, make_optimizer
from billhook.training.plugin import Plugin
from billhook.training.precision import cpu_has_fast_bf16

from .small import TinyNet, data, preprocess, room, same_state, seeded

CONFIG = TrainConfig(batch_size=12, lr=0.05, warmup=0.5)
STEPS = 10


def task(net, *, steps=STEPS, config=CONFIG, transform=None, **more):
    images = data()
    assert images.train.steps(12) == 3
    return Task(
        module=net,
        train=images.train,
        validation=images.val,
        kept=images.kept,
        preprocess=transform or preprocess(),
        config=config,
        steps=steps,
        seed=7,
        phase="train",
        **more,
    )


class Masks(Plugin):
    """A plugin as small as can be: one mask chosen at step 0, another at step 4, frozen at step 7."""

    def __init__(self, net: nn.Module, interrupt_at: int | None = None) -> None:
        self.masked = MaskedWeights(net, ["conv2.weight"], rate=0.5, decay=0.01)
        self.interrupt_at = interrupt_at
        self.calls: list[str] = []

    def before_step(self, step: int) -> list[dict[str, Any]]:
        events = []
        if step in (0, 4):
            generator = torch.Generator().manual_seed(step)
            mask = torch.rand(16, 8, 3, 3, generator=generator) < 0.5
            self.masked.set_masks({"conv2.weight": mask})
            events.append({"event": "mask", "step": step})
        if step == 7:
            self.masked.freeze()
        self.masked.close()
        return events

    def after_backward(self, step: int) -> None:
        self.masked.open()
        if step == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)

    def before_evaluate(self) -> None:
        self.calls.append("before")
        self.masked.close()

    def after_evaluate(self) -> None:
        self.calls.append("after")
        self.masked.open()

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return self.masked.state_dict(), {"frozen": self.masked.frozen}

    def load_state(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        self.masked.load_state_dict(tensors, meta["frozen"])

    def describe(self) -> dict[str, Any]:
        return {"frozen": self.masked.frozen}


def timeless(history):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in history]


FULL = TrainConfig(
    batch_size=12,
    lr=0.05,
    warmup=0.5,
    ema=0.9,
    clip=1.0,
    label_smoothing=0.1,
    distil_weight=0.5,
    temperature=3.0,
    mixup=0.5,
)


def run(net, plugin=None, config=CONFIG, **more):
    """Train with or without the plugin and a teacher; returns (network, history without times)."""
    with_plugin = plugin(net) if plugin else None
    teacher = seeded(TinyNet, seed=5) if config is FULL else None
    the_task = task(net, config=config, plugin=with_plugin, teacher=teacher, **more)
    history = fit(the_task, room())
    return the_task.module, timeless(history)


# ---------------------------------------------------------------------- the same again


@pytest.mark.parametrize("config", [CONFIG, FULL, TrainConfig(optimizer="adamw", lr=0.01, batch_size=12)])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_same_for_a_seed(config, dropout):
    first = run(seeded(TinyNet, 4, dropout), Masks, config)
    torch.manual_seed(123)  # the surroundings do not matter
    torch.rand(17)
    second = run(seeded(TinyNet, 4, dropout), Masks, config)
    assert same_state(first[0], second[0])
    assert first[1] == second[1]
    assert not same_state(first[0], seeded(TinyNet, 4, dropout))


def test_another_seed_is_another_run():
    first, other = task(seeded(TinyNet)), task(seeded(TinyNet))
    other.seed = 8
    fit(first, room())
    fit(other, room())
    assert not same_state(first.module, other.module)


def test_the_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    run(seeded(TinyNet, 4, 0.5))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("at", range(STEPS))
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(at, tmp_path):
    whole, history = run(seeded(TinyNet, 4, 0.5), Masks, FULL)
    handler = signal.getsignal(signal.SIGINT)
    journal = Journal(tmp_path)
    with pytest.raises(Interrupted, match=f"interrupted after step {at + 1} of {STEPS}") as caught:
        run(seeded(TinyNet, 4, 0.5), lambda net: Masks(net, at), FULL, journal=journal)
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is handler
    # Another network: everything comes from the journal.
    resumed, again = run(seeded(TinyNet, 4, 0.5, seed=99), Masks, FULL, journal=journal)
    assert same_state(whole, resumed)
    assert again == history


@pytest.mark.parametrize("config", [CONFIG, TrainConfig(optimizer="adamw", lr=0.01, batch_size=12)])
def test_a_run_that_died_goes_on_from_its_last_epoch(config, tmp_path):
    class Died(Exception):
        pass

    def die(history):
        if history[-1].get("epoch") == 3.0:
            raise Died

    whole, history = run(seeded(TinyNet), Masks, config)
    journal = Journal(tmp_path)
    with pytest.raises(Died):
        run(seeded(TinyNet), Masks, config, journal=journal, on_history=die)
    assert journal.load("train")[1]["step"] == 6
    seen = []
    resumed, again = run(
        seeded(TinyNet, seed=3), Masks, config, journal=journal, on_history=lambda h: seen.append(len(h))
    )
    assert same_state(whole, resumed)
    assert again == history
    assert seen[-1] == len(history)


def test_a_finished_phase_is_not_trained_again(tmp_path):
    journal = Journal(tmp_path)
    first, history = run(seeded(TinyNet), None, FULL, journal=journal)
    second, again = run(seeded(TinyNet, seed=4), None, FULL, journal=journal)
    assert same_state(first, second)
    assert history == again


def test_sigterm_ends_with_its_own_code(tmp_path):
    class Terminated(Masks):
        def after_backward(self, step):
            super().after_backward(step)
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="terminated after step 3") as caught:
        run(seeded(TinyNet), Terminated, journal=Journal(tmp_path))
    assert caught.value.exit_code == 143
    assert caught.value.hint == "continue with --resume"


# ---------------------------------------------------------------------- the ingredients


def by_hand(net, config, teacher=None, steps=STEPS):
    """The loop again, as one would write it in a notebook, without augmentation."""
    images = data().train
    net = net.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(net, config)
    average = {name: t.clone() for name, t in net.state_dict().items()}
    norms, rates, step = [], [], 0
    while step < steps:
        for batch in images.batches(12, preprocess(False), train=True, seed=7, epoch=step // 3):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, steps, 3)
            rates.append(optimizer.param_groups[0]["lr"])
            logits = net(batch.images)
            loss = functional.cross_entropy(logits, batch.labels, label_smoothing=config.label_smoothing)
            if teacher is not None:
                soft = distillation_loss(logits, teacher(batch.images), config.temperature)
                loss = (1 - config.distil_weight) * loss + config.distil_weight * soft
            optimizer.zero_grad()
            loss.backward()
            if config.clip is not None:
                norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), config.clip)))
            optimizer.step()
            decay = min(config.ema or 0.0, (1 + step) / (10 + step))
            for name, tensor in net.state_dict().items():
                if tensor.is_floating_point():
                    average[name] = decay * average[name] + (1 - decay) * tensor
                else:
                    average[name] = tensor.clone()
            step += 1
            if step == steps:
                break
    return average if config.ema else net.state_dict(), norms, rates


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"label_smoothing": 0.2},
        {"clip": 0.05},
        {"ema": 0.8},
        {"ema": 0.05},
        {"optimizer": "adamw", "lr": 0.01},
        {"momentum": 0.0},
        {"schedule": "constant", "warmup": 0.0},
        {"temperature": 4.0, "distil_weight": 0.9},
        {"ema": 0.8, "clip": 0.1, "label_smoothing": 0.1, "distil_weight": 0.3},
    ],
)
def test_equals_the_hand_loop(changes):
    config = CONFIG.model_copy(update={"distil_features": 0.0} | changes)
    teacher = seeded(TinyNet, seed=5).eval() if "distil_weight" in changes else None
    expected, norms, rates = by_hand(seeded(TinyNet), config, teacher)
    net = seeded(TinyNet)
    history = fit(task(net, config=config, transform=preprocess(False), teacher=teacher), room())
    for name, tensor in net.state_dict().items():
        assert torch.allclose(tensor, expected[name], rtol=1e-4, atol=1e-6), name
    if config.clip:
        assert max(norms) > config.clip  # it did clip
    assert [line["lr"] for line in history] == pytest.approx([rates[2], rates[5], rates[8], rates[9]])


def test_the_teacher_is_not_trained():
    teacher = seeded(TinyNet, seed=5)
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    fit(task(seeded(TinyNet), config=FULL, teacher=teacher), room())
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())


def test_history_of_an_epoch():
    plugin_net = seeded(TinyNet)
    plugin = Masks(plugin_net)
    history = fit(task(plugin_net, plugin=plugin), room())
    epochs = [line for line in history if line["event"] == "epoch"]
    assert [line["step"] for line in epochs] == [3, 6, 9, 10]
    assert [line["epoch"] for line in epochs] == [1.0, 2.0, 3.0, 3.3333]
    assert [line["frozen"] for line in epochs] == [False, False, True, True]
    assert [line["step"] for line in history if line["event"] == "mask"] == [0, 4]
    assert plugin.calls == ["before", "after"] * 4
    for line in epochs:
        assert line["phase"] == "train"
        assert 0 <= line["train_top1"] <= 1
        assert 0 <= line["val_top1_kept"] <= 1
        assert line["loss"] > 0


def test_the_epochs_loss_is_the_mean_over_its_images():
    config = TrainConfig(batch_size=12, lr=1e-12, warmup=0.0, schedule="constant")
    net = seeded(TinyNet)
    images = data().train
    losses, hits = [], 0
    reference = seeded(TinyNet).to(memory_format=torch.channels_last).train()
    for batch in images.batches(12, preprocess(False), train=True, seed=7, epoch=0):
        logits = reference(batch.images)
        losses.append(functional.cross_entropy(logits, batch.labels).item())
        hits += int((logits.argmax(1) == batch.labels).sum())
    history = fit(task(net, steps=3, config=config, transform=preprocess(False)), room())
    assert history[0]["loss"] == pytest.approx(sum(losses) / 3, rel=1e-4)
    assert history[0]["train_top1"] == pytest.approx(hits / 36)


def test_it_learns():
    net = seeded(TinyNet)
    history = fit(task(net, steps=60, config=TrainConfig(batch_size=12, lr=0.1)), room())
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["train_top1"] > 0.9


@pytest.mark.skipif(not cpu_has_fast_bf16(), reason="bf16 is emulated on this processor")
def test_bf16_learns_and_keeps_fp32_weights():
    net = seeded(TinyNet)
    history = fit(task(net, steps=60, config=TrainConfig(batch_size=12, lr=0.1)), room("bf16"))
    assert all(p.dtype == torch.float32 for p in net.parameters())
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]


def test_bf16_autocast_is_what_the_network_sees():
    seen = []

    class Watching(TinyNet):
        def forward(self, x):
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    net = seeded(Watching)
    history = fit(task(net, steps=3), room("bf16"))
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in net.parameters())
    assert history[-1]["loss"] > 0


# ---------------------------------------------------------------------- non-finite losses


class Explodes(TinyNet):
    """Gives NaN from its n-th training step on."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.steps = at, 0

    def forward(self, x):
        out = super().forward(x)
        if self.training:
            self.steps += 1
            if self.steps > self.at:
                return out * float("nan")
        return out


def test_a_non_finite_loss_names_step_and_rate_and_keeps_the_last_good_state(tmp_path):
    journal = Journal(tmp_path)
    rate = learning_rate(CONFIG, 4, STEPS, 3)
    with pytest.raises(RunError, match=rf"the loss is nan at step 4 .*learning rate {rate:.3g}\)") as caught:
        run(seeded(Explodes, 4), journal=journal)
    assert caught.value.exit_code == 1
    assert "--resume" in caught.value.hint
    tensors, meta = journal.load("train")
    assert meta["step"] == 3
    assert all(torch.isfinite(t).all() for t in tensors.values())
    # A run that does not explode goes on from there and ends where an unbroken one ends.
    resumed, history = run(seeded(TinyNet, seed=1), journal=journal)
    whole, expected = run(seeded(TinyNet))
    assert same_state(resumed, whole)
    assert history == expected


def test_weights_that_a_finite_loss_destroyed_are_not_saved(tmp_path):
    """The last step of an epoch may leave NaN behind; the next loss would show it, when the good state is gone."""
    net = seeded(TinyNet)
    steps = iter(range(STEPS))
    net.fc.weight.register_hook(lambda gradient: gradient * (float("nan") if next(steps) == 5 else 1.0))
    journal = Journal(tmp_path)
    with pytest.raises(RunError, match=r"fc.weight is not finite after step 6 .*learning rate") as caught:
        run(net, journal=journal)
    assert "--resume" in caught.value.hint
    tensors, meta = journal.load("train")
    assert meta["step"] == 3
    assert all(torch.isfinite(t).all() for t in tensors.values())


def test_a_rate_that_is_too_high_ends_the_run():
    with pytest.raises(RunError, match="lower --lr"):
        fit(task(seeded(TinyNet), steps=100, config=TrainConfig(batch_size=12, lr=1e25)), room())


class Versioned(TinyNet):
    """Asks for the version that its state was saved with, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") != 2:
            raise ValueError("version should be set to 2")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_a_network_that_asks_for_a_version_takes_its_average_and_goes_on(tmp_path):
    whole, _ = run(seeded(Versioned), Masks, FULL)
    journal = Journal(tmp_path)
    with pytest.raises(Interrupted):
        run(seeded(Versioned), lambda net: Masks(net, 4), FULL, journal=journal)
    resumed, _ = run(seeded(Versioned, seed=99), Masks, FULL, journal=journal)
    assert same_state(whole, resumed)
