// attention_tiles.h: a partition of attention over the decoder's own cache (kv_cache.h); included by attention_kernel.h.
//
// Both products of attention are sums of a few rows with the words of a group: queries with keys, weights with values.
// Codes become bf16 in registers, which they are without rounding; the scale of a key is a factor of its scores, that
// of a value a factor of its weights.

constexpr int kGroupVectors = kGroup / kLanes;  // that hold a number for each token of a group
constexpr int kMostGroups = kPartition / kGroup;
constexpr int kStep = 4;   // groups of keys that all rows of a task take before the next
constexpr int kAhead = 4;  // groups that are being fetched: they are too short for the processor to see a stream

// As many sums for each row as keep the arithmetic busy and the registers full.
template <int R>
constexpr int kSums = kLanes == 4 ? 4 : R <= kTile / 2 ? 4 : 2;

// Two neighbouring elements in each lane.
#if TRIOSERVE_BF16_DOT
using Pair = vu;
INLINE Pair pair_of(vf a, vf b) { return reinterpret_cast<vu>(a) >> 16 | (reinterpret_cast<vu>(b) & 0xffff0000u); }
INLINE Pair pair_of(vu numbers) { return numbers; }
#else
struct Pair {
    vf first, second;
};
INLINE Pair pair_of(vf a, vf b) { return {a, b}; }
INLINE Pair pair_of(vu numbers) {
    return {reinterpret_cast<vf>(numbers << 16), reinterpret_cast<vf>(numbers & 0xffff0000u)};
}
INLINE vf dot(vf sum, vu x, const Pair& pair) {
    sum += reinterpret_cast<vf>(x << 16) * pair.first;
    return sum + reinterpret_cast<vf>(x & 0xffff0000u) * pair.second;
}
#endif

// The number that the code in the byte at `shift` of each lane stands for.
template <KvFormat F>
INLINE vf number_at(vu words, int shift) {
    if constexpr (F == KvFormat::int8)
        return __builtin_convertvector(reinterpret_cast<vi>(words << (24 - shift)) >> 24, vf);
    const vu code = words >> shift, size = (code & 0x7f) << 20;
    const vu number = size != 0 ? size + (120u << 23) : vu{};
    return reinterpret_cast<vf>(number | (code & 0x80) << 24);
}

// What is in each lane's word, pair by pair.
template <KvFormat F>
INLINE void unpack(Pair (&pairs)[per_word(F) / 2], vu words) {
    if constexpr (F == KvFormat::bf16) {
        pairs[0] = pair_of(words);
    } else {
        pairs[0] = pair_of(number_at<F>(words, 0), number_at<F>(words, 16));
        pairs[1] = pair_of(number_at<F>(words, 8), number_at<F>(words, 24));
    }
}

// Adds the products of R rows with the words of V vectors of columns, and begins to fetch as much of what is read later.
//   rows [R] rows of pairs   columns, ahead [V] addresses of words, of `count` rows that are `stride` words apart
template <KvFormat F, int R, int V>
INLINE void accumulate(vf (&sums)[R][V], const uint32_t* rows, int64_t row_stride, const uint32_t* const (&columns)[V],
                       const uint32_t* const (&ahead)[V], int64_t stride, int count) {
    constexpr int num_pairs = per_word(F) / 2, per_line = 16 / kLanes;
    FewAddresses<R> at(rows, row_stride);
#pragma GCC unroll 2
    for (int i = 0; i < count; ++i, at.advance(num_pairs)) {
        Pair pairs[V][num_pairs];
        for (int v = 0; v < V; ++v) {
            if (v % per_line == 0) __builtin_prefetch(ahead[v] + i * stride, 0, 2);
            unpack<F>(pairs[v], load_pairs(columns[v] + i * stride));
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r)
            for (int pair = 0; pair < num_pairs; ++pair) {
                const vu x = vu{} + at.word(r, pair);
                for (int v = 0; v < V; ++v) sums[r][v] = dot(sums[r][v], x, pairs[v][pair]);
            }
    }
}

// Scores of R rows against up to kStep groups of keys, as they come out of the product.
//   scores [R][kScoreStride]   q [R] rows of pairs   groups [kStep + kAhead]
template <KvFormat F, int R>
void score_tile(float* scores, const uint32_t* q, const char* const* groups, int count, int head_dim) {
    constexpr int V = kSums<R>, num_groups = V / kGroupVectors;
    for (int group = 0; group < count; group += num_groups, groups += num_groups) {
        const uint32_t *columns[V], *ahead[V];
        for (int v = 0; v < V; ++v) {
            const int of = v / kGroupVectors, at = v % kGroupVectors * kLanes;
            columns[v] = reinterpret_cast<const uint32_t*>(groups[of]) + at;
            ahead[v] = reinterpret_cast<const uint32_t*>(groups[of + kAhead]) + at;
        }
        vf sums[R][V] = {};
        accumulate<F, R, V>(sums, q, head_dim / 2, columns, ahead, kGroup, head_dim / per_word(F));
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < V; ++v) store(scores + r * kScoreStride + group * kGroup + v * kLanes, sums[r][v]);
    }
}

