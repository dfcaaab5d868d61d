"""A build divided among machines: the shards, and the file that takes them over, byte for byte that of one build."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic
from click.testing import CliRunner
from conftest import make_media

import egoaudio
from egoaudio import cli
from egoaudio.builder import build, merging
from egoaudio.builder.clusters import arguments_of
from egoaudio.builder.plan import Inputs, gather
from egoaudio.builder.shards import Shard, divide, part_of
from egoaudio.config.build import BuildConfig, FeatureConfig, SoundConfig
from egoaudio.config.options import to_json
from egoaudio.errors import BuildError, ConfigurationError, Status, StoreError
from egoaudio.hdf5 import integrity

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("bin", "benchmarks")]
import demo_data  # noqa: E402
from trials import content  # noqa: E402

CONFIG = BuildConfig(
    sound=SoundConfig(skip_silent=True), features=FeatureConfig(features=("mfcc", "waveform"), waveform_dtype="int16")
)
NUM_VIDEOS = 9
MFCC = to_json(BuildConfig(features=FeatureConfig(features=("mfcc",))))


pytestmark = pytest.mark.usefixtures("kept_workers")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Nine videos: one without an audio track, one cut off, one digital silence, one that is not there."""
    folder = tmp_path_factory.mktemp("charades")
    demo_data.make(folder, num_videos=NUM_VIDEOS, seed=1, shortest_seconds=2.2, longest_seconds=3.9)
    paths = sorted(folder.glob("videos/*.mp4"), key=lambda path: path.stat().st_size)
    paths[-1].unlink()
    make_media(paths[-2], seconds=3.0, sound=np.zeros(3 * 44100, np.float32))
    return Inputs(folder / "train.csv", folder / "videos", folder / "test.csv", folder / "classes.txt")


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """Return the file of one build."""
    path = tmp_path_factory.mktemp("whole") / "ego.h5"
    build.build(inputs, path, CONFIG, num_workers=2)
    with egoaudio.open(path) as file:
        statuses = set(file.video_table["status"].tolist())
    assert statuses == {Status.OK, Status.NO_AUDIO, Status.UNREADABLE, Status.MISSING}
    return path


@pytest.fixture(scope="module")
def shards(inputs, tmp_path_factory):
    """Return a function that gives a folder with the shards of a division."""
    made = {}

    def give(count, target):
        if count not in made:
            made[count] = tmp_path_factory.mktemp(f"shards_{count}")
            for number in reversed(range(count)):
                build.build(inputs, made[count] / "ego.h5", CONFIG, shard=f"{number}/{count}")
        shutil.copytree(made[count], target, dirs_exist_ok=True)
        return [Shard(number, count).path(target / "ego.h5") for number in range(count)]

    return give


@pytest.fixture
def decoded(monkeypatch):
    """Return the list of all jobs that were given to workers."""
    jobs, map_unordered = [], build.pool.Workers.map_unordered

    def noted(workers, function, items, **options):
        jobs.extend(items if getattr(function, "func", None) is build.extract else ())
        return map_unordered(workers, function, items, **options)

    monkeypatch.setattr(build.pool.Workers, "map_unordered", noted)
    return jobs


# ------------------------------------------------------------------------------------------------------- the division


def test_videos_are_divided_into_contiguous_ranges_of_about_equal_size():
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 7, 50):
        sizes = rng.integers(-1, 10**9, 50 if count < 50 else 50).tolist()
        ranges = divide(sizes, count)
        assert [part.start for part in ranges] == [0, *(part.stop for part in ranges[:-1])]
        assert ranges[-1].stop == 50 and all(part.start < part.stop for part in ranges)
    sizes = rng.integers(1, 1000, 1000).tolist()
    shares = [sum(sizes[part]) for part in divide(sizes, 8)]
    assert max(shares) - min(shares) <= 2 * max(sizes)


def test_one_huge_video_leaves_no_shard_empty():
    assert [(part.start, part.stop) for part in divide([10**12, 1, 1], 3)] == [(0, 1), (1, 2), (2, 3)]
    assert [(part.start, part.stop) for part in divide([1, 1, 10**12], 3)] == [(0, 1), (1, 2), (2, 3)]
    assert [(part.start, part.stop) for part in divide([-1, -1, -1, -1], 2)] == [(0, 2), (2, 4)]


