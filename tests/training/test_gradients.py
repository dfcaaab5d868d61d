"""Steps on several ranks: those of one process, also when one of them runs out of memory or has no clip."""

import math

import numpy as np
import pytest
import torch
from rank_processes import RankProcesses
from small_steps import batch, fail, make_stepper, weights

from egoaudio.training.losses import Loss

NUM_STEPS = 3
# What is the same in all ranks: the steps of the model, batches, and where it fails.
CASES = {
    "cnn": {"name": "cnn"},
    "ast with dropout and patchout": {"name": "ast", "dropout": 0.4, "patchout": 0.3},
    "class weights, one of them 0": {"name": "cnn", "label_mode": "single", "weights": [0.2, 3.0, 1.0, 0.0, 0.7]},
    "a clipped gradient": {"name": "cnn", "clip_gradient": 0.01},
    "fewer clips than ranks": {"name": "ast", "num_clips": 1, "dropout": 0.4},
    "as many clips as two of three ranks": {"name": "cnn", "num_clips": 2},
    "float16 with a scaler": {"name": "cnn", "float16": True},
    "forward": {"name": "cnn", "fails": "forward"},
    "backward": {"name": "ast", "dropout": 0.3, "fails": "backward"},
    "optimizer": {"name": "cnn", "fails": "optimizer"},
    "optimizer of all": {"name": "cnn", "fails": "optimizer", "where": (0, 1, 2, 3)},
}


def steps(
    group, name, num_clips=64, label_mode="multi", weights_=None, float16=False, fails=None, where=(1,), **options
):
    """Return losses, weights, the size of a micro-batch, and what is logged after some steps on shares of batches."""
    lines = []
    loss = Loss(label_mode, weights_)
    amp = {"amp_dtype": torch.float16, "scaler": torch.amp.GradScaler("cpu")} if float16 else {}
    stepper = make_stepper(name, loss, group=group, micro_batch_size=64, log=lines.append, **amp, **options)
    if fails and group.rank in where and group.size > 1:
        fail(stepper, fails)
    losses = []
    for seed in range(NUM_STEPS):
        features, labels = batch(num_clips, seed)
        own = group.share(num_clips)
        losses.append(stepper.step(features[own.start : own.stop], labels[own.start : own.stop]))
    return losses, weights(stepper).tolist(), stepper.micro_batch_size, lines


def all_steps(group):
    found = {}
    for case, options in CASES.items():
        options = {"weights_" if name == "weights" else name: value for name, value in options.items()}
        found[case] = steps(group, **options)
    return found


@pytest.fixture(scope="module")
def processes():
    with RankProcesses() as started:
        yield started


@pytest.fixture(scope="module")
def alone(processes):
    return processes.run(1, all_steps)[0]


@pytest.fixture(scope="module", params=[2, 3, 4])
def together(request, processes):
    return processes.run(request.param, all_steps)


@pytest.mark.parametrize("case", CASES)
def test_steps_of_ranks_are_those_of_one_process(alone, together, case):
    losses, expected, *_ = alone[case]
    for rank in together:
        assert rank[case][0] == pytest.approx(losses, rel=1e-3 if CASES[case].get("float16") else 1e-5)
        assert rank[case][1] == together[0][case][1], "the weights differ between the ranks"
    difference = (torch.tensor(together[0][case][1]) - torch.tensor(expected)).abs()
    if CASES[case].get("float16"):  # where a gradient is nearly 0, Adam steps by its sign, which rounding decides
        assert difference.mean() < 1e-3  # of 3 steps of 1e-2
    else:
        assert difference.max() < 1e-3


@pytest.mark.parametrize("case", ["forward", "backward", "optimizer"])
def test_all_ranks_halve_when_one_runs_out_of_memory_and_none_for_the_optimiser(together, case):
    whole = math.ceil(64 / len(together))
    for rank in together:
        size, lines = rank[case][2:]
        assert size == (64 if case == "optimizer" else math.ceil(whole / 2))
        assert len(lines) == (case != "optimizer")


