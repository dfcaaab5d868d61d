"""Faults of what a build reads: broken media and CSVs, and sound that a careless reader puts elsewhere or leaves out.

Each function is ``count(sample, folder, num_faults)``, a row of ``fault_table``, and returns a ``Tally``. Where sound
must land is known, since the files are made here; ``alignment.py`` compares with the ffmpeg program.
"""

import errno
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
from trials import BUILD, HANG_SECONDS, Tally, in_children, measured, require_right

from egoaudio.builder.build import build
from egoaudio.builder.plan import Inputs
from egoaudio.errors import MediaError, Status
from egoaudio.hdf5 import integrity, reader
from egoaudio.inputs import containers
from egoaudio.inputs.decoder import Decoder
from egoaudio.inputs.find_media import MEDIA_EXTENSIONS
from egoaudio.inputs.probe import probe

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tests", "tests/inputs")]
import mutations  # noqa: E402
from alignment import lags  # noqa: E402
from conftest import GOOD_KINDS, chirp, make_media  # noqa: E402

RATE = 16000
WORKER_MEGABYTES = 400  # a worker holds 130 MB, and a few seconds of sound
TRIAL_SECONDS = HANG_SECONDS
TRIAL_MEGABYTES = 400  # ten minutes of samples, in and out
PLACED = {"mp4": "aac", "mov": "alac", "mkv": "flac", "webm": "libopus", "flv": "aac", "ts": "aac"}


def break_media(sample, folder, num_faults, seed=0):
    """Build mutated files of a dozen containers beside good ones, in one build within bounded memory and time."""
    good = folder / "good"
    (good / "videos").mkdir(parents=True)
    kinds = [kind for kind in GOOD_KINDS if f".{kind}" in MEDIA_EXTENSIONS]
    whole = [make_media(good / "videos" / f"good_{kind}.{kind}", **GOOD_KINDS[kind]) for kind in kinds]
    _write_csv(good / "all.csv", [path.stem for path in whole])
    build(Inputs((str(good / "all.csv"),), str(good / "videos")), good / "ego.h5", num_workers=2)
    broken = folder / "broken"
    shutil.copytree(good / "videos", broken / "videos")
    seeds = range(seed, seed + num_faults)
    for number in seeds:
        source = whole[number % len(whole)]
        (broken / "videos" / f"seed_{number}{source.suffix}").write_bytes(mutations.mutate(source.read_bytes(), number))
    _write_csv(broken / "all.csv", [path.stem for path in whole] + [f"seed_{number}" for number in seeds])
    inputs = ["--annotations", broken / "all.csv", "--videos", broken / "videos", "--output", broken / "ego.h5"]
    options = ["--video-timeout", "30", "--workers", "2", "--skip-failed"]
    status, said, megabytes = measured([*BUILD, *map(str, inputs), *options], HANG_SECONDS + num_faults)
    if status != 0:
        reason = f"one of the seeds {seed} to {seed + num_faults - 1}: the build ends with status {status}: {said}"
        return Tally(num_faults, (reason,) * num_faults)
    with reader.open(broken / "ego.h5") as file, reader.open(good / "ego.h5") as expected:
        wrong = integrity.verify(file)
        for row in file.video_table[len(whole) :]:
            if row["duration_seconds"] > 75 or row["status"] == Status.PLANNED:
                wrong.append(f"{row['video_id'].decode()}: status {row['status']}, {row['duration_seconds']} s")
        for name in file.features:
            if not np.array_equal(file[name][: expected.num_clips], expected[name]):
                wrong.append(f"{name} of good files differs from a build without broken ones")
        outcomes = {status.name: int((file.video_table["status"][len(whole) :] == status).sum()) for status in Status}
        print(f"mutated media: {outcomes}, {megabytes} MB a process at most")
    lost = (f"a process of the build took {megabytes} MB",) if megabytes > WORKER_MEGABYTES else ()
    return Tally(num_faults, lost, tuple(wrong))


def _write_csv(path, ids):
    lines = ["video,start,end,label", *(f"{video_id},0,1,sound" for video_id in ids)]
    path.write_text("".join(f"{line}\n" for line in lines))


def break_csvs(sample, folder, num_faults, seed=0):
    """Read mutated CSVs: each is read or refused in words, soon and in little memory."""
    from test_annotations_hostile import read_mutated

    return in_children(lambda number: read_mutated(folder / "a.csv", number), range(seed, seed + num_faults))


def _try_each(trial, folder, num_faults, seed):
    """Call ``trial(folder, seed)`` for each seed, each in a folder of its own, in child processes."""

    def alone(number):
        place = folder / f"trial{number}"
        place.mkdir()
        try:
            trial(place, number)
        finally:
            shutil.rmtree(place)

    return in_children(alone, range(seed, seed + num_faults), TRIAL_SECONDS, TRIAL_MEGABYTES)


