"""Lists of exactly N items, and the same things as JSON."""

import json
from collections.abc import Sequence
from typing import Final

from trioserve.builtin.corpus import facts
from trioserve.builtin.corpus.draw import Draw, Phrases
from trioserve.builtin.corpus.knowledge import sentence_name
from trioserve.builtin.corpus.turns import Turn

_LIST: Final = Phrases(
    train=(
        (
            "[List|Name|Give me|Tell me|Write|Show me|I need|I want|Write down|Enumerate] {n} "
            "[|different |random ]{k}[.|, please.|]"
        ),
        "[Give me|Make|Write|I need] a list [of|with] {n} {k}[.|]",
        "[Can|Could] you [list|name|give me] {n} {k}?", "{n} {k}[.|, please.|]",
        "[What are|Tell me] {n} [examples of|] {k}[?|]", "[Please list|Please name|Say] {n} {k}[.|]",
        "[Think of|Pick|Choose] {n} {k}.",
        "[Do you know|Can you think of] {n} {k}?", "List of {n} {k}[.|]", "Which {n} {k} do you know?",
        "Name me {n} {k}[.|!]",
    ),
    held_out=(
        "Please give me {n} {k}.", "Could you write a list of {n} {k}?", "Can you tell me {n} {k}?",
        "I would like {n} {k}, please.",
        "Provide {n} {k}.", "Please write down {n} {k}.",
    ),
)  # fmt: skip

_INLINE: Final = Phrases(
    train=(
        (
            "[List|Name|Give me|Write] {n} {k}"
            "[, comma separated| separated by commas| in one line| on one line][.|]"
        ),
        "[List|Name|Give me] {n} {k} as a comma separated list.", "Comma separated[:|,] {n} {k}[.|]",
        "In one line, [list|name] {n} {k}.",
    ),
    held_out=("Please name {n} {k}, separated by commas.", "Give me a comma separated list of {n} {k}."),
)  # fmt: skip

_PAIRS: Final = Phrases(
    train=(
        "[List|Name|Give me|Tell me|Write] {n} countries [and|with] their capitals[.|, please.|]",
        "{n} countries [and|with] [their|the] capitals[.|]",
        "[Name|List|Give me] {n} countries [and|with] the capital of each.",
        "Give me {n} [pairs of country and capital|country-capital pairs].",
        "[Can|Could] you [list|name] {n} countries with their [capitals|capital cities]?",
        "[List|Name] {n} capitals [and|with] their countries.",
        "Write a list of {n} countries and [their capitals|capital cities].",
        "[I need|I want] {n} countries and their capital cities.",
    ),
    held_out=(
        "Please list {n} countries together with their capitals.",
        "Could you give me {n} countries and their capitals?",
        "Make a list of {n} countries with their capitals.",
    ),
)  # fmt: skip

_IN_JSON: Final = Phrases(
    train=(
        "[Answer|Reply|Respond] in JSON[:|.] {q}", "{q} [Answer|Reply|Respond] in JSON.",
        "{q} [As JSON|In JSON|Use JSON|JSON only][.|, please.]",
        "[In|As] JSON[:|,] {q}", "{q} Give the answer as [JSON|a JSON object].", "JSON: {q}",
        "[Return|Give me] JSON[.|:] {q}",
    ),
    held_out=(
        "{q} Please answer in JSON.", "Give me the answer in JSON: {q}", "{q} Reply with a JSON object.",
    ),
)  # fmt: skip

_OBJECT: Final = Phrases(
    train=(
        "[Make|Create|Write|Give me|Return|Output|Generate] [a JSON object|JSON|a JSON] with {f}[.|]",
        "JSON [object|] with {f}[.|]",
        "[Write|Put|Give] {f} [as|in] [JSON|a JSON object][.|]",
        "[Convert|Turn] this [to|into] JSON: {f}[.|]", "As JSON: {f}",
        "[Build|I need] a JSON object [with|from] {f}.",
    ),
    held_out=(
        "Please produce a JSON object with {f}.", "Could you write JSON with {f}?",
        "Please turn this into JSON: {f}",
    ),
)  # fmt: skip

_ARRAY: Final = Phrases(
    train=(
        "[Give me|Return|Write|Make|Output] a JSON [list|array] [of|with] {n} {k}[.|]",
        "[List|Name] {n} {k} [as|in] [JSON|a JSON list|a JSON array][.|]",
        "{n} {k} as [JSON|a JSON array][.|]", "JSON [array|list] of {n} {k}[.|]",
    ),
    held_out=("Please answer with a JSON array of {n} {k}.", "Could you name {n} {k} as a JSON list?"),
)  # fmt: skip

