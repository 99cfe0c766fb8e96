"""Tell how much memory a rank's device holds at the peak of each phase, term by term; bytes, each a short formula.

What lies there in every phase (`resident`), and what each phase adds. On a CPU all of it is the host's memory.
"""

from dataclasses import dataclass
from math import prod

from flash_grpo.planning.activations import Computed, forward, update
from flash_grpo.planning.decoder import FLOAT
from flash_grpo.planning.model import Model

ENCODER = 5_680_910_336  # weights of UMT5-XXL's encoder, Wan's text encoder; a test counts them
WORKSPACE = 2.0  # maps, of cuDNN in Wan's decoder, see `decoding`
TILE = 256  # pixels of a tile's side, as the VAE's own
OUTSIDE = 1.5e9  # what torch does not count: CUDA's context, libraries' handles, NCCL's buffers; assumed


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one rank works on. ranks: of the run. part: rollouts that are denoised together. kept: trained steps of a part.

    rollout_batch, evaluation_batch: videos in one call. training_batch: states in one backward. rollouts: of an iteration.
    kept_target: latents that are kept of a trained step. fused: as `Computed.fused`.
    """

    ranks: int
    part: int
    kept: float
    kept_target: int
    rollout_batch: int
    training_batch: int
    evaluation_batch: int
    rollouts: int
    fused: bool
    scoring_bytes: float


Terms = dict[str, float]


def phases(model: Model, load: Load) -> dict[str, Terms]:
    """Return the terms of each phase's peak on a rank's device; their sum is the peak."""
    there = resident(model, load.ranks) | {"text conditions": conditions(model, load.rollouts)}
    scoring = {"reward in this process": load.scoring_bytes}
    together = min(load.rollout_batch, load.part)
    latents = {"latents": 4 * load.part * latent(model), "kept transitions": kept(model, load)}
    found = {
        "rollout": there
        | scoring
        | latents
        | {"activations": forward_of(model, load.rollout_batch, load.fused, model.evaluations_per_velocity)},
        "decode": there | scoring | latents | {"decoder at work": decoding(model, together, load.fused)},
        "update": there | scoring | updating(model, load),
        "evaluation": there | scoring | evaluating(model, load),
    }
    if model.real:
        found = {"text encoding": resident(model, load.ranks) | {"text encoder": encoder(model)}} | found
    return found


def peak(phases: dict[str, Terms]) -> tuple[str, float]:
    """Return the phase with the largest sum, and the sum."""
    sums = {name: sum(terms.values()) for name, terms in phases.items()}
    largest = max(sums, key=lambda name: sums[name])
    return largest, sums[largest]


def resident(model: Model, ranks: int) -> Terms:
    """Return what lies on the device in every phase, once the optimizer has made a step.

    Trained weights are float32, so that small steps are not lost; AdamW keeps two float32 numbers for each and the EMA one.
    """
    return {
        "weights": weights(model, ranks),
        "base copy": 4.0 * model.trainable if model.base_copied else 0.0,
        "optimizer": 8.0 * model.trainable,
        "EMA": 4.0 * model.trainable,
        "decoder": float(FLOAT * model.decoder.parameters) if model.decoder else 0.0,
    }


def weights(model: Model, ranks: int) -> float:
    """Return the bytes of the transformer's weights, adapters included.

    With adapters the base is frozen in the model's dtype, but for what diffusers keeps in float32; otherwise all is float32.
    Sharded, a device holds its share and at most two whole blocks: the one that computes and the one that is being gathered.
    A model of two experts has two transformers, whichever of them is trained.
    """
    if not model.wan:
        return 4.0 * model.trainable
    sizes = model.wan
    if not model.lora:
        return 4.0 * model.experts * sizes.parameters()
    frozen = float(model.compute * sizes.parameters() + (4 - model.compute) * sizes.kept_float()) * model.experts
    if model.sharded and ranks > 1:
        frozen = frozen / ranks + 2 * model.compute * sizes.block_parameters()
    return frozen + 4.0 * model.trainable


def latent(model: Model) -> float:
    """Return the bytes of one video's latent, float32."""
    return float(FLOAT * model.latent_numbers)


