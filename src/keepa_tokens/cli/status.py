"""`keepa-tokens status`: a bucket in sentences, and as a document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import click
from rich.text import Text

from ..rules.decision import Decision, Reason, Snapshot
from . import shell
from .colours import CARE, GOOD
from .look import Look, all_buckets
from .view import bar
from .where import WITH_BASE_URL, Where, with_bucket
from .words import columns, count, duration, known, plain

CALLS: Final = (10, 150)
"""The tokens of a small and a large call: the status says what each would get."""

BAR: Final = 30
BESIDE_BAR: Final = 40
SHORTEST_KEY: Final = 12

PERIODS: Final = {1.0: "a second", 60.0: "a minute", 60.5: "a minute", 3600.0: "an hour", 86_400.0: "a day"}

SHOWN: Final = (
    *("balance", "capacity", "refill", "period", "available", "held", "kept_back", "full_in", "closed_for"),
    *("paused_for", "bound", "waiting", "wanted", "reading_age", "drift", "repaired"),
)
"""The fields of a snapshot that a document has unchanged."""

WHY: Final = {
    Reason.EMPTY: "too few tokens",
    Reason.RECHARGING: "the bucket recharges and is closed until then",
    Reason.UNKNOWN: "the balance is unknown; the next caller asks the server",
    Reason.TOO_LARGE: "more than the bucket ever lets through",
    Reason.IN_FLIGHT: "others hold the tokens; they may be back any moment",
    Reason.PAUSED: "the bucket is paused",
}


def state_of(look: Look) -> str:
    """Return the bucket's state in a word or two."""
    snapshot = look.snapshot()
    if snapshot is None:
        return look.trouble
    if snapshot.paused_for > 0:
        return "paused"
    if snapshot.balance is None:
        return "unknown"
    if snapshot.closed_for > 0:
        return "recharging"
    if snapshot.refill == 0:
        return "no refill"
    return "open" if snapshot.retry_after <= 0 else "empty"


def headline(look: Look) -> str:
    """Return the bucket's state, and when a small call goes, in a sentence."""
    state, small = state_of(look), CALLS[0]
    if look.trouble:
        return f"{look.key}: {state}."
    if state == "open" and all(look.ask(tokens) for tokens in CALLS):
        return f"{look.key}: open, calls go at once."
    return f"{look.key}: {state}, a call of {small} {_when(look, small)}."


def sentences(look: Look, bar_width: int = BAR) -> list[tuple[str, str]]:
    """Return all lines of the status, each with its name."""
    snapshot = look.snapshot()
    if snapshot is None:
        return [("trouble", f"{look.trouble}: nobody can tell what it holds; `keepa-tokens doctor` says more")]
    kept = f"{count(snapshot.kept_back, 'token')}, for somebody else who was seen to spend"
    lines = [
        ("terms", _terms(look, snapshot)),
        ("balance", _balance(snapshot, bar_width)),
        ("available", _available(snapshot)),
        ("kept back", kept if snapshot.kept_back else "nothing"),
        ("next step", _next_step(look, snapshot)),
        *((f"call of {tokens}", _call(look, tokens)) for tokens in CALLS),
        ("waiting", _waiting(snapshot)),
    ]
    if look.own_clock:
        lines.insert(1, ("clock", "its workers' own: all of this is as of their last step"))
    if snapshot.paused_for > 0:
        lines.insert(1, ("paused", f"for another {duration(snapshot.paused_for)}; `keepa-tokens resume` ends it"))
    if snapshot.quota.synced:
        lines.append(("reading", _reading(look, snapshot)))
    lines.append(("mended", ", ".join(snapshot.repaired) or "nothing had to be"))
    return lines


