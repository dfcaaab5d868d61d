"""A program that calls the library stays as it was: nothing of its process is another after a prediction."""

import gc
import os
import resource
import signal
import sys
import threading
import types
import warnings

import numpy as np
import pytest
import torch
from conftest import make_wav
from small_models import make_checkpoint, make_file, make_videos

import egoaudio
from egoaudio.system import allocator


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    data = make_file(make_videos(tmp_path_factory.mktemp("videos"), 2), tmp_path_factory.mktemp("file") / "ego.h5")
    return make_checkpoint(data, tmp_path_factory.mktemp("run") / "cnn", context_clips=0)


@pytest.fixture
def sounds(tmp_path):
    """Return a folder of eight sounds of a second and a half."""
    generator = np.random.default_rng(0)
    (tmp_path / "sounds").mkdir()
    for number in range(8):
        make_wav(tmp_path / f"sounds/s{number}.wav", 0.1 * generator.standard_normal(12000), 8000)
    return tmp_path / "sounds"


def state():
    """Return what a library could change of its process, by name."""
    umask = os.umask(0o77)
    os.umask(umask)
    limits = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    return {
        "handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "timer": signal.getitimer(signal.ITIMER_REAL)[1] > 0,
        "limits": {number: resource.getrlimit(number) for number in limits},
        "environment": dict(os.environ),
        "folder and umask": (os.getcwd(), umask),
        "cores": os.sched_getaffinity(0),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook),
        "errors of numbers": np.geterr(),
        "random numbers": (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()),
        "torch": (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
        ),
        "threads": {thread.name for thread in threading.enumerate() if thread.name.startswith("egoaudio")},
        "open files": len(os.listdir("/proc/self/fd")),
    }


def test_nothing_of_the_process_is_another_afterwards(best, sounds, tmp_path, monkeypatch):
    changed = []
    heap = types.SimpleNamespace(mallopt=lambda *setting: changed.append(setting), malloc_trim=lambda _: None)
    monkeypatch.setattr(allocator, "_glibc", lambda: heap)
    list(egoaudio.predict(best, sounds, num_workers=2))  # what the libraries open once and keep
    gc.collect()
    before = state()
    egoaudio.predict_to_folder(best, sounds, tmp_path / "out", num_workers=2)
    with warnings.catch_warnings(record=True) as told:
        predictions = egoaudio.predict(best, sounds)
        next(predictions)
        predictions.close()  # nobody wants the others
        gc.collect()
    assert not told
    after = state()
    assert {name: after[name] for name in after if after[name] != before[name]} == {}
    assert not changed
