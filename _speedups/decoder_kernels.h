// decoder_kernels.h: the arithmetic of a decoder step, once for each instruction set.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "isa.h"
#include "kv_cache.h"
#include "panels.h"
#include "tiles.h"

namespace trioserve {

// What is done to the rows of a step between two products.
struct HeadShape {
    int num_heads, num_kv_heads, head_dim;
    int num_pairs;        // of a head that are rotated: its first elements
    bool interleaved;     // whether neighbours are rotated with each other, or halves
    bool heads_together;  // whether the heads of a token are normalised together
    const float* q_norm;  // [head_dim], or of all heads, null: heads are not normalised
    const float* k_norm;
    float eps;
};

enum class NormKind : int { none = 0, rms = 1, layer = 2 };

// A norm of rows: x * rsqrt(mean(x^2) + eps) * weights; or, as layer norm, of x - mean(x) and with a bias; or none.
struct Norm {
    NormKind kind;
    const float* weights;  // [size], padded
    const float* bias;     // the same, null: none
    int size;
    float eps;
};

// A token's place in the cache of one layer.
struct KvPlace {
    char *k, *v;          // its group in the first KV head
    int64_t head_stride;  // bytes to the group of the next head
    int token;            // of the group
    KvFormat format;
};

#define TRIOSERVE_BF16_DOT 0
#define TRIOSERVE_BYTE_DOT 0
#define TRIOSERVE_TILES 0
#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define TRIOSERVE_LANES 8
namespace step_avx2 {
#include "simd.h"
#include "dot_tile.h"
#include "byte_tile.h"
#include "panels_kernel.h"
#include "rows_kernel.h"
}  // namespace step_avx2
#undef TRIOSERVE_LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define TRIOSERVE_LANES 16
namespace step_avx512 {
#include "simd.h"
#include "dot_tile.h"
#include "byte_tile.h"
#include "panels_kernel.h"
#include "rows_kernel.h"
}  // namespace step_avx512
#undef TRIOSERVE_LANES
#pragma GCC pop_options

#undef TRIOSERVE_BYTE_DOT
#define TRIOSERVE_BYTE_DOT 1
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")
#define TRIOSERVE_LANES 16
namespace step_avx512_vnni {
#include "simd.h"
#include "dot_tile.h"
#include "byte_tile.h"
#include "panels_kernel.h"
#include "rows_kernel.h"
}  // namespace step_avx512_vnni
#undef TRIOSERVE_LANES
#pragma GCC pop_options

#undef TRIOSERVE_BF16_DOT
#define TRIOSERVE_BF16_DOT 1
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma")
#define TRIOSERVE_LANES 16
namespace step_avx512_bf16 {
#include "simd.h"
#include "dot_tile.h"
#include "byte_tile.h"
#include "panels_kernel.h"
#include "rows_kernel.h"
}  // namespace step_avx512_bf16
#undef TRIOSERVE_LANES
#pragma GCC pop_options
#undef TRIOSERVE_TILES
#define TRIOSERVE_TILES 1
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,amx-tile,amx-bf16,amx-int8")
#define TRIOSERVE_LANES 16
namespace step_amx {
#include "simd.h"
#include "dot_tile.h"
#include "byte_tile.h"
#include "unit.h"
#include "unit_tile.h"
#include "panels_kernel.h"
#include "rows_kernel.h"
}  // namespace step_amx
#undef TRIOSERVE_LANES
#pragma GCC pop_options

#undef TRIOSERVE_BF16_DOT
#undef TRIOSERVE_BYTE_DOT
#define TRIOSERVE_BF16_DOT 0
#define TRIOSERVE_BYTE_DOT 0
#undef TRIOSERVE_TILES
#define TRIOSERVE_TILES 2
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define TRIOSERVE_LANES 16
namespace step_amx_emulated {
#include "simd.h"
#include "dot_tile.h"
#include "byte_tile.h"
#include "unit.h"
#include "unit_tile.h"
#include "panels_kernel.h"
#include "rows_kernel.h"
}  // namespace step_amx_emulated
#undef TRIOSERVE_LANES
#pragma GCC pop_options
#undef TRIOSERVE_TILES
#define TRIOSERVE_TILES 0
#endif

#define TRIOSERVE_LANES 4
namespace step_portable {
#include "simd.h"
#include "dot_tile.h"
#include "byte_tile.h"
#include "panels_kernel.h"
#include "rows_kernel.h"
}  // namespace step_portable
#undef TRIOSERVE_LANES
#undef TRIOSERVE_BF16_DOT
#undef TRIOSERVE_BYTE_DOT
#undef TRIOSERVE_TILES

struct Kernels {
    int lanes;
    void (*pack_panel)(const Panels&, const Weights& weights, int panel);
    void (*unpack_column)(float* out, const Panels&, int column);
    void (*multiply)(const Panels&, const Factor&, int panel, int next_panel, const Finish&);
    void (*leave)();  // each thread calls it after its last product of a step
    void (*quantize_row)(uint32_t* out, const bf16* x, int size);
    void (*embed_row)(float* out, const bf16* weights, int size);
    void (*norm_row)(bf16* out, const float* x, const Norm&);
    void (*norm_bytes)(uint32_t* out, const float* x, const Norm&);
    void (*add_row)(float* x, const float* added, const Norm&, float scale);
    void (*scale_row)(float* x, int size, float scale, float bound);
    void (*place_row)(bf16* q, const KvPlace&, float* heads, const float* turns, const HeadShape&);
};

#define TRIOSERVE_KERNELS(set)                                                                                  \
    Kernels {                                                                                                   \
        set::kLanes, set::pack_panel, set::unpack_column, set::multiply, set::leave, set::quantize_row, set::embed_row,     \
            set::norm_row, set::norm_bytes, set::add_row, set::scale_row, set::place_row                        \
    }

inline Kernels kernels_of(Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::amx) return TRIOSERVE_KERNELS(step_amx);
    if (isa == Isa::amx_emulated) return TRIOSERVE_KERNELS(step_amx_emulated);
    if (isa == Isa::avx512_bf16) return TRIOSERVE_KERNELS(step_avx512_bf16);
    if (isa == Isa::avx512_vnni) return TRIOSERVE_KERNELS(step_avx512_vnni);
    if (isa == Isa::avx512) return TRIOSERVE_KERNELS(step_avx512);
    if (isa == Isa::avx2) return TRIOSERVE_KERNELS(step_avx2);
#endif
    return TRIOSERVE_KERNELS(step_portable);
}

}  // namespace trioserve
