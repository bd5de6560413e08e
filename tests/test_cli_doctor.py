"""`keepa-tokens doctor`: finds each fault that is planted, says its effect and cure; a healthy bucket has none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
import redis

from keepa_tokens import KeepaSync, NotEnoughTokens, Quota, Reading, TokenBucket, keepa_quota
from keepa_tokens.cli import doctor_server
from keepa_tokens.cli.doctor import examine
from keepa_tokens.cli.doctor_command import APART, LOOKS
from keepa_tokens.cli.doctor_server import examine_server, read_info, strangers
from keepa_tokens.cli.finding import Finding
from keepa_tokens.cli.look import Look, look
from keepa_tokens.cli.redis_place import RedisPlace
from keepa_tokens.keepa.quota import bucket_key
from keepa_tokens.rules.line import Ticket
from keepa_tokens.rules.state import BucketState
from keepa_tokens.testing import FakeKeepa, FakeKeepaServer, ManualClock
from tests.cli import KEY, NOW, SECOND, Workers, document, hold, seen
from tests.redis.test_tls_acl import NEEDED
from tests.servers import HOST

STORED = f"keepa_tokens:{KEY}"


@pytest.fixture
def server(valkey: Workers) -> Iterator[Workers]:
    """The same, with its own settings afterwards."""
    with valkey.client() as client:
        yield valkey
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
        client.replicaof("NO", "ONE")
        client.flushall()


@pytest.fixture
def client(server: Workers) -> Iterator[Any]:
    with server.client() as client:
        yield client


@pytest.fixture
def healthy(server: Workers) -> TokenBucket:
    """A bucket in use on it: read, charged, two calls in flight."""
    worker = server.bucket()
    worker.reconcile(Reading(412, refill=20.0, capacity=1200, next_refill_in=30.0, server_time=1_700_000_000.0))
    worker.try_reserve(9).settle(8, Reading(404, server_time=1_700_000_001.0))
    worker.try_reserve(12)
    worker.try_reserve(3)
    return worker


def findings(server: Workers, *options: str, code: int = 1) -> dict[str, Any]:
    return {found["code"]: found for found in server.document("doctor", *options, code=code)["findings"]}


def in_line(tokens: int, told_in: int, name: str = "task") -> Ticket:
    """Return a place in line whose owner was told to come again in so many seconds."""
    return Ticket(name, tokens, 0, 7, NOW + told_in * SECOND)


# --- nothing


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let a server be slow from so many seconds on: at first never, for the tests' machine may be busy."""
    set_to = partial(monkeypatch.setattr, doctor_server, "SLOW")
    set_to(inf)
    return set_to


def test_a_slow_server_is_a_fault(server: Workers, slow: Callable[[float], None]) -> None:
    """A server that takes long to answer is a fault, and it says how long."""
    slow(0.0)
    (found,) = server.document("doctor", code=1)["findings"]
    assert (found["code"], found["fault"]) == ("slow", True)


@pytest.mark.usefixtures("healthy")
def test_a_healthy_bucket_has_no_finding(server: Workers, client: Any) -> None:
    """With buckets in use, synced and plain, it finds nothing, says what it looked at, leaves nothing behind."""
    plain = TokenBucket(Quota.per_minute(60), key="plain", storage=server.storage)
    assert plain.try_acquire(60)
    assert not plain.try_acquire(60)
    plain.acquire(1)
    before = client.hgetall(STORED)

    told = server.document("doctor")
    assert (told["ok"], [found for found in told["findings"] if found["fault"]]) == (True, [])
    assert sorted(told["healthy"]) == [KEY, "plain"]
    assert (sorted(client.keys("*")), client.hgetall(STORED)) == ([STORED.encode(), b"keepa_tokens:plain"], before)
    plain.reset()
    said = server.run("doctor").stdout
    assert said.splitlines()[-1] == "Nothing is wrong."
    for words in (
        *("Valkey 9", "answers in", "agrees with this machine's", "evicts nothing", "keeps on disk", "no replica"),
        *("runs the script, and lets this user write", f"bucket {KEY}"),
    ):
        assert words in said


# --- the bucket


def of(quota: Quota) -> Look:
    state = BucketState(balance=20, refilled_at=NOW, sequence=0, quota=quota)
    return Look(KEY, NOW, state.to_fields(), state)


