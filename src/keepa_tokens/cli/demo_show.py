"""The demo as a picture, as a table of what was measured, and as a JSON document. Pure: a scene goes in."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from ..events import EventKind
from ..units import MICROSECONDS
from .demo_measure import Sample
from .demo_scene import Chapter, Row, Scene
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
    shared: dict[str, Any] | None


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
    recovered = fault is not None and fault.recovered_after is not None
    return Picture(
        title="keepa-tokens demo",
        about=f"{REFILL_RATE} tokens a minute",
        aside=f"server clock {duration(scene.now_us // MICROSECONDS)}  {settings.speed:g}x"
        f"  {scene.real_seconds:.0f} of {seconds:.0f} s",
        curves=_curves(scene, projection),
        low=LOW,
        high=-(-max([HIGH, *(truth for _, _, truth, _ in scene.history)]) // HEADROOM) * HEADROOM,
        beside_legend=f"refill {duration(scene.next_refill):>4}",
        facts=_facts(scene),
        lanes=[_lane(row, scene.now_us) for row in scene.rows],
        box_title="recovered" if recovered else scene.chapter,
        box=box,
        box_style="green" if recovered else "" if scene.chapter is Chapter.INGESTING else "yellow",
    )


def _curves(scene: Scene, projection: str) -> list[Curve]:
    span = max(scene.settings.seconds * scene.settings.speed * MICROSECONDS, scene.now_us, 1)

    def points(place: int) -> list[tuple[float, int]]:
        return [(moment[0] / span, value) for moment in scene.history if (value := moment[place]) is not None]

    truth = "" if scene.latest is None else f"{scene.latest.truth:<4}"
    curves = [
        Curve("server", points(2), "green", truth, dash=(1, 1)),
        Curve("projection", points(1), "cyan", f"{projection:<4}"),
    ]
    if scene.fault is not None:
        curves.append(Curve("old rule", points(3), "red", str(scene.old_balance()), dash=(4, 4)))
    return curves


def _facts(scene: Scene) -> list[str]:
    latest, meter, counts = scene.latest, scene.meter, scene.counts
    now = "" if latest is None else f"in flight {latest.in_flight:<4} apart {latest.apart:<4} "
    never = "a bound is broken" if meter.quiet and meter.broken() else "never too high" if meter.quiet else ""
    counted = f"grants {counts.grants}  tokens {counts.tokens}  waits {counts.waits_say()}"
    return [
        f"{now}at worst {meter.worst.apart} of {meter.worst.allowed} allowed  {never}",
        f"{counted}  server refused {counts.refused}  probes {counts.probes}",
    ]


def _lane(row: Row, now_us: int) -> Lane:
    totals = f"{row.calls:>3} calls {row.spent:>4} tokens"
    kind = None if row.latest is None else row.latest.kind
    if kind is EventKind.GRANTED:
        return Lane(row.name, f"calls for {row.job}", "cyan", totals=totals)
    if row.latest is None or kind is not EventKind.REFUSED:
        return Lane(row.name, f"stores {row.job}" if row.calls else "starts", "dim", totals=totals)
    words, due_us = f"waits for {row.wanted}: {row.latest.text}", row.due_us()
    if due_us is None:
        return Lane(row.name, words, "yellow", 0.0, "?", totals)
    part = (now_us - row.since_us) / max(1, due_us - row.since_us)
    return Lane(row.name, words, "yellow", part, duration((due_us - now_us) / MICROSECONDS), totals)


def summary(outcome: Outcome) -> list[tuple[str, str]]:
    """Return what was measured, each with its name."""
    scene, meter, shared = outcome.scene, outcome.scene.meter, outcome.shared
    settings, fault, quiet, counts, worst = scene.settings, scene.fault, meter.highest_quiet, scene.counts, meter.worst
    server_time, workers = duration(scene.now_us / MICROSECONDS), count(settings.workers, "worker")
    allowed = f"{worst.allowed} allowed then ({worst.in_flight} in flight, {count(worst.steps, 'refill step')})"
    lines = [
        ("run", f"{server_time} of server time in {scene.real_seconds:.0f} s, {workers}, seed {settings.seed}"),
        ("calls", f"{count(counts.answers, 'answer')}, {count(counts.tokens, 'token')}"),
        ("waits", counts.waits_say()),
        ("refused by the server", str(counts.refused)),
        ("probes of the server", str(counts.probes)),
        ("compared", f"{meter.judged:,} times, {meter.quiet:,} of them with nothing in flight"),
        ("furthest apart", f"{count(worst.apart, 'token')}; {allowed}"),
        ("above the server", "never with nothing in flight" if quiet and quiet.ahead <= 0 else "yes"),
    ]
    if shared is not None:
        ids = ", ".join(map(str, shared["processes"]["workers"]))
        lines.insert(1, ("shared", f"{shared['url']}, key {shared['key']}, since deleted; processes {ids}"))
    if meter.slow:
        late = duration(meter.slowest_us / MICROSECONDS)
        lines.append(("late answers", f"the machine stalled: one took {late} of server time; a lower --speed helps"))
    if counts.failed:
        lines.append(("calls without answer", str(counts.failed)))
    if fault is not None:
        lines += [
            ("the fault", f"balance {fault.balance}, the server's {fault.truth}; then the timestamp was lost"),
            ("this library", f"mended {fault.repaired}, {scene.new_rule_says()}"),
            ("the old rule", f"at {scene.old_balance()}, {scene.old_rule_says()}"),
        ]
    return lines


def document(outcome: Outcome) -> dict[str, object]:
    """Return the run for machines. Times are seconds of the server's clock unless they say real."""
    scene, meter = outcome.scene, outcome.scene.meter
    settings, fault, quiet = scene.settings, scene.fault, meter.highest_quiet
    told: dict[str, object] = {
        "ok": not outcome.broken,
        "broken": list(outcome.broken),
        "real_seconds": round(scene.real_seconds, 3),
        "server_seconds": scene.now_us / MICROSECONDS,
        "speed": settings.speed,
        "workers": settings.workers,
        "seed": settings.seed,
        "redis": outcome.shared,
        "counts": {each.name: getattr(scene.counts, each.name) for each in fields(scene.counts)},
        "samples": {name: getattr(meter, name) for name in ("judged", "quiet", "unknown", "torn", "slow")},
        "bounds": {
            "furthest_apart": _sample(meter.worst),
            "nearest_to_bound": meter.worst_excess and _sample(meter.worst_excess),
            "highest_above_truth_with_nothing_in_flight": quiet and quiet.ahead,
            "slowest_answer": meter.slowest_us / MICROSECONDS,
        },
        "fault": None,
        "old_rule": None,
    }
    if fault is not None:
        names = ("truth", "balance", "repaired", "promised", "recovered_after", "asked_after")
        told["fault"] = {"at": fault.at_us / MICROSECONDS, **{name: getattr(fault, name) for name in names}}
        still = {"balance": scene.old_balance(), "stood_still": fault.since(scene.now_us)}
        told["old_rule"] = still | {verdict.name.lower(): fault.verdicts[verdict] for verdict in Verdict}
    return told


def _sample(sample: Sample) -> dict[str, object]:
    told: dict[str, object] = asdict(sample)
    return told | {"apart": sample.apart, "allowed": sample.allowed}
