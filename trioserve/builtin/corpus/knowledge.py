"""Facts and figures: capitals, continents, sums, units, counting."""

from typing import Final

from trioserve.builtin.corpus import facts
from trioserve.builtin.corpus.draw import Draw, Phrases, counted
from trioserve.builtin.corpus.turns import Turn

_CAPITAL_OF: Final = Phrases(
    train=(
        "[What is|What's|Whats] the capital [city of|of] {c}[?|]",
        "[Tell me|Name|Give me] the capital of {c}[.|, please.|]",
        "What is {c}'s capital[?| city?]", "Capital of {c}[?|.|]", "{c} capital[?| city?|]",
        "{c}[?|] What is the capital?",
        "[Which|What] city is the capital of {c}?", "The capital of {c} is[?|...|]", "{c}: capital?",
        "[Do you know|Can you tell me|Please tell me|I want to know] the capital of {c}[?|.]",
        "[Can|Could] you [name|tell me] [{c}'s capital|the capital city of {c}]?",
        "Which city is {c}'s capital?",
        "[Please name|Say] the capital [of|city of] {c}.",
        "[I need|Look up|Find] the capital of {c}[.|, please.]",
        "What do you call the capital of {c}?", "What city do you find as the capital of {c}?",
        "In geography, what is the capital of {c}?", "What is the name of the capital of {c}?",
        "Quiz: [capital of {c}?|what is the capital of {c}?]", "[Hey|Hi|Hello], what is the capital of {c}?",
        "Please answer: what is the capital of {c}?", "I forgot the capital of {c}. [What is it?|Help me.]",
        "What is the main city and capital of {c}?", "{c} has which capital?", "Which capital does {c} have?",
    ),
    held_out=(
        "Could you please tell me what the capital of {c} is?",
        "Do you happen to know the capital city of {c}?",
        "Which city serves as the capital of {c}?", "Name {c}'s capital city.",
        "I'd like to know {c}'s capital.",
        "Hello! What's the capital of {c}, please?", "My question is: what is the capital of {c}?",
        "Tell me which city is the capital of {c}.", "What would be the capital of {c}?",
    ),
)  # fmt: skip

_COUNTRY_OF: Final = Phrases(
    train=(
        "{c} is the capital of [which|what] country[?|]",
        "[Which|What] country has {c} as [its|the] capital[?| city?]",
        "[Which|What] country has the capital {c}?", "{c} is the capital of[?|...|]",
        "Of which country is {c} the capital?",
        "[Tell me|Name|Say] the country whose capital is {c}.", "What is {c} the capital of?",
        "Which country is {c} in?",
        "[In which|In what] country is {c}?", "Whose capital is {c}?",
        "{c}[,|:] capital of [which|what] country?",
        "What country does {c} belong to?", "The city {c} is the capital of which country?",
    ),
    held_out=(
        "Tell me which country has {c} as its capital.", "Which country's capital is {c}?",
        "Do you know of which country {c} is the capital?", "{c} is the capital city of which country?",
    ),
)  # fmt: skip

_CONTINENT: Final = Phrases(
    train=(
        "[Which|What] continent is {c} [in|on|part of]?", "[On|In] [which|what] continent is {c}?",
        "{c} is in which continent?",
        "[Tell me|Name] the continent of {c}.", "What is the continent of {c}?", "Where in the world is {c}?",
    ),
    held_out=("Tell me on which continent {c} is.", "Which continent does {c} belong to?"),
)  # fmt: skip

