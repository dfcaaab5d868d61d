"""On a GPU: is training right there, how fast, in how much memory; features computed there; builds on many cores.

One script for whenever a GPU is at hand, at most 8 minutes: a section that would take longer is left out, which is
said, and runs by itself (``--sections compiled``). It makes its own data. Each section has a process of its own, prints
its tables, and is kept in the JSON if a later one fails:

- ``right``: the tests marked ``cuda``;
- ``fast``: clips/s, peak memory and waiting of each model: the plain loop, Lightning, Hugging Face's Trainer, and ours;
- ``memory``: the largest batch of the Audio Spectrogram Transformers; ``ast-paper`` with batches of 512 on 80 and on 8
  GB;
- ``frontend``: features computed on the device against features from the file;
- ``build``: 1 to 16 workers, if PyAV is there;
- ``compiled``: ours with ``--compile``, last, as compiling takes minutes.

    python benchmarks/gpu.py [--sections right fast ...] [--networks cnn ast ...] [--device cuda] [--tiny]
        [--output gpu.json]
"""

import argparse
import contextlib
import functools
import importlib.util
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import measuring
import numpy as np
import torch

from egoaudio.config.train import MODEL_DEFAULTS, ModelConfig

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import gpu_loops  # noqa: E402
import gpu_memory  # noqa: E402
import sound_files  # noqa: E402
import synthetic  # noqa: E402
from gpu_loops import Case  # noqa: E402

FAST_SECONDS = 180  # after which no loop is begun
TOTAL_SECONDS = 480
# What a section took at most on an H200; those that were asked for by name run in any case.
EXPECTED_SECONDS = {"right": 110, "fast": FAST_SECONDS + 15, "memory": 95, "frontend": 90, "build": 60, "compiled": 180}
# Where features come from: the dtype of the waveforms, and whether features are computed from them.
SOURCES = {
    "from the file": ("float32", False),
    "on the fly, float32": ("float32", True),
    "on the fly, int16": ("int16", True),
}
SMALL_AST = {"hidden_size": 24, "num_layers": 2, "num_heads": 2, "dropout": 0.0}


def cases(tiny):
    """Return the networks, in the sizes that ``egoaudio-train`` gives them, and their clips.

    ``ast`` keeps all its patches, as the loops of others do; ``egoaudio-train`` leaves out a half of them by default.
    """
    ast = ModelConfig(model="ast", dropout=0.1, patchout=0.0)
    if tiny:
        ast = replace(ast, **SMALL_AST)
        return [
            Case("cnn", ModelConfig(model="cnn"), (8, 20), 2, 3, num_classes=5),
            Case("ast, 32 frames", ast, (32, 32), 2, 3, num_classes=5),
        ]
    return [
        Case("cnn", ModelConfig(model="cnn"), (32, 1025), 64, 48),
        Case("cnn-small", ModelConfig(model="cnn-small", dropout=0.2), (98, 128), 64, 48, context_clips=1),
        Case("ast, 98 frames", ast, (98, 128), 64, 48),
        Case("yamnet", ModelConfig(model="yamnet"), (98, 64), 64, 48),
        Case("ast, 1,024 frames", ast, (1024, 128), 32, 20),
        Case("ast-paper", ModelConfig(model="ast-paper"), (32, 1025), 4, 6),
    ]


def make_file(case, folder):
    """Write the clips of a case; return the path."""
    path = Path(folder) / f"{case.name.replace(' ', '')}.h5"
    if not path.exists():
        shapes = {case.feature: case.feature_shape}
        synthetic.make_file(
            path, case.num_batches, case.batch_size, shapes, case.num_classes, unlabelled=0.0, class_dependent=False
        )
    return path


# ------------------------------------------------------------------------------------------------------------- right


