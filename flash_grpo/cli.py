"""Run the command line of `python train.py` and `python train.py -m`. Imports nothing heavy, so that `--help` is quick."""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from flash_grpo.overrides import check_overrides, in_one_line, refuse, split
from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.slurm_job import SlurmJob
from flash_grpo.run.compose import CONF
from flash_grpo.run.settings import ConfigError


def command(task: Callable[[DictConfig], None]) -> Callable[[], None]:
    """Return a Hydra program that runs `task` on the composed configuration.

    Bad input ends the program with one line and exit code 2.
    """

    @hydra.main(version_base="1.3", config_path=CONF, config_name="config")
    def guarded(cfg: DictConfig) -> None:
        try:
            task(cfg)
        except (ConfigError, DamagedFileError) as error:
            _log_traceback()
            refuse(str(error))

    def main() -> None:
        options, overrides = split(sys.argv[1:])
        check_overrides(options, overrides)
        sys.argv[1:] = [*options, *overrides]  # Hydra would refuse `train.py seed=1 -m sweeps=demo`
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises its errors, and prints no traceback
        try:
            guarded()
        except (HydraException, OmegaConfBaseException) as error:
            refuse(in_one_line(error))
        except OSError as error:
            refuse(f"{error.filename or 'the file system'}: {error.strerror or error}")

    return main


def _log_traceback() -> None:
    """Print the traceback of the present error where it goes into a rank's log."""
    if SlurmJob.here():
        with suppress(OSError):  # the log is on a full disk
            traceback.print_exc()


def train(cfg: DictConfig) -> None:
    """Train one run to its budget and print its summary. Exit code 1 if it fails, 130 if it is interrupted."""
    from flash_grpo.algorithm.denoise import DivergedError
    from flash_grpo.algorithm.protocols import RewardError
    from flash_grpo.run import loop, stop, stored
    from flash_grpo.training.update import DriftError

    try:
        directory = loop.run(cfg, cfg.run_name)
    except (RewardError, DriftError, DivergedError, OSError) as error:
        _log_traceback()
        sys.exit(f"stopped: {' '.join(str(error).split())}")
    except (stop.Interrupted, KeyboardInterrupt) as error:
        _say(f"interrupted: {error}", sys.stderr)
        sys.exit(130)
    _say(stored.summary(directory), sys.stdout)


def _say(text: str, stream: TextIO) -> None:
    """Print the run's last word. A log on a full disk does not change the exit code, which decides about a requeue."""
    with suppress(OSError):
        print(text, file=stream, flush=True)


main = command(train)


if __name__ == "__main__":
    main()
