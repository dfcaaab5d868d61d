"""Faults, counted: builds and runs that are killed, broken and hostile input, full disks, and how many of them cost anything.

Lost is what crashed, hung, or was *wrong*: other bytes than without the fault, other data than the right ones, or no word where something
is missing. Each row of ``FAULTS`` names a fault and the function that tries it (``build_faults`` has those of a build, ``trials`` what they are
tried with). What a fault has cost is printed with the seed that repeats it. Rows made by ``_in_tests`` count tests of the suite
that show the fault already; ``tests/test_faults.py`` runs the share called ``fast`` of the others.

    python benchmarks/faults.py [--full] [--output faults.json]

Needs ``pip install .[test]``. A full disk is a tmpfs of a few MB, which only root can mount; elsewhere a limit on the size of files
stands for it.
"""

import argparse
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import build_faults
import measuring
import numpy as np
import predict_faults
from trials import (
    BUILD,
    HANG_SECONDS,
    NOT_TRIED,
    Sample,
    each,
    in_children,
    measured,
    require,
    room_tests,
    run,
    started,
    tiny_disk,
)

from egoaudio.builder.build import build
from egoaudio.builder.plan import Inputs
from egoaudio.errors import Status
from egoaudio.hdf5 import integrity, reader
from egoaudio.inputs.find_media import MEDIA_EXTENSIONS

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tests", "tests/inputs")]
import mutations  # noqa: E402

TRAIN = [sys.executable, "-c", "from egoaudio.cli import train; train()"]
WORKER_MEGABYTES = 400  # a worker holds 130 MB, and a few seconds of sound


def break_media(sample, folder, num_faults, seed=0):
    """Build mutated files of a dozen containers, and the good ones beside them, in one build within bounded memory and time."""
    from conftest import GOOD_KINDS, make_media

    good = folder / "good"
    (good / "videos").mkdir(parents=True)
    kinds = [kind for kind in GOOD_KINDS if f".{kind}" in MEDIA_EXTENSIONS]
    whole = [make_media(good / "videos" / f"good_{kind}.{kind}", **GOOD_KINDS[kind]) for kind in kinds]
    _write_csv(good / "all.csv", [path.stem for path in whole])
    build(Inputs((str(good / "all.csv"),), str(good / "videos")), good / "ego.h5", num_workers=2)
    broken = folder / "broken"
    shutil.copytree(good / "videos", broken / "videos")
    seeds = range(seed, seed + num_faults)
    for number in seeds:
        source = whole[number % len(whole)]
        (broken / "videos" / f"seed_{number}{source.suffix}").write_bytes(mutations.mutate(source.read_bytes(), number))
    _write_csv(broken / "all.csv", [path.stem for path in whole] + [f"seed_{number}" for number in seeds])
    arguments = [
        "--annotations",
        broken / "all.csv",
        "--videos",
        broken / "videos",
        "--output",
        broken / "ego.h5",
        "--video-timeout",
        "30",
        "--workers",
        "2",
    ]
    status, said, megabytes = measured([*BUILD, *map(str, arguments), "--skip-failed"], HANG_SECONDS + num_faults)
    if status != 0:
        return num_faults, 0, [f"seeds {seed} to {seed + num_faults - 1}: the build ends with status {status}: {said}"]
    reasons = [f"a process of the build took {megabytes} MB"] if megabytes > WORKER_MEGABYTES else []
    with reader.open(broken / "ego.h5") as file, reader.open(good / "ego.h5") as expected:
        reasons += integrity.verify(file)
        for row in file.video_table[len(whole) :]:
            if row["duration_seconds"] > 75 or row["status"] == Status.PLANNED:
                reasons.append(f"{row['video_id'].decode()}: status {row['status']}, {row['duration_seconds']} s")
        for name in file.features:
            if not np.array_equal(file[name][: expected.num_clips], expected[name]):
                reasons.append(f"{name} of good files differs from a build without broken ones")
        outcomes = {status.name: int((file.video_table["status"][len(whole) :] == status).sum()) for status in Status}
        print(f"mutated media: {outcomes}, {megabytes} MB a process at most")
    return num_faults, num_faults - len(reasons), reasons


def _write_csv(path, ids):
    path.write_text(
        "".join(f"{line}\n" for line in ["video,start,end,label", *(f"{video_id},0,1,sound" for video_id in ids)])
    )


def break_csvs(sample, folder, num_faults, seed=0):
    """Read mutated CSVs: each is read or refused in words, soon and in little memory."""
    from test_annotations_hostile import read_mutated

    return in_children(lambda number: read_mutated(folder / "a.csv", number), range(seed, seed + num_faults))


