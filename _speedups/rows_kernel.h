// rows_kernel.h: what happens to the rows of a step between two products; included once per instruction set, within its
// namespace (see isa.h). Rows are padded with zeros to whole vectors.
//
// Making int8 of rows took an eighth of a prefill of S in int8 while bytes were widened and summed lane by lane; sums
// of 16 groups at once take a third of that.

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

// The mean of a row and the reciprocal of its standard deviation.
struct Spread {
    float mean, scale;
};

INLINE Spread spread_of(const float* x, int size, float eps) {
    vf sum = {}, squares = {}, lanes = {};
    for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<float>(i);
    for (int i = 0; i < size; i += kLanes) sum += load(x + i);
    const float mean = lane_sum(sum) / static_cast<float>(size);
    for (int i = 0; i < size; i += kLanes) {
        const vf off = load(x + i) - mean, kept = lanes < static_cast<float>(size - i) ? off : vf{};
        squares += kept * kept;
    }
    return {mean, 1.0f / __builtin_sqrtf(lane_sum(squares) / static_cast<float>(size) + eps)};
}

// Calls take(numbers), where numbers(i) are the kLanes numbers of the normed row from the i-th.
//   x [norm.size], padded
template <typename Take>
INLINE void with_normed(const float* x, const Norm& norm, const Take& take) {
    const float *weights = norm.weights, *bias = norm.bias;
    if (norm.kind == NormKind::none) return take([=](int i) { return load(x + i); });
    if (norm.kind == NormKind::rms) {
        const float scale = norm_scale(x, norm.size, norm.eps);
        return take([=](int i) { return load(x + i) * scale * load(weights + i); });
    }
    const Spread spread = spread_of(x, norm.size, norm.eps);
    if (bias == nullptr) return take([=](int i) { return (load(x + i) - spread.mean) * spread.scale * load(weights + i); });
    take([=](int i) { return (load(x + i) - spread.mean) * spread.scale * load(weights + i) + load(bias + i); });
}

//   out, x [norm.size], padded
inline void norm_row(bf16* out, const float* x, const Norm& norm) {
    with_normed(x, norm, [&](const auto& numbers) {
        for (int i = 0; i < norm.size; i += kLanes) store(out + i, numbers(i));
    });
}

// x += scale * what `added` is normed to.
//   x, added [norm.size], padded
inline void add_row(float* x, const float* added, const Norm& norm, float scale) {
    with_normed(added, norm, [&](const auto& numbers) {
        for (int i = 0; i < norm.size; i += kLanes) store(x + i, load(x + i) + numbers(i) * scale);
    });
}

// Numbers times `scale`; with a bound, which is not 0, then bound * tanh(x / bound).
//   x [size]
inline void scale_row(float* x, int size, float scale, float bound) {
    for (int i = 0; i < size; i += kLanes) {
        const size_t count = static_cast<size_t>(size - i < kLanes ? size - i : kLanes) * sizeof(float);
        vf numbers = {};
        __builtin_memcpy(&numbers, x + i, count);
        numbers *= scale;
        if (bound > 0.0f) numbers = bounded(numbers, bound);
        __builtin_memcpy(x + i, &numbers, count);
    }
}

typedef int8_t vb __attribute__((vector_size(TRIOSERVE_LANES)));
typedef int8_t vb_anywhere __attribute__((vector_size(TRIOSERVE_LANES), aligned(1), may_alias));

// The nearest whole numbers, even ones where two are as near.
#if TRIOSERVE_LANES == 16
INLINE vi nearest(vf x) { return reinterpret_cast<vi>(_mm512_maskz_cvtps_epi32(0xffff, reinterpret_cast<__m512>(x))); }
#elif TRIOSERVE_LANES == 8
INLINE vi nearest(vf x) { return reinterpret_cast<vi>(_mm256_cvtps_epi32(reinterpret_cast<__m256>(x))); }
#else
INLINE vi nearest(vf x) {
    const vf shift = splat(12582912.0f);  // 1.5 * 2^23
    return reinterpret_cast<vi>(x + shift) - reinterpret_cast<vi>(shift);
}
#endif

// The largest magnitude, or what is no number if there is such a one.
struct Most {
    vi bits = {};
    void take(vf x) {
        const vi other = reinterpret_cast<vi>(x) & 0x7fffffff;
        bits = bits > other ? bits : other;
    }
    float value() const {
        const int most = lanes_of(bits, [](vi a, vi b) { return a > b ? a : b; });
        float value;
        __builtin_memcpy(&value, &most, 4);
        return value;
    }
};

