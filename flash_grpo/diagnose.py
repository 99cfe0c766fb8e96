"""`python -m flash_grpo.diagnose method=flash`: measure without training whether a configuration will learn, and say why not.

It makes the rollouts and gradients of a few iterations twice, and leaves the weights alone:

reward      the distribution of the base's reward, its spread within groups, groups without spread, and its own noise: the
            videos of one batch are scored twice, and once more with each pixel moved by at most one grey level.
siblings    how far the videos of a prompt are apart, and which share of the reward's variance within groups comes from the
            initial noise, from the SDE noise and from its steps.
gradient    the agreement of the gradients of halves of a batch: signal-to-noise of an iteration and for its cost, and the
            batch beyond which more rollouts stop paying (the simple noise scale of McCandlish et al., arXiv 1812.06162).
update      weights, and ratios that are clipped before any update.

Then it says what this means, how large a batch and how many iterations are needed, and what to try. It prints first what it
will compute. It runs in one process. `diagnose.output=json` prints one JSON object, for programs.
"""

import json
import sys

from omegaconf import DictConfig

from flash_grpo import cli


def diagnose(cfg: DictConfig) -> None:
    """Diagnose the configuration and print what was found, as text or as JSON; its cost before, on the standard error."""
    from flash_grpo.measure.diagnosis import diagnosed
    from flash_grpo.measure.diagnosis_report import as_json, as_text, asked, check
    from flash_grpo.measure.spending import described, spending
    from flash_grpo.run.build import device, prepare_trainer
    from flash_grpo.training.ranks import Ranks

    ranks, settings = Ranks(device(cfg)), cfg.diagnose
    check(cfg, ranks)
    trainer = prepare_trainer(cfg, ranks)
    cost = spending(trainer, settings.iterations, settings.repeats)
    print(described(cost), file=sys.stderr, flush=True)
    found, question = diagnosed(trainer, settings.iterations, settings.repeats), asked(trainer, cost, settings.gain)
    if settings.output == "json":
        print(json.dumps(as_json(cfg, found, question, cost), indent=1))
    else:
        print(as_text(found, question))


main = cli.command(diagnose, about=("diagnose",))

if __name__ == "__main__":
    main()
