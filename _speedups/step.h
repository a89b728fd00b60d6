// step.h: the tensors of one step, and whether they stay within the tables that they index.
#pragma once

#include <cstdint>

#include "isa.h"

namespace trioserve {

// One step, as ForwardBatch in trioserve/model/batch.py; all addresses are the caller's.
struct Step {
    const int64_t* token_ids;
    const int64_t* positions;
    const int64_t* slot_mapping;
    const int* cu_seqlens_q;
    const int* seq_lens;
    const int* block_tables;
    const int64_t* sample_rows;
    char* const* k_caches;  // [num_layers], as kv_cache.h says
    char* const* v_caches;
    bf16* hidden;  // [num_samples][hidden_size], what comes out
    int num_tokens, num_seqs, num_samples, max_blocks, num_blocks, block_size;
};

inline bool within(const int64_t* numbers, int count, int64_t limit) {
    for (int i = 0; i < count; ++i)
        if (numbers[i] < 0 || numbers[i] >= limit) return false;
    return true;
}

inline bool has_blocks(const Step& step, int seq) {
    const int num_tokens = step.cu_seqlens_q[seq + 1] - step.cu_seqlens_q[seq], seq_len = step.seq_lens[seq];
    const int num_blocks = (seq_len + step.block_size - 1) / step.block_size;
    if (num_tokens < 0 || num_tokens > seq_len || num_blocks > step.max_blocks) return false;
    const int* blocks = step.block_tables + static_cast<int64_t>(seq) * step.max_blocks;
    for (int i = 0; i < num_blocks; ++i)
        if (blocks[i] < 0 || blocks[i] >= step.num_blocks) return false;
    return true;
}

// Which of a step's tensors points outside, "" for none: a wrong index would read or write anywhere.
inline const char* fault_of(const Step& step, int vocab_size, int num_positions) {
    if (!within(step.token_ids, step.num_tokens, vocab_size)) return "token_ids";
    if (!within(step.positions, step.num_tokens, num_positions)) return "positions";
    if (!within(step.slot_mapping, step.num_tokens, static_cast<int64_t>(step.num_blocks) * step.block_size))
        return "slot_mapping";
    if (!within(step.sample_rows, step.num_samples, step.num_tokens)) return "sample_rows";
    if (step.cu_seqlens_q[0] != 0 || step.cu_seqlens_q[step.num_seqs] != step.num_tokens) return "cu_seqlens_q";
    for (int seq = 0; seq < step.num_seqs; ++seq)
        if (!has_blocks(step, seq)) return "seq_lens or block_tables";
    return "";
}

}  // namespace trioserve
