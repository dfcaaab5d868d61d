"""Shards built by a Dask cluster of real processes: workers that die, a shard that kills its worker, Ctrl-C."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import distributed
import pytest
from click.testing import CliRunner

import egoaudio
from egoaudio import cli
from egoaudio.builder import build, clusters
from egoaudio.builder.plan import Inputs
from egoaudio.config.build import BuildConfig, ClipConfig, DenoiseConfig, FeatureConfig, SoundConfig
from egoaudio.config.options import to_arguments
from egoaudio.errors import BuildError, ConfigurationError, Status

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("bin", "benchmarks")]
import demo_data  # noqa: E402
from trials import content  # noqa: E402

CONFIG = BuildConfig(
    clips=ClipConfig(hop_seconds=0.5, no_action="interior"),
    sound=SoundConfig(skip_silent=True),
    denoise=DenoiseConfig(mode="none"),
    features=FeatureConfig(features=("mfcc",)),
)

pytestmark = pytest.mark.usefixtures("kept_workers")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Six short videos, one without sound, one cut off."""
    folder = tmp_path_factory.mktemp("charades")
    demo_data.make(folder, num_videos=6, seed=2, shortest_seconds=2.2, longest_seconds=2.9)
    return Inputs(folder / "train.csv", folder / "videos", folder / "test.csv", folder / "classes.txt")


@pytest.fixture(scope="module")
def built(inputs, tmp_path_factory):
    """Return the file of one build."""
    path = tmp_path_factory.mktemp("whole") / "ego.h5"
    build.build(inputs, path, CONFIG)
    return path


@pytest.fixture(scope="module")
def whole(built):
    """Return what one build makes."""
    return content(built)