def fill_disks_of_runs(sample, folder, num_faults, seed=0):
    """Fill the disk under a training run; with room again it ends in the weights of a run that was never stopped."""
    from small_runs import assert_same_run, make_file

    from egoaudio.models import checkpoints

    def command(output):
        return [
            *TRAIN,
            str(data),
            "--epochs",
            "30",
            "--batch-size",
            "16",
            "--validation-fraction",
            "0.25",
            "--output",
            str(output),
        ]

    data = make_file(folder / "small.h5")
    status, said = run(command(folder / "whole"))
    require(status == 0, f"the run without faults fails: {said}")
    size = sum(path.stat().st_size for path in (folder / "whole").iterdir())

    def trial(place, seed):
        disk = place / "disk"
        disk.mkdir()
        with tiny_disk(disk, 8 * size) as mounted:
            if not mounted:
                return NOT_TRIED
            with started(command(disk / "run"), place) as process:
                while process.poll() is None and not (disk / "run/last.pt").exists():
                    time.sleep(0.005)
                time.sleep(random.Random(seed).uniform(0, 0.5))
                if process.poll() is not None:
                    return NOT_TRIED
                with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as ballast:
                    while ballast.write(bytes(4096)):
                        pass
                process.wait(HANG_SECONDS)
                said = (place / "said").read_text()
            require(process.returncode == 2 and "no space left" in said.lower(), f"status {process.returncode}: {said}")
            require("Traceback" not in said and not list((disk / "run").glob("*.partial")), said)
            checkpoints.load(disk / "run/last.pt")
            (disk / "ballast").unlink()
            status, said = run(command(disk / "run"))
            require(status == 0, f"the same command does not go on: {said}")
            assert_same_run(disk / "run", folder / "whole")

    return each(trial, folder, range(seed, seed + num_faults))


# ------------------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    words: str
    """What happens; what must come of it."""
    count: callable
    """``count(sample, folder, num_faults) -> (tried, survived, reasons)``."""
    fast: int | None = None
    """How many are tried in the test suite and without ``--full``: 0 where a room's test shows one, None where such tests are counted."""
    full: int | None = None


def _in_tests(words, *tests, faults_a_test=1):
    return Fault(words, partial(room_tests, tests, faults_a_test))


