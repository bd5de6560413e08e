"""`keepa-tokens status`: what a person reads, what a program reads, and how it ends."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from redis.exceptions import MovedError

from keepa_tokens import ConfigError, Quota, Reading, TokenBucket
from keepa_tokens.cli.look import Look
from keepa_tokens.cli.redis_place import RedisPlace
from keepa_tokens.cli.status import document as status_document
from keepa_tokens.cli.status import headline, sentences, table
from keepa_tokens.keepa.quota import bucket_key
from keepa_tokens.rules.state import BucketState
from keepa_tokens.testing import FakeKeepa, FakeKeepaServer
from tests.cli import KEY, NOW, SECOND, Workers, document, hold, run, seen


def test_a_bucket_is_told_in_sentences() -> None:
    """Status says in sentences what is there, who holds it, when more comes and what calls of two sizes would get."""
    assert sentences(seen(holds={"a": hold(12, tokens=9), "b": hold(3, tokens=6)})) == [
        ("terms", "20 tokens a minute, up to 1,200; follows the server"),
        ("balance", "412 of 1,200  ██████████░░░░░░░░░░░░░░░░░░░░"),
        ("available", "397; 15 held in 2 calls, the oldest for 0:12"),
        ("kept back", "nothing"),
        ("next step", "+20 in 0:23; full in 39:42"),
        ("call of 10", "goes at once"),
        ("call of 150", "goes at once"),
        ("waiting", "nobody"),
        ("reading", "0:45 old; the server had 3 tokens fewer than projected"),
        ("mended", "nothing had to be"),
    ]


def plain(balance: int, quota: Quota, **given: Any) -> Look:
    known: dict[str, Any] = {"balance": balance, "refilled_at": NOW, "sequence": 0, "quota": quota}
    state = BucketState(**known | given)
    return Look("p", NOW, state.to_fields(), state)


MINUTELY = Quota.per_minute(10)
UNKNOWN = seen(balance=None, reading_at=None, reading_sequence=0, drift=None)
NET_0 = seen(balance=-5, reported_refill=0, reported_period_us=60 * SECOND, reported_capacity=1200)
HELD = seen(holds={"a": hold(20, tokens=412)})

TOLD = """
a bucket in use is open: seen()
    first line: open, calls go at once.
a debt whose time of the last refill is lost says when a call goes, and what is to be mended: \
seen(balance=-79, refilled_at=None)
    first line: empty, a call of 10 goes in 4:02 at the latest.
    balance: -79 of 1,200  ░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░
    call of 10: goes in 4:02 at the latest: too few tokens (EMPTY)
    mended: refilled_at
a call in flight may come back, or run out: seen(balance=3, holds={"a": hold(12, tokens=3)})
    first line: empty, a call of 10 may go in 0:02, goes in 1:49 at the latest.
where others hold the tokens it goes once they have run out and the refill has brought enough: HELD
    call of 10: may go in 0:02, goes in 1:41 at the latest: others hold the tokens; \
they may be back any moment (IN_FLIGHT)
that somebody may ask again is no promise: with_fields(HELD, quota=replace(HELD.state.quota, refill=0))
    call of 10: may go in 0:02: others hold the tokens; they may be back any moment (IN_FLIGHT)
the part of the next token that is there is made whole: plain(4, Quota.per_minute(1, capacity=10), carry=30 * SECOND)
    next step: +1 in 0:30; full in 5:30
no more comes than there is room for: seen(balance=1195)
    next step: +5 in 0:23; full in 0:23
before the server was asked nothing goes until the next caller asks it: UNKNOWN
    first line: unknown, a call of 10 may go in 0:02.
    balance: unknown of 1,200; nothing goes until the server was asked, which the next caller does
    reading: none yet: the server was never asked
    call of 10: may go in 0:02: the balance is unknown; the next caller asks the server (UNKNOWN)
    next step: unknown, as the balance
where a probe was begun and nothing came, the server was asked: with_fields(UNKNOWN, probe_until=NOW + SECOND)
    reading: none yet: the server was asked, and told none
where the refill takes longer than that, who is refused asks the server: seen(balance=-400, drift=0)
    reading: 0:45 old, as projected; who is refused after 9:15 asks the server
