"""The frozen base spread over the ranks (FSDP2), for models that one device cannot hold.

Only frozen weights are sharded: each rank gathers a block's weights when it comes to the block and lets them go after it.
The adapters stay whole on every rank, so that gradients, optimizer, EMA and checkpoints are what they are without sharding,
and 1 rank and 2 agree. Torch's `fully_shard` is called directly: Accelerate's wrapper wants an optimizer of its own and
shards what it is not told to leave.
"""

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard_frozen(transformer: WanTransformer3DModel, device: torch.device) -> bool:
    """Shards the frozen parameters over all ranks; whether there was more than one to shard them over."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return False
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    adapters = {parameter for parameter in transformer.parameters() if parameter.requires_grad}
    for block in transformer.blocks:
        fully_shard(block, mesh=mesh, ignored_params=adapters)
    fully_shard(transformer, mesh=mesh, ignored_params=adapters, reshard_after_forward=True)
    return True
