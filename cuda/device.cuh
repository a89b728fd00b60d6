// device.cuh: what the kernels ask of the machine. The only file that holds inline PTX, and the only one that knows
// which compiler reads it: nvcc and NVRTC take the first half; any other compiler takes the emulator of the tests,
// tests/emu/cuemu.h, which gives the same functions on a CPU and checks each call. The rest builds on either.
//
// A new primitive is written twice: here in PTX, in the emulator in C++ with the checks that the hardware lacks.
// Kernels reach memory through load, store and shared arrays only, so that the emulator sees every access.
//
// NVRTC has no standard headers; nothing is included for it.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

#if defined(__CUDACC__)

// One value of any type from global memory; p is aligned to V. 16 bytes at most travel in one instruction.
template <typename V>
__device__ __forceinline__ V load(const void* p) {
    return *static_cast<const V*>(p);
}

template <typename V>
__device__ __forceinline__ void store(void* p, const V& value) {
    *static_cast<V*>(p) = value;
}

// 16 bytes of global memory that nobody writes meanwhile and nobody will read again soon.
template <typename V>
__device__ __forceinline__ V load_once(const void* p) {
    static_assert(sizeof(V) == 16, "one instruction");
    uint4 bits;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
        : "l"(p));
    return reinterpret_cast<const V&>(bits);
}

// An array in shared memory: __shared__ SharedArray<float, 32> partial;
template <typename T, int kSize>
struct SharedArray {
    T data[kSize];
    __device__ __forceinline__ T& operator[](int i) { return data[i]; }
};

// The shared memory whose size the launch decides, from a byte on; aligned to 1024 bytes; of auto type in kernels.
template <typename T>
__device__ __forceinline__ T* dynamic_shared(int at_bytes = 0) {
    extern __shared__ __align__(1024) u8 dynamic_shared_bytes[];
    return reinterpret_cast<T*>(dynamic_shared_bytes + at_bytes);
}

__device__ __forceinline__ u32 shared_address(const void* p) {
    u32 at;
    asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(at) : "l"(p));
    return at;
}

// Start to copy 16 bytes of global memory to shared memory; zeros where they are not wanted, and p is not read then.
__device__ __forceinline__ void copy_async(void* to, const void* p, bool wanted) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(p),
                 "r"(wanted ? 16 : 0)
                 : "memory");
}

// The same at kTo bytes behind to and kFrom bytes behind p, which costs no instruction.
template <int kTo, int kFrom>
__device__ __forceinline__ void copy_async_at(void* to, const void* p, bool wanted) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0 + %3], [%1 + %4], 16, %2;" ::"r"(shared_address(to)), "l"(p),
                 "r"(wanted ? 16 : 0), "n"(kTo), "n"(kFrom)
                 : "memory");
}

// What this thread has started since the last call is a group.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all of this thread's groups but the last kGroups have arrived; others see them behind a barrier only.
template <int kGroups>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Four 8 x 8 matrices of 16 bits from shared memory; lane i gives row i % 8 of matrix i / 8, 16 bytes. Register m of
// lane i is elements 2 * (i % 4) and the next of row i / 4 of matrix m.
__device__ __forceinline__ void load_matrices(u32 (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row)));
}

// The same of the transposed matrices.
__device__ __forceinline__ void load_matrices_transposed(u32 (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row)));
}

