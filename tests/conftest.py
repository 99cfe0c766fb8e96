"""What several tests share: runs of the tiny world that take a fraction of a second."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from slurm_cluster import cluster, slurm_environment, submit

from flash_grpo.run import build, loop
from flash_grpo.run.compose import CONF
from flash_grpo.training.ranks import Ranks
from flash_grpo.training.trainer import Trainer

# Fuzzers try the same examples each time: these in the suite, as many as FUZZ_EXAMPLES says in `make fuzz`.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
hypothesis.settings.register_profile("seeded", max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("seeded")

__all__ = ["cluster", "slurm_environment", "submit"]  # fixtures

SMALL = (
    "device=cpu",
    "schedule.num_steps=11",
    "rollout.layout.num_prompts=2",
    "rollout.layout.group_size=4",
    "evaluation.every=1",
    "evaluation.sampler.schedule.num_steps=2",
    "evaluation.sampler.noises_per_prompt=1",
    "budget.iterations=2",
    "budget.pflop=null",
    "run_name=small",
)


@pytest.fixture(scope="session")
def config() -> Callable[..., DictConfig]:
    """`config("method=full", "seed=3")`: the resolved configuration of a small run, as the command line composes it."""

    def composed(*overrides: str) -> DictConfig:
        with initialize_config_dir(CONF, version_base="1.3"):
            return compose("config", overrides=[*SMALL, *overrides])

    return composed


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """The overrides of a small run."""
    return SMALL


@pytest.fixture
def train(config, tmp_path) -> Callable[..., Path]:
    """`train("seed=3")`: goes through a small run, in this process, and returns its directory."""

    def trained(*overrides: str) -> Path:
        cfg = config(f"runs_root={tmp_path}", *overrides)
        return loop.run(cfg, cfg.run_name)

    return trained


@pytest.fixture(scope="session")
def trainer(config) -> Callable[..., Trainer]:
    """`trainer("method=full")`: the trainer of a small run, with no directory."""
    return lambda *overrides: build.prepare_trainer(config(*overrides), Ranks("cpu"))


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory) -> Path:
    """A small random Wan pipeline on disk, see `wan_pipeline`."""
    import wan_pipeline

    return wan_pipeline.write(tmp_path_factory.mktemp("wan"))


@pytest.fixture
def serving() -> Iterator[Callable]:
    """`serving(reward, token="x")`: a reward server on loopback, see `reward_servers`; it ends with the test."""
    from reward_servers import Server

    from flash_grpo.rewards.brightness import brightness

    started = []

    def serve(reward=brightness, **options):
        started.append(Server(reward, **options).start())
        return started[-1]

    yield serve
    for server in started:
        server.kill()


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """A run takes over Ctrl-C and sets the number of threads; the tests after it get back what they had."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before, threads = [signal.getsignal(number) for number in numbers], torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
