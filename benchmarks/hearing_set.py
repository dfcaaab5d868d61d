#!/usr/bin/env python3
"""Make the development set of the hearing benchmark: real recordings on annotations in Charades-Ego's form.

Into a folder: ``videos/*.mp4`` (30 s, AAC, mono), ``train.csv``, ``test.csv``, ``classes.txt`` in the form of the real
files, and ``truth.json`` (the classes that can be heard, and what sounds when). Everything follows from the seed.

157 classes. Those with a rule in ``hearing_sounds.py`` are heard: takes of one group, one after another, over a real
background at 0 to 15 dB, in a room. The others make no sound, as most of Charades' classes. The train videos'
annotations err as Charades' do: late, missing, wrong, reversed, beyond the end; the test videos' are exact, so that
hearing is measured and not the errors. Test videos hear other groups and other backgrounds than train videos, and so do
any two subjects of the train videos: validate with ``--split-unit subject``.

    python benchmarks/hearing_set.py build/hearing [--sounds build/hearing-sounds] [--train 130] [--test 60] [--seed 0]
"""

import argparse
import csv
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from hearing_sounds import BACKGROUND, fetch, find_sounds
from scipy.signal import fftconvolve

SAMPLE_RATE = 16000  # of what is mixed, as a default build hears it; the videos are written at 44,100 Hz
VIDEO_SECONDS = 30.0
NUM_CLASSES = 157
NUM_SUBJECTS = 10  # of the train videos; each hears groups of its own
TEST_SHARE = 0.35  # of a class's groups
COLUMNS = (
    "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length,egocentric,charades_video"
).split(",")

# Per video, as Charades-Ego's 11 instances: so many of classes that are heard, the rest silent.
AUDIBLE_PER_VIDEO, SILENT_PER_VIDEO = 5.0, 6.0
SNR_DB = (0.0, 15.0)  # by the power of what is loud in each, see level()
MICROPHONE = 0.7  # its white noise, as a share of the recorded background
NOT_ANNOTATED, WRONG, REVERSED, BEYOND, DUPLICATE = 0.10, 0.05, 0.03, 0.08, 0.0005

# Rates of the silent classes fall as Charades' do: 1,156 to 26 instances over 3,084 videos.
RAREST, COMMONEST = 26 / 3084, 1156 / 3084


@dataclass(frozen=True)
class Event:
    """A class from ``start`` to ``stop`` seconds; heard if it has a ``group``, at ``snr_db`` over the background."""

    class_index: int
    start: float
    stop: float
    group: str = ""
    snr_db: float = 0.0


@lru_cache(maxsize=400)
def read_sound(path):
    """Return a recording as float32 (num_samples,), mono at ``SAMPLE_RATE``, of at most 30 s; its ends not silent."""
    blocks, num_samples = [np.zeros(0, np.float32)], 0
    with av.open(str(path), metadata_errors="ignore") as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
        for frame in container.decode(audio=0):
            blocks.extend(part.to_ndarray()[0] for part in resampler.resample(frame))
            num_samples += frame.samples
            if num_samples > VIDEO_SECONDS * frame.sample_rate:
                break
        blocks.extend(part.to_ndarray()[0] for part in resampler.resample(None))
    samples = np.concatenate(blocks)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max(initial=1e-9))
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]


