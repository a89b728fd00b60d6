// kv_write.h: writes keys and values into the decoder's cache (kv_cache.h); included once per instruction set, within its
// namespace (see isa.h). Threads write tokens of one group at the same time, so nothing but the token's own bytes is touched.

INLINE float largest(const float* x, int size) {
    vf most = {};
    for (int i = 0; i < size; i += kLanes) {
        const vf at = load(x + i);
        most = vmax(most, vmax(at, -at));
    }
    return lane_max(most);
}

INLINE uint32_t bits_at(const float* x) {
    uint32_t bits;
    __builtin_memcpy(&bits, x, 4);
    return bits;
}

INLINE vu int8_codes(vf x) {
    return reinterpret_cast<vu>(x + 12582912.0f) & 0xff;  // 1.5 * 2^23: rounds to a whole number in the low bits
}

INLINE vu fp8_codes(vf x) {
    constexpr uint32_t least = 121u << 23, half_of_least = 120u << 23;
    const vu bits = reinterpret_cast<vu>(x), sizes = bits & 0x7fffffffu;
    const vu rounded = ((sizes + 0x7ffffu + ((sizes >> 20) & 1)) >> 20) - (120 << 3);
    const vu small = sizes >= half_of_least ? vu{} + 8 : vu{};
    return (sizes >= least ? rounded : small) | (bits >> 24 & 0x80);
}

// Turns a head into its codes, one in the place of each element, and returns their scale.
//   x [size]
template <KvFormat F>
INLINE float encode(float* x, int size) {
    constexpr float top = F == KvFormat::int8 ? 127.0f : 448.0f;
    const float most = largest(x, size);
    const bool is_zero = !(most > 1e-30f);
    const vf factor = splat(is_zero ? 0.0f : top / most);
    for (int i = 0; i < size; i += kLanes) {
        const vf scaled = load(x + i) * factor;
        store(x + i, reinterpret_cast<vf>(F == KvFormat::int8 ? int8_codes(scaled) : fp8_codes(scaled)));
    }
    return is_zero ? 0.0f : most / top;
}

template <KvFormat F>
INLINE void write_scale(char* group, int token, float scale, int head_dim) {
    __builtin_memcpy(group + 4 * (group_words(F, head_dim) + token), &scale, 4);
}

template <KvFormat F>
INLINE void write_key_codes(char* group, int token, float* x, int head_dim) {
    write_scale<F>(group, token, encode<F>(x, head_dim), head_dim);
    uint32_t* to = reinterpret_cast<uint32_t*>(group) + token;
    for (int d = 0; d < head_dim; d += 4, to += kGroup)
        *to = bits_at(x + d) | bits_at(x + d + 1) << 16 | bits_at(x + d + 2) << 8 | bits_at(x + d + 3) << 24;
}

template <KvFormat F>
INLINE void write_value_codes(char* group, int token, float* x, int head_dim) {
    write_scale<F>(group, token, encode<F>(x, head_dim), head_dim);
    uint8_t* to = reinterpret_cast<uint8_t*>(group) + token / 4 * 4 * head_dim + byte_of(token % 4);
    for (int d = 0; d < head_dim; ++d) to[4 * d] = static_cast<uint8_t>(bits_at(x + d));
}

// Rounds a head to bf16; the numbers lie where the first half of it was.
INLINE bf16* round_in_place(float* x, int size) {
    bf16* to = reinterpret_cast<bf16*>(x);
    for (int i = 0; i < size; i += kLanes) store(to + i, load(x + i));
    return to;
}

// Writes one head of a token's key.
//   x [head_dim], used up
INLINE void write_key(const KvPlace& at, char* group, float* x, int head_dim) {
    if (at.format == KvFormat::int8) return write_key_codes<KvFormat::int8>(group, at.token, x, head_dim);
    if (at.format == KvFormat::fp8) return write_key_codes<KvFormat::fp8>(group, at.token, x, head_dim);
    const bf16* numbers = round_in_place(x, head_dim);
    bf16* to = reinterpret_cast<bf16*>(group) + 2 * at.token;
    for (int d = 0; d < head_dim; d += 2, to += 2 * kGroup) __builtin_memcpy(to, numbers + d, 4);
}

// Writes one head of a token's value.
//   x [head_dim], used up
INLINE void write_value(const KvPlace& at, char* group, float* x, int head_dim) {
    if (at.format == KvFormat::int8) return write_value_codes<KvFormat::int8>(group, at.token, x, head_dim);
    if (at.format == KvFormat::fp8) return write_value_codes<KvFormat::fp8>(group, at.token, x, head_dim);
    const bf16* numbers = round_in_place(x, head_dim);
    bf16* to = reinterpret_cast<bf16*>(group) + at.token / 2 * 2 * head_dim + at.token % 2;
    for (int d = 0; d < head_dim; ++d) to[2 * d] = numbers[d];
}

// Begins to fetch what a token's head will be written to: most of a group's lines, each for a word.
INLINE void fetch_group(const char* group, int64_t num_bytes) {
    for (int64_t at = 0; at < num_bytes; at += 64) __builtin_prefetch(group + at, 1, 2);
}
