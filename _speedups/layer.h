// layer.h: what a decoder is, as data.
#pragma once

#include "decoder_kernels.h"
#include "exchange.h"
#include "kv_cache.h"
#include "memory.h"
#include "panels.h"

namespace trioserve {

struct DecoderShape {
    int num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, vocab_size, num_positions;
    float eps;
    Activation activation;
    bool interleaved;
    int num_pairs;            // of a head that are rotated
    const bf16* embeddings;   // [vocab_size][hidden_size], the caller's; null: those of the head
    KvFormat kv_format;
    NormKind norm_kind;
    bool heads_together;      // whether the heads of q, and those of k, are normalised together, where they are
    bool is_parallel;         // whether the MLP reads what attention reads
    float embedding_scale, residual_scale, attention_scale, logits_scale;
    float attention_bound, logits_bound;  // 0: none
    Exchange* exchange;  // with the ranks that have the other heads, the rest of the MLP and other tokens; null: none do
    int first_token;     // of those in the head and the embeddings
};

// Multiplications of a row with the weights of all layers.
inline int64_t layer_work(const DecoderShape& shape) {
    const int64_t heads = 2 * (int64_t{shape.num_heads} + shape.num_kv_heads) * shape.head_dim;
    return shape.num_layers * shape.hidden_size * (heads + 3 * int64_t{shape.intermediate_size});
}

struct NormWeights {
    Memory<float> weights, bias;  // [hidden_size], padded; no weights: there is no norm

    Norm on(const DecoderShape& shape) const {
        return {weights.empty() ? NormKind::none : shape.norm_kind, weights.get(), bias.get(), shape.hidden_size, shape.eps};
    }
};

struct Layer {
    Panels qkv, o, gate_up, down;
    Memory<float> qkv_bias, o_bias, gate_up_bias, down_bias;  // empty: none
    NormWeights before_attention, after_attention, before_mlp, after_mlp;
    Memory<float> q_norm, k_norm;
    const float* rope_table = nullptr;  // [num_positions][2][num_pairs], the caller's; null: heads are not rotated
    int sliding_window = 0;             // 0: none
};

}  // namespace trioserve
