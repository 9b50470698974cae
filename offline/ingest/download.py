"""Pictures by URL: concurrent, resumable, bounded in time and size, and never from a private network.

Every hop of every request is checked: the host is resolved here, all its addresses must be allowed, and the connection
goes to the very address that was checked, so that a name which resolves differently the next moment gains nothing.
Proxies of the environment are not used, since behind one the address could not be checked.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import httpx
from tqdm import tqdm

from model.artifacts import replace_file
from offline.ingest.addresses import is_public, resolve
from offline.ingest.pictures import EXTENSIONS, BadPictureError, PictureLimits, check_picture

MAX_REDIRECTS = 5
MAX_HOST_FAILURES = 3
"""Connection failures in a row after which a host is given up for this run."""
MAX_DEAD_HOSTS = 8
"""Hosts given up, while none has ever answered, after which the network counts as down."""
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_USER_AGENT = "image-token-recommender-ingest/0.1"

Resolve = Callable[[str, int], Awaitable[list[str]]]


@dataclass(frozen=True)
class DownloadSettings:
    concurrency: int = 16
    timeout_s: float = 20.0
    """For one whole request, redirects and body included."""
    connect_timeout_s: float = 5.0
    attempts: int = 3
    backoff_s: float = 0.5
    """Before the second attempt; doubled for each further one."""
    time_limit_s: float = 3600.0
    """For all downloads together; what is left then is reported and fetched by a later run."""
    allow_private: bool = False


@dataclass(frozen=True)
class Picture:
    """What became of an item's picture: a checked file, or the reason why there is none."""

    path: Path | None = None
    extension: str = ""
    url: str = ""
    outcome: str = ""
    """"downloaded", "from an earlier run", or the reason of the failure."""
    detail: str = ""


class FetchError(Exception):
    """A URL gave no picture. `retry`: another attempt may help; `unreachable`: no connection was made."""

    def __init__(self, reason: str, detail: str = "", *, retry: bool = False, unreachable: bool = False) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.retry = retry
        self.unreachable = unreachable


@dataclass
class Reachability:
    """Which hosts are not worth another attempt, so that a machine without a network is done in seconds."""

    failures_in_a_row: Counter[str] = field(default_factory=Counter)
    last_failure: dict[str, str] = field(default_factory=dict)
    any_success: bool = False

    def failed(self, host: str, detail: str) -> None:
        self.failures_in_a_row[host] += 1
        self.last_failure[host] = detail

    def answered(self, host: str) -> None:
        self.failures_in_a_row[host] = 0
        self.any_success = True

    @property
    def given_up(self) -> list[str]:
        return sorted(host for host, count in self.failures_in_a_row.items() if count >= MAX_HOST_FAILURES)

    def check(self, host: str) -> None:
        """Raises FetchError for a host that was given up, or for any while the network is down."""
        if self.failures_in_a_row[host] >= MAX_HOST_FAILURES:
            raise FetchError("host unreachable", f"gave up on {self.last_failure[host]}")
        if not self.any_success and len(self.given_up) >= MAX_DEAD_HOSTS:
            raise FetchError("host unreachable", f"gave up on the network: {len(self.given_up)} hosts do not answer")


