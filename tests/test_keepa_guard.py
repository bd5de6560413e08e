"""The guard for the `keepa` package: the real clients, against the fake server by HTTP on the loopback interface.

Most tests move the time by hand, for the bucket and the server alike, so they are exact; what they show of one client
they show of both.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, assert_type

import keepa
import pytest

from keepa_tokens import AsyncKeepaSync, ConfigError, KeepaSync, KeepaTokensError, NotEnoughTokens, Quota, keepa_quota
from keepa_tokens.guards._flow import RUN, Run
from keepa_tokens.guards.keepa import guard, unguard
from keepa_tokens.rules.commands import Reserve, Settle
from tests.stories import Story, each_story, goes, options

from tests import http_guards  # isort: skip
from tests.http_guards import SETTLES_ALL, KEY  # isort: skip

# A guard leaves no call behind without having said that nobody knows what became of it.
pytestmark = SETTLES_ALL

QUIET: dict[str, Any] = {"progress_bar": False, "history": False}


def asins(count: int, first: int = 0) -> list[str]:
    return [f"B{place:09d}" for place in range(first, first + count)]


class World(http_guards.World):
    """A client, its bucket and the fake server, in one time; sync or async makes no difference to who uses it."""

    def __init__(self, kind: http_guards.KeepaKind, **options: Any) -> None:
        super().__init__(kind, hang=2.0, **options)
        self.api = self.bare_api()

    def guard(
        self,
        *,
        probe: bool = True,
        initial: int | None = None,
        api: Any = None,
        quota: Quota | None = None,
        **options: Any,
    ) -> Any:
        doors: Any = self.doors(quota or keepa_quota(5, initial=initial), probe=probe)
        return guard(self.api if api is None else api, doors[self.is_async], **options)

    def do(self, name: str, *args: Any, api: Any = None, **options: Any) -> Any:
        result = getattr(api or self.api, name)(*args, **options)
        return self.runner.run(result) if asyncio.iscoroutine(result) else result

    def query(self, *args: Any, **options: Any) -> Any:
        return self.do("query", *args, **QUIET, **options)

    def paths(self) -> list[str]:
        return [url.removeprefix(http_guards.KEEPA_URL).strip("/?") for url in self.urls]


Make = Callable[..., World]


@pytest.fixture(params=http_guards.KEEPA_KINDS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(http_guards.running(request.param, World, **options))


@pytest.fixture
def guarded(make: Make) -> Make:
    """Make a world whose client is guarded on the terms that most have."""

    def made(**options: Any) -> World:
        world = make(**options)
        world.guard()
        return world

    return made


# --- metering


def test_one_query_is_three_holds_each_settled_by_its_own_answer(guarded: Make) -> None:
    """300 ASINs with ratings reserve 200 three times, settle what each cost, and end at the server's own balance."""
    world = guarded(refill_rate=20)

    products = world.query(asins(300), rating=True)

    assert [each["asin"] for each in products] == asins(300)
    settled = world.of(Settle)
    assert [command.tokens for command in world.of(Reserve)] == [200, 200, 200]
    assert len(settled) == 3
    assert all(100 < command.actual < 200 for command in settled)
    assert sum(command.actual for command in settled) == world.fake.spent
    assert world.in_step()
    assert world.api.tokens_left == world.fake.balance
    assert world.paths() == ["product"] * 3
    assert world.fake.token_calls == 1  # the bucket was unknown; asked through the probe


