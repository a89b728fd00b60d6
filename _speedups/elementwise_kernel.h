// elementwise_kernel.h: what happens to a row of a tensor between two matrix products; included once per instruction
// set, within its namespace (see isa.h).

INLINE float widen(float x) { return x; }
INLINE float widen(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float wide;
    __builtin_memcpy(&wide, &bits, 4);
    return wide;
}

INLINE void narrow(float x, float* to) { *to = x; }
INLINE void narrow(float x, bf16* to) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    to->bits = x == x ? static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : 0x7fc0;
}

// out = x * rsqrt(mean(x^2) + eps) * weight; with a residual, which becomes x + residual first.
//   x, residual, out, weight [size]
template <typename T>
void rms_norm_row(T* out, const T* x, T* residual, const T* weight, int size, float eps) {
    vf squares = {};
    for (int i = 0; i < size; i += kLanes) {
        vf wide = load(x + i);
        if (residual != nullptr) {
            store(residual + i, wide + load(residual + i));
            wide = load(residual + i);  // rounded, as the next layer will read it
        }
        squares += wide * wide;
    }
    const T* from = residual != nullptr ? residual : x;
    const float scale = 1.0f / __builtin_sqrtf(lane_sum(squares) / static_cast<float>(size) + eps);
    for (int i = 0; i < size; i += kLanes) store(out + i, load(from + i) * scale * load(weight + i));
}

// Rotates the heads of one token in place.
//   x [num_heads][2 * half]   cosines, sines [half]
template <typename T>
void rope_row(T* x, const float* cosines, const float* sines, int num_heads, int half, bool interleaved) {
    for (int head = 0; head < num_heads; ++head, x += 2 * half) {
        if (interleaved) {
            for (int i = 0; i < half; ++i) {
                const float a = widen(x[2 * i]), b = widen(x[2 * i + 1]);
                narrow(a * cosines[i] - b * sines[i], x + 2 * i);
                narrow(b * cosines[i] + a * sines[i], x + 2 * i + 1);
            }
        } else {
            T* __restrict__ lower = x;
            T* __restrict__ upper = x + half;
            for (int i = 0; i < half; ++i) {
                const float a = widen(lower[i]), b = widen(upper[i]);
                narrow(a * cosines[i] - b * sines[i], lower + i);
                narrow(b * cosines[i] + a * sines[i], upper + i);
            }
        }
    }
}

// out = silu(gate) * up.
//   out [size]   gate_up [2 * size]
template <typename T>
void silu_mul_row(T* out, const T* gate_up, int size) {
    for (int i = 0; i < size; i += kLanes) {
        const vf gate = load(gate_up + i);
        store(out + i, gate / (1.0f + vexp(-gate)) * load(gate_up + size + i));
    }
}
