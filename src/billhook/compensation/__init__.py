"""Making removed filters out of those that stay: which can go, and what makes up for them."""

from billhook.compensation.backward import backward_on_gram, fp_backward
from billhook.compensation.matrices import group_filters, input_slices, output_filters
from billhook.compensation.moments import Moments, collect_moments
from billhook.compensation.next_layer import (
    ReaderMap,
    absorb,
    absorbed,
    fit_reader,
    select_by_activations,
    taken_up,
)
from billhook.compensation.next_layer_network import make_up
from billhook.compensation.omp import fp_omp
from billhook.compensation.pointwise import Pointwise, Side, opened
from billhook.compensation.pointwise_network import (
    PointwiseShape,
    fold_pointwise,
    insert_pointwise,
    pointwise_layers,
    pointwise_shapes,
    pointwise_values,
    prunable_convolutions,
    shape_pointwise,
)
from billhook.compensation.selection import Path, Selection, Solver

__all__ = [
    "Moments",
    "Path",
    "Pointwise",
    "PointwiseShape",
    "ReaderMap",
    "Selection",
    "Side",
    "Solver",
    "absorb",
    "absorbed",
    "backward_on_gram",
    "collect_moments",
    "fit_reader",
    "fold_pointwise",
    "fp_backward",
    "fp_omp",
    "group_filters",
    "input_slices",
    "insert_pointwise",
    "make_up",
    "opened",
    "output_filters",
    "pointwise_layers",
    "pointwise_shapes",
    "pointwise_values",
    "prunable_convolutions",
    "select_by_activations",
    "shape_pointwise",
    "taken_up",
]
