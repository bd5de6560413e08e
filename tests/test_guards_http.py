"""The guards for httpx, requests and the keepa client, sync and async: what all of them do, over HTTP on loopback."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import pairwise
from operator import le
from typing import Any, Final

import pytest
import requests

from keepa_tokens import (
    AcquireTimeout,
    ConfigError,
    Event,
    EventKind,
    MemoryStorage,
    NotEnoughTokens,
    Outcome,
    Quota,
    StorageUnavailable,
)
from keepa_tokens.guards._flow import RUN, Run
from keepa_tokens.guards._http import Asked, asked_of
from keepa_tokens.keepa.estimates import Estimator
from keepa_tokens.rules.commands import Command, Reconcile, Reserve, Settle
from tests.http_guards import (
    HOST,
    HTTP_KINDS,
    KEY,
    KINDS,
    NETWORK_ERRORS,
    SETTLES_ALL,
    Client,
    Kind,
    World,
    asins,
    running,
    shown,
    together,
)
from tests.stories import Story, each_story, goes, options

# A guard leaves no call behind without having said that nobody knows what became of it.
pytestmark = SETTLES_ALL

Make = Callable[..., World]

by_http = pytest.mark.parametrize("kind", HTTP_KINDS, indirect=True)
"""What the keepa client has no way to ask for, or doesn't hand out."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    which: Kind = request.param
    return which


@pytest.fixture
def make(kind: Kind) -> Iterator[Make]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(running(kind, **options))


def known(make: Make, initial: int, refill_rate: int = 5, **options: Any) -> tuple[World, Client]:
    """Return a world, and a client in it that has asked for the balance."""
    world = make(initial=initial, refill_rate=refill_rate)
    client = world.client(**options)
    client.get("/token")
    return world, client


# --- held before, settled after


def test_a_request_is_held_while_it_is_out_and_settled_by_its_answer(make: Make) -> None:
    """While the server works the estimate is held; afterwards the bucket has the server's own balance and no hold."""
    world, client = known(make, 100)
    held: list[int] = []
    world.fake.cost = lambda path, params: held.append(world.bucket().held)
    answer = client.get("/product", asins(10, rating=1))
    assert answer.status == 200
    assert len(json.loads(answer.content)["products"]) == 10
    assert held == [20]
    assert world.in_step()
    assert 10 <= world.fake.spent <= 20


STORIES: Final = """
forty calls on twenty tokens wait by the bucket's clock, the server refuses none and is asked for no balance: initial=20
    get 3 40 -> status=200 refused=0 token_calls=1 slept>900 in_step
with a timeout AcquireTimeout comes at once, and nothing is sent, spent or slept: initial=-100
    client timeout=60; get 1 -> AcquireTimeout admitted=0 refused=0 slept=0
with keep=50 of 60 tokens a request waits below 51, though the server would admit it: initial=50
    client keep=50 timeout=(0|1); get 1 -> AcquireTimeout; client keep=49 timeout=0; get 1 -> status=200
with retry_refused the caller never sees the 429, the bucket waits and the request goes out again: initial=10
    client retry_refused=1; get 1; outside 50; get 5 -> status=200 refused=1 slept>480 in_step
# Back from -41 to above the 50 that somebody else was seen to spend, which are kept back for him.
with timeout=0 a 429 is an error that says when to come back, for task queues: initial=10
    client retry_refused=1 timeout=0; get 1; outside 50
    get 5 -> AcquireTimeout retry_after>1080 retry_after<1159 refused=1 slept=0 in_step
of ten seconds a probe of eight leaves two, so no pause of five is begun after the refusal: initial=250 latency=8
    client retry_refused=1 timeout=10; fail 429 100 after=5; get 5 -> AcquireTimeout token_calls=1 WAITING=0
a refusal that passes is waited out: initial=250
    client retry_refused=1; token; fail 429 2; get 5 -> status=200 slept>=3 slept<=4.5 in_step
a 5xx that doesn't say when to come back is the caller's to judge: initial=250
    client retry_refused=1; token; fail (500|503) 100; get 5 -> status=(500|503) sent=1 slept=0
# The first request is the scout, and a step brings 5.
a refusal that the balance explains is as long as the bucket says, no longer: initial=-4 probe=0
    client retry_refused=1 timeout=0; pass step-0.5
    get 1 -> AcquireTimeout refused=1 reason=EMPTY retry_after>0.49 retry_after<0.51
a timeout of 40 s has room for one pause of 30 s, the next, and with none the first, is told at once: initial=250
    client retry_refused=1 timeout=(0|40); token; fail 429 100 after=30
    get 5 -> AcquireTimeout retry_after>=30 retry_after<=31 sent=(1|2) held=0 slept>=(0|30) slept<=(0|31)
whatever the answer, the caller gets it as it came, its hold is over, and the bucket has what it says: initial=300
    token; fail (500|503|error200) 1; get 5 -> status<504 held=0 READING_BAD=0 in_step
an answer that says nothing ends its hold as well, and is told: initial=300
    token; fail (html|empty|zero_envelope|no_envelope) 1; get 5 -> status<504 held=0 READING_BAD=1
"""

