"""What is heard: each file once, in an order of its own, under a name that no other has and that leads nowhere else."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egoaudio.errors import MediaError
from egoaudio.prediction.find import Recordings, find_annotated, find_recordings, is_hdf5, safe_name


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_folders_are_searched_at_any_depth_in_the_order_of_the_names(tmp_path):
    touch(*(tmp_path / name for name in ("b.mp4", "a/z.wav", "a/deep/er/x.MKV", "notes.txt", "a/b.mp4.part")))
    found = find_recordings([tmp_path])
    assert found.names == ["a/deep/er/x.MKV", "a/z.wav", "b.mp4"]
    assert found.files == [str(tmp_path / name) for name in found.names] and not found.refused
    assert list(found.sizes()) == [1, 1, 1]


def test_a_file_is_taken_whatever_it_is_called_and_only_once(tmp_path):
    touch(tmp_path / "a" / "x.mp4", tmp_path / "sound.raw")
    found = find_recordings([tmp_path / "sound.raw", tmp_path / "a", tmp_path / "a" / "x.mp4", tmp_path])
    assert found.names == ["sound.raw", "x.mp4"]


def test_names_that_collide_do_not(tmp_path):
    touch(
        tmp_path / "1" / "a.mp4",
        tmp_path / "2" / "a.mp4",
        tmp_path / "3" / "2" / "a.mp4",
        tmp_path / "4" / "2" / "a.mp4",
    )
    found = find_recordings([tmp_path / name for name in "1234"])
    assert found.names == ["a.mp4", "2/a.mp4", "3/2/a.mp4", "4/2/a.mp4"]
    assert len(set(found.names)) == 4


@given(st.lists(st.text(st.sampled_from("a./\\\x00~é\udc80") | st.characters(), max_size=400), max_size=4))
def test_no_name_leads_out_of_a_folder(texts):
    found = Recordings()
    for text in texts:
        found.add(text, "")
    assert len(set(found.names)) == len(texts)
    for name in found.names:
        parts = name.split("/")
        assert name and not set(parts) & {"", ".", ".."} and "\x00" not in name and "\n" not in name
        assert os.path.normpath(os.path.join("/out", name)) == f"/out/{name}"
        assert max(len(os.fsencode(part)) for part in parts) <= 155


def test_a_name_that_is_safe_stays_as_it_is():
    assert safe_name("2024/a b.mp4") == "2024/a b.mp4"
    assert safe_name("../../etc/passwd") == "_/_/etc/passwd"
    assert safe_name("/") == "_"
    assert safe_name("a\ud800.mp4") == "a_.mp4" and safe_name("a\udc80.mp4") == "a\udc80.mp4"


def test_links_out_of_a_folder_are_told_and_not_followed(tmp_path):
    touch(tmp_path / "in" / "a.mp4", tmp_path / "out" / "b.mp4")
    (tmp_path / "in" / "b.mp4").symlink_to(tmp_path / "out" / "b.mp4")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "again.mp4").symlink_to("a.mp4")
    found = find_recordings([tmp_path / "in"])
    refused = {found.names[number]: reason for number, reason in found.refused.items()}
    assert found.names == ["a.mp4", "again.mp4", "b.mp4", "folder"] and set(refused) == {"b.mp4", "folder"}
    assert "leads out of" in refused["b.mp4"] and "follow_links=True" in refused["b.mp4"]
    followed = find_recordings([tmp_path / "in"], follow_links=True)
    assert followed.names == ["a.mp4", "again.mp4", "b.mp4", "folder/b.mp4"] and not followed.refused


def test_what_is_not_there_is_told_with_what_would_do(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="empty: holds no media, at any depth: expected .*\\.mp4"):
        find_recordings([tmp_path / "empty"])
    with pytest.raises(MediaError, match="none.mp4: there is no such file or folder"):
        find_recordings([tmp_path / "none.mp4"])


def test_annotations_name_what_is_heard(tmp_path):
    touch(tmp_path / "videos" / "a.mp4", tmp_path / "videos" / "c.mp4")
    (tmp_path / "some.csv").write_text("video,start,end,label\nc,0,1,x\nb,0,1,x\nc,2,3,y\n")
    found = find_annotated([tmp_path / "some.csv"], tmp_path / "videos")
    assert found.names == ["c", "b"] and found.files == [str(tmp_path / "videos" / "c.mp4"), ""]
    assert list(found.refused) == [1] and found.key(1) == "b"
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="none of the 2 annotated videos is there; looked for c.mp4"):
        find_annotated([tmp_path / "some.csv"], tmp_path / "empty")


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert not is_hdf5(tmp_path / "pipe.mp4")
    assert find_recordings([tmp_path / "pipe.mp4"]).files == [str(tmp_path / "pipe.mp4")]
    assert Path(tmp_path / "pipe.mp4").exists()
