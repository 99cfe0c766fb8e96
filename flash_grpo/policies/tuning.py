"""Choose how Wan's transformer computes: gradient checkpointing, an attention backend, torch.compile."""

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn


def tune(
    transformer: WanTransformer3DModel,
    device: torch.device,
    dtype: torch.dtype,
    gradient_checkpointing: bool,
    attention: str | None,
    compile: bool,
) -> None:
    """Set what `WanPolicy` documents under these names. device, dtype: where and in what attention will be computed.

    ValueError if the attention backend is unknown, cannot run here, or gives no gradient.
    """
    if gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if attention:
        try:
            transformer.set_attention_backend(attention)
        except (ValueError, RuntimeError, ImportError) as error:
            raise ValueError(f"model.attention={attention}: {' '.join(str(error).split())}") from error
        if device.type != "meta":
            refuse_without_gradient(attention, transformer.config.attention_head_dim, device, dtype)
    if compile:
        transformer.compile_repeated_blocks()


def refuse_without_gradient(attention: str, width: int, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError if the attention backend has no backward: query and key would stay untrained, unnoticed.

    attention: the value of diffusers' enum. width: of an attention head.
    """
    qkv = torch.linspace(-1, 1, 3 * 16 * width, device=device).to(dtype).reshape(3, 1, 16, 1, width).requires_grad_()
    why = ""
    try:
        dispatch_attention_fn(*qkv, backend=AttentionBackendName(attention)).float().square().sum().backward()
    except Exception as error:  # every kernel raises another kind
        why = f" ({type(error).__name__}: {str(error).strip().splitlines()[0]})" if str(error).strip() else ""
    if qkv.grad is None or not bool(qkv.grad.flatten(1).any(1).all()):
        raise ValueError(f"model.attention={attention}: it gives no gradient here{why}; native does")
