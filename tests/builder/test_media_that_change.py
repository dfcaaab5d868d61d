"""Videos that are replaced, and folders that go away, while a build runs or is stopped."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import egoaudio
from egoaudio.builder import build, plan
from egoaudio.builder.extract import extract
from egoaudio.builder.plan import Inputs
from egoaudio.config.build import BuildConfig
from egoaudio.errors import BuildError, Status
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.inputs.fingerprint import UNKNOWN, fingerprint

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("bin", "benchmarks")]
import demo_data  # noqa: E402
from trials import content  # noqa: E402

pytestmark = pytest.mark.usefixtures("kept_workers")
CONFIG = BuildConfig()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    demo_data.make(folder, num_videos=8, seed=1, shortest_seconds=1.2, longest_seconds=1.9)
    build.build(_inputs(folder), folder / "whole.h5")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "work")
    return tmp_path / "work"


def _inputs(folder):
    return Inputs(folder / "train.csv", folder / "videos", folder / "test.csv", folder / "classes.txt")


def _videos(folder):
    """Return the files of the videos with sound, as ``/videos`` has them."""
    with egoaudio.open(folder / "whole.h5") as file:
        return [
            folder / "videos" / row["file"].decode()
            for row in file.video_table[file.video_table["status"] == Status.OK]
        ]


def _stop(monkeypatch, folder, number, before=lambda: None):
    """Build until ``number`` videos are done; then ``before()`` is called ahead of each further one."""

    def process(path, extents, config, job):
        with EgoAudioFile(path) as file:
            done = (file.video_table["status"] == Status.OK).sum()
        if done >= number:
            before()
        return extract(path, extents, config, job)

    with monkeypatch.context() as patch:
        patch.setattr(build, "extract", process)
        return build.build(_inputs(folder), folder / "ego.h5", CONFIG)


def _raise():
    raise BuildError("stop here")


def _replace(path):
    """Put another video of the same size, and the same time, in a video's place: its sound is zeros."""
    info = path.stat()
    raw = bytearray(path.read_bytes())
    raw[100:5000] = bytes(4900)
    path.write_bytes(raw)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def test_a_fingerprint_is_of_size_and_both_ends_and_of_nothing_else(tmp_path):
    path, seen = tmp_path / "a", set()
    for raw in (b"", b"a", b"a" * 70_000, b"a" * 200_000, b"b" + b"a" * 199_999, b"a" * 199_999 + b"b"):
        path.write_bytes(raw)
        assert len(fingerprint(path)) == 32
        seen.add(fingerprint(path))
        (tmp_path / "copy").write_bytes(raw)
        os.utime(tmp_path / "copy", (1, 1))
        assert fingerprint(tmp_path / "copy") == fingerprint(path)
    assert len(seen) == 6
    os.mkfifo(tmp_path / "fifo")
    assert fingerprint(tmp_path / "fifo") == fingerprint(tmp_path) == fingerprint(tmp_path / "gone") == UNKNOWN


def test_the_file_knows_the_videos_it_was_made_from(folder):
    with egoaudio.open(folder / "whole.h5") as file:
        for number, row in enumerate(file.video_table):
            assert file.fingerprints[number].tobytes() == fingerprint(folder / "videos" / row["file"].decode())


@pytest.mark.parametrize("which", ["done", "planned"])
def test_a_video_replaced_by_one_of_equal_size_while_a_build_is_stopped_is_told(folder, monkeypatch, which):
    with pytest.raises(BuildError, match="stop here"):
        _stop(monkeypatch, folder, 2, _raise)
    with EgoAudioFile(folder / "ego.h5.partial") as file:
        row = file.video_table[file.video_table["status"] == (Status.OK if which == "done" else Status.PLANNED)][0]
    path = folder / "videos" / row["file"].decode()
    kept = path.read_bytes()
    _replace(path)
    video_id = row["video_id"].decode()
    words = rf"(?s)unfinished build of something else.*replaced by others of the same size: 1, such as {video_id}"
    with pytest.raises(BuildError, match=words):
        build.build(_inputs(folder), folder / "ego.h5", CONFIG)
    path.write_bytes(kept)
    build.build(_inputs(folder), folder / "ego.h5", CONFIG)
    assert content(folder / "ego.h5") == content(folder / "whole.h5")


def test_a_complete_file_is_of_the_videos_that_are_there_or_says_so(folder):
    shutil.copy(folder / "whole.h5", folder / "ego.h5")
    _replace(_videos(folder)[1])
    with pytest.raises(BuildError, match=r"(?s)another build.*replaced by others of the same size: 1"):
        build.build(_inputs(folder), folder / "ego.h5", CONFIG)


