"""Requests and responses at the border of HTTP/1.1, each with what must come of it.

The cases that start with ``malformed/``, ``conn/``, ``reqbody/``, ``verb/``, ``path/``, ``query/`` and ``reqhead/``
send what a running daprd was recorded with; the others are smuggling attempts of our own.
"""

from __future__ import annotations

from typing import Final, NamedTuple

TARGET: Final = b"/v1.0/invoke/callee/method/foo"


class Refused(NamedTuple):
    """A request that is answered with ``status`` and closes its connection."""

    name: str
    data: bytes
    status: int = 400
    text: bytes = b""
    """Beginning of the body of the answer, if it matters."""


class Accepted(NamedTuple):
    """A request that passes."""

    name: str
    data: bytes
    path: bytes = TARGET
    query: bytes | None = None
    body: bytes = b""
    fields: tuple[tuple[bytes, bytes], ...] = ()
    """Fields beside ``host`` and framing ones."""


def get(
    line: bytes = b"GET " + TARGET + b" HTTP/1.1", fields: bytes = b"", host: bytes = b"Host: localhost\r\n"
) -> bytes:
    return line + b"\r\n" + host + fields + b"\r\n"


def post(fields: bytes, body: bytes = b"") -> bytes:
    return get(b"POST " + TARGET + b" HTTP/1.1", fields) + body


def chunked(body: bytes, fields: bytes = b"") -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n" + fields, body)


def target(path: bytes, verb: bytes = b"GET") -> bytes:
    return get(verb + b" " + path + b" HTTP/1.1")


_BAD_NAME: Final = b"400 Bad Request: invalid header name"
_BAD_CODING: Final = b"Unsupported transfer encoding"
_CHUNK: Final = b"2\r\nhi\r\n0\r\n\r\n"

