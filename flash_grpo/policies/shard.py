"""Shard a model's frozen base over the ranks by FSDP2, for models that one device cannot hold.

Only frozen weights are sharded: each rank gathers a block's weights when it reaches the block and frees them after it.
The adapters stay whole on every rank, so that gradients, optimizer, EMA and checkpoints are the same as without sharding,
and 1 rank and 2 agree.

Memory: every rank reads the whole base into its host's memory (28 GB for the 14B in bfloat16), and its device takes it
from there block by block: a device holds its own shard and at most one whole block. Random weights are made on the device
as a whole.
"""

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard_frozen(transformer: WanTransformer3DModel, device: torch.device) -> bool:
    """Move the transformer to the device, its frozen weights sharded over all ranks; return True if there are several.

    Alone, a rank moves the whole transformer. The mesh names the device's own type, because torch would otherwise shard on
    the accelerator that it was built for, also where ranks compute on CPUs.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        transformer.to(device)
        return False
    shard_over_all(transformer, device)
    return True


def shard_over_all(transformer: WanTransformer3DModel, device: torch.device) -> None:
    """Shard the frozen weights over the process group's ranks, also where it has only one."""
    adapters = {parameter for parameter in transformer.parameters() if parameter.requires_grad}
    for adapter in adapters:  # FSDP moves only what it shards
        adapter.data = adapter.data.to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in (*transformer.blocks, transformer):  # the last call shards what belongs to no block
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=adapters)
