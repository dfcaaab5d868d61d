"""How this process was started: alone, or as one of several *ranks* by ``torchrun`` or ``srun``.

Each rank finds its number and that of all of them in the environment. Rank 0 alone writes and speaks. Tasks of ``srun``
are ranks only where the caller says so (``python -m egoaudio.training``): they may as well be separate runs.
Source: https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables, https://slurm.schedmd.com/srun.html
"""

import os
import re
from collections.abc import Mapping
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


def from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Return torchrun's variables for a task that ``srun`` has started beside others; else none.

    Rank 0 is a task on the first node, as Slurm has it. The port follows from the job and the step, so that two on one
    machine do not meet. ``MASTER_ADDR`` and ``MASTER_PORT`` stay where they are set.
    """
    if "RANK" in environment or environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return {}
    tasks = []  # of each node: "2(x3),1" are 2, 2, 2 and 1
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"]):
        tasks += [count] * int(times or 1)
    # "gpu[07-09,12],big1" begins with gpu07.
    first = re.match(r"([^,[]*)(?:\[(\w+)[^]]*\])?([^,[]*)", environment["SLURM_STEP_NODELIST"])
    address = "".join(filter(None, first.groups())) if first else ""
    number = 16 * int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": tasks[int(environment["SLURM_NODEID"])],
        "MASTER_ADDR": environment.get("MASTER_ADDR", address),
        "MASTER_PORT": environment.get("MASTER_PORT", str(20000 + number % 10000)),
    }


def _number(name: str, otherwise: int = 0) -> int:
    """Return a number of the environment."""
    text = os.environ.get(name, str(otherwise))
    if not text.isdecimal():
        raise ConfigurationError(f"{name}={text!r} in the environment: expected a number, as torchrun sets it")
    return int(text)
