// Backward in one pass, for heads of up to 64 columns without softcap, bias and dropout: a block owns a key head. For
// each 128 keys it visits the rows that see them, 128 at a time:
//
//     S = Q K^T,   dP = dO V^T
//     P = exp(s - lse),   dS = P ((dP - center) open - offset)         while dV, dK of the rows before are summed
//     dQ += dS K                                                       dS from registers
//     dV += (P open)^T dO,   dK += dS^T Q                              P and dS through shared memory
//
// Each product is made once, five where two kernels (attention_bwd_queries.cuh, attention_bwd_keys.cuh) make seven. dQ
// of rows that see more than one tile of keys waits in float32 for its turn: one thread adds to an element, in order.
// center and offset: attention_bwd_terms.cuh.
#pragma once

#include "cuda/attention_bwd_heads_config.h"
#include "cuda/attention_bwd_terms.cuh"
#include "cuda/attention_products.cuh"
#include "cuda/attention_scores.cuh"
#include "cuda/ring.cuh"

namespace fastfuse::cuda {

struct AttentionBwdHeadsArguments : AttentionBwdArguments {
  TensorMap q, dout;  // (D, rows, Hk count, B) and with Dv, boxes of (64, kBlockM, 1, 1)
  TensorMap k, v;     // (D, Sk, Hk, B) and with Dv, boxes of (64, kBlockN, 1, 1)
};

// 128 rows of a run, and the tiles of 128 keys that they see: first_tile .. last_tile, or none.
struct HeadRows {
  int run, first;
  KeySpans spans;
  int first_tile, last_tile;
};

struct alignas(16) FourSums {
  float at[4];
};

// Calls visit(rows) for each tile of rows.
template <class Visit>
FF_DEVICE void for_all_rows(const AttentionBwdArguments& args, int batch, const Visit& visit) {
  for (int run = 0; run < args.runs.count; run++) {
    for (int first = 0; first < args.runs.rows; first += 2 * kRunTileRows) {
      const int tile = run * args.runs.tiles + first / kRunTileRows;
      const KeySpans spans = join(key_spans(args, batch, tile), key_spans(args, batch, tile + 1));
      visit(HeadRows{run, first, spans, spans.begin / 128, spans.begin < spans.end ? (spans.end - 1) / 128 : -1});
    }
  }
}

// One thread.
template <class C>
FF_DEVICE void load_for_heads(const AttentionBwdHeadsArguments& args, const AttentionBwdHeadsShared<C>& shared) {
  const int batch = block_index() / args.p.kv_heads, kv_head = block_index() % args.p.kv_heads;
  Ring<C::kStages> queries;
  Ring<1> keys;
  for (int tile = 0; tile * C::kBlockN < args.p.seq_k; tile++) {
    mbarrier_wait(shared.keys_empty(), keys.parity ^ 1);
    mbarrier_arrive_expect(shared.keys_full(), 2 * C::kTileBytes);
    tma_load(&args.k, shared.keys_full(), shared.keys(), 0, tile * C::kBlockN, kv_head, batch);
    tma_load(&args.v, shared.keys_full(), shared.values(), 0, tile * C::kBlockN, kv_head, batch);
    keys.advance();
    for_all_rows(args, batch, [&](const HeadRows& rows) {
      if (tile < rows.first_tile || tile > rows.last_tile) return;
      const uint32_t full = shared.queries_full(queries.stage);
      const int head = kv_head * args.runs.count + rows.run;
      mbarrier_wait(shared.queries_empty(queries.stage), queries.parity ^ 1);
      mbarrier_arrive_expect(full, 2 * C::kTileBytes);
      tma_load(&args.q, full, shared.queries(queries.stage), 0, rows.first, head, batch);
      tma_load(&args.dout, full, shared.dout(queries.stage), 0, rows.first, head, batch);
      queries.advance();
    });
  }
}

template <class C>
struct HeadsConsumer {
  using Element = typename C::Element;
  static constexpr int kScores = C::kBlockN / 2, kSums = C::kHeadDim / 2;

