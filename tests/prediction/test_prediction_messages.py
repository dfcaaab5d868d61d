"""What a prediction says while it runs: how many recordings, times real time, how long it will take by their sizes."""

import io

from egoaudio.prediction.messages import PredictionProgress
from egoaudio.system import progress


def test_it_says_how_far_it_is_how_fast_and_how_long_it_takes(monkeypatch):
    now, stream = [100.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with PredictionProgress({0: 100, 1: 300}, 0.5, stream) as shown:
        now[0] += 10
        shown.scored(0, 40, 40)  # clips, half a second apart
        shown.finish(0)
        now[0] += 10
        shown.scored(1, 50, 100)
        now[0] += 10
        shown.scored(1, 50, 100)
        shown.finish(1, failed=True)
    assert stream.getvalue().splitlines() == [
        "predict  25%  0 of 2 recordings, 2x real time, 30 s left",
        "predict  62%  1 of 2 recordings, 2x real time, 12 s left",
        "predict 100%  1 of 2 recordings, 2x real time, 0 s left",  # 399 of 400 bytes
        "predict 100%  2 of 2 recordings, 2x real time, 1 failed",
    ]
