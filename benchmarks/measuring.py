"""What the benchmarks share: the machine, medians of interleaved runs, a table and a JSON.

Machines drift, ratios do not: rivals run in turn (A B A B ...), and the median of each is quoted. Where much memory is
written, all find it full of cached files, as on a machine that has worked for days (``fill_memory``).
"""

import json
import os
import platform
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata

PACKAGES = (
    "av",
    "h5py",
    "joblib",
    "numpy",
    "scipy",
    "torch",
    "librosa",
    "noisereduce",
    "moviepy",
    "imageio-ffmpeg",
    "lhotse",
    "lilcom",
    "audioread",
    "webdataset",
    "litdata",
    "datasets",
    "lightning",
    "accelerate",
    "transformers",
)


def fill_memory():
    """Have a file of holes take all free memory as cache, from now on; ``refill`` replaces what has been freed since.

    A virtual machine may give memory that is free for two seconds back to its host, and whoever touches it next waits
    for the host: here 2.7 ms a MB instead of 0.33. Who ran before whom then decided what a build of 0.9 GB took, 5.4 or
    6.8 s. Memory that holds a cached file stays, and the kernel gives it at once to whoever needs some.
    """
    if not _filler:
        _filler.append(tempfile.TemporaryFile(buffering=0))
        _filler[0].truncate(1 << 40)
    refill()


_filler = []  # the file, once there is one


def refill():
    """Read on in the file of ``fill_memory`` until the kernel takes memory from other files for it.

    Without that call, do nothing. Beside programs that free memory it may never: twice the memory is read at most.
    """
    block, free = bytearray(1 << 20), None
    gigabytes = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    for _ in range(gigabytes if _filler else 0):
        for _ in range(1024):
            _filler[0].readinto(block)
        before, free = free, _free_mb()
        if before is not None and before - free < 128:
            break


def _free_mb():
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemFree:")) // 1024


# With AVX2, AVX2 and avx2 PyTorch takes this for an AVX2 machine; NumPy leaves out what the last one lists.
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY", "NPY_DISABLE_CPU_FEATURES")


def machine():
    """Return the processor, its cores, and the versions of what was measured."""
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": model,
        "instructions": instructions(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
    }


def instructions():
    """Return the vector instructions that this processor has, and what the environment holds PyTorch to, if it does."""
    with open("/proc/cpuinfo") as file:
        flags = next((set(line.split(":")[1].split()) for line in file if line.startswith("flags")), set())
    found = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    held = [f"{name}={os.environ[name]}" for name in ISA_LIMITS if name in os.environ]
    return " ".join(found + held) or platform.machine()


def cpu_seconds():
    """Return the processor time of this process and its ended children."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


@dataclass(frozen=True)
class Took:
    """Seconds of the part of a run that counts."""

    wall: float
    cpu: float


class Stopwatch:
    """Starts when it is made."""

    def __init__(self):
        self._cpu, self._wall = cpu_seconds(), time.perf_counter()

    def took(self):
        """Return a ``Took`` of the time since."""
        return Took(time.perf_counter() - self._wall, cpu_seconds() - self._cpu)


def interleave(rivals, repeats):
    """Run each rival in turn, ``repeats`` times after one warm-up.

    Parameters
    ----------
    rivals : dict of str to callable
        One that returns a ``Took`` is believed; any other is timed as a whole.

    Returns
    -------
    dict of str to list of dict
        ``wall`` and ``cpu`` seconds of every run.
    """
    runs = {name: [] for name in rivals}
    for repeat in range(repeats + 1):
        for name, run in rivals.items():
            refill()
            watch = Stopwatch()
            result = run()
            took = result if isinstance(result, Took) else watch.took()
            if repeat:
                runs[name].append({"wall": took.wall, "cpu": took.cpu})
    return runs


def median(runs, kind="wall"):
    """Return the median of the runs of one rival."""
    return statistics.median(run[kind] for run in runs)


def table(header, rows):
    """Print a Markdown table, its columns aligned."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print(flush=True)


def write_json(path, **facts):
    """Write what was measured, with the machine, if a path is given."""
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(), **facts}, file, indent=1)
