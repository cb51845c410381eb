"""Which network a job on several machines uses, and which machine hosts the rendezvous. multi_node.sh evaluates it.

In: MASTER_ADDR, MASTER_PORT, and what the user has set already. Out: `export` lines for the shell on stdout, one line
for the log on stderr, "network: eth1 (10.0.0.2) towards node0". No packet is sent.

By default gloo, NCCL and torchrun take the address that this machine's own name resolves to, which on many machines is
loopback or the wrong network.
"""

import ipaddress
import os
import shlex
import socket
import sys
from dataclasses import dataclass

import psutil

from launch.command import run
from pipeline.errors import UserError

ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # of documentation: behind the default route


@dataclass(frozen=True)
class Link:
    """An interface of this machine and its address there."""

    interface: str
    address: str


def main(argv: list[str] | None = None) -> int:
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT") or "29400"
    if not host:
        raise UserError("MASTER_ADDR is not set. Give the name or address of one machine, the same on all")
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"MASTER_PORT={port} must be a port number, 1 to 65535")
    link = link_towards(host)
    settings = {
        "GLOO_SOCKET_IFNAME": link.interface,
        "NCCL_SOCKET_IFNAME": f"={link.interface}",  # without = any interface whose name starts so
        "PET_LOCAL_ADDR": link.address,  # where the other machines find this one's store
    }
    chosen = {name: value for name, value in settings.items() if not os.environ.get(name)}
    hosts = hosts_rendezvous(host, int(port))
    if hosts is not None:
        given = os.environ.get("PET_RDZV_CONF")
        chosen["PET_RDZV_CONF"] = f"is_host={str(hosts).lower()}" + (f",{given}" if given else "")
    for name, value in chosen.items():
        print(f"export {name}={shlex.quote(value)}")
    kept = [f"{name}={os.environ[name]}" for name in settings if name not in chosen]
    as_set = f"; as set: {', '.join(kept)}" if kept else ""
    print(f"network: {link.interface} ({link.address}) towards {host}{as_set}", file=sys.stderr)
    return 0


def link_towards(host: str) -> Link:
    """The interface by which this machine reaches `host`, or is reached if it is `host`. UserError if there is none."""
    links = _links()
    for family, address in _resolve(host):
        if _is_loopback(address) and not _means_loopback(host):
            return _link_to_others(host, links)  # Debian: 127.0.1.1 is the machine's own name
        own = address if address in links else _own_address_towards(family, address)
        if own in links:
            return Link(links[own], own)
    has = ", ".join(f"{address} on {name}" for address, name in links.items() if not _is_local(address))
    raise UserError(
        f"MASTER_ADDR={host}: {socket.gethostname()} has no route to {_resolve(host)[0][1]}; its own addresses: "
        f"{has or 'none'}. Give an address of that machine in a network that all machines share"
    )


def hosts_rendezvous(host: str, port: int) -> bool | None:
    """Whether this machine hosts the rendezvous. None for loopback, where torchrun tries."""
    if os.environ.get("SLURMD_NODENAME") == host:
        return True  # slurm.sbatch: Slurm's own name for this node, whatever it resolves to
    addresses = _resolve(host)
    if any(_is_loopback(address) for _, address in addresses):
        return None
    links = _links()
    own = next(((family, address) for family, address in addresses if address in links), None)
    return own is not None and _is_free(*own, port)  # a taken port: another job here hosts it, JOB_ID tells them apart


def _links() -> dict[str, str]:
    """{address: interface} of this machine."""
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        each.address.partition("%")[0]: name
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if each.family in families
    }


def _resolve(host: str) -> list[tuple[int, str]]:
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"MASTER_ADDR={host} cannot be resolved on {socket.gethostname()} ({error}). Give a name that all machines "
            f"can resolve, or an address (on that machine, hostname -I lists its addresses)"
        ) from None
    return [(family, str(address[0]).partition("%")[0]) for family, _, _, _, address in addresses]


def _own_address_towards(family: int, address: str) -> str | None:
    """This machine's address on the route to another: connecting a UDP socket asks the kernel, and sends nothing."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return probe.getsockname()[0].partition("%")[0]
    except OSError:  # no route, or no IPv6 at all
        return None


def _link_to_others(host: str, links: dict[str, str]) -> Link:
    """The interface of the default route, else the only one there is."""
    for family, elsewhere in ELSEWHERE.items():
        own = _own_address_towards(family, elsewhere)
        if own in links and not _is_local(own):
            return Link(links[own], own)
    usable = [Link(name, address) for address, name in links.items() if not _is_local(address)]
    if len({link.interface for link in usable}) == 1:
        return usable[0]
    has = ", ".join(f"{link.address} on {link.interface}" for link in usable)
    raise UserError(
        f"MASTER_ADDR={host} is loopback on {socket.gethostname()}, which other machines cannot reach. Give one of its "
        f"other addresses: {has or 'it has none'}"
    )


def _means_loopback(host: str) -> bool:
    """Whether `host` says itself that it is loopback, and all "machines" are on this one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _is_local(address: str) -> bool:
    return _is_loopback(address) or ipaddress.ip_address(address).is_link_local


def _is_free(family: int, address: str, port: int) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store does
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    sys.exit(run(main))
