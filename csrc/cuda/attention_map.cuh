// Attention maps: a block owns a tile of the result and adds up p = exp(s - lse) over its heads (and for the keys' sums
// over the queries), in order.
//
//     full    [128 queries][keys] of one head      mean    of all heads      keys    of all heads and all queries
#pragma once

#include "cuda/attention_log_sum.cuh"
#include "cuda/attention_map_config.h"
#include "cuda/attention_products.cuh"
#include "cuda/attention_scores.cuh"
#include "cuda/attention_tensor_map.h"
#include "cuda/ring.cuh"
#include "fastfuse/cuda_attention_map.h"

namespace fastfuse::cuda {

struct AttentionMapArguments {
  TensorMap q, k;  // (D, Sq, H, B) and (D, Sk, Hk, B), boxes of (64, kBlockM, 1, 1) and (64, kBlockN, 1, 1)
  AttentionMap p;
  ScoreUnits units;
  int key_tiles, query_tiles;  // of a head
};

// What a block adds up.
struct MapTask {
  int batch, first_key;
  int first_tile, last_tile;  // of queries
  int first_head, last_head;
};

template <class C>
FF_DEVICE MapTask map_task(const AttentionMapArguments& args, int work) {
  const AttentionMap& p = args.p;
  MapTask t{0, work % args.key_tiles * C::kBlockN, 0, args.query_tiles, 0, p.heads};
  work /= args.key_tiles;
  if (p.mode != MapMode::kKeys) {
    t.first_tile = work % args.query_tiles;
    t.last_tile = t.first_tile + 1;
    work /= args.query_tiles;
  }
  if (p.mode == MapMode::kFull) {
    t.first_head = work % p.heads;
    t.last_head = t.first_head + 1;
    work /= p.heads;
  }
  t.batch = work;
  return t;
}

// One thread.
template <class C>
FF_DEVICE void load_for_map(const AttentionMapArguments& args, const AttentionMapShared<C>& shared) {
  const MapTask t = map_task<C>(args, block_index());
  const int group = args.p.heads / args.p.kv_heads;
  Ring<C::kStages> ring;
  for (int head = t.first_head; head < t.last_head; head++) {
    for (int tile = t.first_tile; tile < t.last_tile; tile++) {
      const uint32_t full = shared.full(ring.stage);
      mbarrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
      mbarrier_arrive_expect(full, C::kQueryBytes + C::kKeyBytes);
#pragma unroll
      for (int slab = 0; slab < C::kSlabs; slab++) {
        tma_load(&args.q, full, shared.queries(ring.stage) + slab * C::kQuerySlabBytes, slab * 64, tile * C::kBlockM,
                 head, t.batch);
        tma_load(&args.k, full, shared.keys(ring.stage) + slab * C::kKeySlabBytes, slab * 64, t.first_key, head / group,
                 t.batch);
      }
      ring.advance();
    }
  }
}

template <class C>
struct MapConsumer {
  using Element = typename C::Element;
  static constexpr int kScores = C::kBlockN / 2;

  const AttentionMapArguments& args;
  const AttentionMapShared<C>& shared;
  int warp, lane;  // 0..7, 0..31; a warp has 16 queries of a tile

  // Products to probabilities of a query tile of one head, added to `total`.
  FF_DEVICE void add_probabilities(const MapTask& t, int tile, int head, float (&s)[kScores],
                                   float (&total)[kScores]) const {
    const AttentionMap& p = args.p;
    const int group = p.heads / p.kv_heads, query = tile * C::kBlockM + warp * 16 + lane / 4;
    const QueryTile queries{t.batch, head / group, 0, 0, 0};
    QueryRow rows[2];
    LogSum lse[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      rows[h] = query_row(p, queries, head % group * p.seq_q + query + 8 * h);
      rows[h].exists &= query + 8 * h < p.seq_q;
      const int64_t at = (int64_t(t.batch) * p.heads + head) * p.seq_q + query + 8 * h;
      lse[h] = rows[h].exists ? log_sum(p, p.lse, at) : LogSum{plus_infinity(), 0};
    }
    scale_scores(args.units, s);
    if (p.bias) add_bias_of<Element>(p, queries, rows, t.first_key, s);
    hide_keys(rows, t.first_key, s);
#pragma unroll
    for (int i = 0; i < kScores; i++) total[i] += exp2_approx(s[i] - lse[i / 2 % 2].high - lse[i / 2 % 2].low);
  }

