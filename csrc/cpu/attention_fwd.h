// Forward. One task = (batch, key head, block of query tiles, range of keys):
//
//     for each tile of keys, for each query tile of the block that sees any of it
//         X = K Q^T      [keys][lanes]
//         P = softmax    online, attention_softmax.h
//         O += P V
//     out = O / l
//
// Few queries take the streaming path of attention_decode.h instead. A block holds several query tiles where tiles of K
// and V have to be packed, so that the packing is shared. Keys are split only where there would be too few tasks: each
// range then leaves a normalised float partial and its lse, merged in order.
#pragma once

#include "cpu/arena.h"
#include "cpu/attention_decode.h"
#include "cpu/attention_dropout.h"
#include "cpu/attention_kept.h"
#include "cpu/attention_softmax.h"
#include "cpu/buffer.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

struct ForwardPlan {
  int64_t tiles;          // query tiles of a (batch, key head)
  int64_t block, blocks;  // tiles of a task, tasks of a (batch, key head)
  int64_t tile;           // keys of a tile
  int64_t split, splits;  // keys of a task, a multiple of them
  int64_t tasks;
  bool batches_first;  // pairs of one head follow each other: the bias that they share stays in cache
  bool few;            // queries: attention_decode.h
  float* partial_out;  // [splits][B, H, Sq, Dv] or null
  float* partial_lse;  // [splits][2, B, H, Sq] or null
};

// Bytes for what the forward leaves to the backward, attention_kept.h; 0: nothing.
template <class Engine>
int64_t kept_bytes(const AttentionProblem& p) {
  const bool whole = p.softcap == 0 && p.dropout_p == 0;  // P is all that the backward needs of the scores
  if (!whole || streams_keys<Engine>(p) || keeps_rest<Engine>(p)) return 0;
  const int64_t bytes = KeptWeights<Engine>(p, nullptr).bytes();
  const int64_t keys_values =
      p.batch * p.kv_heads * p.seq_k * (p.dim + p.dim_v) * int64_t(sizeof(typename Engine::Element));
  return bytes <= max_of(keys_values, Engine::kKeptLimit) ? bytes : 0;
}

template <class Engine>
ForwardPlan plan_forward(const AttentionForward& p) {
  ForwardPlan plan{};
  const int64_t heads = p.batch * p.kv_heads, wanted = 3 * p.pool.threads;
  plan.tiles = ceil_div(Stack(p).rows, kTileQ);
  plan.tile = tile_keys<Engine>(p);
  plan.few = streams_keys<Engine>(p);
  plan.batches_first = p.bias && p.bias_stride[0] == 0;
  plan.block = Engine::kPacksKeys ? min_of<int64_t>(4, plan.tiles) : 1;
  while (plan.block > 1 && heads * ceil_div(plan.tiles, plan.block) < wanted) plan.block /= 2;
  plan.blocks = ceil_div(plan.tiles, plan.block);
  const int64_t tasks = heads * plan.blocks, key_tiles = ceil_div(p.seq_k, plan.tile);
  const int64_t splits =
      p.pool.threads > 1 && tasks < wanted ? min_of(ceil_div(wanted, tasks), ceil_div(key_tiles, 4)) : 1;
  plan.split = ceil_div(key_tiles, splits) * plan.tile;
  plan.splits = ceil_div(p.seq_k, plan.split);
  plan.tasks = tasks * plan.splits;
  return plan;
}

// The (batch, key head) pairs in the order of the tasks.
struct Pair {
  int64_t batch, kv_head;
  Pair(const AttentionProblem& p, const ForwardPlan& plan, int64_t index)
      : batch(plan.batches_first ? index % p.batch : index / p.kv_heads),
        kv_head(plan.batches_first ? index / p.batch : index % p.kv_heads) {}
};

template <class Engine>
struct ForwardTile {
  QueryTile tile;
  SoftmaxState state;
  typename Engine::Packed* queries;  // pack_lanes
  float* out;                        // O, a Sum of the engine
  bool started;
};

