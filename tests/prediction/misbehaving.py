"""What a worker does with recordings of certain names; a module of its own, as workers import it: no torch in here."""

import os
import signal
import time

from egoaudio.prediction import worker


def send_features(address, config, job):
    """Hear a recording, but die once when all rows of one called ``late`` are sent, and hang on one called ``hang``."""
    name, died = os.path.basename(job[1]), job[1] + ".died"
    if name.startswith("hang"):
        time.sleep(600)
    heard = worker.send_features(address, config, job)
    if name.startswith("late") and not os.path.exists(died):
        with open(died, "x") as file:
            file.write("once")
        os.kill(os.getpid(), signal.SIGKILL)
    return heard
