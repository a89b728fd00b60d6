// attention_kernel.h: one attention task; included once per instruction set, within its namespace (see isa.h).

// Scores of R queries against kLanes keys that lie one after the other: a dot product for each pair.
//   scores [R][kPartition]   q [R][head_dim]   k [kLanes][head_dim]
template <typename T, int R>
INLINE void score_keys(float* scores, const float* q, const T* k, int head_dim) {
    vf parts[R][kLanes];
    for (int key = 0; key < kLanes; ++key) {
        vf sum[R] = {};
        for (int d = 0; d < head_dim; d += kLanes) {
            const vf wide = load(k + key * head_dim + d);
            for (int r = 0; r < R; ++r) sum[r] += wide * load(q + r * head_dim + d);
        }
        for (int r = 0; r < R; ++r) parts[r][key] = sum[r];
    }
    for (int r = 0; r < R; ++r) store(scores + r * kPartition, sums(parts[r]));
}

// Adds the weighted values of keys first_key .. end_key - 1 to R queries, C vectors of head_dim at a time.
//   out [R][head_dim]   weights [R][kPartition], of the partition's keys
template <typename T, int R, int C>
INLINE void weigh_values(float* out, const float* weights, const Arguments& a, const int* blocks, int kv_head,
                         int first_key, int end_key, int d) {
    vf sum[R][C] = {};
    for (int key = first_key; key < end_key;) {
        const int offset = key % a.block_size;
        const int left = a.block_size - offset, run = left < end_key - key ? left : end_key - key;
        const T* v = static_cast<const T*>(a.v_cache) + cache_offset(a, blocks[key / a.block_size], kv_head, offset) + d;
        for (int i = 0; i < run; ++i, v += a.head_dim) {
            vf wide[C];
            for (int c = 0; c < C; ++c) wide[c] = load(v + c * kLanes);
            for (int r = 0; r < R; ++r) {
                const vf weight = splat(weights[r * kPartition + key - first_key + i]);
                for (int c = 0; c < C; ++c) sum[r][c] += weight * wide[c];
            }
        }
        key += run;
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) store(out + r * a.head_dim + d + c * kLanes, sum[r][c]);
}

template <typename T, int R>
INLINE void score_rows(float* scores, const float* q, const Arguments& a, const int* blocks, int kv_head,
                       int first_key, int end_key) {
    for (int key = first_key; key < end_key; key += kLanes) {
        const T* k = static_cast<const T*>(a.k_cache) +
                     cache_offset(a, blocks[key / a.block_size], kv_head, key % a.block_size);
        score_keys<T, R>(scores + key - first_key, q, k, a.head_dim);
    }
}

template <typename T, int R>
INLINE void weigh_rows(float* out, const float* weights, const Arguments& a, const int* blocks, int kv_head,
                       int first_key, int end_key) {
    constexpr int C = kLanes == 16 ? 4 : 2;  // as many sums as the registers hold
    int d = 0;
    for (; d + C * kLanes <= a.head_dim; d += C * kLanes)
        weigh_values<T, R, C>(out, weights, a, blocks, kv_head, first_key, end_key, d);
    for (; d < a.head_dim; d += kLanes)
        weigh_values<T, R, 1>(out, weights, a, blocks, kv_head, first_key, end_key, d);
}

// Brings the scores of one query to what, scaled, is bound * tanh(scaled / bound).
//   k_scales [num_keys], null: keys have none; what is not seen may be no number
INLINE void bound_scores(float* scores, int num_keys, float scale, float bound, const float* k_scales) {
    for (int i = 0; i < num_keys; i += kLanes) {
        const vf score = load(scores + i), factor = k_scales == nullptr ? splat(scale) : load(k_scales + i) * scale;
        store(scores + i, factor != vf{} ? bounded(score * factor, bound) / factor : score);
    }
}

