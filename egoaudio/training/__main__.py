"""The command ``egoaudio-train`` as one of several ranks.

``torchrun --nproc-per-node 4 -m egoaudio.training ...`` on one machine; in a Slurm job, on any number of machines,
``srun python -m egoaudio.training ...``, whose tasks are the ranks.
"""

import os

from egoaudio.cli import train
from egoaudio.system.launch import from_slurm

if __name__ == "__main__":
    os.environ |= from_slurm(os.environ)
    train()
