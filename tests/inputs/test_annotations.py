"""The CSV files as they are, and as people make them; what an enemy would make is in ``test_annotations_hostile``."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import egoaudio
from egoaudio.errors import AnnotationError
from egoaudio.inputs.annotations import CHARADES_CLASSES, Annotations, read_annotations
from egoaudio.inputs.videos import Instance, Video

CHARADES = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length".split(",")
CHARADES_EGO = [*CHARADES, "egocentric", "charades_video"]
EPIC = (
    "annotation_id,participant_id,video_id,start_timestamp,stop_timestamp,start_sample,stop_sample,"
    "description,class,class_id"
)


def charades_row(
    video_id="AAAAAEGO",
    actions="",
    length="30.00",
    subject="KFGP",
    scene="Kitchen",
    egocentric="Yes",
    script="A person sits, eats.",
):
    """Return the 13 cells of a Charades-Ego row."""
    return [
        video_id,
        subject,
        scene,
        "6",
        "7",
        "Yes",
        script,
        "food;sofa",
        "",
        actions,
        length,
        egocentric,
        video_id[:5],
    ]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes bytes, text, or rows of cells to a file and returns its path."""

    def write(content, name="a.csv"):
        if isinstance(content, list):
            text = io.StringIO()
            csv.writer(text).writerows(content)
            content = text.getvalue()
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def refused(write):
    """Return a function that reads one file and returns the error's message, which always names the file."""

    def refused(content, **options):
        path = write(content)
        with pytest.raises(AnnotationError) as caught:
            read_annotations([path], **options)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert len(message) < len(str(path)) * 2 + 500 and message.isprintable()
        return message.replace(str(path), "FILE")

    return refused


# ------------------------------------------------------------------------------------- Charades, Charades-Ego


def test_a_charades_ego_file_gives_videos_and_their_instances_in_its_order(write):
    first = charades_row(
        "00607EGO", "c075 0.00 10.30;c107 3.20 14.00", script='He says "hi", and sits.', subject="AAAA"
    )
    second = charades_row("00HFPEGO", "", scene="Living room", egocentric="No", subject="BBBB")
    train, test = write([CHARADES_EGO, first], "train.csv"), write([CHARADES_EGO, second], "test.csv")
    assert read_annotations([train], [test]) == Annotations(
        videos=(
            Video("00607EGO", "train", "AAAA", "Kitchen", True, (Instance(75, 0.0, 10.3), Instance(107, 3.2, 14.0))),
            Video("00HFPEGO", "test", "BBBB", "Living room", False, ()),
        ),
        class_ids=CHARADES_CLASSES,
        class_names=CHARADES_CLASSES,
        irregularities={"videos without actions": 1},
    )
    assert len(CHARADES_CLASSES) == 157 and CHARADES_CLASSES[0] == "c000" and CHARADES_CLASSES[-1] == "c156"


def test_the_third_person_file_has_no_egocentric_column(write):
    path = write([CHARADES, charades_row("46GP8", "c092 11.90 21.20")[:11]])
    (video,) = read_annotations([path]).videos
    assert (video.video_id, video.egocentric, video.instances) == ("46GP8", False, (Instance(92, 11.9, 21.2),))


def test_both_options_are_repeatable(write):
    paths = [write([CHARADES_EGO, charades_row(video_id, "c000 0 1")], video_id) for video_id in ("A", "B", "C", "D")]
    videos = read_annotations(paths[:2], paths[2:]).videos
    assert [(video.video_id, video.split) for video in videos] == [
        ("A", "train"),
        ("B", "train"),
        ("C", "test"),
        ("D", "test"),
    ]


