"""The model of Keepa's server, in process: it keeps the rules of the bucket and tells the truth in every envelope."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import pytest

from keepa_tokens.testing import FakeKeepa, ManualClock, virtual_loop
from keepa_tokens.testing.fake_keepa import Fault, Response
from tests.helpers import in_threads
from tests.keepa_world import asins
from tests.stories import Story, each_story, holds, options, told_steps

ENVELOPE = {
    "timestamp",
    "tokensLeft",
    "refillIn",
    "refillRate",
    "tokenFlowReduction",
    "tokensConsumed",
    "processingTimeInMs",
}
WHOLE = ENVELOPE - {"tokenFlowReduction"}

# Recorded from the live API.
TOKEN_WHEN_FULL = {
    "timestamp": 1780141957832,
    "refillIn": 39592,
    "refillRate": 20,
    "tokensLeft": 1200,
    "tokensConsumed": 0,
    "tokenFlowReduction": 0,
    "processingTimeInMs": 0,
}
REFUSED = TOKEN_WHEN_FULL | {"timestamp": 1594177158252, "refillIn": 38205, "tokensLeft": 0}
PRODUCTS = {"timestamp": 1778386768884, "refillIn": 53441, "refillRate": 60, "tokensLeft": 94, "tokensConsumed": 4}
ERROR_200 = {
    "error": {"message": "...", "type": "invalidParameter"},
    "tokensLeft": 59,
    "tokensConsumed": 0,
    "refillIn": 26645,
    "refillRate": 5,
}
BAD_KEY = dict.fromkeys(ENVELOPE, 0) | {"timestamp": 1790277678673, "error": {"type": "invalidParameter"}}


def body(response: Response) -> dict[str, Any]:
    assert response.body is not None
    return response.body


def left(response: Response) -> Any:
    return body(response)["tokensLeft"]


def consumed(response: Response) -> Any:
    return body(response)["tokensConsumed"]


def fake_on_clock(**options: Any) -> tuple[FakeKeepa, ManualClock]:
    clock = ManualClock()
    return FakeKeepa(clock=clock, **options), clock


def alike(ours: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Assert that an answer has every recorded field with the same type."""
    for name, value in recorded.items():
        numbers = int | float if name == "tokenFlowReduction" else type(value)
        assert isinstance(ours[name], numbers), name
        if isinstance(value, dict):
            alike(ours[name], value)


# --- the envelope


def test_envelopes_look_like_the_recorded_ones() -> None:
    """Each recorded answer has a counterpart with the same fields and types, and no field is made up."""
    fake, _ = fake_on_clock(refill_rate=20, key="k")
    token = fake.request("/token", {"key": "k"})
    alike(body(token), TOKEN_WHEN_FULL)
    assert set(body(token)) == ENVELOPE
    assert (token.status, left(token), consumed(token)) == (200, 1200, 0)

    product = fake.request("/product/", {"key": "k", **asins(4)})
    alike(body(product), PRODUCTS)
    assert set(body(product)) == ENVELOPE | {"products"}
    assert (product.status, left(product), consumed(product)) == (200, 1196, 4)

    fake.fail_next(1, "error200")
    wrong = fake.request("/product", {"key": "k", **asins(1)})
    alike(body(wrong), ERROR_200)
    assert (wrong.status, left(wrong), consumed(wrong)) == (200, 1196, 0)

    fake.spend_outside(1196)
    refused = fake.request("/product", {"key": "k", **asins(1)})
    alike(body(refused), REFUSED)
    assert set(body(refused)) == ENVELOPE | {"error"}
    assert (refused.status, left(refused), consumed(refused)) == (429, 0, 0)


def test_whole_fields_are_ints_and_the_content_is_the_body() -> None:
    """Every token field but the flow reduction is an int, and the bytes on the wire say what the body says."""
    fake, clock = fake_on_clock()
    clock.advance(12.345_678)
    response = fake.request("/token")
    assert all(type(body(response)[name]) is int for name in WHOLE)
    assert type(body(response)["tokenFlowReduction"]) is float
    assert json.loads(response.content) == body(response)


