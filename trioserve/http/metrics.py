"""GET /metrics: everything that is counted, in the text formats of Prometheus and OpenMetrics.

Nothing is kept here. A scrape reads the engine's meter and the counts of HTTP requests, so that the work of it is done
when someone asks and not for every token. Names are those that vLLM's dashboards query; what vLLM has no name for is
called ``trioserve:``.
"""

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

import trioserve
from trioserve.attach.wire import HttpCounts, total
from trioserve.core.sequence import FinishReason
from trioserve.core.step import WorkerReady
from trioserve.engine.engine import Engine, EngineStatistics
from trioserve.engine.lifecycle import Lifecycle, ServerState
from trioserve.engine.meter import REQUEST_S, Histogram, Meter
from trioserve.http.traffic import Traffic
from trioserve.settings import Settings

_OPENMETRICS: Final = "application/openmetrics-text"
_PLAIN: Final = frozenset({"text/plain", "text/*", "*/*"})

_ALIKE: Final = """
num_requests_running num_requests_waiting prompt_tokens generation_tokens time_to_first_token_seconds
e2e_request_latency_seconds request_queue_time_seconds request_prefill_time_seconds request_decode_time_seconds
request_inference_time_seconds request_prompt_tokens request_generation_tokens request_params_max_tokens request_success
""".split()
"""What vLLM and FastDeploy call the same."""
_FASTDEPLOY: Final[Mapping[str, str]] = {
    **{f"vllm:{name}": f"fastdeploy:{name}" for name in _ALIKE},
    "vllm:kv_cache_usage_perc": "fastdeploy:gpu_cache_usage_perc",
    "vllm:num_preemptions": "fastdeploy:request_preempted",
    "vllm:inter_token_latency_seconds": "fastdeploy:time_per_output_token_seconds",
}
"""Second names, for dashboards made for FastDeploy."""


class Metrics:
    """What is exposed; each server has its own registry, so that several may live in one process."""

    def __init__(
        self,
        settings: Settings,
        lifecycle: Lifecycle,
        traffic: Traffic,
        engine: Callable[[], Engine | None],
    ) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._server = _ServerCollector(lifecycle)
        self._traffic = traffic
        self._registry.register(self._server)
        self._registry.register(_EngineCollector(settings, engine))

    def render(self, accept: str, others: Iterable[HttpCounts] = ()) -> tuple[bytes, str]:
        """The text in the format that ``accept``, a header, prefers, and its content type.

        Args:
            others: The HTTP requests of the server's other processes.
        """
        self._server.counts = total([self._traffic.report(), *others])
        if not prefers_openmetrics(accept):
            return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4
        # Every name here is a legal one of old. Any other escaping turns the colons of samples into underscores.
        text = openmetrics.generate_latest(self._registry, escaping=openmetrics.ALLOWUTF8)  # type: ignore[no-untyped-call]
        return text, f"{_OPENMETRICS}; version=1.0.0; charset=utf-8"


def prefers_openmetrics(accept: str) -> bool:
    """Whether the header ``accept`` likes OpenMetrics 1.0 better than Prometheus' own format."""
    likes, most = False, 0.0
    for choice in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in choice.split(";"))
        options = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        is_openmetrics = kind == _OPENMETRICS and options.get("version", "1.0.0") == "1.0.0"
        quality = _quality(options.get("q", "1"))
        if (is_openmetrics or kind in _PLAIN) and quality > most:
            likes, most = is_openmetrics, quality
    return likes


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