BY_HTTP: Final = """
a 429 is handed out after it was settled, readable, and the bucket has the true balance: initial=10
    get 1; outside 50; get 5 -> status=429 tokensLeft=-41 left=-41 in_step slept=0
what costs nothing opens no hold, far below 0 too, and brings its reading: initial=-50
    token -> status=200 balance=-50; pass 130; outside 7
    tracking -> status=200 in_step REFUSED=0 reconciled=2 reserved=0
a graph image has no envelope, its token is charged when the hold runs out: initial=300
    token; image -> status=200 png held=1 READING_BAD=0
"""


class Told:
    def __init__(self, world: World) -> None:
        self.world, self.instants = world, sent_at(world)
        self.client: Client | None = None

    def fail(self, kind: object, times: int, after: int | None = None) -> None:
        """Let calls for products fail; with `after` the server says when to come again."""
        fault: Any = str(kind)
        headers = {"Retry-After": str(after)} if after else None
        self.world.fake.fail_next(times, fault, path="/product", headers=headers)

    def done(self, verb: str, words: list[Any], named: dict[str, Any]) -> Any:
        world, fake = self.world, self.world.fake
        if verb == "client" or self.client is None:
            self.client = world.client(**named if verb == "client" else {})
        client = self.client
        verbs: dict[str, Callable[..., Any]] = {
            "client": lambda **_: None,
            "get": lambda tokens, times=1: [client.get("/product", asins(tokens)) for _ in range(times)][-1],
            "token": lambda: client.get("/token"),
            "tracking": lambda: client.get("/tracking", {"type": "list"}),
            "image": lambda: client.get("/graphimage", {"asin": "B000000001", "domain": 1}),
            "outside": fake.spend_outside,
            "pass": lambda seconds: world.clock.advance(fake.refill_in - 0.5 if seconds == "step-0.5" else seconds),
            "fail": self.fail,
        }
        try:
            return verbs[verb](*words, **named)
        except NotEnoughTokens as error:
            return error

    def seen(self, came: Any, name: str) -> Any:
        world = self.world
        if name.isupper():
            return world.count(EventKind[name])
        own: dict[str, Callable[[], Any]] = {
            "in_step": world.in_step,
            "left": lambda: world.fake.balance,
            "sent": lambda: len(self.instants),
            "reserved": lambda: len(world.of(Reserve)),
            "reconciled": lambda: len(world.of(Reconcile)),
            "png": lambda: came.content.startswith(b"\x89PNG"),
            "tokensLeft": lambda: json.loads(came.content)["tokensLeft"],
        }
        if name in own:
            return own[name]()
        return next(
            getattr(each, name) for each in (came, world.fake, world.bucket(), world.clock) if hasattr(each, name)
        )


@each_story(STORIES)
def test_a_story_of_the_guards_comes_out_as_told(make: Make, story: Story) -> None:
    """Each title says what its steps show, of each client."""
    goes(story.text, Told(make(**options(story.bucket))))


@by_http
@each_story(BY_HTTP)
def test_a_story_of_the_guards_by_http_comes_out_as_told(make: Make, story: Story) -> None:
    """Each title says what its steps show, of what the keepa client has no way to ask for, or doesn't hand out."""
    goes(story.text, Told(make(**options(story.bucket))))


