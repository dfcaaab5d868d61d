"""Memory: how much is free, how much was used, and whether an error means that it ran out.

Units are bytes, except ``peak_memory_mb`` (MB of 1024 * 1024 bytes). On a CPU, Linux kills a process that takes too
much memory without an error, so the free memory is read beforehand from three places: the process's own limit
(``ulimit -v``), the limits of its control groups, and the machine's available memory. Source: proc(5), cgroups(7).
"""

import pathlib
import resource
from collections.abc import Iterator

import torch

from egoaudio.system import allocator

# Words of the errors that have no class of their own: allocation failures of cuBLAS, cuDNN, C++ and torch's CPU
# allocator. cuDNN says NOT_SUPPORTED for tensors beyond 2**31 elements, for which smaller micro-batches help as well;
# oneDNN names only the object that it could not make.
OUT_OF_MEMORY_WORDS = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "std::bad_alloc",
    "can't allocate memory",
    "could not create a memory",
    "could not create a primitive",
    "could not execute a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)


def free_memory(device: torch.device, root: str | pathlib.Path = "/") -> int:
    """Return how many bytes this process may still take on ``device``.

    On a CPU the least of what ``RLIMIT_AS``, the control groups and ``MemAvailable`` leave, after the C library has
    returned the freed memory that it keeps; limits that cannot be read (on other systems) do not count.

    Parameters
    ----------
    device : torch.device
        Where the model runs.
    root : str or pathlib.Path
        The folder of ``proc`` and ``sys``.
    """
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    allocator.trim()
    root = pathlib.Path(root)
    limits = [_limit_left(root), _machine_left(root), *_control_groups_left(root)]
    left = [number for number in limits if number is not None]
    return max(min(left), 0) if left else 2**63 - 1


def _limit_left(root: pathlib.Path) -> int | None:
    """Return what ``ulimit -v`` leaves of the address space, or None without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    return limit - (_kilobytes(root / "proc/self/status", "VmSize:") or 0)


def _machine_left(root: pathlib.Path) -> int | None:
    """Return ``MemAvailable``, or None without /proc."""
    return _kilobytes(root / "proc/meminfo", "MemAvailable:")


def _control_groups_left(root: pathlib.Path) -> Iterator[int]:
    """Yield what each memory limit of this process's control groups and of their parents leaves (versions 1 and 2)."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit_name, used_name = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit_name, used_name = (
                root / "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        group = base / path.lstrip("/")
        for folder in [group, *group.parents]:
            limit, used = _text(folder / limit_name).strip(), _text(folder / used_name).strip()
            if limit.isdigit() and used.isdigit():  # "max" is no limit; version 1 says 2**63 rounded down
                # The page cache counts as used but is released when memory is needed.
                yield int(limit) - int(used) + _cached(folder / "memory.stat")
            if folder == base:
                break


def _cached(path: pathlib.Path) -> int:
    """Return the bytes of reclaimable page cache in a control group's ``memory.stat``."""
    for line in _text(path).splitlines():
        name, _, number = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(number)
    return 0


def _kilobytes(path: pathlib.Path, name: str) -> int | None:
    """Return the value of a line such as ``VmSize:  123 kB`` in bytes, or None if there is no such line."""
    for line in _text(path).splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return None


def _text(path: pathlib.Path) -> str:
    """Return the content of a small system file; empty if it does not exist or may not be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def reset_peak_memory(device: torch.device) -> None:
    """Reset the measured peak: CUDA's own counter, or the kernel's high-water mark of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not permitted: the peak is then that of the whole run
        return


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory used since ``reset_peak_memory``, in MB.

    On CUDA that of torch's tensors; on a CPU the resident memory of this process, including mapped file pages.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = _kilobytes(pathlib.Path("/proc/self/status"), "VmHWM:")
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak / 2**20
