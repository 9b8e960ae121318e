"""Making a network really smaller."""

from billhook.surgery.channels import (
    cut_optimizer,
    cut_state,
    expand_channels,
    mask_channels,
    remove_channels,
)
from billhook.surgery.groups import Branch, ChannelGroup, Grouping, Member
from billhook.surgery.head import slice_head
from billhook.surgery.plan import ChannelPlan, LayerCut
from billhook.surgery.planner import plan_channels
from billhook.surgery.trace import trace_groups
from billhook.surgery.verify import channel_groups

__all__ = [
    "Branch",
    "ChannelGroup",
    "ChannelPlan",
    "Grouping",
    "LayerCut",
    "Member",
    "channel_groups",
    "cut_optimizer",
    "cut_state",
    "expand_channels",
    "mask_channels",
    "plan_channels",
    "remove_channels",
    "slice_head",
    "trace_groups",
]
