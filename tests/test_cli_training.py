"""egoaudio-train and egoaudio-evaluate as typed: output, exit status, and files as the official scripts read them."""

import csv
import fcntl
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
import small_runs
import synthetic
from click.testing import CliRunner

from egoaudio import cli
from egoaudio.config.options import flags
from egoaudio.config.train import TrainConfig
from egoaudio.evaluation import evaluate
from egoaudio.system import signals
from egoaudio.training import train

sys.path.insert(0, str(Path(__file__).parents[1] / "bin"))
import demo_data  # noqa: E402

BIN = Path(__file__).parents[1] / "bin"
COMMANDS = {"egoaudio-build": cli.build, "egoaudio-train": cli.train, "egoaudio-evaluate": cli.evaluate}


def run(words):
    """Run a command line, as one would paste it, in this process."""
    name, *arguments = shlex.split(words)
    return CliRunner().invoke(COMMANDS[name], arguments)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_runs.make_file(tmp_path_factory.mktemp("a folder") / "ego.h5")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The folder of a run, and what the command has said."""
    folder = tmp_path_factory.mktemp("runs") / "cnn"
    return folder, run(f"egoaudio-train '{data}' --model cnn --output {folder} --epochs 2 --batch-size 16")


def test_help_names_the_defaults():
    shown = {option.name for option in cli.train.params if getattr(option, "show_default", None)}
    assert {option.name for option, _ in flags(TrainConfig) if option.default is not None} <= shown
    assert re.search(
        r"--amp / --no-amp .*\[default:\s+no-amp\]", CliRunner().invoke(cli.train, ["--help"]).output, re.DOTALL
    )


def test_what_comes_next_can_be_pasted(trained):
    folder, result = trained
    assert result.exit_code == 0, result.output
    assert re.search(
        r"^2 epochs; the best is \d \(by the mAP of \d+ of \d+ classes(, the mean over two epochs)?\): "
        r"validation mAP \d+\.\d \(prior \d+\.\d\), top-1 \d+\.\d per cent$",
        result.stdout,
        re.MULTILINE,
    )
    assert re.findall(r"^epoch (\d)/2: loss ", result.stderr, re.MULTILINE) == ["1", "2"]
    evaluated = run(result.stdout.split("next: ")[1])
    assert evaluated.exit_code == 0, evaluated.output
    assert evaluated.stdout.startswith("test split: 20 clips of 2 videos, 5 classes\n")
    assert "mAP" not in evaluated.stderr and re.search(
        r"^scoring 100%  20/20  [\d,]+ clips/s$", evaluated.stderr, re.MULTILINE
    )
    assert sorted(os.listdir(folder)) == [
        "best.pt",
        "config.json",
        "curves.png",
        "evaluation.json",
        "last.pt",
        "metrics.csv",
        "per_class.csv",
        "per_class.png",
    ]


def test_a_file_without_test_videos_is_evaluated_on_what_there_is(tmp_path):
    path = small_runs.make_file(tmp_path / "ego.h5", test_fraction=0.0)
    for fraction, split in ((0.25, "validation"), (0, "train")):
        result = run(
            f"egoaudio-train {path} --model cnn --output {tmp_path / split} --epochs 1 --validation-fraction {fraction}"
        )
        assert result.stdout.rstrip().endswith(f"--split {split}")
        assert run(result.stdout.split("next: ")[1]).exit_code == 0


def test_flags_reach_the_configuration_and_the_preset_gives_way_to_them(monkeypatch, data):
    got = {}
    monkeypatch.setattr(
        train, "train", lambda file, output, config, **options: got.update(config=config, **options) or ""
    )
    assert run(f"egoaudio-train '{data}' --output run").exit_code == 0
    assert got == {"config": TrainConfig(), "device": None, "tensorboard": False, "force": False}
    assert (
        run(
            f"egoaudio-train '{data}' --output run --preset paper --model ast-paper --split-unit subject "
            "--micro-batch-size 3 --tensorboard"
        ).exit_code
        == 0
    )
    config = got["config"]
    assert (config.data.normalize, config.data.class_weights, config.data.label_mode, config.data.split_unit) == (
        "paper",
        True,
        "multi",
        "subject",
    )
    assert (config.model.model, config.optimization.optimizer, config.optimization.schedule) == (
        "ast-paper",
        "adam",
        "constant",
    )
    assert config.optimization.micro_batch_size == 3 and got["tensorboard"]


def test_the_papers_protocol_trains_and_says_what_is_wrong_with_it(tmp_path):
    path = synthetic.make_file(tmp_path / "paper.h5", 6, 8, num_classes=3, unlabelled=0.0)  # (32, 1025), as the paper's
    result = run(f"egoaudio-train {path} --output {tmp_path / 'run'} --preset paper --epochs 2 --batch-size 16")
    assert result.exit_code == 0, result.output
    assert (
        result.stderr.count("neighbouring clips of a video fall on both sides, so validation scores are too high") == 1
    )
    options = json.loads((tmp_path / "run/config.json").read_text())["options"]
    assert (options["split_unit"], options["normalize"], options["class_weights"], options["feature"]) == (
        "clip",
        "paper",
        True,
        "spectrogram",
    )
    first, second = (float(row["train_loss"]) for row in small_runs.table(tmp_path / "run"))
    assert second < first
    result = run(f"egoaudio-evaluate {tmp_path / 'run/best.pt'} {path} --split validation")
    assert result.stderr.count("neighbouring clips") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("egoaudio-train {none} --output {run}", "none.h5' does not exist"),
        ("egoaudio-train {folder} --output {run}", "is not a regular file"),
        ("egoaudio-train {csv} --output {run}", "is not an HDF5 file"),
        (
            "egoaudio-train {data} --output {run} --model ast",
            "ast wants logmel; this file has spectrogram: rebuild with --features spectrogram,logmel",
        ),
        (
            "egoaudio-train {data} --output {run} --model yamnet --pretrained {csv}",
            "yamnet wants yamnet or waveform; this file has spectrogram: rebuild with --features "
            "spectrogram,yamnet and --denoise none (denoising costs it 4 to 6 points of mAP)",
        ),
        (
            "egoaudio-train {data} --model cnn --output {run} --feature mfcc",
            "cnn wants mfcc; this file has spectrogram",
        ),
        (
            "egoaudio-train {data} --model cnn --output {run} --dropout 0.5",
            "--dropout 0.5: cnn has its own, only cnn-small, ast and yamnet can be given another",
        ),
        (
            "egoaudio-train {data} --model cnn --output {run} --amp-dtype bfloat16",
            "--amp-dtype bfloat16 has no effect without --amp",
        ),
        ("egoaudio-train {data} --model cnn --output {run} --device gpu", "--device gpu: cannot be used here"),
        ("egoaudio-train {data} --model cnn --output {run} --epochs 0", "--epochs 0: expected at least 1"),
        ("egoaudio-train {data} --model cnn --output {run} --epoch 3", "'--epochs'"),
        ("egoaudio-train {data} --model cnn --output {csv}", "--output {csv}: this folder cannot be made"),
        (
            "egoaudio-train {data} --model cnn --output {trained} --epochs 2 --batch-size 8",
            "another configuration (--batch-size: 16, now 8)",
        ),
        ("egoaudio-evaluate {none} {data}", "'CHECKPOINT': Path '{none}' does not exist"),
        ("egoaudio-evaluate {trained} {data}", "if it is a run's folder, give {trained}/best.pt"),
        (
            "egoaudio-evaluate {data} {trained}/best.pt",
            "is an HDF5 file, expected a checkpoint: the checkpoint comes first",
        ),
        ("egoaudio-evaluate {trained}/best.pt {none}", "'FILE...': Path '{none}' does not exist"),
        ("egoaudio-evaluate {trained}/best.pt {other}", "checkpoint [8, 16], file [8, 12]"),
        ("egoaudio-evaluate {trained}/best.pt {data} --split dev", "'dev' is not one of 'test', 'validation', 'train'"),
        ("egoaudio-evaluate {trained}/best.pt {data} --output {csv}", "--output {csv}: this folder cannot be made"),
        ("egoaudio-evaluate {trained}/best.pt {data} --submission {folder}", "it is a folder: give the name of a file"),
    ],
)
def test_wrong_input_is_a_line_exit_status_2_and_nothing_is_written(words, says, data, trained, tmp_path):
    names = {
        "none": tmp_path / "none.h5",
        "folder": tmp_path,
        "csv": tmp_path / "a.csv",
        "run": tmp_path / "run",
        "data": f"'{data}'",
        "trained": trained[0],
    }
    names["csv"].write_text("id,actions\n")
    if "{other}" in words:
        names["other"] = small_runs.make_file(tmp_path / "other.h5", features={"spectrogram": (8, 12)})
    before = sorted(tmp_path.iterdir())
    result = run(words.format(**names))
    assert result.exit_code == 2
    assert says.format(**names) in " ".join(result.output.split()) and "Traceback" not in result.output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name, resumes", [("train", True), ("evaluate", False)])
def test_an_interruption_promises_only_what_is_so(name, resumes, data, monkeypatch):
    def interrupted(*_, **__):
        raise signals.Interrupted(2)

    monkeypatch.setattr({"train": train, "evaluate": evaluate}[name], name, interrupted)
    result = run(
        {"train": f"egoaudio-train '{data}' --output run", "evaluate": f"egoaudio-evaluate '{data}' '{data}'"}[name]
    )
    assert result.exit_code == 130
    assert result.stderr.startswith("interrupted") and ("the same command resumes" in result.stderr) == resumes


def on_a_terminal(words, columns):
    """Run a command line in a process of its own on a terminal; return what comes out of it, and the exit status."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    name, *arguments = shlex.split(words)
    child = subprocess.Popen(
        [BIN / name, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    return said.decode(), child.wait()


def test_on_a_terminal_there_is_a_bar_and_every_line_once(data, tmp_path):
    said, status = on_a_terminal(
        f"egoaudio-train '{data}' --model cnn --output {tmp_path / 'run'} --epochs 3 --batch-size 4", 130
    )
    assert status == 0, said
    bars = [part for part in re.split("[\r\n]", said) if part.startswith("training") and "clips/s" in part]
    assert any(
        re.search(r"/180 \[\d\d:\d\d<\d\d:\d\d, [\d,]+ clips/s, epoch \d/3, loss \d\.\d{4}, \d+% waiting\]$", bar)
        for bar in bars
    ), bars
    assert max(map(len, bars)) <= 130
    lines = [re.split("\r", line)[-1] for line in said.split("\r\n")]
    assert [line[:9] for line in lines if line.startswith("epoch ")] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert sum(line.startswith("training 100%") for line in lines) == 1  # the bar that stays
    assert [line[:5] for line in lines[-3:]] == ["3 epo", "next:", ""]


# ------------------------------------------------------------------------------------- the official scripts' verdict


def official_map(scores, truth):
    """Return the mean over actions of the sum of the precision at each hit, divided by the number of hits."""
    found = []
    for action in range(truth.shape[1]):
        hits = truth[np.argsort(-scores[:, action], kind="stable"), action]
        if hits.any():
            found.append((hits * np.cumsum(hits) / np.arange(1, len(hits) + 1)).sum() / hits.sum())
    return np.mean(found)


def judge(rows, lines, keys):
    """Return the official mAP of a submission, as the scripts read it and the CSV; keys: 1 for videos, 2 for frames."""
    num_actions = len(demo_data.SOUNDS)
    columns = [line.split(" ") for line in lines]
    submitted = {tuple(line[:keys]): np.array(line[keys:], float) for line in columns}
    scores, truth = [], []
    for row in rows:
        actions = [action.split() for action in row["actions"].split(";") if action]
        for frame in range(1, 26) if keys == 2 else [None]:
            time = None if frame is None else (frame - 1) / 25 * float(row["length"])
            on = np.zeros(num_actions)
            for class_id, start, end in actions:
                if frame is None or float(start) <= time <= float(end):
                    on[int(class_id[1:])] = 1
            key = (row["id"],) if frame is None else (row["id"], str(frame))
            counts = frame is not None or actions  # without actions the script for videos forgets the id
            scores.append(
                submitted.get(key, np.full(num_actions, -np.inf)) if counts else np.full(num_actions, -np.inf)
            )
            truth.append(on)
    return official_map(np.array(scores), np.array(truth))


def test_the_submissions_judged_by_the_csv_give_the_reported_maps(tmp_path):
    demo_data.make(tmp_path, num_videos=15, seed=4, shortest_seconds=2.5, longest_seconds=4)
    build = run(
        f"egoaudio-build --annotations {tmp_path}/train.csv --test-annotations {tmp_path}/test.csv --classes "
        f"{tmp_path}/classes.txt --videos {tmp_path}/videos --output {tmp_path}/ego.h5 --features mfcc --workers 1 "
        "--skip-failed"
    )
    assert build.exit_code == 0, build.output
    trained = run(
        f"egoaudio-train {tmp_path}/ego.h5 --output {tmp_path}/run --feature mfcc --model cnn-small --epochs 3"
    )
    assert trained.exit_code == 0, trained.output
    for pool in ("max", "mean"):
        files = f"--submission {tmp_path}/videos.txt --frame-submission {tmp_path}/frames.txt"
        evaluated = run(f"egoaudio-evaluate {tmp_path}/run/best.pt {tmp_path}/ego.h5 --pool {pool} {files}")
        assert evaluated.exit_code == 0, evaluated.output
        scores = json.loads((tmp_path / "run/evaluation.json").read_text())["scores"]
        with open(tmp_path / "test.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for name, file, keys in (("video_map", "videos.txt", 1), ("localization_map", "frames.txt", 2)):
            expected = judge(rows, (tmp_path / file).read_text().splitlines(), keys)
            assert 0 < expected < 1 and scores[name]["value"] == pytest.approx(expected, rel=1e-12)