def _batch_norm(group):
    """Return what each layer's statistics are after each step, and the mean and variance of what this rank gave it."""
    stepper = make_stepper("cnn-small", group=group, micro_batch_size=64)
    layers = [layer for layer in stepper.model.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    given, found = [], []
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda _, inputs: given[-1].append(moments(inputs[0].transpose(0, 1).flatten(1)))
        )
    for seed, num_clips in enumerate((9, 1)):
        features, labels = batch(num_clips, seed)
        own = group.share(num_clips)
        given.append([])
        stepper.step(features[own.start : own.stop], labels[own.start : own.stop])
        found.append([(layer.running_mean.tolist(), layer.running_var.tolist()) for layer in layers])
    return given, found, layers[0].momentum


def moments(values):
    return values.mean(dim=1).tolist(), values.var(dim=1).tolist()


def test_statistics_of_batch_norm_are_the_mean_of_the_ranks_by_their_shares(processes):
    ranks = processes.run(2, _batch_norm)
    (first, found, momentum), (second, its, _) = ranks
    assert found == its
    layers = range(len(first[0]))
    assert len(layers) > 1 and second[1] == []  # no share of one clip
    for layer in layers:
        for kind, before in enumerate((0.0, 1.0)):  # mean, variance
            ours, theirs = np.array(first[0][layer][kind]), np.array(second[0][layer][kind])
            expected = (1 - momentum) * before + momentum * (5 * ours + 4 * theirs) / 9
            assert found[0][layer][kind] == pytest.approx(expected, rel=1e-4, abs=1e-6)
            expected = (1 - momentum) * expected + momentum * np.array(first[1][layer][kind])
            assert found[1][layer][kind] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def _never_fits(group):
    stepper = make_stepper(group=group, micro_batch_size=2)
    if group.rank == 1:
        fail(stepper, "forward", times=100)
    features, labels = batch(4)
    stepper.step(features[2 * group.rank :][:2], labels[2 * group.rank :][:2])


def test_a_clip_that_does_not_fit_into_one_rank_ends_all_with_its_error(processes):
    for rank, (kind, text, told) in enumerate(processes.run(2, _never_fits)):
        assert kind == "TrainingError" and told == (rank == 1)
        assert "1 of 2 clips at a time with activation checkpointing" in text
        assert "The last error was: CUDA out of memory" in text


def _optimizer_that_fails(group):
    stepper = make_stepper(group=group)
    if group.rank == 1:
        fail(stepper, "optimizer", times=100)
    for _ in range(2):
        stepper.step(*batch(4))


def test_an_optimiser_that_fails_twice_in_one_rank_ends_all(processes):
    first, second = processes.run(2, _optimizer_that_fails)
    assert second[0] == "TrainingError" and "while the optimiser was changing the weights (CUDA out of" in second[1]
    assert first == ("GroupError", second[1], True)


def _parameters_without_gradient(group):
    stepper = make_stepper(group=group, micro_batch_size=64)
    unused = torch.nn.Parameter(torch.ones(3))
    stepper.optimizer.add_param_group({"params": [unused], "weight_decay": 0.5})
    features, labels = batch(1)
    own = group.share(1)
    stepper.step(features[own.start : own.stop], labels[own.start : own.stop])
    return unused.tolist(), list(stepper.model.parameters())[-1].tolist()


def test_a_weight_without_a_gradient_in_any_rank_is_left_alone(processes):
    expected = processes.run(1, _parameters_without_gradient)[0]
    for unused, last in processes.run(2, _parameters_without_gradient):
        assert unused == expected[0]
        assert last == pytest.approx(expected[1], abs=1e-6)


def _first_size(group):
    stepper = make_stepper(group=group)
    stepper.first_size = lambda features: 8 if group.rank == 0 else 5
    features, labels = batch(24 if group.rank < 2 else 0)
    stepper.step(features, labels)
    return stepper.micro_batch_size


def test_the_first_size_is_the_smallest_that_a_rank_finds(processes):
    assert processes.run(3, _first_size) == [5, 5, 5]


def _precision(group):
    lines = []
    stepper = make_stepper(group=group, micro_batch_size=8, amp_dtype=torch.bfloat16, log=lines.append)
    stepper.times_precisions = True
    stepper.step(*batch(8))
    return stepper.amp_dtype, lines


def test_all_ranks_choose_the_same_precision(processes):
    first, second = processes.run(2, _precision)
    assert first == second and len(first[1]) == 1
