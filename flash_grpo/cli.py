"""Run the command line of `python train.py` and `python train.py -m`. Imports nothing heavy, so that `--help` is quick."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any, TextIO

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flash_grpo.arguments import refuse
from flash_grpo.overrides import NOT_A_RUN, SWEEP, check_overrides, in_one_line, split
from flash_grpo.records.checked import DamagedFileError
from flash_grpo.records.slurm_job import SlurmJob
from flash_grpo.run.compose import CONF
from flash_grpo.run.settings import ConfigError


def command(task: Callable[[DictConfig], None], about: Sequence[str] = ()) -> Callable[[], None]:
    """Return a Hydra program that runs `task` on the composed configuration.

    about: sections of the configuration that the program is about; its --help is its module's text and these. Without
    them it is that of `train.py`. Bad input ends the program with one line and exit code 2.
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
        if "--version" in options:
            print(f"flash_grpo {version('flash_grpo')}, hydra-core {version('hydra-core')}")
            return
        if about and {"-h", "--help"} & {*options}:
            print(help_of(sys.modules[task.__module__].__doc__ or "", about))
            return
        if asked := check_overrides(options, overrides):
            _instead(task, options, overrides, *asked)
            return
        sys.argv[1:] = [*options, *overrides]  # Hydra would refuse `train.py seed=1 -m sweeps=demo`
        if sys.stderr.isatty() and not {*NOT_A_RUN} & {*options}:
            print("loading libraries and the model", file=sys.stderr)
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises its errors, and prints no traceback
        try:
            guarded()
        except (HydraException, OmegaConfBaseException) as error:
            refuse(in_one_line(error))
        except OSError as error:
            refuse(f"{error.filename or 'the file system'}: {error.strerror or error}")

    return main


def help_of(text: str, sections: Sequence[str]) -> str:
    """Return a program's text and the values of its sections."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config")
    values = OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, [*sections]))
    others = "all others are those of train.py, see `python train.py --help`"
    return f"{text.strip()}\n\nIts values (key=value); {others}:\n\n{values}"


def _instead(
    task: Callable[[DictConfig], None], options: list[str], overrides: list[str], key: str, value: Any
) -> None:
    """Answer `plan` or `preflight` in place of doing what the command says: no run is started.

    Exit code 2 for bad input, as without it.
    """
    if task is not train:
        refuse(f"{key}: is answered by train.py alone")
    if others := [option for option in options if option not in SWEEP]:
        refuse(f"{' '.join(others)}: {key}=true goes with -m alone")
    try:
        (_plan if key == "plan" else _preflight)(overrides, bool(options), value)
    except BrokenPipeError:  # the reader, as `head`, has seen enough; Python would flush once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ConfigError, DamagedFileError) as error:
        refuse(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        refuse(in_one_line(error))


def _plan(overrides: list[str], multirun: bool, form: bool | str) -> None:
    """Print what the command would cost and need: no launcher is made and no file is written. form: the value of `plan`."""
    from flash_grpo.planning.shown import show

    print(show(overrides, multirun, form), flush=True)


def _preflight(overrides: list[str], multirun: bool, _: bool) -> None:
    """Try a micro-batch where the run would be, and end with exit code 1 if it should not start, 130 if interrupted."""
    from flash_grpo.preflight.ask import preflight

    try:
        go = preflight(overrides, multirun)
    except KeyboardInterrupt:
        _say("interrupted: the preflight's job is cancelled", sys.stderr)
        sys.exit(130)
    if not go:
        sys.exit(1)


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

    if cfg.get("track") and HydraConfig.get().mode == RunMode.RUN:
        how = f"python -m flash_grpo.track {cfg.runs_root}/{cfg.study} --to {cfg.track}"
        _say(f"track={cfg.track} starts with a sweep (-m); to follow this run: {how}", sys.stdout)
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