def test_a_video_replaced_while_the_build_runs_costs_that_video(folder, monkeypatch):
    victim = _videos(folder)[0]
    lay_out = build.lay_out

    def replace_after(*arguments):
        lay_out(*arguments)
        _replace(victim)

    monkeypatch.setattr(build, "lay_out", replace_after)
    report = build.build(_inputs(folder), folder / "ego.h5", CONFIG)
    assert dict(report.failures)[victim.stem] == "its file was changed since the build began"
    with egoaudio.open(folder / "ego.h5") as file:
        assert (file.video_table["status"] == Status.UNREADABLE).sum() == 2


def test_a_video_that_vanishes_costs_that_video(folder, monkeypatch):
    victim = _videos(folder)[0]
    lay_out = build.lay_out
    monkeypatch.setattr(build, "lay_out", lambda *arguments: (lay_out(*arguments), victim.unlink()))
    report = build.build(_inputs(folder), folder / "ego.h5", CONFIG)
    assert dict(report.failures)[victim.stem] == "its file was there when the build began, and is gone"
    with egoaudio.open(folder / "ego.h5") as file:
        assert (file.video_table["status"] == Status.MISSING).sum() == 1


@pytest.mark.parametrize("way", ["gone", "another folder", "a part of it"])
def test_a_folder_that_goes_away_stops_the_build_which_then_goes_on(folder, monkeypatch, way):
    if way == "a part of it":
        (folder / "videos/below").mkdir()
        for path in list((folder / "videos").glob("*.mp4")):
            path.rename(folder / "videos/below" / path.name)
    away = folder / ("videos/below" if way == "a part of it" else "videos")

    def leave():
        if not (folder / "elsewhere").exists():
            away.rename(folder / "elsewhere")
            if way == "another folder":  # what is under a mount point
                away.mkdir()

    with pytest.raises(BuildError, match="is gone or was replaced: mount it again and run the same command"):
        _stop(monkeypatch, folder, 2, leave)
    with EgoAudioFile(folder / "ego.h5.partial") as file:
        assert (file.video_table["status"] == Status.OK).sum() == 2
        assert (file.video_table["status"] == Status.PLANNED).sum() == 4
    if way == "another folder":
        away.rmdir()
    (folder / "elsewhere").rename(away)
    build.build(_inputs(folder), folder / "ego.h5", CONFIG)
    if way != "a part of it":
        assert content(folder / "ego.h5") == content(folder / "whole.h5")
    with egoaudio.open(folder / "ego.h5") as file:
        assert np.count_nonzero(file.video_table["status"] == Status.OK) == 6


def test_a_folder_that_goes_away_while_it_is_probed_stops_the_build(folder, monkeypatch):
    gather = build.gather

    def gather_and_leave(*arguments):
        gathered = gather(*arguments)
        (folder / "videos").rename(folder / "elsewhere")
        return gathered

    monkeypatch.setattr(build, "gather", gather_and_leave)
    with pytest.raises(BuildError, match="is gone or was replaced"):
        build.build(_inputs(folder), folder / "ego.h5", CONFIG)
    assert sorted(path.name for path in folder.glob("ego.h5*")) == []


