"""Pieces of something that wait to be read."""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Final

SMALL_PIECE: Final = 512
JOINED_PIECE: Final = 4096
"""Pieces under the first are joined up to the second: single bytes must not cost a hundred times their size."""


def add_piece(pieces: MutableSequence[bytes], data: bytes) -> None:
    """Add a piece that came behind others."""
    if pieces and len(data) < SMALL_PIECE and len(pieces[-1]) < JOINED_PIECE:
        pieces[-1] += data
    else:
        pieces.append(data)
