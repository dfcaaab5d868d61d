"""Scale: shards, several files, planning, and ranks.

    python benchmarks/scale.py [--only merge,batches,planning,shards,ranks] [--tiny] [--output scale.json]

- ``merge``: shards into one file against ``cp``, both down to the disk (fsync). Rivals run in turn, and the median of
  each is quoted.
- ``batches``: random batches from several files against one, normalised (for a CPU) and as they are stored (for a GPU).
- ``planning``: what a video costs the parent, without media: a CSV of ``--videos`` videos of 30 s with five instances
  each, whose recordings are known, to the laid-out file with all its rows planned, sparse; times of the processor.
- ``shards``: what a shard costs besides its videos: the commands of all shards and the one that takes them in, against
  the command of a build without shards; times of the processor.
- ``ranks``: the share of a training step that two ranks on this machine (gloo) spend adding up their gradients, which
  includes waiting for each other; one thread and 32 clips each.
"""

import argparse
import gc
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import measuring
import numpy as np
import slurm
import torch

from egoaudio.builder import merging
from egoaudio.builder.plan import Gathered, MediaFolder, place
from egoaudio.builder.prepare import layout, write_plan
from egoaudio.builder.recordings import Recordings
from egoaudio.config.build import BuildConfig, FeatureConfig
from egoaudio.config.options import from_flat, to_json
from egoaudio.config.train import TrainConfig
from egoaudio.data.rows import RowSource
from egoaudio.errors import Status
from egoaudio.hdf5 import create
from egoaudio.inputs.annotations import CHARADES_CLASSES, read_annotations
from egoaudio.inputs.probe import Recording
from egoaudio.models import create_model
from egoaudio.training.gradients import SharedGradients
from egoaudio.training.losses import Loss
from egoaudio.training.optimizer import make_optimizer
from egoaudio.training.step import Stepper

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tests", "bin")]
import demo_data  # noqa: E402
import synthetic  # noqa: E402
from rank_processes import RankProcesses  # noqa: E402

CONFIG = BuildConfig(features=FeatureConfig(features=("spectrogram",)))
SHAPE = (32, 1025)
CLIPS_PER_VIDEO = 30


NUM_CLASSES = 158
# Steps to measure, and clips as the model's default build has them.
MODELS = {"cnn": (10, (32, 1025)), "cnn-small": (10, (98, 128)), "ast": (5, (98, 128))}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a size for tests")
    parser.add_argument("--only", help="some of the tables, with commas between them; else all")
    parser.add_argument("--videos", type=int, default=100_000, help="videos to plan")
    parser.add_argument("--output", help="JSON of the tables")
    arguments = parser.parse_args(argv)
    names = arguments.only.split(",") if arguments.only else ["merge", "batches", "planning", "shards", "ranks"]
    loads, runs, rows = [os.getloadavg()], {}, []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if {"merge", "batches"} & set(names):
            runs = measure_files(names, folder, *((16, (2,), 1) if arguments.tiny else (256, (8, 100), 5)))
            rows += rates(runs)
        if "planning" in names:
            rows += measure_planning(200 if arguments.tiny else arguments.videos, folder)
        if "shards" in names:
            rows += measure_shards(*((3, 1) if arguments.tiny else (48, 8)), folder / "shards")
    if "ranks" in names:
        rows += measure_ranks({"cnn-small": (2, (8, 16))} if arguments.tiny else MODELS)
    measuring.table(["what", "value"], rows)
    measuring.write_json(arguments.output, rows=rows, runs=runs, load=[*loads, os.getloadavg()])
    return 0


def measure_files(names, folder, num_videos, counts, repeats):
    """Return the runs of merging several files, and of reading batches of them."""
    whole = synthetic.make_file(
        folder / "ego.h5", num_videos, CLIPS_PER_VIDEO, {"spectrogram": SHAPE}, config=to_json(CONFIG)
    )
    runs = {}
    for count in counts:
        (folder / str(count)).mkdir()
        parts = synthetic.divide(whole, folder / str(count), np.linspace(0, num_videos, count + 1).astype(int))
        if "merge" in names:
            runs |= measure_merge(parts, folder, repeats)
        if "batches" in names:
            runs |= measure_batches(whole, parts, repeats)
    return runs


