"""GET /metrics over the reciter: names that dashboards query, and numbers that add up."""

import math
from typing import Any

import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from trio.testing import MockClock

import trioserve
from tests.http.house import House, open_house
from trioserve.engine.lifecycle import Lifecycle
from trioserve.http.app import METRICS_ROUTES, create_app
from trioserve.http.services import Services
from trioserve.settings import Settings

CHAT = "/v1/chat/completions"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Scrape:
    """One reading of /metrics."""

    def __init__(self, text: str, *, parse: Any = parse_text) -> None:
        families = list(parse(text))
        self.types = {family.name: family.type for family in families}
        self.samples: Samples = {}
        for family in families:
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.samples, f"{key} is there twice"
                self.samples[key] = sample.value

    def value(self, name: str, **labels: str) -> float:
        return self.samples[name, frozenset(labels.items())]

    def of_model(self, name: str, **labels: str) -> float:
        return self.value(f"vllm:{name}", model_name="reciter", **labels)

    def labels(self, name: str) -> list[dict[str, str]]:
        return [dict(labels) for found, labels in self.samples if found == name]


async def scrape(house: House, **headers: str) -> Scrape:
    answer = await house.ask("GET", "/metrics", headers=headers)
    assert answer.status == 200
    parse = parse_openmetrics if "openmetrics" in answer.headers["content-type"] else parse_text
    return Scrape(answer.body.decode(), parse=parse)


async def test_a_known_load_gives_known_numbers(autojump_clock: MockClock) -> None:
    async with open_house(step_s=0.5) as house:
        first = await house.json(CHAT, {**HI, "n": 2})
        await house.events("/v1/completions", {"prompt": ["a" * 40, "a" * 40], "max_tokens": 1})
        found = await scrape(house)
    num_prompt = first["usage"]["prompt_tokens"]
    assert found.of_model("request_success_total", finished_reason="length") == 4
    for reason in ("stop", "abort", "error"):
        assert found.of_model("request_success_total", finished_reason=reason) == 0
    assert found.of_model("prompt_tokens_total") == 2 * num_prompt + 80
    assert found.of_model("prefix_cache_queries_total") == 2 * num_prompt + 80
    hits = found.of_model("prefix_cache_hits_total")
    assert hits == num_prompt // 16 * 16 + 32
    assert found.of_model("generation_tokens_total") == 2 * 5 + 2
    assert found.of_model("time_to_first_token_seconds_count") == 4
    assert found.of_model("inter_token_latency_seconds_count") == 2 * 4
    assert found.of_model("inter_token_latency_seconds_sum") == pytest.approx(2 * 4 * 0.5)
    assert found.of_model("inter_token_latency_seconds_bucket", le="0.5") == 8
    assert found.of_model("inter_token_latency_seconds_bucket", le="0.4") == 0
    assert found.of_model("request_prompt_tokens_sum") == 2 * num_prompt + 80
    assert found.of_model("request_generation_tokens_sum") == 12
    assert found.of_model("request_params_max_tokens_sum") == 12
    assert found.of_model("request_max_num_generation_tokens_count") == 2
    assert found.of_model("request_max_num_generation_tokens_sum") == 5 + 1
    assert found.of_model("iteration_tokens_total_sum") == 2 * num_prompt + 80 - hits + 2 * 4
    for name in ("e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time"):
        assert found.of_model(f"{name}_seconds_count") == 4
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert found.of_model(name) == 0
    assert (
        found.value("trioserve:http_requests_total", method="POST", route="/v1/completions", status="200")
        == 1
    )


async def test_gauges_say_what_runs_and_waits(autojump_clock: MockClock) -> None:
    async with open_house(step_s=1.0, max_num_seqs=1) as house, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(house.post, CHAT, {**HI, "max_tokens": 20})
        await trio.sleep(5.5)
        found = await scrape(house)
        load = await house.ask("GET", "/load")
        nursery.cancel_scope.cancel()
    assert (found.of_model("num_requests_running"), found.of_model("num_requests_waiting")) == (1, 2)
    assert found.value("trioserve:num_requests", model_name="reciter") == 3
    assert found.value("trioserve:http_requests_running") == 4  # the scrape is one
    assert 0 < found.of_model("kv_cache_usage_perc") < 0.2
    assert found.of_model("generation_tokens_total") == 5
    assert load.json["server_load"] == 3
    assert (load.json["num_running"], load.json["num_waiting"]) == (1, 2)
    assert load.json["num_waiting_tokens"] > 10
    assert load.json["kv_cache_usage"] == found.of_model("kv_cache_usage_perc")


