// Forward for few queries: the heads and beams that share a key head fill one tile of 64 rows, and each block reads its
// part of the keys once for all of them.
//
//     block    its part of the keys that the rows see:  O_s = sum_j exp2(x_j - M_s) v_j,   M_s,   l_s
//     merge    M = max_s M_s;   l = sum_s l_s exp2(M_s - M);   O = sum_s O_s exp2(M_s - M), in order of s
//
// The tensor cores do four times the work that 16 rows need and still wait for memory.
#pragma once

#include "cuda/attention_decode_config.h"
#include "cuda/attention_products.cuh"
#include "cuda/attention_softmax.cuh"
#include "cuda/attention_tensor_map.h"
#include "cuda/ring.cuh"
#include "fastfuse/cuda_attention_decode.h"

namespace fastfuse::cuda {

struct AttentionDecodeArguments {
  TensorMap k, v;  // (D, Sk, Hk, B) and (Dv, Sk, Hk, B), boxes of (64, kBlockN, 1, 1)
  AttentionForward p;
  ScoreUnits units;
  int splits;
  float* partial;  // O [splits, B, H, Sq, Dv], then M and l [splits, B, H, Sq, 2]
  uint32_t dropout_threshold;
};

// Every warp finds the same.
template <class C>
FF_DEVICE QueryTile decode_tile(const AttentionDecodeArguments& args) {
  const AttentionProblem& p = args.p;
  const int pair = block_index() / args.splits, split = block_index() % args.splits, lane = thread_index() % 32;
  QueryTile t{pair / p.kv_heads, pair % p.kv_heads, 0, p.seq_k, 0};
  for (int i = lane; i < C::kBlockM; i += 32) {
    const QueryRow row = query_row(p, t, i);
    if (!row.exists || row.lo >= row.hi) continue;
    t.key_begin = smaller(t.key_begin, row.lo);
    t.key_end = larger(t.key_end, row.hi);
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    t.key_begin = smaller(t.key_begin, shuffle_xor(t.key_begin, mask));
    t.key_end = larger(t.key_end, shuffle_xor(t.key_end, mask));
  }
  const int begin = t.key_begin / 8 * 8, end = larger(begin, t.key_end);
  const int tiles = (end - begin + C::kBlockN - 1) / C::kBlockN, part = (tiles + args.splits - 1) / args.splits;
  t.key_begin = smaller(begin + split * part * C::kBlockN, end);
  t.key_end = smaller(t.key_begin + part * C::kBlockN, end);
  return t;
}

// One thread.
template <class C>
FF_DEVICE void load_for_decode(const AttentionDecodeArguments& args, const AttentionDecodeShared<C>& shared,
                               const QueryTile& t) {
  Ring<C::kStages> ring;
  for (int key = t.key_begin; key < t.key_end; key += C::kBlockN, ring.advance()) {
    mbarrier_wait(shared.keys_empty(ring.stage), ring.parity ^ 1);
    mbarrier_arrive_expect(shared.keys_full(ring.stage), C::kTileBytes);
#pragma unroll
    for (int slab = 0; slab < C::kSlabs; slab++)
      tma_load(&args.k, shared.keys_full(ring.stage), shared.keys(ring.stage) + slab * C::kSlabBytes, slab * 64, key,
               t.kv_head, t.batch);
    mbarrier_wait(shared.values_empty(ring.stage), ring.parity ^ 1);
    mbarrier_arrive_expect(shared.values_full(ring.stage), C::kTileBytes);
#pragma unroll
    for (int slab = 0; slab < C::kSlabs; slab++)
      tma_load(&args.v, shared.values_full(ring.stage), shared.values(ring.stage) + slab * C::kSlabBytes, slab * 64,
               key, t.kv_head, t.batch);
  }
}

template <class C>
struct DecodeConsumer {
  using Element = typename C::Element;
  static constexpr int kScores = C::kBlockN / 2, kSums = C::kHeadDim / 2;

  const AttentionDecodeArguments& args;
  const AttentionDecodeShared<C>& shared;
  int warp, lane;  // 0..3, 0..31

  FF_DEVICE void release(uint32_t empty) const {
    if (lane == 0) mbarrier_arrive(empty);
  }

