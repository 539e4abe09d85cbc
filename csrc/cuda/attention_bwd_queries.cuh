// Backward for queries: a block owns 128 rows and visits the keys that they see.
//
//     S = Q K^T,   dP = dO V^T                                  dP runs while P is made, dQ while the next S is
//     P = exp(s - lse),   dS = P ((dP keep / (1 - dropout_p) - center) open - offset)
//     dQ += (dS slope) K                                        slope of softcap
//
// center and offset: attention_bwd_terms.cuh, which improves them for rows whose keys lie in one tile.
#pragma once

#include "cuda/attention_bwd_config.h"
#include "cuda/attention_bwd_terms.cuh"
#include "cuda/attention_products.cuh"
#include "cuda/attention_scores.cuh"
#include "cuda/ring.cuh"
#include "cuda/two.cuh"

namespace fastfuse::cuda {

struct AttentionBwdQueriesArguments : AttentionBwdArguments {
  TensorMap q, dout;  // (D, rows, Hk count, B) and with Dv, boxes of (64, kBlockM, 1, 1)
  TensorMap k, v;     // (D, Sk, Hk, B) and with Dv, boxes of (64, kBlockN, 1, 1)
  int work;           // batch * kv_heads * count * tiles / 2
};

struct QueriesTile : QueryTile {
  int run;  // `first` is a row of it
};

FF_DEVICE QueriesTile queries_tile(const AttentionBwdArguments& args, int work) {
  const int blocks = args.runs.tiles / 2;
  QueriesTile t;
  t.kv_head = work % args.p.kv_heads;
  work /= args.p.kv_heads;
  t.first = work % blocks * 2 * kRunTileRows;
  work /= blocks;
  t.run = work % args.runs.count;
  t.batch = work / args.runs.count;
  const int tile = t.run * args.runs.tiles + t.first / kRunTileRows;
  const KeySpans spans = join(key_spans(args, t.batch, tile), key_spans(args, t.batch, tile + 1));
  t.key_begin = spans.begin / 8 * 8;
  t.key_end = larger(spans.end, t.key_begin);
  return t;
}

// One thread.
template <class C>
FF_DEVICE void load_for_queries(const AttentionBwdQueriesArguments& args, const AttentionBwdQueriesShared<C>& shared) {
  Ring<C::kQueryStages> queries;
  Ring<C::kKeyStages> keys;
  Ring<C::kValueStages> values;
  for (int work = block_index(); work < args.work; work += grid_blocks()) {
    const QueriesTile t = queries_tile(args, work);
    if (t.key_begin == t.key_end) continue;
    mbarrier_wait(shared.queries_empty(queries.stage), queries.parity ^ 1);
    mbarrier_arrive_expect(shared.queries_full(queries.stage), 2 * C::kQueryBytes);
    const int head = t.kv_head * args.runs.count + t.run;
#pragma unroll
    for (int slab = 0; slab < C::kSlabs; slab++) {
      const uint32_t full = shared.queries_full(queries.stage), at = slab * C::kQuerySlabBytes;
      tma_load(&args.q, full, shared.queries(queries.stage) + at, slab * 64, t.first, head, t.batch);
      tma_load(&args.dout, full, shared.dout(queries.stage) + at, slab * 64, t.first, head, t.batch);
    }
    queries.advance();
    for (int key = t.key_begin; key < t.key_end; key += C::kBlockN) {
      mbarrier_wait(shared.keys_empty(keys.stage), keys.parity ^ 1);
      mbarrier_arrive_expect(shared.keys_full(keys.stage), C::kKeyBytes);
#pragma unroll
      for (int slab = 0; slab < C::kSlabs; slab++)
        tma_load(&args.k, shared.keys_full(keys.stage), shared.keys(keys.stage) + slab * C::kKeySlabBytes, slab * 64,
                 key, t.kv_head, t.batch);
      keys.advance();
      mbarrier_wait(shared.values_empty(values.stage), values.parity ^ 1);
      mbarrier_arrive_expect(shared.values_full(values.stage), C::kKeyBytes);
#pragma unroll
      for (int slab = 0; slab < C::kSlabs; slab++)
        tma_load(&args.v, shared.values_full(values.stage), shared.values(values.stage) + slab * C::kKeySlabBytes,
                 slab * 64, key, t.kv_head, t.batch);
      values.advance();
    }
  }
}

template <class T>
FF_DEVICE Two<T> rounded_two(float low, float high) {
  if constexpr (sizeof(T) == 4) {
    return {low, high};
  } else {
    const uint32_t pair = pack_pair<T>(low, high);
    return {T{uint16_t(pair)}, T{uint16_t(pair >> 16)}};
  }
}

// Keys past the last have ds = 0, as all that a row does not see. Two at a time where rows begin at even elements.
template <class T, int kCount>
FF_DEVICE void write_scores_gradient(const AttentionBackward& p, int64_t row, int first_key, int h,
                                     const float (&ds)[kCount]) {
  const int key = first_key + thread_index() % 4 * 2;
  T* to = static_cast<T*>(p.ds) + row * p.ds_pitch;
  if (p.ds_pitch % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kCount / 4; i++) {
      const int j = key + i * 8;
      const float* x = ds + i * 4 + h * 2;
      if (j < p.ds_pitch) store_global(reinterpret_cast<Two<T>*>(to + j), rounded_two<T>(x[0], x[1]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount / 2; i++) {
      const int j = key + i / 2 * 8 + i % 2;
      if (j < p.ds_pitch) store_global(to + j, rounded_two<T>(ds[i / 2 * 4 + h * 2 + i % 2], 0).at[0]);
    }
  }
}

template <class C>
struct QueriesConsumer {
  using Element = typename C::Element;
  static constexpr int kScores = C::kBlockN / 2, kSums = C::kHeadDim / 2;
  static constexpr int kSlopes = C::kGeneral ? kScores : 1;

  const AttentionBwdQueriesArguments& args;
  const AttentionBwdQueriesShared<C>& shared;
  int warpgroup, warp, lane;  // 0 or 1, 0..3, 0..31
  Ring<C::kQueryStages> queries;
  Ring<C::kKeyStages> keys;
  Ring<C::kValueStages> values;

  FF_DEVICE void release(uint32_t empty) const {
    if (lane == 0) mbarrier_arrive(empty);
  }

  // Products to probabilities.
  FF_DEVICE void find_probabilities(const QueriesTile& t, const QueryRow (&rows)[2], const RowTerms (&terms)[2],
                                    bool all_see, int first_key, float (&s)[kScores], float (&slope)[kSlopes]) const {
    if constexpr (C::kGeneral) {
      scale_scores(args.units, s);
      const float inverse = args.softcap_inverse;
#pragma unroll
      for (int i = 0; i < kScores; i++) slope[i] = 1.0f - s[i] * inverse * (s[i] * inverse);
      if (args.p.bias) add_bias_of<Element>(args.p, t, rows, first_key, s);
    }
    if (!all_see) hide_keys(rows, first_key, s);
    const float factor = C::kGeneral ? 1.0f : args.units.scale;
#pragma unroll
    for (int i = 0; i < kScores; i++) {
      const RowTerms& row = terms[i / 2 % 2];
      s[i] = exp2_approx(fused_multiply_add(s[i], factor, -row.lse) - row.lse_rest);
    }
  }

  FF_DEVICE void drop_received(const QueriesTile& t, const QueryRow (&rows)[2], int first_key, uint64_t seed,
                               float (&dp)[kScores]) const {
    drop(args.p, seed, args.dropout_threshold, t, rows, first_key, dp);
#pragma unroll
    for (int i = 0; i < kScores; i++) dp[i] *= args.kept_share;
  }

  // P and dP to dS, in place of P.
  FF_DEVICE void find_gradients(const QueriesTile& t, const QueryRow (&rows)[2], const RowTerms (&terms)[2],
                                const float (&open)[2], int first_key, const float (&dp)[kScores],
                                const float (&slope)[kSlopes], float (&s)[kScores], float (&gate_share)[2]) const {
    const AttentionBackward& p = args.p;
#pragma unroll
    for (int i = 0; i < kScores; i++) {
      const RowTerms& row = terms[i / 2 % 2];
      gate_share[i / 2 % 2] = fused_multiply_add(s[i], dp[i], gate_share[i / 2 % 2]);
      s[i] *= fused_multiply_add(dp[i] - row.center, open[i / 2 % 2], -row.offset);
    }
    if constexpr (C::kGeneral) {
      if (p.ds) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
          if (!rows[h].exists) continue;
          const int64_t row = row_index(p, t.batch, rows[h]);
          if (p.ds_dtype == DType::kFloat32) write_scores_gradient<float>(p, row, first_key, h, s);
          if (p.ds_dtype != DType::kFloat32) write_scores_gradient<Element>(p, row, first_key, h, s);
        }
      }
#pragma unroll
      for (int i = 0; i < kScores; i++) s[i] *= slope[i];
    }
  }

