"""Random batches of the same clips: out of our file, and out of what a user would pick instead.

Each rival is used as its documentation says for speed. In: an egoaudio file and a folder. Out: for every rival a
function that writes the clips as it wants them, and one that opens them and returns ``epoch``: each call goes once over
all clips, in batches of 256, as float32 tensors ``(features, labels)``. No rival normalises, joins or changes anything,
except the rows that say so.

How random each order is: a permutation of all clips with h5py, datasets, ``numpy.take`` and ours. webdataset streams
shard after shard and can only shuffle those and what its buffer of 1,000 clips holds. litdata puts chunks of 64 MB (500
clips) in a random order and their clips as well, so a batch comes out of one or two chunks.

What was tried and is not shown, being slower: with h5py a contiguous data set instead of a clip a chunk (the same
within 5 %), with webdataset ``.npy`` instead of its own ``.ten``, with litdata its default ``batch_decode="auto"``.
"""

import multiprocessing
from pathlib import Path

import h5py
import numpy as np
import torch

from egoaudio.config.train import DataConfig
from egoaudio.data.dataset import ClipDataset
from egoaudio.data.loader import Loader

BATCH_SIZE = 256
FEATURE = "spectrogram"
SHUFFLE_BUFFER = 1000  # what webdataset's README advises
SHARD_CLIPS = 256  # a shard for each of two workers even of the tiniest size
DEVIATION = 2.0  # that one row divides by: exact, so that it can be checked


def write_nothing(path, folder):
    """Leave it at the egoaudio file."""


# ------------------------------------------------------------------------------------------------------------- ours


def open_ours(path, folder, normalization=(0.0, 1.0), context_clips=0):
    """Read with the loader that the trainer uses."""
    dataset = ClipDataset(path, FEATURE, normalization=normalization, context_clips=context_clips)
    loader = Loader(dataset, BATCH_SIZE, DataConfig(), seed=0, training=True)
    epochs = iter(range(1 << 30))

    def epoch():
        for batch in loader.epoch(next(epochs)):
            yield batch.features, batch.labels

    return epoch


def open_ours_normalized(path, folder):
    return open_ours(path, folder, (0.0, DEVIATION))  # subtracts the 0 all the same


def open_ours_with_context(path, folder):
    """Read each clip with one neighbour on each side: three times the bytes."""
    return open_ours(path, folder, context_clips=1)


# ------------------------------------------------------------------------------------------------------ from memory


def open_memory(path, folder):
    """Take rows of an array in memory into a ready buffer: the floor."""
    features, labels = _in_memory(path)
    buffer, generator = np.empty((BATCH_SIZE, *features.shape[1:]), np.float32), np.random.default_rng(0)

    def epoch():
        order = generator.permutation(len(features))
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            np.take(
                features, rows, axis=0, out=buffer[: len(rows)], mode="clip"
            )  # the default mode takes twice the time
            yield torch.from_numpy(buffer[: len(rows)]), torch.from_numpy(np.take(labels, rows, axis=0))

    return epoch


def _in_memory(path):
    """Return features and labels, float32."""
    with h5py.File(path) as file:
        return file[FEATURE][:], file["labels"][:].astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- h5py


class H5pyDataset(torch.utils.data.Dataset):
    """A clip a call, as people write it: opened once in each process, labels in memory."""

    def __init__(self, path):
        self.path, self.features = path, None
        with h5py.File(path) as file:
            self.labels = torch.from_numpy(file["labels"][:].astype(np.float32))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, item):
        if self.features is None:
            self.features = h5py.File(self.path)[FEATURE]
        return torch.from_numpy(self.features[item]), self.labels[item]


def open_h5py(path, folder, workers=0):
    loader = torch.utils.data.DataLoader(
        H5pyDataset(path), BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: loader


# ------------------------------------------------------------------------------------------------------- webdataset


def write_webdataset(path, folder):
    """Write shards of tensors in its own binary form, ``.ten``."""
    import webdataset

    with (
        h5py.File(path) as file,
        webdataset.ShardWriter(str(folder / "%04d.tar"), maxcount=SHARD_CLIPS, verbose=0) as writer,
    ):
        labels = file["labels"][:].astype(np.float32)
        for row in range(len(labels)):
            writer.write({"__key__": f"{row:08d}", "features.ten": [file[FEATURE][row]], "labels.ten": [labels[row]]})


def open_webdataset(path, folder, workers=0):
    """Stream shards, batched in the workers."""
    import webdataset

    shards = [str(shard) for shard in sorted(folder.glob("*.tar"))]
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards))
        .shuffle(SHUFFLE_BUFFER)
        .decode()
        .to_tuple("features.ten", "labels.ten")
    )
    dataset = dataset.map(_first_of_each).batched(BATCH_SIZE)
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    return lambda: loader


def _first_of_each(sample):
    return tuple(tensors[0] for tensors in sample)


# ---------------------------------------------------------------------------------------------------------- litdata


def write_litdata(path, folder):
    """Optimise into chunks of 64 MB, its default."""
    import litdata

    with h5py.File(path) as file:
        num_clips = len(file["labels"])
    method = multiprocessing.get_start_method(allow_none=True)
    litdata.optimize(
        _LitdataClip(path),
        list(range(num_clips)),
        str(folder),
        num_workers=1,
        chunk_bytes="64MB",
        start_method="fork",
        verbose=False,
    )
    multiprocessing.set_start_method(
        method, force=True
    )  # optimize sets it for the whole process, and so for everybody's workers