async def test_what_moves_to_the_host_and_back_is_counted(autojump_clock: MockClock) -> None:
    async with open_house(num_blocks=16, num_host_blocks=40) as house:
        for letter in "abca":
            await house.json("/v1/completions", {"prompt": letter * 200, "max_tokens": 1})
        found = await scrape(house)
    num_out = found.value("trioserve:kv_blocks_swapped_out_total", model_name="reciter")
    num_in = found.value("trioserve:kv_blocks_swapped_in_total", model_name="reciter")
    assert num_out >= 20
    assert num_in >= 8
    assert found.of_model("cpu_cache_usage_perc") == num_out / 40
    assert found.of_model("prefix_cache_hits_total") == 200 // 16 * 16


async def test_without_host_memory_there_is_no_word_of_it(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        found = await scrape(house)
    assert [name for name, _ in found.samples if "swapped" in name or "cpu_cache" in name] == []


async def test_a_client_that_leaves_is_an_abort_in_every_count(autojump_clock: MockClock) -> None:
    leaves = trio.Event()
    async with open_house(step_s=1.0) as house, trio.open_nursery() as nursery:

        async def ask() -> None:
            await house.ask("POST", CHAT, {**HI, "max_tokens": 100}, leaves=leaves)

        nursery.start_soon(ask)
        await trio.sleep(3.5)
        leaves.set()
        await trio.sleep(1)
        found = await scrape(house)
    assert found.of_model("request_success_total", finished_reason="abort") == 1
    assert found.of_model("generation_tokens_total") == 3
    assert found.of_model("num_requests_running") == 0
    assert found.value("trioserve:http_requests_total", method="POST", route=CHAT, status="499") == 1
    assert found.value("trioserve:http_request_duration_seconds_sum", route=CHAT) == pytest.approx(3.5)


async def test_what_clients_send_makes_no_labels() -> None:
    async with open_house() as house:
        for i in range(20):
            await house.ask("GET", f"/nowhere/{i}")
            await house.ask(f"BREW{i}", "/live")
            await house.ask("GET", f"/v1/models/{i}")
            await house.post(CHAT, {**HI, "model": f"other-{i}"})
        found = await scrape(house)
    requests = found.labels("trioserve:http_requests_total")
    assert {(labels["method"], labels["route"], labels["status"]) for labels in requests} == {
        ("GET", "unmatched", "404"),
        ("other", "unmatched", "405"),
        ("GET", "/v1/models/<path:model_id>", "404"),
        ("POST", CHAT, "200"),
    }
    assert {dict(given).get("model_name", "reciter") for _, given in found.samples} == {"reciter"}


async def test_prometheus_and_openmetrics_say_the_same() -> None:
    async with open_house() as house:
        await house.json(CHAT, HI)
        plain = await scrape(house, accept="text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
        modern = await scrape(house, accept=OPENMETRICS)
    same = [key for key in plain.samples if key[0].startswith("vllm:") or key[0] == "trioserve:engine_state"]
    assert len(same) > 100
    assert {key: plain.samples[key] for key in same} == {key: modern.samples[key] for key in same}
    assert plain.types["vllm:e2e_request_latency_seconds"] == "histogram"
    assert (plain.types["vllm:prompt_tokens"], plain.types["vllm:num_requests_running"]) == (
        "counter",
        "gauge",
    )


@pytest.mark.parametrize(
    ("accept", "is_openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        ("application/openmetrics-text;version=0.0.1", False),
        ("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;version=1.0.0;q=0.8", True),
        ("text/plain;version=0.0.4;q=0.8,application/openmetrics-text;version=1.0.0;q=0.5", False),
        ("application/openmetrics-text;q=bad, text/plain;q=0.1", False),
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
    ],
)
async def test_the_format_is_the_one_that_is_preferred(accept: str, is_openmetrics: bool) -> None:
    async with open_house() as house:
        answer = await house.ask("GET", "/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith(
        "application/openmetrics-text; version=1.0.0" if is_openmetrics else "text/plain; version=0.0.4"
    )
    assert answer.body.endswith(b"# EOF\n") is is_openmetrics
    assert b'\nvllm:num_requests_running{model_name="reciter"} 0.0\n' in answer.body


async def test_buckets_rise_and_end_with_all() -> None:
    async with open_house() as house:
        await house.json(CHAT, {**HI, "n": 3})
        found = await scrape(house)
    series: dict[tuple[str, frozenset[tuple[str, str]]], list[tuple[float, float]]] = {}
    for (name, labels), value in found.samples.items():
        if name.endswith("_bucket"):
            bound = dict(labels)["le"]
            rest = frozenset(item for item in labels if item[0] != "le")
            series.setdefault((name.removesuffix("_bucket"), rest), []).append((float(bound), value))
    assert len(series) > 13
    for (name, labels), buckets in series.items():
        counts = [count for _, count in sorted(buckets)]
        assert counts == sorted(counts)
        assert max(bound for bound, _ in buckets) == math.inf
        assert counts[-1] == found.samples[f"{name}_count", labels]


async def test_the_state_and_the_build_are_told_before_there_is_a_model() -> None:
    services = Services(Settings(), Lifecycle())
    async with open_house() as house:
        house.app = create_app(services)
        found = await scrape(house)
        assert found.value("trioserve:engine_state", state="starting") == 1
        assert found.value("trioserve:engine_state", state="ready") == 0
        assert [labels["version"] for labels in found.labels("trioserve:build_info")] == [
            trioserve.__version__
        ]
        assert found.value("process_resident_memory_bytes") > 1e6
        assert not any(name.startswith("vllm:") for name, _ in found.samples)
        services.lifecycle.fail("broken", exit_code=70)
        assert (await scrape(house)).value("trioserve:engine_state", state="failed") == 1
        assert (await house.ask("GET", "/load")).json["server_load"] == 0


async def test_servers_in_one_process_count_apart() -> None:
    async with open_house(names=("reciter",)) as one, open_house(names=("reciter",)) as other:
        await one.json(CHAT, HI)
        assert (await scrape(one)).of_model("generation_tokens_total") == 5
        assert (await scrape(other)).of_model("generation_tokens_total") == 0


async def test_fastdeploys_names_are_there_when_asked_for() -> None:
    async with open_house(metrics_aliases="fastdeploy") as house:
        await house.json(CHAT, HI)
        found = await scrape(house)
        assert not any(
            name.startswith("fastdeploy:") for name, _ in (await scrape_of_a_plain_house()).samples
        )
    for theirs, ours in (
        ("fastdeploy:generation_tokens_total", "vllm:generation_tokens_total"),
        ("fastdeploy:time_per_output_token_seconds_count", "vllm:inter_token_latency_seconds_count"),
        ("fastdeploy:e2e_request_latency_seconds_sum", "vllm:e2e_request_latency_seconds_sum"),
        ("fastdeploy:gpu_cache_usage_perc", "vllm:kv_cache_usage_perc"),
    ):
        assert found.value(theirs, model_name="reciter") == found.value(ours, model_name="reciter")


async def scrape_of_a_plain_house() -> Scrape:
    async with open_house() as house:
        return await scrape(house)


async def test_the_cache_is_described_for_routers() -> None:
    async with open_house() as house:
        (labels,) = (await scrape(house)).labels("vllm:cache_config_info")
    assert (labels["block_size"], labels["num_gpu_blocks"]) == ("16", "64")
    assert labels["enable_prefix_caching"] == "True"


async def test_the_metrics_port_serves_metrics_and_probes_only() -> None:
    async with open_house() as house:
        await house.json(CHAT, HI)
        house.app = create_app(house.services, routes=METRICS_ROUTES)
        assert (await scrape(house)).of_model("generation_tokens_total") == 5
        assert (await house.ask("GET", "/ready")).status == 200
        for method, path in (("POST", CHAT), ("GET", "/server_info"), ("POST", "/tokenize")):
            assert (await house.ask(method, path, HI)).status == 404


async def test_the_metrics_port_asks_for_the_same_keys() -> None:
    async with open_house(api_key="sesame") as house:
        house.app = create_app(house.services, routes=METRICS_ROUTES)
        for path, status in (
            ("/live", 200),
            ("/ready", 200),
            ("/health", 401),
            ("/metrics", 401),
            ("/no", 401),
        ):
            assert (await house.ask("GET", path)).status == status
            known = await house.ask("GET", path, headers={"x-api-key": "sesame"})
            assert known.status == (404 if path == "/no" else 200)
