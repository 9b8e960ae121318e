"""What a training run may be asked: one frozen config, and presets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainConfig(BaseModel):
    """The recipe of one training loop.

    Rates are per step; ``warmup`` is in epochs; ``ema`` is the decay per step of the weight average (off when null).
    The ``step`` schedule multiplies the rate by ``factor`` at each of the ``milestones`` (fractions of the run) and
    after every ``step_every`` epochs.
    ``recalibrate`` images replace BatchNorm's running statistics after the last step (0 keeps them).
    ``distil_features`` weighs the differences of feature maps (0: none) beside the loss on the outputs.
    ``mixup`` blends every image of a batch with another, and their labels alike, in a share that each step draws from
    Beta(mixup, mixup) (Zhang et al., 2018; 0: none, 1: any share alike). A teacher sees the same blends, on which it is
    less sure of itself than on images that it was trained on (Beyer et al., 2022).
    ``distil`` null leaves the choice to the method (the control and ``billhook train`` then use none).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0)
    batch_size: int = Field(64, ge=2)
    warmup: float = Field(0.5, ge=0)
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    milestones: tuple[float, ...] = ()
    step_every: float | None = Field(None, gt=0)
    factor: float = Field(0.1, gt=0, le=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mixup: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0)
    ema: float | None = Field(None, gt=0, lt=1)
    distil: bool | None = None
    temperature: float = Field(2.0, gt=0)
    distil_weight: float = Field(0.9, ge=0, le=1)
    distil_features: float = Field(3.0, ge=0)
    recalibrate: int = Field(0, ge=0)
    channels_last: bool = True


PRESETS: dict[str, dict[str, Any]] = {
    "finetune": {},
    "cifar": {"lr": 0.1, "batch_size": 128, "warmup": 1.0},
    "crisp": {"lr": 0.01, "batch_size": 64, "warmup": 5.0, "nesterov": False},
    "chipnet": {
        "lr": 0.05,
        "batch_size": 128,
        "warmup": 0.0,
        "weight_decay": 1e-3,
        "nesterov": False,
        "schedule": "step",
        "step_every": 30.0,
        "factor": 0.5,
        "epochs": 200.0,
    },
    "chipnet-preresnet": {
        "lr": 0.1,
        "batch_size": 64,
        "warmup": 0.0,
        "weight_decay": 1e-3,
        "nesterov": False,
        "schedule": "step",
        "milestones": (0.5, 0.75),
        "epochs": 160.0,
    },
    "hbgs": {
        "lr": 0.01,
        "batch_size": 128,
        "warmup": 0.0,
        "weight_decay": 1e-4,
        "nesterov": False,
        "schedule": "step",
        "milestones": (0.5,),
        "distil_weight": 0.2,
        "distil_features": 0.0,
        "epochs": 300.0,
    },
    "imagenet": {"lr": 0.1, "batch_size": 256, "warmup": 5.0, "weight_decay": 1e-4, "label_smoothing": 0.1},
}
"""``finetune`` is what pruning uses; ``cifar`` and ``imagenet`` train from random weights; the others repeat papers:
CRISP's fine-tuning (arXiv 2311.14272), ChipNet's dense training and that of its PreResNet-164 (arXiv 2102.07156),
HBGS's long fine-tuning (arXiv 2409.03777): cross-entropy and divergence, without T² in front, in equal parts, times
four fifths. ``epochs`` is theirs; ``--epochs`` goes first."""
