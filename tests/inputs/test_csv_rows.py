"""Rows and cells are read in any dialect; what is not a CSV is refused with its place, in bounded memory."""

import os
import threading
import tracemalloc

import pytest

from egoaudio.errors import AnnotationError
from egoaudio.inputs.csv_rows import Lines, Table

HEADER = "video,start,end,label\n"
CHARADES = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"


def read(path):
    """Return a file's kind, its rows as ``(number, video, label)``, and what was counted."""
    with Lines(path) as lines:
        table = Table(lines)
        rows = [
            (row.number, row.text("id" if table.kind == "charades" else "video"), row.text("label")) for row in table
        ]
        return table.kind, rows, dict(table.counts)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes text or bytes to a file and returns its path."""

    def write(content):
        path = tmp_path / "a.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def refused(write):
    """Return a function that gives the message for a file that cannot be read."""

    def refused(content):
        path = write(content)
        with pytest.raises(AnnotationError) as caught:
            read(path)
        assert str(caught.value).isprintable()
        return str(caught.value).replace(str(path), "FILE")

    return refused


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (CHARADES, "charades"),
        (f"{CHARADES},egocentric,charades_video", "charades"),
        (CHARADES.replace(",", ";"), "charades"),
        ("video,start,end,label", "generic"),
        ("\ufeffvideo,start,end,label,split", "generic"),
        ('"Label"\t"End"\t"Start"\t"Video"', "generic"),
        (
            "annotation_id,participant_id,video_id,start_timestamp,stop_timestamp,start_sample,stop_sample,"
            "description,class,class_id",
            "generic",
        ),
    ],
)
def test_a_table_is_recognised_by_its_header(write, header, kind):
    assert read(write(header)) == (kind, [], {})


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", list(",;\t"))
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_every_dialect_gives_the_same_rows(write, end, delimiter, bom):
    separator = "," if delimiter == "\t" else delimiter  # a label may not hold a tab
    lines = [
        ["video", "start", "end", "label"],
        ["A", "0", "1", f'"x{separator} ""y"""'],
        ["", "", "", ""],
        [],
        [" B ", "0", "1", "é"],
    ]
    text = bom + "".join(delimiter.join(cells) + end for cells in lines)
    assert read(write(text)) == ("generic", [(2, "A", f'x{separator} "y"'), (5, "B", "é")], {"blank rows": 2})


def test_a_row_has_the_number_of_its_first_line_in_the_file(write):
    path = write('video,start,end,label,note\n\nA,0,1,x,"two\nlines"\r\n,,,,\nB,0,1,y,\n')
    assert read(path)[1] == [(3, "A", "x"), (6, "B", "y")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "FILE: is empty: expected a CSV with a header"),
        ("A,0,1,x\n", "FILE, row 1: not a known header: 'A,0,1,x': expected the columns of Charades"),
        ("video,start,label\n", "FILE, row 1: no column end: 'video,start,label': add the column, or correct its name"),
        ("id,actions,scene\n", "FILE, row 1: no column subject, length: 'id,actions,scene': add the column"),
        (
            "video,video_id,start,end,label\n",
            "FILE, row 1: more than one column for video: 'video,video_id,start,end,label': "
            "keep one of video, video_id",
        ),
        (
            f"{HEADER}A,0,1\n",
            "FILE, row 2: 3 columns, but the header has 4: 'A,0,1': is a quote or a separator missing?",
        ),
        (
            f'{HEADER}A,0,1,"x\nB,0,1,x\nC,0,1,x\n',
            "FILE, row 2: not a CSV row (unexpected end of data): is a quote missing",
        ),
        (f'{HEADER}A,0,1,x\nA,0,1,"x"y\n', "FILE, row 3: not a CSV row"),
        ("video,start,end,label\rA,0,1,x\r", "FILE, row 1: not a known header: 'video,start,end,label\\rA,0,1,x'"),
        (f"{HEADER}A,0,1,x\rB,0,1,x\r", "FILE, row 2: not a CSV row (new-line character seen in unquoted field"),
        (
            f'{HEADER}A,0,1,"x\ny"\n',
            "FILE, row 2: 'label' has control characters: 'x\\ny': remove them; is a quote missing before them?",
        ),
        (f"{HEADER}A,0,1,x\x1b[31m\n", "FILE, row 2: 'label' has control characters: 'x\\x1b[31m'"),
        (f"{HEADER}A,0,1,{'é' * 128}\n", "FILE, row 2: 'label' has 256 bytes, more than 255: 'é"),
        (
            f"{HEADER}{'x' * 10_000},0,1,x\n",
            f"FILE, row 2: 'video' has 10000 bytes, more than 255: '{'x' * 60}'... (10000 characters): shorten it",
        ),
    ],
)
def test_what_is_no_row_is_refused_with_its_place_text_and_fix(refused, content, message):
    assert refused(content).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{HEADER}A,0,1,x\n".encode("utf-16"), "FILE, row 1: is UTF-16: "),
        (f"{HEADER}A,0,1,x\n".encode("utf-16-le"), "FILE, row 1: holds a NUL byte at position 2: "),
        (f"{HEADER}A,0,1,x\n".encode("utf-32"), "FILE, row 1: is UTF-16"),
        (
            f"{HEADER}A,0,1,x\nB,0,1,é\n".encode("latin-1"),
            "FILE, row 3: byte 0xe9 at position 1 of 'label' is not UTF-8: '\\udce9': save the file as ",
        ),
        (
            b"video,start,end,label\nA\0B,0,1,x\n",
            "FILE, row 2: holds a NUL byte at position 2: 'A\\x00B,0,1,x\\n': save the file as CSV in UTF-8",
        ),
        (b"\x89HDF\r\n\x1a\n\0\0", "FILE, row 1: not a known header: "),
        (b"\x1f\x8b\x08\x00", "FILE, row 1: holds a NUL byte at position 4"),
    ],
    ids=["utf-16", "utf-16 without BOM", "utf-32", "latin-1", "NUL", "HDF5", "gzip"],
)
def test_a_wrong_encoding_is_named_with_byte_and_row(refused, content, message):
    assert refused(content).startswith(message)