its last word is old enough for that: seen(balance=-400, reading_at=NOW - 700 * SECOND)
    reading: 11:40 old; the server had 3 tokens fewer than projected; who is refused asks the server
lost terms are all there is to say: seen(quota=None)
    first line: terms lost.
a plain bucket has no reading; a call larger than its balance waits for the refill: plain(20, Quota(200, 1, 1.0))
    terms: 1 token a second, evenly, up to 200; keeps its own books
    next step: +1 in 0:01; full in 3:00
    call of 150: goes in 2:10 at the latest: too few tokens (EMPTY)
    reading: -
a bucket that lets something go is open: plain(5, MINUTELY)
    first line: open, a call of 10 goes in 0:30 at the latest.
one that never refills says so: plain(20, Quota(50, 0, 60.0))
    first line: no refill, a call of 10 goes at once.
a pause is told with its end: seen(paused_until=NOW + 90 * SECOND)
    first line: paused, a call of 10 goes in 1:30 at the latest.
a rate is told in the period people gave: plain(3, MINUTELY)
    terms: 10 tokens a minute, evenly, up to 10; keeps its own books
    next step: +1 in 0:06; full in 0:42
one of less than a second too: plain(3, Quota(10, 1, 0.5))
    terms: 1 token every 0.5 s, evenly, up to 10; keeps its own books
a larger capacity bounds for a minute: plain(99, MINUTELY, terms_at=NOW, wide_capacity=100)
    terms: 10 tokens a minute, evenly, up to 100 until a minute after its terms changed, then 10; keeps its own books
what the server says stands beside what the workers were told: \
seen(reported_refill=5, reported_period_us=60 * SECOND, reported_capacity=300)
    terms: 5 tokens a minute, up to 300 (the server says so; the workers were told 20, up to 1,200); follows the server
a net refill of 0 says so in words: NET_0
    next step: never: the net refill is 0
"""


def with_fields(look: Look, **changes: Any) -> Look:
    return replace(look, state=replace(look.state, **changes))


@pytest.mark.parametrize("title, told", re.findall(r"(\S.*)\n((?:    .*\n)+)", TOLD))
def test_what_is_told_is_true(title: str, told: str) -> None:
    """The first line says whether calls go, and if not, when a small one does; each sentence says how it is."""
    look: Look = eval(title.partition(": ")[2])
    said = {"first line": headline(look).removeprefix(f"{look.key}: "), **dict(sentences(look))}
    for label, words in (line.strip().split(": ", 1) for line in told.splitlines()):
        assert said.get(label, "-") == words


def test_never_is_null_for_machines() -> None:
    """What never comes, or nobody can tell, is null in a document, since JSON has no infinity."""
    told = status_document(NET_0)
    assert (told["state"], told["full_in"], told["next_step_in"]) == ("no refill", None, None)
    assert dict(sentences(NET_0))["call of 10"].startswith("never goes: ")
    assert status_document(UNKNOWN)["next_step_in"] is None


def test_the_only_bucket_needs_no_key(valkey: Workers) -> None:
    """With one bucket there, status shows it without being told which, reads it alone and writes nothing."""
    worker = valkey.bucket()
    worker.reconcile(Reading(300, refill=20.0, capacity=1200, next_refill_in=50.0))
    worker.try_reserve(7)
    with valkey.client() as client:
        before = client.hgetall(f"keepa_tokens:{KEY}")
        told = valkey.document("status")["bucket"]
        assert client.hgetall(f"keepa_tokens:{KEY}") == before

    assert (told["key"], told["balance"], told["held"], told["available"]) == (KEY, 300, 7, 293)
    (call,) = told["holds"]
    assert (call["tokens"], round(call["age"] + call["left"])) == (7, 120)
    assert call["age"] < 60
    assert "293; 7 held in 1 call, the oldest for 0:0" in valkey.run("status").stdout


def test_a_damaged_bucket_stays_as_it_is(valkey: Workers) -> None:
    """Status mends nothing: what is damaged is still there for the doctor."""
    valkey.bucket().reconcile(Reading(-79))
    with valkey.client() as client:
        client.hdel(f"keepa_tokens:{KEY}", "refilled_at")
        told = valkey.document("status")["bucket"]
        assert not client.hexists(f"keepa_tokens:{KEY}", "refilled_at")
    assert told["repaired"] == ["refilled_at"]


def test_of_several_the_api_key_tells_which(valkey: Workers, tmp_path: Path) -> None:
    """Of several buckets the one of the API key is meant, however it is given; without one all are named."""
    for key in (bucket_key("mine"), bucket_key("theirs")):
        valkey.bucket(key).reconcile(Reading(300))
    (tmp_path / "key").write_text("mine\n")

    asked = valkey.run("status", code=2).stderr
    assert bucket_key("mine") in asked
    assert bucket_key("theirs") in asked
    ways: list[tuple[list[str], dict[str, Any]]] = [
        (["--key-file", str(tmp_path / "key")], {}),
        (["--key-file", "-"], {"stdin": "mine\n"}),
        ([], {"env": {"KEEPA_API_KEY": "mine"}}),
        ([bucket_key("mine")], {}),
        ([bucket_key("mine").removeprefix("keepa-")], {}),
        ([bucket_key("mine")[:12]], {}),
    ]
    for extra, rest in ways:
        assert valkey.document("status", *extra, **rest)["bucket"]["key"] == bucket_key("mine")


def test_an_api_key_as_an_argument_is_refused_and_not_repeated(valkey: Workers) -> None:
    """What looks like an API key is not taken from the command line, and the message doesn't show it."""
    result = valkey.run("status", "k1" * 32, code=2)
    assert "--key-file" in result.stderr
    assert "k1k1" not in result.output