@pytest.mark.parametrize("given", [{}, {"key": "wrong"}])
def test_a_bad_key_carries_no_reading(given: dict[str, object]) -> None:
    """A wrong or missing key is a 400 whose token fields are all 0, with a timestamp and no charge."""
    fake, _ = fake_on_clock(key="right")
    response = fake.request("/product", given | asins(1))
    alike(body(response), BAD_KEY)
    assert response.status == 400
    assert all(body(response)[name] == 0 for name in ENVELOPE - {"timestamp"})
    assert body(response)["timestamp"] > 0
    assert fake.balance == fake.capacity


def test_refill_in_is_rounded_up_and_ends_at_the_refill() -> None:
    """Waiting exactly `refillIn` always sees the refill; a whole millisecond less never does."""
    fake, clock = fake_on_clock(initial=0)
    for _ in range(200):
        before = fake.balance
        wait_ms = body(fake.request("/token"))["refillIn"]
        assert wait_ms >= 1
        clock.advance((wait_ms - 1) / 1000)
        assert fake.balance == before
        clock.advance(0.001)
        assert fake.balance == min(before + 5, fake.capacity)


def test_the_timestamp_follows_the_servers_clock_alone() -> None:
    """The server's clock offset shifts `timestamp` and nothing else."""
    fake, clock = fake_on_clock(epoch=1_700_000_000.0)
    clock.advance(1.5)
    before = body(fake.request("/token"))
    fake.server_clock_offset = -600.0
    after = body(fake.request("/token"))
    assert before["timestamp"] == 1_700_000_001_500
    assert after == before | {"timestamp": 1_699_999_401_500}


# --- the bucket


def test_refill_comes_in_whole_steps_at_a_drifting_period() -> None:
    """The balance grows by the whole rate at once, 60.19 to 60.45 s apart, with a phase of its own."""
    fake, clock = fake_on_clock(refill_rate=20, initial=0)
    assert 0 < fake.refill_in <= 60.45
    steps: list[float] = []
    for _ in range(50):
        before = fake.balance
        clock.advance(fake.refill_in)
        assert fake.balance == before + 20
        steps.append(clock.now_us() / 1_000_000)
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    assert all(60.189_999 <= gap <= 60.450_001 for gap in gaps)
    assert len({round(gap, 3) for gap in gaps}) > 10


def test_phases_differ_by_seed_and_repeat_with_it() -> None:
    """The same seed gives the same server, other seeds give other phases."""
    phases = [FakeKeepa(seed=seed).refill_in for seed in range(20)]
    assert phases == [FakeKeepa(seed=seed).refill_in for seed in range(20)]
    assert len(set(phases)) == 20


STORIES = """
a full bucket stays full and the books balance, no token appears or vanishes uncounted: initial=298 period=60
    pass 600 -> balance=300 minted=50 wasted=48; product 7; outside 3 -> balance=290
a clock that jumps ten years ahead costs no noticeable time and leaves a full bucket: initial=-1000
    pass 315360000 -> balance=300; token -> status=200
on 1 token a call of 100 passes and takes the balance to -99; at exactly 0 even one of 1 is refused, for free: initial=1
    product 100 -> left=-99; outside -99 -> balance=0; product 1 -> status=429 !products
    token -> balance=0 admitted=1 refused=1 spent=100 token_calls=1
tracking takes its part off every step, fractions are carried over, at net 0 or below nothing comes: initial=0 period=60
    pass step; outside 5 -> balance=0; flow 2.7; pass 600 -> balance=23; token -> refillRate=5 tokenFlowReduction=2.7
    flow 5; pass 3600 -> balance=23; flow 9.5; pass 3600 -> balance=23
a new plan changes rate and capacity from now on; the balance stays, above the new cap too: refill_rate=20 period=60
    plan 5; token -> refillRate=5 left=1200 capacity=300; pass 600 -> balance=1200
    plan 0; outside 1300; pass 6000 -> balance=-100
calls in flight share one positive balance, each envelope tells that of its own moment of completion: initial=1
    begin a 10; begin b 10; begin c 10 -> in_flight=3 balance=1
    finish c -> left=-9; finish b -> left=-19; finish a -> left=-29 in_flight=0; product 1 -> status=429
charged on admission the cost leaves at arrival, so the next call finds it gone: initial=1 charge=admission
    begin a 10 -> balance=-9; begin b 10; finish b -> left=-9; finish a -> status=200 left=-9 consumed=10
a call takes its latency, reports it, and is refilled meanwhile: initial=10 latency=120 period=60
    product 1 -> left=19 processingTimeInMs=120000
a fault for one path waits for it, others come in order: initial=300
    fail 2 500 product; fail 1 html; token -> status=502; token -> status=200
    product 1 -> status=500; product 1 -> status=500; product 1 -> status=200
when our clock steps back the server's time stands for no moment longer and its balance stays: initial=0 period=60
    pass 1000 -> balance=80 refill_in=10.865459; pass -900 -> balance=80 refill_in=10.865459
    pass step -> balance=85
each faulty answer is as documented, and so is its charge, and the next call is well again: initial=100
    fail 1 (500|503|html|empty|error200|zero_envelope|no_envelope)
    product 3 -> status=(500|503|502|200|200|400|200) (told|told|!told|!told|told|told|!told)
    token -> balance=(100|100|100|97|100|100|97) in_flight=0; product 1 -> status=200
a timeout and a disconnect raise, charged or not as asked; a refused call is never charged: initial=100
    fail 2 (timeout_charged|timeout_uncharged|disconnect_charged|disconnect_uncharged)
    product 3 -> (TimeoutError|TimeoutError|ConnectionError|ConnectionError) balance=(97|100|97|100)
    outside (97|100|97|100)
    product 3 -> (TimeoutError|TimeoutError|ConnectionError|ConnectionError) balance=0 in_flight=0
/token can be down alone: initial=300
    down 1; token -> status=503 !body; product 1 -> status=200; down 0; token -> status=200
"""


