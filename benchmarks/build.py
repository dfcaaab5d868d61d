"""Building: clips a second beside what a user would pick instead, and how time and memory grow.

Generates videos (30 s, 480p H.264, AAC 44.1 kHz stereo) and measures, with nothing else running for choice:

- on one core, from MP4s to rows on disk, in this process, without its start: our build with denoising, spectrogram and
  MFCC; the notebook's way (moviepy, WAV, librosa, noisereduce); our ``logmel`` without denoising against lhotse's
  fbank; decoding alone;
- whole builds in fresh processes with 1, 2 and all workers, and with 2 on 6, 12 and 24 times as many videos, where
  starting counts little;
- the parent alone, on thousands of links to one video that no worker decodes.

One core means processor time, in which ffmpeg's processes count, one BLAS thread for everybody, and a malloc that keeps
what is freed, as in our workers. Whole builds are in wall time; the load of the machine goes into the JSON.

    python benchmarks/build.py [--videos 40] [--repeats 5] [--tiny] [--output build.json]
"""

import argparse
import os

if __name__ == "__main__":
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"

import shutil  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import measuring  # noqa: E402
import numpy as np  # noqa: E402
import one_core  # noqa: E402
import whole_builds  # noqa: E402

from egoaudio.builder import pool
from egoaudio.builder.plan import Inputs  # noqa: E402
from egoaudio.config.build import BuildConfig, DenoiseConfig, FeatureConfig  # noqa: E402
from egoaudio.inputs.probe import probe  # noqa: E402
from egoaudio.system import allocator  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "bin"))
import demo_data  # noqa: E402

DENOISED = BuildConfig(features=FeatureConfig(features=("spectrogram", "mfcc")))
LOGMEL = BuildConfig(denoise=DenoiseConfig(mode="none"), features=FeatureConfig(features=("logmel",)))
MFCC = BuildConfig(features=FeatureConfig(features=("mfcc",)))  # small rows: the parent's work does not depend on them
DIFFERENT = 4  # videos that are generated; the others are copies
INSTANCES = 11  # a video, as in Charades-Ego


def make_videos(folder, num_videos, seconds, tiny=False):
    """Write videos and a generic CSV; return the Inputs."""
    (folder / "videos").mkdir(parents=True)
    width, height = (160, 120) if tiny else (854, 480)
    for number in range(min(DIFFERENT, num_videos)):
        generator = np.random.default_rng(number)
        samples = demo_data.synthesise(generator, seconds, demo_data.draw_instances(generator, seconds))
        demo_data.write_video(folder / "videos" / f"v{number:06d}.mp4", samples, seconds, width, height)
    return repeat_videos(folder, folder, num_videos, shutil.copyfile)


