"""The live page, in a real browser."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from leadership import Candidate, Store, new_store
from leadership.backend import Entry
from leadership.dashboard import Dashboard
from leadership.errors import ConfigurationError
from leadership.faults import FaultyBackend
from leadership.page import Hosts
from leadership.survey import Survey

from .command import Command, leadership_here
from .peers_cluster import PeersCluster
from .servers.chromium import browser as browser_program
from .servers.etcd_client import EtcdClient
from .servers.programs import ServerMissingError

# Milliseconds: two busy cores, and a browser on them.
expect.set_options(timeout=20_000)

STRANGER = "rebound.example"

# Notes what is shown, if only for a moment.
SPY = """() => {
    window.strange = [];
    new MutationObserver((changes) => {
        for (const { target } of changes) {
            if (/NaN|undefined/.test(target.textContent)) window.strange.push(target.textContent);
        }
    }).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""

# Shows how much the page's script remembers, and lets a test speak for the server.
INSIDE = """
    const maps = new Set();
    const set = Map.prototype.set;
    Map.prototype.set = function (...entry) { maps.add(this); return set.call(this, ...entry); };
    window.largest = () => Math.max(...[...maps].map((each) => each.size));
    window.EventSource = class { constructor() { window.source = this; } };
"""

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    try:
        program = browser_program()
    except ServerMissingError as error:
        # As with the backends' servers: a skip would look like a proof.
        pytest.fail(str(error), pytrace=False)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=program,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                # As a stranger's name server would say, once his page has been loaded.
                f"--host-resolver-rules=MAP {STRANGER} 127.0.0.1",
            ],
        )
        yield launched
        launched.close()


