"""Outputs of the commands: never an input, a device, a pipe or a folder; a symbolic link stays one."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import small_runs
from click.testing import CliRunner

from egoaudio import cli
from egoaudio.config.options import from_flat
from egoaudio.config.train import TrainConfig
from egoaudio.errors import TrainingError
from egoaudio.hdf5 import reader
from egoaudio.training import run_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "bin"))
import demo_data  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Videos and CSVs of a small build, ``ego.h5`` with features that train in a second, and a run on it."""
    folder = tmp_path_factory.mktemp("made")
    demo_data.make(folder, num_videos=6, shortest_seconds=1.2, longest_seconds=1.9)
    small_runs.make_file(folder / "ego.h5", features={"spectrogram": (8, 16), "waveform": (1600,)})
    result = CliRunner().invoke(
        cli.train,
        [
            str(folder / "ego.h5"),
            "--output",
            str(folder / "run"),
            "--epochs",
            "1",
            "--batch-size",
            "16",
            "--model",
            "cnn",
        ],
    )
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A copy of them, which is the working folder."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def contents(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


BUILD = (
    "build --annotations train.csv --test-annotations test.csv --classes classes.txt --videos videos --workers 1 "
    "--skip-failed --output"
)
COMMANDS = {name: getattr(cli, name) for name in ("build", "inspect", "evaluate", "train", "predict", "report")}


def run(words):
    name, *arguments = words.split()
    return CliRunner().invoke(COMMANDS[name], arguments)


@pytest.mark.parametrize(
    "words",
    [
        *(
            f"{BUILD} {name} --force"
            for name in ("train.csv", "test.csv", "classes.txt", "VIDEO", "link.csv", "hard.csv", "below/../train.csv")
        ),
        f"{BUILD} train.csv",
        "inspect ego.h5 --plot ego.h5",
        "inspect ego.h5 --plot link.h5",
        "inspect link.wav --export-clip 0 link.wav",
        "evaluate run/best.pt ego.h5 --submission ego.h5",
        "evaluate run/best.pt ego.h5 --frame-submission link.h5",
        "evaluate run/best.pt ego.h5 --submission run/best.pt",
        "evaluate run/best.pt run/per_class.csv",
        "evaluate run/evaluation.json ego.h5",
        "evaluate evaluation.json ego.h5 --output .",
        "train run/metrics.csv --output run --force --epochs 1 --model cnn",
        "train run/curves.png --output run --epochs 1 --model cnn",
        "train ego.h5 --output run --force --epochs 1 --model cnn --teacher run/best.pt",
        "report ego.h5 run --output run/best.pt",
        "report ego.h5 run --output run/metrics.csv",
        "report ego.h5 run --output run/config.json",
        "report run --output ego.h5",
        "report ego.h5 --videos heard --output heard/HEARD.mp4",
        "predict run/best.pt heard/segments.csv --output heard",
        "predict run/best.pt --annotations heard/scores.h5 --videos videos --output heard",
    ],
)
def test_what_is_read_is_never_written_to(folder, words):
    (folder / "below").mkdir()
    (folder / "link.csv").symlink_to("train.csv")
    os.link("train.csv", "hard.csv")
    (folder / "link.h5").symlink_to("ego.h5")
    (folder / "link.wav").symlink_to("ego.h5")
    for name in ("run/metrics.csv", "run/curves.png", "run/per_class.csv") if "report" not in words else ():
        shutil.copy("ego.h5", name)
    for name in ("run/evaluation.json", "evaluation.json"):
        shutil.copy("run/best.pt", name)
    video = sorted((folder / "videos").iterdir())[0]
    with reader.open("ego.h5") as file:
        video_id = file.video_table["video_id"][0].decode()
    (folder / "heard").mkdir()
    for name, source in ((f"{video_id}.mp4", video), ("segments.csv", video), ("scores.h5", "train.csv")):
        shutil.copy(source, folder / "heard" / name)
    config = json.loads(Path("run/config.json").read_text()) | {"file": str(folder / "ego.h5")}
    Path("run/config.json").write_text(json.dumps(config))
    before = contents(folder)
    result = run(words.replace("VIDEO", f"videos/{video.name}").replace("HEARD", video_id))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert "it is an input of this command" in result.output, result.output
    assert contents(folder) == before