def repeat_videos(source, folder, num_videos, copy):
    """Have ``num_videos`` videos in ``folder``, copied from the first of ``source``, and a CSV; return the Inputs."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    originals = sorted((source / "videos").iterdir())[:DIFFERENT]
    lines = ["video,start,end,label"]
    for number in range(num_videos):
        path = folder / "videos" / f"v{number:06d}.mp4"
        if not path.exists():
            copy(originals[number % len(originals)], path)
        for index in range(INSTANCES):
            lines.append(f"v{number:06d},{0.2 * index:.1f},{0.2 * index + 1 + number % 7:.1f},sound {index % 5}")
    (folder / "all.csv").write_text("\n".join(lines))
    return Inputs((str(folder / "all.csv"),), str(folder / "videos"))


# ------------------------------------------------------------------------------------------------------- one core


def measure_one_core(scratch, inputs, seconds, repeats):
    """Return ``(clips/s by name, raw runs, what is missing, seconds a clip by stage)``."""
    allocator.keep_freed_memory(pool.KEPT_BYTES)  # as a worker does; it serves the peers as well
    paths = sorted(Path(inputs.videos).iterdir())
    stages, cores = [], os.sched_getaffinity(0)
    fresh = {
        name: [one_core.lay_out(inputs, config, scratch / f"{name}{number}.h5") for number in range(repeats + 1)]
        for name, config in (("denoised", DENOISED), ("logmel", LOGMEL))
    }

    def ours(name):
        found = one_core.extract_all(*fresh[name].pop())
        if name == "denoised":
            stages.append(found)

    rivals = {
        "decoding alone": (lambda: one_core.decode(paths), len(paths)),
        "egoaudio, denoised, spectrogram and MFCC": (lambda: ours("denoised"), len(paths)),
        "egoaudio, logmel without denoising": (lambda: ours("logmel"), len(paths)),
    }
    path = os.environ["PATH"]  # gets an ffmpeg for lhotse
    os.sched_setaffinity(0, {max(cores)})
    try:
        others, missing = one_core.peers(paths, scratch)
        rivals |= others
        runs = measuring.interleave({name: run for name, (run, _) in rivals.items()}, repeats)
    finally:
        os.sched_setaffinity(0, cores)
        os.environ["PATH"] = path
    speed = {
        name: seconds * num_videos / measuring.median(runs[name], "cpu") for name, (_, num_videos) in rivals.items()
    }
    clips = seconds * len(paths)
    return (
        speed,
        runs,
        missing,
        {stage: statistics.median(one[stage] for one in stages[1:]) / clips for stage in stages[0]},
    )


def measure_costs(scratch, inputs, short_inputs, seconds, short_seconds, repeats):
    """Return a worker's processor seconds for a clip, and for a video beside its clips: two lengths on one line."""
    totals = {}
    for which, config_inputs in (("long", inputs), ("short", short_inputs)):
        laid = one_core.lay_out(config_inputs, DENOISED, scratch / f"{which}.h5")
        runs = measuring.interleave({"extract": lambda laid=laid: one_core.extract_all(*laid)}, repeats)["extract"]
        totals[which] = measuring.median(runs, "cpu") / len(laid[3])
        laid[0].unlink()
    paths = sorted(Path(inputs.videos).iterdir())
    probing = measuring.median(
        measuring.interleave({"probe": lambda: [probe(path) for path in paths]}, repeats)["probe"], "cpu"
    ) / len(paths)
    clip = (totals["long"] - totals["short"]) / (seconds - short_seconds)
    return {"clip": clip, "video": max(0.0, totals["short"] - short_seconds * clip), "probe": probing}


# --------------------------------------------------------------------------------------------------- whole builds


def measure_builds(scratch, inputs_of, num_videos, growth, repeats):
    """Return ``{(num_videos, num_workers): [numbers of each build]}``, interleaved, and the largest file's bytes."""
    output, many = scratch / "out.h5", growth[-1]
    kinds = (
        [(num_videos, count) for count in (1, 2, len(os.sched_getaffinity(0)))]
        + [(count, 2) for count in growth[:-1]]
        + [(many, 1), (many, 2)]
    )
    builds = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, found in builds.items():
            output.unlink(missing_ok=True)
            measuring.refill()
            found.append(whole_builds.run(inputs_of[kind[0]], DENOISED, output, kind[1]))
    return builds, output.stat().st_size


def measure_parent(scratch, source, num_videos):
    """Return the parent's processor seconds and memory for one more video, from some links and twice as many."""
    found = []
    for count in (num_videos, 2 * num_videos):
        inputs = repeat_videos(source, scratch / f"links{count}", count, lambda original, link: os.link(original, link))
        build = whole_builds.run(inputs, MFCC, scratch / "links.h5", 2, process=whole_builds.only_say_done)
        found.append((build["parent_cpu"], build["parent_mb"]))
        (scratch / "links.h5").unlink()
    (cpu, memory), (cpu_twice, memory_twice) = found
    return {
        "cpu": (cpu_twice - cpu) / num_videos,
        "mb": (memory_twice - memory) / num_videos,
        "videos": num_videos,
        "raw": found,
    }


