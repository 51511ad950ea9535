"""The state plane: desired states, heartbeats and step metrics under a prefix per run.

A cache and nothing more: everything is written again at each tick, so FLUSHALL or a restart heals
by itself, and when the server is away both sides go on with what they know.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import redis

from uncurtail.adapters import clock
from uncurtail.core.orders import Announcement, Desired, Heart, StepReport, Wanted, Watts

# A heartbeat older than this is no heartbeat.
HEART_TTL_MS = 10_000
# A measured power older than this is of no use to anybody.
WATTS_TTL_MS = 120_000
STEPS_KEPT = 20_000
_TIMEOUT_S = 1.0


class Keys:
    """Every key of a run, in one place."""

    def __init__(self, run_id: str) -> None:
        self.prefix = f"uncurtail:{run_id}"

    @property
    def coordinator(self) -> str:
        """Who coordinates, and since when it was last seen."""
        return f"{self.prefix}:coordinator"

    @property
    def announcement(self) -> str:
        """The open round."""
        return f"{self.prefix}:announcement"

    @property
    def steps(self) -> str:
        """The stream of inner steps of all sites."""
        return f"{self.prefix}:steps"

    def desired(self, site: str) -> str:
        """What a site should do."""
        return f"{self.prefix}:desired:{site}"

    def wanted(self, site: str) -> str:
        """Which session the machine of a static site should run."""
        return f"{self.prefix}:wanted:{site}"

    def heart(self, site: str) -> str:
        """What a site says of itself."""
        return f"{self.prefix}:heart:{site}"

    def watts(self, site: str) -> str:
        """What a site measured of its power."""
        return f"{self.prefix}:watts:{site}"


def connect(url: str) -> redis.Redis:
    """A client that gives up quickly: nobody may wait for the state plane.

    Raises:
        ValueError: The URL is none.
    """
    return redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)


class CoordinatorState:
    """The coordinator's side. A failure is remembered as `trouble`, and retried a second later."""

    def __init__(self, url: str, run_id: str, sites: Sequence[str]) -> None:
        self._client = connect(url)
        self._keys = Keys(run_id)
        self._sites = list(sites)
        self._taken: list[bytes] = []  # rows of the stream that the next exchange deletes
        self._newest: dict[tuple[str, int], tuple[int, int, int]] = {}
        self._retry_at = 0.0
        self.trouble: str | None = None
        self.watts: dict[str, Watts] = {}  # as of the last exchange

    def exchange(
        self, epoch: int, desired: Mapping[str, Desired], announcement: Announcement | None
    ) -> tuple[dict[str, Heart], list[StepReport]] | None:
        """Write what is wanted and read what is: one round trip. None while it is out of reach."""
        if clock.monotonic() < self._retry_at:
            return None
        pipe = self._client.pipeline(transaction=False)
        pipe.set(self._keys.coordinator, json.dumps({"epoch": epoch, "beat": clock.wall()}))
        for site, wanted in desired.items():
            pipe.set(self._keys.desired(site), json.dumps(asdict(wanted)))
        if announcement is None:
            pipe.delete(self._keys.announcement)
        else:
            pipe.set(self._keys.announcement, json.dumps(asdict(announcement)))
        if self._taken:
            pipe.xdel(self._keys.steps, *self._taken)
        pipe.mget([self._keys.heart(site) for site in self._sites])
        pipe.mget([self._keys.watts(site) for site in self._sites])
        pipe.xrange(self._keys.steps, count=2000)
        try:
            *_, hearts, watts, rows = pipe.execute()
        except redis.RedisError as error:
            self.trouble = f"state server: {error}"
            self._retry_at = clock.monotonic() + 1.0
            return None
        self.trouble = None
        self.watts = {
            site: Watts(**json.loads(raw))
            for site, raw in zip(self._sites, watts, strict=True)
            if raw is not None
        }
        found = {
            site: Heart(**json.loads(raw))
            for site, raw in zip(self._sites, hearts, strict=True)
            if raw is not None
        }
        return found, self._steps(rows)

    def _steps(self, rows: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> list[StepReport]:
        self._taken = [name for name, _ in rows]
        reports = (StepReport(**json.loads(fields[b"step"])) for _, fields in rows)
        return [report for report in reports if self._is_new(report)]

    def _is_new(self, report: StepReport) -> bool:
        """A site that heard no answer writes its steps again: each counts once."""
        session = (report.site, report.session)
        at = (report.round, report.epoch, report.step)
        if session in self._newest and at <= self._newest[session]:
            return False
        self._newest[session] = at
        return True


class MachineState:
    """The provisioner's side of static sites: which sessions are wanted, and which are heard of."""

    def __init__(self, url: str, run_id: str, sites: Sequence[str]) -> None:
        self._client = connect(url)
        self._keys = Keys(run_id)
        self._sites = list(sites)

    def exchange(self, wanted: Mapping[str, Wanted]) -> dict[str, int] | None:
        """Write what is wanted; each site's session that lives. None while it is out of reach."""
        pipe = self._client.pipeline(transaction=False)
        for site, what in wanted.items():
            pipe.set(self._keys.wanted(site), json.dumps(asdict(what)))
        pipe.mget([self._keys.heart(site) for site in self._sites])
        try:
            *_, hearts = pipe.execute()
        except redis.RedisError:
            return None
        found = zip(self._sites, hearts, strict=True)
        return {site: Heart(**json.loads(raw)).session for site, raw in found if raw is not None}


class SiteState:
    """A site's side: one call reads everything and writes the heartbeat and new steps."""

    def __init__(self, url: str, run_id: str, site: str) -> None:
        self._client = connect(url)
        self._keys = Keys(run_id)
        self._site = site

    def exchange(
        self, heart: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Any] | None, Desired | None, Announcement | None, float] | None:
        """Write, then read (coordinator, desired, announcement, server time in unix seconds).

        None while the server is out of reach; `steps` were then not written.
        """
        pipe = self._client.pipeline(transaction=False)
        pipe.set(self._keys.heart(self._site), json.dumps(dict(heart)), px=HEART_TTL_MS)
        for step in steps:
            pipe.xadd(
                self._keys.steps,
                {"step": json.dumps(dict(step))},
                maxlen=STEPS_KEPT,
                approximate=True,
            )
        pipe.get(self._keys.coordinator)
        pipe.get(self._keys.desired(self._site))
        pipe.get(self._keys.announcement)
        pipe.time()
        try:
            *_, coordinator, desired, announcement, now = pipe.execute()
        except redis.RedisError:
            return None
        return (
            None if coordinator is None else json.loads(coordinator),
            None if desired is None else Desired(**json.loads(desired)),
            None if announcement is None else Announcement(**json.loads(announcement)),
            now[0] + now[1] / 1e6,
        )


