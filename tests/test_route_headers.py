"""What a request's target and fields must be so that they can be passed on."""

from __future__ import annotations

import pytest

from leadership.route_headers import addressed


@pytest.mark.parametrize(
    ("hosts", "version", "passed"),
    [
        ([b"a"], "1.1", True),
        ([b""], "1.1", True),
        ([b"[::1]:80"], "1.1", True),
        ([b"a", b"b"], "1.1", False),
        # As servers of WSGI tell of two fields.
        ([b"a,b"], "1.1", False),
        ([], "1.1", False),
        ([], "1.0", True),
        ([b"a b"], "1.1", False),
        ([b"a\xe9"], "1.1", False),
    ],
)
def test_a_request_is_of_one_host(hosts: list[bytes], version: str, passed: bool) -> None:
    fields = [(b"Host", host) for host in hosts]
    known = addressed("GET", b"/a?", fields, version)
    assert known == (("/a?", fields) if passed else None)


@pytest.mark.parametrize(
    ("lengths", "passed"),
    [
        ([b"0"], True),
        ([b" 12 "], True),
        # Which some read as 1, and some as 10.
        ([b"1_0"], False),
        ([b"+1"], False),
        ([b"1, 1"], False),
        ([b""], False),
        ([b"1", b"1"], False),
    ],
)
def test_a_request_is_of_one_length(lengths: list[bytes], passed: bool) -> None:
    fields = [(b"Host", b"a"), *((b"content-length", length) for length in lengths)]
    known = addressed("POST", b"/", fields, "1.1")
    assert known == (("/", fields) if passed else None)


def test_the_host_of_the_target_stands_for_the_fields() -> None:
    fields = [(b"Host", b"b"), (b"X", b"1"), (b"host", b"c")]
    known = addressed("GET", b"http://a:1/p", fields, "1.1")
    assert known == ("/p", [(b"Host", b"a:1"), (b"X", b"1")])