_SUM: Final = Phrases(
    train=(
        "[What is|What's|Whats|Calculate|Compute|Solve|Evaluate|] {a} [+|plus] {b}[?|]", "{a}+{b}[=|=?|?|]",
        "{a} + {b} =[ ?|]",
        "[Add|Please add|Sum] {a} and {b}[.|]",
        "[What is|Calculate|Find|Give me] the sum of {a} and {b}[.|?]",
        "How much is {a} [+|plus] {b}[?|]", "[Tell me|Work out|Do the math:] {a} [+|plus] {b}[.|]",
        "{a} plus {b} is[?|]",
        "What do you get [if|when] you add {a} and {b}?", "[Can|Could] you [add|sum] {a} and {b}?",
        "{a} and {b} together?",
        "If I have {a} apples and get {b} more, how many do I have?",
        "What does {a} [+|plus] {b} [equal|make|give]?",
        "Add {b} to {a}.", "[Add|Sum up] {a} and {b} for me.", "I have {a} and {b}. [What is the sum?|Add them.]",
        "[Please compute|Sum up] {a} [+|plus] {b}.",
    ),
    held_out=(
        "Could you tell me what {a} + {b} is?", "Please work out {a} plus {b} for me.",
        "What is the total of {a} and {b}?",
        "Hi, how much is {a}+{b}?", "Please give me the sum of {a} and {b}.", "I need to know {a} + {b}.",
        "What do {a} and {b} add up to?", "Can you calculate {a} + {b}?",
    ),
)  # fmt: skip

_DIFFERENCE: Final = Phrases(
    train=(
        "[What is|What's|Calculate|Compute|] {a} [-|minus] {b}[?|]", "{a}-{b}[=|?|]", "{a} - {b} =",
        "Subtract {b} from {a}.",
        "How much is {a} [-|minus] {b}?", "[What is|Find] the difference [between|of] {a} and {b}[?|.]",
        "Take {b} away from {a}.",
        "What is left of {a} after taking {b}?", "[Work out|Tell me] {a} [-|minus] {b}.",
    ),
    held_out=(
        "Could you tell me what {a} minus {b} is?", "Can you calculate {a} - {b}?",
        "Please subtract {b} from {a}.",
    ),
)  # fmt: skip

_PRODUCT: Final = Phrases(
    train=(
        "[What is|What's|Calculate|Compute|] {a} [*|x|times] {b}[?|]", "{a}*{b}[=|?|]", "{a} * {b} =",
        "Multiply {a} [by|and|with] {b}.",
        "How much is {a} [*|times] {b}?", "[What is|Find] the product of {a} and {b}[?|.]",
        "[Work out|Tell me] {a} [*|times] {b}.",
    ),
    held_out=(
        "Could you tell me what {a} times {b} is?", "Can you calculate {a} * {b}?",
        "Please multiply {a} by {b}.",
    ),
)  # fmt: skip

_CONVERT: Final = Phrases(
    train=(
        "[How many|What number of] {t} [are|are there|do you have] in {q}[?|]",
        "[Convert|Change|Turn] {q} [to|into] {t}[.|]",
        "{q} in {t}[?|.|]", "What is {q} in {t}[?|]", "How many {t} is {q}?",
        "{q} [is|are|equals] how many {t}?",
        "[Express|Write|Give me] {q} in {t}.", "{q} to {t}[?|]", "How many {t} make {q}?",
    ),
    held_out=(
        "Could you convert {q} to {t}?", "I have {q}. How many {t} is that?", "Please express {q} in {t}.",
        "Tell me how many {t} there are in {q}.", "How much is {q} in {t}?",
    ),
)  # fmt: skip

_COUNT_UP: Final = Phrases(
    train=(
        "[Count|Please count|Can you count|Count up] from {a} to {b}[.|]", "Count {a} to {b}.",
        "[Say|Write|Show|Print] the numbers from {a} to {b}.",
        "[List|Give me] [all|the] numbers [from|between] {a} [to|and] {b}.", "Start at {a} and count to {b}.",
    ),
    held_out=(
        "Could you count from {a} up to {b}?", "I want you to count from {a} to {b}.",
        "Count for me: {a} to {b}.",
    ),
)  # fmt: skip

_COUNT_DOWN: Final = Phrases(
    train=(
        "Count [down|backwards|back] from {a} to {b}[.|]",
        "[Please count|Can you count] [down|backwards] from {a} to {b}?",
    ),
    held_out=("Start at {a} and count down to {b}.",),
)  # fmt: skip


def sentence_name(country: str) -> str:
    """The country as it stands inside a sentence."""
    return f"the {country}" if country in facts.ARTICLE_COUNTRIES else country