STORIES: Final = """
with wait=False an empty bucket raises and sends nothing; a 429 raises what the client raises: initial=10
    guard; query 1; outside 20
    query 1 wait=0 -> RuntimeError says=NOT_ENOUGH_TOKEN balance=-11 tokens_left=-11 left=-11
    query 1 wait=0 -> NotEnoughTokens held=0 sent=2
pages that could only ever begin are an error at once, and nothing is spent: initial=300
    guard; query 400 wait=0 -> CostTooLarge tokens=400 largest=300 spent=0 sent=0 held=0
a timeout too short for all pages is told before the first, one that is long enough is waited once: initial=50
    guard timeout=600; query 200 -> AcquireTimeout tokens=200 spent=0 sent=0
    guard timeout=3600; query 200 -> got=200 spent=200 refused=0 slept>1740 slept<1891
a page that fails ends the query, the pages after it were never sent, so their tokens are free: initial=300
    guard; status; fail 500 1; query 300 wait=0 -> RuntimeError balance=300 held=0
# It is no refusal to come back from.
where somebody else spends between two pages the client says so: initial=300
    guard; outside_at_each 300; query 300 wait=0 -> RuntimeError says=NOT_ENOUGH_TOKEN spent=100 refused=1 held=0
a bad key's answer has all fields 0, the bucket and the client's status stay, and no query divides by 0: initial=300
    guard; query 1; key wrong; query 1 -> RuntimeError says=REQUEST_REJECTED tokens_left=299 rate=5 balance=299
    key; query 1 -> got=1
where the bucket knows the balance the status sends nothing and shows what the server would: refill_rate=20 initial=700
    guard; status -> token_calls=1 sent=0; pass 10; status -> token_calls=1 sent=0 tokens_left=700 rate=20 next_step
unknown and without a probe, /token goes out by the client itself, once: refill_rate=20 initial=700
    guard probe=0; status; status -> paths=token tokens_left=700 balance=700
# After the failed probe it starts at 0: slow, not stuck.
where /token can't be had the status stays usable, and the one question is not repeated: refill_rate=20 initial=700
    down 1; guard; status; status; status; status; status -> token_calls=1 rate=5; query 1 -> got=1 in_touch
`wait_for_tokens` returns once the server's balance is above 0, not later than a step, and takes nothing: initial=-12
    guard probe=(1|0); wait -> tokens_left=3 left=3 held=0 spent=0
without a probe a balance that was reported long ago is looked up by the free question: initial=-200
    guard probe=0; status; pass 700; outside -1000; wait -> in_touch left>0 paths=token,token
after an upgrade the next answer brings the new rate and capacity to the bucket and the status: initial=300
    guard; query 1; plan 60; query 1 -> refill=60 capacity=3600; status -> rate=60
    flow 60; query 1; status -> refill=0 rate=60
a graph image says nothing of its cost, one token is held, and charged when the hold runs out: initial=300
    guard initial=200; image -> png paths=graphimage balance=200 held=1; pass 121 -> balance=209 held=0
the refusal of an image corrects the bucket, which waits, and then the image comes: initial=0
    guard initial=200; image -> png refused=1 paths=graphimage,graphimage
what is no image is settled like any answer, and the client says that it is none: initial=300
    guard initial=200; fail 500 1; image -> ValueError balance=300 held=0
"""


class Told:
    def __init__(self, world: World, image: Path) -> None:
        self.world, self.file = world, image

    def fail(self, kind: object, times: int) -> None:
        fault: Any = str(kind)
        self.world.fake.fail_next(times, fault)

    def done(self, verb: str, words: list[Any], named: dict[str, Any]) -> Any:
        world, fake = self.world, self.world.fake
        verbs: dict[str, Callable[..., Any]] = {
            "guard": world.guard,
            "query": lambda count, **more: world.query(asins(count), **more),
            "status": lambda: world.do("update_status"),
            "wait": lambda: world.do("wait_for_tokens"),
            "image": lambda: world.do("download_graph_image", "B000000001", self.file),
            "key": lambda key=KEY: setattr(world.api, "accesskey", key),
            "outside": fake.spend_outside,
            "outside_at_each": lambda tokens: setattr(
                fake, "cost", lambda path, _: fake.spend_outside(tokens) if path == "/product" else None
            ),
            "pass": world.clock.sleep,
            "plan": fake.set_plan,
            "flow": fake.set_flow_reduction,
            "fail": self.fail,
            "down": lambda is_down: setattr(fake, "token_down", bool(is_down)),
        }
        try:
            return verbs[verb](*words, **named)
        except (KeepaTokensError, RuntimeError, ValueError) as error:
            return error

    def seen(self, came: Any, name: str) -> Any:
        world, api = self.world, self.world.api
        own: dict[str, Callable[[], Any]] = {
            "says": lambda: str(came),
            "got": lambda: len(came),
            "sent": lambda: len(world.urls),
            "paths": lambda: ",".join(world.paths()),
            "left": lambda: world.fake.balance,
            "tokens_left": lambda: api.tokens_left,
            "in_touch": lambda: api.tokens_left == world.fake.balance,
            "rate": lambda: api.status.refillRate,
            "next_step": lambda: (
                abs(api.status.refillIn / 1000 - world.fake.refill_in) < 0.1
                and abs(api.time_to_refill - world.fake.refill_in - 1) < 0.5
            ),
            "png": lambda: self.file.read_bytes().startswith(b"\x89PNG"),
            "slept": lambda: world.clock.slept,
        }
        if name in own:
            return own[name]()
        return next(getattr(each, name) for each in (came, world.bucket(), world.fake) if hasattr(each, name))


