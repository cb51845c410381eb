"""Two hosts with two networks each: the right one is found, named, and carries the training."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.hosts import MASTER, Host, NoHosts, ip, set_link, start, two_hosts
from tests.distributed.test_failures import wait_for

LAUNCH = Path(__file__).parents[2] / "launch"
SMALL = ["data.crop_px=64", "data.resize_px=72", "data.threads=1", "model.width=0.125", "tracking=none"]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> Iterator[tuple[Host, Host]]:
    try:
        with two_hosts(tmp_path_factory.mktemp("hosts")) as both:
            yield both
    except NoHosts as reason:
        pytest.skip(str(reason))


def bytes_sent(host: Host, interface: str) -> int:
    return json.loads(ip("-n", host.namespace, "-s", "-j", "link", "show", interface))[0]["stats64"]["tx"]["bytes"]


@pytest.mark.parametrize(
    ("master", "links"),
    [
        ("10.77.2.1", ("fast0 (10.77.2.1)", "fast0 (10.77.2.2)")),
        ("10.77.1.2", ("slow0 (10.77.1.1)", "slow0 (10.77.1.2)")),
        ("node-a", ("slow0 (10.77.1.1)", "fast0 (10.77.2.2)")),  # loopback on itself: the default route
    ],
)
def test_each_host_finds_the_interface_towards_the_master(hosts, master, links):
    command = ["env", f"PYTHONPATH={LAUNCH.parent}", sys.executable, "-m", "launch.network"]
    for host, link in zip(hosts, links, strict=True):
        said = start(host, command, MASTER_ADDR=master).communicate(timeout=60)[0]
        assert f"network: {link} towards {master}\n" in said
        assert f"export GLOO_SOCKET_IFNAME={link.split()[0]}\n" in said


def test_an_address_in_no_network_of_the_host_is_refused(hosts):
    ip("-n", hosts[1].namespace, "route", "delete", "default")
    command = [str(LAUNCH / "multi_node.sh"), "tiny.yaml"]
    process = start(hosts[1], command, MASTER_ADDR="10.99.0.1")
    said = process.communicate(timeout=60)[0]
    ip("-n", hosts[1].namespace, "route", "add", "default", "via", "10.77.1.1")
    assert process.returncode == 2
    assert said.startswith("error: MASTER_ADDR=10.99.0.1: node-b has no route to 10.99.0.1; its own addresses: ")
    assert "10.77.1.2 on slow0" in said
    assert "10.77.2.2 on fast0" in said


@pytest.mark.slow  # 25 s each
@pytest.mark.parametrize("master", ["10.77.2.1", pytest.param("node-b", marks=pytest.mark.prove)])
def test_two_hosts_train_one_model_over_it(hosts, photos, tmp_path, master):
    config = tmp_path / "tiny.yaml"
    config.write_text(f"data: {{train: {photos}}}\ntrain: {{epochs: 1, global_batch: 12, log_every_steps: 1}}\n")
    command = [str(LAUNCH / "multi_node.sh"), str(config), f"run={tmp_path / 'run'}", *SMALL]
    before = [bytes_sent(host, "fast0") for host in hosts]
    machines = [start(host, command, MASTER_ADDR=master) for host in hosts]
    said = [machine.communicate(timeout=240)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert sum("step 4/4" in text for text in said) == 1
    if master == "10.77.2.1":  # gradients went over the fast network, by the kernel's own count
        weights = (tmp_path / "run" / "checkpoints").glob("*/model.safetensors")
        gradients = 4 * next(weights).stat().st_size
        assert min(bytes_sent(host, "fast0") - sent for host, sent in zip(hosts, before, strict=True)) > gradients / 2


@pytest.mark.prove  # 100 s
def test_a_link_that_is_cut_is_told_on_both_hosts_and_the_job_ends(hosts, photos, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(f"data: {{train: {photos}}}\ntrain: {{epochs: 9999, global_batch: 12, log_every_steps: 1}}\n")
    words = [f"run={tmp_path / 'run'}", "train.stall_minutes=0.6", *SMALL]
    command = [str(LAUNCH / "multi_node.sh"), str(config), *words]
    machines = [start(host, command, MASTER_ADDR=MASTER) for host in hosts]
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, 120)
    set_link(hosts[1], "fast0", up=False)
    cut = time.monotonic()
    try:
        said = [machine.communicate(timeout=120)[0] for machine in machines]
    finally:
        set_link(hosts[1], "fast0", up=True)
    assert [machine.returncode for machine in machines] == [1, 1], said
    assert time.monotonic() - cut < 80
    for text, missing in zip(said, ("node-b", "the machine that hosts the rendezvous"), strict=True):
        assert "warning: no rank has come to a new point for 2" in text, text
        assert f"nothing was heard of {missing} for " in text
        assert text.rstrip().splitlines()[-1].startswith("error: no rank has come to a new point for 0.6")