template <KvFormat F, int R, int V>
INLINE void weigh_columns(float* out, int64_t out_stride, const uint32_t* weights, const char* const* groups, int num_groups,
                          int head_dim, int d) {
    vf sums[R][V] = {};
    for (int group = 0; group < num_groups; ++group) {
        const uint32_t *columns[V], *ahead[V];
        for (int v = 0; v < V; ++v) {
            columns[v] = reinterpret_cast<const uint32_t*>(groups[group]) + d + v * kLanes;
            ahead[v] = reinterpret_cast<const uint32_t*>(groups[group + kAhead]) + d + v * kLanes;
        }
        accumulate<F, R, V>(sums, weights + group * kGroup / 2, kScoreStride, columns, ahead, head_dim, kGroup / per_word(F));
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) store(out + r * out_stride + d + v * kLanes, sums[r][v]);
}

// Sums of the weighted values of a partition for R rows.
//   out [R] rows of head_dim   weights [R][kScoreStride] words, pairs of which the first half is used
//   groups [num_groups + kAhead]
template <KvFormat F, int R>
void weigh_tile(float* out, int64_t out_stride, const uint32_t* weights, const char* const* groups, int num_groups,
                int head_dim) {
    constexpr int V = kSums<R>;
    int d = 0;
    for (; d + V * kLanes <= head_dim; d += V * kLanes)
        weigh_columns<F, R, V>(out, out_stride, weights, groups, num_groups, head_dim, d);
    for (; d < head_dim; d += kLanes) weigh_columns<F, R, 1>(out, out_stride, weights, groups, num_groups, head_dim, d);
}

// Calls tile(first_row, num_rows) for tiles that are about equal.
template <typename Tile>
INLINE void for_tiles(int num_rows, const Tile& tile) {
    const int num_tiles = (num_rows + kTile - 1) / kTile;
    for (int i = 0; i < num_tiles; ++i) {
        const int first = num_rows * i / num_tiles;
        tile(first, num_rows * (i + 1) / num_tiles - first);
    }
}

template <KvFormat F, int... kRows>
INLINE void score_tiles(float* scores, const float* q, int num_rows, const char* const* groups, int num_groups,
                        int head_dim, std::integer_sequence<int, kRows...>) {
    using Tile = void (*)(float*, const uint32_t*, const char* const*, int, int);
    static constexpr Tile tiles[] = {score_tile<F, kRows + 1>...};
    const uint32_t* pairs = reinterpret_cast<const uint32_t*>(q);
    for_tiles(num_rows, [&](int first, int count) {
        tiles[count - 1](scores + first * kScoreStride, pairs + first * head_dim / 2, groups, num_groups, head_dim);
    });
}

template <KvFormat F, int... kRows>
INLINE void weigh_tiles(float* out, const float* weights, int num_rows, const char* const* groups, int num_groups,
                        int head_dim, std::integer_sequence<int, kRows...>) {
    using Tile = void (*)(float*, int64_t, const uint32_t*, const char* const*, int, int);
    static constexpr Tile tiles[] = {weigh_tile<F, kRows + 1>...};
    const uint32_t* pairs = reinterpret_cast<const uint32_t*>(weights);
    for_tiles(num_rows, [&](int first, int count) {
        tiles[count - 1](out + first * (head_dim + 2), head_dim + 2, pairs + first * kScoreStride, groups, num_groups,
                         head_dim);
    });
}

#if TRIOSERVE_TILES
#include "attention_unit.h"
#else
constexpr int kWeighedAtOnce = 1;  // groups of values whose weights are together

INLINE int query_words(int head_dim) { return head_dim / 2; }

// Scores of all rows against up to kStep groups of keys, as they come out of the product.
//   scores [num_rows][kScoreStride]   q [num_rows] rows of query_words   groups [kStep + kAhead]
template <KvFormat F>
INLINE void score_groups(float* scores, const float* q, int num_rows, const char* const* groups, int num_groups,
                         int head_dim) {
    score_tiles<F>(scores, q, num_rows, groups, num_groups, head_dim, std::make_integer_sequence<int, kTile>{});
}

// Sums of the weighted values of a partition for all rows.
//   out [num_rows] rows of head_dim + 2   weights, groups as in weigh_tile
template <KvFormat F>
INLINE void weigh_groups(float* out, const float* weights, int num_rows, const char* const* groups, int num_groups,
                         int head_dim) {
    weigh_tiles<F>(out, weights, num_rows, groups, num_groups, head_dim, std::make_integer_sequence<int, kTile>{});
}
#endif

// The groups of a partition in the order in which they are read: keys, values, and what is read after.
struct Groups {
    const char* keys[2 * kMostGroups + 2 * kAhead];
    const char** values;  // within
    int count;
};

INLINE int64_t group_at(const Arguments& a, const int* blocks, int kv_head, int key) {
    const int64_t head = static_cast<int64_t>(blocks[key / a.block_size]) * a.num_kv_heads + kv_head;
    return (head * (a.block_size / kGroup) + key % a.block_size / kGroup) * a.group_bytes;
}