class _LitdataClip:
    """A clip by its row, for ``optimize``."""

    def __init__(self, path):
        self.path, self.file = path, None

    def __call__(self, row):
        if self.file is None:
            self.file = h5py.File(self.path)
        return {
            "features": torch.from_numpy(self.file[FEATURE][row]),
            "labels": torch.from_numpy(self.file["labels"][row].astype(np.float32)),
        }


def open_litdata(path, folder, workers=0):
    """Map the chunks; clips this large are fastest one by one."""
    import litdata

    dataset = litdata.StreamingDataset(str(folder), shuffle=True, batch_decode=0)
    return _dictionaries(
        litdata.StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers, persistent_workers=workers > 0)
    )


def _dictionaries(loader):
    def epoch():
        for batch in loader:
            yield batch["features"], batch["labels"]

    return epoch


# --------------------------------------------------------------------------------------------------------- datasets


def write_datasets(path, folder):
    """Write Arrow files with ``Array2D``, which its page on PyTorch advises against slow copies."""
    import datasets

    features, labels = _in_memory(path)
    _save_datasets(folder, features, labels, datasets.Array2D(features.shape[1:], "float32"))


def write_datasets_flat(path, folder):
    """Write rows as flat lists of fixed length, which are taken in one copy."""
    import datasets

    features, labels = _in_memory(path)
    features = features.reshape(len(features), -1)
    _save_datasets(folder, features, labels, datasets.List(datasets.Value("float32"), length=features.shape[1]))


def _save_datasets(folder, features, labels, kind):
    import datasets

    datasets.disable_progress_bars()
    kinds = datasets.Features(
        {"features": kind, "labels": datasets.List(datasets.Value("float32"), length=labels.shape[1])}
    )
    datasets.Dataset.from_dict({"features": features, "labels": labels}, features=kinds).save_to_disk(str(folder))


def open_datasets(path, folder, workers=0):
    """Read as its page on PyTorch says: tensors, through a DataLoader."""
    import datasets

    dataset = datasets.load_from_disk(str(folder)).with_format("torch")
    return _dictionaries(
        torch.utils.data.DataLoader(
            dataset, BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
    )


def open_datasets_batches(path, folder, workers=0, form="torch"):
    """Ask for a whole batch by its rows, which spares splitting it and putting it together again."""
    import datasets

    dataset = datasets.load_from_disk(str(folder)).with_format(form)
    sampler = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(dataset), BATCH_SIZE, drop_last=False)
    return _dictionaries(
        torch.utils.data.DataLoader(
            dataset, batch_size=None, sampler=sampler, num_workers=workers, persistent_workers=workers > 0
        )
    )


def open_datasets_flat(path, folder):
    """The same in NumPy's form, whose arrays become tensors without a copy."""
    with h5py.File(path) as file:
        shape = file[FEATURE].shape[1:]
    epoch = open_datasets_batches(path, folder, form="numpy")
    return lambda: ((features.reshape(-1, *shape), labels) for features, labels in epoch())


# ----------------------------------------------------------------------------------------------------------- rivals


def _with_workers(opening, workers):
    return lambda path, folder: opening(path, folder, workers)


# Folder, and how it is written.
FORMS = {
    "egoaudio": write_nothing,
    "webdataset": write_webdataset,
    "litdata": write_litdata,
    "datasets": write_datasets,
    "datasets-flat": write_datasets_flat,
}
OURS, NORMALIZED, CONTEXT = "egoaudio", "egoaudio, normalised", "egoaudio, context 1"
MEMORY = "numpy.take from memory"
BEYOND = "datasets, flat rows, NumPy's form, whole batches"
# Name: the form it reads, and how it is opened.
RIVALS = {
    OURS: ("egoaudio", open_ours),
    NORMALIZED: ("egoaudio", open_ours_normalized),
    CONTEXT: ("egoaudio", open_ours_with_context),
    MEMORY: ("egoaudio", open_memory),
    "h5py, 0 workers": ("egoaudio", open_h5py),
    "h5py, 2 workers": ("egoaudio", _with_workers(open_h5py, 2)),
    "webdataset, 0 workers": ("webdataset", open_webdataset),
    "webdataset, 2 workers": ("webdataset", _with_workers(open_webdataset, 2)),
    "litdata, 0 workers": ("litdata", open_litdata),
    "litdata, 2 workers": ("litdata", _with_workers(open_litdata, 2)),
    "datasets, 0 workers": ("datasets", open_datasets),
    "datasets, 2 workers": ("datasets", _with_workers(open_datasets, 2)),
    "datasets, whole batches, 0 workers": ("datasets", open_datasets_batches),
    "datasets, whole batches, 2 workers": ("datasets", _with_workers(open_datasets_batches, 2)),
    BEYOND: ("datasets-flat", open_datasets_flat),
}


def write_forms(path, scratch):
    """Write the clips in every form whose library is there; return ``{form: name of the missing module}``."""
    missing = {}
    for form, write in FORMS.items():
        (scratch / form).mkdir()
        try:
            write(path, scratch / form)
        except ImportError as error:
            missing[form] = error.name
    return missing


def open_rival(name, path, scratch):
    """Return the ``epoch`` of a rival."""
    form, opening = RIVALS[name]
    return opening(path, Path(scratch) / form)