// c += a b, of a warp: a [16, 16], b [16, 8], c [16, 8] float32; with g = lane / 4 and t = 2 * (lane % 4)
//   a   (g, t..t+1), (g + 8, t..t+1), (g, t+8..t+9), (g + 8, t+8..t+9)
//   b   (t..t+1, g), (t+8..t+9, g)
//   c   (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1)
__device__ __forceinline__ void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_fp16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 2^x; error 2 ulp, results below 2^-126 become 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// a / b; error 2 ulp, and 0 where b is above 2^126.
__device__ __forceinline__ float divide_fast(float a, float b) {
    float y;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

// 1 / sqrt(x); error 2 ulp.
__device__ __forceinline__ float rsqrt_fast(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float float_of_bits(u32 bits) { return __uint_as_float(bits); }
__device__ __forceinline__ u32 bits_of_float(float x) { return __float_as_uint(x); }

// The bits of the nearest bfloat16, ties to even.
__device__ __forceinline__ u16 bf16_bits_of(float x) {
    u16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

// The bits of the nearest float16, ties to even; infinite above 65504.
__device__ __forceinline__ u16 fp16_bits_of(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float float_of_fp16_bits(u16 bits) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
    return y;
}

// Two values rounded alike, the first in the lower half.
__device__ __forceinline__ u32 bf16_pair_bits_of(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

__device__ __forceinline__ u32 fp16_pair_bits_of(float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// x * y + -0, both halves, rounded once.
__device__ __forceinline__ u32 multiply_bf16_pair(u32 x, u32 y) {
    u32 z;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(z) : "r"(x), "r"(y), "r"(0x80008000u));
    return z;
}

__device__ __forceinline__ u32 multiply_fp16_pair(u32 x, u32 y) {
    u32 z;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(z) : "r"(x), "r"(y), "r"(0x80008000u));
    return z;
}

// The first lane of a mask that is not 0.
__device__ __forceinline__ int first_lane(u32 mask) { return __ffs(static_cast<int>(mask)) - 1; }

// ---- sm_90a: barriers in shared memory, and matrices that a warpgroup, four warps, multiplies together

// A barrier of 8 bytes, whose phase ends when so many have arrived; one thread, and __syncthreads before others use it.
__device__ __forceinline__ void init_barrier(void* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// What this thread did before is seen by those who wait for the phase.
__device__ __forceinline__ void arrive_at_barrier(void* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Until the phase of this parity has ended: the first, third.. have 0. Before any has, one of parity 1 counts as ended.
__device__ __forceinline__ void wait_at_barrier(void* barrier, int parity) {
    u32 ended;
    do {
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p; }"
            : "=r"(ended)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (!ended);
}

// What this thread wrote to shared memory, copies that it waited for included, may be read by matrix instructions of
// whoever learns of it later.
__device__ __forceinline__ void publish_to_matrices() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// From here on a warpgroup has so many registers a thread; all of its warps say so.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Before the first product of a group, which adds to c and reads a: these registers are as the program left them, and
// nothing that makes them is moved behind this.
template <int kTiles, int kSteps>
__device__ __forceinline__ void begin_products(float (&c)[kTiles][4], u32 (&a)[kSteps][4]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(c[n][i])::"memory");
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[step][i])::"memory");
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// The products since the last call are a group.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until all groups have ended; only then are their sums there, and their shared memory free.
template <int kTiles>
__device__ __forceinline__ void wait_products(float (&c)[kTiles][4]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int n = 0; n < kTiles; ++n)  // nothing that reads them is moved in front of this
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(c[n][i])::"memory");
}

// c = a b, or c += a b, of a warpgroup: a [64, 16] in registers, b [16, 8 * kTiles] in shared memory, c [64, 8 * kTiles]
// float32. Warp w of the four has rows 16 w.. of a and c, as mma_bf16 says of its a and c: c[n] of columns 8 n.. b is
// where matrix_at says, kByRows: row by row, otherwise column by column.
#define FLOATS_4(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define FLOATS_32(n)                                                                                             \
    FLOATS_4(n), FLOATS_4(n + 1), FLOATS_4(n + 2), FLOATS_4(n + 3), FLOATS_4(n + 4), FLOATS_4(n + 5), FLOATS_4(n + 6), \
        FLOATS_4(n + 7)
#define NAMES_32                                                                                                    \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30," \
    "%31"
#define NAMES_64                                                                                                    \
    NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57," \
             "%58,%59,%60,%61,%62,%63"
#define PRODUCT(name, tiles, type, floats, names, a0, a1, a2, a3, b, adds, major)                                   \
    template <bool kByRows>                                                                                   \
    __device__ __forceinline__ void name(float (&c)[tiles][4], const u32 (&x)[4], u64 matrix, bool is_added) {      \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " adds ", 0; wgmma.mma_async.sync.aligned." type " {" names    \
                     "}, {" a0 "," a1 "," a2 "," a3 "}, " b ", p, 1, 1, " major "; }"                               \
                     : floats                                                                                       \
                     : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(matrix), "r"(is_added ? 1 : 0),              \
                       "n"(kByRows ? 1 : 0));                                                                 \
    }
#define FLOATS_64 FLOATS_32(0), FLOATS_32(8)
#define PRODUCT_64(name, type) \
    PRODUCT(name, 8, "m64n64k16.f32." type, FLOATS_32(0), NAMES_32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
#define PRODUCT_128(name, type) \
    PRODUCT(name, 16, "m64n128k16.f32." type, FLOATS_64, NAMES_64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
PRODUCT_64(multiply_group_bf16, "bf16.bf16")
PRODUCT_128(multiply_group_bf16, "bf16.bf16")
PRODUCT_64(multiply_group_fp16, "f16.f16")
PRODUCT_128(multiply_group_fp16, "f16.f16")
#undef PRODUCT_128
#undef PRODUCT_64
#undef FLOATS_64
#undef PRODUCT
#undef NAMES_64
#undef NAMES_32
#undef FLOATS_32
#undef FLOATS_4

#else
#include "cuemu.h"
#endif

constexpr int kWarp = 32;                  // lanes
constexpr u32 kEveryLane = 0xffffffffu;
constexpr int kVectorBytes = 16;           // that one load or store instruction moves

__device__ __forceinline__ constexpr int smaller(int a, int b) { return a < b ? a : b; }

// Where a matrix instruction of a warpgroup finds b: in rows of 128 bytes, 8 of them 1024 bytes on a boundary of these, their
// chunks of 16 bytes permuted: chunk i of row r lies where i ^ r % 8 would. next_eight bytes from 8 rows to the next 8.
//   column by column   a row holds 64 elements of a column of b; the instruction takes 16, whose first byte in row 0 is
//                      address: 0, 32, 64 or 96 bytes into it. Nobody reads next_columns, which is 16.
//   row by row         a row holds 64 elements of a row of b; next_columns bytes to the next 64
__device__ __forceinline__ u64 matrix_at(u32 address, int next_eight, int next_columns) {
    constexpr u64 kSwizzle128 = 1;
    const auto field = [](u32 bytes) { return static_cast<u64>(bytes >> 4 & 0x3fffu); };
    return field(address) | field(next_columns) << 16 | field(next_eight) << 32 | kSwizzle128 << 62;
}

__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(x * 1.44269504088896341f); }

// The sum over a warp, in every lane; one order, a tree.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kEveryLane, value, step);
    return value;
}

// The sum over a row of kThreads threads, along x, in every one of them; one order. Rows of more than a warp are
// alone in their block, and all of its threads call this.
template <int kThreads>
__device__ __forceinline__ float row_sum(float value) {
    constexpr int kWarps = kThreads / kWarp;
    static_assert(kThreads % kWarp == 0 && kWarps <= kWarp, "a row is 1 to 32 whole warps");
    value = warp_sum(value);
    if constexpr (kWarps > 1) {
        __shared__ SharedArray<float, kWarps> partial;
        const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        if (lane == 0) partial[warp] = value;
        __syncthreads();
        value = lane < kWarps ? partial[lane] : 0.0f;
        __syncthreads();  // the next call may write partial
        value = warp_sum(value);
    }
    return value;
}
