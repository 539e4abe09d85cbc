// Forward for few queries a key head: decoding, beams that share their keys, grouped heads. Bound by reading K and V
// once, so every row is streamed in its own layout, lanes along its columns, its pages and where vectors are long its lines
// asked for before its turn:
//
//     x_j = q . k_j          lanes along a key's row; the partial sums of kLanes keys are added across lanes in one tree
//     O  += sum_j p_j v_j    columns of O in registers
//
// Backward and maps of such problems take their scores from here too: products of tiles would round otherwise, and with
// large logits P = exp(s - lse) would not sum to 1.
#pragma once

#include "cpu/arena.h"
#include "cpu/attention_softmax.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

constexpr int kDecodeRows = 4;   // more queries are better off on lanes
constexpr int kDecodeKeys = 64;  // keys of one softmax step
constexpr int64_t kAhead = 64;

// Whether a problem takes this path.
template <class Engine>
bool streams_keys(const AttentionProblem& p) {
  return Stack(p).rows <= kDecodeRows && !p.bias && p.dropout_p == 0 && p.seq_k > 1 && !keeps_rest<Engine>(p);
}

template <class T>
FF_INLINE vf load_columns(const T* p, int64_t columns) {
  return columns >= kLanes ? load_as_float(p) : load_as_float(p, int(columns));
}

// Lane i: the sum of all lanes of x[i].
template <int kBlock = kLanes / 2>
FF_INLINE vf sums_of(vf (&x)[kLanes]) {
#pragma GCC unroll 8
  for (int i = 0; i < kBlock; i++) {
    exchange<kBlock>(x[i], x[i + kBlock]);
    x[i] += x[i + kBlock];
  }
  if constexpr (kBlock == 1) {
    return x[0];
  } else {
    return sums_of<kBlock / 2>(x);
  }
}

// The pages that lie kPagesAhead of the next kLanes rows: their translations are there when their lines are asked for.
template <class T>
FF_INLINE void touch_pages(const T* rows, int64_t stride) {
  constexpr int64_t kPage = 4096 / sizeof(T), kPagesAhead = 4;
  for (int64_t at = 0; at < kLanes * stride; at += max_of(kPage, stride)) {
    __builtin_prefetch(rows + kPagesAhead * kPage + at);
  }
}

// The lines of N elements of the row kAhead rows below, into L2: requests for L1 would hold the few buffers of its misses.
// Short vectors do without: requests are then as many as loads, and the caches' own prefetchers follow rows as well.
template <int N, class T>
FF_INLINE void ask_ahead(const T* at, int64_t stride) {
  for (int i = 0; kVectorRegisters == 32 && i < N; i += 64 / sizeof(T)) {
    __builtin_prefetch(at + kAhead * stride + i, 0, 2);
  }
}

// Partial sums of q . key, q zero padded. A row is read whole, so that memory comes in its own order.
template <class T, bool kAsk>
FF_INLINE vf decode_dot(const float* q, const T* key, int64_t stride, int64_t dim) {
  constexpr int64_t kPair = 2 * kLanes;
  vf even{}, odd{};
  int64_t c = 0;
  for (; c + kPair <= dim; c += kPair) {
    if (kAsk && c * sizeof(T) % 64 == 0) ask_ahead<kPair>(key + c, stride);
    even = fma(load(q + c), load_as_float(key + c), even);
    odd = fma(load(q + c + kLanes), load_as_float(key + c + kLanes), odd);
  }
  for (; c < dim; c += kLanes) even = fma(load(q + c), load_columns(key + c, dim - c), even);
  return even + odd;
}

// Lane i: q . k_i of the kLanes keys. kAsk: for the first of several queries.
template <class T, bool kAsk>
FF_INLINE vf decode_dots(const float* q, const T* const* keys, int64_t stride, int64_t dim) {
  vf sums[kLanes];
  for (int i = 0; i < kLanes; i++) sums[i] = decode_dot<T, kAsk>(q, keys[i], stride, dim);
  return sums_of(sums);
}

// x[rows][kDecodeKeys] = q k^T for n keys; what follows the last key means nothing. q[rows][ld], zero padded.
template <class T>
void decode_scores(const float* q, int64_t ld, int rows, const T* k, int64_t stride, int64_t n, int64_t dim, float* x) {
  for (int64_t j = 0; j < n; j += kLanes) {
    const T* keys[kLanes];
    for (int i = 0; i < kLanes; i++) keys[i] = k + min_of(j + i, n - 1) * stride;
    touch_pages(k + j * stride, stride);
    for (int r = 0; r < rows; r++) {
      const vf scores =
          r == 0 ? decode_dots<T, true>(q, keys, stride, dim) : decode_dots<T, false>(q + r * ld, keys, stride, dim);
      store(x + r * kDecodeKeys + j, scores);
    }
  }
}

// The same scores as a tile[n][lanes] of at most kTileQ lanes; 0 past the rows.
template <class T>
void decode_tile(const float* q, int64_t ld, const QueryTile& t, const T* k, int64_t stride, int64_t n, int64_t dim,
                 float* tile) {
  alignas(64) float x[kDecodeRows * kDecodeKeys];
  __builtin_memset(tile, 0, n * t.lanes * sizeof(float));
  for (int64_t begin = 0; begin < n; begin += kDecodeKeys) {
    const int64_t count = min_of<int64_t>(kDecodeKeys, n - begin);
    decode_scores(q, ld, t.rows, k + begin * stride, stride, count, dim, x);
    for (int64_t j = 0; j < count; j++) {
      for (int r = 0; r < t.rows; r++) tile[(begin + j) * t.lanes + r] = x[r * kDecodeKeys + j];
    }
  }
}

