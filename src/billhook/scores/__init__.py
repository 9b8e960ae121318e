"""Importance of weights and of channels: from their size, and from what the kept classes' images say."""

from billhook.scores.channels import (
    ChannelScore,
    Normalisation,
    channel_scores,
    gated_members,
    normalised,
    without_batchnorm,
)
from billhook.scores.saliency import mean_absolute_gradient, saliency_images

__all__ = [
    "ChannelScore",
    "Normalisation",
    "channel_scores",
    "gated_members",
    "mean_absolute_gradient",
    "normalised",
    "saliency_images",
    "without_batchnorm",
]