class _ServerCollector(Collector):
    """State and HTTP requests; there from the first moment."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self.counts = HttpCounts()
        """The HTTP requests to tell of."""

    def describe(self) -> Iterable[Metric]:
        return ()  # or the registry would collect once to learn the names

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("trioserve:build_info", "What runs.", labels=("version", "python"))
        build.add_metric((trioserve.__version__, platform.python_version()), 1)
        yield build
        states = GaugeMetricFamily("trioserve:engine_state", "1 for the state it is in.", labels=("state",))
        for state in ServerState:
            states.add_metric((state.value,), float(state is self._lifecycle.state))
        yield states
        running = GaugeMetricFamily("trioserve:http_requests_running", "HTTP requests being answered.")
        running.add_metric((), self.counts.num_running)
        yield running
        requests = CounterMetricFamily(
            "trioserve:http_requests",
            "HTTP requests answered; 499: the client left before the answer began.",
            labels=("method", "route", "status"),
        )
        for method, route, status, times in sorted(self.counts.requests):
            requests.add_metric((method, route, str(status)), times)
        yield requests
        durations = HistogramMetricFamily(
            "trioserve:http_request_duration_seconds",
            "Time to the last byte of an answer.",
            labels=("route",),
        )
        for route, counts, seconds in sorted(self.counts.durations):
            histogram = Histogram(REQUEST_S)
            histogram.counts, histogram.sum = counts, seconds
            _add(durations, (route,), histogram)
        yield durations


class _EngineCollector(Collector):
    """What the engine does; nothing before there is one."""

    def __init__(self, settings: Settings, engine: Callable[[], Engine | None]) -> None:
        self._settings = settings
        self._engine = engine
        self._aliases = _FASTDEPLOY if settings.metrics_aliases == "fastdeploy" else {}

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        engine = self._engine()
        if engine is None:
            return
        name = engine.model.name
        for family in (
            *_counts(engine.statistics(), name),
            _finished(engine.meter, name),
            *(_drafts(engine.meter, name) if self._settings.speculative_config else ()),
            *_histograms(engine.meter, name),
        ):
            yield family
            alias = self._aliases.get(family.name)
            if alias is not None:
                yield _renamed(family, alias)
        if engine.works is not None:
            yield _cache_config(self._settings, engine.works, name)


def _counts(counts: EngineStatistics, model_name: str) -> Iterator[Metric]:
    num_used = counts.num_blocks - counts.num_free_blocks
    gauges: tuple[tuple[str, str, float], ...] = (
        ("vllm:num_requests_running", "Sequences in the model's batch.", counts.num_running),
        ("vllm:num_requests_waiting", "Sequences in the waiting line.", counts.num_waiting),
        ("trioserve:num_tokens_waiting", "Their tokens.", counts.num_waiting_tokens),
        ("trioserve:num_requests", "Requests that someone waits for.", counts.num_requests),
        (
            "vllm:kv_cache_usage_perc",
            "Share of the KV blocks that sequences hold, from 0 to 1.",
            num_used / max(1, counts.num_blocks),
        ),
    )
    counters: tuple[tuple[str, str, float], ...] = (
        ("vllm:prompt_tokens", "Prompt tokens of admitted sequences.", counts.num_prompt_tokens),
        ("vllm:generation_tokens", "Tokens generated.", counts.num_output_tokens),
        ("vllm:num_preemptions", "Sequences that gave their blocks back.", counts.num_preemptions),
        ("vllm:prefix_cache_queries", "Prompt tokens looked up in the cache.", counts.num_prompt_tokens),
        ("vllm:prefix_cache_hits", "Prompt tokens found in the cache.", counts.num_cached_tokens),
        ("trioserve:steps", "Steps of the model.", counts.num_steps),
        ("trioserve:worker_restarts", "Restarts of the works.", counts.num_restarts),
    )
    if counts.num_host_blocks:
        gauges += (
            (
                "vllm:cpu_cache_usage_perc",
                "Share of the host's KV blocks that hold a prefix, from 0 to 1.",
                counts.num_cached_host_blocks / counts.num_host_blocks,
            ),
        )
        counters += (
            ("trioserve:kv_blocks_swapped_out", "KV blocks copied to the host.", counts.num_swapped_out),
            ("trioserve:kv_blocks_swapped_in", "KV blocks copied back.", counts.num_swapped_in),
        )
    for kind, rows in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
        for name, text, value in rows:
            family = kind(name, text, labels=("model_name",))
            family.add_metric((model_name,), value)
            yield family


def _finished(meter: Meter, model_name: str) -> Metric:
    family = CounterMetricFamily(
        "vllm:request_success",
        "Sequences that ended, by why; abort: the client left or its time was up; error: the engine gave it up.",
        labels=("model_name", "finished_reason"),
    )
    for reason in FinishReason:
        family.add_metric((model_name, reason.value), meter.num_finished[reason])
    return family


def _drafts(meter: Meter, model_name: str) -> Iterator[Metric]:
    """Of tokens that were guessed; there only where some may be."""
    counters: tuple[tuple[str, str, int], ...] = (
        ("num_drafts", "Times that tokens of a sequence were guessed.", meter.num_drafts),
        ("num_draft_tokens", "Tokens guessed.", meter.num_draft_tokens),
        ("num_accepted_tokens", "Tokens guessed that were right.", sum(meter.num_accepted_tokens)),
    )
    for name, text, value in counters:
        family = CounterMetricFamily(f"vllm:spec_decode_{name}", text, labels=("model_name",))
        family.add_metric((model_name,), value)
        yield family
    places = CounterMetricFamily(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "The same, by place among the guesses of a step for a sequence, from 0.",
        labels=("model_name", "position"),
    )
    for place, count in enumerate(meter.num_accepted_tokens):
        places.add_metric((model_name, str(place)), count)
    yield places


def _histograms(meter: Meter, model_name: str) -> Iterator[Metric]:
    table: tuple[tuple[str, str, Histogram], ...] = (
        ("e2e_request_latency_seconds", "From arrival to the last token.", meter.e2e_latency_s),
        ("time_to_first_token_seconds", "From arrival to the first token.", meter.time_to_first_token_s),
        ("inter_token_latency_seconds", "From one token to the next.", meter.inter_token_latency_s),
        (
            "request_time_per_output_token_seconds",
            "Mean of a sequence's tokens after its first.",
            meter.time_per_output_token_s,
        ),
        ("request_queue_time_seconds", "From arrival to admission.", meter.queue_s),
        ("request_prefill_time_seconds", "From admission to the first token.", meter.prefill_s),
        ("request_decode_time_seconds", "From the first token to the last.", meter.decode_s),
        ("request_inference_time_seconds", "From admission to the last token.", meter.inference_s),
        ("request_prompt_tokens", "Tokens of a sequence's prompt.", meter.prompt_tokens),
        ("request_generation_tokens", "Tokens of a sequence's answer.", meter.output_tokens),
        (
            "request_max_num_generation_tokens",
            "Tokens of a request's longest answer.",
            meter.most_output_tokens,
        ),
        ("request_params_max_tokens", "Tokens that a sequence was allowed.", meter.max_tokens),
        ("iteration_tokens_total", "Tokens that a step computed.", meter.step_tokens),
    )
    for name, text, histogram in table:
        family = HistogramMetricFamily(f"vllm:{name}", text, labels=("model_name",))
        _add(family, (model_name,), histogram)
        yield family


def _cache_config(settings: Settings, works: WorkerReady, model_name: str) -> Metric:
    """What routers that reckon with cached blocks read."""
    labels = {
        "model_name": model_name,
        "block_size": str(settings.block_size),
        "num_gpu_blocks": str(works.num_blocks),
        "num_cpu_blocks": str(works.num_host_blocks),
        "enable_prefix_caching": str(settings.enable_prefix_caching),
        "cache_dtype": works.dtype,
    }
    family = GaugeMetricFamily("vllm:cache_config_info", "The KV cache.", labels=tuple(labels))
    family.add_metric(tuple(labels.values()), 1)
    return family


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    """Prometheus counts what is at most a bound, the buckets below included."""
    buckets, total = [], 0
    for bound, times in zip((*histogram.bounds, math.inf), histogram.counts, strict=True):
        total += times
        buckets.append(("+Inf" if bound == math.inf else str(bound), float(total)))
    family.add_metric(labels, buckets=buckets, sum_value=histogram.sum)


def _renamed(family: Metric, name: str) -> Metric:
    """The same numbers by another name."""
    renamed = Metric(name, family.documentation, family.type)
    for sample in family.samples:
        renamed.add_sample(name + sample.name.removeprefix(family.name), sample.labels, sample.value)
    return renamed
