// sampling.h: from the logits of a step to its tokens, all rows in one call and each as if it were alone.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <utility>
#include <vector>

#include "choice.h"
#include "isa.h"
#include "parallel.h"
#include "passes.h"

namespace trioserve {

// Below this one thread does all rows, in a millisecond at most. To wake another one may take longer, wherever something
// else has its core.
constexpr int64_t kSerialLogits = 1 << 22;

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,popcnt")
#define TRIOSERVE_LANES 16
namespace avx512 {
#include "simd.h"
#include "sampling_kernel.h"
#include "choice_kernel.h"
}  // namespace avx512
#undef TRIOSERVE_LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,popcnt")
#define TRIOSERVE_LANES 8
namespace avx2 {
#include "simd.h"
#include "sampling_kernel.h"
#include "choice_kernel.h"
}  // namespace avx2
#undef TRIOSERVE_LANES
#pragma GCC pop_options
#endif

#define TRIOSERVE_LANES 4
namespace portable {
#include "simd.h"
#include "sampling_kernel.h"
#include "choice_kernel.h"
}  // namespace portable
#undef TRIOSERVE_LANES

inline const Passes& passes_of(Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::avx512) return avx512::passes;
    if (isa == Isa::avx2) return avx2::passes;
#endif
    return portable::passes;
}

// What a step wants and gets; a row is for the slot of the same place. The same slot may have several rows, which then
// are chosen as if none of them had been: edits know only what was there before the step.
struct Rows {
    float* logits;             // [num_rows][size]; edited on the way and then what they were
    int num_rows, size;
    const int64_t* slots;      // [num_rows]
    const int64_t* positions;  // [num_rows]; the token becomes this one of its sequence
    const int32_t* masks;      // [num_masks][num_words]
    int num_words;
    const int64_t* mask_of;    // [num_rows], a row of the masks; -1: none. Null: none at all
    int64_t* token_ids;        // [num_rows]; -1: to be chosen
    int most_top;
    double* logprobs;          // [num_rows][1 + most_top], of rows that ask for them
    int64_t* top_ids;          // [num_rows][most_top]
    uint8_t* is_certain;       // [num_rows], false where nobody asks
};

inline Room& room_of_thread(int size) {
    static thread_local Room room;
    room.fit(size);
    return room;
}

// The recipes of all slots, and the choice for a step.
class Recipes {
public:
    explicit Recipes(int num_slots) : recipes_(num_slots) {}

    Recipe& operator[](int64_t slot) { return recipes_[slot]; }

    int size() const { return static_cast<int>(recipes_.size()); }

    // Whatever threads do, a row's outcome is its own; the counts of edits grow when all have chosen.
    void choose(const Rows& rows, int num_threads, Isa isa) {
        const Passes& passes = passes_of(isa);
        int64_t num_logits = 0;
        for (int i = 0; i < rows.num_rows; ++i) num_logits += rows.size * (recipes_[rows.slots[i]].is_plain() ? 1 : 4);
        if (num_logits < kSerialLogits) num_threads = 1;
        parallel_tasks(num_threads, rows.num_rows, [&](int i) { choose_row(rows, i, passes); });
        for (int i = 0; i < rows.num_rows; ++i) {
            Edits* edits = recipes_[rows.slots[i]].edits.get();
            if (edits != nullptr) edits->add(static_cast<int32_t>(rows.token_ids[i]), true);
        }
    }

private:
    void choose_row(const Rows& rows, int i, const Passes& passes) const {
        const Recipe& recipe = recipes_[rows.slots[i]];
        const int64_t mask_row = rows.mask_of == nullptr ? -1 : rows.mask_of[i];
        const int32_t* mask = mask_row < 0 ? nullptr : rows.masks + mask_row * rows.num_words;
        float* row = rows.logits + static_cast<int64_t>(i) * rows.size;
        int64_t& token_id = rows.token_ids[i];
        Chooser chooser(passes, room_of_thread(rows.size), rows.size);
        if (token_id < 0)
            token_id = chooser.choose(row, reinterpret_cast<const uint32_t*>(mask), recipe, rows.positions[i]);
        if (recipe.num_top >= 0)
            chooser.score(rows.logprobs + static_cast<int64_t>(i) * (1 + rows.most_top),
                          rows.top_ids + static_cast<int64_t>(i) * rows.most_top, row, token_id, recipe.num_top,
                          recipe.scope);
        rows.is_certain[i] = recipe.certain_above < 1.0 && chooser.probability(row, token_id) > recipe.certain_above;
    }

    std::vector<Recipe> recipes_;
};

// As `Chooser::score`, of one row.
inline void score_row(double* logprobs, int64_t* top_ids, const float* row, int size, int64_t id, int num_top,
                      const Scope& scope, Isa isa) {
    Chooser(passes_of(isa), room_of_thread(size), size).score(logprobs, top_ids, row, id, num_top, scope);
}

// 2^x as the weights are made, for tests.
inline void power_row(float* out, const float* x, int size, Isa isa) {
    std::vector<float> padded(x, x + size);
    padded.resize(size + kStrands);
    passes_of(isa).weigh(padded.data(), padded.data(), size, 0.0f, 1.0f, kNothing);
    std::copy_n(padded.begin(), size, out);
}

}  // namespace trioserve
