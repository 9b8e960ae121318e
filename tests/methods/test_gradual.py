"""The part that all weight-sparsity methods share: when masks are chosen, at what target, and what moves between."""

import itertools

import numpy as np
import pytest
import torch

from billhook import artifact
from billhook.methods import gradual, make_config
from billhook.methods.gradual import GradualMasks, count_passes, plan_images, schedule
from billhook.methods.unstructured import ThresholdChooser
from billhook.progress import Progress
from billhook.scores import mean_absolute_gradient
from billhook.training.checkpoint import Journal

from .problems import carry_out, ready


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("linear", [0.25, 0.5, 0.75, 1.0, 1.0]), ("cubic", [1 - 27 / 64, 1 - 8 / 64, 1 - 1 / 64, 1.0, 1.0])],
)
def test_the_share_of_the_way_after_each_round(kind, expected):
    assert [schedule(kind, round_, 4) for round_ in range(1, 6)] == pytest.approx(expected, abs=0)


def plugin(prepared):
    plan, problem = prepared.plan, prepared.setting.problem
    module = problem.network.module
    return GradualMasks(module, plan.targets, plan.config, plan.chooser, problem, prepared.setting.room)


@pytest.mark.parametrize(
    ("rounds", "share", "epochs", "expected"),
    [
        # Three steps an epoch; magnitude looks at no images.
        (1, 0.5, 4.0, [0]),
        (3, 0.5, 4.0, [0, 3, 6]),
        (3, 1.0, 4.0, [0, 6, 11]),
        # More rounds than steps: several updates before one step, the last no later than the last step.
        (5, 1.0, 1.0, [0, 0, 1, 2, 2]),
    ],
)
def test_the_steps_before_which_masks_are_chosen(rounds, share, epochs, expected):
    prepared = ready("ragged", "magnitude", "sparsity>=50%", rounds=rounds, share=share, epochs=epochs)
    steps = plugin(prepared).update_steps()
    assert len(steps) == rounds
    assert steps == pytest.approx(expected, abs=0.5)
    done = carry_out(prepared)
    rows = [line for line in done.outcome.history if line["event"] == "mask"]
    assert [line["round"] for line in rows] == list(range(1, rounds + 1))
    assert [line["step"] for line in rows] == steps
    assert [line["sparsity"] for line in rows] == sorted(line["sparsity"] for line in rows)


