// panels.h: products of a few or many rows with weights that were packed once.
//
//   out [num_rows, num_columns] = a [num_rows, depth] x weights [num_columns, depth] transposed; bf16 in, float32 sums
//
// Weights are cut into panels of two vectors of output columns. A panel holds, for each pair of neighbouring elements
// along the depth, that pair of all its columns, 32 bits a column: what the bf16 dot product takes, and what the other
// instruction sets split into two floats by a shift and a mask. A panel is read from front to back, once for each tile
// of up to 12 rows. Every sum runs through the depth in one order in one register, so a row's result does not depend on
// how many rows there are or who computes which.
//
// Weights in int8 or int4 (quantize.h) lie in panels of the same kind, four or eight of them in a column's 32 bits; what
// they are multiplied with is int8 too, made of each row anew, and sums are of whole numbers (byte_tile.h).
//
// On the matrix unit (AMX) the same panels are read as tiles, up to 32 rows at a time (unit_tile.h); its sums run through
// the depth in tiles of 32 pairs, each row's in the same order. It has been checked against an emulation of the unit and
// not been timed.
//
// Ladder (Zen 5 with AVX-512 and bf16 dot products, two threads; weights read, GB/s, where reading alone reached 50, in
// brackets 73; multiplications, G/s, of 512):
//                                                                1 row     8 rows    32 rows   512 rows
//   1. panel after panel, each claimed by whoever is free        48 (56)   37 (33)   350       486
//   2. the first tile fetches 8 KB ahead; of 1 or 2 rows it
//      gains nothing and is left out                             46 (52)   41 (42)   408       489
//   3. with several tiles each fetches a share of the panel that
//      the thread will turn to next                                                  472       488
//   4. a thread's panels follow each other (team.h)                 (70)      (57)
//   5. up to 12 rows of 3 or more fetch 4 KB ahead past the second
//      cache: a step of S with 8 rows 6.48 -> 6.30 ms (medians of four runs in turn), with 1 and 32 rows as before; in
//      one long stream of 8 rows 51.7 GB/s of weights instead of 48.7
// What did not help, all within the spread: 2, 16 or 32 KB ahead, or 4 KB into the first cache; fetching for 1 and 2 rows.
// The tile itself is at its limit from 8 rows on: with a panel in the cache 0.53 of the 0.54 TFLOP/s of a core's products,
// 0.34 with 4 rows and 0.10 with 1, which is 3 to 4 times as fast as memory is read.
#pragma once

#include <cstdint>

#include "isa.h"
#include "memory.h"

namespace trioserve {

constexpr int kPadding = 32;  // the depth of a product, and so the stride of rows, is a multiple of it

inline int64_t padded(int64_t size) { return (size + kPadding - 1) / kPadding * kPadding; }

enum class Activation : int { silu = 0, gelu = 1, gelu_tanh = 2 };

enum class Format : int { bf16 = 0, int8 = 1, int4 = 2 };

constexpr int kScaleGroup = 32;       // weights of a column that share a scale in int4
constexpr int kByteZero = 128;   // the byte that stands for 0 in int8

struct Panels {
    uint32_t* words = nullptr;  // [num_panels][num_words][columns of a panel]
    int num_panels = 0, num_words = 0;
    int num_columns = 0, depth = 0;  // num_columns: of gates alone, where it is gated
    Format format = Format::bf16;
    bool gated = false;  // a panel's first vector is of gate columns, its second of the same up columns
    Memory<uint32_t> memory;

    // The row of the matrix that is a panel's column, -1 where there are no more.
    //   lanes: columns of a vector
    int64_t row_of(int panel, int column, int lanes) const {
        const int at = gated ? panel * lanes + column % lanes : panel * 2 * lanes + column;
        if (at >= num_columns) return -1;
        return gated && column >= lanes ? int64_t{num_columns} + at : at;
    }
};

// A matrix in rows; those of several layers that are multiplied as one may lie apart.
struct Weights {
    static constexpr int kMaxPieces = 3;

    const bf16* pieces[kMaxPieces] = {};
    int64_t num_rows[kMaxPieces] = {};  // of each piece
    int64_t strides[kMaxPieces] = {};   // elements from one row to the next
    int depth = 0;
    const void* grids = nullptr;  // not null: the first piece is all of it, and has codes (quantize.h)

    const bf16* row(int64_t i) const {
        int piece = 0;
        for (; i >= num_rows[piece]; ++piece) i -= num_rows[piece];
        return pieces[piece] + i * strides[piece];
    }

    const uint8_t* codes(int64_t i) const { return reinterpret_cast<const uint8_t*>(pieces[0]) + i * strides[0]; }
};

// Words of a column in a panel: pairs; or bytes, and a scale; or for each group a scale and a least number, and nibbles.
inline int words_of(Format format, int depth) {
    const int size = static_cast<int>(padded(depth));
    if (format == Format::bf16) return size / 2;
    return format == Format::int8 ? size / 4 + 1 : size / kScaleGroup * (1 + kScaleGroup / 8);
}

// What stands behind the numbers of a row of int8, and before the sums of each group, float.
struct RowTail {
    float scale;
    int32_t sum;
};

// Words of a row of int8 with all that is behind it, whole cache lines.
inline int64_t row_words(int depth) {
    const int64_t tail = static_cast<int64_t>(sizeof(RowTail)) / 4 + padded(depth) / kScaleGroup;
    return (padded(depth) / 4 + tail + 15) / 16 * 16;
}

// What becomes of the sums of a product.
struct Finish {
    enum Kind { floats, residual, gated } kind;
    void* out;             // float [num_rows][stride], residual adds to it; gated: bf16 [num_rows][stride]
    int64_t stride;
    int width;             // columns of `out` that may be written
    const float* bias;     // of a product's columns in the order of its panels, or null
    Activation activation;
};

// Rows as a product takes them: of pairs of bf16, or of int8 with a RowTail.
struct Rows {
    const uint32_t* words;
    int64_t stride;
};

// A block of rows of one product.
struct Factor {
    Rows rows;
    int first, end;
};

}  // namespace trioserve
