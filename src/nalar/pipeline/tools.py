"""The tools of a run: opened once, and an answer to the calls of each response."""

from nalar.data.dialogue import tool_ids
from nalar.data.tokenizer import Tokenizer
from nalar.data.tool_use import ToolUse
from nalar.engine.turns import MakeEnvironment
from nalar.sandbox.config import ToolsConfig
from nalar.sandbox.tools import open_tools


def environments(config: ToolsConfig, tokenizer: Tokenizer) -> MakeEnvironment | None:
    """What answers the calls of a response, one for each; None where there are no tools.

    UserError where the tokenizer knows no tools, or this machine cannot run one.
    """
    if not config.names:
        return None
    tool_ids(tokenizer)
    tools = open_tools(config)
    return lambda problem: ToolUse(tokenizer, tools, config)
