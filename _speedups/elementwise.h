// elementwise.h: normalisation, rotation, activation and cache writes, a token a row, each row on its own.
//
// Rows go to the threads in runs, and only where there is enough of them: a decode step of a few sequences is done
// before another thread has woken up.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "isa.h"
#include "parallel.h"

namespace trioserve {

constexpr int64_t kSerialElements = 1 << 15;  // below this one thread does all rows
constexpr int64_t kRunElements = 1 << 13;     // that a thread claims at once, about

#define TRIOSERVE_BF16_DOT 0
#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define TRIOSERVE_LANES 16
namespace avx512 {
#include "simd.h"
#include "elementwise_kernel.h"
}  // namespace avx512
#undef TRIOSERVE_LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define TRIOSERVE_LANES 8
namespace avx2 {
#include "simd.h"
#include "elementwise_kernel.h"
}  // namespace avx2
#undef TRIOSERVE_LANES
#pragma GCC pop_options
#endif

#define TRIOSERVE_LANES 4
namespace portable {
#include "simd.h"
#include "elementwise_kernel.h"
}  // namespace portable
#undef TRIOSERVE_LANES
#undef TRIOSERVE_BF16_DOT

#if defined(__x86_64__)
#define TRIOSERVE_PICK(isa, function) \
    ((isa) == Isa::avx512 ? avx512::function : (isa) == Isa::avx2 ? avx2::function : portable::function)
#else
#define TRIOSERVE_PICK(isa, function) (portable::function)
#endif

template <typename Row>
void for_rows(int num_rows, int64_t row_elements, int num_threads, const Row& row) {
    if (num_rows * row_elements < kSerialElements) num_threads = 1;
    const int run = num_threads > 1 ? 1 + static_cast<int>(kRunElements / (row_elements + 1)) : num_rows + 1;
    parallel_tasks(num_threads, (num_rows + run - 1) / run, [&](int task) {
        const int begin = task * run, end = num_rows - begin < run ? num_rows : begin + run;
        for (int i = begin; i < end; ++i) row(i);
    });
}

struct Rows {  // of a tensor [num_rows, inner, ...]: row i is (i / inner, i % inner)
    int num_rows, inner;
    int64_t stride;  // elements between two outer rows; inner ones are contiguous
};

// x in rows of `size`, out contiguous; residual contiguous or null.
template <typename T>
void rms_norm(void* out, const void* x, void* residual, const void* weight, const Rows& rows, int size, float eps,
              int num_threads, Isa isa) {
    const auto kernel = TRIOSERVE_PICK(isa, rms_norm_row<T>);
    for_rows(rows.num_rows, size, num_threads, [&](int i) {
        const int64_t at = i / rows.inner * rows.stride + static_cast<int64_t>(i % rows.inner) * size;
        const int64_t packed = static_cast<int64_t>(i) * size;
        T* sum = residual == nullptr ? nullptr : static_cast<T*>(residual) + packed;
        kernel(static_cast<T*>(out) + packed, static_cast<const T*>(x) + at, sum, static_cast<const T*>(weight), size,
               eps);
    });
}

// x [num_tokens, num_heads, 2 * half] in place; table [num_positions, 2, half].
template <typename T>
void rope(void* x, const int64_t* positions, const float* table, int num_tokens, int64_t stride, int num_heads,
          int half, bool interleaved, int num_threads, Isa isa) {
    const auto kernel = TRIOSERVE_PICK(isa, rope_row<T>);
    for_rows(num_tokens, static_cast<int64_t>(num_heads) * half * 2, num_threads, [&](int i) {
        const float* turns = table + positions[i] * 2 * half;
        kernel(static_cast<T*>(x) + i * stride, turns, turns + half, num_heads, half, interleaved);
    });
}

// gate_up [num_tokens, 2 * size] -> out [num_tokens, size].
template <typename T>
void silu_mul(void* out, const void* gate_up, int num_tokens, int size, int num_threads, Isa isa) {
    const auto kernel = TRIOSERVE_PICK(isa, silu_mul_row<T>);
    for_rows(num_tokens, static_cast<int64_t>(size) * 2, num_threads, [&](int i) {
        const int64_t at = static_cast<int64_t>(i) * size;
        kernel(static_cast<T*>(out) + at, static_cast<const T*>(gate_up) + 2 * at, size);
    });
}

// from [num_tokens, num_heads, head_bytes] with a stride in bytes -> cache [num_blocks, num_heads, block_size, head_bytes].
inline void store(char* cache, const char* from, const int64_t* slot_mapping, int num_tokens, int64_t stride_bytes,
                  int num_heads, int block_size, int64_t head_bytes, int num_threads) {
    for_rows(num_tokens, num_heads * head_bytes, num_threads, [&](int i) {
        const int64_t block = slot_mapping[i] / block_size, offset = slot_mapping[i] % block_size;
        for (int head = 0; head < num_heads; ++head)
            std::memcpy(cache + ((block * num_heads + head) * block_size + offset) * head_bytes,
                        from + i * stride_bytes + head * head_bytes, static_cast<size_t>(head_bytes));
    });
}

}  // namespace trioserve
