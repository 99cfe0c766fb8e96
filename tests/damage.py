"""Ways to damage files: bytes as a bad disk or a full one leaves them, JSON as another program or version writes it."""

import copy
import json
from random import Random
from typing import Any

GARBAGE = [
    b"\x00" * 7,
    b"\xff\xfe\x9d",
    b"not json",
    b"\n",
    b"[" * 2000,
    b'{"kind": "evaluation"}\n',
    b"NaN",
    b"\xed\xa0\x80",
]
DEEP: Any = "bottom"
for _ in range(200):
    DEEP = {"a": [DEEP]}
STRANGE = [
    None,
    True,
    -1,
    0,
    7,
    1.5,
    1e308,
    10**30,
    10**400,
    float("nan"),
    float("-inf"),
    "",
    "x",
    "\ud800",
    "\x00",
    [],
    {},
]
STRANGE += [[1], ["x"], [None], {"a": 1}, {"kind": []}, "9" * 300, DEEP]
WAYS = ("flip", "flip", "flip", "cut", "cut", "empty", "zeros", "lost", "garbage", "appended")


def flipped(data: bytes, place: int, bits: int) -> bytes:
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def damaged_bytes(random: Random, data: bytes) -> bytes:
    """The bytes with some flipped, lost, zero, cut off, or with garbage in between."""
    way, place = random.choice(WAYS), random.randrange(len(data))
    end = place + random.choice((1, 10, 100, 4096))
    return {
        "flip": flipped(data, place, 1 << random.randrange(8)),
        "cut": data[:place],
        "empty": b"",
        "zeros": data[:place] + b"\x00" * len(data[place:end]) + data[end:],
        "lost": data[:place] + data[end:],
        "garbage": data[:place] + random.choice(GARBAGE) + data[place:],
        "appended": data + random.choice(GARBAGE),
    }[way]


def damaged_json(random: Random, data: bytes) -> bytes:
    """The JSON object with a value somewhere replaced by a strange one, or left out, or itself replaced."""
    root = [copy.deepcopy(json.loads(data))]
    node, key = root, 0
    for _ in range(random.randrange(5)):
        if isinstance(node[key], dict | list) and node[key]:
            node = node[key]
            key = random.choice(sorted(node)) if isinstance(node, dict) else random.randrange(len(node))
    if node is not root and random.random() < 0.3:
        del node[key]
    else:
        node[key] = random.choice(STRANGE)
    return json.dumps(root[0]).encode()


def damaged_lines(random: Random, data: bytes) -> bytes:
    """The lines of JSON with one of them damaged, or the whole as `damaged_bytes` does."""
    if random.random() < 0.5:
        return damaged_bytes(random, data)
    lines = data.splitlines(keepends=True)
    place = random.randrange(len(lines))
    lines[place] = damaged_json(random, lines[place]) + b"\n"
    return b"".join(lines)


def places(size: int, count: int, seed: int) -> list[int]:
    """`count` places of a file of `size` bytes, its first and last among them, the same for each seed."""
    return sorted({0, size - 1, *Random(seed).choices(range(size), k=count)})
