"""Read prompts from a user's files. A file of another kind is refused: its braces and headers would become prompts."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from flash_grpo.algorithm.batches import Prompts

TEXTS = ("prompt", "prompt_en")  # the keys of a prompt's text: ours, VBench's
LONGEST_CELL = 10**7  # characters; Python's own limit of 131,072 would refuse long columns beside the prompt
FOREIGN = {  # how files begin that are no prompt files, whatever their name
    r"version https://git-lfs": "a Git LFS pointer; git lfs pull fetches the file",
    r"<(!doctype|html|\?xml)": "a web page or XML; fetch the raw file",
}
NOT_TEXT = {  # how a file begins that is no list of lines
    r"\{\s*\"|\[\s*[\[{\"]|[\[{]\s*$": "JSON: name it .json (a list of objects) or .jsonl (an object per line)",
    r"(.*[,;\t])?\s*\"?prompt(_en)?\"?\s*([,;\t]|$)": "a table with a header: name it .csv or .tsv",
}


def from_files(train: str, test: str) -> Prompts:
    """Read the training and the held-out prompts from UTF-8 files; ValueError in one line if a file cannot be read.

    .txt, or no suffix: one prompt per line. .jsonl: one object per line, with a "prompt"; its other fields are metadata.
    .json: a list of such objects, also VBench's own, with "prompt_en". .csv, .tsv: a table whose header names a column
    "prompt"; the other columns are metadata. Blank lines are skipped. Duplicates, and held-out prompts that are also trained
    on, are kept, and `Prompts.oddities` describes them.
    """
    trained, held_out = _read("train", train), _read("test", test)
    prompts = Prompts(
        train=tuple(line["prompt"] for line in trained),
        test=tuple(line["prompt"] for line in held_out),
        metadata=_metadata(held_out),
    )
    return replace(prompts, oddities=tuple(_oddities(prompts)))


def _metadata(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what is known of each text besides the text. Entries of one text are joined: VBench lists some texts twice.

    Lists are joined (VBench's dimensions); of other values the first stands.
    """
    known: dict[str, dict[str, Any]] = {}
    for line in lines:
        of_text = known.setdefault(line["prompt"], {})
        for key, value in line.items():
            if isinstance(value, list) and isinstance(of_text.get(key), list):
                of_text[key] = of_text[key] + [item for item in value if item not in of_text[key]]
            elif key != "prompt":
                of_text.setdefault(key, value)
    return {text: fields for text, fields in known.items() if fields}


def _oddities(prompts: Prompts) -> list[str]:
    """Describe duplicate prompts, and held-out prompts that are also trained on, in a line each."""
    oddities = []
    for key, texts in (("train", prompts.train), ("test", prompts.test)):
        if repeated := [text for text, count in Counter(texts).items() if count > 1]:
            oddities.append(
                f"prompts.{key}: {len(repeated)} prompts stand there more than once, {repeated[0]!r} for one"
            )
    if shared := sorted(set(prompts.train) & set(prompts.test)):
        oddities.append(
            f"prompts: {len(shared)} of {len(set(prompts.test))} held-out prompts are trained on, {shared[0]!r} for one"
        )
    return oddities


def _read(key: str, path: str) -> list[dict[str, Any]]:
    """Return one object with a "prompt" for each prompt of the file."""
    where = f"prompts.{key}={path}"
    reader = READERS.get(Path(path).suffix.lower())
    if not Path(path).is_file():
        raise ValueError(f"{where}: there is no such file")
    if reader is None:
        raise ValueError(f"{where}: not a prompt file by its name; expected {', '.join(filter(None, READERS))}")
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")  # read_text() would turn \r inside a text into a line feed
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error})") from error
    _refuse_beginnings(FOREIGN, text, where)
    if re.search(r"[\x00-\x08]", text):
        raise ValueError(f"{where}: holds control characters, so it is not a text file")
    prompts = list(reader(text, where))
    if not prompts:
        raise ValueError(f"{where}: the file holds no prompt")
    return prompts


def _refuse_beginnings(beginnings: dict[str, str], text: str, where: str) -> None:
    first = next((line.strip() for line in text.split("\n") if line.strip()), "")
    for pattern, kind in beginnings.items():
        if re.match(pattern, first, re.IGNORECASE):
            raise ValueError(f"{where}: looks like {kind} (it begins with {first[:40]!r})")


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers. splitlines() would cut in the middle of a text."""
    return ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _of_text(text: str, where: str) -> Iterator[dict[str, Any]]:
    _refuse_beginnings(NOT_TEXT, text, where)
    lines = list(_numbered(text))
    if lines and all("\t" in line for _, line in lines):
        raise ValueError(f"{where}: looks like a table: a tab in every line; add a header and name it .tsv")
    return ({"prompt": line} for _, line in lines)


def _of_lines(text: str, where: str) -> Iterator[dict[str, Any]]:
    return (
        _object_of(_parsed(line, f"{where}: line {number}"), f"{where}: line {number}")
        for number, line in _numbered(text)
    )


def _of_list(text: str, where: str) -> Iterator[dict[str, Any]]:
    entries = _parsed(text, where)
    if not isinstance(entries, list):
        raise ValueError(f'{where}: expected a list of objects with "prompt_en" or "prompt", as VBench_full_info.json')
    return (_object_of(entry, f"{where}: entry {number}") for number, entry in enumerate(entries, 1))


def _of_table(delimiter: str) -> Callable[[str, str], Iterator[dict[str, Any]]]:
    def read(text: str, where: str) -> Iterator[dict[str, Any]]:
        csv.field_size_limit(LONGEST_CELL)
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(rows, [])]
            _check_header(header, where)
            for row in rows:
                if any(cell.strip() for cell in row):
                    yield _row(header, row, f"{where}: line {rows.line_num}")
        except csv.Error as error:
            raise ValueError(f"{where}: line {rows.line_num}: {error}") from error

    return read


def _check_header(header: list[str], where: str) -> None:
    names = " ".join(", ".join(header).split())[:80]
    if not set(header) & set(TEXTS):
        raise ValueError(f"{where}: its header has no column prompt, only {names or 'nothing'}")
    if len(set(header)) < len(header):
        raise ValueError(f"{where}: its header names a column twice: {names}")


def _row(header: list[str], row: list[str], where: str) -> dict[str, Any]:
    if len(row) != len(header):
        raise ValueError(
            f"{where}: {len(row)} cells under {len(header)} columns; a text that holds the separator needs quotes"
        )
    return _object_of(dict(zip(header, row, strict=True)), where)


READERS = {
    ".txt": _of_text,
    "": _of_text,
    ".jsonl": _of_lines,
    ".json": _of_list,
    ".csv": _of_table(","),
    ".tsv": _of_table("\t"),
}


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({type(error).__name__}: {error})") from error


def _object_of(fields: Any, where: str) -> dict[str, Any]:
    """Return the object with its text as "prompt"."""
    key = next((name for name in TEXTS if isinstance(fields, dict) and name in fields), None)
    if key is None:
        raise ValueError(f'{where}: expected an object with "prompt"')
    if not isinstance(fields[key], str) or not fields[key].strip():
        raise ValueError(f"{where}: its prompt has no text")
    return {"prompt": fields[key].strip()} | {name: value for name, value in fields.items() if name != key}
