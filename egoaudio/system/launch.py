"""How this process was started: alone, or as one of several *ranks* by ``torchrun`` or ``srun``.

Each rank finds its number and that of all of them in the environment. Rank 0 alone writes and speaks.
Source: https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
"""

import os
from dataclasses import dataclass

from egoaudio.errors import ConfigurationError


@dataclass(frozen=True)
class Launch:
    """The numbers of a rank, each counted from 0."""

    rank: int = 0
    size: int = 1
    """Ranks on all machines."""
    local_rank: int = 0
    """Among those on this machine."""
    local_size: int = 1
    """Ranks on this machine, which share its memory."""


def launched() -> Launch:
    """Return how this process was started, by ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE``.

    Without the last two, all ranks are on this machine.

    Raises
    ------
    ConfigurationError
        When they are no numbers, or none that fit each other.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return Launch()
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    local_rank, local_size = _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", size)
    if rank >= size or local_rank >= local_size:
        raise ConfigurationError(
            f"RANK={rank} of WORLD_SIZE={size}, LOCAL_RANK={local_rank} of LOCAL_WORLD_SIZE={local_size} in the "
            "environment: expected ranks from 0 to one less than their number; torchrun sets all four"
        )
    return Launch(rank, size, local_rank, local_size)


def _number(name: str, otherwise: int = 0) -> int:
    """Return a number of the environment."""
    text = os.environ.get(name, str(otherwise))
    if not text.isdecimal():
        raise ConfigurationError(f"{name}={text!r} in the environment: expected a number, as torchrun sets it")
    return int(text)