def conditions(model: Model, rollouts: int) -> float:
    """Return the bytes of the text conditions of a rank's rollouts, which stay on the device for the update."""
    return float(rollouts * model.text_tokens * (model.wan.text_dim if model.wan else 0) * model.compute)


def kept(model: Model, load: Load) -> float:
    """Return the bytes of the trained steps of the part that is being made: where each began and, if asked, where it ended."""
    return load.kept * load.kept_target * latent(model)


def computed(model: Model, fused: bool) -> Computed | None:
    """Return how the transformer computes; None of a model of one's own."""
    if not model.wan:
        return None
    return Computed(
        wan=model.wan,
        h=model.compute,
        lora=model.lora,
        checkpointing=model.checkpointing,
        fused=fused,
        token_timesteps=model.token_timesteps,
    )


def forward_of(model: Model, batch: int, fused: bool, evaluations: int) -> float:
    """Return the activations of a forward of so many videos. evaluations: of a velocity, 2 with guidance."""
    how = computed(model, fused)
    return evaluations * batch * model.tokens * forward(how) if how else 0.0


def updating(model: Model, load: Load) -> Terms:
    """Return what an update adds: gradients, a micro-batch's latents, and what its forward and backward hold.

    Gradients stand in `activations` where they grow while activations are given up, see `activations.update`. By autocast the
    weights also have a copy in bfloat16.
    """
    how, gradients = computed(model, load.fused), 4.0 * model.trainable
    latents = (8 + load.kept_target) * load.training_batch * latent(model)
    if not how:
        return {"gradients": gradients, "latents": latents}
    tokens = model.training_evaluations * load.training_batch * model.tokens
    copies = 2.0 * model.trainable if model.compute == 2 and not model.lora else 0.0
    return {"weights by autocast": copies, "latents": latents, "activations": update(how, tokens, gradients)}


def evaluating(model: Model, load: Load) -> Terms:
    """Return what an evaluation adds: the trained weights set aside for the EMA's, and a rollout or decode of its batch."""
    batch = load.evaluation_batch
    work = max(forward_of(model, batch, load.fused, model.evaluation_evaluations), decoding(model, batch, load.fused))
    return {"trained weights aside": 4.0 * model.trainable, "latents": 4 * batch * latent(model), "activations": work}


def encoder(model: Model) -> float:
    """Return the bytes of the text encoder, in the model's dtype."""
    return float(ENCODER * model.compute)


def decoding(model: Model, videos: int, fused: bool) -> float:
    """Return the peak of decoding so many videos, float32.

    Wan's VAE decodes four frames at a time. A map is the last stage's channels x 4 frames at its full size. At the end of a
    group Wan2.1's holds 12.8 maps: the last two frames of the inputs of seven convolutions at full size (3.5) and of those at
    smaller sizes (2.4), an input twice padded, before and after the joining (4.5), the residual and the norm's parts (2.4);
    and what is decoded so far. Wan2.2-TI2V-5B's, whose stages keep their channels, holds 21.4. cuDNN's workspace on a GPU is
    another two: 9.4 GB in all were measured for Wan2.1's on an H100. Without slicing all videos at once. Afterwards a float
    video is clamped, scaled and rounded: four copies.
    """
    video = float(FLOAT * videos * prod(model.video_shape))
    coder = model.decoder
    if not coder or not coder.widths:
        return 4 * video
    _, height, width, _ = model.video_shape
    place = min(height, TILE) * min(width, TILE) if model.tiling else height * width
    maps = (coder.maps + (WORKSPACE if fused else 0.0)) * FLOAT * coder.widths[-1] * 4 * place / coder.patch**2
    return max(maps * (1 if model.slicing else videos) + video, 4 * video)
