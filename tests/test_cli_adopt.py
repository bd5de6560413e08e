"""`keepa-tokens adopt`: a hand-made manager's state becomes a bucket in one step, dry run first."""

from __future__ import annotations

from contextlib import closing

import pytest

from keepa_tokens import BucketState, ConfigError, KeepaSync, Reason, keepa_quota
from keepa_tokens.cli.adopt import adopt, plan_adoption
from keepa_tokens.cli.hand_made import Manager, instant, understand
from keepa_tokens.cli.redis_place import RedisPlace
from keepa_tokens.keepa.quota import STEP_SECONDS, bucket_key
from keepa_tokens.rules.commands import Acquire
from keepa_tokens.rules.transition import transition
from keepa_tokens.testing import FakeKeepa
from keepa_tokens.units import CLAIM_US
from tests.cli import KEY, Workers

SECOND = 1_000_000
NOW = 1_780_000_000.0
ENV: dict[str, str | None] = {"KEEPA_API_KEY": "mine"}


@pytest.fixture
def server(valkey: Workers) -> Workers:
    """The same, with the stuck state of a hand-made manager and nothing else."""
    with valkey.client() as client:
        client.mset({"keepa:tokens": "-79", "keepa:rate": "20"})
    return valkey


OPTIONS = ("--balance-key", "keepa:tokens", "--timestamp-key", "keepa:last_refill", "--rate-key", "keepa:rate")


def test_a_dry_run_says_all_and_writes_nothing(server: Workers) -> None:
    """Without --yes it says what it found, what it would write and when the first call would go, and writes nothing."""
    said = server.run("adopt", *OPTIONS, env=ENV).stdout
    with server.client() as client:
        assert sorted(client.keys("*")) == [b"keepa:rate", b"keepa:tokens"]

    assert said == (
        "found       a balance of -79, no time of its last refill: it stands still for ever\n"
        f"bucket      {bucket_key('mine')}\n"
        "terms       20 tokens a minute, up to 1,200\n"
        "balance     -79 now\n"
        "first call  asks the server and goes by its answer; without one in 4:02\n"
        "note        the time of the last refill is missing: it refills from now on, so nothing is made up\n"
        "dry run     nothing was written: the same with --yes does it\n"
    )


def test_found_adopted_and_running_in_three_commands(server: Workers) -> None:
    """Found by `doctor`, taken over by `adopt --yes`, shown by `status`: the first worker asks, and works at once."""
    stuck = server.document("doctor", code=1)["findings"]
    server.run("adopt", *OPTIONS, "--yes", env=ENV)
    told = server.document("status")["bucket"]
    assert [found["code"] for found in stuck] == ["stuck-manager"]
    assert (told["key"], told["balance"], told["refill"], told["repaired"]) == (bucket_key("mine"), -79, 20, [])
    keepa = FakeKeepa(refill_rate=20)
    worker = KeepaSync(server.bucket(bucket_key("mine")), probe=keepa.probe)
    worker.try_request(5).cancel()
    assert (keepa.token_calls, worker.bucket.peek().balance) == (1, 1200)


def test_an_adopted_bucket_refills_from_its_own_time(server: Workers) -> None:
    """Where the old manager still knows its last refill, the bucket goes on from there; else from now, never from 0."""
    with server.client() as client:
        seconds, _ = client.time()
        client.set("keepa:last_refill", str(seconds - 303))
    assert "a balance of -79, the time of its last refill\n" in server.run("adopt", *OPTIONS, env=ENV).stdout
    told = server.document("adopt", *OPTIONS, "--yes", env=ENV)
    assert (told["found"]["stuck"], told["written"]) == (False, True)
    assert told["bucket"]["balance"] == -79 + 5 * 20
    assert server.bucket(bucket_key("mine")).peek().balance == 21


def test_a_bucket_that_is_there_is_not_overwritten(server: Workers) -> None:
    """A second adoption is refused, the bucket stays; one that nobody uses ends by itself, after thirty days."""
    server.run("adopt", *OPTIONS, "--yes", env=ENV)
    for again in ((), ("--yes",)):
        assert "there is a bucket" in server.run("adopt", *OPTIONS, *again, code=2, env=ENV).stderr
    with server.client() as client:
        assert 29 * 86_400 < client.ttl(f"keepa_tokens:{bucket_key('mine')}") <= 30 * 86_400


def test_a_hash_is_read_by_its_fields(server: Workers) -> None:
    """With --hash the other options name fields of one hash; KEY says which bucket."""
    with server.client() as client:
        client.hset("old", mapping={"tokens": "-31", "rate": "5", "recharge": "480"})
    options = ("--hash", "old", "--balance-key", "tokens", "--rate-key", "rate", "--recharge-key", "recharge")
    told = server.document("adopt", KEY, *options)
    assert told["found"] == {"balance": -31, "refilled_at": None, "rate": 5, "recharge_to": 480, "stuck": True}
    assert "it waited to recharge to 480, but its bucket holds 300" in told["notes"]


@pytest.mark.parametrize(
    "balance, found, now, first",
    [
        ("50", "a balance of 50, no time of its last refill\n", "50 now", "goes at once"),
        ("many", "no balance, no time of its last refill\n", "unknown", "asks the server and goes by its answer; with"),
    ],
)
def test_what_was_done_is_told(server: Workers, balance: str, found: str, now: str, first: str) -> None:
    """What was found, what the bucket holds, how the first call goes and which rate is taken are told; then the end."""
    options = ("adopt", KEY, "--balance-key", "keepa:tokens")
    with server.client() as client:
        client.set("keepa:tokens", balance)
    assert "no refill rate" not in server.run(*options, "--refill-rate", "60").stdout
    said = server.run(*options, "--yes").stdout
    for label, words in (
        ("found", found),
        ("balance", now),
        ("first call", first),
        ("done", "the bucket is there; the"),
    ):
        assert f"{label:<12}{words}" in said
    assert "no refill rate is known: 5 a minute until the server's first answer" in said


