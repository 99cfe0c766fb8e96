"""`python -m flash_grpo.scenes_world.gates [--checkpoint DIR]`: does the pretrained base draw well enough to train it?

Prints as JSON, over the held-out captions: the shares of videos with the right colour, size, pace, direction and ground; the
rewards of the base and of clean renders through the codec (`ceiling`); their difference (`headroom`). Exit code 1 if the
base fails one of `GATES`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel

from flash_grpo.algorithm.schedule import flow_schedule
from flash_grpo.algorithm.sde import ode_step
from flash_grpo.arguments import Arguments
from flash_grpo.scenes_world.clips import COLOURS, GROUNDS, PACES, WORDS, asked, captions, render
from flash_grpo.scenes_world.held_out import AREAS, HeldOutScenesReward
from flash_grpo.scenes_world.reward import ScenesReward
from flash_grpo.scenes_world.sight import see
from flash_grpo.tiny_world.clips import DIRECTIONS
from flash_grpo.tiny_world.codec import LinearVideoCodec
from flash_grpo.tiny_world.pretraining import encode_text

CHECKPOINT = Path(__file__).parent / "checkpoint"
GATES = {"direction_right": 0.55, "fidelity": 0.85}
NOISES = 2  # videos of a caption
STEPS = 20


def measure(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Return `gates`, what is measured of a checkpoint's videos of the held-out captions, and `ceiling` and `headroom`."""
    text = captions(held_out=True)
    generator = torch.Generator().manual_seed(seed)
    codec = LinearVideoCodec.from_pretrained(folder, subfolder="vae")
    truth_BFHWC = codec.decode(codec.encode(render(asked(text * NOISES), generator))).clamp(0, 1)
    ceiling, base = (_means(video, text * NOISES) for video in (truth_BFHWC, sample(folder, text * NOISES, generator)))
    headroom = {name: ceiling[name] - base[name] for name in ceiling}
    rounded = {"base": base, "ceiling": ceiling, "headroom": headroom}
    return {name: {key: round(value, 3) for key, value in means.items()} for name, means in rounded.items()}


def failed(measured: dict[str, Any]) -> list[str]:
    """Return a line for each of GATES that the base does not pass."""
    base = measured["base"]
    return [f"{name}: {base[name]}, must be at least {least}" for name, least in GATES.items() if base[name] < least]


@torch.no_grad()
def sample(folder: Path, text: list[str], generator: torch.Generator) -> torch.Tensor:
    """Return a checkpoint's videos [B, F, H, W, 3] in [0, 1] by deterministic steps, one per text."""
    tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer", trust_remote_code=False)
    condition_BMD = encode_text(tokenizer, UMT5EncoderModel.from_pretrained(folder, subfolder="text_encoder"), text)
    transformer = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    codec = LinearVideoCodec.from_pretrained(folder, subfolder="vae")
    schedule = flow_schedule(STEPS)
    x_BCFHW = torch.randn(len(text), *codec.latent_shape(9, 16, 16), generator=generator)
    for timestep, dt in zip(schedule.timestep_T, schedule.dt_T, strict=True):
        velocity_BCFHW = transformer(x_BCFHW, timestep.expand(len(text)), condition_BMD, return_dict=False)[0]
        x_BCFHW = ode_step(x_BCFHW, velocity_BCFHW, dt)
    return codec.decode(x_BCFHW).clamp(0, 1)


def shown(video_BFHWC: torch.Tensor) -> torch.Tensor:
    """Return the word of each attribute that a video shows best, int64 [B, A] as `asked`."""
    sight = see(video_BFHWC)
    colour_KC, ground_KC, direction_K2 = (
        torch.tensor(list(words.values())) for words in (COLOURS, GROUNDS, DIRECTIONS)
    )
    wanted_BKC = torch.nn.functional.normalize(colour_KC - sight.ground_BC[:, None], dim=-1)
    way_B2 = sight.way_B2
    seen = {
        "colour": torch.einsum("bfc,bkc->bk", sight.contrast_BFC, wanted_BKC).argmax(1),
        "size": _nearest(sight.area_B.log(), AREAS),
        "pace": _nearest(way_B2.norm(dim=1).log(), PACES),
        "direction": (way_B2 @ direction_K2.T).argmax(1),
        "ground": torch.cdist(sight.ground_BC, ground_KC).argmin(1),
    }
    return torch.stack([seen[name] for name in WORDS], dim=1)


def _nearest(log_B: torch.Tensor, words: dict[str, float]) -> torch.Tensor:
    return (log_B[:, None] - torch.tensor(list(words.values())).log()).abs().argmin(1)


def _means(video_BFHWC: torch.Tensor, text: list[str]) -> dict[str, float]:
    """Return the share of right words, the rewards' parts and the total, means over videos."""
    right_A = (shown(video_BFHWC) == asked(text)).float().mean(0)
    honest, held_out = (reward.score(video_BFHWC, tuple(text)) for reward in (ScenesReward(), HeldOutScenesReward()))
    parts = honest | {name: value for name, value in held_out.items() if name != "total"}
    means = {f"{name}_right": right for name, right in zip(WORDS, right_A, strict=True)}
    return {name: float(value.mean()) for name, value in (means | parts).items()}


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the top of the file."""
    parser = Arguments(
        prog="python -m flash_grpo.scenes_world.gates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    measured = measure(parser.parse_args(argv).checkpoint)
    print(json.dumps(measured, indent=2))
    for line in (lines := failed(measured)):
        print(f"failed: {line}", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
