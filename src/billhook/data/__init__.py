"""Image sources, class subsets, splits and transforms: everything between a folder of images and a batch."""

from billhook.data.decode import BrokenImageWarning, read_image
from billhook.data.images import Batch, ImageSet
from billhook.data.labels import parse_classes
from billhook.data.opening import open_source
from billhook.data.preprocess import Preprocess
from billhook.data.selection import Data, class_table, select
from billhook.data.source import Rows, Source

__all__ = [
    "Batch",
    "BrokenImageWarning",
    "Data",
    "ImageSet",
    "Preprocess",
    "Rows",
    "Source",
    "class_table",
    "open_source",
    "parse_classes",
    "read_image",
    "select",
]