@each_story(STORIES)
def test_a_story_of_the_client_comes_out_as_told(make: Make, tmp_path: Path, story: Story) -> None:
    """Each title says what its steps show, of either kind of client."""
    goes(story.text, Told(make(**{"refill_rate": 5, **options(story.bucket)}), tmp_path / "graph.png"))


# --- several pages that must not wait in between


def come_back(world: World, *args: Any, **options: Any) -> int:
    """Do a query as a task of a queue does it, again and again after its waits; return how often."""
    for runs in range(1, 200):
        try:
            assert len(world.query(*args, **options)) == len(args[0])
        except NotEnoughTokens as refused:
            if refused.retry_after == float("inf"):
                raise
            world.clock.sleep(min(refused.retry_after, 900))
        else:
            return runs
    raise AssertionError("it never ends")


@pytest.mark.parametrize("count", [300, 299, 101, 100])
def test_pages_wait_as_a_whole_and_are_then_had_at_once(guarded: Make, count: int) -> None:
    """A query of several pages at a low balance is refused until all can be had; then it costs what it costs, once."""
    world = guarded(refill_rate=5, initial=50)
    runs = come_back(world, asins(count), wait=False)
    assert runs > 1 or count == 100  # one page is admitted by the server's rule: while there is anything
    assert (world.fake.spent, world.fake.refused) == (count, 0)
    assert world.in_step()


def test_pages_whose_plan_turns_out_smaller_end_too(make: Make) -> None:
    """Where the server reports a smaller plan than was expected, what can never be had at once ends with an error."""
    world = make(refill_rate=5, initial=250)
    world.guard(quota=keepa_quota(20))
    with pytest.raises(NotEnoughTokens) as refused:
        come_back(world, asins(400), wait=False)
    assert refused.value.retry_after == float("inf")
    assert world.fake.spent == 0


def test_pages_of_two_queries_do_not_mix(guarded: Make) -> None:
    """Two queries of three pages on tokens for one: one is done whole, the other is refused whole."""
    world = guarded(refill_rate=5, initial=300)
    world.do("update_status")

    def query(first: int) -> Any:
        return world.api.query(asins(300, first), wait=False, **QUIET)

    async def both() -> Any:
        return await asyncio.gather(query(0), query(300), return_exceptions=True)

    one: Any
    other: Any
    if world.is_async:
        one, other = world.runner.run(both())
    else:
        with ThreadPoolExecutor(2) as pool:
            one, other = (
                each.exception() or each.result() for each in [pool.submit(query, 0), pool.submit(query, 300)]
            )
    done, refused = (one, other) if isinstance(other, NotEnoughTokens) else (other, one)
    assert (len(done), type(refused)) == (300, NotEnoughTokens)
    assert (world.fake.spent, world.fake.refused) == (300, 0)
    assert world.bucket().held == 0


@pytest.mark.parametrize("make", ["keepa-async"], indirect=True)
def test_a_query_that_is_thrown_away_elsewhere_frees_its_pages(guarded: Make) -> None:
    """As the garbage collector closes a coroutine: in any context, not in the one in which the query began."""
    world = guarded(refill_rate=5, initial=300)
    world.do("update_status")

    async def throw_away() -> None:
        query = world.api.query(asins(250), wait=False, **QUIET)
        contextvars.copy_context().run(query.send, None)
        assert world.bucket().held == 250
        query.close()

    world.runner.run(throw_away())
    assert world.bucket().held == 100  # of the page that may have been sent


