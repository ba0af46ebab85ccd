"""What a leader's value may be, so that no odd one sends a request elsewhere."""

from __future__ import annotations

import pytest

from leadership.errors import ConfigurationError
from leadership.route_target import parse_target


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("10.0.0.5:8080", "http://10.0.0.5:8080/p%2Fq?x=1"),
        ("web-1.internal:80", "http://web-1.internal:80/p%2Fq?x=1"),
        ("[fd00::5]:8080", "http://[fd00::5]:8080/p%2Fq?x=1"),
        ("http://web", "http://web:80/p%2Fq?x=1"),
        ("https://web/", "https://web:443/p%2Fq?x=1"),
        ("https://Web:8443", "https://web:8443/p%2Fq?x=1"),
        ("http://[::1]", "http://[::1]:80/p%2Fq?x=1"),
    ],
)
def test_host_and_port_and_plain_urls_are_targets(value: str, url: str) -> None:
    target = parse_target(value)
    assert target.location("/p%2Fq?x=1", "http") == url
    assert target.url("/p%2Fq?x=1").raw_path_qs == "/p%2Fq?x=1"


@pytest.mark.parametrize(
    "value",
    [
        *("", "a", "worker-1", ":80", "a:", "a:0", "a:65536", "a:8a", "a:+80", "a:٨٠"),
        *("a b:80", "a:80 ", "a:80\r\nX: 1", "a\x00:80", "é:80", "a:80/x", "a:80?x", "a:80#x"),
        *("u@a:80", "http://u:p@a:80", "http://a:80@b:80", "http://a\\@b:80", "a/b:80"),
        *("http://a/path", "http://a?x", "http://a#x", "ftp://a:21", "redis://a:1", "file:///x"),
        *("http://", "http://:80", "//a:80", "::1:80", "[::1", "[::1]", "[a]:80", "[::1%eth0]:80"),
        *("127.1:80", "0x7f.1:80", "2130706433:80", "0177.0.0.1:80", "1.2.3.256:80", "a.0x10:80"),
        *("[::ffff:169.254.169.254]:80", "[::ffff:0.0.0.0]:80", "255.255.255.255:80"),
        *("0.0.0.0:80", "[::]:80", "169.254.169.254:80", "[fe80::1]:80", "224.0.0.1:80"),
        *("-a:80", "a..b:80", ".a:80", "a" * 64 + ":80", "a," + "b:80"),
    ],
)
def test_anything_else_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match="campaign with"):
        parse_target(value)


@pytest.mark.parametrize(
    "path",
    ["//evil/x", "/../a//b/./%2e", "/a?b?c=/../", "/@evil", "/%0d%0a", "/a?", "/?", "/a??"],
)
def test_a_path_is_sent_as_it_came_and_names_no_host(path: str) -> None:
    url = parse_target("a:80").url(path)
    assert (url.host, url.port, url.raw_path_qs) == ("a", 80, path)
