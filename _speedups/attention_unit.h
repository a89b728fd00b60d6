// attention_unit.h: the two products of attention on the matrix unit (tiles.h); included by attention_tiles.h within the
// namespaces of instruction sets that have it, after unit.h.
//
// The unit sums 32 numbers of a row with 16 columns. Keys are right factors where they lie: 16 words of a group are 32
// elements of its 16 tokens. Values are half of one: a group is 16 tokens, and the next group lies elsewhere. So two
// groups are laid one under the other, 32 columns of all the partition's at a time, for all rows of a task; to multiply
// with halves would keep the unit busy for longer than the copy takes. Codes become bf16 on the way, and their keys
// are laid as well, as is the end of keys whose depth is an odd multiple of 16.
//
// Every row goes this way, a decode's too: the unit sums in another order than vectors do, and a token is given the same in
// a step of its own as within a prompt. Of few rows either takes as long as reading the cache.
//
// Ladder: no machine with the unit was at hand, so none of this is timed.

// The words of a row of queries: whole left factors.
INLINE int query_words(int head_dim) { return (head_dim / 2 + kUnitSize - 1) / kUnitSize * kUnitSize; }

constexpr int kWeighedAtOnce = 2;  // groups of values that a product sums

// Sums of up to kUnitRows rows with two right factors.
//   out [count] rows, the second factor's kUnitSize after the first one's   rows [count] rows of pairs
//   factor_at(step, side): kUnitSize rows of words, `stride` words apart
template <typename FactorAt>
INLINE void unit_sums(int count, float* out, int64_t out_stride, bool has_right, const uint32_t* rows, int64_t row_stride,
                      int num_steps, int64_t stride, const FactorAt& factor_at) {
    configure_tiles(count);
    const bool has_two = count > kUnitSize;
    TILE_ZERO(0);
    TILE_ZERO(1);
    if (has_two) {
        TILE_ZERO(2);
        TILE_ZERO(3);
    }
    for (int step = 0; step < num_steps; ++step, rows += kUnitSize) {
        TILE_LOAD(6, factor_at(step, 0), stride * 4);
        TILE_LOAD(7, factor_at(step, 1), stride * 4);
        TILE_LOAD(4, rows, row_stride * 4);
        TILE_DOT_PAIRS(0, 4, 6);
        TILE_DOT_PAIRS(1, 4, 7);
        if (!has_two) continue;
        TILE_LOAD(5, rows + kUnitSize * row_stride, row_stride * 4);
        TILE_DOT_PAIRS(2, 5, 6);
        TILE_DOT_PAIRS(3, 5, 7);
    }
    float* second = out + kUnitSize * out_stride;
    TILE_STORE(0, out, out_stride * 4);
    if (has_right) TILE_STORE(1, out + kUnitSize, out_stride * 4);
    if (has_two) TILE_STORE(2, second, out_stride * 4);
    if (has_two && has_right) TILE_STORE(3, second + kUnitSize, out_stride * 4);
}

// Calls pass(first_row, num_rows) for runs of rows that are about equal.
template <typename Pass>
INLINE void for_passes(int num_rows, const Pass& pass) {
    const int num_passes = (num_rows + kUnitRows - 1) / kUnitRows;
    for (int i = 0; i < num_passes; ++i) {
        const int first = num_rows * i / num_passes;
        pass(first, num_rows * (i + 1) / num_passes - first);
    }
}

INLINE vu pair_words(vf first, vf second) {
    return reinterpret_cast<vu>(first) >> 16 | (reinterpret_cast<vu>(second) & 0xffff0000u);
}

// Writes what is in each lane's word as rows of pairs, `stride` words apart.
template <KvFormat F>
INLINE void lay(uint32_t* to, int64_t stride, vu words) {
    if constexpr (F == KvFormat::bf16) {
        store_pairs(to, words);
    } else {
        store_pairs(to, pair_words(number_at<F>(words, 0), number_at<F>(words, 16)));
        store_pairs(to + stride, pair_words(number_at<F>(words, 8), number_at<F>(words, 24)));
    }
}

