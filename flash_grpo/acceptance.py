"""`python -m flash_grpo.acceptance`: measure on a GPU what this suite claims of real models, in at most eight minutes.

With random weights, in stages that each print a line as they end:

    matmul   the rate that the device reaches in products of large matrices
    phases   the 1.3B at 480 x 832 x 81: rollout, decode, update, in bfloat16 with checkpointing, with each attention that is
             there, and compiled: seconds, share of the matmul rate, peak memory beside the plan's, drift beside the clip
    large    the 14B at full width, whole on one device
    resume   a small run that is killed and continued, compared bit by bit with one that is not
    shard    the base sharded by one NCCL rank, against the same without
    export   adapters that the pipeline loads, against the policy that exported them

Writes docs/measured/acceptance_DEVICE.json. `--device cpu` rehearses every stage with small sizes, and writes nothing there.
Exit code 1 if a stage fails as a whole, ratios drift beyond the clip, or the killed run does not end as the other.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from flash_grpo.arguments import Arguments, refuse
from flash_grpo.measure.acceptance import STAGES, Here, measured, not_accepted
from flash_grpo.planning.unit_prices import MEASURED
from flash_grpo.records.files import write_atomically


def main(argv: list[str] | None = None) -> None:
    parser = Arguments(
        prog="python -m flash_grpo.acceptance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal with small sizes")
    parser.add_argument("--stage", action="append", choices=STAGES, help="only these, as often as needed; default: all")
    parser.add_argument(
        "--output", type=Path, help="a file; default: docs/measured/acceptance_DEVICE.json, of a rehearsal none"
    )
    args = parser.parse_args(argv)
    here = Here(gpu=args.device == "cuda")
    if here.gpu and not torch.cuda.is_available():
        refuse("torch finds no GPU here; --device cpu rehearses every stage with small sizes")
    output = args.output or (MEASURED / f"acceptance_{_file_name(here.name)}.json" if here.gpu else None)
    if output and not here.gpu and output.resolve().parent == MEASURED:
        refuse(f"--output {output}: a rehearsal on a CPU measures no real model, so it is not kept in docs/measured")
    earlier = _earlier(output) if output else {}

    def keep(done: dict[str, Any]) -> None:
        if output:
            write_atomically(output, json.dumps(earlier | done, indent=1) + "\n")

    found = measured(here, args.stage or list(STAGES), lambda line: print(line, flush=True), keep)
    print(output or json.dumps(found, indent=1))
    if lines := not_accepted(found):
        print("not accepted:", *lines, sep="\n- ")
        sys.exit(1)


def _file_name(device: str) -> str:
    return "_".join(device.lower().split())


def _earlier(output: Path) -> dict[str, Any]:
    """Return the stages that the file has from before; refuse, before any is measured, a file that cannot be written again."""
    try:
        earlier = json.loads(output.read_text()) if output.exists() else {}
        write_atomically(output, json.dumps(earlier, indent=1) + "\n")
    except (OSError, ValueError) as error:
        refuse(f"--output {output}: cannot be read and written ({error})")
    if not isinstance(earlier, dict):
        refuse(f"--output {output}: is not a file of this command")
    return earlier


if __name__ == "__main__":
    main()
