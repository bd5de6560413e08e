"""What goes to the script and what comes back: texts in one order, and nothing that it could not compute."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from keepa_tokens.errors import ConfigError
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Outcome,
    Pause,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Unclaim,
)
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import FIELDS, BucketState, Hold, hold_text, quota_text
from keepa_tokens.storage import _wire
from keepa_tokens.storage.redis import RedisStorage
from keepa_tokens.units import LIMIT

PLAIN: Final = Quota(10, 3, 2.0)
SYNCED: Final = Quota(300, 5, 60.5, stepped=True, synced=True)
READING: Final = Reading(-4, server_time=1e9)

SENT: Final[list[tuple[Command, str, list[object]]]] = [
    (Acquire(2), "acquire", [2]),
    (Acquire(2, keep=3), "acquire", [2, 3, -1]),
    (Acquire(2, keep=3, wait_us=0), "acquire", [2, 3, 0]),
    (Acquire(2, wait_us=0), "acquire", [2]),
    (Acquire(2, wait_us=-5), "acquire", [2]),
    (Acquire(2, ticket="a"), "acquire", [2, 0, -1]),
    (Acquire(2, wait_us=-5, ticket="a"), "acquire", [2, 0, -1]),
    (Acquire(2, wait_us=1), "acquire", [2, 0, 1]),
    (Acquire(2, wait_us=LIMIT + 5), "acquire", [2, 0, LIMIT]),
    (Reserve("é", 2, 5, keep=3), "reserve", [b"\xc3\xa9", 2, 3, 5, ""]),
    (Reserve("a", 2, 5, label="a task\n"), "reserve", [b"a", 2, 0, 5, " a%20task%0A"]),
    (Settle("a"), "settle", [b"a", ""]),
    (Settle("a", 0), "settle", [b"a", 0]),
    (Cancel("a"), "settle", [b"a", 0]),
    (Refund("a", 2), "refund", [b"a", 2]),
    (Refund("a", 2, 3), "refund", [b"a", 2]),
    (Settle("a", 0, READING), "read", [b"a", ""]),
    (Settle("a", 3, refused=True), "read", [b"a", ""]),
    (ClaimProbe(), "read", [b"", ""]),
    (Unclaim(5), "read", [b"", ""]),
    (Pause(5), "read", [b"", ""]),
    (Peek(), "look", [b""]),
    (Reconcile(READING), "look", [b""]),
]


@pytest.mark.parametrize("quota", [PLAIN, SYNCED])
@pytest.mark.parametrize("command, verb, arguments", SENT)
def test_a_command_is_a_verb_the_time_the_terms_and_its_numbers(
    command: Command, verb: str, arguments: list[object], quota: Quota
) -> None:
    """Everything in one order; what only the rules can decide is sent as a wish to read."""
    assert _wire.attempt(quota, command, None) == [verb, "", "", quota_text(quota), *arguments]
    assert _wire.attempt(quota, command, 7)[2] == 7
    assert _wire.is_for_the_rules(command) == (verb == "read" or isinstance(command, Reconcile))


def test_acquires_of_one_bucket_follow_each_other() -> None:
    """Each with all of its three numbers, since there is more than one."""
    commands = [Acquire(2), Acquire(3, keep=1), Acquire(4, wait_us=5)]
    numbers = [2, 0, -1, 3, 1, -1, 4, 0, 5]
    assert _wire.acquires(PLAIN, commands, 7) == ["acquire", "", 7, quota_text(PLAIN), *numbers]


OUT_OF_RANGE: Final[list[tuple[str, Command]]] = [
    ("tokens", Acquire(LIMIT)),
    ("tokens", Reserve("a", LIMIT, 1)),
    ("tokens", Refund("a", LIMIT)),
    ("keep", Acquire(1, keep=LIMIT)),
    ("tokens", Acquire(LIMIT, keep=1)),
    ("keep", Reserve("a", 1, 1, keep=LIMIT)),
    ("hold_for_us", Reserve("a", 1, LIMIT)),
    ("actual", Settle("a", LIMIT)),
    ("own_us", Refund("a", 1, LIMIT)),
]


@pytest.mark.parametrize("name, command", OUT_OF_RANGE)
def test_a_number_that_lua_could_not_hold_is_named(name: str, command: Command) -> None:
    """Nothing is sent that would be computed inexactly; the error has the field's name."""
    with pytest.raises(ConfigError, match=rf"^{name}=[0-9]+ is out of range"):
        _wire.attempt(PLAIN, command, 1)