def test_pages_find_out_the_balance_without_a_probe(make: Make) -> None:
    """Unknown and without a probe, the free question is asked before all pages are set aside."""
    world = make(refill_rate=5, initial=300)
    world.guard(probe=False)
    world.api.status.refillRate, world.api.status.refillIn = 5, 60_000  # so that the client asks for no status itself
    assert len(world.query(asins(250), wait=False)) == 250
    assert world.paths() == ["token", "product", "product", "product"]
    assert world.bucket().held == 0


@pytest.mark.parametrize("make", ["keepa"], indirect=True)
def test_a_queues_task_that_has_paid_waits_for_the_rest(guarded: Make) -> None:
    """In a task that would run again from its beginning, wait=False holds until the first call is paid, not after."""
    world = guarded(refill_rate=5, initial=-2)
    under_way = RUN.set(Run())
    try:
        with pytest.raises(NotEnoughTokens):
            world.query(asins(10), wait=False)
        world.clock.sleep(70)
        world.query(asins(10), wait=False)
        world.query(asins(200), wait=False)
    finally:
        RUN.reset(under_way)
    assert (world.fake.spent, world.fake.refused) == (210, 0)
    with pytest.raises(NotEnoughTokens):
        world.query(asins(10), wait=False)


# --- the client's own answers and errors


@pytest.mark.parametrize("fault", ["500", "503", "html", "empty", "error200", "zero_envelope", "no_envelope"])
def test_errors_are_the_clients_own_after_the_hold_is_settled(make: Make, fault: Any) -> None:
    """Whatever the answer, the client raises what it raises without a guard, and the hold is over."""
    world = make(refill_rate=5)
    outcomes: list[Any] = []
    guarded = world.guard(initial=200)
    for api in (world.bare_api(), guarded):
        if not world.is_async and api is not guarded:
            api.update_status()
        world.fake.fail_next(1, fault, path="/product")
        try:
            outcomes.append(len(world.do("query", "B000000001", progress_bar=False, api=api)))
        except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]
    assert world.bucket().held == 0
    assert len(world.of(Settle)) == 1
    if fault in {"500", "503", "error200"}:
        assert world.bucket().balance == world.fake.balance


@pytest.mark.parametrize("key", ["wrong", ""])
def test_a_bad_key_from_the_start(make: Make, key: str) -> None:
    """Without a probe the very first request says that the key is bad, as the client says it."""
    world = make(refill_rate=5)
    api = world.guard(api=world.bare_api(key), probe=False)
    with pytest.raises(RuntimeError, match=r"^REQUEST_REJECTED$"):
        world.query("B000000001", api=api)
    assert len(world.urls) == 1


@pytest.mark.parametrize("make", ["keepa-async"], indirect=True)
def test_what_aiohttp_sends_again_by_itself_is_in_the_books(guarded: Make) -> None:
    """A GET that aiohttp repeats after a broken connection, unseen from above, is in the balance that comes back."""
    world = guarded(refill_rate=5)
    world.fake.fail_next(1, "disconnect_charged", path="/product")
    assert len(world.query(asins(7))) == 7
    assert (world.fake.spent, world.fake.balance) == (14, 286)
    assert (world.bucket().balance, world.bucket().held) == (286, 0)


def test_every_method_goes_through(guarded: Make) -> None:
    """Finder, deals, best sellers, sellers, categories and raw answers parse as ever, one hold each, all paid."""
    world = guarded(refill_rate=20)
    assert len(world.do("product_finder", {"author": "x"})) == 50
    assert world.do("deals", {"page": 0})
    assert len(world.do("best_sellers_query", "281052")) == 50
    assert list(world.do("seller_query", ["A1", "A2"], storefront=True)) == ["A1", "A2"]
    assert world.do("search_for_categories", "books")
    assert world.do("category_lookup", 281052)
    full = world.do("query", asins(2), progress_bar=False, stats=90, offers=20, rating=True, typed=True)
    assert [each.asin for each in full] == asins(2)
    estimates = [command.tokens for command in world.of(Reserve)]
    assert estimates == [11, 5, 50, 20, 1, 1, 26]
    assert sum(command.actual for command in world.of(Settle)) == world.fake.spent
    assert world.bucket().balance == world.fake.balance
    if not world.is_async:
        raw = world.query("B000000001", raw=True)
        assert raw[0].json()["tokensConsumed"] == 1


