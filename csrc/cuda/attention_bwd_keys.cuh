// Backward for keys: a block owns 128 keys (64 beyond 128 columns) and visits the rows that see them. Scores are
// transposed, [keys][rows], so that the sums of one product are the operand of the next without leaving the registers:
//
//     S^T = K Q^T,   dP^T = V dO^T
//     P = exp(s - lse),    dV += (P keep open / (1 - dropout_p))^T dO      runs while dS is made
//     dS = P ((dP keep / (1 - dropout_p) - center) open - offset),    dK += (dS slope)^T Q
//
// center and offset of each row are those of attention_bwd_rows.cuh and attention_bwd_queries.cuh.
#pragma once

#include <type_traits>

#include "cuda/attention_bwd_config.h"
#include "cuda/attention_bwd_tile.cuh"
#include "cuda/attention_products.cuh"
#include "cuda/attention_scores.cuh"
#include "cuda/ring.cuh"

namespace fastfuse::cuda {

struct AttentionBwdKeysArguments : AttentionBwdArguments {
  TensorMap k, v;     // (D, Sk, Hk, B) and with Dv, boxes of (64, kBlockN, 1, 1)
  TensorMap q, dout;  // (D, rows, Hk count, B) and with Dv, boxes of (64, kBlockM, 1, 1)
  int blocks;         // tiles of a key head
};

struct KeysTile {
  int batch, kv_head;
  int first;  // key
};

template <class C>
FF_DEVICE KeysTile keys_tile(const AttentionBwdKeysArguments& args, int work) {
  const int pair = work / args.blocks;
  return {pair / args.p.kv_heads, pair % args.p.kv_heads, work % args.blocks * C::kBlockN};
}

// kBlockM rows of a run.
struct RowsTile {
  int run, first;
  KeySpans spans;
};

// Calls visit(rows) for each tile of rows of which some see keys of this tile.
template <class C, class Visit>
FF_DEVICE void for_each_rows(const AttentionBwdKeysArguments& args, const KeysTile& t, const Visit& visit) {
  static_assert(C::kBlockM == kRunTileRows);
  for (int run = 0; run < args.runs.count; run++) {
    for (int first = 0; first < args.runs.rows; first += kRunTileRows) {
      const KeySpans spans = key_spans(args, t.batch, run * args.runs.tiles + first / kRunTileRows);
      if (spans.begin < t.first + C::kBlockN && spans.end > t.first) visit(RowsTile{run, first, spans});
    }
  }
}

// One thread.
template <class C>
FF_DEVICE void load_for_keys(const AttentionBwdKeysArguments& args, const AttentionBwdKeysShared<C>& shared) {
  Ring<C::kStages> queries;
  const KeysTile t = keys_tile<C>(args, block_index());
  mbarrier_arrive_expect(shared.keys_full(), 2 * C::kKeyBytes);
#pragma unroll
  for (int slab = 0; slab < C::kSlabs; slab++) {
    const uint32_t at = slab * C::kKeySlabBytes;
    tma_load(&args.k, shared.keys_full(), shared.keys() + at, slab * 64, t.first, t.kv_head, t.batch);
    tma_load(&args.v, shared.keys_full(), shared.values() + at, slab * 64, t.first, t.kv_head, t.batch);
  }
  for_each_rows<C>(args, t, [&](const RowsTile& rows) {
    const uint32_t full = shared.queries_full(queries.stage);
    mbarrier_wait(shared.queries_empty(queries.stage), queries.parity ^ 1);
    mbarrier_arrive_expect(full, 2 * C::kQueryBytes);
    const int head = t.kv_head * args.runs.count + rows.run;
#pragma unroll
    for (int slab = 0; slab < C::kSlabs; slab++) {
      const uint32_t at = slab * C::kQuerySlabBytes;
      tma_load(&args.q, full, shared.queries(queries.stage) + at, slab * 64, rows.first, head, t.batch);
      tma_load(&args.dout, full, shared.dout(queries.stage) + at, slab * 64, rows.first, head, t.batch);
    }
    queries.advance();
  });
}

// A thread for each row of the tile.
template <class C>
FF_DEVICE void load_rows(const AttentionBwdKeysArguments& args, const AttentionBwdKeysShared<C>& shared, int thread) {
  Ring<C::kStages> queries;
  const KeysTile t = keys_tile<C>(args, block_index());
  for_each_rows<C>(args, t, [&](const RowsTile& rows) {
    mbarrier_wait(shared.queries_empty(queries.stage), queries.parity ^ 1);
    QueryRow row;
    RowTerms terms;
    find_row(args, t.batch, t.kv_head, rows.run, rows.first + thread, row, terms);
    const uint32_t at = shared.rows(queries.stage) + thread / 2 * 16 + thread % 2 * 4;
    store_shared(at + C::kLse, terms.lse);
    store_shared(at + C::kLse + 8, terms.lse_rest);
    store_shared(at + C::kCenter, terms.center);
    store_shared(at + C::kCenter + 8, terms.offset);
    store_shared(at + C::kSees, row.lo);
    store_shared(at + C::kSees + 8, row.hi);
    store_shared(at + C::kPlace, row.query);
    store_shared(at + C::kPlace + 8, row.head);
    store_shared(shared.rows(queries.stage) + C::kOpen + 4 * thread, row_open(args.p, row));
    const bool all_see = t.first >= rows.spans.all_begin && t.first + C::kBlockN <= rows.spans.all_end;
    if (thread == 0) store_shared(shared.rows(queries.stage) + C::kAllSee, int(all_see));
    mbarrier_arrive(shared.queries_full(queries.stage));
    queries.advance();
  });
}

// Of two neighbouring rows: two numbers each.
template <class T>
struct alignas(16) RowPair {
  T first[2], second[2];
};

template <class C>
struct KeysConsumer {
  using Element = typename C::Element;
  static constexpr int kScores = C::kBlockM / 2, kSums = C::kColumns / 2;
  static constexpr int kPairs = C::kBlockM / 8;                         // of rows, a thread's
  static constexpr int kWords = C::kGeneral ? (kScores + 31) / 32 : 1;  // of a bit for each score
  static constexpr int kBiases = C::kHeadDim == 64 ? 8 : 4;             // of a thread, under way at once

