"""Scale: merging shards against ``cp``, batches from several files against one, what a planned video costs.

    python benchmarks/scale.py [--tiny] [--output scale.json]

Rivals run in turn, and the median of each is quoted. Both copies end on disk (fsync). Planning is measured without
media: a CSV of ``--videos`` videos of 30 s with five instances each, whose recordings are known, to the laid-out file
with all its rows planned, sparse; its times are of the processor.
"""

import argparse
import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import measuring
import numpy as np

from egoaudio.builder import merging
from egoaudio.builder.plan import Gathered, MediaFolder, place
from egoaudio.builder.prepare import layout, write_plan
from egoaudio.builder.recordings import Recordings
from egoaudio.config.build import BuildConfig, FeatureConfig
from egoaudio.config.options import to_json
from egoaudio.data.rows import RowSource
from egoaudio.errors import Status
from egoaudio.hdf5 import create
from egoaudio.inputs.annotations import CHARADES_CLASSES, read_annotations
from egoaudio.inputs.probe import Recording

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import synthetic  # noqa: E402

CONFIG = BuildConfig(features=FeatureConfig(features=("spectrogram",)))
SHAPE = (32, 1025)
CLIPS_PER_VIDEO = 30


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a size for tests")
    parser.add_argument("--videos", type=int, default=100_000, help="videos to plan")
    parser.add_argument("--output", help="JSON of the tables")
    arguments = parser.parse_args(argv)
    num_videos, counts, repeats, planned = (
        (16, (2,), 1, 200) if arguments.tiny else (256, (8, 100), 5, arguments.videos)
    )
    loads = [os.getloadavg()]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = synthetic.make_file(
            folder / "ego.h5", num_videos, CLIPS_PER_VIDEO, {"spectrogram": SHAPE}, config=to_json(CONFIG)
        )
        runs = {}
        for count in counts:
            (folder / str(count)).mkdir()
            parts = synthetic.divide(whole, folder / str(count), np.linspace(0, num_videos, count + 1).astype(int))
            runs |= measure_merge(parts, folder, repeats) | measure_batches(whole, parts, repeats)
        rows = rates(runs) + measure_planning(planned, folder)
    measuring.table(["what", "value"], rows)
    measuring.write_json(arguments.output, rows=rows, runs=runs, load=[*loads, os.getloadavg()])
    return 0


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
    runs = {f"batches of {len(parts)} files, clips/s": [], f"batches of one file beside {len(parts)}, clips/s": []}
    sources = [RowSource(paths, "spectrogram") for paths in (parts, whole)]
    rows = np.random.default_rng(0).integers(0, sources[0].shape[0], (20, 256))
    out = np.empty((256, *SHAPE), np.float32)
    for source in sources:
        source._cold_batches = 0
        source.take(rows[0], out)
    for _ in range(repeats):
        for name, source in zip(runs, sources, strict=True):
            began = time.perf_counter()
            for some in rows:
                source.take(some, out)
            runs[name].append(rows.size / (time.perf_counter() - began))
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


if __name__ == "__main__":
    sys.exit(main())
