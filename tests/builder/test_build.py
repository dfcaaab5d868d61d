"""From videos and CSVs to a file: whole, equal for any number of workers, resumed to the same bytes."""

import os
import signal
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import egoaudio
from egoaudio.audio import clips, denoise
from egoaudio.audio.features import FeatureExtractor
from egoaudio.audio.labels import label_clips, label_videos
from egoaudio.builder import build, prepare
from egoaudio.builder.extract import extract
from egoaudio.builder.plan import Inputs, place
from egoaudio.builder.recordings import Recordings
from egoaudio.config.build import BuildConfig, ClipConfig, DenoiseConfig, FeatureConfig
from egoaudio.errors import BuildError, Status
from egoaudio.hdf5 import integrity
from egoaudio.hdf5.writer import RowWriter, offsets
from egoaudio.inputs import decoder
from egoaudio.inputs.annotations import read_annotations
from egoaudio.inputs.probe import probe
from egoaudio.inputs.videos import Videos
from egoaudio.system import lock

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("bin", "benchmarks")]
import demo_data  # noqa: E402
from trials import content  # noqa: E402

pytestmark = pytest.mark.usefixtures("kept_workers")
CONFIG = BuildConfig(
    denoise=DenoiseConfig(scope="recording"),
    features=FeatureConfig(features=("spectrogram", "mfcc", "logmel", "yamnet", "waveform")),
)


@pytest.fixture(scope="session")
def charades(tmp_path_factory):
    """A folder of eight short videos in Charades' form: video 3 has no sound, video 5 is cut off."""
    folder = tmp_path_factory.mktemp("charades")
    demo_data.make(folder, num_videos=8, seed=1, shortest_seconds=2.2, longest_seconds=3.9)
    return folder


def _inputs(folder, **changes):
    inputs = Inputs(
        (str(folder / "train.csv"),), str(folder / "videos"), (str(folder / "test.csv"),), str(folder / "classes.txt")
    )
    return replace(inputs, **changes)


@pytest.fixture(scope="session")
def built(charades, tmp_path_factory):
    """The file of ``charades`` by two workers, and its report."""
    output = tmp_path_factory.mktemp("built") / "ego.h5"
    return output, build.build(_inputs(charades), output, CONFIG, num_workers=2)


def _columns(video):
    """Return a video's instances as the labels are made from them."""
    one = Videos.of([video])
    return one.instances, one.bounds


def test_the_file_holds_what_the_stages_compute_one_by_one(charades, built):
    output, _ = built
    annotations = read_annotations([charades / "train.csv"], [charades / "test.csv"], charades / "classes.txt")
    with egoaudio.open(output) as file:
        assert file.complete
        assert list(file.classes["class_id"]) == [*annotations.class_ids, "no_action"]
        assert list(file.videos["video_id"]) == [video.video_id for video in annotations.videos]
        assert sum(file.videos["status"] == Status.OK) == 6
        for number, video in enumerate(annotations.videos):
            row = file.video_table[number]
            rows = slice(row["first_clip"], row["first_clip"] + row["num_clips"])
            np.testing.assert_array_equal(
                file.video_labels[number], label_videos(*_columns(video), file.num_classes)[0]
            )
            if row["status"] != Status.OK:
                assert not file.usable[rows].any()
                continue
            path = charades / "videos" / f"{video.video_id}.mp4"
            with threadpool_limits(1):  # as in a worker: matrix products add in another order with more threads
                samples = np.concatenate(list(denoise.gate_blocks(decoder.Decoder(path, 16000), 16000, CONFIG.denoise)))
                plan = clips.plan_clips(round(row["duration_seconds"] * 16000), CONFIG.clips, 16000)
                windows = np.concatenate([windows for _, windows, _ in clips.cut([samples], plan)])
                features = FeatureExtractor(CONFIG.features, 16000, 16000)(windows)
            for name, values in features.items():
                np.testing.assert_array_equal(file[name][rows], values, err_msg=name)
            placed = clips.place_clips([plan.recording_samples], CONFIG.clips, 16000)
            labels, labelled = label_clips(placed, *_columns(video), file.num_classes, CONFIG.clips)
            np.testing.assert_array_equal(file.labels[rows], labels)
            np.testing.assert_array_equal(file.clip_table["labelled"][rows], labelled)
            np.testing.assert_array_equal(file.clip_table["start_seconds"][rows], plan.start_seconds)
        assert len(file.instances) == sum(len(video.instances) for video in annotations.videos)
        assert integrity.verify(file) == []


