"""Random streams: each is named by its seed and its purpose."""

from egoaudio.data import seeds


def test_random_streams_differ_by_seed_and_purpose_alone():
    draws = {
        key: seeds.generator(*key).integers(1 << 60) for key in [(0, 1), (0, 1, 0), (0, 1, 1), (1, 1), (0, 0), (1, 0)]
    }
    assert len(set(draws.values())) == len(draws)
    assert seeds.generator(0, 1, 1).integers(1 << 60) == draws[0, 1, 1]
