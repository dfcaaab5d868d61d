"""Finding files: each id its one file, and no id or link that leaves the folder."""

import errno
import os
import warnings

import pytest

from egoaudio.errors import MediaError
from egoaudio.inputs.find_media import MEDIA_EXTENSIONS, find_files, list_media


def _touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_files_are_found_at_any_depth_in_the_order_of_the_ids(tmp_path):
    _touch(tmp_path / "B.mp4", tmp_path / "a" / "b" / "A.mkv", tmp_path / "C.txt", tmp_path / "D.mp4.part")
    found = find_files(["A", "B", "C", "D", "E", "A"], tmp_path)
    assert list(found.items()) == [("A", tmp_path / "a" / "b" / "A.mkv"), ("B", tmp_path / "B.mp4")]


@pytest.mark.parametrize("extension", [*MEDIA_EXTENSIONS, ".MP4", ".WebM"])
def test_any_media_extension_will_do(tmp_path, extension):
    _touch(tmp_path / f"A{extension}")
    assert find_files(["A"], tmp_path) == {"A": tmp_path / f"A{extension}"}


@pytest.mark.parametrize(
    ("video_id", "name", "is_found"),
    [
        ("A.mp4", "A.mp4", True), ("A.mp4", "A.mkv", False), ("A.mp4", "A.mp4.mkv", False),
        ("P01.101", "P01.101.mp4", True), ("a", "A.mp4", False),
        ("", ".mp4", False), ("A", "A", False), ("Ä", "Ä.mp4", True),
    ],
)  # fmt: skip
def test_an_id_is_a_name_without_extension_or_with_it(tmp_path, video_id, name, is_found):
    _touch(tmp_path / name)
    assert (video_id in find_files([video_id], tmp_path)) == is_found


@pytest.mark.parametrize(
    ("video_id", "name"),
    [("caf\u00e9", "cafe\u0301.mp4"), ("cafe\u0301", "caf\u00e9.MKV"), ("\u304c.mp4", "\u304b\u3099.mp4")],
)
def test_accented_letters_are_found_however_they_are_encoded(tmp_path, video_id, name):
    _touch(tmp_path / name)
    assert find_files([video_id], tmp_path) == {video_id: tmp_path / name}


def test_one_name_in_two_encodings_is_two_files(tmp_path):
    _touch(tmp_path / "caf\u00e9.mp4", tmp_path / "cafe\u0301.mp4")
    with pytest.raises(MediaError, match="has two files"):
        find_files(["caf\u00e9"], tmp_path)


@pytest.mark.parametrize("extension", [".mka", ".m4b", ".weba", ".dts", ".eac3", ".spx", ".aifc"])
def test_rarer_extensions_are_media_too(tmp_path, extension):
    _touch(tmp_path / f"A{extension}")
    assert list(find_files(["A"], tmp_path)) == ["A"]


@pytest.mark.parametrize("names", [("A.mp4", "A.wav"), ("1/A.mp4", "2/A.mp4"), ("A.mp4", "A.MP4")])
def test_two_files_for_a_video_are_an_error_that_names_both(tmp_path, names):
    _touch(*(tmp_path / name for name in names), tmp_path / "B.mp4")
    with pytest.raises(MediaError, match="'A' has two files") as caught:
        find_files(["A"], tmp_path)
    assert all(str(tmp_path / name) in str(caught.value) for name in names)
    assert find_files(["B"], tmp_path) == {"B": tmp_path / "B.mp4"}


def test_one_file_under_two_names_is_one_file(tmp_path):
    _touch(tmp_path / "1" / "A.mp4")
    (tmp_path / "A.mp4").symlink_to(tmp_path / "1" / "A.mp4")
    assert list(find_files(["A"], tmp_path)) == ["A"]


@pytest.mark.parametrize(
    "video_id",
    [
        "../secret",
        "..",
        ".",
        "/etc/passwd",
        "a/../../secret",
        "x\0y",
        "../secret.mp4",
        "a" * 10_000,
        "\n",
        "~",
        "*",
        "$HOME",
    ],
)
def test_no_id_reaches_outside(tmp_path, video_id):
    _touch(tmp_path / "secret.mp4", tmp_path / "videos" / "a" / "A.mp4")
    assert find_files([video_id], tmp_path / "videos") == {}


def test_a_link_out_of_the_folder_is_refused_unless_allowed(tmp_path):
    _touch(tmp_path / "outside.mp4", tmp_path / "videos" / "B.mp4")
    link = tmp_path / "videos" / "A.mp4"
    link.symlink_to(tmp_path / "outside.mp4")
    with pytest.raises(MediaError, match="A.mp4 is a symbolic link out of `videos`.*`follow_links=True`"):
        find_files(["A"], tmp_path / "videos")
    assert find_files(["A"], tmp_path / "videos", follow_links=True) == {"A": link}
    assert list(find_files(["B"], tmp_path / "videos")) == ["B"]


def test_a_linked_folder_is_entered_only_if_allowed(tmp_path):
    _touch(tmp_path / "elsewhere" / "A.mp4", tmp_path / "videos" / "B.mp4")
    (tmp_path / "videos" / "more").symlink_to(tmp_path / "elsewhere")
    assert list(find_files(["B"], tmp_path / "videos")) == ["B"]
    with pytest.raises(
        MediaError,
        match="more: a symbolic link to a folder outside `videos`, and 1 videos are missing, such as 'A'"
        ".*`follow_links=True`",
    ):
        find_files(["A", "B"], tmp_path / "videos")
    assert find_files(["A"], tmp_path / "videos", follow_links=True) == {"A": tmp_path / "videos" / "more" / "A.mp4"}


