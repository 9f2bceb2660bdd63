"""Tell systemd that the program is ready, alive and stopping. Does nothing elsewhere."""

import contextlib
import os
import socket


def notify(state: str) -> None:
    """
    Send a state to the service manager, see the manual page sd_notify(3).

    Args:
        state (`str`): the state, such as `"READY=1"`.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    if address.startswith("@"):  # abstract
        address = f"\0{address[1:]}"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(address)
        sender.sendall(state.encode())


__all__ = ["notify"]