Open = Callable[..., Page]


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Open]:
    """Opens an address in a window of its own; what goes wrong in it fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_it(url: str, **options: Any) -> Page:
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda told: (
                complaints.append(told.text)
                if told.type == "error" and "ERR_" not in told.text
                else None
            ),
        )
        page.on("dialog", lambda dialog: complaints.append(f"a dialog: {dialog.message}"))
        page.goto(url)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert complaints == []


@contextlib.contextmanager
def dashboard(store: Store, prefix: str = "", hosts: Sequence[str] = ()) -> Iterator[str]:
    """The page of a store in this process; its address."""
    page = Dashboard(Survey(store.core.backend, prefix), "127.0.0.1:0", hosts)
    store.core.call(page.start)
    try:
        yield f"http://{page.address}/"
    finally:
        store.core.call(page.close)


@pytest.fixture
def store() -> Iterator[Store]:
    with new_store(f"memory://{uuid.uuid4()}") as opened:
        yield opened


def test_a_leader_is_killed_and_the_page_shows_the_next_one(
    etcd: EtcdClient, open_page: Open
) -> None:
    prefix = f"page-{uuid.uuid4()}"
    key = f"{prefix}/web/leader"

    def contender(name: str) -> Command:
        run = ("run", "--key", key, "--id", name, "--ttl", "2", "--json")
        return Command(*run, "--", "sleep", "600", LEADERSHIP_STORE=etcd.url)

    with contextlib.ExitStack() as stack:
        shown = stack.enter_context(
            Command(
                *("dashboard", "--prefix", f"{prefix}/", "--listen", "127.0.0.1:0", "--json"),
                LEADERSHIP_STORE=etcd.url,
            )
        )
        first = stack.enter_context(contender("first"))
        first.wait_for("started")
        second = stack.enter_context(contender("second"))
        page = open_page(shown.wait_for("listening")["url"])
        card = page.locator(".election")
        expect(card.locator("h2")).to_have_text(key)
        expect(card.locator(".value")).to_have_text("first")
        expect(card.locator(".queue li")).to_have_text(["second"])
        expect(card.locator(".left")).to_have_text(re.compile(r"^\d\.\d s$"))
        token = int(card.locator(".token").inner_text())

        first.send(signal.SIGKILL)
        expect(card.locator(".value")).to_have_text("second")
        expect(card.locator(".queue p")).to_have_text("nobody")
        assert int(card.locator(".token").inner_text()) > token
        expect(card.locator(".line .term")).to_have_text(["first", "second"])
        card.locator("summary").click()
        expect(card.locator("tbody td").nth(1)).to_have_text(str(token))
        expect(page.locator("#spoken")).to_have_text(f"{key}: second leads")
        second.wait_for("started")
        shown.send(signal.SIGTERM)
        assert shown.status() == 143


@pytest.mark.backend("memory")
def test_whatever_the_store_says_is_text(store: Store, open_page: Open) -> None:
    with (
        dashboard(store) as url,
        Candidate(store, "<b>k</b>/'\"&<i>", HOSTILE, ttl=60).campaign(timeout=10),
    ):
        page = open_page(url)
        expect(page.locator(".value")).to_have_text(HOSTILE)
        expect(page.locator("h2")).to_have_text("<b>k</b>/'\"&<i>")
        expect(page.locator(".line .term")).to_have_text([HOSTILE])
        assert page.title() == "leadership"
        assert page.locator("script").count() == 1
        assert page.locator("h2 b, h2 i, img").count() == 0


@pytest.mark.backend("memory")
def test_names_that_mean_something_to_a_script_are_names_as_any_other(
    store: Store, open_page: Open
) -> None:
    names = ["constructor", "__proto__", "toString", "hasOwnProperty", "valueOf"]
    with contextlib.ExitStack() as stack:
        for name in names:
            candidate = Candidate(store, name, name, ttl=60)
            stack.enter_context(candidate.campaign(timeout=10))
        page = open_page(stack.enter_context(dashboard(store)))
        expect(page.locator(".value")).to_have_text(sorted(names))
        expect(page.locator("h2")).to_have_text(sorted(names))


@pytest.mark.backend("peers")
def test_a_lease_of_any_name_is_looked_up_by_that_name_alone(open_page: Open) -> None:
    """On peers a lease is called as its key; that of another election is not told."""
    names = ["constructor", "__proto__", "toString"]
    cluster = PeersCluster(1, ui=1)
    [store] = cluster.start(0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(store)
        page = open_page(f"http://{cluster.addresses[0]}/ui")
        page.evaluate(SPY)
        for name in names:
            stack.enter_context(Candidate(store, name, name, ttl=1).campaign(timeout=20))
        expect(page.locator(".value")).to_have_text(sorted(names))
        expect(page.locator(".left")).to_have_text([re.compile(r"^\d\.\d s$")] * len(names))
        shown = page.locator(".elections").inner_text()
        assert "NaN" not in shown
        assert page.evaluate("window.strange") == []


@pytest.mark.backend("memory")
def test_a_page_that_is_open_for_long_remembers_only_what_it_shows(
    store: Store, chromium: Browser
) -> None:
    with dashboard(store) as url, chromium.new_context() as context:
        page = context.new_page()
        page.add_init_script(INSIDE)
        page.goto(url)
        page.wait_for_function("window.source")
        largest = page.evaluate("""() => {
            const take = (message) => window.source.onmessage({ data: JSON.stringify(message) });
            window.source.onopen();
            const rest = { since: 0, left_out: 0, ends: {}, cut_since: null, trouble: "" };
            const exactly = { began_exactly: true, ended_exactly: true };
            for (let number = 0; number < 400; number++) {
                const name = `name ${number}`;
                const term = { name, token: "1", began: 0, ended: null, ...exactly };
                const queue = { waiting: [`w ${number}`], waiting_count: 1 };
                const election = { key: "k", term, ...queue, past: [], lease: "" };
                take({ now: number, changed: [election], gone: [], ...rest });
            }
            return window.largest();
        }""")
        assert page.locator(".value").inner_text() == "name 399"
        assert largest < 100


@pytest.mark.backend("memory")
def test_a_token_is_shown_to_its_last_digit(
    store: Store, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a browser's numbers: as of ZooKeeper, after many elections of its own."""
    token = 2**62 + 1
    made = Entry.__init__
    monkeypatch.setattr(Entry, "__init__", lambda self, value, _: made(self, value, token))
    with dashboard(store) as url, Candidate(store, "k", "a", ttl=60).campaign(timeout=10):
        page = open_page(url, viewport={"width": 360, "height": 740})
        expect(page.locator(".token")).to_have_text(str(token))
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.backend("memory")
def test_before_the_store_has_answered_nothing_is_counted(store: Store, open_page: Open) -> None:
    with FaultyBackend.under(store).cut_off(), dashboard(store) as url:
        page = open_page(url)
        expect(page.locator("#trouble")).to_contain_text("Nothing is known of elections yet")
        for name in ("count", "led", "unled", "waiters"):
            expect(page.locator(f"#{name}")).to_have_text("\N{EN DASH}")