def test_all_is_a_table(valkey: Workers) -> None:
    """--all shows every bucket in a line below a heading; on an empty server it says so on the standard error."""
    assert "there is no bucket here" in valkey.run("status", "--all").stderr
    valkey.bucket().reconcile(Reading(300, refill=20.0, capacity=1200))
    valkey.bucket("b").try_acquire()
    heading, *rows = valkey.run("status", "--all").stdout.splitlines()
    assert heading.split() == ["BUCKET", "STATE", "BALANCE", "HELD", "CALLS", "WAITING", "READING"]
    assert [row.split()[:3] for row in rows] == [["b", "unknown", "?/1,200"], [KEY, "open", "300/1,200"]]


def test_a_table_fits_a_narrow_terminal() -> None:
    """In a terminal that is too narrow the keys are cut, by whose beginning a bucket can be named; no figure is."""
    wide, narrow = table([seen()]), table([seen()], 66)
    assert max(map(len, narrow)) <= 66 < max(map(len, wide))
    assert narrow[1].split("…")[1].split() == wide[1].split()[1:]
    assert KEY.startswith(narrow[1].split("…")[0])


def test_a_probe_shows_both_balances(valkey: Workers) -> None:
    """--probe asks the server once, shows its balance beside the projected one, and the bucket follows it."""
    valkey.bucket().reconcile(Reading(412, refill=20.0, capacity=1200))
    fake = FakeKeepa(refill_rate=20, initial=400, key="right")
    with FakeKeepaServer(fake) as keepa:
        said = valkey.run("status", "--probe", "--base-url", keepa.url, env={"KEEPA_API_KEY": "right"}).stdout
    assert "server       says 400; the bucket projected 412 (-12)" in said
    assert fake.token_calls == 1
    assert valkey.bucket().peek().balance == 400


