"""Loading: random batches of 256 clips beside what users would pick instead, how long files take to open, and memory.

Writes clips of the default spectrogram (32 x 1025 float32, 131 KB) once for every rival and measures, the page cache
warm:

- clips a second over whole epochs, as many as take half a second, rivals in turn, each in a process of its own: whether
  a batch of 34 MB is new memory, of which the kernel must make every page, depends on what else the process has
  allocated, and that alone is a factor of three for h5py. Wall time, because a thread or workers read ahead; processor
  time beside it for those without workers, which is what to compare when the machine is busy. The consumer does nothing
  with the batches. One BLAS and one torch thread for everybody;
- in fresh processes, from the opening of a file of 10^4, 10^5 and 10^6 clips to its first random batch, imports not
  counted. Their features are holes of a sparse file, so that the first batch waits for no disk; their tables are real;
- in the same processes as the speed, the memory after reading everything once: the process's own, and the mapped pages
  of files, which are page cache that the kernel takes back when it needs it.

Before a rival is measured it is checked: every clip once, every value and label as in the file.

    python benchmarks/loader.py [--clips 8192] [--repeats 5] [--tiny] [--output loader.json]
"""

import argparse
import os

if __name__ == "__main__":
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"

import multiprocessing  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from concurrent.futures import ProcessPoolExecutor  # noqa: E402
from pathlib import Path  # noqa: E402

import batches  # noqa: E402
import measuring  # noqa: E402
import numpy as np  # noqa: E402

from egoaudio.config.train import DataConfig  # noqa: E402
from egoaudio.data.dataset import ClipDataset  # noqa: E402
from egoaudio.data.loader import Loader  # noqa: E402
from egoaudio.errors import Status  # noqa: E402
from egoaudio.hdf5 import create, reader, schema  # noqa: E402
from egoaudio.hdf5.writer import RowWriter, offsets  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import synthetic  # noqa: E402

NUM_CLASSES = 158
CLIPS_PER_VIDEO = 32
TURN_SECONDS = 0.5  # as many whole epochs as that takes: of ours, 70 ms long, the first after a pause is slower


def fresh_processes(number):
    """Return so many pools of one new process each; what takes long to import was imported before they forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["egoaudio.data.loader"])
    return [ProcessPoolExecutor(1, context) for _ in range(number)]


# --------------------------------------------------------------------------------------------------- speed and memory


def measure_rivals(path, scratch, repeats, seconds):
    """Return ``(raw runs by rival, megabytes by rival, {rival: what is missing})``."""
    missing = batches.write_forms(path, scratch)
    os.sync()  # or the kernel would write all that to disk while the first rivals are measured
    not_installed = {name: missing[form] for name, (form, _) in batches.RIVALS.items() if form in missing}
    names = [name for name in batches.RIVALS if name not in not_installed]
    pools = dict(zip(names, fresh_processes(len(names)), strict=True))
    try:
        memory = {name: pool.submit(start, name, path, scratch).result() for name, pool in pools.items()}
        runs = {name: [] for name in names}
        for _ in range(repeats):
            for name, pool in pools.items():
                runs[name].append(pool.submit(time_epoch, seconds).result())
    finally:
        for pool in pools.values():
            pool.shutdown(wait=False)
        for pool in pools.values():
            pool.shutdown()
    return runs, memory, not_installed


_opened = []  # the ``epoch`` of the one rival that this process runs


def start(name, path, scratch):
    """Open a rival in this process, read everything once, check a second epoch; return the megabytes of memory."""
    before = _resident()
    _opened.append(batches.open_rival(name, path, scratch))
    peak = before
    for _ in _opened[0]():
        peak = {kind: max(peak[kind], value) for kind, value in _resident().items()}
    after = _resident()
    check(name, _opened[0], path)
    return {"before": before, "peak": peak, "after": after}


def time_epoch(seconds):
    """Return the wall and processor seconds of an epoch in this process, the mean of as many as take ``seconds``."""
    cpu, wall, epochs = time.process_time(), time.perf_counter(), 0
    while not epochs or time.perf_counter() - wall < seconds:
        for _ in _opened[0]():
            pass
        epochs += 1
    return {"wall": (time.perf_counter() - wall) / epochs, "cpu": (time.process_time() - cpu) / epochs}


def check(name, epoch, path):
    """Raise unless an epoch of a rival is every clip once, in batches of float32 tensors that equal the file."""
    with reader.open(path) as file:
        features, labels = file[batches.FEATURE], file.labels
        of_key = {features[row, 0, :2].tobytes(): row for row in range(file.num_clips)}
        seen = []
        for got, targets in epoch():
            got = got * batches.DEVIATION if name == batches.NORMALIZED else got
            if name == batches.CONTEXT:  # the clip is the middle one of three
                got = got[:, features.shape[1] : 2 * features.shape[1]]
            rows = [of_key[clip[0, :2].numpy().tobytes()] for clip in got]
            if not (np.array_equal(got, features[rows]) and np.array_equal(targets, labels[rows])):
                raise ValueError(f"{name} gives other values than the file holds")
            if {str(got.dtype), str(targets.dtype)} != {"torch.float32"}:
                raise ValueError(f"{name} gives {got.dtype} and {targets.dtype}")
            seen += rows
        if sorted(seen) != list(range(file.num_clips)):
            raise ValueError(f"{name} gives {len(seen)} clips, {len(set(seen))} different ones, of {file.num_clips}")


def _resident():
    """Return the megabytes that are the process's own, and those of files that it maps."""
    with open("/proc/self/status") as file:
        sizes = dict(line.split(":", 1) for line in file)
    return {"own": int(sizes["RssAnon"].split()[0]) / 1024, "mapped": int(sizes["RssFile"].split()[0]) / 1024}


