"""Analytic models of sparse tensor cores: cycles and energy of a list of matrix products on machines from YAML files.

Plain Python without PyTorch, ``workload`` aside, which reads networks and run directories; see docs/accelerator.md.
"""

from billhook.accelerator.gemm import Gemm, Pattern
from billhook.accelerator.machine import Machine, built_in, machine_text, machines, parse_machine, read_machine
from billhook.accelerator.metadata import Metadata, metadata_of, total_metadata
from billhook.accelerator.outcome import Outcome
from billhook.accelerator.simulate import Row, Simulation, run_layer, simulate

__all__ = [
    "Gemm",
    "Machine",
    "Metadata",
    "Outcome",
    "Pattern",
    "Row",
    "Simulation",
    "built_in",
    "machine_text",
    "machines",
    "metadata_of",
    "parse_machine",
    "read_machine",
    "run_layer",
    "simulate",
    "total_metadata",
]
