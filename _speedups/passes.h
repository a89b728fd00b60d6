// passes.h: what every instruction set can do with a row of logits; choice_kernel.h and sampling_kernel.h say what each
// function does.
#pragma once

#include <cstdint>

namespace trioserve {

constexpr int kStrands = 16;           // sums that a block is summed in, side by side, on every instruction set
constexpr int kRun = 64;               // logits of which the maximum is kept
constexpr int kBlock = 256;            // weights that are summed first; a draw looks for the block, then within it
constexpr float kFaintest = -125.0f;  // a token 2^125 times less likely than the likeliest is never drawn

struct Passes {
    bool (*mask_row)(float* out, const float* x, const uint32_t* mask, int size);
    int64_t (*masked_argmax_row)(const float* x, const uint32_t* mask, int size);
    float (*run_maxima)(float* maxima, const float* x, int size);
    double (*weight_sums)(double* ends, const float* x, int size, float largest, float scale);
    double (*sums_of_weights)(double* ends, const float* weights, int size);
    void (*weigh)(float* weights, const float* x, int size, float largest, float scale, float border);
    void (*drop_below)(float* weights, int size, float border);
    float (*border_of_top)(const float* x, int size, int k, float largest);
    int (*gather)(float* values, int32_t* ids, const float* x, const float* maxima, int size, float border);
    float (*nucleus_border)(float* weights, int size, double target, float least);
};

}  // namespace trioserve
