// Forward: out = tanh(gate) softmax(s) v, FlashAttention-3's pipeline (Shah et al., 2024).
//
//     producer    for each tile:  Q;  K_0, K_1, V_0, K_2, V_1 .. into rings of stages
//     consumers   S = Q K_0^T;  P = softmax
//                 S = Q K_i^T issued, then O += P V_(i-1) issued; softmax of S while that runs; O rescaled; P = S
//                 O += P V_last;  out = O tanh(gate) / ((1 - dropout_p) l)
//
// Last keys that fit a tail are not multiplied as a whole block: pictures have 257 tokens, texts 77.
//
// Online softmax in log2 units: M' = max(M, max_j x_j);  p_j = exp2(x_j - M');  l' = l exp2(M - M') + sum_j p_j.
#pragma once

#include "cuda/attention_fwd_config.h"
#include "cuda/attention_products.cuh"
#include "cuda/attention_scores.cuh"
#include "cuda/attention_softmax.cuh"
#include "cuda/attention_tile.cuh"
#include "cuda/quad.cuh"
#include "cuda/ring.cuh"

namespace fastfuse::cuda {

struct AttentionFwdArguments {
  TensorMap k, v;  // (D, Sk, Hk, B) and (Dv, Sk, Hk, B), boxes of (64, kBlockN, 1, 1)
  AttentionForward p;
  int blocks;  // tiles of a (batch, key head)
  int work;    // batch * blocks * kv_heads
  uint32_t dropout_threshold;
};

FF_DEVICE int key_tiles(const QueryTile& t, int block) { return (t.key_end - t.key_begin + block - 1) / block; }

// One thread.
template <class C>
FF_DEVICE void load_keys_values(const AttentionFwdArguments& args, const AttentionFwdShared<C>& shared) {
  Ring<C::kStages> keys, values;
  const auto load = [&](const TensorMap& map, uint32_t full, uint32_t to, const QueryTile& t, int key) {
    mbarrier_arrive_expect(full, C::kKeyBytes);
#pragma unroll
    for (int slab = 0; slab < C::kSlabs; slab++)
      tma_load(&map, full, to + slab * C::kKeySlabBytes, slab * 64, key, t.kv_head, t.batch);
  };
  for (int work = block_index(); work < args.work; work += grid_blocks()) {
    const QueryTile t = query_tile(args.p, args.p.schedule, args.blocks, C::kBlockM, work);
    const int tiles = key_tiles(t, C::kBlockN);
    for (int i = 0; i <= tiles; i++) {
      if (i < tiles) {
        mbarrier_wait(shared.keys_empty(keys.stage), keys.parity ^ 1);
        load(args.k, shared.keys_full(keys.stage), shared.keys(keys.stage), t, t.key_begin + i * C::kBlockN);
        keys.advance();
      }
      if (i > 0) {
        mbarrier_wait(shared.values_empty(values.stage), values.parity ^ 1);
        load(args.v, shared.values_full(values.stage), shared.values(values.stage), t,
             t.key_begin + (i - 1) * C::kBlockN);
        values.advance();
      }
    }
  }
}

// kQueryThreads threads gather rows that may belong to several heads, which no TMA box could.
template <class C>
FF_DEVICE void load_queries(const AttentionFwdArguments& args, const AttentionFwdShared<C>& shared, int thread) {
  constexpr int kPieces = C::kHeadDim / 8, kStep = C::kQueryThreads / kPieces;  // 16 bytes each; a thread's are in line
  static_assert(C::kQueryThreads % kPieces == 0);
  const AttentionProblem& p = args.p;
  const int group = p.heads / p.kv_heads, piece = thread % kPieces;
  const uint32_t within = piece / 8 * C::kQuerySlabBytes + piece % 8 * 16;
  Ring<C::kQueryStages> queries;
  for (int work = block_index(); work < args.work; work += grid_blocks()) {
    const QueryTile t = query_tile(p, args.p.schedule, args.blocks, C::kBlockM, work);
    if (t.key_begin == t.key_end) continue;
    mbarrier_wait(shared.queries_empty(queries.stage), queries.parity ^ 1);
    const auto* data = static_cast<const typename C::Element*>(p.q.data) + t.batch * p.q.stride[0] +
                       t.kv_head * group * p.q.stride[1] + piece * 8;
    int row = thread / kPieces, head = (t.first + row) / p.seq_q, query = (t.first + row) % p.seq_q;
#pragma unroll 1
    for (; row < C::kBlockM; row += kStep) {
      const bool exists = head < group && piece * 8 < p.dim;
      const uint32_t to = shared.queries(queries.stage) + within + row * C::kSlabRowBytes;
      copy_async(swizzled(to, Swizzle::k128), exists ? data + head * p.q.stride[1] + query * p.q.stride[2] : p.q.data,
                 exists);
      for (query += kStep; query >= p.seq_q; query -= p.seq_q) head++;
    }
    copy_async_wait();
    fence_async_proxy();
    mbarrier_arrive(shared.queries_full(queries.stage));
    queries.advance();
  }
}

// first_row: of the thread's two.
template <class C>
FF_DEVICE void write_tile(const AttentionFwdArguments& args, const QueryTile& t, int first_row, Softmax& softmax,
                          const float (&o)[C::kHeadDim / 2], bool seen) {
  const AttentionForward& p = args.p;
  const int quarter = thread_index() % 4;
  const int64_t stack = int64_t(p.heads / p.kv_heads) * p.seq_q, all = p.batch * p.kv_heads * stack;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float sum = softmax.sum[h];
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    const QueryRow row = query_row(p, t, recomputed(first_row) + 8 * h);
    const RowEnd end = row_end(p, row.head, softmax.max[h], sum);
    const float factor = end.factor * float(1 / (1 - p.dropout_p));
    const int64_t at = (int64_t(t.batch) * p.kv_heads + t.kv_head) * stack + row.row;
    if (row.exists && quarter == 0) {
      store_global(p.lse + at, end.lse);
      store_global(p.lse + all + at, end.rest);
    }
    auto* out = static_cast<typename C::Element*>(p.out) + at * p.dim_v;
#pragma unroll
    for (int j = 0; j < C::kHeadDim / 8; j += 4) {
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float* pair = o + 4 * (j + i) + 2 * h;
        word[i] = seen ? pack_pair<typename C::Element>(pair[0] * factor, pair[1] * factor) : 0u;
      }
      transpose_quad(word);
      const int column = (j + quarter) * 8;
      if (row.exists && column < p.dim_v)
        store_global(reinterpret_cast<uint4*>(out + column), uint4{word[0], word[1], word[2], word[3]});
    }
  }
}