def found(said: dict[str, Any], fake: FakeKeepa, name: str) -> Any:
    return said[name] if name in said else getattr(fake, name, None)


@each_story(STORIES)
def test_a_story_of_the_server_comes_out_as_told(story: Story) -> None:
    """Each title says what its steps show: what is asked, and what stands in the answer or the books then."""
    fake, clock = fake_on_clock(**options(story.bucket))
    tickets: dict[str, Any] = {}

    def begin(name: str, tokens: int) -> None:
        tickets[name] = fake.begin("/product", asins(tokens))

    def fail(times: int, kind: object, path: str | None = None) -> None:
        fault: Any = str(kind)
        fake.fail_next(times, fault, path=path)

    verbs: dict[str, Callable[..., Response | None]] = {
        "product": lambda tokens: fake.request("/product", asins(tokens)),
        "token": lambda: fake.request("/token"),
        "begin": begin,
        "finish": lambda name: fake.finish(tickets[name]),
        "outside": fake.spend_outside,
        "plan": fake.set_plan,
        "flow": fake.set_flow_reduction,
        "pass": lambda seconds: clock.advance(fake.refill_in if seconds == "step" else seconds),
        "fail": fail,
        "down": lambda is_down: setattr(fake, "token_down", bool(is_down)),
    }
    for step, verb, words, _ in told_steps(story.text):
        said: dict[str, Any] = {}
        answer: object
        try:
            answer = verbs[verb](*words)
        except (TimeoutError, ConnectionError) as error:
            answer = error
        if isinstance(answer, Response):
            said = {"body": answer.body, "status": answer.status, **(answer.body or {})}
        said |= {
            "left": said.get("tokensLeft"),
            "consumed": said.get("tokensConsumed"),
            "told": said.keys() >= ENVELOPE,
        }
        holds(step, answer, partial(found, said, fake))


# --- calls in flight


def test_mistakes_of_a_test_are_said_at_once() -> None:
    """A call finished twice, an unknown fault, a period that can't be, a negative plan: each is refused by name."""
    fake, _ = fake_on_clock()
    ticket = fake.begin("/product", asins(1))
    fake.finish(ticket)
    with pytest.raises(ValueError, match="not in flight"):
        fake.finish(ticket)
    assert fake.spent == 1
    with pytest.raises(ValueError, match="nonsense"):
        fake.fail_next(1, "nonsense")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="kind='503'"):
        fake.fail_next("503")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert len(get_args(Fault)) == 13
    for period in (0.0, -1.0, (60.0, 59.0)):
        with pytest.raises(ValueError, match="period"):
            FakeKeepa(period=period)
    with pytest.raises(ValueError, match="refill_rate"):
        FakeKeepa(refill_rate=-1)


