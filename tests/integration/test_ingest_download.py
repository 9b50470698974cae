"""Pictures over real HTTP, from a server that misbehaves in every way it can."""

import io
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from offline.ingest.download import MAX_HOST_FAILURES, Downloader, DownloadSettings, Picture
from offline.ingest.pictures import PictureLimits

LIMITS = PictureLimits(max_bytes=100_000, max_pixels=1_000_000)
QUICK = DownloadSettings(concurrency=4, timeout_s=1.0, connect_timeout_s=1.0, backoff_s=0.01, allow_private=True)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((48, 48), 64).save(buffer, "JPEG")
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Answers by path, and remembers who asked for what: (address of the server that was called, Host, path)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("0.0.0.0", 0), Handler)  # noqa: S104 - so that 127.0.0.2 leads here as well
        self.picture = jpeg()
        self.asked: list[tuple[str, str, str]] = []

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}{path}"

    def times(self, path: str) -> int:
        return sum(asked == path for _, _, asked in self.asked)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append((self.connection.getsockname()[0], self.headers["Host"], self.path))
        name, _, rest = self.path[1:].partition("?")
        getattr(self, f"answer_{name.partition('.')[0]}")(rest)

    def send(self, body: bytes, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for key, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def answer_good(self, _: str) -> None:
        self.send(self.server.picture)

    def answer_missing(self, _: str) -> None:
        self.send(b"no", 404)

    def answer_busy(self, _: str) -> None:
        asked_before = self.server.times(self.path) > 1
        self.send(self.server.picture) if asked_before else self.send(b"busy", 503)

    def answer_page(self, _: str) -> None:
        self.send(b"<html>Sorry</html>", Content_Type="image/jpeg")

    def answer_cut(self, _: str) -> None:
        self.send(self.server.picture[:-300])

    def answer_broken(self, _: str) -> None:
        self.send(self.server.picture[:500], Content_Length=len(self.server.picture))
        self.close_connection = True

    def answer_huge(self, _: str) -> None:
        self.send(b"", Content_Length=10**12)

    def answer_endless(self, _: str) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(65536))

    def answer_slow(self, _: str) -> None:
        self.send_response(200)
        self.end_headers()
        for _number in range(100):  # each byte arrives well within a read timeout
            self.wfile.write(b"x")
            time.sleep(0.2)

    def answer_redirect(self, to: str) -> None:
        self.send(b"", 302, Location=to)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(cache: Path, url: str, settings: DownloadSettings = QUICK) -> Picture:
    return Downloader(cache, settings, LIMITS).fetch_all({"item": [url]})["item"]


def test_a_good_picture_is_stored_whole(server: Server, tmp_path: Path) -> None:
    picture = fetch(tmp_path, server.url("/good"))
    assert (picture.outcome, picture.extension) == ("downloaded", "jpg")
    assert picture.path is not None
    assert picture.path.read_bytes() == server.picture


@pytest.mark.parametrize(
    ("path", "outcome", "requests"),
    [
        ("/missing", "HTTP 404", 1),
        ("/page.jpg", "not a picture", 1),
        ("/cut.jpg", "does not decode", 1),
        ("/huge", "too many bytes", 1),
        ("/endless", "too many bytes", 1),
        ("/broken", "connection broken", 3),
        ("/slow", "timeout", 3),
    ],
)
def test_a_bad_answer_is_named_and_retried_only_where_that_can_help(
    server: Server, tmp_path: Path, path: str, outcome: str, requests: int
) -> None:
    started = time.monotonic()
    picture = fetch(tmp_path, server.url(path), replace(QUICK, timeout_s=0.5))
    assert (picture.path, picture.outcome) == (None, outcome)
    assert server.times(path) == requests
    assert time.monotonic() - started < 10
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_was_busy_is_asked_again(server: Server, tmp_path: Path) -> None:
    assert fetch(tmp_path, server.url("/busy")).outcome == "downloaded"
    assert server.times("/busy") == 2


def test_a_second_run_asks_only_for_what_failed(server: Server, tmp_path: Path) -> None:
    urls = {"a": [server.url("/good")], "b": [server.url("/missing")]}
    Downloader(tmp_path, QUICK, LIMITS).fetch_all(urls)
    again = Downloader(tmp_path, QUICK, LIMITS).fetch_all(urls)
    assert again["a"].outcome == "from an earlier run"
    assert server.times("/good") == 1
    assert server.times("/missing") == 2


def test_a_picture_that_two_items_share_is_fetched_once(server: Server, tmp_path: Path) -> None:
    pictures = Downloader(tmp_path, QUICK, LIMITS).fetch_all({f"item{n}": [server.url("/good")] for n in range(20)})
    assert len({picture.path for picture in pictures.values()}) == 1
    assert server.times("/good") == 1


def test_the_next_address_of_an_item_is_tried_when_the_first_fails(server: Server, tmp_path: Path) -> None:
    urls = [server.url("/missing"), server.url("/good")]
    assert Downloader(tmp_path, QUICK, LIMITS).fetch_all({"item": urls})["item"].url == urls[1]


def test_the_time_limit_ends_all_downloads_and_keeps_what_is_there(server: Server, tmp_path: Path) -> None:
    urls = {"good": [server.url("/good")]} | {f"slow{n}": [server.url(f"/slow?{n}")] for n in range(8)}
    started = time.monotonic()
    pictures = Downloader(tmp_path, replace(QUICK, time_limit_s=0.6, timeout_s=30), LIMITS).fetch_all(urls)
    assert time.monotonic() - started < 5
    assert pictures["good"].path
    assert {pictures[key].outcome for key in urls if key != "good"} == {"time limit reached"}


