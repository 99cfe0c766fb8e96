"""Evaluate weights side by side on the same prompts and noise, and keep their videos, manifests and VBench results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from omegaconf import DictConfig

from flash_grpo.algorithm.protocols import Policy, Reward
from flash_grpo.algorithm.scoring import CheckedReward
from flash_grpo.measure.videos import vbench_name, write_mp4
from flash_grpo.records.checked import DamagedFileError, parsed
from flash_grpo.records.files import MANIFEST, write_atomically
from flash_grpo.records.vbench import merged_vbench, read_vbench
from flash_grpo.run.build import build, build_reward
from flash_grpo.run.guidance import check_guidance, guided
from flash_grpo.run.loop import report
from flash_grpo.training.ema import EMA
from flash_grpo.training.evaluated import Evaluated, standard_error
from flash_grpo.training.evaluation import Evaluation
from flash_grpo.training.journal import Journal, raise_failure
from flash_grpo.training.pace import Leave
from flash_grpo.training.ranks import Ranks

LINES, RESULT = "manifest.jsonl", "evaluation.json"
VBENCH, BASE_FOLDER = "vbench.json", "base"
START_ANEW = "delete the folder: its videos are made again"


def evaluate(
    cfg: DictConfig, states: Mapping[str, dict[str, Any] | None], output: Path, ranks: Ranks
) -> dict[str, Any]:
    """Evaluate the model with each of the named weights and return the content of evaluation.json.

    states: checkpoint states by name, None for the base model; gains are relative to the first. The videos of each go to
    `output`/NAME. The main rank also writes evaluation.json and prints a table. ValueError if `output` holds videos of other
    prompts; RewardError on every rank if a reward fails on any.
    """
    evaluation = build(cfg.evaluation.sampler, "evaluation.sampler")
    reward = CheckedReward(build_reward(cfg.reward))
    prompts = build(cfg.prompts, "prompts")
    report(prompts, ranks)
    texts = tuple(dict.fromkeys(prompts.test))
    for name in states:
        _refuse_other_prompts(output / name, texts)
    check_guidance(cfg)
    policy = build(cfg.model, "model", device=ranks.device, lora=cfg.optim.get("lora"))
    policy.keep_base()
    policy = guided(policy, cfg, "evaluation")
    evaluated = {}
    for name, state in states.items():
        if state:
            EMA(policy.trainable(), decay=0.0, every=1).load(state["ema"])
        (output / name).mkdir(parents=True, exist_ok=True)
        with open(_rank_lines(output / name, ranks.rank), "w") as lines:
            keeper = _VideoKeeper(output / name, lines, evaluation.seed, prompts.metadata)
            evaluated[name] = _evaluated(evaluation, policy, reward, texts, ranks, keeper)
        ranks.barrier()
        if ranks.is_main:
            _join_lines(output / name, texts, ranks.world_size)
    result = _result(evaluated)
    if ranks.is_main:
        write_atomically(output / RESULT, json.dumps(result, indent=1) + "\n")
        print(_table(result))
        print(f"videos, {LINES} and {RESULT}: {output}")
    return result


def _refuse_other_prompts(folder: Path, texts: tuple[str, ...]) -> None:
    """Raise ValueError if the folder holds videos of other prompts: VBench would score them together with the new ones."""
    file = folder / LINES
    lines = file.read_bytes().splitlines() if file.exists() else []
    earlier = {_prompt_of(file, number, line) for number, line in enumerate(lines, 1)}
    if earlier and earlier != set(texts):
        raise ValueError(f"{folder} holds videos of other prompts: give --output a directory of its own")


def _prompt_of(file: Path, number: int, line: bytes) -> str:
    """Return the prompt of a line of the manifest. DamagedFileError if it has none."""
    try:
        entry = parsed(line)
    except ValueError as error:
        raise DamagedFileError(file, str(error), START_ANEW, number) from None
    if not isinstance(prompt := entry.get("prompt"), str):
        raise DamagedFileError(file, "names no prompt", START_ANEW, number)
    return prompt


def _evaluated(
    evaluation: Evaluation,
    policy: Policy,
    reward: Reward,
    texts: tuple[str, ...],
    ranks: Ranks,
    keeper: "_VideoKeeper",
) -> Evaluated:
    """Evaluate the policy; raise RewardError on every rank if the reward fails on any."""
    journal = Journal(ranks, policy.forwards_together)
    try:
        return evaluation(policy, reward, texts, ranks, keep=keeper, journal=journal)
    except Leave:
        raise_failure(journal)
        raise


def _rank_lines(folder: Path, rank: int) -> Path:
    """Return the file of one rank's lines of the manifest."""
    return folder / f"manifest.{rank}.jsonl"


