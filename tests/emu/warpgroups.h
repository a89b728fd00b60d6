// warpgroups.h: barriers in shared memory and the matrix instructions of four warps; cuemu.h includes it.
//
// Who arrives at a barrier tells what it knows to those who wait for the phase, and nobody else learns of it: a store, or
// the end of a product's reads, that a thread has not learnt of may not be relied on. A copy that was waited for counts
// as a store; matrix instructions see only stores that were published and then told.
//
// A product reads its registers and shared memory when it is issued, but its sums are no numbers until it is waited for,
// and until then, for whoever has not learnt otherwise, it still reads.
#pragma once

#include <algorithm>
#include <limits>

// ---- barriers

namespace cuemu {

inline Phases& phases_at(const void* barrier) {
    check_access(barrier, 8, 8, Access::read);  // its beginning is a store, which others must have learnt of
    for (Phases& phases : machine.phases)
        if (phases.at == barrier) return phases;
    fail("a barrier is used that nobody began");
}

inline void end_phase(Phases& phases) {
    phases.ended = phases.arriving;
    std::fill(phases.arriving.begin(), phases.arriving.end(), 0);
    phases.missing = phases.arrivals;
    ++phases.number;
    for (Thread& thread : machine.threads) {
        if (thread.state != State::at_phase || thread.request.in != phases.at) continue;
        join(thread.known, phases.ended);
        thread.state = State::ready;
    }
}

}  // namespace cuemu

inline u32 shared_address(const void* p) {
    if (!cuemu::shared.holds(p)) cuemu::fail("the address of what is not shared memory");
    return static_cast<u32>(static_cast<const char*>(p) - cuemu::shared.data);
}

inline void init_barrier(void* barrier, int arrivals) {
    if (!cuemu::shared.holds(barrier)) cuemu::fail("a barrier in what is not shared memory");
    if (arrivals < 1) cuemu::fail("a barrier at which %d arrive", arrivals);
    for (const cuemu::Phases& phases : cuemu::machine.phases)
        if (phases.at == barrier) cuemu::fail("a barrier is begun twice");
    cuemu::need_knowledge();
    cuemu::check_access(barrier, 8, 8, cuemu::Access::write);
    const cuemu::Known nothing(cuemu::machine.current->known.size(), 0);
    cuemu::machine.phases.push_back({barrier, arrivals, arrivals, 0, nothing, nothing});
}

inline void arrive_at_barrier(void* barrier) {
    cuemu::Phases& phases = cuemu::phases_at(barrier);
    cuemu::Thread& self = *cuemu::machine.current;
    cuemu::begin_step(self);
    cuemu::join(phases.arriving, self.known);
    if (--phases.missing == 0) cuemu::end_phase(phases);
}

inline void wait_at_barrier(void* barrier, int parity) {
#if defined(CUEMU_WITHOUT_PHASES)  // a fault for the tests to plant
    return;
#endif
    cuemu::Phases& phases = cuemu::phases_at(barrier);
    cuemu::Thread& self = *cuemu::machine.current;
    if (parity != 0 && parity != 1) cuemu::fail("a phase of parity %d", parity);
    if (static_cast<int>(phases.number % 2) != parity) return cuemu::join(self.known, phases.ended);
    self.state = cuemu::State::at_phase;
    self.request.in = barrier;
    cuemu::yield();
}

inline void publish_to_matrices() {
#if defined(CUEMU_WITHOUT_PUBLISHING)  // likewise
    return;
#endif
    cuemu::need_knowledge();
    cuemu::Thread& self = *cuemu::machine.current;
    cuemu::begin_step(self);
    self.known[cuemu::published_at(self.number)] = self.step - 1;
}

template <int kRegisters>
void give_registers() {
    static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "what the instruction takes");
}
template <int kRegisters>
void take_registers() {
    give_registers<kRegisters>();
}

// ---- products

namespace cuemu {

constexpr int kGroup = 128;  // threads of a warpgroup

struct GroupProduct {
    float* c;
    const uint32_t* a;
    uint64_t matrix;
    bool is_added;
};

// What PTX calls a matrix descriptor.
struct MatrixPlace {
    uint32_t start, leading, stride, chunks;  // chunks of 16 bytes that are permuted, 1 without a swizzle

