"""Making a network really smaller."""

from billhook.surgery.head import slice_head

__all__ = ["slice_head"]
