"""The guard for the `keepa` package: the real clients, against the fake server by HTTP on the loopback interface.

Most tests move the time by hand, for the bucket and the server alike, so they are exact; what they show of one client
they show of both.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, assert_type

import keepa
import pytest

from keepa_tokens import (
    AcquireTimeout,
    AsyncKeepaSync,
    ConfigError,
    CostTooLarge,
    KeepaSync,
    NotEnoughTokens,
    Quota,
    keepa_quota,
)
from keepa_tokens.guards._flow import RUN, Run
from keepa_tokens.guards.keepa import guard, unguard
from keepa_tokens.rules.commands import Reserve, Settle

from tests import http_guards  # isort: skip
from tests.http_guards import KEY  # isort: skip

# A guard leaves no call behind without having said that nobody knows what became of it.
pytestmark = pytest.mark.filterwarnings("error:.* was left without settle:ResourceWarning")

QUIET: dict[str, Any] = {"progress_bar": False, "history": False}


def asins(count: int, first: int = 0) -> list[str]:
    """Return that many ASINs."""
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
        """Guard a client by the bucket of this world."""
        doors: Any = self.doors(quota or keepa_quota(5, initial=initial), probe=probe)
        return guard(self.api if api is None else api, doors[self.is_async], **options)

    def do(self, name: str, *args: Any, api: Any = None, **options: Any) -> Any:
        """Call a method of the client."""
        result = getattr(api or self.api, name)(*args, **options)
        return self.runner.run(result) if asyncio.iscoroutine(result) else result

    def query(self, *args: Any, **options: Any) -> Any:
        """Query products without histories."""
        return self.do("query", *args, **QUIET, **options)

    def paths(self) -> list[str]:
        """Return the paths of the HTTP requests that the client sent."""
        return [url.removeprefix(http_guards.KEEPA_URL).strip("/?") for url in self.urls]


Make = Callable[..., World]


@pytest.fixture(params=http_guards.KEEPA_KINDS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Make a world, of either kind of client."""
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
    """A query of 300 ASINs with ratings reserves 200 three times, settles what each cost, and ends at the server's
    own balance, without asking for it.
    """
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


def test_without_waiting_both_refusals_surface(guarded: Make) -> None:
    """With wait=False an empty bucket raises NotEnoughTokens and sends nothing; a 429 raises what the client raises."""
    world = guarded(refill_rate=5, initial=10)
    world.query("B000000001")
    world.fake.spend_outside(20)
    with pytest.raises(RuntimeError, match="NOT_ENOUGH_TOKEN"):
        world.query("B000000001", wait=False)
    assert world.api.tokens_left == world.bucket().balance == world.fake.balance
    sent = len(world.urls)
    with pytest.raises(NotEnoughTokens):
        world.query("B000000001", wait=False)
    assert len(world.urls) == sent
    assert world.bucket().held == 0


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


def test_pages_that_can_not_be_had_at_once_are_an_error_that_ends_it(guarded: Make) -> None:
    """400 ASINs without waiting on a plan of 300 tokens could only ever begin: told at once, and nothing is spent."""
    world = guarded(refill_rate=5, initial=300)
    with pytest.raises(CostTooLarge, match=r"tokens=400 can never be admitted: this quota admits at most 300"):
        world.query(asins(400), wait=False)
    assert (world.fake.spent, world.urls, world.bucket().held) == (0, [], 0)


@pytest.mark.parametrize("count", [300, 299, 101, 100])
def test_pages_wait_as_a_whole_and_are_then_had_at_once(guarded: Make, count: int) -> None:
    """A query of several pages at a low balance is refused until all can be had; then it costs what it costs, once."""
    world = guarded(refill_rate=5, initial=50)
    runs = come_back(world, asins(count), wait=False)
    assert runs > 1 or count == 100  # one page is admitted by the server's rule: while there is anything
    assert (world.fake.spent, world.fake.refused) == (count, 0)
    assert world.in_step()


def test_pages_with_a_timeout_are_waited_for_as_a_whole(make: Make) -> None:
    """A timeout too short for all pages is told before the first; one that is long enough is waited once."""
    world = make(refill_rate=5, initial=50)
    world.guard(timeout=600)
    with pytest.raises(AcquireTimeout) as late:
        world.query(asins(200))
    assert late.value.tokens == 200
    assert (world.fake.spent, world.urls) == (0, [])
    world.guard(timeout=3600)
    assert len(world.query(asins(200))) == 200
    assert (world.fake.spent, world.fake.refused) == (200, 0)
    assert 29 * 60 < world.clock.slept < 31 * 61


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


def test_pages_are_given_back_where_one_fails(guarded: Make) -> None:
    """A page that fails ends the query: the pages after it were never sent, so their tokens are free."""
    world = guarded(refill_rate=5, initial=300)
    world.do("update_status")
    world.fake.fail_next(1, "500", path="/product")
    with pytest.raises(RuntimeError):
        world.query(asins(300), wait=False)
    assert (world.bucket().balance, world.bucket().held) == (300, 0)


def test_pages_refused_halfway_are_the_clients_error(guarded: Make) -> None:
    """Where somebody else spends between two pages the client says so; it is no refusal to come back from."""
    world = guarded(refill_rate=5, initial=300)
    world.fake.cost = lambda path, params: world.fake.spend_outside(300) if path == "/product" else None
    with pytest.raises(RuntimeError, match="NOT_ENOUGH_TOKEN"):
        world.query(asins(300), wait=False)
    assert (world.fake.spent, world.fake.refused, world.bucket().held) == (100, 1, 0)


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


