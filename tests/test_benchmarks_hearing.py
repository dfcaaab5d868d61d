"""The development set of the hearing benchmark, made from generated sounds: no network, no packages."""

import json
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

import egoaudio

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import hearing
import hearing_set
import hearing_sounds
import sound_files
import synthetic
from hearing_sounds import Sound


def write_wav(path, samples):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray((20000 * samples).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture
def sounds(tmp_path):
    """Two classes that are heard, of twelve groups with two takes each, and sixteen backgrounds."""
    rng = np.random.default_rng(0)
    found = []
    for label, hz, seconds, num_groups in (("Low", 300, 0.5, 12), ("High", 3000, 0.5, 12), ("", 0, 5, 16)):
        for group in range(num_groups):
            for take in range(2):
                path = tmp_path / f"{label}{group}-{take}.wav"
                time = np.arange(round(seconds * 16000)) / 16000
                noise = 0.1 * rng.standard_normal(len(time))
                write_wav(path, np.sin(2 * np.pi * (hz + group) * time) if hz else noise)
                found.append(Sound(path, "package", label, f"{label}{group}"))
    return found


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("minetest-data/minetest/mods/doors/sounds/doors_door_open.ogg", "Opening or closing a door"),
        ("minetest-data/minetest/mods/default/sounds/default_snow_footstep.3.ogg", "Walking"),
        ("minetest-data/minetest/mods/default/sounds/default_water_footstep.1.ogg", None),  # two classes at once
        ("tuxpaint-stamps-default/tuxpaint/stamps/animals/birds/crow.ogg", "Bird singing or calling"),
        ("tuxpaint-stamps-default/tuxpaint/stamps/animals/birds/crow_desc_fr.ogg", "Talking"),
        ("widelands-data/widelands/data/music/menu.ogg", "Music playing"),
        ("supertux-data/supertux2/sounds/rain.wav", hearing_sounds.BACKGROUND),
        ("supertux-data/supertux2/sounds/upgrade.wav", None),
    ],
)
def test_a_files_class_follows_from_its_path(name, label):
    assert hearing_sounds.label_of(name) == label


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("p/doors/door1_open.ogg", "p/doors/door1_close.ogg", True),
        ("p/doors/door1-open.ogg", "p/doors/door2-open.ogg", False),
        ("p/sounds/wood_footstep.1.ogg", "p/sounds/wood_footstep.2.ogg", True),
        ("p/sounds/wood_footstep.1.ogg", "q/sounds/wood_footstep.1.ogg", False),
    ],
)
def test_takes_of_one_sound_are_one_group(one, other, same):
    groups = [hearing_sounds.group_of(name, "Opening or closing a door") for name in (one, other)]
    assert (groups[0] == groups[1]) == same


def test_a_recording_that_is_there_twice_is_found_once(tmp_path, monkeypatch):
    monkeypatch.setattr(hearing_sounds, "PACKAGES", ["one", "two"])
    files = (("one", "door_open.ogg", b"a"), ("two", "door_slam.ogg", b"a"), ("two", "door1.ogg", b"b"))
    for package, name, content in files:
        path = tmp_path / package / "usr/share/sounds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    found = hearing_sounds.find_sounds(tmp_path)
    assert [sound.path.name for sound in found] == ["door_open.ogg", "door1.ogg"]
    assert {sound.label for sound in found} == {"Opening or closing a door"}


def test_no_group_of_sounds_is_in_two_places(sounds):
    places = hearing_set.divide(np.random.default_rng(0), sounds)
    where = defaultdict(set)
    for place, labels in places.items():
        for label, groups in labels.items():
            for group in groups:
                where[label, group].add(place)
    assert len(where) == 40
    assert all(len(found) == 1 for found in where.values())


def test_too_few_backgrounds_are_refused(sounds):
    few = [sound for sound in sounds if sound.label or sound.group in ("0", "1")]
    with pytest.raises(ValueError, match="2 groups of steady backgrounds"):
        hearing_set.divide(np.random.default_rng(0), few)