  // 16 bytes a thread at a time; rows past the stack and columns past D are 0.
  FF_DEVICE void load_queries(const QueryTile& t) const {
    constexpr int kPieces = C::kHeadDim / 8;
    const AttentionProblem& p = args.p;
    const auto* data = static_cast<const Element*>(p.q.data) + t.batch * p.q.stride[0];
    for (int i = thread_index(); i < C::kBlockM * kPieces; i += C::kConsumerThreads) {
      const int piece = i % kPieces;
      const QueryRow row = query_row(p, t, i / kPieces);
      uint4 value{0, 0, 0, 0};
      if (row.exists && piece * 8 < p.dim)
        value = load_global(
            reinterpret_cast<const uint4*>(data + row.head * p.q.stride[1] + row.query * p.q.stride[2] + piece * 8));
      store_shared(
          swizzled(shared.queries() + piece / 8 * C::kSlabBytes + i / kPieces * 128 + piece % 8 * 16, Swizzle::k128),
          value);
    }
    fence_async_proxy();
    named_barrier_sync(1, C::kConsumerThreads);
  }

  FF_DEVICE void write_partial(const QueryTile& t, const QueryRow (&rows)[2], const Softmax& softmax,
                               const float (&o)[kSums]) const {
    const AttentionForward& p = args.p;
    const int64_t all = int64_t(p.batch) * p.heads * p.seq_q, split = block_index() % args.splits;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float sum = softmax.sum[h];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      if (!rows[h].exists) continue;
      const int64_t at = split * all + (int64_t(t.batch) * p.heads + rows[h].head) * p.seq_q + rows[h].query;
      float* ends = args.partial + args.splits * all * p.dim_v + 2 * at;
      if (lane % 4 == 0) store_global(ends, softmax.max[h]);
      if (lane % 4 == 1) store_global(ends + 1, sum);
      float* to = args.partial + at * p.dim_v;
#pragma unroll
      for (int j = 0; j < kSums / 4; j++) {
#pragma unroll
        for (int c = 0; c < 2; c++) {
          const int column = 8 * j + lane % 4 * 2 + c;
          if (column < p.dim_v) store_global(to + column, o[4 * j + 2 * h + c]);
        }
      }
    }
  }

  FF_DEVICE void run(const QueryTile& t) const {
    const AttentionForward& p = args.p;
    const uint64_t seed = p.dropout_p > 0 ? uint64_t(load_global(p.seed)) : 0;
    const QueryRow rows[2] = {query_row(p, t, warp * 16 + lane / 4), query_row(p, t, warp * 16 + lane / 4 + 8)};
    Softmax softmax;
    Ring<C::kStages> ring;
    float o[kSums], s[kScores], rescale[2];
    uint32_t weights[kScores / 2];
#pragma unroll
    for (int i = 0; i < kSums; i++) o[i] = 0;
#pragma unroll
    for (int i = 0; i < kScores / 2; i++) weights[i] = 0;
    const bool works = warp * 16 < p.heads / p.kv_heads * p.seq_q;  // the other warps only take part in the products
    load_queries(t);
    for (int key = t.key_begin; key < t.key_end; key += C::kBlockN, ring.advance()) {
      mbarrier_wait(shared.keys_full(ring.stage), ring.parity);
      multiply_rows<Element, C::kHeadDim>(s, shared.queries(), C::kSlabBytes, shared.keys(ring.stage), C::kSlabBytes);
      wgmma_wait<0>();
      release(shared.keys_empty(ring.stage));
      if (works) {
        scale_scores(args.units, s);
        if (p.bias) add_bias_of<Element>(p, t, rows, key, s);
        hide_keys(rows, key, s);
        softmax.update(s, 1.0f, rescale);
        if (p.dropout_p > 0) drop(p, seed, args.dropout_threshold, t, rows, key, s);
        round_weights<Element>(s, weights);
#pragma unroll
        for (int i = 0; i < kSums; i++) o[i] *= rescale[i / 2 % 2];
      }
      mbarrier_wait(shared.values_full(ring.stage), ring.parity);
      multiply_weights<Element>(o, weights, shared.values(ring.stage), C::kSlabBytes, true);
      wgmma_wait<0>();
      release(shared.values_empty(ring.stage));
    }
    write_partial(t, rows, softmax, o);
  }
};

