"""Two hosts with two networks each, in network namespaces of this machine.

Each host is a namespace with the interfaces slow0 (10.77.1.x, where the default route goes) and fast0 (10.77.2.x), and
a name that resolves to loopback, as Debian has it. Needs root and `ip` of iproute2.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

MASTER = "10.77.2.1"  # the first host, in the fast network


class NoHosts(Exception):
    """Why there can be none here."""


class Host(NamedTuple):
    namespace: str
    name: str
    names: Path  # its /etc/hosts


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """node-a and node-b, whose /etc/hosts are written to `folder`. Raises NoHosts."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        raise NoHosts("network namespaces need root and the commands ip and unshare")
    hosts = tuple(Host(f"tencrop-{os.getpid()}-{last}", f"node-{last}", folder / f"hosts-{last}") for last in "ab")
    hosts[0].names.write_text("127.0.0.1 localhost\n127.0.1.1 node-a\n10.77.2.2 node-b\n")
    hosts[1].names.write_text("127.0.0.1 localhost\n10.77.2.1 node-a\n127.0.1.1 node-b\n")
    probe = subprocess.run(["ip", "netns", "add", hosts[0].namespace], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise NoHosts(f"no network namespaces here: {probe.stderr.strip()}")
    try:
        ip("netns", "add", hosts[1].namespace)
        for number, link in enumerate(("slow0", "fast0"), start=1):
            ends = [("netns", host.namespace, "name", link) for host in hosts]
            ip("link", "add", *ends[0][2:], *ends[0][:2], "type", "veth", "peer", *ends[1][2:], *ends[1][:2])
            for host, last in zip(hosts, (1, 2), strict=True):
                ip("-n", host.namespace, "address", "add", f"10.77.{number}.{last}/24", "dev", link)
                set_link(host, link, up=True)
        for host, other in zip(hosts, (2, 1), strict=True):
            set_link(host, "lo", up=True)
            ip("-n", host.namespace, "route", "add", "default", "via", f"10.77.1.{other}")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True, check=False)


def set_link(host: Host, link: str, up: bool) -> None:
    ip("-n", host.namespace, "link", "set", link, "up" if up else "down")


def start(host: Host, command: list[str], stdout: IO | int = subprocess.PIPE, **environment: str) -> subprocess.Popen:
    """Run `command` on `host`, as one of two machines with a process each. Its pid is the command's own."""
    unset = ("NODES", "MASTER_ADDR", "PYTHONPATH", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "PET_LOCAL_ADDR")
    clean = {key: value for key, value in os.environ.items() if key not in unset}
    setup = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'
    inside = ["unshare", "--mount", "--uts", "sh", "-c", setup, "sh", str(host.names), host.name, *command]
    return subprocess.Popen(
        ["ip", "netns", "exec", host.namespace, *inside],
        env=clean | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "NPROC": "1", "NODES": "2"} | environment,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
    )
