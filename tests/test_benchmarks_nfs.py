"""NFS was run once: the page holds what was seen, and who repeats it is told what is missing. No server is started."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RESULT = BENCHMARKS / "results" / "nfs.json"
sys.path.insert(0, str(BENCHMARKS))
import nfs  # noqa: E402
import nfs_hosts  # noqa: E402


def test_the_page_holds_the_table_of_the_run_beside_it(capsys):
    assert nfs.main(["--tables", str(RESULT)]) == 0
    assert capsys.readouterr().out in (BENCHMARKS / "README.md").read_text(encoding="utf-8")


def test_a_claim_that_did_not_hold_is_shown_and_fails(tmp_path, capsys):
    (tmp_path / "seen.json").write_text(json.dumps({"seen": {"a": 0, "b": True, "c": False}}))
    assert nfs.main(["--tables", str(tmp_path / "seen.json")]) == 1
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()[2:5]] == ["0", "yes", "**no**"]


def test_the_result_names_neither_folders_nor_the_machine():
    text = RESULT.read_text(encoding="utf-8")
    assert not [name for name in ("/tmp", str(BENCHMARKS.parents[1]), f"on {socket.gethostname()}") if name in text]


def test_what_is_not_installed_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr(nfs_hosts.shutil, "which", lambda name, path: None if name in ("linux", "ip") else f"/{name}")
    monkeypatch.setattr(nfs_hosts, "SERVER_FOLDERS", ("no/such/folder",))
    with pytest.raises(SystemExit) as stop:
        nfs.main([])
    missing = ["user-mode-linux", "nfs-ganesha-vfs", "iproute2"]
    assert stop.value.code == (f"not installed: {', '.join(missing)} (Debian: apt-get install {' '.join(missing)})")


def test_only_root_may(monkeypatch):
    monkeypatch.setattr(nfs_hosts, "PACKAGES", {})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="run this as root"):
        nfs.main([])


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host whose kernel is a shell that says what its script's steps would, and waits for a line in between."""
    (tmp_path / "unshare").write_text("#!/bin/sh\ncat ${0%/*}/first\nread _\ncat ${0%/*}/second\n")
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return lambda: nfs_hosts.Host(tmp_path, 0, "steps")


@pytest.mark.parametrize("status", [0, 3])
def test_what_a_host_tried_is_read_from_what_it_says(host, tmp_path, status):
    (tmp_path / "first").write_text(f"boots\r\nbegins 1.5\r\n{tmp_path}/nfs/ego.h5 is in use\r\nends 2 2.5\r\n")
    (tmp_path / "second").write_text(f"begins 3.5\r\ndone\r\nends {status} 4.5\r\n")
    with host() as running:
        assert running.wait_for(r"\nends (\d+)")[1] == "2"
        assert "\nego.h5 is in use" in running.said()
        running.tell()
        if status:
            with pytest.raises(RuntimeError, match="command failed; it said:\n"):
                running.end()
        else:
            assert running.end() == [nfs_hosts.Tried(2, 1.5, 2.5), nfs_hosts.Tried(0, 3.5, 4.5)]


def test_no_wait_is_endless(monkeypatch):
    monkeypatch.setattr(nfs_hosts, "STEP_SECONDS", 0.1)
    with pytest.raises(TimeoutError, match="in vain for the server; said was:\nit starts"):
        nfs_hosts.wait(lambda: False, "the server", lambda: "it starts")
