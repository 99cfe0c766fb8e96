"""`python -m flash_grpo.evaluate RUN`: a run's checkpoint against its base model, paired, on the held-out prompts.

Makes the videos of both from the same noise, writes them under VBench's names to RUN/evaluation/{base,000120}/, with
manifest.jsonl (a line per video: file, prompt, scores), and evaluation.json (means, standard errors, paired differences).

    python -m flash_grpo.evaluate RUN --reward hpsv3 --reward pickscore evaluation.sampler.noises_per_prompt=5
    python -m flash_grpo.evaluate BASE recipe=wan21_1p3b prompts.train=a.txt prompts.test=b.txt     a model, no run
    python -m flash_grpo.evaluate RUN --vbench RESULTS.json         what VBench said of the videos, for Table 1
"""

import argparse
import copy
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flash_grpo import cli
from flash_grpo.distributed import Ranks
from flash_grpo.ema import EMA
from flash_grpo.evaluate import Evaluated
from flash_grpo.export import known_run, saved_state
from flash_grpo.records import write_atomically
from flash_grpo.videos import read_vbench, vbench_name, write_mp4

BASE = "BASE"


def evaluate(cfg: DictConfig, states: dict[str, dict[str, Any] | None], output: Path) -> dict[str, Any]:
    """Evaluates the model with each of the named weights, None for the base's; returns what evaluation.json says."""
    from flash_grpo.run import build, device

    ranks = Ranks(device(cfg))
    evaluation, reward = build(cfg.evaluation.sampler, "evaluation.sampler"), build(cfg.reward, "reward")
    texts = tuple(dict.fromkeys(build(cfg.prompts, "prompts").test))
    policy = build(cfg.model, "model", device=ranks.device, lora=cfg.optim.get("lora"))
    told = {}
    for name, state in states.items():
        if state:
            EMA(policy.trainable(), decay=0.0, every=1).load(state["ema"])
        manifest = output / name / ("manifest.jsonl" if ranks.world_size == 1 else f"manifest.{ranks.rank}.jsonl")
        manifest.parent.mkdir(parents=True, exist_ok=True)
        with open(manifest, "w") as file:
            told[name] = evaluation(policy, reward, texts, ranks, keep=_Kept(output / name, file, evaluation.seed))
    result = _result(told)
    if ranks.is_main:
        write_atomically(output / "evaluation.json", json.dumps(result, indent=1) + "\n")
    return result


class _Kept:
    """Writes each video and its line of the manifest."""

    def __init__(self, folder: Path, manifest, seed: int):
        self.folder, self.manifest, self.seed = folder, manifest, seed

    def __call__(self, text: str, index: int, video, score: float, parts: dict[str, float]) -> None:
        file = self.folder / "videos" / vbench_name(text, index)
        write_mp4(file, video)
        line = {"file": str(file.relative_to(self.folder)), "prompt": text, "index": index, "seed": self.seed}
        self.manifest.write(json.dumps({**line, "reward": score, "parts": parts}) + "\n")


def _result(told: dict[str, Evaluated]) -> dict[str, Any]:
    names = list(told)
    result: dict[str, Any] = {
        name: {"reward_mean": one.mean, "reward_sem": one.sem, "parts": one.parts, "prompt_rewards": one.prompt_rewards}
        for name, one in told.items()
    }
    if len(names) == 2:
        before, after = (told[name].prompt_rewards for name in names)
        gains = [after[text] - before[text] for text in before]
        sem = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
        result["paired"] = {"of": names, "mean": statistics.fmean(gains), "sem": sem, "n": len(gains)}
    return result


def _asked(args: argparse.Namespace) -> tuple[DictConfig, dict[str, dict[str, Any] | None], Path]:
    """The configuration, the weights by name, and where to write."""
    if args.run == BASE:
        cfg = cli.composed_outside(args.overrides)
        return cfg, {"base": None}, args.output or Path(str(cfg.runs_root), str(cfg.study), "base")
    manifest, state = known_run(Path(args.run)), saved_state(Path(args.run), args.iteration)
    cfg = OmegaConf.merge(manifest.config, OmegaConf.from_dotlist(args.overrides))
    name = f"{state['progress']['iteration']:06d}"
    return cfg, {"base": None, name: state}, args.output or Path(args.run) / "evaluation"


def _with_rewards(cfg: DictConfig, names: list[str]) -> DictConfig:
    """Several rewards at once are a sum with equal weights, whose parts tell them apart."""
    if not names:
        return cfg
    parts = {name: OmegaConf.to_container(cli.composed_outside([f"reward={name}"]).reward) for name in names}
    composite = {
        "_target_": "flash_grpo.rewards.composite.CompositeReward",
        "_convert_": "all",  # rewards that are dataclasses stay what they are
        "rewards": parts,
        "weights": dict.fromkeys(names, 1.0),
    }
    chosen = copy.deepcopy(cfg)
    OmegaConf.set_struct(chosen, False)
    chosen.reward = composite if len(names) > 1 else parts[names[0]]
    return chosen


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m flash_grpo.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help=f"a run's directory, or {BASE}")
    parser.add_argument("overrides", nargs="*", help="key=value, over the run's own configuration")
    parser.add_argument("--reward", action="append", default=[], help="an option of the reward group; may be repeated")
    parser.add_argument("--iteration", type=int, help="of a checkpoint that is kept; default: the newest")
    parser.add_argument("--output", type=Path, help="default: RUN/evaluation")
    parser.add_argument("--vbench", type=Path, help="VBench's *_eval_results.json, to be read back; makes no video")
    args = parser.parse_intermixed_args(argv)
    from flash_grpo.run import ConfigError

    try:
        if args.vbench:
            scores = read_vbench(args.vbench)
            output = (args.output or Path(args.run)) / "vbench.json"  # where analysis looks for it
            output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output, args.vbench.read_text())
            print(json.dumps(scores, indent=1))
            return
        cfg, states, output = _asked(args)
        result = evaluate(_with_rewards(cfg, args.reward), states, output)
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for name, one in result.items():
        print(f"{name}: { ({key: value for key, value in one.items() if key != 'prompt_rewards'}) }")
    print(f"videos, manifest.jsonl and evaluation.json: {output}")
