// From products to scores in units of log2, in place on a warpgroup's accumulators [64][kBlockN]: scale, softcap, bias,
// span; and dropout. Thread and element as in hopper/wgmma.h: x[4 j + 2 h + c] is row h of the thread's two, key
// first_key + 8 j + 2 (thread % 4) + c.
#pragma once

#include "cuda/attention_tile.cuh"
#include "cuda/philox.cuh"

namespace fastfuse::cuda {

constexpr float kLog2e = 1.4426950408889634f;

FF_DEVICE float minus_infinity() { return float_of_bits(0xff800000u); }

// What does not change from tile to tile.
struct ScoreUnits {
  float scale;    // of products, to log2 units; or where softcap is on, to softcap's
  float softcap;  // in log2 units; 0: off
  explicit FF_HOST_DEVICE ScoreUnits(const AttentionProblem& p)
      : scale(p.softcap == 0 ? p.scale * kLog2e : p.scale / p.softcap), softcap(p.softcap * kLog2e) {}
};

// tanh to float32's precision: 1 - 2 / (1 + e^2u)
FF_DEVICE float tanh_of(float u) { return 1.0f - 2.0f * reciprocal_approx(1.0f + exp2_approx(u * (2 * kLog2e))); }

template <int kCount>
FF_DEVICE void scale_scores(const ScoreUnits& units, float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i++) {
    x[i] *= units.scale;
    if (units.softcap != 0) x[i] = units.softcap * tanh_of(x[i]);
  }
}

template <int kCount>
FF_DEVICE void hide_keys(const QueryRow (&rows)[2], int first_key, float (&x)[kCount]) {
  const int key = first_key + thread_index() % 4 * 2;
#pragma unroll
  for (int i = 0; i < kCount; i++) {
    const int j = key + i / 4 * 8 + i % 2;
    const QueryRow& row = rows[i / 2 % 2];
    if (j < row.lo || j >= row.hi) x[i] = minus_infinity();
  }
}

struct Visible {  // storage of bool
  uint8_t bits;
};
FF_DEVICE float bias_at(const Visible* at) { return load_global(&at->bits) ? 0.0f : minus_infinity(); }
template <class T>
FF_DEVICE float bias_at(const T* at) {
  return to_float(load_global(at)) * kLog2e;
}

// The same of two neighbours, from one load of both.
struct TwoBiases {
  float low, high;
};
FF_DEVICE TwoBiases two_biases_at(const Visible* at) {
  const uint16_t pair = load_global(reinterpret_cast<const uint16_t*>(at));
  return {pair & 0xff ? 0.0f : minus_infinity(), pair >> 8 ? 0.0f : minus_infinity()};
}
FF_DEVICE TwoBiases two_biases_at(const float* at) {
  const uint2 pair = load_global(reinterpret_cast<const uint2*>(at));
  return {float_of_bits(pair.x) * kLog2e, float_of_bits(pair.y) * kLog2e};
}
template <class T>
FF_DEVICE TwoBiases two_biases_at(const T* at) {
  const uint32_t pair = load_global(reinterpret_cast<const uint32_t*>(at));
  return {to_float(T{uint16_t(pair)}) * kLog2e, to_float(T{uint16_t(pair >> 16)}) * kLog2e};
}

// Whether two neighbours of every row can be loaded at once.
template <class T>
FF_DEVICE bool is_paired(const AttentionProblem& p) {
  const int64_t* s = p.bias_stride;
  const int64_t first = int64_t(reinterpret_cast<uintptr_t>(p.bias) / sizeof(T));
  return s[3] == 1 && (first | s[0] | s[1] | s[2]) % 2 == 0;
}