def test_a_redirect_is_followed_to_the_picture(server: Server, tmp_path: Path) -> None:
    assert fetch(tmp_path, server.url("/redirect?/redirect?/good")).outcome == "downloaded"


def test_redirects_without_end_are_given_up(server: Server, tmp_path: Path) -> None:
    assert fetch(tmp_path, server.url("/redirect?" * 10 + "/good")).outcome == "too many redirects"


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x.jpg", "data:,x"])
def test_a_redirect_to_anything_but_http_is_refused(server: Server, tmp_path: Path, location: str) -> None:
    assert fetch(tmp_path, server.url(f"/redirect?{location}")).outcome == "unusable URL"


@pytest.mark.parametrize("url", ["http://", "file:///etc/passwd", "gopher://127.0.0.1/", "://"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    assert fetch(tmp_path, url).outcome == "unusable URL"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]"])
def test_a_loopback_address_is_refused_however_it_is_written(server: Server, tmp_path: Path, host: str) -> None:
    picture = fetch(tmp_path, server.url("/good", host), replace(QUICK, allow_private=False))
    assert picture.path is None
    assert server.asked == []


def test_every_hop_of_a_redirect_is_checked(server: Server, tmp_path: Path) -> None:
    first = server.url(f"/redirect?{server.url('/good', '127.0.0.2')}")
    downloader = Downloader(
        tmp_path, replace(QUICK, allow_private=False), LIMITS, is_allowed=lambda address: address == "127.0.0.1"
    )
    picture = downloader.fetch_all({"item": [first]})["item"]
    assert picture.outcome == "address not allowed"
    assert [address for address, _, _ in server.asked] == ["127.0.0.1"]


def test_one_private_address_among_public_ones_is_enough_to_refuse(server: Server, tmp_path: Path) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1", "10.0.0.1"]

    downloader = Downloader(
        tmp_path,
        replace(QUICK, allow_private=False),
        LIMITS,
        resolve=resolve,
        is_allowed=lambda address: address == "127.0.0.1",
    )
    picture = downloader.fetch_all({"item": [server.url("/good", "shop.example")]})["item"]
    assert picture.outcome == "address not allowed"
    assert server.asked == []


def test_the_connection_goes_to_the_address_that_was_checked_under_the_name_of_the_url(
    server: Server, tmp_path: Path
) -> None:
    answers = iter([["127.0.0.1"], ["127.0.0.2"]])  # a name that resolves differently the next moment

    async def resolve(host: str, port: int) -> list[str]:
        assert host == "shop.example"
        return next(answers)

    downloader = Downloader(
        tmp_path,
        replace(QUICK, allow_private=False),
        LIMITS,
        resolve=resolve,
        is_allowed=lambda address: address == "127.0.0.1",
    )
    url = server.url("/good", "shop.example")
    assert downloader.fetch_all({"item": [url]})["item"].outcome == "downloaded"
    assert server.asked == [("127.0.0.1", f"shop.example:{server.server_port}", "/good")]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
@pytest.mark.parametrize(("name", "outcome"), [("shop.example", "downloaded"), ("other.example", "host unreachable")])
def test_tls_checks_the_name_of_the_url_though_the_connection_goes_to_an_address(
    server: Server, tmp_path: Path, name: str, outcome: str
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2 -subj /CN=test"
    subprocess.run([*command.split(), "-addext", "subjectAltName=DNS:shop.example"], check=True, capture_output=True)
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    here.load_cert_chain(certificate, key)
    server.socket = here.wrap_socket(server.socket, server_side=True)

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    trusting = ssl.create_default_context(cafile=certificate)
    downloader = Downloader(tmp_path / "cache", QUICK, LIMITS, resolve=resolve, tls=trusting)
    url = server.url("/good", name).replace("http:", "https:")
    assert downloader.fetch_all({"item": [url]})["item"].outcome == outcome


def test_a_dead_host_is_given_up_after_a_few_failures(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        port = listener.getsockname()[1]
        urls = {f"item{n}": [f"http://127.0.0.1:{port}/{n}"] for n in range(200)}
        downloader = Downloader(tmp_path, replace(QUICK, concurrency=1), LIMITS)
        started = time.monotonic()
        pictures = downloader.fetch_all(urls)
    assert time.monotonic() - started < 3
    assert downloader.reachability.given_up == ["127.0.0.1"]
    assert downloader.reachability.failures_in_a_row["127.0.0.1"] == MAX_HOST_FAILURES
    assert {picture.outcome for picture in pictures.values()} == {"host unreachable"}


def test_without_a_network_thousands_of_hosts_are_done_in_seconds(tmp_path: Path) -> None:
    asked: set[str] = set()

    async def resolve(host: str, port: int) -> list[str]:
        asked.add(host)
        raise OSError("Temporary failure in name resolution")

    urls = {f"item{n}": [f"http://host{n}.example/x.jpg"] for n in range(5_000)}
    started = time.monotonic()
    pictures = Downloader(tmp_path, QUICK, LIMITS, resolve=resolve).fetch_all(urls)
    assert time.monotonic() - started < 10
    assert len(asked) < 50
    assert {picture.outcome for picture in pictures.values()} == {"host unreachable"}
