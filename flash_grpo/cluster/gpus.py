"""Ask Slurm for a run's GPUs as the site wants to be asked: with or without a type, by --gpus-per-node or by --gres."""

from collections.abc import Mapping
from typing import Any

from flash_grpo.cluster.refusal import refuse

OPTIONS = ("gpus_per_node", "gres")  # values of hydra.launcher.gpu_option
KEYS = ("gpus_per_node", "gpu_type", "gpu_option", "gres")  # of the launcher's settings


def refuse_gpus(params: Mapping[str, Any]) -> None:
    """Refuse GPUs that are not one for each rank, or not written as the launcher's settings want them. params: the settings."""
    count, tasks, gres = params["gpus_per_node"], params["tasks_per_node"], str(params["gres"] or "")
    if isinstance(count, str):
        refuse(
            f"hydra.launcher.gpus_per_node={count}: expected a number of GPUs; their type goes to "
            f"hydra.launcher.gpu_type={count.partition(':')[0]}"
        )
    if gres.startswith("gpu") or ",gpu" in gres:
        refuse(
            f"hydra.launcher.gres={gres}: GPUs are asked for by hydra.launcher.gpus_per_node (how many), gpu_type, and "
            "gpu_option=gres for a site that wants --gres"
        )
    if params["gpu_option"] not in OPTIONS:
        refuse(f"hydra.launcher.gpu_option={params['gpu_option']}: expected one of {', '.join(OPTIONS)}")
    if count and count != tasks:
        refuse(f"hydra.launcher: gpus_per_node={count} but tasks_per_node={tasks}; each rank has one GPU")


def gpu_parameters(params: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the settings of KEYS to submitit's: gpus_per_node='a100:8', or gres='gpu:a100:8'."""
    count, kind = params["gpus_per_node"], params["gpu_type"]
    asked = f"{kind}:{count}" if kind and count else count
    if not count or params["gpu_option"] == "gpus_per_node":
        return {"slurm_gpus_per_node": asked, "slurm_gres": params["gres"]}
    return {"slurm_gres": ",".join([f"gpu:{asked}", *filter(None, [params["gres"]])])}
