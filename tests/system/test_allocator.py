"""Freed memory: kept for what comes next, or given back. Each in a fresh process, whose settings are its own."""

import platform
import subprocess
import sys
import textwrap
import types

import pytest

from egoaudio.system import allocator

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")

COUNTING = """
    import resource
    import numpy as np
    from egoaudio.system import allocator as heap

    def faults(work):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        work()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def fill(size=20 << 20):
        for array in [np.empty(size, np.uint8) for _ in range(4)]:
            array.fill(1)

    def resident_mb():
        return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
"""


def run(code):
    """Return what a fresh process prints, as numbers."""
    code = textwrap.dedent(COUNTING) + textwrap.dedent(code)
    return [
        int(word)
        for word in subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    ]


def test_freed_memory_is_kept_for_what_comes_next():
    usually, kept, faults = run("""
        start = resident_mb()
        fill()
        print(resident_mb() - start)
        heap.keep_freed_memory()
        fill()
        print(resident_mb() - start)
        print(faults(fill))
    """)
    assert usually < 30  # glibc itself may keep one block
    assert kept > 75
    assert faults < 100  # a page is 4 KiB


def test_only_so_much_is_kept_as_was_said():
    kept, not_kept = run("""
        heap.keep_freed_memory(64 << 20)
        start = resident_mb()
        fill(8 << 20)
        print(resident_mb() - start)
        fill()
        print(resident_mb() - start)
    """)
    assert kept > 30
    assert not_kept < 10


def test_returned_memory_is_free_at_once_and_stays_so():
    kept, returned, later = run("""
        heap.keep_freed_memory()
        fill()
        start = resident_mb()
        print(start)
        heap.return_freed_memory()
        print(start - resident_mb())
        before = resident_mb()
        fill()
        print(resident_mb() - before)
    """)
    assert kept > 80
    assert returned > 75
    assert later < 5


def test_trim_gives_back_once_and_what_is_freed_after_it_is_kept():
    returned, faults = run("""
        heap.keep_freed_memory()
        fill()
        start = resident_mb()
        heap.trim()
        print(start - resident_mb())
        fill()
        print(faults(fill))
    """)
    assert returned > 75
    assert faults < 100


def test_a_step_on_a_cpu_takes_the_memory_of_the_step_before():
    # In float32, which every processor computes natively; and against the same step whose memory goes back each time,
    # as how much one takes depends on the processor.
    kept, returned = run("""
        import torch
        from egoaudio.training.losses import Loss
        from egoaudio.training.step import Stepper
        from egoaudio.models import create_model

        model = create_model("cnn", 5, (32, 1025))
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        stepper = Stepper(model, optimizer, Loss("multi"), device="cpu")
        features, labels = torch.rand(16, 32, 1025), torch.zeros(16, 5)
        with heap.owned():
            for _ in range(3):
                stepper.step(features, labels)
            print(faults(lambda: stepper.step(features, labels)))
            heap.return_freed_memory()
            stepper.step(features, labels)
            print(faults(lambda: stepper.step(features, labels)))
    """)
    assert kept < returned / 5


def test_the_library_keeps_the_settings_of_a_process_that_is_not_ours(monkeypatch):
    changed, trimmed = [], []
    library = types.SimpleNamespace(mallopt=lambda *setting: changed.append(setting), malloc_trim=trimmed.append)
    monkeypatch.setattr(allocator, "_glibc", lambda: library)
    allocator.reuse_blocks()
    allocator.release_blocks()
    assert (changed, trimmed) == ([], [0])
    with allocator.owned():
        allocator.reuse_blocks()
        allocator.release_blocks()
    assert len(changed) == 3 and len(trimmed) == 2
    allocator.reuse_blocks()
    assert len(changed) == 3
