"""Prediction: from MP4s to scores beside what a user would write instead, how memory grows, and many short files.

Generates videos (30 s, 480p H.264, AAC 44.1 kHz stereo) and measures, with nothing else running for choice:

- on one core, in this process, without its start: a worker's work and the network's together, with ``cnn-small`` on
  log-mels, without denoising and with; the same with a network that does nothing, to be held to the floor, which is
  what a build does for the same clips; the notebook's way (moviepy, WAV, noisereduce, librosa, second by second) with
  the same network; an ``ast`` of ours, and an AST of the same size in Hugging Face's ``audio-classification`` pipeline,
  which is given seconds that were decoded before;
- the command itself in a fresh process: on all videos; on 1,000 sounds of a second or two, beside one sound of the same
  length; and its peak memory on 1 hour and on 8 hours.

One core means processor time and one BLAS thread for everybody. Weights are random: nothing here depends on what they
have learnt.

    python benchmarks/predict.py [--videos 20] [--repeats 5] [--hours 8] [--files 1000] [--tiny] [--output predict.json]
"""

import argparse
import os

if __name__ == "__main__":
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"

import sys  # noqa: E402
import tempfile  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import build as build_benchmark  # noqa: E402
import measuring  # noqa: E402
import numpy as np  # noqa: E402
import one_core  # noqa: E402
import torch  # noqa: E402
import trials  # noqa: E402

from egoaudio.builder import pool  # noqa: E402
from egoaudio.builder.build import build  # noqa: E402
from egoaudio.config.build import BuildConfig, DenoiseConfig, FeatureConfig  # noqa: E402
from egoaudio.config.options import from_flat, to_json  # noqa: E402
from egoaudio.config.predict import PredictConfig  # noqa: E402
from egoaudio.config.train import TrainConfig  # noqa: E402
from egoaudio.hdf5 import reader  # noqa: E402
from egoaudio.inputs.decoder import Decoder  # noqa: E402
from egoaudio.models import checkpoints, create_model  # noqa: E402
from egoaudio.prediction.channel import Receiver  # noqa: E402
from egoaudio.prediction.predictor import load_predictor  # noqa: E402
from egoaudio.prediction.scoring import Scoring  # noqa: E402
from egoaudio.prediction.worker import send_features  # noqa: E402
from egoaudio.system import allocator  # noqa: E402

LOGMEL = FeatureConfig(features=("logmel",))
PLAIN = BuildConfig(denoise=DenoiseConfig(mode="none"), features=LOGMEL)
DENOISED = BuildConfig(features=LOGMEL)
PREDICT = [sys.executable, "-c", "from egoaudio.cli import predict; predict()"]
COMMAND_SECONDS = 7200
NUM_CLASSES = 157
PIPELINE, NOTEBOOK = "Hugging Face's pipeline, AST", "the notebook's way, cnn-small"
COLUMNS = ("files", "hours", "wall s", "processor s", "times real time", "peak MB")
SHORT, IN_ONE, LONG = "short sounds", "the same length in one sound", "one sound"


class NoNetwork:
    """What a ``SteadyScorer`` is, with scores that cost nothing."""

    def __init__(self, scorer, num_classes):
        self.batch_size, self.feature_shape = scorer.batch_size, scorer.feature_shape
        self._scores = np.zeros((self.batch_size, num_classes), np.float32)

    def __call__(self, features):
        return self._scores[: len(features)]


def make_sample(path, config, scratch):
    """Build a file of one of the videos; return its path."""
    build(build_benchmark.repeat_videos(scratch, scratch / path.stem, 1, os.link), path, config)
    return path


def make_checkpoint(path, file, model="cnn-small"):
    """Write a checkpoint of random weights for what ``file`` holds, with Charades' 157 classes; return its path."""
    options = from_flat(TrainConfig, {"model": model, "feature": "logmel"}).resolved()
    with reader.open(file) as opened:
        description = checkpoints.describe_data(opened, "logmel")
    description |= {name: [f"c{index:03d}" for index in range(NUM_CLASSES)] for name in ("class_ids", "class_names")}
    context = options.data.context_clips
    network = create_model(
        model,
        NUM_CLASSES,
        checkpoints.joined_shape(description["feature_shape"], context),
        options.model,
        context_clips=context,
    )
    checkpoints.save(
        path,
        {
            "egoaudio_version": "0",
            "config": to_json(options),
            "epoch": 0,
            "weights": dict(network.state_dict()),
            "network": checkpoints.describe_network(network),
            **description,
            "normalization": {"mean": -9.0, "std": 4.0},
            "thresholds": None,
            "calibration": None,
            "metrics": {},
            "smooth_clips": 0,
        },
    )
    return path


