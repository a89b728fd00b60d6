// dot_tile.h: sums of a few rows with a panel of pairs; included once per instruction set, within its namespace, after
// simd.h (see isa.h).

constexpr int kPanel = 2 * kLanes;            // columns of a panel, two vectors
constexpr int kTile = kLanes == 16 ? 12 : 4;  // rows whose sums the registers hold
constexpr int kUnroll = 4;                    // pairs between two looks at what to fetch ahead

typedef uint32_t vu_anywhere __attribute__((vector_size(4 * TRIOSERVE_LANES), aligned(4), may_alias));

INLINE vu load_pairs(const uint32_t* p) { return *reinterpret_cast<const vu_anywhere*>(p); }
INLINE void store_pairs(uint32_t* p, vu x) { *reinterpret_cast<vu_anywhere*>(p) = x; }

// sum + the products of both halves of a pair. The order is the same for every row and column, so a sum depends on its
// row and its column and on nothing else.
#if TRIOSERVE_BF16_DOT
INLINE vf dot(vf sum, vu a, vu b) {
    return reinterpret_cast<vf>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a),
                                                 reinterpret_cast<__m512bh>(b)));
}
#else
INLINE vf dot(vf sum, vu a, vu b) {
    sum += reinterpret_cast<vf>(a << 16) * reinterpret_cast<vf>(b << 16);
    return sum + reinterpret_cast<vf>(a & 0xffff0000u) * reinterpret_cast<vf>(b & 0xffff0000u);
}
#endif

// Where R rows are: an address for each four of them, and not one for each, of which there would be more than the
// processor has registers for.
template <int R>
class FewAddresses {
public:
    INLINE_IN FewAddresses(const uint32_t* rows, int64_t stride) : stride_(stride) {
        for (int i = 0; i < kCount; ++i) {
            at_[i] = rows + 4 * i * stride;
            asm("" : "+r"(at_[i]));  // the compiler must not know how they hang together
        }
    }
    INLINE_IN uint32_t word(int row, int i) const { return at_[row / 4][row % 4 * stride_ + i]; }
    INLINE_IN void advance(int count) {
        for (int i = 0; i < kCount; ++i) at_[i] += count;
    }

private:
    static constexpr int kCount = (R + 3) / 4;

    const uint32_t* at_[kCount];
    int64_t stride_;
};

// Begins to fetch cache lines: `lines` of them into the second cache, or, if that is negative, so many past it: a panel that
// is read once is then not in the way of what is read again.
INLINE void fetch(const char*& ahead, int lines) {
    for (; lines > 0; --lines, ahead += 64) __builtin_prefetch(ahead, 0, 2);
    for (; lines < 0; ++lines, ahead += 64) __builtin_prefetch(ahead, 0, 0);
}

// Sums of R rows with one panel, which are as many as the registers hold.
//   sums [R] rows of kPanel   a [R] rows of pairs   panel [num_pairs][kPanel], pairs; num_pairs a multiple of kUnroll
//   ahead: what to fetch meanwhile, `lines` cache lines in every kUnroll pairs, as fetch says
template <int R>
void multiply_tile(float* sums, int64_t sums_stride, const uint32_t* a, int64_t stride, const uint32_t* panel, int num_pairs,
                   const char* ahead, int lines) {
    vf sum[R][2] = {};
    FewAddresses<R> at(a, stride);
    for (int pair = 0; pair < num_pairs; pair += kUnroll) {
        fetch(ahead, lines);
#pragma GCC unroll 4
        for (int i = 0; i < kUnroll; ++i) {
            const vu left = load_pairs(panel), right = load_pairs(panel + kLanes);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const vu x = vu{} + at.word(r, i);
                sum[r][0] = dot(sum[r][0], x, left);
                sum[r][1] = dot(sum[r][1], x, right);
            }
            panel += kPanel;
        }
        at.advance(kUnroll);
    }
    for (int r = 0; r < R; ++r) {
        store(sums + r * sums_stride, sum[r][0]);
        store(sums + r * sums_stride + kLanes, sum[r][1]);
    }
}

// The same for 1 to kTile rows.
template <int... kRows>
INLINE void multiply_rows(int num_rows, float* sums, int64_t sums_stride, const uint32_t* a, int64_t stride, const uint32_t* panel,
                          int num_pairs, const char* ahead, int lines, std::integer_sequence<int, kRows...>) {
    using Tile = void (*)(float*, int64_t, const uint32_t*, int64_t, const uint32_t*, int, const char*, int);
    static constexpr Tile tiles[] = {multiply_tile<kRows + 1>...};
    tiles[num_rows - 1](sums, sums_stride, a, stride, panel, num_pairs, ahead, lines);
}
