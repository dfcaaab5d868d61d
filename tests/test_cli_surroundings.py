"""Commands in poor surroundings: closed streams, little shared memory, few open files, absurd numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_runs
import synthetic
from click.testing import CliRunner

from egoaudio import cli
from egoaudio.errors import Status
from egoaudio.hdf5 import reader

sys.path.insert(0, str(Path(__file__).parents[1] / "bin"))
import demo_data  # noqa: E402

NO_NAMESPACE = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0
# Runs "$@" with another shared memory; only this process and its children see it.
SHARED_MEMORY = {
    "4k": "mount -t tmpfs -o size=4k tmpfs /dev/shm",
    "64k": "mount -t tmpfs -o size=64k tmpfs /dev/shm",
    "read-only": "mount -t tmpfs -o ro tmpfs /dev/shm",
    "absent": "mkdir -p dev && mount -t tmpfs tmpfs dev && cp -a /dev/null /dev/zero /dev/urandom dev "
    "&& mount --move dev /dev",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos and CSVs of a small build, and a file to train on."""
    folder = tmp_path_factory.mktemp("made")
    demo_data.make(folder, num_videos=6, shortest_seconds=1.2, longest_seconds=1.9)
    small_runs.make_file(folder / "small.h5")
    return folder


def command(name, *words):
    return [sys.executable, "-c", f"from egoaudio.cli import {name}; {name}()", *map(str, words)]


# Commands one after the other in one process, as each start of torch takes seconds: "train a.h5 then evaluate b.pt".
ONE_BY_ONE = """
import sys
from egoaudio import cli
words = [*sys.argv[1:], "then"]
while words:
    end = words.index("then")
    (name, *arguments), words = words[:end], words[end + 1 :]
    try:
        getattr(cli, name)(arguments)
    except SystemExit as done:
        print(f"{name}: status {done.code}", flush=True)
"""


def one_by_one(*lines):
    """Return a command that runs several in one process: each with the name first, as words or bytes."""
    words = [word for line in lines for word in ("then", *line)][1:]
    return [sys.executable, "-c", ONE_BY_ONE, *(word if isinstance(word, bytes) else str(word) for word in words)]


def build(folder, output, *words):
    inputs = [
        "--annotations",
        folder / "train.csv",
        "--test-annotations",
        folder / "test.csv",
        "--classes",
        folder / "classes.txt",
    ]
    return command(
        "build", *inputs, "--videos", folder / "videos", "--workers", 2, "--skip-failed", "--output", output, *words
    )