// lse of the tile's rows; and the factors that make O the result: tanh(gate) / ((1 - dropout_p) l), with a sink times
// exp(lse without it - lse). Partial results (not whole) go without sink and gate.
inline void finish_rows(const AttentionProblem& p, const ScoreUnits& units, const QueryTile& t,
                        const SoftmaxState& state, bool whole, float* lse, float* factors) {
  alignas(64) float high[kTileQ], low[kTileQ], values[kTileQ];
  const vf none = splat(-kInf), unit = splat(units.unit);
  for (int lane = 0; lane < t.lanes; lane += kLanes) {
    const vf l = load(state.sum + lane), m = load(state.max + lane), s = m * unit;
    const vi empty = (vi)(l == vf{});
    vf rest;
    const vf lse = add_log(s, l, rest);
    store(high + lane, select(empty, none, lse));
    store(low + lane, select(empty, vf{}, rest + fma_exact(m, unit, -s)));
    store(factors + lane, select(empty, vf{}, splat(1 / (1 - p.dropout_p)) / l));
  }
  if (whole && p.sink) {
    head_values(p.sink, t, values);
    for (int lane = 0; lane < t.lanes; lane += kLanes) {
      const vf a = load(high + lane), b = load(values + lane), top = max(a, b);
      const vf base = select((vi)(top == none), vf{}, top);
      const vf share = exp2((a - base + load(low + lane)) * splat(kLog2e)),
               sum = share + exp2((b - base) * splat(kLog2e));
      vf rest;
      const vf lse = add_log(base, sum, rest);
      const vi empty = (vi)(sum == vf{});
      store(high + lane, select(empty, none, lse));
      store(low + lane, select(empty, vf{}, rest));
      store(factors + lane, select(empty, vf{}, load(factors + lane) * (share / sum)));
    }
  }
  if (whole && p.gate) {
    head_values(p.gate, t, values);
    for (int lane = 0; lane < t.lanes; lane += kLanes)
      store(factors + lane, load(factors + lane) * tanh(load(values + lane)));
  }
  __builtin_memcpy(lse + t.row, high, t.rows * sizeof(float));
  __builtin_memcpy(lse + t.row + p.batch * p.heads * p.seq_q, low, t.rows * sizeof(float));
}

template <class Engine, class Out>
void finish_forward(const AttentionProblem& p, const ScoreUnits& units, ForwardTile<Engine>& work, bool whole, Out* out,
                    float* lse) {
  const QueryTile& t = work.tile;
  alignas(64) float factors[kTileQ];
  finish_rows(p, units, t, work.state, whole, lse, factors);
  Out* rows = out + t.row * p.dim_v;
  if (work.started) {
    Engine::write_sum(work.out, t.rows, t.lanes, p.dim_v, factors, rows);
  } else {
    __builtin_memset(rows, 0, t.rows * p.dim_v * sizeof(Out));
  }
}