  const AttentionBwdKeysArguments& args;
  const AttentionBwdKeysShared<C>& shared;
  int warpgroup, warp, lane;  // 0 or 1, 0..3, 0..31
  Ring<C::kStages> queries;

  FF_DEVICE void release(uint32_t empty) const {
    if (lane == 0) mbarrier_arrive(empty);
  }

  FF_DEVICE int first_row_of_share() const { return C::kShares == 1 ? warpgroup * 64 : 0; }

  // Pair j of the thread's rows: 8 j + 2 (lane % 4) + 0, 1. Element 4 j + 2 h + c is row c of it and key `key` + 8 h.
  template <class T>
  FF_DEVICE RowPair<T> row_pair(int field, int j) const {
    return load_shared<RowPair<T>>(shared.rows(queries.stage) + uint32_t(field + (4 * j + lane % 4) * 16));
  }

  FF_DEVICE float open_of(int j, int c) const {
    return load_shared<float>(shared.rows(queries.stage) + uint32_t(C::kOpen + (8 * j + lane % 4 * 2 + c) * 4));
  }

  // Of pairs j.., as elements. A branch, and none between the loads: these are under way at once, and no more, which is
  // what registers last. bias: of the batch.
  template <class Bias>
  FF_DEVICE void load_biases(const Bias* bias, int key, int j, float (&x)[kBiases]) const {
    const AttentionProblem& p = args.p;
    const int64_t* stride = p.bias_stride;
#pragma unroll
    for (int i = 0; i < kBiases; i++) x[i] = 0;
    if (recomputed(key) >= p.seq_k) return;
#pragma unroll
    for (int i = 0; i < kBiases; i++) {
      const RowPair<int> place = row_pair<int>(C::kPlace, j + i / 4);  // query and head
      const int at = smaller(key + i / 2 % 2 * 8, p.seq_k - 1);
      x[i] = bias_at(bias + place.second[i % 2] * stride[1] + place.first[i % 2] * stride[2] + at * stride[3]);
    }
  }

  FF_DEVICE static bool is_kept(const uint32_t (&kept)[kWords], int i) { return kept[i / 32] >> (i % 32) & 1; }

  // Bit i % 32 of word i / 32: whether dropout keeps element i. Of the four threads that share four keys of the same
  // rows, each draws for one of four rows.
  FF_DEVICE void find_kept(const KeysTile& t, int key, uint32_t (&kept)[kWords]) const {
    const int member = lane / 4 % 4;
    const uint64_t seed = uint64_t(load_global(args.p.seed));
#pragma unroll
    for (int i = 0; i < kWords; i++) kept[i] = 0;
#pragma unroll
    for (int j = 0; j < kPairs; j += 2) {
      const RowPair<int> place = row_pair<int>(C::kPlace, j + member / 2);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        uint32_t words[4] = {uint32_t((key + 8 * h) / 4), uint32_t(member % 2 ? place.first[1] : place.first[0]),
                             uint32_t(t.batch * args.p.heads + (member % 2 ? place.second[1] : place.second[0])), 0};
        philox(words, seed);
        uint32_t mine = 0;
#pragma unroll
        for (int w = 0; w < 4; w++) mine |= uint32_t(words[w] >= args.dropout_threshold) << (4 * member + w);
        mine |= shuffle_xor(mine, 4);
        mine |= shuffle_xor(mine, 8);
        mine >>= member;
#pragma unroll
        for (int m = 0; m < 4; m++) {
          const int at = 4 * (j + m / 2) + 2 * h + m % 2;
          kept[at / 32] |= (mine >> (4 * m) & 1) << (at % 32);
        }
      }
    }
  }

