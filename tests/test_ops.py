"""The alert rules and the dashboard in `ops/`: Prometheus' own tool runs the rules on what a worker tells.

A story is an hour or so of a bucket, scraped every minute. Each fault's story fires its alert, a healthy one none.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from prometheus_client import CollectorRegistry

from keepa_tokens import BucketState, KeepaSync, NotEnoughTokens, StorageUnavailable, TokenBucket, keepa_quota
from keepa_tokens.keepa.sync import Call
from keepa_tokens.metrics import BucketCollector, PrometheusListener
from keepa_tokens.testing import FakeKeepa, ManualClock
from tests import stories
from tests.helpers import Noted
from tests.stories import each_story, told_steps

OPS: Final = Path(__file__).resolve().parents[1] / "ops"
RULES: Final = OPS / "alerts.yml"
DASHBOARD: Final = json.loads((OPS / "dashboard.json").read_text("utf-8"))
PROMTOOL: Final = Path("/usr/bin/promtool")
MOST_ASINS: Final = 100
WITH_OFFERS: Final = 6
TICK: Final = 5
SCRAPED_EVERY: Final = 60
KEY: Final = "keepa-1f2e"


def promtool(*arguments: str | Path) -> str:
    """Run Prometheus' tool and return what it says; what it finds wrong is a failure."""
    assert PROMTOOL.exists(), f"no {PROMTOOL}: apt-get install prometheus, or leave it out by `make test`"
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Story:
    """A queue's worker that calls a fake server, and what was scraped of it."""

    def __init__(self) -> None:
        self.clock = ManualClock(1_780_000_000.0)
        self.fake = FakeKeepa(initial=100, refill_rate=5, clock=self.clock)
        self.storage = Noted()
        self.registry = CollectorRegistry()
        bucket = TokenBucket(
            keepa_quota(5), key=KEY, storage=self.storage, clock=self.clock, listener=PrometheusListener(self.registry)
        )
        BucketCollector(bucket, registry=self.registry)
        self.sync = KeepaSync(bucket, probe=self.fake.probe)
        self.series: dict[str, dict[int, float]] = defaultdict(dict)
        self.costs = [3, 1, 12, 6]
        self.calls = 0
        self.at = 0

    def call(self, settle: Callable[[Call], None] | None = None) -> None:
        """Make the next call if the bucket lets it; the task keeps its place in line until then."""
        cost = self.costs[self.calls % len(self.costs)]
        try:
            with self.sync.try_request(cost, place=f"task-{self.calls}") as call:
                answer = self.fake.request("/product", asked(cost))
                if settle is None:
                    call.settle(answer.content, status=answer.status)
                else:
                    settle(call)
        except (NotEnoughTokens, StorageUnavailable):
            return
        self.calls += 1

    def goes_on(self, minutes: int, *, works: bool = True) -> None:
        """Let time pass: calls every few seconds, a scrape every minute."""
        for _ in range(minutes * 60 // TICK):
            if works:
                self.call()
            if self.at % SCRAPED_EVERY == 0:
                self.scrape()
            self.clock.advance(TICK)
            self.at += TICK

    def scrape(self) -> None:
        for family in self.registry.collect():
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                self.series[f"{sample.name}{{{labels}}}"][self.at // SCRAPED_EVERY] = sample.value

    def alerts(self, folder: Path) -> set[str]:
        """Return the names of the alerts that ever fire, by Prometheus' own reckoning, looked at every minute."""
        minutes = self.at // SCRAPED_EVERY
        series = [{"series": name, "values": self._values(name, minutes)} for name in self.series]
        silent = [
            {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []}
            for name in alert_names()
            for minute in range(minutes)
        ]
        test = {"interval": "1m", "input_series": series, "alert_rule_test": silent}
        story = folder / "story.yml"
        story.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
        command: list[str | Path] = [PROMTOOL, "test", "rules", story]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        told = done.stdout + done.stderr
        fired = set(re.findall(r"alertname: ?(\w+)", told))
        assert fired or done.returncode == 0, told
        return fired

    def _values(self, name: str, minutes: int) -> str:
        seen = self.series[name]
        return " ".join(
            "_" if not math.isfinite(seen.get(minute, math.nan)) else f"{seen[minute]:.6f}" for minute in range(minutes)
        )


def asked(cost: int) -> dict[str, str]:
    """Return what to ask for to be charged so much."""
    few = cost <= MOST_ASINS
    return {"asin": ",".join(map(str, range(cost if few else cost // WITH_OFFERS)))} | ({} if few else {"offers": "10"})


def alert_names() -> list[str]:
    return re.findall(r"- alert: (\w+)", RULES.read_text("utf-8"))


# --- the stories


STORIES: Final = """
more work than tokens, a debt, a quiet half hour, and work again: -
    works 60; costs 150; works 60; costs 3 1 12 6; rests 30; works 30
a debt, and a server that can't be asked: NoReading ProbesFail
    works 5; costs 300; works 20; down; works 40
somebody takes what is left right before a call: ServerRefuses
    works 40; costs 2; rests 4; all_but -5; works 20
another program spends a little every few minutes, never so much that a call is refused: SomebodyElseSpends
    costs 1; rests 30; works_beside 12
a field is lost: Repaired
    works 20; lose refilled_at; works 10
a debt, and a server that can't be asked twice in a row: ProbesFail
    costs 1; works 5; costs 170; works 1; costs 1; down; works 50
a worker that stands in line dies, and the tokens come sooner than it was told: LineStands
    costs 300 12; works 10; outside -500; refresh; rests 10
the storage doesn't answer for a while: StorageAway
    works 10; away 1; works 5; away 0; works 10
a program drops a call: LeftUnsettled
    works 20; rests 30; drop; rests 20
"""
"""Each with the alerts that fire: for how many minutes there are calls or none, what they cost, what goes wrong."""


def goes(story: Story, text: str) -> None:
    fake, sync = story.fake, story.sync

    def leave(tokens: int) -> None:
        fake.spend_outside(fake.balance - tokens)

    def works_beside(times: int) -> None:
        for _ in range(times):
            story.goes_on(4)
            leave(100)
            sync.refresh()
            fake.spend_outside(10)

    def lose(name: str) -> None:
        state = story.storage.dump(KEY)
        assert state is not None
        left = {each: text for each, text in state.to_fields().items() if each != name}
        story.storage.load(KEY, BucketState.from_fields(left))

    def drop() -> None:
        with pytest.warns(ResourceWarning, match="without settle"):
            story.call(lambda _: None)

    verbs: dict[str, Callable[..., object]] = {
        "works": story.goes_on,
        "rests": lambda minutes: story.goes_on(minutes, works=False),
        "costs": lambda *costs: setattr(story, "costs", list(costs)),
        "down": lambda: setattr(fake, "token_down", True),
        "away": lambda is_away: setattr(story.storage, "away", bool(is_away)),
        "outside": fake.spend_outside,
        "all_but": leave,
        "refresh": sync.refresh,
        "works_beside": works_beside,
        "lose": lose,
        "drop": drop,
    }
    for _, verb, words, _ in told_steps(text):
        verbs[verb](*words)


@pytest.mark.deep
@each_story(STORIES)
def test_an_alert_fires_where_its_fault_is_and_is_silent_elsewhere(story: stories.Story, tmp_path: Path) -> None:
    """Of a story's scrapes Prometheus fires the alerts of its fault, and no other."""
    told = Story()
    goes(told, story.text)
    assert {name.removeprefix("KeepaTokens") for name in told.alerts(tmp_path)} == set(story.bucket.strip("-").split())


def test_every_alert_has_a_story() -> None:
    """There is no alert that is never seen to fire."""
    told = " ".join(re.findall(r"^\S.*: ([\w ]+)$", STORIES, re.MULTILINE))
    assert {name.removeprefix("KeepaTokens") for name in alert_names()} == set(told.split())


@pytest.mark.deep
def test_prometheus_can_read_the_rules_and_each_query_of_the_dashboard(tmp_path: Path) -> None:
    """The rules pass Prometheus' check, and so do the dashboard's queries as rules."""
    assert f"SUCCESS: {len(alert_names())} rules found" in promtool("check", "rules", RULES)
    filled = [each.replace("$__rate_interval", "5m").replace("$bucket", ".*") for each in queries()]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(filled)]
    page = tmp_path / "panels.yml"
    page.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", page)


# --- names


def queries() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def samples() -> set[str]:
    registry = CollectorRegistry()
    PrometheusListener(registry)
    BucketCollector(registry=registry)
    ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
    return {family.name + end for family in registry.collect() for end in ends[family.type]}


def unknown(text: str) -> set[str]:
    return set(re.findall(r"\bkeepa_tokens_\w+", text)) - samples()


def test_every_metric_that_is_named_exists() -> None:
    """Rules, dashboard and the page that shows them name only metrics that there are; one that isn't is noticed."""
    rules = re.sub(r"name: keepa_tokens\n", "", RULES.read_text("utf-8"))
    page = (OPS.parent / "docs/howto/watch.md").read_text("utf-8")
    asked = "\n".join([*queries(), *(each["query"]["query"] for each in DASHBOARD["templating"]["list"][1:])])
    for text in (rules, asked, page):
        assert unknown(text) == set()
        assert "keepa_tokens_" in text
    assert unknown(rules.replace("repairs_total", "repair_total")) == {"keepa_tokens_repair_total"}


def test_the_dashboard_is_whole() -> None:
    """Each panel has a number, a title, a description and a place of its own."""
    panels = DASHBOARD["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len({panel["id"] for panel in panels}) == len(set(places)) == len(panels)
    assert all(panel["title"] and panel["description"] and panel["targets"] for panel in panels)