def test_another_encoding_in_text_that_nobody_reads_is_counted(write):
    content = "video,start,end,label,note\nA,0,1,x,café\nB,0,1,x,bar\n".encode("latin-1")
    assert read(write(content)) == ("generic", [(2, "A", "x"), (3, "B", "x")], {"rows with text that is not UTF-8": 1})


@pytest.mark.parametrize(
    ("head", "piece", "message"),
    [
        (b"", b"x" * 65536, "row 1: more than 1048576 bytes in one row"),
        (HEADER.encode(), b"x" * 65536, "row 2: more than 1048576 bytes in one row"),
        (HEADER.encode() + b'A,0,1,"', b"x\n" * 32768, "row 2: not a CSV row (field larger than field limit"),
        (HEADER.encode() + b'A,0,1,"', b"x" * 60000 + b'\n","', "more than 1048576 bytes in one row"),
    ],
    ids=["header", "line", "quoted field", "quoted fields"],
)
def test_a_row_of_a_gigabyte_is_refused_after_a_megabyte(tmp_path, head, piece, message):
    path = tmp_path / "huge.csv"
    os.mkfifo(path)
    written = []

    def pour():
        with open(path, "wb", buffering=0) as pipe:
            try:
                pipe.write(head)
                for _ in range(2**30 // len(piece)):
                    written.append(pipe.write(piece))
            except BrokenPipeError:
                return

    pouring = threading.Thread(target=pour)
    pouring.start()
    tracemalloc.start()
    try:
        with pytest.raises(AnnotationError) as caught:
            read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pouring.join(timeout=60)
    assert message in str(caught.value)
    assert sum(written) < 2**21 and peak < 16 * 2**20


def test_many_rows_together_may_be_larger_than_the_limit_of_one(write):
    row = "A,0,1," + "x" * 200 + "\n"
    assert len(read(write(HEADER + row * 10_000))[1]) == 10_000  # 2 MB


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "directory"])
def test_a_path_that_is_no_file_is_refused(tmp_path, make):
    make(tmp_path / "x.csv")
    with pytest.raises(AnnotationError, match="x.csv: cannot be read: .*: check the path"):
        read(tmp_path / "x.csv")


def test_a_refused_file_is_closed(write):
    with pytest.raises(AnnotationError) as caught, Lines(write(f"{HEADER}A\n")) as lines:
        list(Table(lines))
    assert "1 columns" in str(caught.value) and lines._file.closed