def test_latency_passes_on_the_clock_and_a_probe_asks_by_the_key() -> None:
    """A latency may be drawn from a range; the ready probe has the key, and what it returns is the answer's."""
    fake, clock = fake_on_clock(initial=-79, latency=(1.0, 2.0), key="k")
    status, told = fake.probe()
    assert 1.0 <= clock.slept <= 2.0
    assert told is not None
    assert (status, told["tokensLeft"], told["refillRate"], fake.token_calls) == (200, -79, 5, 1)
    fake.token_down = True
    assert fake.probe() == (503, None)


def test_threads_keep_the_books_straight() -> None:
    """Eight threads that spend at once lose no token and no count."""
    fake, _ = fake_on_clock(refill_rate=60)
    in_threads(8, lambda _: [fake.request("/product", asins(2)) for _ in range(50)])
    assert (fake.admitted, fake.spent, fake.balance, fake.in_flight) == (400, 800, 3600 - 800, 0)


def test_the_async_twins() -> None:
    """Async calls overlap in virtual time; a cancelled caller's call is still charged and no longer in flight."""
    with virtual_loop() as loop:
        fake = FakeKeepa(clock=loop.clock, initial=100, latency=1.0, key="k")

        async def main() -> None:
            answers = await asyncio.gather(*(fake.arequest("/product", {"key": "k", **asins(1)}) for _ in range(3)))
            assert [left(answer) for answer in answers] == [99, 98, 97]
            assert loop.time() == 1.0
            call = asyncio.create_task(fake.arequest("/product", {"key": "k", **asins(7)}))
            await asyncio.sleep(0.5)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            status, told = await fake.aprobe()
            assert (status, (told or {})["tokensLeft"]) == (200, 90)

        loop.run_until_complete(main())
        assert fake.in_flight == 0


# --- faults


@pytest.mark.parametrize("kind, known", [("429", True), ("429_bare", False)])
def test_a_refusal_that_tokens_do_not_explain(kind: Fault, known: bool) -> None:
    """Refused though there are tokens, with the true balance or a proxy's page, and with the headers asked for."""
    fake, _ = fake_on_clock(initial=100)
    fake.fail_next(1, kind, headers={"Retry-After": "30"})
    answer = fake.request("/product", asins(3))
    assert (answer.status, answer.headers["Retry-After"]) == (429, "30")
    assert ((answer.body or {}).get("tokensLeft") == 100) is known
    assert (fake.balance, fake.refused) == (100, 0)
    assert "Retry-After" not in fake.request("/product", asins(3)).headers


# --- endpoints and costs


@pytest.mark.parametrize(
    "path,params,low,high",
    [
        ("/product", asins(1), 1, 1),
        ("/product", asins(100), 100, 100),
        ("/product", asins(10) | {"buybox": 1, "stats": 90}, 30, 30),
        ("/product", asins(100) | {"rating": 1}, 130, 170),
        ("/product", asins(100) | {"update": 0}, 130, 170),
        ("/product", asins(100) | {"update": 48}, 100, 100),
        ("/product", asins(50) | {"offers": 20}, 350, 550),
        ("/product", asins(50) | {"offers": 20, "stock": 1}, 360, 650),
        ("/product", {"code": ",".join(map(str, range(100)))}, 150, 250),
        ("/product", {"code": "1,2,3", "code-limit": 1}, 3, 3),
        ("/query", {"selection": '{"perPage": 1000}'}, 20, 20),
        ("/query", {"selection": "{}"}, 11, 11),
        ("/query", {"selection": "{}", "stats": 1}, 42, 42),
        ("/search", {"type": "product", "term": "x", "page": 0}, 10, 10),
        ("/search", {"type": "product", "term": "x"}, 40, 40),
        ("/search", {"type": "category", "term": "x"}, 1, 1),
        ("/deal", {"selection": "{}"}, 5, 5),
        ("/bestsellers", {"category": 281052}, 50, 50),
        ("/topseller", {"domain": 1}, 50, 50),
        ("/lightningdeal", {"asin": "B000000001"}, 1, 1),
        ("/lightningdeal", {}, 500, 500),
        ("/seller", {"seller": "A1,A2"}, 2, 2),
        ("/seller", {"seller": "A1", "storefront": 1}, 10, 10),
        ("/seller", {"seller": "A1", "storefront": 1, "update": 0}, 10, 50),
        ("/category", {"category": 281052}, 1, 1),
        ("/tracking", {"type": "add", "selection": "[{}, {}]"}, 2, 2),
        ("/tracking", {"type": "list"}, 0, 0),
        ("/token", {}, 0, 0),
    ],
)
def test_costs(path: str, params: dict[str, object], low: int, high: int) -> None:
    """Every endpoint costs what Keepa documents, the same for the same request, and the envelope says so."""
    fake, _ = fake_on_clock(refill_rate=60)
    first, second = fake.request(path, params), fake.request(path, params)
    assert first.status == 200
    assert low <= consumed(first) <= high
    assert consumed(second) == consumed(first)
    assert fake.capacity - fake.balance == fake.spent == 2 * consumed(first)