@pytest.fixture(scope="module")
def cluster():
    """Return a cluster of two worker processes; a shard may lose its worker once."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as made:
        made.scheduler.allowed_failures = 1
        yield made


class _Kill(distributed.WorkerPlugin):
    """Kill a worker when it begins a shard; or once, as soon as ``begun`` exists, which then has a mark beside it."""

    def __init__(self, shard, begun=None):
        self.shard, self.begun = shard, begun

    def transition(self, key, start, finish, **_):
        if finish == "executing" and str(key).endswith(self.shard):
            threading.Thread(target=self.kill, daemon=True).start()

    def kill(self):
        if self.begun:
            mark = self.begun.with_name("killed")
            while not self.begun.exists():
                time.sleep(0.002)
            mark.touch(exist_ok=False)  # the second time, this thread ends here
        os.kill(os.getpid(), signal.SIGKILL)


class _Hang(distributed.WorkerPlugin):
    """Have the processes of shards write their ids into a folder, and then sleep."""

    def __init__(self, folder):
        self.folder = folder

    def setup(self, worker):
        code = (
            f"import os, pathlib, time\npathlib.Path({str(self.folder)!r}, str(os.getpid())).touch()\ntime.sleep(60)\n"
        )
        (self.folder / "sitecustomize.py").write_text(code)
        self.before, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH", ""), str(self.folder)

    def teardown(self, worker):
        os.environ["PYTHONPATH"] = self.before


@contextlib.contextmanager
def plugged(cluster, plugin):
    """Have the workers run a plugin while the block runs."""
    with distributed.Client(cluster, set_as_default=False) as client:
        client.register_plugin(plugin, name="of the test")
        try:
            yield
        finally:
            client.unregister_worker_plugin("of the test")
            client.wait_for_workers(2)


def _wait_for(condition, seconds=60):
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop
        time.sleep(0.05)


def test_a_worker_that_dies_costs_nothing_and_a_shard_that_kills_each_one_is_named(
    inputs, whole, cluster, tmp_path, capsys
):
    output, address = tmp_path / "ego.h5", cluster.scheduler_address
    shards = [tmp_path / f"ego.h5.shard-0000{number}-of-00002" for number in range(2)]
    with plugged(cluster, _Kill("-1-of-2")):
        with pytest.raises(BuildError, match="1 of 2 shards could not be built:\n  shard 1/2: each worker that ran it"):
            build.build(inputs, output, CONFIG, cluster=address, shards=2)
    assert [path.exists() for path in (*shards, output)] == [True, False, False]
    done = shards[0].stat().st_mtime_ns
    with plugged(cluster, _Kill("-1-of-2", begun=Path(f"{shards[1]}.partial"))):
        build.build(inputs, output, CONFIG, cluster=address, shards=2, remove_shards=False)
    assert (tmp_path / "killed").exists() and shards[0].stat().st_mtime_ns == done
    assert content(output) == whole
    assert "shards 100%" in capsys.readouterr().err


def test_ctrl_c_ends_the_shards_on_the_workers(inputs, cluster, tmp_path):
    folder, output = tmp_path / "processes", tmp_path / "ego.h5"
    folder.mkdir()
    command = [*clusters.arguments_of(inputs, output, CONFIG, 1, 60.0), "--cluster", cluster.scheduler_address]
    code = "from egoaudio.cli import build; build()"
    with plugged(cluster, _Hang(folder)):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *command, "--shards", "2"], stderr=subprocess.PIPE, text=True
        )
        _wait_for(lambda: len([path for path in folder.iterdir() if path.name.isdigit()]) == 2)
        begun = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        _wait_for(lambda: not any(map(_is_alive, begun)), seconds=15)
    assert process.returncode == 130 and "interrupted; what was done is kept" in said
    assert not [path.name for path in tmp_path.iterdir() if "ego.h5" in path.name]


def test_a_shard_whose_process_is_killed_is_tried_again_and_then_named(inputs, cluster, tmp_path):
    folder, killed = tmp_path / "processes", set()
    folder.mkdir()

    def kill():
        while len(killed) < 3:
            for name in {path.name for path in folder.iterdir() if path.name.isdigit()} - killed:
                killed.add(name)
                os.kill(int(name), signal.SIGKILL)
            time.sleep(0.02)

    with plugged(cluster, _Hang(folder)):
        threading.Thread(target=kill, daemon=True).start()
        with pytest.raises(BuildError, match="shard 0/1: its process on .* was killed by SIGKILL"):
            build.build(inputs, tmp_path / "ego.h5", CONFIG, cluster=cluster.scheduler_address, shards=1)
    assert len(killed) == 3


def _is_alive(process):
    with contextlib.suppress(OSError):
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    return False


@contextlib.contextmanager
def processes(folder, sitecustomize, num_workers=1):
    """Start a scheduler and workers, each a process of its own as on a cluster; return the address and the processes.

    The workers, and what they start, run ``sitecustomize`` first.
    """
    (folder / "sitecustomize.py").write_text(sitecustomize)
    address_file, started = folder / "scheduler.json", []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(Path(egoaudio.__file__).parents[1])])}

    def start(name, *words, env=None):
        command = [sys.executable, "-m", f"distributed.cli.dask_{name}", "--scheduler-file", address_file, *words]
        log = open(folder / f"{name}_{len(started)}.log", "w")
        started.append(subprocess.Popen([str(word) for word in command], stderr=log, cwd=folder, env=env))
        log.close()

    start("scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1")
    try:
        _wait_for(address_file.exists)
        for number in range(num_workers):
            start("worker", "--no-nanny", "--no-dashboard", "--nthreads", "1", "--name", f"w{number}", env=environment)
        address = json.loads(address_file.read_text())["address"]
        with distributed.Client(address, set_as_default=False) as client:
            client.wait_for_workers(num_workers, timeout=60)
        yield address, started
    finally:
        for process in started:
            process.kill()
            process.wait()


CRASHES = """
import os, signal, sys
def crash(event, given):
    if event == "open" and {victim!r} in str(given[0]):
        os.kill(os.getpid(), signal.SIGSEGV)
if any("loky" in word for word in sys.orig_argv):  # the processes that decode
    sys.addaudithook(crash)