def test_what_a_shard_holds_keeps_nothing_of_the_others(inputs):
    part = part_of(gather(inputs, CONFIG), Shard(0, 7), CONFIG)
    videos = part.annotations.videos
    arrays = [part.sizes, part.file_names, videos.table, videos.instances, videos.bounds]
    assert part.num_videos < NUM_VIDEOS and all(array.base is None for array in arrays)


def test_a_shard_is_an_ordinary_file(inputs, whole, shards, tmp_path):
    paths = shards(2, tmp_path)
    assert [path.name for path in paths] == ["ego.h5.shard-00000-of-00002", "ego.h5.shard-00001-of-00002"]
    with egoaudio.open(whole) as one:
        ids = []
        for path in paths:
            with egoaudio.open(path) as file:
                assert file.complete and integrity.verify(file) == []
                ids += file.videos["video_id"].tolist()
                assert file.plan_sha256 != one.plan_sha256
        assert ids == one.videos["video_id"].tolist()
    again = build.build(inputs, tmp_path / "ego.h5", CONFIG, shard="1/2")
    assert again.already_complete


# ---------------------------------------------------------------------------------------------------------- taking in


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_build_takes_its_shards_in_and_is_that_of_one_machine(inputs, whole, shards, tmp_path, decoded, count):
    paths = shards(count, tmp_path)
    decoded.clear()
    build.build(inputs, tmp_path / "ego.h5", CONFIG, num_workers=2)
    assert content(tmp_path / "ego.h5") == content(whole)
    assert decoded == [] and all(path.exists() for path in paths)


def test_what_no_shard_holds_is_decoded(inputs, whole, shards, tmp_path, decoded, capsys):
    paths = shards(7, tmp_path)
    decoded.clear()
    number, ids = next((number, ids) for number, path in enumerate(paths) if (ids := _with_sound(path)))
    paths[number].unlink()
    build.build(inputs, tmp_path / "ego.h5", CONFIG)
    assert content(tmp_path / "ego.h5") == content(whole)
    assert {Path(job.path).stem for job in decoded} >= set(ids)
    assert f"missing, or not finished: shard {number}/7; {len(decoded)} videos" in capsys.readouterr().err


def _with_sound(path):
    with egoaudio.open(path) as file:
        return file.videos["video_id"][file.videos["status"] == Status.OK].tolist()


def _damage(path, name="waveform"):
    """Change a byte in the rows of a file's last video with sound; return its id."""
    with egoaudio.open(path) as file:
        row = file.video_table[np.flatnonzero(file.video_table["status"] == Status.OK)[-1]]
        place = file.extents[name].offset + file.extents[name].row_bytes * int(row["first_clip"]) + 5
    with open(path, "r+b") as raw:
        raw.seek(place)
        byte = raw.read(1)
        raw.seek(place)
        raw.write(bytes([byte[0] ^ 1]))
    return row["video_id"].decode()


def test_the_damaged_videos_of_a_shard_are_decoded_again_and_named(inputs, whole, shards, tmp_path, decoded, capsys):
    paths = shards(2, tmp_path)
    decoded.clear()
    video_id = _damage(paths[0])
    build.build(inputs, tmp_path / "ego.h5", CONFIG, remove_shards=True)
    assert content(tmp_path / "ego.h5") == content(whole)
    assert [Path(job.path).stem for job in decoded] == [video_id]
    assert f"{video_id} is decoded again: its waveform is damaged" in capsys.readouterr().err
    assert [path.exists() for path in paths] == [True, False]


