"""Refuse bad arguments in a single line. Standard library only."""

import argparse
import difflib
import sys
from typing import Any, NoReturn


def refuse(message: str) -> NoReturn:
    """Print the message as one line, whatever values are quoted in it, and end the program with exit code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


class Arguments(argparse.ArgumentParser):
    """A parser of `--options` that refuses in one line, as `train.py` does."""

    def error(self, message: str) -> NoReturn:
        refuse(f"{message}; `{self.prog} --help` tells what there is")

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:  # type: ignore[override]
        """Parse; an option that does not exist is refused with a similar one that does."""
        found, unknown = self.parse_known_args(*args, **kwargs)
        if unknown:
            near = difflib.get_close_matches(unknown[0], list(self._option_string_actions), n=1)
            self.error(f"{unknown[0]}: not understood" + (f"; did you mean {near[0]}?" if near else ""))
        return found