// A step of a group's keys as a right factor, where it lies or in `laid`.
//   laid [kUnitSize][kGroup]
template <KvFormat F>
INLINE const uint32_t* keys_at(uint32_t* laid, const char* group, int step, int head_dim) {
    constexpr int num_pairs = per_word(F) / 2;  // of a word
    const int left = head_dim / 2 - step * kUnitSize, count = (left < kUnitSize ? left : kUnitSize) / num_pairs;
    const uint32_t* from = reinterpret_cast<const uint32_t*>(group) + step * kUnitSize / num_pairs * kGroup;
    if (F == KvFormat::bf16 && count == kUnitSize) return from;
    for (int i = 0; i < count; ++i) lay<F>(laid + i * num_pairs * kGroup, kGroup, load_pairs(from + i * kGroup));
    __builtin_memset(laid + count * num_pairs * kGroup, 0, static_cast<size_t>(kUnitSize - count * num_pairs) * kGroup * 4);
    return laid;
}

// Scores of all rows against up to kStep groups of keys, as they come out of the product.
//   scores [num_rows][kScoreStride]   q [num_rows] rows of query_words   groups [kStep + kAhead]
template <KvFormat F>
INLINE void score_groups(float* scores, const float* q, int num_rows, const char* const* groups, int num_groups,
                         int head_dim) {
    constexpr int step_lines = kUnitSize * 2 / per_word(F);  // of a group
    const int row_words = query_words(head_dim);
    const uint32_t* rows = reinterpret_cast<const uint32_t*>(q);
    alignas(64) uint32_t laid[2][kUnitSize * kGroup];
    for (int group = 0; group < num_groups; group += 2)
        for_passes(num_rows, [&](int first, int count) {
            const auto factor_at = [&](int step, int side) {
                const char* ahead = groups[group + side + kAhead] + step * step_lines * 64;
                for (int line = 0; line < step_lines; ++line) __builtin_prefetch(ahead + line * 64, 0, 2);
                return keys_at<F>(laid[side], groups[group + side], step, head_dim);
            };
            unit_sums(count, scores + first * kScoreStride + group * kGroup, kScoreStride, true, rows + first * row_words,
                      row_words, row_words / kUnitSize, kGroup, factor_at);
        });
}

// Lays kPanel columns of a partition's values as right factors, 0 where the last one is half empty.
//   panel [kPartition / 2][kPanel], pairs   groups [num_groups + kAhead]
template <KvFormat F>
INLINE void lay_values(uint32_t* panel, const char* const* groups, int num_groups, int head_dim, int d) {
    constexpr int num_pairs = per_word(F) / 2, num_words = kGroup / per_word(F);
    const int width = head_dim - d < kPanel ? head_dim - d : kPanel;
    for (int group = 0; group < num_groups; ++group, panel += kGroup / 2 * kPanel) {
        const uint32_t* from = reinterpret_cast<const uint32_t*>(groups[group]) + d;
        const uint32_t* ahead = reinterpret_cast<const uint32_t*>(groups[group + kAhead]) + d;
        for (int i = 0; i < num_words; ++i)
            for (int column = 0; column < width; column += kLanes) {
                __builtin_prefetch(ahead + i * head_dim + column, 0, 2);
                lay<F>(panel + i * num_pairs * kPanel + column, kPanel, load_pairs(from + i * head_dim + column));
            }
    }
    if (num_groups % kWeighedAtOnce != 0) __builtin_memset(panel, 0, kGroup / 2 * kPanel * 4);
}

// Sums of the weighted values of a partition for all rows.
//   out [num_rows] rows of head_dim + 2   weights [num_rows][kScoreStride] words, pairs of which the first half is used; 0
//   up to a multiple of kWeighedAtOnce groups   groups [num_groups + kAhead]
template <KvFormat F>
INLINE void weigh_groups(float* out, const float* weights, int num_rows, const char* const* groups, int num_groups,
                         int head_dim) {
    const uint32_t* pairs = reinterpret_cast<const uint32_t*>(weights);
    const int num_steps = (num_groups + kWeighedAtOnce - 1) / kWeighedAtOnce;
    alignas(64) uint32_t panel[kPartition / 2 * kPanel];
    for (int d = 0; d < head_dim; d += kPanel) {
        const bool has_right = head_dim - d >= kPanel;
        lay_values<F>(panel, groups, num_groups, head_dim, d);
        const auto factor_at = [&](int step, int side) {
            return panel + step * kUnitSize * kPanel + (has_right ? side * kLanes : 0);
        };
        for_passes(num_rows, [&](int first, int count) {
            unit_sums(count, out + first * (head_dim + 2) + d, head_dim + 2, has_right, pairs + first * kScoreStride,
                      kScoreStride, num_steps, kPanel, factor_at);
        });
    }
}