def test_a_probe_is_compared_with_the_bucket_as_it_is_then(valkey: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """What workers settled while the server was asked is no difference; what they hold is named beside one."""
    bucket = valkey.bucket()
    bucket.reconcile(Reading(412))
    calls = [bucket.reserve(6), bucket.reserve(5)]

    def asked() -> tuple[int, object]:
        calls[0].settle(6, Reading(406))
        return 200, {"tokensLeft": 401, "refillIn": 60_000, "refillRate": 5, "timestamp": 1}

    monkeypatch.setattr("keepa_tokens.cli.probe.http_probe", lambda *_, **__: asked)
    said = valkey.run("status", "--probe", env={"KEEPA_API_KEY": "right"}).stdout
    assert "says 401; the bucket projected 406 (-5), with 5 held for calls under way" in " ".join(said.split())
    calls[1].cancel()


def test_a_refused_api_key_ends_with_4(valkey: Workers) -> None:
    """Where the server does not take the API key, that is one line without the key, and exit code 4."""
    valkey.bucket(bucket_key("wrong-one")).reconcile(Reading(412))
    with FakeKeepaServer(FakeKeepa(key="right")) as keepa:
        result = valkey.run("status", "--probe", "--base-url", keepa.url, code=4, env={"KEEPA_API_KEY": "wrong-one"})
    refused = "the server refused the API key (HTTP 400): is it the right one, and paid for?"
    assert result.stderr == f"keepa-tokens: {refused}\n"


def test_what_the_server_says_of_another_api_key_is_kept_from_a_bucket(valkey: Workers) -> None:
    """The only bucket there is may be another key's: nothing is asked for it, and it stays as it was."""
    valkey.bucket().reconcile(Reading(412))
    with FakeKeepaServer(FakeKeepa(initial=7, key="mine")) as keepa:
        options = ("--probe", "--base-url", keepa.url)
        assert "another API key" in valkey.run("status", *options, code=2, env={"KEEPA_API_KEY": "mine"}).stderr
    assert valkey.bucket().peek().balance == 412


def test_a_storage_that_is_away_ends_with_3() -> None:
    """A server that can't be reached is one line on the standard error, nothing on the other, and exit code 3."""
    result = run("status", "--redis", "redis://127.0.0.1:1", code=3)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


def test_a_node_that_has_no_such_bucket_names_the_one_that_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a node of a cluster that has other slots, the message names the node to connect to instead."""
    place = RedisPlace.from_url("redis://127.0.0.1:1")
    moved = Mock(side_effect=MovedError("6918 10.0.0.2:7001"))
    monkeypatch.setattr(place, "_client", Mock(execute_command=moved))
    with pytest.raises(ConfigError, match=r"try --redis 10\.0\.0\.2:7001"):
        place.fields(KEY)


def test_a_password_is_never_shown(valkey: Workers) -> None:
    """A message that names the place leaves out user and password of its URL."""
    url = valkey.url.replace("redis://", "redis://:hush@")
    with valkey.client() as client:
        client.config_set("requirepass", "hush")
        try:
            said = run("status", "--redis", url, code=2).output
        finally:
            client.config_set("requirepass", "")
    assert "hush" not in said
    assert "there is no bucket in redis://127.0.0.1" in said


def test_what_is_missing_is_said(valkey: Workers) -> None:
    """Which place, only one, the API key of a probe, whose bucket: a command says what to give."""
    valkey.bucket().reconcile(Reading(412))
    for arguments, says in (
        ((), "--redis redis://HOST:PORT, or --sqlite FILE"),
        (("--redis", "redis://x", "--sqlite", "y"), "not both"),
        ((*valkey.where, "--probe"), "--key-file FILE (- is stdin) or KEEPA_API_KEY"),
        ((*valkey.where, "--probe", "--all"), "leave out --all"),
    ):
        assert says in run("status", *arguments, code=2).stderr


def test_the_place_can_stand_in_the_environment(valkey: Workers) -> None:
    """KEEPA_TOKENS_REDIS names the place, on no command line; a call that is larger than the bucket never goes."""
    TokenBucket(Quota.per_minute(60), key="plain", storage=valkey.storage).try_acquire(5)
    told = document("status", env={"KEEPA_TOKENS_REDIS": valkey.url})["bucket"]
    assert told["balance"] == 55
    assert told["calls"][1] == {"tokens": 150, "granted": False, "reason": "TOO_LARGE", "retry_after": None}


def test_what_is_typed_goes_before_the_environment(valkey: Workers, tmp_path: Path) -> None:
    """Who has a place exported names another one for once; two in the environment are one too many."""
    valkey.bucket().reconcile(Reading(412))
    redis: dict[str, str | None] = {"KEEPA_TOKENS_REDIS": "redis://x"}
    sqlite: dict[str, str | None] = {"KEEPA_TOKENS_SQLITE": str(tmp_path / "none")}
    assert document("status", *valkey.where, env=sqlite)["bucket"]["balance"] == 412
    assert "there is no file" in run("status", "--sqlite", "none", env=redis, code=2).stderr
    assert "not both" in run("status", env=redis | sqlite, code=2).stderr
