"""The step: one batch whatever the micro-batch, and the same training whether or not memory runs out."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import limited_step
import pytest
import torch
from small_steps import (
    OUT_OF_MEMORY,
    batch,
    catch_gradient,
    fail,
    losses_and_weights,
    make_stepper,
    weights,
)
from torch import nn

from egoaudio.errors import TrainingError
from egoaudio.training.losses import Loss

# ----------------------------------------------------------------------------------------------- one batch, any
# micro-batch


@pytest.mark.parametrize("name, dropout", [("cnn", 0.0), ("ast", 0.0), ("ast", 0.4)])
@pytest.mark.parametrize("label_mode", ["multi", "single"])
def test_gradient_does_not_depend_on_the_micro_batch(name, dropout, label_mode):
    loss = Loss(label_mode, class_weights=[0.2, 3.0, 1.0, 0.0, 0.7])
    whole = catch_gradient(make_stepper(name, loss, dropout=dropout, micro_batch_size=64))
    for size in (16, 5, 1):
        sliced = catch_gradient(make_stepper(name, loss, dropout=dropout, micro_batch_size=size))
        assert float((sliced - whole).norm() / whole.norm()) < 1e-5


def test_step_is_the_plain_step():
    stepper = make_stepper(micro_batch_size=7)
    plain = make_stepper()
    for seed in range(3):
        features, labels = batch(seed=seed)
        loss = nn.functional.binary_cross_entropy_with_logits(plain.model(features), labels)
        plain.optimizer.zero_grad()
        loss.backward()
        plain.optimizer.step()
        assert stepper.step(features, labels) == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(weights(stepper), weights(plain), rtol=1e-4, atol=1e-5)


def test_gradient_is_clipped_after_the_last_micro_batch():
    gradient = catch_gradient(make_stepper(micro_batch_size=5, clip_gradient=0.01))
    assert float(gradient.norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_leaves_the_weights_alone():
    stepper = make_stepper()
    before = weights(stepper)
    features, labels = batch()
    features[3] = math.nan
    assert math.isnan(stepper.step(features, labels))
    assert torch.equal(weights(stepper), before)


# ----------------------------------------------------------------------------------------------- memory that runs out


@pytest.mark.parametrize("name, dropout", [("cnn", 0.0), ("ast", 0.3)])
@pytest.mark.parametrize("where", ["forward", "backward", "optimizer"])
def test_out_of_memory_anywhere_gives_the_same_training(name, dropout, where):
    expected, expected_weights, _ = losses_and_weights(make_stepper(name, dropout=dropout, micro_batch_size=64))
    stepper = make_stepper(name, dropout=dropout, micro_batch_size=64)
    left = fail(stepper, where, times=2)
    losses, trained, _ = losses_and_weights(stepper)
    assert left == [0]
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(trained, expected_weights, rtol=1e-3, atol=1e-4)
    assert int(next(iter(stepper.optimizer.state.values()))["step"]) == 4


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: f"{type(error).__name__}-{str(error)[:24]}")
def test_every_kind_of_out_of_memory_halves(error):
    stepper = make_stepper(micro_batch_size=64)
    fail(stepper, "forward", times=100, error=error, limit=20)
    stepper.step(*batch())
    assert stepper.micro_batch_size == 16


def test_other_errors_pass():
    stepper = make_stepper()
    fail(stepper, "forward", error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        stepper.step(*batch())


def test_the_size_found_is_logged_in_one_line_and_kept():
    lines = []
    stepper = make_stepper(micro_batch_size=64, log=lines.append)
    left = fail(stepper, "forward", times=100, limit=20)
    for seed in range(3):
        stepper.step(*batch(seed=seed))
    assert lines == [
        "micro-batch: 16 of 64 clips at a time, as memory ran out with 64 of 64 clips at a time, then 32 of 64 clips "
        "at a time"
    ]
    assert left == [98]
    resumed = make_stepper(micro_batch_size=None)
    resumed.load_state_dict(json.loads(json.dumps(stepper.state_dict())))
    left = fail(resumed, "forward", times=100, limit=20)
    resumed.step(*batch())
    assert left == [100]


@pytest.mark.parametrize("where", ["backward", "optimizer"])
def test_a_failed_attempt_leaves_no_trace_in_batch_norm_or_random_numbers(where):
    outcomes = []
    for fails in (False, True):
        stepper = make_stepper("cnn-small", dropout=0.5, micro_batch_size=2 if fails else 1)
        stepper._prepare(batch(2)[0])
        if fails:
            fail(stepper, where)
        stepper.step(*batch(2))
        assert stepper.micro_batch_size == 1
        outcomes.append((torch.get_rng_state(), *stepper.model.state_dict().values()))
    for failed, smooth in zip(*outcomes, strict=True):
        assert torch.equal(failed, smooth)


def test_one_clip_that_does_not_fit_turns_on_checkpointing():
    lines = []
    stepper = make_stepper(micro_batch_size=2, log=lines.append)
    fail(stepper, "forward", times=2)
    stepper.step(*batch(2))
    assert stepper.state_dict() == {"micro_batch_size": 1, "activation_checkpointing": True, "amp_dtype": None}
    assert lines[0].startswith(
        "micro-batch: 1 of 2 clips at a time with activation checkpointing, as memory ran out with 2 of 2"
    )
    resumed = make_stepper()
    resumed.load_state_dict(stepper.state_dict())
    assert resumed.model.activation_checkpointing


def test_the_error_says_what_was_tried_and_what_would_help():
    stepper = make_stepper(micro_batch_size=4)
    fail(stepper, "forward", times=100)
    before = weights(stepper)
    with pytest.raises(TrainingError) as caught:
        stepper.step(*batch(4))
    words = str(caught.value)
    assert (
        "tried 4 of 4 clips at a time, then 2 of 4 clips at a time, then 1 of 4 clips at a time, "
        "then 1 of 4 clips at a time with activation checkpointing" in words
    )
    assert (
        "MB are free on cpu" in words
        and "a clip is 8 x 20" in words
        and "CUDA out of memory" in words
        and "`model='cnn-small'`" in words
    )
    assert torch.equal(weights(stepper), before)


def test_the_optimisers_state_is_there_before_the_first_forward_pass_and_changes_nothing():
    stepper, seen = make_stepper(), []
    before = weights(stepper)
    states = stepper.optimizer.state
    stepper.model.register_forward_pre_hook(
        lambda *_: seen.append([value.clone() for state in states.values() for value in state.values()])
    )
    torch.manual_seed(0)
    stepper._prepare(batch()[0])
    assert torch.equal(weights(stepper), before)
    stepper.step(*batch())
    assert len(seen[-1]) == 3 * len(list(stepper.model.parameters()))  # step, two moments
    assert all(float(value.abs().sum()) == 0 for value in seen[-1])


def test_an_optimiser_that_fails_half_way_stops_the_run():
    stepper = make_stepper(micro_batch_size=64)
    stepper.step(*batch())
    step = stepper.optimizer.step
    stepper.optimizer.step = lambda: (step(), (_ for _ in ()).throw(OUT_OF_MEMORY[0]))
    with pytest.raises(
        TrainingError, match="half-way between two steps and must not be used, but the last checkpoint is intact"
    ):
        stepper.step(*batch())


def test_scaler_survives_running_out_of_memory():
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    expected, expected_weights, _ = losses_and_weights(make_stepper(micro_batch_size=64, clip_gradient=1.0))
    stepper = make_stepper(micro_batch_size=64, clip_gradient=1.0, scaler=scaler)
    stepper.step(*batch(seed=0))
    fail(stepper, "optimizer", times=1)  # after unscale_, which may be called once a step
    losses = [stepper.step(*batch(seed=seed)) for seed in (1, 2, 3)]
    assert losses == pytest.approx(expected[1:], rel=1e-4)
    torch.testing.assert_close(weights(stepper), expected_weights, rtol=1e-3, atol=1e-4)
    assert stepper.micro_batch_size == 32 and stepper.scaler.get_scale() == 256.0


# ----------------------------------------------------------------------------------------------- a real limit


def _train_limited(limit_mb, micro_batch_size):
    """Return the result of a process that may take this many MB more."""
    command = [sys.executable, limited_step.__file__, json.dumps([limit_mb, micro_batch_size])]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_real_memory_limit_changes_the_micro_batch_and_nothing_else():
    """A child process may take 75 MB more, far less than the whole batch: one run tries it, one plans."""
    free = limited_step.train(limited_step.make_batches(), 64)  # no limit: no process of its own
    tried, planned = _train_limited(75, 64), _train_limited(75, None)
    assert free["size"] == 64 and free["lines"] == []
    assert tried["size"] < 64 and "as memory ran out with 64 of 64" in tried["lines"][0]
    assert planned["size"] < 64 and "MB that are free" in planned["lines"][0]
    for limited in (tried, planned):
        assert limited["steps"] == free["steps"] == 2
        assert limited["losses"] == pytest.approx(free["losses"], rel=1e-4)