def right(device, tiny, networks):
    """Run the tests that need a GPU; return how they ended."""
    if importlib.util.find_spec("pytest") is None:
        return {"result": "not run: pytest is not installed"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "--noconftest", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=-ra", "--tb=short", "--durations=8", "tests/test_cuda.py"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    print(found.stdout[-6000:], flush=True)
    return {"result": found.stdout.strip().splitlines()[-1], "output": found.stdout[-20000:]}


# -------------------------------------------------------------------------------------------------------------- fast


def fast(device, tiny, networks, rivals=None, repeats=2):
    """Measure each loop on each network; return clips/s of every run, peaks, waiting, and how busy the GPU was."""
    facts, end = {}, time.perf_counter() + FAST_SECONDS
    with tempfile.TemporaryDirectory() as folder:
        for case in networks:
            dataset, rows = gpu_loops.data_of(case, make_file(case, folder)), []
            for amp in (False, True):
                if case.name == "ast-paper" and not amp:
                    continue  # without bfloat16 its attention has no fast kernel, for anybody
                for name, loop in (rivals or loops_of(case)).items():
                    label = f"{name}, {'bfloat16' if amp else 'TF32'}"
                    found = {"error": "not measured: the time for this section was up"}
                    if time.perf_counter() < end:
                        found = measure(functools.partial(loop, case, dataset, device, amp), case, device, repeats)
                    facts[f"{case.name}: {label}"] = found
                    rows.append([label, *row_of(found)])
                    if name == "egoaudio" and case.name.startswith(("ast", "cnn")) and "error" not in found:
                        found["busy"] = busy(gpu_loops.ours(case, dataset, device, amp), case, device, found)
                        rows[-1][-1] = f"{found['busy']:.0%}" if found["busy"] else ""
            header = [f"{case.name}, batch {case.batch_size}", "clips/s", "spread", "peak, MB", "waiting", "GPU busy"]
            measuring.table(header, rows)
            if sum(os.path.getsize(path) for path in Path(folder).iterdir()) > 2**31:
                for path in Path(folder).iterdir():
                    path.unlink()
    return facts


def loops_of(case):
    """Return the loops that train a case; of short ``ast`` also ours as ``egoaudio-train`` does it by default."""
    loops = gpu_loops.PEERS | gpu_loops.OURS
    if case.config.model == "ast" and "1,024" not in case.name:
        patchout = MODEL_DEFAULTS["ast"]["patchout"]
        by_default = replace(case, config=replace(case.config, patchout=patchout))
        loops[f"egoaudio, patchout {patchout:g} as by default"] = lambda _, *others: gpu_loops.ours(by_default, *others)
    return loops


def measure(make, case, device, repeats):
    """Return clips/s, peak memory and waiting of the runs of one loop, or the error that ended it."""
    free(device)
    try:
        run = make()
        runs = [run() for _ in range(repeats + 1)][1:]
    except Exception as error:  # a peer that is not installed, or that runs out of memory, is a result
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"}
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return {
        "clips_per_second": [case.batch_size / run.seconds for run in runs],
        "wait_fraction": [run.wait_fraction for run in runs],
        "peak_mb": peak,
    }


def free(device):
    """Release the memory of the loop before, and reset the peak."""
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def row_of(found):
    """Return the columns of one loop."""
    if "error" in found:
        return [found["error"], "", "", "", ""]
    speeds = found["clips_per_second"]
    middle = statistics.median(speeds)
    peak = "" if found["peak_mb"] is None else f"{found['peak_mb']:,.0f}"
    wait = statistics.median(found["wait_fraction"])
    return [f"{middle:,.0f}", f"{(max(speeds) - min(speeds)) / middle:.0%}", peak, f"{wait:.1%}" if wait else "", ""]


def busy(run, case, device, found):
    """Return the share of the time for which kernels ran: their time in a profiled run, over that of runs without."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    run()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize(device)
    kernels = [
        event
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
    ]
    seconds = sum(event.device_time for event in kernels) / 1e6 / case.num_batches
    return seconds * statistics.median(found["clips_per_second"]) / case.batch_size


# ------------------------------------------------------------------------------------------------ compiled, and others


def compiled(device, tiny, networks):
    """Measure ours with ``--compile``."""
    return fast(device, tiny, networks, gpu_loops.COMPILED, repeats=1)


def memory(device, tiny, networks):
    """Measure largest batches, and batches of 512 under limits."""
    return gpu_memory.measure(device, tiny)


def build(device, tiny, networks):
    """Measure whole builds with 1 to 16 workers."""
    if importlib.util.find_spec("av") is None:
        return {"result": "not run: PyAV is not installed"}
    import build as build_benchmark
    import whole_builds

    cores = len(os.sched_getaffinity(0))
    counts = [1] if tiny else [count for count in (1, 2, 4, 8, 16) if count <= cores]
    seconds, videos = (2.0, 2) if tiny else (30.0, 128)
    facts, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        inputs, path = build_benchmark.make_videos(Path(folder), videos, seconds, tiny), Path(folder) / "out.h5"
        for count in counts:
            found = whole_builds.run(inputs, build_benchmark.DENOISED, path, count)
            facts[str(count)], speed = found, videos * seconds / found["fill"]
            first = videos * seconds / facts["1"]["fill"]
            rows.append(
                [count, f"{speed:,.0f}", f"{speed / first:.2f}", f"{found['wall']:.1f}", f"{found['parent_cpu']:.1f}"]
            )
    header = ["workers", "clips/s", "times one worker", "seconds, start included", "of the parent's processor"]
    measuring.table(header, rows)
    return {"builds": facts, "clips": videos * seconds, "cores": cores}


def frontend(device, tiny, networks):
    """Measure the front ends on the device: seconds for a batch, and the error against what a build writes."""
    from egoaudio.audio.features import FeatureExtractor
    from egoaudio.config.build import FeatureConfig
    from egoaudio.models.device import computing_on
    from egoaudio.models.frontend import create_front_end

    num_clips, rate, facts, rows = (4 if tiny else 64), 16000, {}, []
    sound = (np.random.default_rng(0).standard_normal((num_clips, rate)) * 0.1).astype(np.float32)
    for name in ("spectrogram", "mfcc", "logmel", "yamnet"):
        extractor = FeatureExtractor(FeatureConfig(features=(name,)), rate, rate)
        expected = extractor(sound)[name]
        module = create_front_end(name, extractor.attributes(name), rate, rate).to(device)
        samples = torch.from_numpy(sound).to(device)
        with computing_on(device), torch.inference_mode():
            found = module(samples).cpu().numpy()
            times = [seconds_of(lambda module=module, samples=samples: module(samples), device) for _ in range(11)][1:]
        error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        facts[name] = {"seconds": times, "error": error}
        rows.append(
            [
                name,
                f"{1000 * statistics.median(times):.2f}",
                f"{num_clips / statistics.median(times):,.0f}",
                f"{error:.1e}",
            ]
        )
    measuring.table([f"front end, {num_clips} clips", "ms", "clips/s", "relative error"], rows)
    return {"alone": facts, "training": train_on_the_fly(device, tiny, networks)}


def train_on_the_fly(device, tiny, networks):
    """Measure ours on features that the loader computes from waveforms, against the same features from the file.

    Beside each its parts: batches that nobody computes with, and steps on a batch that is on the device.
    """
    facts, rows = {}, []
    for case in networks:
        if case.config.model == "yamnet" or case.config.model == "ast-paper" or "1,024" in case.name:
            continue
        case = replace(case, num_classes=5, num_batches=3 if tiny else 48, feature_shape=(98, 128))
        if case.feature == "spectrogram":
            case = replace(case, feature_shape=(32, 1025))
        with tempfile.TemporaryDirectory() as folder:
            paths = {dtype: make_sound_file(case, folder, dtype) for dtype in ("float32", "int16")}
            for amp in (False, True):
                from_file = None
                for way, (dtype, on_the_fly) in SOURCES.items():
                    label = f"{case.name}, {'bfloat16' if amp else 'TF32'}, {way}"
                    dataset = gpu_loops.data_of(case, paths[dtype], on_the_fly)
                    found = facts[label] = measure_parts(case, dataset, device, amp, 1 if tiny else 3)
                    speeds = [
                        float("nan") if "error" in part else statistics.median(part["clips_per_second"])
                        for part in found.values()
                    ]
                    from_file = from_file or speeds[-1]
                    ms = [f"{1000 * case.batch_size / speed:.2f}" for speed in speeds]
                    rows.append([label, *ms, *row_of(found["training"])[1:4], f"{speeds[-1] / from_file:.2f}"])
    header = ["ms a batch of 64", *gpu_loops.PARTS, "spread", "peak, MB", "waiting", "of that from the file"]
    measuring.table(header, rows)
    return facts


def measure_parts(case, dataset, device, amp, repeats):
    """Measure training and its parts."""
    return {
        part: measure(functools.partial(loop, case, dataset, device, amp), case, device, repeats)
        for part, loop in gpu_loops.PARTS.items()
    }


def make_sound_file(case, folder, dtype):
    """Write the clips of a case with their waveforms; return the path."""
    return sound_files.make_sound_file(
        Path(folder) / f"{dtype}.h5",
        (case.feature, "waveform"),
        case.num_batches,
        case.batch_size,
        clip_seconds=1.0,
        waveform_dtype=dtype,
    )


def seconds_of(work, device):
    """Return how long one call took, to the end of its kernels."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


SECTIONS = {
    "right": right,
    "fast": fast,
    "memory": memory,
    "frontend": frontend,
    "build": build,
    "compiled": compiled,
}


def run_section(name, device_name, tiny, names):
    """Return what one section found, with its seconds; an error becomes its text."""
    started, device = time.perf_counter(), torch.device(device_name, *([0] if device_name == "cuda" else []))
    warnings.simplefilter("ignore")
    networks = [case for case in cases(tiny) if not names or case.name in names]
    if not tiny:
        multiprocessing.set_start_method("fork", force=True)  # for DataLoaders, as in a script
    if device.type == "cuda":
        torch.cuda.init()  # before its peak of memory is reset
        torch.set_float32_matmul_precision("high")  # for everybody
    try:
        facts = SECTIONS[name](device, tiny, networks)
    except Exception:
        facts = {"error": traceback.format_exc()}
        print(facts["error"], flush=True)
    return facts | {"seconds_of_section": time.perf_counter() - started}


def describe(device):
    """Return the GPU and the versions."""
    if device.type != "cuda":
        return "cpu"
    properties = torch.cuda.get_device_properties(device)
    return {"name": properties.name, "memory_gb": properties.total_memory / 1e9, "cuda": torch.version.cuda}


def main(argv=None):
    """Run the sections, each in a process of its own; write the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), help="all if not given")
    parser.add_argument("--networks", nargs="+", choices=[case.name for case in cases(False)])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks, once, in this process")
    parser.add_argument("--output", help="JSON to write")
    arguments = parser.parse_args(argv)
    facts, began = {"device": describe(torch.device(arguments.device))}, time.perf_counter()
    for name in arguments.sections or SECTIONS:
        print(f"\n## {name}\n", flush=True)
        left = TOTAL_SECONDS - (time.perf_counter() - began)
        if not arguments.sections and EXPECTED_SECONDS[name] > left:
            facts[name] = {"result": f"not run: {left:.0f} of {TOTAL_SECONDS} s were left; --sections {name} runs it"}
            print(facts[name]["result"], flush=True)
            measuring.write_json(arguments.output, **facts)
            continue
        with contextlib.ExitStack() as stack:
            pool = ThreadPoolExecutor(1)
            if not arguments.tiny:
                pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            stack.enter_context(pool)
            try:
                facts[name] = pool.submit(
                    run_section, name, arguments.device, arguments.tiny, arguments.networks
                ).result()
            except Exception as error:  # its process died
                facts[name] = {"error": repr(error)}
        print(f"({facts[name].get('seconds_of_section', 0):.0f} s)", flush=True)
        measuring.write_json(arguments.output, **facts)


if __name__ == "__main__":
    main()
