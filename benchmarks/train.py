"""Training: clips a second and memory of the two CNNs beside other loops, and of the Audio Spectrogram Transformer.

All cores, wall time, medians; for choice with nothing else running (the load of the machine goes into the JSON):

- ``cnn``: batches of 64 clips of 32 x 1025, 158 classes, each loop in a process of its own: the plain PyTorch loop,
  Lightning and Hugging Face's Trainer on data in memory, ours from the file, and our step alone on batches that are
  ready;
- ``cnn-small``: the same loops on the default network, log-mels of 98 x 128, each clip between its neighbours;
- ``ast``: transformers' own with eager attention, for the 1,024 frames that it assumes and for the 98 of a second, and
  ours;
- ``ast-paper``: the first step on one clip, with and without activation checkpointing;
- ``on-the-fly``: ``cnn``, ``cnn-small`` and ``ast`` (one second, the default sizes) in float32 from stored features,
  with features computed from waveforms, and with the sound changed before (level, time shift, another clip's sound, a
  filter), which shares the cores with the step.

Each measurement of memory has a fresh process; it is the resident memory at its peak, the libraries and the data
included (a process that has imported PyTorch and egoaudio has 0.7 to 0.9 GB; the JSON says what each had before it
trained).

    python benchmarks/train.py [--parts cnn cnn-small ast ast-paper on-the-fly] [--repeats 5] [--tiny]
        [--output train.json]
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import attention
import loops
import measuring
import torch

from egoaudio.config.train import DataConfig, ModelConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import sound_files  # noqa: E402
import synthetic  # noqa: E402

PARTS = ("cnn", "cnn-small", "ast", "ast-paper", "on-the-fly")
OUR_RUNS = 3  # of each of our loops, where the others have one
PLAIN = "plain loop, float32"
FILE, MEMORY = "egoaudio, from the file", "egoaudio, step on data in memory"
SMALL = ModelConfig(model="ast", hidden_size=24, num_layers=2, num_heads=2, dropout=0.0, patchout=0.0)


def new_process():
    """Return a pool of one new process."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), warnings.simplefilter, ("ignore",))


def in_fresh_process(work, *arguments):
    """Return what ``work`` returns in a process of its own."""
    with new_process() as pool:
        return pool.submit(work, *arguments).result()


def megabytes(memory, which="peak_mb"):
    """Return a measurement of memory in MB of 10**6 bytes, as text."""
    return f"{memory[which] * 2**20 / 1e6:,.0f}"


# --------------------------------------------------------------------------------------------------------------- cnn


def measure_cnn(path, batch_size, peer_batches, our_batches, repeats, memory_of, new_pool, model="cnn"):
    """Return ``(clips/s of every run by name, raw runs, memory by name, what is missing)``.

    Each loop has a process of its own, as what others did to the heap decides what memory costs. Ours do more batches a
    run, as they are faster, and more runs, as from the file and in memory are within a few per cent of each other.
    """
    batches = dict.fromkeys(loops.PEERS, peer_batches) | dict.fromkeys(loops.OURS, our_batches)
    with contextlib.ExitStack() as stack:
        pools, missing = {}, {}
        for name, num_batches in batches.items():
            pool = stack.enter_context(new_pool())
            try:
                pool.submit(loops.start, name, path, batch_size, num_batches, model).result()
                pools[name] = pool
            except ImportError as error:
                missing[name] = f"not installed ({error.name})"
        order = [name for name in pools if name in loops.PEERS] + OUR_RUNS * list(loops.OURS)
        runs = {name: [] for name in pools}
        for name in repeats * order:
            measuring.refill()
            runs[name].append(pools[name].submit(loops.run, name).result())
    speeds = {name: [batches[name] * batch_size / run["wall"] for run in found] for name, found in runs.items()}
    memory = {
        name: in_fresh_process(loops.measure_memory, name, path, batch_size, model)
        for name in pools
        if name in memory_of
    }
    return speeds, runs, memory, missing


def cnn_rows(speeds, memory, missing):
    """Return the rows of the table of loops."""
    plain = statistics.median(speeds[PLAIN])
    rows = []
    for name, found in speeds.items():
        speed = statistics.median(found)
        rows.append([name, f"{speed:,.0f}", f"{speed / plain:.2f}", megabytes(memory[name]) if name in memory else ""])
    return rows + [[name, reason, "", ""] for name, reason in missing.items()]


