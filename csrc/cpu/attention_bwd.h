// Backward. One task = (batch, key head, part of the keys); a part is worked off in blocks whose gradients stay in
// cache:
//
//     for each block of keys, for each query tile, for each tile of keys of the block
//         X   = K Q^T,   P = exp(scale X - lse)                   [keys][lanes], or P = what the forward kept
//         dP  = V dO^T
//         dS  = P (keep dP tanh(gate) / (1 - dropout_p) - delta)
//         dV += (P keep / (1 - dropout_p) tanh(gate)) dO,   dK += dS^T Q,   dQ += dS K
//
// delta_i = sum_j p_ij dp_ij - dlse_i. Where one tile holds all keys that a query sees it is that sum itself, so that a
// query with one key has a gradient of exactly 0; elsewhere it is dout_i . out_i - dlse_i, off by the rounding of out.
//
// A task owns its keys' dK and dV, and dQ of its rows too unless the keys are split; then each part leaves its dQ, and
// parts are added in order. Where a bias is broadcast over batch or heads, one task takes all that share its gradient,
// in order. So nothing is atomic and every result is the same in every run.
#pragma once

#include "cpu/arena.h"
#include "cpu/attention_bwd_dq.h"
#include "cpu/attention_bwd_keys.h"
#include "cpu/attention_bwd_tile.h"
#include "cpu/attention_bwd_values.h"
#include "cpu/attention_decode.h"
#include "cpu/attention_kept.h"
#include "cpu/buffer.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

template <class Engine>
struct BackwardTask {
  using T = typename Engine::Element;
  using Packed = typename Engine::Packed;
  using KeyOperand = Operand<Packed>;
  using From = typename GradientTile<Engine>::From;

  const AttentionBackward& p;
  const BackwardPlan& plan;
  const int64_t stack_rows;
  const bool streamed;  // scores come from attention_decode.h, as the forward's do
  const KeptWeights<Engine> kept;
  int64_t part;
  int64_t next_pair;  // that is worked on after this one

  QueryTile* t;
  int64_t packed = -1;  // the query tile that *t and the packed queries are of, counted over all pairs
  GradientTile<Engine> tile;
  SharedBias shared;
  Packed *p_scratch, *ds_scratch;
  Packed *q_lanes, *q_natural, *dout_lanes, *dout_natural;
  ScaledRows dout_scaled;
  float* q_streamed;  // [kDecodeRows][q_ld]
  T *q_rows, *dout_rows;
  Feed feed;
  float* delta;  // [stack rows]
  float *dq, *dk, *dv;
  bool *dq_started, *touched;
  Packed *k_scratch, *v_scratch, *kt_scratch;
  KeyOperand *k_rows, *v_rows, *k_sums;  // of each tile of keys of the block

  BackwardTask(const AttentionBackward& problem, const BackwardPlan& the_plan)
      : p(problem),
        plan(the_plan),
        stack_rows(Stack(problem).rows),
        streamed(streams_keys<Engine>(problem)),
        kept(problem, problem.kept),
        tile(problem) {
    with_arena([&](Arena& arena) {
      const int64_t key_tiles = plan.block / plan.tile;
      t = arena.take<QueryTile>(1);
      tile.take(arena, !plan.shares_bias);
      if (plan.shares_bias) shared.take(arena, plan.tiles, plan.tile, plan.part);
      p_scratch = take_weights<Engine>(arena);
      ds_scratch = take_weights<Engine>(arena);
      q_lanes = arena.take<Packed>(Engine::lanes_size(p.dim));
      q_natural = arena.take<Packed>(Engine::natural_size(p.dim));
      q_streamed = streamed ? arena.take<float>(kDecodeRows * q_ld()) : nullptr;
      dout_lanes = arena.take<Packed>(Engine::lanes_size(p.dim_v));
      dout_natural = arena.take<Packed>(Engine::natural_size(p.dim_v));
      dout_scaled.take(arena, Engine::kKeepsByLanes && p.kept ? Engine::natural_size(p.dim_v) : 0);
      q_rows = arena.take<T>(kTileQ * p.dim);
      dout_rows = arena.take<T>(kTileQ * p.dim_v);
      delta = arena.take<float>(stack_rows);
      dq = plan.parts > 1 ? nullptr : arena.take<float>(plan.tiles * plan.dq_tile);
      dk = arena.take<float>(plan.block * round_up(p.dim, 16));
      dv = arena.take<float>(plan.block * round_up(p.dim_v, 16));
      dq_started = arena.take<bool>(plan.tiles);
      touched = arena.take<bool>(key_tiles);
      k_scratch = arena.take<Packed>(key_tiles * Engine::key_scratch(p.dim));
      v_scratch = arena.take<Packed>(key_tiles * Engine::key_scratch(p.dim_v));
      kt_scratch = arena.take<Packed>(key_tiles * Engine::sum_scratch(p.dim));
      k_rows = arena.take<KeyOperand>(key_tiles);
      v_rows = arena.take<KeyOperand>(key_tiles);
      k_sums = arena.take<KeyOperand>(key_tiles);
    });
  }

