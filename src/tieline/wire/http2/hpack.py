"""Header lists to HPACK blocks and back, by jh2's codec, with what HTTP/2 demands of a header list.

jh2 offers its Rust codec only by this private module (its ``jh2.hpack`` package is the slow pure-Python
twin with the same results); this is the one place that touches it.
"""

from __future__ import annotations

from typing import Final

from jh2._hazmat import Decoder, Encoder, HPACKError, OversizedHeaderListError

from tieline.model import Headers

NEVER_INDEXED: Final = frozenset(
    {b"authorization", b"cookie", b"set-cookie", b"dapr-api-token", b"proxy-authorization"}
)
"""Fields that never enter a compression table, so that nobody can guess them by its size."""
TABLE_SIZE: Final = 4096

__all__ = ["BadBlock", "BlockTooLarge", "HeaderDecoder", "HeaderEncoder"]


class BadBlock(Exception):
    """A header block that is no HPACK. The connection's compression state is lost."""


class BlockTooLarge(BadBlock):
    """A header block that unpacks to more than the hard limit."""


class HeaderEncoder:
    """Packs header lists for one connection."""

    __slots__ = ("_encode", "_encoder")

    def __init__(self) -> None:
        self._encoder = Encoder()
        self._encode = self._encoder.encode

    def resize(self, size: int) -> None:
        """Obey the peer's SETTINGS_HEADER_TABLE_SIZE; more than ``TABLE_SIZE`` is never used."""
        self._encoder.header_table_size = min(size, TABLE_SIZE)

    def encode(self, pseudo: list[tuple[bytes, bytes, bool]], headers: Headers) -> bytes:
        """Return the block of pseudo-headers (already with their flag) followed by ``headers``."""
        never = NEVER_INDEXED
        pseudo += [(name, value, name in never) for name, value in headers]
        return self._encode(pseudo)


class HeaderDecoder:
    """Unpacks header blocks of one connection."""

    __slots__ = ("_decode", "_decoder", "_table_size")

    def __init__(self, hard_limit: int) -> None:
        self._decoder = Decoder(hard_limit)
        self._decode = self._decoder.decode
        self._table_size = self._decoder.header_table_size

    def decode(self, block: bytes) -> list[tuple[bytes, bytes, bool]]:
        """Return name, value and a flag for each field.

        Raises:
            BadBlock: The block is broken, or its table size update is not at its start (RFC 7541 §4.2).
            BlockTooLarge: It unpacks to more than the hard limit.
        """
        try:
            fields = self._decode(block, raw=True)
        except OversizedHeaderListError as error:
            raise BlockTooLarge("header list too large") from error
        except HPACKError as error:
            raise BadBlock(str(error)) from error
        size = self._decoder.header_table_size
        if size != self._table_size:
            if block[0] & 0xE0 != 0x20:
                raise BadBlock("table size update not at the start of the block")
            self._table_size = size
        return fields  # type: ignore[return-value]  # raw=True gives bytes
