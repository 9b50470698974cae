"""Which network addresses a download may reach. Input files come from others, and must not make this machine talk to
its own network (server-side request forgery)."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_TRANSLATED = IPv6Network("64:ff9b::/96")  # NAT64 (RFC 6052): an IPv4 address in the last 32 bits


def is_public(address: str) -> bool:
    """Whether an IP address, written as text, belongs to the open internet.

    Not so: private, loopback, link-local, multicast and reserved ones, and ways around (IPv4 in IPv6, 6to4, Teredo).
    """
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        inner = ip.ipv4_mapped or (IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _TRANSLATED else None)
        if inner is None:
            tunnelled = ip.sixtofour is not None or ip.teredo is not None
            return ip.is_global and ip in _GLOBAL_UNICAST and not tunnelled
        ip = inner
    return ip.is_global and not ip.is_multicast


async def resolve(host: str, port: int) -> list[str]:
    """All IP addresses of a host name, in the resolver's order. Raises OSError when it has none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
