"""The clocks of the testing kit: they move only as they say, in the order of deadlines, and never hang."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from itertools import pairwise

import pytest

from keepa_tokens.clock import Clock
from keepa_tokens.testing import ManualClock, ScaledClock, VirtualLoop, virtual_loop
from tests.helpers import in_threads


def seconds(clock: Clock) -> float:
    """Return a clock's time in seconds."""
    return clock.now_us() / 1_000_000


def run(main: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run a coroutine function in a real event loop, which must not wait."""
    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 5


# --- ManualClock


def test_a_manual_clock_stands_still_until_it_is_moved() -> None:
    """Reading doesn't move the clock; advance moves by rounded microseconds, also back; set goes anywhere from 0."""
    clock = ManualClock(10.0)
    assert isinstance(clock, Clock)
    assert clock.now_us() == clock.now_us() == 10_000_000

    clock.advance(0.000_001_6)
    assert clock.now_us() == 10_000_002
    clock.advance(-3.0)
    assert clock.now_us() == 7_000_002
    clock.set(5.5)
    assert clock.now_us() == 5_500_000
    clock.advance(-100.0)
    assert clock.now_us() == 0
    assert clock.slept == 0.0


def test_a_start_below_zero_is_refused() -> None:
    """A clock reads at least 0, so it can't start below."""
    with pytest.raises(ValueError, match="start"):
        ManualClock(-1.0)


def test_sleep_moves_the_clock_to_its_own_deadline() -> None:
    """One sleeper moves the clock by what it sleeps, and `slept` adds it up; a negative sleep does nothing."""
    clock = ManualClock()
    clock.sleep(2.5)
    clock.sleep(0.25)
    clock.sleep(-4.0)
    assert seconds(clock) == 2.75
    assert clock.slept == 2.75


def test_coroutines_wake_in_the_order_of_their_deadlines() -> None:
    """Of many coroutines the earliest deadline wakes first, ties in order of arrival, each at exactly its deadline."""
    clock = ManualClock()
    woken: list[tuple[str, float]] = []

    async def nap(name: str, length: float) -> None:
        await clock.asleep(length)
        woken.append((name, seconds(clock)))

    async def main() -> None:
        await asyncio.gather(nap("c", 3), nap("a", 1), nap("b1", 2), nap("b2", 2), nap("now", 0))

    run(main)
    assert woken == [("now", 0.0), ("a", 1.0), ("b1", 2.0), ("b2", 2.0), ("c", 3.0)]
    assert clock.slept == 8.0


def test_a_woken_coroutine_may_sleep_again_before_the_next_deadline() -> None:
    """A short ticker and a long sleeper interleave as in real time, although a lock is handed over in between."""
    clock = ManualClock()
    seen: list[tuple[str, float]] = []

    async def main() -> None:
        lock = asyncio.Lock()

        async def tick() -> None:
            for _ in range(3):
                async with lock:
                    await clock.asleep(1)
                seen.append(("tick", seconds(clock)))

        async def other() -> None:
            async with lock:
                await clock.asleep(1)
            seen.append(("other", seconds(clock)))

        async def long() -> None:
            await clock.asleep(3.5)
            seen.append(("long", seconds(clock)))

        await asyncio.gather(long(), tick(), other())

    run(main)
    assert seen == [("tick", 1.0), ("other", 2.0), ("tick", 3.0), ("long", 3.5), ("tick", 4.0)]


@pytest.mark.parametrize("passes", range(12))
def test_a_sleeper_can_be_cancelled_at_any_moment(passes: int) -> None:
    """Whenever the cancelling comes, the sleeper no longer moves the clock after it, and others go on."""
    clock = ManualClock()

    async def main() -> None:
        sleeper = asyncio.create_task(clock.asleep(5))
        for _ in range(passes):
            await asyncio.sleep(0)
        sleeper.cancel()
        before = seconds(clock)
        await asyncio.gather(sleeper, return_exceptions=True)
        assert seconds(clock) == before
        await clock.asleep(10)
        assert seconds(clock) == before + 10

    run(main)


def test_a_clock_moved_past_a_deadline_stays_there() -> None:
    """A sleeper that wakes late doesn't turn the clock back to its deadline."""
    clock = ManualClock()

    async def main() -> None:
        sleeper = asyncio.create_task(clock.asleep(5))
        await asyncio.sleep(0)
        clock.advance(60.0)
        await sleeper

    run(main)
    assert seconds(clock) == 60.0
    assert clock.slept == 5.0


def test_a_clock_outlives_the_loops_that_slept_on_it() -> None:
    """A loop that ends with a sleeper left over neither keeps the clock busy nor disturbs the next loop."""
    clock = ManualClock()
    left: list[asyncio.Task[None]] = []

    async def leave_one_behind() -> None:
        left.append(asyncio.create_task(clock.asleep(50)))
        await asyncio.sleep(0)

    run(leave_one_behind)
    run(lambda: clock.asleep(2))
    assert left[0].cancelled()
    assert seconds(clock) == 2.0


def test_threads_wake_in_the_order_of_their_deadlines() -> None:
    """Many threads sleep at once and all go on: none hangs, and the clock never goes backwards or past the longest."""
    clock, gate = ManualClock(), threading.Barrier(16)

    def nap(length: int) -> float:
        gate.wait()
        at = [seconds(clock)]
        for _ in range(20):
            clock.sleep(length)
            at.append(seconds(clock))
        return min(later - earlier for earlier, later in pairwise(at))

    assert min(in_threads(16, nap)) >= 0
    assert clock.slept == 20 * sum(range(16))
    assert seconds(clock) >= 20 * 15


def test_a_thread_waits_for_a_registered_earlier_one() -> None:
    """A thread asleep with an earlier deadline goes first, whoever runs first."""
    clock = ManualClock()
    order: list[str] = []

    def nap(name: str, length: float) -> None:
        clock.sleep(length)
        order.append(name)

    with clock._changed:  # holds back every sleeper until both are there
        threads = [threading.Thread(target=nap, args=each) for each in (("late", 9.0), ("early", 1.0))]
        clock._threads.add((1, -1))  # a third sleeper, at the head of the queue
        for thread in threads:
            thread.start()
    while len(clock._threads) < 3:
        threading.Event().wait(0.001)
    with clock._changed:
        clock._threads.remove((1, -1))
        clock._changed.notify_all()
    for thread in threads:
        thread.join(10)

    assert order == ["early", "late"]
    assert seconds(clock) == 9.0


# --- ScaledClock


def test_a_scaled_clock_runs_faster() -> None:
    """At a speed of 10,000 a hundred seconds of sleep are over at once, and the clock shows them."""
    clock = ScaledClock(10_000.0)
    started = time.monotonic()
    clock.sleep(100.0)
    run(lambda: clock.asleep(100.0))
    assert seconds(clock) >= 200.0
    assert time.monotonic() - started < 5
    assert isinstance(clock, Clock)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scaled_clock_needs_a_real_speed(speed: float) -> None:
    """A speed that would stop the clock or make no sense is refused by name."""
    with pytest.raises(ValueError, match="speed"):
        ScaledClock(speed)


# --- virtual_loop


def test_a_virtual_loop_does_not_wait() -> None:
    """A thousand hours pass at once, timers fire in order, and a time limit expires in virtual time."""
    order: list[tuple[str, float]] = []

    async def nap(name: str, length: float) -> None:
        await asyncio.sleep(length)
        order.append((name, asyncio.get_running_loop().time()))

    async def main() -> None:
        await asyncio.gather(nap("b", 3_600_000), nap("a", 3600))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.Event().wait()

    started = time.monotonic()
    with asyncio.Runner(loop_factory=virtual_loop) as runner:
        runner.run(main())
        assert runner.get_loop().time() == pytest.approx(3_600_010)
    assert time.monotonic() - started < 5
    assert order == [("a", 3600.0), ("b", 3_600_000.0)]


def test_the_loops_clock_follows_its_time() -> None:
    """The loop's clock starts at 0, sleeps exactly to the microsecond, and refuses to block."""
    with virtual_loop() as loop:
        clock = loop.clock
        assert isinstance(clock, Clock)
        assert clock.now_us() == 0
        for _ in range(1000):
            loop.run_until_complete(clock.asleep(0.060_001))
        assert clock.now_us() == 60_001_000
        with pytest.raises(RuntimeError, match="asleep"):
            clock.sleep(1.0)
    assert loop.is_closed()


def test_a_deadlock_is_an_error_and_no_hang() -> None:
    """When nothing can ever happen again, running the loop raises and names the task that waits."""

    async def stuck() -> None:
        await asyncio.get_running_loop().create_task(asyncio.Event().wait(), name="the-stuck-one")

    with virtual_loop(patience=0.05) as loop:
        main = loop.create_task(stuck(), name="main")
        with pytest.raises(RuntimeError, match=r"deadlock.*main, the-stuck-one"):
            loop.run_until_complete(main)


def test_leaving_the_loop_cancels_what_still_runs() -> None:
    """The context closes the loop and lets a pending task clean up, without waiting for it."""
    cleaned: list[bool] = []

    async def sleeper() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            cleaned.append(True)

    async def start() -> None:
        tasks.append(asyncio.create_task(sleeper()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    with virtual_loop() as loop:
        loop.run_until_complete(start())
    assert cleaned == [True]
    assert tasks[0].cancelled()


def test_real_sockets_work_in_virtual_time() -> None:
    """A loop with no timers waits for a real socket; with a time limit, a prompt answer comes before the limit."""

    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"hello\n")
            async with asyncio.timeout(5):
                assert await reader.readline() == b"hello\n"
            writer.close()
            await writer.wait_closed()
        assert asyncio.get_running_loop().time() == 0.0

    with asyncio.Runner(loop_factory=lambda: virtual_loop(io_grace=0.5)) as runner:
        runner.run(main())


def test_threads_may_call_the_loop() -> None:
    """A job in an executor and a bare thread both reach a loop with nothing else to do, which doesn't spin then."""
    arrived = threading.Event()

    def in_the_background(loop: asyncio.AbstractEventLoop, done: asyncio.Event) -> None:
        arrived.wait(0.05)
        loop.call_soon_threadsafe(done.set)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        busy_before = time.thread_time()
        assert await loop.run_in_executor(None, lambda: arrived.wait(0.05)) is False
        done = asyncio.Event()
        thread = threading.Thread(target=in_the_background, args=(loop, done))
        thread.start()
        await done.wait()
        thread.join()
        assert time.thread_time() - busy_before < 0.05
        assert loop.time() == 0.0

    with asyncio.Runner(loop_factory=virtual_loop) as runner:
        runner.run(main())


def test_a_job_in_a_thread_comes_before_a_time_limit() -> None:
    """A job that takes less than the grace in real time beats any limit in virtual time."""

    async def main() -> None:
        async with asyncio.timeout(1):
            await asyncio.to_thread(threading.Event().wait, 0.05)
        assert asyncio.get_running_loop().time() == 0.0

    with asyncio.Runner(loop_factory=lambda: virtual_loop(io_grace=1.0)) as runner:
        runner.run(main())


def test_time_jumps_past_idle_io() -> None:
    """An open socket that stays silent doesn't stop virtual time."""
    with virtual_loop(io_grace=0.001) as loop, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        accepting = loop.create_task(loop.sock_accept(listener))
        loop.run_until_complete(asyncio.sleep(3600))
        accepting.cancel()
        assert loop.time() == 3600.0
    assert isinstance(loop, VirtualLoop)


def test_the_kit_imports_nothing_heavy() -> None:
    """Importing the kit and its clocks loads no test framework and no HTTP client."""
    code = (
        "import sys, keepa_tokens.testing, keepa_tokens.testing.clock;"
        "from keepa_tokens.testing import FakeKeepa, ManualClock, virtual_loop;"
        "print(sorted({'hypothesis', 'pytest', '_pytest', 'httpx', 'requests', 'aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
