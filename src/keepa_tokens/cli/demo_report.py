"""What the demo leaves behind: a table for people, or one JSON document for machines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .demo_words import count, duration, new_rule, old_rule, waits

if TYPE_CHECKING:
    from .demo import Outcome
    from .demo_crew import Shared
    from .demo_measure import Sample

WIDTH = 96


def summary(outcome: Outcome, out: TextIO) -> None:
    """Print the summary table; in a terminal with colour, unless that is unwanted."""
    console = (
        Console(file=out) if out.isatty() else Console(file=out, color_system=None, force_terminal=False, width=WIDTH)
    )
    table = Table(show_header=False)
    table.add_column(style="dim" if console.color_system else "", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(outcome):
        table.add_row(name, Text(value))
    console.print(table)
    if outcome.broken:
        for words in outcome.broken:
            console.print(Text(f"broken: {words}", style="bold red"))
    else:
        console.print(Text("Every bound held.", style="bold green"))


def _lines(outcome: Outcome) -> list[tuple[str, str]]:
    scene, meter = outcome.scene, outcome.scene.meter
    settings = scene.settings
    server_time, workers = duration(scene.now_us / 1_000_000), count(settings.workers, "worker")
    quiet = meter.highest_quiet
    shared = outcome.shared
    lines = [
        (
            "run",
            f"{server_time} of server time in {scene.real_seconds:.0f} s, {workers}, seed {settings.seed}",
        ),
        ("calls", f"{count(scene.answers, 'answer')}, {count(scene.spent, 'token')}"),
        ("waits", waits(scene)),
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
        late = duration(meter.slowest_us / 1_000_000)
        lines.append(("late answers", f"the machine stalled: one took {late} of server time; a lower --speed helps"))
    if scene.failed:
        lines.append(("calls without answer", str(scene.failed)))
    if scene.fault is not None:
        fault = scene.fault
        lines += [
            ("the fault", f"balance {fault.balance}, the server's {fault.truth}; then the timestamp was lost"),
            ("this library", f"mended {fault.repaired}, {new_rule(scene)}"),
            ("the old rule", f"at {scene.old_balance()}, {old_rule(scene)}"),
        ]
    return lines


def _apart(sample: Sample) -> str:
    step = count(sample.steps, "refill step")
    return f"{count(sample.apart, 'token')}; {sample.allowed} allowed then ({sample.in_flight} in flight, {step})"


def document(outcome: Outcome) -> str:
    """Return the run as a JSON document. Times are seconds of the server's clock unless they say real."""
    scene, meter = outcome.scene, outcome.scene.meter
    settings, fault, quiet, tightest = scene.settings, scene.fault, meter.highest_quiet, meter.worst_excess
    content: dict[str, object] = {
        "ok": not outcome.broken,
        "broken": list(outcome.broken),
        "real_seconds": round(scene.real_seconds, 3),
        "server_seconds": round(scene.now_us / 1_000_000, 3),
        "speed": settings.speed,
        "workers": settings.workers,
        "seed": settings.seed,
        "redis": None if outcome.shared is None else _shared(outcome.shared),
        "counts": {
            "grants": scene.grants,
            "answers": scene.answers,
            "tokens": scene.spent,
            "waits": dict(scene.waits),
            "refused": scene.refused,
            "probes": scene.probes,
            "failed": scene.failed,
        },
        "samples": {
            "judged": meter.judged,
            "quiet": meter.quiet,
            "unknown": meter.unknown,
            "torn": meter.torn,
            "slow": meter.slow,
        },
        "bounds": {
            "furthest_apart": _sample(meter.worst),
            "nearest_to_bound": None if tightest is None else _sample(tightest),
            "highest_above_truth_with_nothing_in_flight": None if quiet is None else quiet.ahead,
            "slowest_answer": round(meter.slowest_us / 1_000_000, 3),
        },
        "fault": None
        if fault is None
        else {
            "at": round(fault.at_us / 1_000_000, 3),
            "truth": fault.truth,
            "balance": fault.balance,
            "repaired": fault.repaired,
            "promised": fault.promised,
            "recovered_after": fault.took,
            "asked_after": fault.asked_after,
        },
        "old_rule": None
        if fault is None
        else {
            "balance": scene.old_balance(),
            "refused": fault.old_refused,
            "granted": fault.old_granted,
            "asked": fault.old_asked,
            "stood_still": round((scene.now_us - fault.at_us) / 1_000_000, 3),
        },
    }
    return json.dumps(content, indent=2)


def _shared(shared: Shared) -> dict[str, object]:
    processes = {"demo": shared.demo, "workers": list(shared.workers)}
    return {"url": shared.redis, "key": shared.key, "processes": processes}


def _sample(sample: Sample) -> dict[str, int | float | None]:
    return {
        "at": round(sample.at_us / 1_000_000, 3),
        "projection": sample.projection,
        "truth": sample.truth,
        "apart": sample.apart,
        "in_flight": sample.in_flight,
        "steps": sample.steps,
        "allowed": sample.allowed,
    }