def test_many_on_a_balance_that_is_gone_make_no_storm(make: Make) -> None:
    """Ten requests at once where somebody else spent it all: a refusal each at most, and the books are right."""
    world, client = known(make, 1200, refill_rate=20, retry_refused=True)
    world.fake.spend_outside(1300)
    assert together(world, client, 10, lambda place: asins(10)) == [200] * 10
    assert world.fake.refused <= 10
    assert world.fake.spent == 100
    assert world.in_step()


# --- refused


@by_http
@pytest.mark.parametrize("status", [429, 400])
def test_a_streamed_error_is_settled_before_anybody_reads_it(make: Make, status: int) -> None:
    """A refusal or an error says the truth, so its hold is over though a hook raises by its status, the body unread."""
    world, client = known(make, 10)
    if status == 429:
        world.fake.spend_outside(50)
    params = asins(5) if status == 429 else asins(5, offers=101)
    assert client.stream("/product", params, lambda response: response.status_code) == status
    assert world.in_step()


def test_a_posted_selection_is_sent_again_too(make: Make) -> None:
    """A refused POST goes out again with its body; what it may cost is read from that body."""
    world, client = known(make, 200, retry_refused=True)
    world.fake.spend_outside(250)
    held: list[int] = []
    world.fake.cost = lambda path, params: held.append(world.bucket().held) if path == "/query" else None
    answer = client.send("POST", "/query", {"domain": 1}, body=json.dumps({"perPage": 1000}))
    assert len(json.loads(answer.content)["asinList"]) == 1000
    assert held == [20]
    assert world.fake.refused == 1
    assert world.in_step()


def test_the_timeout_is_for_all_attempts_of_a_request_together(make: Make) -> None:
    """What the first attempt has waited is gone when the second one asks for tokens."""
    world = make(initial=-12)

    def listen(event: Event) -> None:
        if event.kind is EventKind.WAITING and world.fake.spent_outside == 0:
            world.fake.spend_outside(42)

    world.sync.bucket.listener = world.asynch.bucket.listener = listen
    with pytest.raises(AcquireTimeout) as late:
        world.client(retry_refused=True, timeout=1100).get("/product", asins(1))
    assert world.fake.refused == 1
    assert 1100 - world.clock.slept < late.value.retry_after < 1100  # alone it would have been in time


# --- refused though there are tokens


def sent_at(world: World) -> list[float]:
    """Return the list into which the instants of the requests for products go, in seconds from now."""
    began, begin = world.clock.now_us(), world.fake.begin
    instants: list[float] = []

    def noted(path: str, params: Mapping[str, object] | None = None) -> Any:
        if path.strip("/") == "product":
            instants.append((world.clock.now_us() - began) / 1e6)
        return begin(path, params)

    world.fake.begin = noted  # type: ignore[method-assign] # a spy
    return instants


@pytest.mark.parametrize("body, selection", [(b'{"a": "\xff"}', '{"a": "\ufffd"}'), ('{"a": 1}', '{"a": 1}')])
def test_what_a_request_asks_for_is_read_from_its_query_and_its_body(body: bytes | str, selection: str) -> None:
    """As texts, without the API key; the path is its label, if people can read it."""
    asked = asked_of("https://api.keepa.com/query/?key=secret&domain=&stats=1", body)
    assert asked == Asked("query", {"domain": "", "stats": "1", "selection": selection})
    assert asked_of("https://api.keepa.com/product?selection=own", body).params == {"selection": "own"}
    assert asked_of("https://api.keepa.com/product").params == {}
    assert (asked.label, Asked("a\x1b[0m", {}).label) == ("query", "")


