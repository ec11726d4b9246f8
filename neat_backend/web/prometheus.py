"""GET /metrics for Prometheus.

What a process counts itself (events, acknowledgement times) is added up over gunicorn's workers
through prometheus-client's multi-process files, where PROMETHEUS_MULTIPROC_DIR names a folder for
them (`neat-backend serve` does). What the worker measures comes from the data folder that it shares with
the web, everything else from the database, at every scrape.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from prometheus_client.values import MutexValue, ValueClass

from neat_backend.labelstudio.events import KNOWN_ACTIONS
from neat_backend.service.service import Service
from neat_backend.store import projects
from neat_backend.store.measures import PUBLISH, RERANK, SERVE, Timings
from neat_backend.store.prequential import PREDICTORS, SHOWN_FROM

TIMINGS = {
    RERANK: "From labels that are applied to the new order of the head",
    PUBLISH: "To publish an order: predictions imported and counted, version switched",
    SERVE: "From the arrival of a label's webhook to the order that contains it being served",
}


class Metrics:
    """The counters of one app."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._stored = Stored(service)
        self._events = Counter(
            "neat_events",
            "Webhooks, by action and outcome: accepted, ignored, rejected (the sender's fault), failed (ours)",
            ["action", "outcome"],
            registry=self._registry,
        )
        self._acknowledge = Histogram(
            "neat_acknowledge_seconds",
            "From a webhook's arrival to its acknowledgement; Label Studio gives up after 1 s",
            buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self._registry,
        )

    def webhook(self, action: str, outcome: str, seconds: float) -> None:
        """Count one webhook. outcome: accepted, ignored, rejected or failed."""
        self._events.labels(action if action in KNOWN_ACTIONS else "other", outcome).inc()
        self._acknowledge.observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        counted = self._registry
        if ValueClass is not MutexValue:  # multi-process: the files of every worker, this one's included
            counted = CollectorRegistry()
            MultiProcessCollector(counted)
        stored = CollectorRegistry()
        stored.register(self._stored)
        return generate_latest(counted) + generate_latest(stored)


