"""Add low-rank adapters to a diffusers transformer, through peft."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from flash_grpo.algorithm import keyed, ranges
from flash_grpo.policies.adapter_files import read_adapter, write_original

ADAPTER = "default"
KL_BASES = ("model", "init_from")
INITS = (
    "gaussian",
    True,
)  # those with B = 0; others (pissa, olora) change the base, which export and the KL take as it was


def lora_config(*, rank: int, alpha: float, targets: Sequence[str], init: str = "gaussian") -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights=init)


def add_lora(
    transformer: WanTransformer3DModel,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    init: str,
    seed: int,
    init_from: Any = None,
    kl_base: str = "model",
    prefix: str = "",
) -> None:
    """Freeze the transformer and add float32 adapters, whatever its dtype, to each linear layer that a target names.

    rank, alpha: of the adapters, applied at the scale alpha/rank. targets: ends of layers' names. init: "gaussian" draws A
    from N(0, 1/rank²) by key, so that ranks and devices agree, and sets B to 0; True is peft's own A, and B = 0. seed: of A.
    prefix: begins the keys' names, so that the transformers of a policy draw different ones. init_from, kl_base: see
    `expert.Expert`.
    ValueError for values out of range and for a target that names no layer.
    """
    ranges.whole("optim.lora.rank", rank, at_most=4096)
    ranges.number("optim.lora.alpha", alpha, above=0)
    ranges.one_of("optim.lora.init", init, INITS)
    ranges.whole("optim.lora.seed", seed, at_least=0)
    ranges.one_of("optim.lora.kl_base", kl_base, KL_BASES)
    if kl_base == "init_from" and not init_from:
        raise ValueError(
            "optim.lora.kl_base=init_from: names no file; give optim.lora.init_from=FILE, or leave it model"
        )
    _refuse_targets_that_match_nothing(transformer, targets)
    transformer.requires_grad_(False)
    transformer.add_adapter(lora_config(rank=rank, alpha=alpha, targets=targets, init=init), ADAPTER)
    for name, parameter in transformer.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if init == "gaussian" and ".lora_A." in name and parameter.device.type != "meta":
                parameter.data.copy_(keyed.normal(parameter.shape, seed, "lora", f"{prefix}{name}") / rank)


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


@contextmanager
def holding(parameters: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> Iterator[None]:
    """Give the parameters these values inside the block. A graph that was made before goes backward by their own."""
    own = {name: parameter.data for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data = values[name]
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


@torch.no_grad()
def start_from(transformer: WanTransformer3DModel, file: str, *, rank: int, alpha: float) -> None:
    """Give the transformer's adapters the values in a file, see `adapter_files.read_adapter`; ValueError if it has others."""
    stored = read_adapter(file, rank, alpha)
    named = transformer.named_parameters()
    own = {name.replace(f".{ADAPTER}.", "."): parameter for name, parameter in named if parameter.requires_grad}
    if others := sorted(own.keys() ^ stored.keys()):
        whose = (
            "this run's adapters have, and it has not"
            if others[0] in own
            else "it has, and this run's adapters have not"
        )
        raise ValueError(
            f"optim.lora.init_from={file}: {others[0]} is what {whose} ({len(others)} tensors); set optim.lora.targets to its "
            "layers"
        )
    for name, parameter in own.items():
        if parameter.shape != stored[name].shape:
            raise ValueError(
                f"optim.lora.init_from={file}: {name} is {list(stored[name].shape)} there and {list(parameter.shape)} here; it "
                "is of another model"
            )
        parameter.copy_(stored[name])


def save_lora(
    folder: Path, parameters: dict[str, torch.Tensor], *, file: str, rank: int, alpha: float, targets: Sequence[str]
) -> None:
    """Write adapters so that `WanPipeline.load_lora_weights` applies them at the scale they were trained at.

    The same go to comfyui/FILE, under the names that ComfyUI and musubi-tuner read.
    """
    layers = {name.replace(f".{ADAPTER}.", "."): value.contiguous() for name, value in parameters.items()}
    described = lora_config(rank=rank, alpha=alpha, targets=targets).to_dict()
    described["target_modules"] = sorted(described["target_modules"])  # a set, which JSON lacks
    WanPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=layers,
        transformer_lora_adapter_metadata=described,
        weight_name=file,
    )
    write_original(folder / "comfyui" / file, layers, rank, alpha)


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