  FF_DEVICE void find_weights(const KeysTile& t, int key, const uint32_t (&kept)[kWords], float (&s)[kScores],
                              uint32_t (&weights)[kScores / 2]) const {
    if (!C::kGeneral || !args.p.bias) return find_weights<void>(t, key, kept, s, weights);
    switch (args.p.bias_dtype) {
      case DType::kFloat32:
        return find_weights<float>(t, key, kept, s, weights);
      case DType::kBool:
        return find_weights<Visible>(t, key, kept, s, weights);
      default:
        return find_weights<Element>(t, key, kept, s, weights);
    }
  }

  // Products to P^T, rounded, and in place of them P^T times softcap's slope. Bias: its type, or void.
  template <class Bias>
  FF_DEVICE void find_weights(const KeysTile& t, int key, const uint32_t (&kept)[kWords], float (&s)[kScores],
                              uint32_t (&weights)[kScores / 2]) const {
    const AttentionProblem& p = args.p;
    const float inverse = args.softcap_inverse;
    const bool all_see = load_shared<int>(shared.rows(queries.stage) + C::kAllSee);
    const Bias* bias = static_cast<const Bias*>(p.bias);
    float biases[kBiases];
    if constexpr (!std::is_void_v<Bias>) bias += t.batch * p.bias_stride[0];
    const auto hide = [&](int j, float* x) {
      const RowPair<int> sees = row_pair<int>(C::kSees, j);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int at = key + i / 2 * 8;
        if (at < sees.first[i % 2] || at >= sees.second[i % 2]) x[i] = minus_infinity();
      }
    };
    constexpr bool kHidesFirst = !C::kGeneral && C::kHeadDim <= 128;  // by themselves, where registers last for it
    if constexpr (C::kGeneral) scale_scores(args.units, s);
    if (kHidesFirst && !all_see) {
#pragma unroll
      for (int j = 0; j < kPairs; j++) hide(j, s + 4 * j);
    }
#pragma unroll
    for (int j = 0; j < kPairs; j++) {
      const RowPair<float> lse = row_pair<float>(C::kLse, j);
      float x[4], slope[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        x[i] = s[4 * j + i];
        slope[i] = 1.0f - x[i] * inverse * (x[i] * inverse);
      }
      if constexpr (!std::is_void_v<Bias>) {
        if (4 * j % kBiases == 0) load_biases(bias, key, j, biases);
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] += biases[4 * j % kBiases + i];
      }
      if (!kHidesFirst && !all_see) hide(j, x);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float factor = C::kGeneral ? 1.0f : args.units.scale;
        x[i] = exp2_approx(fused_multiply_add(x[i], factor, -lse.first[i % 2]) - lse.second[i % 2]);
        s[4 * j + i] = C::kGeneral ? x[i] * slope[i] : x[i];
        if (C::kGeneral) x[i] = is_kept(kept, 4 * j + i) ? x[i] * args.kept_share : 0.0f;
        if (C::kRoomy || p.gate) x[i] *= open_of(j, i % 2);
      }
      weights[2 * j] = pack_pair<Element>(x[0], x[1]);
      weights[2 * j + 1] = pack_pair<Element>(x[2], x[3]);
    }
  }

  // dP^T and P^T slope to (dS slope)^T, rounded.
  FF_DEVICE void find_gradients(const uint32_t (&kept)[kWords], const float (&s)[kScores], const float (&dp)[kScores],
                                uint32_t (&gradients)[kScores / 2]) const {
#pragma unroll
    for (int j = 0; j < kPairs; j++) {
      const RowPair<float> terms = row_pair<float>(C::kCenter, j);
      float ds[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float received = dp[4 * j + i];
        if (C::kGeneral) received = is_kept(kept, 4 * j + i) ? received * args.kept_share : 0.0f;
        received -= terms.first[i % 2];
        if (C::kRoomy || args.p.gate) received *= open_of(j, i % 2);
        ds[i] = s[4 * j + i] * (received - terms.second[i % 2]);
      }
      gradients[2 * j] = pack_pair<Element>(ds[0], ds[1]);
      gradients[2 * j + 1] = pack_pair<Element>(ds[2], ds[3]);
    }
  }

  FF_DEVICE void run_rows(const KeysTile& t, int key, int before, float (&dk)[kSums], float (&dv)[kSums]) {
    const uint32_t own = uint32_t(first_row_of_share()) * 128;
    const uint32_t columns = C::kShares == 1 ? 0 : uint32_t(warpgroup) * (C::kColumns / 64) * C::kQuerySlabBytes;
    const uint32_t q = shared.queries(queries.stage), dout = shared.dout(queries.stage);
    float s[kScores], dp[kScores];
    uint32_t weights[kScores / 2], kept[kWords];
    mbarrier_wait(shared.queries_full(queries.stage), queries.parity);
    multiply_rows<Element, C::kHeadDim>(s, shared.keys() + own, C::kKeySlabBytes, q, C::kQuerySlabBytes);
    const auto multiply_values = [&] {
      multiply_rows<Element, C::kHeadDim>(dp, shared.values() + own, C::kKeySlabBytes, dout, C::kQuerySlabBytes);
    };
    if constexpr (C::kRoomy) multiply_values();
    wgmma_wait<C::kRoomy ? 2 : 1>();  // dV's and dK's products of the rows before
    if (before >= 0) release(shared.queries_empty(before));
    const bool drops = C::kGeneral && args.p.dropout_p > 0;
#pragma unroll
    for (int i = 0; i < kWords; i++) kept[i] = ~0u;
    wgmma_wait<C::kRoomy ? 1 : 0>();  // S
    if (drops) find_kept(t, key, kept);
    find_weights(t, key, kept, s, weights);
    if constexpr (!C::kRoomy) multiply_values();
    multiply_weights<Element>(dv, weights, dout + columns, C::kQuerySlabBytes, true);
    wgmma_wait<C::kGeneral ? 0 : 1>();  // dP's product
    uint32_t gradients[kScores / 2];
    find_gradients(kept, s, dp, gradients);
    multiply_weights<Element>(dk, gradients, q + columns, C::kQuerySlabBytes, true);
    if constexpr (C::kGeneral) wgmma_wait<0>();  // registers are short
  }

  FF_DEVICE void run_tile(const KeysTile& t) {
    const AttentionBackward& p = args.p;
    const int key = t.first + first_row_of_share() + warp * 16 + lane / 4;
    float dk[kSums], dv[kSums];
#pragma unroll
    for (int i = 0; i < kSums; i++) dk[i] = dv[i] = 0;
    mbarrier_wait(shared.keys_full(), 0);
    int tiles = 0;
    for_each_rows<C>(args, t, [&](const RowsTile&) { tiles++; });
    int before = -1;  // stage of the rows before
    for (; tiles > 0; tiles--) {
      run_rows(t, key, before, dk, dv);
      before = queries.stage;
      queries.advance();
    }
    wgmma_wait<0>();
    const int64_t pair = int64_t(t.batch) * p.kv_heads + t.kv_head;
    const int column = C::kShares == 1 ? 0 : warpgroup * C::kColumns;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int64_t row = pair * p.seq_k + key + 8 * h;
      const bool exists = key + 8 * h < p.seq_k;
      if (p.dk) write_row(dk, h, p.scale, static_cast<Element*>(p.dk) + row * p.dim + column, p.dim - column, exists);
      if (p.dv) write_row(dv, h, 1.0f, static_cast<Element*>(p.dv) + row * p.dim_v + column, p.dim_v - column, exists);
    }
  }
};

template <class C>
FF_KERNEL(C::kThreads)
attention_bwd_keys_kernel(const FF_GRID_CONSTANT AttentionBwdKeysArguments args) {
  const AttentionBwdKeysShared<C> shared{shared_memory()};
  const int thread = thread_index();
  if (thread == 0) {
    mbarrier_init(shared.keys_full(), 1);
    for (int i = 0; i < C::kStages; i++) {
      mbarrier_init(shared.queries_full(i), 1 + C::kBlockM);
      mbarrier_init(shared.queries_empty(i), C::kConsumerWarps);
    }
    mbarrier_init_fence();
  }
  block_sync();
  if (thread < 128) {
    decrease_registers<C::kProducerRegisters>();
    if (thread == 0) load_for_keys(args, shared);
    if (thread >= 64) load_rows(args, shared, thread - 64);
  } else {
    increase_registers<C::kConsumerRegisters>();
    KeysConsumer<C>{args, shared, warp_uniform(thread / 128) - 1, thread / 32 % 4, thread % 32, {}}.run_tile(
        keys_tile<C>(args, block_index()));
  }
}

}  // namespace fastfuse::cuda