template <class Engine>
void forward_task(const AttentionForward& p, const ForwardPlan& plan, int64_t index) {
  using T = typename Engine::Element;
  using Packed = typename Engine::Packed;
  const int64_t split = index % plan.splits, block = index / plan.splits % plan.blocks;
  const int64_t pair = index / plan.splits / plan.blocks;
  const auto [batch, kv_head] = Pair(p, plan, pair);
  const int64_t first_tile = block * plan.block, tiles = min_of(plan.block, plan.tiles - first_tile);
  const int64_t keys_begin = split * plan.split, keys_end = min_of(keys_begin + plan.split, p.seq_k);
  const int64_t stack_rows = Stack(p).rows;
  const ScoreUnits units(p);
  const KeptWeights<Engine> kept(p, p.kept);

  ForwardTile<Engine>* work;
  float *scores, *rest;
  int32_t* keep;
  Packed *key_scratch, *value_scratch, *weight_scratch;
  T* row_scratch;
  with_arena([&](Arena& arena) {
    work = arena.take<ForwardTile<Engine>>(tiles);
    scores = arena.take<float>(Engine::kTileK * kTileQ);
    rest = keeps_rest<Engine>(p) ? arena.take<float>(Engine::kTileK * kTileQ) : nullptr;
    keep = p.dropout_p > 0 ? arena.take<int32_t>(Engine::kTileK * kTileQ) : nullptr;
    key_scratch = arena.take<Packed>(Engine::key_scratch(p.dim));
    value_scratch = arena.take<Packed>(Engine::sum_scratch(p.dim_v));
    weight_scratch = take_weights<Engine>(arena);
    row_scratch = arena.take<T>(kTileQ * p.dim);
    for (int64_t i = 0; i < tiles; i++) {
      Packed* queries = arena.take<Packed>(Engine::lanes_size(p.dim));
      float* out = arena.take<float>(round_up(p.dim_v, 16) * kTileQ);
      if (work) work[i].queries = queries, work[i].out = out;
    }
  });
  [[maybe_unused]] typename Engine::Session session;

  Feed feed;
  int64_t begin = keys_end, end = keys_begin;  // keys that any tile sees
  for (int64_t i = 0; i < tiles; i++) {
    QueryTile& t = work[i].tile;
    const int64_t row = (first_tile + i) * kTileQ;
    set_tile(p, batch, kv_head, row, min_of<int64_t>(kTileQ, stack_rows - row), t);
    if (p.bias && i == 0) {
      feed.begin();
      feed_bias(p, t, t.key_begin, plan.tile, feed);
      feed.flush();
    }
    const TileRows<T> q = tile_rows<T>(p.q, p.dim, t, row_scratch);
    Engine::pack_lanes(q.data, q.stride, t.rows, p.dim, work[i].queries, t.lanes);
    work[i].state.reset(t.lanes);
    work[i].started = false;
    begin = min_of(begin, t.key_begin);
    end = max_of(end, t.key_end);
  }
  begin = keys_begin + max_of<int64_t>(begin - keys_begin, 0) / plan.tile * plan.tile;
  end = min_of(end, keys_end);

  const Pair after(p, plan, min_of(pair + 1, p.batch * p.kv_heads - 1));
  const bool last_block = block + 1 == plan.blocks;
  const Pair next_queries = last_block ? after : Pair(p, plan, pair);
  const int64_t next_row = last_block ? 0 : (first_tile + tiles) * kTileQ;
  for (int64_t key = begin; key < end; key += plan.tile) {
    const int64_t last = min_of(key + plan.tile, end);
    const Operand<Packed> k = Engine::rows_operand(row_of<T>(p.k, batch, kv_head, key), p.k.stride[2], last - key,
                                                   p.seq_k - key, p.dim, key_scratch);
    const Operand<Packed> v =
        Engine::sum_operand(row_of<T>(p.v, batch, kv_head, key), p.v.stride[2], last - key, p.dim_v, value_scratch);
    const bool more = last < end;  // of this pair's keys
    const int64_t next_batch = more ? batch : after.batch, next_head = more ? kv_head : after.kv_head,
                  soon = more ? last : 0, coming = min_of(plan.tile, p.seq_k - soon);
    const T *next_k = row_of<T>(p.k, next_batch, next_head, soon),
            *next_v = row_of<T>(p.v, next_batch, next_head, soon);
    bool first = true;
    for (int64_t i = 0; i < tiles; i++) {
      const QueryTile& t = work[i].tile;
      const KeyRange keys = visible_keys(t, key, last);
      const int64_t n = keys.size(), skipped = keys.begin - key, width = round_up(t.rows, Engine::kLaneGrain);
      if (n <= 0) continue;
      const int64_t place = kept.at(batch * p.kv_heads + kv_head, first_tile + i, t.lanes, key);
      feed.begin();
      if (p.kept) feed.add(kept.tile(place), t.lanes, t.lanes, n);
      if (first) feed.add(next_k, p.k.stride[2], p.dim, coming);
      if (p.bias && !stays_in_cache(p)) {
        feed_bias(p, work[(i + 1) % tiles].tile, i + 1 < tiles ? key : last, plan.tile, feed);
      }
      if (first) feed.add(next_v, p.v.stride[2], p.dim_v, coming);
      if (first && !work[i].started) {
        feed_stack<T>(p, p.q, next_queries.batch, next_queries.kv_head, next_row, plan.block * kTileQ, p.dim, feed);
      }
      Engine::scores_product(n, width, p.dim, Engine::skip_rows(k, skipped), work[i].queries, scores, rest, Fed(feed));
      finish_scores(p, units, t, keys, scores, rest);
      if (keep) dropout_tile(p, t, keys.begin, n, keep);
      const auto weights =
          Engine::template weights<true, false>(scores, t.lanes, p.kept ? kept.tile(place) : weight_scratch);
      const bool moved = softmax_tile<Engine>(scores, rest, n, width, units, work[i].state, keep, weights);
      if (p.kept) __builtin_memcpy(kept.references + place, work[i].state.max, t.lanes * sizeof(float));
      if (moved && work[i].started) Engine::scale_sum(work[i].out, t.rows, t.lanes, p.dim_v, work[i].state.rescale);
      Engine::sum_product(t.rows, t.lanes, p.dim_v, n, weights.by_keys(), Engine::skip_sum(v, skipped), work[i].out,
                          work[i].started, Fed(feed));
      first = false;
      work[i].started = true;
    }
  }
  const int64_t rows = p.batch * p.heads * p.seq_q;
  for (int64_t i = 0; i < tiles; i++) {
    if (plan.splits > 1) {
      finish_forward(p, units, work[i], false, plan.partial_out + split * rows * p.dim_v,
                     plan.partial_lse + split * 2 * rows);
    } else {
      finish_forward(p, units, work[i], true, static_cast<T*>(p.out), p.lse);
    }
  }
}

