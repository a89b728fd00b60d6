// decoder.h: a whole step of a decoder in one call: embedding, layers, the last norm; and the head's product.
//
// What a decoder is, is data (layer.h): `DecoderShape` and a `Layer` for each layer. A step is a sequence of phases; in
// each all threads claim tasks until none is left (team.h). The residual is float32, what is multiplied is bf16, sums are
// float32; or, in the products whose weights are int8 or int4, what is multiplied is int8, sums are int32. Every number a
// row is given depends on that row, its position and the keys before it, never on its neighbours in the batch: products
// run through their depth in one order (panels.h), attention goes through its keys in partitions that lie at fixed
// positions (attention.h), and norms are of one row.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "attention.h"
#include "decoder_kernels.h"
#include "exchange.h"
#include "isa.h"
#include "kv_cache.h"
#include "layer.h"
#include "memory.h"
#include "panels.h"
#include "quantize.h"
#include "step.h"
#include "team.h"

namespace trioserve {

class Decoder {
public:
    // alone_work: multiplications below which the caller works alone.
    Decoder(const DecoderShape& shape, int num_threads, std::vector<int> cpus, int64_t alone_work, Isa isa)
        : shape_(shape), alone_work_(alone_work), kernels_(kernels_of(isa)), attention_(kernel_of(isa, shape.kv_format)),
          team_(num_threads, std::move(cpus)), layers_(static_cast<size_t>(shape.num_layers)),
          head_size_(static_cast<int64_t>(shape.num_heads) * shape.head_dim),
          x_(padded(shape.hidden_size)), sampled_x_(padded(shape.hidden_size)), added_(padded(shape.hidden_size)),
          normed_(padded(shape.hidden_size)),
          heads_(padded(head_size_ + 2 * static_cast<int64_t>(shape.num_kv_heads) * shape.head_dim)), q_(head_size_),
          seen_(padded(head_size_)), sampled_seen_(padded(head_size_)), gated_(padded(shape.intermediate_size)),
          bytes_(row_words(std::max({shape.hidden_size, shape.intermediate_size, static_cast<int>(head_size_)}))) {
        const int num_rows = shape.num_heads / shape.num_kv_heads * tile_tokens(shape.num_heads / shape.num_kv_heads);
        scratch_stride_ = static_cast<int64_t>(scratch_size(num_rows, shape.head_dim) + 15) / 16 * 16;
        scratch_ = Memory<float>(static_cast<size_t>(scratch_stride_ * num_threads));
    }

    Layer& layer(int i) { return layers_[static_cast<size_t>(i)]; }
    Panels& head() { return head_; }
    NormWeights& final_norm() { return final_norm_; }
    int num_threads() const { return team_.size(); }

    size_t num_bytes() const {
        size_t sum = head_.memory.num_bytes();
        for (const Layer& layer : layers_)
            for (const Panels* panels : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) sum += panels->memory.num_bytes();
        return sum;
    }

    // weights [num_columns][depth], bf16 or codes of `format`; gated: [2 * num_columns][depth], gates first.
    void pack(Panels& panels, const Weights& weights, int num_columns, bool gated, Format format) {
        const int lanes = kernels_.lanes, columns = gated ? lanes : 2 * lanes;
        panels.num_columns = num_columns;
        panels.depth = weights.depth;
        panels.gated = gated;
        panels.format = format;
        panels.num_panels = (num_columns + columns - 1) / columns;
        panels.num_words = words_of(format, weights.depth);
        panels.memory = Memory<uint32_t>(static_cast<size_t>(panels.num_panels) * static_cast<size_t>(panels.num_words) *
                                         static_cast<size_t>(2 * lanes));
        panels.words = panels.memory.get();
        team_.run([&](int) {
            team_.each(panels.num_panels, [&](int i, int) {
                if (weights.grids != nullptr)
                    keep_panel(panels, weights, i, lanes);
                else if (format == Format::bf16)
                    kernels_.pack_panel(panels, weights, i);
                else
                    quantize_panel(panels, weights, i, lanes);
            });
        });
    }

