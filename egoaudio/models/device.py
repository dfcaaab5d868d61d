"""The device that a model runs on, and the precision that it computes in there."""

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
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA fails an assertion
        raise ConfigurationError(f"--device {name}: cannot be used here ({str(error).splitlines()[0]}): expected cpu, or cuda where there is a GPU") from error
    return device


def mixed_precision(device, wanted, dtype=None):
    """Return ``(dtype, scaler)`` for mixed precision on ``device``: bfloat16 where it has it, else float16 with a scaler.

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
    if dtype is None:
        dtype = "bfloat16" if device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    scaler = torch.amp.GradScaler(device.type) if dtype == "float16" else None
    return getattr(torch, dtype), scaler
