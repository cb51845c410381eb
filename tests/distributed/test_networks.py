"""Two hosts with two networks each, in network namespaces: the right one is found, named, and carries the training.

Each host is a namespace with the interfaces slow0 (10.77.1.x, where the default route goes) and fast0 (10.77.2.x), and
a hostname that resolves to loopback. Needs root and `ip` of iproute2.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.test_failures import wait_for

LAUNCH = Path(__file__).parents[2] / "launch"
HOSTS = (f"tencrop-{os.getpid()}-a", f"tencrop-{os.getpid()}-b")
SMALL = ["data.crop_px=64", "data.resize_px=72", "data.threads=1", "model.width=0.125", "tracking=none"]


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need root and the commands ip and unshare")
    probe = subprocess.run(["ip", "netns", "add", HOSTS[0]], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no network namespaces here: {probe.stderr.strip()}")
    try:
        ip("netns", "add", HOSTS[1])
        for number, name in enumerate(("slow0", "fast0"), start=1):
            ends = [f"netns={host} name={name}" for host in HOSTS]
            first, second = ([word for pair in end.split() for word in pair.split("=")] for end in ends)
            ip("link", "add", *first[2:], *first[:2], "type", "veth", "peer", *second[2:], *second[:2])
            for host, last in zip(HOSTS, (1, 2), strict=True):
                ip("-n", host, "address", "add", f"10.77.{number}.{last}/24", "dev", name)
                ip("-n", host, "link", "set", name, "up")
        for host, other in zip(HOSTS, (2, 1), strict=True):
            ip("-n", host, "link", "set", "lo", "up")
            ip("-n", host, "route", "add", "default", "via", f"10.77.1.{other}")
        yield HOSTS
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "delete", host], capture_output=True, check=False)


def start(host: str, name: str, names: Path, command: list[str], **environment: str) -> subprocess.Popen:
    """Run `command` on `host`, which is called `name` and has `names` as its /etc/hosts."""
    unset = ("NODES", "MASTER_ADDR", "PYTHONPATH", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "PET_LOCAL_ADDR")
    clean = {key: value for key, value in os.environ.items() if key not in unset}
    setup = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'
    inside = ["unshare", "--mount", "--uts", "sh", "-c", setup, "sh", str(names), name, *command]
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *inside],
        env=clean | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "NPROC": "1", "NODES": "2"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def bytes_sent(host: str, interface: str) -> int:
    return json.loads(ip("-n", host, "-s", "-j", "link", "show", interface))[0]["stats64"]["tx"]["bytes"]


@pytest.fixture
def names(tmp_path) -> tuple[Path, Path]:
    """/etc/hosts of both, as Debian writes them: a host's own name is loopback."""
    files = (tmp_path / "hosts-a", tmp_path / "hosts-b")
    files[0].write_text("127.0.0.1 localhost\n127.0.1.1 node-a\n10.77.2.2 node-b\n")
    files[1].write_text("127.0.0.1 localhost\n10.77.2.1 node-a\n127.0.1.1 node-b\n")
    return files


@pytest.mark.parametrize(
    ("master", "links"),
    [
        ("10.77.2.1", ("fast0 (10.77.2.1)", "fast0 (10.77.2.2)")),
        ("10.77.1.2", ("slow0 (10.77.1.1)", "slow0 (10.77.1.2)")),
        ("node-a", ("slow0 (10.77.1.1)", "fast0 (10.77.2.2)")),  # loopback on itself: the default route
    ],
)
def test_each_host_finds_the_interface_towards_the_master(hosts, names, master, links):
    command = ["env", f"PYTHONPATH={LAUNCH.parent}", sys.executable, "-m", "launch.network"]
    for host, name, file, link in zip(hosts, ("node-a", "node-b"), names, links, strict=True):
        said = start(host, name, file, command, MASTER_ADDR=master).communicate(timeout=60)[0]
        assert f"network: {link} towards {master}\n" in said
        assert f"export GLOO_SOCKET_IFNAME={link.split()[0]}\n" in said


def test_an_address_in_no_network_of_the_host_is_refused(hosts, names):
    ip("-n", hosts[1], "route", "delete", "default")
    command = [str(LAUNCH / "multi_node.sh"), "tiny.yaml"]
    process = start(hosts[1], "node-b", names[1], command, MASTER_ADDR="10.99.0.1")
    said = process.communicate(timeout=60)[0]
    ip("-n", hosts[1], "route", "add", "default", "via", "10.77.1.1")
    assert process.returncode == 2
    assert said.startswith("error: MASTER_ADDR=10.99.0.1: node-b has no route to 10.99.0.1; its own addresses: ")
    assert "10.77.1.2 on slow0" in said
    assert "10.77.2.2 on fast0" in said


@pytest.mark.slow  # 25 s each
@pytest.mark.parametrize("master", ["10.77.2.1", "node-b"])
def test_two_hosts_train_one_model_over_it(hosts, names, photos, tmp_path, master):
    config = tmp_path / "tiny.yaml"
    config.write_text(f"data: {{train: {photos}}}\ntrain: {{epochs: 1, global_batch: 12, log_every_steps: 1}}\n")
    command = [str(LAUNCH / "multi_node.sh"), str(config), f"run={tmp_path / 'run'}", *SMALL]
    before = [bytes_sent(host, "fast0") for host in hosts]
    pairs = zip(hosts, ("node-a", "node-b"), names, strict=True)
    machines = [start(host, name, file, command, MASTER_ADDR=master) for host, name, file in pairs]
    said = [machine.communicate(timeout=240)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert sum("step 4/4" in text for text in said) == 1
    if master == "10.77.2.1":  # gradients went over the fast network, by the kernel's own count
        weights = (tmp_path / "run" / "checkpoints").glob("*/model.safetensors")
        gradients = 4 * next(weights).stat().st_size
        assert min(bytes_sent(host, "fast0") - sent for host, sent in zip(hosts, before, strict=True)) > gradients / 2


@pytest.mark.prove  # 100 s
def test_a_link_that_is_cut_is_told_on_both_hosts_and_the_job_ends(hosts, names, photos, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(f"data: {{train: {photos}}}\ntrain: {{epochs: 9999, global_batch: 12, log_every_steps: 1}}\n")
    words = [f"run={tmp_path / 'run'}", "train.stall_minutes=0.6", *SMALL]
    pairs = zip(hosts, ("node-a", "node-b"), names, strict=True)
    command = [str(LAUNCH / "multi_node.sh"), str(config), *words]
    machines = [start(host, name, file, command, MASTER_ADDR="10.77.2.1") for host, name, file in pairs]
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, 120)
    ip("-n", hosts[1], "link", "set", "fast0", "down")
    cut = time.monotonic()
    try:
        said = [machine.communicate(timeout=120)[0] for machine in machines]
    finally:
        ip("-n", hosts[1], "link", "set", "fast0", "up")
    assert [machine.returncode for machine in machines] == [1, 1], said
    assert time.monotonic() - cut < 80
    for text, missing in zip(said, ("node-b", "the machine that hosts the rendezvous"), strict=True):
        assert "warning: no rank has come to a new point for 2" in text, text
        assert f"nothing was heard of {missing} for " in text
        assert text.rstrip().splitlines()[-1].startswith("error: no rank has come to a new point for 0.6")
