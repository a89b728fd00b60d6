"""Answers that are held to grammars and budgets of thinking: the built-in model in a runner, llguidance behind it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLParserLimits

import trioserve.builtin
from tests.worker.driver import BLOCK_SIZE, Front
from trioserve.core.sampling import MAX_FORCED_TOKENS, Grammar, SamplingParams, ThinkingBudget
from trioserve.core.step import (
    Admission,
    SampledToken,
    SlotWork,
    StepPlan,
)
from trioserve.grammars import guidance
from trioserve.grammars.guidance import load_tokenizer

FOLDER = Path(trioserve.builtin.__file__).parent / "model"
EOS = [2, 0]
SETTINGS: dict[str, Any] = {
    "tokenizer_path": str(FOLDER),
    "eos_token_ids": EOS,
    "grammar_backend": "guidance",
    "num_blocks": 64,
}
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "place_of_birth": {"enum": ["Paris", "Parma", "Lisbon"]},
        "is_a_member_of_the_club": {"type": "boolean"},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "place_of_birth", "is_a_member_of_the_club", "age"],
    "additionalProperties": False,
}
TOKENIZER = load_tokenizer(FOLDER, 4096, tuple(EOS))


def ids_of(text: str) -> list[int]:
    return TOKENIZER.tokenize_str(text, parse_special=True)


def text_of(token_ids: Sequence[int]) -> str:
    return TOKENIZER.decode_str([token_id for token_id in token_ids if token_id not in EOS])


def grammar(text: str, key: bytes | None = None) -> Grammar:
    return Grammar("guidance", text, key or text.encode())


def json_grammar(schema: object) -> Grammar:
    return grammar(
        LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})
    )


def regex(pattern: str) -> Grammar:
    return grammar(LLMatcher.grammar_from_regex(pattern))


PROMPT = ids_of("<|im_start|>user\nTell me about a person.<|im_end|>\n<|im_start|>assistant\n")


def params(**fields: Any) -> SamplingParams:
    values: dict[str, Any] = {"max_tokens": 90, "temperature": 0.0, "stop_token_ids": tuple(EOS)}
    return SamplingParams(**values | fields)


def front() -> Front:
    return Front.of(FOLDER, **SETTINGS)


def run(at: Front, slot: int, one: SamplingParams, prompt: list[int] = PROMPT) -> list[int]:
    """The whole answer of a sequence that is alone, up to its end as the front sees it."""
    at.admit(slot, prompt, one)
    samples = at.step(**{f"s{slot}": len(prompt)})
    while samples and not is_over(at.outputs[slot], one):
        samples = at.step(**{f"s{slot}": 1})
    at.release(slot)
    return at.outputs[slot]


def is_over(output: list[int], one: SamplingParams) -> bool:
    return bool(output) and (output[-1] in one.stop_token_ids or len(output) >= one.max_tokens)


def num_steps(at: Front, slot: int) -> int:
    return len(at.samples[slot])


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_with_jumps_is_the_answer_without_them_in_fewer_steps(seed: int) -> None:
    """Log probabilities keep a sequence from being forced, and change nothing else."""
    at = front()
    fields = {"temperature": 0.8 if seed else 0.0, "seed": seed, "grammar": json_grammar(PERSON)}
    jumping, plodding = run(at, 0, params(**fields)), run(at, 1, params(**fields, logprobs=0))
    assert set(json.loads(text_of(jumping))) == set(PERSON["properties"])
    assert jumping == plodding
    assert jumping[-1] == EOS[0]
    assert num_steps(at, 1) == len(plodding)
    assert num_steps(at, 0) < len(jumping) / 2
    assert all(len(sample.forced) <= MAX_FORCED_TOKENS for sample in at.samples[0])
    assert not any(sample.forced for sample in at.samples[1])


def test_plans_made_before_results_are_known_compute_all_that_the_rank_knows() -> None:
    """A front that always plans one token, and goes on planning after the end, which then is nothing."""
    at, one = front(), params(grammar=json_grammar(PERSON))
    expected = run(at, 0, one)
    at.admit(1, PROMPT, one)
    plans = [at.plan(s1=len(PROMPT)), *(at.plan(s1=1) for _ in range(num_steps(at, 0) + 3))]
    results = [at.execute(plan) for plan in plans]
    for result in results:
        at.take(result)
    assert at.outputs[1] == expected
    assert [len(result.sampled) for result in results] == [1] * num_steps(at, 0) + [0] * 4


def test_steps_go_on_for_the_others_when_one_has_ended() -> None:
    at, free = front(), params(stop_token_ids=())
    expected = run(at, 0, params(stop_token_ids=(), max_tokens=8))
    at.admit(0, PROMPT, free)
    at.admit(1, PROMPT, params(grammar=regex("Yes|No")))
    at.step(s0=len(PROMPT), s1=len(PROMPT))
    for _ in range(7):
        at.step(s0=1, s1=1)
    assert at.outputs[0] == expected
    assert text_of(at.outputs[1]) in ("Yes", "No")
    at.release(1)
    at.admit(1, PROMPT, params(grammar=regex("maybe")))
    at.step(s0=1, s1=len(PROMPT))
    assert text_of(at.outputs[1]) == "maybe"


def test_a_slot_that_others_had_before_begins_afresh() -> None:
    at = front()
    assert text_of(run(at, 0, params(grammar=regex("one")))) == "one"
    assert text_of(run(at, 0, params(grammar=regex("two")))) == "two"
    at.admit(0, PROMPT, params(stop_token_ids=()))
    at.step(s0=len(PROMPT))
    at.decode(5, 0)
    assert len(at.outputs[0]) == 6


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 6, 7, 20])
def test_no_answer_is_longer_than_it_may_be(max_tokens: int) -> None:
    at = front()
    whole = run(at, 0, params(grammar=json_grammar(PERSON)))
    one = params(grammar=json_grammar(PERSON), max_tokens=max_tokens)
    assert run(at, 1, one) == whole[:max_tokens]
    at.admit(2, PROMPT, one)
    at.step(s2=len(PROMPT))
    for _ in range(max_tokens + 3):
        at.step(s2=1)
    assert at.outputs[2] == whole[:max_tokens]


def test_no_answer_goes_beyond_the_context() -> None:
    at, prompt = front(), (PROMPT * 9)[:119]
    assert len(run(at, 0, params(grammar=regex("a{50}"), max_tokens=9), prompt)) == 9
    at.admit(1, prompt, params(grammar=regex("a{50}"), max_tokens=50))
    at.step(s1=len(prompt))
    for _ in range(9):
        at.step(s1=1)
    assert len(at.outputs[1]) == 9


@pytest.mark.parametrize("logprobs", [None, 0])
@pytest.mark.parametrize("num_known", [1, 3, 9, 14, 21])
def test_a_sequence_back_from_preemption_goes_on_where_it_was(num_known: int, logprobs: int | None) -> None:
    at, one = front(), params(grammar=json_grammar(PERSON), logprobs=logprobs)
    whole = run(at, 0, one)
    assert len(whole) > num_known
    tokens = PROMPT + whole[:num_known]
    at.admit(1, tokens, one, num_prompt_tokens=len(PROMPT))
    at.step(s1=len(PROMPT) - 3)
    at.step(s1=3 + num_known)
    while not is_over(at.outputs[1], one):
        at.step(s1=1)
    assert at.outputs[1] == whole


def test_the_blocks_must_have_room_for_all_that_is_known() -> None:
    at, one = front(), params(grammar=regex("a{200}"))
    blocks = list(range(-(-len(PROMPT) // BLOCK_SIZE)))
    admission = Admission(0, 1, PROMPT, len(PROMPT), 0, blocks, one)
    at.execute(StepPlan(0, [], [admission], [SlotWork(0, len(PROMPT), [])]))
    beyond = StepPlan(1, [], [], [SlotWork(0, 1, [])])
    with pytest.raises(AssertionError, match="blocks given"):
        at.execute(beyond)


def test_a_grammar_that_becomes_too_complex_fails_its_sequence_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that goes anywhere, so that the lexer meets more states than it may."""
    monkeypatch.setattr(guidance, "LIMITS", LLParserLimits(max_lexer_states=1000, verbose_errors=False))
    at = front()
    hard = params(grammar=regex("(.{1,200}x){1,50}y"), temperature=50.0)
    at.admit(0, PROMPT, hard)
    at.admit(1, PROMPT, params(stop_token_ids=()))
    samples = at.step(s0=len(PROMPT), s1=len(PROMPT))
    while not samples[0].failure:
        assert len(at.outputs[0]) < 90, "it has become cheaper: the test shows nothing"
        samples = at.step(s0=1, s1=1)
    assert samples[0].failure.startswith("lexer error")
    assert [sample.slot for sample in at.step(s0=1, s1=1)] == [1]
    at.release(0)
    at.admit(0, PROMPT, hard)
    assert [sample.failure for sample in at.step(s0=len(PROMPT), s1=1)] == ["", ""]


