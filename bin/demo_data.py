#!/usr/bin/env python3
"""Make a small Charades-Ego of our own: videos, two CSVs and a class list, in the form of the real ones.

Nothing here is from Charades: twelve classes of household sounds are synthesised, each an event with its own
spectrum and rhythm over room noise, so that there is something to learn; the pictures are moving bars. The CSVs have
the real columns, line ends and irregularities (reversed, beyond the end, duplicate, unordered instances).
One video has no sound, one is cut short.

    python bin/demo_data.py FOLDER [--videos 30] [--seed 0]
"""

import argparse
import csv
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SAMPLE_RATE = 44100
FRAMES_PER_SECOND = 12
COLUMNS = (
    "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length,egocentric,charades_video"
).split(",")


def tone(seconds, hz):
    """Return a sine whose frequency may change with time."""
    num_samples = round(seconds * SAMPLE_RATE)
    return np.sin(2 * np.pi * np.cumsum(np.broadcast_to(hz, num_samples)) / SAMPLE_RATE)


def noise(generator, seconds, low_hz, high_hz):
    """Return noise between two frequencies, of peak about 1."""
    num_samples = round(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(generator.standard_normal(num_samples))
    hz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE)
    spectrum[(hz < low_hz) | (hz > high_hz)] = 0
    samples = np.fft.irfft(spectrum, num_samples)
    return samples / (4 * samples.std() + 1e-9)


def bursts(generator, seconds, per_second, decay_seconds):
    """Return an envelope of strokes that die away, at jittered times."""
    envelope = np.zeros(round(seconds * SAMPLE_RATE))
    decay = np.exp(-np.arange(round(5 * decay_seconds * SAMPLE_RATE)) / (decay_seconds * SAMPLE_RATE))
    at = generator.uniform(0, 1 / per_second)
    while at < seconds:
        first = int(at * SAMPLE_RATE)
        part = envelope[first : first + len(decay)]
        np.maximum(part, decay[: len(part)], out=part)
        at += generator.uniform(0.6, 1.4) / per_second
    return envelope


def swell(seconds, per_second):
    """Return an envelope that rises and falls."""
    return 0.5 + 0.5 * tone(seconds, per_second)


SOUNDS = {
    "Knocking on a door": lambda g, s: bursts(g, s, 4, 0.03) * noise(g, s, 80, 400),
    "Running water from a tap": lambda g, s: swell(s, 1.3) * noise(g, s, 1500, 7000),
    "Whistling a tune": lambda g, s: swell(s, 2) * tone(s, 1800 + 500 * np.sign(tone(s, 1.5))),
    "Typing on a keyboard": lambda g, s: bursts(g, s, 9, 0.006) * noise(g, s, 2500, 6000),
    "Ringing a bell": lambda g, s: bursts(g, s, 1.5, 0.4) * (tone(s, 2637) + tone(s, 5274) + tone(s, 4186)) / 3,
    "Humming": lambda g, s: (
        swell(s, 1.1) * sum(tone(s, 180 * k * (1 + 0.02 * tone(s, 5))) / k for k in range(1, 6)) / 2
    ),
    "Vacuuming the floor": lambda g, s: swell(s, 0.9) * sum(tone(s, 110 * k) for k in range(1, 24)) / 9,
    "Shaking keys": lambda g, s: bursts(g, s, 14, 0.02) * (tone(s, 6200) + tone(s, 7100) + noise(g, s, 5500, 7800)) / 3,
    "Sweeping with a broom": lambda g, s: np.maximum(tone(s, 1.2), 0) * noise(g, s, 600, 2500),
    "Starting a microwave": lambda g, s: (tone(s, 1.7) > 0.3) * tone(s, 1000),
    "Clapping hands": lambda g, s: bursts(g, s, 3, 0.012) * noise(g, s, 700, 1800),
    "Sirens outside a window": lambda g, s: tone(s, 750 + 350 * tone(s, 0.8)),
}


def draw_instances(generator, length_seconds):
    """Return events (class, start, stop) of one video, two decimals, up to two at a time, with quiet in between."""
    instances = []
    for _ in range(2):
        at = generator.uniform(0, 4)
        while at < length_seconds - 2:
            stop = min(at + generator.uniform(2.5, 6), length_seconds)
            instances.append((int(generator.integers(len(SOUNDS))), round(at, 2), round(stop, 2)))
            at = stop + generator.uniform(0.5, 5)
    return instances


