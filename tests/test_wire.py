"""What goes to the script and what comes back, text by text: the order that `bucket.lua` counts on."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Final

import pytest

from keepa_tokens import ConfigError, Quota, Reading
from keepa_tokens.rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Outcome,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Verdict,
)
from keepa_tokens.rules.decision import Reason, Snapshot
from keepa_tokens.rules.state import BucketState, Hold
from keepa_tokens.storage import _wire
from keepa_tokens.units import LIMIT, NEVER

PLAIN: Final = Quota(10, 6, 4.0, overdraft=3, recharge_to=8, initial=7)
SYNCED: Final = Quota(20, 5, 60.5, stepped=True, synced=True)
OF_PLAIN: Final = ["10", "6", "4000000", "0", "3", "8", "7", "0", "3", "2000000"]
OF_SYNCED: Final = ["20", "5", "60500000", "1", "0", "", "", "1", "1", "12100000"]
READING: Final = Reading(-4, next_refill_in=1.5, refill=0.3, period=60.0, capacity=900, server_time=1e9)
OF_READING: Final = ["-4", "1500000", "1", "4", "60000000", "900", "1000000000000000"]
NO_READING: Final = [""] * 7

PROBE_AFTER: Final = "600000000"

SENT: Final[list[tuple[Command, list[str]]]] = [
    (Acquire(2), ["2", "0", "", PROBE_AFTER]),
    (Acquire(2, keep=3, wait_us=0, probe_after_us=4), ["2", "3", "0", "4"]),
    (Acquire(2, wait_us=-5, probe_after_us=None), ["2", "0", "-1", ""]),
    (Acquire(2, wait_us=LIMIT + 5, probe_after_us=0), ["2", "0", str(LIMIT), "0"]),
    (Reserve("a", 2, 5, keep=3, wait_us=6, probe_after_us=7), ["a", "2", "5", "3", "6", "7", "0"]),
    (Reserve("a", 2, 5, scout=True), ["a", "2", "5", "0", "", PROBE_AFTER, "1"]),
    (Settle("a"), ["a", "", "0", *NO_READING]),
    (Settle("a", 0, READING), ["a", "0", "0", *OF_READING]),
    (Settle("a", 3, refused=True), ["a", "3", "1", *NO_READING]),
    (Cancel("a"), ["a"]),
    (Refund("a", 2, 3), ["a", "2", "3"]),
    (Reconcile(READING), ["1", "0", PROBE_AFTER, *OF_READING]),
    (Reconcile(Reading(5)), ["1", "0", PROBE_AFTER, "5", "", "", "1", "", "", ""]),
    (ClaimProbe(), []),
    (Peek(), ["1", "0", PROBE_AFTER]),
    (Peek(2, keep=3, probe_after_us=NEVER), ["2", "3", str(NEVER)]),
]


@pytest.mark.parametrize("quota, told", [(PLAIN, OF_PLAIN), (SYNCED, OF_SYNCED)])
@pytest.mark.parametrize("command, arguments", SENT)
def test_a_command_is_its_name_the_time_the_quota_and_its_arguments(
    command: Command, arguments: list[str], quota: Quota, told: list[str]
) -> None:
    """Everything in one order, whole numbers as texts, '' for what there is not; flags are 1 or 0."""
    assert _wire.encode(quota, command, None) == [type(command).__name__, "", *told, *arguments]
    assert _wire.encode(quota, command, 0)[1:3] == ["0", told[0]]


def test_a_look_at_the_hash_is_a_name_and_a_time() -> None:
    """Without a quota there is only who asks, and when."""
    assert _wire.encode_inspection(None) == ["Inspect", ""]
    assert _wire.encode_inspection(3) == ["Inspect", "3"]


OUT_OF_RANGE: Final[list[tuple[str, Command]]] = [
    ("tokens", Acquire(LIMIT)),
    ("tokens", Reserve("a", LIMIT, 1)),
    ("tokens", Refund("a", LIMIT, 1)),
    ("tokens", Peek(LIMIT)),
    ("keep", Acquire(1, keep=LIMIT)),
    ("keep", Peek(1, keep=LIMIT)),
    ("hold_for_us", Reserve("a", 1, LIMIT)),
    ("actual", Settle("a", LIMIT)),
    ("issued_us", Refund("a", 1, LIMIT)),
    ("probe_after_us", Acquire(1, probe_after_us=NEVER + 1)),
    ("probe_after_us", Peek(1, probe_after_us=NEVER + 1)),
]


@pytest.mark.parametrize("name, command", OUT_OF_RANGE)
def test_a_number_that_lua_could_not_hold_is_named(name: str, command: Command) -> None:
    """Nothing is sent that would be computed inexactly; the error has the field's name."""
    with pytest.raises(ConfigError, match=rf"^{name}=[0-9]+ is out of range"):
        _wire.encode(PLAIN, command, 1)


@pytest.mark.parametrize("now", [-1, LIMIT])
def test_a_time_that_lua_could_not_hold_is_named(now: int) -> None:
    """The caller's time too, for a command and for a look."""
    with pytest.raises(ConfigError, match=rf"^now_us={now} is out of range"):
        _wire.encode(PLAIN, Peek(), now)
    with pytest.raises(ConfigError, match=rf"^now_us={now} is out of range"):
        _wire.encode_inspection(now)