def measure_disk(scratch, megabytes):
    """Return the bytes a second that this disk takes, synced."""
    block = np.random.default_rng(0).bytes(1 << 20)
    started = time.perf_counter()
    with open(scratch / "disk", "wb") as file:
        for _ in range(megabytes):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return megabytes * len(block) / (time.perf_counter() - started)


# ------------------------------------------------------------------------------------------------------------ tables


def one_core_rows(speed):
    """Return the rows of bars that are ratios on one core."""
    ours, logmel = speed["egoaudio, denoised, spectrogram and MFCC"], speed["egoaudio, logmel without denoising"]

    def best(*words):
        return max((value for name, value in speed.items() if all(word in name for word in words)), default=None)

    def times(value, other):
        return f"{value / other:.2f}" if other else "not measured"

    return [
        ["denoised, against the notebook's way", times(ours, best("notebook")), "9", "15"],
        ["logmel, against lhotse's better order from the same MP4s", times(logmel, best("lhotse", "MP4s")), "2", "4"],
        [
            "logmel from MP4s, against lhotse from WAVs made before, windows first",
            times(logmel, best("lhotse", "windows", "WAVs")),
            "1",
            "1.5",
        ],
        [
            "the same, against lhotse on whole recordings (its frames cross the windows' ends)",
            times(logmel, best("lhotse", "whole", "WAVs")),
            "",
            "",
        ],
        [
            "denoised, time as a multiple of decoding alone (at most)",
            times(speed["decoding alone"], ours),
            "3.5",
            "2.5",
        ],
    ]


def build_rows(builds, num_videos, growth, parent):
    """Return the rows of bars about whole builds."""
    few, twice, many = growth

    def middle(videos, num_workers, number):
        return statistics.median(one[number] for one in builds[videos, num_workers])

    more, more_by_two = (
        middle(many, count, "fill") - middle(num_videos, count, "fill") for count in (1, 2)
    )  # the start is in both

    def times(videos, fewer, number="fill"):
        return f"{middle(videos, 2, number) / middle(fewer, 2, number):.2f}"

    gain = f"{more / more_by_two:.2f}" if more > 0 < more_by_two else "too short to tell"
    return [
        [f"2 workers against 1, on {many - num_videos} more videos", gain, "1.85", "1.95"],
        [
            f"the same on {many} videos, the workers' start included",
            f"{middle(many, 1, 'fill') / middle(many, 2, 'fill'):.2f}",
            "",
            "",
        ],
        [f"time for twice {few} videos, times", times(twice, few), "1.9 to 2.1", "2"],
        [f"time for twice {twice} videos, times", times(many, twice), "1.9 to 2.1", "2"],
        ["parent's processor time for one more video, ms (at most)", f"{1e3 * parent['cpu']:.2f}", "3", "1"],
        ["private memory of a worker, peak, MB (at most)", f"{middle(many, 2, 'worker_mb'):.0f}", "120", "90"],
        ["the same, times that with a quarter of the videos", times(many, few, "worker_mb"), "", "1"],
        ["parent's own memory, peak, MB", f"{middle(many, 2, 'parent_mb'):.0f}", "", ""],
        ["the same, times that with a quarter of the videos", times(many, few, "parent_mb"), "", "1"],
        ["parent's own memory for one more video, kB", f"{1e3 * parent['mb']:.1f}", "", ""],
    ]


def outlook(hours, seconds, num_workers, costs, parent, video_bytes, disk_speed):
    """Return the row of that much video in pieces of ``seconds``: what each part would take, which gives way first."""
    videos = hours * 3600 / seconds
    days = {
        "workers": videos * (costs["probe"] + costs["video"] + seconds * costs["clip"]) / num_workers / 86400,
        "the parent's processor time": videos * parent["cpu"] / 86400,
        "writing to this disk": videos * video_bytes / disk_speed / 86400,
    }
    memory_gb = videos * parent["mb"] / 1e3
    limit = max(days, key=days.get)
    installed_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if memory_gb > installed_gb:
        limit = f"the parent's memory, then {limit}"
    took = [f"{24 * value:,.2f} h" if value < 2 else f"{value:,.1f} days" for value in days.values()]
    return [
        f"{hours:,.0f} h",
        f"{videos:,.0f}",
        *took,
        f"{videos * video_bytes / 1e12:,.2f} TB",
        f"{memory_gb:,.2f} GB",
        limit,
    ]


