// matrices.h: asynchronous copies and matrix instructions of device.cuh; cuemu.h includes it.
//
// What a matrix instruction computes is what PTX defines; the order of its sums is not defined there, and here it is that
// of the index. No lane's registers are read before all lanes have come.
#pragma once

// ---- asynchronous copies

inline void copy_async(void* to, const void* p, bool wanted) {
    if (!cuemu::shared.holds(to)) cuemu::fail("an asynchronous copy to what is not shared memory");
    if (wanted) cuemu::check_access(p, 16, 16, cuemu::Access::read);
    if (wanted && cuemu::shared.holds(p)) cuemu::fail("an asynchronous copy from shared memory");
    cuemu::check_access(to, 16, 16, cuemu::Access::write);
    cuemu::shared.await(to, 16, true);
    cuemu::Thread& self = *cuemu::machine.current;
    self.copies.push_back({to, wanted ? p : nullptr, self.num_groups});
}

template <int kTo, int kFrom>
void copy_async_at(void* to, const void* p, bool wanted) {
    copy_async(static_cast<char*>(to) + kTo, static_cast<const char*>(p) + kFrom, wanted);
}

inline void commit_copies() { ++cuemu::machine.current->num_groups; }

namespace cuemu {

#if defined(CUEMU_WAITING_FOR_LESS)  // a fault for the tests to plant
constexpr int kGroupsForgotten = 1;
#else
constexpr int kGroupsForgotten = 0;
#endif

inline void arrive(const Copy& copy) {
    shared.await(copy.to, 16, false);
    check_access(copy.to, 16, 16, Access::write);
    if (copy.from != nullptr) std::memcpy(copy.to, copy.from, 16);
    else std::memset(copy.to, 0, 16);
}

}  // namespace cuemu

template <int kGroups>
void wait_copies() {
    cuemu::Thread& self = *cuemu::machine.current;
    size_t kept = 0;
    for (const cuemu::Copy& copy : self.copies) {
        if (copy.group < self.num_groups - kGroups - cuemu::kGroupsForgotten) cuemu::arrive(copy);
        else self.copies[kept++] = copy;
    }
    self.copies.resize(kept);
}

// ---- matrices

namespace cuemu {

inline void read_row(Thread& lane, uint16_t (&row)[8]) {
    Thread* const last = machine.current;
    machine.current = &lane;  // who gave the address is who reads
    if (!shared.holds(lane.request.in)) fail("a matrix is loaded from what is not shared memory");
    check_access(lane.request.in, 16, 16, Access::read);
    machine.current = last;
    std::memcpy(row, lane.request.in, 16);
}

template <bool kTransposed>
void load_matrices(Thread* warp, uint32_t) {
    for (int m = 0; m < 4; ++m) {
        uint16_t x[8][8];
        for (int row = 0; row < 8; ++row) read_row(warp[8 * m + row], x[row]);
        for (int lane = 0; lane < kLanes; ++lane) {
            const int row = lane / 4, at = lane % 4 * 2;
            const uint16_t low = kTransposed ? x[at][row] : x[row][at];
            const uint16_t high = kTransposed ? x[at + 1][row] : x[row][at + 1];
            static_cast<uint32_t*>(warp[lane].request.out)[m] = low | static_cast<uint32_t>(high) << 16;
        }
    }
}

struct Product {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
};

// The halves of a register as floats, to places of a matrix.
template <float (*widen)(uint16_t)>
void spread(uint32_t pair, float& first, float& second) {
    first = widen(static_cast<uint16_t>(pair));
    second = widen(static_cast<uint16_t>(pair >> 16));
}

template <float (*widen)(uint16_t)>
void multiply(Thread* warp, uint32_t) {
    float a[16][16], b[8][16];  // b by columns
    for (int lane = 0; lane < kLanes; ++lane) {
        const auto& x = *static_cast<const Product*>(warp[lane].request.in);
        const int g = lane / 4, t = lane % 4 * 2;
        for (int i = 0; i < 4; ++i) {
            float* row = a[g + i % 2 * 8] + t + i / 2 * 8;
            spread<widen>(x.a[i], row[0], row[1]);
        }
        for (int i = 0; i < 2; ++i) spread<widen>(x.b[i], b[g][t + i * 8], b[g][t + i * 8 + 1]);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        float* c = static_cast<const Product*>(warp[lane].request.in)->c;
        for (int i = 0; i < 4; ++i) {
            const float* row = a[lane / 4 + i / 2 * 8];
            const float* column = b[lane % 4 * 2 + i % 2];
            float sum = 0.0f;
            for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
            c[i] += sum;
        }
    }
}

}  // namespace cuemu

inline void load_matrices(u32 (&x)[4], const void* row) {
    cuemu::collective(cuemu::load_matrices<false>, 0xffffffffu, row, x);
}
inline void load_matrices_transposed(u32 (&x)[4], const void* row) {
    cuemu::collective(cuemu::load_matrices<true>, 0xffffffffu, row, x);
}
inline void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const cuemu::Product product{c, a, {b0, b1}};
    cuemu::collective(cuemu::multiply<float_of_bf16_bits>, 0xffffffffu, &product);
}
inline void mma_fp16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const cuemu::Product product{c, a, {b0, b1}};
    cuemu::collective(cuemu::multiply<float_of_fp16_bits>, 0xffffffffu, &product);
}