def test_what_real_files_have_is_kept_and_counted(write):
    train = write(
        [
            CHARADES_EGO,
            charades_row("REVERSED", "c001 5.00 7.00;c002 9.00 7.00"),
            charades_row("BEYOND", "c001 0.00 31.00;c001 30.00 30.50"),
            charades_row("DUPLICATE", "c001 1.00 2.00;c001 1.00 2.00;c001 1.00 2.00"),
            charades_row("UNORDERED", "c001 3.00 4.00;c002 1.00 2.00"),
            charades_row("EMPTY", "", subject="ABCD"),
            charades_row("POINT", "c001 2.00 2.00"),
            charades_row("POINT", "c001 2.00 2.00"),
        ],
        "train.csv",
    )
    test = write(
        [CHARADES_EGO, charades_row("OTHER", "c003 0.00 1.00"), charades_row("NOBODY", "c003 0.00 1.00", subject="")],
        "test.csv",
    )
    annotations = read_annotations([train], [test])
    assert annotations.irregularities == {
        "reversed instances": 1,
        "instances that end beyond the video": 2,
        "instances that start beyond the video": 1,
        "duplicate instances": 2,
        "videos with unordered instances": 1,
        "videos without actions": 1,
        "instances of no duration": 1,
        "duplicate rows": 1,
        "subjects in more than one split": 1,
    }
    assert [len(video.instances) for video in annotations.videos] == [2, 2, 3, 2, 0, 1, 1, 1]
    assert annotations.videos[0].instances[1] == Instance(2, 9.0, 7.0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            charades_row(actions="c075 1.00"),
            "FILE, row 2: an action is not 'class start end': 'c075 1.00': write it as c075 0.00 10.30, ",
        ),
        (charades_row(actions="c075 1.00 2.00 c076 1.0 2.0"), "an action is not 'class start end'"),
        (
            charades_row(actions="c157 1.00 2.00"),
            "FILE, row 2: unknown class: 'c157': correct it, or give a list of `classes` that has it",
        ),
        (charades_row(actions="c075 one 2.00"), "FILE, row 2: not a time: 'one': expected seconds"),
        (charades_row(length=""), "not a time: ''"),
        (charades_row(egocentric="perhaps"), "egocentric is neither Yes nor No: 'perhaps'"),
        (charades_row()[:12], "FILE, row 2: 12 columns, but the header has 13: "),
        ([*charades_row(), "more"], "FILE, row 2: 14 columns, but the header has 13: "),
        (charades_row(video_id=""), "FILE, row 2: the video id is empty: '': give every row the id of its video"),
    ],
)
def test_a_malformed_charades_row_is_refused_with_its_place_and_fix(refused, row, message):
    assert message in refused([CHARADES_EGO, row, charades_row("BBBBBEGO")])


# ------------------------------------------------------------------------------------------------ generic CSVs


@pytest.mark.parametrize(
    "content",
    [
        "video,start,end,label\nP01.mp4,0.5,62.503,cut\nP02,1,2,a wash\n",
        "label,end,start,video\ncut,00:01:02.503,0:0:0.5,P01.mp4\na wash,2,1,P02\n",
        "Video_ID;Start;Stop;Class\nP01.mp4;0.5;62.503;cut\nP02;1;2;a wash",
        '\ufeff"video"\t"start"\t"end"\t"label"\r\n"P01.mp4"\t.5\t62.503\tcut\r\nP02\t1.\t2e0\ta wash\r\n\r\n',
        " video , start , end , label , note\n P01.mp4 , 0.5 , 62.503 , cut ,\n P02 , 1 , 2 , a wash ,x\n",
    ],
    ids=["plain", "other order", "Excel", "tabs and BOM", "spaces"],
)
def test_a_generic_csv_is_read_however_it_is_written(write, content):
    annotations = read_annotations([write(content)])
    assert annotations.class_ids == annotations.class_names == ("a wash", "cut")
    assert annotations.videos == (
        Video("P01.mp4", "train", "", "", True, (Instance(1, 0.5, 62.503),)),
        Video("P02", "train", "", "", True, (Instance(0, 1.0, 2.0),)),
    )