def test_the_report_names_every_failed_video_and_its_reason(charades, built):
    output, report = built
    text = str(report)
    unreadable = [path.stem for path in charades.glob("videos/*.mp4") if probe(path).status == Status.UNREADABLE]
    assert [video_id for video_id, _ in report.failures] == unreadable
    assert "1 without an audio stream" in text
    assert "1 unreadable" in text
    assert f"{report.failures[0][0]}: " in text
    assert "decode" in text and "denoise" in text and "features" in text and "write" in text


@pytest.mark.parametrize("num_workers", [1, 4])
def test_any_number_of_workers_gives_the_same_content(charades, built, tmp_path, num_workers):
    build.build(_inputs(charades), tmp_path / "ego.h5", CONFIG, num_workers=num_workers)
    assert content(tmp_path / "ego.h5") == content(built[0])


def _build_with(process, monkeypatch, *arguments, **options):
    """Build with another function in the workers than ``extract``."""
    with monkeypatch.context() as patch:
        patch.setattr(build, "extract", process)
        return build.build(*arguments, **options)


def _stop_after(number):
    """Return a stage that kills its own parent's build after some videos."""

    def process(path, extents, config, job):
        outcome = extract(path, extents, config, job)
        with RowWriter(path, extents) as writer:
            done = (writer.read("videos", 0, extents["videos"].shape[0])["status"] == Status.OK).sum()
        if done >= number:
            raise BuildError("stop here")
        return outcome

    return process


def test_an_interrupted_build_is_finished_to_the_same_content(charades, built, tmp_path, monkeypatch):
    output = tmp_path / "ego.h5"
    with pytest.raises(BuildError, match="stop here"):
        _build_with(_stop_after(2), monkeypatch, _inputs(charades), output, CONFIG, num_workers=1)
    assert not output.exists()
    with pytest.warns(UserWarning, match="incomplete"):
        file = egoaudio.open(f"{output}.partial")
    with file:
        assert (file.video_table["status"] == Status.OK).sum() >= 2
        assert (file.video_table["status"] == Status.PLANNED).any()
        assert integrity.verify(file) == []
    build.build(_inputs(charades), output, CONFIG, num_workers=2)
    assert content(output) == content(built[0])
    assert [path.name for path in tmp_path.iterdir()] == ["ego.h5"]


def test_rows_torn_by_a_power_failure_are_made_again(charades, built, tmp_path, monkeypatch):
    output = tmp_path / "ego.h5"
    with pytest.raises(BuildError, match="stop here"):
        _build_with(_stop_after(2), monkeypatch, _inputs(charades), output, CONFIG, num_workers=1)
    partial = f"{output}.partial"
    extents = offsets(partial)
    with RowWriter(partial, extents) as writer:
        videos = writer.read("videos", 0, extents["videos"].shape[0])
        torn = int(np.flatnonzero(videos["status"] == Status.OK)[0])
        writer.erase("spectrogram", int(videos["first_clip"][torn]), 1)
    build.build(_inputs(charades), output, CONFIG, num_workers=1)
    assert content(output) == content(built[0])


def test_rows_of_a_failed_video_that_a_power_failure_brought_back_are_made_again(
    charades, built, tmp_path, monkeypatch
):
    """It failed and its rows were erased, but of all that only the status reached the disk."""
    output = tmp_path / "ego.h5"
    with pytest.raises(BuildError, match="stop here"):
        _build_with(_stop_after(2), monkeypatch, _inputs(charades), output, CONFIG, num_workers=1)
    extents = offsets(f"{output}.partial")
    with RowWriter(f"{output}.partial", extents) as writer:
        videos = writer.read("videos", 0, extents["videos"].shape[0])
        number = int(np.flatnonzero(videos["status"] == Status.OK)[0])
        clip_rows = writer.read("clips", int(videos["first_clip"][number]), int(videos["num_clips"][number]))
        videos["status"][number] = clip_rows["status"] = Status.CRASHED
        writer.write("videos", 0, videos)
        writer.write("clips", int(videos["first_clip"][number]), clip_rows)
    build.build(_inputs(charades), output, CONFIG, num_workers=1)
    assert content(output) == content(built[0])


