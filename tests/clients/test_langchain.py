"""LangChain's own standard tests for chat models, on `ChatOpenAI` with this gateway behind it.

What they skip is what the nano models cannot do. They call no tools and see no images, and held to a JSON schema they
write blanks, which every schema allows, until their limit.
"""

from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChatOpenAI(ChatModelIntegrationTests):
    has_tool_calling = False
    has_structured_output = False
    supports_json_mode = False
    supports_model_override = True
    model_override_value = "nano-small"

    @pytest.fixture(autouse=True)
    def _gateway(self, base_url: str) -> None:
        self.base_url = base_url

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "auto", "base_url": self.base_url, "api_key": "none", "stream_usage": True}
