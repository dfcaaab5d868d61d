"""Random streams that are named by what they are for: the same seed gives the same numbers whatever else was drawn.

All randomness of a run, besides torch's own, comes from ``generator(seed, purpose, ...)``.
"""

import numpy as np

# Purposes of random streams: a stream is named by its purpose and whatever numbers follow (epoch, batch).
SPLIT, ORDER, AUGMENTATION = range(3)


def generator(seed, *purpose):
    """Return a random generator that depends on the seed and the purpose (integers) alone."""
    # A spawn key, not a list of entropy: SeedSequence pads with zeros, so [1] and [1, 0] would be one stream.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=purpose)))