def test_epic_sounds_files_are_read_as_they_are(write):
    path = write(
        f"{EPIC}\nP01_01_0,P01,P01_01,00:00:02.466,00:00:05.315,59184,127560,paper rustle,rustle,4\n"
        "P01_01_1,P01,P01_01,01:00:04.956,01:00:06.060,118944,145440,,metal-only collision,9\n"
    )
    annotations = read_annotations([path])
    assert annotations.class_ids == ("metal-only collision", "rustle")
    assert annotations.videos == (
        Video("P01_01", "train", "P01", "", True, (Instance(1, 2.466, 5.315), Instance(0, 3604.956, 3606.06))),
    )


def test_the_split_column_is_followed_except_in_a_test_file(write):
    content = "video,start,end,label,split\nA,0,1,x,Train\nB,0,1,x,test\nC,0,1,x,\nD,0,1,x,validation\n"
    assert [video.split for video in read_annotations([write(content)]).videos] == [
        "train",
        "test",
        "train",
        "validation",
    ]
    assert {video.split for video in read_annotations([], [write(content)]).videos} == {"test"}


def test_the_rows_of_a_video_may_be_anywhere(write):
    first = write("video,start,end,label\nA,5,6,x\nB,0,1,y\nA,5,6,x\nA,1,2,y\n", "first.csv")
    second = write("video,start,end,label\nA,0,1,y\n", "second.csv")
    annotations = read_annotations([first, second])
    assert annotations.videos[0].instances == (
        Instance(0, 5.0, 6.0),
        Instance(0, 5.0, 6.0),
        Instance(1, 1.0, 2.0),
        Instance(1, 0.0, 1.0),
    )
    assert annotations.irregularities == {"duplicate instances": 1, "videos with unordered instances": 1}


def test_a_clock_time_is_the_same_number_as_its_seconds(write):
    times = [(0, 0, 0.0), (0, 1, 2.503), (1, 59, 59.999), (12, 0, 0.1), (99, 7, 33.25)]
    rows = [["video", "start", "end", "label"], *(["A", f"{h:02d}:{m:02d}:{s:06.3f}", "0", "x"] for h, m, s in times)]
    (video,) = read_annotations([write(rows)]).videos
    assert [i.start_seconds for i in video.instances] == [
        float(f"{h * 3600 + m * 60 + int(s)}.{f'{s:.3f}'.split('.')[1]}") for h, m, s in times
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        *(
            (text, "not a time")
            for text in ("", "nan", "inf", "-1", "-0.5", "+1", "1,5", "0x10", "1_000", "٣", "1e", "1e9999", "9" * 40)
        ),
        *((text, "not a time") for text in ("1:2", "00:60:00", "00:00:61", "-1:00:00", "1:00:00,5")),
        *(
            (text, "a time beyond 1e\\+07 s")
            for text in ("1e300", "1e308", "1e999", "10000001", "2778:00:00", "9" * 32)
        ),
    ],
)
def test_a_time_that_is_none_is_refused(write, text, problem):
    for row in (f'A,"{text}",2,x', f'A,0,"{text}",x'):
        with pytest.raises(AnnotationError, match=f"row 2: {problem}"):
            read_annotations([write(f"video,start,end,label\n{row}\n")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video,start,end,label\nA,0,1,x\nA,0,1,\n", "FILE, row 3: the label is empty: 'A': give every row a label"),
        (
            "video,start,end,label\nA,0,1,no_action\n",
            "FILE, row 2: the class name is reserved: 'no_action': remove these rows",
        ),
        (
            "video,start,end,label\n,0,1,x\n",
            "FILE, row 2: the video id is empty: '': give every row the id of its video",
        ),
        ("video,start,end,label\n", "FILE: has a header but no rows: give the file that holds the annotations"),
        ("video,start,end,label\r\n\r\n,,,\r\n", "FILE: has a header but no rows"),
        ("video,start,label\nA,0,x\n", "FILE, row 1: no column end: 'video,start,label': add the column"),
    ],
)
def test_a_malformed_generic_csv_is_refused_with_its_place_and_fix(refused, content, message):
    assert message in refused(content)


