"""instructor: pydantic models as answers, by a tool call and by a JSON schema.

Run by tests/compat with the URL of a server.
"""

import sys

import instructor
from openai import OpenAI
from pydantic import BaseModel


class TownWeather(BaseModel):
    """Get the weather in a city"""

    town: str


class Person(BaseModel):
    name: str
    age: int


client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
for mode, model, question, expected in (
    (instructor.Mode.TOOLS, TownWeather, "What is the weather in Paris?", TownWeather(town="Paris")),
    (
        instructor.Mode.JSON_SCHEMA,
        Person,
        "Make a JSON object with name Ana and age 30.",
        Person(name="Ana", age=30),
    ),
):
    answer = instructor.from_openai(client, mode=mode).chat.completions.create(
        model="builtin",
        messages=[{"role": "user", "content": question}],
        response_model=model,
        max_retries=0,
        max_tokens=100,
        temperature=0,
    )
    assert answer.model_dump() == expected.model_dump(), answer
    print(f"{mode.value}:", repr(answer))