  void run(int64_t index) {
    [[maybe_unused]] typename Engine::Session session;
    part = index % plan.parts;
    const int64_t outer = index / plan.parts, columns = p.kv_heads / plan.kv_heads;
    const int64_t first_batch = outer / columns * plan.batches, first_head = outer % columns * plan.kv_heads;
    if (plan.shares_bias) shared.begin(plan.tiles);
    for (int64_t batch = first_batch; batch < first_batch + plan.batches; batch++) {
      for (int64_t head = first_head; head < first_head + plan.kv_heads; head++) run(batch, head);
    }
    const int64_t begin = part * plan.part, end = min_of(begin + plan.part, p.seq_k);
    for (int64_t i = 0; plan.shares_bias && i < plan.tiles; i++) {
      place_tile(first_batch, first_head, i);
      shared.write_tile(p, *t, i, begin, end);
    }
  }

  int64_t q_ld() const { return round_up(p.dim, kLanes); }
  int64_t key_tile_of(int64_t key) const { return (key - part * plan.part) / plan.tile; }  // of this part
  bool multiplies_keys() const { return !p.kept && !streamed; }  // for the scores, with q_lanes

  void place_tile(int64_t batch, int64_t kv_head, int64_t i) {
    const int64_t row = i * kTileQ;
    set_tile(p, batch, kv_head, row, min_of<int64_t>(kTileQ, stack_rows - row), *t);
    packed = -1;
  }

  void run(int64_t batch, int64_t kv_head) {
    const int64_t pair = batch * p.kv_heads + kv_head;
    next_pair = pair_after(batch, kv_head);
    if (plan.parts > 1) dq = plan.partial_dq + (part * p.batch * p.kv_heads + pair) * plan.tiles * plan.dq_tile;
    compute_delta(batch, kv_head);
    __builtin_memset(dq_started, 0, plan.tiles);
    const int64_t begin = part * plan.part, end = min_of(begin + plan.part, p.seq_k);
    for (int64_t key = begin; key < end; key += plan.block)
      run_block(batch, kv_head, key, min_of(key + plan.block, end));
    for (int64_t i = 0; i < plan.tiles; i++) {
      if (!dq_started[i]) __builtin_memset(dq + i * plan.dq_tile, 0, plan.dq_tile * sizeof(float));
      if (plan.parts == 1 && p.dq) write_dq<Engine>(p, pair, i, dq + i * plan.dq_tile);
    }
  }

  // delta, and with it the sink's gradient: dsink = - sum_i exp(sink - lse_i) delta_i.
  void compute_delta(int64_t batch, int64_t kv_head) {
    const int64_t group = p.heads / p.kv_heads, all = p.batch * p.heads * p.seq_q;
    for (int64_t g = 0; g < group; g++) {
      const int64_t head = kv_head * group + g, first = (batch * p.heads + head) * p.seq_q;
      float dsink = 0;
      for (int64_t i = 0; i < p.seq_q; i++) {
        const float lse = p.lse[first + i];
        const T *dout = row_of<T>(p.dout, batch, head, i), *out = row_of<T>(p.out, batch, head, i);
        vf sum{};
        int64_t d = 0;
        for (; d + kLanes <= p.dim_v; d += kLanes) sum = fma(load_as_float(dout + d), load_as_float(out + d), sum);
        if (d < p.dim_v) sum = fma(load_as_float(dout + d, p.dim_v - d), load_as_float(out + d, p.dim_v - d), sum);
        float value = reduce_add(sum);
        if (p.dlse && lse != -kInf) value -= p.dlse[first + i];
        delta[g * p.seq_q + i] = value;
        if (p.dsink && lse != -kInf)
          dsink -= exp2(splat((p.sink[head] - lse - p.lse[first + i + all]) * kLog2e))[0] * value;
      }
      if (p.dsink && part == 0) plan.partial_sink[batch * p.heads + head] = dsink;
      if (p.dgate) plan.partial_gate[(part * p.batch + batch) * p.heads + head] = 0;
    }
  }

