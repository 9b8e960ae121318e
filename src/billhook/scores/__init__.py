"""Importance of weights: from their size, and from gradients on the kept classes' images."""

from billhook.scores.saliency import mean_absolute_gradient, saliency_images

__all__ = ["mean_absolute_gradient", "saliency_images"]