  FF_DEVICE void run_tile(const QueriesTile& t, uint64_t seed) {
    const AttentionBackward& p = args.p;
    const int r = t.first + warpgroup * 64 + warp * 16 + lane / 4;
    QueryRow rows[2];
    RowTerms terms[2];
#pragma unroll
    for (int h = 0; h < 2; h++) find_row(args, t.batch, t.kv_head, t.run, r + 8 * h, rows[h], terms[h]);
    const float open[2] = {row_open(p, rows[0]), row_open(p, rows[1])};
    const bool improves = some_fit(rows, C::kBlockN);
    const KeySpans spans = key_spans(args, t.batch, t.run * args.runs.tiles + t.first / kRunTileRows + warpgroup);
    float dq[kSums], s[kScores], dp[kScores], slope[kSlopes], gate_share[2] = {0, 0};
    uint32_t weights[kScores / 2];
#pragma unroll
    for (int i = 0; i < kSums; i++) dq[i] = 0;
    const uint32_t row_bytes = uint32_t(warpgroup) * 64 * 128;
    const uint32_t q = shared.queries(queries.stage) + row_bytes, dout = shared.dout(queries.stage) + row_bytes;
    if (t.key_begin < t.key_end) mbarrier_wait(shared.queries_full(queries.stage), queries.parity);
    Ring<C::kKeyStages> before;
    for (int key = t.key_begin; key < t.key_end; key += C::kBlockN) {
      mbarrier_wait(shared.keys_full(keys.stage), keys.parity);
      multiply_rows<Element, C::kHeadDim>(s, q, C::kQuerySlabBytes, shared.keys(keys.stage), C::kKeySlabBytes);
      wgmma_wait<1>();  // dQ's product of the tile before
      if (key > t.key_begin) release(shared.keys_empty(before.stage));
      mbarrier_wait(shared.values_full(values.stage), values.parity);
      multiply_rows<Element, C::kHeadDim>(dp, dout, C::kQuerySlabBytes, shared.values(values.stage), C::kKeySlabBytes);
      wgmma_wait<1>();
      const bool all_see = key >= spans.all_begin && key + C::kBlockN <= spans.all_end;
      find_probabilities(t, rows, terms, all_see, key, s, slope);
      wgmma_wait<0>();
      release(shared.values_empty(values.stage));
      values.advance();
      if constexpr (C::kGeneral) {
        if (p.dropout_p > 0) drop_received(t, rows, key, seed, dp);
      }
      if (improves) improve_terms(args, t, rows, key, s, dp, open, terms);
      find_gradients(t, rows, terms, open, key, dp, slope, s, gate_share);
      round_weights<Element>(s, weights);
      multiply_weights<Element>(dq, weights, shared.keys(keys.stage), C::kKeySlabBytes, true);
      before = keys;
      keys.advance();
    }
    wgmma_wait<0>();
    if (t.key_begin < t.key_end) {
      release(shared.keys_empty(before.stage));
      release(shared.queries_empty(queries.stage));
      queries.advance();
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int64_t at = row_index(p, t.batch, rows[h]);
      if (p.dq) write_row(dq, h, p.scale, static_cast<Element*>(p.dq) + at * p.dim, p.dim, rows[h].exists);
      const float sum = quad_sum(gate_share[h]);
      if (p.dgate && rows[h].exists && lane % 4 == 0) store_global(RowScratch(p).gate_share + at, sum);
    }
  }

