"""What a code or a status becomes where the other is spoken; recorded from a running daprd 1.18.3."""

from __future__ import annotations

import base64

import pytest

from tieline._generated.google.rpc.error_details_pb2 import ErrorInfo
from tieline._generated.google.rpc.status_pb2 import Status
from tieline.errors import GrpcCode
from tieline.wire.grpc.codes import code_of_http, http_failure, http_of_code, reason_phrase


@pytest.mark.rule("G-16", "G-18")
@pytest.mark.parametrize(
    ("status", "code"),
    [
        (200, 0), (201, 0), (204, 0), (299, 0), (301, 2), (304, 2), (400, 13), (401, 16), (403, 7), (404, 5), (408, 1),
        (409, 6), (418, 2), (429, 8), (499, 2), (500, 2), (501, 12), (502, 2), (503, 14), (504, 4), (546, 2),
    ],
)  # fmt: skip
def test_an_http_status_becomes_a_code(status: int, code: int) -> None:
    assert code_of_http(status) == code


@pytest.mark.rule("H-79")
@pytest.mark.parametrize(
    ("code", "status"),
    [
        *enumerate([200, 408, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401]),
        (17, 500),
        (20, 500),
        (-1, 500),
    ],
)
def test_a_code_becomes_an_http_status(code: int, status: int) -> None:
    assert http_of_code(code) == status


@pytest.mark.rule("G-18")
@pytest.mark.parametrize(
    ("status", "body", "details"),
    [
        (
            404,
            b'{"status": 404}',
            (
                "CAUSCU5vdCBGb3VuZBp5Cih0eXBlLmdvb2dsZWFwaXMuY29tL2dvb2dsZS5ycGMuRXJyb3JJbmZvEk0KCU5vdCBGb3VuZBIHZGFwci5p"
                "bxoQCglodHRwLmNvZGUSAzQwNBolChJodHRwLmVycm9yX21lc3NhZ2USD3sic3RhdHVzIjogNDA0fQ=="
            ),
        ),
        (
            546,
            b'{"status": 546}',
            (
                "CAIabgoodHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLkVycm9ySW5mbxJCEgdkYXByLmlvGhAKCWh0dHAuY29kZRIDNTQ2GiUK"
                "Emh0dHAuZXJyb3JfbWVzc2FnZRIPeyJzdGF0dXMiOiA1NDZ9"
            ),
        ),
        (
            500,
            b"0123456789" + b"01234567890123456789" * 20,
            (
                "CAISFUludGVybmFsIFNlcnZlciBFcnJvchq2AQoodHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLkVycm9ySW5mbxKJAQoVSW50"
                "ZXJuYWwgU2VydmVyIEVycm9yEgdkYXByLmlvGhAKCWh0dHAuY29kZRIDNTAwGlUKEmh0dHAuZXJyb3JfbWVzc2FnZRI/MDEyMzQ1Njc4"
                "OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDEy"
            ),
        ),
    ],
)
def test_an_http_failure_is_told_to_grpc_clients_as_recorded(status: int, body: bytes, details: str) -> None:
    failure = http_failure(status, body)

    assert (failure.code, failure.message) == (code_of_http(status), reason_phrase(status))
    assert opened(failure.details) == opened(base64.b64decode(details))


def opened(details: bytes) -> tuple[int, str, ErrorInfo]:
    """Return the parts of a status with one detail; bytes will not do, since entries of a map have no order there."""
    status, info = Status.FromString(details), ErrorInfo()
    assert len(status.details) == 1
    assert status.details[0].Unpack(info)
    return status.code, status.message, info


@pytest.mark.rule("G-18")
def test_a_body_cut_within_a_character_or_of_no_text_still_makes_a_status() -> None:
    assert http_failure(500, "é".encode() * 60).code == GrpcCode.UNKNOWN
    assert http_failure(404, bytes(range(128, 256))).code == GrpcCode.NOT_FOUND
