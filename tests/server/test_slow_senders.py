"""Connections that begin to ask, and do not go on."""

import socket
import threading

import pytest

from nalar.server import pages
from nalar.server.http import listening
from nalar.server.http.address import listen
from nalar.server.http.app import create_app
from nalar.server.http.listening import server_of

ASK = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture
def asking(server_config, scripted, monkeypatch):
    """Connections to a server that is soon out of patience."""
    monkeypatch.setattr(listening, "_HEAD_S", 0.3)
    monkeypatch.setattr(pages, "_READ_S", 0.3)
    sock = listen("127.0.0.1", 0)
    server = server_of(create_app(server_config, scripted([])), server_config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    opened = []

    def connect():
        opened.append(socket.create_connection(sock.getsockname(), timeout=10))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()
    server.should_exit = True
    thread.join(30)


def reply_on(connection, end=b'{"status":"ok"}'):
    """All of it; head and body may come apart."""
    reply = b""
    while not reply.endswith(end) and (more := connection.recv(65536)):
        reply += more
    return reply


def test_a_second_head_has_no_more_time_than_the_first(asking):
    connection = asking()
    connection.sendall(ASK)
    assert reply_on(connection).startswith(b"HTTP/1.1 200 OK")
    connection.sendall(ASK[:10])
    assert connection.recv(1) == b""


def test_who_asks_now_and_then_is_kept(asking):
    connection = asking()
    connection.sendall(ASK)
    assert reply_on(connection)
    connection.sendall(ASK[:10])
    connection.sendall(ASK[10:])
    assert reply_on(connection)
    connection.settimeout(0.6)  # the half head was made whole in time, and has no say any more
    with pytest.raises(TimeoutError):
        connection.recv(1)


def test_a_text_for_the_page_has_its_time_too(asking):
    connection = asking()
    connection.sendall(
        b"POST /page/markdown HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n{"
    )
    assert connection.recv(100).startswith(b"HTTP/1.1 408")