// The number of keys is rounded up to whole steps, by the last group again.
INLINE void find_groups(Groups& groups, const Arguments& a, const Task& task, int first_key, int end_key) {
    const int* blocks = a.block_tables + static_cast<int64_t>(task.seq) * a.max_blocks;
    const char *k = static_cast<const char*>(a.k_cache), *v = static_cast<const char*>(a.v_cache);
    groups.count = (end_key - first_key + kGroup - 1) / kGroup;
    const int num_read = (groups.count + kStep - 1) / kStep * kStep;
    groups.values = groups.keys + num_read;
    for (int i = 0; i < num_read; ++i) {
        const int64_t at = group_at(a, blocks, task.kv_head, first_key + (i < groups.count ? i : groups.count - 1) * kGroup);
        groups.keys[i] = k + at;
        groups.values[i] = v + at;
    }
    const bool is_last = end_key == task.end_key;
    const Task& after = is_last && a.next != nullptr ? *a.next : task;
    const int* blocks_after = a.block_tables + static_cast<int64_t>(after.seq) * a.max_blocks;
    const int begin = is_last ? after.first_partition * kPartition : end_key;
    for (int i = 0; i < kAhead; ++i) {
        const int key = begin + i * kGroup;
        groups.values[groups.count + i] = k + group_at(a, blocks_after, after.kv_head, key < after.end_key ? key : begin);
    }
}

// The scales of a partition's tokens side by side.
//   scales [kPartition]
template <KvFormat F>
INLINE void copy_scales(float* scales, const char* const* groups, int num_groups, int head_dim) {
    for (int i = 0; i < num_groups; ++i)
        __builtin_memcpy(scales + i * kGroup, groups[i] + 4 * group_words(F, head_dim), 4 * kGroup);
}

// The last values of a partition with zeros for those that nobody sees: what was never written may be no number.
//   tail [kGroup / 2][head_dim], pairs
INLINE void copy_tail(uint32_t* tail, const char* group, int num_keys, int head_dim) {
    const uint32_t* from = reinterpret_cast<const uint32_t*>(group);
    for (int key = 0; key < kGroup; key += 2, tail += head_dim, from += head_dim) {
        const uint32_t kept = key + 1 < num_keys ? 0xffffffffu : key < num_keys ? 0xffffu : 0;
        for (int d = 0; d < head_dim; d += kLanes) store_pairs(tail + d, load_pairs(from + d) & kept);
    }
}

// One partition of keys for all rows of a task: scores, weights, weighted values.
//   found [num_rows][head_dim + 2]
template <KvFormat F>
INLINE void attend_partition(GroupCache<F>, const Arguments& a, const Task& task, const Scratch& s, int partition,
                             float* found) {
    constexpr bool is_scaled = F != KvFormat::bf16;
    const int first_key = partition * kPartition, last_end = first_key + kPartition;
    const int end_key = task.end_key < last_end ? task.end_key : last_end;
    const int num_rows = task.num_tokens * a.group, head_dim = a.head_dim;
    Groups groups;
    find_groups(groups, a, task, first_key, end_key);
    for (int group = 0; group < groups.count; group += kStep)
        score_groups<F>(s.scores + group * kGroup, s.q, num_rows, groups.keys + group,
                        groups.count - group < kStep ? groups.count - group : kStep, head_dim);
    float *k_scales = s.scales, *v_scales = s.scales + kPartition;
    if (is_scaled) {
        copy_scales<F>(k_scales, groups.keys, groups.count, head_dim);
        copy_scales<F>(v_scales, groups.values, groups.count, head_dim);
    } else if (end_key % kGroup != 0) {
        copy_tail(s.tail, groups.values[groups.count - 1], end_key % kGroup, head_dim);
        groups.values[groups.count - 1] = reinterpret_cast<const char*>(s.tail);
    }
    const int num_weighed = (groups.count + kWeighedAtOnce - 1) / kWeighedAtOnce * kWeighedAtOnce * kGroup;
    soften_rows<is_scaled, bf16>(a, task, s.scores, found, first_key, num_weighed, a.scale, k_scales, v_scales);
    weigh_groups<F>(found, s.scores, num_rows, groups.values, groups.count, head_dim);
}

// As they are, then 0: the scale is for the scores.
template <KvFormat F>
INLINE void load_queries(GroupCache<F>, const Arguments& a, const Task& task, float* q) {
    const int size = 2 * query_words(a.head_dim);
    bf16* to = reinterpret_cast<bf16*>(q);
    for (int row = 0; row < task.num_tokens * a.group; ++row, to += size) {
        const bf16* from = static_cast<const bf16*>(a.q) + (task.first_token + row / a.group) * a.q_stride +
                           static_cast<int64_t>(task.kv_head * a.group + row % a.group) * a.head_dim;
        __builtin_memcpy(to, from, static_cast<size_t>(a.head_dim) * sizeof(bf16));
        __builtin_memset(to + a.head_dim, 0, static_cast<size_t>(size - a.head_dim) * sizeof(bf16));
    }
}
