"""Where a run took place: versions, processor, memory."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path


def describe_environment() -> dict[str, str]:
    """Versions and processor, for ``summary.json``."""
    return {"python": platform.python_version(), "torch": _version("torch"), "cpu": cpu_name()}


def versions() -> dict[str, str]:
    """Versions of billhook and of what it stands on; what is not installed is left out."""
    names = ("numpy", "torch", "accelerate", "safetensors", "pydantic")
    found = {name: _version(name) for name in names}
    return {"python": platform.python_version()} | {name: version for name, version in found.items() if version}


def cpu_name() -> str:
    """The processor's model name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_rss_bytes() -> int:
    """Largest resident size of this process so far, in bytes; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
