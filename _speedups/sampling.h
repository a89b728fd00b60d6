// sampling.h: logits under masks of allowed tokens, a sequence a row, each row on its own.
#pragma once

#include <cstdint>
#include <utility>

#include "isa.h"
#include "parallel.h"

namespace trioserve {

constexpr int64_t kSerialLogits = 1 << 18;  // below this one thread does all rows: about 20 us

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define TRIOSERVE_LANES 16
namespace avx512 {
#include "simd.h"
#include "sampling_kernel.h"
}  // namespace avx512
#undef TRIOSERVE_LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define TRIOSERVE_LANES 8
namespace avx2 {
#include "simd.h"
#include "sampling_kernel.h"
}  // namespace avx2
#undef TRIOSERVE_LANES
#pragma GCC pop_options
#endif

#define TRIOSERVE_LANES 4
namespace portable {
#include "simd.h"
#include "sampling_kernel.h"
}  // namespace portable
#undef TRIOSERVE_LANES

#if defined(__x86_64__)
#define TRIOSERVE_PICK(isa, function) \
    ((isa) == Isa::avx512 ? avx512::function : (isa) == Isa::avx2 ? avx2::function : portable::function)
#else
#define TRIOSERVE_PICK(isa, function) (portable::function)
#endif

inline bool mask_logits(float* out, const float* logits, const int32_t* mask, int size, Isa isa) {
    return TRIOSERVE_PICK(isa, mask_row)(out, logits, reinterpret_cast<const uint32_t*>(mask), size);
}

// found[i] = the likeliest of row rows[i] that row i of the masks allows, or -1.
//   logits [num_logits, size]   masks [num_rows, num_words]   rows, found [num_rows]
inline void masked_argmax(int64_t* found, const float* logits, const int32_t* masks, const int64_t* rows, int num_rows,
                          int size, int num_words, int num_threads, Isa isa) {
    const auto kernel = TRIOSERVE_PICK(isa, masked_argmax_row);
    if (static_cast<int64_t>(num_rows) * size < kSerialLogits) num_threads = 1;
    parallel_tasks(num_threads, num_rows, [&](int i) {
        const auto* mask = reinterpret_cast<const uint32_t*>(masks + static_cast<int64_t>(i) * num_words);
        found[i] = kernel(logits + rows[i] * size, mask, size);
    });
}

}  // namespace trioserve
