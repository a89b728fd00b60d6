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
// A matrix unit (AMX) would be one more `multiply_tile` over panels of its own layout, and a line of `kernels_of` (decoder_kernels.h).
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
#pragma once

#include <cstdint>

#include "isa.h"
#include "memory.h"

namespace trioserve {

constexpr int kPadding = 32;  // the depth of a product, and so the stride of rows, is a multiple of it

inline int64_t padded(int64_t size) { return (size + kPadding - 1) / kPadding * kPadding; }

enum class Activation : int { silu = 0, gelu = 1, gelu_tanh = 2 };

struct Panels {
    uint32_t* pairs = nullptr;  // [num_panels][num_pairs][columns of a panel]
    int num_panels = 0, num_pairs = 0;
    int num_columns = 0, depth = 0;  // num_columns: of gates alone, where it is gated
    bool gated = false;  // a panel's first vector is of gate columns, its second of the same up columns
    Memory<uint32_t> memory;
};

// A matrix in rows; those of several layers that are multiplied as one may lie apart.
struct Rows {
    static constexpr int kMaxPieces = 3;

    const bf16* pieces[kMaxPieces] = {};
    int64_t num_rows[kMaxPieces] = {};  // of each piece
    int depth = 0;

    const bf16* row(int64_t i) const {
        int piece = 0;
        for (; i >= num_rows[piece]; ++piece) i -= num_rows[piece];
        return pieces[piece] + i * depth;
    }
};

// What becomes of the sums of a product.
struct Finish {
    enum Kind { floats, residual, gated } kind;
    void* out;             // float [num_rows][stride], residual adds to it; gated: bf16 [num_rows][stride]
    int64_t stride;
    int width;             // columns of `out` that may be written
    const float* bias;     // of a product's columns in the order of its panels, or null
    Activation activation;
};

// A block of rows of one product.
struct Factor {
    const bf16* rows;
    int64_t stride;
    int first, end;
};

}  // namespace trioserve