"""


def test_a_video_that_kills_its_decoder_each_time_fails_alone(inputs, built, whole, tmp_path):
    with egoaudio.open(built) as file:
        victim = file.video_table["video_id"][file.video_table["status"] == Status.OK][0].decode()
    (tmp_path / "cluster").mkdir()
    with processes(tmp_path / "cluster", CRASHES.format(victim=victim), num_workers=2) as (address, (_, *workers)):
        report = build.build(inputs, tmp_path / "ego.h5", CONFIG, cluster=address, shards=2)
        assert all(worker.poll() is None for worker in workers)
    assert "SIGSEGV" in dict(report.failures)[victim]
    with egoaudio.open(tmp_path / "ego.h5") as file, egoaudio.open(built) as one:
        statuses = file.video_table["status"].tolist()
        others = [number for number, status in enumerate(statuses) if status != Status.CRASHED]
        assert len(others) == file.num_videos - 1
        assert [statuses[number] for number in others] == one.video_table["status"][others].tolist()
    build.build(inputs, tmp_path / "ego.h5", CONFIG, retry_failed=True)
    assert content(tmp_path / "ego.h5") == whole


def test_workers_without_egoaudio_are_told(inputs, tmp_path):
    code = "import sys\nsys.modules['egoaudio'] = None\n"
    with processes(tmp_path, code) as (address, (_, worker)):
        with pytest.raises(BuildError, match="a worker of the cluster cannot load egoaudio .*: install egoaudio 0"):
            build.build(inputs, tmp_path / "ego.h5", CONFIG, cluster=address, shards=2)
        assert worker.poll() is None


def test_workers_that_are_all_gone_are_told_and_others_waited_for(inputs, tmp_path, monkeypatch):
    class Told(Exception):
        pass

    def told(progress, line):
        raise Told(line)

    monkeypatch.setattr(clusters.Progress, "write", told)
    monkeypatch.setattr(clusters, "_NO_WORKERS_SECONDS", 0.5)
    monkeypatch.setattr(clusters, "_COUNT_SECONDS", 0.1)
    code = "import os, sys\nif '--shard' in sys.orig_argv: os.kill(os.getppid(), 9)\n"
    with processes(tmp_path, code) as (address, _):
        with pytest.raises(Told, match="all workers of the cluster are gone, .*: waiting for others"):
            build.build(inputs, tmp_path / "ego.h5", CONFIG, cluster=address, shards=1)


def test_what_is_wrong_on_a_worker_is_told_with_its_name(inputs, cluster, tmp_path, monkeypatch):
    arguments_of, address = clusters.arguments_of, cluster.scheduler_address
    monkeypatch.setattr(build, "arguments_of", lambda *given: [*arguments_of(*given), "--videos", "/nowhere"])
    words = f"shard 0/1 on {os.uname().nodename}: error: --videos /nowhere: there is no such folder\n.*same paths"
    with pytest.raises(BuildError, match=words):
        build.build(inputs, tmp_path / "ego.h5", CONFIG, cluster=address, shards=1)
    monkeypatch.setattr(clusters, "__version__", "9.9")
    with pytest.raises(BuildError, match="has egoaudio .*, and this is 9.9: install the same version on all machines"):
        build.build(inputs, tmp_path / "ego.h5", CONFIG, cluster=address, shards=1)


def test_a_scheduler_that_is_not_there_is_told(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "_CONNECT_SECONDS", 0.3)
    for address in ("tcp://127.0.0.1:1", "127.0.0.1:1", "nonsense://127.0.0.1:1"):
        with pytest.raises(BuildError, match="no Dask scheduler answers there .*dask scheduler"):
            build.build(inputs, tmp_path / "ego.h5", CONFIG, cluster=address, shards=1)


@pytest.mark.parametrize("address", ["", "localhost", "foo", "tcp://login1", "tcp://login1:", "tcp://:8786/x"])
def test_an_address_without_a_port_is_refused_at_once(inputs, tmp_path, monkeypatch, address):
    monkeypatch.setattr(distributed, "Client", None)  # which would wait for half a minute
    with pytest.raises(ConfigurationError, match=f"`cluster='{address}'`: expected .*, such as tcp://login1:8786"):
        build.build(inputs, tmp_path / "ego.h5", CONFIG, cluster=address, shards=1)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"cluster": "tcp://a:1"}, "`cluster` and `shards` belong together"),
        ({"shards": 2}, "`cluster` and `shards` belong together"),
        ({"cluster": "tcp://a:1", "shards": 2, "shard": "0/2"}, "goes neither with `shard`"),
        ({"cluster": "tcp://a:1", "shards": 2, "force": True}, "nor with `force`"),
        ({"cluster": "tcp://a:1", "shards": 0}, "expected K/N"),
        ({"cluster": "tcp://a:1", "shards": 7}, "`shards=7`: there are only 6 videos, so at most 6 shards"),
    ],
)
def test_what_does_not_go_together_is_refused(inputs, tmp_path, options, words):
    with pytest.raises((BuildError, ConfigurationError), match=words):
        build.build(inputs, tmp_path / "ego.h5", CONFIG, **options)


def test_a_cluster_needs_its_extra(inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'egoaudio\[cluster\]', here and on the workers"):
        build.build(inputs, tmp_path / "ego.h5", CONFIG, cluster="tcp://a:1", shards=2)


@pytest.mark.parametrize(
    "config", [BuildConfig(), CONFIG, replace(CONFIG, clips=ClipConfig(clip_seconds=1 / 3, min_overlap_seconds=1e-7))]
)
def test_the_shards_have_the_configuration_of_the_whole(config, monkeypatch):
    seen = []
    monkeypatch.setattr(build, "build", lambda inputs, output, config, **_: seen.append(config) or sys.exit(0))
    needed = ["--annotations", "a.csv", "--videos", "v", "--output", "o"]
    CliRunner().invoke(cli.build, [*needed, *to_arguments(config)])
    assert seen == [config]
