"""Show what training did to the videos: each prompt before and after, by method, with its rewards.

A run keeps small animations of its first and its last evaluation in `samples/start` and `samples/end` (see
`flash_grpo.run.contact_sheet`). Of each method the page shows the completed run with the lowest seed.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import plain, style
from analysis.study import Study
from flash_grpo.records.files import SMALL_VIDEO, SMALL_VIDEOS, SMALL_VIDEOS_PROMPTS

MOST_BYTES = 2**17  # of one animation; a larger one is left out
MOST_ON_A_PAGE = 1_200_000  # bytes of the animations of one SDE


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video on the page. source: a data URI, '' if there is none. reward: of its prompt. change: since the start."""

    source: str
    reward: float
    change: float = np.nan

    @property
    def improved(self) -> bool:
        return self.change > 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prompt with its video from before training, and the one from after it by each method of the sheet, in their order."""

    prompt: str
    before: Clip
    after: list[Clip]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Videos of methods that start from the same ones. methods: their names. heads: also the seed and how many improved."""

    methods: list[str]
    heads: list[str]
    rows: list[Row]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The small videos of one run by prompt, from before and after training, as bytes; rewards by prompt likewise."""

    arm: str
    seed: int
    start: dict[str, bytes]
    end: dict[str, bytes]
    start_rewards: dict[str, float]
    end_rewards: dict[str, float]

    @property
    def size(self) -> int:
        return sum(map(len, [*self.start.values(), *self.end.values()]))


def sheets(study: Study) -> tuple[list[Sheet], str]:
    """Return a sheet for all methods whose runs start from the same videos, usually one, and words on the methods without."""
    alike: dict[tuple, list[Samples]] = {}
    absent: list[str] = []
    size = 0
    for arm, samples in _one_run_per_arm(study):
        size += samples.size if samples else 0
        if samples and size <= MOST_ON_A_PAGE:
            alike.setdefault(tuple(samples.start.items()), []).append(samples)
        else:
            absent.append(style.look(arm).short)
    why = f"Without small videos (runs of older versions, or over {MOST_ON_A_PAGE / 1e6:.1f} MB): {', '.join(absent)}."
    return [_sheet(same) for same in alike.values()], why if absent else ""


def _one_run_per_arm(study: Study) -> Iterator[tuple[str, Samples | None]]:
    runs = study.runs[study.runs["finished"]].sort_values("seed", kind="stable")
    evaluations = dict(list(study.evaluations.groupby("run", sort=False)))
    for arm in style.ordered(runs["arm"]):
        kept = (_samples(run, evaluations[run.run]) for run in runs[runs["arm"] == arm].itertuples())
        yield arm, next(filter(None, kept), None)


def _samples(run: object, evaluations: pd.DataFrame) -> Samples | None:
    start, end = (_read(Path(run.path) / folder) for folder in SMALL_VIDEOS)
    first, last = (evaluations["prompt_rewards"].iloc[index] or {} for index in (0, -1))
    rewarded = [prompt for prompt in start if prompt in end and prompt in first and prompt in last]
    if not rewarded:
        return None
    start, end, first, last = ({prompt: part[prompt] for prompt in rewarded} for part in (start, end, first, last))
    return Samples(arm=run.arm, seed=run.seed, start=start, end=end, start_rewards=first, end_rewards=last)


def _read(folder: Path) -> dict[str, bytes]:
    """Return the folder's animations by prompt; those that are damaged, or larger than MOST_BYTES, are left out."""
    try:
        prompts = json.loads((folder / SMALL_VIDEOS_PROMPTS).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(prompts, list):
        return {}
    files = [(prompt, folder / SMALL_VIDEO.format(index)) for index, prompt in enumerate(prompts[:100])]
    return {prompt: data for prompt, file in files if isinstance(prompt, str) and (data := _animation(file))}


def _animation(file: Path) -> bytes:
    if not file.is_file() or file.stat().st_size > MOST_BYTES:
        return b""
    data = file.read_bytes()
    return data if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else b""


def _sheet(same: list[Samples]) -> Sheet:
    """Return the sheet, with the prompts that gained least first."""
    prompts = [prompt for prompt in same[0].start if all(prompt in samples.end for samples in same)]
    rows = sorted((_row(prompt, same) for prompt in prompts), key=lambda row: np.mean([c.change for c in row.after]))
    improved = [sum(row.after[index].improved for row in rows) for index in range(len(same))]
    methods = [style.look(samples.arm).short for samples in same]
    heads = [f"seed {samples.seed}, {of} of {len(rows)} better" for samples, of in zip(same, improved, strict=True)]
    return Sheet(methods=methods, heads=heads, rows=rows)


def _row(prompt: str, same: list[Samples]) -> Row:
    before = Clip(source=_uri(same[0].start[prompt]), reward=same[0].start_rewards[prompt])
    after = [
        Clip(
            source=_uri(samples.end[prompt]),
            reward=samples.end_rewards[prompt],
            change=samples.end_rewards[prompt] - samples.start_rewards[prompt],
        )
        for samples in same
    ]
    return Row(prompt=plain.words(prompt), before=before, after=after)


def _uri(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()
