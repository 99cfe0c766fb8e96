"""`python -m flash_grpo.export RUN`: a run's averaged weights, for diffusers.

Writes RUN/export/pytorch_lora_weights.safetensors, which `WanPipeline.load_lora_weights(RUN/export)` takes, or, where the
run trained every weight, RUN/export/transformer, which `WanTransformer3DModel.from_pretrained` takes.
"""

import argparse
import sys
from pathlib import Path

from flash_grpo import checkpoint
from flash_grpo.records import RunManifest, read_manifest


def export(run_dir: Path, output: Path | None = None, iteration: int | None = None) -> Path:
    """Writes the weights of the newest checkpoint, or of `iteration`'s; returns the folder."""
    from flash_grpo.run import policy_of

    manifest, state = known_run(run_dir), saved_state(run_dir, iteration)
    output = output or run_dir / "export"
    policy_of(manifest.config, "cpu").export(output, state["ema"])
    return output


def known_run(run_dir: Path) -> RunManifest:
    manifest = read_manifest(run_dir)
    if manifest is None:
        raise ValueError(f"{run_dir}: no run.json there; expected a run's directory")
    return manifest


def saved_state(run_dir: Path, iteration: int | None) -> dict:
    """A checkpoint, the newest where `iteration` is None."""
    there = [int(path.name) for path in checkpoint.after_iterations(run_dir)]
    if not there or (iteration is not None and iteration not in there):
        told = f"the iterations there are {there}" if there else "there is none"
        raise ValueError(f"{run_dir}: no checkpoint{f' of iteration {iteration}' if there else ''}; {told}")
    return checkpoint.load(run_dir, f"{there[-1] if iteration is None else iteration:06d}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's directory")
    parser.add_argument("--output", type=Path, help="default: RUN/export")
    parser.add_argument("--iteration", type=int, help="of a checkpoint that is kept; default: the newest")
    args = parser.parse_args(argv)
    try:
        print(export(args.run, args.output, args.iteration))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
