// choice.h: from a row of logits to a token and to log probabilities, by what one request wants.
//
// The order: what the grammar allows, edits (edits.h), temperature; then min-p and top-k on the distribution that this
// makes, and top-p on what they leave of it, renormalised. Values decide, never the order of ids: each filter keeps
// whatever is as likely as the last one that it keeps, so that a tie does not depend on how it was broken. Nothing is
// sorted but the alternatives that a caller wants named.
//
// A draw takes one number in [0, 1) from (seed, position) and finds where the running sum of the weights, in the order
// of ids, passes it. Weights are float32 and their sums of blocks too, so a number within about 1e-6 of the border
// between two tokens may pick either; which one is the same on every instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "edits.h"
#include "memory.h"
#include "passes.h"

namespace trioserve {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr double kLowest = -9999.0;  // stands for minus infinity, which JSON cannot say
constexpr double kSlack = 1e-4;      // by which a border among logits is lowered: more than a weight's logarithm is off

struct Scope {  // of which distribution log probabilities are; as it stands, of the model's own
    double temperature = 1.0, top_p = 1.0;
};

struct Recipe {
    bool is_greedy = true;
    double temperature = 1.0, top_p = 1.0, min_p = 0.0;
    int top_k = 0;  // 0: off
    uint64_t seed = 0;
    int num_top = -1;  // alternatives to name; -1: no log probabilities
    Scope scope;
    double certain_above = 1.0;  // the probability to exceed; nothing exceeds 1
    std::unique_ptr<Edits> edits;

    bool is_plain() const { return is_greedy && edits == nullptr; }
};

// A number in [0, 1) with 53 random bits, without state: nothing depends on what was drawn before. The seed is mixed
// before the position is added, so that neighbouring seeds are not the same stream shifted.
// Source: splitmix64, Steele, Lea and Flood, OOPSLA 2014.
inline double uniform(uint64_t seed, int64_t position) {
    constexpr uint64_t golden = 0x9E3779B97F4A7C15;
    const auto mix = [](uint64_t z) {
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        return z ^ (z >> 31);
    };
    const uint64_t mixed = mix(mix(seed + golden) + (static_cast<uint64_t>(position) + 1) * golden);
    return static_cast<double>(mixed >> 11) * 0x1p-53;
}

// 2^(x * scale) = e^(x / temperature).
inline float scale_of(double temperature) { return static_cast<float>(1.4426950408889634 / temperature); }

// What one thread works in, for rows of up to `size`.
struct Room {
    int size = 0;
    Memory<float> masked, maxima, values, weights;
    Memory<int32_t> ids;
    Memory<double> ends;
    std::vector<int> order;

    void fit(int wanted) {
        if (wanted <= size) return;
        const size_t count = wanted;
        masked = Memory<float>(count), maxima = Memory<float>(count / kRun + 1);
        values = Memory<float>(count + kStrands), weights = Memory<float>(count + kStrands);
        ids = Memory<int32_t>(count + kStrands), ends = Memory<double>(count / kBlock + 1);
        size = wanted;
    }
};

// One row's.
class Chooser {
public:
    Chooser(const Passes& passes, Room& room, int size) : passes_(passes), room_(room), size_(size) {}

    // The token at `position`; the row is edited on the way and is then what it was.
    //   row [size]   mask: as sampling_kernel.h has them; null: all are allowed
    int64_t choose(float* row, const uint32_t* mask, const Recipe& recipe, int64_t position) {
        if (mask != nullptr && recipe.is_plain()) {
            const int64_t found = passes_.masked_argmax_row(row, mask, size_);
            if (found >= 0) return found;
        }
        float* x = row;
        if (mask != nullptr && passes_.mask_row(room_.masked.get(), row, mask, size_))
            x = room_.masked.get();
        else
            mask = nullptr;  // nothing is allowed that the model has: whatever is chosen will be refused
        if (recipe.edits != nullptr && recipe.edits->narrows(x)) {
            recipe.edits->keep_allowed(room_.masked.get(), x, size_);
            x = room_.masked.get();
        }
        Changes changes(x);
        if (recipe.edits != nullptr) recipe.edits->apply(changes, x, size_, position);
        const int64_t found = pick(x, recipe, position);
        if (changes.count() > 0) seen_ = nullptr;
        changes.undo();
        if (found >= 0) return found;
        return mask != nullptr ? passes_.masked_argmax_row(row, mask, size_) : 0;
    }

