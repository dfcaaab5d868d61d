"""Denoising: clips a second on one core, ours beside noisereduce and TorchGate, with the relative error beside each speed.

python benchmarks/denoise.py [--repeats 5] [--output denoise.json]
"""

import argparse
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import measuring  # noqa: E402
import numpy as np  # noqa: E402

from egoaudio import denoise  # noqa: E402
from egoaudio.configuration import DenoiseConfig  # noqa: E402

SAMPLE_RATE = 16000
CONFIG = DenoiseConfig()


def make_sound(seconds):
    """Return tones that come and go over noise."""
    generator = np.random.default_rng(0)
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tones = 0.2 * np.sin(2 * np.pi * 700 * times) * (np.sin(2 * np.pi * 0.7 * times) > 0)
    return (tones + 0.02 * generator.standard_normal(len(times))).astype(np.float32)


def by_us(rows):
    return denoise.gate(rows, SAMPLE_RATE, CONFIG)


def by_us_streaming(rows):
    return np.concatenate(list(denoise.gate_blocks([rows[0]], SAMPLE_RATE, CONFIG)))[None]


def by_noisereduce(rows):
    import noisereduce

    return np.stack([noisereduce.reduce_noise(y=row, sr=SAMPLE_RATE) for row in rows])


def by_torchgate(rows):
    import torch
    from noisereduce.torchgate import TorchGate

    with torch.inference_mode():
        return TorchGate(sr=SAMPLE_RATE, nonstationary=True)(torch.from_numpy(rows)).numpy()


def main(num_seconds, repeats, output):
    sound = make_sound(num_seconds)
    tenths = sound.reshape(-1, SAMPLE_RATE // 10)[: 4 * num_seconds]
    cases = {"1 s clips": sound.reshape(-1, SAMPLE_RATE), "0.1 s clips": tenths, "whole recording": sound[None]}
    rows, raw = [], {}
    for case, clips in cases.items():
        recording = case == "whole recording"
        rivals = {"egoaudio": by_us_streaming if recording else by_us, "noisereduce": by_noisereduce, "TorchGate": by_torchgate}
        truth, results = by_noisereduce(clips).astype(np.float64), {}
        for name in list(rivals):
            try:
                result = rivals[name](clips.copy())
                common = truth[:, : result.shape[1]]  # TorchGate returns whole hops only
                results[name] = np.linalg.norm(result - common) / np.linalg.norm(common)
            except Exception as error:  # a peer that refuses is a result
                rows.append([case, name, f"refuses: {str(error).splitlines()[0][:60]}", "", ""])
                del rivals[name]
        runs = measuring.interleave({name: (lambda run=run, clips=clips: run(clips.copy())) for name, run in rivals.items()}, repeats)
        raw[case] = runs
        count = clips.size / SAMPLE_RATE if recording else len(clips)
        slowest = measuring.median(runs["noisereduce"], "cpu")
        for name in rivals:
            seconds = measuring.median(runs[name], "cpu")
            rows.append([case, name, f"{count / seconds:,.0f}", f"{slowest / seconds:.1f}", f"{results[name]:.1e}"])
    measuring.table(["sound", "engine", "clips/s (seconds/s), one core", "times noisereduce", "relative error"], rows)
    print("bars: per clip 10 (goal 20), whole recording 3 (goal 6), error under 1e-5")
    measuring.write_json(output, rows=rows, raw=raw)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    main(arguments.seconds, arguments.repeats, arguments.output)