@pytest.mark.parametrize(
    "fault, asked", [("429", None), ("429_bare", None), ("429", "30"), ("429_bare", "30"), ("503", "30")]
)
def test_a_refusal_that_nothing_explains_is_not_hammered(make: Make, fault: Any, asked: str | None) -> None:
    """Though there are tokens: growing pauses, or as long as `Retry-After` says, of which the listener hears.

    Five tries, then the server's own answer.
    """
    world, client = known(make, 250, retry_refused=True)
    world.fake.fail_next(100, fault, path="/product", headers={"Retry-After": asked} if asked else None)
    instants = sent_at(world)

    assert client.get("/product", asins(5)).status == int(fault[:3])

    least = [30.0] * 4 if asked else [1.0, 2.0, 4.0, 8.0]
    pauses = [later - earlier for earlier, later in pairwise(instants)]
    # Without an envelope the bucket takes itself for empty, and waits for the next step besides.
    longest = [(pause + 1.1 if asked else 1.5 * pause) + (61 if fault == "429_bare" else 0) for pause in least]
    assert all(map(le, least, pauses))
    assert all(map(le, pauses, longest))
    told = [event.seconds for event in world.events if event.kind is EventKind.WAITING and event.why == "REFUSED"]
    assert [int(seconds) for seconds in told] == least
    assert len(pauses) == 4
    assert (world.fake.spent, world.bucket().held) == (0, 0)


class Leaving(MemoryStorage):
    """Memory storage that is away for so many commands of some kinds."""

    away = 0
    kinds: tuple[type[Any], ...] = (object,)

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        if self.away and isinstance(command, self.kinds):
            self.away -= 1
            raise StorageUnavailable("the storage is away")
        return super().apply(key, quota, command, now_us=now_us)


@contextmanager
def task() -> Iterator[Run]:
    """Be a task that runs again from its beginning."""
    run = Run()
    mine = RUN.set(run)
    try:
        yield run
    finally:
        RUN.reset(mine)


@pytest.mark.parametrize("away, ends", [(6, True), (1000, False)])
def test_a_task_that_has_paid_waits_for_a_storage_that_is_away(make: Make, away: int, *, ends: bool) -> None:
    """It goes on once the storage is there, having paid once; away for ten minutes, the error says that it can't."""
    storage = Leaving()
    world = make(initial=250, storage=storage)
    client = world.client(timeout=0)
    with task() as run:
        client.get("/product", asins(5))
        assert run.paid
        storage.away = away
        if ends:
            assert client.get("/product", asins(7)).status == 200
            assert {event.label for event in world.events if event.kind is EventKind.GRANTED} == {"product"}
            assert world.clock.slept == 1 + 2 + 4 + 8 + 16 + 30
            assert world.fake.spent == 12
        else:
            with pytest.raises(StorageUnavailable, match="has paid for earlier requests"):
                client.get("/product", asins(7))
            assert 600 <= world.clock.slept <= 640
            assert world.fake.spent == 5


@pytest.mark.parametrize(
    "fault, path, paid",
    [
        (None, "/graphimage", True),
        ("empty", "/product", True),
        ("disconnect_charged", "/product", True),
        ("no_envelope", "/product", True),
        ("429", "/product", False),
        ("500", "/product", False),
        (None, "/token", False),
    ],
)
def test_a_task_has_paid_where_nobody_knows(make: Make, fault: Any, path: str, *, paid: bool) -> None:
    """An image, a lost answer, one that tells no cost: sent back, the task might pay for it for ever."""
    world = make(initial=250)
    if fault is not None:
        world.fake.fail_next(1, fault, path=path)
    with task() as run, suppress(*NETWORK_ERRORS):
        world.client(timeout=0).get(path, {"domain": 1, "asin": "B000000001"})
    assert run.paid is paid


# --- streams


def everything(world: World, how: str) -> Any:
    if world.kind == "requests":
        return {
            "bytes": lambda response: b"".join(response.iter_content(1000)),
            "lines": lambda response: b"".join(response.iter_lines()),
            "raw": lambda response: b"".join(iter(lambda: response.raw.read(1000), b"")),
        }[how]
    size = () if how == "lines" else (1000,)

    async def aread(response: Any) -> bytes:
        return joined([part async for part in getattr(response, f"aiter_{how}")(*size)])

    def read(response: Any) -> bytes:
        return joined(list(getattr(response, f"iter_{how}")(*size)))

    def joined(parts: list[Any]) -> bytes:
        return b"".join(part.encode() if isinstance(part, str) else part for part in parts)

    return aread if world.is_async else read


@by_http
@pytest.mark.parametrize("how", ["bytes", "lines", "raw"])
def test_a_stream_is_settled_when_its_reader_has_come_to_the_end(make: Make, how: str) -> None:
    """However it is read, the reader gets the whole body, and the bucket the answer's balance; not before the end."""
    world, client = known(make, 300)
    read = everything(world, how)
    held: list[int] = []

    def watching(response: Any) -> Any:
        held.append(world.bucket().held)
        return read(response)

    body = client.stream("/product", asins(50), watching)

    assert len(json.loads(body)["products"]) == 50
    assert held == [50]
    assert world.in_step()