  FF_DEVICE void write_rows(const MapTask& t, float share, const float (&total)[kScores]) const {
    const AttentionMap& p = args.p;
    const int query = t.first_tile * C::kBlockM + warp * 16 + lane / 4, key = t.first_key + lane % 4 * 2;
    const int64_t matrix = p.mode == MapMode::kFull ? int64_t(t.batch) * p.heads + t.first_head : t.batch;
#pragma unroll
    for (int i = 0; i < kScores; i++) {
      const int row = query + i / 2 % 2 * 8, column = key + i / 4 * 8 + i % 2;
      if (row < p.seq_q && column < p.seq_k)
        store_global(p.map + (matrix * p.seq_q + row) * p.seq_k + column, total[i] * share);
    }
  }

  // Sums over the block's queries: a thread's two rows, the warp's lanes, then its warps in order.
  FF_DEVICE void write_sums(const MapTask& t, float share, const float (&total)[kScores]) const {
#pragma unroll
    for (int j = 0; j < kScores / 4; j++) {
#pragma unroll
      for (int c = 0; c < 2; c++) {
        float sum = total[4 * j + c] + total[4 * j + 2 + c];
#pragma unroll
        for (int mask = 4; mask <= 16; mask *= 2) sum += shuffle_xor(sum, mask);
        if (lane < 4) store_shared(shared.sum(warp, 8 * j + 2 * lane + c), sum);
      }
    }
    named_barrier_sync(1, C::kConsumerThreads);
    const int column = warp * 32 + lane;
    if (column >= C::kBlockN || t.first_key + column >= args.p.seq_k) return;
    float sum = 0;
    for (int w = 0; w < C::kConsumerWarps; w++) sum += load_shared<float>(shared.sum(w, column));
    store_global(args.p.map + int64_t(t.batch) * args.p.seq_k + t.first_key + column, sum * share);
  }

  FF_DEVICE void run() const {
    const MapTask t = map_task<C>(args, block_index());
    const uint32_t own = uint32_t(warp / 4) * 64 * 128;
    Ring<C::kStages> ring;
    float s[kScores], total[kScores];
#pragma unroll
    for (int i = 0; i < kScores; i++) total[i] = 0;
    for (int head = t.first_head; head < t.last_head; head++) {
      for (int tile = t.first_tile; tile < t.last_tile; tile++) {
        mbarrier_wait(shared.full(ring.stage), ring.parity);
        multiply_rows<Element, C::kHeadDim>(s, shared.queries(ring.stage) + own, C::kQuerySlabBytes,
                                            shared.keys(ring.stage), C::kKeySlabBytes);
        wgmma_wait<0>();
        if (lane == 0) mbarrier_arrive(shared.empty(ring.stage));
        ring.advance();
        add_probabilities(t, tile, head, s, total);
      }
    }
    const float share = args.p.mode == MapMode::kFull ? 1.0f : 1.0f / float(args.p.heads);
    if (args.p.mode == MapMode::kKeys) {
      write_sums(t, share, total);
    } else {
      write_rows(t, share, total);
    }
  }
};

template <class C>
FF_KERNEL(C::kThreads)
attention_map_kernel(const FF_GRID_CONSTANT AttentionMapArguments args) {
  const AttentionMapShared<C> shared{shared_memory()};
  const int thread = thread_index();
  if (thread == 0) {
    for (int i = 0; i < C::kStages; i++) {
      mbarrier_init(shared.full(i), 1);
      mbarrier_init(shared.empty(i), C::kConsumerWarps);
    }
    mbarrier_init_fence();
  }
  block_sync();
  if (thread < 128) {
    decrease_registers<C::kProducerRegisters>();
    if (thread == 0) load_for_map(args, shared);
  } else {
    increase_registers<C::kConsumerRegisters>();
    MapConsumer<C>{args, shared, thread / 32 - 4, thread % 32}.run();
  }
}

template <class C>
cudaError_t launch_attention_map(const AttentionMap& p, cudaStream_t stream) {
  AttentionMapArguments args{
      {}, {}, p, ScoreUnits(p), (p.seq_k + C::kBlockN - 1) / C::kBlockN, (p.seq_q + C::kBlockM - 1) / C::kBlockM};
  cudaError_t error = map_rows(&args.q, p.q, p.dim, p.seq_q, p.heads, p.batch, C::kBlockM);
  if (error == cudaSuccess) error = map_rows(&args.k, p.k, p.dim, p.seq_k, p.kv_heads, p.batch, C::kBlockN);
  if (error != cudaSuccess) return error;
  const int queries = p.mode == MapMode::kKeys ? 1 : args.query_tiles, heads = p.mode == MapMode::kFull ? p.heads : 1;
  return launch(attention_map_kernel<C>, p.batch * heads * queries * args.key_tiles, C::kThreads, C::kSharedBytes,
                stream, args);
}

#define FF_INSTANTIATE_ATTENTION_MAP(Element, kHeadDim) \
  template cudaError_t launch_attention_map<AttentionMapConfig<Element, kHeadDim>>(const AttentionMap&, cudaStream_t);

}  // namespace fastfuse::cuda