  void run_block(int64_t batch, int64_t kv_head, int64_t begin, int64_t end) {
    const int64_t first_row = (batch * p.kv_heads + kv_head) * p.seq_k + begin;
    T *dk_rows = p.dk ? static_cast<T*>(p.dk) + first_row * p.dim : nullptr,
      *dv_rows = p.dv ? static_cast<T*>(p.dv) + first_row * p.dim_v : nullptr;
    const int64_t all_rows = p.batch * p.kv_heads * p.seq_k;
    const KeyGradient<Engine> dk_block(dk_rows, all_rows, p.dim, p.scale, dk, plan.tiles == 1),
        dv_block(dv_rows, all_rows, p.dim_v, 1.0f, dv, plan.tiles == 1);
    load_keys(batch, kv_head, begin, end);
    for (int64_t i = 0; i < plan.tiles; i++) {
      const int64_t wanted = (batch * p.kv_heads + kv_head) * plan.tiles + i;
      if (packed != wanted) place_tile(batch, kv_head, i);
      if (max_of(t->key_begin, begin) >= min_of(t->key_end, end)) continue;
      if (packed != wanted) load_queries();
      packed = wanted;
      const int64_t first = max_of<int64_t>(t->key_begin - begin, 0) / plan.tile * plan.tile;
      for (int64_t key = begin + first; key < min_of(end, t->key_end); key += plan.tile) {
        run_tile(i, key, min_of(key + plan.tile, end), begin, dk_block, dv_block);
      }
      if (p.dgate) {
        for (int lane = 0; lane < t->rows; lane++) {
          plan.partial_gate[(part * p.batch + batch) * p.heads + t->head[lane]] += tile.dgate[lane];
          tile.dgate[lane] = 0;
        }
      }
    }
    for (int64_t key = begin; key < end; key += plan.tile) {
      if (touched[(key - begin) / plan.tile]) continue;
      const int64_t at = key - begin, n = min_of(plan.tile, end - key);
      dk_block.clear(at, n);
      dv_block.clear(at, n);
    }
    dk_block.finish(end - begin);
    dv_block.finish(end - begin);
  }

  void load_keys(int64_t batch, int64_t kv_head, int64_t begin, int64_t end) {
    for (int64_t key = begin, i = 0; key < end; key += plan.tile, i++) {
      const int64_t n = min_of(plan.tile, end - key), available = p.seq_k - key;
      const T *k = row_of<T>(p.k, batch, kv_head, key), *v = row_of<T>(p.v, batch, kv_head, key);
      touched[i] = false;
      if (multiplies_keys()) {
        k_rows[i] =
            Engine::rows_operand(k, p.k.stride[2], n, available, p.dim, k_scratch + i * Engine::key_scratch(p.dim));
      }
      v_rows[i] =
          Engine::rows_operand(v, p.v.stride[2], n, available, p.dim_v, v_scratch + i * Engine::key_scratch(p.dim_v));
      k_sums[i] = Engine::sum_operand(k, p.k.stride[2], n, p.dim, kt_scratch + i * Engine::sum_scratch(p.dim));
    }
  }

  void load_queries() {
    const TileRows<T> q = tile_rows<T>(p.q, p.dim, *t, q_rows), dout = tile_rows<T>(p.dout, p.dim_v, *t, dout_rows);
    if (multiplies_keys()) Engine::pack_lanes(q.data, q.stride, t->rows, p.dim, q_lanes, t->lanes);
    if (streamed) pack_rows(q.data, q.stride, t->rows, p.dim, q_streamed, q_ld());
    Engine::pack_lanes(dout.data, dout.stride, t->rows, p.dim_v, dout_lanes, t->lanes);
    if (p.dk) Engine::pack_natural(q.data, q.stride, t->rows, p.dim, q_natural);
    if (p.dv) Engine::pack_natural(dout.data, dout.stride, t->rows, p.dim_v, dout_natural);
    dout_scaled.clear();
    tile.load_lanes(*t, delta + t->row % stack_rows);
  }