// Turns the scores of one query into weights e^(scale * score - most), 0 where the key is not seen; `weights` may lie
// where `scores` do. Returns the sum of the weights; `most` becomes the largest score, -inf where no key is seen.
// kScaled: a score is of a key without its scale, and a weight is left for a value without its.
//   k_scales, v_scales [num_keys], what is not seen may be no number
template <bool kScaled, typename W>
INLINE float soften(W* weights, float* scores, int num_keys, int first_seen, int end_seen, float scale,
                    const float* k_scales, const float* v_scales, float* most) {
    const float none = -__builtin_inff();
    vf lanes = {};
    for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<float>(i);
    vf largest = splat(none);
    for (int i = 0; i < num_keys; i += kLanes) {
        const vf at = lanes + static_cast<float>(i);
        const auto seen = (at >= static_cast<float>(first_seen)) & (at < static_cast<float>(end_seen));
        vf score = load(scores + i) * scale;
        if (kScaled) score *= load(k_scales + i);
        const vf kept = seen ? score : splat(none);
        store(scores + i, kept);
        largest = vmax(largest, kept);
    }
    *most = lane_max(largest);
    vf total = {};
    for (int i = 0; i < num_keys; i += kLanes) {
        const vf score = load(scores + i);
        const vf weight = score > splat(none) ? vexp(score - *most) : vf{};  // -inf - -inf is not used
        total += weight;
        if (kScaled)
            store(weights + i, score > splat(none) ? weight * load(v_scales + i) : vf{});
        else
            store(weights + i, weight);
    }
    return lane_sum(total);
}

// Merges what a partition found into what the partitions before it found: the same steps in the same order whether a
// task ran through all partitions or each was a task of its own.
//   state [head_dim + 2]: weighted sum of values, largest score, sum of weights
INLINE void merge(float* state, const float* found, int head_dim) {
    const float most = state[head_dim], other = found[head_dim];
    if (other == -__builtin_inff()) return;
    const float larger = most > other ? most : other;
    const float keep = vexp(splat(most - larger))[0] * (most > -__builtin_inff());
    const float take = vexp(splat(other - larger))[0];
    for (int d = 0; d < head_dim; d += kLanes) store(state + d, load(state + d) * keep + load(found + d) * take);
    state[head_dim] = larger;
    state[head_dim + 1] = state[head_dim + 1] * keep + found[head_dim + 1] * take;
}

// One partition of keys for all rows of a task: scores, weights, weighted values.
//   found [num_rows][head_dim + 2]
template <typename T>
INLINE void attend_partition(RowCache<T>, const Arguments& a, const Task& task, const Scratch& s, int partition, float* found) {
    const int first_key = partition * kPartition;
    const int last_end = first_key + kPartition, end_key = task.end_key < last_end ? task.end_key : last_end;
    const int num_rows = task.num_tokens * a.group, num_keys = end_key - first_key;
    const int* blocks = a.block_tables + static_cast<int64_t>(task.seq) * a.max_blocks;
    const int width = a.head_dim + 2;
    for (int row = 0; row < num_rows; row += 4) {
        float* scores = s.scores + row * kPartition;
        const float* q = s.q + row * a.head_dim;
        switch (num_rows - row) {
            case 1: score_rows<T, 1>(scores, q, a, blocks, task.kv_head, first_key, end_key); break;
            case 2: score_rows<T, 2>(scores, q, a, blocks, task.kv_head, first_key, end_key); break;
            case 3: score_rows<T, 3>(scores, q, a, blocks, task.kv_head, first_key, end_key); break;
            default: score_rows<T, 4>(scores, q, a, blocks, task.kv_head, first_key, end_key);
        }
    }
    for (int row = 0; row < num_rows; ++row) {
        const int position = task.first_position + row / a.group;
        const int first_seen = a.sliding_window > 0 ? position - a.sliding_window + 1 - first_key : 0;
        float* state = found + row * width + a.head_dim;
        float* scores = s.scores + row * kPartition;
        if (a.bound > 0.0f) bound_scores(scores, num_keys, 1.0f, a.bound, nullptr);
        state[1] = soften<false>(scores, scores, num_keys, first_seen, position + 1 - first_key, 1.0f, nullptr, nullptr,
                                 state);
    }
    for (int row = 0; row < num_rows; row += 4) {
        const float* weights = s.scores + row * kPartition;
        float* out = s.values + row * a.head_dim;
        switch (num_rows - row) {
            case 1: weigh_rows<T, 1>(out, weights, a, blocks, task.kv_head, first_key, end_key); break;
            case 2: weigh_rows<T, 2>(out, weights, a, blocks, task.kv_head, first_key, end_key); break;
            case 3: weigh_rows<T, 3>(out, weights, a, blocks, task.kv_head, first_key, end_key); break;
            default: weigh_rows<T, 4>(out, weights, a, blocks, task.kv_head, first_key, end_key);
        }
    }
    for (int row = 0; row < num_rows; ++row)
        for (int d = 0; d < a.head_dim; d += kLanes)
            store(found + row * width + d, load(s.values + row * a.head_dim + d));
}