# ------------------------------------------------------------------------------------------------------------ one core


def hear(predictor, paths, network=True):
    """Do all of a prediction's work on some files but the writing, in this process; return the number of clips."""
    scorer = predictor.scorer if network else NoNetwork(predictor.scorer, predictor.num_classes)
    windows, count = predictor.windows, 0
    with (
        Receiver(windows.row_shape, windows.dtype) as receiver,
        Scoring(receiver, scorer, windows, predictor.num_classes) as scoring,
    ):
        heard = [
            send_features(receiver.address, predictor.build, (number, str(path))) for number, path in enumerate(paths)
        ]
        for one in heard:
            count += len(scoring.take(one.attempt, wait=True))
    return count


def notebook(path, scratch, predictor):
    """Hear one video as the notebook did: moviepy, a WAV, second by second noisereduce and log-mel, our network."""
    import librosa
    import moviepy
    import noisereduce

    clip = moviepy.VideoFileClip(str(path))
    clip.audio.write_audiofile(str(scratch / "sound.wav"), logger=None)
    clip.close()
    samples, sample_rate = librosa.load(scratch / "sound.wav", sr=one_core.SAMPLE_RATE)
    shape, count = predictor.scorer.feature_shape, 0
    for start in range(0, len(samples) - sample_rate + 1, sample_rate):
        second = noisereduce.reduce_noise(y=samples[start : start + sample_rate], sr=sample_rate)
        mel = librosa.feature.melspectrogram(y=second, sr=sample_rate, n_fft=512, hop_length=160, n_mels=shape[1])
        frames = np.resize(librosa.power_to_db(mel).T, shape).astype(np.float32)
        with torch.inference_mode():
            predictor.scorer.model(torch.from_numpy(frames[None]))
        count += 1
    return count


