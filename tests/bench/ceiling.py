"""`python -m tests.bench.ceiling PORT`: a server that answers everything at once with the same bytes.

It is the fastest that Python can be, so what is measured against it is how much the load generator can ask.
"""

import selectors
import socket
import sys

BODY = b'{"data":{"latestPrice":{"price":"91234.5600","timestamp":"2026-01-01T00:00:00.000000Z","source":"SCHEDULED"}}}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


def serve(port: int) -> None:
    """A request is one packet here: it is small, and the next one is not sent before the answer."""
    with selectors.DefaultSelector() as selector, socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                assert isinstance(key.fileobj, socket.socket)
                try:
                    is_open = key.fileobj.recv(65536) and key.fileobj.send(ANSWER)
                except ConnectionError:
                    is_open = 0
                if not is_open:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