    explicit MatrixPlace(uint64_t bits) {
        const auto field = [&](int at) { return static_cast<uint32_t>(bits >> at & 0x3fff) << 4; };
        start = field(0);
        leading = field(16);
        stride = field(32);
        constexpr uint32_t kChunks[4] = {1, 8, 4, 2};
        chunks = kChunks[bits >> 62];
        if (bits >> 49 & 7) fail("a matrix with a base offset, which is not emulated");
        if (start / 128 % chunks) fail("a swizzled matrix begins in the middle of its eight rows, byte %u", start);
    }

    // 16 bytes: of column n, rows 8 * part.., where b lies column by column; of row k, columns 8 * part.., otherwise.
    size_t of_column(uint32_t n, uint32_t part) const {
        const uint32_t in_row = chunks == 1 ? part * leading : part * 16;
        return swizzled(start + n / 8 * stride + n % 8 * chunks * 16 + in_row);
    }
    size_t of_row(uint32_t k, uint32_t part) const {
        if (chunks == 1) return start + part * stride + k / 8 * leading + k % 8 * 16;
        const uint32_t eight = k / 8 * stride + k % 8 * chunks * 16;
        return swizzled(start + eight + part / chunks * leading + part % chunks * 16);
    }

private:
    size_t swizzled(uint32_t at) const { return at ^ (at >> 7 & (chunks - 1)) << 4; }
};

// What every thread of the group knows.
inline Known known_by_all(const Thread* group) {
    Known all = group->known;
    for (int i = 1; i < kGroup; ++i)
        for (size_t at = 0; at < all.size(); ++at) all[at] = std::min(all[at], group[i].known[at]);
    return all;
}

// Eight elements of b, of one column or of one row; b by columns.
template <bool kByRows, float (*widen)(uint16_t)>
void read_chunk(float (*b)[16], size_t at, int first, int part) {
    uint16_t x[8];
    std::memcpy(x, shared.data + at, sizeof x);
    for (int i = 0; i < 8; ++i) (kByRows ? b[8 * part + i][first] : b[first][8 * part + i]) = widen(x[i]);
}

template <int kTiles, bool kByRows, float (*widen)(uint16_t)>
void read_b(float (*b)[16], Thread* group, uint64_t matrix) {
    const MatrixPlace place(matrix);
    const Known known = known_by_all(group);
    const int lines = kByRows ? 16 : 8 * kTiles, parts = kByRows ? kTiles : 2;
    for (int line = 0; line < lines; ++line)
        for (int part = 0; part < parts; ++part) {
            const size_t at = kByRows ? place.of_row(line, part) : place.of_column(line, part);
            shared.note_products(at, known, group->warp(), group->num_products + 1);
            read_chunk<kByRows, widen>(b, at, line, part);
        }
}

// The sums of a thread as they will be; those in its registers are none until then.
inline std::vector<float>& pending_sums(Thread& thread, const GroupProduct& product, int size) {
    for (Sums& sums : thread.sums) {
        if (sums.to != product.c) continue;
        sums.group = thread.num_products + 1;
        if (!product.is_added) std::fill(sums.values.begin(), sums.values.end(), 0.0f);
        return sums.values;
    }
    std::vector<float> values(size, 0.0f);
    if (product.is_added) values.assign(product.c, product.c + size);
    std::fill(product.c, product.c + size, std::numeric_limits<float>::quiet_NaN());
    thread.sums.push_back({product.c, std::move(values), thread.num_products + 1});
    return thread.sums.back().values;
}

inline const GroupProduct& asked(const Thread& thread) {
    return *static_cast<const GroupProduct*>(thread.request.in);
}

inline void check_group(const Thread* group) {
    for (int i = 0; i < kGroup; ++i) {
        const GroupProduct &mine = asked(group[i]), &first = asked(*group);
        if (mine.matrix != first.matrix || mine.is_added != first.is_added)
            fail("threads %d and %d of a warpgroup multiply by different matrices", group->number, group[i].number);
        if (group[i].num_products != group->num_products)
            fail("threads %d and %d are in different groups of products", group->number, group[i].number);
        const Settled& settled = group[i].settled;
        if (mine.c != settled.c || mine.a < settled.a || mine.a >= settled.behind_a)
            fail("thread %d multiplies registers that no begin_products speaks of", group[i].number);
    }
}

template <int kTiles, bool kByRows, float (*widen)(uint16_t)>
void multiply_group(Thread* group, uint32_t) {
    check_group(group);
    float a[64][16], b[8 * kTiles][16];
    read_b<kTiles, kByRows, widen>(b, group, asked(*group).matrix);
    for (int i = 0; i < kGroup; ++i) {
        const int row = i / kLanes * 16 + i % kLanes / 4, t = i % 4 * 2;
        for (int j = 0; j < 4; ++j) {
            float* at = a[row + j % 2 * 8] + t + j / 2 * 8;
            spread<widen>(asked(group[i]).a[j], at[0], at[1]);
        }
    }
    for (int i = 0; i < kGroup; ++i) {
        const int row = i / kLanes * 16 + i % kLanes / 4, t = i % 4 * 2;
        std::vector<float>& sums = pending_sums(group[i], asked(group[i]), 4 * kTiles);
        for (int j = 0; j < 4 * kTiles; ++j) {
            const float *x = a[row + j / 2 % 2 * 8], *y = b[j / 4 * 8 + t + j % 2];
            float sum = 0.0f;
            for (int k = 0; k < 16; ++k) sum += x[k] * y[k];
            sums[j] += sum;
        }
    }
}

// Wait for all of the warpgroup to ask for the same; the last to come carries it out for all.
inline void group_collective(Collective carry_out, const void* in) {
    Thread& self = *machine.current;
    Thread* group = &self - self.number % kGroup;
    if (group + kGroup > machine.threads.data() + machine.threads.size()) fail("a warpgroup of less than four warps");
    self.request = {carry_out, 0, in, nullptr, 0};
    self.state = State::in_collective;
    bool complete = true;
    for (int i = 0; i < kGroup; ++i) {
        if (group[i].state == State::left) fail("a warpgroup multiplies, its thread %d has left", group[i].number);
        if (group[i].state != State::in_collective || group[i].request.mask) complete = false;  // or in one of its warp
        else if (group[i].request.carry_out != carry_out)
            fail("divergent collective: threads %d and %d of a warpgroup are in different ones", self.number,
                 group[i].number);
    }
    if (!complete) return yield();
    carry_out(group, 0);
    for (int i = 0; i < kGroup; ++i) group[i].state = State::ready;
}

}  // namespace cuemu