def test_events_are_as_loud_as_they_say(sounds):
    place = {"": {"b": [sounds[-1]]}, "Low": {"l": [sounds[0]]}}
    loud = [hearing_set.Event(0, 10.0, 20.0, "l", 20.0)]
    samples = hearing_set.mix(np.random.default_rng(0), loud, ["Low"], place)
    power = [hearing_set.level(samples[16000 * first : 16000 * (first + 8)]) for first in (0, 11, 21)]
    assert 20 * np.log10(power[1] / power[0]) == pytest.approx(20, abs=2)
    assert power[2] == pytest.approx(power[0], rel=0.1)


def test_annotations_of_tests_are_exact_and_those_of_training_err():
    events = [hearing_set.Event(index % 3, 5.0, 10.0, "g", 0.0) for index in range(4000)]
    exact = hearing_set.annotate(np.random.default_rng(0), events, 3, erring=False)
    assert sorted(exact) == sorted((event.class_index, 5.0, 10.0) for event in events)
    erring = hearing_set.annotate(np.random.default_rng(0), events, 3, erring=True)
    assert len(erring) == pytest.approx(3600, abs=80)
    assert np.mean([stop < start for _, start, stop in erring]) == pytest.approx(0.03, abs=0.01)
    assert np.mean([stop > hearing_set.VIDEO_SECONDS for _, _, stop in erring]) == pytest.approx(0.08, abs=0.02)


