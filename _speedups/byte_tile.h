// byte_tile.h: sums of a few rows of int8 with a panel of int8 or int4; included once per instruction set, within its
// namespace, after dot_tile.h (see isa.h).
//
// Weights are unsigned, activations signed: what the byte dot product takes, and no product of a nibble overflows 16
// bits. Sums of bytes are exact, so they are the same on every instruction set and in every order; the float sums of
// int4's groups run through the depth in one order.
//
// Beside bf16 on Zen 5 with two threads, ratios of a step of 0.5B (docs/performance.md): int8 1.6 with 512 rows, int4 1.3:
// a group of 32 takes eight byte dot products of a row and a vector, and then a conversion and two products more. Twelve
// rows of int4 have more sums than registers: their totals go through the stack.
//
// Sums of int8 begin with what the weights' zeros add to them, instead of losing it at the end: with a depth of 576 a
// product of many rows goes from 85 to 87 % of the peak (`python -m benchmarks.cpu.products`), with 1,536 nothing
// changes. 14 rows instead of 12 gained nothing.

constexpr int kGroupWords = 1 + kScaleGroup / 8;  // of a column: scale and least number, nibbles

typedef int16_t vs __attribute__((vector_size(4 * TRIOSERVE_LANES)));

// sum + the products of the four bytes of a word.
//   weights: 0 .. 255   a: -127 .. 127
#if TRIOSERVE_BYTE_DOT
INLINE vi dot_bytes(vi sum, vu weights, vu a) {
    return reinterpret_cast<vi>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(weights),
                                                    reinterpret_cast<__m512i>(a)));
}
#elif TRIOSERVE_LANES == 16
INLINE vi dot_halves(vu a, vu b) {
    return reinterpret_cast<vi>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
INLINE vu dot_pairs(vu weights, vu a) {
    return reinterpret_cast<vu>(_mm512_maddubs_epi16(reinterpret_cast<__m512i>(weights), reinterpret_cast<__m512i>(a)));
}
#elif TRIOSERVE_LANES == 8
INLINE vi dot_halves(vu a, vu b) {
    return reinterpret_cast<vi>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
INLINE vu dot_pairs(vu weights, vu a) {
    return reinterpret_cast<vu>(_mm256_maddubs_epi16(reinterpret_cast<__m256i>(weights), reinterpret_cast<__m256i>(a)));
}
#else
INLINE vi dot_bytes(vi sum, vu weights, vu a) {
    for (int byte = 0; byte < 4; ++byte)
        sum += reinterpret_cast<vi>(weights >> 8 * byte & 0xff) * (reinterpret_cast<vi>(a << (24 - 8 * byte)) >> 24);
    return sum;
}
#endif

#if !TRIOSERVE_BYTE_DOT && TRIOSERVE_LANES > 4
// Two bytes of a word in 16 bits each: products of bytes, added in pairs, could be more than 16 bits hold.
INLINE vi dot_bytes(vi sum, vu weights, vu a) {
    const vs even = reinterpret_cast<vs>(a) << 8 >> 8, odd = reinterpret_cast<vs>(a) >> 8;
    sum += dot_halves(weights & 0x00ff00ffu, reinterpret_cast<vu>(even));
    return sum + dot_halves(weights >> 8 & 0x00ff00ffu, reinterpret_cast<vu>(odd));
}
// The same of weights of 0 .. 15.
INLINE vi dot_nibbles(vi sum, vu weights, vu a) {
    return sum + dot_halves(dot_pairs(weights, a), vu{} + 0x00010001u);
}
#else
INLINE vi dot_nibbles(vi sum, vu weights, vu a) { return dot_bytes(sum, weights, a); }
#endif

INLINE vf to_floats(vi x) { return __builtin_convertvector(x, vf); }

// What the whole sums of a row and a panel of int8 stand for, from which those of kByteZero are gone.
//   sums, scales [kPanel]
INLINE void scale_bytes(float* sums, vi left, vi right, const float* scales, const RowTail& tail) {
    store(sums, to_floats(left) * (load(scales) * tail.scale));
    store(sums + kLanes, to_floats(right) * (load(scales + kLanes) * tail.scale));
}

// Sums of R rows with one panel of int8.
//   sums [R] rows of kPanel   a [R] rows of bytes, each with its RowTail   panel [num_words][kPanel], then the scales
template <int R>
void multiply_bytes(float* sums, const uint32_t* a, int64_t stride, const uint32_t* panel, int num_words, const char* ahead,
                    int lines) {
    const uint32_t* tails = a + num_words;
    vi sum[R][2];
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = vi{} - kByteZero * reinterpret_cast<const RowTail*>(tails + r * stride)->sum;
    FewAddresses<R> at(a, stride);
    for (int word = 0; word < num_words; word += kUnroll) {
        fetch(ahead, lines);
#pragma GCC unroll 4
        for (int i = 0; i < kUnroll; ++i) {
            const vu left = load_pairs(panel), right = load_pairs(panel + kLanes);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const vu x = vu{} + at.word(r, i);
                sum[r][0] = dot_bytes(sum[r][0], left, x);
                sum[r][1] = dot_bytes(sum[r][1], right, x);
            }
            panel += kPanel;
        }
        at.advance(kUnroll);
    }
    const float* scales = reinterpret_cast<const float*>(panel);
    for (int r = 0; r < R; ++r)
        scale_bytes(sums + r * kPanel, sum[r][0], sum[r][1], scales, *reinterpret_cast<const RowTail*>(tails + r * stride));
}

// Sums of R rows with one panel of int4.
//   sums [R] rows of kPanel   a [R] rows of bytes, each with its RowTail   panel [num_groups][kGroupWords][kPanel]: a
//   word of scale and least number, then of eight nibbles each
template <int R>
void multiply_nibbles(float* sums, const uint32_t* a, int64_t stride, const uint32_t* panel, int num_groups,
                      const char* ahead, int lines) {
    vf total[R][2] = {};
    const float* tails = reinterpret_cast<const float*>(a + num_groups * (kScaleGroup / 4));
    const float* group_sums = tails + sizeof(RowTail) / 4;
    for (int group = 0; group < num_groups; ++group) {
        fetch(ahead, lines);
        const vu left_scale = load_pairs(panel), right_scale = load_pairs(panel + kLanes);
        panel += kPanel;
        vi sum[R][2] = {};
#pragma GCC unroll 4
        for (int i = 0; i < kScaleGroup / 8; ++i) {
            const vu left = load_pairs(panel), right = load_pairs(panel + kLanes);
            const vu left_low = left & 0x0f0f0f0fu, right_low = right & 0x0f0f0f0fu;
            const vu left_high = left >> 4 & 0x0f0f0f0fu, right_high = right >> 4 & 0x0f0f0f0fu;
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const vu x = vu{} + a[r * stride + 2 * i], y = vu{} + a[r * stride + 2 * i + 1];
                sum[r][0] = dot_nibbles(dot_nibbles(sum[r][0], left_low, x), left_high, y);
                sum[r][1] = dot_nibbles(dot_nibbles(sum[r][1], right_low, x), right_high, y);
            }
            panel += kPanel;
        }
        a += kScaleGroup / 4;
        for (int r = 0; r < R; ++r) {
            const float least = group_sums[r * stride + group];
            total[r][0] += to_floats(sum[r][0]) * reinterpret_cast<vf>(left_scale << 16);
            total[r][0] += reinterpret_cast<vf>(left_scale & 0xffff0000u) * least;
            total[r][1] += to_floats(sum[r][1]) * reinterpret_cast<vf>(right_scale << 16);
            total[r][1] += reinterpret_cast<vf>(right_scale & 0xffff0000u) * least;
        }
    }
    for (int r = 0; r < R; ++r) {
        const float scale = reinterpret_cast<const RowTail*>(tails + r * stride)->scale;
        store(sums + r * kPanel, total[r][0] * scale);
        store(sums + r * kPanel + kLanes, total[r][1] * scale);
    }
}

// Both for 1 to kTile rows.
using ByteTile = void (*)(float*, const uint32_t*, int64_t, const uint32_t*, int, const char*, int);

template <int... kRows>
INLINE void byte_rows(int num_rows, float* sums, const uint32_t* a, int64_t stride, const uint32_t* panel, int num_words,
                      const char* ahead, int lines, std::integer_sequence<int, kRows...>) {
    static constexpr ByteTile tiles[] = {multiply_bytes<kRows + 1>...};
    tiles[num_rows - 1](sums, a, stride, panel, num_words, ahead, lines);
}

template <int... kRows>
INLINE void nibble_rows(int num_rows, float* sums, const uint32_t* a, int64_t stride, const uint32_t* panel, int num_groups,
                        const char* ahead, int lines, std::integer_sequence<int, kRows...>) {
    static constexpr ByteTile tiles[] = {multiply_nibbles<kRows + 1>...};
    tiles[num_rows - 1](sums, a, stride, panel, num_groups, ahead, lines);
}
