"""`keepa-tokens demo`: shows the scenario as a picture or as lines, then as a table or a JSON document."""

from __future__ import annotations

import math
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from typing import Final, cast

import click

from .._door import new_id
from ..units import MICROSECONDS
from . import old_rule, shell
from .colours import BAD, BUSY, CARE, GOOD
from .demo import BUCKET, DEBT, REFILL_RATE, SECONDS, Fault, Scenario, Worker
from .view import Curve, Lane, Picture, Screen, fits
from .words import count, duration

LOW: Final = -100
HIGH: Final = 250
HEADROOM: Final = 50


def picture(scene: Scenario, real_seconds: float) -> Picture:
    """Return the scene as a picture. real_seconds: how long the run is to last."""
    fault, now = scene.fault, scene.now_us / MICROSECONDS
    box = [scene.story]
    if fault is None:
        left = math.ceil((SECONDS / 2 - now) / SECONDS * real_seconds)
        box.append(
            f"{f'In {left} s' if left > 0 else 'Any moment'} one large call takes the balance to {DEBT}, and the stored"
            " time of the last refill is lost. The old system took now for it, so nothing refilled; and below"
            f" {old_rule.THRESHOLD} tokens it didn't ask the server. It stood still for days."
        )
    else:
        box += [f"this library: {_projection(scene):>4}, {new_rule_says(scene, fault)}"]
        box += [f"the old rule: {scene.old_balance:>4}, {old_rule_says(scene, fault)}"]
    recovered = fault is not None and fault.recovered_after is not None
    return Picture(
        title="keepa-tokens demo",
        about=f"{REFILL_RATE} tokens a minute",
        aside=f"server clock {duration(now)} of {duration(SECONDS)}",
        curves=_curves(scene),
        low=LOW,
        high=-(-max([HIGH, *(truth for _, truth, _, _ in scene.history)]) // HEADROOM) * HEADROOM,
        beside_legend=f"refill {duration(scene.fake.refill_in):>4}",
        facts=_facts(scene),
        lanes=[_lane(worker, scene.now_us) for worker in scene.workers],
        box_title="recovered" if recovered else "ingesting" if fault is None else "timestamp lost",
        box=box,
        box_style=GOOD if recovered else "" if fault is None else CARE,
    )


def _projection(scene: Scenario) -> str:
    return "unknown" if scene.latest.projection is None else str(scene.latest.projection)


def _curves(scene: Scenario) -> list[Curve]:
    server = [(at, truth) for at, truth, _, _ in scene.history]
    projection = [(at, balance) for at, _, balance, _ in scene.history if balance is not None]
    old = [(at, balance) for at, _, _, balance in scene.history if balance is not None]
    return [
        Curve("server", server, GOOD, f"{scene.fake.balance:<4}", dash=(1, 1)),
        Curve("projection", projection, BUSY, f"{_projection(scene):<4}"),
        *([Curve("old rule", old, BAD, str(scene.old_balance), dash=(4, 4))] if old else []),
    ]


def _facts(scene: Scenario) -> list[str]:
    latest, worst = scene.latest, scene.meter.worst
    now = f"in flight {latest.in_flight:<4} apart {abs(latest.ahead):<4}"
    never = "a bound is broken" if scene.meter.broken else "never too high"
    asked = f"server refused {scene.fake.refused}  probes {scene.fake.token_calls}"
    return [
        f"{now} at worst {abs(worst.ahead)} of {worst.allowed} allowed  {never}",
        f"grants {scene.counts['grants']:<4}    tokens {scene.fake.spent:<4}   {asked}",
        f"waits {_waits(scene)}",
    ]


def _waits(scene: Scenario) -> str:
    return ", ".join(f"{times} {reason}" for reason, times in scene.waits.most_common()) or "none"


def _lane(worker: Worker, now_us: int) -> Lane:
    totals = f"{worker.calls:>3} calls {worker.spent:>4} tokens"
    if worker.wait is not None and worker.job is not None:
        reason, since, due = worker.wait
        part = (now_us - since) / max(1, due - since)
        words = f"waits for {worker.job.tokens}: {reason}"
        return Lane(worker.name, words, CARE, part, duration((due - now_us) / MICROSECONDS), totals)
    if worker.calling and worker.job is not None:
        return Lane(worker.name, f"calls for {worker.job.text}", BUSY, totals=totals)
    return Lane(worker.name, "stores what it got" if worker.calls else "starts", "dim", totals=totals)


def new_rule_says(scene: Scenario, fault: Fault) -> str:
    """Return what this library did after the fault."""
    asked = "" if fault.asked_after is None else f"server asked at {duration(fault.asked_after)}, "
    if fault.recovered_after is None:
        since = (scene.now_us - fault.at_us) / MICROSECONDS
        return f"{asked}a grant in {duration(fault.promised - since)}"
    return f"{asked}granted at {duration(fault.recovered_after)} (promised {duration(fault.promised)})"


def old_rule_says(scene: Scenario, fault: Fault) -> str:
    """Return what the old rule did after the fault, with the same requests."""
    refused = fault.verdicts[old_rule.Verdict.REFUSED]  # the only verdict without a time of the last refill
    still = duration((scene.now_us - fault.at_us) / MICROSECONDS)
    return f"unmoved for {still}, refused {count(refused, 'time')}, server never asked"


def summary(scene: Scenario) -> list[tuple[str, str]]:
    """Return the measurements of a whole run, each with its name."""
    fault, meter, worst = cast("Fault", scene.fault), scene.meter, scene.meter.worst
    allowed = f"{worst.allowed} allowed then ({worst.in_flight} in flight, {count(worst.steps, 'refill step')})"
    return [
        ("run", f"{duration(scene.now_us / MICROSECONDS)} of server time, {count(len(scene.workers), 'worker')}"),
        ("calls", f"{count(scene.counts['answers'], 'answer')}, {count(scene.fake.spent, 'token')}"),
        ("waits", _waits(scene)),
        ("refused", str(scene.fake.refused)),
        ("probes", str(scene.fake.token_calls)),
        ("compared", f"{meter.judged:,} times, {meter.quiet:,} of them with nothing in flight"),
        ("furthest apart", f"{count(abs(worst.ahead), 'token')}; {allowed}"),
        ("the fault", f"balance {DEBT}, the server's too; then the timestamp was lost"),
        ("this library", f"mended {fault.repaired}, {new_rule_says(scene, fault)}"),
        ("the old rule", f"at {scene.old_balance}, {old_rule_says(scene, fault)}"),
    ]


def document(scene: Scenario, seed: int) -> dict[str, object]:
    """Return a whole run as a JSON document. Times are seconds of the server's clock."""
    fault, meter, worst = cast("Fault", scene.fault), scene.meter, scene.meter.worst
    names = ("promised", "repaired", "asked_after", "recovered_after")
    return {
        "ok": not meter.broken,
        "broken": list(meter.broken.values()),
        "server_seconds": scene.now_us / MICROSECONDS,
        "workers": len(scene.workers),
        "seed": seed,
        "counts": {
            **scene.counts,
            "tokens": scene.fake.spent,
            "refused": scene.fake.refused,
            "probes": scene.fake.token_calls,
            "waits": scene.waits,
        },
        "samples": {"judged": meter.judged, "quiet": meter.quiet},
        "furthest_apart": asdict(worst) | {"apart": abs(worst.ahead), "allowed": worst.allowed},
        "fault": {
            "at": fault.at_us / MICROSECONDS,
            "balance": DEBT,
            **{name: getattr(fault, name) for name in names},
        },
        "old_rule": {
            "balance": scene.old_balance,
            "stood_still": (scene.now_us - fault.at_us) / MICROSECONDS,
            **{verdict.name.lower(): fault.verdicts[verdict] for verdict in old_rule.Verdict},
        },
    }


@shell.command(
    "see it work, without a key",
    examples="""
    keepa-tokens demo
    keepa-tokens demo --seconds 10 --plain
    keepa-tokens demo --json          at once, as a document
    keepa-tokens demo --redis URL     its bucket on a server of your own
    """,
    then="keepa-tokens simulate --help     the same question for your own plan and load",
)
@click.option(
    "--seconds", type=shell.Number(0, 3600), default=34, show_default=True, help="How long it takes, in real seconds."
)
@click.option("--workers", type=click.IntRange(1, 16), default=4, show_default=True, help="Workers that share the key.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides the calls that the workers make.")
@click.option("--plain", is_flag=True, help="Plain lines, in a terminal too.")
@click.option("--json", "as_json", is_flag=True, help="Only one JSON document, at once.")
@click.option(
    "--redis-url", "--redis", metavar="URL", help="Keep the bucket on this Redis or Valkey, under a key of its own."
)
@click.pass_context
def demo_command(
    ctx: click.Context, *, seconds: float, workers: int, seed: int, plain: bool, as_json: bool, redis_url: str | None
) -> None:
    """Watch several workers share one key of a fake Keepa server, in accelerated time.

    Half-way the demo repeats the fault of the system before this library: while the balance is -79, the stored time of
    the last refill is lost. All the while it compares the projected balance with the server's own. It ends with 0 if
    the two never differed by more than they may, else with 1.
    """
    with ExitStack() as ending:
        place = None
        if redis_url is not None:
            from .redis_place import RedisPlace  # noqa: PLC0415 - the client it needs is an extra

            place = RedisPlace.from_url(redis_url, prefix=f"keepa_tokens:demo:{new_id()}:")
            ending.callback(place.close)
            ending.callback(place.delete, BUCKET)
        scene = Scenario(workers, seed, place)
        if as_json:
            for _ in scene.play():
                pass
            shell.print_json(document(scene, seed))
        else:
            _show(scene, seconds, None if plain or not fits(sys.stdout) else Screen())
    ctx.exit(shell.FINDINGS if scene.meter.broken else shell.WELL)


def _show(scene: Scenario, seconds: float, screen: Screen | None) -> None:
    if screen is None:
        click.echo(
            f"{count(len(scene.workers), 'worker')} on one key of {REFILL_RATE} tokens a minute of a fake Keepa server"
        )
    started = time.monotonic()
    with screen or nullcontext():
        for at in scene.play():
            if screen is None:
                _print_news(scene)
            else:
                screen.show(picture(scene, seconds))
            time.sleep(max(0.0, started + at / SECONDS * seconds - time.monotonic()))
    if screen is None:
        _print_news(scene)
    click.echo()
    shell.print_table(summary(scene))
    for words in scene.meter.broken.values():
        shell.say(f"broken: {words}", f"bold {BAD}")
    if not scene.meter.broken:
        shell.say("Every bound held.", f"bold {GOOD}")


def _print_news(scene: Scenario) -> None:
    for line in scene.news:
        click.echo(line)
    scene.news.clear()
    sys.stdout.flush()