    // Writes the log probabilities of token `id` and then of the `num_top` likeliest, likeliest first and equals in the
    // order of their ids; none is below kLowest, which stands for all that a broken row has.
    //   row [size]   top_ids [num_top]   logprobs [1 + num_top]   num_top: at most size
    void score(double* logprobs, int64_t* top_ids, const float* row, int64_t id, int num_top, const Scope& scope) {
        const float most = look(row);
        const float scale = scale_of(scope.temperature);
        double total = sum(row, scale);
        float border = 0.0f;
        if (scope.top_p < 1.0 && total > 0.0) {
            int count = 0;
            border = find_nucleus(row, scale, scope, count);
            total = passes_.sums_of_weights(nullptr, room_.weights.get(), count);
        }
        name_top(top_ids, row, num_top);
        for (int i = 0; i <= num_top; ++i) {
            const float value = row[i == 0 ? id : top_ids[i - 1]];
            double found = (static_cast<double>(value) - most) / scope.temperature - std::log(total);
            if (border > 0.0f && weight(value, scale) < border) found = kLowest;
            logprobs[i] = total > 0.0 && found > kLowest ? found : kLowest;
        }
    }

    // What the model itself gives to token `id` of row [size].
    double probability(const float* row, int64_t id) {
        look(row);
        const double total = sum(row, scale_of(1.0));
        return weight(row[id], scale_of(1.0)) / total;
    }

private:
    // The largest value; the maxima of the runs are those of x from now on.
    float look(const float* x) {
        if (seen_ != x) most_ = passes_.run_maxima(room_.maxima.get(), x, size_), seen_ = x, scale_ = 0.0f;
        return most_;
    }

    // Of the weights of x, which has been looked at.
    double sum(const float* x, float scale) {
        if (scale_ == scale) return total_;
        scale_ = scale;
        return total_ = passes_.weight_sums(room_.ends.get(), x, size_, most_, scale);
    }

    float weight(float value, float scale) const {
        float one[kStrands] = {value};
        passes_.weigh(one, one, 1, most_, scale, kNothing);
        return one[0];
    }

    // The first of the largest of x, which has been looked at.
    int64_t first(const float* x) const {
        const float* maxima = room_.maxima.get();
        const int64_t run = std::find(maxima, maxima + num_runs(), most_) - maxima;
        return std::find(x + run * kRun, x + size_, most_) - x;
    }

    int num_runs() const { return (size_ + kRun - 1) / kRun; }

    // -1: there is nothing that is not -inf.
    int64_t pick(const float* x, const Recipe& recipe, int64_t position) {
        if (!(look(x) > kNothing)) return -1;
        if (recipe.is_greedy) return first(x);
        const double number = uniform(recipe.seed, position);
        const bool is_whole = recipe.min_p <= 0.0 && recipe.top_p >= 1.0 && !limits(recipe.top_k);
        const int64_t drawn = is_whole ? draw_of_all(x, recipe, number) : draw_of_some(x, recipe, number);
        return drawn >= 0 ? drawn : first(x);  // infinitely likely
    }

    bool limits(int top_k) const { return 0 < top_k && top_k < size_; }

    int64_t draw_of_all(const float* x, const Recipe& recipe, double number) {
        const float scale = scale_of(recipe.temperature);
        double target = number * sum(x, scale);
        const int begin = find_block(size_, target) * kBlock, count = std::min(kBlock, size_ - begin);
        float weights[kBlock + kStrands] = {};
        std::memcpy(weights, x + begin, count * sizeof(float));
        passes_.weigh(weights, weights, count, most_, scale, kNothing);
        const int place = passing(weights, count, target);
        return place < 0 ? -1 : begin + place;
    }

    int64_t draw_of_some(const float* x, const Recipe& recipe, double number) {
        const int count = filter(x, recipe);
        if (count == 0) return -1;
        const float* weights = room_.weights.get();
        double target = number * passes_.sums_of_weights(room_.ends.get(), weights, count);
        const int begin = find_block(count, target) * kBlock;
        const int place = passing(weights + begin, std::min(kBlock, count - begin), target);
        return place < 0 ? -1 : room_.ids.get()[begin + place];
    }

    // Gathers what may be drawn, and its weights, 0 for what is filtered after all. Returns how many.
    int filter(const float* x, const Recipe& recipe) {
        const float scale = scale_of(recipe.temperature);
        int count = 0;
        if (!limits(recipe.top_k) && recipe.min_p <= 0.0) {
            find_nucleus(x, scale, {recipe.temperature, recipe.top_p}, count);
            return count;
        }
        float border = border_of(recipe.min_p, recipe.temperature);
        if (limits(recipe.top_k))
            border = gather_top(x, recipe.top_k, count);
        else
            count = gather(x, border);
        float* weights = room_.weights.get();
        passes_.weigh(weights, room_.values.get(), count, most_, scale, border);
        if (recipe.min_p > 0.0) passes_.drop_below(weights, count, static_cast<float>(recipe.min_p));
        if (recipe.top_p < 1.0) {
            const double total = passes_.sums_of_weights(nullptr, weights, count);
            keep_nucleus(count, recipe.top_p * total, 0.0f);
        }
        return count;
    }