def shell(script, words, cwd):
    """Run a command in a shell as ``"$@"``; return exit status and all that was said."""
    done = subprocess.run(
        ["sh", "-c", script, "sh", *words], capture_output=True, text=True, cwd=cwd, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr


def require_whole(path):
    with reader.open(path) as file:
        assert sorted(file.video_table["status"].tolist()) == [Status.OK] * 4 + [Status.NO_AUDIO, Status.UNREADABLE]


@pytest.mark.parametrize(
    "script",
    [
        '"$@" >&-', '"$@" 2>&-', '"$@" <&- >&- 2>&-', '("$@"; echo $? >status) 2>&1 | true; exit $(cat status)',
        '("$@"; echo $? >status) 2>&1 | head -1; exit $(cat status)',
    ],
)  # fmt: skip
def test_a_build_ends_whoever_reads(folder, tmp_path, script):
    status, said = shell(script, build(folder, tmp_path / "ego.h5"), tmp_path)
    assert (status, "Traceback" in said) == (0, False), said
    require_whole(tmp_path / "ego.h5")


@pytest.mark.parametrize("script", ['"$@" | true', '"$@" >&-', '"$@" 2>&-', '"$@" | head -1'])
def test_a_page_that_nobody_reads_is_no_error(folder, tmp_path, script):
    status, said = shell(script, command("inspect", folder / "small.h5"), tmp_path)
    assert status == 0 and "Traceback" not in said and "Exception" not in said, said


def test_a_page_that_finds_no_room_is_one(folder, tmp_path):
    status, said = shell('"$@" >/dev/full', command("inspect", folder / "small.h5"), tmp_path)
    assert status == 2 and said == "error: standard output cannot be written: No space left on device\n"


@pytest.mark.skipif(NO_NAMESPACE, reason="only root may give a process a /dev/shm of its own")
@pytest.mark.parametrize("kind", SHARED_MEMORY)
def test_shared_memory_that_does_not_suffice_is_told_at_once(folder, tmp_path, kind):
    script = f'{SHARED_MEMORY[kind]} && exec "$@"'
    if kind != "64k":
        status, said = _in_namespace(script, build(folder, tmp_path / "ego.h5"), tmp_path)
        assert status == 2 and "error: /dev/shm, the shared memory, " in said and "Traceback" not in said, said
    if kind not in ("64k", "absent"):  # why is the same, and each start of torch takes seconds
        return
    words = ["train", folder / "small.h5", "--output", tmp_path / "run", "--epochs", 1, "--model", "cnn"]
    lines = [[*words, "--loader-workers", "2"], words] if kind == "absent" else [[*words, "--loader-workers", "2"]]
    _, said = _in_namespace(script, one_by_one(*lines), tmp_path)
    statuses = [line for line in said.splitlines() if line.startswith("train: status ")]
    assert statuses == ["train: status 2", "train: status 0"][: len(lines)], said
    assert "--loader-workers 2 passes its batches through it" in said and "Traceback" not in said, said


def _in_namespace(script, words, cwd):
    return shell('exec unshare --mount "$@"', ["sh", "-c", script, "sh", *words], cwd)


@pytest.mark.parametrize("name, limit", [("build", 12), ("build", 20), ("train", 9), ("train", 12)])
def test_few_open_files_are_told(folder, tmp_path, name, limit):
    words = build(folder, tmp_path / "ego.h5")
    if name == "train":
        words = command("train", folder / "small.h5", "--output", tmp_path / "run", "--epochs", 1, "--model", "cnn")
    status, said = shell(f'ulimit -n {limit}; exec "$@"', words, tmp_path)
    assert status == 2 and "open files" in said and "ulimit -n" in said and "Traceback" not in said, said


def test_many_files_are_read_under_a_low_soft_limit(tmp_path):
    one = synthetic.make_file(tmp_path / "one.h5", 60, 2, {"mfcc": (4, 5)})
    paths = synthetic.divide(one, tmp_path, range(61))
    status, said = shell('ulimit -Sn 64; exec "$@"', command("inspect", *paths), tmp_path)
    assert status == 0 and "and 59 more" in said, said


@pytest.mark.parametrize("name", ["build", "train", "inspect"])
def test_a_working_folder_that_is_gone_is_told(folder, tmp_path, name):
    words = {
        "build": build(folder, tmp_path / "ego.h5"),
        "train": command("train", folder / "small.h5", "--output", tmp_path / "run"),
        "inspect": command("inspect", folder / "small.h5"),
    }[name]
    (tmp_path / "here").mkdir()
    status, said = shell('cd here && rmdir ../here && exec "$@"', words, tmp_path)
    assert (status, said) == (
        2,
        "error: the working folder is gone: cd to one that exists, and run the same command again\n",
    )


def test_a_relative_path_is_not_missing_where_the_working_folder_is(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    result = CliRunner().invoke(cli.evaluate, ["best.pt", "ego.h5"])
    assert result.exit_code == 2 and "the working folder is gone: cd to one that exists" in result.output


HUGE = "99999999999999999999999"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "words",
    [
        *(f"--workers {number}" for number in ("1000000000", HUGE, "0", "-1")),
        *(f"--sample-rate {number}" for number in ("1000000000", HUGE)),
        *(f"--n-fft {number}" for number in ("1000000000", HUGE)),
        f"--hop-length {HUGE}",
        "--n-mels 100000000",
        f"--n-mels {HUGE} --n-mfcc {HUGE}",
        "--clip-seconds 1e300",
        "--clip-seconds 1e9",
        "--hop-seconds 1e300",
        "--hop-seconds 1e-300",
        "--context-seconds 1e300",
        "--min-overlap 1e300",
        "--video-timeout 1e300",
        "--video-timeout 0",
        "--video-timeout nan",
        "--f-min 1e300",
        "--f-max nan",
        "--clip-seconds inf",
    ],
)
def test_absurd_numbers_of_a_build_are_refused(folder, tmp_path, words):
    result = CliRunner().invoke(cli.build, [*build(folder, tmp_path / "ego.h5")[3:], *words.split()])
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    assert words.split()[0] in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "words",
    [
        f"--seed {HUGE}",
        "--seed -1",
        f"--epochs {HUGE}",
        f"--batch-size {HUGE}",
        f"--micro-batch-size {HUGE}",
        f"--patience {HUGE}",
        "--smooth-clips 2147483647",
        f"--loader-workers {HUGE}",
        f"--model ast --hidden-size {HUGE}",
        f"--model ast --num-layers {HUGE}",
        "--learning-rate 1e300",
        "--gain-db 1e300",
        "--checkpoint-minutes 1e300",
        "--device meta",
        "--device mps",
        "--device nonsense",
        "--device cuda:99",
    ],
)
def test_absurd_numbers_of_a_run_are_refused(folder, tmp_path, words):
    result = CliRunner().invoke(
        cli.train, [str(folder / "small.h5"), "--output", str(tmp_path / "run"), *words.split()]
    )
    assert result.exit_code == 2, (result.output, result.exception)
    assert words.split()[-2] in result.output and len(result.output) < 500
    assert not (tmp_path / "run/last.pt").exists()


