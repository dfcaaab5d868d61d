"""The commands: every option is there and explained, errors are a line, exit states say what happened."""

import ast
import configparser
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path

import click
import pytest
import synthetic
from click.testing import CliRunner

from egoaudio import cli
from egoaudio.config.build import BuildConfig
from egoaudio.config.options import flag_of, flags
from egoaudio.config.predict import PredictConfig
from egoaudio.config.train import TrainConfig
from egoaudio.errors import BuildError
from egoaudio.system.progress import Progress

sys.path.insert(0, str(Path(__file__).parents[1] / "bin"))
import demo_data  # noqa: E402

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "egoaudio-build": cli.build,
    "egoaudio-inspect": cli.inspect,
    "egoaudio-merge": cli.merge,
    "egoaudio-train": cli.train,
    "egoaudio-evaluate": cli.evaluate,
    "egoaudio-predict": cli.predict,
    "egoaudio-report": cli.report,
    "egoaudio-export": cli.export,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_enough_every_option_explained_and_an_example_to_paste(name):
    text = CliRunner().invoke(COMMANDS[name], ["--help"], terminal_width=100).output
    assert max(len(line) for line in text.splitlines()) <= 100
    assert re.search(rf"Example:\n\s+{name} ", text)
    for option in COMMANDS[name].params:
        if option.param_type_name == "option":
            assert option.help, option.name
            assert option.opts[0] in text


@pytest.mark.parametrize("name", ["egoaudio-build", "egoaudio-train", "egoaudio-predict"])
def test_every_option_stands_in_one_group_of_the_help(name):
    command = COMMANDS[name]
    grouped = [flag for flags in command.groups.values() for flag in flags]
    known = [
        option.opts[-1] for option in command.get_params(click.Context(command)) if isinstance(option, click.Option)
    ]
    assert sorted(grouped) == sorted(known)
    text = CliRunner().invoke(command, ["--help"], terminal_width=100).output
    headings = re.findall(r"^([A-Z][a-z ]+):$", text, re.MULTILINE)
    assert headings == list(command.groups)
    assert re.findall(r"^  (?:-h, )?(--[a-z-]+)", text, re.MULTILINE) == grouped