REFUSED: Final = [
    Refused("malformed/no-version", get(b"GET " + TARGET, host=b"")),
    Refused("malformed/empty-line-only", b"\r\n\r\n"),
    Refused("malformed/garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    Refused("malformed/bad-version", get(b"GET " + TARGET + b" HTTP/x.y")),
    Refused("malformed/http2-in-line", get(b"GET " + TARGET + b" HTTP/2.0"), 505, b"505 HTTP Version Not Supported"),
    Refused("malformed/http3", get(b"GET " + TARGET + b" HTTP/3.0"), 505, b"505 HTTP Version Not Supported"),
    Refused("malformed/lower-case-http", get(b"GET " + TARGET + b" http/1.1")),
    Refused("malformed/two-spaces", get(b"GET  " + TARGET + b" HTTP/1.1")),
    Refused("malformed/tab-separated", get(b"GET\t" + TARGET + b" HTTP/1.1")),
    Refused("malformed/space-in-target", target(b"/v1.0/invoke/callee/method/f oo")),
    Refused("malformed/leading-space", get(b" GET " + TARGET + b" HTTP/1.1")),
    Refused("malformed/verb-bad-character", target(TARGET, b"G@T(")),
    Refused("malformed/verb-empty", get(b" " + TARGET + b" HTTP/1.1")),
    Refused("malformed/header-no-colon", get(fields=b"X-Foo\r\n")),
    Refused("malformed/header-space-before-colon", get(fields=b"X-Foo : 1\r\n"), 400, _BAD_NAME),
    Refused("malformed/header-space-in-name", get(fields=b"X Foo: 1\r\n"), 400, _BAD_NAME),
    Refused("malformed/header-empty-name", get(fields=b": 1\r\n")),
    Refused("malformed/header-obs-fold", get(fields=b"X-Foo: a\r\n b\r\n")),
    Refused("malformed/header-obs-fold-tab", get(fields=b"X-Foo: a\r\n\tb\r\n")),
    Refused("malformed/header-nul", get(fields=b"X-Foo: a\0b\r\n")),
    Refused("malformed/header-cr", get(fields=b"X-Foo: a\rb\r\n")),
    Refused("malformed/header-control", get(fields=b"X-Foo: a\x01b\r\n")),
    Refused("malformed/header-name-non-ascii", get(fields=b"X-F\xc3\xbc: 1\r\n")),
    Refused("malformed/bare-lf", b"GET " + TARGET + b" HTTP/1.1\nHost: localhost\n\n"),
    Refused("malformed/bare-lf-in-one-header", get(fields=b"X-Foo: 1\nX-Bar: 2\r\n")),
    Refused("malformed/no-host", get(host=b""), 400, b"400 Bad Request: missing required Host header"),
    Refused("malformed/two-hosts", get(fields=b"Host: other\r\n")),
    Refused("malformed/length-twice-same", post(b"Content-Length: 2\r\nContent-Length: 2\r\n", b"hi")),
    Refused("malformed/length-twice-different", post(b"Content-Length: 2\r\nContent-Length: 3\r\n", b"hi!")),
    Refused("malformed/length-negative", post(b"Content-Length: -1\r\n")),
    Refused("malformed/length-hex", post(b"Content-Length: 0x2\r\n", b"hi")),
    Refused("malformed/length-huge", post(b"Content-Length: 99999999999999999999\r\n")),
    Refused("malformed/length-and-chunked", post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", _CHUNK)),
    Refused("malformed/chunked-and-length", post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", _CHUNK)),
    Refused("malformed/te-unknown", post(b"Transfer-Encoding: gzip\r\n"), 501, _BAD_CODING),
    Refused("malformed/te-twice", post(b"Transfer-Encoding: chunked\r\n" * 2, _CHUNK), 501, _BAD_CODING),
    Refused("malformed/te-obfuscated", post(b"Transfer-Encoding: xchunked\r\n", _CHUNK), 501),
    Refused("malformed/te-space-before-colon", post(b"Transfer-Encoding : chunked\r\nContent-Length: 2\r\n", b"hi")),
    Refused("malformed/absolute-target-bad", target(b"http://[::1")),
    Refused("malformed/chunk-size-not-hex", chunked(b"zz\r\nhi\r\n0\r\n\r\n"), 400, b"invalid byte in chunk length"),
    Refused("malformed/chunk-size-empty", chunked(b"\r\nhi\r\n0\r\n\r\n"), 400, b"empty hex number for chunk length"),
    Refused("malformed/chunk-size-negative", chunked(b"-2\r\nhi\r\n0\r\n\r\n"), 400, b"invalid byte in chunk length"),
    Refused("malformed/chunk-size-0x", chunked(b"0x2\r\nhi\r\n0\r\n\r\n"), 400, b"invalid byte in chunk length"),
    Refused("malformed/chunk-data-too-long", chunked(b"2\r\nhi!\r\n0\r\n\r\n"), 400, b"malformed chunked encoding"),
    Refused("malformed/chunk-bare-lf", chunked(b"2\nhi\n0\n\n"), 400, b"chunked line ends with bare LF"),
    Refused("malformed/chunk-long-extension", chunked(b"2;" + b"x" * 5000 + b"\r\nhi\r\n0\r\n\r\n")),
    Refused("path/bad-escape", target(b"/a%zzb")),
    Refused("path/cut-escape", target(b"/a%2")),
    Refused("reqbody/expect-other", post(b"Expect: something\r\nContent-Length: 5\r\n", b"hello"), 417),
    Refused("limits/h2c-off-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    Refused("blank line in front", b"\r\n" + get()),
    Refused("http 0.9 version", get(b"GET / HTTP/0.9")),
    Refused("two-digit version", get(b"GET / HTTP/1.10")),
    Refused("blank after the version", get(b"GET / HTTP/1.1 ")),
    Refused("bare CR before the line end", get(b"GET / HTTP/1.1\r")),
    Refused("bare CR for a line end", get(fields=b"X: 1\rContent-Length: 5\r\n")),
    Refused("vertical tab in the line", get(b"GET\x0b/ HTTP/1.1")),
    Refused("NUL in the target", target(b"/a\0b")),
    Refused("DEL in the target", target(b"/a\x7fb")),
    Refused("tab in the target", target(b"/a\tb")),
    Refused("empty target", get(b"GET  HTTP/1.1")),
    Refused("target without slash or scheme", target(b"foo")),
    Refused("authority form of a GET", target(b"callee:80")),
    Refused("asterisk of a GET", target(b"*")),
    Refused("URL without authority", target(b"http:///x")),
    Refused("URL without slashes", target(b"mailto:x@y")),
    Refused("folded first line", get(host=b" Host: localhost\r\n")),
    Refused("tab before the colon", get(fields=b"X\t: 1\r\n")),
    Refused("DEL in a value", get(fields=b"X: a\x7f\r\n")),
    Refused("escape in a value", get(fields=b"X: \x1b[31m\r\n")),
    Refused("form feed around a length", post(b"Content-Length: \x0c5\r\n", b"hello")),
    Refused("bad host", get(host=b"Host: a/b\r\n"), 400, b"400 Bad Request: malformed Host header"),
    Refused("two hosts in a host", get(host=b"Host: a, b c\r\n"), 400, b"400 Bad Request: malformed Host header"),
    Refused("two equal hosts in HTTP/1.0", b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n"),
    Refused("length list", post(b"Content-Length: 5, 5\r\n", b"hello")),
    Refused("length with a plus", post(b"Content-Length: +5\r\n", b"hello")),
    Refused("length with an underscore", post(b"Content-Length: 1_0\r\n", b"helloworld")),
    Refused("length in Arabic digits", post("Content-Length: \u0665\r\n".encode(), b"hello")),
    Refused("length with inner blank", post(b"Content-Length: 1 0\r\n", b"helloworld")),
    Refused("empty length", post(b"Content-Length:\r\n")),
    Refused("length that is a fraction", post(b"Content-Length: 5.0\r\n", b"hello")),
    Refused("zero length and chunked", post(b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", _CHUNK)),
    Refused("empty coding", post(b"Transfer-Encoding:\r\nContent-Length: 2\r\n", b"hi"), 501),
    Refused("identity", post(b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n", b"hi"), 501),
    Refused("chunked and identity", post(b"Transfer-Encoding: chunked, identity\r\n", _CHUNK), 501),
    Refused("gzip, chunked", post(b"Transfer-Encoding: gzip, chunked\r\n", _CHUNK), 501),
    Refused("chunked with a parameter", post(b"Transfer-Encoding: chunked;q=1\r\n", _CHUNK), 501),
    Refused("quoted chunked", post(b'Transfer-Encoding: "chunked"\r\n', _CHUNK), 501),
    Refused("coding in two lines", post(b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", _CHUNK), 501),
    Refused("vertical tab before chunked", post(b"Transfer-Encoding: \x0bchunked\r\n", _CHUNK)),
    Refused("coding hidden in a fold", post(b"X:\r\n Transfer-Encoding: chunked\r\n", _CHUNK)),
    Refused("chunked in HTTP/1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + _CHUNK),
    Refused("expect twice", post(b"Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 1\r\n", b"x"), 417),
    Refused("chunk size with sign", chunked(b"+2\r\nhi\r\n0\r\n\r\n")),
    Refused("chunk size with blank in front", chunked(b" 2\r\nhi\r\n0\r\n\r\n")),
    Refused("chunk size with underscore", chunked(b"0_2\r\nhi\r\n0\r\n\r\n")),
    Refused("chunk size of 17 digits", chunked(b"00000000000000002\r\nhi\r\n0\r\n\r\n")),
    Refused("chunk size that would wrap around", chunked(b"10000000000000002\r\nhi\r\n0\r\n\r\n")),
    Refused("chunk size ended by bare CR", chunked(b"2\rhi\r\n0\r\n\r\n")),
    Refused("chunk extension with bare LF", chunked(b"2;a\nb\r\nhi\r\n0\r\n\r\n")),
    Refused("chunk extension with bare CR", chunked(b"2;a\rb\r\nhi\r\n0\r\n\r\n")),
    Refused("chunk extension with NUL", chunked(b"2;a\0b\r\nhi\r\n0\r\n\r\n")),
    Refused("chunk extension without semicolon", chunked(b"2 a\r\nhi\r\n0\r\n\r\n")),
    Refused("chunk ended by LF", chunked(b"2\r\nhi\n0\r\n\r\n")),
    Refused("chunk shorter than said", chunked(b"4\r\nhi\r\n0\r\n\r\n")),
    Refused("last chunk ended by LF", chunked(b"2\r\nhi\r\n0\n\n")),
    Refused("extension flood", chunked((b"1;" + b"e" * 200 + b"\r\nx\r\n") * 90)),
    Refused("trailer content-length", chunked(b"0\r\nContent-Length: 5\r\n\r\n")),
    Refused("trailer transfer-encoding", chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n")),
    Refused("trailer host", chunked(b"0\r\nHost: other\r\n\r\n")),
    Refused("trailer authorization", chunked(b"0\r\nAUTHORIZATION: Bearer x\r\n\r\n")),
    Refused("trailer dapr-api-token", chunked(b"0\r\nDapr-Api-Token: x\r\n\r\n")),
    Refused("trailer dapr-app-id", chunked(b"0\r\ndapr-app-id: other\r\n\r\n")),
    Refused("trailer of a trailer", chunked(b"0\r\nTrailer: x\r\n\r\n")),
    Refused("trailer folded", chunked(b"0\r\nX: a\r\n b\r\n\r\n")),
    Refused("trailer with bare LF", chunked(b"0\r\nX: a\nY: b\r\n\r\n")),
    Refused("trailer without colon", chunked(b"0\r\nGET / HTTP/1.1\r\n\r\n")),
    Refused("trailer with blank in the name", chunked(b"0\r\nX : a\r\n\r\n")),
    Refused("trailers too long", chunked(b"0\r\nX: " + b"v" * 9000 + b"\r\n\r\n")),
    Refused("too many trailers", chunked(b"0\r\n" + b"X: v\r\n" * 65 + b"\r\n")),
    Refused("too many fields", get(fields=b"X: v\r\n" * 256), 431, b"431 Request Header Fields Too Large"),
]  # fmt: skip

ACCEPTED: Final = [
    Accepted("malformed/http12", get(b"GET " + TARGET + b" HTTP/1.2")),
    Accepted("malformed/empty-host", get(host=b"Host:\r\n")),
    Accepted("malformed/absolute-target", target(b"http://elsewhere.example" + TARGET)),
    Accepted("malformed/fragment-target", target(TARGET + b"#frag"), TARGET + b"#frag"),
    Accepted("conn/http10", b"GET " + TARGET + b" HTTP/1.0\r\n\r\n"),
    Accepted("reqbody/crlf", post(b"Content-Length: 4\r\n", b"\r\n\r\n"), body=b"\r\n\r\n"),
    Accepted("reqbody/chunked-upper-case", post(b"transfer-encoding: CHUNKED\r\n", b"1\r\nx\r\n0\r\n\r\n"), body=b"x"),
    Accepted("reqbody/chunked-self", chunked(b"6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n"), body=b"hello world"),
    Accepted("reqbody/chunked-empty", chunked(b"0\r\n\r\n")),
    Accepted("reqbody/chunked-extension", chunked(b'5;a=b;c="d"\r\nhello\r\n0;x\r\n\r\n'), body=b"hello"),
    Accepted("reqbody/chunked-trailers", chunked(b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"), body=b"hello"),
    Accepted("chunk-size-space", chunked(b"5 \r\nhello\r\n0\t \r\n\r\n"), body=b"hello"),
    Accepted("chunk size with leading zeros", chunked(b"0005\r\nhello\r\n000\r\n\r\n"), body=b"hello"),
    Accepted("verb/Get", target(TARGET, b"Get")),
    Accepted("verb/PROPFIND", target(TARGET, b"PROPFIND")),
    Accepted("verb/any token", target(TARGET, b"x!#$%&'*+-^`|~y")),
    Accepted("verb/OPTIONS-star", target(b"*", b"OPTIONS"), b"*"),
    Accepted("verb/CONNECT-authority", target(b"callee:80", b"CONNECT"), b"callee:80"),
    Accepted("verb/CONNECT-path", target(TARGET, b"CONNECT")),
    Accepted("verb/GET-with-body", get(fields=b"Content-Length: 5\r\n") + b"hello", body=b"hello"),
    Accepted("path/raw-braces", target(b"/{a}|^`<>\\\""), b"/{a}|^`<>\\\""),
    Accepted("path/raw UTF-8", target(b"/gr\xc3\xbc\xc3\x9fe"), b"/gr\xc3\xbc\xc3\x9fe"),
    Accepted("path/encoded-cr", target(b"/a%0Db"), b"/a%0Db"),
    Accepted("query/bad-escape", target(TARGET + b"?a=%zz&b=%"), query=b"a=%zz&b=%"),
    Accepted("query/second-question", target(TARGET + b"?a=1?b=2"), query=b"a=1?b=2"),
    Accepted("query/empty", target(TARGET + b"?"), query=b""),
    Accepted("URL with query only", target(b"https://user@[::1]:80?q"), b"/", b"q"),
    Accepted("reqhead/empty-values", get(fields=b"X-Empty:\r\nX-Space:   \r\nX-Trim:  \t a b \t \r\n"),
             fields=((b"x-empty", b""), (b"x-space", b""), (b"x-trim", b"a b"))),
    Accepted("reqhead/odd-names", get(fields=b"x_under: 1\r\nX.Dot: 2\r\nx!#$%&'*+-^`|~y: 3\r\n123: 4\r\n"),
             fields=((b"x_under", b"1"), (b"x.dot", b"2"), (b"x!#$%&'*+-^`|~y", b"3"), (b"123", b"4"))),
    Accepted("reqhead/utf8-value", get(fields=b"X-U: gr\xc3\xbc\xc3\x9fe\r\nX-L: \xfc\r\n"),
             fields=((b"x-u", b"gr\xc3\xbc\xc3\x9fe"), (b"x-l", b"\xfc"))),
    Accepted("reqhead/cookies", get(fields=b'Cookie: a=1; b="x y"\r\nCookie: c=3\r\n'),
             fields=((b"cookie", b'a=1; b="x y"'), (b"cookie", b"c=3"))),
    Accepted("malformed/request-smuggled-in-body", post(b"Content-Length: %d\r\n" % len(get()), get()), body=get()),
]  # fmt: skip