class Downloader:
    """Fetches pictures into `cache`, a folder that outlives the run: what is there is never asked for again."""

    def __init__(
        self,
        cache: Path,
        settings: DownloadSettings,
        limits: PictureLimits,
        *,
        resolve: Resolve = resolve,
        is_allowed: Callable[[str], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`resolve` turns a host name into addresses, `is_allowed` says which may be connected to."""
        self.reachability = Reachability()
        self._cache = cache
        self._settings = settings
        self._limits = limits
        self._resolve = resolve
        self._is_allowed = is_allowed
        self._tls = tls or httpx.create_ssl_context()
        self._clients: dict[str, httpx.AsyncClient] = {}
        self._pictures: dict[str, Picture] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def fetch_all(self, urls_of: Mapping[str, Sequence[str]]) -> dict[str, Picture]:
        """For every key the first of its URLs that gives a usable picture, or why the first one gave none."""
        return asyncio.run(self._fetch_all(urls_of))

    async def _fetch_all(self, urls_of: Mapping[str, Sequence[str]]) -> dict[str, Picture]:
        self._cache.mkdir(parents=True, exist_ok=True)
        # Name lookups block threads; the default pool is so small that a few dead hosts would hold up all others.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2 * self._settings.concurrency))
        found: dict[str, Picture] = {}
        waiting = iter(tqdm(urls_of.items(), desc="pictures", unit=" items", disable=None))

        async def work() -> None:
            for key, urls in waiting:
                found[key] = await self._first_usable(urls)

        try:
            async with asyncio.timeout(self._settings.time_limit_s), asyncio.TaskGroup() as group:
                for _ in range(self._settings.concurrency):
                    group.create_task(work())
        except TimeoutError:
            limit = f"{self._settings.time_limit_s:g} s for all pictures were used up"
            for key, urls in urls_of.items():
                found.setdefault(key, Picture(url=urls[0], outcome="time limit reached", detail=limit))
        finally:
            for client in self._clients.values():
                await client.aclose()
        return found

    async def _first_usable(self, urls: Sequence[str]) -> Picture:
        tried = []
        for url in urls:
            tried.append(await self._once(url))
            if tried[-1].path:
                return tried[-1]
        return tried[0]

    async def _once(self, url: str) -> Picture:
        """Items share pictures: a URL is fetched by whoever comes first, the others wait for it."""
        async with self._locks.setdefault(url, asyncio.Lock()):
            if url not in self._pictures:
                self._pictures[url] = await self._picture(url)
            return self._pictures[url]

    async def _picture(self, url: str) -> Picture:
        kept = self._cache / sha256(url.encode("utf-8", "replace")).hexdigest()
        try:
            if earlier := await asyncio.to_thread(self._from_cache, kept, url):
                return earlier
            content = await self._with_retries(url)
            extension = await asyncio.to_thread(check_picture, content, self._limits)
            path = kept.with_suffix(f".{extension}")
            await asyncio.to_thread(replace_file, path, content)
        except (FetchError, BadPictureError) as bad:
            return Picture(url=url, outcome=bad.reason, detail=bad.detail)
        return Picture(path, extension, url, "downloaded")

    def _from_cache(self, kept: Path, url: str) -> Picture | None:
        """The picture of an earlier run; checked again, since limits may have changed."""
        for extension in EXTENSIONS:
            path = kept.with_suffix(f".{extension}")
            if path.is_file():
                check_picture(path.read_bytes(), self._limits)
                return Picture(path, extension, url, "from an earlier run")
        return None

    async def _with_retries(self, url: str) -> bytes:
        for attempt in range(1, self._settings.attempts + 1):
            try:
                return await self._bounded(url)
            except FetchError as failure:
                if not failure.retry or attempt == self._settings.attempts:
                    raise
            await asyncio.sleep(self._settings.backoff_s * 2 ** (attempt - 1))
        raise AssertionError("attempts is at least 1")

    async def _bounded(self, url: str) -> bytes:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await self._following_redirects(url)
        except TimeoutError:
            raise FetchError("timeout", f"over {self._settings.timeout_s:g} s", retry=True) from None

    async def _following_redirects(self, url: str) -> bytes:
        target = _parsed(url)
        for _ in range(MAX_REDIRECTS + 1):
            async with self._opened(target) as response:
                if response.has_redirect_location:
                    target = _parsed(response.headers["location"], base=target)
                    continue
                if response.status_code != 200:
                    code = response.status_code
                    raise FetchError(f"HTTP {code}", response.reason_phrase, retry=code in _RETRIED_STATUSES)
                return await self._body(response)
        raise FetchError("too many redirects", f"more than {MAX_REDIRECTS}")

    async def _body(self, response: httpx.Response) -> bytes:
        limit = self._limits.max_bytes
        declared = response.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise FetchError("too many bytes", f"{int(declared):,} declared, over {limit:,}")
        content = bytearray()
        async for chunk in response.aiter_raw():  # raw: a compressed body must not unpack to more than it was
            content += chunk
            if len(content) > limit:
                raise FetchError("too many bytes", f"over {limit:,}")
        return bytes(content)

    @asynccontextmanager
    async def _opened(self, target: httpx.URL) -> AsyncIterator[httpx.Response]:
        """The response to a GET of `target`, over a connection to a checked address of its host."""
        host = target.raw_host.decode("ascii")
        self.reachability.check(host)
        try:
            response = await self._send(target, host)
            self.reachability.answered(host)
            try:
                yield response
            finally:
                await response.aclose()
        except FetchError as failure:
            if failure.unreachable:
                self.reachability.failed(host, failure.detail)
            raise
        except (httpx.InvalidURL, ValueError) as error:  # httpx reads `Location` even when told not to follow it
            raise FetchError("unusable URL", f"{target} or what it redirects to: {error}") from None
        except httpx.TimeoutException as error:
            raise FetchError("timeout", type(error).__name__, retry=True) from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise FetchError("connection broken", str(error), retry=True) from None

    async def _send(self, target: httpx.URL, host: str) -> httpx.Response:
        """To the first address that takes the connection. `Host` and the TLS server name stay those of the URL."""
        client = self._client(host)
        refusal = ""
        for address in await self._checked_addresses(target, host):
            request = client.build_request(
                "GET",
                target.copy_with(host=address),
                headers={"Host": target.netloc.decode("ascii")},
                extensions={"sni_hostname": host},
            )
            try:
                return await client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                refusal = f"{host} ({address}): {error or type(error).__name__}"
        raise FetchError("host unreachable", refusal, retry=True, unreachable=True)

    async def _checked_addresses(self, target: httpx.URL, host: str) -> list[str]:
        port = target.port or (443 if target.scheme == "https" else 80)
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            detail = f"{host}: {error or 'the name did not resolve in time'}"
            raise FetchError("host unreachable", detail, retry=True, unreachable=True) from None
        for address in addresses:
            if not (self._settings.allow_private or self._is_allowed(address)):
                raise FetchError("address not allowed", f"{host} is {address}, which is not a public address")
        return addresses

    def _client(self, host: str) -> httpx.AsyncClient:
        """One client a host name: a TLS connection opened under one name must not carry requests for another."""
        if host not in self._clients:
            self._clients[host] = httpx.AsyncClient(
                verify=self._tls,
                trust_env=False,
                follow_redirects=False,
                timeout=httpx.Timeout(self._settings.timeout_s, connect=self._settings.connect_timeout_s),
                headers={"User-Agent": _USER_AGENT, "Accept": "image/*", "Accept-Encoding": "identity"},
            )
        return self._clients[host]


def is_url(text: str) -> bool:
    """Whether a picture's name is an address rather than a path."""
    return "://" in text or text.startswith("//")


def _parsed(text: str, base: httpx.URL | None = None) -> httpx.URL:
    try:
        url = base.join(text) if base else httpx.URL(f"https:{text}" if text.startswith("//") else text)
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchError("unusable URL", f"{text[:200]!r}: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise FetchError("unusable URL", f"{text[:200]!r}: only http and https are fetched")
    return url
