"""Hold the plan's prediction of memory to what a CPU holds: an update of a real architecture, ten ways of computing it.

    python tools/plan_memory.py > docs/measured/cpu_memory.json      (a quarter of an hour on two idle cores)

Each case is a process of its own: it builds the trainer of a Wan of moderate width with random weights, computes a small
update so that all libraries are loaded, and then makes one optimizer step on states of noise, by the trainer's own code.
Measured: the peak of resident memory (VmHWM) during the step, above what was resident before it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}  # freed is freed
CASES = [  # adapters, checkpointing, states in one backward, dtype
    (True, True, 36, "float32"),
    (True, True, 46, "float32"),
    (True, False, 23, "float32"),
    (True, False, 30, "float32"),
    (False, True, 29, "float32"),
    (False, True, 38, "float32"),
    (False, False, 16, "float32"),
    (False, False, 21, "float32"),
    (True, True, 42, "bfloat16"),
    (True, False, 26, "bfloat16"),
]
SIZES = (
    "model=wan21_1p3b",
    "model.weights=random",
    "model.architecture={num_attention_heads: 8, attention_head_dim: 32, ffn_dim: 1024, num_layers: 2}",
    "model.frames=5",
    "model.height=256",
    "model.width=256",
    "model.max_text_tokens=16",
    "reward=brightness",
    "rollout.layout.num_prompts=1",
    "device=cpu",
    "run_name=memory",
)


def overrides(lora: bool, checkpointing: bool, batch: int, dtype: str) -> list[str]:
    """Return a case's command line."""
    trained = ("optim=lora",) if lora else ("optim.optimizer.lr=1e-5",)
    own = (f"model.gradient_checkpointing={str(checkpointing).lower()}", f"model.dtype={dtype}")
    return [*SIZES, *trained, *own, f"rollout.layout.group_size={batch}", f"training.batch={batch}"]


def measured(case: tuple[bool, bool, int, str]) -> dict[str, object]:
    """Run a case in this process; return its bytes, predicted and measured."""
    import torch

    from flash_grpo.planning.memory import resident, updating
    from flash_grpo.planning.model import model_of
    from flash_grpo.recompose import composed_outside
    from flash_grpo.run.build import prepare_trainer
    from flash_grpo.training.ranks import Ranks

    cfg, batch = composed_outside(overrides(*case)), case[2]
    trainer = prepare_trainer(cfg, Ranks("cpu"))
    model = model_of(cfg, "wan21_1p3b")
    _warm_up(trainer)
    idle = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # see proc(5): resets VmHWM
    _update(trainer, batch, torch.Generator().manual_seed(0))
    load = _load(batch)
    terms = updating(model, load) | {"optimizer": resident(model, 1)["optimizer"]}
    terms["latents"] += 2 * batch * 4 * model.latent_numbers  # the states themselves, which lie on the host
    increase, predicted = _status("VmHWM") - idle, _peak(terms)
    names = ("adapters", "checkpointing", "batch", "dtype")
    return dict(zip(names, case, strict=True)) | {
        "tokens": model.evaluations_per_velocity * batch * model.tokens,
        "predicted_bytes": round(predicted),
        "measured_bytes": increase,
        "ratio": round(predicted / increase, 4),
    }


def _peak(terms: dict[str, float]) -> float:
    """Return the peak of a first step: AdamW makes its numbers when activations are gone."""
    optimizer, rest = terms["optimizer"], sum(terms.values()) - terms["optimizer"]
    return max(rest, 1.5 * optimizer)


def _load(batch: int):
    from flash_grpo.planning.memory import Load

    counts = {"part": batch, "kept": batch, "rollout_batch": batch, "training_batch": batch, "evaluation_batch": batch}
    return Load(ranks=1, **counts, kept_target=2, rollouts=batch, fused=False, scoring_bytes=0.0)


def _warm_up(trainer) -> None:
    """Compute forward, backward and attention once on a small latent, without a trace in gradients."""
    import torch

    policy = trainer.policy
    x, condition = torch.zeros(1, 16, 2, 8, 8), policy.encode([""])
    policy.velocity(x, torch.zeros(1), condition).sum().backward()
    for parameter in policy.trainable().values():
        parameter.grad = None


def _update(trainer, batch: int, generator) -> None:
    """Make one optimizer step on states of noise."""
    import torch

    from flash_grpo.algorithm.types import Rollouts, Transitions

    shape, made = trainer.policy.latent_shape, trainer.batch(1)
    x, x_next = (torch.randn(batch, *shape, generator=generator) for _ in range(2))
    each = torch.arange(batch)
    taken = Transitions(
        rollout_N=each,
        step_N=torch.zeros_like(each),
        state_N=each,
        x_SCFHW=x,
        x_next_NCFHW=x_next,
        logp_old_N=torch.zeros(batch),
    )
    video = torch.zeros(batch, 0, dtype=torch.uint8)
    rollouts = Rollouts(
        batch=made, condition_BMD=trainer.policy.encode(made.text), video_BFHWC=video, transitions=taken
    )
    steps = trainer.updater.steps(rollouts, torch.ones(1, batch))
    list(trainer.updater.backward(steps, rollouts.condition_BMD, torch.ones(batch), batch, "measured "))
    trainer.updater.stepper.apply_gradients(torch.ones(len(trainer.updater.replayer.experts)))


def _status(name: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measured(CASES[int(sys.argv[1])])))
        return
    found = []
    for index in range(len(CASES)):
        command = [sys.executable, __file__, str(index)]
        done = subprocess.run(command, env={**os.environ, **MALLOC}, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], file=sys.stderr, flush=True)
    print(json.dumps({"sizes": SIZES, "cases": found}, indent=1))


if __name__ == "__main__":
    main()
