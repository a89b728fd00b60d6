// panels_kernel.h: one panel of a matrix product; included once per instruction set, within its namespace, after
// dot_tile.h, byte_tile.h and, where there is a matrix unit, unit_tile.h (see isa.h).

constexpr int kFetchedRows = 3;  // of fewer the processor itself sees the stream soon enough
constexpr int64_t kAheadBytes = 8192, kOnceAheadBytes = 4096;  // the latter must find room in the first cache
constexpr int64_t kFetchedBytes = 384 << 10;  // a larger panel would drive the present one out of the cache

// activation(x), to a few units in the last place; silu of large numbers to some more, which become bf16 anyway.
INLINE vf activated(vf x, Activation activation) {
    if (activation == Activation::silu) {
        const vf power = x * -1.44269504f, most = splat(125.0f);
        return x / (1.0f + vexp2(power < most ? power : most));
    }
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

// Rows that share a pass over a panel, at most.
#if TRIOSERVE_TILES
constexpr int kMostRows = kUnitRows;
INLINE int tile_rows(const Panels& panels) { return takes_unit(panels) ? kUnitRows : kTile; }
inline void leave() { release_tiles(); }
#else
constexpr int kMostRows = kTile;
INLINE int tile_rows(const Panels&) { return kTile; }
inline void leave() {}
#endif

// Sums of up to tile_rows(panels) rows with one panel.
//   ahead: what to fetch meanwhile, `lines` cache lines in every step
INLINE void multiply_tile_of(const Panels& panels, int count, float* sums, const uint32_t* a, int64_t stride,
                             const uint32_t* panel, const char* ahead, int lines) {
#if TRIOSERVE_TILES
    if (takes_unit(panels)) return unit_rows(panels, count, sums, a, stride, panel, ahead, lines);
#endif
    using Tiles = std::make_integer_sequence<int, kTile>;
    if (panels.format == Format::bf16)
        multiply_rows(count, sums, kPanel, a, stride, panel, panels.num_words, ahead, lines, Tiles{});
    else if (panels.format == Format::int8)
        byte_rows(count, sums, a, stride, panel, panels.num_words - 1, ahead, lines, Tiles{});
    else
        nibble_rows(count, sums, a, stride, panel, panels.num_words / kGroupWords, ahead, lines, Tiles{});
}

// A block of rows with one panel. `next` is the panel that this thread will turn to next, which it fetches meanwhile;
// -1: none.
inline void multiply(const Panels& panels, const Factor& factor, int panel, int next, const Finish& finish) {
    const int step_words = panels.format == Format::int4 ? kGroupWords : kUnroll;
    const int all_lines = step_words * kPanel * 4 / 64;  // of a panel, passed in one step
    const int64_t size = static_cast<int64_t>(panels.num_words) * kPanel;
    const uint32_t* from = panels.words + panel * size;
    const int num_rows = factor.end - factor.first, most = tile_rows(panels), num_tiles = (num_rows + most - 1) / most;
    const bool is_small = size * 4 <= kFetchedBytes, is_once = num_tiles == 1 && most == kTile;
    const int share = num_tiles < all_lines ? (all_lines + num_tiles - 1) / num_tiles : 1;
    alignas(64) float sums[kMostRows * kPanel];
    for (int tile = 0; tile < num_tiles; ++tile) {
        const int first = factor.first + num_rows * tile / num_tiles;
        const int count = factor.first + num_rows * (tile + 1) / num_tiles - first;
        const char* ahead = reinterpret_cast<const char*>(from);
        int lines = 0;
        if (num_tiles == 1 || !is_small) {
            ahead += is_once ? kOnceAheadBytes : kAheadBytes;
            lines = tile > 0 || num_rows < kFetchedRows ? 0 : is_once ? -all_lines : all_lines;
        } else if (next >= 0 && next != panel && tile * share < all_lines) {
            ahead = reinterpret_cast<const char*>(panels.words + next * size) + size * 4 * tile * share / all_lines;
            lines = share;
        }
        multiply_tile_of(panels, count, sums, factor.rows.words + first * factor.rows.stride, factor.rows.stride, from,
                         ahead, lines);
        for (int row = 0; row < count; ++row) finish_row(sums + row * kPanel, first + row, panel, finish);
    }
}

// One number of a column.
//   from: the column's first word in its panel
INLINE float number_of(const Panels& panels, const uint32_t* from, int i) {
    float number;
    if (panels.format == Format::bf16) {
        const uint32_t pair = from[i / 2 * kPanel], bits = i % 2 != 0 ? pair & 0xffff0000u : pair << 16;
        __builtin_memcpy(&number, &bits, 4);
        return number;
    }
    if (panels.format == Format::int8) {
        __builtin_memcpy(&number, from + (panels.num_words - 1) * kPanel, 4);
        return number * static_cast<float>(static_cast<int>(from[i / 4 * kPanel] >> i % 4 * 8 & 0xff) - kByteZero);
    }
    const uint32_t* group = from + i / kScaleGroup * kGroupWords * kPanel;
    const uint32_t word = group[(1 + i % kScaleGroup / 8) * kPanel], bits[2] = {*group << 16, *group & 0xffff0000u};
    float grid[2];
    __builtin_memcpy(grid, bits, 8);
    return grid[0] * static_cast<float>(word >> (i % 4 * 8 + i % 8 / 4 * 4) & 15) + grid[1];
}

// A column as it was in its row, or near it, for a matrix that is the embedding as well.
//   out [depth]
inline void unpack_column(float* out, const Panels& panels, int column) {
    const uint32_t* from = panels.words + static_cast<int64_t>(column / kPanel) * panels.num_words * kPanel + column % kPanel;
    for (int i = 0; i < panels.depth; ++i) out[i] = number_of(panels, from, i);
}

// Fills one column of a panel from a row of a matrix.
INLINE void pack_column(uint32_t* to, const bf16* from, int begin, int end) {
    const int whole = end / 2;
    for (int i = begin / 2; i < whole; ++i)
        to[i * kPanel] = from[2 * i].bits | static_cast<uint32_t>(from[2 * i + 1].bits) << 16;
    if (end % 2 != 0) to[whole * kPanel] = from[end - 1].bits;
}

// Fills one panel from a matrix in rows; where there are no more of them it stays 0.
//   weights [num_columns][depth], for gated ones twice as many rows, gates first
inline void pack_panel(const Panels& panels, const Weights& weights, int panel) {
    constexpr int run = 32;  // elements of a row at a time: a cache line to read, and what is written stays in the cache
    uint32_t* to = panels.words + static_cast<int64_t>(panel) * panels.num_words * kPanel;
    const bf16* rows[kPanel];
    for (int column = 0; column < kPanel; ++column) {
        const int64_t row = panels.row_of(panel, column, kLanes);
        rows[column] = row >= 0 ? weights.row(row) : nullptr;
    }
    for (int begin = 0; begin < panels.depth; begin += run) {
        const int end = begin + run < panels.depth ? begin + run : panels.depth;
        for (int column = 0; column < kPanel; ++column)
            if (rows[column] != nullptr) pack_column(to + column, rows[column], begin, end);
    }
}
