"""Read JSON that may be damaged, or of another version, and say in a few words what is wrong with it."""

import dataclasses
import json
import math
from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar, get_args, get_origin, get_type_hints

DEEPEST = 60  # levels of objects and lists; a configuration has fewer than ten


class DamagedFileError(ValueError):
    """A file that a run has written cannot be used. The message is one line: file, line, what is wrong, the way out.

    problem: what is wrong, without the rest.
    """

    def __init__(self, path: Path, problem: str, way_out: str, line: int | None = None):
        self.problem = " ".join(problem.split())
        self.line = line
        super().__init__(f"{path}{'' if line is None else f', line {line}'}: {self.problem}; {way_out}")


class Dataclass(Protocol):
    """Any dataclass, in a signature."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=Dataclass)


def parsed(data: bytes) -> dict[str, Any]:
    """Parse one JSON object, strictly. ValueError, in a few words, if it is anything else."""
    if not data.strip():
        raise ValueError("is empty")
    try:
        text = data.decode()
        entry = _STRICT.decode(text)
        if "\\u" in text:
            json.dumps(entry, ensure_ascii=False).encode()  # half a surrogate pair can be read, but not printed
    except UnicodeError:
        raise ValueError("is not text") from None
    except RecursionError:
        raise ValueError("nests too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise ValueError(f"is not a JSON object but {_shown(entry)}")
    return entry


def from_json(kind: type[T], entry: dict[str, Any]) -> T:
    """Build a `kind`, a dataclass, from a JSON object, and the dataclasses in it. Null stands for an absent value.

    Keys that this version does not know are ignored. ValueError names a key that is missing or has another type.
    """
    if problem := misfit(kind, entry):
        raise ValueError(problem)
    return _built(kind, entry)


def misfit(kind: type[Dataclass], entry: Any) -> str:
    """Say which value of a JSON object has another type than the field of `kind` of its name; '' if none has.

    Null fits every field: numbers that are not finite are written so. Keys may be missing.
    """
    if type(entry) is not dict:
        return f"{_shown(entry)} is not a JSON object"
    numbers, others = _checks(kind)
    if not _are_finite([entry[name] for name in numbers if name in entry]):  # one by one only where it matters
        others = {**numbers, **others}
    for name, check in others.items():
        if (value := entry.get(name)) is not None and (problem := check(value)):
            return f"{name}: {problem}"
    return ""


def lacking(entry: dict[str, Any], names: tuple[str, ...]) -> str:
    """Say which of the keys a JSON object lacks, or has null for; '' if none."""
    absent = [name for name in names if entry.get(name) is None]
    return f"lacks {', '.join(absent)}" if absent else ""


def too_deep(value: Any) -> bool:
    """Return True if a value nests deeper than DEEPEST, which functions that descend into it would not survive."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


_hints = cache(get_type_hints)  # of a dataclass: a study has thousands of objects of few kinds


def _built(kind: type[T], entry: dict[str, Any]) -> T:
    hints, given = _hints(kind), {}
    for item in dataclasses.fields(kind):
        value = entry.get(item.name)
        if value is not None:
            given[item.name] = _nested(hints[item.name], value)
        elif item.default is item.default_factory is dataclasses.MISSING:
            if NoneType not in get_args(hints[item.name]):
                raise ValueError(f"lacks {item.name}")
            given[item.name] = None
    return kind(**given)


def _nested(hint: Any, value: Any) -> Any:
    for inner in (hint, *get_args(hint)):
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            return [_built(inner, item) for item in value] if isinstance(value, list) else _built(inner, value)
    return value


Check = Callable[[Any], str]  # says of a value why it is not of a type; '' if it is


@cache
def _checks(kind: type[Dataclass]) -> tuple[dict[str, Check], dict[str, Check]]:
    """Return the checks of the fields by name: of those that are floats, and of the others."""
    hints = _hints(kind)
    checks = {item.name: _check(hints[item.name]) for item in dataclasses.fields(kind)}
    numbers: dict[str, Check] = {name: check for name, check in checks.items() if check is _check_float}
    return numbers, {name: check for name, check in checks.items() if name not in numbers}


def _are_finite(values: Collection[Any]) -> bool:
    """Return True if all are finite numbers, at C's speed: a study has millions. False proves nothing: the sum may be huge."""
    try:
        return NUMBERS.issuperset(map(type, values)) and math.isfinite(sum(values))
    except OverflowError:
        return False


def _check(hint: Any) -> Check:
    """Return the check of a type. Known are the types that `schema` uses."""
    inner = [item for item in get_args(hint) if item is not NoneType]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return partial(misfit, hint)
    if get_origin(hint) is dict:
        return partial(_check_dict, None if inner[1] is Any else _check(inner[1]))
    if get_origin(hint) is list:
        return partial(_check_list, _check(inner[0]))
    return _check(inner[0]) if inner else CHECKS[hint]  # X | None


def _check_dict(check: Check | None, value: Any) -> str:
    if type(value) is not dict:
        return f"expected an object, got {_shown(value)}"
    return _check_all(check, value.values()) if check else ""


def _check_list(check: Check, value: Any) -> str:
    if type(value) is not list:
        return f"expected a list, got {_shown(value)}"
    return _check_all(check, value)


def _check_all(check: Check, values: Collection[Any]) -> str:
    if check is _check_float and _are_finite(values):
        return ""
    return next(filter(None, map(check, values)), "")


def _check_float(value: Any) -> str:
    return "" if value is None or _are_finite([value]) else f"expected a finite number, got {_shown(value)}"


def _check_int(value: Any) -> str:
    whole = type(value) is int and -(2**63) <= value < 2**63
    return "" if whole else f"expected a whole number, got {_shown(value)}"


def _check_str(value: Any) -> str:
    return "" if type(value) is str else f"expected a text, got {_shown(value)}"


NUMBERS = {float, int}
CHECKS: dict[Any, Check] = {float: _check_float, int: _check_int, str: _check_str}


def _shown(value: Any) -> str:
    """Show a value in a message, whatever its size."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value) if not isinstance(value, int) or abs(value) < 2**64 else "a huge number"
    return text if len(text) <= 40 else f"{text[:37]}..."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


_STRICT = json.JSONDecoder(parse_constant=_refuse_constant)
