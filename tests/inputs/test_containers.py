"""Packets: over read errors, past empty ones, and no more of them than a file can hold."""

from types import SimpleNamespace

import av
import pytest

from egoaudio.inputs.containers import packets
from egoaudio.inputs.timestamps import TimeLine


class _Container:
    """A container that yields what it is told to: packets by their size, exceptions by raising them."""

    def __init__(self, size, script):
        self.size, self._script = size, iter(script)

    def demux(self, stream):
        for item in self._script:
            if isinstance(item, Exception):
                raise item
            if item is None:
                return
            yield SimpleNamespace(size=item)


def _sizes(script, size=10_000, line=None):
    return [packet.size for packet in packets(_Container(size, script), None, line or TimeLine(0.0))]


@pytest.mark.parametrize(
    "error", [av.InvalidDataError(1, "x"), av.ArgumentError(22, "x"), OSError(5, "x"), MemoryError(), IndexError()]
)
def test_reading_goes_on_after_an_error(error):
    assert _sizes([1, 2, error, 3, error, error, 4, None]) == [1, 2, 3, 4]


def test_reading_goes_on_after_an_end_that_is_none():
    assert _sizes([1, 2, None, 3, None, None, 4]) == [1, 2, 3]


def test_endless_errors_end():
    def script():
        yield 1
        while True:
            yield av.InvalidDataError(1, "x")

    assert _sizes(script()) == [1]


def test_packets_cannot_add_up_to_more_than_the_file_can_hold():
    def script():
        while True:
            yield 100

    assert sum(_sizes(script())) <= 41_000


def test_defects_of_ours_are_not_taken_for_bad_media():
    with pytest.raises(TypeError):
        _sizes([1, TypeError("ours"), 2])


def test_the_time_line_is_told_of_empty_packets():
    line = TimeLine(0.0)
    assert _sizes([1] + [0] * 50 + [2, 0, None], line=line) == [1, 2]
    for index in range(100):
        line.place(0.3 * index, 0.02, [(0.3 * (index + 1), 0.02)])
    assert line.end == pytest.approx(2.0)
