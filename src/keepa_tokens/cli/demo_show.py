"""The demo as a picture, as a table of what was measured, and as a JSON document. Pure: a scene goes in."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from ..units import MICROSECONDS
from .demo_crew import Shared
from .demo_measure import Sample
from .demo_scene import Chapter, Doing, Row, Scene
from .demo_worker import REFILL_RATE
from .old_rule import Verdict
from .view import Curve, Lane, Picture
from .words import count, duration

LOW: Final = -100
HIGH: Final = 250
HEADROOM: Final = 50


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the run went. broken: in words, what did not hold. shared: where processes shared the bucket, if they did."""

    scene: Scene
    broken: tuple[str, ...]
    shared: Shared | None


def picture(scene: Scene) -> Picture:
    """Return the scene as a picture."""
    settings, latest, fault = scene.settings, scene.latest, scene.fault
    seconds = max(settings.seconds, scene.real_seconds)
    projection = "unknown" if latest is None or latest.projection is None else str(latest.projection)
    box = [scene.story()]
    if fault is None:
        box.append(scene.prologue())
    else:
        box += [
            f"at the fault: server {fault.truth}, stored balance {fault.balance}, time of the last refill: lost",
            f"this library: {projection:>4}, {scene.new_rule_says()}",
            f"the old rule: {scene.old_balance():>4}, {scene.old_rule_says()}",
        ]
    recovered = fault is not None and fault.took is not None
    return Picture(
        title="keepa-tokens demo",
        about=f"{REFILL_RATE} tokens a minute",
        aside=f"server clock {duration(scene.now_us // MICROSECONDS)}  {settings.speed:g}x"
        f"  {scene.real_seconds:.0f} of {seconds:.0f} s",
        curves=_curves(scene, projection),
        low=LOW,
        high=-(-max([HIGH, *(moment.truth for moment in scene.history)]) // HEADROOM) * HEADROOM,
        beside_legend=f"refill {duration(scene.next_refill):>4}",
        facts=_facts(scene),
        lanes=[_lane(row, scene.now_us) for row in scene.rows],
        box_title="recovered" if recovered else scene.chapter,
        box=box,
        box_style="green" if recovered else "" if scene.chapter is Chapter.INGESTING else "yellow",
    )


def _curves(scene: Scene, projection: str) -> list[Curve]:
    span = max(scene.settings.seconds * scene.settings.speed * MICROSECONDS, scene.now_us, 1)
    points = [(moment.at_us / span, moment) for moment in scene.history]
    curves = [
        Curve(
            "server",
            [(x, moment.truth) for x, moment in points],
            "green",
            "" if scene.latest is None else f"{scene.latest.truth:<4}",
            dash=(1, 1),
        ),
        Curve(
            "projection",
            [(x, moment.projection) for x, moment in points if moment.projection is not None],
            "cyan",
            f"{projection:<4}",
        ),
    ]
    if scene.fault is not None:
        old = [(x, moment.old) for x, moment in points if moment.old is not None]
        curves.append(Curve("old rule", old, "red", str(scene.old_balance()), dash=(4, 4)))
    return curves


def _facts(scene: Scene) -> list[str]:
    latest, meter = scene.latest, scene.meter
    now = "" if latest is None else f"in flight {latest.in_flight:<4} apart {latest.apart:<4} "
    never = "a bound is broken" if meter.quiet and meter.broken() else "never too high" if meter.quiet else ""
    counted = f"grants {scene.grants}  tokens {scene.spent}  waits {scene.waits_say()}"
    return [
        f"{now}at worst {meter.worst.apart} of {meter.worst.allowed} allowed  {never}",
        f"{counted}  server refused {scene.refused}  probes {scene.probes}",
    ]


def _lane(row: Row, now_us: int) -> Lane:
    totals = f"{row.calls:>3} calls {row.spent:>4} tokens"
    if row.doing is Doing.WAITING:
        words = f"waits for {row.wanted}: {row.reason}"
        if row.due_us is None:
            return Lane(row.name, words, "yellow", 0.0, "?", totals)
        part = (now_us - row.since_us) / max(1, row.due_us - row.since_us)
        return Lane(row.name, words, "yellow", part, duration((row.due_us - now_us) / MICROSECONDS), totals)
    if row.doing is Doing.CALLING:
        return Lane(row.name, f"calls for {row.job}", "cyan", totals=totals)
    return Lane(row.name, f"stores {row.job}" if row.calls else "starts", "dim", totals=totals)


def summary(outcome: Outcome) -> list[tuple[str, str]]:
    """Return what was measured, each with its name."""
    scene, meter, shared = outcome.scene, outcome.scene.meter, outcome.shared
    settings, fault, quiet = scene.settings, scene.fault, meter.highest_quiet
    server_time, workers = duration(scene.now_us / MICROSECONDS), count(settings.workers, "worker")
    lines = [
        ("run", f"{server_time} of server time in {scene.real_seconds:.0f} s, {workers}, seed {settings.seed}"),
        ("calls", f"{count(scene.answers, 'answer')}, {count(scene.spent, 'token')}"),
        ("waits", scene.waits_say()),
        ("refused by the server", str(scene.refused)),
        ("probes of the server", str(scene.probes)),
        ("compared", f"{meter.judged:,} times, {meter.quiet:,} of them with nothing in flight"),
        ("furthest apart", _apart(meter.worst)),
        ("above the server", "never with nothing in flight" if quiet and quiet.ahead <= 0 else "yes"),
    ]
    if shared is not None:
        ids = ", ".join(map(str, shared.workers))
        lines.insert(1, ("shared", f"{shared.redis}, key {shared.key}, since deleted; processes {ids}"))
    if meter.slow:
        late = duration(meter.slowest_us / MICROSECONDS)
        lines.append(("late answers", f"the machine stalled: one took {late} of server time; a lower --speed helps"))
    if scene.failed:
        lines.append(("calls without answer", str(scene.failed)))
    if fault is not None:
        lines += [
            ("the fault", f"balance {fault.balance}, the server's {fault.truth}; then the timestamp was lost"),
            ("this library", f"mended {fault.repaired}, {scene.new_rule_says()}"),
            ("the old rule", f"at {scene.old_balance()}, {scene.old_rule_says()}"),
        ]
    return lines


def _apart(sample: Sample) -> str:
    step = count(sample.steps, "refill step")
    return f"{count(sample.apart, 'token')}; {sample.allowed} allowed then ({sample.in_flight} in flight, {step})"


def document(outcome: Outcome) -> dict[str, object]:
    """Return the run for machines. Times are seconds of the server's clock unless they say real."""
    scene, meter, shared = outcome.scene, outcome.scene.meter, outcome.shared
    settings, fault, quiet, tightest = scene.settings, scene.fault, meter.highest_quiet, meter.worst_excess
    return {
        "ok": not outcome.broken,
        "broken": list(outcome.broken),
        "real_seconds": round(scene.real_seconds, 3),
        "server_seconds": round(scene.now_us / MICROSECONDS, 3),
        "speed": settings.speed,
        "workers": settings.workers,
        "seed": settings.seed,
        "redis": shared
        and {
            "url": shared.redis,
            "key": shared.key,
            "processes": {"demo": shared.demo, "workers": list(shared.workers)},
        },
        "counts": {
            "grants": scene.grants,
            "answers": scene.answers,
            "tokens": scene.spent,
            "waits": dict(scene.waits),
            "refused": scene.refused,
            "probes": scene.probes,
            "failed": scene.failed,
        },
        "samples": {name: getattr(meter, name) for name in ("judged", "quiet", "unknown", "torn", "slow")},
        "bounds": {
            "furthest_apart": _sample(meter.worst),
            "nearest_to_bound": tightest and _sample(tightest),
            "highest_above_truth_with_nothing_in_flight": quiet and quiet.ahead,
            "slowest_answer": round(meter.slowest_us / MICROSECONDS, 3),
        },
        "fault": fault
        and {
            "at": round(fault.at_us / MICROSECONDS, 3),
            "truth": fault.truth,
            "balance": fault.balance,
            "repaired": fault.repaired,
            "promised": fault.promised,
            "recovered_after": fault.took,
            "asked_after": fault.asked_after,
        },
        "old_rule": fault
        and {
            "balance": scene.old_balance(),
            "refused": fault.verdicts[Verdict.REFUSED],
            "granted": fault.verdicts[Verdict.GRANTED],
            "asked": fault.verdicts[Verdict.ASKED],
            "stood_still": round(fault.since(scene.now_us), 3),
        },
    }


def _sample(sample: Sample) -> dict[str, object]:
    return {**asdict(sample), "at_us": sample.at_us, "apart": sample.apart, "allowed": sample.allowed}
