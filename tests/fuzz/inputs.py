"""Bad inputs of every kind, each made from nothing but a seed and its number."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tests.fuzz.wire import frame

PERIOD = 'ticker: "btc_usd", fromDt: "2026-01-31T00:00:00Z", toDt: "2026-02-01T00:00:00Z"'
DOCUMENTS = [
    '{ latestPrice(ticker: "btc_usd") { price timestamp observedAt source testnet ticker } }',
    '{ latestPrices(tickers: ["btc_usd", "eth_usd"]) { ...P } } fragment P on Price { price timestamp }',
    '{ priceHistory(ticker: "eth_usd", limit: 5, before: "2026-01-31T12:00:00Z") { price timestamp } }',
    f"{{ pricesInPeriod({PERIOD}, limit: 10) {{ price ... on Price {{ timestamp }} }} }}",
    f"{{ candles({PERIOD}, interval: ONE_HOUR) {{ start open high low close samples complete }} }}",
    f"{{ coverage({PERIOD}) {{ expected present ratio complete gaps(limit: 3) {{ fromDt toDt missing reason }} }} }}",
    "{ tickers { name intervalSeconds latest { price } lagSeconds stale firstTimestamp } }",
    '{ fetchJob(id: "00000000000000000000000000000000") { id status failures { code message } } }',
    'mutation { fetchPrices(tickers: ["btc_usd"]) { id status tickers enqueuedAt } }',
    'subscription { priceUpdates(tickers: ["btc_usd"], since: "2026-01-31T12:00:00Z") { price timestamp } }',
    'subscription { priceUpdates(after: "AQAAAAAAAAAFAALsrJkRUABidGNfdXNk") { price cursor } }',
    'subscription { fetchProgress(id: "0") { status } }',
    "{ __schema { types { name fields { name type { name ofType { name } } } } } }",
    'query A($a: Boolean = true) { latestPrices @include(if: $a) { price } __type(name: "A") { name } }',
]
TYPED = """query (
  $s: String!, $n: Int!, $d: DateTime, $e: DateTime!, $l: [String!], $i: CandleInterval!, $b: Boolean = false, $j: ID!
) {
  latestPrice(ticker: $s, maxAgeSeconds: $n) @skip(if: $b) { price } latestPrices(tickers: $l) { price }
  priceHistory(ticker: $s, limit: $n, before: $d) { price timestamp }
  candles(ticker: $s, interval: $i, fromDt: $e, toDt: $e, limit: $n) { open }
  coverage(ticker: $s, fromDt: $e, toDt: $e) { gaps(limit: $n) { missing } } fetchJob(id: $j) { id }
}"""
PLANNED = """query ($s: String!, $n: Int!, $d: DateTime, $l: [String!]) {
  latestPrices(tickers: $l) { price } priceHistory(ticker: $s, limit: $n, before: $d) { price timestamp }
}"""
TOKENS = [
    *[
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        ":",
        "!",
        "$",
        "|",
        "&",
        "=",
        "...",
        "@",
        '"',
        '"""',
        "#",
        ",",
        "\\",
        "\u2019",
        "\x00",
        "\ufeff",
        "\u2028",
        "😀",
    ],
    *[
        "query",
        "mutation",
        "subscription",
        "fragment",
        "on",
        "true",
        "false",
        "null",
        "price",
        "ticker",
        "limit",
        "latestPrices",
        "__typename",
    ],
    *[
        "$a",
        "@skip(if:true)",
        "@include(if:$x)",
        "@deprecated",
        '"btc_usd"',
        '"\\u{110000}"',
        '"\\ud800"',
        '"\\uD83D\\uDE00"',
    ],
    *["0", "-0", "00", "1e999", "-1", "2147483648", "99999999999999999999", "0.1e+", "1.0", "\n", "\r\t"],
]


@dataclass(frozen=True)
class Http:
    data: bytes
    is_whole: bool = True
    "Whether an answer is to come."
    is_graphql: bool = True
    "Whether that is GraphQL's."


Input = Http | list[bytes]
"""A request, or the frames of a socket."""


