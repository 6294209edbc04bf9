"""What Prometheus reads of requests that ended and of those refused."""

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from nalar.server.engine.messages import EngineStats
from nalar.server.ledger import Row
from nalar.server.limits import Refusal
from nalar.server.metrics import CONTENT_TYPE, Metrics


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_figures_are_those_of_the_rows():
    registry = CollectorRegistry()
    metrics = Metrics(registry, "m")
    answered = Row(
        request_id="r",
        time_s=0.0,
        key_id="secret-key-id",
        endpoint="/",
        model="m",
        prompt_tokens=10,
        cached_tokens=4,
        completion_tokens=7,
        reasoning_tokens=5,
        queue_s=0.2,
        first_token_s=0.3,
        total_s=2.0,
        finish_reason="length",
        cost_usd=0.5,
        verdict="output:flag:violence",
    )
    left = Row(request_id="s", time_s=0.0, key_id="", endpoint="/", model="m", status=499)
    metrics.observe(answered)
    metrics.observe(left)
    metrics.refused(Refusal(429, "queue_full", "full", 3))
    metrics.now(running=3, waiting=2, cache_usage_frac=0.25)
    text = metrics.render().decode()
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    expected = {
        ("nalar:num_requests_running", "m"): 3,
        ("nalar:num_requests_waiting", "m"): 2,
        ("nalar:kv_cache_usage_perc", "m"): 0.25,
        ("nalar:request_success_total", "length", "m"): 1,
        ("nalar:request_failure_total", "499", "m"): 1,
        ("nalar:request_refused_total", "m", "queue_full"): 1,
        ("nalar:policy_verdicts_total", "m", "output:flag:violence"): 1,
        ("nalar:prompt_tokens_total", "m"): 10,
        ("nalar:generation_tokens_total", "m"): 7,
        ("nalar:reasoning_tokens_total", "m"): 5,
        ("nalar:prefix_cache_hits_total", "m"): 4,
        ("nalar:prefix_cache_queries_total", "m"): 10,
        ("nalar:cost_usd_total", "m"): 0.5,
        ("nalar:time_to_first_token_seconds_count", "m"): 1,
        ("nalar:e2e_request_latency_seconds_sum", "m"): 2.0,
    }
    assert {name: found[name] for name in expected} == expected
    assert "secret-key-id" not in text and CONTENT_TYPE.startswith("text/plain")


@pytest.mark.anyio
async def test_the_engines_figures_come_through(make_client, scripted):
    class Busy(scripted):
        async def stats(self):
            return EngineStats(running=3, waiting=2, cache_usage_frac=0.25)

    text = (await make_client(Busy([])).get("/metrics")).text
    assert 'nalar:num_requests_running{model_name="tiny"} 3.0' in text
    assert 'nalar:num_requests_waiting{model_name="tiny"} 2.0' in text
    assert 'nalar:kv_cache_usage_perc{model_name="tiny"} 0.25' in text
