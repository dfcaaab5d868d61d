"""The learning rate at each step of a run."""

import math

import pytest
from small_runs import make_config

from egoaudio.training.optimizer import learning_rate


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
    ],
)
def test_the_learning_rate_rises_in_a_line_then_follows_the_schedule(schedule, expected):
    options = make_config(schedule=schedule, warmup_fraction=0.5, learning_rate=2.0).optimization
    assert [learning_rate(step, 8, options) / 2 for step in range(8)] == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_any_share_of_warm_up_gives_a_learning_rate(warmup):
    options = make_config(warmup_fraction=warmup, learning_rate=1.0).optimization
    rates = [learning_rate(step, 5, options) for step in range(5)]
    assert all(0 < rate <= 1 for rate in rates)
