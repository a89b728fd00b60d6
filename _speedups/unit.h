// unit.h: the operations of the matrix unit (tiles.h); included within the namespaces of instruction sets that have it
// (see isa.h). TRIOSERVE_TILES: 1 for the hardware's, 2 for emulated ones.

constexpr int kUnitRows = 2 * kUnitSize;  // that share a pass over right factors

#undef TILES_CONFIGURE
#undef TILES_RELEASE
#undef TILE_ZERO
#undef TILE_LOAD
#undef TILE_STORE
#undef TILE_DOT_PAIRS
#undef TILE_DOT_BYTES
#if TRIOSERVE_TILES == 1
#define TILES_CONFIGURE(shapes) asm volatile("ldtilecfg %0" ::"m"(shapes))
#define TILES_RELEASE() _tile_release()
#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, from, stride)                               \
    do { /* the compiler does not know that a load reads memory */  \
        const void* const at = from;                                \
        asm volatile("" ::: "memory");                              \
        _tile_loadd(tile, at, stride);                              \
    } while (false)
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

// Tiles 0 and 1 have the sums of the first block of rows, 2 and 3 those of the second, 4 and 5 the blocks, 6 and 7 right
// factors.
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
