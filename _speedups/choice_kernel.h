// choice_kernel.h: passes over a row of logits or weights; included once per instruction set, within its namespace (see
// isa.h).
//
// Every set gives the same bits. What is summed is summed in kStrands strands, value i in strand i % kStrands; the
// strands of each block are folded in one order, blocks are added in float64, and the compiler may not contract a
// product and a sum (-ffp-contract=off). Maxima and counts are exact in any order.
//
// No number (NaN) is less than any: it is no maximum, is never counted or gathered, and its weight is 0.
//
// Borders are found by bisecting the bits of floats, each pass a vector of counts or sums, so that no branch depends on a
// logit. The k largest lie in runs whose maxima are among the k largest maxima, so top-k reads k runs a second time.
//
// The ladder, us a row of 151,936 on a Zen 5 core, `python -m benchmarks.sampling`:
//   e^x with a reduction in two parts, as simd.h has it: temperature 53
//   2^x with the logarithm of the base in the scale: temperature 30; flat top-p 187 -> 145
//   AVX2 packs lanes through a table instead of one by one: top-p 95 -> 68 there, flat 945 -> 195

constexpr int kParts = kStrands / kLanes;

INLINE float lowest() { return -__builtin_inff(); }

INLINE int32_t bits_of(float x) {
    int32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}

INLINE float float_of(int32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}