@pytest.mark.parametrize("kind", ["a device", "a FIFO", "a folder"])
@pytest.mark.parametrize(
    "words",
    [
        f"{BUILD} OUT --force",
        f"{BUILD} OUT",
        "inspect ego.h5 --plot OUT",
        "inspect ego.h5 --export-clip 0 OUT",
        "evaluate run/best.pt ego.h5 --submission OUT",
        "evaluate run/best.pt ego.h5 --frame-submission OUT",
    ],
)
def test_only_a_regular_file_is_replaced(folder, words, kind):
    if kind == "a device":
        os.mknod("out.png", 0o600 | 0o020000, os.makedev(1, 3)) if os.getuid() == 0 else Path("out.png").symlink_to(
            "/dev/null"
        )
    elif kind == "a FIFO":
        os.mkfifo("out.png")
    else:
        os.mkdir("out.png")
    before = os.stat("out.png")
    result = run(words.replace("OUT", "out.png"))
    assert result.exit_code == 2
    assert (
        "only a regular file is replaced" in result.output or "is a folder" in result.output
    ) and kind in result.output, result.output
    assert os.stat("out.png").st_ino == before.st_ino
    assert contents(folder).keys() == contents(folder).keys()


def test_two_results_are_not_written_to_one_file(folder):
    for words in (
        "--submission a.txt --frame-submission a.txt",
        "--submission run/evaluation.json",
        "--frame-submission run/../run/per_class.csv",
    ):
        result = run(f"evaluate run/best.pt ego.h5 {words}")
        assert result.exit_code == 2 and "two results would be written there" in result.output, result.output
    assert not (folder / "run/evaluation.json").exists()


def test_pretrained_weights_are_not_the_place_of_the_run(folder):
    config = from_flat(TrainConfig, {"model": "ast", "pretrained": str(folder / "below/../run"), "feature": "logmel"})
    (folder / "below").mkdir()
    with pytest.raises(TrainingError, match="run holds the weights of `pretrained=.*`: give another `output`"):
        run_folder.prepare(folder / "run", folder / "ego.h5", config)


def test_an_output_that_is_a_link_is_built_beside_its_target(folder):
    (folder / "elsewhere").mkdir()
    (folder / "out.h5").symlink_to("elsewhere/real.h5")
    for again in ("", " --force"):
        result = run(f"{BUILD} out.h5{again}")
        assert result.exit_code == 0, result.output
        assert (folder / "out.h5").is_symlink()
        assert os.listdir(folder / "elsewhere") == ["real.h5"]
    assert "was complete already" in run(f"{BUILD} out.h5").output


@pytest.mark.parametrize("target", ["victim", "nothing"])
def test_a_link_under_the_name_of_the_unfinished_file_is_refused(folder, target):
    Path("victim").write_text("mine")
    Path("out.h5.partial").symlink_to(target)
    for again in ("", " --force"):
        result = run(f"{BUILD} out.h5{again}")
        assert result.exit_code == 2 and "out.h5.partial is a symbolic link" in result.output, result.output
    assert Path("victim").read_text() == "mine" and not Path("nothing").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name", ["out.h5.partial", "out.h5.lock", "out.h5.partial.layout", "out.h5.partial.layout.layout"]
)
def test_a_fifo_under_a_name_of_ours_is_not_waited_for(folder, name):
    os.mkfifo(name)
    result = run(f"{BUILD} out.h5 --force")
    assert result.exit_code == (0 if "layout" in name else 2), result.output
    assert Path(name).is_fifo()