@pytest.mark.parametrize("harm", ["cut short", "not ours", "tables"])
def test_a_shard_that_cannot_be_used_at_all_is_decoded_again(inputs, whole, shards, tmp_path, capsys, harm):
    path = shards(2, tmp_path)[1]
    if harm == "cut short":
        os.truncate(path, path.stat().st_size // 2)
    elif harm == "not ours":
        path.write_bytes(b"nothing of ours")
    else:
        with egoaudio.open(path) as file:
            extent = file.extents["videos"]
        with open(path, "r+b") as raw:
            raw.seek(extent.offset + extent.dtype.fields["duration_seconds"][1])
            raw.write(np.float64(3e5).tobytes())
    build.build(inputs, tmp_path / "ego.h5", CONFIG)
    assert content(tmp_path / "ego.h5") == content(whole)
    assert "decoded again" in capsys.readouterr().err and path.exists()


def test_shards_are_removed_when_their_rows_are_safe(inputs, whole, shards, tmp_path):
    paths = shards(2, tmp_path)
    build.build(inputs, tmp_path / "ego.h5", CONFIG)
    report = build.build(inputs, tmp_path / "ego.h5", CONFIG, remove_shards=True)
    assert report.already_complete and not any(path.exists() for path in paths)
    assert content(tmp_path / "ego.h5") == content(whole)


@pytest.fixture
def failing(monkeypatch):
    """Return a function after which every video that is decoded runs out of time, until it is called with False."""
    map_unordered, fails = build.pool.Workers.map_unordered, [False]

    def given(workers, function, items, **options):
        if fails[0] and getattr(function, "func", None) is build.extract:
            return ((item, build.pool.Death("timed out")) for item in items)
        return map_unordered(workers, function, items, **options)

    monkeypatch.setattr(build.pool.Workers, "map_unordered", given)
    return lambda whether=True: fails.__setitem__(0, whether)


def test_a_shard_whose_videos_the_output_lacks_is_kept_and_retrying_takes_them(inputs, whole, tmp_path, failing):
    output, paths = tmp_path / "ego.h5", [Shard(number, 2).path(tmp_path / "ego.h5") for number in range(2)]
    failing()
    build.build(inputs, output, CONFIG, shard="0/2")
    failing(False)
    build.build(inputs, output, CONFIG, shard="1/2")
    failed = len(build.build(inputs, output, CONFIG).failures)
    build.build(inputs, output, CONFIG, shard="0/2", retry_failed=True)
    count, words = len(_with_sound(paths[0])), "of its videos are not in .*ego.h5; `retry_failed=True` takes them from"
    assert count > 1 and failed > count
    with pytest.warns(UserWarning, match=f"00000-of-00002 is kept: {count} {words}"):
        build.build(inputs, output, CONFIG, remove_shards=True)
    assert [path.exists() for path in paths] == [True, False]
    failing()  # nothing needs to be decoded
    build.build(inputs, output, CONFIG, retry_failed=True, remove_shards=True)
    assert content(output) == content(whole) and not any(path.exists() for path in paths)


def test_what_failed_in_an_unfinished_output_is_taken_from_the_shards(
    inputs, whole, shards, tmp_path, failing, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(build, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        failing()
        with pytest.raises(KeyboardInterrupt):
            build.build(inputs, tmp_path / "ego.h5", CONFIG)
    paths = shards(2, tmp_path)
    build.build(inputs, tmp_path / "ego.h5", CONFIG, remove_shards=True)
    assert content(tmp_path / "ego.h5") == content(whole) and not any(path.exists() for path in paths)


# Runs a command in children, each killed after some writes, until one makes the output; prints how many were killed.
KILLED = """
import os, signal, sys
from egoaudio import cli
from egoaudio.builder import build, transfer
from egoaudio.hdf5.writer import RowWriter

def counted(method):
    def call(*arguments):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*arguments)
    return call

def never(*arguments):
    raise AssertionError("decoded")

transfer._THREADS, build.extract, kills = 1, never, 0
RowWriter.write, RowWriter.copy = counted(RowWriter.write), counted(RowWriter.copy)
name, output, writes, *words = sys.argv[1:]
while not os.path.exists(output):
    child, left = os.fork(), range(2, int(writes))[kills % (int(writes) - 2)]
    if not child:
        getattr(cli, name)([*words, "--output", output])
    status = os.waitpid(child, 0)[1]
    if status:
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        kills += 1
        assert kills < 60
print(kills)
"""


def _kill_again_and_again(name, output, words, most_writes):
    """Return how often a command was killed, after 2, 3, ... writes in turn, until ``output`` was there."""
    command = [sys.executable, "-c", KILLED, name, output, most_writes, *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def test_a_build_that_is_killed_while_it_takes_shards_in_is_finished_to_the_same_bytes(inputs, whole, shards, tmp_path):
    """With --remove-shards, so that a shard that went too early would be decoded, or missed."""
    paths = shards(7, tmp_path)
    words = arguments_of(inputs, tmp_path / "unused", CONFIG, 1, 60.0)
    at = words.index("--output")
    words = [*words[:at], *words[at + 2 :], "--remove-shards"]
    assert _kill_again_and_again("build", tmp_path / "ego.h5", words, most_writes=10) >= 20
    assert content(tmp_path / "ego.h5") == content(whole) and not any(path.exists() for path in paths)


def test_failed_videos_of_shards_are_tried_again_with_retry_failed(inputs, shards, tmp_path, decoded):
    folder = tmp_path / "data"
    shutil.copytree(Path(inputs.videos).parent, folder)
    moved = Inputs(*(Path(str(path).replace(str(Path(inputs.videos).parent), str(folder))) for path in (
        inputs.annotations[0], inputs.videos, inputs.test_annotations[0], inputs.classes)))  # fmt: skip
    for number in range(2):
        build.build(moved, tmp_path / "ego.h5", CONFIG, shard=f"{number}/2")
    report = build.build(moved, tmp_path / "ego.h5", CONFIG)
    assert len(report.failures) == 2 and len(decoded) == NUM_VIDEOS - 3
    again = build.build(moved, tmp_path / "ego.h5", CONFIG, retry_failed=True)
    assert again.failures == report.failures


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "shard, words",
    [
        ("3", "expected K/N, such as 0/16"),
        ("2/2", "counted from 0, so the last one is 1/2"),
        ("0/0", "expected K/N"),
        ("-1/2", "expected K/N"),
        ("0/123456", "N <= 99999"),
    ],
)
def test_a_share_that_does_not_exist_is_refused(inputs, tmp_path, shard, words):
    with pytest.raises(ConfigurationError, match=words):
        build.build(inputs, tmp_path / "ego.h5", CONFIG, shard=shard)


def test_more_shards_than_videos_are_refused(inputs, tmp_path):
    with pytest.raises(BuildError, match="only 9 videos, so at most 9 shards"):
        build.build(inputs, tmp_path / "ego.h5", CONFIG, shard="0/10")


def test_a_shard_takes_no_shards_in(inputs, tmp_path):
    with pytest.raises(ConfigurationError, match="takes over no shards"):
        build.build(inputs, tmp_path / "ego.h5", CONFIG, shard="0/2", remove_shards=True)


def test_shards_of_another_configuration_are_refused_with_the_difference(inputs, shards, tmp_path):
    shards(2, tmp_path)
    with pytest.raises(BuildError, match="is a shard of another build:\n  `skip_silent`: True, now False\nRemove it"):
        build.build(inputs, tmp_path / "ego.h5", replace(CONFIG, sound=SoundConfig()))
    assert not list(tmp_path.glob("*.partial"))


def test_shards_of_two_divisions_are_refused(inputs, shards, tmp_path):
    shards(2, tmp_path)
    shards(7, tmp_path)
    with pytest.raises(BuildError, match="several divisions, N = 2 and N = 7: remove those of an earlier one"):
        build.build(inputs, tmp_path / "ego.h5", CONFIG)


def test_shards_of_other_annotations_are_refused(inputs, shards, tmp_path):
    shards(2, tmp_path)
    alone = replace(inputs, test_annotations=())
    with pytest.raises(BuildError, match="is a shard of another build"):
        build.build(alone, tmp_path / "ego.h5", CONFIG)


# ----------------------------------------------------------------------------------------------------- merge by hand


@pytest.mark.parametrize("count", [1, 2, 7])
def test_shards_that_are_merged_in_any_order_are_the_file_of_one_build(whole, shards, tmp_path, count):
    paths = shards(count, tmp_path)
    names = [path.rename(tmp_path / f"renamed_{number}.h5") for number, path in enumerate(paths)]
    merging.merge(names[::-1], tmp_path / "merged.h5")
    assert content(tmp_path / "merged.h5") == content(whole)
    assert merging.merge(names, tmp_path / "merged.h5").already_complete


def test_a_merge_by_hand_that_is_killed_is_finished_to_the_same_bytes(whole, shards, tmp_path):
    paths = shards(2, tmp_path)
    assert _kill_again_and_again("merge", tmp_path / "merged.h5", paths, most_writes=14) >= 20
    assert content(tmp_path / "merged.h5") == content(whole) and all(path.exists() for path in paths)


def test_other_files_are_merged_in_the_order_given(tmp_path):
    one = synthetic.make_file(tmp_path / "one.h5", 3, 4, {"mfcc": (32, 20)}, config=MFCC)
    other = synthetic.make_file(tmp_path / "all.h5", 5, 4, {"mfcc": (32, 20)}, failed=(4,), config=MFCC)
    other = synthetic.divide(other, tmp_path, [0, 3, 5])[1]
    merging.merge([other, one], tmp_path / "merged.h5")
    with egoaudio.open([other, one]) as several, egoaudio.open(tmp_path / "merged.h5") as merged:
        assert integrity.verify(merged) == []
        for name in ("clip_table", "labels", "video_labels", "class_table", "instances", "usable"):
            np.testing.assert_array_equal(getattr(merged, name), np.asarray(getattr(several, name)), err_msg=name)
        assert merged.videos.equals(several.videos)
        np.testing.assert_array_equal(merged["mfcc"], several["mfcc"])
    with egoaudio.open([tmp_path / "merged.h5"]) as merged:
        assert len(merged.plan_sha256) == 64


def test_a_video_in_two_files_is_refused_or_taken_from_the_first(tmp_path):
    one, other = (
        synthetic.make_file(tmp_path / f"{seed}.h5", 2 + seed, 4, {"mfcc": (32, 20)}, seed=seed, config=MFCC)
        for seed in range(2)
    )
    with pytest.raises(StoreError, match="both hold V0000EGO, V0001EGO"):
        merging.merge([one, other], tmp_path / "merged.h5")
    merging.merge([one, other], tmp_path / "merged.h5", duplicates="first")
    with egoaudio.open(one) as first, egoaudio.open(other) as second, egoaudio.open(tmp_path / "merged.h5") as merged:
        assert integrity.verify(merged) == []
        assert merged.videos["video_id"].tolist() == ["V0000EGO", "V0001EGO", "V0002EGO"]
        np.testing.assert_array_equal(merged["mfcc"][:8], first["mfcc"])
        np.testing.assert_array_equal(merged["mfcc"][8:], second["mfcc"][8:])
        np.testing.assert_array_equal(merged.labels[8:], second.labels[8:])


def test_nothing_is_half_merged_under_the_final_name(inputs, shards, tmp_path):
    paths = shards(2, tmp_path)
    video_id = _damage(paths[1])
    with pytest.raises(BuildError, match=f"00001-of-00002: {video_id} cannot be taken over: its waveform is damaged"):
        merging.merge(paths, tmp_path / "merged.h5")
    assert not (tmp_path / "merged.h5").exists()
    (tmp_path / "ego.h5").write_bytes(b"something else")
    with pytest.raises(StoreError, match="is not an HDF5 file"):
        merging.merge(paths, tmp_path / "ego.h5")


@pytest.mark.parametrize(
    "chosen, words",
    [
        ([0, 1, 1], "is shard 1/7 once more"),
        ([0, 2, 4, 6], "of 7 shards 3 are missing: 1, 3, 5. Give them, too"),
        ([0, 8], "several divisions, N = 2 and N = 7"),
        ([], "nothing to merge"),
    ],
)
def test_shards_that_are_not_a_whole_are_refused(shards, tmp_path, chosen, words):
    paths = shards(7, tmp_path / "7") + shards(2, tmp_path / "2")
    with pytest.raises(BuildError, match=words):
        merging.merge([paths[number] for number in chosen], tmp_path / "merged.h5")


def test_an_output_that_is_an_input_is_refused(shards, tmp_path):
    paths = shards(2, tmp_path)
    with pytest.raises(BuildError, match="it is an input of this command"):
        merging.merge(paths, paths[0], force=True)


def test_the_command_merges(whole, shards, tmp_path):
    paths = shards(2, tmp_path)
    result = CliRunner().invoke(cli.merge, [*map(str, paths), "--output", str(tmp_path / "merged.h5")])
    assert result.exit_code == 0 and "merged.h5 is complete" in result.output
    assert content(tmp_path / "merged.h5") == content(whole)
