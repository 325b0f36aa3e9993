"""An upgrade that a client offers and the server does not take, such as to h2c, is ignored (RFC 9110, 7.8).

Java's HttpClient and `curl --http2` offer one with every request. httptools stops at such a request and skips its body,
so the request is parsed once more, without the offer.
"""

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFER = {b"upgrade", b"http2-settings"}
"Headers of the offer; `Connection` lists them, too."


class IgnoringUpgrades(HttpToolsProtocol):
    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("Invalid HTTP request received.")
                return
            except HttpParserUpgrade as upgrade:
                if self._should_upgrade():
                    if self._has_body():  # the library would read it and never answer
                        self.send_400_response("The handshake of a WebSocket has no body.")
                    else:
                        self.handle_websocket_upgrade()
                    return
                if not self._is_ignored():
                    return
                data = self._head_without_offer() + data[upgrade.args[0] :]
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def on_headers_complete(self) -> None:
        if not self._is_ignored():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._is_ignored():
            super().on_message_complete()

    def _is_ignored(self) -> bool:
        return self.parser.should_upgrade() and not self._should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _has_body(self) -> bool:
        headers = dict(self.headers)
        return b"transfer-encoding" in headers or headers.get(b"content-length", b"0").strip(b"0 ") != b""

    def _head_without_offer(self) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(token for token in value.split(b",") if token.strip().lower() not in _OFFER)
            if name not in _OFFER and value:
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"\r\n"])
