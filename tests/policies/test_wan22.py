"""Small random pipelines of Wan2.2's two families: denoising, guidance and evaluation are those of diffusers' own pipeline."""

from dataclasses import replace

import pytest
import torch
import wan_pipeline
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

from flash_grpo.algorithm import keyed
from flash_grpo.algorithm.denoise import denoise
from flash_grpo.algorithm.noise import NoiseKeys
from flash_grpo.algorithm.schedule import flow_schedule
from flash_grpo.policies.wan import WanPolicy
from flash_grpo.rewards.brightness import brightness
from flash_grpo.training.evaluation import Evaluation
from flash_grpo.training.ranks import Ranks

TEXTS = wan_pipeline.SENTENCES[:2]
STEPS = 8
FAMILIES = {  # what makes the folder, our options, the pipeline's
    "a14b": (
        wan_pipeline.write_two_experts,
        {"boundary": 0.875, "guidance": 4.0, "guidance_2": 3.0},
        {"guidance_scale": 4.0, "guidance_scale_2": 3.0},
    ),
    "a14b, one scale": (wan_pipeline.write_two_experts, {"boundary": 0.875, "guidance": 2.0}, {"guidance_scale": 2.0}),
    "a14b, no guidance": (
        wan_pipeline.write_two_experts,
        {"boundary": 0.875, "guidance": 1.0},
        {"guidance_scale": 1.0},
    ),
    "5b": (wan_pipeline.write_token_timesteps, {"expand_timesteps": True, "guidance": 5.0}, {"guidance_scale": 5.0}),
}


class Case:
    """A family as a policy and as a pipeline, on the same grid."""

    def __init__(self, folder, options, theirs):
        size = {"frames": 5, "height": 32, "width": 32}
        self.policy = WanPolicy(
            path=str(folder), device=torch.device("cpu"), max_text_tokens=wan_pipeline.TEXT_TOKENS, **size, **options
        )
        self.policy.keep_base()
        self.pipeline = WanPipeline.from_pretrained(folder)
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
        self.pipeline.scheduler.set_timesteps(STEPS)
        sigma_S = self.pipeline.scheduler.sigmas
        self.schedule = replace(
            flow_schedule(STEPS), sigma_S=sigma_S, timestep_T=self.pipeline.scheduler.timesteps, dt_T=sigma_S.diff()
        )
        self.theirs = {**theirs, "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": STEPS}
        self.theirs |= {"prompt": list(TEXTS), "negative_prompt": "", "max_sequence_length": wan_pipeline.TEXT_TOKENS}

    def made(self, keys: NoiseKeys, output_type: str) -> torch.Tensor:
        noise = torch.stack([keyed.normal(self.policy.latent_shape, *key) for key in keys.initial_B])
        return self.pipeline(**self.theirs, latents=noise, output_type=output_type).frames


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    write, options, theirs = FAMILIES[request.param]
    return Case(write(tmp_path_factory.mktemp("wan22")), options, theirs)


def test_denoising_equals_the_pipeline_s(case):
    keys = NoiseKeys(initial_B=(("wan", 0), ("wan", 1)))
    latent = case.made(keys, "latent")
    mask_BT = torch.zeros(2, STEPS, dtype=torch.bool)
    mine = denoise(case.policy, case.policy.encode(TEXTS), keys, case.schedule, mask_BT).latent_BCFHW
    torch.testing.assert_close(mine, latent, atol=1e-5, rtol=1e-5)
    computes = case.policy.experts.of(case.schedule.timestep_T).unique().tolist()
    assert computes == ([0, 1] if len(case.policy.experts) == 2 else [0])  # the boundary lies inside the schedule


def test_an_evaluation_s_videos_are_the_pipeline_s(case):
    evaluation = Evaluation(schedule=case.schedule, noises_per_prompt=1, seed=7, batch=2)
    videos = {}
    evaluation(
        case.policy, brightness, TEXTS, Ranks("cpu"), lambda text, index, video, *_: videos.update({text: video})
    )
    theirs = case.made(NoiseKeys(initial_B=tuple((7, "evaluation", text, 0) for text in TEXTS)), "pt")
    ours = torch.stack([videos[text] for text in TEXTS]).permute(0, 1, 4, 2, 3).float() / 255
    assert ours.shape == theirs.shape == (2, 5, 3, 32, 32)
    torch.testing.assert_close(ours, theirs, atol=0.5 / 255 + 1e-4, rtol=0)
    assert theirs.std() > 0.01