def rates(runs):
    """Return rows of a table: medians, and the ratio of each pair of rivals."""
    medians = {name: statistics.median(values) for name, values in runs.items()}
    rows = [[name, f"{value:,.2f}"] for name, value in medians.items()]
    for ours, theirs in zip(list(medians)[::2], list(medians)[1::2], strict=True):
        rows.append([f"ratio of {ours}", f"{medians[ours] / medians[theirs]:.2f}"])
    return rows


def measure_merge(parts, folder, repeats):
    """Return GB/s of a merge and of copying the same files, down to the disk."""
    num_bytes = sum(os.path.getsize(path) for path in parts)
    runs = {f"merge of {len(parts)} shards, GB/s": [], f"cp of {len(parts)} shards, GB/s": []}
    ours, theirs = runs
    for _ in range(repeats):
        began = time.perf_counter()
        merging.merge(parts, folder / "merged.h5")
        runs[ours].append(num_bytes / (time.perf_counter() - began) / 1e9)
        os.unlink(folder / "merged.h5")
        began = time.perf_counter()
        for number, path in enumerate(parts):
            copied = shutil.copy(path, folder / f"copy{number}")  # copy_file_range or sendfile, as cp
            with open(copied, "rb") as file:
                os.fsync(file.fileno())
        runs[theirs].append(num_bytes / (time.perf_counter() - began) / 1e9)
        for number in range(len(parts)):
            os.unlink(folder / f"copy{number}")
    return runs


def measure_batches(whole, parts, repeats):
    """Return clips/s of random batches from several files and from one; all of it is in memory."""
    ways = {"": (0.5, 2.0), ", as stored": (0.0, 1.0)}
    names = [(f"batches of {len(parts)} files{way}", f"batches of one file beside {len(parts)}{way}") for way in ways]
    runs = {f"{name}, clips/s": [] for pair in names for name in pair}
    sources = [RowSource(paths, "spectrogram") for paths in (parts, whole)]
    rows = np.random.default_rng(0).integers(0, sources[0].shape[0], (20, 256))
    out = np.empty((256, *SHAPE), np.float32)
    for source in sources:
        source._cold_batches = 0
        source.take(rows[0], out)
    for _ in range(repeats):
        for normalization, pair in zip(ways.values(), names, strict=True):
            for name, source in zip(pair, sources, strict=True):
                began = time.perf_counter()
                for some in rows:
                    source.take(some, out, *normalization)
                runs[f"{name}, clips/s"].append(rows.size / (time.perf_counter() - began))
    return runs


def measure_planning(num_videos, folder):
    """Return what a video costs the parent: bytes that are held, and ms to read it, to place it and to write that."""
    csv = folder / "annotations.csv"
    write_annotations(csv, num_videos)
    gc.collect()
    tracemalloc.start()
    annotations = read_annotations([csv])
    annotated, most = tracemalloc.get_traced_memory()
    plan = place(gathered_of(annotations, folder), recordings_of(num_videos), CONFIG)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    began = time.process_time()
    read_annotations([csv])
    read = time.process_time() - began
    began = time.process_time()
    place(plan.gathered, plan.recordings, CONFIG)
    placed = time.process_time() - began
    began = time.process_time()
    with create.drafting(folder / "planned.h5", layout(plan, CONFIG)) as draft:
        write_plan(draft, plan, CONFIG)
    written = time.process_time() - began
    return [
        ["annotations of a video, bytes", f"{annotated / num_videos:,.0f}"],
        ["while they are read, at most", f"{most / num_videos:,.0f}"],
        ["plan of a video besides, bytes", f"{(held - annotated) / num_videos:,.0f}"],
        ["reading the annotations of a video, ms", f"{read / num_videos * 1e3:.4f}"],
        ["placing a video, ms", f"{placed / num_videos * 1e3:.4f}"],
        ["laying out and writing a planned video, ms", f"{written / num_videos * 1e3:.4f}"],
    ]


