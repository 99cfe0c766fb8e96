"""`python -m flash_grpo.bench model=tiny method=flash`: time an iteration and its unavoidable parts, and print JSON.

The unavoidable parts are the transformer's forwards and backwards at the same batches, decoding and the reward. Iterations
and parts are timed alternately, so that a busy machine slows both; `overhead` is the median of their ratios.

`python -m flash_grpo.bench model=wan21_1p3b` times the phases of a real model instead, with random weights.
"""

import json

from omegaconf import DictConfig

from flash_grpo import cli


def bench(cfg: DictConfig) -> None:
    if "architecture" in cfg.model:  # a whole iteration would take too long
        from flash_grpo.measure.real_size import measure
    else:
        from flash_grpo.measure.overhead import measure

    print(json.dumps(measure(cfg), indent=1))


main = cli.command(bench, about=("bench",))

if __name__ == "__main__":
    main()