@pytest.mark.backend("memory")
def test_the_browser_itself_lets_no_other_script_run_and_loads_nothing_else(
    store: Store, chromium: Browser
) -> None:
    with dashboard(store) as url, chromium.new_context() as context:
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        answer = page.goto(url)
        assert answer is not None
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        expect(page.locator("#link")).to_have_text("live")
        assert set(asked) <= {url, f"{url}events"}
        ran = page.evaluate("""() => new Promise((told) => {
            document.addEventListener("securitypolicyviolation", () => told("refused"));
            const script = document.createElement("script");
            try { script.textContent = "window.ran = true"; } catch { told("refused"); }
            document.body.append(script);
            setTimeout(() => told(String(window.ran)), 2000);
        })""")
        assert ran == "refused"


@pytest.mark.backend("memory")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(
    store: Store, open_page: Open, scheme: str
) -> None:
    with (
        dashboard(store) as url,
        Candidate(store, "k/" + "long-" * 30, "w" * 150, ttl=60).campaign(timeout=10),
    ):
        phone = {"width": 360, "height": 740}
        page = open_page(url, viewport=phone, color_scheme=scheme)
        expect(page.locator(".value")).to_have_text("w" * 150)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        darkest = max(int(part) for part in re.findall(r"\d+", ground)[:3])
        assert (darkest < 64) == (scheme == "dark")


@pytest.mark.backend("memory")
def test_an_outage_is_said_and_a_leader_that_left_is_shown(store: Store, open_page: Open) -> None:
    faults = FaultyBackend.under(store)
    candidate = Candidate(store, "k", "a", ttl=60)
    with dashboard(store) as url:
        page = open_page(url)
        expect(page.locator("#none")).to_be_visible()
        with candidate.campaign(timeout=10):
            expect(page.locator(".value")).to_have_text("a")
            with faults.cut_off():
                expect(page.locator("#link")).to_have_text("cut off from the store")
                expect(page.locator("#trouble")).to_contain_text("known before")
                expect(page.locator(".value")).to_have_text("a")
            expect(page.locator("#link")).to_have_text("live")
        expect(page.locator(".value")).to_have_text("nobody leads")
        expect(page.locator("#unled")).to_have_text("1")


@pytest.mark.backend("peers")
def test_a_node_of_peers_shows_its_own_page(open_page: Open) -> None:
    cluster = PeersCluster(2)
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(each) for each in cluster.start(0, 1)]
        candidate = Candidate(stores[0], "k/leader", "a", ttl=1)
        candidate.campaign(timeout=20)
        page = open_page(f"http://{cluster.addresses[1]}/ui")
        expect(page.locator(".value")).to_have_text("a")
        expect(page.locator(".left")).to_have_text(re.compile(r"^\d\.\d s$"))
        candidate.stop()
        expect(page.locator(".value")).to_have_text("nobody leads")
        # It goes away with somebody looking.
        stores[1].close()
        expect(page.locator("#link")).to_have_text("connecting again")


