"""Addresses of the network: which ones only this machine can reach, and which ones are public."""

import ipaddress


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Addresses that contain an IPv4 address: the translation of RFC 6052.
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
# Where clouds answer with credentials of the machine, outside of the link-local ranges.
_METADATA = {ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")}


def is_loopback(host: str) -> bool:
    """
    Check whether a host can be reached from this machine only.

    Args:
        host (`str`): IP address or host name.

    Returns:
        `bool`: True for "localhost" and loopback addresses; False for any other name.
    """
    try:
        return host == "localhost" or _unwrapped(host).is_loopback
    except ValueError:
        return False


def is_public(address: str) -> bool:
    """
    Check whether an address belongs to the public Internet.

    Args:
        address (`str`): IP address. IPv4 addresses inside of IPv6 addresses are found.

    Returns:
        `bool`: False for loopback, private, link-local, reserved and multicast addresses.

    Raises:
        ValueError: if the text is not an IP address.
    """
    found = _unwrapped(address)
    return found.is_global and not found.is_multicast and not found.is_reserved and found not in _METADATA


def is_private_network(address: str) -> bool:
    """
    Check whether an address belongs to a private network or to this machine.

    Args:
        address (`str`): IP address.

    Returns:
        `bool`: True for private and loopback addresses. False for link-local addresses, at which clouds answer with
        credentials of the machine.

    Raises:
        ValueError: if the text is not an IP address.
    """
    found = _unwrapped(address)
    excluded = found.is_link_local or found.is_multicast or found.is_unspecified or found in _METADATA
    return found.is_private and not excluded and not (found.version == 4 and found.is_reserved)


def _unwrapped(address: str) -> _Address:
    """Return the address, or the IPv4 address that it contains."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return inner
    return found


__all__ = ["is_loopback", "is_private_network", "is_public"]