class Stored(Collector):
    """Metrics from the database, read at each scrape."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        return []  # so that registering reads nothing

    def collect(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily("neat_inbox_events", "Events that wait to be applied", labels=["project"])
        age = GaugeMetricFamily("neat_inbox_oldest_seconds", "Age of the oldest waiting event", labels=["project"])
        aside = GaugeMetricFamily("neat_inbox_set_aside", "Events that failed and were set aside", labels=["project"])
        tasks = GaugeMetricFamily("neat_tasks", "Tasks, by image: pending, ready, failed", labels=["project", "image"])
        labelled = GaugeMetricFamily(
            "neat_labelled_tasks", "Labelled tasks, by label: known, invalid", labels=["project", "label"]
        )
        without = GaugeMetricFamily(
            "neat_answered_without_label",
            "Answered tasks that have no label, by reason: not in config, several, empty, unreadable, skipped",
            labels=["project", "reason"],
        )
        behind = GaugeMetricFamily(
            "neat_publish_behind_events",
            "Events received that the served order does not contain yet",
            labels=["project"],
        )
        accuracy = GaugeMetricFamily(
            "neat_classifier_accuracy",
            "Share of the last 100 labels of known classes that it predicted before learning them, from the twentieth "
            "label on; by classifier: resnet18, linear, vote",
            labels=["project", "classifier"],
        )
        prefilled = GaugeMetricFamily(
            "neat_prefilled_answers",
            "First answers to published tasks, by outcome: empty (nothing was filled in), kept, changed",
            labels=["project", "outcome"],
        )
        rounds = GaugeMetricFamily(
            "neat_rounds", "Query rounds, by state: running, done, failed", labels=["project", "state"]
        )
        training = GaugeMetricFamily("neat_training_running", "1 while a classifier trains", labels=["project"])
        read = GaugeMetricFamily(
            "neat_synced_timestamp_seconds", "When the project was last read as a whole", labels=["project"]
        )
        owned = GaugeMetricFamily("neat_worker_owned", "1 while a worker holds the project's lease", labels=["project"])
        done = GaugeMetricFamily(
            "neat_progress_done", "Tasks or images done of the reading or encoding in progress", labels=["project"]
        )
        total = GaugeMetricFamily(
            "neat_progress_total",
            "All tasks or images of the reading or encoding in progress; 0 = none",
            labels=["project"],
        )
        compared = GaugeMetricFamily(
            "neat_reconciled_timestamp_seconds",
            "When the project was last found, or made, equal to Label Studio's data; none while it is disconnected",
            labels=["project"],
        )
        found_late = CounterMetricFamily(
            "neat_reconcile_found",
            "Tasks corrected by a comparison, as no webhook had reported the change; by what: labels, images, deleted",
            labels=["project", "what"],
        )
        timings = {
            name: HistogramMetricFamily(f"neat_{name}_seconds", words, labels=["project"])
            for name, words in TIMINGS.items()
        }
        states: dict[str, int] = {}
        for status in self._service.projects():
            project = [str(status["id"])]
            states[status["state"]] = states.get(status["state"], 0) + 1
            depth.add_metric(project, status["queue"]["count"])
            age.add_metric(project, status["queue"]["oldest_seconds"])
            aside.add_metric(project, status["queue"]["set_aside"])
            if status["state"] != projects.DISCONNECTED:
                behind.add_metric(project, max(0, status["received_through"] - status["published_event"]))
            for image in ("pending", "ready", "failed"):
                tasks.add_metric([*project, image], status["tasks"][image])
            for label in ("known", "invalid"):
                labelled.add_metric([*project, label], status["labelled"][label])
            unlabelled = status["without_label"]["reasons"]
            for reason in {one["reason"] for one in unlabelled}:
                count = sum(one["tasks"] for one in unlabelled if one["reason"] == reason)
                without.add_metric([*project, reason], count)
            for name in PREDICTORS:
                tested = status["classifier"][name]
                if tested["of"] >= SHOWN_FROM:
                    accuracy.add_metric([*project, name], tested["right"] / tested["of"])
            filled = status["prefilled"]
            prefilled.add_metric([*project, "empty"], filled["answered"] - filled["filled"])
            prefilled.add_metric([*project, "kept"], filled["kept"])
            prefilled.add_metric([*project, "changed"], filled["filled"] - filled["kept"])
            found = [one["state"] for one in status["rounds"]]
            for state in ("running", "done", "failed"):
                rounds.add_metric([*project, state], found.count(state))
            training.add_metric(project, "running" in found)
            if status["synced_at"]:
                read.add_metric(project, datetime.fromisoformat(status["synced_at"]).timestamp())
            with self._service.database.read() as conn:
                owned.add_metric(project, projects.lease_owner(conn, status["id"]) is not None)
            done.add_metric(project, status["progress"]["done"])
            total.add_metric(project, status["progress"]["total"])
            measured = self._service.measured(status["id"])
            if status["reconciled_at"] and status["state"] != projects.DISCONNECTED:
                compared.add_metric(project, datetime.fromisoformat(status["reconciled_at"]).timestamp())
            for what, count in measured.found.items():
                found_late.add_metric([*project, what], count)
            for name, histogram in measured.histograms.items():
                timings[name].add_metric(project, *_buckets(histogram))
        by_state = GaugeMetricFamily("neat_projects", "Connected projects, by state", labels=["state"])
        for state, count in sorted(states.items()):
            by_state.add_metric([state], count)
        yield from (by_state, depth, age, aside, behind, tasks, labelled, without, accuracy, prefilled)
        yield from (rounds, training, read, owned, done, total)
        yield from (compared, found_late, *timings.values())


def _buckets(histogram: Timings) -> tuple[list[tuple[str, float]], float]:
    """A histogram in Prometheus' form: cumulative counts by bound, and the sum."""
    bounds = [*(floatToGoString(bound) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, histogram.counts.cumsum().tolist(), strict=True)), histogram.sum_seconds