  // In this task, or the first of the next one.
  int64_t pair_after(int64_t batch, int64_t kv_head) const {
    if (++kv_head % plan.kv_heads == 0) {
      kv_head -= plan.kv_heads;
      if (++batch % plan.batches == 0) {
        batch -= plan.batches;
        kv_head += plan.kv_heads;
        if (kv_head == p.kv_heads) batch = min_of(batch + plan.batches, p.batch - 1), kv_head = 0;
      }
    }
    return batch * p.kv_heads + kv_head;
  }

  // What comes after query tile i's keys [key, last), in the order of its use: what the tile is made from, K and V, the rows
  // of dV and dK; and beside a query tile's first keys, the next pair's.
  void feed_next(int64_t i, int64_t key, int64_t last, int64_t begin, const KeyGradient<Engine>& dk_block,
                 const KeyGradient<Engine>& dv_block) {
    const int64_t pair = t->row / stack_rows;
    int64_t next = pair, next_tile = i, row = key + plan.tile;
    if (row >= t->key_end) {  // of these queries; the block's first keys for the next ones
      next_tile = i + 1, row = begin;
      if (next_tile == plan.tiles) next = next_pair, next_tile = 0, row = 0;
    }
    const int64_t n = min_of(plan.tile, p.seq_k - row), batch = next / p.kv_heads, head = next % p.kv_heads;
    const T *k = row_of<T>(p.k, batch, head, row), *v = row_of<T>(p.v, batch, head, row);
    feed.begin();
    if (p.kept) {
      const int64_t place = kept.at(next, next_tile, t->lanes, row);
      feed.add(kept.tile(place), t->lanes, t->lanes, n);
    } else if (i == 0) {
      feed.add(k, p.k.stride[2], p.dim, n);
    }
    if (plan.shares_bias && !stays_in_cache(p)) {
      shared.feed_next(i, key_tile_of(key), t->lanes, !p.kept, feed);
    } else if (p.bias && !p.kept && !stays_in_cache(p)) {
      feed_bias(p, *t, last, plan.tile, feed);
    }
    if (i == 0) {
      feed.add(v, p.v.stride[2], p.dim_v, n);
      if (p.kept) feed.add(k, p.k.stride[2], p.dim, n);
      const int64_t on = (next - pair) * p.seq_k + row - begin;
      dv_block.feed_rows(on, n, feed);
      dk_block.feed_rows(on, n, feed);
    }
    if (dq_started[i]) return;
    const auto feed_queries = [&](const Rows& x, int64_t dim) {
      feed_stack<T>(p, x, next_pair / p.kv_heads, next_pair % p.kv_heads, i * kTileQ, kTileQ, dim, feed);
    };
    feed_queries(p.q, p.dim);
    feed_queries(p.dout, p.dim_v);
    feed_queries(p.out, p.dim_v);
  }

