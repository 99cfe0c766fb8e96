"""Count the weights and the FLOPs of Wan's transformer from its sizes alone, as a list of its matrix products.

A closed form where `policies.flops` builds the model on torch's meta device, which takes seconds; a test holds the two
together. FLOPs are 2 for each multiplication of a matrix product; norms and activations are left out, as torch's counter does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from flash_grpo.algorithm.types import UnitFlops

DEFAULTS: dict[str, Any] = {  # of diffusers' WanTransformer3DModel
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "ffn_dim": 13824,
    "num_layers": 40,
    "text_dim": 4096,
    "freq_dim": 256,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": (1, 2, 2),
}


@dataclass(frozen=True, kw_only=True)
class Product:
    """A linear layer: `rows` inputs of width `wide`, outputs of width `out`, in `times` places.

    input_trained: whether its input has a gradient if all weights are trained. adapted: its name among LoRA's targets.
    """

    rows: int
    wide: int
    out: int
    times: int = 1
    in_block: bool = True
    input_trained: bool = True
    input_of_video: bool = True
    adapted: str = ""

    @property
    def flops(self) -> float:
        return 2.0 * self.times * self.rows * self.wide * self.out

    @property
    def weights(self) -> int:
        """Return the numbers in its matrices and biases."""
        return self.times * self.out * (self.wide + 1)


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """LoRA's rank, and the ends of names of the layers that it adapts."""

    rank: int
    targets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Wan:
    """The sizes of a Wan transformer, by diffusers' names."""

    num_attention_heads: int
    attention_head_dim: int
    ffn_dim: int
    num_layers: int
    text_dim: int
    freq_dim: int
    in_channels: int
    out_channels: int
    patch_size: tuple[int, ...]

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    def tokens(self, latent_shape: tuple[int, ...]) -> int:
        """Return the tokens of one video. latent_shape: (C, F, H, W)."""
        return prod(latent_shape[1:]) // prod(self.patch_size)

    def products(self, tokens: int, text_tokens: int, times: int = 1) -> list[Product]:
        """Return all linear layers, those of a block once. times: how many timesteps a video has, one or one for each token."""
        D, F, T, M = self.width, self.ffn_dim, tokens, text_tokens
        patch = prod(self.patch_size)
        return [
            Product(rows=T, wide=self.in_channels * patch, out=D, in_block=False, input_trained=False),
            Product(rows=times, wide=self.freq_dim, out=D, in_block=False, input_trained=False, input_of_video=False),
            Product(rows=times, wide=D, out=D, in_block=False, input_of_video=False),
            Product(rows=times, wide=D, out=6 * D, in_block=False, input_of_video=False),
            Product(rows=M, wide=self.text_dim, out=D, in_block=False, input_trained=False, input_of_video=False),
            Product(rows=M, wide=D, out=D, in_block=False, input_of_video=False),
            *(Product(rows=T, wide=D, out=D, adapted=f"attn1.{name}") for name in ("to_q", "to_k", "to_v", "to_out.0")),
            *(Product(rows=T, wide=D, out=D, adapted=f"attn2.{name}") for name in ("to_q", "to_out.0")),
            *(
                Product(rows=M, wide=D, out=D, input_of_video=False, adapted=f"attn2.{name}")
                for name in ("to_k", "to_v")
            ),
            Product(rows=T, wide=D, out=F, adapted="ffn.net.0.proj"),
            Product(rows=T, wide=F, out=D, adapted="ffn.net.2"),
            Product(rows=T, wide=D, out=self.out_channels * patch, in_block=False),
        ]

    def attention_flops(self, tokens: int, text_tokens: int) -> float:
        """Return the FLOPs of a block's two attentions: scores and their product with the values, 2·T·M·D each."""
        return 4.0 * self.width * tokens * (tokens + text_tokens)

    def parameters(self) -> int:
        """Return the number of weights, without adapters."""
        linear = sum(item.weights * (self.num_layers if item.in_block else 1) for item in self.products(1, 1))
        return linear + self.kept_float() - self._time_embedder() + 4 * self.width * self.num_layers

    def kept_float(self) -> int:
        """Return how many of them stay float32 whatever the model's dtype: norm2, scales and shifts, the time embedder."""
        return (6 + 2) * self.width * self.num_layers + 2 * self.width + self._time_embedder()

    def _time_embedder(self) -> int:
        return (self.freq_dim + 1) * self.width + (self.width + 1) * self.width

    def block_parameters(self) -> int:
        """Return the number of weights of one block."""
        return sum(item.weights for item in self.products(1, 1) if item.in_block) + 12 * self.width

    def adapter_parameters(self, lora: Adapters) -> int:
        """Return the number of weights of LoRA: rank x (inputs + outputs) of each adapted layer."""
        adapted = [item for item in self.products(1, 1) if is_adapted(item, lora)]
        return self.num_layers * lora.rank * sum(item.wide + item.out for item in adapted)

    def flops(
        self,
        tokens: int,
        text_tokens: int,
        lora: Adapters | None,
        checkpointing: bool,
        token_timesteps: bool = False,
    ) -> UnitFlops:
        """Return the FLOPs of one sample's forward, of its backward, and of what checkpointing computes again, the blocks.

        A backward is one product for the gradient of an input that has one, and one for the gradient of trained weights;
        attention's is two forwards. With adapters the first block's queries, keys and values, and all keys and values of the
        text, have inputs without a gradient.
        """
        products = self.products(tokens, text_tokens, tokens if token_timesteps else 1)
        layers = self.num_layers
        attention = self.attention_flops(tokens, text_tokens)
        block = attention + sum(_forward(item, lora) for item in products if item.in_block)
        around = sum(item.flops for item in products if not item.in_block)
        backward = sum(
            _backward_of_adapters(item, lora, layers) if lora else _backward_of_all(item, layers) for item in products
        )
        return UnitFlops(
            forward=around + layers * block,
            backward=2 * layers * attention + backward,
            recompute=layers * block if checkpointing else 0.0,
        )


def wan(architecture: Mapping[str, Any]) -> Wan:
    """Return the sizes that a configuration gives; what it leaves out is diffusers' default."""
    given = {key: architecture.get(key) or value for key, value in DEFAULTS.items()}
    return Wan(**given | {"patch_size": tuple(given["patch_size"])})


def is_adapted(item: Product, lora: Adapters | None) -> bool:
    """Return True if a target of LoRA names this layer by the end of its name."""
    return lora is not None and any(f".{item.adapted}".endswith(f".{target}") for target in lora.targets)


def _adapter(item: Product, lora: Adapters | None) -> float:
    return 2.0 * item.rows * lora.rank * (item.wide + item.out) if lora and is_adapted(item, lora) else 0.0


def _forward(item: Product, lora: Adapters | None) -> float:
    return item.flops + _adapter(item, lora)


def _backward_of_all(item: Product, layers: int) -> float:
    return (layers if item.in_block else 1) * item.flops * (2 if item.input_trained else 1)


def _backward_of_adapters(item: Product, lora: Adapters, layers: int) -> float:
    """Return the gradient of the input, where it has one, and both of the adapters'."""
    if not item.in_block:
        return item.flops if item.input_of_video and item.input_trained else 0.0
    first = item.adapted in ("attn1.to_q", "attn1.to_k", "attn1.to_v")
    reached = 0 if not item.input_of_video else layers - first
    adapter = _adapter(item, lora)
    down = 2.0 * item.rows * lora.rank * item.wide if adapter else 0.0  # the adapter's own input gradient
    return reached * item.flops + 2 * layers * adapter - (layers - reached) * down
