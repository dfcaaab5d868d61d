"""Where sound lands, against ffmpeg: containers and codecs, as made, late, with pauses, other starts, wandering clocks.

The files are made with the ``ffmpeg`` program, and decoded by it and by us. Its own time line is ``-af
aresample=async=1:first_pts=0`` over all tracks, from which it subtracts the container's start. Windows of a second of
noise are compared: where they match best says by how much ours is later. More than 1 ms needs a reason, which stands in
the table.

    python benchmarks/alignment.py [--tiny] [--output benchmarks/results/alignment.json]
    python benchmarks/alignment.py --tables benchmarks/results/alignment.json

Prints Markdown tables: delays by container and codec, conditions, reasons, and every difference. Exit status 1 where
one has no reason.
"""

import argparse
import collections
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import measuring
import numpy as np
from scipy.io import wavfile
from scipy.signal import butter, sosfilt

from egoaudio.errors import MediaError
from egoaudio.inputs.decoder import Decoder

RATE = 16000
SECONDS = 10
LIMIT_MS = 1.0
_REACH = RATE  # samples to either side in which a window is looked for
_PAUSE_SECONDS = 20

# Container, codec, and whether it takes a picture beside the sound.
PAIRS = [
    *[("mp4", codec, True) for codec in ("aac", "ac3", "eac3", "libmp3lame", "mp2", "libopus", "flac", "alac")],
    *[("mov", codec, True) for codec in ("aac", "pcm_s16le", "pcm_s24le", "alac", "adpcm_ima_qt", "libmp3lame", "ac3")],
    ("m4a", "aac", False), ("m4a", "alac", False), ("m4b", "aac", False), ("3gp", "aac", True),
    *[("mkv", codec, True) for codec in ("aac", "ac3", "eac3", "dca", "libopus", "libvorbis", "flac", "libmp3lame")],
    *[("mkv", codec, True) for codec in ("mp2", "pcm_s16le", "alac", "wavpack", "tta")],
    ("webm", "libopus", True), ("webm", "libvorbis", True), ("mka", "libopus", False), ("weba", "libopus", False),
    *[("avi", codec, True) for codec in ("pcm_s16le", "libmp3lame", "mp2", "ac3")],
    *[("ts", codec, True) for codec in ("aac", "mp2", "libmp3lame", "ac3", "eac3", "libopus", "dca")],
    ("mpg", "mp2", True), ("mpg", "ac3", True), ("vob", "mp2", True), ("flv", "aac", True), ("flv", "libmp3lame", True),
    ("wmv", "wmav2", True), ("wma", "wmav1", False), ("nut", "pcm_s16le", True), ("mxf", "pcm_s16le", True),
    ("ogg", "libvorbis", False), ("opus", "libopus", False), ("oga", "flac", False), ("spx", "libspeex", False),
    *[("wav", codec, False) for codec in ("pcm_s16le", "pcm_u8", "pcm_f32le", "pcm_mulaw", "adpcm_ms")],
    ("w64", "pcm_s16le", False), ("aiff", "pcm_s16be", False), ("aifc", "pcm_s16be", False), ("au", "pcm_mulaw", False),
    ("caf", "pcm_s16le", False), ("flac", "flac", False), ("mp3", "libmp3lame", False), ("mp2", "mp2", False),
    ("aac", "aac", False), ("ac3", "ac3", False), ("eac3", "eac3", False),
    ("dts", "dca", False), ("wv", "wavpack", False), ("tta", "tta", False),
]  # fmt: skip
_FORMATS = {
    "weba": "webm",
    "aifc": "aiff",
    "wmv": "asf",
    "wma": "asf",
    "m4b": "mp4",
    "m4a": "mp4",
    "vob": "vob",
    "mka": "matroska",
    "spx": "ogg",
}
_PICTURES = {
    "webm": "libvpx",
    "mpg": "mpeg2video",
    "vob": "mpeg2video",
    "mxf": "mpeg2video",
    "avi": "mpeg4",
    "wmv": "wmv2",
    "flv": "flv",
    "3gp": "mpeg4",
}
_KEEP_TIMES = ("mp4", "mov", "m4a", "mkv", "webm", "flv", "ts")  # containers in which packets can have any time
CONDITIONS = (
    "as made",
    "late 0.75 s",
    "late 61 s",
    "pause",
    "two pauses",
    "start 5 s",
    "start 61 s",
    "wander 30 ms",
    "wander 60 ms",
    "wander 120 ms",
)


