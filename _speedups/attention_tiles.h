// attention_tiles.h: a partition of bf16 attention by bf16 dot products; included by attention_kernel.h where the
// instruction set has them.
//
// Both products of attention are those of dot_tile.h: queries with a panel of 32 keys, weights with a panel of 32
// elements of all values. The cache keeps keys and values as rows, so a panel is made first, once for all rows of the task.

constexpr int kGroup = 16;  // keys that lie one after the other in a block, whatever its size

typedef uint16_t vp __attribute__((vector_size(64)));  // a vector of pairs, element by element
typedef uint32_t vp_anywhere __attribute__((vector_size(64), aligned(2), may_alias));

// Lanes of a and b by turns, within each quarter (kBlock 1 or 2) or quarter by quarter (4): kUpper says which half.
template <int kBlock, bool kUpper, int... kLane>
INLINE vu zip(vu a, vu b, std::integer_sequence<int, kLane...>) {
    constexpr int span = kBlock < 4 ? 4 : 16, half = span / 2;
    return __builtin_shuffle(a, b, vi{(kLane / span * span + (kUpper ? half : 0) + kLane % span / (2 * kBlock) * kBlock +
                                       kLane % kBlock + (kLane / kBlock % 2) * kLanes)...});
}

template <int kBlock, bool kUpper>
INLINE vu zip(vu a, vu b) {
    return zip<kBlock, kUpper>(a, b, std::make_integer_sequence<int, kLanes>{});
}

