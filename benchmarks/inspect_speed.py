"""Seconds of ``billhook inspect``, wall clock of a fresh process each time.

    python benchmarks/inspect_speed.py [--model resnet101] [--times 4]

What is asked: under 5 s for ResNet-101.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet101")
    parser.add_argument("--times", type=int, default=4)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "billhook", "inspect", arguments.model, "--json"]
    seconds = []
    for _ in range(arguments.times):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    params = json.loads(done.stdout)["totals"]["params"]
    print(f"{arguments.model}, {params:,} parameters: {min(seconds):.1f} to {max(seconds):.1f} s")


if __name__ == "__main__":
    main()