def capital(d: Draw) -> Turn:
    country = d.one(tuple(facts.CAPITALS))
    city, name = facts.CAPITALS[country], sentence_name(country)
    thought = f"The user asks for the capital of {name}. It is {city}."
    return Turn("capital", d.say(_CAPITAL_OF, c=name), f"The capital of {name} is {city}.", city, thought)


def country(d: Draw) -> Turn:
    name = d.one(tuple(facts.CAPITALS))
    city, inside = facts.CAPITALS[name], sentence_name(name)
    thought = f"{city} is the capital of {inside}."
    return Turn("country", d.say(_COUNTRY_OF, c=city), f"{city} is the capital of {inside}.", name, thought)


def continent(d: Draw) -> Turn:
    country = d.one(tuple(facts.CAPITALS))
    where, name = facts.CONTINENTS[country], sentence_name(country)
    answer = f"{name[0].upper()}{name[1:]} is in {where}."
    return Turn(
        "continent", d.say(_CONTINENT, c=name), answer, where, f"I think of the map. {name} is in {where}."
    )


def addition(d: Draw) -> Turn:
    """Sums below 100 most of the time, else of any two numbers below 100."""
    a = d.number(0, 99)
    b = d.number(0, 99 - a) if d.held_out or d.chance(0.85) else d.number(0, 99)
    if not d.held_out and d.chance(0.3):
        a, b = b, a
    words = max(a, b) <= 20 and d.chance(0.15) and not d.held_out
    shown = (facts.NUMBER_WORDS[a], facts.NUMBER_WORDS[b]) if words else (a, b)
    ones = a % 10 + b % 10
    tens = f"{a // 10} + {b // 10}{' + 1' if ones > 9 else ''} = {(a + b) // 10}"
    carry = f"{a % 10} + {b % 10} = {ones}. Tens: {tens}."
    thought = f"I add the ones: {carry} So {a} + {b} = {a + b}."
    return Turn("sum", d.say(_SUM, a=shown[0], b=shown[1]), f"{a} + {b} = {a + b}", str(a + b), thought)


def subtraction(d: Draw) -> Turn:
    a = d.number(0, 99)
    b = d.number(0, a)
    thought = f"I take {b} from {a}. {a} - {b} = {a - b}."
    return Turn("difference", d.say(_DIFFERENCE, a=a, b=b), f"{a} - {b} = {a - b}", str(a - b), thought)


def multiplication(d: Draw) -> Turn:
    a, b = d.number(0, 12), d.number(0, 12)
    thought = f"I multiply {a} by {b}. {a} * {b} = {a * b}."
    return Turn("product", d.say(_PRODUCT, a=a, b=b), f"{a} * {b} = {a * b}", str(a * b), thought)


def conversion(d: Draw) -> Turn:
    one, many, small_one, small_many, factor = d.one(facts.UNITS)
    count = d.number(1, 12)
    have = counted(count, one, many)
    if count == 1 and d.chance(0.4):
        have = ("an " if (one[0] in "aeiou" and one != "euro") or one == "hour" else "a ") + one
    less = counted(count * factor, small_one, small_many)
    answer = f"{counted(count, one, many)} {'is' if count == 1 else 'are'} {less}."
    thought = f"1 {one} is {factor} {small_many}. {count} * {factor} = {count * factor}."
    return Turn("conversion", d.say(_CONVERT, q=have, t=small_many), answer, str(count * factor), thought)


def counting(d: Draw) -> Turn:
    """Up or down by one, up to 100 numbers long: something to stream."""
    low = d.one((1, 1, 1, 0, d.number(2, 60)))
    high = min(100, low + (d.number(2, 20) if d.chance(0.85) else d.number(20, 99)))
    down = d.chance(0.2)
    numbers = range(high, low - 1, -1) if down else range(low, high + 1)
    user = d.say(_COUNT_DOWN, a=high, b=low) if down else d.say(_COUNT_UP, a=low, b=high)
    return Turn("counting", user, ", ".join(map(str, numbers)), thought="I name one number after the other.")
