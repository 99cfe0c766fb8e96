"""`python -m flash_grpo.evaluate RUN`: a run's checkpoints against its base model, paired, on the held-out prompts.

Makes the videos of each from the same noise, writes them under VBench's names to RUN/evaluation/{base,000120}/, with
manifest.jsonl (a line per video: file, prompt, its metadata, scores), and evaluation.json (means, standard errors, paired
differences of the reward and of each of its parts). Several ranks, started as those of a run, share the videos and write
the same.

    python -m flash_grpo.evaluate RUN evaluation.sampler.noises_per_prompt=5
    python -m flash_grpo.evaluate RUN --reward remote reward.urls=[http://node7:8700]
    python -m flash_grpo.evaluate RUN --reward hpsv3 --reward pickscore reward.pickscore.every=1
    python -m flash_grpo.evaluate BASE recipe=wan21_1p3b prompts.train=a.txt prompts.test=b.txt     a model, no run

What VBench said of the videos, for Table 1; a file of some dimensions leaves the others as they are:

    python -m flash_grpo.evaluate RUN --vbench RESULTS.json
    python -m flash_grpo.evaluate RUN/evaluation/base --vbench RESULTS.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flash_grpo.algorithm.denoise import DivergedError
from flash_grpo.algorithm.protocols import Policy, Reward, RewardError
from flash_grpo.measure.videos import read_vbench, vbench_name, write_mp4
from flash_grpo.overrides import composed_outside
from flash_grpo.process_exit import end_at_once
from flash_grpo.records.files import MANIFEST, write_atomically
from flash_grpo.run import compose
from flash_grpo.run.stored import known_run, saved_state
from flash_grpo.training.ema import EMA
from flash_grpo.training.evaluation import Evaluated, Evaluation, standard_error
from flash_grpo.training.journal import Journal, Leave
from flash_grpo.training.ranks import Ranks

BASE = "BASE"


def evaluate(cfg: DictConfig, states: dict[str, dict[str, Any] | None], output: Path) -> dict[str, Any]:
    """Evaluates the model with each of the named weights, None for the base's; returns what evaluation.json says.

    The main rank also writes and prints it.
    """
    from flash_grpo.run.build import build, check_counts, device
    from flash_grpo.run.loop import report

    check_counts(cfg)
    ranks = Ranks(device(cfg))
    evaluation, reward = build(cfg.evaluation.sampler, "evaluation.sampler"), build(cfg.reward, "reward")
    prompts = build(cfg.prompts, "prompts")
    report(prompts, ranks)
    texts = tuple(dict.fromkeys(prompts.test))
    for name in states:
        _refuse_other_prompts(output / name, texts)
    policy = build(cfg.model, "model", device=ranks.device, lora=cfg.optim.get("lora"))
    told = {}
    for name, state in states.items():
        if state:
            EMA(policy.trainable(), decay=0.0, every=1).load(state["ema"])
        (output / name).mkdir(parents=True, exist_ok=True)
        with open(_share(output / name, ranks.rank), "w") as file:
            keep = _Kept(output / name, file, evaluation.seed, prompts.metadata)
            told[name] = _evaluated(evaluation, policy, reward, texts, ranks, keep)
        ranks.barrier()
        if ranks.is_main:
            _join(output / name, texts, ranks.world_size)
    result = _result(told)
    if ranks.is_main:
        write_atomically(output / "evaluation.json", json.dumps(result, indent=1) + "\n")
        print(_table(result))
        print(f"videos, manifest.jsonl and evaluation.json: {output}")
    if ranks.world_size > 1:
        end_at_once(0)
    return result


def _refuse_other_prompts(folder: Path, texts: tuple[str, ...]) -> None:
    """ValueError where videos of others lie, which whoever judges the folder would judge too."""
    file = folder / "manifest.jsonl"
    there = {json.loads(line)["prompt"] for line in file.read_text().splitlines()} if file.exists() else set()
    if there and there != set(texts):
        raise ValueError(f"{folder} holds videos of other prompts: give --output a directory of its own")


def _evaluated(
    evaluation: Evaluation, policy: Policy, reward: Reward, texts: tuple[str, ...], ranks: Ranks, keep
) -> Evaluated:
    """RewardError on every rank where there is one on any."""
    journal = Journal(ranks)
    try:
        return evaluation(policy, reward, texts, ranks, keep=keep, journal=journal)
    except Leave:
        journal.raise_failure()
        raise


def _share(folder: Path, rank: int) -> Path:
    """What one rank has to say for the manifest."""
    return folder / f"manifest.{rank}.jsonl"


def _join(folder: Path, texts: tuple[str, ...], world_size: int) -> None:
    """One manifest of the ranks' shares, in the order of the prompts."""
    shares = [_share(folder, rank) for rank in range(world_size)]
    lines = [json.loads(line) for share in shares for line in share.read_text().splitlines()]
    lines.sort(key=lambda line: (texts.index(line["prompt"]), line["index"]))
    write_atomically(folder / "manifest.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for share in shares:
        share.unlink()


class _Kept:
    """Writes each video and its line of the manifest."""

    def __init__(self, folder: Path, manifest, seed: int, metadata: dict[str, dict[str, Any]]):
        self.folder, self.manifest, self.seed, self.metadata = folder, manifest, seed, metadata

    def __call__(self, text: str, index: int, video, score: float, parts: dict[str, float]) -> None:
        file = self.folder / "videos" / vbench_name(text, index)
        write_mp4(file, video)
        line = {"file": str(file.relative_to(self.folder)), "prompt": text, "index": index, "seed": self.seed}
        line |= {"metadata": self.metadata[text]} if text in self.metadata else {}
        self.manifest.write(json.dumps({**line, "reward": score, "parts": parts}) + "\n")


def _result(told: dict[str, Evaluated]) -> dict[str, Any]:
    """Each by name; under `paired`, by name, what every other one gained over the first."""
    result: dict[str, Any] = {
        name: {"reward_mean": one.mean, "reward_sem": one.sem, "parts": one.parts, "prompt_rewards": one.prompt_rewards}
        for name, one in told.items()
    }
    before, *others = told
    paired = {name: _compared(told[before], told[name]) for name in others}
    return result | ({"paired": paired} if paired else {})


def _compared(before: Evaluated, after: Evaluated) -> dict[str, Any]:
    parts = {name: _gain(value_PK, after.part_PK[name]) for name, value_PK in before.part_PK.items()}
    return {**_gain(before.reward_PK, after.reward_PK), "n": len(before.texts), "parts": parts}


def _gain(before_PK: torch.Tensor, after_PK: torch.Tensor) -> dict[str, float | None]:
    """Mean over prompts of what each prompt gained, and its standard error."""
    gain_P = (after_PK.double() - before_PK.double()).mean(1)
    return {"mean": float(gain_P.mean()), "sem": standard_error(gain_P)}


def _table(result: dict[str, Any]) -> str:
    """A line for the reward and for each of its parts: the means and, behind each but the first, its paired gain."""
    evaluated = {name: one for name, one in result.items() if name != "paired"}
    paired = result.get("paired", {})
    lines = [["", *(head for name in evaluated for head in [name, *["gain"] * (name in paired)])]]
    for part in (None, *next(iter(evaluated.values()))["parts"]):
        line = [part or "reward"]
        for name, one in evaluated.items():
            line.append(f"{one['reward_mean'] if part is None else one['parts'][part]:.3f}")
            if name in paired:
                line.append(_signed(paired[name] if part is None else paired[name]["parts"][part]))
        lines.append(line)
    if paired:
        lines.append([f"gain: paired over {next(iter(paired.values()))['n']} prompts, ± standard error"])
    return "\n".join("  ".join(f"{cell:<12}" for cell in line).rstrip() for line in lines)


def _signed(gain: dict[str, float | None]) -> str:
    return f"{gain['mean']:+.3f}" + ("" if gain["sem"] is None else f" ± {gain['sem']:.3f}")


def _asked(args: argparse.Namespace) -> tuple[DictConfig, dict[str, dict[str, Any] | None], Path]:
    """The configuration, the weights by name, and where to write. `reward=NAME` is `--reward NAME`."""
    names = args.reward + [item.partition("=")[2] for item in args.overrides if item.startswith("reward=")]
    own = [item for item in args.overrides if item.lstrip("+").startswith("reward.")]
    others = [item for item in args.overrides if item not in own and not item.startswith("reward=")]
    reward = _rewards(names, own) if names else None
    others += [] if names else own
    if args.run == BASE:
        cfg, states = composed_outside(others), {}
        output = Path(str(cfg.runs_root), str(cfg.study), "base")
    else:
        manifest, output = known_run(Path(args.run)), Path(args.run) / "evaluation"
        saved = [saved_state(Path(args.run), iteration) for iteration in args.iteration or [None]]
        cfg = _changed(OmegaConf.create(manifest.config), others)
        states = {f"{state['progress']['iteration']:06d}": state for state in saved}
    if reward:
        OmegaConf.set_struct(cfg, False)
        cfg.reward = reward
    return cfg, {"base": None, **states}, args.output or output


def _changed(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """A run's configuration with other values, prompts or evaluation; its interpolations are resolved already."""
    for item in overrides:
        key, given, _ = item.lstrip("+").partition("=")
        if not given:
            raise ValueError(f"{item}: expected key=value")
        if key in ("prompts", "evaluation"):
            cfg[key] = OmegaConf.to_container(composed_outside([item])[key])
        elif key in compose.GROUPS or OmegaConf.is_dict(cfg.get(key)):
            raise ValueError(f"{item}: of a run only reward, prompts and evaluation can be chosen anew")
        else:
            OmegaConf.set_struct(cfg, not item.startswith("+"))
            try:
                cfg = OmegaConf.merge(cfg, OmegaConf.from_dotlist([item.lstrip("+")]))
            except OmegaConfBaseException as error:
                raise ValueError(f"{item}: {str(error).splitlines()[0]}") from error
            OmegaConf.set_struct(cfg, False)
    return cfg


def _rewards(names: list[str], overrides: list[str]) -> dict[str, Any]:
    """Several rewards at once are a sum with equal weights, whose parts tell them apart.

    overrides: `reward.key=value`; of several rewards `reward.NAME.key=value`, with the name of the one that is meant.
    """
    parts = {}
    for name in names:
        mine = [item for item in overrides if len(names) == 1 or item.lstrip("+").startswith(f"reward.{name}.")]
        own = [item.replace(f"reward.{name}.", "reward.", 1) for item in mine]
        parts[name] = OmegaConf.to_container(composed_outside([f"reward={name}", *own]).reward)
        overrides = [item for item in overrides if item not in mine]
    if overrides:
        raise ValueError(f"{overrides[0]}: of which reward? reward.NAME.key=value, NAME one of {', '.join(names)}")
    composite = {
        "_target_": "flash_grpo.rewards.composite.CompositeReward",
        "_convert_": "all",  # rewards that are dataclasses stay what they are
        "rewards": parts,
        "weights": dict.fromkeys(names, 1.0),
    }
    return composite if len(names) > 1 else parts[names[0]]


def _keep_vbench(results: Path, folder: Path) -> None:
    """Adds the results' dimensions to those that lie where analysis looks for them, and prints all."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such directory; name the one whose videos were judged")
    read_vbench(results)
    kept = _vbench_file(folder.absolute())
    kept.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(kept.read_text()) if kept.exists() else {}
    write_atomically(kept, json.dumps(known | json.loads(results.read_text())))
    print(json.dumps(read_vbench(kept), indent=1))


def _vbench_file(judged: Path) -> Path:
    """Of a run, for its trained weights wherever their videos lie, and for its base; of videos of no run, beside them."""
    run_dir = next((folder for folder in (judged, *judged.parents) if (folder / MANIFEST).exists()), None)
    if run_dir is None:
        return judged / "vbench.json"
    return (run_dir / "evaluation/base" if judged.name == "base" else run_dir) / "vbench.json"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m flash_grpo.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help=f"a run's directory, or {BASE}")
    parser.add_argument("overrides", nargs="*", help="key=value, over the run's own configuration")
    parser.add_argument("--reward", action="append", default=[], help="an option of the reward group; may be repeated")
    parser.add_argument(
        "--iteration",
        type=int,
        action="append",
        help="of a checkpoint that is kept; may be repeated; default: the newest",
    )
    parser.add_argument("--output", type=Path, help="default: RUN/evaluation")
    parser.add_argument("--vbench", type=Path, help="VBench's *_eval_results.json, to be read back; makes no video")
    args = parser.parse_intermixed_args(argv)
    from flash_grpo.run.build import ConfigError

    try:
        if args.vbench:
            _keep_vbench(args.vbench, args.output or Path(args.run))
            return
        cfg, states, output = _asked(args)
        evaluate(cfg, states, output)
    except (RewardError, DivergedError) as error:
        sys.exit(f"stopped: {error}")
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
