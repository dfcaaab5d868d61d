"""``torchrun --nproc-per-node 4 -m egoaudio.training ...``: the command ``egoaudio-train``, as one of several ranks."""

from egoaudio.cli import train

if __name__ == "__main__":
    train()
