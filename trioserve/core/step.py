"""What crosses between the front and the works, one msgpack array a frame.

A plan is a delta: a sequence's tokens, parameters and block table cross once, in its Admission; afterwards the rank
keeps them by slot and a decode step names only the slot and, now and then, a new block. Frames are tagged unions, so
that one decoder reads whatever comes. What a step makes for each sequence is left out of garbage collection (gc=False):
nothing that it holds leads back to it. (vLLM calls StepPlan and StepResult SchedulerOutput and ModelRunnerOutput.)
"""

from typing import Final

from msgspec import Struct

from trioserve.core.sampling import Grammar, SamplingParams

MAX_GUESSES: Final = 16
"""Tokens that may be guessed for a sequence in one step at most."""


class Speculation(Struct, frozen=True, array_like=True):
    """How a rank guesses tokens: those that followed an earlier occurrence of a sequence's last ones."""

    num_tokens: int
    """Guessed for a sequence in one step at most; up to MAX_GUESSES."""
    shortest: int
    """Last tokens that must have occurred before, at least 1."""
    longest: int
    """Last tokens that are looked for at most; the more occurred before, the better."""


class Spread(Struct, frozen=True, array_like=True):
    """Of ranks on several machines: where a rank finds the others, and which of its machine's it is."""

    meeting_address: str
    """HOST:PORT of rank 0, where they leave each other's addresses."""
    local_rank: int
    num_local_ranks: int


class WorkerConfig(Struct, frozen=True, array_like=True, kw_only=True, tag="config"):
    """The first frame a rank receives: all it needs to know to load the model."""

    model_path: str
    """A local Hugging Face folder; empty: the one that the rank was started with, on its own machine."""
    device: str
    """"cpu" or "cuda": then of the GPUs that are visible the one whose number is ``tp_rank``."""
    dtype: str
    """"auto", "bfloat16", "float16" or "float32"; auto takes the checkpoint's."""
    tp_rank: int
    tp_size: int
    block_size: int
    """Tokens a KV block holds."""
    max_num_seqs: int
    """Slots, numbered from 0."""
    max_num_batched_tokens: int
    max_model_len: int
    """Tokens of prompt and answer together."""
    num_blocks: int | None
    """KV blocks to allocate; None: as many as fit into ``kv_cache_bytes``."""
    kv_cache_bytes: int
    """Of all ranks together; 0: what ``max_num_seqs`` sequences of ``max_model_len`` need, at most a share of the free
    memory."""
    num_threads: int
    """Threads for the arithmetic of each rank; 0: one per physical core that is its share."""
    load_format: str = "auto"
    """"auto" reads safetensors; "dummy" makes seeded random weights."""
    seed: int = 0
    kv_cache_share: float | None = None
    """Of the memory that is free once the weights are loaded; None: as ``kv_cache_bytes`` says. In (0, 1)."""
    tokenizer_path: str = ""
    """The folder of the tokenizer, for grammars; empty where no grammar will come."""
    eos_token_ids: list[int] = []
    """What ends an answer that a grammar lets end."""
    grammar_backend: str = ""
    """Which of ``trioserve.grammars`` enforces grammars; empty where no grammar will come."""
    max_cached_grammars: int = 256
    """Grammars to keep ready."""
    quantization: str = "auto"
    """What the weights are brought to: "none", "int8" or "int4", or on a GPU "fp8"; "auto" keeps the checkpoint's."""
    use_warmup: bool = False
    """Whether to compute a full prompt and decodes of many batch sizes before WorkerReady."""
    speculation: Speculation | None = None
    """How to guess tokens; None: not at all."""
    kv_cache_dtype: str = "auto"
    """"auto" keeps keys and values in the weights' type; "bfloat16" or "fp8", or on a CPU "int8"."""
    pin_threads: bool | None = None
    """Whether threads keep to a core each while a step runs; None: where they are as many as there are cores."""
    gpu_memory_utilization: float = 0.9
    """Share of the GPU's memory that the rank may use in all, where nothing else sizes its KV cache."""
    swap_bytes: int = 0
    """Of host memory, of this rank alone, for KV blocks that the GPU has no room for."""
    enforce_eager: bool = False
    """Whether no graphs are captured."""
    batch_invariant: bool = False
    """Whether a sequence's numbers may not depend on what is computed beside it."""
    meeting_fd: int = -1
    """Memory without a name that all ranks have inherited, where they meet; -1 where there is one rank. Where they are
    on several machines, the socket that listens at ``spread.meeting_address``, on rank 0 alone."""
    spread: Spread | None = None
    """None: all ranks are on one machine."""

    @property
    def local_rank(self) -> int:
        """Which of the ranks of its machine it is, from 0."""
        return self.tp_rank if self.spread is None else self.spread.local_rank

    @property
    def num_local_ranks(self) -> int:
        """Ranks that share its machine's cores and memory."""
        return self.tp_size if self.spread is None else self.spread.num_local_ranks

    @property
    def meeting_address(self) -> str:
        """Where ranks of several machines meet; empty where they are on one."""
        return "" if self.spread is None else self.spread.meeting_address