def test_a_video_that_crashes_its_worker_costs_that_video_only(charades, built, tmp_path, monkeypatch):
    output = tmp_path / "ego.h5"
    with egoaudio.open(built[0]) as file:
        victim = file.video_table["video_id"][file.video_table["status"] == Status.OK][0].decode()

    def process(path, extents, config, job):
        if victim in job.path:
            with RowWriter(path, extents) as writer:
                writer.write("spectrogram", job.first_clip, np.ones((1, *extents["spectrogram"].shape[1:]), np.float32))
            os.kill(os.getpid(), signal.SIGSEGV)
        return extract(path, extents, config, job)

    report = _build_with(process, monkeypatch, _inputs(charades), output, CONFIG, num_workers=2)
    assert dict(report.failures)[victim] == "the decoding process crashed (SIGSEGV)"
    with egoaudio.open(output) as file, egoaudio.open(built[0]) as whole:
        assert integrity.verify(file) == []
        for number, row in enumerate(file.video_table):
            rows = slice(row["first_clip"], row["first_clip"] + row["num_clips"])
            if row["video_id"].decode() == victim:
                assert row["status"] == Status.CRASHED
                assert not file["spectrogram"][rows].any()
                assert set(file.clip_table["status"][rows]) == {Status.CRASHED}
            else:
                assert row == whole.video_table[number]
                np.testing.assert_array_equal(file["spectrogram"][rows], whole["spectrogram"][rows])


def test_a_recording_that_decodes_shorter_than_its_plan_leaves_clips_without_sound(charades, tmp_path, monkeypatch):
    def promise_five_seconds_more(gathered, config, *_):
        recordings = [probe(path) for path in gathered.paths()]
        longer = [replace(one, duration_seconds=one.duration_seconds + 5) for one in recordings]
        return place(gathered, Recordings.of(longer), config)

    monkeypatch.setattr(prepare, "probe_recordings", promise_five_seconds_more)
    build.build(_inputs(charades), tmp_path / "ego.h5", CONFIG)
    with egoaudio.open(tmp_path / "ego.h5") as file:
        without = file.clip_table["status"] == Status.NO_SOUND
        assert without.sum() >= 4 * 6
        assert not file["mfcc"][without].any()
        assert integrity.verify(file) == []


@pytest.mark.parametrize(
    "clip_config, rows_a_second",
    [
        (ClipConfig(clip_seconds=0.1), 10),
        (ClipConfig(clip_seconds=0.1, context_seconds=1.0), 10),
        (ClipConfig(clip_seconds=1.0, hop_seconds=0.25), 4),
    ],
)
@pytest.mark.parametrize("scope", ["recording", "clip"])
def test_short_and_overlapping_clips_work_from_end_to_end(charades, tmp_path, clip_config, rows_a_second, scope):
    config = replace(CONFIG, clips=clip_config, denoise=DenoiseConfig(scope=scope))
    build.build(_inputs(charades), tmp_path / "ego.h5", config, num_workers=1)
    with egoaudio.open(tmp_path / "ego.h5") as file:
        ok = file.videos[file.videos["status"] == Status.OK]
        expected = ok["duration_seconds"] * rows_a_second
        assert (abs(ok["num_clips"] - expected) < max(2, 1.0 * rows_a_second)).all()
        assert np.isfinite(file["spectrogram"][file.usable]).all()
        assert file["waveform"].shape[1] == round(clip_config.clip_seconds * 16000)
        assert integrity.verify(file) == []


def test_a_complete_file_is_touched_only_by_force(charades, built, tmp_path):
    output = tmp_path / "ego.h5"
    output.write_bytes(built[0].read_bytes())
    before = output.stat()
    assert "was complete already" in str(build.build(_inputs(charades), output, CONFIG))
    other = replace(CONFIG, clips=ClipConfig(clip_seconds=0.5))
    with pytest.raises(BuildError, match=r"(?s)another build.*`clip_seconds`: 1.0, now 0.5.*`force=True`"):
        build.build(_inputs(charades), output, other)
    assert output.stat().st_mtime_ns == before.st_mtime_ns
    build.build(_inputs(charades), output, other, num_workers=2, force=True)
    with egoaudio.open(output) as file:
        assert file.clip_seconds == 0.5