// Whole numbers in the order of the floats, and back; the same function.
INLINE int32_t in_order(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

// The largest lane, by halves: exact in any order.
template <int kWidth = kLanes / 2>
INLINE float top_lane(vf x) {
    if constexpr (kWidth == 0) {
        return x[0];
    } else {
        vi other;
        for (int i = 0; i < kLanes; ++i) other[i] = i ^ kWidth;
        return top_lane<kWidth / 2>(vmax(__builtin_shuffle(x, other), x));
    }
}

// 2^x for x from kFaintest to 0, within 1.2 units in the last place; any other x gives any number.
INLINE vf power_of_two(vf x) {
    const vf shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number in the low bits
    const vf shifted = x + shift;
    const vf part = x - (shifted - shift);  // in [-0.5, 0.5], exact
    vf p = splat(1.5353362e-4f);
    p = p * part + 1.3398875e-3f;
    p = p * part + 9.61843692e-3f;
    p = p * part + 5.55033237e-2f;
    p = p * part + 2.40226477e-1f;
    p = p * part + 6.93147182e-1f;
    p = p * part + 1.0f;
    return reinterpret_cast<vf>(reinterpret_cast<vu>(p) + (reinterpret_cast<vu>(shifted) << 23));
}

// 2^((x - largest) * scale), 0 where that is below 2^kFaintest; 1 where x is the largest.
INLINE vf weight(vf x, float largest, float scale) {
    const vf scaled = (x - largest) * scale;
    return scaled >= splat(kFaintest) ? power_of_two(scaled) : vf{};
}

INLINE float fold(const vf (&strands)[kParts]) {
    float sums[kStrands];
    for (int part = 0; part < kParts; ++part) store(sums + part * kLanes, strands[part]);
    for (int half = kStrands / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
}

// maxima[i] = the largest of run i; returns the largest of all, -inf where there are only NaNs.
//   x [size]   maxima [ceil(size / kRun)]
static float run_maxima(float* maxima, const float* x, int size) {
    float most = lowest();
    for (int begin = 0; begin < size; begin += kRun) {
        float found = lowest();
        if (begin + kRun <= size) {
            vf largest = splat(found);
            for (int i = begin; i < begin + kRun; i += kLanes) largest = vmax(load(x + i), largest);
            found = top_lane(largest);
        } else {
            for (int i = begin; i < size; ++i) found = x[i] > found ? x[i] : found;
        }
        maxima[begin / kRun] = found;
        most = found > most ? found : most;
    }
    return most;
}

// What becomes of a vector before it is summed; no lambdas, whose thunks are compiled for no instruction set.
struct Weights {  // of logits
    float largest, scale;
    __attribute__((always_inline)) vf operator()(vf x) const { return weight(x, largest, scale); }
};
struct Same {
    __attribute__((always_inline)) vf operator()(vf x) const { return x; }
};
struct AtLeast {
    float border;
    __attribute__((always_inline)) vf operator()(vf x) const { return x >= splat(border) ? x : vf{}; }
};

// ends[i] = the sum of of(x) over the blocks 0 .. i; returns the whole sum. What `fill` becomes counts for nothing.
//   x [size]   ends [ceil(size / kBlock)]
template <typename Of>
INLINE double running_sums(double* ends, const float* x, int size, float fill, const Of& of) {
    double total = 0.0;
    for (int begin = 0; begin < size; begin += kBlock) {
        const int end = begin + kBlock < size ? begin + kBlock : size;
        vf strands[kParts] = {};
        int i = begin;
        for (; i + kStrands <= end; i += kStrands)
            for (int part = 0; part < kParts; ++part) strands[part] += of(load(x + i + part * kLanes));
        if (i < end) {
            float rest[kStrands];
            for (int at = 0; at < kStrands; ++at) rest[at] = i + at < end ? x[i + at] : fill;
            for (int part = 0; part < kParts; ++part) strands[part] += of(load(rest + part * kLanes));
        }
        total += fold(strands);
        if (ends != nullptr) ends[begin / kBlock] = total;
    }
    return total;
}

// Of the weights of logits.
static double weight_sums(double* ends, const float* x, int size, float largest, float scale) {
    return running_sums(ends, x, size, lowest(), Weights{largest, scale});
}

// Of weights.
static double sums_of_weights(double* ends, const float* weights, int size) {
    return running_sums(ends, weights, size, 0.0f, Same{});
}

// weights = those of the logits x, 0 for those below `border`; weights may be x. Both have room for whole strands: what
// lies behind `size` is read and written.
static void weigh(float* weights, const float* x, int size, float largest, float scale, float border) {
    for (int i = 0; i < size; i += kLanes) {
        const vf values = load(x + i);
        store(weights + i, values >= splat(border) ? weight(values, largest, scale) : vf{});
    }
}

// As `weigh`, of weights.
static void drop_below(float* weights, int size, float border) {
    for (int i = 0; i < size; i += kLanes) {
        const vf values = load(weights + i);
        store(weights + i, values >= splat(border) ? values : vf{});
    }
}

INLINE int count_from(const float* x, int size, float border) {
    vi counts{};
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) counts -= load(x + i) >= splat(border);
    int count = 0;
    for (int lane = 0; lane < kLanes; ++lane) count += counts[lane];
    for (; i < size; ++i) count += x[i] >= border;
    return count;
}

// A value that the k largest of x and the equals of the least of them reach, and nothing else does; -inf where there
// are fewer than k.
//   x [size], none above `largest`
static float border_of_top(const float* x, int size, int k, float largest) {
    int64_t reached = in_order(bits_of(lowest())), beyond = static_cast<int64_t>(in_order(bits_of(largest))) + 1;
    while (beyond - reached > 1) {
        const int64_t middle = reached + (beyond - reached) / 2;
        const float border = float_of(in_order(static_cast<int32_t>(middle)));
        const int count = count_from(x, size, border);
        if (count == k) return border;
        (count > k ? reached : beyond) = middle;
    }
    return float_of(in_order(static_cast<int32_t>(reached)));
}

// reaching(x, border) = a bit for each lane from `border` up; pack(out, x, bits) = the lanes with a bit, side by side, and
// anything behind them.
#if TRIOSERVE_LANES == 16
INLINE uint32_t reaching(vf x, float border) {
    return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_set1_ps(border), _CMP_GE_OQ);
}

INLINE void pack(float* out, vf x, uint32_t bits) {
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), reinterpret_cast<__m512>(x)));
}

