// edits.h: what a request does to its logits before any choice, in the order ban, bias, repetition, frequency, presence;
// and the counts behind these.
//
// Where bans leave nothing to choose, the choice is among the allowed ids all the same; where a grammar allows none of
// these, among those that it does allow. Ids that the vocabulary does not have are passed over.
//
// The order is that of vLLM's sampler; frequency and presence are as the OpenAI reference defines them, repetition as
// arXiv:1909.05858, over prompt and output.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <unordered_map>
#include <utility>
#include <vector>

namespace trioserve {

using Ids = std::vector<int32_t>;

// Changes to a row that can be taken back, so that the row need not be copied.
class Changes {
public:
    explicit Changes(float* x) : x_(x) {}

    size_t count() const { return saved_.size(); }

    void set(int32_t id, float value) {
        saved_.emplace_back(id, x_[id]);
        x_[id] = value;
    }

    // Take back all but the first `kept`.
    void undo(size_t kept = 0) {
        for (; saved_.size() > kept; saved_.pop_back()) x_[saved_.back().first] = saved_.back().second;
    }

private:
    float* x_;
    std::vector<std::pair<int32_t, float>> saved_;
};

// The distinct tokens of a sequence and how often its output has each.
class TokenCounts {
public:
    void add(int32_t id, bool is_output) {
        const auto [place, is_new] = places_.try_emplace(id, static_cast<int32_t>(ids_.size()));
        if (is_new) ids_.push_back(id), counts_.push_back(0.0f);
        if (is_output) counts_[place->second] += 1.0f;
    }

    const Ids& ids() const { return ids_; }

    float output_count(size_t place) const { return counts_[place]; }

private:
    Ids ids_;
    std::vector<float> counts_;
    std::unordered_map<int32_t, int32_t> places_;
};

// The runs of ids that a sequence must not come to hold.
class BadWords {
public:
    void forbid(Ids word) {
        longest_ = std::max(longest_, word.size());
        words_.push_back(std::move(word));
    }

    // The sequence has one more token. More of them than the longest beginning has are never looked at.
    void add(int32_t id) {
        if (longest_ < 2) return;
        last_.push_back(id);
        if (last_.size() > 4 * longest_) last_.erase(last_.begin(), last_.end() - longest_);
    }

    bool empty() const { return words_.empty(); }

    // Calls ban(id) for each id that would complete a run now.
    template <typename Ban>
    void completions(const Ban& ban) const {
        for (const Ids& word : words_) {
            const size_t beginning = word.size() - 1;
            if (beginning <= last_.size() && std::equal(word.begin(), word.end() - 1, last_.end() - beginning))
                ban(word.back());
        }
    }

private:
    std::vector<Ids> words_;
    Ids last_;
    size_t longest_ = 0;
};

struct Edits {
    Ids allowed;                   // empty: all
    Ids stops;                     // banned before position first_stop of the sequence
    int64_t first_stop = 0;
    Ids bias_ids;                  // distinct
    std::vector<float> biases;     // as many
    bool has_penalties = false;
    float repetition = 1.0f, frequency = 0.0f, presence = 0.0f;
    TokenCounts counts;            // kept where there are penalties
    BadWords bad_words;

    // Take note of one more token of the sequence.
    void add(int32_t id, bool is_output) {
        if (has_penalties) counts.add(id, is_output);
        bad_words.add(id);
    }

    // Whether the row has any of the allowed ids, if only some are allowed.
    bool narrows(const float* x) const {
        return std::any_of(allowed.begin(), allowed.end(), [=](int32_t id) { return x[id] > kNone; });
    }

    // out = x where it is allowed, else -inf.
    void keep_allowed(float* out, const float* x, int size) const {
        std::vector<float> kept;
        for (const int32_t id : allowed) kept.push_back(x[id]);
        std::fill_n(out, size, kNone);
        for (size_t i = 0; i < kept.size(); ++i) out[allowed[i]] = kept[i];
    }

    // Edit the logits x [size] of the token at `position` of the sequence; allowed ids have been seen to.
    void apply(Changes& changes, const float* x, int size, int64_t position) const {
        ban(changes, x, size, position);
        for (size_t i = 0; i < bias_ids.size(); ++i) changes.set(bias_ids[i], x[bias_ids[i]] + biases[i]);
        if (has_penalties) penalize(changes, x);
    }

private:
    static constexpr float kNone = -std::numeric_limits<float>::infinity();

    void ban(Changes& changes, const float* x, int size, int64_t position) const {
        const size_t before = changes.count();
        bad_words.completions([&](int32_t id) { changes.set(id, kNone); });
        if (position < first_stop)
            for (const int32_t id : stops) changes.set(id, kNone);
        const bool is_banned = changes.count() > before;
        if (is_banned && std::none_of(x, x + size, [](float value) { return value > kNone; })) changes.undo(before);
    }

    void penalize(Changes& changes, const float* x) const {
        for (size_t place = 0; place < counts.ids().size(); ++place) {
            const int32_t id = counts.ids()[place];
            const float count = counts.output_count(place);
            float value = x[id];
            value = value > 0.0f ? value / repetition : value * repetition;
            value -= frequency * count;
            if (count > 0.0f) value -= presence;
            changes.set(id, value);
        }
    }
};

}  // namespace trioserve
