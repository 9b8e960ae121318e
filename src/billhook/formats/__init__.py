"""The packed format: bit packing, safetensors files, hybrid and unstructured layers. numpy only; see docs/format.md."""

from billhook.formats.arrays import read_npz
from billhook.formats.bitmap import bitmap_mask, decode_bitmap, encode_bitmap
from billhook.formats.bits import index_width, pack_bits, packed_bytes, unpack_bits
from billhook.formats.graph import KINDS, Graph, Kind, Operator, Preprocess
from billhook.formats.hybrid import (
    Geometry,
    HybridLayer,
    PackedLayerError,
    checked_positions,
    decode_hybrid,
    encode_hybrid,
    hybrid_columns,
    hybrid_mask,
    hybrid_offsets,
)
from billhook.formats.network import PackedNetwork, read_network, write_network
from billhook.formats.rules import shapes, window_count
from billhook.formats.safetensors import header_bytes, load_json, read_safetensors, write_safetensors
from billhook.formats.sizes import (
    PackedSize,
    bitmap_bits,
    csr_bits,
    ellpack_bits,
    layer_metadata_bits,
    metadata_bits,
    packed_size,
)
from billhook.formats.state import (
    BitmapLayer,
    PackedTensor,
    PatternInfo,
    pack_state,
    packed_tensors,
    size_report,
    unpack_patterns,
    unpack_state,
)

__all__ = [
    "KINDS",
    "BitmapLayer",
    "Geometry",
    "Graph",
    "HybridLayer",
    "Kind",
    "Operator",
    "PackedLayerError",
    "PackedNetwork",
    "PackedSize",
    "PackedTensor",
    "PatternInfo",
    "Preprocess",
    "bitmap_bits",
    "bitmap_mask",
    "checked_positions",
    "csr_bits",
    "decode_bitmap",
    "decode_hybrid",
    "ellpack_bits",
    "encode_bitmap",
    "encode_hybrid",
    "header_bytes",
    "hybrid_columns",
    "hybrid_mask",
    "hybrid_offsets",
    "index_width",
    "layer_metadata_bits",
    "load_json",
    "metadata_bits",
    "pack_bits",
    "pack_state",
    "packed_bytes",
    "packed_size",
    "packed_tensors",
    "read_network",
    "read_npz",
    "read_safetensors",
    "shapes",
    "size_report",
    "unpack_bits",
    "unpack_patterns",
    "unpack_state",
    "window_count",
    "write_network",
    "write_safetensors",
]