def test_files_of_earlier_versions_without_fingerprints_resume(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(plan, "fingerprint", lambda _: UNKNOWN)  # zeros are what a file without the array gives
        with pytest.raises(BuildError, match="stop here"):
            _stop(patch, folder, 2, _raise)
    build.build(_inputs(folder), folder / "ego.h5", CONFIG)
    with egoaudio.open(folder / "ego.h5") as file:
        assert (file.video_table["status"] == Status.OK).sum() == 6


# ------------------------------------------------------------------------------------------------------ --retry-failed


def _break(folder, monkeypatch):
    """Build with one video away, one that is not media, and one that crashes; return these with their true contents."""
    away, broken, crashing = _videos(folder)[:3]
    kept = {path: path.read_bytes() for path in (away, broken, crashing)}
    away.unlink()
    broken.write_bytes(b"x" * len(kept[broken]))

    def process(path, extents, config, job):
        if job.path == str(crashing):
            os.kill(os.getpid(), 11)
        return extract(path, extents, config, job)

    with monkeypatch.context() as patch:
        patch.setattr(build, "extract", process)
        report = build.build(_inputs(folder), folder / "ego.h5", CONFIG)
    assert {video_id for video_id, _ in report.failures} >= {path.stem for path in kept}
    return kept


def test_failed_videos_of_a_complete_file_are_tried_again_and_only_those(folder, monkeypatch):
    kept = _break(folder, monkeypatch)
    for path, raw in kept.items():
        path.write_bytes(raw)
    decoded = folder / "decoded"

    def noted(path, extents, config, job):
        with open(decoded, "a") as log:
            log.write(Path(job.path).name + "\n")
        return extract(path, extents, config, job)

    with pytest.raises(BuildError, match="`retry_failed=True`"):
        build.build(_inputs(folder), folder / "ego.h5", CONFIG)
    monkeypatch.setattr(build, "extract", noted)
    report = build.build(_inputs(folder), folder / "ego.h5", CONFIG, num_workers=2, retry_failed=True)
    assert sorted(decoded.read_text().split()) == sorted(path.name for path in kept)
    assert not report.already_complete and len(report.failures) == 1
    assert content(folder / "ego.h5") == content(folder / "whole.h5")
    assert sorted(path.name for path in folder.glob("*ego.h5*")) == ["ego.h5"]


def test_a_retry_that_is_stopped_goes_on_and_leaves_the_old_file_until_then(folder, monkeypatch):
    kept = _break(folder, monkeypatch)
    before = (folder / "ego.h5").read_bytes()
    for path, raw in kept.items():
        path.write_bytes(raw)

    def stop(path, extents, config, job):
        raise BuildError("stop here")

    with monkeypatch.context() as patch:
        patch.setattr(build, "extract", stop)
        with pytest.raises(BuildError, match="stop here"):
            build.build(_inputs(folder), folder / "ego.h5", CONFIG, retry_failed=True)
    assert (folder / "ego.h5").read_bytes() == before
    build.build(_inputs(folder), folder / "ego.h5", CONFIG, retry_failed=True)
    assert content(folder / "ego.h5") == content(folder / "whole.h5")


def test_videos_that_fail_again_cost_nothing_and_the_file_is_left_alone(folder, monkeypatch):
    before = (folder / "whole.h5").read_bytes()
    report = build.build(_inputs(folder), folder / "whole.h5", CONFIG, retry_failed=True)
    assert report.already_complete and len(report.failures) == 1
    assert (folder / "whole.h5").read_bytes() == before


def test_failed_videos_of_an_unfinished_file_are_tried_again(folder, monkeypatch):
    victim = _videos(folder)[0]
    raw = victim.read_bytes()
    victim.unlink()
    with pytest.raises(BuildError, match="stop here"):
        _stop(monkeypatch, folder, 2, _raise)
    victim.write_bytes(raw)
    with pytest.raises(BuildError, match="found now and not before"):
        build.build(_inputs(folder), folder / "ego.h5", CONFIG)
    build.build(_inputs(folder), folder / "ego.h5", CONFIG, retry_failed=True)
    assert content(folder / "ego.h5") == content(folder / "whole.h5")


def test_a_retry_of_something_else_is_refused(folder, monkeypatch):
    kept = _break(folder, monkeypatch)
    other = _videos(folder)[4]
    before, raw = (folder / "ego.h5").read_bytes(), other.read_bytes()
    for path, true in kept.items():
        path.write_bytes(true)
    _replace(other)
    with pytest.raises(BuildError, match=r"(?s)tried again.*replaced by others of the same size: 1"):
        build.build(_inputs(folder), folder / "ego.h5", CONFIG, retry_failed=True)
    other.rename(folder / "elsewhere")
    with pytest.raises(BuildError, match=r"(?s)tried again.*were moved or removed: 1"):
        build.build(_inputs(folder), folder / "ego.h5", CONFIG, retry_failed=True)
    other.write_bytes(raw)
    text = (folder / "train.csv").read_text()
    for changed in (text.replace("door;keys,,,", "door;keys,,c001 0.00 1.00,", 1), text.replace("Hallway", "Attic")):
        assert changed != text
        (folder / "train.csv").write_text(changed)
        with pytest.raises(BuildError, match=r"(?s)tried again.*the annotations have changed"):
            build.build(_inputs(folder), folder / "ego.h5", CONFIG, retry_failed=True)
    (folder / "train.csv").write_text(text)
    with pytest.raises(BuildError, match=r"(?s)tried again.*`sample_rate`: 16000, now 8000"):
        build.build(_inputs(folder), folder / "ego.h5", BuildConfig(sample_rate=8000), retry_failed=True)
    assert (folder / "ego.h5").read_bytes() == before


def test_an_unfinished_file_of_another_version_is_told(folder, monkeypatch, capsys):
    with pytest.raises(BuildError, match="stop here"):
        _stop(monkeypatch, folder, 2, _raise)
    monkeypatch.setattr(build, "__version__", "9.9.9")
    build.build(_inputs(folder), folder / "ego.h5", CONFIG)
    assert "was begun by egoaudio 0.1.0, and this is 9.9.9" in capsys.readouterr().err
