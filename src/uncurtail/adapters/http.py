"""One small HTTP client for every signal source: JSON in, and every fault as one line.

Whatever a server or the network does becomes a `SourceError`: nothing else leaves this file. No
redirect is followed, since a token must not travel to another host; bodies and the time they take
are bounded. Messages never hold headers, so no credentials.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from uncurtail.adapters import clock
from uncurtail.core.events import unix

CONNECT_S = 5.0
READ_S = 10.0  # between two pieces of a body
WHOLE_S = 30.0  # for all of it: a server that drips is a server that hangs
MOST_BYTES = 32_000_000  # 30 days of 5-minute points are about 1 MB


class SourceError(Exception):
    """A source could not answer: one line with the reason and, where there is one, the remedy.

    `status` is the HTTP status, None when there was no answer; `retry_after_s` is how long the
    server asked to be left alone.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class Http:
    """GET requests below one address, with explicit timeouts. Safe to use from several threads."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        read_s: float = READ_S,
    ) -> None:
        """`name` is what errors call the source; `headers` go with every request."""
        import httpx

        self.name = name
        self.url = url.rstrip("/")
        timeout = httpx.Timeout(read_s, connect=CONNECT_S)
        # Between two questions lie seconds to minutes: a kept connection would only be found dead.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._headers = dict(headers or {})
        self._client = httpx.Client(timeout=timeout, limits=limits)

    def get(
        self,
        path: str,
        params: Mapping[str, str | int | float] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> Any:
        """The JSON below `path`.

        Raises:
            SourceError: Anything but a whole JSON answer with status 200.
        """
        import httpx

        try:
            with self._client.stream(
                "GET",
                f"{self.url}{path}",
                params=dict(params) if params else None,
                headers={**self._headers, **(headers or {})},
                auth=auth,
            ) as response:
                body = self._body(response.iter_bytes())
                if response.status_code != 200:
                    raise self._refused(response.status_code, response.headers, body)
        except httpx.TimeoutException:
            raise SourceError(f"{self.name} does not answer in time: {self._where()}") from None
        except httpx.ConnectError as error:
            reason = str(error) or "no connection"
            raise SourceError(
                f"{self.name} cannot be reached at {self._where()}: {reason}"
            ) from None
        except (httpx.LocalProtocolError, UnicodeError):
            # Their messages quote the header.
            raise SourceError(
                f"{self.name}: a credential has characters no header can carry"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise SourceError(f"{self.name} broke off its answer: {reason}") from None
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise SourceError(f"{self.name} answered something that is no JSON") from None

    def _body(self, pieces: Iterator[bytes]) -> bytes:
        began, body = clock.monotonic(), bytearray()
        for piece in pieces:
            body += piece
            if len(body) > MOST_BYTES:
                raise SourceError(f"{self.name} answers more than {MOST_BYTES / 1e6:.0f} MB")
            if clock.monotonic() - began > WHOLE_S:
                raise SourceError(f"{self.name} takes more than {WHOLE_S:g} s for its answer")
        return bytes(body)

    def _refused(self, status: int, headers: Mapping[str, str], body: bytes) -> SourceError:
        if 300 <= status < 400:
            target = urlsplit(headers.get("location", "")).netloc or "another place"
            said = (
                f"points elsewhere ({status}, to {target}), which is not followed: mend the address"
            )
        elif status == 429:
            said = "asks for fewer requests (429)"
        elif status >= 500:
            said = f"fails ({status})"
        else:
            said = f"refuses ({status}){_said(body)}"
        retry_after_s = retry_after_seconds(headers.get("retry-after"))
        return SourceError(f"{self.name} {said}", status=status, retry_after_s=retry_after_s)

    def _where(self) -> str:
        return urlsplit(self.url).netloc.rpartition("@")[2]


@contextmanager
def expecting(name: str) -> Iterator[None]:
    """Turn an answer of another shape than documented into a SourceError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
        what = f"{type(error).__name__}: {error}"[:120]
        raise SourceError(f"{name} answered in another form than documented ({what})") from None


def number(value: object) -> float:
    """A JSON value as a float; NaN where it is no number, for that is unknown."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def retry_after_seconds(text: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date."""
    if text is None:
        return None
    seconds = number(text)
    if math.isnan(seconds):
        try:
            at = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = unix((at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat()) - clock.wall()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _said(body: bytes) -> str:
    """What the server says about it, in a few words."""
    try:
        answer = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(answer, dict):
        return ""
    for key in ("message", "error", "detail"):
        if isinstance(answer.get(key), str):
            return f": {' '.join(answer[key].split())[:160]}"
    return ""