  FF_DEVICE void run() {
    const uint64_t seed = C::kGeneral && args.p.dropout_p > 0 ? uint64_t(load_global(args.p.seed)) : 0;
    for (int work = block_index(); work < args.work; work += grid_blocks()) run_tile(queries_tile(args, work), seed);
  }
};

template <class C>
FF_KERNEL(C::kThreads)
attention_bwd_queries_kernel(const FF_GRID_CONSTANT AttentionBwdQueriesArguments args) {
  const AttentionBwdQueriesShared<C> shared{shared_memory()};
  const int thread = thread_index();
  if (thread == 0) {
    for (int i = 0; i < C::kQueryStages; i++) {
      mbarrier_init(shared.queries_full(i), 1);
      mbarrier_init(shared.queries_empty(i), C::kConsumerWarps);
    }
    for (int i = 0; i < C::kKeyStages; i++) {
      mbarrier_init(shared.keys_full(i), 1);
      mbarrier_init(shared.keys_empty(i), C::kConsumerWarps);
    }
    for (int i = 0; i < C::kValueStages; i++) {
      mbarrier_init(shared.values_full(i), 1);
      mbarrier_init(shared.values_empty(i), C::kConsumerWarps);
    }
    mbarrier_init_fence();
  }
  block_sync();
  if (thread < 128) {
    decrease_registers<C::kProducerRegisters>();
    if (thread == 0) load_for_queries(args, shared);
  } else {
    increase_registers<C::kConsumerRegisters>();
    QueriesConsumer<C>{args, shared, warp_uniform(thread / 128) - 1, thread / 32 % 4, thread % 32, {}, {}, {}}.run();
  }
}

}  // namespace fastfuse::cuda
