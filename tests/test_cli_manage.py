"""`keepa-tokens pause`, `resume`, `reset` and `release`."""

from __future__ import annotations

import pytest

from keepa_tokens import Reading, TokenBucket, keepa_quota
from keepa_tokens.testing import ManualClock
from tests.cli import KEY, Workers


@pytest.fixture
def server(valkey: Workers) -> Workers:
    valkey.bucket().reconcile(Reading(300, refill=20.0, capacity=1200))
    return valkey


@pytest.mark.parametrize(
    "options, answers, code, says",
    [
        ((), f"y\n{KEY}\n", 0, f"This forgets the bucket {KEY} (balance 300 of 1,200"),
        (("--yes",), None, 0, f"{KEY} is forgotten: the next call of a worker makes a new bucket.\n"),
        *(((), answers, 2, "nothing was changed") for answers in ("n\n", "y\nyes\n", "y\n\n")),
        ((), "", 130, "nothing was changed"),
    ],
)
def test_reset_forgets_a_bucket_after_two_answers(
    server: Workers, options: tuple[str, ...], answers: str | None, code: int, says: str
) -> None:
    """Reset says what is lost, asks twice, and forgets; a no, another word or nobody leaves everything as it was."""
    told = server.run("reset", *options, stdin=answers, code=code)
    assert says in told.output
    assert told.stdout == ("" if code else f"{KEY} is forgotten: the next call of a worker makes a new bucket.\n")
    assert server.bucket().peek().balance == (300 if code else None)


def test_release_gives_back_what_a_dead_call_holds(server: Workers) -> None:
    """Release ends one hold, found by the beginning of its id, and says how much it gave back; others stay."""
    dead, other = server.bucket().try_reserve(30), server.bucket().try_reserve(5)
    assert "nothing was changed" in server.run("release", dead.id, stdin="n\n", code=2).stderr
    said = server.run("release", dead.id[:10], "--yes").stdout
    assert said.startswith("30 tokens, held for 0:0")
    assert said.endswith(": given back.\n")
    with server.client() as client:
        assert client.ttl(f"keepa_tokens:{KEY}") > 0
    assert (server.bucket().peek().held, server.bucket().peek().balance) == (5, 300)
    for wrong in ("zzz", ""):
        assert f"there are: {other.id} (5 tokens)" in server.run("release", wrong, "--yes", code=2).stderr


@pytest.mark.parametrize("wrong", ["2", "1x", "25h", "0s", "-1h", "h"])
def test_a_pause_is_a_duration_up_to_a_day(server: Workers, wrong: str) -> None:
    """What is no duration, or longer than a day, is a usage error that shows how to write one."""
    assert "write 90s, 30m, 1h30m" in server.run("pause", "--for", wrong, code=2).stderr


def test_a_pause_is_seen_and_ended(server: Workers) -> None:
    """A paused bucket lets no call go, status says for how long, and resume ends it, once."""
    said = server.run("pause", "--for", "30m").stdout
    assert said == f"{KEY} is paused for 30:00: no call goes, what is in flight is settled as ever.\n"
    told = server.document("status")["bucket"]
    assert told["state"] == "paused"
    assert 1790 < told["paused_for"] <= 1800
    assert [call["reason"] for call in told["calls"]] == ["PAUSED", "PAUSED"]
    assert not server.bucket().try_acquire(1)
    assert "of its pause were left" in server.run("resume").stdout
    assert server.bucket().try_acquire(1)
    assert server.run("resume").stdout == f"{KEY} was not paused; nothing was changed.\n"


@pytest.mark.parametrize(
    "command, paused",
    [(("pause", "--for", "1m"), 50), (("resume",), 0), (("doctor", "--repair"), 0), (("release", "{id}", "--yes"), 0)],
)
def test_a_bucket_on_a_clock_of_its_own_is_changed_by_that_clock(
    valkey: Workers, command: tuple[str, ...], paused: float
) -> None:
    """Where the workers bring a clock of another epoch, a command steps by it, not by the storage's time."""
    clock = ManualClock(5_000.0)
    bucket = TokenBucket(keepa_quota(20), key=KEY, storage=valkey.storage, clock=clock, listener=lambda _: None)
    bucket.reconcile(Reading(100, refill=20.0, capacity=1200, next_refill_in=60.0))
    others, held = bucket.try_reserve(30, hold_for=600), bucket.try_reserve(5, hold_for=600)
    with valkey.client() as client:
        client.hset(f"keepa_tokens:{KEY}", "drift", "garbage")
    said = valkey.run(*(part.format(id=held.id) for part in command)).stdout
    assert ("from the last step of its workers' own clock" in said) == (command[0] == "pause")
    clock.advance(10)
    found = bucket.peek()

    assert (found.balance, found.paused_for) == (100, paused)
    assert "refilled_at" not in found.repaired
    assert found.held == others.tokens + (0 if command[0] == "release" else held.tokens)
