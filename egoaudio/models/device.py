"""The device on which a model runs, and the precision in which it computes there."""

import contextlib
import platform
from collections.abc import Iterator
from typing import Any

import torch

from egoaudio.config.train import OptimizationConfig
from egoaudio.errors import ConfigurationError


def choose_device(name: str | None) -> torch.device:
    """Return the torch device called ``name``; if None, the GPU if there is one, else the CPU.

    Raises
    ------
    ConfigurationError
        When there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()  # fails for the meta device, which has shapes but no values
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA fails an assertion
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ConfigurationError(
            f"`device={name!r}`: cannot be used here ({reason}): expected cpu, or cuda where there is a GPU"
        ) from error
    return device


@contextlib.contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """Let a GPU train fast within a ``with`` block; torch's settings are restored afterwards.

    Matrix products of float32 are computed in TF32, and cuDNN times its algorithms for each shape and takes the
    fastest. On a CPU nothing changes: TF32 could mean bfloat16 there.
    """
    if device.type != "cuda":
        yield
        return
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = benchmark


def computes_bfloat16() -> bool:
    """Return whether this processor has instructions for bfloat16 that oneDNN uses.

    Other processors emulate it, 8 times slower than float32. oneDNN's own answer is also True for AVX-512 without
    bfloat16, where it converts to float32 and back.
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() in ("x86_64", "amd64", "i686"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return True


def mixed_precision(
    device: torch.device, wanted: bool, dtype: str | None = None
) -> tuple[torch.dtype | None, torch.amp.GradScaler | None]:
    """Return ``(dtype, scaler)`` for mixed precision on ``device``.

    bfloat16 if the device computes it natively; else float16 with a scaler on a GPU, and float32 (None) on a CPU.
    The first training step measures whether it is faster (``training.step``).

    Parameters
    ----------
    device : torch.device
        Where the model runs.
    wanted : bool
        Whether to use mixed precision; if not, ``(None, None)``.
    dtype : str or None
        ``bfloat16`` or ``float16`` if the user chose one.
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


def inference_dtype(device: torch.device, options: OptimizationConfig, contents: dict[str, Any]) -> torch.dtype | None:
    """Return the type of autocast in which a checkpoint is scored, that of its run; None for float32.

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
    """Return the name of a type in checkpoints, such as ``bfloat16``; None for None."""
    return None if dtype is None else str(dtype).removeprefix("torch.")
