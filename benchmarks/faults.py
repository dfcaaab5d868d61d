"""Faults, counted: builds and runs that are killed, broken and hostile input, full disks, and how many cost anything.

Lost is what crashed, hung, or was *wrong*: other bytes than without the fault, other data than the right ones, or no
word where something is missing. ``fault_table`` has a row for each kind, which names the function that tries it (in
``build_faults``, ``media_faults``, ``train_faults`` and ``predict_faults``; ``trials`` is what they are tried with).
What a fault has cost is printed with the seed that repeats it. ``tests/test_faults.py`` runs the share called ``fast``.

    python benchmarks/faults.py [--full] [--only REGEX] [--output faults.json]
    python benchmarks/faults.py --tables faults.json [more.json ...]

``--output`` is written anew after every row; ``--tables`` prints the table of one run, or of several, each of a part of
the rows. Needs ``pip install .[test]``. A full disk is a tmpfs of a few MB, which only root can mount; elsewhere a
limit on the size of files stands for it.
"""

import argparse
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import measuring
from fault_table import FAULTS
from trials import Sample

HEADER = ["fault", "tried", "survived", "lost", "of these wrong"]


def read(paths):
    """Return the header, the rows and what was lost, of runs that are written in files."""
    runs = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    header = runs[0]["header"]
    return header, [row for run in runs for row in run["rows"]], [reason for run in runs for reason in run["lost"]]


def page(header, rows):
    """Return what stands in ``benchmarks/README.md``: a Markdown table of the rows, and of their sums."""
    sums = ["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])]
    lines = [header, ["---"] * len(header), *rows, sums]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def count(arguments):
    """Try the faults; return rows and what was lost."""
    rows, lost = [], []
    with tempfile.TemporaryDirectory() as scratch:
        sample = Sample(Path(scratch) / "sample")
        for number, fault in enumerate(FAULTS):
            num_faults = fault.full if arguments.full else fault.fast
            if num_faults == 0 or not re.search(arguments.only, fault.words):
                continue
            folder, began = Path(scratch) / str(number), time.monotonic()
            folder.mkdir()
            tally = fault.count(sample, folder, num_faults)
            shutil.rmtree(folder)
            rows.append([fault.words, tally.tried, tally.survived, len(tally.reasons), len(tally.wrong)])
            reasons = list(dict.fromkeys([*tally.lost, *(f"wrong: {reason}" for reason in tally.wrong)]))
            lost += [f"{fault.words}: {reason}" for reason in reasons]
            seconds = time.monotonic() - began
            print(f"{seconds:5.0f} s  {fault.words}: {tally.survived} of {tally.tried}", *reasons, sep="\n", flush=True)
            measuring.write_json(arguments.output, header=HEADER, rows=rows, lost=lost)
    return rows, lost


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all counts, about an hour")
    parser.add_argument("--only", metavar="REGEX", default="", help="only the rows whose words it matches")
    parser.add_argument("--output", help="JSON of the table")
    parser.add_argument("--tables", metavar="FILE", nargs="+", help="only print the table of runs in files")
    arguments = parser.parse_args(argv)
    if arguments.tables:
        header, rows, lost = read(arguments.tables)
    else:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's & has it ignored, by children, too
        header, (rows, lost) = HEADER, count(arguments)
        print()
    print(page(header, rows))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
