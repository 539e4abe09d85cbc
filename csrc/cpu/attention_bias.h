// Bias tiles: read transposed into [keys][lanes], and its gradient added back. Each lane has its own row pointer, so
// that stacked heads and broadcast dimensions (stride 0) need no case of their own.
#pragma once

#include "cpu/attention_tile.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// Storage of bool: what is added to the score is 0 or -inf.
struct visible {
  uint8_t bits;
};
typedef uint8_t vb __attribute__((vector_size(kLanes)));
FF_INLINE vf load_as_float(const visible* p, int n) {
  vb b{};
  __builtin_memcpy(&b, p, n);
  return select(__builtin_convertvector(b, vi) != vi{}, vf{}, splat(-kInf));
}
FF_INLINE vf load_as_float(const visible* p) { return load_as_float(p, kLanes); }

// Adds to factor times a score, and to its rest where that is kept (rest not null, factor 1). A hidden key's rest is 0.
FF_INLINE void add_to(float* score, float* rest, vf factor, vf value) {
  if (rest) {
    vf lost;
    const vf sum = two_sum(load(score), value, lost);
    store(score, sum);
    store(rest, select((vi)(sum == splat(-kInf)), vf{}, load(rest) + lost));
  } else {
    store(score, fma(load(score), factor, value));
  }
}

// scores[kLanes keys][lanes]: a block of bias is added, from key `at` of each lane's row. Constant indices keep it in
// registers.
template <class T>
FF_INLINE void add_block(const T* const* rows, int64_t at, float* scores, int64_t lanes, vf factor) {
  vf block[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) block[i] = load_as_float(rows[i] + at);
  transpose(block);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) store(scores + i * lanes, fma(load(scores + i * lanes), factor, block[i]));
}

// scores[n][lanes] = factor scores + bias, keys [begin, begin + n)
template <class T>
void add_bias(const AttentionProblem& p, const QueryTile& t, int64_t begin, int64_t n, float scale, float* scores,
              float* rest) {
  const vf factor = splat(scale);
  const int64_t* s = p.bias_stride;
  const T* rows[kTileQ];
  for (int lane = 0; lane < t.lanes; lane++) {
    rows[lane] =
        static_cast<const T*>(p.bias) + t.batch * s[0] + t.head[lane] * s[1] + t.query[lane] * s[2] + begin * s[3];
  }
  if (s[2] == 0 && (t.one_head || s[1] == 0)) {  // one row for all lanes
    for (int64_t j = 0; j < n; j++) {
      const vf value = splat((float)load_as_float(rows[0] + j * s[3], 1)[0]);
      for (int lane = 0; lane < t.lanes; lane += kLanes) {
        const int64_t at = j * t.lanes + lane;
        add_to(scores + at, rest ? rest + at : nullptr, factor, value);
      }
    }
    return;
  }
  vf block[kLanes];
  for (int lane = 0; lane < t.lanes; lane += kLanes) {
    for (int64_t j = 0; j < n; j += kLanes) {
      const int count = int(min_of<int64_t>(n - j, kLanes));
      if (count == kLanes && s[3] == 1 && !rest) {
        add_block(rows + lane, j, scores + j * t.lanes + lane, t.lanes, factor);
        continue;
      }
      for (int i = 0; i < kLanes; i++) {
        const T* row = rows[lane + i] + j * s[3];
        if (s[3] == 1) {
          block[i] = load_as_float(row, count);
        } else {
          for (int c = 0; c < count; c++) block[i][c] = load_as_float(row + c * s[3], 1)[0];
        }
      }
      transpose(block);
      for (int c = 0; c < count; c++) {
        const int64_t at = (j + c) * t.lanes + lane;
        add_to(scores + at, rest ? rest + at : nullptr, factor, block[c]);
      }
    }
  }
}

inline void add_bias(const AttentionProblem& p, const QueryTile& t, int64_t begin, int64_t n, float factor,
                     float* scores, float* rest) {
  switch (p.bias_dtype) {
    case DType::kFloat32:
      return add_bias<float>(p, t, begin, n, factor, scores, rest);
    case DType::kBFloat16:
      return add_bias<bf16>(p, t, begin, n, factor, scores, rest);
    case DType::kFloat16:
      return add_bias<f16>(p, t, begin, n, factor, scores, rest);
    case DType::kBool:
      return add_bias<visible>(p, t, begin, n, factor, scores, rest);
  }
}

// Whether the batch shares a bias of which a (batch, key head) pair reads so little that it is in L2 for the next one.
inline bool stays_in_cache(const AttentionProblem& p) {
  return p.batch > 1 && p.bias_stride[0] == 0 && Stack(p).rows * p.seq_k <= (16 << 10);
}

// The rows of bias of a query tile's n keys from `begin` on, to be asked for while the tile before is worked on.
inline void feed_bias(const AttentionProblem& p, const QueryTile& t, int64_t begin, int64_t n, Feed& feed) {
  const int64_t *s = p.bias_stride, size = p.bias_dtype == DType::kFloat32 ? 4 : p.bias_dtype == DType::kBool ? 1 : 2;
  const int64_t at = t.batch * s[0] + t.head[0] * s[1] + t.query[0] * s[2] + begin * s[3];
  feed.add(static_cast<const char*>(p.bias) + at * size, s[2] * size, min_of(n, p.seq_k - begin) * s[3] * size,
           s[2] == 0 ? 1 : t.rows);
}

// dbias += ds[n][lanes]; rows of broadcast dimensions coincide and are added one after the other.
inline void add_bias_gradient(const QueryTile& t, const int64_t* stride, int64_t begin, int64_t n, const float* ds,
                              float* dbias) {
  float* rows[kTileQ];
  for (int lane = 0; lane < t.rows; lane++) {
    rows[lane] = dbias + t.batch * stride[0] + t.head[lane] * stride[1] + t.query[lane] * stride[2] + begin * stride[3];
  }
  if (stride[3] == 0) {
    for (int lane = 0; lane < t.lanes; lane += kLanes) {
      vf sum{};
      for (int64_t j = 0; j < n; j++) sum += load(ds + j * t.lanes + lane);
      for (int i = 0; i < kLanes && lane + i < t.rows; i++) *rows[lane + i] += sum[i];
    }
    return;
  }
  for (int lane = 0; lane < t.rows; lane += kLanes) {
    for (int64_t j = 0; j < n; j += kLanes) {
      const int count = int(min_of<int64_t>(n - j, kLanes));
      vf block[kLanes];
      load_block(ds + j * t.lanes + lane, t.lanes, n - j, kLanes, block);
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; i++) {
        if (lane + i >= t.rows) break;
        float* at = rows[lane + i] + j;
        if (count == kLanes) {
          store(at, load(at) + block[i]);
        } else {
          store(at, load(at, count) + block[i], count);
        }
      }
    }
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
