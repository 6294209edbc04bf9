"""`usage` of chats and completions. Imports no torch."""

from typing import Any

from nalar.server.ask import Usage


def usage_json(usage: Usage) -> dict[str, Any]:
    """OpenAI's form, with DeepSeek's two of the cache, and `cost` in USD where there are prices."""
    document: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "prompt_cache_hit_tokens": usage.cached_tokens,
        "prompt_cache_miss_tokens": usage.prompt_tokens - usage.cached_tokens,
    }
    if usage.cost_usd is not None:
        document["cost"] = usage.cost_usd
    return document
