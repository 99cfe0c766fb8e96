"""Check that WanPipeline computes with exported adapters what the policy that exported them computes."""

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

from flash_grpo.policies.loading import random_transformer
from flash_grpo.policies.wan import WanPolicy


@torch.no_grad()
def export_difference(policy: WanPolicy, architecture: dict[str, Any], folder: Path) -> tuple[float, float]:
    """Export the adapters of a random policy, load them by WanPipeline, and compare the velocities of one random latent.

    Return the largest difference between policy and pipeline, and between the pipeline with and without the adapters, both as
    shares of the largest velocity. architecture: that the policy was made of, without a checkpoint.
    """
    ours, trained = policy.transformer, policy.trainable()
    for name, parameter in trained.items():
        parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).reshape(parameter.shape).flip(0))
        assert ".lora_" in name, name
    policy.export(folder, {name: parameter.detach() for name, parameter in trained.items()})
    theirs = random_transformer(architecture, ours.dtype, policy.device)
    parts: Any = {"tokenizer": None, "text_encoder": None, "vae": None, "scheduler": FlowMatchEulerDiscreteScheduler()}
    pipeline = WanPipeline(transformer=theirs, **parts)
    base = _velocity(policy, theirs)
    pipeline.load_lora_weights(folder)
    loaded, exported = _velocity(policy, pipeline.transformer), _velocity(policy, ours)
    scale = exported.abs().max()
    return float((loaded - exported).abs().max() / scale), float((loaded - base).abs().max() / scale)


def _velocity(policy: WanPolicy, transformer: Any) -> torch.Tensor:
    x = torch.linspace(-1, 1, torch.Size(policy.latent_shape).numel(), device=policy.device).reshape(
        policy.latent_shape
    )
    condition, timestep = policy.encode(["a cat"]), torch.tensor([700], device=policy.device)
    return transformer(x[None].to(transformer.dtype), timestep, condition, return_dict=False)[0].float()
