"""Ranks: what they exchange, and what becomes of the others when one fails or dies."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from rank_processes import RankProcesses
from torch import distributed

from egoaudio.data import ranks
from egoaudio.data.ranks import ALONE, Group, joined
from egoaudio.errors import ConfigurationError, TrainingError
from egoaudio.system import signals
from egoaudio.system.launch import Launch, from_slurm, launched


@pytest.fixture(scope="module")
def processes():
    with RankProcesses() as started:
        yield started


@pytest.mark.parametrize("num_items, size", [(0, 2), (1, 3), (7, 3), (64, 4), (2, 5)])
def test_shares_are_contiguous_complete_and_of_equal_size_up_to_one(num_items, size):
    shares = [Group(rank, size).share(num_items) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(num_items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert len(shares[0]) == max(map(len, shares))


def test_a_process_on_its_own_exchanges_nothing():
    tensor = torch.ones(3)
    ALONE.add(tensor)
    assert torch.equal(tensor, torch.ones(3))
    assert ALONE.numbers(1, 2.5).tolist() == [[1, 2.5]]
    assert ALONE.objects("x") == ["x"] and ALONE.in_turn([1, 2]) == [1, 2] and ALONE.from_first(lambda: 3) == 3
    ALONE.require_same({"x": 1})
    with joined() as group:
        assert group == ALONE


def _exchange(group):
    tensor = torch.arange(3.0) + group.rank
    group.add(tensor)
    batches = list(range(group.rank, 7, group.size))
    return (
        group.numbers(group.rank, 0.5).tolist(),
        group.objects("x" * group.rank),
        group.from_first(lambda: np.arange(group.rank, 5)).tolist(),
        tensor.tolist(),
        group.in_turn(batches),
        group.objects(None),
    )


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_get_what_each_gives(processes, size):
    expected = (
        [[rank, 0.5] for rank in range(size)],
        ["x" * rank for rank in range(size)],
        [0, 1, 2, 3, 4],
        [sum(value + rank for rank in range(size)) for value in range(3)],
        list(range(7)),
        [None] * size,
    )
    assert processes.run(size, _exchange) == [expected] * size


def _two_groups():
    results = []
    for _ in range(2):
        with joined("cpu") as group:
            results.append(group.objects(group.rank))
    return results


def test_a_program_may_make_one_group_after_another(processes):
    assert processes.run(2, _two_groups, alone=True) == [[[0, 1], [0, 1]]] * 2


WAITING = {
    "numbers": lambda group: group.numbers(0),
    "objects": lambda group: group.objects("y"),
    "first": lambda group: group.from_first(lambda: "z"),
}


def _fail(group, failing, exchange, error):
    if group.rank in failing:
        raise error
    WAITING[exchange](group)


@pytest.mark.parametrize("exchange", WAITING)
@pytest.mark.parametrize("failing", [(0,), (1,), (1, 2)])
def test_a_rank_that_fails_ends_the_others_whatever_they_wait_for_and_one_tells_why(processes, failing, exchange):
    found = processes.run(3, _fail, failing, exchange, ConfigurationError("the disk is full"))
    message = "the disk is full" if failing[0] == 0 else f"rank {failing[0]}: the disk is full"
    for rank, (kind, text, told) in enumerate(found):
        assert kind == ("ConfigurationError" if rank in failing else "GroupError")
        assert text == message if rank == failing[0] or rank not in failing else "the disk is full"
        assert told == (rank != failing[0])


def test_an_error_that_is_a_defect_keeps_its_type_where_it_is_raised(processes):
    found = processes.run(2, _fail, (1,), "numbers", KeyError("x"))
    assert found[1][0] == "KeyError" and found[0] == ("GroupError", "rank 1: KeyError: 'x'", True)


def _stop(stopping, exchange, in_the_exchange=False):
    """Get SIGTERM in some ranks; return what was raised, and how many exchanges were done before."""
    done = 0
    try:
        with signals.listening(), joined("cpu") as group:
            if group.rank in stopping and not in_the_exchange:
                os.kill(os.getpid(), signal.SIGTERM)
            if in_the_exchange:
                if group.rank in stopping:
                    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
                else:
                    time.sleep(0.4)
            for _ in range(2):
                WAITING[exchange](group)
                done += 1
    except signals.Interrupted as stop:
        return stop.number, done
    finally:
        if distributed.is_initialized():  # by rank 0, as if the process had ended
            distributed.destroy_process_group()
    return None, done


@pytest.mark.parametrize("stopping", [(0,), (1, 2), (0, 1, 2)])
def test_a_rank_that_gets_a_signal_stops_the_others_by_the_same_whatever_they_wait_for(processes, stopping):
    for exchange in WAITING:
        assert processes.run(3, _stop, stopping, exchange, alone=True) == [(signal.SIGTERM, 0)] * 3


def test_a_signal_in_the_middle_of_an_exchange_waits_for_its_end(processes):
    for exchange in ("objects", "first"):
        (first, done), (second, _) = processes.run(2, _stop, (1,), exchange, True, alone=True)
        assert first == second == signal.SIGTERM and done == 1


def _die(group, how):
    group.numbers(0)
    if group.rank == 1:
        os.kill(os.getpid(), 9)
    began = time.monotonic()
    try:
        group.add(torch.ones(10**6)) if how == "add" else group.numbers(0)
    finally:
        assert time.monotonic() - began < 30


@pytest.mark.parametrize("how", ["add", "numbers"])
def test_a_rank_that_is_killed_ends_the_others(processes, how):
    first, killed, last = processes.run(3, _die, how)
    assert killed is None
    for rank, (kind, text, told) in ((0, first), (2, last)):
        assert kind == "GroupError" and not told
        assert text.startswith(f"rank {rank} of 3 had to stop, as another one has ended")
        assert "The same command resumes" in text


def _require_same(group, facts):
    group.require_same(facts[group.rank])


def test_ranks_that_would_do_different_things_are_refused(processes):
    facts = [{"a file with the plan": "abc", "epochs": 3}, {"a file with the plan": "abc", "epochs": 4}]
    first, second = processes.run(2, _require_same, facts)
    assert first[0] == "ConfigurationError" and not first[2] and second[2]
    host = os.uname().nodename
    assert first[1] == (
        f"rank 0 on {host} has epochs 3, and rank 1 on {host} has 4: start all ranks with the same arguments, files "
        "and version"
    )
    assert processes.run(2, _require_same, [facts[0]] * 2) == [None, None]


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, Launch()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Launch()),
        ({"WORLD_SIZE": "8"}, Launch()),  # a container's that knows nothing of ranks
        ({"RANK": "2", "WORLD_SIZE": "3"}, Launch(2, 3, 2, 3)),
        ({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, Launch(2, 4, 0, 2)),
    ],
)
def test_the_environment_says_how_a_process_was_started(monkeypatch, environment, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected


STEP = {  # what srun sets, of the second task on the third of three nodes
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "1,2(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
}


@pytest.mark.parametrize(
    "nodes, address",
    [
        ("gpu[07-09]", "gpu07"),
        ("gpu[3,7-9],big1", "gpu3"),
        ("localhost", "localhost"),
        ("node-a,node-b", "node-a"),
        ("rack1n[01-02]-ib.lab", "rack1n01-ib.lab"),
    ],
)
def test_a_task_of_srun_is_a_rank_and_finds_the_first_on_the_first_node(monkeypatch, nodes, address):
    found = from_slurm(STEP | {"SLURM_STEP_NODELIST": nodes})
    assert found["MASTER_ADDR"] == address and 20000 <= int(found["MASTER_PORT"]) < 30000
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    assert launched() == Launch(4, 5, 1, 2)


def test_what_is_no_task_beside_others_or_a_rank_already_stays_as_it_is():
    assert from_slurm({}) == {}
    assert from_slurm({"SLURM_NTASKS": "5", "SLURM_PROCID": "0"}) == {}  # an sbatch script
    assert from_slurm(STEP | {"SLURM_STEP_NUM_TASKS": "1"}) == {}  # srun --pty
    assert from_slurm(STEP | {"RANK": "3"}) == {}  # torchrun under srun
    found = from_slurm(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "99"})
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "99")
    assert from_slurm(STEP | {"SLURM_STEP_ID": "1"})["MASTER_PORT"] != from_slurm(STEP)["MASTER_PORT"]


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"RANK": "x"}, "RANK='x' in the environment: expected a number"),
        ({"RANK": "2"}, "RANK=2 of WORLD_SIZE=2.*expected ranks from 0"),
        ({"RANK": "1"}, "RANK and WORLD_SIZE are set, and MASTER_ADDR and MASTER_PORT is not: start.*torchrun, or"),
    ],
)
def test_an_environment_that_says_half_of_it_is_refused(monkeypatch, environment, words):
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=words), joined():
        pass


def test_ranks_that_cannot_be_reached_are_named(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "_MEETING", ranks.datetime.timedelta(seconds=1))
        for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
            patch.setenv(name, str(value))
        with pytest.raises(TrainingError, match="rank 1 of 2 cannot reach the others at 127.0.0.1:1 .*: check"):
            with joined("cpu"):
                pass


@pytest.mark.parametrize(
    "group, name, expected",
    [
        (Group(), "cuda:3", "cuda:3"),
        (Group(1, 2, 1, 2), "cpu", "cpu"),
        (Group(1, 2, 1, 2), "cuda", "cuda:1"),
        (Group(1, 2, 1, 2), None, "cuda:1"),
        (Group(3, 4, 0, 1), "cuda:2", "cuda:2"),  # the only one on its machine
    ],
)
def test_each_rank_has_a_gpu_of_its_own(monkeypatch, group, name, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert group.device_name(name) == expected


@pytest.mark.parametrize(
    "name, words",
    [("cuda:0", "`device='cuda:0'` is one GPU, for 4 ranks"), ("cuda", "4 ranks were started on .*, which has 2")],
)
def test_two_ranks_on_one_gpu_are_refused(monkeypatch, name, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigurationError, match=words):
        Group(3, 4, 3, 4).device_name(name)