def main(argv=None):
    """Measure, print tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="few short videos, once, to see that it runs")
    parser.add_argument("--output", help="JSON to write")
    arguments = parser.parse_args(argv)
    seconds, short_seconds, links, megabytes, repeats, num_videos = (
        30,
        6,
        4000,
        512,
        arguments.repeats,
        arguments.videos,
    )
    growth = (6 * num_videos, 12 * num_videos, 24 * num_videos)
    if arguments.tiny:
        seconds, short_seconds, links, megabytes, repeats, num_videos, growth = 3, 1, 8, 8, 1, 2, (2, 4, 8)
    else:
        measuring.fill_memory()
    loads = [os.getloadavg()]
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scratch = Path(scratch)
        few = make_videos(scratch / "few", min(DIFFERENT, num_videos), seconds, arguments.tiny)
        short = make_videos(scratch / "short", min(DIFFERENT, num_videos), short_seconds, arguments.tiny)
        speed, runs, missing, stages = measure_one_core(scratch, few, seconds, repeats)
        rows = [[name, f"{value:,.0f}"] for name, value in speed.items()] + [
            [name, reason] for name, reason in missing.items()
        ]
        measuring.table(["one core, from MP4 to disk, processor time", "clips/s"], rows)
        measuring.table(
            ["stage of the denoised build, wall time", "ms a clip"],
            [[name, f"{1e3 * value:.3f}"] for name, value in stages.items()],
        )
        costs = measure_costs(scratch, few, short, seconds, short_seconds, repeats)
        measuring.table(
            ["a worker's processor time", "ms"], [[name, f"{1e3 * value:.3f}"] for name, value in costs.items()]
        )
        inputs_of = {
            count: repeat_videos(scratch / "few", scratch / f"n{count}", count, shutil.copyfile)
            for count in (num_videos, *growth)
        }
        builds, num_bytes = measure_builds(scratch, inputs_of, num_videos, growth, repeats)
        rows = []
        for (videos, num_workers), found in builds.items():
            wall, fill = (statistics.median(one[key] for one in found) for key in ("wall", "fill"))
            name = f"{videos} videos, {num_workers} worker{'s' if num_workers > 1 else ''}"
            rows.append([name, f"{wall:.2f}", f"{fill:.2f}", f"{videos * seconds / fill:,.0f}"])
        measuring.table(
            ["whole build", "seconds in all", "of these filling, start of the workers included", "clips/s in that"],
            rows,
        )
        parent = measure_parent(scratch, scratch / "few", links)
        disk_speed = measure_disk(scratch, megabytes)
    rows = one_core_rows(speed) + build_rows(builds, num_videos, growth, parent)
    measuring.table(["what", "measured", "bar", "goal"], rows)
    ahead = [outlook(hours, seconds, 32, costs, parent, num_bytes / growth[-1], disk_speed) for hours in (1e3, 1e6)]
    disk = f"disk at {disk_speed / 1e6:,.0f} MB/s"
    measuring.table(
        [
            "32 workers",
            f"videos of {seconds} s",
            "workers",
            "parent",
            disk,
            "file",
            "parent's memory",
            "what gives way first",
        ],
        ahead,
    )
    loads.append(os.getloadavg())
    measuring.write_json(
        arguments.output,
        speed=speed,
        runs=runs,
        not_measured=missing,
        stages=stages,
        costs=costs,
        parent=parent,
        rows=rows,
        outlook=ahead,
        builds={f"{videos} videos, {count} workers": found for (videos, count), found in builds.items()},
        disk_bytes_per_second=disk_speed,
        load=loads,
    )


if __name__ == "__main__":
    main()
