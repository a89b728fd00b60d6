"""pydantic-ai: an agent that calls a tool and answers with what it returned.

Run by tests/compat with the URL of a server.
"""

import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

called: list[str] = []
model = OpenAIChatModel("builtin", provider=OpenAIProvider(base_url=sys.argv[1] + "/v1", api_key="none"))
agent = Agent(model, model_settings={"temperature": 0, "max_tokens": 200})


@agent.tool_plain
def town_weather(town: str) -> str:
    """Get the weather in a city"""
    called.append(town)
    return '{"temperature": 21, "condition": "sunny"}'


answer = agent.run_sync("What is the weather in Paris?")
assert called == ["Paris"], called
assert answer.output == "It is 21 degrees and sunny in Paris.", answer.output
print("tool:  ", called)
print("answer:", answer.output)