    static void copy(Memory<float>& to, const float* numbers, int size) {
        to = Memory<float>(static_cast<size_t>(padded(size)));
        std::copy(numbers, numbers + size, to.get());
    }

    // The numbers that go with a gated product's columns, in the order of its panels.
    //   numbers [2 * intermediate_size], gates first
    void copy_gated(Memory<float>& to, const float* numbers) const {
        const int lanes = kernels_.lanes, size = shape_.intermediate_size;
        to = Memory<float>(static_cast<size_t>(2 * padded(size)));
        for (int i = 0; i < size; ++i) {
            float* panel = to.get() + i / lanes * 2 * lanes + i % lanes;
            panel[0] = numbers[i];
            panel[lanes] = numbers[size + i];
        }
    }

    // What in `step` is not of this decoder, "" if all is.
    const char* fault_of(const Step& step) const {
        return trioserve::fault_of(step, shape_.vocab_size, shape_.num_positions);
    }

    // `step` is without fault.
    void forward(const Step& step) {
        reserve(step);
        plan_attention(step);
        team_.run([&](int member) {
            run_layers(step, member);
            kernels_.leave();
        }, is_small(layer_work(shape_), step.num_tokens));
    }

    // hidden [num_rows][hidden_size] -> out [num_rows][vocab_size], which is one memory for all ranks
    void logits(float* out, const bf16* hidden, int num_rows) {
        normed_.reserve(num_rows);
        bytes_.reserve(num_rows);
        const Finish finish{Finish::floats, out + shape_.first_token, shape_.vocab_size, head_.num_columns, nullptr,
                            shape_.activation};
        if (shape_.exchange != nullptr) shape_.exchange->meet();  // when nobody reads the last ones any more
        team_.run([&](int) {
            const size_t size = static_cast<size_t>(shape_.hidden_size);
            for_rows(num_rows, [&](int i) { std::memcpy(normed_.row(i), hidden + i * size, size * sizeof(bf16)); });
            multiply(head_, rows_for(head_, normed_, num_rows), num_rows, finish);
            scale_logits(out, num_rows);
            kernels_.leave();
        }, is_small(int64_t{head_.num_columns} * shape_.hidden_size, num_rows));
        if (shape_.exchange != nullptr) shape_.exchange->meet();
    }

    // Seconds of all layers' products with one of their matrices, or the head's, and nothing between them; for benchmarks.
    double time_products(int which, int num_rows) {
        std::vector<const Panels*> products;
        for (const Layer& layer : layers_) {
            const Panels* const all[] = {&layer.qkv, &layer.o, &layer.gate_up, &layer.down, &head_};
            if (products.empty() || all[which] != &head_) products.push_back(all[which]);
        }
        const Panels& panels = *products[0];
        Table<uint32_t> rows(row_words(panels.depth) + padded(panels.depth) / 2);
        Table<float> out(padded(panels.num_columns));
        rows.reserve(num_rows);
        out.reserve(num_rows);
        std::fill(rows.row(0), rows.row(num_rows), 0x3c3c3c3c);
        const auto kind = panels.gated ? Finish::gated : Finish::floats;
        const Finish finish{kind, out.row(0), out.stride(), static_cast<int>(out.stride()), nullptr, shape_.activation};
        using Clock = std::chrono::steady_clock;
        const auto began = Clock::now();
        team_.run([&](int) {
            for (const Panels* each : products) multiply(*each, Rows{rows.row(0), rows.stride()}, num_rows, finish);
            kernels_.leave();
        });
        return std::chrono::duration<double>(Clock::now() - began).count();
    }

private:
    // The tasks of attention, the same in every layer that sees as far.
    struct Plan {
        Arguments arguments;
        std::vector<Task> tasks;
        std::vector<Split> splits;
    };

    // Whether the caller does it sooner than a helper that something else keeps from its core lets it go on. Up to some
    // rows a product takes as long as reading its weights.
    bool is_small(int64_t work, int num_rows) const { return work * std::max(num_rows, kReadRows) < alone_work_; }