def ratio(speeds, name, other):
    """Return how many times as fast: the median over pairs of runs in a row, or of medians if one has more runs."""
    if len(speeds[name]) != len(speeds[other]):
        return f"{statistics.median(speeds[name]) / statistics.median(speeds[other]):.3f}"
    return f"{statistics.median(one / two for one, two in zip(speeds[name], speeds[other], strict=True)):.3f}"


def cnn_bars(speeds):
    """Return the rows of bars that are ratios of speeds."""
    return [
        ["cnn --amp, against the plain float32 loop", ratio(speeds, f"{FILE}, --amp", PLAIN), "3.0", "4.0"],
        ["cnn in float32, against that loop", ratio(speeds, f"{FILE}, float32", PLAIN), "1.8", "2.2"],
        [
            "from the file, against our step on data in memory, float32",
            ratio(speeds, f"{FILE}, float32", f"{MEMORY}, float32"),
            "0.97",
            "0.99",
        ],
        ["the same, --amp", ratio(speeds, f"{FILE}, --amp", f"{MEMORY}, --amp"), "0.97", "0.99"],
    ]


def small_bars(speeds):
    """Return the rows of bars of the default network."""
    speed = statistics.median(speeds[f"{FILE}, float32"])
    return [
        ["cnn-small in float32, clips/s", f"{speed:,.0f}", "600", ""],
        ["cnn-small in float32, against the plain float32 loop", ratio(speeds, f"{FILE}, float32", PLAIN), "1.0", ""],
    ]


# --------------------------------------------------------------------------------------------------------------- ast


def measure_ast(cases, num_classes, config, repeats, apart):
    """Return the table's rows and the raw runs.

    ``cases`` are ``(num_frames, num_bins)`` and clips in a batch; ``apart`` runs a measurement of memory.
    """
    rows, runs, memory = [], {}, {}
    for shape, num_clips in cases:
        case = f"{shape[0]:,} frames"
        tokens = attention.num_tokens(shape, config)
        steps = {way: make(shape, num_clips, num_classes, config, amp) for way, (make, amp) in attention.WAYS.items()}
        runs[case] = measuring.interleave(steps, repeats)
        memory[case] = {
            way: apart(attention.measure_memory, way, shape, num_clips, num_classes, config) for way in steps
        }
        for way in steps:
            speed = num_clips / measuring.median(runs[case][way])
            rows.append(
                [
                    case,
                    way,
                    f"{tokens:,}",
                    str(num_clips),
                    f"{speed * tokens:,.0f}",
                    f"{speed:,.2f}",
                    megabytes(memory[case][way]),
                ]
            )
    return rows, runs, memory


def measure_paper(shape, num_classes, repeats, apart):
    """Return the table's rows, the rows of bars, and the raw runs of ``ast-paper``."""
    runs = {True: [], False: []}
    for _ in range(repeats):
        for checkpointing, found in runs.items():
            found.append(apart(attention.measure_paper_step, shape, num_classes, checkpointing))
    rows, bars = [], []
    for checkpointing, bar in ((True, "2,000"), (False, "3,500")):
        name = f"ast-paper, {'with' if checkpointing else 'without'} activation checkpointing"
        middle = {key: statistics.median(run[key] for run in runs[checkpointing]) for key in runs[checkpointing][0]}
        rows.append(
            [name, megabytes(middle), megabytes(middle, "before_mb"), f"{middle['wall']:,.1f}", f"{middle['cpu']:,.1f}"]
        )
        bars.append([f"{name}: peak memory, MB (at most)", megabytes(middle), bar, ""])
    return rows, bars, {str(checkpointing): found for checkpointing, found in runs.items()}


# -------------------------------------------------------------------------------------------------------- on the fly

CHANGED = DataConfig(on_the_fly=True, gain_db=10.0, time_shift_seconds=0.2, mix_snr_db=(5.0, 25.0), filter_db=6.0)
STORED = "from stored features"
WAYS = {STORED: None, "on the fly": DataConfig(on_the_fly=True), "on the fly, the sound changed": CHANGED}


def measure_on_the_fly(folder, models, num_batches, repeats, clip_seconds=1.0):
    """Return the table's rows and the raw runs; ``models`` are ``{model: clips in a batch}``."""
    rows, runs = [], {}
    for model, batch_size in models.items():
        features = ("spectrogram" if model == "cnn" else "logmel", "waveform")
        sizes = {"num_videos": num_batches, "clips_per_video": batch_size, "clip_seconds": clip_seconds}
        path = sound_files.make_sound_file(Path(folder) / f"{model}-sound.h5", features, **sizes)
        steps = {}
        for way, config in WAYS.items():
            data = loops.Data(path, batch_size, num_batches, model, on_the_fly=config is not None)
            steps[way] = loops.ours(data, False, config)
        runs[model] = measuring.interleave(steps, repeats)
        stored = measuring.median(runs[model][STORED])
        for way, found in runs[model].items():
            seconds = measuring.median(found)
            speed = f"{num_batches * batch_size / seconds:,.0f}"
            rows.append([model, way, str(batch_size), speed, f"{stored / seconds:.2f}"])
    return rows, runs