def later(look: Look, seconds: int) -> Look:
    return replace(look, now_us=NOW + seconds * SECOND)


PERIOD, CAPACITY = {"reported_period_us": 60 * SECOND}, {"reported_capacity": 1200}
LINE = (in_line(100, 20, "one"), in_line(200, 30, "two"))
STANDING = seen(line=LINE)
POOR = seen(line=LINE, balance=200)
IDLE = {"balance": -500, "reading_at": NOW - 1500 * SECOND}
WAITS = {"line": (in_line(5, 1500),)}

TOO_HIGH = seen(balance=100, quota=keepa_quota(5, recharge_to=480))

FOUND = [
    ("dead-hold: a call has held 15 tokens for 1:35: its worker may be dead", [seen(holds={"dead": hold(95)})]),
    ("dead-hold: a call has held 15 tokens for 11:40: ", [seen(holds={"dead": hold(700, hold_for=86_400)})]),
    ("drift: at the last reading the server had 150 tokens fewer than projected", [seen(drift=-150)]),
    ("kept-back: 60 tokens are kept back for somebody else who", [seen(kept_back=60, kept_back_at=NOW)]),
    ("probes-fail: the last 4 attempts to ask the server brought no balance", [seen(probe_failures=4)]),
    ("no-refill: the net refill is 0", [seen(reported_refill=0, **PERIOD, **CAPACITY)]),
    ("recharge-too-high?: workers wait for 480 tokens to recharge to; the bucket holds 300", [TOO_HIGH]),
    ("above-capacity?: its balance is 5,000, more than the 1,200 that it holds", [seen(balance=5000)]),
    # A budget that somebody gave.
    ("no-refill?: ", [of(Quota(50, 0, 60.0))]),
    # Workers with different terms, found by looking more than once.
    ("terms-flap: ", [seen(), seen(), seen(quota=keepa_quota(5))]),
    ("deep-debt?: its balance is 5,000 below zero, and it holds 1,200", [seen(balance=-5000)]),
    # In line for tokens that are there, for longer than who lives would take to go; where the bucket changed meanwhile,
    # or there is too little, nobody is suspected. Before the first one's turn they may as well be a queue's tasks.
    ("line-stands: 2 callers in line for 300 tokens that are there, and nobody", [STANDING, later(STANDING, 23)]),
    ("line-stands?: 2 callers in line for 300 tokens that are there, and nobody", [STANDING, later(STANDING, 3)]),
    ("", [STANDING, later(seen(line=LINE, balance=400), 3)]),
    ("", [STANDING, later(STANDING, 1)]),
    ("", [POOR, later(POOR, 3)]),
    # Somebody waits and the server has not spoken for twenty minutes; an idle bucket's needn't.
    ("no-reading: ", [seen(**IDLE, **WAITS)]),
    ("", [seen(**IDLE)]),
    ("", [seen(balance=-500, reading_at=NOW - 900 * SECOND, **WAITS)]),
    # A call that takes long, a step of drift, one failed probe, a bucket never asked, a debt, a key that rightly has no
    # lifetime: a new one would let go 1,200, where the server has said 300.
    ("", [seen()]),
    ("", [seen(), seen(), seen()]),
    ("", [seen(holds={"young": hold(60)})]),
    ("", [seen(holds={"slow": hold(300, hold_for=3600)})]),
    ("", [seen(holds={"short": hold(9, hold_for=10)})]),
    ("", [replace(seen(), lifetime=86_400.0)]),
    ("", [replace(seen(balance=99, quota=keepa_quota(20, initial=1200), reported_capacity=300), lifetime=-1.0)]),
    ("", [seen(drift=-40)]),
    ("", [seen(drift=500)]),
    ("", [seen(probe_failures=1)]),
    ("", [seen(balance=None, reading_at=None, reading_sequence=0)]),
    ("", [seen(balance=-79)]),
]
"""What is found, a question mark where it is no fault, at a look and those after it."""


@pytest.mark.parametrize("found, looks", FOUND)
def test_what_is_wrong_with_a_bucket_is_found_and_nothing_else(found: str, looks: list[Look]) -> None:
    """Each thing that can be wrong is one finding, that says what, its effect and its cure."""
    code, _, what = found.partition(": ")
    told = examine(looks[0], later=looks[1:])
    assert [each.code for each in told] == ([code.removesuffix("?")] if code else [])
    for each in told:
        assert each.what.startswith(what)
        assert (each.about, each.fault) == (KEY, not code.endswith("?"))
        assert each.effect
        assert each.cure


