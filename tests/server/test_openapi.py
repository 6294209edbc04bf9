"""Requests made up from the server's own description of itself: none gives a 5xx."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from nalar.server.http.app import create_app

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EXAMPLES = 40


def statuses_of(operation):
    seen = set()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def ask(case):
        status = case.call().status_code
        seen.add(status)
        assert status < 500, (operation.label, case.body)

    ask()
    return seen


def at_home(app):
    """Asked under a name of this machine, as a server without keys wants it, whatever the client says."""

    async def asked(scope, receive, send):
        if scope["type"] == "http":
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope = scope | {"headers": [*others, (b"host", b"127.0.0.1")]}
        await app(scope, receive, send)

    return asked


def test_nothing_that_the_description_allows_gives_a_5xx(server_config, scripted, tokenizer):
    ids = [*tokenizer.encode("12"), tokenizer.end_think_id, *tokenizer.encode("34")]
    app = at_home(create_app(server_config, scripted([[*ids, tokenizer.end_id]])))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [found.ok() for found in schema.get_all_operations()]
    statuses = {operation.label: statuses_of(operation) for operation in operations}
    assert {"POST /v1/chat/completions", "POST /v1/responses", "POST /v1/messages"} <= set(statuses)
    assert 200 in statuses["GET /v1/models"] and 400 in statuses["POST /v1/chat/completions"]