@by_http
def test_a_stream_closed_early_leaves_its_hold_to_run_out(make: Make) -> None:
    """Who stops reading learns no cost: the estimate stays held, and is charged when the hold runs out."""
    world, client = known(make, 300)

    def some(response: Any) -> Any:
        if world.is_async:
            return anext(response.aiter_bytes(100))
        return next(response.iter_content(100) if world.kind == "requests" else response.iter_bytes(100))

    assert len(client.stream("/product", asins(50), some)) == 100

    assert (world.bucket().balance, world.bucket().held) == (300, 50)
    world.clock.advance(125)
    assert world.bucket().held == 0
    assert (world.bucket().balance or 0) <= 260


# --- what costs nothing, and what is not Keepa's


@by_http
def test_a_host_that_is_not_keepas_gets_neither_tokens_nor_the_key(make: Make) -> None:
    """The guards for httpx let other hosts pass, unmetered and without the key; the adapter refuses to serve them."""
    world = make(initial=100)
    client = world.client()
    other = f"http://localhost:{world.server.port}"
    if world.kind == "requests":
        client.native.mount("http://", world.guard())
        with pytest.raises(ConfigError, match=r"serves 127\.0\.0\.1 alone"):
            client.get("/product", asins(1), base=other)
    else:
        assert client.get("/product", asins(1), base=other).status == 400  # no key, so a bad one
    assert (world.fake.spent, world.commands) == (0, [])


# --- what goes wrong


@pytest.mark.parametrize("fault", ["timeout_charged", "timeout_uncharged", "disconnect_charged"])
def test_a_lost_answer_surfaces_and_its_hold_runs_out(make: Make, fault: Any) -> None:
    """A timeout and a broken connection raise the client's own errors; the estimate stays held."""
    world, client = known(make, 300)
    world.fake.fail_next(world.tries if fault == "disconnect_charged" else 1, fault, path="/product")
    client.patience = 0.3
    with pytest.raises(NETWORK_ERRORS):
        client.get("/product", asins(5))
    assert world.bucket().held == 5


@by_http
@pytest.mark.parametrize("log_fails", [False, True])
def test_an_answer_outlives_a_storage_that_is_away(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, log_fails: bool
) -> None:
    """An answer that can't be settled was paid for: it is handed out with a warning; the next request is not sent."""

    def fails(*_: object) -> None:
        raise OSError("the disk is full")

    storage = Leaving()
    world = make(initial=300, storage=storage)
    client = world.client()
    client.get("/token")
    storage.away, storage.kinds = 100, (Settle, Reconcile)
    if log_fails:
        monkeypatch.setattr(logging.getLogger("keepa_tokens"), "warning", fails)
    with caplog.at_level(logging.WARNING, "keepa_tokens"):
        assert client.get("/product", asins(5)).status == 200
        assert client.get("/token").status == 200
    assert [record.levelname for record in caplog.records] == ["WARNING"] * (0 if log_fails else 2)
    storage.kinds = (Reserve,)
    spent = world.fake.spent
    # By a task that has not paid, too: it is sent back, and waits for nothing here.
    for caller in (nullcontext, task):
        with caller(), pytest.raises(StorageUnavailable):
            client.get("/product", asins(5))
    assert (world.fake.spent, world.clock.slept) == (spent, 0)


@by_http
def test_a_sync_of_the_wrong_kind_is_told_at_once(kind: Kind) -> None:
    """A guard for coroutines takes an AsyncKeepaSync and no other, one for threads a KeepaSync: ConfigError says so."""
    world: Any = World(kind)
    world.sync, world.asynch = world.asynch, world.sync
    with pytest.raises(ConfigError, match=r"needs a (Async)?KeepaSync, not "):
        world.guard()