def _terms(look: Look, snapshot: Snapshot) -> str:
    kind = "follows the server" if snapshot.quota.synced else "keeps its own books"
    unit = "" if snapshot.quota.stepped else ", evenly"
    refill, period, told = snapshot.refill, snapshot.period, ""
    quota = snapshot.quota
    same_rate = math.isclose(refill * quota.period, quota.refill * period, rel_tol=0.01)
    if same_rate:  # the bucket counts in the shortest period; show the one that the workers gave
        refill, period = quota.refill, quota.period
    if snapshot.capacity == look.state.wide_capacity != quota.capacity:
        told = f" until a minute after its terms changed, then {quota.capacity:,}"
    elif not same_rate or snapshot.capacity != quota.capacity:
        told = f" (the server says so; the workers were told {quota.refill:,}, up to {quota.capacity:,})"
    every = PERIODS.get(period, f"every {period:g} s")
    return f"{count(refill, 'token')} {every}{unit}, up to {snapshot.capacity:,}{told}; {kind}"


def _balance(snapshot: Snapshot, bar_width: int) -> str:
    if snapshot.balance is None:
        return f"unknown of {snapshot.capacity:,}; nothing goes until the server was asked, which the next caller does"
    drawn = bar(snapshot.balance / snapshot.capacity, bar_width)
    return f"{snapshot.balance:,} of {snapshot.capacity:,}  {drawn}"


def _available(snapshot: Snapshot) -> str:
    calls = snapshot.in_flight
    amount = known(snapshot.available)
    if not calls:
        return f"{amount}; no call is in flight"
    oldest = max(calls, key=lambda call: call.age)
    label = f", {oldest.label}" if oldest.label else ""
    oldest_for = f"the oldest for {duration(oldest.age)}{label}"
    return f"{amount}; {snapshot.held:,} held in {count(len(calls), 'call')}, {oldest_for}"


def _next_step(look: Look, snapshot: Snapshot) -> str:
    if snapshot.refill == 0:
        return "never: the net refill is 0"
    if snapshot.balance is None:
        return "unknown, as the balance"
    step = look.next_step(snapshot)
    if step is None:
        return "none: the bucket is full"
    return f"{step.gain:+,} in {duration(step.left)}; full in {duration(snapshot.full_in)}"


def _call(look: Look, tokens: int) -> str:
    decision, when = look.ask(tokens), _when(look, tokens)
    if decision.granted:
        return when
    return f"{when}: {WHY.get(decision.reason, str(decision.reason))} ({decision.reason})"


def _when(look: Look, tokens: int) -> str:
    decision, latest = look.ask(tokens), look.latest(tokens)
    if decision.granted:
        return "goes at once"
    if math.isinf(decision.retry_after):
        return "never goes"
    if decision.balance is None or math.isinf(latest):
        return f"may go in {duration(decision.retry_after)}"
    sooner = f"may go in {duration(decision.retry_after)}, " if decision.retry_after < latest else ""
    return f"{sooner}goes in {duration(latest)} at the latest"


def _waiting(snapshot: Snapshot) -> str:
    callers = snapshot.waiting
    return f"{count(callers, 'caller')}, for {count(snapshot.wanted, 'token')}" if callers else "nobody"


def _reading(look: Look, snapshot: Snapshot) -> str:
    if snapshot.reading_age is None:
        return "none yet: the server " + ("was asked, and told none" if look.state.probe_until else "was never asked")
    age, asked = f"{duration(snapshot.reading_age)} old", ""
    if snapshot.bound < look.latest(1):  # a probe comes before the refill
        after = f" after {duration(snapshot.bound)}" if snapshot.bound else ""
        asked = f"; who is refused{after} asks the server"
    if not snapshot.drift:
        return f"{age}, as projected{asked}" if snapshot.drift == 0 else age + asked
    than = "fewer than projected" if snapshot.drift < 0 else "more than projected"
    return f"{age}; the server had {count(abs(snapshot.drift), 'token')} {than}{asked}"


def document(look: Look) -> dict[str, object]:
    """Return a bucket as a JSON document. Durations are seconds; null: never, or unknown."""
    snapshot = look.snapshot()
    if snapshot is None:
        return {"key": look.key, "state": look.trouble}
    step = look.next_step(snapshot)
    return {
        "key": look.key,
        "state": state_of(look),
        **{name: _finite(getattr(snapshot, name)) for name in SHOWN},
        "synced": snapshot.quota.synced,
        "holds": [
            {"id": call.id, "tokens": call.tokens, "age": call.age, "left": call.runs_out_in, "label": call.label}
            for call in snapshot.in_flight
        ],
        "next_step_in": None if step is None else step.left,
        "calls": [_call_document(tokens, look.ask(tokens)) for tokens in CALLS],
    }


