"""The device that a model runs on, and the precision that it computes in there."""

import platform

import torch

from egoaudio.errors import ConfigurationError


def choose_device(name):
    """Return the torch device called ``name``, or the GPU if there is one, or the CPU.

    Raises
    ------
    ConfigurationError
        When there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()  # a device of nothing but shapes (meta) has no values to give
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA fails an assertion
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ConfigurationError(
            f"`device={name!r}`: cannot be used here ({reason}): expected cpu, or cuda where there is a GPU"
        ) from error
    return device


def computes_bfloat16() -> bool:
    """Return whether this processor has instructions for bfloat16 that oneDNN uses; others emulate it, 8 times slower than float32.

    oneDNN alone also says yes to AVX-512 without bfloat16, where it converts to and fro.
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() in ("x86_64", "amd64", "i686"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return True


def mixed_precision(device, wanted, dtype=None):
    """Return ``(dtype, scaler)`` for mixed precision on ``device``.

    bfloat16 where the device computes it natively; else float16 with a scaler on a GPU, and float32 (None) on a CPU.
    Whether it gains is found out at the first step (``training.step``).

    Parameters
    ----------
    device : torch.device
        Where the model runs.
    wanted : bool
        Whether ``--amp`` was given; if not, ``(None, None)``.
    dtype : str or None
        ``bfloat16`` or ``float16`` if the choice is the user's.
    """
    if not wanted:
        return None, None
    if dtype is None and device.type == "cpu" and not computes_bfloat16():
        return None, None
    if dtype is None:
        dtype = (
            "bfloat16" if device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        )
    scaler = torch.amp.GradScaler(device.type) if dtype == "float16" else None
    return getattr(torch, dtype), scaler


def inference_dtype(device, options, contents):
    """Return the type of autocast in which a checkpoint is scored, None for float32: the one that its run computed in.

    Parameters
    ----------
    device : torch.device
    options : OptimizationConfig
        The run's.
    contents : dict
        The checkpoint.
    """
    slower = device.type == "cpu" and contents.get("amp_dtype", "unknown") is None  # the run found float32 to be faster
    return mixed_precision(device, options.amp and not slower, options.amp_dtype)[0]


def name_of(dtype: torch.dtype | None) -> str | None:
    """Return a type's name as checkpoints hold it, such as ``bfloat16``; None for None."""
    return None if dtype is None else str(dtype).removeprefix("torch.")
