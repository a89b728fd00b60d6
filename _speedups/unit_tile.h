// unit_tile.h: sums of up to 32 rows with a panel on the matrix unit (tiles.h); included within the namespaces of
// instruction sets that have it, after byte_tile.h and unit.h (see isa.h).
//
// 16 words of a panel's two vectors are two right factors as they lie in memory, and so are rows left ones. Sums fill
// four tiles: up to two blocks of rows, two vectors. A tile's sums do not depend on how many rows it has, so rows are
// alike whatever comes with them, as everywhere.

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