FAULTS = (
    Fault("build: kill -9 of the parent; resumed to the same bytes", partial(build_faults.kill_builds, "parent"), 1, 42),
    Fault("build: kill -9 of the whole group; resumed to the same bytes", partial(build_faults.kill_builds, "group"), 1, 42),
    Fault("build: kill -9 of a worker; goes on by itself to the same bytes", partial(build_faults.kill_builds, "worker"), 1, 42),
    Fault("build: Ctrl-C; stops within 5 s, resumed to the same bytes", partial(build_faults.interrupt_builds, signal.SIGINT), 1, 24),
    Fault("build: SIGTERM; stops within 5 s, resumed to the same bytes", partial(build_faults.interrupt_builds, signal.SIGTERM), 0, 24),
    Fault("build --force: kill -9; the old file is whole, its reader undisturbed", build_faults.kill_replacements, 1, 10),
    Fault("shards taken in and removed: kill -9; finished to the same bytes", build_faults.kill_merges, 1, 20),
    Fault("build: two at once of one output; the second says who holds it", build_faults.build_twice_at_once, 1, 10),
    Fault("build: a video replaced by one of equal size while it is stopped; told", build_faults.replace_videos, 1, 20),
    Fault("build: power lost, what was written since the last sync torn; made again", build_faults.lose_power, 1, 30),
    Fault("build: a decoder crashes or hangs; costs that video only", build_faults.kill_decoders, 0, 10),
    Fault("build: disk full, read-only or limited, told before or in the middle; resumed", build_faults.fill_disks, 2, 28),
    Fault("build: its unfinished file or its folder removed; says so", build_faults.lose_targets, 1, 10),
    Fault("media mutated, all in one build; each told, good ones unharmed", break_media, 36, 516),
    _in_tests(
        "media: playlists, and names like protocols; never followed",
        "inputs/test_decoder_hostile.py::test_playlists_are_not_followed",
        "inputs/test_decoder_hostile.py::test_a_name_that_looks_like_a_protocol_is_a_file_name",
    ),
    _in_tests(
        "media: folder, FIFO, socket, device, link out of the folder, hostile id; refused",
        "inputs/test_decoder_hostile.py::test_what_is_no_media_file_is_refused_with_the_reason",
        "inputs/test_find_media.py::test_a_link_out_of_the_folder_is_refused_unless_allowed",
        "inputs/test_find_media.py::test_a_linked_folder_is_entered_only_if_allowed",
        "inputs/test_find_media.py::test_no_id_reaches_outside",
    ),
    _in_tests(
        "media: hours in a tiny file, absurd headers and timestamps; bounded",
        "inputs/test_decoder_hostile.py::test_hours_in_a_tiny_file_take_no_memory",
        "inputs/test_decoder_hostile.py::test_an_index_with_a_wrong_size_is_not_believed",
        "inputs/test_decoder.py::test_absurd_rates_and_channels_are_refused", "inputs/test_decoder.py::test_a_wav_is_as_long_as_its_bytes",
        "inputs/test_decoder.py::test_a_header_that_claims_a_billion_seconds_is_not_believed",
        "inputs/test_decoder.py::test_an_absurd_timestamp_makes_no_hours_of_silence",
    ),
    Fault("CSVs mutated; read or refused in words", break_csvs, 60, 300),
    _in_tests("CSVs: one line of 1 GB; refused after 1 MB", "inputs/test_csv_rows.py::test_a_row_of_a_gigabyte_is_refused_after_a_megabyte"),
    _in_tests(
        "HDF5 mutated; refused, found by --verify, or as it was", "hdf5/test_reader_hostile.py::test_a_hundred_mutated_files_crash_nothing", faults_a_test=100,
    ),
    _in_tests(
        "HDF5 foreign, cut, lying or leading to other files; refused, no SIGBUS",
        *(f"hdf5/test_reader_hostile.py::test_{name}" for name in (
            "what_is_no_file_is_refused", "what_is_not_hdf5_is_refused", "foreign_hdf5_is_refused", "what_is_not_as_the_format_says_is_refused",
            "a_few_bytes_that_claim_to_be_terabytes_are_not_read", "truncated_file_is_refused",
            "array_beyond_the_end_of_the_file_is_refused_before_it_is_mapped", "array_at_an_absurd_place_never_crashes",
        )),
    ),
    _in_tests(
        "outputs that are inputs, devices, FIFOs, folders; refused, nothing replaced",
        "test_cli_outputs.py::test_what_is_read_is_never_written_to", "test_cli_outputs.py::test_only_a_regular_file_is_replaced",
        "test_cli_outputs.py::test_two_results_are_not_written_to_one_file", "system/test_files.py::test_what_is_no_file_is_never_replaced",
        "system/test_files.py::test_an_input_is_no_output_under_any_name",
    ),
    _in_tests(
        "links and FIFOs in wait under names of ours; not followed, no victim overwritten",
        "system/test_files.py::test_no_link_that_lies_in_wait_under_a_temporary_name_is_followed",
        "system/test_lock.py::test_what_lies_there_is_neither_followed_nor_overwritten",
        "test_cli_outputs.py::test_a_link_under_the_name_of_the_unfinished_file_is_refused",
        "test_cli_outputs.py::test_a_fifo_under_a_name_of_ours_is_not_waited_for",
    ),
    _in_tests(
        "locks: network namespaces, links, kills, races; one holder, who is named",
        *(f"system/test_lock.py::test_{name}" for name in (
            "it_holds_between_network_namespaces", "it_holds_through_symbolic_links_of_the_folder_and_of_the_file", "a_folder_is_held_whatever_it_is_called",
            "it_goes_with_its_process_and_leaves_nothing", "a_lock_that_its_holder_removed_just_now_is_not_taken",
        )),
        "hdf5/test_writer.py::test_rows_are_written_into_the_file_that_was_laid_out_and_no_other",
    ),
    _in_tests(
        "videos and their folder: changed, vanished, away for a moment; told, resumed, tried again",
        *(f"builder/test_media_that_change.py::test_{name}" for name in (
            "a_video_replaced_by_one_of_equal_size_while_a_build_is_stopped_is_told", "a_complete_file_is_of_the_videos_that_are_there_or_says_so",
            "a_video_replaced_while_the_build_runs_costs_that_video", "a_video_that_vanishes_costs_that_video",
            "a_folder_that_goes_away_stops_the_build_which_then_goes_on", "a_folder_that_goes_away_while_it_is_probed_stops_the_build",
            "failed_videos_of_a_complete_file_are_tried_again_and_only_those", "a_retry_that_is_stopped_goes_on_and_leaves_the_old_file_until_then",
            "a_retry_of_something_else_is_refused", "an_unfinished_file_of_another_version_is_told",
        )),
    ),
    _in_tests(
        "annotations beyond the sound, one recording twice; counted and told, or refused",
        *(f"builder/test_beyond.py::test_{name}" for name in (
            "annotations_beyond_the_sound_are_counted_in_the_report_the_preview_and_the_file",
            "a_charades_video_that_is_longer_in_the_table_than_its_sound_is_told", "one_recording_in_train_and_test_is_refused",
            "copies_of_one_recording_are_told",
        )),
    ),
    _in_tests(
        "closed streams, gone readers, little shared memory, few open files, no folder; done, or told",
        *(f"test_cli_surroundings.py::test_{name}" for name in (
            "a_build_ends_whoever_reads", "a_page_that_nobody_reads_is_no_error", "a_page_that_finds_no_room_is_one",
            "shared_memory_that_does_not_suffice_is_told_at_once", "few_open_files_are_told", "a_working_folder_that_is_gone_is_told",
        )),
    ),
    _in_tests(
        "absurd numbers, names not UTF-8, too long, or with escapes; told, nothing reaches the terminal",
        *(f"test_cli_surroundings.py::test_{name}" for name in (
            "absurd_numbers_of_a_build_are_refused", "absurd_numbers_of_a_run_are_refused", "names_that_are_not_utf8_will_do",
            "names_that_are_too_long_are_told", "no_name_reaches_the_terminal_raw",
        )),
    ),
    _in_tests(
        "nothing to learn, labels that are none, values that are no numbers; told in the right words",
        *(f"training/test_nothing_to_learn.py::test_{name}" for name in (
            "clips_that_are_all_unlabelled_are_named_as_such", "a_file_whose_only_class_is_no_action_is_refused",
            "a_file_without_positives_is_refused", "a_validation_split_without_positives_is_refused",
            "labels_other_than_0_and_1_are_not_learnt", "labels_other_than_0_and_1_are_not_evaluated",
            "a_test_clip_that_holds_no_numbers_is_named_and_not_the_model", "an_evaluation_without_positives_says_so",
            "a_run_that_classifies_nothing_correctly_ends_with_a_warning", "a_run_begun_by_another_version_is_resumed_with_a_warning",
        )),
    ),
    _in_tests("checkpoints mutated; refused", "models/test_checkpoints.py::test_a_mutated_checkpoint_is_refused"),
    _in_tests("checkpoints that hold code; refused, and it never runs", "models/test_checkpoints.py::test_a_foreign_file_is_refused_and_its_code_never_runs"),
    _in_tests(
        "training: kill -9; resumed to the same weights",
        "training/test_run_folder.py::test_killed_at_ten_random_moments_it_ends_in_the_same_weights", faults_a_test=10
    ),
    _in_tests("training: Ctrl-C; resumed to the same weights", "training/test_run_folder.py::test_interrupted_and_run_again_it_ends_in_the_same_weights"),
    Fault("training: disk full while checkpointing; resumed to the same weights", fill_disks_of_runs, 0, 5),
    Fault("predict: kill -9 of the parent; resumed to the same bytes", partial(predict_faults.kill_predictions, "parent"), 0, 20),
    Fault("predict: kill -9 of the whole group; resumed to the same bytes", partial(predict_faults.kill_predictions, "group"), 1, 20),
    Fault("predict: kill -9 of a worker; ends by itself in the same bytes", partial(predict_faults.kill_predictions, "worker"), 1, 20),
    Fault("predict: Ctrl-C; stops within 5 s, resumed to the same bytes", partial(predict_faults.interrupt_predictions, signal.SIGINT), 1, 10),
    Fault("predict: SIGTERM; stops within 5 s, resumed to the same bytes", partial(predict_faults.interrupt_predictions, signal.SIGTERM), 0, 10),
    Fault("predict: disk full on the way; told, resumed to the same bytes", predict_faults.fill_disks, 0, 10),
    Fault("predict: media mutated beside good ones; each told, the good ones unharmed", predict_faults.break_media, 8, 100),
    _in_tests(
        "training: the file changes or disappears; named",
        "training/test_train.py::test_a_file_that_changes_while_training_is_noticed_and_named",
        "training/test_train.py::test_a_file_that_disappears_while_training_is_named_and_the_run_ends_as_if_it_were_there",
    ),
)  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all counts, about 20 minutes")
    parser.add_argument("--output", help="JSON of the table")
    arguments = parser.parse_args(argv)
    rows, lost = [], []
    with tempfile.TemporaryDirectory() as scratch:
        sample = Sample(Path(scratch) / "sample")
        for number, fault in enumerate(FAULTS):
            num_faults = fault.full if arguments.full else fault.fast
            if num_faults == 0:
                continue
            folder, began = Path(scratch) / str(number), time.monotonic()
            folder.mkdir()
            tried, survived, reasons = fault.count(sample, folder, num_faults)
            shutil.rmtree(folder)
            rows.append([fault.words, tried, survived, tried - survived])
            lost += [f"{fault.words}: {reason}" for reason in reasons]
            print(
                f"{time.monotonic() - began:5.0f} s  {fault.words}: {survived} of {tried}",
                *reasons,
                sep="\n",
                flush=True,
            )
    print()
    measuring.table(["fault", "tried", "survived", "lost"], rows)
    measuring.write_json(arguments.output, rows=rows, lost=lost)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