// Writes a row of int8 and what is behind it (panels.h).
//   numbers(i): the kLanes numbers from the i-th, 0 where the row has no more   most: the largest magnitude of them
template <typename Numbers>
INLINE void put_bytes(uint32_t* out, int size, float most, const Numbers& numbers) {
    const int padded_size = static_cast<int>(padded(size));
    const bool is_zero = most < 1e-30f;  // too small to be counted with
    const float steps = is_zero ? 0.0f : 127.0f / most;
    int8_t* to = reinterpret_cast<int8_t*>(out);
    uint32_t* tail = out + padded_size / 4;
    float* group_sums = reinterpret_cast<float*>(tail) + sizeof(RowTail) / 4;
    vi total = {};
    for (int first = 0; first < padded_size; first += kLanes * kScaleGroup) {
        const int left = (padded_size - first) / kScaleGroup, count = left < kLanes ? left : kLanes;
        vf groups[kLanes] = {};
        for (int group = 0; group < count; ++group) {
            vi sum = {};
            for (int i = 0; i < kScaleGroup; i += kLanes) {
                const int at = first + group * kScaleGroup + i;
                const vi whole = nearest(numbers(at) * steps);
                *reinterpret_cast<vb_anywhere*>(to + at) = __builtin_convertvector(whole, vb);
                sum += whole << 24 >> 24;
            }
            total += sum;
            groups[group] = to_floats(sum);
        }
        const vf found = sums(groups);
        if (count == kLanes)
            store(group_sums, found);
        else
            for (int group = 0; group < count; ++group) group_sums[group] = found[group];
        group_sums += count;
    }
    const int sum = lanes_of(total, [](vi a, vi b) { return a + b; });
    *reinterpret_cast<RowTail*>(tail) = RowTail{is_zero ? 0.0f : most / 127.0f, sum};
}

// A row in int8. One with a number that is not finite has a scale that is not.
//   out [row_words(size)]   x [size], padded
inline void quantize_row(uint32_t* out, const bf16* x, int size) {
    Most most;
    for (int i = 0; i < size; i += kLanes) most.take(load(x + i));
    put_bytes(out, size, most.value(), [x](int i) { return load(x + i); });
}

// The same of norm_row's numbers, before they are rounded to bf16.
inline void norm_bytes(uint32_t* out, const float* x, const Norm& norm) {
    with_normed(x, norm, [&](const auto& numbers) {
        Most most;
        for (int i = 0; i < norm.size; i += kLanes) most.take(numbers(i));
        put_bytes(out, norm.size, most.value(), numbers);
    });
}

// Rotates the first elements of a head in place.
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
    constexpr int step = kLanes < 8 ? kLanes : 8;  // half a head is whole vectors of 8 where all of it is rotated
    typedef float vs __attribute__((vector_size(4 * step), aligned(4), may_alias));
    int i = 0;
    for (; i + step <= half; i += step) {
        vs& lower = *reinterpret_cast<vs*>(x + i);
        vs& upper = *reinterpret_cast<vs*>(x + half + i);
        const vs a = lower, b = upper;
        const vs c = *reinterpret_cast<const vs*>(cosines + i), s = *reinterpret_cast<const vs*>(sines + i);
        lower = a * c - b * s;
        upper = b * c + a * s;
    }
    for (; i < half; ++i) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cosines[i] - b * sines[i];
        x[half + i] = b * cosines[i] + a * sines[i];
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
//   turns [2][shape.num_pairs], null: heads are not rotated
inline void place_row(bf16* q, const KvPlace& place, float* heads, const float* turns, const HeadShape& shape) {
    const int size = shape.head_dim, half = shape.num_pairs;
    char *k = place.k, *v = place.v;
    for (int head = 0; head < shape.num_kv_heads; ++head)
        fetch_group(k + head * place.head_stride, group_bytes(place.format, size));
    const bool is_normed = shape.q_norm != nullptr && !shape.heads_together;
    if (shape.q_norm != nullptr && shape.heads_together) {
        normalise(heads, shape.q_norm, shape.num_heads * size, shape.eps);
        normalise(heads + shape.num_heads * size, shape.k_norm, shape.num_kv_heads * size, shape.eps);
    }
    for (int head = 0; head < shape.num_heads; ++head, heads += size, q += size) {
        if (is_normed) normalise(heads, shape.q_norm, size, shape.eps);
        if (turns != nullptr) turn(heads, turns, half, shape.interleaved);
        copy_row(q, heads, size);
    }
    for (int head = 0; head < shape.num_kv_heads; ++head, heads += size, k += place.head_stride) {
        if (is_normed) normalise(heads, shape.k_norm, size, shape.eps);
        if (turns != nullptr) turn(heads, turns, half, shape.interleaved);
        write_key(place, k, heads, size);
    }
    for (int head = 0; head < shape.num_kv_heads; ++head, heads += size, v += place.head_stride)
        write_value(place, v, heads, size);
}