    // Gathers what top-p could keep of all of x, and its weights, 0 for what it does not keep; returns the least kept.
    float find_nucleus(const float* x, float scale, const Scope& scope, int& count) {
        const double total = sum(x, scale);
        // all that lies below this sums to less than 1 - top_p, so the border is not among it
        const double least = std::min((1.0 - scope.top_p) * total / size_, 1.0);
        count = gather(x, border_of(least, scope.temperature));
        passes_.weigh(room_.weights.get(), room_.values.get(), count, most_, scale, kNothing);
        return keep_nucleus(count, scope.top_p * total, static_cast<float>(least));
    }

    float keep_nucleus(int count, double target, float least) {
        std::memcpy(room_.values.get(), room_.weights.get(), count * sizeof(float));
        const float border = passes_.nucleus_border(room_.values.get(), count, target, least);
        passes_.drop_below(room_.weights.get(), count, border);
        return border;
    }

    // A logit that everything of at least this weight reaches.
    float border_of(double weight, double temperature) const {
        if (weight <= 0.0) return kNothing;
        return std::nextafter(static_cast<float>(most_ + temperature * (std::log(weight) - kSlack)), kNothing);
    }

    int gather(const float* x, float border) {
        return passes_.gather(room_.values.get(), room_.ids.get(), x, room_.maxima.get(), size_, border);
    }

    // Gathers the k largest of x and some more; returns the border from which up they are the k largest, with equals.
    float gather_top(const float* x, int k, int& count) {
        if (2 * static_cast<int64_t>(k) > num_runs()) {
            const float border = passes_.border_of_top(x, size_, k, most_);
            count = gather(x, border);
            return border;
        }
        count = gather(x, passes_.border_of_top(room_.maxima.get(), num_runs(), k, most_));
        return passes_.border_of_top(room_.values.get(), count, k, most_);
    }

    void name_top(int64_t* top_ids, const float* x, int num_top) {
        if (num_top == 0) return;
        int count = 0;
        const float border = gather_top(x, num_top, count);
        const float* values = room_.values.get();
        const int32_t* ids = room_.ids.get();
        std::vector<int>& order = room_.order;
        order.clear();
        for (int i = 0; i < count; ++i)
            if (values[i] >= border) order.push_back(i);
        if (static_cast<int>(order.size()) < num_top) return name_all(top_ids, x, num_top);
        std::partial_sort(order.begin(), order.begin() + num_top, order.end(),
                          [=](int a, int b) { return values[a] != values[b] ? values[a] > values[b] : a < b; });
        for (int i = 0; i < num_top; ++i) top_ids[i] = ids[order[i]];
    }

    // The same where there are not so many numbers; a broken model's rank must not break.
    void name_all(int64_t* top_ids, const float* x, int num_top) {
        std::vector<int>& order = room_.order;
        order.resize(size_);
        std::iota(order.begin(), order.end(), 0);
        const auto value = [=](int id) { return x[id] == x[id] ? x[id] : kNothing; };
        std::stable_sort(order.begin(), order.end(), [=](int a, int b) { return value(a) > value(b); });
        std::copy_n(order.begin(), num_top, top_ids);
    }

    // The block of `size` weights in which their running sum passes `target`, which then is that within the block.
    int find_block(int size, double& target) const {
        const double* ends = room_.ends.get();
        const double* last = ends + (size - 1) / kBlock;
        const double* found = std::upper_bound(ends, last + 1, target);
        if (found > last) found = std::lower_bound(ends, last, *last);  // rounded up to the sum: the last one in it
        if (found != ends) target -= found[-1];
        return static_cast<int>(found - ends);
    }

    // The first place at which the running sum passes `target`; sums round differently, so where none does, the last
    // that is possible; -1 where none is.
    static int passing(const float* weights, int count, double target) {
        double sum = 0.0;
        int last = -1;
        for (int i = 0; i < count; ++i) {
            if (weights[i] > 0.0f) last = i;
            if ((sum += weights[i]) > target) break;
        }
        return last;
    }

    const Passes& passes_;
    Room& room_;
    const int size_;
    const float* seen_ = nullptr;  // whose maxima are in the room
    float most_ = kNothing, scale_ = 0.0f;
    double total_ = 0.0;  // at scale_; 0: none yet
};

}  // namespace trioserve
