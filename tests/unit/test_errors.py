"""What errors carry, and what they let go."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tieline.errors import AppUnreachable, TielineError, untrace


def refuse() -> None:
    try:
        raise OSError("refused")
    except OSError as cause:
        raise AppUnreachable("no app") from cause


def lose() -> None:
    try:
        refuse()
    except TielineError as error:
        raise error from error


@pytest.mark.parametrize("fail", [refuse, lose])
def test_an_error_lets_go_of_its_frames_and_those_of_its_causes(fail: Callable[[], None]) -> None:
    with pytest.raises(TielineError) as caught:
        fail()
    error = caught.value
    behind = error.__context__
    assert isinstance(behind, OSError)
    assert behind.__traceback__ is not None

    untrace(error)

    assert error.__traceback__ is None
    assert behind.__traceback__ is None
