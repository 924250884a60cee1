"""The safety net itself: a test cannot leave this machine."""

from __future__ import annotations

import socket

import pytest


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("example.invalid", 443)])
def test_remote_address_is_refused(address: tuple[str, int]) -> None:
    with pytest.raises(RuntimeError, match="tests run without network"):
        socket.create_connection(address, timeout=1)


def test_connect_ex_is_refused_too() -> None:
    with socket.socket() as client, pytest.raises(RuntimeError, match=r"192\.0\.2\.1:80"):
        client.connect_ex(("192.0.2.1", 80))


def test_this_machine_can_still_talk_to_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"ping")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(4) == b"ping"
