"""What reaches a terminal, and what happens where nobody reads."""

import io
import os
import subprocess
import sys

import pytest

from egoaudio.errors import ResourceError
from egoaudio.system import terminal
from egoaudio.system.progress import Progress


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Küche, 台所: a b", "Küche, 台所: a b"),
        ("two\nlines\tof it", "two\nlines\tof it"),
        ("\x1b[31mred\x1b]0;title\x07", "?[31mred?]0;title?"),
        ("over\rwritten\b", "over?written?"),
        ("right\u202eto left", "right?to left"),
        ("\udcff", "?"),
        ("\x9b2J", "?2J"),
    ],
)
def test_nothing_drives_a_terminal(text, shown):
    assert terminal.printable(text) == shown
    assert terminal.one_line(text) == shown.replace("\n", "?").replace("\t", "?")
    stream = io.StringIO()
    terminal.write(stream, text)
    assert stream.getvalue() == shown
    progress = Progress(1, "building", stream)
    progress.write(text)
    assert stream.getvalue() == shown + shown + "\n"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a"])
def test_no_text_is_a_formula(text):
    assert terminal.harmless(text) == f"'{text}"
    assert terminal.harmless(f"a{text}\n") == f"a{text}?"
    assert not terminal.harmless(f"\t{text}").startswith(("\t", "="))


def _pipe_without_reader():
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "wb", buffering=0)


def test_a_reader_that_is_gone_ends_nothing():
    with io.TextIOWrapper(_pipe_without_reader()) as stream:
        for _ in range(3):
            terminal.write(stream, "x" * 100_000)
        with Progress(10, "building", stream) as progress:
            progress.write("a line")
            progress.advance(10)


class _Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


def test_a_terminal_that_is_gone_ends_nothing():
    with _Terminal(_pipe_without_reader(), write_through=True) as stream:
        with Progress(10, "building", stream) as progress:
            progress.advance(5)
            progress.write("a line above the bar")
            progress.advance(5)
    with Progress(10, "building", stream) as progress:  # closed
        progress.write("a line")


def test_a_full_standard_output_is_told(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(ResourceError, match="standard output cannot be written: No space left"):
            terminal.say("what nobody will read")
        terminal.say("and no second time")


def test_closed_descriptors_are_opened_before_a_file_can_take_their_place(tmp_path):
    code = f"""
import os
from egoaudio.system import terminal
with terminal.streams():
    numbers = [os.open({str(tmp_path / "data")!r}, os.O_CREAT | os.O_RDWR) for _ in range(2)]
    assert min(numbers) > 2, numbers
    assert all(os.get_inheritable(number) for number in range(3))
    os.write(2, b"a library complains")
    terminal.say("to nobody")
    terminal.say("to nobody", err=True)
"""
    assert subprocess.run(["sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code], check=False).returncode == 0
    assert (tmp_path / "data").read_bytes() == b""


def test_text_that_the_encoding_lacks_is_said_all_the_same():
    code = "from egoaudio.system import terminal\nwith terminal.streams(): terminal.say('Küche \\udcff')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "K?che ?\n"
