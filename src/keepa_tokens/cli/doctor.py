"""Finds what is wrong with a bucket: what, its effect, its cure. Pure: it gets a look at the bucket.

A healthy bucket has no finding, however busy it is. `doctor_server` does the same for the server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from ..rules.decision import Snapshot
from ..rules.transition import lifetime_us
from ..units import MICROSECONDS, MINUTE_US
from .finding import Finding
from .look import Look
from .words import count, duration

DEAD_PART: Final = 0.75
"""If a call has used this part of its hold's time, its worker is probably dead."""

ALIVE_FOR: Final = 60.0
"""Seconds that any call may take: a younger hold is no finding."""

DEAD_AFTER: Final = 600.0
"""Seconds that no call takes, however long its hold."""

DRIFT_PART: Final = 10
"""A reading may be below the projection by two steps, or the capacity divided by this; more means another spender."""

UNASKED: Final = 3
"""Probes that may fail in a row before it is worth a finding."""

RECENT_US: Final = 5 * MINUTE_US
UNREAD: Final = 1200.0
"""Seconds without a reading that are too long while callers wait: a refusal should have asked the server."""

STANDS_FOR: Final = 2.5
"""Seconds within which a live caller goes once it may: callers that wait look again within a second or two."""

EFFECTS: Final = {
    "balance": "it counts as unknown, so the next call asks the server; without one, as 0, and refills from there",
    "hold": "that call's tokens are not set aside any more; its settle changes nothing",
    "refilled_at": "the time that passed since the last refill is lost; it refills from the next command on",
    "carry": "less than one token of the refill under way is lost",
    "sequence": "answers in flight are put in order by the server's time alone",
    "reading_at": "the last reading counts as none, so the next refusal asks the server",
    "reading_sequence": "answers in flight are put in order by the server's time alone",
    "closed_until": "a recharge that was under way counts as over",
    "paused_until": "a pause that was under way counts as over",
    "probe_until": "the server may be asked once more than needed",
    "reported_refill": "it refills at the rate that the workers were told, until the server speaks",
    "reported_capacity": "it fills up to the capacity that the workers were told, until the server speaks",
    "format": "the state is taken for one of this release",
}


def examine(look: Look, *, later: Sequence[Look] = ()) -> Iterator[Finding]:
    """Yield what is wrong with a bucket. later: more looks, a moment apart."""
    return (replace(found, about=look.key) for found in _examine(look, later))


def _examine(look: Look, later: Sequence[Look]) -> Iterator[Finding]:
    if look.trouble == "newer release":
        yield Finding(
            "newer-release",
            f"it was written by a newer release (format {look.fields.get('format')})",
            "this release leaves it as it is, and can't say how it is; its workers get a ConfigError",
            "upgrade what is older: the workers, or this command",
        )
        return
    yield from _damage(look)
    snapshot = look.snapshot()
    if snapshot is None:
        return
    yield from _terms(look, later)
    yield from _refill(snapshot)
    yield from _others(snapshot)
    yield from _calls(look, snapshot)
    yield from _line(look, snapshot, later)
    failures = look.state.probe_failures or 0
    if failures >= UNASKED:
        yield Finding(
            "probes-fail",
            f"the last {failures} attempts to ask the server brought no balance",
            "the bucket goes by its own projection, or stands at 0 and refills where it knew nothing",
            "see whether the workers reach the server and the API key is good: `keepa-tokens status --probe`",
        )
    if look.own_clock:
        yield Finding(
            "own-clock",
            "its times are not the storage's: its workers bring a clock of their own",
            "it is shown as it was at their last step; it stays in the storage when nobody uses it any more",
            "nothing, if that is meant; else leave clock= out, so that all workers go by the storage's time",
            fault=False,
        )
    elif look.endless and lifetime_us(look.state, look.now_us) is not None:
        yield Finding(
            "no-lifetime",
            "its key has no lifetime",
            "it stays in the storage when nobody uses it any more; normal if the workers bring a clock of their own",
            "`keepa-tokens doctor --repair` gives it one",
            fault=False,
            mend="lifetime",
        )


def _damage(look: Look) -> Iterator[Finding]:
    snapshot = look.snapshot()
    names = dict.fromkeys((*look.state.unreadable, *(snapshot.repaired if snapshot else ())))
    if look.quota is None:
        names.pop("quota", None)
        yield Finding(
            "terms-lost",
            "the terms that it was last used on are missing or can't be read",
            "nobody can tell from outside what it holds; workers bring terms of their own and aren't stopped by this",
            "the next call of a worker writes them again",
        )
    for name in names:
        kind, how = name.partition(":")[0], "says what can't be" if name in look.fields else "is missing"
        if name in look.state.unreadable:
            how = "can't be read"
        yield Finding(
            f"damaged-{kind}",
            f"its field {name} {how}",
            EFFECTS.get(kind, "a safe value takes its place"),
            "any call of a worker mends it" + ", or `keepa-tokens doctor --repair` now" * (look.quota is not None),
            mend="fields" if look.quota is not None else "",  # by which terms?
        )