  const AttentionBwdHeadsArguments& args;
  const AttentionBwdHeadsShared<C>& shared;
  int warpgroup, warp, lane;  // 0 or 1, 0..3, 0..31
  Ring<C::kStages> queries;
  Ring<1> keys;

  FF_DEVICE void release(uint32_t empty) const {
    if (lane == 0) mbarrier_arrive(empty);
  }

  FF_DEVICE void sync() const { named_barrier_sync(1, C::kConsumerThreads); }

  // x rounded, to [2][128][64]: the thread's rows and pairs of keys. Row r has its piece p of 16 bytes at p ^ r % 8, so
  // that one base serves all.
  FF_DEVICE void share(const uint32_t (&x)[kScores / 2], uint32_t to) const {
    const int row = warpgroup * 64 + warp * 16 + lane / 4;
    const uint32_t base = to + uint32_t(row * 128 + lane / 4 * 16 + lane % 4 * 4);
#pragma unroll
    for (int i = 0; i < kScores / 2; i++) {
      const uint32_t piece = i / 2 % 8, slab = i / 16;
      store_shared((base ^ piece << 4) + slab * C::kTileBytes + i % 2 * 1024, x[i]);
    }
  }

  // d += x^T rows over 128 rows: x the warpgroup's slab of keys.
  FF_DEVICE void multiply_shared(float (&d)[kSums], uint32_t x, uint32_t rows) const {
    const uint64_t first_x = matrix_descriptor(x + uint32_t(warpgroup) * C::kTileBytes, 1024, Swizzle::k128);
    const uint64_t first_row = matrix_descriptor(rows, 1024, Swizzle::k128);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < C::kBlockM / 16; step++) {
      wgmma<Element, Major::kOutput, Major::kOutput>(d, advanced(first_x, step * 2048),
                                                     advanced(first_row, step * 2048), true);
    }
    wgmma_commit();
  }

  // The i-th four of the thread's sums of a row, while they wait for other tiles of keys.
  FF_DEVICE FourSums* waiting(const QueryRow& row, int batch, int i) const {
    float* sums = args.p.dq_sums + row_index(args.p, batch, row) * C::kHeadDim;
    return reinterpret_cast<FourSums*>(sums + i * 16 + lane % 4 * 4);
  }