def _decode(path):
    """Return the samples of a file and its decoder; require that the length was known before."""
    decoder = Decoder(path, RATE)
    samples = np.concatenate(list(decoder))
    said = probe(path).duration_seconds
    require_right(abs(said - len(samples) / RATE) < 0.05, f"{said} s were planned and {len(samples) / RATE} s decoded")
    return samples, decoder


# ------------------------------------------------------------------------------------------------------- where it lands


def move_sound(sample, folder, num_faults, seed=0):
    """Have sound begin up to 200 s after its picture, pause up to three times for 150 s, and count from any time."""
    return _try_each(_move_sound, folder, num_faults, seed)


def _move_sound(place, seed):
    generator = np.random.default_rng(seed)
    extension = list(PLACED)[seed % len(PLACED)]
    offset = (
        round(5 * generator.choice([0.0, generator.uniform(0, 100)])) / 5
    )  # of which the pictures, 5 a second, begin
    late = generator.choice([0.3, generator.uniform(0.3, 200)])
    places = np.sort(generator.choice(np.arange(2, 10), generator.integers(0, 4), replace=False))
    pauses = generator.uniform(3, 150, len(places))
    if extension == "webm":  # whose pictures take 2 ms each to make
        late, pauses = min(late, 20.0), pauses / 5

    def edit(index, packet):
        seconds = float(packet.pts * packet.time_base) - offset - late
        shift = round(float(pauses[places <= seconds].sum()) / packet.time_base)
        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
        return packet

    codec, rate = PLACED[extension], 48000 if PLACED[extension] == "libopus" else 44100
    sound, length = chirp(rate, 12.0), late + 12.0 + float(pauses.sum())
    path = make_media(
        place / f"a.{extension}", audio=codec, sample_rate=rate, channels=1, sound=sound, edit=edit, video=True,
        start_seconds=offset + late, video_start_seconds=offset, video_seconds=length,
    )  # fmt: skip
    samples, decoder = _decode(path)
    pieces, moved = np.split(chirp(RATE, 12.0), places * RATE), round(late * RATE)
    for piece, pause in zip(pieces, [0.0, *pauses], strict=True):
        moved += round(pause * RATE)
        whole = piece[: len(piece) // RATE * RATE]  # seconds of sound; a packet more may come before a pause
        later = lags(samples[max(0, moved - RATE) :], np.concatenate([np.zeros(min(moved, RATE), np.float32), whole]))
        require_right(
            len(later) and np.all(np.abs(later[1:]) <= 1.5),
            f"{extension}, {offset:.3f} s on the clock, {late:.3f} s late, pauses {pauses} at {places}: "
            f"the piece at {moved / RATE:.3f} s is off by {later} ms",
        )
        moved += len(piece)
    require_right(decoder.clock_jumps == 0, f"{decoder.clock_jumps} jumps are told")
    rested = decoder.gap_samples / RATE
    require_right(abs(rested - pauses.sum()) < 0.1, f"{rested} s of {pauses} s of pauses are told")


def wander(sample, folder, num_faults, seed=0):
    """Give packets the times of their arrival, up to 120 ms late, half of them with a pause: the sound stays whole."""
    return _try_each(_wander, folder, num_faults, seed)


def _wander(place, seed):
    generator = np.random.default_rng(seed)
    extension = ("mkv", "webm", "flv", "mp4")[seed % 4]
    width, pause = generator.uniform(0.01, 0.12), generator.uniform(1, 30) * (seed % 8 >= 4)
    last = [-1]

    def edit(index, packet):
        seconds = float(packet.pts * packet.time_base) + generator.uniform(0, width)
        seconds += pause if packet.pts * packet.time_base >= 8 else 0
        last[0] = max(last[0] + 1, round(seconds / packet.time_base))
        packet.pts = packet.dts = last[0]
        return packet

    codec, rate = PLACED[extension], 48000 if PLACED[extension] == "libopus" else 44100
    path = make_media(place / f"a.{extension}", seconds=20.0, audio=codec, sample_rate=rate, channels=1, edit=edit)
    samples, decoder = _decode(path)
    words = f"{extension}, wandering by {1000 * width:.0f} ms, a pause of {pause:.3f} s"
    sounding = np.flatnonzero(np.abs(samples) > 1e-4)
    steps = np.diff(sounding)
    holes = steps[steps > 0.005 * RATE] / RATE
    require_right(
        len(holes) == bool(pause) and np.all(np.abs(holes - pause) <= width + 0.03), f"{words}: holes of {holes} s"
    )
    sound = (sounding[-1] - sounding[0]) / RATE - holes.sum()
    require_right(abs(sound - 20) < 0.07, f"{words}: {sound} of 20 s are there")
    lost = decoder.lost_samples / RATE
    require_right(abs(lost - holes.sum()) < 0.05 and decoder.clock_jumps == 0, f"{words}: {lost} s are told as lost")


# ----------------------------------------------------------------------------------------------------- what is left out


def fail_reads(sample, folder, num_faults, seed=0):
    """Have the disk fail somewhere in a file: unreadable, with the reason; never the sound up to there."""
    kinds = list(GOOD_KINDS)

    def trial(place, seed):
        kind = kinds[seed % len(kinds)]
        path = make_media(place / f"a.{kind}", **{**GOOD_KINDS[kind], "seconds": 6.0})
        whole, size = np.concatenate(list(Decoder(path, RATE))), path.stat().st_size
        limit = np.random.default_rng(seed).uniform(0, size)

        def read(file, count=-1):
            if file.tell() + count > limit and file.tell() < size:
                raise OSError(errno.EIO, "Input/output error")
            return super(containers._File, file).read(count)

        with mock.patch.object(containers._File, "read", read):
            recording = probe(path)
            try:
                samples = np.concatenate(list(Decoder(path, RATE)))
            except MediaError as error:
                require_right("Input/output error" in str(error), f"another reason: {error}")
                return
        require_right(np.array_equal(samples, whole), f"{kind}: other sound, status {recording.status}")

    return _try_each(trial, folder, num_faults, seed)


def chain(sample, folder, num_faults, seed=0):
    """Chain Ogg recordings of other rates and channels, some damaged: all that decodes comes, the rest is counted."""
    codecs = {"opus": "libopus", "oga": "flac", "ogg": "vorbis"}

    def trial(place, seed):
        generator = np.random.default_rng(seed)
        extension = list(codecs)[seed % 3]
        codec, data, expected, num_bad, first_bad = codecs[extension], b"", [], 0, None
        for number in range(generator.integers(2, 6)):
            rate = int(generator.choice([24000, 48000] if codec == "libopus" else [32000, 44100, 48000]))
            channels = 2 if codec == "vorbis" else int(generator.integers(1, 3))
            path = place / f"{number}.{extension}"
            make_media(path, seconds=1.0, audio=codec, sample_rate=rate, channels=channels)
            link, samples = path.read_bytes(), np.concatenate(list(Decoder(path, RATE)))
            if number and codec == "libopus" and generator.random() < 0.3:
                link, samples, num_bad = link.replace(b"OpusHead", b"OpusHeaX"), 0 * samples, num_bad + 1
                first_bad = number if first_bad is None else first_bad
            data, expected = data + link, [*expected, samples]
        path = place / f"a.{extension}"
        path.write_bytes(data)
        samples, decoder = _decode(path)
        expected = np.concatenate(expected)
        require_right(decoder.bad_parts == num_bad, f"{decoder.bad_parts} damaged links are told, not {num_bad}")
        # How long a damaged link is, is guessed from its bytes.
        require_right(abs(len(samples) - len(expected)) <= RATE * num_bad, f"{len(samples)} samples of {len(expected)}")
        before = len(expected) if first_bad is None else first_bad * RATE
        require_right(np.array_equal(samples[:before], expected[:before]), "other sound before the damaged link")
        sounding = [samples[samples != 0], expected[expected != 0]]
        require_right(np.array_equal(*sounding), "other sound after a damaged link")

    return _try_each(trial, folder, num_faults, seed)


def mute(sample, folder, num_faults, seed=0):
    """Mute sound, have its channels cancel out, or make it faint, in a random container: told as what it is."""
    kinds = [kind for kind in GOOD_KINDS if kind != "ogg"]  # FFmpeg's Vorbis encoder leaves 4 % of what cancels out

    def trial(place, seed):
        generator = np.random.default_rng(seed)
        kind, what = kinds[seed % len(kinds)], ("muted", "cancels", "faint")[int(generator.integers(3))]
        settings = {"sample_rate": 44100, **GOOD_KINDS[kind]}
        tone = chirp(settings["sample_rate"], 3.0)
        sound = {"muted": np.stack([0 * tone] * 2), "cancels": np.stack([tone, -tone]), "faint": 2e-2 * tone}[what]
        samples, decoder = _decode(make_media(place / f"a.{kind}", **settings, sound=sound))
        told = (bool(decoder.is_silent), bool(decoder.cancels_out))
        right = {"muted": [(True, False)], "cancels": [(True, True), (False, True)], "faint": [(False, False)]}[what]
        require_right(told in right, f"{kind}, {what}: silent, cancels out: {told}; peak {decoder.peak}")
        if what == "muted":
            require_right(not np.any(np.abs(samples) > 1e-4), f"{kind}: muted sound has a peak of {decoder.peak}")

    return _try_each(trial, folder, num_faults, seed)