def test_names_that_are_not_utf8_will_do(folder, tmp_path):
    path, run = os.fsencode(tmp_path) + b"/a\xff\xfe.h5", os.fsencode(tmp_path) + b"/run\xff"
    os.link(folder / "small.h5", path)
    lines = (
        ["inspect", path, "--plot", os.fsencode(tmp_path) + b"/p\xff.png"],
        ["train", path, "--output", run, "--epochs", "1", "--model", "cnn"],
        ["evaluate", run + b"/best.pt", path, "--submission", os.fsencode(tmp_path) + b"/s\xff.txt"],
        ["build", *build(folder, os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.h5"))[3:]],
    )
    done = subprocess.run(one_by_one(*lines), capture_output=True, cwd=tmp_path, check=False)
    statuses = [line for line in done.stdout.splitlines() if b": status " in line]
    assert statuses == [line[0].encode() + b": status 0" for line in lines], done.stderr


@pytest.mark.parametrize("words", ["x" * 300 + ".h5", "x" * 250 + ".h5", "y/" * 3000 + "e.h5"])
def test_names_that_are_too_long_are_told(folder, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.build, build(folder, words)[3:])
    assert result.exit_code == 2 and "too long" in result.output or "bytes, more than 255" in result.output, (
        result.output
    )
    result = CliRunner().invoke(cli.inspect, [str(folder / "small.h5"), "--plot", words[:-3] + "xxx" * 10 + ".png"])
    assert result.exit_code == 2 and ("too long" in result.output or "bytes, more than 255" in result.output), (
        result.output
    )


def test_no_name_reaches_the_terminal_raw(folder, tmp_path, monkeypatch):
    escape = "\x1b]0;title\x07"
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"v{escape}").mkdir()
    synthetic.make_file(tmp_path / f"e{escape}.h5", features={"mfcc": (32, 20)})
    for name, words in (
        ("build", build(folder, f"no{escape}/ego.h5")),
        ("build", build(folder, f"v{escape}")),
        ("build", build(folder, "a.h5", "--videos", f"w{escape}")),
        ("build", build(folder, "a.h5", "--videos", f"v{escape}")),
        ("build", build(folder, "a.h5", f"extra{escape}")),
        ("inspect", [*"123", f"v{escape}"]),
        ("inspect", [*"123", f"e{escape}.h5"]),
        ("inspect", [*"123", f"e{escape}.h5", "--plot", f"p{escape}.png"]),
        ("build", build(folder, f"o{escape}.h5")),
        ("train", [*"123", f"e{escape}.h5", "--output", f"r{escape}", "--epochs", "0"]),
        ("evaluate", [*"123", f"v{escape}", f"e{escape}.h5"]),
    ):
        result = CliRunner().invoke(getattr(cli, name), words[3:])
        assert "\x1b" not in result.output and "\x07" not in result.output, result.output
        assert "title" in result.output or result.exit_code == 2
