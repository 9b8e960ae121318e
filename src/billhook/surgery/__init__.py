"""Making a network really smaller."""

from billhook.surgery.channels import (
    ChannelPlan,
    cut_optimizer,
    cut_state,
    expand_channels,
    mask_channels,
    plan_channels,
    remove_channels,
)
from billhook.surgery.groups import Branch, ChannelGroup, Grouping, Member
from billhook.surgery.head import slice_head
from billhook.surgery.trace import trace_groups

__all__ = [
    "Branch",
    "ChannelGroup",
    "ChannelPlan",
    "Grouping",
    "Member",
    "cut_optimizer",
    "cut_state",
    "expand_channels",
    "mask_channels",
    "plan_channels",
    "remove_channels",
    "slice_head",
    "trace_groups",
]
