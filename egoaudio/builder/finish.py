"""The last steps of every file that is built or merged: the counts, the mark that it is complete, and its name."""

import os
from pathlib import Path

from egoaudio.builder.synced import sync
from egoaudio.errors import StoreError
from egoaudio.hdf5 import create
from egoaudio.hdf5.reader import EgoAudioFile
from egoaudio.hdf5.writer import RowWriter
from egoaudio.system import files


def count_classes(file: EgoAudioFile, writer: RowWriter) -> None:
    """Write in how many clips each class is active, and sync the file."""
    classes = file.class_table.copy()
    classes["num_clips"] = file.count_classes()
    writer.write("classes", 0, classes)
    sync(file, writer)


def publish(partial_path: Path, output: Path) -> None:
    """Mark the file complete and give it its name."""
    create.mark_complete(partial_path)
    try:
        os.replace(partial_path, output)
    except OSError as error:
        raise StoreError(f"{partial_path} is complete, but cannot be renamed to {output}: {error.strerror}") from error
    files.sync_folder(output)