// A branch before the biases of each 32 keys, and none between their loads: those are under way at once, and no more,
// which is what registers last.
template <class T, int kCount>
FF_DEVICE void add_bias(const AttentionProblem& p, const QueryTile& t, const QueryRow (&rows)[2], int first_key,
                        float (&x)[kCount]) {
  const int64_t* s = p.bias_stride;
  const T* bias = static_cast<const T*>(p.bias) + t.batch * s[0];
  const int key = first_key + thread_index() % 4 * 2, left = p.seq_k - key;
  const T* row0 = bias + rows[0].head * s[1] + rows[0].query * s[2] + key * s[3];
  const T* row1 = bias + rows[1].head * s[1] + rows[1].query * s[2] + key * s[3];
  const bool contiguous = s[3] == 1, paired = is_paired<T>(p);
#pragma unroll
  for (int begin = 0; begin < kCount; begin += 16) {
    const int keys_left = p.seq_k - first_key - begin * 2;
    if (keys_left <= 0) break;
    if (paired && keys_left >= 32) {
#pragma unroll
      for (int i = begin; i < begin + 16 && i < kCount; i += 4) {
        const TwoBiases two0 = two_biases_at(row0 + i * 2), two1 = two_biases_at(row1 + i * 2);
        x[i] += two0.low;
        x[i + 1] += two0.high;
        x[i + 2] += two1.low;
        x[i + 3] += two1.high;
      }
      continue;
    }
    const auto add = [&](int64_t stride) {
#pragma unroll
      for (int i = begin; i < begin + 16 && i < kCount; i += 4) {
#pragma unroll
        for (int c = 0; c < 2; c++) {
          const bool inside = i * 2 + c < left;
          x[i + c] += inside ? bias_at(row0 + (i * 2 + c) * stride) : 0.0f;
          x[i + 2 + c] += inside ? bias_at(row1 + (i * 2 + c) * stride) : 0.0f;
        }
      }
    };
    if (contiguous)
      add(1);
    else
      add(s[3]);
  }
}

template <class Element, int kCount>
FF_DEVICE void add_bias_of(const AttentionProblem& p, const QueryTile& t, const QueryRow (&rows)[2], int first_key,
                           float (&x)[kCount]) {
  switch (p.bias_dtype) {
    case DType::kFloat32:
      return add_bias<float>(p, t, rows, first_key, x);
    case DType::kBool:
      return add_bias<Visible>(p, t, rows, first_key, x);
    default:
      return add_bias<Element>(p, t, rows, first_key, x);
  }
}

// Philox words below it are dropped.
inline uint32_t dropout_threshold(const AttentionProblem& p) {
  const double threshold = p.dropout_p * 4294967296.0;
  return threshold >= 4294967295.0 ? 4294967295u : uint32_t(threshold);
}

// Sets what dropout takes to 0. Element (b, h, i, j) reads word j % 4 of counter (j / 4, i, b H + h, 0). Of the two
// threads that share four keys, the even one draws for row 0 and the odd one for row 1.
template <int kCount>
FF_DEVICE void drop(const AttentionProblem& p, uint64_t seed, uint32_t threshold, const QueryTile& t,
                    const QueryRow (&rows)[2], int first_key, float (&x)[kCount]) {
  const int quarter = thread_index() % 4;
  const bool odd = quarter % 2;
  const int query = odd ? rows[1].query : rows[0].query, head = odd ? rows[1].head : rows[0].head;
#pragma unroll
  for (int j = 0; j < kCount / 4; j++) {
    uint32_t words[4] = {uint32_t(first_key / 4 + j * 2 + quarter / 2), uint32_t(query),
                         uint32_t(t.batch * p.heads + head), 0};
    philox(words, seed);
    uint32_t kept = 0;
#pragma unroll
    for (int w = 0; w < 4; w++) kept |= uint32_t(words[w] >= threshold) << w;
    const uint32_t other = shuffle_xor(kept, 1);
    const uint32_t row0 = (odd ? other : kept) >> (odd ? 2 : 0), row1 = (odd ? kept : other) >> (odd ? 2 : 0);
    if (!(row0 & 1)) x[4 * j] = 0;
    if (!(row0 & 2)) x[4 * j + 1] = 0;
    if (!(row1 & 1)) x[4 * j + 2] = 0;
    if (!(row1 & 2)) x[4 * j + 3] = 0;
  }
}

}  // namespace fastfuse::cuda
