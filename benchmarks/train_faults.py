"""Faults of a training run.

Each function is ``count(sample, folder, num_faults)``, a row of ``fault_table``, and returns a ``Tally``.
"""

import contextlib
import random
import sys
import time

from trials import HANG_SECONDS, NOT_TRIED, each, require, require_right, run, started, tiny_disk

from egoaudio.models import checkpoints

TRAIN = [sys.executable, "-c", "from egoaudio.cli import train; train()"]


def fill_disks(sample, folder, num_faults, seed=0):
    """Fill the disk under a training run; with room again it ends in the weights of a run that was never stopped."""
    from small_runs import assert_same_run, make_file  # of the tests, as ``trials`` made possible

    def command(output):
        options = [
            "--model",
            "cnn",
            "--epochs",
            "30",
            "--batch-size",
            "16",
            "--validation-fraction",
            "0.25",
            "--output",
            str(output),
        ]
        return [*TRAIN, str(data), *options]

    data = make_file(folder / "small.h5")
    status, said = run(command(folder / "whole"))
    require(status == 0, f"the run without faults fails: {said}")
    size = sum(path.stat().st_size for path in (folder / "whole").iterdir())

    def trial(place, seed):
        disk = place / "disk"
        disk.mkdir()
        with tiny_disk(disk, 8 * size) as mounted:
            if not mounted:
                return NOT_TRIED
            with started(command(disk / "run"), place) as process:
                while process.poll() is None and not (disk / "run/last.pt").exists():
                    time.sleep(0.005)
                time.sleep(random.Random(seed).uniform(0, 0.5))
                if process.poll() is not None:
                    return NOT_TRIED
                with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as ballast:
                    while ballast.write(bytes(4096)):
                        pass
                process.wait(HANG_SECONDS)
                said = (place / "said").read_text()
            require(process.returncode == 2 and "no space left" in said.lower(), f"status {process.returncode}: {said}")
            require("Traceback" not in said and not list((disk / "run").glob("*.partial")), said)
            checkpoints.load(disk / "run/last.pt")
            (disk / "ballast").unlink()
            status, said = run(command(disk / "run"))
            require(status == 0, f"the same command does not resume: {said}")
            try:
                assert_same_run(disk / "run", folder / "whole")
            except AssertionError as error:
                require_right(False, f"other weights: {error}")

    return each(trial, folder, range(seed, seed + num_faults))
