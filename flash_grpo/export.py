"""`python -m flash_grpo.export RUN`: export a run's averaged weights for diffusers.

Writes RUN/export/pytorch_lora_weights.safetensors for `WanPipeline.load_lora_weights`, and the same adapters under the names
that ComfyUI and musubi-tuner read into RUN/export/comfyui. Of a model of two transformers the second's file ends with _2 and
is loaded with `load_into_transformer_2=True`. If the run trained every weight, writes RUN/export/transformer (and
transformer_2) for `WanTransformer3DModel.from_pretrained`.

With --card it also writes a model card, RUN/export/README.md, so that the folder is what the Hub takes, and copies the contact
sheets before and after training. Nothing is uploaded: it prints the command that would do that.
"""

import argparse
import shutil
import sys
from pathlib import Path

from flash_grpo.arguments import Arguments
from flash_grpo.measure.card import write_card
from flash_grpo.records.full_disk import FullDiskError, naming_full_disk
from flash_grpo.run import checkpoint
from flash_grpo.run.stored import TRUST, best_iteration, known_run, policy_of, saved_state


def export(run_dir: Path, output: Path | None = None, iteration: int | None = None, trust: bool = False) -> Path:
    """Write the weights of the newest checkpoint, or of `iteration`'s; return the folder.

    output: default RUN/export. trust: see `run.stored.configuration_of`. ValueError if there is no such run or checkpoint.
    """
    manifest, state = known_run(run_dir), saved_state(run_dir, iteration)
    output = output or run_dir / "export"
    policy_of(manifest, state, "cpu", trust).export(output, state["ema"])
    return output


def describe(run_dir: Path, folder: Path, iteration: int | None = None) -> None:
    """Write the model card beside exported weights, with the run's contact sheets. ValueError if it was never evaluated."""
    after = int(checkpoint.after_iterations(run_dir)[-1].name) if iteration is None else iteration
    write_card(run_dir, known_run(run_dir), folder, after)
    for sheet in sorted((run_dir / "samples").glob("*.png")):
        (folder / "samples").mkdir(exist_ok=True)
        shutil.copy(sheet, folder / "samples")


def main(argv: list[str] | None = None) -> None:
    parser = Arguments(
        prog="python -m flash_grpo.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run's directory")
    parser.add_argument("--output", type=Path, help="default: RUN/export")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--iteration", type=int, help="of a kept checkpoint; default: the newest")
    which.add_argument("--best", action="store_true", help="the checkpoint kept by checkpoint.best_by")
    parser.add_argument(
        "--card", action="store_true", help="also write a model card: the folder is then fit for the Hub"
    )
    parser.add_argument("--trust", action="store_true", help=TRUST)
    args = parser.parse_args(argv)
    try:
        with naming_full_disk(args.output or args.run):
            iteration = best_iteration(known_run(args.run)) if args.best else args.iteration
            folder = export(args.run, args.output, iteration, args.trust)
            print(folder)
            if args.card:
                describe(args.run, folder, iteration)
                print(f"to upload it: hf upload USER/NAME {folder}")
    except FullDiskError as error:
        sys.exit(f"stopped: {error}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
