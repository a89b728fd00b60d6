// sampling_kernel.h: a row of logits under a mask, one bit a token; included once per instruction set, within its
// namespace (see isa.h). Bit i % 32 of word i / 32 says whether token i is allowed; bits behind the last token count for
// nothing.

constexpr int kWordVectors = 32 / kLanes;  // vectors of logits that one word of the mask is about

// The lanes of vector number `part` of a word's tokens that are allowed: all bits set, or none.
INLINE vi allowed_lanes(uint32_t word, int part) {
    vu lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<uint32_t>(i);
    return ((((vu{} + word) >> (lane + static_cast<uint32_t>(part * kLanes))) & 1) != 0);
}

INLINE bool is_allowed(const uint32_t* mask, int i) { return mask[i / 32] >> (i % 32) & 1; }

// The whole words of `size` tokens; the rest is done token by token.
INLINE int whole_words(int size) { return size / 32; }

// out = x where it is allowed, else -inf; out may be x. Returns whether anything is allowed.
//   x, out [size]   mask [ceil(size / 32)]
static bool mask_row(float* out, const float* x, const uint32_t* mask, int size) {
    const float lowest = -__builtin_inff();
    uint32_t any = 0;
    for (int word = 0; word < whole_words(size); ++word) {
        const uint32_t bits = mask[word];
        any |= bits;
        for (int part = 0; part < kWordVectors; ++part) {
            const int at = word * 32 + part * kLanes;
            store(out + at, allowed_lanes(bits, part) ? load(x + at) : splat(lowest));
        }
    }
    for (int i = whole_words(size) * 32; i < size; ++i) {
        const bool allowed = is_allowed(mask, i);
        any |= allowed;
        out[i] = allowed ? x[i] : lowest;
    }
    return any != 0;
}

// The first allowed value within the words from `begin` to `end` that equals `value`, else the first that is allowed, or
// -1.
INLINE int64_t find(const float* x, const uint32_t* mask, int size, int begin, int end, float value) {
    int64_t first = -1;
    for (int word = begin; word < end; ++word) {
        for (uint32_t bits = mask[word]; bits != 0; bits &= bits - 1) {
            const int i = word * 32 + __builtin_ctz(bits);
            if (i >= size) break;
            if (x[i] == value) return i;
            if (first < 0) first = i;
        }
    }
    return first;
}

// The first of the largest allowed values; one that is no number counts as none. Where all are -inf or no numbers the
// first that is allowed, where nothing is -1.
//
// A run of words at a time: only the run that has the largest value is looked at twice.
//   x [size]   mask [ceil(size / 32)]
static int64_t masked_argmax_row(const float* x, const uint32_t* mask, int size) {
    constexpr int run = 16;
    const float lowest = -__builtin_inff();
    const int num_whole = whole_words(size), num_words = (size + 31) / 32;
    float most = lowest;
    int best = -1;
    for (int begin = 0; begin < num_words; begin += run) {
        const int end = begin + run < num_words ? begin + run : num_words;
        vf largest = splat(most);
        for (int word = begin; word < (end < num_whole ? end : num_whole); ++word) {
            const uint32_t bits = mask[word];
            if (bits == 0) continue;
            for (int part = 0; part < kWordVectors; ++part) {
                const vf values = load(x + word * 32 + part * kLanes);
                largest = vmax(allowed_lanes(bits, part) ? values : splat(lowest), largest);
            }
        }
        float found = lane_max(largest);
        if (end > num_whole)
            for (int i = num_whole * 32; i < size; ++i)
                if (is_allowed(mask, i) && x[i] > found) found = x[i];
        if (found > most) most = found, best = begin;
    }
    if (best < 0) return find(x, mask, size, 0, num_words, lowest);
    return find(x, mask, size, best, best + run < num_words ? best + run : num_words, most);
}