template <class T>
void decode_task(const AttentionForward& p, const ForwardPlan& plan, int64_t index) {
  const int64_t split = index % plan.splits, head = index / plan.splits, batch = head / p.kv_heads,
                kv_head = head % p.kv_heads;
  const int64_t ld = round_up(p.dim_v, kLanes), q_ld = round_up(p.dim, kLanes), all = p.batch * p.heads * p.seq_q;
  const ScoreUnits units(p);
  QueryTile* t;
  SoftmaxState* state;
  float *q, *x, *out;
  T* row_scratch;
  with_arena([&](Arena& arena) {
    t = arena.take<QueryTile>(1);
    state = arena.take<SoftmaxState>(1);
    q = arena.take<float>(kDecodeRows * q_ld);
    x = arena.take<float>(kDecodeRows * kDecodeKeys);
    out = arena.take<float>(kDecodeRows * ld);
    row_scratch = arena.take<T>(kTileQ * p.dim);
  });
  set_tile(p, batch, kv_head, 0, Stack(p).rows, *t);
  const TileRows<T> rows = tile_rows<T>(p.q, p.dim, *t, row_scratch);
  pack_rows(rows.data, rows.stride, t->rows, p.dim, q, q_ld);
  state->reset(t->lanes);
  __builtin_memset(out, 0, t->rows * ld * sizeof(float));
  const int64_t first = split * plan.split, last = min_of(first + plan.split, p.seq_k);
  decode_rows<T>(p, units, *t, kv_head, max_of(first, t->key_begin), min_of(last, t->key_end), q, q_ld, x, *state, out,
                 ld);

  alignas(64) float factors[kTileQ];
  const bool whole = plan.splits == 1;
  finish_rows(p, units, *t, *state, whole, whole ? p.lse : plan.partial_lse + split * 2 * all, factors);
  if (whole) {
    RowSum::write_sum(out, t->rows, t->lanes, p.dim_v, factors, static_cast<T*>(p.out) + t->row * p.dim_v);
  } else {
    float* partial = plan.partial_out + (split * all + t->row) * p.dim_v;
    RowSum::write_sum(out, t->rows, t->lanes, p.dim_v, factors, partial);
  }
}

// One row: out = sum_s exp(lse_s - lse) out_s over the ranges s of keys, then sink and gate.
template <class T>
void merge_row(const AttentionForward& p, const ForwardPlan& plan, int64_t row) {
  const int64_t rows = p.batch * p.heads * p.seq_q, head = row / p.seq_q % p.heads;
  const float *high = plan.partial_lse + row, *low = high + rows;
  float top = p.sink ? p.sink[head] : -kInf;
  for (int64_t s = 0; s < plan.splits; s++) top = max_of(top, high[2 * s * rows]);
  const float base = top == -kInf ? 0 : top;
  const auto share = [&](float lse, float rest) { return exp2(splat((lse - base + rest) * kLog2e))[0]; };
  float sum = p.sink ? share(p.sink[head], 0) : 0;
  for (int64_t s = 0; s < plan.splits; s++) sum += share(high[2 * s * rows], low[2 * s * rows]);
  vf rest;
  const vf lse = add_log(splat(base), splat(sum), rest);
  p.lse[row] = sum == 0 ? -kInf : lse[0];
  p.lse[row + rows] = sum == 0 ? 0 : rest[0];
  const float factor = sum == 0 ? 0 : (p.gate ? tanh(p.gate[head]) : 1) / sum;
  T* out = static_cast<T*>(p.out) + row * p.dim_v;
  for (int64_t d = 0; d < p.dim_v; d += kLanes) {
    const int n = int(min_of<int64_t>(p.dim_v - d, kLanes));
    vf total{};
    for (int64_t s = 0; s < plan.splits; s++) {
      const float weight = factor * share(high[2 * s * rows], low[2 * s * rows]);
      total = fma(splat(weight), load(plan.partial_out + (s * rows + row) * p.dim_v + d, n), total);
    }
    store_as(out + d, total, n);
  }
}

template <class Engine>
void attention_fwd(const AttentionForward& p) {
  struct Context {
    const AttentionForward& p;
    ForwardPlan plan;
  } context{p, plan_forward<Engine>(p)};
  ForwardPlan& plan = context.plan;
  const int64_t rows = p.batch * p.heads * p.seq_q;
  Buffer<float> memory;
  if (plan.splits > 1) {
    memory = Buffer<float>(plan.splits * rows * (p.dim_v + 2));
    plan.partial_out = memory.get();
    plan.partial_lse = plan.partial_out + plan.splits * rows * p.dim_v;
  }
  parallel_for(
      p.pool, plan.tasks,
      [](void* argument, int64_t index, int) {
        const Context& c = *static_cast<Context*>(argument);
        if (c.plan.few) {
          decode_task<typename Engine::Element>(c.p, c.plan, index);
        } else {
          forward_task<Engine>(c.p, c.plan, index);
        }
      },
      &context);
  if (plan.splits > 1) {
    for (int64_t row = 0; row < rows; row++) merge_row<typename Engine::Element>(p, plan, row);
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
