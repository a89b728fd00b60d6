// unit_tile.h: sums of up to 32 rows with a panel on the matrix unit (tiles.h); included within the namespaces of
// instruction sets that have it, after byte_tile.h (see isa.h). TRIOSERVE_TILES: 1 for the hardware's, 2 for emulated ones.
//
// 16 words of a panel's two vectors are two right factors as they lie in memory, and so are rows left ones. Sums fill
// four tiles: up to two blocks of rows, two vectors. A tile's sums do not depend on how many rows it has, so rows are
// alike whatever comes with them, as everywhere.

constexpr int kUnitRows = 2 * kUnitSize;

#if TRIOSERVE_TILES == 1
#define TILES_CONFIGURE(shapes) _tile_loadconfig(&(shapes))
#define TILES_RELEASE() _tile_release()
#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
#define TILE_DOT_PAIRS(sums, a, b) _tile_dpbf16ps(sums, a, b)
#define TILE_DOT_BYTES(sums, a, b) _tile_dpbsud(sums, a, b)
#else
#define TILES_CONFIGURE(shapes) emulated_tiles.configure(shapes)
#define TILES_RELEASE() emulated_tiles.configure(TileShapes{})
#define TILE_ZERO(tile) emulated_tiles.zero(tile)
#define TILE_LOAD(tile, from, stride) emulated_tiles.load(tile, from, stride)
#define TILE_STORE(tile, to, stride) emulated_tiles.store(tile, to, stride)
#define TILE_DOT_PAIRS(sums, a, b) emulated_tiles.dot_pairs(sums, a, b)
#define TILE_DOT_BYTES(sums, a, b) emulated_tiles.dot_bytes(sums, a, b)
#endif

inline thread_local int configured_rows = 0;  // 0: this thread's tiles are not configured

// Tiles 0 and 1 have the sums of the first block of rows, 2 and 3 those of the second, 4 and 5 the blocks, 6 and 7 the panel.
inline void configure_tiles(int num_rows) {
    if (configured_rows == num_rows) return;
    const int first = num_rows < kUnitSize ? num_rows : kUnitSize, second = num_rows - first;
    TileShapes shapes;
    for (int tile : {0, 1, 4}) shapes.set(tile, first);
    for (int tile : {2, 3, 5}) shapes.set(tile, second);
    for (int tile : {6, 7}) shapes.set(tile, kUnitSize);
    TILES_CONFIGURE(shapes);
    configured_rows = num_rows;
}

inline void release_tiles() {
    if (configured_rows != 0) TILES_RELEASE();
    configured_rows = 0;
}

// The sums as the unit leaves them: floats of pairs, whole numbers of bytes.
//   sums [count] rows of kPanel   a [count] rows of words   panel [num_words][kPanel], num_words a multiple of kUnitSize
//   ahead: what to fetch meanwhile, `lines` cache lines in every kUnroll words
template <bool kBytes>
void multiply_unit(int count, void* sums, const uint32_t* a, int64_t stride, const uint32_t* panel, int num_words,
                   const char* ahead, int lines) {
    configure_tiles(count);
    const bool has_two = count > kUnitSize;
    const uint32_t* second = a + kUnitSize * stride;
    TILE_ZERO(0);
    TILE_ZERO(1);
    if (has_two) {
        TILE_ZERO(2);
        TILE_ZERO(3);
    }
    for (int word = 0; word < num_words; word += kUnitSize) {
        for (int line = 0; line < lines * (kUnitSize / kUnroll); ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
        TILE_LOAD(6, panel, kPanel * 4);
        TILE_LOAD(7, panel + kLanes, kPanel * 4);
        TILE_LOAD(4, a + word, stride * 4);
        if (kBytes) {
            TILE_DOT_BYTES(0, 4, 6);
            TILE_DOT_BYTES(1, 4, 7);
        } else {
            TILE_DOT_PAIRS(0, 4, 6);
            TILE_DOT_PAIRS(1, 4, 7);
        }
        if (has_two) {
            TILE_LOAD(5, second + word, stride * 4);
            if (kBytes) {
                TILE_DOT_BYTES(2, 5, 6);
                TILE_DOT_BYTES(3, 5, 7);
            } else {
                TILE_DOT_PAIRS(2, 5, 6);
                TILE_DOT_PAIRS(3, 5, 7);
            }
        }
        panel += kUnitSize * kPanel;
    }
    uint32_t* to = static_cast<uint32_t*>(sums);
    TILE_STORE(0, to, kPanel * 4);
    TILE_STORE(1, to + kLanes, kPanel * 4);
    if (has_two) {
        TILE_STORE(2, to + kUnitSize * kPanel, kPanel * 4);
        TILE_STORE(3, to + kUnitSize * kPanel + kLanes, kPanel * 4);
    }
}

// Whether the unit takes such panels: whole tiles of them, and no nibbles.
INLINE bool takes_unit(const Panels& panels) {
    if (panels.format == Format::bf16) return panels.num_words % kUnitSize == 0;
    return panels.format == Format::int8 && (panels.num_words - 1) % kUnitSize == 0;
}

INLINE vi load_whole(const int32_t* p) {
    vi x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}

// As multiply_tile and multiply_bytes, of up to kUnitRows rows.
INLINE void unit_rows(const Panels& panels, int count, float* sums, const uint32_t* a, int64_t stride, const uint32_t* panel,
                      const char* ahead, int lines) {
    if (panels.format == Format::bf16) return multiply_unit<false>(count, sums, a, stride, panel, panels.num_words, ahead, lines);
    const int num_words = panels.num_words - 1;
    alignas(64) int32_t whole[kUnitRows * kPanel];
    multiply_unit<true>(count, whole, a, stride, panel, num_words, ahead, lines);
    const float* scales = reinterpret_cast<const float*>(panel + num_words * kPanel);
    for (int row = 0; row < count; ++row) {
        const RowTail& tail = *reinterpret_cast<const RowTail*>(a + row * stride + num_words);
        const int zeros = kByteZero * tail.sum;
        scale_bytes(sums + row * kPanel, load_whole(whole + row * kPanel) - zeros,
                    load_whole(whole + row * kPanel + kLanes) - zeros, scales, tail);
    }
}

#undef TILES_CONFIGURE
#undef TILES_RELEASE
#undef TILE_ZERO
#undef TILE_LOAD
#undef TILE_STORE
#undef TILE_DOT_PAIRS
#undef TILE_DOT_BYTES