def test_links_that_stay_inside_are_no_links_out(tmp_path):
    _touch(tmp_path / "videos" / "1" / "x.mp4", tmp_path / "videos_elsewhere" / "B.mp4")
    (tmp_path / "videos" / "A.mp4").symlink_to("1/x.mp4")
    (tmp_path / "videos" / "2").symlink_to("1")
    assert list(find_files(["A", "x"], tmp_path / "videos")) == ["A", "x"]
    (tmp_path / "videos" / "B.mp4").symlink_to("../videos_elsewhere/B.mp4")
    with pytest.raises(MediaError, match="B.mp4 is a symbolic link out of"):
        find_files(["B"], tmp_path / "videos")


def test_the_folder_itself_may_be_a_link(tmp_path):
    _touch(tmp_path / "real" / "A.mp4")
    (tmp_path / "videos").symlink_to("real")
    assert find_files(["A"], tmp_path / "videos") == {"A": tmp_path / "videos" / "A.mp4"}


@pytest.mark.parametrize("follow_links", [False, True])
def test_loops_of_links_end(tmp_path, monkeypatch, follow_links):
    _touch(tmp_path / "a" / "A.mp4")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "B.mp4").symlink_to("B.mp4")
    folders, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: folders.append(folder) or scandir(folder))
    assert list(find_files(["A", "B"], tmp_path, follow_links)) == ["A"]
    assert folders == [str(tmp_path), str(tmp_path / "a")]


def test_a_link_that_leads_to_itself_is_a_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "self.wav").symlink_to("self.wav")
    (tmp_path / "gone.wav").symlink_to("nowhere.wav")
    (tmp_path / "a.wav").write_bytes(b"")
    assert list_media(tmp_path) == (["a.wav", "gone.wav", "self.wav"], [])
    assert find_files(["self", "a"], tmp_path) == {"a": tmp_path / "a.wav"}


def test_what_only_has_the_name_of_a_video_is_given_when_there_is_no_file(tmp_path):
    (tmp_path / "A.mp4").mkdir()
    os.mkfifo(tmp_path / "B.mp4")
    (tmp_path / "C.mp4").mkdir()
    _touch(tmp_path / "C.mp4" / "C.mp4")
    (tmp_path / "D.mp4").symlink_to("nowhere")
    assert find_files("ABCD", tmp_path) == {
        "A": tmp_path / "A.mp4",
        "B": tmp_path / "B.mp4",
        "C": tmp_path / "C.mp4" / "C.mp4",
    }


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_a_folder_that_is_none_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(MediaError, match=f"`videos=.*{name}'`: there is no such folder"):
        find_files(["A"], tmp_path / name)


def test_a_folder_that_cannot_be_read_is_passed_over_with_a_warning(tmp_path, monkeypatch):
    _touch(tmp_path / "locked" / "A.mp4", tmp_path / "B.mp4")
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.warns(UserWarning, match="locked: not searched for videos: Permission denied"):
        assert list(find_files(["A", "B"], tmp_path)) == ["B"]


@pytest.mark.parametrize(
    ("code", "expected", "words"),
    [
        (errno.EIO, MediaError, "below: cannot be searched for videos: .* is the disk or the network working"),
        (errno.ESTALE, MediaError, "below: cannot be searched for videos"),
        (errno.EMFILE, OSError, "Too many open files"),
    ],
)
def test_a_folder_that_a_disk_does_not_give_is_no_folder_without_videos(tmp_path, monkeypatch, code, expected, words):
    _touch(tmp_path / "below" / "A.mp4", tmp_path / "B.mp4")
    scandir = os.scandir

    def fail(folder):
        if str(folder).endswith("below"):
            raise OSError(code, os.strerror(code))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", fail)
    for search in (lambda: find_files(["A", "B"], tmp_path), lambda: list_media(tmp_path)):
        with pytest.raises(expected, match=words):
            search()


def test_thousands_of_files_are_found_in_one_pass(tmp_path, monkeypatch):
    for number in range(3000):
        (tmp_path / f"{number}.mp4").touch()
    folders, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: folders.append(folder) or scandir(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(find_files(map(str, range(10_000)), tmp_path)) == 3000
    assert folders == [str(tmp_path)]


def test_a_file_is_found_without_a_question_about_it(tmp_path, monkeypatch):
    """Each stat waits for a network disk: only links need any."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    ids = [f"V{number:03d}" for number in range(50)]
    for video_id in ids:
        (tmp_path / "deep" / "er" / f"{video_id}.mp4").touch()
    (tmp_path / "V007.mp4").symlink_to(tmp_path / "deep" / "er" / "V007.mp4")  # one file, by the name that is met first
    asked = []
    for name in ("stat", "lstat"):
        ask = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, *args, ask=ask, **kw: asked.append(path) or ask(path, *args, **kw))
    found = find_files(ids, tmp_path)
    monkeypatch.undo()
    own = {video_id: tmp_path / "deep" / "er" / f"{video_id}.mp4" for video_id in ids}
    assert found == own | {"V007": tmp_path / "V007.mp4"}
    assert not [path for path in asked if "V0" in str(path) and "V007" not in str(path)]
