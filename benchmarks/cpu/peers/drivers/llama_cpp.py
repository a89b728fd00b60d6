"""llama.cpp through llama-cpp-python's bindings: one batch a step, all sequences in it."""

import ctypes

import llama_cpp
import numpy as np

from benchmarks.cpu.peers.face import Timeline

_BATCH_TOKENS = 2048
"""That one call takes at most; llama.cpp cuts it as it likes."""


class LlamaCpp:
    """One model, and a context that fits the last batch asked for."""

    def __init__(self, path: str, num_threads: int) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"{path} was not loaded")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._num_threads = num_threads
        self._batch = llama_cpp.llama_batch_init(_BATCH_TOKENS, 0, 1)
        self._context: int | None = None
        self._fits = (0, 0)

    def generate(self, prompts: list[list[int]], timeline: Timeline) -> list[list[int]]:
        length = len(prompts[0])
        self._make_room(len(prompts), length + timeline.num_tokens)
        answers: list[list[int]] = [[] for _ in prompts]
        per_call = _BATCH_TOKENS // length
        for first in range(0, len(prompts), per_call):
            indices = range(first, min(first + per_call, len(prompts)))
            self._step({index: prompts[index] for index in indices}, 0, answers)
            timeline.tick(indices)
        for step in range(timeline.num_tokens - 1):
            self._step({index: answers[index][-1:] for index in range(len(prompts))}, length + step, answers)
            timeline.tick(range(len(prompts)))
        return answers

    def _make_room(self, num_seqs: int, num_tokens: int) -> None:
        """An empty cache for so many sequences of so many tokens; a new context only if the last one was for others."""
        if self._fits != (num_seqs, num_tokens):
            if self._context is not None:
                llama_cpp.llama_free(self._context)
            params = llama_cpp.llama_context_default_params()
            params.n_ctx = num_seqs * -(-num_tokens // 256) * 256
            params.n_batch = _BATCH_TOKENS
            params.n_seq_max = num_seqs
            params.n_threads = params.n_threads_batch = self._num_threads
            params.kv_unified = False
            params.no_perf = True
            self._context = llama_cpp.llama_init_from_model(self._model, params)
            self._fits = (num_seqs, num_tokens)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)

    def _step(self, tokens: dict[int, list[int]], position: int, answers: list[list[int]]) -> None:
        """Compute ``tokens`` of each sequence from ``position`` on, and append the likeliest next one to its answer."""
        batch, at = self._batch, 0
        for index, token_ids in tokens.items():
            for offset, token_id in enumerate(token_ids):
                batch.token[at] = token_id
                batch.pos[at] = position + offset
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = index
                batch.logits[at] = offset == len(token_ids) - 1
                at += 1
        batch.n_tokens = at
        if (code := llama_cpp.llama_decode(self._context, batch)) != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        logits = ctypes.cast(llama_cpp.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float))
        likeliest = np.ctypeslib.as_array(logits, (len(tokens), self._vocab_size)).argmax(1)
        for index, token_id in zip(tokens, likeliest.tolist(), strict=True):
            answers[index].append(token_id)


def open_driver(path: str, variant: str, num_threads: int) -> LlamaCpp:
    """``variant`` lies in the file."""
    return LlamaCpp(path, num_threads)