def test_many_buckets_are_looked_at_together(server: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor pauses between its looks as often for many buckets as for one, or for none at all."""
    pauses: list[float] = []
    monkeypatch.setattr("keepa_tokens.cli.doctor_command.time.sleep", pauses.append)
    assert server.document("doctor")["healthy"] == []
    pauses.clear()
    for number in range(20):
        TokenBucket(Quota.per_minute(60), key=f"plain-{number}", storage=server.storage).try_acquire(1)
    assert len(server.document("doctor")["healthy"]) == 20
    assert pauses == [APART] * LOOKS


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("field, text", [("balance", None), ("refilled_at", None), ("sequence", "NaN")])
def test_each_damaged_field_is_found_and_mended(server: Workers, client: Any, field: str, text: str | None) -> None:
    """A field that is missing or can't be read is found, said with its effect, and mended by --repair, for good."""
    if text is None:
        client.hdel(STORED, field)
    else:
        client.hset(STORED, field, text)
    found = findings(server)[f"damaged-{field}"]
    assert found["about"] == KEY
    assert field in found["what"]
    assert found["effect"]
    mended = server.document("doctor", "--repair")
    assert any(field in words for words in mended["mended"])
    assert findings(server, code=0) == {}


def test_a_bucket_on_a_clock_of_its_own_is_not_taken_for_damaged(server: Workers) -> None:
    """A bucket whose workers bring a clock with another epoch is seen by that clock: no fault, only a word about it."""
    clock = ManualClock(5_000.0)
    worker = TokenBucket(keepa_quota(20), key=KEY, storage=server.storage, clock=clock, listener=lambda _: None)
    worker.reconcile(Reading(412, refill=20.0, capacity=1200))
    worker.try_reserve(5)
    assert list(findings(server, code=0)) == ["own-clock"]
    assert server.document("status")["bucket"]["available"] == 407


@pytest.mark.usefixtures("healthy")
def test_the_state_of_a_newer_release_is_left_alone(server: Workers, client: Any) -> None:
    """A bucket of a newer release is a finding, the others are looked at; no bucket is a usage error that says so."""
    client.hset("keepa_tokens:later", mapping=client.hgetall(STORED) | {b"format": b"7"})
    told = server.document("doctor", "--repair", code=1)
    assert [(found["code"], found["about"]) for found in told["findings"]] == [("newer-release", "later")]
    assert told["healthy"] == [KEY]
    rows = server.run("status", "--all").stdout.splitlines()
    assert [row.split()[1:3] for row in rows if row.startswith("later")] == [["newer", "release"]]
    client.set("keepa_tokens:text", "x")
    assert "holds something else" in server.run("status", "text", code=2).stderr


def test_a_bucket_made_or_gone_while_the_doctor_looks_is_no_finding(server: Workers) -> None:
    """A bucket that somebody makes between two looks at the keys is no stranger; one that is gone has no lifetime."""
    server.bucket("made-meanwhile").try_acquire()

    class Early(RedisPlace):
        def keys(self) -> Iterator[str]:
            yield from ()

    with closing(Early.from_url(server.url)) as place:
        assert [found.code for found in strangers(place)] == []
        assert place.lifetime("gone-meanwhile") is None  # not for ever


@pytest.mark.usefixtures("healthy")
def test_a_name_that_is_no_text_hides_nothing(server: Workers, client: Any) -> None:
    """Keys whose bytes are no text, of another program, are named as what they are, beside all that is right."""
    client.hset(b"keepa_tokens:\xff", mapping={"balance": "1"})
    client.hset(b"keepa_tokens:\xfc", mapping=client.hgetall(STORED) | {b"drift": b"garbage"})
    client.set(b"keepa_tokens:\xfe", "1")
    client.set(b"tokens:\xfd", "-5")
    told = server.document("doctor", "--repair", code=1)

    assert told["healthy"] == [KEY]
    assert [words.partition("=")[0] for words in told["mended"] if "nothing" in words] == ["\udcfc: nothing: key"]
    assert client.ttl(b"keepa_tokens:\xfc") > 86_400
    assert {(found["code"], found["about"]) for found in told["findings"] if found["fault"]} == {
        ("damaged-drift", "\udcfc"),
        ("terms-lost", "\udcff"),
        ("no-bucket", "\udcfe"),
        ("stuck-manager", "tokens:\udcfd"),
    }
    assert "\\udcfe: the key keepa_tokens:\\udcfe holds" in server.run("doctor", code=1).stdout
    assert len(server.run("status", "--all").stdout.splitlines()) == 4


def test_lost_terms_are_found(server: Workers, client: Any, healthy: TokenBucket) -> None:
    """A bucket without terms is a finding until a worker's next call, a key that stays for ever is told, and mended."""
    client.hdel(STORED, "quota", "capacity", "refill")
    client.hset(STORED, "balance", "garbage")
    found = findings(server, "--repair")
    assert "terms-lost" in found
    assert found["damaged-balance"]["cure"] == "any call of a worker mends it"
    healthy.try_acquire()
    assert findings(server, code=0) == {}
    client.persist(STORED)
    assert findings(server, code=0)["no-lifetime"]["fault"] is False
    server.run("doctor", "--repair")
    assert client.ttl(STORED) > 86_400


@pytest.mark.deep
def test_a_dead_task_in_line_is_found_on_a_real_bucket(server: Workers) -> None:
    """A task that doesn't come back for its tokens is found in line, before its turn too; one that has come isn't."""
    worker = server.bucket()
    worker.reconcile(Reading(-400, refill=20.0, capacity=1200, next_refill_in=30.0, server_time=1_700_000_000.0))
    sync = KeepaSync(worker)
    with pytest.raises(NotEnoughTokens):
        sync.try_request(30, place="task-1")
    assert findings(server, code=0) == {}
    worker.reconcile(Reading(412, server_time=1_700_000_001.0))
    stands = findings(server, code=0)["line-stands"]
    assert stands["what"].startswith("1 caller in line for 30 tokens that are there")
    assert re.fullmatch("the first was told, .*, to come in .*, as a queue's task then does", stands["effect"])
    sync.try_request(30, place="task-1").cancel()
    assert findings(server, code=0) == {}


# --- the server


def configured(**settings: str) -> Callable[[redis.Redis], None]:
    def plant(client: redis.Redis) -> None:
        for name, value in settings.items():
            client.config_set(name.replace("_", "-"), value)

    return plant


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize(
    "plant, code",
    [
        (configured(maxmemory="100mb", maxmemory_policy="allkeys-lru"), "evicts"),
        (configured(maxmemory="100mb", maxmemory_policy="volatile-ttl"), "evicts"),
        (configured(maxmemory="1"), "nearly-full"),
        (lambda client: client.replicaof(HOST, 1), "read-only"),
    ],
)
def test_what_is_wrong_with_the_server_is_found(
    server: Workers, client: Any, plant: Callable[[redis.Redis], None], code: str
) -> None:
    """Eviction, full memory and a replica are each found on a real server, with effect and cure."""
    plant(client)
    found = findings(server)[code]
    assert found["about"] == "server"
    assert found["effect"]
    assert found["cure"]


@pytest.mark.usefixtures("healthy")
def test_what_cannot_be_mended_is_told_with_all_the_rest(server: Workers, client: Any) -> None:
    """Where the server takes no writes, --repair says that it changed nothing, and every finding is there."""
    client.hdel(STORED, "refilled_at")
    client.replicaof(HOST, 1)
    told = server.document("doctor", "--repair", code=1)
    assert {"damaged-refilled_at", "read-only"} <= {found["code"] for found in told["findings"]}
    assert [words for words in told["mended"] if words.startswith(f"{KEY}: nothing: ")] == told["mended"] != []


def as_user(server: Workers, *rights: str, keys: str, code: int) -> Any:
    with server.client() as client:
        client.acl_setuser("user", enabled=True, passwords=["+pw"], keys=[keys], commands=[f"+{one}" for one in rights])
        try:
            return document("doctor", KEY, "--redis", server.url.replace("redis://", "redis://user:pw@"), code=code)
        finally:
            client.acl_deluser("user")


@pytest.mark.usefixtures("healthy")
def test_missing_rights_are_found(server: Workers) -> None:
    """A user who may read but not run the script is told what to allow."""
    told = as_user(server, "@read", "@connection", "info", "time", keys="*", code=1)
    assert [found["code"] for found in told["findings"]] == ["rights"]
    assert "ACL SETUSER worker" in told["findings"][0]["cure"]


@pytest.mark.usefixtures("healthy")
def test_a_workers_rights_are_enough_for_the_doctor(server: Workers, client: Any) -> None:
    """With no more rights than a worker's the doctor works, and says what it couldn't look at."""
    client.set("keepa:tokens", "-79")
    told = as_user(server, *NEEDED, keys="keepa_tokens:*", code=0)
    unlisted = as_user(server, *(right for right in NEEDED if right != "scan"), keys="keepa_tokens:*", code=0)
    assert "runs the script, and lets this user write" in told["facts"]
    assert [fact for fact in told["facts"] if fact.startswith("INFO is not allowed")]
    for each in (told, unlisted):
        assert each["healthy"] == [KEY]
        assert [fact for fact in each["facts"] if fact.startswith("other keys may not be read")]


@pytest.mark.parametrize(
    "info, expected",
    [
        ({"redis_version": "6.0.16"}, {"old": "it is Redis 6.0.16"}),
        ({"redis_version": "6.2.0"}, {}),
        ({"redis_version": "7.4.1"}, {}),
        (
            {"role": "master", "connected_slaves": "1", "slave0": "ip=10.0.0.2,port=6379,state=online,offset=1,lag=45"},
            {"lags": "replica 0 is 45 s behind"},
        ),
        ({"connected_slaves": "1", "slave0": "{'ip': '10.0.0.2', 'lag': 45}"}, {"lags": "replica 0 is 45 s behind"}),
        ({"connected_slaves": "1", "slave0": "ip=10.0.0.2,port=6379,lag=1"}, {}),
        (
            {"rdb_last_bgsave_status": "err"},
            {"save-failed": "its last attempt to write to disk failed (rdb_last_bgsave_status)"},
        ),
    ],
)
def test_what_a_server_says_of_itself_is_judged(info: dict[str, str], expected: dict[str, str]) -> None:
    """A Redis older than 6.2, a replica far behind, however the client shows its line, and a failed save are found."""
    assert {told.code: told.what for told in read_info(info, plain=False) if isinstance(told, Finding)} == expected


def test_a_plain_bucket_on_a_server_that_saved_nothing_is_told() -> None:
    """That a plain bucket's server saved nothing so far is told, though it is no fault; a synced one's may be so."""
    (found,) = [told for told in read_info({}, plain=True) if isinstance(told, Finding)]
    assert (found.code, found.fault) == ("not-kept", False)
    assert not [told for told in read_info({}, plain=True) if isinstance(told, str) and "on disk" in told]
    assert "keeps on disk: nothing so far" in list(read_info({}, plain=False))


@pytest.mark.parametrize("ahead, codes", [(3600.0, ["clock"]), (-3600.0, ["clock"]), (2.0, []), (0.0, [])])
def test_a_servers_clock_that_is_off_is_found(server: Workers, ahead: float, codes: list[str]) -> None:
    """A server whose clock is further from ours than the tolerance is found, with by how much and to which side."""

    class Stepped(RedisPlace):
        def now_us(self) -> int:
            return super().now_us() + round(ahead * SECOND)

    with closing(Stepped.from_url(server.url)) as place:
        found = [told for told in examine_server(place, plain=False) if isinstance(told, Finding)]
    side = "ahead of" if ahead > 0 else "behind"
    assert [told.code for told in found] == codes
    assert all(f"its clock is 3,600 s {side} this machine's" in told.what for told in found)


# --- the API key, and the stuck state of a hand-made manager


@pytest.mark.usefixtures("healthy")
def test_the_api_key_is_tried(server: Workers) -> None:
    """With --probe the doctor asks the server and says both balances; a key that is refused ends with 4."""
    with FakeKeepaServer(FakeKeepa(refill_rate=20, initial=389, key="right")) as keepa:
        options = ("--probe", "--base-url", keepa.url)
        assert "Keepa says 389" in server.run("doctor", *options, env={"KEEPA_API_KEY": "right"}).stdout
        server.bucket(bucket_key("wrong")).try_acquire()
        server.run("doctor", *options, code=4, env={"KEEPA_API_KEY": "wrong"})


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize(
    "error, why", [(httpx.ConnectError("...key=right"), " (ConnectError)"), (TimeoutError("no answer"), ": no answer")]
)
def test_a_server_that_brings_no_balance_is_found(
    server: Workers, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    """Keepa that is away, or silent, is a finding of `doctor --probe`; status says so beside the bucket."""
    monkeypatch.setattr("keepa_tokens.cli.probe.http_probe", lambda *_, **__: Mock(side_effect=error))
    told = server.document("doctor", "--probe", code=1, env={"KEEPA_API_KEY": "right"})
    shown = server.run("status", "--probe", env={"KEEPA_API_KEY": "right"}).stdout
    (found,) = [found for found in told["findings"] if found["fault"]]
    assert (found["code"], found["about"]) == ("no-answer", "Keepa")
    assert found["what"].endswith(f"asking it failed{why}")
    assert "server       no balance: asking it failed" in shown


@pytest.mark.parametrize(
    "keys, cure",
    [
        ({"keepa:tokens": "-79"}, "adopt --balance-key keepa:tokens`"),
        (
            {"keepa_tokens_left": "-79", "keepa_last_refill": "None", "keepa_refill_rate": "20"},
            "adopt --balance-key keepa_tokens_left --timestamp-key keepa_last_refill --rate-key keepa_refill_rate`",
        ),
        ({"keepa": {"tokens": "-79", "rate": "20"}}, "adopt --hash keepa --balance-key tokens --rate-key rate`"),
        (
            {"tokenmanager": {"balance": "-79.0", "last_update": "", "recharging": "1"}},
            "adopt --hash tokenmanager --balance-key balance --timestamp-key last_update`",
        ),
    ],
)
def test_the_stuck_state_of_a_hand_made_manager_is_found(
    server: Workers, client: Any, keys: dict[str, str | dict[str, str]], cure: str
) -> None:
    """A debt without a time that can be read, in two keys or in one hash, is found; the cure is the command for it."""
    for name, value in keys.items():
        if isinstance(value, dict):
            client.hset(name, mapping=value)
        else:
            client.set(name, value)
    found = findings(server)["stuck-manager"]
    assert "holds a balance of -79" in found["what"]
    assert "no time of the last refill beside it" in found["what"]
    assert cure in found["cure"]


def test_a_manager_that_works_is_no_finding(server: Workers, client: Any) -> None:
    """A balance above 0, a debt with its time beside it, and other programs' negative numbers are no findings."""
    client.mset({"keepa:tokens": "-79", "keepa:last_refill": "1780000000.5", "shop:balance": "12", "zone": "-5"})
    client.hset("old", mapping={"tokens": "-31", "updated_at": "2026-06-01T12:00:00"})
    client.hset("new", mapping={"tokens": "31"})
    client.lpush("token:queue", "-1")
    assert findings(server, code=0) == {}


@pytest.mark.usefixtures("healthy")
def test_findings_read_well(server: Workers, client: Any) -> None:
    """A finding is three sentences: what, effect and cure, below a list of what is fine; the end counts them."""
    client.hdel(STORED, "refilled_at")
    assert server.run("doctor", code=1).stdout.partition("\n\n")[2] == (
        f"1. {KEY}: its field refilled_at is missing.\n"
        "   effect  the time that passed since the last refill is lost; it refills from the next command on.\n"
        "   cure    any call of a worker mends it, or `keepa-tokens doctor --repair` now.\n"
        "\n"
        "1 fault found.\n"
    )


@pytest.mark.usefixtures("healthy")
def test_a_place_shows_a_bucket_as_it_is_stored(server: Workers, client: Any) -> None:
    """What the doctor looks at is the bucket's fields as they are in Redis, by the server's own time."""
    with closing(RedisPlace.from_url(server.url)) as place:
        seen = look(place, KEY)
        assert seen is not None
        assert {name.encode(): text.encode() for name, text in seen.fields.items()} == client.hgetall(STORED)
        assert abs(seen.now_us // SECOND - client.time()[0]) <= 1
        assert seen.state.balance == 404
        assert look(place, "nobody") is None