# ----------------------------------------------------------------------------------------------------------- opening


def make_sparse(path, num_clips, shape):
    """Lay out a file of so many clips; only its tables are written."""
    num_videos = -(-num_clips // CLIPS_PER_VIDEO)
    layout = synthetic.make_layout(num_clips, num_videos, NUM_CLASSES, {batches.FEATURE: shape})
    create.lay_out(path, layout)
    generator = np.random.default_rng(0)
    videos = np.zeros(num_videos, layout.video_dtype)
    videos["split"], videos["status"], videos["first_clip"] = (
        b"train",
        Status.OK,
        CLIPS_PER_VIDEO * np.arange(num_videos),
    )
    clips = np.zeros(num_clips, schema.CLIP_DTYPE)
    clips["video"], clips["status"], clips["labelled"] = np.arange(num_clips) // CLIPS_PER_VIDEO, Status.OK, 1
    with RowWriter(path, offsets(path)) as writer:
        writer.write("videos", 0, videos)
        writer.write("clips", 0, clips)
        for first in range(0, num_clips, 1 << 16):
            writer.write(
                "labels",
                first,
                (generator.random((min(1 << 16, num_clips - first), NUM_CLASSES), np.float32) < 0.03).astype("u1"),
            )
    create.mark_complete(path)


def time_opening(path, seed):
    """Return the seconds until the file is open, and from there to the first batch, in a process that must be fresh."""
    started = time.perf_counter()
    dataset = ClipDataset(path, batches.FEATURE)
    opened = time.perf_counter()
    epoch = Loader(dataset, batches.BATCH_SIZE, DataConfig(), seed=seed, training=True).epoch(0)
    next(epoch)
    found = {"open": opened - started, "first_batch": time.perf_counter() - opened}
    epoch.close()
    return found


def measure_opening(scratch, counts, shape, repeats):
    """Return ``{number of clips: seconds of each run}``, each with rows that no earlier one has put into the cache."""
    found = {}
    for count in counts:
        path = scratch / "sparse.h5"
        make_sparse(path, count, shape)
        found[count] = []
        for seed, pool in enumerate(fresh_processes(repeats)):
            with pool:
                pool.submit(os.getpid).result()  # the process is there, and has imported this module
                found[count].append(pool.submit(time_opening, str(path), seed).result())
        path.unlink()
    return found


# ------------------------------------------------------------------------------------------------------------ tables


def speed_rows(runs, not_installed, num_clips):
    """Return the rows of all rivals: clips/s in wall and in processor time, and how many times as many are ours."""
    ours, ours_cpu = (measuring.median(runs[batches.OURS], kind) for kind in ("wall", "cpu"))
    rows = []
    for name in batches.RIVALS:
        if name in not_installed:
            rows.append([name, f"not installed ({not_installed[name]})", "", "", ""])
            continue
        wall, cpu = (measuring.median(runs[name], kind) for kind in ("wall", "cpu"))
        by_cpu = ["in the workers", ""] if "2 workers" in name else [f"{num_clips / cpu:,.0f}", f"{cpu / ours_cpu:.2f}"]
        rows.append([name, f"{num_clips / wall:,.0f}", f"{wall / ours:.2f}", *by_cpu])
    return rows


def bar_rows(runs, opening):
    """Return the rows of the bars."""
    seconds = {name: measuring.median(found) for name, found in runs.items()}
    ours = seconds[batches.OURS]

    def best(*libraries):
        found = [name for name in seconds if name.split(",")[0] in libraries and name != batches.BEYOND]
        return min(found, key=seconds.get) if found else None

    def times(name):
        return f"{seconds[name] / ours:.2f}" if name in seconds else "not measured"

    peer, count = best("webdataset", "litdata", "datasets"), max(opening)
    first = statistics.median(one["open"] + one["first_batch"] for one in opening[count])
    return [
        ["against h5py's faster DataLoader", best("h5py"), times(best("h5py")), "12", "25"],
        [
            "against the best of webdataset, litdata and datasets, as documented for PyTorch",
            peer or "",
            times(peer),
            "5",
            "8",
        ],
        ["against datasets as fast as we could make it", batches.BEYOND, times(batches.BEYOND), "", ""],
        ["against numpy.take from memory", batches.MEMORY, times(batches.MEMORY), "0.6", "0.8"],
        [f"opening {count:,} clips and drawing the first batch, s (at most)", "", f"{first:.3f}", "1.0", "0.3"],
    ]


def main(argv=None):
    """Measure, print tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--clips",
        type=int,
        default=8192,
        help="131 KB each, in four forms on disk; with fewer ours still announces rows to the kernel",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="few small clips, once, to see that it runs")
    parser.add_argument("--output", help="JSON to write")
    arguments = parser.parse_args(argv)
    num_clips, shape, counts, repeats = arguments.clips, (32, 1025), (10**4, 10**5, 10**6), arguments.repeats
    if arguments.tiny:
        num_clips, shape, counts, repeats = 512, (4, 25), (1000,), 1
    else:
        measuring.fill_memory()  # before the files are written, and never again: they must stay in the page cache
    loads = [os.getloadavg()]
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scratch = Path(scratch)
        path = synthetic.make_file(
            scratch / "ego.h5",
            num_clips // CLIPS_PER_VIDEO,
            CLIPS_PER_VIDEO,
            {batches.FEATURE: shape},
            NUM_CLASSES,
            class_dependent=False,
            unlabelled=0,
        )
        num_clips = num_clips // CLIPS_PER_VIDEO * CLIPS_PER_VIDEO
        runs, memory, not_installed = measure_rivals(path, scratch, repeats, 0 if arguments.tiny else TURN_SECONDS)
        rows = speed_rows(runs, not_installed, num_clips)
        row_kb = 4 * shape[0] * shape[1] / 1e3
        header = [
            f"{num_clips:,} clips of {row_kb:.1f} kB, batches of {batches.BATCH_SIZE}",
            "clips/s",
            "ours, times",
            "clips/s of processor",
            "ours, times",
        ]
        measuring.table(header, rows)
        opening = measure_opening(scratch, counts, shape, repeats)
    memory_rows = [
        [
            name,
            *(
                f"{found[when][kind] - found['before'][kind]:,.0f}"
                for when, kind in (("peak", "own"), ("after", "own"), ("after", "mapped"))
            ),
        ]
        for name, found in memory.items()
        if "2 workers" not in name  # most is in the workers
    ]
    header = [
        f"what reading {num_clips * row_kb / 1e3:,.0f} MB added, MB",
        "own, at most",
        "own, at the end",
        "mapped files (page cache), at the end",
    ]
    measuring.table(header, memory_rows)
    opening_rows = [
        [
            f"{count:,}",
            *(f"{1e3 * statistics.median(one[part] for one in found):,.1f}" for part in ("open", "first_batch")),
        ]
        for count, found in opening.items()
    ]
    measuring.table(["clips in the file", "open, ms", "then to the first batch, ms"], opening_rows)
    bars = bar_rows(runs, opening)
    measuring.table(["ours", "which", "measured", "bar", "goal"], bars)
    loads.append(os.getloadavg())
    measuring.write_json(
        arguments.output,
        rows=rows + memory_rows + opening_rows + bars,
        runs=runs,
        not_installed=not_installed,
        memory=memory,
        opening=opening,
        num_clips=num_clips,
        row_shape=shape,
        load=loads,
    )


if __name__ == "__main__":
    main()