template <int kTiles, int kSteps>
void begin_products(float (&c)[kTiles][4], u32 (&a)[kSteps][4]) {
#if defined(CUEMU_WITHOUT_BEGINNING)  // likewise
    return;
#endif
    cuemu::need_knowledge();
    cuemu::machine.current->settled = {c[0], a[0], a[0] + 4 * kSteps};
}

inline void commit_products() { ++cuemu::machine.current->num_products; }

template <int kTiles>
void wait_products(float (&c)[kTiles][4]) {
#if defined(CUEMU_WITHOUT_ENDING)  // likewise
    return;
#endif
    cuemu::Thread& self = *cuemu::machine.current;
    for (const cuemu::Sums& sums : self.sums) {
        if (sums.group > self.num_products) cuemu::fail("products are waited for that were not committed");
        if (sums.to != c[0]) cuemu::fail("other sums end than those that are waited for: they may be read too early");
        std::copy(sums.values.begin(), sums.values.end(), sums.to);
    }
    self.sums.clear();
    self.settled = cuemu::Settled();
    self.known[cuemu::ended_at(self.warp())] = self.num_products;
}

template <bool kByRows, int kTiles>
void multiply_group_bf16(float (&c)[kTiles][4], const u32 (&a)[4], u64 matrix, bool is_added) {
    const cuemu::GroupProduct product{c[0], a, matrix, is_added};
    cuemu::group_collective(cuemu::multiply_group<kTiles, kByRows, float_of_bf16_bits>, &product);
}
template <bool kByRows, int kTiles>
void multiply_group_fp16(float (&c)[kTiles][4], const u32 (&a)[4], u64 matrix, bool is_added) {
    const cuemu::GroupProduct product{c[0], a, matrix, is_added};
    cuemu::group_collective(cuemu::multiply_group<kTiles, kByRows, float_of_fp16_bits>, &product);
}
