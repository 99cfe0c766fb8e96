"""`python -m flash_grpo.evaluate RUN`: compare a run's checkpoints with its base model, paired, on the held-out prompts.

Makes the videos of each model from the same noise and writes them under VBench's names to RUN/evaluation/{base,000120}/,
with manifest.jsonl (a line per video: file, prompt, its metadata, scores). Writes evaluation.json: means, standard errors,
and paired differences of the reward and of each of its parts. Several ranks, started like those of a run, share the work
and write the same files.

    python -m flash_grpo.evaluate RUN evaluation.sampler.noises_per_prompt=5
    python -m flash_grpo.evaluate RUN --reward remote reward.urls=[http://node7:8700]
    python -m flash_grpo.evaluate RUN --reward hpsv3 --reward pickscore reward.pickscore.every=1
    python -m flash_grpo.evaluate BASE recipe=wan21_1p3b prompts.train=a.txt prompts.test=b.txt     a model without a run

Store VBench's results on the videos, for Table 1. A file with some of the dimensions keeps the others as they are:

    python -m flash_grpo.evaluate RUN --vbench RESULTS.json
    python -m flash_grpo.evaluate RUN/evaluation/base --vbench RESULTS.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flash_grpo.algorithm.denoise import DivergedError
from flash_grpo.algorithm.protocols import RewardError
from flash_grpo.arguments import Arguments
from flash_grpo.measure.paired import evaluate, keep_vbench
from flash_grpo.process_exit import end_at_once
from flash_grpo.recompose import CHANGEABLE, changed, composed_outside, composed_rewards
from flash_grpo.records.full_disk import FullDiskError, naming_full_disk
from flash_grpo.run.build import device
from flash_grpo.run.settings import ConfigError, check_values
from flash_grpo.run.stored import TRUST, best_iteration, configuration_of, known_run, saved_state
from flash_grpo.run.trained_experts import with_stored_experts
from flash_grpo.training.ranks import Ranks

BASE = "BASE"  # in place of a run's directory: evaluate a configured model that no run has trained


def _chosen(args: argparse.Namespace) -> tuple[DictConfig, dict[str, dict[str, Any] | None], Path]:
    """Return the configuration, the states to evaluate by name (None is the base), and the folder to write to.

    `reward=NAME` among the overrides means the same as `--reward NAME`.
    """
    names = args.reward + [item.partition("=")[2] for item in args.overrides if item.startswith("reward=")]
    of_rewards = [item for item in args.overrides if item.lstrip("+").startswith("reward.")]
    others = [item for item in args.overrides if item not in of_rewards and not item.startswith("reward=")]
    reward = composed_rewards(names, of_rewards) if names else None
    others += [] if names else of_rewards
    if args.run == BASE:
        cfg, states = composed_outside(others), {}
        output = Path(str(cfg.runs_root), str(cfg.study), "base")
    else:
        manifest, output = known_run(Path(args.run)), Path(args.run) / "evaluation"
        iterations = [*args.iteration, *([best_iteration(manifest)] if args.best else [])] or [None]
        saved = [saved_state(Path(args.run), iteration) for iteration in iterations]
        replaced = {item.partition("=")[0] for item in others} & set(CHANGEABLE) | ({"reward"} if reward else set())
        cfg = changed(configuration_of(manifest, args.trust, without=replaced), others)
        cfg.model = with_stored_experts(cfg.model, saved[-1])
        states = {f"{state['progress']['iteration']:06d}": state for state in saved}
    if reward:
        OmegaConf.set_struct(cfg, False)
        cfg.reward = reward
    return cfg, {"base": None, **states}, args.output or output


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="python -m flash_grpo.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help=f"a run's directory, or {BASE}")
    parser.add_argument("overrides", nargs="*", help="key=value, over the run's own configuration")
    parser.add_argument("--reward", action="append", default=[], help="an option of the reward group; may be repeated")
    parser.add_argument(
        "--iteration",
        type=int,
        action="append",
        default=[],
        help="of a kept checkpoint; may be repeated; default: the newest",
    )
    parser.add_argument("--best", action="store_true", help="the checkpoint kept by checkpoint.best_by")
    parser.add_argument("--output", type=Path, help="default: RUN/evaluation")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    parser.add_argument("--vbench", type=Path, help="VBench's *_eval_results.json to read back; no video is made")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_intermixed_args(argv)
    try:
        with naming_full_disk(args.output or Path(args.run)):
            if args.vbench:
                print(json.dumps(keep_vbench(args.vbench, args.output or Path(args.run)), indent=1))
                return
            cfg, states, output = _chosen(args)
            check_values(cfg, unused=("run_name",))
            evaluate(cfg, states, output, ranks := Ranks(device(cfg)))
    except (RewardError, DivergedError, FullDiskError) as error:
        sys.exit(f"stopped: {error}")
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if ranks.world_size > 1:
        end_at_once(0)


if __name__ == "__main__":
    main()
