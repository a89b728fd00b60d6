// rows_kernel.h: what happens to the rows of a step between two products; included once per instruction set, within its
// namespace (see isa.h). Rows are padded with zeros to whole vectors.

#include "kv_write.h"

INLINE float widen(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float wide;
    __builtin_memcpy(&wide, &bits, 4);
    return wide;
}

// The embedding of a token, which begins its row of the residual.
//   out [size]   weights [size]
inline void embed_row(float* out, const bf16* weights, int size) {
    for (int i = 0; i < size; ++i) out[i] = widen(weights[i]);
}

INLINE float norm_scale(const float* x, int size, float eps) {
    vf squares = {};
    for (int i = 0; i < size; i += kLanes) squares += load(x + i) * load(x + i);
    return 1.0f / __builtin_sqrtf(lane_sum(squares) / static_cast<float>(size) + eps);
}

// out = x * rsqrt(mean(x^2) + eps) * weights.
//   out, x, weights [size], padded
inline void norm_row(bf16* out, const float* x, const float* weights, int size, float eps) {
    const float scale = norm_scale(x, size, eps);
    for (int i = 0; i < size; i += kLanes) store(out + i, load(x + i) * scale * load(weights + i));
}

// Rotates a head in place.
//   x [2 * half]   turns [2][half], cosines and sines
INLINE void turn(float* x, const float* turns, int half, bool interleaved) {
    const float* cosines = turns;
    const float* sines = turns + half;
    if (interleaved) {
        for (int i = 0; i < half; ++i) {
            const float a = x[2 * i], b = x[2 * i + 1];
            x[2 * i] = a * cosines[i] - b * sines[i];
            x[2 * i + 1] = b * cosines[i] + a * sines[i];
        }
        return;
    }
    constexpr int step = kLanes < 8 ? kLanes : 8;  // half a head is whole vectors of 8 at least
    typedef float vs __attribute__((vector_size(4 * step), aligned(4), may_alias));
    for (int i = 0; i < half; i += step) {
        vs& lower = *reinterpret_cast<vs*>(x + i);
        vs& upper = *reinterpret_cast<vs*>(x + half + i);
        const vs a = lower, b = upper;
        const vs c = *reinterpret_cast<const vs*>(cosines + i), s = *reinterpret_cast<const vs*>(sines + i);
        lower = a * c - b * s;
        upper = b * c + a * s;
    }
}

INLINE void normalise(float* x, const float* weights, int size, float eps) {
    const float scale = norm_scale(x, size, eps);
    for (int i = 0; i < size; i += kLanes) store(x + i, load(x + i) * scale * load(weights + i));
}

INLINE void copy_row(bf16* out, const float* x, int size) {
    for (int i = 0; i < size; i += kLanes) store(out + i, load(x + i));
}

// A token's heads: normalised, rotated, q to its row and k and v to their place in the cache.
//   q [num_heads][head_dim]   heads [num_heads + 2 * num_kv_heads][head_dim], q, k and v; used up
//   turns [2][head_dim / 2]
inline void place_row(bf16* q, const KvPlace& place, float* heads, const float* turns, const HeadShape& shape) {
    const int size = shape.head_dim, half = size / 2;
    char *k = place.k, *v = place.v;
    for (int head = 0; head < shape.num_kv_heads; ++head)
        fetch_group(k + head * place.head_stride, group_bytes(place.format, size));
    for (int head = 0; head < shape.num_heads; ++head, heads += size, q += size) {
        if (shape.q_norm != nullptr) normalise(heads, shape.q_norm, size, shape.eps);
        turn(heads, turns, half, shape.interleaved);
        copy_row(q, heads, size);
    }
    for (int head = 0; head < shape.num_kv_heads; ++head, heads += size, k += place.head_stride) {
        if (shape.k_norm != nullptr) normalise(heads, shape.k_norm, size, shape.eps);
        turn(heads, turns, half, shape.interleaved);
        write_key(place, k, heads, size);
    }
    for (int head = 0; head < shape.num_kv_heads; ++head, heads += size, v += place.head_stride)
        write_value(place, v, heads, size);
}