def hugging_face(paths):
    """Return what hears videos with Hugging Face's pipeline and an AST of our size, a batch of seconds at a time."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, pipeline

    sizes = TrainConfig().model
    config = ASTConfig(
        hidden_size=sizes.hidden_size, num_hidden_layers=sizes.num_layers, num_attention_heads=sizes.num_heads,
        intermediate_size=4 * sizes.hidden_size, patch_size=sizes.patch_size, frequency_stride=sizes.stride,
        time_stride=sizes.stride, max_length=98, num_mel_bins=128, num_labels=NUM_CLASSES,
    )  # fmt: skip
    model = ASTForAudioClassification(config).eval()
    extractor = ASTFeatureExtractor(max_length=98)
    classify = pipeline("audio-classification", model=model, feature_extractor=extractor, device="cpu", batch_size=32)

    def run():
        count = 0
        for path in paths:
            samples = np.concatenate(list(Decoder(path, one_core.SAMPLE_RATE)))
            seconds = [
                {"raw": samples[start : start + one_core.SAMPLE_RATE], "sampling_rate": one_core.SAMPLE_RATE}
                for start in range(0, len(samples) - one_core.SAMPLE_RATE + 1, one_core.SAMPLE_RATE)
            ]
            count += len(classify(seconds, top_k=5))
        return count

    return run


def measure_one_core(scratch, inputs, repeats):
    """Return ``(clips/s by name, raw runs, what is missing)``."""
    allocator.keep_freed_memory(pool.KEPT_BYTES)
    paths, cores = sorted(Path(inputs.videos).iterdir()), os.sched_getaffinity(0)
    predictors = {
        name: load_predictor(
            make_checkpoint(scratch / f"{name}.pt", make_sample(scratch / f"{name}.h5", config, scratch), model),
            PredictConfig(),
            device="cpu",
        )
        for name, config, model in (
            ("plain", PLAIN, "cnn-small"),
            ("denoised", DENOISED, "cnn-small"),
            ("ast", PLAIN, "ast"),
        )
    }
    fresh = {
        name: [one_core.lay_out(inputs, config, scratch / f"{name}{number}.h5") for number in range(repeats + 1)]
        for name, config in (("plain", PLAIN), ("denoised", DENOISED))
    }
    few = paths[: max(1, len(paths) // 10)]
    rivals = {
        "build, logmel (the floor)": (lambda: one_core.extract_all(*fresh["plain"].pop()), len(paths)),
        "predict, logmel, no network": (lambda: hear(predictors["plain"], paths, network=False), len(paths)),
        "predict, logmel, cnn-small": (lambda: hear(predictors["plain"], paths), len(paths)),
        "build, denoised (the floor)": (lambda: one_core.extract_all(*fresh["denoised"].pop()), len(paths)),
        "predict, denoised, no network": (lambda: hear(predictors["denoised"], paths, network=False), len(paths)),
        "predict, denoised, cnn-small": (lambda: hear(predictors["denoised"], paths), len(paths)),
        "predict, logmel, ast": (lambda: hear(predictors["ast"], few), len(few)),
    }
    missing = {}
    for name, make in (
        (PIPELINE, lambda: (hugging_face(few), len(few))),
        (NOTEBOOK, lambda: (lambda: notebook(paths[0], scratch, predictors["denoised"]), 1)),
    ):
        try:
            run, count = make()
            run()
            rivals[name] = run, count
        except ImportError as error:
            missing[name] = f"not installed ({error.name})"
        except Exception as error:  # a peer that fails here is a result; what it says is shown
            missing[name] = f"failed here ({type(error).__name__}: {' '.join(str(error).split())[:60]})"
    clips = hear(predictors["plain"], paths[:1], network=False)
    os.sched_setaffinity(0, {max(cores)})
    try:
        runs = measuring.interleave({name: run for name, (run, _) in rivals.items()}, repeats)
    finally:
        os.sched_setaffinity(0, cores)
    speed = {name: count * clips / measuring.median(runs[name], "cpu") for name, (_, count) in rivals.items()}
    return speed, runs, missing


# -------------------------------------------------------------------------------------------------------- the command


def run_command(checkpoint, media, output, workers=1):
    """Run the command; return ``(wall seconds, processor seconds, peak MB of one process)``."""
    watch = measuring.Stopwatch()
    command = [*PREDICT, str(checkpoint), str(media), "--output", str(output), "--workers", str(workers)]
    status, said, peak = trials.measured(command, COMMAND_SECONDS)
    took = watch.took()
    if status:
        raise RuntimeError(f"the command ended with {status}: {said}")
    return took.wall, took.cpu, peak


def make_long_sound(path, hours, seconds=60.0):
    """Write a sound of hours as AAC, the same minute again and again, as raw frames may follow each other."""
    import av

    generator = np.random.default_rng(0)
    minute = build_benchmark.demo_data.synthesise(
        generator, seconds, build_benchmark.demo_data.draw_instances(generator, seconds)
    )
    with av.open(str(path), "w", format="adts") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        for start in range(0, len(minute), 65536):
            frame = av.AudioFrame.from_ndarray(minute[None, start : start + 65536], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    raw = path.read_bytes()
    with open(path, "wb") as file:
        for _ in range(max(1, round(3600 * hours / seconds))):
            file.write(raw)


def make_short_sounds(folder, count, one):
    """Write ``count`` sounds of 1.0 to 1.9 s into a folder, and one sound that is as long as they are together."""
    from scipy.io import wavfile

    folder.mkdir()
    generator, parts = np.random.default_rng(0), []
    for number in range(count):
        parts.append((3000 * generator.standard_normal(16000 + 1600 * (number % 10))).astype(np.int16))
        wavfile.write(folder / f"s{number:05d}.wav", 16000, parts[-1])
    wavfile.write(one, 16000, np.concatenate(parts))


def measure_command(scratch, inputs, seconds, num_files, lengths):
    """Return ``{what: {files, hours, wall, cpu, peak_mb}}`` of the command on each kind of media."""
    checkpoint, found, num_videos = scratch / "plain.pt", {}, len(list(Path(inputs.videos).iterdir()))
    cases = [("all videos", Path(inputs.videos), num_videos, num_videos * seconds / 3600)]
    if num_files:
        make_short_sounds(scratch / "short", num_files, scratch / "one.wav")
        hours = sum(1 + number % 10 / 10 for number in range(num_files)) / 3600
        cases.append((SHORT, scratch / "short", num_files, hours))
        cases.append((IN_ONE, scratch / "one.wav", 1, hours))
    for length in lengths:
        make_long_sound(scratch / f"{length:g}h.aac", length)
        cases.append((f"{LONG} of {length:g} h", scratch / f"{length:g}h.aac", 1, length))
    for number, (what, media, num_recordings, hours) in enumerate(cases):
        wall, cpu, peak = run_command(checkpoint, media, scratch / f"heard{number}")
        found[what] = {"files": num_recordings, "hours": hours, "wall": wall, "cpu": cpu, "peak_mb": peak}
        print(f"  {what}: {wall:.1f} s, {peak:,} MB", file=sys.stderr, flush=True)
    return found


def command_rows(found):
    """Return rows ``[what, files, hours, wall s, processor s, times real time, peak MB]``."""
    rows = []
    for what, one in found.items():
        times = [f"{one['wall']:.1f}", f"{one['cpu']:.1f}", f"{3600 * one['hours'] / one['wall']:,.0f}"]
        rows.append([what, f"{one['files']:,}", f"{one['hours']:.2f}", *times, f"{one['peak_mb']:,}"])
    return rows


def bar_rows(speed, found):
    """Return rows ``[what, measured, bar]``; a clip is a second, so clips/s are times real time."""

    def share(kind):
        return f"{speed[f'predict, {kind}, no network'] / speed[f'build, {kind} (the floor)']:.2f}"

    rows = [
        ["logmel: share of the build's clips/s, without the network", share("logmel"), "0.8"],
        ["denoised: share of the build's clips/s, without the network", share("denoised"), "0.8"],
        ["logmel, cnn-small: times real time, one core", f"{speed['predict, logmel, cnn-small']:,.0f}", "200"],
    ]
    for what, ours, theirs in (
        ("denoised, cnn-small: times the notebook's way", "predict, denoised, cnn-small", NOTEBOOK),
        ("logmel, ast: times Hugging Face's pipeline", "predict, logmel, ast", PIPELINE),
    ):
        if theirs in speed:
            rows.append([what, f"{speed[ours] / speed[theirs]:.1f}", ""])
    long = sorted((one["hours"], one["peak_mb"]) for what, one in found.items() if what.startswith(LONG))
    if long:
        (few, less), (many, more) = long[0], long[-1]
        rows.append([f"peak memory on {many:g} h, times that on {few:g} h", f"{more / less:.2f}", ""])
    if SHORT in found:
        count, seconds = found[SHORT]["files"], found[SHORT]["wall"] - found[IN_ONE]["wall"]
        rows.append([f"{count:,} short sounds instead of one: ms a file more", f"{1e3 * seconds / count:.1f}", ""])
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--tiny", action="store_true", help="a few seconds of everything, to see that it runs")
    parser.add_argument("--output", help="JSON of the tables")
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments = argparse.Namespace(**{**vars(arguments), "videos": 1, "repeats": 1, "files": 0})
    seconds = 3.0 if arguments.tiny else 30.0
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scratch = Path(folder)
        inputs = build_benchmark.make_videos(scratch, arguments.videos, seconds, arguments.tiny)
        speed, runs, missing = measure_one_core(scratch, inputs, arguments.repeats)
        rows = [[name, f"{value:,.0f}", f"{value:,.0f}x"] for name, value in speed.items()]
        rows += [[name, words, "-"] for name, words in missing.items()]
        measuring.table(["one core", "clips/s", "real time"], rows)
        lengths = [] if arguments.tiny else [arguments.hours / 8, arguments.hours]
        found = measure_command(scratch, inputs, seconds, arguments.files, lengths)
        commands = command_rows(found)
        measuring.table(["the command, 1 worker", *COLUMNS], commands)
        bars = bar_rows(speed, found)
        measuring.table(["what", "measured", "bar"], bars)
    measuring.write_json(
        arguments.output,
        rows=rows + commands,
        bars=bars,
        runs=runs,
        speed=speed,
        commands=found,
        not_measured=missing,
        load=[load, os.getloadavg()],
        arguments=vars(arguments),
    )


if __name__ == "__main__":
    main()
