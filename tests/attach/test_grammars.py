"""Grammars and thinking of sequences that run at the owner for another process."""

import trio

from tests.attach.pairs import attached, owning, until
from tests.engine.test_engine import read_all, sequence
from trioserve.core.sampling import Grammar, ThinkingBudget
from trioserve.core.sequence import FinishReason

GRAMMAR = Grammar("any", "text", b"key")
THINKING = ThinkingBudget(begins=("b",), ends=("ef",), is_open=False, max_tokens=9, forced_end=(4, 5))


async def test_an_attached_process_gets_forced_tokens_and_counts_of_thinking() -> None:
    async with owning() as owner, attached(owner.seats[1]) as engine:
        owner.executor.rank.forced = lambda token_ids: [token_ids[-1] + 1, token_ids[-1] + 2]
        with engine.stream([sequence(0, max_tokens=10, grammar=GRAMMAR, thinking=THINKING)]) as mailbox:
            await mailbox.wait_admitted()
            delta = (await read_all(mailbox))[0]
    assert (delta.text, delta.finish_reason) == ("bcdefghijk", FinishReason.LENGTH)
    assert (delta.usage.num_output_tokens, delta.usage.num_reasoning_tokens) == (10, 5)


async def test_an_attached_process_hears_why_a_grammar_failed() -> None:
    async with owning() as owner, attached(owner.seats[1]) as engine:
        owner.executor.rank.failure = lambda token_ids: "too complex" if len(token_ids) > 3 else ""
        with engine.stream([sequence(0, grammar=GRAMMAR)]) as mailbox:
            delta = (await read_all(mailbox))[0]
        assert (delta.finish_reason, delta.error, delta.text) == (FinishReason.GRAMMAR, "too complex", "bcd")
        owner.executor.grammar_errors[b"bad"] = "too large"
        with engine.stream([sequence(0, grammar=Grammar("any", "other", b"bad"))]) as mailbox:
            delta = (await read_all(mailbox))[0]
        assert (delta.finish_reason, delta.error) == (FinishReason.GRAMMAR, "too large")


async def test_who_leaves_while_its_grammar_is_made_leaves_nothing_with_the_owner() -> None:
    async with owning() as owner, attached(owner.seats[1]) as engine:
        owner.executor.grammar_s = 0.2
        with trio.move_on_after(0.05), engine.stream([sequence(0, grammar=GRAMMAR)]) as mailbox:
            await mailbox.wait_admitted()
            assert owner.engine.statistics().num_waiting == 1
            await mailbox.receive()
        await until(lambda: owner.engine.statistics().num_streams == 0)
        counts = owner.engine.statistics()
        assert (counts.num_waiting, counts.num_waiting_tokens) == (0, 0)
        assert counts.num_free_blocks == counts.num_blocks
