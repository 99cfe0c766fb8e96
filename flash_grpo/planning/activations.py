"""Tell how many bytes a Wan transformer's forward and backward hold at their peak, per token, in closed form.

D is the model's width, F its feed-forward width, h the bytes of a number in which it computes (2 or 4), all per token of the
video; a guided velocity has twice the tokens. Found by following every tensor's life through diffusers' block. A test follows
them again (`tests/planning/test_memory.py`), and `tools/plan_memory.py` holds the sums to what a CPU holds. The text's
tokens, 512 beside tens of thousands, are left out.

A block is: LayerNorm in float32, scaled and shifted; self-attention, whose queries and keys pass an RMSNorm and the rotation;
LayerNorm in float32; cross-attention; LayerNorm in float32, scaled and shifted; feed-forward. Attention kernels hold no scores.
"""

from dataclasses import dataclass

from flash_grpo.planning.wan import Adapters, Product, Wan, is_adapted

ENDS = 580.0  # per token: latents before and after the patches, their gradients, at both ends of the transformer


@dataclass(frozen=True, kw_only=True)
class Computed:
    """How a transformer computes. h: bytes of a number. lora: None if every weight is trained, by autocast if h is 2.

    fused: whether one kernel does an RMSNorm, as on a GPU, and keeps its input as it is; on a CPU it is kept in float32.
    token_timesteps: whether each token has a timestep of its own, and so scales, shifts and gates of its own.
    """

    wan: Wan
    h: int
    lora: Adapters | None
    checkpointing: bool
    fused: bool
    token_timesteps: bool = False


def forward(how: Computed) -> float:
    """Return the peak of a forward without gradient.

    In the feed-forward: the residual stream, the normed input and what a block's frame still names (4 h D), and F before and
    after GELU. With h = 2 perhaps in the rotation: queries, keys, values, and products in float32 (26 D; 22 D by autocast).
    With a timestep for each token: its embedding and its six projections (7 h D), and a block's six in float32 (24 D).
    """
    D, F = how.wan.width, how.wan.ffn_dim
    rotation = 0.0 if how.h == 4 else 26.0 if how.lora else 22.0
    scales = (7 * how.h + 24) * D if how.token_timesteps else 0.0
    return max(4 * how.h * D + 2 * how.h * F, rotation * D) + scales + 192


def saved(how: Computed) -> float:
    """Return what one block keeps for its backward.

    Adapters alone: inputs of the three LayerNorms in float32 (12 D); queries before their RMSNorm, keys too in self-attention
    (3 x 4 D, 3 x 2 D fused with h = 2); queries, keys, values and result of self-attention, queries and result of
    cross-attention (6 h D); inputs of the adapted layers, see `_adapter_inputs`; F before GELU (h).
    All weights: besides, inputs of all layers and what each scale multiplies: 22 D and 2 F in all with h = 4. By autocast
    (h = 2): 68 D and 2 h F, since norms, scales and the rotation stay in float32.
    Attention's row sums: 8 bytes a head. With a timestep for each token: the block's six scales, shifts and gates in float32
    (24 D), and both scales + 1 (8 D).
    """
    D, F = how.wan.width, how.wan.ffn_dim
    sums = 8.0 * how.wan.num_attention_heads
    fewer = 6.0 * D if how.fused and how.h == 2 else 0.0
    more = 32.0 * D if how.token_timesteps else 0.0
    if not how.lora:
        return (88.0 if how.h == 4 else 68.0) * D + 2 * how.h * F + sums + 36 + more - fewer
    return (12 + 12 + 6 * how.h) * D + _adapter_inputs(how, how.lora) + how.h * F + sums + more - fewer


def _adapter_inputs(how: Computed, lora: Adapters) -> float:
    """Return the inputs of adapted layers, in float32, and the r numbers between each adapter's two matrices.

    With h = 4 they are the layers' own inputs: one for queries, keys and values, and attention's result is kept anyway.
    With h = 2 each adapter has a copy of its own.
    """
    adapted = [item for item in how.wan.products(1, 1) if item.in_block and is_adapted(item, lora)]
    between = 4.0 * lora.rank * len(adapted)
    of_video = [item for item in adapted if item.input_of_video]
    if how.h == 2:
        return between + 4.0 * sum(item.wide for item in of_video)
    shared = {_input(item): item.wide for item in of_video if "to_out" not in item.adapted}
    return between + 4.0 * sum(shared.values())


def _input(item: Product) -> str:
    return item.adapted.rpartition(".")[0] if ".to_" in item.adapted else item.adapted


def backward(how: Computed) -> float:
    """Return what the backward of a block works with, beside what is saved: gradients of F before and after GELU, or of D.

    Of all weights: the gradient of F alone, since what a layer's weights needed is given up by then, or float32 copies of D.
    """
    D, F = how.wan.width, how.wan.ffn_dim
    if not how.lora:
        return 16.0 * D if how.h == 2 else 4.0 * F + (0.0 if how.checkpointing else 12.0 * D)
    if how.checkpointing:
        return max(20.0 * D, 2.0 * D + 4 * F) if how.h == 2 else max(12.0 * D + 4 * F, 8.0 * F)
    return max(18.0 * D, 4.0 * F - 2 * D) if how.h == 2 else 8.0 * F


def update(how: Computed, tokens: float, gradients: float) -> float:
    """Return the peak bytes of a forward and backward over so many tokens. gradients: bytes of the trained weights' gradients.

    With checkpointing each block keeps its input alone (h D), and is computed again in the backward: the peak is in the last
    block, with all inputs and no gradients yet, or in the first, with all gradients. Without, all blocks keep what they save,
    and the gradients come while it is given up.
    """
    one, layers, width = saved(how) + backward(how), how.wan.num_layers, how.wan.width
    around = ENDS + (6.0 * how.h * width if how.token_timesteps else 0.0)  # the projections, which all blocks read
    if how.checkpointing:
        last, first = tokens * layers * how.h * width, tokens * how.h * width + gradients
        return tokens * (one + around) + max(last, first)
    peak = tokens * (layers * saved(how) + backward(how) + around)
    return max(peak, gradients + tokens * (one + around))