    void reserve(const Step& step) {
        const int num_rows = std::max(step.num_tokens, step.num_samples);
        x_.reserve(step.num_tokens);
        normed_.reserve(num_rows);
        added_.reserve(num_rows);
        heads_.reserve(step.num_tokens);
        q_.reserve(step.num_tokens);
        seen_.reserve(step.num_tokens);
        sampled_x_.reserve(step.num_samples);
        sampled_seen_.reserve(step.num_samples);
        gated_.reserve(num_rows);
        bytes_.reserve(num_rows);
        if (shape_.exchange != nullptr)
            shape_.exchange->reserve(static_cast<size_t>(num_rows * x_.stride()) * sizeof(float));
    }

    // ---- attention ----

    void plan_attention(const Step& step) {
        plans_.clear();
        plan_of_.clear();
        for (size_t i = 0; i + 1 < layers_.size(); ++i) plan_of_.push_back(plan_for(step, layers_[i].sliding_window));
        plans_.push_back(make_plan(step, layers_.back().sliding_window, true));
        plan_of_.push_back(plans_.size() - 1);
    }

    size_t plan_for(const Step& step, int sliding_window) {
        for (size_t i = 0; i < plans_.size(); ++i)
            if (plans_[i]->arguments.sliding_window == sliding_window) return i;
        plans_.push_back(make_plan(step, sliding_window, false));
        return plans_.size() - 1;
    }

    // `sampled`: of the last layer, after which only the rows that sample are wanted.
    std::unique_ptr<Plan> make_plan(const Step& step, int sliding_window, bool sampled) {
        auto plan = std::make_unique<Plan>();
        Arguments& a = plan->arguments;
        a = Arguments{};
        a.out = seen_.row(0);
        a.q = q_.row(0);
        a.cu_seqlens_q = step.cu_seqlens_q;
        a.seq_lens = step.seq_lens;
        a.block_tables = step.block_tables;
        a.q_stride = q_.stride();
        a.out_stride = seen_.stride();
        a.num_seqs = step.num_seqs;
        a.num_heads = shape_.num_heads;
        a.num_kv_heads = shape_.num_kv_heads;
        a.head_dim = shape_.head_dim;
        a.block_size = step.block_size;
        a.max_blocks = step.max_blocks;
        a.group = shape_.num_heads / shape_.num_kv_heads;
        a.sliding_window = sliding_window;
        a.max_queries = step.num_tokens;
        a.scale = shape_.attention_scale;
        a.bound = shape_.attention_bound;
        a.group_bytes = group_bytes(shape_.kv_format, shape_.head_dim);
        plan->tasks = cut(a);
        if (sampled) keep_sampled(step, plan->tasks);
        if (team_.size() > 1) plan->splits = split_long(a, plan->tasks, team_.size());
        sort_longest_first(plan->tasks);
        return plan;
    }

    static void keep_sampled(const Step& step, std::vector<Task>& tasks) {
        std::vector<char> wanted(static_cast<size_t>(step.num_tokens) + 1);
        for (int i = 0; i < step.num_samples; ++i) wanted[static_cast<size_t>(step.sample_rows[i])] = 1;
        const auto is_idle = [&wanted](const Task& task) {
            const auto first = wanted.begin() + task.first_token;
            return std::find(first, first + task.num_tokens, 1) == first + task.num_tokens;
        };
        tasks.erase(std::remove_if(tasks.begin(), tasks.end(), is_idle), tasks.end());
    }

    void attend(const Step& step, size_t layer, int member) {
        Plan& plan = *plans_[plan_of_[layer]];
        Arguments a = plan.arguments;
        a.k_cache = step.k_caches[layer];
        a.v_cache = step.v_caches[layer];
        float* memory = scratch_.get() + member * scratch_stride_;
        team_.each(static_cast<int>(plan.tasks.size()), [&](int i, int next) {
            const Task& task = plan.tasks[static_cast<size_t>(i)];
            a.next = next < 0 ? nullptr : &plan.tasks[static_cast<size_t>(next)];
            run_task(a, attention_, task, plan.splits, scratch_in(memory, task.num_tokens * a.group, a.head_dim));
        });
    }

