"""Make one object of a node of the configuration, and turn whatever fails into a ConfigError that names its key."""

from functools import partial
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue

from flash_grpo.records.full_disk import FullDiskError
from flash_grpo.run.settings import ConfigError
from flash_grpo.run.targets import HELD_OUT, names_a_key

# parts that name their keys as where they usually stand, and what to say instead
ELSEWHERE = {"evaluation.sampler": ("schedule.", "evaluation.sampler.schedule."), HELD_OUT: ("reward.", f"{HELD_OUT}.")}


def build(node: DictConfig, key: str, kind: Any = object, **more: Any) -> Any:
    """Instantiate a node of the configuration; whatever making the object raises becomes a ConfigError.

    key: the node's dotted name, for the message. kind: what the object must be. more: further arguments.
    """
    try:
        made = _plain(instantiate(node, **more))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: must be given") from error
    except Exception as error:  # of the object, as the cause of an InstantiationException, or Hydra's about the node
        raise ConfigError(_why_not_made(error, key)) from error
    if not isinstance(made, kind):
        raise ConfigError(f"{key}._target_={node._target_}: makes {type(made).__name__}, not {kind.__name__}")
    return made


def _why_not_made(error: Exception, key: str) -> str:
    """Return, in one line with the key, what Hydra or the object itself says."""
    cause = error.__cause__
    why = " ".join(str(cause or error).partition(", set env")[0].split())
    if not isinstance(cause, ValueError | OSError | TypeError | ImportError | None) or not why:
        why = f"{type(cause).__name__}: {why}"  # not written for readers: a KeyError's text is a key alone
    if not names_a_key(why):
        return f"{key}: {why}"
    usual, here = ELSEWHERE.get(key, ("", ""))
    return here + why.removeprefix(usual) if why.startswith(usual) else why


def _plain(made: Any) -> Any:
    """Replace Hydra's partial by a plain one: Hydra's checks its target again in every call, which takes half a millisecond."""
    return partial(made.func, *made.args, **made.keywords) if isinstance(made, partial) else made


def checked(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the function; an error about its arguments, or of the file system, becomes a ConfigError. A full disk is none."""
    try:
        return function(*args, **kwargs)
    except FullDiskError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