@dataclass
class Comparison:
    """A file, decoded by both; milliseconds."""

    container: str
    codec: str
    condition: str
    difference_ms: float
    """How much later ours is than ffmpeg's, the largest over all windows; NaN where one of the two lacks that sound."""
    ours_ms: float
    """How much later ours is than what was put in, the median over all windows."""
    ffmpeg_ms: float
    compensated_ms: float
    """Ours with ``compensate_delay``."""
    reason: str = ""
    """Why they differ by more than a millisecond; empty where they do not."""


def ffmpeg(*arguments):
    """Run ffmpeg; return its standard output, or raise RuntimeError with its last words."""
    done = subprocess.run(
        ["ffmpeg", "-v", "error", "-nostdin", "-y", *map(str, arguments)], capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace").strip().splitlines()[-1][:200])
    return done.stdout


def make(folder, container, codec, picture, condition):
    """Write the file of a pair in a condition; return its path, None where the container cannot hold it."""
    if condition != "as made" and (
        not picture or (condition[:4] not in ("late", "star") and container not in _KEEP_TIMES)
    ):
        return None
    if condition[:4] == "star" and container not in (*_KEEP_TIMES, "mpg"):
        return None
    path = folder / f"{container}_{codec}_{condition.replace(' ', '_')}.{container}"
    late = float(condition.split()[1]) if condition.startswith("late") else 0.0
    rate = (
        44100
        if codec in ("libmp3lame", "wmav1", "wmav2") or container == "flv"
        else 16000
        if codec == "libspeex"
        else 48000
    )
    sound = ["-c:a", codec, "-ar", rate, "-ac", 1 if codec == "libspeex" else 2, "-strict", "-2"]
    inputs, maps = ["-itsoffset", late, "-i", folder / "sound.wav"], ["-map", "0:a"]
    if picture:
        inputs = ["-f", "lavfi", "-i", f"testsrc=size=64x64:rate=25:duration={SECONDS + late}", *inputs]
        maps = ["-map", "0:v", "-map", "1:a", "-c:v", _PICTURES.get(container, "libx264")]
    options = ["-f", _FORMATS[container]] if container in _FORMATS else []
    if condition.startswith("start"):
        options = ["-output_ts_offset", condition.split()[1], *options]
    width = condition.split()[1] if condition.startswith("wander") else 0
    edit = {
        "pause": f"TS+gt(TS*TB,4)*{_PAUSE_SECONDS}/TB",
        "two pauses": f"TS+(gt(TS*TB,3)+gt(TS*TB,6))*{2 * _PAUSE_SECONDS}/TB",
        "wander": f"if(N,max(PREV_OUTDTS+1,TS+floor(random(0)*{width}/1000/TB)),TS)",
    }.get(condition if "pause" in condition else condition.split()[0])
    try:
        if edit is None:
            ffmpeg(*inputs, *maps, *sound, *options, path)
        else:  # in two steps: the filter of packets must see the clock of the container
            plain = make(folder, container, codec, picture, "as made")
            ffmpeg(
                "-i", plain, "-map", 0, "-c", "copy", "-bsf:a", "setts=ts=" + edit.replace(",", "\\,"), *options, path
            )
    except RuntimeError as error:
        print(f"{path.name}: not made: {error}", file=sys.stderr)
        return None
    return path


def by_ffmpeg(path):
    """Return the samples of a file as ffmpeg puts them; all tracks are read, as the start is the earliest of them."""
    chain = ["-map", "0:a:0", "-af", "aresample=async=1:first_pts=0", "-ac", 1, "-ar", RATE, "-f", "f32le", "pipe:1"]
    out = ffmpeg(
        "-analyzeduration", "100M", "-probesize", "100M", "-i", path, *chain, "-map", "0:v?", "-f", "null", "-"
    )
    return np.frombuffer(out[: len(out) // 4 * 4], np.float32)


def by_us(path, **settings):
    """Return the samples of a file as we put them."""
    return np.concatenate(list(Decoder(path, RATE, **settings)))


def lags(samples, reference):
    """Return by how many ms each sounding second of ``reference`` comes later in ``samples``; NaN where it does not."""
    found = []
    samples = np.pad(samples, _REACH)  # the last window may reach a little beyond the end
    for start in range(0, len(reference) - RATE + 1, RATE):
        window = reference[start : start + RATE]
        if np.sqrt(np.mean(window[: RATE // 4] ** 2)) < 0.01 or np.sqrt(np.mean(window[-RATE // 4 :] ** 2)) < 0.01:
            continue
        found.append(_lag(samples[start : start + RATE + 2 * _REACH], window, _REACH) * 1000 / RATE)
    return np.array(found)


def _lag(around, window, expected):
    """Return by how many samples ``window`` lies later in ``around`` than ``expected``; NaN where it is not there."""
    if len(around) < len(window):
        return np.nan
    size = 1 << (len(around) + len(window)).bit_length()
    product = np.fft.irfft(np.fft.rfft(around, size) * np.conj(np.fft.rfft(window, size)), size)[
        : len(around) - len(window) + 1
    ]
    energy = np.cumsum(np.concatenate([[0.0], around.astype(float) ** 2]))
    norm = np.sqrt(np.maximum(energy[len(window) :] - energy[: -len(window)], 1e-9) * np.sum(window.astype(float) ** 2))
    match = product / norm
    best = int(np.argmax(match))
    if match[best] < 0.5:
        return np.nan
    if 0 < best < len(match) - 1:  # the vertex of a parabola through the three
        left, middle, right = match[best - 1 : best + 2]
        best += 0.5 * (left - right) / (left - 2 * middle + right)
    return best - expected


def compare(path, container, codec, condition, source):
    """Return the Comparison of a file."""
    try:
        ours = by_us(path)
    except MediaError as error:
        return Comparison(container, codec, condition, np.nan, np.nan, np.nan, np.nan, f"UNEXPLAINED: {error}")
    theirs = by_ffmpeg(path)
    difference = lags(ours, theirs)
    worst = difference[np.argmax(np.abs(np.nan_to_num(difference, nan=np.inf)))] if len(difference) else np.nan
    expected = _expected(source, condition)
    result = Comparison(
        container,
        codec,
        condition,
        float(worst),
        _median(lags(ours, expected)),
        _median(lags(theirs, expected)),
        np.nan,
    )
    if condition == "as made":
        result.compensated_ms = _median(lags(by_us(path, compensate_delay=True), expected))
    if not abs(worst) <= LIMIT_MS:
        result.reason = _reason(result, lags(ours, expected), container, condition)
    return result


def _expected(source, condition):
    """Return what was put in, at its place on the time line of the picture."""
    if condition.startswith("late"):
        return np.concatenate([np.zeros(round(float(condition.split()[1]) * RATE), np.float32), source])
    if "pause" in condition:
        cuts, length = ([4], _PAUSE_SECONDS) if condition == "pause" else ([3, 6], 2 * _PAUSE_SECONDS)
        parts = np.split(source, [cut * RATE for cut in cuts])
        silence = np.zeros(length * RATE, np.float32)
        return np.concatenate([parts[0], *(piece for part in parts[1:] for piece in (silence, part))])
    return source


def _median(values):
    """Return the median of those that are numbers."""
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else float("nan")


def _reason(result, errors, container, condition):
    """Return why ours differs from ffmpeg by more than a millisecond."""
    if condition.startswith("wander"):
        width = float(condition.split()[1])
        if (
            np.all(np.abs(errors[np.isfinite(errors)] - _median(errors)) < 1)
            and np.all(np.isfinite(errors))
            and abs(_median(errors)) < width + 30
        ):
            return (
                "ffmpeg follows the arrival times, by cuts, silence and stretching; "
                "ours is whole, in the middle of them"
            )
        if result.codec == "tta" and np.all(np.abs(errors) < width):
            return (
                "ten packets of a second each: too few to tell a wandering clock from gaps; "
                "none is off by more than it wanders"
            )
    if result.codec == "libopus" and -7.5 < result.difference_ms < -5.5:
        return "releases of ffmpeg before 8 count the encoder's delay, which is cut off, to the time before the picture"
    if container in ("ts", "mpg", "vob") and "pause" in condition and abs(result.ours_ms) < 30:
        return (
            "ffmpeg takes the pause for a new clock and closes it, though the picture goes on; "
            "ours is where it was put in"
        )
    if abs(result.ours_ms) < LIMIT_MS < abs(result.ffmpeg_ms):
        return "ours is where it was put in"
    return "UNEXPLAINED"


def read(path):
    """Return the comparisons of a run that is written in a file."""
    return [Comparison(**run) for run in json.loads(Path(path).read_text())["runs"]]


def page(results):
    """Return what stands in ``benchmarks/README.md``: delays, conditions, and how often each reason was given."""
    return "\n\n".join([_delays(results), _conditions(results), _reasons(results)])


def _delays(results):
    """Return a Markdown table of the files as made: how late their sound is."""
    lines = [
        "| container | codec | late in ours, ms | in ffmpeg, ms | with --compensate-delay, ms "
        "| largest difference, ms |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        if result.condition == "as made":
            figures = _figures(result.ours_ms, result.ffmpeg_ms, result.compensated_ms, result.difference_ms)
            lines.append("| " + " | ".join([result.container, result.codec, *figures]) + " |")
    return "\n".join(lines)


def _conditions(results):
    """Return a Markdown table that counts the files of each condition."""
    lines = [
        "| condition | files | at most 1 ms apart | explained | unexplained | largest unexplained difference, ms |",
        "|---|---|---|---|---|---|",
    ]
    for condition in CONDITIONS:
        chosen = [result for result in results if result.condition == condition]
        if not chosen:
            continue
        explained = [result for result in chosen if result.reason and "UNEXPLAINED" not in result.reason]
        unexplained = [result for result in chosen if "UNEXPLAINED" in result.reason]
        worst = max((abs(result.difference_ms) for result in unexplained), default=0.0)
        counts = [len(chosen), len(chosen) - len(explained) - len(unexplained), len(explained), len(unexplained)]
        lines.append("| " + " | ".join([condition, *map(str, counts), f"{worst:.2f}"]) + " |")
    return "\n".join(lines)


def _reasons(results):
    """Return a Markdown table of the reasons, and of how many files each explains."""
    counts = collections.Counter(result.reason for result in results if result.reason)
    return "\n".join(
        [
            "| why they differ | files |",
            "|---|---|",
            *(f"| {reason} | {count} |" for reason, count in counts.most_common()),
        ]
    )


def _differences(results):
    """Return a Markdown table of every file with a difference that needed a reason."""
    lines = [
        "| container | codec | condition | difference, ms | ours, ms | ffmpeg, ms | why |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if result.reason:
            figures = _figures(result.difference_ms, result.ours_ms, result.ffmpeg_ms)
            lines.append(
                "| " + " | ".join([result.container, result.codec, result.condition, *figures, result.reason]) + " |"
            )
    return "\n".join(lines)


def _figures(*milliseconds):
    """Return numbers as they stand in a table; ``-`` where there is none."""
    return [f"{value:+.2f}".replace("-0.00", "+0.00") if np.isfinite(value) else "-" for value in milliseconds]


def main(arguments=None):
    """Compare, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="four pairs, three conditions")
    parser.add_argument("--output", default=None)
    parser.add_argument("--tables", metavar="FILE", help="only print the tables of a run that --output has written")
    arguments = parser.parse_args(arguments)
    if arguments.tables:
        print(page(read(arguments.tables)))
        return 0
    if shutil.which("ffmpeg") is None:
        print("ffmpeg is not installed: nothing to compare with")
        return 2
    pairs = (
        [pair for pair in PAIRS if pair[:2] in (("mp4", "aac"), ("mkv", "flac"), ("ts", "aac"), ("wav", "pcm_s16le"))]
        if arguments.tiny
        else PAIRS
    )
    conditions = ("as made", "late 0.75 s", "pause") if arguments.tiny else CONDITIONS
    noise = np.random.default_rng(0).standard_normal(SECONDS * RATE)
    source = (0.1 * sosfilt(butter(4, [200, 3000], "bandpass", fs=RATE, output="sos"), noise)).astype(np.float32)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        wavfile.write(folder / "sound.wav", RATE, source)
        for container, codec, picture in pairs:
            for condition in conditions:
                path = make(folder, container, codec, picture, condition)
                if path is not None:
                    results.append(compare(path, container, codec, condition, source))
                    os.unlink(path)
    print(page(results), _differences(results), sep="\n\n")
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
    rows = [[result.container, result.codec, result.condition] for result in results]
    measuring.write_json(
        arguments.output, ffmpeg=version, limit_ms=LIMIT_MS, rows=rows, runs=[vars(result) for result in results]
    )
    return int(any("UNEXPLAINED" in result.reason for result in results))


if __name__ == "__main__":
    sys.exit(main())