TOLD: Final = ["7", "-3", "1", "GRANTED", "5", "6", "1", "9", "1", "1", "1", "TAKEN", "-2"]
SHOWN: Final = ["1", "2", "3000000", str(NEVER), "4000000", "5000000", "30", "4", "60500000", "6000000", "-8"]
OUTCOME: Final = Outcome(
    now_us=7,
    balance=-3,
    granted=True,
    reason=Reason.GRANTED,
    retry_after_us=5,
    place_us=6,
    closed=True,
    kept_back=9,
    probe=True,
    scout=True,
    found=True,
    reading=Verdict.TAKEN,
    drift=-2,
    repaired=("balance", "hold:a%b"),
)
SNAPSHOT: Final = Snapshot(
    balance=-3,
    held=1,
    holds=2,
    retry_after=3.0,
    full_in=float("inf"),
    closed_for=4.0,
    bound=5.0,
    quota=SYNCED,
    capacity=30,
    refill=4,
    period=60.5,
    reading_age=6.0,
    drift=-8,
    kept_back=9,
    repaired=("balance", "hold:a%b"),
)


@pytest.mark.parametrize("reply", [[*TOLD, *SHOWN, "balance", "hold:a%25b"]])
def test_a_reply_is_an_outcome(reply: list[str]) -> None:
    """Each text lands in its own field, as str or bytes; only who looked or reconciled is told of the bucket."""
    assert _wire.decode(reply, SYNCED, Acquire(1)) == OUTCOME
    assert _wire.decode([text.encode() for text in reply], SYNCED, Acquire(1)) == OUTCOME
    for look in (Peek(), Reconcile(READING)):
        outcome = _wire.decode(tuple(reply), SYNCED, look)
        assert outcome.snapshot == SNAPSHOT
        assert all(getattr(outcome, field.name) == getattr(OUTCOME, field.name) for field in fields(OUTCOME)[:-1])


def test_a_name_that_is_no_text_is_told_as_it_stands() -> None:
    """What was repaired may be called anything; nothing is unescaped that was not escaped."""
    reply = [*TOLD, *SHOWN, b"hold:\xff", "hold:%FF%25"]
    assert _wire.decode(reply, SYNCED, Acquire(1)).repaired == ("hold:\udcff", "hold:\udcff%")


def test_a_reply_with_nothing_in_it_is_an_outcome() -> None:
    """'' is None, 0 is no: nothing known, nothing found, nothing repaired."""
    told = ["0", "", "0", "EMPTY", "0", "0", "0", "0", "0", "0", "0", "NONE", ""]
    shown = ["0", "0", "0", "0", "0", "0", "1", "0", "1", "", ""]
    outcome = _wire.decode([*told, *shown], PLAIN, Peek())
    assert outcome.snapshot is not None
    assert (outcome.snapshot.balance, outcome.snapshot.reading_age, outcome.snapshot.drift) == (None, None, None)
    assert (outcome.balance, outcome.drift, outcome.repaired) == (None, None, ())
    flags = (outcome.granted, outcome.closed, outcome.probe, outcome.scout, outcome.found)
    assert flags == (False, False, False, False, False)


@pytest.mark.parametrize("reply", ["OK", b"QUEUED", None, 3, [*TOLD, *SHOWN[:-1]], []])
def test_a_reply_that_is_none_of_the_scripts_is_an_error(reply: object) -> None:
    """A pipeline's promise, or what is too short: the error shows it, cut to 60 letters, and says what to do."""
    text = repr(str(reply)[:60])
    message = (
        f"^the client answered the script with {re.escape(text)}: give the storage a plain client, not a pipeline$"
    )
    with pytest.raises(ConfigError, match=message):
        _wire.decode(reply, PLAIN, Peek())


@pytest.mark.parametrize("reply", ["OK", None, [], ["7", "balance"]])
def test_a_look_that_is_none_of_the_scripts_is_an_error(reply: object) -> None:
    """A look has the time and then pairs."""
    with pytest.raises(ConfigError, match=re.escape(repr(str(reply)[:60]))):
        _wire.decode_inspection(reply)


def test_a_look_is_the_time_and_what_is_stored() -> None:
    """Names and texts come in pairs, escaped where they have a %; none at all is no bucket."""
    hold = Hold(2, 3, 9_000_000, 5_000_000)
    told = ["7", b"balance", "-3", "hold:%25%FF", hold_text(hold)]
    assert _wire.decode_inspection(told) == (
        7,
        BucketState.from_fields({"balance": "-3", "hold:%\udcff": hold_text(hold)}),
    )
    assert _wire.decode_inspection(["7"]) == (7, None)


def hold_text(hold: Hold) -> str:
    """Return a hold as it is stored."""
    return BucketState(holds={"a": hold}).to_fields()["hold:a"]


@pytest.mark.parametrize("text, raw", [("é", b"\xc3\xa9"), ("\udcff", b"\xff"), ("k", b"k")])
def test_bytes_that_are_no_text_survive_a_round_trip(text: str, raw: bytes) -> None:
    """Whatever stands in Redis can be named and found again."""
    assert (_wire.as_bytes(text), _wire.as_text(raw), _wire.as_text(text)) == (raw, text, text)
