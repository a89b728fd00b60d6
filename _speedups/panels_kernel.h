// panels_kernel.h: one panel of a matrix product; included once per instruction set, within its namespace (see isa.h).

constexpr int kPanel = 2 * kLanes;                // output columns of a panel, two vectors
constexpr int kTile = kLanes == 16 ? 12 : 4;      // rows whose sums the registers hold
constexpr int kUnroll = 4;                        // pairs between two looks at what to fetch ahead
constexpr int64_t kAheadBytes = 8192;
constexpr int64_t kFetchedBytes = 384 << 10;      // a larger panel would drive the present one out of the cache

INLINE vu load_pairs(const uint32_t* p) {
    typedef uint32_t vu_anywhere __attribute__((vector_size(4 * TRIOSERVE_LANES), aligned(4), may_alias));
    return *reinterpret_cast<const vu_anywhere*>(p);
}

// sum + the products of both halves of a pair. The order is the same for every row and column, so a sum depends on its
// row and its column and on nothing else.
#if TRIOSERVE_BF16_DOT
INLINE vf dot(vf sum, vu a, vu b) {
    return reinterpret_cast<vf>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a),
                                                 reinterpret_cast<__m512bh>(b)));
}
#else
INLINE vf dot(vf sum, vu a, vu b) {
    sum += reinterpret_cast<vf>(a << 16) * reinterpret_cast<vf>(b << 16);
    return sum + reinterpret_cast<vf>(a & 0xffff0000u) * reinterpret_cast<vf>(b & 0xffff0000u);
}
#endif

// Sums of R rows with one panel.
//   sums [R][kPanel]   a [R][stride], pairs   panel [num_pairs][kPanel], pairs
template <int R>
void multiply_tile(float* sums, const uint32_t* a, int64_t stride, const uint32_t* panel, int num_pairs,
                   const char* ahead, int lines) {
    vf sum[R][2] = {};
    for (int pair = 0; pair < num_pairs; pair += kUnroll) {
        for (int line = 0; line < lines; ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 4
        for (int i = 0; i < kUnroll; ++i) {
            const vu left = load_pairs(panel), right = load_pairs(panel + kLanes);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const vu x = vu{} + a[r * stride + i];
                sum[r][0] = dot(sum[r][0], x, left);
                sum[r][1] = dot(sum[r][1], x, right);
            }
            panel += kPanel;
        }
        a += kUnroll;
    }
    for (int r = 0; r < R; ++r) {
        store(sums + r * kPanel, sum[r][0]);
        store(sums + r * kPanel + kLanes, sum[r][1]);
    }
}

template <int... kRows>
INLINE void multiply_rows(int num_rows, float* sums, const uint32_t* a, int64_t stride, const uint32_t* panel,
                          int num_pairs, const char* ahead, int lines, std::integer_sequence<int, kRows...>) {
    using Tile = void (*)(float*, const uint32_t*, int64_t, const uint32_t*, int, const char*, int);
    static constexpr Tile tiles[] = {multiply_tile<kRows + 1>...};
    tiles[num_rows - 1](sums, a, stride, panel, num_pairs, ahead, lines);
}

// activation(x), to a few units in the last place.
INLINE vf activated(vf x, Activation activation) {
    if (activation == Activation::silu) return x / (1.0f + vexp(-x));
    if (activation == Activation::gelu_tanh)  // (1 + tanh u) / 2 is 1 / (1 + e^-2u)
        return x / (1.0f + vexp(x * (x * x * 0.044715f + 1.0f) * -1.5957691216f));
    for (int i = 0; i < kLanes; ++i) x[i] *= 0.5f * (1.0f + __builtin_erff(x[i] * 0.70710678119f));
    return x;
}

// Does with the sums of one row and panel what `finish` says.
//   sums [kPanel]
INLINE void finish_row(const float* sums, int row, int panel, const Finish& finish) {
    vf left = load(sums), right = load(sums + kLanes);
    if (finish.bias != nullptr) {
        left += load(finish.bias + panel * kPanel);
        right += load(finish.bias + panel * kPanel + kLanes);
    }
    if (finish.kind == Finish::gated) {
        store(static_cast<bf16*>(finish.out) + row * finish.stride + panel * kLanes,
              activated(left, finish.activation) * right);
        return;
    }
    float* out = static_cast<float*>(finish.out) + row * finish.stride + panel * kPanel;
    if (finish.kind == Finish::residual) {
        left += load(out);
        right += load(out + kLanes);
    }
    const int room = finish.width - panel * kPanel;
    if (room >= kPanel) {
        store(out, left);
        store(out + kLanes, right);
        return;
    }
    for (int i = 0; i < room; ++i) out[i] = i < kLanes ? left[i] : right[i - kLanes];
}

// A block of rows with one panel. `next` is the panel that this thread will turn to next, which it fetches meanwhile;
// -1: none.
inline void multiply(const Panels& panels, const Factor& factor, int panel, int next, const Finish& finish) {
    constexpr int all_lines = kUnroll * kPanel * 4 / 64;  // of a panel, passed in kUnroll pairs
    const int64_t size = static_cast<int64_t>(panels.num_pairs) * kPanel;
    const uint32_t* from = panels.pairs + panel * size;
    const int num_rows = factor.end - factor.first, num_tiles = (num_rows + kTile - 1) / kTile;
    const bool is_small = size * 4 <= kFetchedBytes;
    const int share = num_tiles < all_lines ? (all_lines + num_tiles - 1) / num_tiles : 1;
    alignas(64) float sums[kTile * kPanel];
    for (int tile = 0; tile < num_tiles; ++tile) {
        const int first = factor.first + num_rows * tile / num_tiles;
        const int count = factor.first + num_rows * (tile + 1) / num_tiles - first;
        const char* ahead = reinterpret_cast<const char*>(from);
        int lines = 0;
        if (num_tiles == 1 || !is_small) {
            ahead += kAheadBytes;
            lines = tile == 0 ? all_lines : 0;
        } else if (next >= 0 && next != panel && tile * share < all_lines) {
            ahead = reinterpret_cast<const char*>(panels.pairs + next * size) + size * 4 * tile * share / all_lines;
            lines = share;
        }
        const uint32_t* a = reinterpret_cast<const uint32_t*>(factor.rows + first * factor.stride);
        multiply_rows(count, sums, a, factor.stride / 2, from, panels.num_pairs, ahead, lines,
                      std::make_integer_sequence<int, kTile>{});
        for (int row = 0; row < count; ++row) finish_row(sums + row * kPanel, first + row, panel, finish);
    }
}

// Fills one panel from a matrix in rows.
//   weights [num_columns][depth], for gated ones twice as many rows, gates first
inline void pack_panel(const Panels& panels, const bf16* weights, int panel) {
    uint32_t* to = panels.pairs + static_cast<int64_t>(panel) * panels.num_pairs * kPanel;
    const bf16* from[kPanel];  // null: a column past the last, which stays 0
    for (int column = 0; column < kPanel; ++column) {
        const int64_t at = panels.gated ? panel * kLanes + column % kLanes : panel * kPanel + column;
        const int64_t row = panels.gated && column >= kLanes ? panels.num_columns + at : at;
        from[column] = at < panels.num_columns ? weights + row * panels.depth : nullptr;
    }
    for (int i = 0; i < panels.depth; i += 2, to += kPanel) {
        const bool is_whole = i + 1 < panels.depth;
        for (int column = 0; column < kPanel; ++column) {
            if (from[column] == nullptr) continue;
            const uint32_t upper = is_whole ? from[column][i + 1].bits : 0;
            to[column] = from[column][i].bits | upper << 16;
        }
    }
}