def test_a_code_costs_as_many_tokens_as_it_returns_products() -> None:
    """The cost of a lookup by code is known only from the answer."""
    fake, _ = fake_on_clock(refill_rate=60, products_per_code=(0, 40))
    response = fake.request("/product", {"code": "4006381333931,9780306406157,0012345678905"})
    assert len(body(response)["products"]) == consumed(response) > 3


def test_the_cost_hook_overrides_a_price() -> None:
    """A hook sets any price by path and parameters, and leaves the others alone where it returns None."""
    fake, _ = fake_on_clock(refill_rate=60)
    fake.cost = lambda path, params: 386 if path == "/product" and params["asin"] == "B000000000" else None
    assert consumed(fake.request("/product", asins(1))) == 386
    assert consumed(fake.request("/product", asins(2))) == 2


def test_an_image_has_no_envelope_and_is_cached() -> None:
    """An image call answers a PNG and nothing else; the same image is free for 90 minutes."""
    fake, clock = fake_on_clock(initial=10, period=1e9)
    image = fake.request("/graphimage", {"asin": "B000000001"})
    assert (image.status, image.body, image.headers["Content-Type"]) == (200, None, "image/png")
    assert image.content.startswith(b"\x89PNG\r\n\x1a\n")
    fake.request("/graphimage", {"asin": "B000000001"})
    assert fake.balance == 9
    clock.advance(90 * 60.0)
    fake.request("/graphimage", {"asin": "B000000001"})
    assert fake.balance == 8


@pytest.mark.parametrize(
    "path,params,status",
    [("/nonsense", {}, 404), ("/product", {}, 400), ("/product", asins(101), 400), ("/seller", {}, 400)],
)
def test_malformed_calls_carry_a_true_envelope(path: str, params: dict[str, object], status: int) -> None:
    """An unknown path and bad parameters are errors that cost nothing and still tell the balance."""
    fake, _ = fake_on_clock(initial=7)
    response = fake.request(path, params)
    assert (response.status, left(response), consumed(response)) == (status, 7, 0)
    assert set(body(response)) == ENVELOPE | {"error"}
    assert (fake.admitted, fake.refused) == (0, 0)


def test_no_repr_shows_the_key() -> None:
    """A fake and a ticket in a failing test's output show no API key."""
    fake = FakeKeepa(key="s3cret", initial=4)
    ticket = fake.begin("/product", {"key": "s3cret", **asins(1)})
    assert repr(fake) == "FakeKeepa(refill_rate=5, balance=4, in_flight=1)"
    assert "s3cret" not in repr(ticket)


@pytest.mark.parametrize(
    "switch",
    [
        lambda fake: fake.set_plan(100),
        lambda fake: fake.set_flow_reduction(5),
        lambda fake: fake.follow(ManualClock(5000)),
    ],
)
@pytest.mark.parametrize("initial", [0, 290])
def test_a_switch_counts_from_now_on(switch: Callable[[FakeKeepa], object], initial: int) -> None:
    """What came until then came as before, and was lost where the bucket was full."""
    clock = ManualClock()
    changed, unchanged = (FakeKeepa(initial=initial, clock=clock) for _ in range(2))
    clock.advance(600)
    switch(changed)
    assert (changed.balance, changed.refill_in) == (unchanged.balance, unchanged.refill_in)


def test_what_is_spent_outside_is_spent_now() -> None:
    """After the refills until then, which a full bucket loses."""
    clock = ManualClock()
    fake = FakeKeepa(clock=clock)
    clock.advance(600)
    asked = fake.refill_in
    assert (fake.balance, fake.refill_in) == (300, asked)
    clock.advance(600)
    fake.spend_outside(20)
    assert (fake.balance, fake.spent_outside) == (280, 20)
