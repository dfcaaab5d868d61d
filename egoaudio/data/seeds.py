"""Random streams named by their purpose: the same seed gives the same numbers, whatever else has been drawn.

All randomness of a run, apart from torch's own, comes from ``generator(seed, purpose, ...)``.
"""

import numpy as np

# The purposes of random streams; a stream is named by its purpose and the numbers that follow it (epoch, batch).
SPLIT, ORDER, AUGMENTATION = range(3)


def generator(seed: int, *purpose: int) -> np.random.Generator:
    """Return a random generator that depends only on the seed and the purpose."""
    # A spawn key, not a list of entropy: SeedSequence pads with zeros, so [1] and [1, 0] would be one stream.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=purpose)))