def test_an_option_without_a_group_is_shown_under_a_heading_of_its_own(monkeypatch):
    monkeypatch.setitem(cli.train.groups, "Model", [flag for flag in cli.train.groups["Model"] if flag != "--stride"])
    assert re.search(r"\n\nOther options:\n  --stride ", CliRunner().invoke(cli.train, ["--help"]).output)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_run_from_a_checkout_and_through_a_link_from_elsewhere(name, tmp_path):
    (tmp_path / name).symlink_to(ROOT / "bin" / name)
    for path in (ROOT / "bin" / name, tmp_path / name):
        done = subprocess.run([path, "--help"], capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout.startswith(f"Usage: {name} ["), done.stderr


def test_every_command_has_its_link_in_bin_and_its_entry_point():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    entries = dict(line.split(" = ") for line in setup["options.entry_points"]["console_scripts"].strip().splitlines())
    assert entries == {name: f"egoaudio.cli:{command.callback.__name__}" for name, command in COMMANDS.items()}
    assert {path.name: path.readlink() for path in (ROOT / "bin").glob("egoaudio-*")} == {
        name: Path(".command") for name in COMMANDS
    }


@pytest.mark.parametrize(
    "command, config_class",
    [(cli.build, BuildConfig), (cli.train, TrainConfig), (cli.predict, PredictConfig)],
)
def test_every_field_of_the_configuration_is_a_flag(command, config_class):
    known = {flag for option in command.params for flag in option.opts}
    assert {flag_of(option) for option, _ in flags(config_class)} <= known


def test_a_parameter_has_the_same_flag_in_every_command():
    """A message of one command may name an option of another: ``build with --features logmel``."""
    flags_of = {}
    for command in COMMANDS.values():
        for option in command.params:
            flags_of.setdefault(option.name, set()).add(tuple(option.opts))
    assert {name: found for name, found in flags_of.items() if len(found) > 1} == {}


def test_every_parameter_that_a_message_names_is_an_option():
    """Else it would be shown as it is in Python, backticks and all."""
    options = {option.name for command in COMMANDS.values() for option in command.params}
    named = {}
    for path in (ROOT / "egoaudio").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for name in re.findall(r"(?<!`)`(?:\w+\.)*([a-z_]+)[=`](?!`)", node.value):
                    named.setdefault(name, set()).add(path.name)
    assert len(named) > 50 and {name: paths for name, paths in named.items() if name not in options} == {}


def test_the_librarys_parameters_are_shown_as_flags(tmp_path, monkeypatch):
    from egoaudio.builder import build

    def refuse(*_, **__):
        warnings.warn("`split_unit='clip'` is the paper's", stacklevel=2)
        with Progress(1, "build") as progress:
            progress.write("`timeout_seconds=5.0` is short")
        raise BuildError("`clips.hop_seconds=0.5`, `num_workers=2`: give another `output`, or `force=True`")

    monkeypatch.setattr(build, "build", refuse)
    result = CliRunner().invoke(cli.build, ["--annotations", "a.csv", "--videos", "v", "--output", "o.h5"])
    assert result.stderr.splitlines() == [
        "warning: --split-unit clip is the paper's",
        "--video-timeout 5.0 is short",
        "error: --hop-seconds 0.5, --workers 2: give another --output, or --force",
    ]


@pytest.fixture
def configured(monkeypatch):
    """Have egoaudio-build stop at its library call; return a function from arguments to the configuration it got."""
    from egoaudio.builder import build

    def run(*arguments):
        got = []
        monkeypatch.setattr(
            build,
            "preview",
            lambda inputs, output, config, **_: got.append(config) or types.SimpleNamespace(describe=lambda *_: ""),
        )
        required = ["--annotations", "a.csv", "--videos", "v", "--output", "o.h5", "--dry-run"]
        result = CliRunner().invoke(cli.build, [*required, *arguments])
        assert result.exit_code == 0, result.output
        return got[0]

    return run


def test_flags_become_the_configuration(configured):
    config = configured(
        "--clip-seconds", "0.1", "--features", "logmel,mfcc", "--denoise", "none", "--min-overlap", "0.05"
    )
    assert config.clips.clip_seconds == 0.1
    assert config.features.features == ("mfcc", "logmel")
    assert config.denoise.mode == "none"
    assert config.clips.min_overlap_seconds == 0.05
    assert configured() == BuildConfig()


def test_a_preset_sets_what_is_not_given(configured):
    config = configured("--preset", "paper", "--clip-seconds", "0.5")
    assert (config.denoise.scope, config.clips.clip_seconds) == ("clip", 0.5)
    assert configured("--preset", "paper", "--denoise-scope", "recording").denoise.scope == "recording"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--annotations", "no.csv", "--videos", ".", "--output", "o.h5"], "no.csv"),
        (["--annotations", "a.csv", "--videos", ".", "--output", "o.h5", "--clip-secnds", "1"], "--clip-seconds"),
        (["--annotations", "a.csv", "--videos", ".", "--output", "o.h5", "--n-mfcc", "500"], "--n-mels"),
    ],
)
def test_wrong_input_is_a_line_and_exit_status_2(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.build, arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_video_without_data_is_exit_status_3_unless_skipped(tmp_path):
    demo_data.make(tmp_path, num_videos=6, shortest_seconds=1.2, longest_seconds=1.9)
    build = [
        "--annotations",
        tmp_path / "train.csv",
        "--test-annotations",
        tmp_path / "test.csv",
        "--classes",
        tmp_path / "classes.txt",
    ]
    build = [
        str(word) for word in [*build, "--videos", tmp_path / "videos", "--output", tmp_path / "ego.h5", "--workers", 1]
    ]
    result = CliRunner().invoke(cli.build, build)
    assert result.exit_code == 3, result.output
    assert "1 video failed" in result.output
    again = CliRunner().invoke(cli.build, [*build, "--skip-failed"])
    assert again.exit_code == 0
    assert "was complete already" in again.output
    page = CliRunner().invoke(cli.inspect, [str(tmp_path / "ego.h5")])
    assert page.exit_code == 0 and "c000 Knocking on a door" in page.output
    failed = CliRunner().invoke(cli.inspect, [str(tmp_path / "ego.h5"), "--failed"])
    assert "unreadable" in failed.output and "without an audio stream" in failed.output


def test_verify_finds_a_flipped_byte_and_exits_with_1(tmp_path):
    path = synthetic.make_file(tmp_path / "a.h5")
    assert CliRunner().invoke(cli.inspect, [str(path), "--verify"]).exit_code == 0
    from egoaudio.hdf5.writer import offsets

    place = offsets(path)["spectrogram"].offset + 12345
    raw = bytearray(Path(path).read_bytes())
    raw[place] ^= 1
    Path(path).write_bytes(raw)
    result = CliRunner().invoke(cli.inspect, [str(path), "--verify"])
    assert result.exit_code == 1
    assert "V0000EGO" in result.output and "checksum" in result.output


def test_pictures_and_sound_are_written(tmp_path):
    path = synthetic.make_file(tmp_path / "a.h5", features={"spectrogram": (32, 129), "waveform": (1600,)})
    result = CliRunner().invoke(
        cli.inspect,
        [str(path), "--plot", str(tmp_path / "classes.png"), "--export-clip", "3", str(tmp_path / "clip.wav")],
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "classes.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "clip.wav").read_bytes()[:4] == b"RIFF"
