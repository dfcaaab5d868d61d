"""An NFS server and two hosts on one machine: nfs-ganesha, and Linux kernels in user mode.

All of it runs in network, mount and process namespaces that ``apart`` makes: the kernel ends what is in them with their
first process, so nothing is left behind, however that ends. A host's root is this machine's, read-only; what it writes
goes to NFS, or to its memory.
"""

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {  # of Debian, by what the script needs of them
    "linux": "user-mode-linux",
    "ganesha.nfsd": "nfs-ganesha",
    "libfsalvfs.so": "nfs-ganesha-vfs",
    "modprobe": "kmod",
    "ip": "iproute2",
    "unshare": "util-linux",
}
MODULES = Path("/usr/lib/uml/modules")
SERVER_FOLDERS = "usr/lib/*/ganesha", "usr/lib/ganesha"
NAMES = ("one", "two")
LEASE_SECONDS = 20  # short: a host that is gone keeps its locks for so long
STEP_SECONDS = 240  # a step that takes longer has failed
SERVER = """
NFS_CORE_PARAM {{ Protocols = 4; Enable_NLM = false; Enable_RQUOTA = false; Bind_addr = 10.71.0.1; }}
NFSV4 {{ Minor_Versions = 1; Lease_Lifetime = {lease}; Graceless = true; RecoveryRoot = {folder}/recovery; }}
EXPORT {{
    Export_Id = 1; Path = {folder}/export; Pseudo = /export; Access_Type = RW; Squash = No_Root_Squash; SecType = sys;
    FSAL {{ Name = VFS; }}
}}
"""
HOST = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
trap 'echo o >/proc/sysrq-trigger; sleep 60' EXIT
mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t tmpfs run /run || exit
mkdir /dev/shm && mount -t tmpfs shm /dev/shm && hostname {name} && stty rows 40 cols 120 || exit
ip link set lo up && ip address add {address}/24 dev eth0 && ip link set eth0 up || exit
modprobe -d {folder} nfs nfs4_unique_id={name} && modprobe -d {folder} nfsv4 || exit
mount -i -t nfs4 10.71.0.1:/export {folder}/nfs -o vers=4.1,addr=10.71.0.1,clientaddr={address} || exit
cd {folder}/nfs
try() {{ echo "begins $(date +%s.%N)"; "$@"; status=$?; echo "ends $status $(date +%s.%N)"; return $status; }}
{steps}
sync
"""


def require_all():
    """Exit with what is missing here, if something is."""
    missing = [package for name, package in PACKAGES.items() if not _is_there(name)]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)} (Debian: apt-get install {' '.join(missing)})")
    if os.geteuid() != 0:
        sys.exit("only root may make network devices and mounts: run this as root")


def _is_there(name):
    if name.endswith(".so"):
        return any(list(Path("/").glob(f"{folder}/{name}")) for folder in SERVER_FOLDERS)
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def apart(command):
    """Return a command that runs another in namespaces of its own, which end with this process."""
    namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, *command]


def versions():
    """Return what the server and the hosts are, in words."""
    server, kernel = (
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        for command in (["ganesha.nfsd", "-v"], ["linux", "--version"])
    )
    return {
        "server": f"nfs-ganesha {server.split('V')[-1]}, NFS 4.1, a lease is {LEASE_SECONDS} s",
        "hosts": f"{len(NAMES)}, Linux {kernel} in user mode",
    }


@contextlib.contextmanager
def serving(folder):
    """Serve ``folder/export`` over NFS, on a bridge with a port for each host, while the block runs."""
    for name in ("export", "nfs", "lib", "recovery"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "lib/modules").symlink_to(MODULES)
    devices = [
        "link set lo up",
        "link add bridge type bridge",
        "address add 10.71.0.1/24 dev bridge",
        "link set bridge up",
    ]
    for number in range(len(NAMES)):
        devices += [f"tuntap add tap{number} mode tap", f"link set tap{number} master bridge up"]
    for words in devices:
        subprocess.run(["ip", *words.split()], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "run", "/run"], check=True)  # the server's, in this namespace only
    config, log = folder / "server.conf", folder / "server.log"
    config.write_text(SERVER.format(folder=folder, lease=LEASE_SECONDS), encoding="utf-8")
    server = subprocess.Popen(["ganesha.nfsd", "-F", "-f", config, "-L", log, "-p", folder / "server.pid"])
    try:
        wait(_answers, "the server", log.read_text)
        yield
    finally:
        server.kill()
        server.wait()


def _answers():
    """Return whether the server takes connections."""
    with contextlib.suppress(OSError), socket.create_connection(("10.71.0.1", 2049), timeout=1):
        return True
    return False


@dataclass(frozen=True)
class Tried:
    """A command that a host ran, and when: seconds since the epoch."""

    status: int
    start: float
    stop: float


class Host(contextlib.AbstractContextManager):
    """A host that starts, mounts the server's folder, runs steps of a shell there, and ends; with the block at last."""

    def __init__(self, folder, number, steps):
        self._folder = folder
        self._log = Path(tempfile.mkstemp(dir=folder, prefix=f"{NAMES[number]}-", suffix=".log")[1])
        script, address = self._log.with_suffix(".sh"), f"10.71.0.{11 + number}"
        facts = {"folder": folder, "name": NAMES[number], "address": address, "steps": steps}
        script.write_text(HOST.format(**facts), encoding="utf-8")
        script.chmod(0o755)
        kernel = ["linux", "mem=1536M", "quiet", "con=null", "con0=fd:0,fd:1", "ssl=null", f"uml_dir={folder}/"]
        kernel += ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={script}"]
        # A namespace, since the kernel's own processes would outlive it.
        command = ["unshare", "--pid", "--fork", "--kill-child", *kernel, f"eth0=tuntap,tap{number}"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        """Take away its power."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()

    def tell(self):
        """Give its shell the line that it waits for."""
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def said(self):
        """Return what it has said, without where the folder is."""
        said = self._log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
        return said.replace(f"{self._folder}/nfs/", "")

    def wait_for(self, pattern):
        """Return the match of what it says, once it does."""
        return wait(lambda: re.search(pattern, self.said()), pattern, self.said)

    def end(self):
        """Return what it tried, once it has ended; the last one has succeeded."""
        wait(lambda: self._process.poll() is not None, "a host's end", self.said)
        tried = re.findall(r"\nbegins (\S+)\n.*?\nends (\d+) (\S+)", self.said(), re.DOTALL)
        if not tried or tried[-1][1] != "0":
            raise RuntimeError(f"a host's command failed; it said:\n{self.said()[-3000:]}")
        return [Tried(int(status), float(start), float(stop)) for start, status, stop in tried]


def steps(*commands):
    """Return the steps of a host that tries commands."""
    return "\n".join(f"try {shlex.join(map(str, command))}" for command in commands)


def wait(condition, what, said):
    """Return a condition's value once there is one."""
    stop = time.monotonic() + STEP_SECONDS
    while not (value := condition()):
        if time.monotonic() > stop:
            raise TimeoutError(f"waited {STEP_SECONDS} s in vain for {what}; said was:\n{said()[-3000:]}")
        time.sleep(0.05)
    return value
