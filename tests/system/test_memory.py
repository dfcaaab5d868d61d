"""Memory: which errors mean that there was none left, and how much the system's files say is left."""

import resource

import pytest
import torch

from egoaudio.system.memory import free_memory, is_out_of_memory, peak_memory_mb, reset_peak_memory

CPU = torch.device("cpu")
GIB = 2**30


@pytest.mark.parametrize(
    "error, expected",
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected


def write(root, files):
    """Write ``{path: text}`` under ``root``, which plays the system's own."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, 6 * GIB),
        ({"proc/self/cgroup": "0::/\n"}, 6 * GIB),
        (
            {
                "proc/self/cgroup": "0::/job\n",
                "sys/fs/cgroup/job/memory.max": "max\n",
                "sys/fs/cgroup/job/memory.current": "5\n",
            },
            6 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "0::/job/task\n",
                "sys/fs/cgroup/job/task/memory.max": "max\n",
                "sys/fs/cgroup/job/task/memory.current": "5\n",
                "sys/fs/cgroup/job/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/job/memory.current": f"{3 * GIB}\n",
                "sys/fs/cgroup/job/memory.stat": f"anon 7\ninactive_file {GIB}\n",
            },
            2 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:hugetlb,memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{2 * GIB}\n",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": f"{GIB}\n",
            },
            GIB,
        ),
        (
            {
                "proc/self/cgroup": "0::/job\n",
                "sys/fs/cgroup/job/memory.max": "10\n",
                "sys/fs/cgroup/job/memory.current": "20\n",
            },
            0,
        ),
    ],
)
def test_the_least_of_what_the_machine_and_the_control_groups_leave(tmp_path, files, expected):
    write(tmp_path, {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {6 * GIB // 1024} kB\n", **files})
    assert free_memory(CPU, tmp_path) == expected


def test_the_limit_of_the_process_counts(tmp_path, monkeypatch):
    write(tmp_path, {"proc/self/status": f"Name: x\nVmSize: {2 * GIB // 1024} kB\n"})
    monkeypatch.setattr(resource, "getrlimit", lambda _: (3 * GIB, 3 * GIB))
    assert free_memory(CPU, tmp_path) == GIB


def test_a_system_that_says_nothing_sets_no_limit(tmp_path):
    assert free_memory(CPU, tmp_path) > 2**60


def test_peak_memory_is_measured_anew():
    reset_peak_memory(CPU)
    before = peak_memory_mb(CPU)
    taken = torch.ones(64 * 2**18)  # 64 MB
    during = peak_memory_mb(CPU)
    del taken
    assert 60 < during - before < 200
