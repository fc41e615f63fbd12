"""Baggage: accepted as W3C has it, refused with the reason that Dapr gives."""

from __future__ import annotations

import pytest

from tieline.errors import GrpcCode
from tieline.wire.baggage import MAX_BYTES, MAX_MEMBERS, BadBaggage, check


@pytest.mark.rule("H-56", "O-10")
@pytest.mark.parametrize(
    ("values", "joined"),
    [
        ([], None),
        ([b""], None),
        ([b"k1=v1,k2=v2;prop=1"], b"k1=v1,k2=v2;prop=1"),
        ([b"k1=v1", b"k2=v2"], b"k1=v1,k2=v2"),
        ([b"k1=v1,k2=v%202;p=1"], b"k1=v1,k2=v%202;p=1"),
        ([b"k1 = v1 , k2=v2"], b"k1 = v1 , k2=v2"),
        ([b"k=;p; q = 2 ;"], b"k=;p; q = 2 ;"),
        ([b"k=a=b"], b"k=a=b"),
    ],
)
def test_good_baggage_is_joined(values: list[bytes], joined: bytes | None) -> None:
    assert check(values) == joined


@pytest.mark.rule("H-56", "O-10")
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([b"no-equals-sign"], 'invalid baggage list-member: "no-equals-sign"'),
        ([b"nonsense without equals"], 'invalid baggage list-member: "nonsense without equals"'),
        ([b"k=v", b"bad baggage"], 'invalid baggage list-member: "bad baggage"'),
        ([b"k=v,"], 'invalid baggage list-member: ""'),
        ([b"x;p=1"], 'invalid baggage list-member: "x;p=1"'),
        ([b'k"=v'], r'invalid key: "k\""'),
        ([b"=v"], 'invalid key: ""'),
        ([b"k=a b"], 'invalid value: "a b"'),
        ([b"k=\xc3\xbc"], 'invalid value: "ü"'),
        ([b"k=%zz"], 'invalid value: invalid URL escape "%zz"'),
        ([b"k=v%"], 'invalid value: invalid URL escape "%"'),
        ([b"x,k=v,y"], 'invalid baggage list-member: "x"\ninvalid baggage list-member: "y"'),
        (
            [b"a,b,c,d,e,f,g"],
            "".join(f'invalid baggage list-member: "{name}"\n' for name in "abcde") + "and 2 more invalid member(s)",
        ),
        (
            [b",".join(b"k%d=v" % number for number in range(MAX_MEMBERS + 1))],
            "too many list-members in baggage-string",
        ),
        ([b"k=v;p q=1"], 'invalid baggage list-member property: "p q=1"'),
        ([b"k=v;p=a b"], 'invalid baggage list-member property: "p=a b"'),
    ],
)
def test_bad_baggage_is_refused_with_its_reason(values: list[bytes], reason: str) -> None:
    with pytest.raises(BadBaggage) as caught:
        check(values)

    assert caught.value.text == f"invalid baggage header: {reason}"
    assert caught.value.http_status == 400
    assert caught.value.grpc_code is GrpcCode.INVALID_ARGUMENT


@pytest.mark.rule("O-10")
@pytest.mark.parametrize(
    "value",
    [
        b",".join(b"k%d=%b" % (number, b"v" * 100) for number in range(MAX_BYTES // 100)),
        b"k=" + b"v" * MAX_BYTES,
        b",".join(b"k%d=v" % number for number in range(MAX_MEMBERS + 1)),
    ],
)
def test_baggage_is_bounded(value: bytes) -> None:
    with pytest.raises(BadBaggage):
        check([value])