// What a consumer's thread knows of a tile.
struct FwdTile {
  QueryTile t;
  ScoreUnits units;
  uint64_t seed;
  QueryRow rows[2];
  int all_begin, all_end;  // keys in between are visible to the warp's 16 rows

  FF_DEVICE FwdTile(const AttentionProblem& p, const QueryTile& t, const ScoreUnits& units, uint64_t seed, int row)
      : t(t), units(units), seed(seed), rows{query_row(p, t, row), query_row(p, t, row + 8)} {
    all_begin = larger(rows[0].lo, rows[1].lo);
    all_end = smaller(rows[0].hi, rows[1].hi);
#pragma unroll
    for (int mask = 4; mask <= 16; mask *= 2) {
      all_begin = larger(all_begin, shuffle_xor(all_begin, mask));
      all_end = smaller(all_end, shuffle_xor(all_end, mask));
    }
  }
};

template <class C>
struct Consumer {
  using Element = typename C::Element;
  static constexpr int kScores = C::kBlockN / 2, kSums = C::kHeadDim / 2;

  const AttentionFwdArguments& args;
  const AttentionFwdShared<C>& shared;
  int warpgroup, warp, lane;  // 0 or 1, 0..3, 0..31
  Ring<C::kQueryStages> queries;
  Ring<C::kStages> keys, values;

  FF_DEVICE void release(uint32_t empty) const {
    if (lane == 0) mbarrier_arrive(empty);
  }

  // One block of keys, of which the first 4 kWeights are looked at: S = Q K^T, and while that becomes the weights of these
  // keys, O of the block before.
  template <bool kFirst, int kWeights>
  FF_DEVICE void visit(const FwdTile& tile, int first_key, Softmax& softmax, float (&o)[kSums],
                       const uint32_t (&before)[kScores / 2], bool accumulate, uint32_t (&weights)[kWeights]) {
    float s[2 * kWeights], rescale[2];
    mbarrier_wait(shared.keys_full(keys.stage), keys.parity);
    multiply_rows<Element, C::kHeadDim>(s, shared.queries(queries.stage) + warpgroup * 64 * C::kSlabRowBytes,
                                        C::kQuerySlabBytes, shared.keys(keys.stage), C::kKeySlabBytes);
    if constexpr (kFirst) {
      wgmma_wait<0>();
    } else {
      mbarrier_wait(shared.values_full(values.stage), values.parity);
      multiply_weights<Element>(o, before, shared.values(values.stage), C::kKeySlabBytes, accumulate);
      wgmma_wait<1>();
    }
    release(shared.keys_empty(keys.stage));
    keys.advance();
    weigh(tile, first_key, softmax, s, rescale);
    if constexpr (!kFirst) {
      wgmma_wait<0>();
      release(shared.values_empty(values.stage));
      values.advance();
#pragma unroll
      for (int n = 0; n < kSums; n++) o[n] *= rescale[n / 2 % 2];
    }
    if constexpr (C::kGeneral) {
      if (args.p.dropout_p > 0) drop(args.p, tile.seed, args.dropout_threshold, tile.t, tile.rows, first_key, s);
    }
    round_weights<Element>(s, weights);
  }

