"""Every kind of fault, as a row of the table that ``faults.py`` prints: what happens, what must come of it, how many.

Rows made by ``_in_tests`` count tests of the suite that show the fault already.
"""

import signal
from dataclasses import dataclass
from functools import partial

import build_faults
import media_faults
import predict_faults
import train_faults
from trials import suite_tests


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    words: str
    """What happens; what must come of it."""
    count: callable
    """``count(sample, folder, num_faults) -> Tally``."""
    fast: int | None = None
    """How many are tried in the suite, and without ``--full``; 0 where a test shows one, None where tests count."""
    full: int | None = None


def _in_tests(words, *tests, faults_a_test=1):
    return Fault(words, partial(suite_tests, tests, faults_a_test))


FAULTS = (
    Fault(
        "build: kill -9 of the parent; resumed to the same bytes", partial(build_faults.kill_builds, "parent"), 1, 42
    ),
    Fault(
        "build: kill -9 of the whole group; resumed to the same bytes",
        partial(build_faults.kill_builds, "group"),
        0,
        42,
    ),
    Fault(
        "build: kill -9 of a worker; ends by itself in the same bytes",
        partial(build_faults.kill_builds, "worker"),
        1,
        42,
    ),
    Fault(
        "build: Ctrl-C; stops within 5 s, resumed to the same bytes",
        partial(build_faults.interrupt_builds, signal.SIGINT),
        0,
        24,
    ),
    Fault(
        "build: SIGTERM; stops within 5 s, resumed to the same bytes",
        partial(build_faults.interrupt_builds, signal.SIGTERM),
        0,
        24,
    ),
    Fault(
        "build --force: kill -9; the old file is whole, its reader undisturbed", build_faults.kill_replacements, 1, 10
    ),
    Fault("shards taken in and removed: kill -9; finished to the same bytes", build_faults.kill_merges, 1, 20),
    Fault("build: two at once of one output; the second says who holds it", build_faults.build_twice_at_once, 1, 10),
    Fault("build: a video replaced by one of equal size while it is stopped; told", build_faults.replace_videos, 1, 20),
    Fault("build: power lost, what was written since the last sync torn; made again", build_faults.lose_power, 1, 30),
    Fault("build: a decoder crashes or hangs; costs that video only", build_faults.kill_decoders, 0, 10),
    Fault(
        "build: disk full, read-only or limited, told before or in the middle; resumed", build_faults.fill_disks, 2, 28
    ),
    Fault("build: its unfinished file or its folder removed; says so", build_faults.lose_targets, 1, 10),
    Fault("media mutated, all in one build; each told, good ones unharmed", media_faults.break_media, 36, 516),
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
        "inputs/test_decoder.py::test_absurd_rates_and_channels_are_refused",
        "inputs/test_decoder.py::test_a_wav_is_as_long_as_its_bytes",
        "inputs/test_decoder.py::test_a_header_that_claims_a_billion_seconds_is_not_believed",
        "inputs/test_decoder.py::test_an_absurd_timestamp_makes_no_hours_of_silence",
    ),
    Fault(
        "media: sound late, resting, counted from any time; lands where it was put in", media_faults.move_sound, 2, 120
    ),
    Fault("media: clocks that wander by up to 120 ms; the sound whole, a pause kept", media_faults.wander, 2, 80),
    Fault("media: the disk fails somewhere in a file; unreadable, with the reason", media_faults.fail_reads, 6, 104),
    Fault("media: chained Ogg, links of other rates, damaged links; all there, or counted", media_faults.chain, 3, 60),
    Fault("media: muted, cancelling out or faint; told as what it is", media_faults.mute, 3, 60),
    _in_tests(
        "media: late by minutes, pauses, sparse Opus, time before 0, edit lists, clocks anew; as ffmpeg, or told",
        *(
            f"inputs/test_alignment.py::test_{name}"
            for name in (
                "sound_that_starts_late_lands_beside_its_picture",
                "rarer_codecs_that_start_late_land_beside_their_picture",
                "pauses_last_as_long_as_they_do",
                "opus_that_rests_in_silence_does_not_drift",
                "a_pause_in_a_stream_without_a_stated_length_is_borne_out_by_its_picture",
                "a_stream_whose_clock_starts_anew_goes_on_without_silence",
                "no_claim_makes_hours_of_silence_in_a_small_file",
                "time_zero_is_where_the_container_starts",
                "time_zero_may_be_before_0",
                "an_edit_list_is_obeyed",
                "time_zero_is_that_of_pictures_which_come_long_before_the_sound_in_the_file",
                "a_jump_far_above_the_wander_counts",
            )
        ),
    ),
    _in_tests(
        "media: other tracks, sound late in the file, rates that change, delays; the right sound",
        *(
            f"inputs/test_tracks.py::test_{name}"
            for name in (
                "the_track_that_is_marked_as_the_default_is_decoded_else_the_first",
                "a_silent_first_track_beside_the_default_is_passed_over",
                "a_first_track_that_does_not_decode_is_passed_over",
                "a_first_track_without_a_decoder_is_passed_over",
                "any_track_can_be_chosen",
                "a_track_that_is_not_there_is_named",
                "sound_from_ten_seconds_on_is_found",
                "a_delay_that_is_not_stated_can_be_compensated",
                "a_delay_that_is_stated_is_not_compensated_twice",
            )
        ),
        "inputs/test_decoder.py::test_rate_and_channels_that_change_in_mid_stream_do_not_stop_the_sound",
    ),
    _in_tests(
        "media: silent, antiphase, paused; in the report and in /videos, left out on request",
        *(
            f"builder/test_sound.py::test_{name}"
            for name in (
                "what_is_odd_about_the_sound_is_told",
                "silent_recordings_are_left_out_on_request",
                "the_track_is_an_option",
            )
        ),
    ),
    _in_tests(
        "media: rare extensions, names in other encodings, folders that a disk does not give; found, or told",
        *(
            f"inputs/test_find_media.py::test_{name}"
            for name in (
                "rarer_extensions_are_media_too",
                "accented_letters_are_found_however_they_are_encoded",
                "one_name_in_two_encodings_is_two_files",
                "two_files_for_a_video_are_an_error_that_names_both",
                "a_folder_that_a_disk_does_not_give_is_no_folder_without_videos",
            )
        ),
    ),
    Fault("CSVs mutated; read or refused in words", media_faults.break_csvs, 60, 300),
    _in_tests(
        "CSVs: one line of 1 GB; refused after 1 MB",
        "inputs/test_csv_rows.py::test_a_row_of_a_gigabyte_is_refused_after_a_megabyte",
    ),
    _in_tests(
        "HDF5 mutated; refused, found by --verify, or as it was",
        "hdf5/test_reader_hostile.py::test_a_hundred_mutated_files_crash_nothing",
        faults_a_test=100,
    ),
    _in_tests(
        "HDF5 foreign, cut, lying or leading to other files; refused, no SIGBUS",
        *(
            f"hdf5/test_reader_hostile.py::test_{name}"
            for name in (
                "what_is_no_file_is_refused",
                "what_is_not_hdf5_is_refused",
                "foreign_hdf5_is_refused",
                "what_is_not_as_the_format_says_is_refused",
                "a_few_bytes_that_claim_to_be_terabytes_are_not_read",
                "truncated_file_is_refused",
                "array_beyond_the_end_of_the_file_is_refused_before_it_is_mapped",
                "array_at_an_absurd_place_never_crashes",
            )
        ),
    ),
    _in_tests(
        "outputs that are inputs, devices, FIFOs, folders; refused, nothing replaced",
        "test_cli_outputs.py::test_what_is_read_is_never_written_to",
        "test_cli_outputs.py::test_only_a_regular_file_is_replaced",
        "test_cli_outputs.py::test_two_results_are_not_written_to_one_file",
        "system/test_files.py::test_what_is_no_file_is_never_replaced",
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
        *(
            f"system/test_lock.py::test_{name}"
            for name in (
                "it_holds_between_network_namespaces",
                "it_holds_through_symbolic_links_of_the_folder_and_of_the_file",
                "a_folder_is_held_whatever_it_is_called",
                "it_goes_with_its_process_and_leaves_nothing",
                "a_lock_that_its_holder_removed_just_now_is_not_taken",
            )
        ),
        "hdf5/test_writer.py::test_rows_are_written_into_the_file_that_was_laid_out_and_no_other",
    ),
    _in_tests(
        "videos and their folder: changed, vanished, away for a moment; told, resumed, tried again",
        *(
            f"builder/test_media_that_change.py::test_{name}"
            for name in (
                "a_video_replaced_by_one_of_equal_size_while_a_build_is_stopped_is_told",
                "a_complete_file_is_of_the_videos_that_are_there_or_says_so",
                "a_video_replaced_while_the_build_runs_costs_that_video",
                "a_video_that_vanishes_costs_that_video",
                "a_folder_that_goes_away_stops_the_build_which_then_goes_on",
                "a_folder_that_goes_away_while_it_is_probed_stops_the_build",
                "failed_videos_of_a_complete_file_are_tried_again_and_only_those",
                "a_retry_that_is_stopped_goes_on_and_leaves_the_old_file_until_then",
                "a_retry_of_something_else_is_refused",
                "an_unfinished_file_of_another_version_is_told",
            )
        ),
    ),
    _in_tests(
        "annotations beyond the sound, one recording twice; counted and told, or refused",
        *(
            f"builder/test_beyond.py::test_{name}"
            for name in (
                "annotations_beyond_the_sound_are_counted_in_the_report_the_preview_and_the_file",
                "a_charades_video_that_is_longer_in_the_table_than_its_sound_is_told",
                "instances_of_epic_sounds_beyond_the_sound_are_told",
                "a_reason_that_many_videos_share_is_said_once",
                "one_recording_in_train_and_test_is_refused",
                "copies_of_one_recording_are_told",
            )
        ),
    ),
    _in_tests(
        "closed streams, gone readers, little shared memory, few open files, no folder; done, or told",
        *(
            f"test_cli_surroundings.py::test_{name}"
            for name in (
                "a_build_ends_whoever_reads",
                "a_page_that_nobody_reads_is_no_error",
                "a_page_that_finds_no_room_is_one",
                "shared_memory_that_does_not_suffice_is_told_at_once",
                "few_open_files_are_told",
                "a_working_folder_that_is_gone_is_told",
            )
        ),
    ),
    _in_tests(
        "absurd numbers, names not UTF-8, too long, with escapes or formulas; told, none acts",
        *(
            f"test_cli_surroundings.py::test_{name}"
            for name in (
                "absurd_numbers_of_a_build_are_refused",
                "absurd_numbers_of_a_run_are_refused",
                "names_that_are_not_utf8_will_do",
                "names_that_are_too_long_are_told",
                "no_name_reaches_the_terminal_raw",
            )
        ),
        "builder/test_build.py::test_no_more_workers_are_started_than_there_are_videos",
        "evaluation/test_results.py::test_no_cell_is_a_formula",
        "system/test_terminal.py::test_nothing_drives_a_terminal",
        "system/test_terminal.py::test_no_text_is_a_formula",
    ),
    _in_tests(
        "nothing to learn, labels that are none, values that are no numbers; told in the right words",
        *(
            f"training/test_nothing_to_learn.py::test_{name}"
            for name in (
                "clips_that_are_all_unlabelled_are_named_as_such",
                "a_file_whose_only_class_is_no_action_is_refused",
                "a_file_without_positives_is_refused",
                "a_validation_split_without_positives_is_refused",
                "labels_other_than_0_and_1_are_not_learnt",
                "labels_other_than_0_and_1_are_not_evaluated",
                "a_test_clip_that_holds_no_numbers_is_named_and_not_the_model",
                "an_evaluation_without_positives_says_so",
                "a_run_that_classifies_nothing_correctly_ends_with_a_warning",
                "a_run_begun_by_another_version_is_resumed_with_a_warning",
                "a_source_of_rows_ends_quietly_with_the_interpreter",
            )
        ),
    ),
    _in_tests("checkpoints mutated; refused", "models/test_checkpoints.py::test_a_mutated_checkpoint_is_refused"),
    _in_tests(
        "checkpoints that hold code; refused, and it never runs",
        "models/test_checkpoints.py::test_a_foreign_file_is_refused_and_its_code_never_runs",
    ),
    _in_tests(
        "training: kill -9; resumed to the same weights",
        "training/test_run_folder.py::test_killed_at_ten_random_moments_it_ends_in_the_same_weights",
        faults_a_test=10,
    ),
    _in_tests(
        "training: Ctrl-C; resumed to the same weights",
        "training/test_run_folder.py::test_interrupted_and_run_again_it_ends_in_the_same_weights",
    ),
    Fault("training: disk full while checkpointing; resumed to the same weights", train_faults.fill_disks, 0, 5),
    Fault(
        "predict: kill -9 of the parent; resumed to the same bytes",
        partial(predict_faults.kill_predictions, "parent"),
        0,
        20,
    ),
    Fault(
        "predict: kill -9 of the whole group; resumed to the same bytes",
        partial(predict_faults.kill_predictions, "group"),
        0,
        20,
    ),
    Fault(
        "predict: kill -9 of a worker; ends by itself in the same bytes",
        partial(predict_faults.kill_predictions, "worker"),
        0,
        20,
    ),
    Fault(
        "predict: Ctrl-C; stops within 5 s, resumed to the same bytes",
        partial(predict_faults.interrupt_predictions, signal.SIGINT),
        1,
        10,
    ),
    Fault(
        "predict: SIGTERM; stops within 5 s, resumed to the same bytes",
        partial(predict_faults.interrupt_predictions, signal.SIGTERM),
        0,
        10,
    ),
    Fault("predict: disk full on the way; told, resumed to the same bytes", predict_faults.fill_disks, 0, 10),
    Fault(
        "predict: media mutated beside good ones; each told, the good ones unharmed", predict_faults.break_media, 8, 100
    ),
    _in_tests(
        "training: the file changes or disappears; named",
        *(
            f"training/test_train.py::test_{name}"
            for name in (
                "a_file_that_changes_while_training_is_noticed_and_named",
                "a_file_that_disappears_while_training_is_named_and_the_run_ends_as_if_it_were_there",
            )
        ),
    ),
)