INLINE void pack(int32_t* out, vi x, uint32_t bits) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), reinterpret_cast<__m512i>(x)));
}
#elif TRIOSERVE_LANES == 8
struct PackedLanes {  // [bits] = the lanes that have one
    int32_t lanes[256][8] = {};

    constexpr PackedLanes() {
        for (int bits = 0; bits < 256; ++bits)
            for (int lane = 0, count = 0; lane < 8; ++lane)
                if (bits >> lane & 1) lanes[bits][count++] = lane;
    }
};
static constexpr PackedLanes packed_lanes;

INLINE uint32_t reaching(vf x, float border) {
    return _mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<__m256>(x), _mm256_set1_ps(border), _CMP_GE_OQ));
}

INLINE void pack(float* out, vf x, uint32_t bits) {
    const __m256i lanes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed_lanes.lanes[bits]));
    _mm256_storeu_ps(out, _mm256_permutevar8x32_ps(reinterpret_cast<__m256>(x), lanes));
}

INLINE void pack(int32_t* out, vi x, uint32_t bits) {
    float values[kLanes];
    pack(values, reinterpret_cast<vf>(x), bits);
    __builtin_memcpy(out, values, sizeof(values));
}
#endif

// Writes the logits from `border` up, and their places, in the order of these; returns how many. What lies behind them
// is written too.
//   x [size]   maxima [ceil(size / kRun)], of its runs   values, ids [size + kStrands]
static int gather(float* values, int32_t* ids, const float* x, const float* maxima, int size, float border) {
    int count = 0;
    for (int begin = 0; begin < size; begin += kRun) {
        if (!(maxima[begin / kRun] >= border)) continue;
        const int end = begin + kRun < size ? begin + kRun : size;
        int i = begin;
#if TRIOSERVE_LANES >= 8
        vi lanes;
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
        for (; i + kLanes <= end; i += kLanes) {
            const vf found = load(x + i);
            const uint32_t kept = reaching(found, border);
            pack(values + count, found, kept);
            pack(ids + count, lanes + i, kept);
            count += __builtin_popcount(kept);
        }
#endif
        for (; i < end; ++i) {
            values[count] = x[i];
            ids[count] = i;
            count += x[i] >= border;
        }
    }
    return count;
}

// Keeps in place the weights from `border` up, or those below it; returns how many.
INLINE int keep_side(float* weights, int size, float border, bool upper) {
    int count = 0, i = 0;
#if TRIOSERVE_LANES >= 8
    const uint32_t others = upper ? 0 : (1u << kLanes) - 1;
    for (; i + kLanes <= size; i += kLanes) {
        const vf found = load(weights + i);
        const uint32_t kept = reaching(found, border) ^ others;
        pack(weights + count, found, kept);
        count += __builtin_popcount(kept);
    }
#endif
    for (; i < size; ++i) {
        const float found = weights[i];
        weights[count] = found;
        count += (found >= border) == upper;
    }
    return count;
}

// The largest border of which the weights from it up sum to `target`; `least`, where none above it does. The weights
// are used up.
//   weights [size], at most 1   least: at most 1
static float nucleus_border(float* weights, int size, double target, float least) {
    double above = 0.0;  // the sum of those from `beyond` up, which are no longer among the weights
    int32_t reached = bits_of(least), beyond = bits_of(1.0f) + 1;
    while (beyond - reached > 1) {
        const int32_t middle = reached + (beyond - reached) / 2;
        const float border = float_of(middle);
        const double upper = running_sums(nullptr, weights, size, 0.0f, AtLeast{border});
        const bool is_enough = above + upper >= target;
        if (is_enough)
            reached = middle;
        else
            beyond = middle, above += upper;
        size = keep_side(weights, size, border, is_enough);
    }
    return float_of(reached);
}

static constexpr Passes passes{
    mask_row,   masked_argmax_row, run_maxima,    weight_sums, sums_of_weights,
    weigh,      drop_below,        border_of_top, gather,      nucleus_border,
};
