"""Settings of the greedy methods, which choose filters that the others can make up for."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from billhook.methods.floor import RemovalConfig

Selector = Literal["backward", "omp"]
Compensation = Literal["next-layer", "pointwise", "none"]
Tap = Literal["logits", "last-block", "cross-entropy", "accuracy"]


class GreedyConfig(RemovalConfig):
    """Fields that all of them share."""

    selector: Selector = Field("backward", description="how filters are chosen: FP-Backward or FP-OMP")
    compensation: Compensation = Field(
        "next-layer",
        description="what makes up for removed channels: the weights that read them, 1x1 convolutions around every "
        "convolution (as published), or nothing",
    )
    score: Literal["filters", "activations"] = Field(
        "filters", description="what filters are chosen by: their weights, or what comes out of them (backward only)"
    )
    calibration: int = Field(256, ge=2, description="training images that activations are measured on, at most")
    allowance: float = Field(
        0.2, gt=0, lt=1, description="share of the run's images that measuring may use; calibration shrinks to fit"
    )
    finetune_every: int = Field(0, ge=0, description="rounds between fine-tunings within the search; 0: none")
    finetune_share: float = Field(0.3, ge=0, lt=1, description="share of the steps that those have together, if any")
    finetune_epochs: float | None = Field(
        None, gt=0, description="epochs that each of those has, or a fraction of one; null: finetune_share says"
    )
    rate: float = Field(0.2, gt=0, le=1, description="learning rate within the search, as a share of train.lr")

    @model_validator(mode="after")
    def _by_weights(self) -> Self:
        if self.compensation == "pointwise" and self.score == "activations":
            raise ValueError("compensation pointwise is made of weights: score must be filters")
        if self.selector == "omp" and self.score == "activations":
            raise ValueError("score activations is backward elimination: selector must be backward")
        return self

    @property
    def looks(self) -> bool:
        """Whether a proposal to remove channels of a group needs images."""
        return self.compensation != "none" or self.score == "activations"


class FPBackward(GreedyConfig):
    """``fp-backward``: every group loses the same share, the filters that FP-Backward eliminates first."""

    name: Literal["fp-backward"] = "fp-backward"
    selector: Literal["backward"] = "backward"


class FPOMP(GreedyConfig):
    """``fp-omp``: every group loses the same share, the filters that FP-OMP selects last."""

    name: Literal["fp-omp"] = "fp-omp"
    selector: Literal["omp"] = "omp"
    score: Literal["filters"] = "filters"


class LRF(GreedyConfig):
    """``lrf``: every group loses the same share, one by one the filter nearest to the span of the others."""

    name: Literal["lrf"] = "lrf"
    selector: Literal["backward"] = "backward"
    compensation: Literal["next-layer", "none"] = Field("next-layer", description="as in the other methods")
    score: Literal["filters"] = "filters"


class SearchConfig(GreedyConfig):
    """Fields of the methods that choose a group in every round."""

    step: float = Field(
        0.125, gt=0, description="channels that a group loses in a round: a count (1 or more), or a share of the group"
    )
    step_end: float | None = Field(
        None, gt=0, description="the same over the last tenth of the way; null: half of it, or one channel"
    )
    weigh: Literal["budget", "error"] = Field(
        "budget", description="groups compete by growth of the squared error per unit of budget saved, or by the error"
    )
    stale: int = Field(1, ge=1, description="rounds that a candidate may wait while nothing near it changes")
    finetune_every: int = Field(8, ge=0, description="rounds between fine-tunings within the search; 0: none")
    selection: int = Field(128, ge=1, description="training images that candidates are compared on, at most")

    @property
    def whole_branches(self) -> bool:
        """Whether branches are weighed against each other as a whole: where what is saved counts."""
        return self.weigh == "budget" and self.compensation != "pointwise"

    @field_validator("step", "step_end")
    @classmethod
    def _whole(cls, value: float | None) -> float | None:
        if value is not None and value >= 1 and value != int(value):
            raise ValueError(f"a step of 1 or more is a whole number of channels, not {value:g}")
        return value


class HBGS(SearchConfig):
    """``hbgs``: in every round the group whose readers' outputs suffer least loses channels."""

    name: Literal["hbgs"] = "hbgs"


class HBGTS(SearchConfig):
    """``hbgts``: in every round the group for which the end of the network suffers least loses channels."""

    name: Literal["hbgts"] = "hbgts"
    tap: Tap = Field("logits", description="where the error is measured")
    stale: int = Field(4, ge=1, description="rounds that a candidate may wait while nothing near it changes")


class FPOMPSearch(SearchConfig):
    """``fp-omp-search``: in every round the group that costs least accuracy loses five channels."""

    name: Literal["fp-omp-search"] = "fp-omp-search"
    selector: Literal["omp"] = "omp"
    score: Literal["filters"] = "filters"
    step: float = Field(5, gt=0)
    weigh: Literal["error"] = "error"
    stale: int = Field(4, ge=1)
    tap: Literal["accuracy"] = "accuracy"
