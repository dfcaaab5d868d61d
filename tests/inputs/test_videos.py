"""The table of videos against the objects that it stands for."""

import tracemalloc

import pytest

from egoaudio.inputs.annotations import read_annotations
from egoaudio.inputs.videos import Instance, Video, Videos

VIDEOS = (
    Video("A", "train", "S1", "Küche", True, (Instance(3, 0.5, 2.0), Instance(1, 9.0, 7.0))),
    Video("longer id", "test", "", "", False, ()),
    Video("C", "validation", "S1", "Kitchen", True, (Instance(0, 0.0, 1.0),)),
)


def test_a_table_is_the_sequence_of_its_videos():
    table = Videos.of(VIDEOS)
    assert table == VIDEOS and tuple(table) == VIDEOS and table[-1] == VIDEOS[2] and len(table) == 3
    assert table.texts("scene") == ["Küche", "", "Kitchen"] and table.numbers().tolist() == [0, 0, 2]
    assert table != VIDEOS[:2] and table != VIDEOS[::-1] and Videos.of([]) == ()
    with pytest.raises(IndexError):
        table[3]


@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("stop", range(4))
def test_a_range_of_a_table_is_a_table(start, stop):
    table = Videos.of(VIDEOS)
    assert table[start:stop] == VIDEOS[start:stop]
    assert table[1:][: stop - 1 if stop else 0] == VIDEOS[1:][: stop - 1 if stop else 0]
    assert table[start:stop].numbers().max(initial=-1) < max(stop - start, 0) or start >= stop


def test_annotations_of_many_videos_take_few_bytes(tmp_path):
    rows = (f"V{number:08d},S{number % 100},Kitchen,{';'.join(['c007 0.1 4.3'] * 5)},30.0" for number in range(1000))
    (tmp_path / "many.csv").write_text("id,subject,scene,actions,length\n" + "\n".join(rows) + "\n", encoding="utf-8")
    read_annotations([tmp_path / "many.csv"])  # loads what is loaded once
    tracemalloc.start()
    try:
        annotations = read_annotations([tmp_path / "many.csv"])
        assert tracemalloc.get_traced_memory()[0] < 200 * len(annotations.videos)  # as objects, 1,200
    finally:
        tracemalloc.stop()