@by_http
@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_guard_can_not_be_copied(kind: Kind, copied: Callable[[Any], object]) -> None:
    """Pickled or copied, by itself or in a session of requests, it says at once that it can't and what to do."""
    guard = World(kind).guard()
    with pytest.raises(TypeError, match="can't be pickled or copied: make one in each process"):
        copied(guard)
    if kind == "requests" and copied is not copy.copy:
        with requests.Session() as session:
            session.mount("https://api.keepa.com/", guard)
            with pytest.raises(TypeError, match="can't be pickled or copied"):
                copied(session)


# --- estimates


@by_http
def test_a_callable_may_estimate(make: Make) -> None:
    """`estimate=` is asked with the path and the parameters, the API key not among them."""
    world = make(initial=300)
    asked: list[tuple[str, Mapping[str, object]]] = []

    def seven(path: str, params: Mapping[str, object]) -> int:
        asked.append((path, params))
        return 7

    world.client(estimate=seven).get("/product", {"asin": "B1", "key": KEY})
    assert asked == [("product", {"asin": "B1"})]
    assert world.of(Reserve)[-1].tokens == 7


@by_http
def test_an_estimator_is_taught_by_each_answer(make: Make) -> None:
    """Codes that cost three times the estimate are estimated at what they cost from the next request on."""
    world = make(initial=300, products_per_code=(3, 3))
    estimator = Estimator()
    client = world.client(estimator=estimator)
    for _ in range(3):
        client.get("/product", {"code": "1,2,3,4,5"})
    assert estimator.estimate("product", {"code": "1,2"}) == 6
    assert [command.tokens for command in world.of(Reserve)[-3:]] == [5, 15, 15]


@by_http
def test_an_estimator_learns_nothing_from_refusals_and_streams_cut_short(make: Make) -> None:
    """Only a cost that an answer told is learned."""
    world = make(initial=300)
    estimator = Estimator(window=1)
    client = world.client(estimator=estimator)
    client.get("/token")
    world.fake.spend_outside(400)
    assert client.get("/product", asins(5)).status == 429
    assert repr(estimator) == "Estimator(window=1, kinds=0)"


@by_http
@pytest.mark.parametrize(
    "wrong", [{"keep": -1}, {"timeout": -1}, {"estimate": lambda path, params: 1, "estimator": Estimator()}]
)
def test_impossible_terms_are_refused_at_once(kind: Kind, wrong: dict[str, Any]) -> None:
    """A negative keep or timeout, and two sources of estimates, are a ConfigError when the guard is made."""
    with pytest.raises(ConfigError):
        World(kind).guard(**wrong)


@by_http
def test_an_estimate_that_is_no_number_of_tokens_sends_nothing(make: Make) -> None:
    """A callable that answers with a fraction is a TypeError before anything is held or sent."""
    world = make(initial=300)
    client = world.client(estimate=lambda path, params: 1.5)
    with pytest.raises(TypeError, match="estimate"):
        client.get("/product", asins(1))
    assert world.fake.spent == 0


# --- the key


@by_http
def test_the_key_is_added_on_the_way_out_alone(make: Make) -> None:
    """The server sees the key, the client's own response and request don't; a request that brings a key keeps it."""
    world = make(initial=300)
    client = world.client()
    answer = client.get("/product", asins(1))
    assert answer.status == 200
    assert "key" not in answer.url
    assert "key" not in str(answer.raw.request.url)
    assert client.get("/product", asins(1, key="another")).status == 400
    without = world.client(api_key=None)
    assert without.get("/product", asins(1)).status == 400
    assert without.get("/product", asins(1, key=KEY)).status == 200


@by_http
def test_a_guard_says_what_it_is(kind: Kind) -> None:
    """Its repr names the bucket and the host."""
    text = repr(World(kind).guard())
    assert "key='default'" in text
    assert HOST in text
    assert KEY not in text


def test_no_frame_below_the_guard_holds_the_key(make: Make) -> None:
    """After a lost answer no local variable below the guard, as error reports show them, and no pickle has the key."""
    world, client = known(make, 300)
    world.fake.fail_next(world.tries, "disconnect_charged", path="/product")
    for where in (world.server.url, "http://127.0.0.1:1"):
        with pytest.raises(NETWORK_ERRORS) as lost:
            client.get("/product", asins(5), base=where)
        assert "sEcReT" not in shown(lost.value)
        assert b"sEcReT" not in pickle.dumps((lost.value.args, getattr(lost.value, "request", None)))
