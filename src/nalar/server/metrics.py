"""Figures for Prometheus under vLLM's names, with `nalar:` before them. Nothing of who asked, or of what was said."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from nalar.server.ledger import Row
from nalar.server.limits import Refusal

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144)


class Metrics:
    """All of one server. Times begin with the arrival of a request."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._registry, self._model = registry, model_name
        self._running = self._gauge("num_requests_running", "Requests that the engine works on.")
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait for a place.")
        self._cache_usage = self._gauge("kv_cache_usage_perc", "Share of the cache in use, 0 to 1.")
        self._ended = self._counter("request_success", "Requests answered.", "finished_reason")
        self._failed = self._counter("request_failure", "Requests not answered whole.", "status")
        self._refused = self._counter("request_refused", "Requests not taken.", "code")
        self._verdicts = self._counter("policy_verdicts", "What the policy found.", "verdict")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens.")
        self._written = self._counter("generation_tokens", "Tokens written, thoughts included.")
        self._thought = self._counter("reasoning_tokens", "Tokens of thoughts.")
        # vLLM's pair for the prefix cache: the hits, and what they are a part of.
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens found in the cache.")
        self._queries = self._counter("prefix_cache_queries", "Prompt tokens looked for there.")
        self._cost = self._counter("cost_usd", "What all requests cost, in US dollars.")
        self._first_s = self._seconds("time_to_first_token_seconds", "Until the first token.")
        self._total_s = self._seconds("e2e_request_latency_seconds", "Until the end.")
        self._queue_s = self._seconds("request_queue_time_seconds", "Until the model began.")
        self._prompt_size = self._sizes("request_prompt_tokens", "Prompt tokens of a request.")
        self._written_size = self._sizes("request_generation_tokens", "Tokens that it was given.")

    def observe(self, row: Row) -> None:
        """A request that has ended, by its row in the ledger."""
        if row.status < 400:
            self._ended.labels(self._model, row.finish_reason or "none").inc()
        else:
            self._failed.labels(self._model, str(row.status)).inc()
        if row.verdict is not None:
            self._verdicts.labels(self._model, row.verdict).inc()
        for counter, amount in (
            (self._prompt, row.prompt_tokens),
            (self._written, row.completion_tokens),
            (self._thought, row.reasoning_tokens),
            (self._hits, row.cached_tokens),
            (self._queries, row.prompt_tokens),
            (self._cost, row.cost_usd or 0.0),
        ):
            counter.labels(self._model).inc(amount)
        self._queue_s.labels(self._model).observe(row.queue_s)
        self._total_s.labels(self._model).observe(row.total_s)
        if row.first_token_s is not None:
            self._first_s.labels(self._model).observe(row.first_token_s)
        self._prompt_size.labels(self._model).observe(row.prompt_tokens)
        self._written_size.labels(self._model).observe(row.completion_tokens)

    def refused(self, refusal: Refusal) -> None:
        """A request that was told to come back, or not to."""
        self._refused.labels(self._model, refusal.code).inc()

    def now(self, *, running: int, waiting: int, cache_usage_frac: float) -> None:
        """The state of limits and engine, at the moment of being asked."""
        self._running.labels(self._model).set(running)
        self._waiting.labels(self._model).set(waiting)
        self._cache_usage.labels(self._model).set(cache_usage_frac)

    def render(self) -> bytes:
        """What `GET /metrics` answers, of type `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(f"nalar:{name}", about, ["model_name"], registry=self._registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        """Its name ends in `_total`, as all of them do."""
        return Counter(f"nalar:{name}", about, ["model_name", *labels], registry=self._registry)

    def _seconds(self, name: str, about: str) -> Histogram:
        return self._histogram(name, about, _SECONDS)

    def _sizes(self, name: str, about: str) -> Histogram:
        return self._histogram(name, about, _TOKENS)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"nalar:{name}", about, ["model_name"], registry=self._registry, buckets=buckets
        )