@pytest.mark.backend("peers")
def test_a_node_shows_nothing_where_the_page_is_switched_off() -> None:
    cluster = PeersCluster(1, ui=0)
    [store] = cluster.start(0)
    with store:
        for path in ("ui", "ui/events", "leadership/elections"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://{cluster.addresses[0]}/{path}", timeout=10)


def answers(url: str, host: str, path: str) -> tuple[int, str]:
    """The status and the text that whoever asks by this name gets; the page's is not read."""
    where = urllib.parse.urlsplit(url)
    asking = HTTPConnection(str(where.hostname), where.port, timeout=10)
    with contextlib.closing(asking):
        asking.request("GET", path, headers={"Host": host})
        answer = asking.getresponse()
        return answer.status, "" if answer.status == 200 else answer.read().decode()


@pytest.mark.backend("memory")
def test_a_strangers_name_that_leads_here_reads_nothing(store: Store, chromium: Browser) -> None:
    """Or a page of his, in somebody's browser, could read what only this machine may."""
    with dashboard(store) as url, chromium.new_context() as context:
        page = context.new_page()
        page.goto(url.replace("127.0.0.1", STRANGER))
        text = page.locator("body").inner_text()
        assert STRANGER in text
        assert "--host" in text
        # It has his origin, so his script may ask this.
        assert page.evaluate("fetch('/events').then((told) => told.status)") == 421


@pytest.mark.backend("memory")
def test_the_page_is_served_by_addresses_local_names_and_names_that_were_given(
    store: Store,
) -> None:
    with dashboard(store, hosts=["leaders.example"]) as url:
        port = urllib.parse.urlsplit(url).port
        for host in (
            f"127.0.0.1:{port}",
            f"[::1]:{port}",
            "[::1]",
            f"localhost:{port}",
            "10.0.0.7:8080",
            "Leaders.Example",
            "leaders.example.:443",
        ):
            for path in ("/", "/events"):
                assert answers(url, host, path) == (200, "")
        for host in (
            "example",
            "leaders.example.org:8080",
            "127.0.0.1.example:8080",
            "localhost.example",
            "[::1].example",
        ):
            for path in ("/", "/events", "/other"):
                status, text = answers(url, host, path)
                assert (status, "--host" in text) == (421, True), host


def test_a_name_may_be_given_as_its_user_writes_it() -> None:
    """A browser writes it in ASCII."""
    hosts = Hosts(["Bücher.example:8080"], "--host ")
    assert hosts.refusal("xn--bcher-kva.example:8080") is None
    assert hosts.refusal("bcher.example") is not None
    for wrong in ("a..example", "ü" * 64):
        with pytest.raises(ConfigurationError, match="give a name"):
            Hosts([wrong], "--host ")


@pytest.mark.backend("peers")
def test_a_nodes_page_is_served_by_its_addresses_and_names_that_were_given() -> None:
    cluster = PeersCluster(1, ui_hosts="a.example,leaders.example")
    [store] = cluster.start(0)
    with store:
        url = f"http://{cluster.addresses[0]}"
        for path in ("/ui", "/ui/events", "/leadership/elections"):
            for host in (cluster.addresses[0], "localhost", "a.example", "leaders.example:80"):
                assert answers(url, host, path) == (200, "")
            status, text = answers(url, STRANGER, path)
            assert (status, "ui_hosts" in text) == (421, True)


@pytest.mark.backend("memory")
def test_other_paths_and_methods_get_a_plain_refusal(store: Store) -> None:
    with dashboard(store) as url:
        for request, status in (
            (urllib.request.Request(f"{url}other"), 404),
            (urllib.request.Request(url, data=b"x"), 405),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)
            assert refused.value.code == status
            refused.value.close()


@pytest.mark.backend("memory")
def test_who_asks_only_for_the_head_of_the_stream_holds_no_place(store: Store) -> None:
    with dashboard(store) as url:
        where = urllib.parse.urlsplit(url)
        asking = HTTPConnection(str(where.hostname), where.port, timeout=10)
        with contextlib.closing(asking):
            # One connection: what is asked next is answered when the head is all there was.
            for path, kind in (("/events", "text/event-stream"), ("/", "text/html")):
                asking.request("HEAD", path)
                answer = asking.getresponse()
                answer.read()
                assert str(answer.headers["Content-Type"]).startswith(kind)


@pytest.mark.backend("memory")
def test_nonsense_on_the_port_is_answered_and_fills_no_log(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with dashboard(store) as url:
        where = urllib.parse.urlsplit(url)
        with socket.create_connection((where.hostname, where.port), timeout=10) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n")
            assert stranger.recv(100).startswith(b"HTTP/1.0 400")
    assert caplog.text == ""


@pytest.mark.backend("memory")
def test_an_address_in_use_is_an_error_that_says_so(store: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        page = Dashboard(Survey(store.core.backend, ""), f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConfigurationError, match="cannot listen at"):
            store.core.call(page.start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--listen", "nowhere"), "write HOST:PORT"),
        (("--host", "http://a/"), "give a name"),
        (("--prefix", "a//b"), "segment"),
        (("--connect-timeout", "0"), "above 0"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    options: tuple[str, ...], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = leadership_here(capfd, "dashboard", "--store", "memory://x", *options)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
