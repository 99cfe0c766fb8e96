"""Check the values that a part is made of, where it is made: a ValueError is one line with the key, the value and what may be.

The command line, a sweep's check and a program that uses the suite as a library so meet the same refusal. Standard library
only.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

LARGEST = 2**63 - 1  # of torch's integers


def number(
    key: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    null: bool = False,
) -> None:
    """Refuse what is not a finite number within the bounds. null: whether None is allowed."""
    if value is None and null:
        return
    fits = (
        _is_number(value)
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    )
    if not fits:
        raise ValueError(f"{key}={shown(value)}: must be {_described('number', above, at_least, below, at_most, null)}")


def whole(key: str, value: Any, *, at_least: int = 1, at_most: int | None = None, null: bool = False) -> None:
    """Refuse what is not an integer within the bounds and of 64 bits. null: whether None is allowed."""
    if value is None and null:
        return
    most = LARGEST if at_most is None else at_most
    if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= most:
        raise ValueError(f"{key}={shown(value)}: must be {_described('integer', None, at_least, None, at_most, null)}")


def one_of(key: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse what is none of these values."""
    if not any(value == option and type(value) is type(option) for option in allowed):
        raise ValueError(f"{key}={shown(value)}: allowed are {', '.join(shown(option) for option in allowed)}")


def some_of(key: str, value: Any, allowed: Sequence[Any] | None = None) -> None:
    """Refuse what is not a list, with at least one element; allowed: all that may be in it, None for any text."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"{key}={shown(value)}: must be a list that is not empty, as in {key}=[a,b]")
    for item in value:
        text(key, item) if allowed is None else one_of(key, item, allowed)


def section(key: str, value: Any, *, null: bool = False) -> None:
    """Refuse what holds no keys. null: whether None is allowed."""
    if not isinstance(value, Mapping) and not (null and value is None):
        raise ValueError(f"{key}={shown(value)}: must be a section of keys")


def truth(key: str, value: Any) -> None:
    """Refuse what is neither True nor False."""
    one_of(key, value, (True, False))


def text(key: str, value: Any, *, empty: bool = False, null: bool = False) -> None:
    """Refuse what is no text. empty: whether '' is allowed. null: whether None is."""
    if value is None and null:
        return
    if not isinstance(value, str) or not (value or empty):
        raise ValueError(
            f"{key}={shown(value)}: must be a text{'' if empty else ' that is not empty'}{', or null' if null else ''}"
        )


def shown(value: Any) -> str:
    """Return the value as the command line would have it, in one line of at most 60 characters."""
    words = {None: "null", True: "true", False: "false"}
    line = words[value] if value is None or isinstance(value, bool) else " ".join(str(value).split())
    return line if len(line) <= 60 else f"{line[:59]}…"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _described(
    kind: str,
    above: float | None,
    at_least: float | None,
    below: float | None,
    at_most: float | None,
    null: bool,
) -> str:
    """Return what is allowed in words: `a positive number below 1, or null`."""
    words = f"a{'n' if kind == 'integer' else ' positive' if above == 0 else ' finite'} {kind}"
    limits = {"above": above or None, "at least": at_least, "below": below, "at most": at_most}
    bounds = [f"{name} {limit:g}" for name, limit in limits.items() if limit is not None]
    return ", ".join([words, *filter(None, [" and ".join(bounds)]), *(["or null"] if null else [])])
