"""Fields by which chats, messages and responses ask for thinking. Imports no torch."""

from typing import Any

from pydantic import Field

from nalar.config import UserError
from nalar.server.ask import Thinking
from nalar.server.config import ServerConfig
from nalar.server.dialects.controls import TEMPLATE_SWITCHES, thinking_of
from nalar.server.wire.body import Wire
from nalar.server.wire.errors import of_user_error


class ThinkingFields(Wire):
    thinking: Any = None
    thinking_token_budget: Any = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Those that switch no thinking."""
        kwargs = self.chat_template_kwargs
        return {name: kwargs[name] for name in kwargs if name not in TEMPLATE_SWITCHES}

    def thinking_asked(self, config: ServerConfig, **others: object) -> Thinking:
        """others: the fields that an API has beside these. ApiError (400) for a bad value."""
        names = ("thinking", "thinking_token_budget", "chat_template_kwargs")
        body = {name: getattr(self, name) for name in names} | others
        try:
            return thinking_of(body, config.efforts)
        except UserError as error:
            raise of_user_error(error) from None