def test_an_answer_that_knows_nothing_spoils_no_status(guarded: Make) -> None:
    """A bad key's answer has all fields 0: the bucket and the client's status stay, and no query divides by 0."""
    world = guarded(refill_rate=5)
    world.query("B000000001")
    world.api.accesskey = "wrong"
    with pytest.raises(RuntimeError, match="REQUEST_REJECTED"):
        world.query("B000000002")
    assert (world.api.tokens_left, world.api.status.refillRate) == (299, 5)
    assert world.bucket().balance == 299
    world.api.accesskey = KEY
    assert world.query("B000000002")


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


def test_the_status_comes_from_the_bucket(guarded: Make) -> None:
    """Where the bucket knows the balance `update_status` sends nothing and shows the same as the server would."""
    world = guarded(refill_rate=20, initial=700)
    world.do("update_status")
    assert (world.fake.token_calls, world.urls) == (1, [])
    world.clock.sleep(10)
    world.do("update_status")
    assert (world.fake.token_calls, world.urls) == (1, [])
    assert world.api.tokens_left == world.api.status.tokensLeft == 700
    assert world.api.status.refillRate == 20
    assert abs(world.api.status.refillIn / 1000 - world.fake.refill_in) < 0.1
    assert abs(world.api.time_to_refill - world.fake.refill_in - 1) < 0.5


def test_without_a_probe_the_client_asks_once(make: Make) -> None:
    """Unknown and without a probe, `/token` goes out by the client itself, once, and then the balance is known."""
    world = make(refill_rate=20, initial=700)
    world.guard(probe=False)
    world.do("update_status")
    world.do("update_status")
    assert world.paths() == ["token"]
    assert world.api.tokens_left == world.bucket().balance == 700


def test_while_another_worker_asks_nobody_else_does(make: Make) -> None:
    """Where `/token` can't be had, the status stays usable, and the one question is not repeated."""
    world = make(refill_rate=20, initial=700)
    world.fake.token_down = True
    world.guard()
    for _ in range(5):
        world.do("update_status")
    assert world.fake.token_calls == 1
    assert world.api.status.refillRate == 5
    assert world.query("B000000001")  # after the failed probe it starts at 0: slow, not stuck
    assert world.api.tokens_left == world.fake.balance


def test_waiting_for_tokens_goes_through_the_bucket(make: Make) -> None:
    """`wait_for_tokens` returns once the server's balance is above 0, not later than a step, and takes nothing."""
    for probe in (True, False):
        world = make(refill_rate=5, initial=-12)
        world.guard(probe=probe)
        world.do("wait_for_tokens")
        assert world.api.tokens_left == world.fake.balance == 3
        assert (world.bucket().held, world.fake.spent) == (0, 0)


def test_waiting_for_tokens_on_old_knowledge_asks_the_server(make: Make) -> None:
    """Without a probe a balance that was reported long ago is looked up by the free question, not by a paid one."""
    world = make(refill_rate=5, initial=-200)
    world.guard(probe=False)
    world.do("update_status")
    world.clock.sleep(700)
    world.fake.spend_outside(-1000)
    world.do("wait_for_tokens")
    assert world.api.tokens_left == world.fake.balance > 0
    assert world.paths() == ["token", "token"]


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


def test_a_plan_change_is_followed(guarded: Make) -> None:
    """After an upgrade the next answer brings the new rate and capacity to the bucket and the status."""
    world = guarded(refill_rate=5)
    world.query("B000000001")
    world.fake.set_plan(60)
    world.query("B000000001")
    assert (world.bucket().refill, world.bucket().capacity) == (60, 3600)
    world.do("update_status")
    assert world.api.status.refillRate == 60
    world.fake.set_flow_reduction(60.0)
    world.query("B000000001")
    world.do("update_status")
    assert (world.bucket().refill, world.api.status.refillRate) == (0, 60)


# --- images


def test_an_image_is_metered(make: Make, tmp_path: Path) -> None:
    """A graph image says nothing of its cost: one token is held, and charged when the hold runs out."""
    world = make(refill_rate=5)
    world.guard(initial=200)
    world.do("download_graph_image", "B000000001", tmp_path / "graph.png", range=90)
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
    assert world.paths() == ["graphimage"]
    assert (world.bucket().balance, world.bucket().held) == (200, 1)
    world.clock.sleep(121)
    assert (world.bucket().balance, world.bucket().held) == (200 - 1 + 10, 0)


def test_a_refused_image_is_asked_for_again(make: Make, tmp_path: Path) -> None:
    """The refusal of an image has an envelope: it corrects the bucket, which waits, and then the image comes."""
    world = make(refill_rate=5, initial=0)
    world.guard(initial=200)
    world.do("download_graph_image", "B000000001", tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
    assert (world.fake.refused, world.paths()) == (1, ["graphimage"] * 2)


def test_a_faulty_image_raises_the_clients_error(make: Make, tmp_path: Path) -> None:
    """What is no image is settled like any answer, and the client says that it is none."""
    world = make(refill_rate=5)
    world.guard(initial=200)
    world.fake.fail_next(1, "500")
    with pytest.raises(ValueError, match="not a valid PNG"):
        world.do("download_graph_image", "B000000001", tmp_path / "graph.png")
    assert (world.bucket().balance, world.bucket().held) == (300, 0)


# --- without waiting for real


def test_a_guarded_client_can_not_be_copied(guarded: Make) -> None:
    """Its guard would come apart from its bucket: a deep copy and a pickle are refused with what to do."""
    world = guarded(refill_rate=5)
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="can't be pickled or copied"):
            copied(world.api)


# --- the guard itself


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