// O[W vectors of columns] = rescale O + sum_j p_j v_j for R rows. kWhole: there are as many columns; a branch to fewer
// would have its sums kept in memory.
template <class T, int R, int W, bool kWhole>
FF_INLINE void decode_sum(const float* weights, const T* v, int64_t stride, int64_t n, int64_t columns,
                          const float* rescale, float* out, int64_t ld) {
  vf acc[R][W];
  for (int r = 0; r < R; r++) {
    for (int w = 0; w < W; w++) acc[r][w] = load(out + r * ld + w * kLanes) * splat(rescale[r]);
  }
  for (int64_t j = 0; j < n; j++) {
    const T* row = v + j * stride;
    if (j % kLanes == 0) touch_pages(row, stride);
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) {
      const T* at = row + w * kLanes;
      if (w * kLanes * sizeof(T) % 64 == 0) ask_ahead<1>(at, stride);
      const vf value = kWhole ? load_as_float(at) : load_columns(at, columns - w * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) acc[r][w] = fma(splat(weights[r * kDecodeKeys + j]), value, acc[r][w]);
    }
  }
  for (int r = 0; r < R; r++) {
    for (int w = 0; w < W; w++) store(out + r * ld + w * kLanes, acc[r][w]);
  }
}

template <class T, int R>
void decode_sums(const float* weights, const T* v, int64_t stride, int64_t n, int64_t dim, const float* rescale,
                 float* out, int64_t ld) {
  constexpr int W = kVectorRegisters == 32 ? 4 : max_of(8 / R, 2);
  int64_t c = 0;
  const auto sum = [&](auto vectors) FF_LAMBDA {
    constexpr int64_t kVectors = decltype(vectors)::value;
    if (c + kVectors * kLanes <= dim) {
      decode_sum<T, R, kVectors, true>(weights, v + c, stride, n, dim - c, rescale, out + c, ld);
    } else {
      decode_sum<T, R, kVectors, false>(weights, v + c, stride, n, dim - c, rescale, out + c, ld);
    }
    c += kVectors * kLanes;
  };
  while (c + (W - 1) * kLanes < dim) sum(Constant<W>{});
  while (c < dim) sum(Constant<1>{});
}

// One row: weights of kDecodeKeys scores in place; returns the factor of what was summed before.
FF_INLINE float decode_softmax(float* x, float c, float& maximum, float& sum) {
  vf top = load(x);
  for (int j = kLanes; j < kDecodeKeys; j += kLanes) top = max(top, load(x + j));
  const float now = max_of(maximum, reduce_max(top)), base = now == -kInf ? 0 : now;
  const float rescale = now == maximum ? 1.0f : exp2(splat((maximum - base) * c))[0];
  vf total{};
  for (int j = 0; j < kDecodeKeys; j += kLanes) {
    const vf weight = exp2((load(x + j) - splat(base)) * splat(c));
    store(x + j, weight);
    total += weight;
  }
  maximum = now;
  sum = sum * rescale + reduce_add(total);
  return rescale;
}

// Rows of one (batch, key head) over keys [begin, end): O[rows][ld] not yet normalised, and its softmax state.
template <class T>
void decode_rows(const AttentionProblem& p, const ScoreUnits& units, const QueryTile& t, int64_t kv_head, int64_t begin,
                 int64_t end, const float* q, int64_t q_ld, float* x, SoftmaxState& state, float* out, int64_t ld) {
  for (int64_t key = begin; key < end; key += kDecodeKeys) {
    const int64_t n = min_of<int64_t>(kDecodeKeys, end - key);
    decode_scores(q, q_ld, t.rows, row_of<T>(p.k, t.batch, kv_head, key), p.k.stride[2], n, p.dim, x);
    if (!units.plain) scale_scores(p, score_factor(p), t.rows * kDecodeKeys, x, nullptr, nullptr);
    for (int r = 0; r < t.rows; r++) {
      float* row = x + r * kDecodeKeys;
      for (int64_t j = n; j < kDecodeKeys; j++) row[j] = -kInf;  // after softcap, which would make it finite
      for (int64_t j = 0; p.lo && j < n; j++) {
        if (key + j < t.lo[r] || key + j >= t.hi[r]) row[j] = -kInf;
      }
      state.rescale[r] = decode_softmax(row, units.c, state.max[r], state.sum[r]);
    }
    const auto sums = [&](auto rows) {
      decode_sums<T, decltype(rows)::value>(x, row_of<T>(p.v, t.batch, kv_head, key), p.v.stride[2], n, p.dim_v,
                                            state.rescale, out, ld);
    };
    switch (t.rows) {
      case 1:
        sums(Constant<1>{});
        break;
      case 2:
        sums(Constant<2>{});
        break;
      case 3:
        sums(Constant<3>{});
        break;
      case 4:
        sums(Constant<4>{});
        break;
    }
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
