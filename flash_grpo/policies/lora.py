"""Add low-rank adapters to a diffusers transformer, through peft."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from flash_grpo.algorithm import keyed, ranges

ADAPTER = "default"
INITS = (
    "gaussian",
    True,
)  # those with B = 0; others (pissa, olora) change the base, which export and the KL take as it was


def lora_config(*, rank: int, alpha: float, targets: Sequence[str], init: str = "gaussian") -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights=init)


def add_lora(
    transformer: WanTransformer3DModel, *, rank: int, alpha: float, targets: Sequence[str], init: str, seed: int
) -> None:
    """Freeze the transformer and add float32 adapters, whatever its dtype, to each linear layer that a target names.

    rank, alpha: of the adapters, applied at the scale alpha/rank. targets: ends of layers' names. init: "gaussian" draws A
    from N(0, 1/rank²) by key, so that ranks and devices agree, and sets B to 0; True is peft's own A, and B = 0. seed: of A.
    ValueError for values out of range and for a target that names no layer.
    """
    ranges.whole("optim.lora.rank", rank, at_most=4096)
    ranges.number("optim.lora.alpha", alpha, above=0)
    ranges.one_of("optim.lora.init", init, INITS)
    ranges.whole("optim.lora.seed", seed, at_least=0)
    _refuse_targets_that_match_nothing(transformer, targets)
    transformer.requires_grad_(False)
    transformer.add_adapter(lora_config(rank=rank, alpha=alpha, targets=targets, init=init), ADAPTER)
    for name, parameter in transformer.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if init == "gaussian" and ".lora_A." in name and parameter.device.type != "meta":
                parameter.data.copy_(keyed.normal(parameter.shape, seed, "lora", name) / rank)


@contextmanager
def without_lora(transformer: WanTransformer3DModel) -> Iterator[None]:
    """Make the transformer the base model inside the block."""
    layers = [module for module in transformer.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True  # enable_adapters(False) would also stop the adapters' gradients
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def save_lora(
    folder: Path, parameters: dict[str, torch.Tensor], *, rank: int, alpha: float, targets: Sequence[str]
) -> None:
    """Write adapters so that `WanPipeline.load_lora_weights(folder)` applies them at the scale they were trained at."""
    layers = {name.replace(f".{ADAPTER}.", "."): value.contiguous() for name, value in parameters.items()}
    described = lora_config(rank=rank, alpha=alpha, targets=targets).to_dict()
    described["target_modules"] = sorted(described["target_modules"])  # a set, which JSON lacks
    WanPipeline.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=described)


def _refuse_targets_that_match_nothing(transformer: WanTransformer3DModel, targets: Sequence[str]) -> None:
    if isinstance(targets, str) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"optim.lora.targets={ranges.shown(targets)}: must be a list of names, as in [to_q, to_k]")
    linear = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    idle = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in linear)]
    if idle or not targets:
        there = sorted({name.split("attn1.")[1] for name in linear if "attn1." in name})
        raise ValueError(
            f"optim.lora.targets: {', '.join(idle) or 'none given'} match no linear layer of the transformer; its "
            f"attention has {', '.join(there)}"
        )
