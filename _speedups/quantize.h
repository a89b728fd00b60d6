// quantize.h: what int8 and int4 weights are, and how they come from bf16 ones; once, at load.
//
//   int8: weight = scale * (byte - 128), a scale for each column. The scale makes the largest weight 127.
//   int4: weight = scale * nibble + least, both bf16, for each column and group of 32 along the depth: 5 bits a weight.
//         Of several ranges, each fitted to the nibbles that it gives, the one with the least squared error counts.
//   Codes that a checkpoint brought are kept as they are, with its scales.
//   rows: activation = scale * byte, a scale for each row, made anew for every product's input.
//
// This is compiled once and for every processor: so all instruction sets have the same bytes and nibbles.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "isa.h"
#include "panels.h"

namespace trioserve {

constexpr uint32_t kNoNumbers = 0x7fc07fc0u;  // a NaN, as a float and as two bf16

inline float wide(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

// The nearest bf16's bits, and in `x` what they say.
inline uint32_t narrow(float& x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
    std::memcpy(&x, &bits, sizeof bits);
    return bits >> 16;
}

// Four numbers, which every processor that this is compiled for adds and multiplies at once.
typedef float Four __attribute__((vector_size(16)));

// The nearest whole numbers, of numbers below 2^22.
template <typename T>
T rounded(T x) {
    constexpr float shift = 12582912.0f;  // 1.5 * 2^23
    return (x + shift) - shift;
}

inline float sum_of(Four x) { return (x[0] + x[1]) + (x[2] + x[3]); }

// How many of `scale` there are in one; 0 for what is too small to be counted with.
inline float step_of(float scale) { return std::fabs(scale) > 1e-30f ? 1.0f / scale : 0.0f; }

// A group of int4: which numbers its nibbles stand for, and how far they are from the weights.
struct Grid {
    float scale, least, error;
    uint32_t bits;  // of scale, and above them of least
    Four nibbles[kScaleGroup / 4];

    void take(const Four* weights, float new_scale, float new_least) {
        scale = new_scale, least = new_least;
        bits = narrow(scale);
        bits |= narrow(least) << 16;
        const float steps = step_of(scale);
        const Four most = Four{} + 15.0f;
        Four errors = {};
        for (int i = 0; i < kScaleGroup / 4; ++i) {
            Four nibble = (weights[i] - least) * steps;
            nibble = nibble > 0.0f ? nibble : Four{};
            nibbles[i] = rounded(nibble < most ? nibble : most);
            const Four off = nibbles[i] * scale + least - weights[i];
            errors += off * off;
        }
        error = sum_of(errors);
    }

    // The line through the weights over their nibbles: the best scale and least number for these.
    void fit(const Four* weights) {
        Four xs = {}, ys = {}, squares = {}, products = {};
        for (int i = 0; i < kScaleGroup / 4; ++i) {
            xs += nibbles[i];
            ys += weights[i];
            squares += nibbles[i] * nibbles[i];
            products += nibbles[i] * weights[i];
        }
        const float x = sum_of(xs), y = sum_of(ys), spread = kScaleGroup * sum_of(squares) - x * x;
        if (spread <= 0.0f) return;
        const float slope = (kScaleGroup * sum_of(products) - x * y) / spread;
        take(weights, slope, (y - slope * x) / kScaleGroup);
    }
};

inline Grid best_grid(const float* numbers) {
    constexpr float ranges[] = {1.0f, 0.92f, 0.84f, 0.75f};  // of that from the least to the largest
    Four weights[kScaleGroup / 4];
    std::memcpy(weights, numbers, sizeof weights);
    const auto [low, high] = std::minmax_element(numbers, numbers + kScaleGroup);
    const float least = *low, whole = *high - *low;
    Grid grid;
    float best[2] = {0.0f, 0.0f}, error = std::numeric_limits<float>::infinity();
    for (float range : ranges) {
        grid.take(weights, whole * range / 15.0f, least + whole * (1.0f - range) / 2.0f);
        for (int turn = 0; turn < 3; ++turn) {
            if (turn > 0) grid.fit(weights);
            if (!(grid.error < error)) continue;
            error = grid.error;
            best[0] = grid.scale, best[1] = grid.least;
        }
    }
    grid.take(weights, best[0], best[1]);
    return grid;
}

// Fills one column of a panel of int8.
//   to: the column's first word, the next kPanel words further; weights [depth]
inline void pack_bytes(uint32_t* to, int num_columns, const float* weights, int padded_depth) {
    float most = 0.0f;
    for (int i = 0; i < padded_depth; ++i) most = std::max(most, std::fabs(weights[i]));
    const float scale = most / 127.0f, steps = step_of(scale);
    for (int i = 0; i < padded_depth; i += 4) {
        uint32_t word = 0;
        for (int j = 0; j < 4; ++j) {
            const int byte = static_cast<int>(rounded(weights[i + j] * steps)) + kByteZero;
            word |= static_cast<uint32_t>(byte) << 8 * j;
        }
        to[i / 4 * num_columns] = word;
    }
    std::memcpy(to + padded_depth / 4 * num_columns, &scale, sizeof scale);
}

// The same of int4.
inline void pack_nibbles(uint32_t* to, int num_columns, const float* weights, int padded_depth) {
    for (int first = 0; first < padded_depth; first += kScaleGroup) {
        const Grid grid = best_grid(weights + first);
        *to = grid.bits;
        to += num_columns;
        for (int i = 0; i < kScaleGroup; i += 8, to += num_columns) {
            *to = 0;
            for (int j = 0; j < 8; ++j)
                *to |= static_cast<uint32_t>(grid.nibbles[i / 4 + j / 4][j % 4]) << (j < 4 ? 8 * j : 8 * (j - 4) + 4);
        }
    }
}

// Fills one panel from a matrix in rows; where there are no more of them it stays 0, scales too. A column with a weight
// that is not finite gets scales that are no numbers, and so has no other results than it had in bf16.
//   weights as pack_panel takes them (panels_kernel.h)
inline void quantize_panel(const Panels& panels, const Weights& weights, int panel, int lanes) {
    const int num_columns = 2 * lanes, depth = static_cast<int>(padded(panels.depth));
    uint32_t* to = panels.words + static_cast<int64_t>(panel) * panels.num_words * num_columns;
    std::vector<float> column(static_cast<size_t>(depth));
    for (int i = 0; i < num_columns; ++i) {
        const int64_t row = panels.row_of(panel, i, lanes);
        if (row < 0) continue;
        const bf16* from = weights.row(row);
        std::transform(from, from + panels.depth, column.begin(), wide);
        if (!std::all_of(column.begin(), column.end(), [](float x) { return std::isfinite(x); })) {
            for (int word = 0; word < panels.num_words; ++word) to[i + word * num_columns] = kNoNumbers;
            continue;
        }
        (panels.format == Format::int8 ? pack_bytes : pack_nibbles)(to + i, num_columns, column.data(), depth);
    }
}

// Fills one column of a panel of int8 with codes that there are, of which none is beyond the depth.
//   scale: the column's
inline void keep_bytes(uint32_t* to, int num_columns, const uint8_t* codes, const float& scale, int padded_depth) {
    for (int i = 0; i < padded_depth; i += 4) std::memcpy(to + i / 4 * num_columns, codes + i, 4);
    std::memcpy(to + padded_depth / 4 * num_columns, &scale, sizeof scale);
}

// The same of int4.
//   grids: of each group a word, its scale and above it its least number, both bf16
inline void keep_nibbles(uint32_t* to, int num_columns, const uint8_t* codes, const uint32_t* grids, int padded_depth) {
    for (int first = 0; first < padded_depth; first += kScaleGroup) {
        *to = *grids++;
        to += num_columns;
        for (int i = first; i < first + kScaleGroup; i += 8, to += num_columns) {
            uint32_t low, high;
            std::memcpy(&low, codes + i, 4);
            std::memcpy(&high, codes + i + 4, 4);
            *to = low | high << 4;
        }
    }
}

// Fills one panel with the codes of a matrix, as quantize_panel does from its weights.
//   weights.grids: of int8 float [num_columns]; of int4 words [num_columns][groups of the padded depth]
inline void keep_panel(const Panels& panels, const Weights& weights, int panel, int lanes) {
    const int num_columns = 2 * lanes, depth = static_cast<int>(padded(panels.depth));
    const bool is_int8 = panels.format == Format::int8;
    uint32_t* to = panels.words + static_cast<int64_t>(panel) * panels.num_words * num_columns;
    std::vector<uint8_t> column(static_cast<size_t>(depth), is_int8 ? kByteZero : 0);
    for (int i = 0; i < num_columns; ++i) {
        const int64_t row = panels.row_of(panel, i, lanes);
        if (row < 0) continue;
        std::memcpy(column.data(), weights.codes(row), static_cast<size_t>(panels.depth));
        if (is_int8)
            keep_bytes(to + i, num_columns, column.data(), static_cast<const float*>(weights.grids)[row], depth);
        else
            keep_nibbles(to + i, num_columns, column.data(),
                         static_cast<const uint32_t*>(weights.grids) + row * (depth / kScaleGroup), depth);
    }
}

}  // namespace trioserve