  // Raw products to exp2(x - M).
  template <int kCount>
  FF_DEVICE void weigh(const FwdTile& tile, int first_key, Softmax& softmax, float (&s)[kCount],
                       float (&rescale)[2]) const {
    if constexpr (C::kGeneral) {
      scale_scores(tile.units, s);
      if (args.p.bias) add_bias_of<Element>(args.p, tile.t, tile.rows, first_key, s);
    }
    if (first_key < tile.all_begin || first_key + 2 * kCount > tile.all_end) hide_keys(tile.rows, first_key, s);
    softmax.update(s, C::kGeneral ? 1.0f : tile.units.scale, rescale);
  }

  // O of the tile's last keys.
  template <int kCount>
  FF_DEVICE void add_last(float (&o)[kSums], const uint32_t (&weights)[kCount], bool accumulate) {
    release(shared.queries_empty(queries.stage));
    queries.advance();
    mbarrier_wait(shared.values_full(values.stage), values.parity);
    multiply_weights<Element>(o, weights, shared.values(values.stage), C::kKeySlabBytes, accumulate);
    wgmma_wait<0>();
    release(shared.values_empty(values.stage));
    values.advance();
  }

  // The last keys, kWidth or fewer, of a tile of which `tiles` blocks are done.
  template <int kWidth>
  FF_DEVICE void visit_last(const FwdTile& tile, int tiles, Softmax& softmax, float (&o)[kSums],
                            const uint32_t (&before)[kScores / 2]) {
    uint32_t weights[kWidth / 4];
    const int first_key = tile.t.key_begin + tiles * C::kBlockN;
    if (tiles == 0)
      visit<true>(tile, first_key, softmax, o, before, false, weights);
    else
      visit<false>(tile, first_key, softmax, o, before, tiles > 1, weights);
    add_last(o, weights, tiles > 0);
  }

  FF_DEVICE void run_tile(const QueryTile& t, const ScoreUnits& units, uint64_t seed) {
    const int row = t.first + warpgroup * 64 + warp * 16 + lane / 4;
    const FwdTile tile(args.p, t, units, seed, row);
    const int seen = t.key_end - t.key_begin, left = seen % C::kBlockN;
    const int tiles = seen / C::kBlockN + (left > C::kLongTail);
    Softmax softmax;
    float o[kSums];
    uint32_t weights[kScores / 2];
    if (seen > 0) mbarrier_wait(shared.queries_full(queries.stage), queries.parity);
    if (tiles > 0) visit<true>(tile, t.key_begin, softmax, o, weights, false, weights);
    for (int i = 1; i < tiles; i++)
      visit<false>(tile, t.key_begin + i * C::kBlockN, softmax, o, weights, i > 1, weights);
    if (left == 0 || left > C::kLongTail) {
      if (seen > 0) add_last(o, weights, tiles > 1);
    } else if (left > C::kTail) {
      visit_last<C::kLongTail>(tile, tiles, softmax, o, weights);
    } else {
      visit_last<C::kTail>(tile, tiles, softmax, o, weights);
    }
    write_tile<C>(args, t, row, softmax, o, seen > 0);
  }

  FF_DEVICE void run() {
    const ScoreUnits units(args.p);
    const uint64_t seed = C::kGeneral && args.p.dropout_p > 0 ? uint64_t(load_global(args.p.seed)) : 0;
    for (int work = block_index(); work < args.work; work += grid_blocks())
      run_tile(query_tile(args.p, args.p.schedule, args.blocks, C::kBlockM, work), units, seed);
  }
};

template <class C>
FF_KERNEL(C::kThreads)
attention_fwd_kernel(const FF_GRID_CONSTANT AttentionFwdArguments args) {
  const AttentionFwdShared<C> shared{shared_memory()};
  const int thread = thread_index();
  if (thread == 0) {
    for (int i = 0; i < C::kQueryStages; i++) {
      mbarrier_init(shared.queries_full(i), C::kQueryThreads);
      mbarrier_init(shared.queries_empty(i), C::kConsumerWarps);
    }
    for (int i = 0; i < C::kStages; i++) {
      mbarrier_init(shared.keys_full(i), 1);
      mbarrier_init(shared.values_full(i), 1);
      mbarrier_init(shared.keys_empty(i), C::kConsumerWarps);
      mbarrier_init(shared.values_empty(i), C::kConsumerWarps);
    }
    mbarrier_init_fence();
  }
  block_sync();
  if (thread < 128) {
    decrease_registers<C::kProducerRegisters>();
    if (thread == 0) load_keys_values(args, shared);
    if (thread >= 32) load_queries(args, shared, thread - 32);
  } else {
    increase_registers<C::kConsumerRegisters>();
    Consumer<C>{args, shared, warp_uniform(thread / 128) - 1, thread / 32 % 4, thread % 32, {}, {}, {}}.run();
  }
}

}  // namespace fastfuse::cuda
