"""Damage bytes in the ways that files are damaged: cut, flipped, swapped, repeated and zeroed, reproducibly.

For the tests of media and CSVs, and for the fault harness: ``mutate(data, seed)`` gives the same damage for the same
seed, and ``KINDS`` names what can happen; ``mutate_text`` damages a CSV as a careless editor or an enemy would.
"""

import random


def _cut(data, random_source):
    return data[: random_source.randrange(len(data))]


def _flip(data, random_source):
    damaged = bytearray(data)
    for _ in range(random_source.choice((1, 4, 32, 256))):
        damaged[random_source.randrange(len(data))] ^= 1 << random_source.randrange(8)
    return bytes(damaged)


def _flip_head(data, random_source):
    """Headers are at the head, or (MP4) the tail; a flip there does most."""
    damaged = bytearray(data)
    near = min(len(data), 2048)
    for _ in range(random_source.choice((1, 2, 8))):
        place = random_source.randrange(near)
        damaged[place if random_source.random() < 0.5 else len(data) - 1 - place] = random_source.randrange(256)
    return bytes(damaged)


def _swap(data, random_source):
    length = random_source.choice((16, 188, 1024, max(1, len(data) // 8)))
    length = min(length, max(1, len(data) // 2))
    first, second = sorted(random_source.sample(range(0, max(2, len(data) - length)), 2))
    second = max(second, first + length)
    return (
        data[:first]
        + data[second : second + length]
        + data[first + length : second]
        + data[first : first + length]
        + data[second + length :]
    )


def _repeat(data, random_source):
    start = random_source.randrange(len(data))
    span = data[start : start + random_source.choice((8, 188, 4096, len(data)))]
    return data[:start] + span * random_source.choice((2, 5)) + data[start + len(span) :]


def _zero(data, random_source):
    start = random_source.randrange(len(data))
    length = min(random_source.choice((4, 64, 4096, len(data))), len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def _drop(data, random_source):
    start = random_source.randrange(len(data))
    return data[:start] + data[start + random_source.choice((1, 13, 1024, 65536)) :]


_KINDS = {
    "cut": _cut,
    "flip": _flip,
    "flip_head": _flip_head,
    "swap": _swap,
    "repeat": _repeat,
    "zero": _zero,
    "drop": _drop,
}

KINDS = tuple(_KINDS)


def mutate(data, seed, kind=None):
    """Return ``data`` damaged.

    Parameters
    ----------
    data : bytes
        At least two bytes.
    seed : int
        The same seed damages the same data in the same way.
    kind : str, optional
        One of ``KINDS``; by turns, with ``seed``, if not given.
    """
    return _KINDS[kind or KINDS[seed % len(KINDS)]](data, random.Random(seed))


_INSERTIONS = [
    b",",
    b";",
    b'"',
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"../",
    b"nan",
    b"-",
    b"1e300",
    b" " * 300,
    b"x" * 10_000,
    "\u0663".encode(),
]


def mutate_text(data, seed):
    """Return the bytes of a CSV with one to four insertions, deletions, replacements or cuts, decided by the seed."""
    damaged, random_source = bytearray(data), random.Random(seed)
    for _ in range(random_source.randint(1, 4)):
        place = random_source.randrange(len(damaged) + 1)
        action = random_source.randrange(4)
        if action == 0:
            damaged[place:place] = random_source.choice(_INSERTIONS)
        elif action == 1:
            del damaged[place : place + random_source.randint(1, 40)]
        elif action == 2:
            damaged[place : place + 1] = bytes([random_source.randrange(256)])
        else:
            del damaged[place:]
    return bytes(damaged)
