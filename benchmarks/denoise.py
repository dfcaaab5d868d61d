"""Denoising: clips a second on one core, egoaudio beside noisereduce and TorchGate, each with its relative error.

All non-stationary with their defaults, in this process, with one BLAS and one torch thread, in processor time.

    python benchmarks/denoise.py [--seconds 30] [--repeats 5] [--tiny] [--output denoise.json]
"""

import argparse
import functools
import os
import warnings

if __name__ == "__main__":
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"

import measuring  # noqa: E402
import numpy as np  # noqa: E402

from egoaudio.audio import denoise  # noqa: E402
from egoaudio.audio.denoise_engine import Workspace  # noqa: E402
from egoaudio.config.build import DenoiseConfig  # noqa: E402

SAMPLE_RATE = 16000
CONFIG = DenoiseConfig()
WORKSPACE = Workspace()


def make_sound(seconds):
    """Return tones that come and go over noise."""
    generator = np.random.default_rng(0)
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tones = 0.2 * np.sin(2 * np.pi * 700 * times) * (np.sin(2 * np.pi * 0.7 * times) > 0)
    return (tones + 0.02 * generator.standard_normal(len(times))).astype(np.float32)


def by_us(rows):
    """Gate every row by itself."""
    return denoise.gate(rows, SAMPLE_RATE, CONFIG, WORKSPACE)


def by_us_streaming(rows):
    """Gate the one row as a recording that comes in blocks."""
    return np.concatenate(list(denoise.gate_blocks([rows[0]], SAMPLE_RATE, CONFIG, WORKSPACE)))[None]


def by_noisereduce(rows):
    """Gate every row by itself, as a user of noisereduce does."""
    import noisereduce

    return np.stack([noisereduce.reduce_noise(y=row, sr=SAMPLE_RATE) for row in rows])


def by_torchgate(rows):
    """Gate all rows in one call."""
    import torch
    from noisereduce.torchgate import TorchGate

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TorchGate(sr=SAMPLE_RATE, nonstationary=True)(torch.from_numpy(rows)).numpy()


ENGINES = {"egoaudio": by_us, "noisereduce": by_noisereduce, "TorchGate": by_torchgate}


def compare(case, clips, repeats):
    """Return the table's rows of one kind of sound, and the raw runs; errors are relative to noisereduce in float64."""
    recording = len(clips) == 1
    engines = ENGINES | ({"egoaudio": by_us_streaming} if recording else {})
    truth = by_noisereduce(clips).astype(np.float64)
    rivals, errors, refusals = {}, {}, []
    for name, engine in engines.items():
        try:
            result = engine(clips.copy())
        except ImportError as error:
            refusals.append([case, name, f"not installed ({error.name})", "", ""])
            continue
        except (
            Exception
        ) as error:  # TorchGate raises no narrower one under 2,048 samples; a peer that refuses is a result
            if name == "egoaudio":
                raise
            refusals.append([case, name, f"refuses: {' '.join(str(error).split())[:60]}", "", ""])
            continue
        common = truth[:, : result.shape[1]]  # TorchGate returns whole hops only
        errors[name] = np.linalg.norm(result - common) / np.linalg.norm(common)
        rivals[name] = functools.partial(engine, clips.copy())
    runs = measuring.interleave(rivals, repeats)
    seconds = {name: measuring.median(runs[name], "cpu") for name in rivals}
    count = clips.size / SAMPLE_RATE if recording else len(clips)
    rows = [
        [
            case,
            name,
            f"{count / seconds[name]:,.0f}",
            f"{seconds['noisereduce'] / seconds[name]:.1f}",
            f"{errors[name]:.1e}",
        ]
        for name in rivals
    ]
    return rows + refusals, runs


def main(argv=None):
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=30, help="of sound, at least 2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="2 s of sound, once, to see that it runs")
    parser.add_argument("--output", help="JSON to write")
    arguments = parser.parse_args(argv)
    num_seconds, repeats = (2, 1) if arguments.tiny else (arguments.seconds, arguments.repeats)
    sound, load = make_sound(num_seconds), os.getloadavg()
    cases = {
        f"{num_seconds} clips of 1 s": sound.reshape(-1, SAMPLE_RATE),
        f"{4 * num_seconds} clips of 0.1 s": sound.reshape(-1, SAMPLE_RATE // 10)[: 4 * num_seconds],
        f"a recording of {num_seconds} s": sound[None],
    }
    rows, runs = [], {}
    for case, clips in cases.items():
        found, runs[case] = compare(case, clips, repeats)
        rows += found
    measuring.table(["sound", "engine", "clips/s (of the recording: s/s)", "times noisereduce", "relative error"], rows)
    print("bars: per clip 10 (goal 20), a recording 3 (goal 6), error under 1e-5")
    measuring.write_json(arguments.output, rows=rows, runs=runs, load=[load, os.getloadavg()])


if __name__ == "__main__":
    main()