// Turns a square of pairs: lane i of row j becomes lane j of row i.
INLINE void transpose(vu (&rows)[16]) {
    vu mixed[16];
    for (int i = 0; i < 16; i += 2) {
        mixed[i] = zip<1, false>(rows[i], rows[i + 1]);
        mixed[i + 1] = zip<1, true>(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            rows[i + 2 * j] = zip<2, false>(mixed[i + j], mixed[i + j + 2]);
            rows[i + 2 * j + 1] = zip<2, true>(mixed[i + j], mixed[i + j + 2]);
        }
    // now quarter q of row i + 4 * k holds lanes 4 * k .. 4 * k + 3 of what belongs in row 4 * q + i
    for (int i = 0; i < 4; ++i) {
        const vu a = zip<4, false>(rows[i], rows[i + 8]), b = zip<4, false>(rows[i + 4], rows[i + 12]);
        const vu c = zip<4, true>(rows[i], rows[i + 8]), d = zip<4, true>(rows[i + 4], rows[i + 12]);
        mixed[i] = zip<4, false>(a, b);
        mixed[i + 4] = zip<4, true>(a, b);
        mixed[i + 8] = zip<4, false>(c, d);
        mixed[i + 12] = zip<4, true>(c, d);
    }
    for (int i = 0; i < 16; ++i) rows[i] = mixed[i];
}

// kPanel elements of a row, or half as many and zeros. No masked load: one that misses the cache holds up all after it.
INLINE vu load_elements(const bf16* from, bool is_half) {
    if (!is_half) return *reinterpret_cast<const vp_anywhere*>(from);
    vu elements = {};
    __builtin_memcpy(&elements, from, sizeof elements / 2);
    return elements;
}

// Up to kPanel keys from first_key on as a panel; keys past end_key are anything.
//   panel [head_dim / 2][kPanel], pairs
INLINE void gather_keys(uint32_t* panel, const Arguments& a, const int* blocks, int kv_head, int first_key, int end_key) {
    for (int side = 0; side < 2; ++side) {
        const int key = first_key + side * kGroup;
        if (key >= end_key) return;
        const bf16* from = static_cast<const bf16*>(a.k_cache) +
                           cache_offset(a, blocks[key / a.block_size], kv_head, key % a.block_size);
        for (int d = 0; d < a.head_dim; d += 2 * kGroup) {
            const bool is_half = a.head_dim - d < 2 * kGroup;
            vu rows[16];
            for (int i = 0; i < kGroup; ++i) rows[i] = load_elements(from + i * a.head_dim + d, is_half);
            transpose(rows);
            uint32_t* to = panel + d / 2 * kPanel + side * kGroup;
            for (int i = 0; i < (is_half ? 8 : 16); ++i) store_pairs(to + i * kPanel, rows[i]);
        }
    }
}

template <int kFirst, int... kElement>
INLINE vu paired(vu first, vu second, std::integer_sequence<int, kElement...>) {
    return reinterpret_cast<vu>(__builtin_shuffle(reinterpret_cast<vp>(first), reinterpret_cast<vp>(second),
                                                  vp{(kFirst + kElement / 2 + kElement % 2 * kPanel)...}));
}

// Elements d .. d + kPanel - 1 of the values of a partition as a panel, zeros past the last.
//   panel [num_pairs][kPanel], pairs of neighbouring keys
INLINE void gather_values(uint32_t* panel, const Arguments& a, const int* blocks, int kv_head, int first_key, int end_key,
                          int num_pairs, int d) {
    const bool is_half = a.head_dim - d < kPanel;
    for (int key = first_key; key < first_key + 2 * num_pairs; key += kGroup) {
        const int count = end_key - key;
        const bf16* from = static_cast<const bf16*>(a.v_cache) + d +
                           cache_offset(a, blocks[key / a.block_size], kv_head, key % a.block_size);
        for (int i = 0; i < kGroup; i += 2, from += 2 * a.head_dim, panel += kPanel) {
            const vu first = i < count ? load_elements(from, is_half) : vu{};
            const vu second = i + 1 < count ? load_elements(from + a.head_dim, is_half) : vu{};
            store_pairs(panel, paired<0>(first, second, std::make_integer_sequence<int, 2 * kLanes>{}));
            store_pairs(panel + kLanes, paired<kLanes>(first, second, std::make_integer_sequence<int, 2 * kLanes>{}));
        }
    }
}

// Begins to fetch the states of up to kPanel keys; a block's states are too few for the processor to see a stream.
INLINE void fetch(const void* cache, const Arguments& a, const int* blocks, int kv_head, int first_key, int end_key) {
    const int last = first_key + kPanel < end_key ? first_key + kPanel : end_key;
    for (int key = first_key; key < last; key += kGroup) {
        const char* from = reinterpret_cast<const char*>(
            static_cast<const bf16*>(cache) + cache_offset(a, blocks[key / a.block_size], kv_head, key % a.block_size));
        const int count = last - key < kGroup ? last - key : kGroup;
        for (int at = 0; at < count * a.head_dim * 2; at += 64) __builtin_prefetch(from + at, 0, 2);
    }
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

INLINE void multiply_panel(int num_rows, float* sums, int64_t sums_stride, const void* a, int64_t stride,
                           const uint32_t* panel, int num_pairs) {
    for_tiles(num_rows, [&](int first, int count) {
        multiply_rows(count, sums + first * sums_stride, sums_stride, static_cast<const uint32_t*>(a) + first * stride,
                      stride, panel, num_pairs, nullptr, 0, std::make_integer_sequence<int, kTile>{});
    });
}

// One partition of keys for all rows of a task: scores, weights, weighted values.
//   found [num_rows][head_dim + 2]
template <>
inline __attribute__((always_inline)) void attend_partition<bf16>(const Arguments& a, const Task& task, const Scratch& s, int partition, float* found) {
    const int first_key = partition * kPartition;
    const int last_end = first_key + kPartition, end_key = task.end_key < last_end ? task.end_key : last_end;
    const int num_rows = task.num_tokens * a.group, num_keys = end_key - first_key, width = a.head_dim + 2;
    const int* blocks = a.block_tables + static_cast<int64_t>(task.seq) * a.max_blocks;
    uint32_t* panel = reinterpret_cast<uint32_t*>(s.panel);
    fetch(a.k_cache, a, blocks, task.kv_head, first_key, end_key);
    fetch(a.k_cache, a, blocks, task.kv_head, first_key + kPanel, end_key);
    for (int key = first_key; key < end_key; key += kPanel) {
        fetch(a.k_cache, a, blocks, task.kv_head, key + 2 * kPanel, end_key);
        fetch(a.v_cache, a, blocks, task.kv_head, key, end_key);
        gather_keys(panel, a, blocks, task.kv_head, key, end_key);
        multiply_panel(num_rows, s.scores + key - first_key, kPartition, s.q, a.head_dim / 2, panel, a.head_dim / 2);
    }
    for (int row = 0; row < num_rows; ++row) {
        const int position = task.first_position + row / a.group;
        const int first_seen = a.sliding_window > 0 ? position - a.sliding_window + 1 - first_key : 0;
        float* state = found + row * width + a.head_dim;
        float* scores = s.scores + row * kPartition;
        state[1] = soften(reinterpret_cast<bf16*>(scores), scores, num_keys, first_seen, position + 1 - first_key, a.scale,
                          state);
    }
    const int num_pairs = (num_keys + kLanes - 1) / kLanes * kLanes / 2;
    for (int d = 0; d < a.head_dim; d += kPanel) {
        gather_values(panel, a, blocks, task.kv_head, first_key, end_key, num_pairs, d);
        const bool is_whole = a.head_dim - d >= kPanel;
        float* sums = is_whole ? found + d : s.values;
        multiply_panel(num_rows, sums, is_whole ? width : kPanel, s.scores, kPartition, panel, num_pairs);
        if (is_whole) continue;
        for (int row = 0; row < num_rows; ++row) store(found + row * width + d, load(s.values + row * kPanel));
    }
}

// As they are: the scale is for the scores.
template <>
inline __attribute__((always_inline)) void load_queries<bf16>(const Arguments& a, const Task& task, float* q) {
    bf16* to = reinterpret_cast<bf16*>(q);
    for (int row = 0; row < task.num_tokens * a.group; ++row) {
        const bf16* from = static_cast<const bf16*>(a.q) + (task.first_token + row / a.group) * a.q_stride +
                           static_cast<int64_t>(task.kv_head * a.group + row % a.group) * a.head_dim;
        __builtin_memcpy(to + row * a.head_dim, from, static_cast<size_t>(a.head_dim) * sizeof(bf16));
    }
}