@pytest.mark.parametrize("asked", [1, 3, 1000])
def test_saliency_passes_are_paid_for_and_never_cost_more_than_a_fifth(asked):
    prepared = ready(
        "ragged", "saliency", "sparsity>=50%", saliency="frozen", saliency_images=asked, rounds=4, epochs=10.0
    )
    problem = prepared.setting.problem
    per_pass, steps = plan_images(prepared.config, problem)
    assert per_pass == min(asked, len(problem.data.train), problem.images // 20)
    assert 4 * per_pass <= 0.2 * problem.images
    trained = steps / problem.steps * problem.images
    assert trained + 4 * per_pass == pytest.approx(problem.images, rel=1 / problem.steps)


def test_scores_of_weights_alone_cost_no_images():
    prepared = ready("ragged", "magnitude", "sparsity>=50%")
    assert plan_images(prepared.config, prepared.setting.problem) == (0, prepared.setting.problem.steps)


def watched(monkeypatch):
    """The masks after every round, and whether they are fixed."""
    seen = []
    update = GradualMasks._update

    def watching(self, step):
        line = update(self, step)
        seen.append(({name: mask.clone() for name, mask in self.masked.masks.items()}, self.masked.frozen, line))
        return line

    monkeypatch.setattr(GradualMasks, "_update", watching)
    return seen


@pytest.mark.parametrize("method", ["crisp", "saliency"])
def test_weights_come_back_until_the_last_round_and_then_no_more(monkeypatch, method):
    seen = watched(monkeypatch)
    fields: dict = {"block": 8} if method == "crisp" else {}
    fields |= {"saliency": "frozen", "smooth": 0.0}
    done = carry_out(ready("ragged", method, "sparsity>=70%", rounds=6, epochs=8.0, ste_rate=1.0, **fields))
    assert [fixed for _, fixed, _ in seen] == [False] * 5 + [True]
    for (before, _, _), (after, _, line) in itertools.pairwise(seen):
        assert line["returned"] == sum(int((~before[name] & after[name]).sum()) for name in after)
    assert sum(line["returned"] for _, _, line in seen) > 0
    # What the last round chose is what is delivered.
    last = seen[-1][0]
    assert last.keys() == done.patterns.keys()
    assert all(np.array_equal(last[name].numpy(), info.mask) for name, info in done.patterns.items())


def test_masks_lie_where_the_loop_trains(monkeypatch):
    """On the loop's device and in its layout: masks over weights that are then moved would hold on to the old ones."""
    layouts = []
    before_step = GradualMasks.before_step

    def watching(self, step):
        events = before_step(self, step)
        for name, latent in self.masked.latent.items():
            if latent.dim() == 4:
                layouts.append(latent.is_contiguous(memory_format=torch.channels_last))
                layouts.append(self.masked.parameters[name].is_contiguous(memory_format=torch.channels_last))
        return events

    monkeypatch.setattr(GradualMasks, "before_step", watching)
    carry_out(ready("ragged", "crisp", "sparsity>=70%", block=8))
    assert layouts
    assert all(layouts)


def test_training_gradients_are_the_score_of_the_rounds_after_the_first(monkeypatch):
    """As published: |w| times the mean over the steps since the last round of |dL/dw|."""
    given = []
    prepared = ready(
        "ragged", "saliency", "sparsity>=50%", saliency="training", smooth=0.0, balance=None, rounds=3, epochs=3.0
    )
    after_backward, choose = GradualMasks.after_backward, prepared.plan.chooser.choose
    gradients, expected = [], []

    def noting(self, step):
        if not self.masked.frozen:
            gradients.append({name: p.grad.abs() for name, p in self.masked.parameters.items()})
        after_backward(self, step)

    def choosing(scores, fraction):
        given.append(scores)
        if gradients:
            mean = {name: torch.stack([g[name] for g in gradients]).mean(0) for name in gradients[0]}
            expected.append(mean)
            gradients.clear()
        return choose(scores, fraction)

    monkeypatch.setattr(GradualMasks, "after_backward", noting)
    monkeypatch.setattr(prepared.plan.chooser, "choose", choosing)
    latents = []
    scores = GradualMasks._scores

    def keeping(self):
        latents.append({name: w.clone() for name, w in self.masked.latent.items()})
        return scores(self)

    monkeypatch.setattr(GradualMasks, "_scores", keeping)
    carry_out(prepared)
    assert len(given) == 3
    assert len(expected) == 2
    for score, mean, latent in zip(given[1:], expected, latents[1:], strict=True):
        for name in mean:
            torch.testing.assert_close(score[name], latent[name].abs() * mean[name])


def constant(parameters, value):
    return {name: torch.full_like(parameter, value) for name, parameter in parameters.items()}


def test_the_running_mean_of_the_rounds(monkeypatch):
    """Round r mixes the new estimate with the past: g_r = smooth * g_(r-1) + (1 - smooth) * new."""
    names = [t.parameter for t in ready("ragged", "saliency", "sparsity>=50%").plan.targets]
    estimates = iter([4.0, 8.0, 0.0])
    monkeypatch.setattr(
        gradual,
        "mean_absolute_gradient",
        lambda module, parameters, *rest, **more: constant(parameters, next(estimates)),
    )
    means = []
    update = GradualMasks._update

    def watching(self, step):
        line = update(self, step)
        means.append(float(self.running[names[0]].flatten()[0]))
        return line

    monkeypatch.setattr(GradualMasks, "_update", watching)
    carry_out(ready("ragged", "saliency", "sparsity>=50%", saliency="frozen", rounds=3, smooth=0.25, epochs=3.0))
    assert means == pytest.approx([4.0, 0.25 * 4 + 0.75 * 8, 0.25 * 7])


def test_recalibration_sees_the_masked_network_and_changes_no_mask():
    prepared = ready("ragged", "crisp", "sparsity>=70%", block=8)
    problem = prepared.setting.problem
    plain = carry_out(prepared)
    again = ready("ragged", "crisp", "sparsity>=70%", block=8)
    train = problem.train.model_copy(update={"recalibrate": 24})
    object.__setattr__(again.setting.problem, "train", train)
    fresh = carry_out(again)
    assert all(np.array_equal(fresh.patterns[n].mask, plain.patterns[n].mask) for n in plain.patterns)
    for name, parameter in plain.full.named_parameters():
        assert torch.equal(parameter, dict(fresh.full.named_parameters())[name])
    measured = dict(fresh.full.named_buffers())["norm.running_mean"]
    assert not torch.equal(measured, dict(plain.full.named_buffers())["norm.running_mean"])
    # By hand: the mean over the images of what the normalisation sees, in the network whose closed weights are zero.
    order = torch.randperm(len(problem.data.train), generator=torch.Generator().manual_seed(0))[:24]
    images = problem.data.train.subset(order)
    net = artifact.deliverable(fresh.full)
    with torch.no_grad():
        batch = next(images.batches(24, problem.preprocess))
        seen = net.a(net.first(batch.images).relu())
    torch.testing.assert_close(measured, seen.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_a_journal_of_another_round_goes_on(tmp_path):
    """The plugin's state alone: round, masks, running means and layer means come back as they were."""
    prepared = ready("ragged", "crisp", "sparsity>=70%", rounds=3, block=8, balance=0.5)
    first = plugin(prepared)
    first._update(0)
    tensors, meta = first.state()
    Journal(tmp_path).save("prune", tensors, meta)
    loaded = Journal(tmp_path).load("prune")
    second = plugin(prepared)
    second.load_state(*loaded)
    assert (second.round, second.masked.frozen) == (1, False)
    assert second.layer_means == first.layer_means
    assert all(torch.equal(second.running[name], mean) for name, mean in first.running.items())
    assert first._update(1) == second._update(1)
    assert all(torch.equal(second.masked.masks[name], mask) for name, mask in first.masked.masks.items())


def test_the_user_is_told_every_line_of_the_history():
    class Told(Progress):
        def __init__(self):
            self.lines = []

        def line(self, entry):
            self.lines.append(entry)

    prepared, told = ready("ragged", "crisp", "sparsity>=70%", block=8), Told()
    module = prepared.setting.problem.network.module
    outcome = prepared.plan.run(module, None, Journal(None), told, lambda history: None)
    assert told.lines == outcome.history
    assert {line["event"] for line in told.lines} == {"mask", "epoch"}


@pytest.mark.parametrize(("saliency", "passes"), [("dense", 1), ("frozen", 4), ("training", 1)])
def test_how_often_the_gradients_are_measured(monkeypatch, saliency, passes):
    calls = []

    def counting(*arguments, **fields):
        calls.append(fields)
        return mean_absolute_gradient(*arguments, **fields)

    monkeypatch.setattr(gradual, "mean_absolute_gradient", counting)
    asked = {"saliency": saliency, "rounds": 4, "epochs": 4.0, "temperature": 3.0}
    carry_out(ready("ragged", "saliency", "sparsity>=50%", **asked))
    assert len(calls) == passes
    assert {fields["temperature"] for fields in calls} == {3.0}
    assert count_passes(make_config("saliency", {"saliency": saliency, "rounds": 4})) == passes


def test_gradients_of_the_dense_network_weigh_the_weights_of_the_moment(monkeypatch):
    scored = []
    choose = ThresholdChooser.choose

    def watching(self, scores, fraction):
        scored.append({name: score.clone() for name, score in scores.items()})
        return choose(self, scores, fraction)

    monkeypatch.setattr(ThresholdChooser, "choose", watching)
    latent, means = [], []
    score = GradualMasks._scores

    def keeping(self):
        latent.append({name: weight.clone() for name, weight in self.masked.latent.items()})
        found = score(self)
        means.append({name: mean.clone() for name, mean in self.running.items()})
        return found

    monkeypatch.setattr(GradualMasks, "_scores", keeping)
    carry_out(ready("ragged", "saliency", "sparsity>=50%", rounds=3, epochs=4.0))
    for weights, gradients, scores in zip(latent, means, scored, strict=True):
        for name, tensor in scores.items():
            assert torch.equal(gradients[name], means[0][name])
            torch.testing.assert_close(tensor, (weights[name] * means[0][name]).abs())