def _terms(look: Look, later: Sequence[Look]) -> Iterator[Finding]:
    if any(other.quota not in {None, look.quota} for other in later):
        yield Finding(
            "terms-flap",
            "its terms change from one moment to the next: workers use it with different ones",
            "capacity and refill are now those of the one, now those of the other",
            "give all workers the same refill rate and options for this bucket",
        )
    elif look.state.terms_at is not None and 0 <= look.now_us - look.state.terms_at < RECENT_US:
        ago = (look.now_us - look.state.terms_at) / MICROSECONDS
        yield Finding(
            "terms-changed",
            f"its terms changed {duration(ago)} ago",
            "normal right after a change of plan or a deployment; else workers use it with different terms",
            "look again in a minute; if they change again, give all workers the same terms",
            fault=False,
        )


def _refill(snapshot: Snapshot) -> Iterator[Finding]:
    if snapshot.balance is not None and snapshot.balance > snapshot.capacity:
        yield Finding(
            "above-capacity",
            f"its balance is {snapshot.balance:,}, more than the {snapshot.capacity:,} that it holds",
            "normal right after a change to a smaller plan; else more is granted than should be",
            "`keepa-tokens status --probe` asks the server what is true",
            fault=False,
        )
    if snapshot.quota.synced and snapshot.balance is not None and snapshot.balance < -snapshot.capacity:
        yield Finding(
            "deep-debt",
            f"its balance is {-snapshot.balance:,} below zero, and it holds {snapshot.capacity:,}",
            "nobody goes before that is refilled; some of it may be the estimates of calls that were never answered",
            "`keepa-tokens status --probe` asks the server what is true; workers do ten minutes after its last answer",
            fault=False,
        )
    if snapshot.refill == 0 and not snapshot.quota.synced:
        yield Finding(
            "no-refill",
            "its terms have no refill",
            "no token comes back: once they are spent, whoever waits waits until the terms change",
            "nothing, if that is meant; else give all workers terms with a refill",
            fault=False,
        )
    elif snapshot.refill == 0:
        yield Finding(
            "no-refill",
            "the net refill is 0",
            "no token comes back, so whoever waits waits until this changes",
            "reduce what is tracked on the key, or see whether its plan has ended; a reading brings the new rate",
        )
    recharge_to = snapshot.quota.recharge_to
    if recharge_to is not None and recharge_to > snapshot.capacity:
        yield Finding(
            "recharge-too-high",
            f"workers wait for {recharge_to:,} tokens to recharge to; the bucket holds {snapshot.capacity:,}",
            f"they wait for {snapshot.capacity:,} instead",
            "set recharge_to below the capacity",
            fault=False,
        )


def _others(snapshot: Snapshot) -> Iterator[Finding]:
    if snapshot.kept_back:
        yield Finding(
            "kept-back",
            f"{count(snapshot.kept_back, 'token')} are kept back for somebody else who was seen to spend",
            "workers get less than the whole refill, so that the others' calls and theirs are not refused",
            "find the other program that uses this API key, and let it use this bucket too",
        )
        return
    allowed = max(2 * snapshot.refill, snapshot.capacity // DRIFT_PART)
    if snapshot.drift is not None and snapshot.drift < -allowed:
        yield Finding(
            "drift",
            f"at the last reading the server had {count(-snapshot.drift, 'token')} fewer than projected",
            "calls may have been refused by the server; the balance is right again since",
            "find what spends from this API key beside these workers, or settles too little",
        )


def could_go(look: Look) -> bool:
    """Return whether callers wait although there are tokens for all of them; a line that moves is so only briefly."""
    snapshot = look.snapshot()
    if snapshot is None or snapshot.available is None or snapshot.paused_for or snapshot.closed_for:
        return False
    return snapshot.waiting > 0 and snapshot.available - snapshot.kept_back >= snapshot.wanted


def _line(look: Look, snapshot: Snapshot, later: Sequence[Look]) -> Iterator[Finding]:
    callers, wanted = snapshot.waiting, snapshot.wanted
    stood = (later[-1].now_us - look.now_us) / MICROSECONDS if later else 0.0
    if stood >= STANDS_FOR and all(could_go(seen) and seen.state == look.state for seen in (look, *later)):
        early = (min(ticket.told_at for ticket in look.line()) - later[-1].now_us) / MICROSECONDS
        yield Finding(
            "line-stands",
            f"{count(callers, 'caller')} in line for {count(wanted, 'token')} that are there, and nobody takes them",
            f"the first was told, when there was less, to come in {duration(early)}, as a queue's task then does"
            if early > 0
            else "those who wait are dead or hang; the others get their turn within a minute, when the places lapse",
            "see whether the workers live; nothing has to be mended here",
            fault=early <= 0,
        )
    if callers and snapshot.reading_age is not None and snapshot.reading_age > UNREAD:
        yield Finding(
            "no-reading",
            f"{count(callers, 'caller')} in line, and the server has not spoken for {duration(snapshot.reading_age)}",
            "the bucket goes by its own projection, and doesn't see where the server's balance differs",
            "see whether the workers reach the server and the API key is good: `keepa-tokens status --probe`",
        )


def _calls(look: Look, snapshot: Snapshot) -> Iterator[Finding]:
    for call in snapshot.in_flight:
        if call.age >= min(max(DEAD_PART * (call.age + call.runs_out_in), ALIVE_FOR), DEAD_AFTER):
            of = f" of {call.label}" if call.label else ""
            yield Finding(
                "dead-hold",
                f"a call{of} has held {count(call.tokens, 'token')} for {duration(call.age)}: its worker may be dead",
                f"the tokens stay set aside for another {duration(call.runs_out_in)}, and count as spent then",
                f"nothing, or `keepa-tokens release {call.id} {look.key}` if the call was certainly never sent",
            )
