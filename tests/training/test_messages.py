"""The messages of a run that say what to change."""

import re
import types

import pytest
from small_runs import make_config

from egoaudio.training.messages import describe_wait


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"is_mapped": lambda feature: False, "num_bytes": 1}, r"h5repack -f spectrogram:NONE.*`loader_workers=2`"),
        ({"is_mapped": lambda feature: True, "num_bytes": 1 << 50}, "`shuffle=.block.`.*`dtype=.float16.`"),
        ({"is_mapped": lambda feature: True, "num_bytes": 1}, "the first epoch reads from the disk"),
    ],
)
def test_what_to_change_when_data_is_slow_depends_on_the_file(facts, words):
    assert re.search(words, describe_wait(0.5, types.SimpleNamespace(**facts), "spectrogram", make_config().data))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"computed on the fly.*`features=\('spectrogram',\)`"),
        ({"filter_db": 3.0}, r"the sound is changed \(`filter_db`\)"),
        ({"filter_db": 3.0, "mix_snr_db": (5.0,)}, r"the sound is changed \(`mix_snr_db` and `filter_db`\)"),
    ],
)
def test_what_is_computed_on_the_fly_is_named(options, words):
    config = make_config(on_the_fly=True, **options).data
    assert re.search(words, describe_wait(0.5, types.SimpleNamespace(), "spectrogram", config))