    // ---- the phases; every member of the team is in all of them ----

    void run_layers(const Step& step, int member) {
        if (shape_.exchange != nullptr) bring_embeddings(step);
        for_rows(step.num_tokens, [&](int i) {
            if (shape_.exchange == nullptr)
                embed(x_.row(i), step.token_ids[i]);
            else
                std::copy_n(brought(owner(step.token_ids[i]), i), shape_.hidden_size, x_.row(i));
            norm(x_, i, layers_[0].before_attention, layers_[0].qkv);
        });
        for (size_t i = 0; i < layers_.size(); ++i) {
            const Layer& layer = layers_[i];
            const bool is_last = i + 1 == layers_.size();
            multiply(layer.qkv, normed_for(layer.qkv), step.num_tokens,
                     Finish{Finish::floats, heads_.row(0), heads_.stride(), static_cast<int>(heads_.stride()),
                            layer.qkv_bias.get(), shape_.activation});
            place(step, layer, i);
            if (is_last && step.num_samples == 0) return;
            attend(step, i, member);
            if (is_last) gather(step);
            finish_layer(layer, is_last ? sampled_x_ : x_, is_last ? sampled_seen_ : seen_,
                         is_last ? step.num_samples : step.num_tokens);
            if (!is_last)
                for_rows(step.num_tokens, [&](int row) {
                    add(x_, row, layer.after_mlp);
                    norm(x_, row, layers_[i + 1].before_attention, layers_[i + 1].qkv);
                });
        }
        const size_t size = static_cast<size_t>(shape_.hidden_size);
        for_rows(step.num_samples, [&](int i) {
            add(sampled_x_, i, layers_.back().after_mlp);
            kernels_.norm_row(normed_.row(i), sampled_x_.row(i), final_norm_.on(shape_));
            std::memcpy(step.hidden + i * size, normed_.row(i), size * sizeof(bf16));
        });
    }

    void embed(float* x, int64_t token_id) {
        if (shape_.embeddings == nullptr)
            kernels_.unpack_column(x, head_, static_cast<int>(token_id));
        else
            kernels_.embed_row(x, shape_.embeddings + token_id * shape_.hidden_size, shape_.hidden_size);
        if (shape_.embedding_scale != 1.0f) kernels_.scale_row(x, shape_.hidden_size, shape_.embedding_scale, 0.0f);
    }

    void scale_logits(float* out, int num_rows) {
        if (shape_.logits_scale == 1.0f && shape_.logits_bound == 0.0f) return;
        for_rows(num_rows, [&](int i) {
            kernels_.scale_row(out + i * int64_t{shape_.vocab_size} + shape_.first_token, head_.num_columns,
                               shape_.logits_scale, shape_.logits_bound);
        });
    }

    // What comes after attention in a layer; what the MLP adds, `add` may still have to.
    void finish_layer(const Layer& layer, const Table<float>& x, const Table<bf16>& seen, int num_rows) {
        if (shape_.is_parallel) {  // the norm once more: its rows were of all tokens, or gave way to bytes
            for_rows(num_rows, [&](int i) { norm(x, i, layer.before_attention, layer.gate_up); });
            run_mlp(layer, x, num_rows);
            add_product(x, layer.o, rows_for(layer.o, seen, num_rows), num_rows, layer.o_bias, layer.after_attention);
            return;
        }
        add_product(x, layer.o, rows_for(layer.o, seen, num_rows), num_rows, layer.o_bias, layer.after_attention);
        for_rows(num_rows, [&](int i) {
            add(x, i, layer.after_attention);
            norm(x, i, layer.before_mlp, layer.gate_up);
        });
        run_mlp(layer, x, num_rows);
    }

