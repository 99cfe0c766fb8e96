"""Follow the life of every tensor that a model makes, and so find how many bytes it holds at its peak."""

import contextlib
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Following(TorchDispatchMode):
    """Inside the block, count the bytes of what was made in it and is still there. peak: the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.there: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.there.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.there = {key: pair for key, pair in self.there.items() if not pair[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.there.values()))
        return made


def held(
    transformer: Any,
    latent_shape: tuple[int, ...],
    dtype: torch.dtype,
    autocast: bool,
    update: bool,
    token_timesteps: bool = False,
) -> int:
    """Return the peak bytes of a forward, or of an update, of one video of these latents beside the weights."""
    tokens = latent_shape[1] * latent_shape[2] * latent_shape[3] // 4
    timestep = torch.full((1, tokens) if token_timesteps else (1,), 500.0)
    x, text = torch.zeros(1, *latent_shape, dtype=dtype), torch.zeros(1, 4, transformer.config.text_dim, dtype=dtype)
    computing = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with Following() as following, torch.set_grad_enabled(update):
        with computing:
            velocity = transformer(x, timestep, text, return_dict=False)[0].float()
        if update:
            velocity.square().sum().backward()
    return following.peak