def budget(max_tokens: int, *, is_open: bool = True) -> ThinkingBudget:
    return ThinkingBudget(
        begins=("<think>",),
        ends=("</think>",),
        is_open=is_open,
        max_tokens=max_tokens,
        forced_end=tuple(ids_of("\n</think>\n\n")),
    )


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
@pytest.mark.parametrize("logprobs", [None, 0])
def test_thinking_ends_when_its_budget_is_spent_and_the_answer_follows(
    max_tokens: int, logprobs: int | None
) -> None:
    at = front()
    one = params(thinking=budget(max_tokens), logprobs=logprobs, stop_token_ids=(), max_tokens=30)
    prompt = [*PROMPT, *ids_of("<think>\n")]
    output = run(at, 0, one, prompt)
    unbounded = run(at, 1, params(stop_token_ids=(), max_tokens=30), prompt)
    end = list(one.thinking.forced_end) if one.thinking else []
    assert output[: max_tokens + len(end)] == unbounded[:max_tokens] + end
    assert len(output) == 30
    assert (num_steps(at, 0) < 30) == (logprobs is None)


def test_a_budget_and_a_grammar_go_together() -> None:
    """The grammar covers the thinking; the end that is forced is part of it."""
    text = 'start: /(?s:.*?)/ <[4]> "\\n\\n" answer\nanswer: "Paris is it" | "Rome"\n'
    at = front()
    for max_tokens in (0, 3):
        one = params(thinking=budget(max_tokens), grammar=grammar(text))
        output = run(at, 0, one, [*PROMPT, *ids_of("<think>\n")])
        before, _, after = text_of(output).partition("\n</think>\n\n")
        assert after in ("Paris is it", "Rome")
        assert len(ids_of(before)) <= max_tokens


