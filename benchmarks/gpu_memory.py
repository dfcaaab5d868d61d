"""How many clips of the Audio Spectrogram Transformers fit on a GPU, and whether a batch of any size trains.

In: a device. Out: the largest power of two that does a step, by way of doing it; and whole runs of ``egoaudio.train``
with batches of 512 clips of ``ast-paper`` (17,172 tokens each) within the memory of smaller GPUs. All in bfloat16.
"""

import gc
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import gpu_loops
import loops
import measuring
import synthetic
import torch
from torch import nn

import egoaudio
from egoaudio.config.train import DataConfig, ModelConfig, OptimizationConfig, TrainConfig
from egoaudio.models.device import computing_on
from egoaudio.training.step import Stepper

GIGABYTE = 2**30
LARGEST_GPU = 80  # GB; a larger one is held to it
SEARCH_SECONDS = 4  # for one way


def measure(device, tiny):
    """Return the largest batches and the runs; print their tables."""
    facts = {"largest": {}, "runs": {}}
    for case in cases(tiny):
        rows = []
        for name, make in WAYS.items():
            found = largest(
                lambda size, make=make, case=case: make(case, device, size), device, 1 if tiny else case.batch_size
            )
            facts["largest"][f"{case.name}: {name}"] = found
            rows.append([name, f"{found['clips']:,}", f"{found['clips_per_second']:,.1f}", found["why"]])
        limit = f"{LARGEST_GPU} GB" if device.type == "cuda" else "tiny"
        measuring.table([f"{case.name}, {limit}", "largest batch", "clips/s", "the next: "], rows)
    rows = []
    for gigabytes in (8,) if tiny else (LARGEST_GPU, 8):
        found = facts["runs"][str(gigabytes)] = train_within(gigabytes, device, tiny)
        rows.append([f"{gigabytes} GB", *found.values()])
    measuring.table(["ast-paper, batch 512, within", *found], rows)
    return facts


def cases(tiny):
    """Return the networks, with the batch from which the search starts."""
    if tiny:
        small = ModelConfig(model="ast", hidden_size=24, num_layers=2, num_heads=2, dropout=0.0)
        return [gpu_loops.Case("ast, 32 frames", small, (32, 32), 1, 1, num_classes=5)]
    ast = ModelConfig(model="ast", dropout=0.1, patchout=0.0)
    return [
        gpu_loops.Case("ast-paper", ModelConfig(model="ast-paper"), (32, 1025), 4, 1),
        gpu_loops.Case("ast, 1,024 frames", ast, (1024, 128), 256, 1),
    ]


def hold(device, gigabytes):
    """Give this process so much of the GPU and no more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(gigabytes * GIGABYTE / total, 1.0), device)


def largest(make_step, device, first):
    """Return the largest batch that does a step: doubled from ``first`` until memory or the time for it runs out."""
    hold(device, LARGEST_GPU)
    started, size, found = time.perf_counter(), first, {"clips": 0, "clips_per_second": 0.0, "why": ""}
    while time.perf_counter() - started < SEARCH_SECONDS:
        try:
            step = make_step(size)
            step()
            again = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found |= {"clips": size, "clips_per_second": size / (time.perf_counter() - again)}
        except torch.OutOfMemoryError:
            return found | {"why": "out of memory"}
        except RuntimeError as error:
            return found | {"why": str(error).splitlines()[0][:80]}
        finally:
            step = None
            hold(device, LARGEST_GPU)
        if device.type == "cpu":
            return found | {"why": "not tried on a CPU"}
        size *= 2
    return found | {"why": f"not tried, for {SEARCH_SECONDS} s"}


def make_batch(case, device, size):
    """Return random features and labels on the device."""
    features = torch.randn(size, *case.feature_shape, device=device)
    return features, (torch.rand(size, case.num_classes, device=device) < 0.03).float()


def plain(case, device, size, attention=None):
    """Return a step as people write it, of transformers' model; ``attention`` None leaves the choice to it."""
    network = gpu_loops.transformers_ast(case)
    if attention:
        network.set_attn_implementation(attention)
    model, (features, labels) = network.to(device), make_batch(case, device, size)
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=1e-4), nn.BCEWithLogitsLoss()

    def step():
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            value = loss(model(features).logits, labels)
        value.backward()
        optimizer.step()
        return value.item()

    return step


def eager(case, device, size):
    """Return that step with attention as the paper's notebook had it."""
    return plain(case, device, size, "eager")


def ours(case, device, size, checkpointing=False):
    """Return our step with all clips at once; a smaller micro-batch counts as out of memory."""
    stepper: Stepper = gpu_loops.make_stepper(case, device, amp=True)
    if checkpointing:
        stepper.model.enable_activation_checkpointing()
    features, labels = make_batch(case, device, size)

    def step():
        with computing_on(device):
            stepper.step(features, labels)
        if stepper.micro_batch_size < size and device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory: it went in micro-batches")

    return step


def checkpointed(case, device, size):
    """Return our step with activation checkpointing."""
    return ours(case, device, size, checkpointing=True)


WAYS = {
    "plain loop, eager attention": eager,
    "plain loop": plain,
    "egoaudio": ours,
    "egoaudio, activation checkpointing": checkpointed,
}


def train_within(gigabytes, device, tiny):
    """Return what a run of one batch of 512 clips took within so much memory, and the micro-batch that it found."""
    size, shape, num_classes = (4, (16, 20), 5) if tiny else (512, (32, 1025), 158)
    config = TrainConfig(
        data=DataConfig(validation_fraction=0.0),
        model=ModelConfig(model="ast-paper"),
        optimization=OptimizationConfig(epochs=1, batch_size=size, amp=True, learning_rate=loops.LEARNING_RATE),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = synthetic.make_file(
            Path(folder) / "clips.h5",
            4,
            size // 4,
            {"spectrogram": shape},
            num_classes,
            unlabelled=0.0,
            test_fraction=0.0,
        )
        hold(device, gigabytes)
        started = time.perf_counter()
        try:
            run = egoaudio.train(path, Path(folder) / "run", replace(config), device=device.type)
        except egoaudio.EgoAudioError as error:
            return {
                "micro-batch": "",
                "seconds": time.perf_counter() - started,
                "peak, MB": "",
                "loss": str(error)[:80],
            }
        row = run.history.iloc[-1]
        return {
            "micro-batch": int(row["micro_batch_size"]),
            "seconds": round(time.perf_counter() - started, 1),
            "peak, MB": round(float(row["peak_memory_mb"])),
            "loss": round(float(row["train_loss"]), 4),
        }