  // dQ so far; `before`: other tiles of keys have added to it.
  FF_DEVICE void begin_dq(const QueryRow (&rows)[2], int batch, bool before, float (&dq)[kSums]) const {
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int i = 0; i < kSums / 8; i++) {
        FourSums sums{};
        if (before && rows[h].exists) sums = *waiting(rows[h], batch, i);
#pragma unroll
        for (int c = 0; c < 4; c++) dq[8 * i + c / 2 * 4 + 2 * h + c % 2] = sums.at[c];
      }
    }
  }

  // `more`: other tiles of keys will add to it.
  FF_DEVICE void end_dq(const QueryRow (&rows)[2], int batch, bool more, const float (&dq)[kSums]) const {
    const AttentionBackward& p = args.p;
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int i = 0; i < kSums / 8; i++) {
        const float* pair = dq + 8 * i + 2 * h;
        if (more && rows[h].exists)
          store_global(waiting(rows[h], batch, i), FourSums{pair[0], pair[1], pair[4], pair[5]});
      }
      const int64_t row = rows[h].exists ? row_index(p, batch, rows[h]) : 0;
      if (!more) write_row(dq, h, p.scale, static_cast<Element*>(p.dq) + row * p.dim, p.dim, rows[h].exists);
    }
  }

  FF_DEVICE void add_gate_share(const QueryRow (&rows)[2], int batch, bool before, const float (&gate_share)[2]) const {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float sum = quad_sum(gate_share[h]);
      if (!rows[h].exists || lane % 4 > 0) continue;
      float* at = RowScratch(args.p).gate_share + row_index(args.p, batch, rows[h]);
      store_global(at, before ? *at + sum : sum);
    }
  }

  FF_DEVICE void find_rows(const HeadRows& tile, int batch, int kv_head, QueryRow (&rows)[2],
                           RowTerms (&terms)[2]) const {
    const int r = tile.first + warpgroup * 64 + warp * 16 + lane / 4;
#pragma unroll
    for (int h = 0; h < 2; h++) find_row(args, batch, kv_head, tile.run, r + 8 * h, rows[h], terms[h]);
  }

  // dV and dK of the rows whose P and dS are shared, or, while those are 0, nothing. Two batches.
  FF_DEVICE void multiply_before(int before, float (&dk)[kSums], float (&dv)[kSums]) const {
    multiply_shared(dv, shared.weights(), shared.dout(before));
    multiply_shared(dk, shared.gradients(), shared.queries(before));
  }

  FF_DEVICE void run_rows(const HeadRows& tile, int key_tile, int batch, int kv_head, int before, float (&dk)[kSums],
                          float (&dv)[kSums]) {
    const AttentionBackward& p = args.p;
    const uint32_t own = uint32_t(warpgroup) * 64 * 128;
    const int first_key = key_tile * C::kBlockN;
    QueryRow rows[2];
    RowTerms terms[2];
    find_rows(tile, batch, kv_head, rows, terms);
    const float open[2] = {row_open(p, rows[0]), row_open(p, rows[1])};
    float s[kScores], dp[kScores], dq[kSums], gate_share[2] = {0, 0};
    uint32_t weights[kScores / 2], gradients[kScores / 2];
    mbarrier_wait(shared.queries_full(queries.stage), queries.parity);
    multiply_rows<Element, C::kHeadDim>(s, shared.queries(queries.stage) + own, 0, shared.keys(), 0);
    multiply_rows<Element, C::kHeadDim>(dp, shared.dout(queries.stage) + own, 0, shared.values(), 0);
    multiply_before(before, dk, dv);
    wgmma_wait<2>();  // S and dP
    if (first_key < tile.spans.all_begin || first_key + C::kBlockN > tile.spans.all_end) hide_keys(rows, first_key, s);
#pragma unroll
    for (int i = 0; i < kScores; i++) {
      const RowTerms& row = terms[i / 2 % 2];
      s[i] = exp2_approx(fused_multiply_add(s[i], args.units.scale, -row.lse) - row.lse_rest);
    }
    const QueryTile place{batch, kv_head, 0, 0, 0};
    improve_terms(args, place, rows, first_key, s, dp, open, terms);
#pragma unroll
    for (int i = 0; i < kScores / 2; i++) {
      const int h = i % 2;
      float p_open[2], ds[2];
#pragma unroll
      for (int c = 0; c < 2; c++) {
        const float prob = s[2 * i + c], received = dp[2 * i + c];
        gate_share[h] = fused_multiply_add(prob, received, gate_share[h]);
        p_open[c] = prob * open[h];
        ds[c] = prob * fused_multiply_add(received - terms[h].center, open[h], -terms[h].offset);
      }
      weights[i] = pack_pair<Element>(p_open[0], p_open[1]);
      gradients[i] = pack_pair<Element>(ds[0], ds[1]);
    }
    wgmma_wait<0>();  // dV's and dK's products
    if (before != queries.stage) release(shared.queries_empty(before));
    sync();
    share(weights, shared.weights());
    begin_dq(rows, batch, p.dq && key_tile > tile.first_tile, dq);
    share(gradients, shared.gradients());
    fence_async_proxy();
    multiply_weights<Element>(dq, gradients, shared.keys(), 0, true);
    sync();
    wgmma_wait<0>();
    if (p.dq) end_dq(rows, batch, key_tile < tile.last_tile, dq);
    if (p.dgate) add_gate_share(rows, batch, key_tile > tile.first_tile, gate_share);
  }

  // Rows that see nothing.
  FF_DEVICE void write_zeros(const HeadRows& tile, int batch, int kv_head) const {
    QueryRow rows[2];
    RowTerms terms[2];
    find_rows(tile, batch, kv_head, rows, terms);
    float dq[kSums];
    const float gate_share[2] = {0, 0};
    begin_dq(rows, batch, false, dq);
    if (args.p.dq) end_dq(rows, batch, false, dq);
    if (args.p.dgate) add_gate_share(rows, batch, false, gate_share);
  }

  FF_DEVICE void run() {
    const AttentionBackward& p = args.p;
    const int batch = block_index() / p.kv_heads, kv_head = block_index() % p.kv_heads;
    for_all_rows(args, batch, [&](const HeadRows& rows) {
      if (rows.last_tile < 0) write_zeros(rows, batch, kv_head);
    });
    for (int key_tile = 0; key_tile * C::kBlockN < p.seq_k; key_tile++) {
      float dk[kSums], dv[kSums];
      uint32_t nothing[kScores / 2];
#pragma unroll
      for (int i = 0; i < kSums; i++) dk[i] = dv[i] = 0;
#pragma unroll
      for (int i = 0; i < kScores / 2; i++) nothing[i] = 0;
      share(nothing, shared.weights());
      share(nothing, shared.gradients());
      fence_async_proxy();
      sync();
      mbarrier_wait(shared.keys_full(), keys.parity);
      int before = queries.stage, visited = 0;
      for_all_rows(args, batch, [&](const HeadRows& rows) {
        if (key_tile < rows.first_tile || key_tile > rows.last_tile) return;
        run_rows(rows, key_tile, batch, kv_head, before, dk, dv);
        before = queries.stage;
        queries.advance();
        visited++;
      });
      if (visited > 0) {
        multiply_before(before, dk, dv);
        wgmma_wait<0>();
        release(shared.queries_empty(before));
      }
      sync();  // also where no row was visited: everyone has seen keys_full
      release(shared.keys_empty());
      keys.advance();
      const int key = key_tile * C::kBlockN + warpgroup * 64 + warp * 16 + lane / 4;
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int64_t row = (int64_t(batch) * p.kv_heads + kv_head) * p.seq_k + key + 8 * h;
        const bool exists = key + 8 * h < p.seq_k;
        if (p.dk) write_row(dk, h, p.scale, static_cast<Element*>(p.dk) + row * p.dim, p.dim, exists);
        if (p.dv) write_row(dv, h, 1.0f, static_cast<Element*>(p.dv) + row * p.dim_v, p.dim_v, exists);
      }
    }
  }
};

template <class C>
FF_KERNEL(C::kThreads)
attention_bwd_heads_kernel(const FF_GRID_CONSTANT AttentionBwdHeadsArguments args) {
  const AttentionBwdHeadsShared<C> shared{shared_memory()};
  const int thread = thread_index();
  if (thread == 0) {
    mbarrier_init(shared.keys_full(), 1);
    mbarrier_init(shared.keys_empty(), C::kConsumerWarps);
    for (int i = 0; i < C::kStages; i++) {
      mbarrier_init(shared.queries_full(i), 1);
      mbarrier_init(shared.queries_empty(i), C::kConsumerWarps);
    }
    mbarrier_init_fence();
  }
  block_sync();
  if (thread < 128) {
    decrease_registers<C::kProducerRegisters>();
    if (thread == 0) load_for_heads(args, shared);
  } else {
    increase_registers<C::kConsumerRegisters>();
    HeadsConsumer<C>{args, shared, warp_uniform(thread / 128) - 1, thread / 32 % 4, thread % 32, {}, {}}.run();
  }
}

}  // namespace fastfuse::cuda