def write_annotations(path, num_videos):
    """Write a Charades-Ego CSV of videos of 30 s with five instances each."""
    rng = np.random.default_rng(0)
    starts = np.round(rng.uniform(0, 25, (num_videos, 5)), 1).tolist()
    classes = rng.integers(0, 157, (num_videos, 5)).tolist()
    with open(path, "w", encoding="utf-8") as file:
        file.write("id,subject,scene,actions,length,egocentric\n")
        for number in range(num_videos):
            pairs = zip(classes[number], starts[number], strict=True)
            actions = ";".join(f"c{k:03d} {start} {start + 4.3:.1f}" for k, start in pairs)
            file.write(f"V{number:08d},S{number % 100},Kitchen,{actions},30.0,Yes\n")


def gathered_of(annotations, folder):
    """Return what is gathered of videos that all have a file."""
    ids, num_videos = (*CHARADES_CLASSES, "no_action"), len(annotations.videos)
    names = np.array([f"part/V{number:08d}.mp4".encode() for number in range(num_videos)])
    return Gathered(annotations, ids, ids, names, np.ones(num_videos, int), "0" * 64, MediaFolder.of(folder))


def recordings_of(num_videos):
    """Return recordings of 30 to 36 s."""
    recordings = Recordings.unknown(num_videos)
    for number in range(num_videos):
        recordings.set(number, Recording(Status.OK, "", 44100, 2, 30.0 + number % 7))
    return recordings


def measure_shards(num_videos, count, folder):
    """Return the processor seconds of a build, and of as many shards and the command that takes them in."""
    demo_data.make(folder / "charades", num_videos, seed=3, shortest_seconds=8.0, longest_seconds=12.0)
    command = slurm.build_command(folder / "charades")

    def seconds(output, *more):
        watch = measuring.Stopwatch()
        subprocess.run([*command, "--output", folder / output, *more], check=True, capture_output=True)
        return watch.took().cpu

    seconds("cached.h5")  # its media files are then in memory
    alone = seconds("alone.h5")
    each = sum(seconds("ego.h5", "--shard", f"{number}/{count}") for number in range(count))
    taking = seconds("ego.h5")
    return [
        [f"a build of {num_videos} videos, s", f"{alone:.2f}"],
        [f"the same in {count} shards, s", f"{each:.2f}"],
        ["taking these in, s", f"{taking:.2f}"],
        ["overhead of a shard, s", f"{(each - alone) / count:.2f}"],
    ]


def measure_ranks(models):
    """Return the time of a step, and how much of it is spent adding up the gradients, on two ranks."""
    rows = []
    with RankProcesses() as processes:
        for name, (num_steps, shape) in models.items():
            num_values, steps, sums = processes.run(2, time_steps, name, num_steps, shape)[0]
            rows += [
                [f"{name}, {num_values:,} weights: a step, ms", f"{statistics.median(steps) * 1e3:,.1f}"],
                [f"{name}: of it adding up gradients, ms", f"{statistics.median(sums) * 1e3:,.1f}"],
                [f"{name}: the share of that", f"{sum(sums) / sum(steps):.3f}"],
            ]
    return rows


def time_steps(group, name, num_steps, shape):
    """Return a rank's number of weights, and the seconds of its steps and of the sums of their gradients."""
    config = from_flat(TrainConfig, {"model": name, "epochs": 1}).resolved()
    model = create_model(name, NUM_CLASSES, shape, config.model)
    optimizer = make_optimizer(model, config.optimization)
    stepper = Stepper(model, optimizer, Loss("multi"), device=torch.device("cpu"), micro_batch_size=32, group=group)
    generator = torch.Generator().manual_seed(group.rank)
    features, labels = torch.randn(32, *shape, generator=generator), torch.zeros(32, NUM_CLASSES)
    steps, sums, add_up = [], [], SharedGradients.add_up

    def timed(self, share):
        began = time.perf_counter()
        add_up(self, share)
        sums.append(time.perf_counter() - began)

    SharedGradients.add_up = timed
    try:
        for _ in range(num_steps + 1):
            began = time.perf_counter()
            stepper.step(features, labels)
            steps.append(time.perf_counter() - began)
    finally:
        SharedGradients.add_up = add_up
    return sum(parameter.numel() for parameter in model.parameters()), steps[1:], sums[1:]  # not the first: it prepares


if __name__ == "__main__":
    sys.exit(main())