class GateState:
    """What the gate asks and tells on behalf of sites elsewhere. None while out of reach."""

    def __init__(self, url: str, run_id: str, sites: Sequence[str]) -> None:
        self._client = connect(url)
        self._keys = Keys(run_id)
        self._sites = {site: SiteState(url, run_id, site) for site in sites}

    def exchange(
        self, site: str, heart: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any] | None:
        """`SiteState.exchange` for a site, as JSON."""
        found = self._sites[site].exchange(heart, steps)
        if found is None:
            return None
        coordinator, desired, announcement, server_s = found
        return {
            "coordinator": coordinator,
            "desired": None if desired is None else asdict(desired),
            "announcement": None if announcement is None else asdict(announcement),
            "server_s": server_s,
        }

    def measured(self, site: str, session: int, watts: float, source: str) -> bool:
        """`SitePower.say` for a site."""
        return _measured(self._client, self._keys.watts(site), session, watts, source)

    def wanted(self, site: str) -> Wanted | None:
        """Which session should be up: as its provisioner says, or as the coordinator does."""
        try:
            said, desired = self._client.mget([self._keys.wanted(site), self._keys.desired(site)])
        except redis.RedisError:
            return None
        if said is not None:
            return Wanted(**json.loads(said))
        return None if desired is None else Wanted(Desired(**json.loads(desired)).session, up=True)


class SitePower:
    """A site's side for what it measures: its leader writes, long before there is a trainer."""

    def __init__(self, url: str, run_id: str, site: str, session: int) -> None:
        self._client = connect(url)
        self._key = Keys(run_id).watts(site)
        self._session = session

    def say(self, watts: float, source: str) -> bool:
        """Write a measurement, stamped by the server's clock; whether it got there."""
        return _measured(self._client, self._key, self._session, watts, source)


def _measured(client: redis.Redis, key: str, session: int, watts: float, source: str) -> bool:
    try:
        seconds, micros = client.time()
        body = Watts(session, watts, source, round(seconds + micros / 1e6, 3))
        client.set(key, json.dumps(asdict(body)), px=WATTS_TTL_MS)
    except redis.RedisError:
        return False
    return True


def reachable(url: str) -> str | None:
    """Why a server cannot be used, or None when it answers."""
    try:
        connect(url).ping()
    except (redis.RedisError, ValueError) as error:
        return str(error)
    return None