template <typename T>
INLINE void load_queries(RowCache<T>, const Arguments& a, const Task& task, float* q) {
    for (int row = 0; row < task.num_tokens * a.group; ++row) {
        const T* from = static_cast<const T*>(a.q) + (task.first_token + row / a.group) * a.q_stride +
                        static_cast<int64_t>(task.kv_head * a.group + row % a.group) * a.head_dim;
        for (int d = 0; d < a.head_dim; d += kLanes) store(q + row * a.head_dim + d, load(from + d) * a.scale);
    }
}

INLINE void clear(float* states, int num_rows, int head_dim) {
    for (int row = 0; row < num_rows; ++row, states += head_dim + 2) {
        for (int d = 0; d < head_dim; ++d) states[d] = 0.0f;
        states[head_dim] = -__builtin_inff();
        states[head_dim + 1] = 0.0f;
    }
}

template <typename T>
INLINE void write_out(const Arguments& a, const Task& task, const float* states) {
    for (int row = 0; row < task.num_tokens * a.group; ++row, states += a.head_dim + 2) {
        T* to = static_cast<T*>(a.out) +
                (task.first_token + row / a.group) * a.out_stride +
                static_cast<int64_t>(task.kv_head * a.group + row % a.group) * a.head_dim;
        const float total = 1.0f / states[a.head_dim + 1];
        for (int d = 0; d < a.head_dim; d += kLanes) store(to + d, load(states + d) * total);
    }
}

#include "attention_tiles.h"

// A task that runs through its partitions and writes its rows.
template <typename Cache>
void attend(const Arguments& a, const Task& task, const Scratch& s) {
    const int num_rows = task.num_tokens * a.group, width = a.head_dim + 2;
    load_queries(Cache{}, a, task, s.q);
    clear(s.states, num_rows, a.head_dim);
    for (int partition = task.first_partition; partition < task.end_partition; ++partition) {
        attend_partition(Cache{}, a, task, s, partition, s.found);
        for (int row = 0; row < num_rows; ++row) merge(s.states + row * width, s.found + row * width, a.head_dim);
    }
    write_out<typename Cache::Row>(a, task, s.states);
}

// A task that leaves one partition's findings for `finish`.
template <typename Cache>
void attend_part(const Arguments& a, const Task& task, const Scratch& s, float* found) {
    load_queries(Cache{}, a, task, s.q);
    attend_partition(Cache{}, a, task, s, task.first_partition, found);
}

// Merges the findings of all partitions of a task, in their order, and writes its rows.
//   found [num_parts][num_rows][head_dim + 2]
template <typename Cache>
void finish(const Arguments& a, const Task& task, const Scratch& s, const float* found, int num_parts) {
    const int num_rows = task.num_tokens * a.group, width = a.head_dim + 2;
    clear(s.states, num_rows, a.head_dim);
    for (int part = 0; part < num_parts; ++part, found += num_rows * width)
        for (int row = 0; row < num_rows; ++row) merge(s.states + row * width, found + row * width, a.head_dim);
    write_out<typename Cache::Row>(a, task, s.states);
}
