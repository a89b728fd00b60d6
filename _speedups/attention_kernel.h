// attention_kernel.h: one attention task; included once per instruction set, within its namespace (see isa.h).

// Scores of R queries against kLanes keys that lie one after the other: a dot product for each pair.
//   scores [R][kScoreStride]   q [R][head_dim]   k [kLanes][head_dim]
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
    for (int r = 0; r < R; ++r) store(scores + r * kScoreStride, sums(parts[r]));
}

// Adds the weighted values of keys first_key .. end_key - 1 to R queries, C vectors of head_dim at a time.
//   out [R][head_dim]   weights [R][kScoreStride], of the partition's keys
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
                const vf weight = splat(weights[r * kScoreStride + key - first_key + i]);
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

constexpr float kLog2E = 1.44269504f;

// The keys of a partition that a query sees, within whole vectors of them.
struct Seen {
    int begin, end;

    Seen(int first_seen, int end_seen, int num_keys)
        : begin(first_seen > 0 ? first_seen : 0), end(end_seen < num_keys ? end_seen : num_keys) {}
    int first_vector() const { return begin / kLanes * kLanes; }
    int end_vector() const { return end > begin ? (end + kLanes - 1) / kLanes * kLanes : first_vector(); }
};

template <int... kLane>
INLINE vi lane_numbers(std::integer_sequence<int, kLane...>) {
    return vi{kLane...};
}

// `x` for the lanes that hold keys which are seen, `other` for those beside them.
//   i: the key of the first lane
INLINE vf kept(vf x, vf other, int i, const Seen& seen) {
    if (i >= seen.begin && i + kLanes <= seen.end) return x;
    const vi at = lane_numbers(std::make_integer_sequence<int, kLanes>{}) + i;
    return (at >= seen.begin) & (at < seen.end) ? x : other;
}

// The largest score of one query, -inf where no key is seen.
// kScaled: a score is of a key without its scale.
//   k_scales [num_keys], what is not seen may be no number
template <bool kScaled>
INLINE float most_of(const float* scores, const Seen& seen, const float* k_scales) {
    const vf none = splat(-__builtin_inff());
    vf largest = none;
    for (int i = seen.first_vector(); i < seen.end_vector(); i += kLanes) {
        vf score = load(scores + i);
        if (kScaled) score *= load(k_scales + i);
        largest = vmax(largest, kept(score, none, i, seen));
    }
    return lane_max(largest);
}

// Turns the scores of one query into weights 2^(scale * score - most), 0 where the key is not seen; `weights` may lie
// where `scores` do. Returns the sum of the weights.
// kScaled: as above, and a weight is left for a value without its scale.
//   v_scales [num_keys], what is not seen may be no number
template <bool kScaled, typename W>
INLINE float soften(W* weights, const float* scores, int num_keys, const Seen& seen, float scale, float most,
                    const float* k_scales, const float* v_scales) {
    const int first = seen.first_vector(), end = seen.end_vector();
    for (int i = 0; i < first; i += kLanes) store(weights + i, vf{});
    vf total = {};
    for (int i = first; i < end; i += kLanes) {
        vf score = load(scores + i);
        if (kScaled) score *= load(k_scales + i);
        const vf weight = kept(vexp2(score * scale - most), vf{}, i, seen);
        total += weight;
        store(weights + i, kScaled ? kept(weight * load(v_scales + i), vf{}, i, seen) : weight);
    }
    for (int i = end; i < num_keys; i += kLanes) store(weights + i, vf{});
    return lane_sum(total);
}

// The weights of all rows of a task in a partition, where their scores were, and their states. Rows first have their
// largest score, one after the other, so that none waits for its own.
//   scores [num_rows][kScoreStride]   found [num_rows][head_dim + 2]
template <bool kScaled, typename W>
INLINE void soften_rows(const Arguments& a, const Task& task, float* scores, float* found, int first_key, int num_keys,
                        float scale, const float* k_scales, const float* v_scales) {
    const int num_rows = task.num_tokens * a.group;
    const auto seen_by = [&](int row) {
        const int position = task.first_position + row / a.group - first_key;
        return Seen(a.sliding_window > 0 ? position - a.sliding_window + 1 : 0, position + 1, num_keys);
    };
    if (a.bound > 0.0f)
        for (int row = 0; row < num_rows; ++row)
            bound_scores(scores + row * kScoreStride, num_keys, scale, a.bound, kScaled ? k_scales : nullptr);
    scale *= kLog2E;
    float* state = found + a.head_dim;
    for (int row = 0; row < num_rows; ++row)
        state[row * (a.head_dim + 2)] = most_of<kScaled>(scores + row * kScoreStride, seen_by(row), k_scales) * scale;
    for (int row = 0; row < num_rows; ++row, state += a.head_dim + 2, scores += kScoreStride)
        state[1] = soften<kScaled>(reinterpret_cast<W*>(scores), scores, num_keys, seen_by(row), scale, state[0], k_scales,
                                   v_scales);
}

// Merges what a partition found into what the partitions before it found: the same steps in the same order whether a
// task ran through all partitions or each was a task of its own.
//   state [head_dim + 2]: weighted sum of values, largest score, sum of weights
INLINE void merge(float* state, const float* found, int head_dim) {
    const float most = state[head_dim], other = found[head_dim];
    if (other == -__builtin_inff()) return;
    const float larger = most > other ? most : other;
    const float keep = vexp2(splat(most - larger))[0] * (most > -__builtin_inff());
    const float take = vexp2(splat(other - larger))[0];
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
        float* scores = s.scores + row * kScoreStride;
        const float* q = s.q + row * a.head_dim;
        switch (num_rows - row) {
            case 1: score_rows<T, 1>(scores, q, a, blocks, task.kv_head, first_key, end_key); break;
            case 2: score_rows<T, 2>(scores, q, a, blocks, task.kv_head, first_key, end_key); break;
            case 3: score_rows<T, 3>(scores, q, a, blocks, task.kv_head, first_key, end_key); break;
            default: score_rows<T, 4>(scores, q, a, blocks, task.kv_head, first_key, end_key);
        }
    }
    soften_rows<false, float>(a, task, s.scores, found, first_key, num_keys, 1.0f, nullptr, nullptr);
    for (int row = 0; row < num_rows; row += 4) {
        const float* weights = s.scores + row * kScoreStride;
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

INLINE void clear(float* state, int head_dim) {
    for (int d = 0; d < head_dim; ++d) state[d] = 0.0f;
    state[head_dim] = -__builtin_inff();
    state[head_dim + 1] = 0.0f;
}

// The states after the first partition; to merge it into nothing would give the same numbers.
INLINE void begin_with(float* states, const float* found, int num_rows, int head_dim) {
    const int width = head_dim + 2;
    for (int row = 0; row < num_rows; ++row, states += width, found += width) {
        if (found[head_dim] == -__builtin_inff())
            clear(states, head_dim);
        else if (states != found)
            __builtin_memcpy(states, found, static_cast<size_t>(width) * sizeof(float));
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
    attend_partition(Cache{}, a, task, s, task.first_partition, s.states);
    begin_with(s.states, s.states, num_rows, a.head_dim);
    for (int partition = task.first_partition + 1; partition < task.end_partition; ++partition) {
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
    begin_with(s.states, found, num_rows, a.head_dim);
    for (int part = 1; part < num_parts; ++part) {
        found += num_rows * width;
        for (int row = 0; row < num_rows; ++row) merge(s.states + row * width, found + row * width, a.head_dim);
    }
    write_out<typename Cache::Row>(a, task, s.states);
}