def _join_lines(folder: Path, texts: tuple[str, ...], world_size: int) -> None:
    """Write one manifest of all ranks' lines, in the order of the prompts, and remove the ranks' files."""
    files = [_rank_lines(folder, rank) for rank in range(world_size)]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    lines.sort(key=lambda line: (texts.index(line["prompt"]), line["index"]))
    write_atomically(folder / LINES, "".join(json.dumps(line) + "\n" for line in lines))
    for file in files:
        file.unlink()


class _VideoKeeper:
    """Writes each video and its line of the manifest.

    folder: the videos go to folder/videos/. lines: this rank's open file of the manifest. seed: of the evaluation noise.
    metadata: of the prompts, by their text.
    """

    def __init__(self, folder: Path, lines: TextIO, seed: int, metadata: Mapping[str, dict[str, Any]]):
        self.folder, self.lines, self.seed, self.metadata = folder, lines, seed, metadata

    def __call__(
        self, text: str, index: int, video_FHWC: torch.Tensor, score: float, parts: Mapping[str, float]
    ) -> None:
        file = self.folder / "videos" / vbench_name(text, index)
        write_mp4(file, video_FHWC)
        line = {"file": str(file.relative_to(self.folder)), "prompt": text, "index": index, "seed": self.seed}
        line |= {"metadata": self.metadata[text]} if text in self.metadata else {}
        self.lines.write(json.dumps({**line, "reward": score, "parts": parts}) + "\n")


def _result(evaluated: Mapping[str, Evaluated]) -> dict[str, Any]:
    """Return means by name and, under `paired`, the gain of every other name over the first."""
    result: dict[str, Any] = {
        name: {
            "reward_mean": evaluation.mean,
            "reward_sem": evaluation.sem,
            "parts": evaluation.parts,
            "prompt_rewards": evaluation.prompt_rewards,
        }
        for name, evaluation in evaluated.items()
    }
    before, *others = evaluated
    paired = {name: _compared(evaluated[before], evaluated[name]) for name in others}
    return result | ({"paired": paired} if paired else {})


def _compared(before: Evaluated, after: Evaluated) -> dict[str, Any]:
    """Return the paired gain of the reward and of each of its parts, and the number of prompts."""
    parts = {name: _gain(value_PK, after.part_PK[name]) for name, value_PK in before.part_PK.items()}
    return {**_gain(before.reward_PK, after.reward_PK), "n": len(before.texts), "parts": parts}


def _gain(before_PK: torch.Tensor, after_PK: torch.Tensor) -> dict[str, float | None]:
    """Return the mean gain over prompts and its standard error; a prompt's gain is the mean over its K noises."""
    gain_P = (after_PK.double() - before_PK.double()).mean(1)
    return {"mean": float(gain_P.mean()), "sem": standard_error(gain_P)}


def _table(result: dict[str, Any]) -> str:
    """Format a line for the reward and for each of its parts: means and, after each but the first, its paired gain."""
    columns = {name: column for name, column in result.items() if name != "paired"}
    paired = result.get("paired", {})
    lines = [["", *(head for name in columns for head in [name, *["gain"] * (name in paired)])]]
    for part in (None, *next(iter(columns.values()))["parts"]):
        line = [part or "reward"]
        for name, column in columns.items():
            line.append(f"{column['reward_mean'] if part is None else column['parts'][part]:.3f}")
            if name in paired:
                line.append(_signed(paired[name] if part is None else paired[name]["parts"][part]))
        lines.append(line)
    if paired:
        lines.append([f"gain: paired over {next(iter(paired.values()))['n']} prompts, ± standard error"])
    return "\n".join("  ".join(f"{cell:<12}" for cell in line).rstrip() for line in lines)


def _signed(gain: dict[str, float | None]) -> str:
    return f"{gain['mean']:+.3f}" + ("" if gain["sem"] is None else f" ± {gain['sem']:.3f}")


def keep_vbench(results: Path, folder: Path) -> dict[str, float]:
    """Add VBench's results on the videos of `folder` to those of earlier calls; return all in percent by dimension.

    They are written where the analysis looks for them. ValueError if there is no such folder or the file is not VBench's.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such directory; name the one whose videos were judged")
    read_vbench(results)
    kept = _vbench_file(folder.absolute())
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, merged_vbench(kept, results))
    return read_vbench(kept)


def _vbench_file(judged: Path) -> Path:
    """Return where the analysis looks for the VBench results on the videos of a folder.

    RUN/vbench.json for a run's trained weights, RUN/evaluation/base/vbench.json for its base model, and next to the videos
    if they belong to no run.
    """
    run_dir = next((folder for folder in (judged, *judged.parents) if (folder / MANIFEST).exists()), None)
    if run_dir is None:
        return judged / VBENCH
    return (run_dir / "evaluation" / BASE_FOLDER if judged.name == BASE_FOLDER else run_dir) / VBENCH
