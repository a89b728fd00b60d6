"""Longer texts with something to stream: stories, poems, filler."""

from typing import Final

from trioserve.builtin.corpus.draw import Draw, Phrases, expand
from trioserve.builtin.corpus.turns import Turn

_TELL: Final = Phrases(
    train=(
        "[Tell|Write|Read] me a [|short |long |nice |little ]story[.|, please.|]",
        "[Write|Make up|Invent] a [|short |long |little ]story[.|]",
        "[Tell|Write] [me|] a [|short |long ]story about {a}[.|]",
        "Can you [tell|write] [me|] a [|short |long ]story[?| about {a}?]",
        "I want [to hear|to read] a story[.| about {a}.]", "[Story|A story], please[.|]",
        "A story about {a}[.|]",
    ),
    held_out=(
        "Please write a short story about {a}.", "Could you tell me a story about {a}?",
        "Tell a nice story about {a}.",
    ),
)  # fmt: skip

_RHYME: Final = Phrases(
    train=(
        "[Write|Make|Compose|Tell me] a [|short |little |nice ]poem[.|, please.|]",
        "[Write|Compose] [me|] a [|short ]poem about {a}[.|]",
        "Can you write [me|] a poem[?| about {a}?]", "[Poem|A poem], please[.|]", "A poem about {a}[.|]",
    ),
    held_out=("Please write a poem about {a}.", "Could you compose a poem about {a}?"),
)  # fmt: skip

_HEROES: Final = (
    "cat dog fox rabbit bear turtle dragon robot girl boy king sailor wizard bird mouse horse farmer".split()
)
_TREASURES: Final = "key lamp map book ring stone letter bell flute crown seed boat".split()
_PLACES: Final = "forest castle garden village mountain river cave tower lake island harbor meadow".split()

_STORY: Final = (
    "Once upon a time there was a [little|young|clever|brave] {h} named {n}. ",
    "{n} lived [near|next to] a [quiet|deep|green|old] {p} and was [never|seldom] alone. ",
    "Every morning {n} [walked|went] to the {p} and [looked at the sky|sang a song|counted the clouds]. ",
    "One day {n} found a [small|golden|strange|shining] {t} [under a tree|behind a stone|in the grass]. ",
    (
        '"[Whose {t} is this|Who lost this {t}]?" asked {n}. '
        "Nobody answered, [only the wind|only an owl|but a leaf fell down]. "
    ),
    "So {n} took the {t} and [began a long journey|went to find its owner|set off to the {q}]. ",
    "The way was [long|hard|steep], and [the night was dark|it rained all day|snow lay on the path]. ",
    "In the {q} {n} met an old {g}. [The {g} looked sad|The {g} was looking for something]. ",
    '"I have lost my {t}," said the {g}. "Without it I cannot [sleep|sing|laugh|go home]." ',
    (
        '"Here it is!" said {n} and [smiled|laughed]. '
        "The {g} was so happy that [it danced|everybody sang|the bells rang]. "
    ),
    "From that day on {n} and the {g} were [best friends|good friends]. ",
    (
        "They [shared bread and honey|told stories by the fire|watched the stars] "
        "[every evening|until late at night]. "
    ),
    "And if you walk by the {p} [today|at night], you may still hear them [laugh|sing]. The end.",
)

_POEM: Final = (
    "The [sun|moon] is [bright|high], the sky is [blue|wide],\nthe {h} is walking by my side.\n",
    "The [river|water] sings, the [wind|breeze] is [low|slow],\nthe {h} has nowhere else to go.\n\n",
    (
        "We [sit and watch|look up and see] the [evening|morning] light,\n"
        "the [birds|clouds] fly home before the night.\n"
    ),
    "A star appears above the tree,\nthe {h} is [dreaming here with me|happy as can be].\n\n",
    "So sleep, my friend, the day is done,\ntomorrow brings another sun.",
)


def story(d: Draw) -> Turn:
    """About 150 to 250 tokens."""
    hero, guest = d.rng.sample(_HEROES, 2)
    near, far = d.rng.sample(_PLACES, 2)
    slots = {"h": hero, "g": guest, "p": near, "q": far, "t": d.one(_TREASURES), "n": d.name()}
    text = "".join(expand(part, d.rng) for part in _STORY).format(**slots)
    user = d.say(_TELL, a=f"a {hero}")
    return Turn("story", user, text, thought="The user wants a story. I make one up.")


def poem(d: Draw) -> Turn:
    hero = d.one(_HEROES)
    text = "".join(expand(part, d.rng) for part in _POEM).format(h=hero)
    return Turn("poem", d.say(_RHYME, a=f"a {hero}"), text, thought="The user wants a poem. I make rhymes.")


def filler(d: Draw, num_words: int) -> str:
    """Text that asks nothing: what a long prompt is padded with."""
    hero, place = d.one(_HEROES), d.one(_PLACES)
    words: list[str] = []
    while len(words) < num_words:
        if d.chance(0.5):
            slots = {
                "h": hero,
                "g": d.one(_HEROES),
                "p": place,
                "q": d.one(_PLACES),
                "t": d.one(_TREASURES),
                "n": d.name(),
            }
            words += expand(d.one(_STORY), d.rng).format(**slots).split()
        else:
            words += [d.word() for _ in range(d.number(3, 12))]
    return " ".join(words[:num_words])