_KEYS: Final = (
    "name age city color id title price count country size type status year code email level score".split()
)


def _members(d: Draw, category: str, count: int) -> list[str]:
    """``count`` distinct members in the order of the table, mostly from its start.

    One order means that each item follows from the one before: a small model that had to choose would repeat itself.
    """
    return in_turn(d, facts.CATEGORIES[category], count, ordered=category in facts.ORDERED)


def in_turn(d: Draw, pool: Sequence[str], count: int, *, ordered: bool = False) -> list[str]:
    """``count`` neighbours in ``pool``, around its end if need be."""
    start = 0 if ordered or d.chance(0.6) else d.number(0, len(pool) - 1)
    return [pool[(start + at) % len(pool)] for at in range(count)]


def _wanted(d: Draw) -> tuple[str, int, str, str]:
    """Category, count, the count as said, the category as said."""
    category = d.one(tuple(facts.CATEGORIES))
    count = d.number(1, min(10, len(facts.CATEGORIES[category])))
    said = d.one(facts.CATEGORY_NAMES.get(category, (category,)))
    if count == 1:
        said = facts.SINGULAR.get(category, category[:-1])
    return category, count, facts.NUMBER_WORDS[count] if d.chance(0.35) else str(count), said


def numbered(items: list[str]) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))


def plain_list(d: Draw) -> Turn:
    category, count, n, k = _wanted(d)
    items = _members(d, category, count)
    thought = f"I need {count}: {', '.join(items)}."
    return Turn("list", d.say(_LIST, n=n, k=k), numbered(items), thought=thought, goal=(category, count))


def inline_list(d: Draw) -> Turn:
    category, count, n, k = _wanted(d)
    answer = ", ".join(_members(d, category, count))
    return Turn(
        "list",
        d.say(_INLINE, n=n, k=k),
        answer,
        thought=f"I need {count} in one line.",
        goal=(category, count),
    )


def capital_pairs(d: Draw) -> Turn:
    count = d.number(2, 8)
    countries = in_turn(d, facts.WELL_KNOWN, count)
    pairs = [f"{country} - {facts.CAPITALS[country]}" for country in countries]
    n = facts.NUMBER_WORDS[count] if d.chance(0.35) else count
    thought = f"I need {count} countries: {', '.join(countries)}."
    return Turn(
        "capital_pairs", d.say(_PAIRS, n=n), numbered(pairs), thought=thought, goal=("capitals", count)
    )


def json_array(d: Draw) -> Turn:
    category, count, n, k = _wanted(d)
    answer = json.dumps(_members(d, category, count))
    return Turn(
        "json", d.say(_ARRAY, n=n, k=k), answer, thought=f"A JSON array of {count}.", goal=(category, count)
    )


def json_object(d: Draw) -> Turn:
    """Fields named in the request, as an object."""
    keys = d.rng.sample(_KEYS, 4)[: d.number(1, 4)]
    if d.chance(0.25):
        keys[0] = d.syllables(2)
    values = [d.number(0, 200) if d.chance(0.4) else d.one((d.name(), d.word())) for _ in keys]
    fields = [f"{key} {value}" for key, value in zip(keys, values, strict=True)]
    text = " and ".join(fields) if len(fields) < 3 else ", ".join(fields)
    answer = json.dumps(dict(zip(keys, values, strict=True)))
    return Turn(
        "json", d.say(_OBJECT, lower=False, f=text), answer, thought=f"The keys are {', '.join(keys)}."
    )


def json_fact(d: Draw) -> Turn:
    """A question whose answer is wanted as an object."""
    if d.chance(0.5):
        country = d.one(tuple(facts.CAPITALS))
        question = d.one(
            ("What is the capital of {}?", "Capital of {}?", "Tell me the capital of {}.")
        ).format(sentence_name(country))
        value: dict[str, str | int] = {"country": country, "capital": facts.CAPITALS[country]}
    else:
        a, b = d.number(0, 60), d.number(0, 39)
        question = d.one(("What is {} + {}?", "Add {} and {}.", "{} + {}?")).format(a, b)
        value = {"result": a + b}
    return Turn(
        "json", d.say(_IN_JSON, q=question), json.dumps(value), thought="The answer must be a JSON object."
    )
