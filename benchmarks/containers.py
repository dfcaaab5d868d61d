"""What comes out of media that nobody here made: one build over folders of files, a row a file.

Builds every media file below the given folders with the defaults and prints, as a table for the README, what each
container and codec gave: clips, samples lost, or the reason of the failure.

    python benchmarks/containers.py /usr/share/forensics-samples FOLDER ...
"""

import argparse
import csv
import tempfile
import warnings
from pathlib import Path

import av

import egoaudio
from egoaudio.builder.build import build
from egoaudio.builder.plan import Inputs
from egoaudio.errors import Status
from egoaudio.inputs.find_media import MEDIA_EXTENSIONS


def describe(path):
    """Return container and audio codec as PyAV names them."""
    try:
        with av.open(str(path)) as container:
            codec = next(
                (stream.codec_context.name for stream in container.streams.audio if stream.codec_context), "none"
            )
            return container.format.name.split(",")[0], codec
    except (av.FFmpegError, OSError) as error:
        return path.suffix[1:], f"unreadable ({type(error).__name__})"


def main(folders, num_workers):
    paths = sorted(
        path for folder in folders for path in Path(folder).rglob("*") if path.suffix.lower() in MEDIA_EXTENSIONS
    )
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        (scratch / "videos").mkdir()
        with open(scratch / "all.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["video", "start", "end", "label"])
            for number, path in enumerate(paths):
                name = f"{number:03d}{path.suffix.lower()}"
                (scratch / "videos" / name).symlink_to(path.resolve())
                writer.writerow([name, 0, 1, "sound"])
        inputs = Inputs((str(scratch / "all.csv"),), str(scratch / "videos"), follow_links=True)
        build(inputs, scratch / "all.h5", num_workers=num_workers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = egoaudio.open(scratch / "all.h5")
        rows = []
        for path, row in zip(paths, file.video_table, strict=True):
            status = Status(row["status"])
            result = f"{row['num_clips']} clips" if status == Status.OK else row["error"].decode()
            container, codec = describe(path)
            rate = f"{row['sample_rate']:,} Hz, {row['channels']}" if row["sample_rate"] else "-"
            rows.append(
                [
                    path.name,
                    container,
                    codec,
                    rate,
                    f"{row['duration_seconds']:.2f} s",
                    result,
                    f"{row['lost_samples']:,}",
                ]
            )
    header = ["file", "container", "codec", "rate, channels", "sound", "what came out", "samples lost"]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.folders, arguments.workers)
