"""egoaudio: from egocentric videos with action annotations to trained audio classifiers.

``egoaudio.open(path)`` reads a file that ``egoaudio-build`` wrote. Importing the package loads nothing else: a
command's ``--help`` and a build worker pay only for the rooms they enter.
"""

from egoaudio._version import __version__

__all__ = ["__version__", "open"]


def __getattr__(name):
    """Load the reader when ``egoaudio.open`` is first asked for (PEP 562): h5py and numpy cost 0.2 s."""
    if name == "open":
        from egoaudio.hdf5.reader import open

        return open
    raise AttributeError(f"module 'egoaudio' has no attribute {name!r}")