class LoadProgress(Struct, frozen=True, array_like=True, tag="progress"):
    """How far a rank has loaded its weights, or captured its graphs; any number of these before WorkerReady."""

    loaded_bytes: int
    total_bytes: int
    num_graphs: int = 0
    """Sizes of steps whose graphs are captured."""
    total_graphs: int = 0
    """0: weights are loaded, and there may be graphs later."""


class WorkerReady(Struct, frozen=True, array_like=True, kw_only=True, tag="ready"):
    """A rank can take plans."""

    tp_rank: int
    num_blocks: int
    """KV blocks this rank holds; the engine takes the least of all ranks."""
    load_s: float
    """Seconds from process start to weights packed."""
    kv_cache_bytes: int
    weights_bytes: int
    """As they are kept."""
    dtype: str
    attention: str
    """Which implementation of attention runs, such as "cpu-avx512"."""
    decoder: str = ""
    """What computes the steps, such as "native avx512 int8, 2 threads"; or torch's layers, and why."""
    phases_s: dict[str, float] = {}
    """Seconds of each part of the start, in their order and by their names."""
    max_drafting_seqs: int = 0
    """Sequences of a step beyond which guessing tokens cannot pay, as was measured; 0: it never does."""
    kv_cache_dtype: str = ""
    """What the KV cache holds, such as "bfloat16" or "int8"."""
    device: str = "CPU"
    """What the steps are computed on, such as "NVIDIA H100"."""
    num_host_blocks: int = 0
    """KV blocks that this rank can keep in host memory beside those of a GPU; the engine takes the least of all
    ranks."""
    num_graphs: int = 0
    """Graphs that were captured for steps."""


class Admission(Struct, frozen=True, array_like=True):
    """A sequence that enters a slot, new or back from preemption."""

    slot: int
    seq_id: int
    token_ids: list[int]
    """Prompt and, after a preemption, the tokens generated so far."""
    num_prompt_tokens: int
    num_computed_tokens: int
    """Leading tokens whose KV the first blocks of the table already hold."""
    block_table: list[int]
    params: SamplingParams


class SlotWork(Struct, frozen=True, array_like=True, gc=False):
    """The tokens of one slot in one step.

    The rank computes the next ``num_tokens`` tokens of the slot, from where it stands. When that reaches the last token
    it knows, it samples one more, appends it and reports it; otherwise the step is an inner prefill chunk.

    A slot that has sampled since its admission computes all the tokens that it knows: ``num_tokens``, and those that
    were forced in a step whose result the front had not seen. Its blocks have room for MAX_FORCED_TOKENS of them for
    each such step. What was guessed and found right is computed already. A slot that knows all the tokens it may ever
    have, or whose grammar has failed, does nothing and reports nothing.
    """

    slot: int
    num_tokens: int
    new_block_ids: list[int]
    """Appended to the slot's block table before the step."""