    void run_mlp(const Layer& layer, const Table<float>& x, int num_rows) {
        multiply(layer.gate_up, normed_for(layer.gate_up), num_rows,
                 Finish{Finish::gated, gated_.row(0), gated_.stride(), shape_.intermediate_size,
                        layer.gate_up_bias.get(), shape_.activation});
        add_product(x, layer.down, rows_for(layer.down, gated_, num_rows), num_rows, layer.down_bias, layer.after_mlp);
    }

    // Whether what is added to the residual is changed before.
    bool is_changed(const NormWeights& after) const { return !after.weights.empty() || shape_.residual_scale != 1.0f; }

    // Adds a product to the residual; or leaves it to `add`, where it is changed before. That of all ranks, in the order of
    // ranks, where each has a part of its depth.
    void add_product(const Table<float>& x, const Panels& panels, const Rows& rows, int num_rows, const Memory<float>& bias,
                     const NormWeights& after) {
        const Table<float>& to = is_changed(after) ? added_ : x;
        const int width = static_cast<int>(to.stride());
        if (shape_.exchange == nullptr) {
            const auto kind = is_changed(after) ? Finish::floats : Finish::residual;
            return multiply(panels, rows, num_rows, Finish{kind, to.row(0), to.stride(), width, bias.get(), shape_.activation});
        }
        multiply(panels, rows, num_rows,
                 Finish{Finish::floats, shape_.exchange->mine<float>(), to.stride(), width, nullptr, shape_.activation});
        meet();
        for_rows(num_rows, [&](int i) {
            if (is_changed(after)) std::fill_n(to.row(i), shape_.hidden_size, 0.0f);
            for (int rank = 0; rank < shape_.exchange->num_ranks(); ++rank)
                add_numbers(to.row(i), brought(rank, i), shape_.hidden_size);
            if (!bias.empty()) add_numbers(to.row(i), bias.get(), shape_.hidden_size);
        });
    }

    static void add_numbers(float* __restrict to, const float* __restrict numbers, int size) {
        for (int i = 0; i < size; ++i) to[i] += numbers[i];
    }

    void add(const Table<float>& x, int row, const NormWeights& after) {
        if (is_changed(after)) kernels_.add_row(x.row(row), added_.row(row), after.on(shape_), shape_.residual_scale);
    }

    // ---- what the ranks bring to each other: rows of x_.stride() ----

    // Leaves the other ranks the embeddings of the tokens that are here.
    void bring_embeddings(const Step& step) {
        float* mine = shape_.exchange->mine<float>();
        for_rows(step.num_tokens, [&](int i) {
            if (owner(step.token_ids[i]) == shape_.exchange->rank())
                embed(mine + i * x_.stride(), step.token_ids[i] - shape_.first_token);
        });
        meet();
    }

    int owner(int64_t token_id) const { return owner_of(token_id, shape_.vocab_size, shape_.exchange->num_ranks()); }

    const float* brought(int rank, int row) const { return shape_.exchange->of<float>(rank) + row * x_.stride(); }

    void meet() {
        team_.each(1, [&](int, int) { shape_.exchange->meet(); });
    }

    // The normed row as `next` takes it.
    void norm(const Table<float>& x, int row, const NormWeights& weights, const Panels& next) {
        if (next.format == Format::bf16)
            kernels_.norm_row(normed_.row(row), x.row(row), weights.on(shape_));
        else
            kernels_.norm_bytes(bytes_.row(row), x.row(row), weights.on(shape_));
    }

    Rows normed_for(const Panels& panels) const { return panels.format == Format::bf16 ? pairs(normed_) : bytes(); }

    // Rows as `panels` take them; made in a phase of its own where these are not bf16.
    Rows rows_for(const Panels& panels, const Table<bf16>& rows, int num_rows) {
        if (panels.format == Format::bf16) return pairs(rows);
        for_rows(num_rows, [&](int i) { kernels_.quantize_row(bytes_.row(i), rows.row(i), panels.depth); });
        return bytes();
    }

