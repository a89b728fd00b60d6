// simd.h: vectors of TRIOSERVE_LANES floats; included once per instruction set, within its namespace (see isa.h).
//
// GCC's vector types do the arithmetic, so that one text serves every width. bf16 is widened on load and rounded to
// nearest even on store; all arithmetic is float32. TRIOSERVE_BF16_DOT says that the set has bf16 dot products.

#define INLINE static inline __attribute__((always_inline))
#define INLINE_IN inline __attribute__((always_inline))  // a class

constexpr int kLanes = TRIOSERVE_LANES;

typedef float vf __attribute__((vector_size(4 * TRIOSERVE_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * TRIOSERVE_LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * TRIOSERVE_LANES)));
typedef float vf_anywhere __attribute__((vector_size(4 * TRIOSERVE_LANES), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(2 * TRIOSERVE_LANES)));
typedef uint16_t vh_anywhere __attribute__((vector_size(2 * TRIOSERVE_LANES), aligned(2), may_alias));

INLINE vf splat(float x) { return vf{} + x; }

INLINE vf load(const float* p) { return *reinterpret_cast<const vf_anywhere*>(p); }

INLINE vf load(const bf16* p) {
    const vh bits = *reinterpret_cast<const vh_anywhere*>(p);
    return reinterpret_cast<vf>(__builtin_convertvector(bits, vu) << 16);
}

INLINE void store(float* p, vf x) { *reinterpret_cast<vf_anywhere*>(p) = x; }

#if TRIOSERVE_BF16_DOT
INLINE void store(bf16* p, vf x) {
    *reinterpret_cast<vh_anywhere*>(p) = reinterpret_cast<vh>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
}
#else
INLINE void store(bf16* p, vf x) {
    const vu bits = reinterpret_cast<vu>(x);
    const vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const vu kept = x == x ? rounded : vu{} + 0x7fc0;  // rounding could carry a NaN into a number
    *reinterpret_cast<vh_anywhere*>(p) = __builtin_convertvector(kept, vh);
}
#endif

INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }

// The lanes with those of the other half of each run of 2 * kHalf in their place.
template <int kHalf, typename V, int... kLane>
INLINE V swapped(V x, std::integer_sequence<int, kLane...>) {
    return __builtin_shuffle(x, vi{(kLane ^ kHalf)...});
}

// All lanes taken together: halves with halves.
template <int kHalf = kLanes / 2, typename V, typename Both>
INLINE auto lanes_of(V x, const Both& both) {
    if constexpr (kHalf == 0)
        return x[0];
    else
        return lanes_of<kHalf / 2>(both(x, swapped<kHalf>(x, std::make_integer_sequence<int, kLanes>{})), both);
}

INLINE float lane_sum(vf x) {
    return lanes_of(x, [](vf a, vf b) { return a + b; });
}

INLINE float lane_max(vf x) {
    return lanes_of(x, [](vf a, vf b) { return vmax(a, b); });
}

// e^x to about two units in the last place; below -87 it stays at the smallest normal number.
INLINE vf vexp(vf x) {
    x = vmax(x, splat(-87.0f));
    x = x < splat(88.0f) ? x : splat(88.0f);
    const vf shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number in the low bits
    const vf shifted = x * 1.44269504f + shift;
    const vf n = shifted - shift;
    const vf r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const vi exponent = (reinterpret_cast<vi>(shifted) - reinterpret_cast<vi>(shift)) << 23;
    return reinterpret_cast<vf>(reinterpret_cast<vi>(p) + exponent);
}

// 2^x, to a few units in the last place, for x below 127; below -125 it stays there. What is no
// number stays that.
INLINE vf vexp2(vf x) {
    x = vmax(splat(-125.0f), x);
    const vf shift = splat(12582912.0f);  // as in vexp; of its own bits the exponent has none
    const vf shifted = x + shift, r = x - (shifted - shift);
    vf p = splat(1.3264727e-3f);
    p = p * r + 9.6715130e-3f;
    p = p * r + 5.5507336e-2f;
    p = p * r + 2.4022242e-1f;
    p = p * r + 6.9314700e-1f;
    p = p * r + 1.0f;
    return reinterpret_cast<vf>(reinterpret_cast<vi>(p) + (reinterpret_cast<vi>(shifted) << 23));
}

// bound * tanh(x / bound), which is near x where that is small.
INLINE vf bounded(vf x, float bound) { return bound - 2.0f * bound / (1.0f + vexp(x * (2.0f / bound))); }

// Sums of whole vectors, kLanes of them at once: lane i of the result is the sum of v[i]. A level halves the lanes that
// belong to one sum: `take` picks the lower or upper half of each such run, from a's runs and then from b's.
template <int kWidth, bool kUpper, int... kLane>
INLINE vf take(vf a, vf b, std::integer_sequence<int, kLane...>) {
    constexpr int half = kWidth / 2;
    return __builtin_shuffle(a, b, vi{(kLane / half * kWidth + kLane % half + (kUpper ? half : 0))...});
}

template <int kWidth>
INLINE vf sums_of(const vf* v) {
    if constexpr (kWidth > kLanes) {
        return v[0];
    } else {
        constexpr int count = 2 * kLanes / kWidth;  // vectors that this level's two halves stand for
        using Lanes = std::make_integer_sequence<int, kLanes>;
        const vf a = sums_of<kWidth * 2>(v), b = sums_of<kWidth * 2>(v + count / 2);
        return take<kWidth, false>(a, b, Lanes{}) + take<kWidth, true>(a, b, Lanes{});
    }
}

INLINE vf sums(const vf (&v)[kLanes]) { return sums_of<2>(v); }