def test_the_set_is_built_by_the_product_and_the_seed_repeats_it(tmp_path, sounds):
    for name in ("one", "two"):
        assert hearing_set.make(tmp_path / name, sounds, num_train=2, num_test=1, seed=1) == ["High", "Low"]
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 7
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes() for path in files)
    truth = json.loads((tmp_path / "one" / "truth.json").read_text())
    assert truth["audible_classes"] == {"c000": "High", "c001": "Low"}
    groups = defaultdict(set)
    for video, events in truth["videos"].items():
        groups[video[0]] |= {event["group"] for event in events}
    assert groups["V"] and groups["W"] and not groups["V"] & groups["W"]
    assert len((tmp_path / "one" / "classes.txt").read_text().splitlines()) == 157
    with av.open(str(tmp_path / "one" / "videos" / "V0000EGO.mp4")) as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.rate) == ("aac", 44100)
        assert float(stream.duration * stream.time_base) == pytest.approx(30, abs=0.1)
    folder = tmp_path / "one"
    command = [sys.executable, "-c", "from egoaudio.cli import build; build()", "--output", tmp_path / "set.h5"]
    command += ["--annotations", folder / "train.csv", "--test-annotations", folder / "test.csv"]
    command += ["--classes", folder / "classes.txt", "--videos", folder / "videos", "--workers", "1"]
    command += ["--features", "logmel", "--denoise", "none"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    with egoaudio.open(tmp_path / "set.h5") as file:
        assert (file.num_clips, int(file.usable.sum())) == (90, 90)


def test_the_benchmark_judges_every_row_and_keeps_its_figures(tmp_path, monkeypatch, capsys):
    features = {"logmel": (24, 8)}
    for name in ("none", "clip"):
        path = synthetic.make_file(tmp_path / f"{name}.h5", 12, 8, features, test_fraction=0.3)
    with egoaudio.open(path) as file:
        ids = file.classes.class_id.tolist()
    truth = {"audible_classes": dict.fromkeys(ids[:3], "a class")}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    monkeypatch.setattr(hearing, "DENOISING", {"none": ([], "logmel"), "clip": ([], "logmel")})
    monkeypatch.setattr(
        hearing, "candidates", lambda weights: [hearing.Candidate("small", {"epochs": 3, "context_clips": 0})]
    )
    hearing.main([str(tmp_path), "--processes", "1", "--seeds", "2", "--output", str(tmp_path / "out.json")])
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert list(rows) == [
        "prior",
        "logistic regression on log-mel statistics",
        "MLP on log-mel statistics",
        "small",
    ]
    printed = capsys.readouterr().out
    for name, row in rows.items():
        assert len(row["test_by_seed"]) == 2 and f"| {name} | 2 |" in printed
        assert 0 <= row["low"] <= row["test"] <= row["high"] <= 1
    # Each class has a band of its own: linear models hear that at once, and the prior does not.
    assert rows["logistic regression on log-mel statistics"]["test"] > 0.9 > 0.6 > rows["prior"]["test"]


def test_rows_on_the_fly_are_trained_alone_and_join_a_table_that_is_there(tmp_path, monkeypatch):
    """The options of the benchmark's own rows, on a file of waveforms alone, with one epoch."""
    path = sound_files.make_sound_file(tmp_path / "sound.h5", ("waveform",), 10, 6, clip_seconds=0.3)
    with egoaudio.open(path) as file:
        ids = file.classes.class_id.tolist()
    (tmp_path / "truth.json").write_text(json.dumps({"audible_classes": dict.fromkeys(ids[:3], "a class")}))
    own = [one for one in hearing.candidates(None) if "on the fly" in one.name]
    assert {one.denoising for one in own} == {"sound"} and "waveform" in hearing.DENOISING["sound"][1]
    together = {name: value for one in own for name, value in one.options.items()} | {"epochs": 1}
    rows = [hearing.Candidate("small, on the fly", together, denoising="sound"), hearing.Candidate("other")]
    monkeypatch.setattr(hearing, "DENOISING", {"sound": ([], "waveform")})
    monkeypatch.setattr(hearing, "SPLIT", {"validation_fraction": 0.3})
    monkeypatch.setattr(hearing, "candidates", lambda weights: rows)
    output = tmp_path / "out.json"
    earlier = {"validation_by_seed": [0.5], "test_by_seed": [0.5], **dict.fromkeys(hearing.COLUMNS, 0.5)}
    output.write_text(json.dumps({"machine": {}, "rows": {"earlier": earlier}}))
    hearing.main([str(tmp_path), "--processes", "1", "--seeds", "1", "--only", "on the fly", "--output", str(output)])
    found = json.loads(output.read_text())["rows"]
    assert list(found) == ["earlier", "small, on the fly"] and found["earlier"] == earlier
    assert 0 <= found["small, on the fly"]["test"] <= 1


def test_the_benchmarks_page_holds_the_table_of_the_run_beside_it(capsys):
    benchmarks = Path(hearing.__file__).parent
    hearing.main(["--tables", str(benchmarks / "results" / "hearing.json")])
    table = capsys.readouterr().out
    assert "| cnn-small, every default | 3 |" in table
    assert table in (benchmarks / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("num_processes", [1, 2])
def test_models_that_train_at_once_come_in_order_and_a_pupil_after_its_teacher(tmp_path, monkeypatch, num_processes):
    ended = []

    def train(candidate, folder, runs, seed):
        taught_by = candidate.options.get("teacher")
        assert taught_by is None or (taught_by, seed) in ended
        time.sleep(0.05 if candidate.name == "teacher" else 0.01)
        ended.append((candidate.name, seed))
        return candidate.name, seed

    monkeypatch.setattr(hearing, "train", train)
    monkeypatch.setattr(hearing, "ProcessPoolExecutor", lambda number, *_, **__: ThreadPoolExecutor(number))
    rows = [
        hearing.Candidate("teacher"),
        hearing.Candidate("pupil", {"teacher": "teacher"}),
        hearing.Candidate("other"),
    ]
    jobs = [(row, seed) for row in rows for seed in range(2)]
    found = list(hearing.train_all(jobs, tmp_path, num_processes))
    assert found == [(row.name, (row.name, seed)) for row, seed in jobs]
    assert ended.index(("other", 0)) < ended.index(("pupil", 1)) or num_processes == 1