# ----------------------------------------------------------------------------------------- what contradicts


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([CHARADES_EGO, charades_row("A", "c000 0 1")], [CHARADES_EGO, charades_row("A", "c000 0 2")]),
        ([CHARADES_EGO, charades_row("A", subject="X")], [CHARADES_EGO, charades_row("A", subject="Y")]),
        ([CHARADES_EGO, charades_row("A", "c000 0 1")], "video,start,end,label\nA,0,1,c000\n"),
        ("video,start,end,label,split\nA,0,1,c000,train\n", "video,start,end,label,split\nA,0,1,c000,test\n"),
    ],
    ids=["actions", "subject", "kind", "split"],
)
def test_rows_that_contradict_each_other_are_both_named(write, first, second):
    paths = [write(first, "first.csv"), write(second, "second.csv")]
    with pytest.raises(AnnotationError) as caught:
        read_annotations(paths)
    assert f"{paths[1]}, row 2: contradicts what {paths[0]}, row 2 says of the same video: 'A'" in str(caught.value)


def test_a_video_cannot_be_in_both_splits(write):
    path = write([CHARADES_EGO, charades_row("A", "c000 0 1")])
    with pytest.raises(
        AnnotationError, match="contradicts what .* says of the same video: 'A': keep one of the two rows"
    ):
        read_annotations([path], [path])


# --------------------------------------------------------------------------------------------------- classes


def test_a_class_list_gives_ids_names_and_order(write):
    classes = write("c002 Closing a door\r\nc000 Holding some clothes\r\n\r\n", "classes.txt")
    annotations = read_annotations(
        [write([CHARADES_EGO, charades_row("A", "c000 0 1;c002 0 1")])], classes_path=classes
    )
    assert annotations.class_ids == ("c002", "c000")
    assert annotations.class_names == ("Closing a door", "Holding some clothes")
    assert [instance.class_index for instance in annotations.videos[0].instances] == [1, 0]


def test_generic_labels_are_ids_or_names_of_the_class_list(write):
    classes = write("0 cut\n1\tmetal-only collision\nrustle softly\n", "classes.txt")
    rows = "video,start,end,label\nA,0,1,metal-only collision\nA,0,1,0\nA,0,1,rustle softly\n"
    annotations = read_annotations([write(rows)], classes_path=classes)
    assert annotations.class_ids == ("0", "1", "rustle softly")
    assert annotations.class_names == ("cut", "metal-only collision", "rustle softly")
    assert [instance.class_index for instance in annotations.videos[0].instances] == [1, 0, 2]


@pytest.mark.parametrize("rows", [[CHARADES_EGO, charades_row("A", "c009 0 1")], "video,start,end,label\nA,0,1,c009\n"])
def test_a_class_that_the_list_lacks_is_refused(write, rows):
    classes = write("c000 Holding some clothes\n", "classes.txt")
    with pytest.raises(
        AnnotationError, match="a.csv, row 2: unknown class: 'c009': correct it, or .* list of `classes`"
    ):
        read_annotations([write(rows)], classes_path=classes)


def test_a_name_that_two_classes_share_names_neither(write):
    classes = write("0 cut\n1 cut\n", "classes.txt")
    with pytest.raises(AnnotationError, match="row 2: unknown class: 'cut'"):
        read_annotations([write("video,start,end,label\nA,0,1,cut\n")], classes_path=classes)


def test_without_a_list_charades_and_generic_classes_are_joined(write):
    paths = [
        write([CHARADES_EGO, charades_row("A", "c156 0 1")], "a.csv"),
        write("video,start,end,label\nB,0,1,tap\nB,0,1,c000\n", "b.csv"),
    ]
    annotations = read_annotations(paths)
    assert annotations.class_ids == (*CHARADES_CLASSES, "tap")
    assert [instance.class_index for video in annotations.videos for instance in video.instances] == [156, 157, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no classes: expected lines such as 'c000 Holding some clothes'"),
        ("c000 A\nc001 B\nc000 C\n", "row 3: the class was already given in row 1: 'c000': keep one of the two lines"),
        ("c000 A\nno_action\n", "row 2: the class name is reserved: 'no_action'"),
        ("c000 " + "A" * 300, "'class' has 305 bytes, more than 255"),
        (b"c000 caf\xe9\n", "row 1: byte 0xe9 at position 9 of 'class' is not UTF-8"),
        ("c000 A\n".encode("utf-16"), "row 1: is UTF-16"),
    ],
)
def test_a_class_list_that_is_none_is_refused(write, content, message):
    with pytest.raises(AnnotationError) as caught:
        read_annotations([write("video,start,end,label\nA,0,1,c000\n")], classes_path=write(content, "classes.txt"))
    assert message in str(caught.value) and "classes.txt" in str(caught.value)


