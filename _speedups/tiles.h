// tiles.h: the matrix unit (AMX), eight tiles of at most 16 rows of 64 bytes that each thread has; in hardware, and in plain
// C++ for tests on machines without it.
//
// A tile that takes part in a product has a shape, and each thread configures those of its own. Between steps other code
// may run on a thread that uses the unit for itself, so a step configures the tiles when it needs them and gives them up
// at its end, which also spares the system to save 8 KB at every change of threads.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace trioserve {

inline thread_local int configured_rows = 0;  // of left factors, as unit.h configures tiles; 0: this thread's are not

constexpr int kUnitSize = 16;   // and words of a row: of floats, pairs of bf16, or four bytes
constexpr int kUnitBytes = 64;  // of a row

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t num_rows[16] = {};

    void set(int tile, int rows) {
        num_rows[tile] = static_cast<uint8_t>(rows);
        row_bytes[tile] = rows > 0 ? kUnitBytes : 0;
    }
};

#if defined(__x86_64__)
// Vectors carry it out, or tests would take minutes.
#pragma GCC push_options
#pragma GCC target("avx512f,avx2,fma")

// Source: the operations TDPBF16PS and TDPBSUD of Intel's instruction set reference.
class EmulatedTiles {
public:
    void configure(const TileShapes& shapes) {
        shapes_ = shapes;
        for (int tile = 0; tile < 8; ++tile) zero(tile);
    }

    void zero(int tile) { __builtin_memset(words_[tile], 0, sizeof words_[tile]); }

    void load(int tile, const void* from, int64_t stride) {
        zero(tile);
        for (int row = 0; row < rows_of(tile); ++row)
            __builtin_memcpy(words_[tile][row], static_cast<const char*>(from) + row * stride, kUnitBytes);
    }

    void store(int tile, void* to, int64_t stride) const {
        for (int row = 0; row < rows_of(tile); ++row)
            __builtin_memcpy(static_cast<char*>(to) + row * stride, words_[tile][row], kUnitBytes);
    }

    // The first halves of all pairs are summed apart from the second ones.
    void dot_pairs(int sums, int a, int b) {
        for (int row = 0; row < rows_of(sums); ++row) {
            float lower[kUnitSize] = {}, upper[kUnitSize] = {}, sum[kUnitSize];
            for (int i = 0; i < kUnitSize; ++i) {
                const float first = to_float(words_[a][row][i] << 16), second = to_float(words_[a][row][i] & 0xffff0000u);
                for (int column = 0; column < kUnitSize; ++column) {
                    const uint32_t y = words_[b][i][column];
                    lower[column] = __builtin_fmaf(first, to_float(y << 16), lower[column]);
                    upper[column] = __builtin_fmaf(second, to_float(y & 0xffff0000u), upper[column]);
                }
            }
            __builtin_memcpy(sum, words_[sums][row], sizeof sum);
            for (int column = 0; column < kUnitSize; ++column) sum[column] += lower[column] + upper[column];
            __builtin_memcpy(words_[sums][row], sum, sizeof sum);
        }
    }

    // Signed bytes of `a` with unsigned ones of `b`.
    void dot_bytes(int sums, int a, int b) {
        for (int row = 0; row < rows_of(sums); ++row)
            for (int column = 0; column < kUnitSize; ++column)
                for (int i = 0; i < 4 * kUnitSize; ++i) {
                    const int x = static_cast<int8_t>(words_[a][row][i / 4] >> i % 4 * 8 & 0xff);
                    const int y = static_cast<int>(words_[b][i / 4][column] >> i % 4 * 8 & 0xff);
                    words_[sums][row][column] += static_cast<uint32_t>(x * y);
                }
    }

private:
    static float to_float(uint32_t bits) {
        float number;
        __builtin_memcpy(&number, &bits, 4);
        return number;
    }

    int rows_of(int tile) const { return shapes_.num_rows[tile]; }

    TileShapes shapes_;
    uint32_t words_[8][kUnitSize][kUnitSize] = {};
};

inline thread_local EmulatedTiles emulated_tiles;

#pragma GCC pop_options
#endif

}  // namespace trioserve