class StepPlan(Struct, frozen=True, array_like=True, omit_defaults=True, tag="plan"):
    """One step, the same bytes for every rank; carried out in the order swapped out, swapped in, released, admitted,
    work."""

    step_id: int
    """Counts up by one."""
    released: list[int]
    """Slots that are free again."""
    admitted: list[Admission]
    work: list[SlotWork]
    num_drafts: int = 0
    """Tokens that the rank may guess and compute behind the known ones of each slot that decodes, as far as its blocks
    have room for these and one more. Those that turn out right are the sequence's, and so is the one behind them."""
    swapped_out: list[tuple[int, int]] = []
    """(block, host block): the block's keys and values are copied to the host before anything is written over them. No
    host block is named twice."""
    swapped_in: list[tuple[int, int]] = []
    """(block, host block): the host's keys and values are copied to the block; it may be one whose own have just moved
    out, and the host block one that they have moved to. No block is named twice."""


class TokenLogprobs(Struct, frozen=True, array_like=True):
    """Log probabilities at one position, natural logarithm, of the distribution that the parameters ask for."""

    logprob: float
    """Of the chosen token; -inf is sent as -9999.0."""
    top_ids: list[int]
    """The likeliest ids, likeliest first."""
    top_logprobs: list[float]


class SampledToken(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """What one slot sampled in one step."""

    slot: int
    seq_id: int
    token_id: int
    logprobs: TokenLogprobs | None = None
    is_certain: bool = False
    """Whether the model gave it more than the probability that ``params.early_stop`` names."""
    forced: list[int] = []
    """The ids that follow it without a choice, at most MAX_FORCED_TOKENS: a grammar, or a budget of thinking that is
    spent, leaves no other. The rank has appended them, too, and computes them with the slot's next work."""
    failure: str = ""
    """Why the slot's grammar cannot go on, where it cannot: too complex. ``token_id`` is then of no use."""


class PromptLogprobs(Struct, frozen=True, array_like=True):
    """Log probabilities of a stretch of a prompt, each token's given those before it, before any edit or temperature.

    Packed, because a chunk of a prompt may have a million of them.
    """

    seq_id: int
    start: int
    """Which token of the prompt is the first here; at least 1, since the first of all follows nothing."""
    logprobs: bytes
    """[num_tokens] float32, as all numbers here of this machine's byte order; -inf is sent as -9999.0"""
    top_ids: bytes
    """[num_tokens, params.prompt_logprobs] int32, the likeliest ids of each position, likeliest first"""
    top_logprobs: bytes
    """[num_tokens, params.prompt_logprobs] float32"""
    ranks: bytes
    """[num_tokens] int32, the place of each token among all of the vocabulary, likeliest first, from 1"""


class StepResult(Struct, frozen=True, array_like=True, tag="result"):
    """What came of one plan; results come in the order of plans."""

    step_id: int
    sampled: list[SampledToken]
    step_s: float
    """Seconds the rank spent on the step."""
    prompt_logprobs: list[PromptLogprobs] = []
    """Of those sequences of the step that ask for them; a stretch may come again after a preemption."""
    more: list[list[SampledToken]] = []
    """In rounds, the tokens of sequences whose guesses were right: behind that of ``sampled``, then behind that of the
    round before. Their keys and values are computed, but for the last one's."""
    num_drafted: list[int] = []
    """How many sequences had one guess or more, two or more, and so on."""


class GrammarRequest(Struct, frozen=True, array_like=True, tag="grammar"):
    """Make a grammar ready, off the step loop: sequences that need it are admitted when it is. For rank 0 alone, which
    chooses the tokens."""

    grammar: Grammar
    forgotten: list[bytes] = []
    """Keys of grammars that are ready and need not be kept: no sequence has them. Those that are kept are then fewer
    than ``max_cached_grammars``; of them, none may be dropped, since whoever needs it may wait for a slot already."""


class GrammarReady(Struct, frozen=True, array_like=True, tag="grammar_ready"):
    """The answer to a GrammarRequest; may come between any two results."""

    key: bytes
    error: str = ""
    """Why it cannot be used, where it cannot."""


class WorkerError(Struct, frozen=True, array_like=True, tag="error"):
    """The rank's last frame: it could not load or a step raised; the process ends after it."""

    kind: str
    """"model" where the folder or the settings are at fault, else "internal"."""
    message: str
    """One line for the log."""


ToWorker = WorkerConfig | StepPlan | GrammarRequest
FromWorker = LoadProgress | WorkerReady | StepResult | GrammarReady | WorkerError