def test_no_file_at_all_is_refused():
    with pytest.raises(AnnotationError, match="name at least one CSV file"):
        read_annotations([])


# ------------------------------------------------------------------------------------------- properties

times = st.integers(0, 999_999).map(lambda n: f"{n / 100:.2f}")
actions = st.lists(st.tuples(st.sampled_from(CHARADES_CLASSES), times, times), max_size=8)
names = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/\\"), min_size=1, max_size=40).map(
    str.strip
)
video_ids = names.filter(lambda name: name and ".." not in name)
free_text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=60)
dialects = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from(",;\t"),
        "lineterminator": st.sampled_from(["\n", "\r\n"]),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    }
)


def written(path, rows, dialect, bom):
    """Write rows in a dialect, with or without a byte order mark."""
    text = io.StringIO(newline="")
    csv.writer(text, **dialect).writerows(rows)
    path.write_bytes(("\ufeff" * bom + text.getvalue()).encode())
    return path


@settings(max_examples=150, deadline=None)
@given(
    videos=st.dictionaries(video_ids, st.tuples(names, free_text, actions), min_size=1, max_size=5),
    dialect=dialects,
    bom=st.booleans(),
)
def test_any_charades_table_comes_back_as_it_was_written(tmp_path_factory, videos, dialect, bom):
    rows = [
        charades_row(video_id, ";".join(map(" ".join, found)), subject=subject, script=script)
        for video_id, (subject, script, found) in videos.items()
    ]
    annotations = read_annotations(
        [written(tmp_path_factory.getbasetemp() / "charades.csv", [CHARADES_EGO, *rows], dialect, bom)]
    )
    assert [video.video_id for video in annotations.videos] == list(videos)
    for video, (subject, _, found) in zip(annotations.videos, videos.values(), strict=True):
        assert video.subject == subject
        assert video.instances == tuple(
            Instance(int(code[1:]), float(start), float(stop)) for code, start, stop in found
        )
    reversed_count = sum(float(stop) < float(start) for _, _, found in videos.values() for _, start, stop in found)
    assert annotations.irregularities.get("reversed instances", 0) == reversed_count


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(
        st.tuples(video_ids, times, times, names.filter(lambda name: name not in ("", "no_action"))),
        min_size=1,
        max_size=12,
    ),
    dialect=dialects,
    bom=st.booleans(),
)
def test_any_generic_table_comes_back_as_it_was_written(tmp_path_factory, rows, dialect, bom):
    header = ("video", "start", "end", "label")
    annotations = read_annotations(
        [written(tmp_path_factory.getbasetemp() / "generic.csv", [header, *rows], dialect, bom)]
    )
    assert annotations.class_ids == tuple(sorted({label for *_, label in rows}))
    expected = {}
    for video_id, start, stop, label in rows:
        expected.setdefault(video_id, []).append(
            Instance(annotations.class_ids.index(label), float(start), float(stop))
        )
    assert {video.video_id: list(video.instances) for video in annotations.videos} == expected


def test_reading_annotations_loads_neither_pandas_nor_torch():
    code = (
        "import sys, egoaudio.inputs.annotations, egoaudio.audio.clips; "
        "print(sorted({'pandas', 'torch', 'av', 'h5py', 'scipy'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(egoaudio.__path__[0]).parent)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
