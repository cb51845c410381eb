"""Which interface and which host of the rendezvous are chosen, on this machine as it is. Real networks between two
hosts: tests/distributed/test_networks.py."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from launch import network
from launch.network import Link, hosts_rendezvous, link_towards
from pipeline.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def names(monkeypatch):
    """Names that resolve as the test says, to (family, address)."""
    known: dict[str, list[tuple[int, str]]] = {}
    real = socket.getaddrinfo

    def resolve(host, port, *args, **options):
        if host not in known:
            return real(host, port, *args, **options)
        return [(family, socket.SOCK_STREAM, 6, "", (address, 0)) for family, address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


def addresses(monkeypatch, **interfaces: str) -> None:
    """This machine has these interfaces and addresses, and a default route through none of them."""
    families = {False: socket.AF_INET, True: socket.AF_INET6}
    fake = {name: [SimpleNamespace(family=families[":" in own], address=own)] for name, own in interfaces.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: fake)
    monkeypatch.setattr(network, "_own_address_towards", lambda family, towards: None)


def run(**environment: str) -> subprocess.CompletedProcess:
    unset = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "PET_LOCAL_ADDR", "PET_RDZV_CONF", "SLURMD_NODENAME")
    clean = {name: value for name, value in os.environ.items() if name not in unset} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch.network"]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("host", "address"), [("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("127.0.0.9", "127.0.0.1")]
)
def test_two_machines_on_loopback_use_it_and_torchrun_decides_who_hosts(host, address):
    done = run(MASTER_ADDR=host)
    assert done.stderr == f"network: lo ({address}) towards {host}\n"
    assert done.stdout.splitlines() == [
        "export GLOO_SOCKET_IFNAME=lo",
        "export NCCL_SOCKET_IFNAME==lo",
        f"export PET_LOCAL_ADDR={address}",
    ]


def test_what_the_user_has_set_is_kept():
    done = run(
        MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="ib0", PET_RDZV_CONF="timeout=60", SLURMD_NODENAME="127.0.0.1"
    )
    assert done.stderr == "network: lo (127.0.0.1) towards 127.0.0.1; as set: GLOO_SOCKET_IFNAME=ib0\n"
    assert "GLOO_SOCKET_IFNAME" not in done.stdout
    assert "export PET_RDZV_CONF=is_host=true,timeout=60" in done.stdout


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MASTER_ADDR": "no-such-host.invalid"}, "MASTER_ADDR=no-such-host.invalid cannot be resolved on"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "29.400"}, "MASTER_PORT=29.400 must be a port number"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
    ],
)
def test_what_cannot_be_is_refused_in_one_message(environment, message):
    done = run(**environment)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stdout == ""


def test_an_address_without_a_route_names_the_addresses_that_there_are(monkeypatch):
    addresses(monkeypatch, lo="127.0.0.1", eth0="10.0.0.2", eth1="10.1.0.2")
    with pytest.raises(
        UserError, match=r"MASTER_ADDR=10\.9\.0\.1: .* no route .*10\.0\.0\.2 on eth0, 10\.1\.0\.2 on eth1"
    ):
        link_towards("10.9.0.1")


def test_the_machine_that_is_the_master_takes_the_interface_of_that_address(monkeypatch, names):
    addresses(monkeypatch, lo="127.0.0.1", eth0="10.0.0.2", eth1="10.1.0.2", ib0="fd00::7")
    names["node0"] = [(socket.AF_INET, "10.1.0.2")]
    names["node0-ib"] = [(socket.AF_INET6, "fd00::7")]
    assert link_towards("node0") == Link("eth1", "10.1.0.2")
    assert link_towards("node0-ib") == Link("ib0", "fd00::7")
    assert link_towards("10.0.0.2") == Link("eth0", "10.0.0.2")


def test_a_name_on_loopback_takes_an_interface_that_others_can_reach(monkeypatch, names):
    names["node0"] = [(socket.AF_INET, "127.0.1.1")]  # as Debian writes it into /etc/hosts
    addresses(monkeypatch, lo="127.0.0.1", eth0="10.0.0.2", wifi0="fe80::1")
    assert link_towards("node0") == Link("eth0", "10.0.0.2")
    addresses(monkeypatch, lo="127.0.0.1", eth0="10.0.0.2", eth1="10.1.0.2")
    with pytest.raises(UserError, match=r"other addresses: 10\.0\.0\.2 on eth0, 10\.1\.0\.2 on eth1"):
        link_towards("node0")


def test_the_first_address_with_a_route_counts(monkeypatch, names):
    names["node0"] = [(socket.AF_INET6, "2001:db8::9"), (socket.AF_INET, "10.0.0.9")]
    addresses(monkeypatch, lo="127.0.0.1", eth0="10.0.0.2")
    monkeypatch.setattr(network, "_own_address_towards", lambda family, _: {socket.AF_INET: "10.0.0.2"}.get(family))
    assert link_towards("node0") == Link("eth0", "10.0.0.2")


def test_who_hosts_the_rendezvous(monkeypatch, names):
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    names["node0"], names["node1"] = [(socket.AF_INET, "127.0.0.1")], [(socket.AF_INET, "10.0.0.9")]
    addresses(monkeypatch, lo="127.0.0.1", eth0="10.0.0.2")
    assert hosts_rendezvous("node0", 29400) is None
    assert hosts_rendezvous("node1", 29400) is False
    monkeypatch.setenv("SLURMD_NODENAME", "node1")
    assert hosts_rendezvous("node1", 29400) is True


def test_a_second_job_of_the_machine_joins_the_rendezvous_of_the_first():
    own = next((own for own in network._links() if not network._is_local(own)), None)
    if own is None:
        pytest.skip("this machine has no address but loopback")
    with socket.create_server((own, 0), family=socket.AF_INET6 if ":" in own else socket.AF_INET) as first:
        assert hosts_rendezvous(own, first.getsockname()[1]) is False
        port = first.getsockname()[1]
    assert hosts_rendezvous(own, port) is True