@pytest.mark.parametrize("num_known", range(1, 12))
def test_a_budget_is_remembered_over_a_preemption(num_known: int) -> None:
    at, one = front(), params(thinking=budget(5), stop_token_ids=(), max_tokens=16)
    prompt = [*PROMPT, *ids_of("<think>\n")]
    whole = run(at, 0, one, prompt)
    at.admit(1, prompt + whole[:num_known], one, num_prompt_tokens=len(prompt))
    at.step(s1=len(prompt) + num_known)
    while not is_over(at.outputs[1], one):
        at.step(s1=1)
    assert at.outputs[1] == whole


def failure_of(at: Front, one: SamplingParams) -> SampledToken:
    """The only report of a sequence that cannot be held to its grammar."""
    at.admit(0, PROMPT, one)
    (sampled,) = at.step(s0=len(PROMPT))
    assert at.step(s0=1) == []
    at.release(0)
    return sampled


def test_a_grammar_that_cannot_be_compiled_after_all_is_a_failure_of_its_sequence_alone() -> None:
    at = front()
    assert failure_of(at, params(grammar=grammar("start: nothing\n"))).failure
    assert text_of(run(at, 0, params(grammar=regex("fine")))) == "fine"


def test_a_rank_without_a_backend_says_so() -> None:
    for changes in ({"grammar_backend": ""}, {"grammar_backend": "unheard_of"}):
        at = Front.of(FOLDER, **SETTINGS | changes)
        assert "grammar" in failure_of(at, params(grammar=regex("a"))).failure
        assert run(at, 0, params(thinking=budget(0), max_tokens=4))[0] == ids_of("\n</think>\n\n")[0]