# --- the status


@pytest.mark.parametrize("offset", [600.0, -600.0])
def test_a_wrong_server_clock_changes_nothing(make: Make, offset: float) -> None:
    """With the server's clock ten minutes off a starved query neither spins nor oversleeps, and the status says so."""
    world = make(refill_rate=5, initial=-2, epoch=time.time())  # the client compares it with this machine's clock
    world.fake.server_clock_offset = offset
    world.guard()
    first = world.fake.refill_in
    assert world.query("B000000001")
    assert first <= world.clock.slept <= first + 1
    assert world.fake.refused == 0
    assert abs(world.api.time_to_refill - world.fake.refill_in - 1) < 1
    assert world.fake.token_calls == 1


# --- the guard itself


def test_a_guarded_client_can_not_be_copied(guarded: Make) -> None:
    """Its guard would come apart from its bucket: a deep copy and a pickle are refused with what to do."""
    world = guarded(refill_rate=5)
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="can't be pickled or copied"):
            copied(world.api)


def test_the_same_object_comes_back_typed(make: Make) -> None:
    """`guard` returns the client it was given, and type checkers know it as what it was."""
    world = make()
    assert world.guard() is world.api
    api = guard(keepa.Keepa(KEY), KeepaSync.from_key(KEY))
    assert_type(api, keepa.Keepa)
    assert_type(guard(keepa.AsyncKeepa(), AsyncKeepaSync.from_key(KEY)), keepa.AsyncKeepa)


def test_guarding_again_replaces_the_guard(guarded: Make) -> None:
    """Two guards on one client meter each request once, by the later one's terms."""
    world = guarded(refill_rate=5)
    world.guard(keep=100)
    world.query("B000000001")
    assert [command.keep for command in world.of(Reserve)] == [100]


def test_unguarding_leaves_the_client_as_it_was(guarded: Make) -> None:
    """Without the guard requests are the client's own again; a second time does nothing."""
    world = guarded(refill_rate=5)
    unguard(world.api)
    unguard(world.api)
    world.do("update_status")
    assert world.query("B000000001")
    assert world.commands == []
    assert "_request" not in vars(world.api)


def test_other_clients_stay_as_they_are(guarded: Make) -> None:
    """A guard shadows methods on the instance alone: a second client knows nothing of it."""
    world = guarded(refill_rate=5)
    other = world.bare_api()
    world.do("update_status", api=other)
    world.query("B000000001", api=other)
    assert world.commands == []


class Custom(keepa.Keepa):
    """Makes requests that can't be seen."""

    def _request(self, *args: Any, **options: Any) -> Any:
        return super()._request(*args, **options)


def as_of_release_1_3() -> keepa.Keepa:
    api = keepa.Keepa(KEY)
    vars(api)["status"] = {"tokensLeft": None, "refillIn": None}
    return api


@pytest.mark.parametrize(
    "make_api, sync, options, why",
    [
        (keepa.AsyncKeepa, KeepaSync, {}, "AsyncKeepaSync"),
        (lambda: keepa.Keepa(KEY), AsyncKeepaSync, {}, "AsyncKeepaSync"),
        (lambda: "no client", KeepaSync, {}, "a str can't spend through"),
        (as_of_release_1_3, KeepaSync, {}, r"keepa 1\.6"),
        (lambda: Custom(KEY), KeepaSync, {}, "can't be metered"),
        (lambda: keepa.Keepa(KEY), KeepaSync, {"keep": -1}, "keep"),
        (lambda: keepa.Keepa(KEY), KeepaSync, {"timeout": -1.0}, "timeout"),
    ],
)
def test_what_can_not_be_guarded_is_told_at_once(make_api: Any, sync: Any, options: dict[str, Any], why: str) -> None:
    """A client and a bucket of different kinds, another release, requests that can't be seen, impossible terms."""
    wrong: Any = guard
    with pytest.raises(ConfigError, match=why):
        wrong(make_api(), sync.from_key(KEY), **options)


def test_a_subclass_that_leaves_the_requests_alone_is_fine() -> None:
    """Whatever else it has is its own."""

    class Harmless(keepa.Keepa):
        extra = 1

    assert guard(Harmless(KEY), KeepaSync.from_key(KEY)).extra == 1