def _call_document(tokens: int, decision: Decision) -> dict[str, object]:
    wait = _finite(decision.retry_after)
    return {"tokens": tokens, "granted": decision.granted, "reason": str(decision.reason), "retry_after": wait}


def _finite(value: object) -> object:
    return None if value == math.inf else value


def table(looks: Sequence[Look], width: int = 10_000) -> list[str]:
    """Return a table of buckets, one line each below a heading; long keys are cut to keep lines within `width`."""
    rows = [("BUCKET", "STATE", "BALANCE", "HELD", "CALLS", "WAITING", "READING")]
    for look in looks:
        snapshot = look.snapshot()
        if snapshot is None:
            rows.append((plain(look.key), look.trouble, "?", "?", "?", "?", "?"))
            continue
        balance = "?" if snapshot.balance is None else f"{snapshot.balance:,}"
        age = "" if snapshot.reading_age is None else duration(snapshot.reading_age)
        numbers = (f"{balance}/{snapshot.capacity:,}", f"{snapshot.held:,}", str(snapshot.holds), str(snapshot.waiting))
        rows.append((plain(look.key), state_of(look), *numbers, age))
    over = max(map(len, columns(rows, left=2))) - width
    longest = max(SHORTEST_KEY, max(len(row[0]) for row in rows) - over)
    return columns([(_cut(row[0], longest), *row[1:]) for row in rows], left=2)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


@shell.command(
    "how a bucket is: what is there, who holds it, what a call gets",
    examples="""
    keepa-tokens status --redis redis://127.0.0.1:6379
    keepa-tokens status --redis redis://127.0.0.1:6379 --all
    keepa-tokens status --sqlite buckets.sqlite --json
    KEEPA_API_KEY=... keepa-tokens status --redis redis://127.0.0.1:6379 --probe
    """,
    then="keepa-tokens doctor     what is wrong, what it does, and how to mend it",
)
@with_bucket
@click.option("--all", "every", is_flag=True, help="A table of every bucket.")
@click.option("--probe", is_flag=True, help="Ask the server as well, which costs no tokens, and show both balances.")
@WITH_BASE_URL
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def status_command(where: Where, *, every: bool, probe: bool, base_url: str, as_json: bool) -> None:
    """Show a bucket: what is there, who holds it, what a call would get and when.

    Without KEY: the only bucket there is, or the one of the API key. Writes nothing, unless --probe brings a reading.
    """
    if every and (probe or where.key):
        raise shell.RefusedError("KEY and --probe are for one bucket: leave out --all")
    if every:
        _show_all(list(all_buckets(where.place)), as_json=as_json)
        return
    seen, said = where.look(), None
    if probe:
        said = where.ask(seen, base_url)
        seen = where.look(seen.key)
    if as_json:
        server = said and {"balance": said.said, "projected": said.projected, "why_not": said.why_not}
        shell.print_json({"bucket": document(seen), **({"server": server} if probe else {})})
        return
    shell.say(headline(seen), f"bold {GOOD if state_of(seen) == 'open' else CARE}")
    bar_width = max(0, min(BAR, shell.console().width - BESIDE_BAR))
    shell.print_table(sentences(seen, bar_width) + ([("server", said.sentence())] if said else []))


def _show_all(looks: list[Look], *, as_json: bool) -> None:
    if as_json:
        shell.print_json({"buckets": [document(seen) for seen in looks]})
        return
    if not looks:
        shell.complain("there is no bucket here: the first call of a worker makes one")
        return
    console = shell.console()
    heading, *rows = table(looks, console.width) if console.is_terminal else table(looks)
    console.print(Text.assemble((heading, "bold"), *(f"\n{row}" for row in rows)))
