"""`python -m flash_grpo.mechanism study=NAME`: measure without training, on the tiny world, why the methods differ.

gradient_norm   the policy gradient's norm when only step t is stochastic, before and after rectification, against λ.
variance_share  first-order share of the within-group reward variance that the step, the initial noise and the SDE noise
                explain: the correlation of two rollouts that share this source and draw the other two anew.
alignment       cosine of one iteration's ascent direction with the exact gradient of the expected evaluation reward, which
                can be computed through the whole ODE because the tiny world's reward and decoder are differentiable.

The command writes `mechanism.json` into the study; `python -m analysis.report` draws it. `measure.*` sets what is measured.
"""

import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from flash_grpo import cli


def measure(cfg: DictConfig) -> None:
    """Measure `measure.quantities` under each of `measure.noises`, write mechanism.json and print a digest."""
    from flash_grpo.measure.digest import digest
    from flash_grpo.measure.workbench import Workbench
    from flash_grpo.records.files import write_atomically
    from flash_grpo.run.build import device, prepare_trainer
    from flash_grpo.training.ranks import Ranks

    ranks, measurements = Ranks(device(cfg)), []
    for noise in cfg.measure.noises:
        trainer = prepare_trainer(OmegaConf.merge(cfg, {"schedule": {"noise": noise}}), ranks)
        bench = Workbench(trainer=trainer, noise=noise, cfg=cfg)
        for quantity in cfg.measure.quantities:
            measurements += getattr(bench, quantity)()
    path = Path(cfg.runs_root) / cfg.study / "mechanism.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"kind": "mechanism", "measurements": measurements}, indent=0) + "\n")
    print(digest(measurements))
    print(f"measurements      {path}")


main = cli.command(measure, about=("measure",))

if __name__ == "__main__":
    main()
