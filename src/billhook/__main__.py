"""``billhook`` and ``python -m billhook``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from billhook.cli import run
    except ModuleNotFoundError as error:
        print(f"error: the command line needs {error.name}: pip install 'billhook[prune]'", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # modules are still being loaded
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