# -------------------------------------------------------------------------------------------------------------- main


def main(argv=None):
    """Measure, print tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--tiny", action="store_true", help="small clips and models, once, one fresh process, to see that it runs"
    )
    parser.add_argument("--output", help="JSON to write")
    arguments = parser.parse_args(argv)
    repeats, batch_size, peer_batches, our_batches, num_classes = arguments.repeats, 64, 4, 16, 158
    shape, small_shape = (32, 1025), (98, 128)
    config = ModelConfig(model="ast", hidden_size=384, num_layers=6, num_heads=6, dropout=0.0, patchout=0.0)
    cases, paper_shape = (((98, 128), 16), ((1024, 128), 2)), shape
    fly, fly_batches, fly_seconds = {"cnn": 64, "cnn-small": 64, "ast": 16}, 8, 1.0
    memory_of, apart, new_pool = (*loops.PEERS, *loops.OURS), in_fresh_process, new_process
    if arguments.tiny:
        repeats, batch_size, peer_batches, our_batches, num_classes = (
            1,
            4,
            loops.MEMORY_BATCHES,
            loops.MEMORY_BATCHES,
            5,
        )
        shape, small_shape = (8, 20), (24, 16)
        cases, config, paper_shape = (((16, 32), 2), ((64, 32), 2)), SMALL, (16, 20)
        fly, fly_batches, fly_seconds = dict.fromkeys(fly, 2), 2, 0.25
        memory_of, apart, new_pool = (PLAIN,), lambda work, *about: work(*about), lambda: ThreadPoolExecutor(1)
    facts, bars, load, num_threads = {"rows": []}, [], os.getloadavg(), torch.get_num_threads()
    if arguments.tiny:
        torch.set_num_threads(1)  # threads that wait for each other on a busy machine make a second into a minute
    else:
        measuring.fill_memory()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part, shapes, find_bars in (
            ("cnn", {"spectrogram": shape}, cnn_bars),
            ("cnn-small", {"logmel": small_shape}, small_bars),
        ):
            if part not in arguments.parts:
                continue
            path = Path(folder) / f"{part}.h5"
            labels = {"unlabelled": 0.0, "class_dependent": False}
            synthetic.make_file(path, our_batches, batch_size, shapes, num_classes, **labels)
            measured = measure_cnn(
                path, batch_size, peer_batches, our_batches, repeats, memory_of, new_pool, model=part
            )
            speeds, runs, memory, missing = measured
            facts[part] = {"clips_per_second": speeds, "runs": runs, "memory": memory, "not_measured": missing}
            rows = cnn_rows(speeds, memory, missing)
            measuring.table([f"{part}, batch {batch_size}", "clips/s", "times the plain loop", "peak memory, MB"], rows)
            bars += find_bars(speeds)
            facts["rows"] += rows
    if "ast" in arguments.parts:
        rows, facts["ast_runs"], facts["ast_memory"] = measure_ast(cases, num_classes, config, repeats, apart)
        measuring.table(
            ["ast, a clip of", "way", "tokens a clip", "clips at once", "tokens/s", "clips/s", "peak memory, MB"], rows
        )
        facts["rows"] += rows
    if "ast-paper" in arguments.parts:
        rows, paper_bars, facts["paper_runs"] = measure_paper(paper_shape, num_classes, repeats, apart)
        measuring.table(
            [
                "the first step on one clip",
                "peak memory, MB",
                "of that before the step",
                "seconds",
                "processor seconds",
            ],
            rows,
        )
        bars += paper_bars
        facts["rows"] += rows
    if "on-the-fly" in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            rows, facts["on_the_fly_runs"] = measure_on_the_fly(folder, fly, fly_batches, repeats, fly_seconds)
        measuring.table(["network", "features", "clips in a batch", "clips/s", "times the speed from stored"], rows)
        facts["rows"] += rows
    torch.set_num_threads(num_threads)
    if bars:
        measuring.table(["what", "measured", "bar", "goal"], bars)
    measuring.write_json(arguments.output, **facts, bars=bars, load=[load, os.getloadavg()])


if __name__ == "__main__":
    main()