def test_more_than_the_bucket_holds_is_left_out_and_a_recharge_is_named() -> None:
    """A balance above the capacity is cut to it; to go on with a recharge that fits, workers are told how."""
    plan = plan_adoption(round(NOW * SECOND), Manager(5000, NOW, rate=20, recharge_to=480))
    assert (plan.found.balance, plan.fields["balance"]) == (1200, "1200")
    assert plan.notes == ["it waited to recharge to 480: to keep that, give workers recharge_to="]


def test_what_names_no_bucket_is_refused(server: Workers) -> None:
    """The bucket is the API key's or KEY, which may be no API key: nothing of that is stored or repeated."""
    assert "say for which bucket" in server.run("adopt", *OPTIONS, code=2).stderr
    assert "can't name a bucket" in server.run("adopt", "a b", *OPTIONS, "--yes", code=2).stderr
    result = server.run("adopt", "k1" * 32, *OPTIONS, "--yes", code=2)
    assert "--key-file" in result.stderr
    assert "k1k1" not in result.output
    with server.client() as client:
        assert sorted(client.keys("*")) == [b"keepa:rate", b"keepa:tokens"]


def test_as_a_function_it_does_the_same(server: Workers) -> None:
    """`adopt` as a function plans without writing, writes once, and raises where a bucket is there."""
    stuck = Manager(balance=-79)
    with closing(RedisPlace.from_url(server.url)) as place:
        assert adopt(place, KEY, stuck, refill_rate=20).found.retry_after == pytest.approx(242.0)
        assert place.fields(KEY) is None
        adopt(place, KEY, stuck, refill_rate=20, write=True)
        assert server.bucket().peek().balance == -79
        with pytest.raises(ConfigError):
            adopt(place, KEY, stuck, refill_rate=20, write=True)
        assert not place.put(KEY, {"balance": "1200"}, 60.0)  # not even where it came in between
    assert server.bucket().peek().balance == -79


SECONDS = 1779999000.0
TIMES = ("1779999000", "1779999000.0", *("1779999000" + "000" * times for times in (1, 2, 3)), "2026-05-28T20:10:00Z")
NO_TIMES = ("", "None", "0", "nan", "inf", "-5", "12:30", "9999999999", "1e300")


@pytest.mark.parametrize(
    "texts, balance, refilled_at, note",
    [
        # Numbers of seconds down to nanoseconds, and ISO texts.
        *(({"balance": "5", "timestamp": said}, 5, SECONDS, "") for said in TIMES),
        # A text that names no time zone may be hours off, and so mint their refill.
        ({"balance": "-79.5", "timestamp": "2026-05-28T20:10:00"}, -80, SECONDS, "it is taken for UTC"),
        # What says no time, or one that can't be, counts as lost: nothing may refill for it.
        ({"balance": "5", "timestamp": None}, 5, None, "is missing: it refills from now on, so nothing is made up"),
        *(({"balance": "5", "timestamp": said}, 5, None, "can't be read, or lies ahead") for said in NO_TIMES),
        # A flag says nothing of when a recharge is over.
        ({"balance": "5", "timestamp": "1779999000", "recharge": "True"}, 5, SECONDS, "flag (True) is left out"),
        ({"balance": "5", "timestamp": "1779999000", "recharge": "1"}, 5, SECONDS, "flag (1) is left out"),
    ],
)
def test_what_a_manager_kept_is_read(
    texts: dict[str, str | None], balance: int, refilled_at: float | None, note: str
) -> None:
    """A time is read in any unit; what can't be taken over is left out, and that is said, nothing else."""
    manager = understand(texts, NOW)
    assert instant(texts["timestamp"], NOW) == refilled_at
    assert (manager.balance, manager.refilled_at, manager.recharge_to) == (balance, refilled_at, None)
    assert not manager.stuck
    assert [note in each for each in manager.notes] == [True] * bool(note)


@pytest.mark.parametrize("said", [None, "", "many", "nan", "-inf", "9" * 30])
def test_a_balance_that_cannot_be_read_is_unknown(said: str | None) -> None:
    """A balance that says nothing becomes an unknown one, so that the server is asked first; never a full bucket.
    Without an answer the first call goes once the question has failed and a step of the refill has come.
    """
    manager = understand({"balance": said, "rate": "0"}, NOW)
    assert manager.rate is None
    assert "there is no balance that can be read" in manager.notes[0]
    plan = plan_adoption(round(NOW * SECOND), manager, 20)
    assert manager.balance is plan.found.balance is None
    assert plan.found.bound == pytest.approx(CLAIM_US / SECOND + STEP_SECONDS)
    asked = transition(keepa_quota(20), BucketState.from_fields(plan.fields), round(NOW * SECOND), Acquire(1))[1]
    assert (asked.granted, asked.reason) == (False, Reason.UNKNOWN)
    assert asked.claimed_until_us is not None


def test_a_time_ahead_mints_nothing() -> None:
    """A time that lies a moment ahead refills nothing and is no damage."""
    plan = plan_adoption(round(NOW * SECOND), Manager(-79, refilled_at=NOW + 60.0), 20)
    assert (plan.found.balance, plan.found.repaired) == (-79, ())
