"""Architectures, their specs, and the weights that go into them."""

from billhook.models.blocks import ChannelMap, PadShortcut
from billhook.models.checkpoint import load_checkpoint, load_into, weights_hash
from billhook.models.head import find_head, head_outputs
from billhook.models.logits import check_logits
from billhook.models.network import Network, build, open_for_classes, open_network
from billhook.models.placement import place
from billhook.models.registry import REGISTRY, canonical, look_alike, parse_spec

__all__ = [
    "REGISTRY",
    "ChannelMap",
    "Network",
    "PadShortcut",
    "build",
    "canonical",
    "check_logits",
    "find_head",
    "head_outputs",
    "load_checkpoint",
    "load_into",
    "look_alike",
    "open_for_classes",
    "open_network",
    "parse_spec",
    "place",
    "weights_hash",
]