    static Rows pairs(const Table<bf16>& rows) { return {reinterpret_cast<const uint32_t*>(rows.row(0)), rows.stride() / 2}; }
    Rows bytes() const { return {bytes_.row(0), bytes_.stride()}; }

    void place(const Step& step, const Layer& layer, size_t i) {
        const HeadShape heads{shape_.num_heads, shape_.num_kv_heads, shape_.head_dim, shape_.num_pairs, shape_.interleaved,
                              shape_.heads_together, layer.q_norm.get(), layer.k_norm.get(), shape_.eps};
        const int64_t group = group_bytes(shape_.kv_format, shape_.head_dim), head_stride = step.block_size / kGroup * group;
        for_rows(step.num_tokens, [&](int row) {
            const int64_t block = step.slot_mapping[row] / step.block_size, offset = step.slot_mapping[row] % step.block_size;
            const int64_t at = block * shape_.num_kv_heads * head_stride + offset / kGroup * group;
            const KvPlace to{step.k_caches[i] + at, step.v_caches[i] + at, head_stride, static_cast<int>(offset % kGroup),
                             shape_.kv_format};
            const float* turns =
                layer.rope_table == nullptr ? nullptr : layer.rope_table + step.positions[row] * 2 * shape_.num_pairs;
            kernels_.place_row(q_.row(row), to, heads_.row(row), turns, heads);
        });
    }

    // Brings the rows that sample together.
    void gather(const Step& step) {
        for_rows(step.num_samples, [&](int i) {
            const int64_t row = step.sample_rows[i];
            std::memcpy(sampled_x_.row(i), x_.row(row), static_cast<size_t>(x_.stride()) * sizeof(float));
            std::memcpy(sampled_seen_.row(i), seen_.row(row), static_cast<size_t>(seen_.stride()) * sizeof(bf16));
        });
    }

    template <typename Row>
    void for_rows(int num_rows, const Row& row) {
        const int run = std::min(kRowRun, std::max(1, num_rows / (4 * team_.size())));
        team_.each((num_rows + run - 1) / run, [&](int task, int) {
            for (int i = task * run, end = std::min(num_rows, i + run); i < end; ++i) row(i);
        });
    }

    // Tasks are a panel with a block of rows; those of one panel follow each other.
    void multiply(const Panels& panels, const Rows& rows, int num_rows, const Finish& finish) {
        const int num_blocks = (num_rows + kRowBlock - 1) / kRowBlock, num_tasks = panels.num_panels * num_blocks;
        team_.each(num_tasks, [&](int task, int next) {
            const int block = task % num_blocks;
            const Factor factor{rows, static_cast<int>(int64_t{num_rows} * block / num_blocks),
                                static_cast<int>(int64_t{num_rows} * (block + 1) / num_blocks)};
            kernels_.multiply(panels, factor, task / num_blocks, next < 0 ? -1 : next / num_blocks, finish);
        });
    }

    static constexpr int kReadRows = 6;
    static constexpr int kRowRun = 8;      // rows that a thread claims at once, at most
    static constexpr int kRowBlock = 240;  // rows that share a pass over a panel, at most

    const DecoderShape shape_;
    const int64_t alone_work_;
    const Kernels kernels_;
    const Kernel attention_;
    Team team_;
    std::vector<Layer> layers_;
    Panels head_;
    NormWeights final_norm_;
    const int64_t head_size_;
    Table<float> x_, sampled_x_;
    Table<float> added_;  // what a product found that is changed before it is added to the residual
    Table<bf16> normed_;
    Table<float> heads_;
    Table<bf16> q_, seen_, sampled_seen_, gated_;
    Table<uint32_t> bytes_;  // what goes into a product with int8 or int4
    Memory<float> scratch_;
    int64_t scratch_stride_ = 0;
    std::vector<std::unique_ptr<Plan>> plans_;
    std::vector<size_t> plan_of_;  // [num_layers]
};

}  // namespace trioserve