def powers(samples, seconds):
    """Return the power of the frames of so many seconds, float32 (num_frames,)."""
    size = round(seconds * SAMPLE_RATE)
    frames = samples[: len(samples) // size * size].reshape(-1, size) if len(samples) >= size else samples[None]
    return np.mean(frames**2, axis=1)


def level(samples):
    """Return how loud samples are: the root mean square of the 20 ms frames that are within 20 dB of the loudest."""
    power = powers(samples, 0.02)
    return float(np.sqrt(power[power >= 0.01 * power.max()].mean()) + 1e-9)


def usable(sounds):
    """Return the sounds that can be decoded and are not silent; of the backgrounds those that are long and steady."""
    kept = []
    for sound in sounds:
        try:
            samples = read_sound(sound.path)
        except (av.FFmpegError, IndexError):  # broken, or without sound
            continue
        if len(samples) < 0.03 * SAMPLE_RATE or level(samples) < 1e-5:
            continue
        if sound.label == BACKGROUND:
            low, high = np.percentile(10 * np.log10(powers(samples, 0.5) + 1e-12), (10, 90))
            if len(samples) < 4 * SAMPLE_RATE or high - low > 12:
                continue
        kept.append(sound)
    return kept


def divide(rng, sounds):
    """Return {place: {label: {group: [Sound]}}}; places are ``test`` and the numbers of the train subjects.

    A group is in one place only. A class with fewer groups than places is not heard in some of them.

    Raises
    ------
    ValueError
        When a place would have no background.

    """
    groups = defaultdict(lambda: defaultdict(list))
    for sound in sounds:
        groups[sound.label][sound.group].append(sound)
    places = {place: defaultdict(dict) for place in ["test", *range(NUM_SUBJECTS)]}
    for label, members in sorted(groups.items()):
        names = [sorted(members)[index] for index in rng.permutation(len(members))]
        num_test = max(round(TEST_SHARE * len(names)), 1)
        first = int(rng.integers(NUM_SUBJECTS))
        for number, name in enumerate(names):
            place = "test" if number < num_test else (first + number) % NUM_SUBJECTS
            places[place][label][name] = members[name]
    if not all(labels[BACKGROUND] for labels in places.values()):
        raise ValueError(f"{len(groups[BACKGROUND])} groups of steady backgrounds are too few for {len(places)} places")
    return places


def draw_events(rng, labels, silent_rates, place):
    """Return the events of one video, unordered: of the ``labels`` that can be heard in this place, and silent ones."""
    heard = [label for label in labels if label in place]
    events, left = [], []
    for _ in range(rng.poisson(AUDIBLE_PER_VIDEO)):
        left = left or list(rng.permutation(len(heard)))  # each class before any comes again: all have their share
        label = heard[left.pop(0)]
        seconds = float(np.clip(rng.lognormal(np.log(5), 0.5), 1.5, 20))
        start = float(rng.uniform(0, VIDEO_SECONDS - min(seconds, 10)))
        names = sorted(place[label])
        snr_db = float(rng.uniform(*SNR_DB))
        stop = min(start + seconds, VIDEO_SECONDS)
        events.append(Event(labels.index(label), start, stop, names[rng.integers(len(names))], snr_db))
    for _ in range(rng.poisson(SILENT_PER_VIDEO)):
        seconds = float(np.clip(rng.lognormal(np.log(9), 0.7), 1.5, VIDEO_SECONDS))
        start = float(rng.uniform(0, VIDEO_SECONDS - 0.8 * seconds))
        index = len(labels) + int(rng.choice(len(silent_rates), p=silent_rates / silent_rates.sum()))
        events.append(Event(index, start, min(start + seconds, VIDEO_SECONDS)))
    return events


def fill(rng, sounds, num_samples, most_gap_seconds):
    """Return float32 (num_samples,): takes drawn from ``sounds`` at a level of 1, one after another with gaps."""
    samples, at = np.zeros(num_samples, np.float32), 0
    while at < num_samples:
        take = read_sound(sounds[rng.integers(len(sounds))].path)
        if len(take) > num_samples - at:  # a long recording: any part of it
            first = int(rng.integers(len(take) - (num_samples - at) + 1))
            take = take[first : first + num_samples - at]
        take = take / level(take)
        fade = min(80, len(take) // 2)
        take[:fade] *= np.linspace(0, 1, fade, dtype=np.float32)
        take[len(take) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
        samples[at : at + len(take)] = take
        at += len(take) + round(rng.uniform(0, most_gap_seconds) * SAMPLE_RATE)
    return samples


def room(rng):
    """Return an impulse response, float32 (num_samples,): direct sound, and an echo that dies away in 0.1 to 0.4 s."""
    seconds = rng.uniform(0.1, 0.4)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    echo = rng.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    echo *= rng.uniform(0.1, 0.4) / np.sqrt(np.sum(echo**2))
    echo[0] = 1
    return echo.astype(np.float32)


def mix(rng, events, labels, place):
    """Return the sound of a video, float32 (num_samples,), peak at most 0.9."""
    num_samples = round(VIDEO_SECONDS * SAMPLE_RATE)
    backgrounds = place[BACKGROUND]
    names = sorted(backgrounds)
    background = fill(rng, backgrounds[names[rng.integers(len(names))]], num_samples, 0)
    background += MICROPHONE * rng.standard_normal(num_samples).astype(np.float32)
    background /= level(background)
    heard = np.zeros(num_samples, np.float32)
    for event in events:
        if event.group:
            first, last = round(event.start * SAMPLE_RATE), round(event.stop * SAMPLE_RATE)
            takes = place[labels[event.class_index]][event.group]
            heard[first:last] += 10 ** (event.snr_db / 20) * fill(rng, takes, last - first, 0.5)
    samples = background + fftconvolve(heard, room(rng))[:num_samples]
    gain = min(10 ** (rng.uniform(-45, -25) / 20), 0.9 / np.abs(samples).max())
    return (gain * samples).astype(np.float32)


def annotate(rng, events, num_audible, erring):
    """Return (class index, start, stop) as written down of the events, with two decimals: ``erring``, or exact."""
    written = []
    for event in events:
        if not erring:
            written.append((event.class_index, round(event.start, 2), round(event.stop, 2)))
            continue
        if event.group and rng.random() < NOT_ANNOTATED:
            continue
        start = max(event.start + rng.uniform(-0.3, 1.0), 0) if event.group else event.start
        stop = min(max(event.stop + rng.uniform(-0.5, 1.5), start + 0.5), VIDEO_SECONDS)
        class_index = int(rng.integers(num_audible)) if event.group and rng.random() < WRONG else event.class_index
        draw = rng.random()
        if draw < REVERSED:
            start, stop = stop, start
        elif draw < REVERSED + BEYOND:
            stop = VIDEO_SECONDS + rng.uniform(0.05, 4)
        written += [(class_index, round(start, 2), round(stop, 2))] * (2 if rng.random() < DUPLICATE else 1)
    return [written[index] for index in rng.permutation(len(written))]


def write_video(path, samples):
    """Write float32 (num_samples,) as the AAC sound of an MP4 without pictures, mono at 44,100 Hz."""
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=44100)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono", bit_rate=96000)
        for first in range(0, len(samples), SAMPLE_RATE):
            frame = av.AudioFrame.from_ndarray(samples[None, first : first + SAMPLE_RATE], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, first, Fraction(1, SAMPLE_RATE)
            for part in resampler.resample(frame):
                container.mux(stream.encode(part))
        for part in resampler.resample(None):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def write_csv(path, rows):
    """Write (video id, subject, annotations) as a CSV in the real columns."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\r\n")
        writer.writeheader()
        for video_id, subject, written in rows:
            actions = ";".join(f"c{index:03d} {start:.2f} {stop:.2f}" for index, start, stop in written)
            script = 'Things are done, "heard" or not.'
            values = [video_id, subject, "Other", "6", "6", "Yes", script, "things", "", actions]
            values += [f"{VIDEO_SECONDS:.2f}", "Yes", video_id[:5]]
            writer.writerow(dict(zip(COLUMNS, values, strict=True)))


def make(folder, sounds, num_train=130, num_test=60, seed=0):
    """Write the set into ``folder`` from ``Sound`` objects, and return the classes that are heard, the list's first."""
    folder = Path(folder)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    sounds = usable(sounds)
    labels = sorted({sound.label for sound in sounds} - {BACKGROUND})
    places = divide(rng, sounds)
    silent_rates = np.geomspace(COMMONEST, RAREST, NUM_CLASSES - len(labels))
    truth = {"audible_classes": {f"c{index:03d}": label for index, label in enumerate(labels)}, "videos": {}}
    rows = {"train": [], "test": []}
    for number in range(num_train + num_test):
        split = "train" if number < num_train else "test"
        subject = number % NUM_SUBJECTS
        place = places[subject if split == "train" else "test"]
        video_rng = np.random.default_rng([seed, number])
        events = draw_events(video_rng, labels, silent_rates, place)
        video_id = f"{'V' if split == 'train' else 'W'}{number:04d}EGO"
        write_video(folder / "videos" / f"{video_id}.mp4", mix(video_rng, events, labels, place))
        name = f"S{subject:03d}" if split == "train" else f"T{subject:03d}"
        rows[split].append((video_id, name, annotate(video_rng, events, len(labels), erring=split == "train")))
        truth["videos"][video_id] = [asdict(event) for event in events if event.group]
    for split, lines in rows.items():
        write_csv(folder / f"{split}.csv", lines)
    names = labels + [f"Doing silent thing {number}" for number in range(NUM_CLASSES - len(labels))]
    lines = [f"c{index:03d} {name}\n" for index, name in enumerate(names)]
    (folder / "classes.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "truth.json").write_text(json.dumps(truth, indent=1), encoding="utf-8")
    return labels


def main():
    """Fetch the sounds, and make the set from them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--sounds", help="where the packages are kept; FOLDER-sounds if not given")
    parser.add_argument("--train", type=int, default=130, help="videos")
    parser.add_argument("--test", type=int, default=60, help="videos")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kept = Path(arguments.sounds or f"{arguments.folder}-sounds")
    fetch(kept)
    labels = make(arguments.folder, find_sounds(kept), arguments.train, arguments.test, arguments.seed)
    print(f"{arguments.train} + {arguments.test} videos in {arguments.folder}; heard: {', '.join(labels)}")


if __name__ == "__main__":
    main()