def test_an_unfinished_build_of_something_else_is_not_continued(charades, tmp_path, monkeypatch):
    output = tmp_path / "ego.h5"
    with pytest.raises(BuildError, match="stop here"):
        _build_with(_stop_after(1), monkeypatch, _inputs(charades), output, CONFIG)
    with pytest.raises(BuildError, match=r"(?s)something else.*`mode`: nonstationary, now none"):
        build.build(_inputs(charades), output, replace(CONFIG, denoise=DenoiseConfig(mode="none")))
    with pytest.raises(BuildError, match=r"videos no longer there: 3"):
        build.build(_inputs(charades, test_annotations=()), output, CONFIG)


def test_a_second_build_of_the_same_output_stops_and_says_who_holds_it(charades, tmp_path):
    with lock.held(tmp_path / "ego.h5"), pytest.raises(BuildError, match=f"process {os.getpid()}"):
        build.build(_inputs(charades), tmp_path / "ego.h5", CONFIG)
    with lock.held(tmp_path / "ego.h5"), lock.held(tmp_path / "other.h5"):
        pass


@pytest.mark.parametrize(
    "output, message",
    [("nowhere/ego.h5", "does not exist"), (".", "is a folder")],
)
def test_an_output_that_cannot_be_is_told_before_anything_is_read(charades, tmp_path, output, message):
    with pytest.raises(BuildError, match=message):
        build.build(_inputs(charades, annotations=("no such.csv",)), tmp_path / output, CONFIG)


def test_videos_that_are_nowhere_are_told(charades, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError, match="none of the 8 annotated videos is there"):
        build.build(_inputs(charades, videos=str(tmp_path / "empty")), tmp_path / "ego.h5", CONFIG)


def test_a_missing_file_is_a_failure_with_no_clips(charades, tmp_path):
    (tmp_path / "videos").mkdir()
    paths = sorted((charades / "videos").iterdir())
    for path in paths[:-1]:
        (tmp_path / "videos" / path.name).symlink_to(path)
    report = build.build(
        _inputs(charades, videos=str(tmp_path / "videos"), follow_links=True),
        tmp_path / "ego.h5",
        CONFIG,
        num_workers=2,
    )
    assert paths[-1].stem in dict(report.failures)
    with egoaudio.open(tmp_path / "ego.h5") as file:
        missing = file.videos[file.videos["status"] == Status.MISSING]
        assert list(missing["num_clips"]) == [0]


def test_the_preview_writes_nothing_and_says_what_would_be(charades, tmp_path):
    text = str(build.preview(_inputs(charades), tmp_path / "ego.h5", CONFIG, num_workers=2))
    assert list(tmp_path.iterdir()) == []
    assert "6 with sound, 1 without an audio stream, 1 unreadable" in text
    assert "judging by one video" in text


KILLED = """
    import sys
    from egoaudio.cli import build
    build(sys.argv[1:])
"""


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_build_soon_and_says_how_to_go_on(charades, tmp_path, number, status):
    folder = tmp_path / "many"
    (folder / "videos").mkdir(parents=True)
    lines = ["video,start,end,label"]
    source = next(path for path in sorted((charades / "videos").iterdir()) if probe(path).status == Status.OK)
    for index in range(400):
        (folder / "videos" / f"v{index:03d}.mp4").symlink_to(source)
        lines.append(f"v{index:03d},0.0,1.0,sound")
    (folder / "a.csv").write_text("\n".join(lines))
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(KILLED),
        "--annotations",
        folder / "a.csv",
        "--videos",
        folder / "videos",
    ]
    command += ["--output", tmp_path / "ego.h5", "--workers", "2", "--follow-links"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    while not (tmp_path / "ego.h5.partial").exists():
        assert process.poll() is None, process.stderr.read().decode()
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == status, errors.decode()
    assert b"the same command resumes" in errors
    assert b"Traceback" not in errors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with egoaudio.open(tmp_path / "ego.h5.partial") as file:
            assert integrity.verify(file) == []


def test_no_more_workers_are_started_than_there_are_videos(charades, tmp_path, monkeypatch):
    started = []

    def start(num_workers, timeout_seconds):
        started.append(num_workers)
        raise BuildError("stop here")

    monkeypatch.setattr(build.pool, "start_workers", start)
    for function in (build.build, build.preview):
        with pytest.raises(BuildError, match="stop here"):
            function(_inputs(charades), tmp_path / "ego.h5", CONFIG, num_workers=40)
    assert started == [8, 8]