def post(body: bytes, *headers: str, accept: str = "application/json", length: int | None = None) -> bytes:
    lines = [
        "POST /graphql HTTP/1.1",
        "Host: a.test",
        "Content-Type: application/json",
        f"Accept: {accept}",
        f"Content-Length: {len(body) if length is None else length}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def ask(chance: random.Random, document: str, variables: str = "null") -> Input:
    """By any way. `variables`: as the text that they are."""
    body = f'{{"query":{json.dumps(document)},"variables":{variables}}}'.encode("utf-8", "surrogatepass")
    accept = chance.choice(["application/json", "application/graphql-response+json", "text/event-stream", "*/*"])
    match chance.randrange(8):
        case 0:
            target = f"/graphql?query={quote(document, errors='surrogatepass')}&variables={quote(variables)}"
            head = f"GET {target[:63_000]} HTTP/1.1\r\nHost: a.test\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
            return Http(head.encode())
        case 1 | 2:
            return [INIT, frame(1, b'{"type":"subscribe","id":"1","payload":' + body + b"}")]
        case _:
            return Http(post(body, accept=accept))


INIT = frame(1, b'{"type":"connection_init"}')


def document(chance: random.Random) -> Input:
    text = chance.choice(DOCUMENTS)
    for _ in range(chance.randint(1, 4)):
        text = _mutated(chance, text)
    return ask(chance, text, chance.choice(["null", "{}", '{"a":true}']))


def _mutated(chance: random.Random, text: str) -> str:
    begin, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
    piece, many = text[begin:end], chance.choice([2, 10, 50, 300, 1000])
    name = chance.choice(["a", "price", "x" * 101, "é", "__a"])
    match chance.randrange(14):
        case 0:
            return text[:begin] + text[end:]
        case 1:
            return (text[:begin] + piece * many + text[end:])[:30_000]
        case 2 | 3 | 4:
            return text[:begin] + " ".join(chance.choices(TOKENS, k=chance.randint(1, 5))) + text[begin:]
        case 5:
            return text[:end]
        case 6:
            return text.replace(chance.choice(["price", "btc_usd", "5", "{", "limit", "Z", '"']), chance.choice(TOKENS))
        case 7:
            return "{ a " * many + text + "}" * many
        case 8:
            return "{" + " ".join(f"{name}{n}: latestPrices {{ price }}" for n in range(many)) + "}"
        case 9:
            spreads = " ".join(f"fragment F{n} on Query {{ ...F{(n + 1) % 40} ...F{(n + 3) % 40} }}" for n in range(40))
            return "{ ...F0 } " + spreads
        case 10:
            return "{ latestPrices " + "@skip(if: false) " * many + "{ price } }"
        case 11:
            return "{ priceHistory(ticker: " + "[" * many + '"btc_usd"' + "]" * many + ") { price } }"
        case 12:
            declared = " ".join(f"$v{n}: {chance.choice(['Int', '[Int!]!', 'X', 'Price'])}" for n in range(many))
            return f"query ({declared}) {{ __typename }}"
        case _:
            return "".join(chance.choice([c, c, c, c, chr(chance.randrange(0x3000))]) for c in text)


def variables(chance: random.Random) -> Input:
    given = {
        "s": '"btc_usd"',
        "n": "5",
        "d": "null",
        "e": '"2026-01-31T00:00:00Z"',
        "l": '["btc_usd"]',
        "i": '"ONE_DAY"',
        "j": '"0"',
    }
    for name in chance.sample(sorted(given), chance.randint(1, 4)):
        given[name] = _value(chance)
    if chance.random() < 0.3:
        given[chance.choice(["", "__proto__", "\\u0000", "k" * 50_000, "\\ud800", "s"]) + "z"] = _value(chance)
    text = "{" + ",".join(f'"{name}":{value}' for name, value in given.items()) + "}"
    return ask(chance, chance.choice([TYPED, PLANNED, PLANNED]), chance.choice([text] * 9 + [_value(chance)]))


def _value(chance: random.Random) -> str:
    """JSON, or nearly."""
    deep = chance.choice([5, 100, 199, 201, 900, 1025, 5000])
    choices: list[Callable[[], str]] = [
        lambda: chance.choice(["null", "true", "NaN", "Infinity", "-Infinity", "-0", "1e999", "1e-999", "0.1", "nul"]),
        lambda: chance.choice(["", "-"]) + "1" + "0" * chance.choice([0, 9, 18, 19, 30, 308, 4299, 4301, 20_000]),
        lambda: str(chance.choice([0, 1, 10_000, 10_001, 2**31 - 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**64])),
        lambda: "[" * deep + "1" + "]" * deep,
        lambda: '{"a":' * deep + "1" + "}" * deep,
        lambda: "[" * deep,
        lambda: json.dumps(["btc_usd"] * chance.choice([0, 2, 1000, 1001, 9000])),
        lambda: json.dumps(
            [chance.choice([None, 1, "btc_usd", "x_usd", [], {}]) for _ in range(chance.choice([3, 3000]))]
        ),
        lambda: (
            '"'
            + chance.choice(["\\ud800", "\\udc00\\ud800", "\\u0000", "\x01", "\\x", "é", "\u2019", "\\u202e"]) * 3
            + '"'
        ),
        lambda: '"' + "x" * chance.choice([0, 100, 10_000, 120_000]) + '"',
        lambda: json.dumps(_instant(chance)),
        lambda: '{"a":1,"a":{"a":[{}]},"":null}',
    ]
    return chance.choice(choices)()


def _instant(chance: random.Random) -> str:
    year = chance.choice(["2026", "0000", "0001", "9999", "10000", "-2026", "٢٠٢٦", "99999999999"])
    day = chance.choice(["01-31", "02-30", "13-01", "1-1", "W05-6", "031", ""])
    clock = chance.choice(["12:00:00", "24:00:00", "23:59:60", "12", "12:00:00.123456789", "12:00:00,5", "99:99:99"])
    zone = chance.choice(["Z", "+00:00", "-23:59", "+24:00", "+99:99", "", "UTC", " Europe/Berlin", "z", "+00:00:01"])
    return f"{year}-{day}{chance.choice('Tt ')}{clock}{zone}"


def headers(chance: random.Random) -> Input:
    body = json.dumps({"query": "{ latestPrices { price } }"}).encode()
    junk = "".join(chr(chance.choice([*range(33, 127), 0xE9, 0xFF])) for _ in range(chance.choice([1, 20, 600, 9000])))
    quality = chance.choice(["", ";q=0", ";q=1", ";q=nan", ";q=-1", ";q=1e9", ";Q=0.5", ";q=", ";;;"])
    lines = [
        f"Accept: {chance.choice(['*/*', 'text/html', 'application/*', 'text/event-stream'])}{quality}, {junk[:30]}",
        f"Accept: {', '.join(['application/json' + quality] * chance.choice([1, 30, 3000]))}",
        f"Content-Type: {chance.choice(['text/plain', 'application/json;charset=utf-16', 'text/xml', junk])}",
        f"Content-Encoding: {chance.choice(['gzip', 'br', 'identity', junk])}",
        f"Accept-Encoding: {junk}",
        f"Authorization: {chance.choice(['Bearer', 'Bearer ', 'Basic', 'bEaReR'])} {junk}",
        f"Origin: {chance.choice(['null', 'http://', 'https://a.test', 'file://', junk])}",
        f"X-Forwarded-For: {chance.choice(['1.2.3.4, ' * 50, '::1', junk, '[::1]:80', '999.1.1.1'])}",
        f"X-Forwarded-Proto: {junk}",
        f"Host: {junk}",
        f"Expect: {chance.choice(['100-continue', junk])}",
        f"Connection: {chance.choice(['keep-alive', 'Upgrade', 'close, Content-Length', junk])}",
        f"Upgrade: {chance.choice(['websocket', 'h2c', 'TLS/1.0'])}",
        f"If-None-Match: {junk}",
        f"Transfer-Encoding: {chance.choice(['chunked', 'gzip, chunked', 'chunked, chunked', 'identity', 'xchunked'])}",
        f"Content-Length: {chance.choice(['0', '1', '-1', '+5', '0x10', '5, 5', '99999999999999999999', 'NaN', junk])}",
        f"Cookie: {junk}",
        f"Range: bytes={junk}",
        junk,
        f" folded{junk[:20]}",
        f"{junk[:40]}: x",
        f"X-A: {'a' * chance.choice([8000, 70_000])}",
        "\r\n".join(f"X-{n}: {n}" for n in range(chance.choice([100, 5000]))),
    ]
    chosen = chance.sample(lines, chance.randint(1, 3))
    if chance.random() < 0.25:
        method = chance.choice(
            ["GET", "HEAD", "PUT", "OPTIONS", "DELETE", "TRACE", "CONNECT", "PATCH", "post", "X" * 50]
        )
        path = chance.choice(
            [
                "/graphql",
                "/graphql/",
                "//graphql",
                "/graphql/../livez",
                "/%00",
                "*",
                "http://a.test/graphql",
                "/?" + junk,
                "/assets/../app.txt",
                "/assets/%2e%2e%2fapp",
                "/readyz",
                "/livez",
                "/schema.graphql",
                "/",
                "/é",
                "/graphql?query=",
            ]
        )
        head = f"{method} {path} HTTP/{chance.choice(['1.1', '1.1', '1.0', '2.0', '9'])}\r\nHost: a.test\r\n"
        data = (head + "\r\n".join(chosen) + "\r\nConnection: close\r\n\r\n").encode("latin-1", "replace")
        return Http(data, is_whole=False, is_graphql=False)
    # Which of two lengths or encodings counts is for the server to refuse: it may be waiting for more.
    return Http(post(body, *chosen), is_whole=False, is_graphql=False)


def bodies(chance: random.Random) -> Input:
    whole = json.dumps({"query": chance.choice(DOCUMENTS), "variables": {}, "operationName": None}).encode()
    deep = chance.choice([100, 1000, 5000, 60_000])
    edge = 128 * 1024 + chance.choice([-1, 0, 1, 1000, 200_000])
    choices: list[Callable[[], bytes]] = [
        lambda: whole[: chance.randrange(len(whole))],
        lambda: chance.randbytes(chance.choice([1, 100, 10_000, 130_000])),
        lambda: gzip.compress(whole),
        lambda: b"\xef\xbb\xbf" + whole,
        lambda: whole.decode().encode(chance.choice(["utf-16", "utf-16-le", "utf-32"])),
        lambda: b"[" * deep + b"]" * deep,
        lambda: b'{"query":' * deep + b"1" + b"}" * deep,
        lambda: b'{"' + b"k" * chance.choice([10_000, 130_000]) + b'":1,' + whole[1:],
        lambda: chance.choice(
            [b"", b" ", b"null", b"1", b'""', b"[]", b"{}", b"true", b"NaN", b'{"query":""}', b"\x00"]
        ),
        lambda: b"[" + b",".join([whole] * chance.choice([1, 2, 100])) + b"]",
        lambda: whole[:-1] + b',"query":' + chance.choice([b"5", b'"{__typename}"', b"null", b"[]"]) + b"}",
        lambda: (
            whole[:-1]
            + b',"operationName":'
            + chance.choice([b"5", b'"\\ud800"', b'"' + b"A" * 50_000 + b'"', b"{}"])
            + b"}"
        ),
        lambda: (
            whole[:-1]
            + b',"extensions":'
            + chance.choice([b"5", b"[]", b'{"persistedQuery":{"version":1}}', b'""'])
            + b"}"
        ),
        lambda: whole + b" " * (edge - len(whole)),
        lambda: whole + chance.choice([b"x", b"\x00", b"{}", whole]),
        lambda: whole.replace(
            b"price", chance.choice([b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\xaf", b"\x00", b"\\u00", b"\n"])
        ),
        lambda: b"query=%7B__typename%7D&variables=%7B%7D",
        lambda: b'--x\r\nContent-Disposition: form-data; name="operations"\r\n\r\n{}\r\n--x--\r\n',
    ]
    return Http(post(chance.choice(choices)(), accept=chance.choice(["*/*", "application/graphql-response+json"])))


def raw(chance: random.Random) -> Input:
    body = json.dumps({"query": "{ latestPrices { price } }"}).encode()
    kept = post(body).replace(b"Connection: close\r\n", b"")
    chunked = kept.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked").removesuffix(body)
    size = chance.choice(
        [b"zz", b"-5", b"ffffffffffffffff", b"0x5", b"5;" + b"e" * 5000, b"", b" 5", b"5 ", b"1" * 100]
    )
    choices: list[Callable[[], bytes]] = [
        lambda: kept * chance.choice([2, 10, 50]),
        lambda: kept[: chance.randrange(len(kept))],
        lambda: kept + chance.randbytes(50),
        lambda: chunked + size + b"\r\nhello\r\n0\r\n\r\n",
        lambda: chunked + b"%x\r\n" % len(body) + body + b"XX0\r\n\r\n",
        lambda: chunked + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n",
        lambda: chunked + b"0\r\n" + b"X-Trailer: 1\r\n" * chance.choice([1, 9000]) + b"\r\n",
        lambda: chunked + b"8000\r\n" + b" " * 32768 + b"\r\n" + (b"8000\r\n" + b" " * 32768 + b"\r\n") * 40,
        lambda: kept.replace(b"\r\n", chance.choice([b"\n", b"\r", b"\n\n", b"\r\n\r\n", b"\0\r\n"])),
        lambda: kept.replace(b"HTTP/1.1", chance.choice([b"HTTP/0.9", b"HTTP/1.2", b"ICY", b"", b"HTTP/1.1 \x00"])),
        lambda: chance.randbytes(chance.choice([1, 10, 1000, 100_000])),
        lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(508),
        lambda: kept.replace(b"Host", b"X: y\r\n" * 9000 + b"Host"),
        lambda: b"GET " + b"/" * chance.choice([100, 70_000]) + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        lambda: bytes(byte if chance.random() > 0.02 else chance.randrange(256) for byte in kept),
        lambda: kept.replace(b"Content-Length", b"Content-Length: 3\r\nContent-Length"),
        lambda: kept.replace(b"Content-Length", b"Transfer-Encoding: chunked\r\nContent-Length"),
    ]
    return Http(chance.choice(choices)(), is_whole=False, is_graphql=False)


def socket(chance: random.Random) -> Input:
    frames = [INIT] if chance.random() < 0.8 else []
    return frames + [_frame(chance) for _ in range(chance.randint(1, 8))]


def _frame(chance: random.Random) -> bytes:
    text = json.dumps(_message(chance)).encode()
    match chance.randrange(16):
        case 0:
            return frame(2, text)
        case 1:
            return frame(
                1, chance.choice([b"", b"{", b"null", b"5", b"[]", b'"x"', b"{}", b"[" * 5000, b"\xff\xfe", b"NaN"])
            )
        case 2:
            return frame(chance.choice([9, 10]), chance.randbytes(chance.choice([0, 125, 126])))
        case 3:
            cut = chance.randrange(len(text))
            return frame(1, text[:cut], fin=False) + frame(0, text[cut:], fin=chance.random() < 0.8)
        case 4:
            return frame(1, b"{", fin=False) + frame(0, b" ", fin=False) * chance.choice([10, 2000]) + frame(0, b"}")
        case 5:
            return frame(
                8, chance.choice([b"", b"\x03", b"\x00\x00", b"\x03\xe8bye", b"\x03\xed", b"\x13\x88", b"\x03\xe8\xff"])
            )
        case 6:
            return frame(1, text, rsv=chance.randrange(1, 8))
        case 7:
            return frame(1, text, masked=False)
        case 8:
            return frame(chance.choice([0, 3, 7, 11, 15]), text)
        case 9:
            return frame(1, text)[: chance.randrange(20)]
        case 10:
            return frame(1, b" " * (128 * 1024 + chance.choice([-100, 1, 100_000])) + text)
        case 11:
            return b"\x81\xff" + b"\xff" * 8 + text
        case _:
            return frame(1, text)


def _message(chance: random.Random) -> Any:
    odd: list[Any] = [None, 5, "", "x" * 200, [], {}, {"a": [[[]]]}, True, "\ud800", 1e300]
    query = chance.choice([*DOCUMENTS, "{", "", "{ a }"])
    payload: Any = {"query": query, "variables": chance.choice([None, {}, {"a": 1}]), "operationName": None}
    if chance.random() < 0.3:
        payload[chance.choice(["query", "variables", "operationName", "extensions", "more"])] = chance.choice(odd)
    if chance.random() < 0.1:
        payload = chance.choice(odd)
    kind: Any = chance.choice(
        ["subscribe"] * 6
        + ["connection_init", "ping", "pong", "complete", "next", "error", "start", "stop", None, 5, []]
    )
    message = {"type": kind, "id": chance.choice(["1", "1", "2", "a" * 129, chance.choice(odd)]), "payload": payload}
    if chance.random() < 0.15:
        del message[chance.choice(["type", "id", "payload"])]
    return message


KINDS: dict[str, Callable[[random.Random], Input]] = {
    "documents": document,
    "variables": variables,
    "headers": headers,
    "bodies": bodies,
    "raw HTTP": raw,
    "socket messages": socket,
}
