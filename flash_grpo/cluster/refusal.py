"""Refuse a sweep before anything has started."""

import sys
from typing import NoReturn


def refuse(why: str) -> NoReturn:
    """Print why the sweep cannot run, in one line, and exit with code 2."""
    print(f"error: {' '.join(why.split())}; nothing was started", file=sys.stderr)
    sys.exit(2)