template <class C>
FF_KERNEL(C::kThreads)
attention_decode_kernel(const FF_GRID_CONSTANT AttentionDecodeArguments args) {
  const AttentionDecodeShared<C> shared{shared_memory()};
  const int thread = thread_index();
  if (thread == 0) {
    for (int i = 0; i < C::kStages; i++) {
      mbarrier_init(shared.keys_full(i), 1);
      mbarrier_init(shared.values_full(i), 1);
      mbarrier_init(shared.keys_empty(i), C::kConsumerWarps);
      mbarrier_init(shared.values_empty(i), C::kConsumerWarps);
    }
    mbarrier_init_fence();
  }
  block_sync();
  const QueryTile t = decode_tile<C>(args);
  if (thread < C::kConsumerThreads) {
    DecodeConsumer<C>{args, shared, thread / 32, thread % 32}.run(t);
  } else if (thread == C::kConsumerThreads) {
    load_for_decode(args, shared, t);
  }
}

constexpr int kMergeThreads = 128;

// A warp for each row.
template <class Element>
FF_KERNEL(kMergeThreads)
attention_decode_merge_kernel(const FF_GRID_CONSTANT AttentionDecodeArguments args) {
  const AttentionForward& p = args.p;
  const int lane = thread_index() % 32;
  const int64_t all = int64_t(p.batch) * p.heads * p.seq_q;
  const int64_t row = int64_t(block_index()) * (kMergeThreads / 32) + thread_index() / 32;
  if (row >= all) return;
  const float* ends = args.partial + args.splits * all * p.dim_v;
  float max = minus_infinity(), sum = 0;
  for (int s = 0; s < args.splits; s++) max = maximum(max, load_global(ends + 2 * (s * all + row)));
  const float offset = max == minus_infinity() ? 0.0f : max;
  for (int s = 0; s < args.splits; s++) {
    const float* end = ends + 2 * (s * all + row);
    sum = fused_multiply_add(load_global(end + 1), exp2_approx(load_global(end) - offset), sum);
  }
  const RowEnd end = row_end(p, int(row / p.seq_q % p.heads), max, sum);
  const float factor = end.factor * float(1 / (1 - p.dropout_p));
  if (lane == 0) {
    store_global(p.lse + row, end.lse);
    store_global(p.lse + all + row, end.rest);
  }
  for (int column = 2 * lane; column < p.dim_v; column += 64) {
    float o[2] = {0, 0};
    for (int s = 0; s < args.splits; s++) {
      const float share = exp2_approx(load_global(ends + 2 * (s * all + row)) - offset);
      const float* at = args.partial + (s * all + row) * p.dim_v + column;
      o[0] = fused_multiply_add(load_global(at), share, o[0]);
      o[1] = fused_multiply_add(load_global(at + 1), share, o[1]);
    }
    store_global(reinterpret_cast<uint32_t*>(static_cast<Element*>(p.out) + row * p.dim_v + column),
                 pack_pair<Element>(o[0] * factor, o[1] * factor));
  }
}

template <class C>
cudaError_t launch_attention_decode(const AttentionForward& p, int splits, float* partial, cudaStream_t stream) {
  AttentionDecodeArguments args{{}, {}, p, ScoreUnits(p), splits, partial, dropout_threshold(p)};
  cudaError_t error = map_rows(&args.k, p.k, p.dim, p.seq_k, p.kv_heads, p.batch, C::kBlockN);
  if (error == cudaSuccess) error = map_rows(&args.v, p.v, p.dim_v, p.seq_k, p.kv_heads, p.batch, C::kBlockN);
  if (error == cudaSuccess)
    error =
        launch(attention_decode_kernel<C>, p.batch * p.kv_heads * splits, C::kThreads, C::kSharedBytes, stream, args);
  if (error != cudaSuccess) return error;
  const int64_t rows = int64_t(p.batch) * p.heads * p.seq_q, warps = kMergeThreads / 32;
  return launch(attention_decode_merge_kernel<typename C::Element>, int((rows + warps - 1) / warps), kMergeThreads, 0,
                stream, args);
}

#define FF_INSTANTIATE_ATTENTION_DECODE(Element, kHeadDim)                                                             \
  template cudaError_t launch_attention_decode<AttentionDecodeConfig<Element, kHeadDim>>(const AttentionForward&, int, \
                                                                                         float*, cudaStream_t);

}  // namespace fastfuse::cuda
