"""OpenAI's agents SDK: an agent that calls a tool and answers with what it returned, whole and streamed.

Run by tests/compat with the URL of a server.
"""

import asyncio
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

set_tracing_disabled(True)
called: list[str] = []


@function_tool
def town_weather(town: str) -> str:
    """Get the weather in a city"""
    called.append(town)
    return '{"temperature": 21, "condition": "sunny"}'


async def main(url: str) -> None:
    client = AsyncOpenAI(base_url=url + "/v1", api_key="none")
    agent = Agent(
        name="assistant",
        model=OpenAIChatCompletionsModel("builtin", client),
        model_settings=ModelSettings(temperature=0, max_tokens=200),
        tools=[town_weather],
    )
    whole = await Runner.run(agent, "What is the weather in Paris?")
    streamed = Runner.run_streamed(agent, "What is the weather in Paris?")
    events = [event.type async for event in streamed.stream_events()]
    assert called == ["Paris", "Paris"], called
    for result in (whole, streamed):
        assert result.final_output == "It is 21 degrees and sunny in Paris.", result.final_output
    assert "run_item_stream_event" in events, events
    print("tool:  ", called)
    print("answer:", whole.final_output)


asyncio.run(main(sys.argv[1]))