def synthesise(generator, length_seconds, instances):
    """Return the sound of a video, float32 (num_samples,), peak below 1."""
    samples = 0.003 * generator.standard_normal(round(length_seconds * SAMPLE_RATE))
    makers = list(SOUNDS.values())
    for class_index, start, stop in instances:
        event = 0.25 * generator.uniform(0.6, 1.2) * makers[class_index](generator, stop - start)
        first = round(start * SAMPLE_RATE)
        part = samples[first : first + len(event)]
        part += event[: len(part)]
    return np.clip(samples, -0.99, 0.99).astype(np.float32)


def write_video(path, samples, length_seconds, width=160, height=120):
    """Write an MP4 of moving bars (H.264) and sound (AAC, stereo); ``samples`` None leaves the sound out."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"preset": "ultrafast", "crf": "35"})
        picture.width, picture.height, picture.pix_fmt = width, height, "yuv420p"
        picture.thread_count = 1
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo") if samples is not None else None
        second = 0
        while second < length_seconds:  # a second at a time, so that the two are interleaved as a camera does it
            stop = min(second + 1, length_seconds)
            for index in range(round(second * FRAMES_PER_SECOND), round(stop * FRAMES_PER_SECOND)):
                image = np.zeros((height, width), np.uint8)
                image[:, (4 * index) % width : (4 * index) % width + 20] = 200
                frame = av.VideoFrame.from_ndarray(image, format="gray").reformat(format="yuv420p")
                frame.pts, frame.time_base = index, Fraction(1, FRAMES_PER_SECOND)
                container.mux(picture.encode(frame))
            if sound is not None:
                first, last = round(second * SAMPLE_RATE), round(stop * SAMPLE_RATE)
                block = av.AudioFrame.from_ndarray(np.stack([samples[first:last]] * 2), format="fltp", layout="stereo")
                block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, first, Fraction(1, SAMPLE_RATE)
                container.mux(sound.encode(block))
            second += 1
        for stream in (picture, sound):
            if stream is not None:
                container.mux(stream.encode(None))


def annotation_row(generator, video_id, subject, length_seconds, instances):
    """Return a CSV row in the real columns, with a few of the real files' irregularities."""
    written = [(f"c{class_index:03d}", start, stop) for class_index, start, stop in instances]
    if written and generator.random() < 0.3:  # reversed: says nothing about time
        class_id, start, _ = written[int(generator.integers(len(written)))]
        written.append((class_id, start, round(start / 2, 2)))
    if written and generator.random() < 0.3:  # beyond the end
        class_id, start, _ = written[-1]
        written[-1] = (class_id, start, round(length_seconds + 3, 2))
    if written and generator.random() < 0.1:
        written.append(written[0])
    order = generator.permutation(len(written))
    actions = ";".join("{} {:.2f} {:.2f}".format(*written[index]) for index in order)
    scene = ("Kitchen", "Living room", "Hallway")[int(generator.integers(3))]
    script = 'A person is at home, "busy" with things that can be heard.'
    values = [
        video_id,
        subject,
        scene,
        "6",
        "7",
        "Yes",
        script,
        "door;keys",
        "",
        actions,
        f"{length_seconds:.2f}",
        "Yes",
        video_id[:5],
    ]
    return dict(zip(COLUMNS, values, strict=True))


def make(folder, num_videos=30, seed=0, shortest_seconds=20.0, longest_seconds=30.0):
    """Write videos/, train.csv, test.csv and classes.txt into ``folder``; the last third is the test split."""
    folder = Path(folder)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    subjects = [f"S{index:03d}" for index in range(8)]
    letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"))
    rows = {"train": [], "test": []}
    num_train = num_videos * 2 // 3
    for number in range(num_videos):
        video_id = "".join(generator.choice(letters, 5)) + "EGO"
        length_seconds = round(float(generator.uniform(shortest_seconds, longest_seconds)), 2)
        instances = draw_instances(generator, length_seconds)
        split = "train" if number < num_train else "test"
        rows[split].append(annotation_row(generator, video_id, subjects[number % 8], length_seconds, instances))
        path = folder / "videos" / f"{video_id}.mp4"
        silent, truncated = number == 3, number == 5
        write_video(path, None if silent else synthesise(generator, length_seconds, instances), length_seconds)
        if truncated:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for split, name in (("train", "train.csv"), ("test", "test.csv")):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\r\n")
            writer.writeheader()
            writer.writerows(rows[split])
    lines = [f"c{index:03d} {name}\n" for index, name in enumerate(SOUNDS)]
    (folder / "classes.txt").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--videos", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.folder, arguments.videos, arguments.seed)