@pytest.mark.parametrize("now", [-1, LIMIT, 1.5])
def test_a_time_that_lua_could_not_hold_is_named(now: int) -> None:
    """The caller's time too, for a command and for a look."""
    for command in (Peek(), Acquire(1)):
        with pytest.raises((ConfigError, TypeError), match=r"^now_us"):
            _wire.attempt(PLAIN, command, now)
    with pytest.raises((ConfigError, TypeError), match=r"^now_us"):
        _wire.look(now)


def test_a_look_asks_for_all_without_terms() -> None:
    """Whatever the bucket's terms are, and by either clock."""
    assert [_wire.look(now) for now in (None, 7)] == [["look", "", now, "", b""] for now in ("", 7)]


def test_a_step_of_the_script_is_an_outcome() -> None:
    """Each number lands in its own field, as str or bytes; zeros at the end may be left out."""
    whole = Outcome(7, -3, granted=True, place_us=6, held=5, open=2, kept_back=9)
    assert _wire.understood("n1 7 -3 6 5 2 9", Acquire(1), "n1") == whole
    assert _wire.understood(b"n1 7 -3 6 5 2 9", Acquire(1), "n1") == whole
    assert _wire.understood(b"n1 7 -3", Acquire(1), "n1") == Outcome(7, -3, granted=True)
    assert _wire.understood(b"n1 7 -3", Cancel("a"), "n1") == Outcome(7, -3)
    assert _wire.understood(b"n1 7 -3 0 5 2 9", Cancel("a"), "n1") == Outcome(7, -3, held=5, open=2, kept_back=9)


def test_many_steps_of_the_script_are_their_outcomes() -> None:
    """Balance and place of each; what is in flight and what is kept back is the same for all."""
    first = Outcome(7, 4, granted=True, place_us=0, held=5, open=2, kept_back=9)
    last = Outcome(7, -3, granted=True, place_us=6, held=5, open=2, kept_back=9)
    assert _wire.understood(b"n1 7 -3 6 5 2 9 4 0 -3 6", None, "n1") == [first, last]


class Odd:
    def execute_command(self, *_: object) -> object:
        return Path("x" * 61)

    def scan_iter(self, *_: object, **__: object) -> Iterator[object]:
        yield from ()

    def get_nodes(self) -> list[object]:
        return []

    def close(self) -> None:
        """Close nothing."""


def test_a_client_that_answers_nothing_is_told_what_to_give() -> None:
    """What it said stands in the error, as far as that fits a line."""
    said = f"the client answered the script with {'x' * 60!r}: give the storage a plain client, not a pipeline"
    client: Any = Odd()
    with pytest.raises(ConfigError) as refused:
        RedisStorage(client).apply("k", PLAIN, Acquire(1))
    assert str(refused.value) == said


def test_signs() -> None:
    """What was decided is stored, or somebody else has the next moment."""
    assert _wire.understood(b"n1 stored", Peek(), "n1") is _wire.Sign.STORED
    assert _wire.understood([b"n1", b"7", b"busy"], Peek(), "n1") is _wire.Sign.BUSY