  void run_tile(int64_t i, int64_t key, int64_t last, int64_t begin, const KeyGradient<Engine>& dk_block,
                const KeyGradient<Engine>& dv_block) {
    const int64_t index = (key - begin) / plan.tile, lanes = t->lanes;
    const KeyRange keys = visible_keys(*t, key, last);
    const int64_t n = keys.size(), skipped = keys.begin - key, width = round_up(t->rows, Engine::kLaneGrain);
    if (n <= 0) return;
    const auto p_weights = Engine::template weights<false, true>(tile.scores, lanes, p_scratch);
    const auto ds_weights = Engine::template weights<true, true>(tile.dp, lanes, ds_scratch);

    const float* bias = nullptr;
    float* bias_sums = nullptr;
    if (plan.shares_bias) {
      const int64_t key_tile = key_tile_of(key);
      shared.load_tile(p, *t, i, key_tile, key, last - key);
      bias = shared.bias + shared.offset(i, key_tile) + skipped * lanes;
      bias_sums = shared.sums + shared.offset(i, key_tile) + skipped * lanes;
    }
    feed_next(i, key, last, begin, dk_block, dv_block);
    if (!p.kept) {
      if (streamed) {
        const T* k = row_of<T>(p.k, t->batch, t->row / stack_rows % p.kv_heads, keys.begin);
        decode_tile(q_streamed, q_ld(), *t, k, p.k.stride[2], n, p.dim, tile.scores);
      } else {
        Engine::scores_product(n, width, p.dim, Engine::skip_rows(k_rows[index], skipped), q_lanes, tile.scores,
                               tile.rest, Fed(feed));
      }
      finish_scores(p, tile.units, *t, keys, tile.scores, tile.rest, tile.slope, bias);
    }
    Engine::scores_product(n, width, p.dim_v, Engine::skip_rows(v_rows[index], skipped), dout_lanes, tile.dp,
                           tile.dp_rest, Fed(feed));
    const Packed *dv_weights = p_weights.by_lanes(), *dv_queries = dout_natural;
    if (p.kept) {
      const int64_t place = kept.at(t->row / stack_rows, i, lanes, key);
      tile.take_kept(Engine::template weights<true, false>(nullptr, lanes, kept.tile(place)), kept.references + place,
                     lanes);
      tile.template find_gradients<From::kKept>(*t, keys, p_weights, ds_weights, bias_sums);
      if constexpr (Engine::kKeepsByLanes) {
        if (p.dv && !has_all_keys(*t, keys)) {
          dout_scaled.scale(dout_natural, t->rows, Engine::natural_ld(p.dim_v), tile.value_factor);
          dv_weights = kept.tile(place);
          dv_queries = dout_scaled.rows;
        }
      }
    } else {
      tile.template find_gradients<From::kScores>(*t, keys, p_weights, ds_weights, bias_sums);
    }

    bool accumulate = touched[index];
    if (!accumulate && n < last - key) {
      dk_block.clear(key - begin, last - key);
      dv_block.clear(key - begin, last - key);
      accumulate = true;
    }
    touched[index] = true;
    dv_block.add(keys.begin - begin, n, t->rows, dv_weights, lanes, dv_queries, accumulate, feed);
    dk_block.add(keys.begin - begin, n, t->rows, ds_weights.by_lanes(), lanes, q_natural, accumulate, feed);
    if (p.dq) {
      Engine::sum_product(t->rows, lanes, p.dim, n, ds_weights.by_keys(), Engine::skip_sum(k_sums[index], skipped),
                          dq + i * plan.dq_tile, dq_started[i], Fed(feed));
      dq_started[i] = true;
    }
  }
};

template <class Engine>
void attention_bwd(const AttentionBackward& p) {
  struct Context {
    const AttentionBackward& p;
    BackwardPlan plan;
  } context{p, plan_backward<Engine>(p)};
  BackwardPlan& plan = context.plan;
  const int64_t pairs = p.batch * p.kv_heads, heads = p.batch * p.heads;
  const int64_t dq_size = plan.parts > 1 ? plan.parts * pairs * plan.tiles * plan.dq_tile : 0;
  Buffer<float> memory;
  if (dq_size || p.dsink || p.dgate) {
    memory = Buffer<float>(dq_size + (plan.parts + 1) * heads);
    plan.partial_dq = memory.get();
    plan.partial_sink = plan.partial_dq + dq_size;
    plan.partial_gate = plan.partial_sink + heads;
  }
  parallel_for(
      p.pool, plan.tasks,
      [](void* argument, int64_t index, int) {
        const Context& c = *static_cast<Context*>(argument);
        BackwardTask<Engine>(c.p, c.plan).run(index);
      },
      &context);
  if (plan.parts > 1 && p.dq) {
    parallel_for(
        p.pool, pairs * plan.tiles,
        [](void* argument, int64_t index, int) {
          const Context& c = *static_cast<Context*>(argument);
          merge_dq<Engine>(c.p, c.plan, index);
        },
        &context);
  }
  for (int64_t h = 0; h < p.heads; h++) {
    float dsink = 0, dgate = 0;
    for (int64_t b = 0; b < p.batch; b++) {
      if (p.dsink) dsink += plan.partial_sink[b * p.heads + h];
      for (int64_t part = 0; p.dgate && part < plan.parts; part++) {
        dgate += plan.partial_gate[(part * p.batch + b) * p.heads + h];
      }
    }
    if (p.dsink) p.dsink[h] = dsink;
    if (p.dgate) {
      const float open = tanh(p.gate[h]);
      p.dgate[h] = (1 - open * open) * dgate;
    }
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
