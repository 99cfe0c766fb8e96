"""The frozen base spread over the ranks by FSDP2, through Accelerate, for models that one device cannot hold.

Only frozen weights are sharded: each rank gathers a block's weights when it comes to the block and lets them go after
it. The adapters stay whole on every rank, so that gradients, optimizer, EMA and checkpoints are what they are without
sharding, and 1 rank and 2 agree. `fsdp2_prepare_model` is what `Accelerator.prepare` shards with; `prepare` itself
wants an optimizer too, to replace its parameters by sharded ones, and here none is.

Memory: every rank reads the whole base into its host's memory (28 GB for the 14B in bfloat16), and its device takes it
from there block by block: a device holds its share and one block at most. Random weights are made whole on the device.
"""

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin, ParallelismConfig, PartialState
from accelerate.utils import DistributedType, fsdp2_prepare_model
from diffusers import WanTransformer3DModel

ADAPTERS = r".*\.lora_[AB]"


def shard_frozen(transformer: WanTransformer3DModel, device: torch.device) -> bool:
    """Takes the transformer to the device, sharded over all ranks but for its adapters; whether there are several."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        transformer.to(device)
        return False
    fsdp2_prepare_model(_accelerator(device), transformer)
    transformer.set_reshard_after_forward(True)  # Accelerate leaves what is in no block gathered
    return True


def _accelerator(device: torch.device) -> Accelerator:
    """Of all ranks. Accelerate (1.15) takes an FSDP plugin from MULTI_GPU ranks alone: MULTI_CPU ones lose it without a
    word, and are refused a ParallelismConfig, without which torch shards on the accelerator that it was built for.
    """
    ranks = PartialState()
    if ranks.distributed_type == DistributedType.MULTI_CPU:
        ranks.distributed_type = DistributedType.MULTI_GPU
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",
        fsdp_plugin=FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", ignored_modules=ADAPTERS
        ),
        parallelism_config=ParallelismConfig(dp_shard_size=ranks.num_processes),
    )
