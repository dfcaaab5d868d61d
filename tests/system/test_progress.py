"""Progress without a terminal: few lines, none of them twice. The bar of a terminal is in the commands' tests."""

import io

import pytest

from egoaudio.system import progress
from egoaudio.system.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what is added to its only element."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds_and_one_at_the_end(clock):
    stream = io.StringIO()
    with Progress(100, "training", stream, unit="clips") as shown:
        for _ in range(25):
            clock[0] += 1
            shown.advance(4)
    assert stream.getvalue().splitlines() == [
        "training  40%  40/100  4 clips/s, 15 s left",
        "training  80%  80/100  4 clips/s, 5 s left",
        "training 100%  100/100  4 clips/s",
    ]


def test_the_last_line_is_not_said_again(clock):
    stream = io.StringIO()
    with Progress(10, "training", stream) as shown:
        clock[0] += 20
        shown.advance(10)
        shown.write("a line of its own")
    assert stream.getvalue().splitlines() == ["training 100%  10/10  0.5/s", "a line of its own"]


def test_what_has_not_begun_says_nothing(clock):
    stream = io.StringIO()
    with Progress(10, "training", stream):
        pass
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0"), (1, "0.0018"), (150, "0.27"), (5500, "10"), (5_500_000, "10,000")]
)
def test_slow_rates_are_not_rounded_to_nothing(count, words):
    assert progress.rate(count, 550) == words