def test_a_bucket_that_is_handed_over_is_its_texts() -> None:
    """Names and texts come in pairs, escaped where they have a %; of a part only the sums tell of other holds."""
    hold = Hold(2, 3, 9_000_000, 5_000_000)
    told = [b"n1", b"7", b"all", b"balance", b"-3", b"hold:%25%FF", hold_text(hold).encode()]
    texts = {"balance": "-3", "hold:%\udcff": hold_text(hold)}
    assert _wire.understood(told, Peek(), "n1") == _wire.Handed(7, texts, partial=False)
    answer = _wire.understood([text.decode() for text in (*told[:2], b"some", *told[3:])], Peek(), "n1")
    assert isinstance(answer, _wire.Handed)
    assert answer.state == BucketState(version=None, balance=-3, holds={"%\udcff": hold}, partial=True)
    assert _wire.Handed(7, {}, partial=False).state is None
    assert _wire.Handed(7, {"turn": "7 n1"}, partial=True).state is None


@pytest.mark.parametrize(
    "reply",
    [
        *(
            "OK",
            b"QUEUED",
            None,
            3,
            [],
            "",
            b"n2 7 -3",
            [b"n2", b"7", b"all"],
            [b"n1", b"7"],
            [b"n1"],
            {"n1": 7},
            b"n1\xff",
        ),
        *([b"n1", b"7", b"all", b"balance"], "n1é"),
    ],
)
def test_a_reply_that_answers_something_else_is_known(reply: object) -> None:
    """Without this command's nonce, or in another shape, nothing is taken for an answer."""
    assert _wire.understood(reply, Peek(), "n1") is None


def test_what_is_stored_is_what_changed() -> None:
    """Names that are gone are removed, texts that differ are set, what this release doesn't know stays."""
    before = _wire.Handed(
        7, {"version": "4", "refilled_at": "6", "balance": "5", "drift": "x", "note": "n", "hold:a": "x"}, partial=False
    )
    after = BucketState(version=5, balance=5, refilled_at=7, quota=PLAIN)
    sent = _wire.store(before, after, Peek(), None, "me", sent_once=True)
    assert sent[:9] == ["store", "", "", b"4", b"", "me", b"6", 60_000, "all"]
    terms = quota_text(PLAIN).encode()
    assert sent[9:] == [*(b"version", b"5", b"refilled_at", b"7", b"quota", terms, b"drift", b"", b"hold:a", b"")]
    # On a caller's clock a key is kept for ever.
    sent = _wire.store(before, after, Peek(), 7, "me", sent_once=True)
    assert (sent[2], sent[7]) == (7, "")
    assert _wire.store(before, after, Peek(), 7, "me", sent_once=False)[-6:-4] == [b"turn", b"0 me"]


def test_a_part_of_a_bucket_is_stored_as_one_by_the_hold_it_is_about() -> None:
    """Without a version or a time of refill these are sent as nothing; a lifetime is whole milliseconds, rounded up."""
    after = BucketState(version=0, balance=5, refilled_at=7, quota=Quota(1000, 3, 2.0))
    sent = _wire.store(_wire.Handed(7, {}, partial=True), after, Cancel("a"), None, "me", sent_once=True)
    assert sent[:9] == ["store", "", "", b"", b"a", "me", b"", 673_334, "some"]
    assert isinstance(sent[7], int)


def test_the_script_hands_over_every_number() -> None:
    """The names that the script reads are all that a state has."""
    script = _wire.named_fields(Path(_wire.__file__).with_name("bucket.lua").read_bytes()).decode()
    (names,) = re.findall(r"names = \{(.*?)\}", script)
    assert set(re.findall(r"'(\w+)'", names)) == {*FIELDS, "turn"}


@pytest.mark.parametrize("text, raw", [("é", b"\xc3\xa9"), ("\udcff", b"\xff"), ("k", b"k")])
def test_bytes_that_are_no_text_survive_a_round_trip(text: str, raw: bytes) -> None:
    """Whatever stands in Redis can be named and found again."""
    assert (_wire.as_bytes(text), _wire.as_text(raw), _wire.as_text(text)) == (raw, text, text)
