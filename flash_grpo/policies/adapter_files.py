"""Read adapters of any layout, and write them under the names of Wan's own code, which ComfyUI and musubi-tuner read.

A layer's pair is lora_A, lora_B to diffusers and lora_down, lora_up there, with an alpha beside it; both are applied at the
scale alpha / rank. Names: `comfy/lora.py` of ComfyUI takes `diffusion_model.` and the model's own names, musubi-tuner's
`convert_lora.py` the same; diffusers' `_convert_non_diffusers_wan_lora_to_diffusers` reads them back.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import WanPipeline
from safetensors import SafetensorError
from safetensors.torch import save_file

PREFIX = "diffusion_model."
IN_BLOCKS = {  # diffusers' name of a layer -> Wan's
    "attn1.to_q": "self_attn.q", "attn1.to_k": "self_attn.k", "attn1.to_v": "self_attn.v", "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q", "attn2.to_k": "cross_attn.k", "attn2.to_v": "cross_attn.v", "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2",
}  # fmt: skip
AROUND = {
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
}
LAYER = re.compile(r"(.*)\.lora_([AB])\.weight")


def write_original(file: Path, layers: Mapping[str, torch.Tensor], rank: int, alpha: float) -> None:
    """Write adapters under Wan's own names. layers: by diffusers' name, as in blocks.0.attn1.to_q.lora_A.weight.

    Around the blocks diffusers reads no alpha: there the scale is in lora_up.
    """
    written: dict[str, torch.Tensor] = {}
    for name, value in layers.items():
        layer, side = _layer(name)
        inside = layer.startswith("blocks.")
        key = PREFIX + _original(layer)
        scaled = value if inside or side == "A" else value * (alpha / rank)
        written[f"{key}.lora_{'down' if side == 'A' else 'up'}.weight"] = scaled.contiguous()
        if inside:
            written[f"{key}.alpha"] = torch.tensor(float(alpha))
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(written, file)


def read_adapter(file: str, rank: int, alpha: float) -> dict[str, torch.Tensor]:
    """Read adapters by diffusers' names, scaled for a rank and an alpha; ValueError in one line, naming the file.

    file: in diffusers' layout, ComfyUI's or musubi-tuner's.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"optim.lora.init_from={file}: there is no such file")
    try:
        found, metadata = WanPipeline.lora_state_dict(
            str(path.parent),
            weight_name=path.name,
            use_safetensors=True,
            local_files_only=True,
            return_lora_metadata=True,
        )
    except (OSError, ValueError, KeyError, IndexError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"optim.lora.init_from={file}: no adapters of Wan that diffusers can read ({why})") from error
    layers = {name.removeprefix("transformer."): value.float() for name, value in found.items()}
    ranks = sorted({len(value) for name, value in layers.items() if LAYER.fullmatch(name) and _layer(name)[1] == "A"})
    if ranks != [rank]:
        raise ValueError(f"optim.lora.init_from={file}: its rank is {ranks}; set optim.lora.rank to it")
    own = metadata["transformer.lora_alpha"] / metadata["transformer.r"] if metadata else 1.0
    scale = own / (alpha / rank)
    return {name: value * scale if _layer(name)[1] == "A" else value for name, value in layers.items()}


def _layer(name: str) -> tuple[str, str]:
    """Return a layer's name, and "A" or "B"; ValueError for anything else that an adapter may hold."""
    if not (match := LAYER.fullmatch(name)):
        raise ValueError(f"{name}: adapters of two matrices a layer are supported, without biases and magnitudes")
    return match[1], match[2]


def _original(layer: str) -> str:
    """Return Wan's own name of a layer."""
    if layer in AROUND:
        return AROUND[layer]
    _, number, inside = layer.split(".", 2)
    return f"blocks.{number}.{IN_BLOCKS[inside]}"
