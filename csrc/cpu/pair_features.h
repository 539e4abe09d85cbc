// One side of the pairs: its features as the products multiply them, and the layouts that they read.
//
//   c_ij = inverse_i * inverse_j * (rows_i . rows_j)
//
// float: rows are normalised, each element rounded once. bf16: rows are the features times a power of two, exact, that
// keeps products of norms within float's range, nearly always 1; the norm is applied to the product.
#pragma once

#include "cpu/amx_pack.h"
#include "cpu/buffer.h"
#include "cpu/gemm.h"
#include "cpu/pack.h"
#include "cpu/pack_pairs.h"
#include "cpu/pair_math.h"
#include "fastfuse/pair.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

constexpr int64_t kStrip = 128;  // columns of a tile
constexpr int64_t kBlock = 32;   // rows of a tile
constexpr int64_t kPanel = 256;  // rows of the products that give the columns' gradients
constexpr float kEps = 1e-12f;   // as torch.nn.functional.normalize

// body(first, width) of each panel [depth][width] of a strip as right operand of the logits. Short vectors take panels as
// wide as gemm.h's, so that it reads them from end to end: steps of kStrip floats fall into few sets of the cache.
template <class T, class Body>
FF_INLINE void for_column_panels(const Body& body) {
  if constexpr (sizeof(T) == 4 && kVectorRegisters < 32) {
    for_panels(kStrip / kLanes, [&](int64_t first, int64_t count) { body(first * kLanes, count * kLanes); });
  } else {
    body(int64_t(0), kStrip);
  }
}

// Calls body(index) for each index in [0, count), in parallel.
template <class Body>
FF_INLINE void for_each(const ThreadPool& pool, int64_t count, const Body& body) {
  parallel_for(
      pool, count, [](void* context, int64_t index, int) { (*static_cast<const Body*>(context))(index); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Rows an odd number of cache lines apart, so that a column of them does not fall into few cache sets.
FF_INLINE int64_t odd_lines(int64_t count, int64_t per_line) { return (ceil_div(count, per_line) | 1) * per_line; }

// body(c, load) for each vector of a row; load(p + c) reads what is there of it.
template <class Body>
FF_INLINE void for_vectors(int64_t dim, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes <= dim; c += kLanes) body(c, [](const auto* p) { return load_as_float(p); });
  const int rest = int(dim - c);
  if (rest) body(c, [rest](const auto* p) { return load_as_float(p, rest); });
}

// float is summed in double: an error of a norm is one of a whole row of logits.
template <class In>
FF_INLINE double squared_norm(const In* row, int64_t dim, float factor) {
  if constexpr (sizeof(In) == 4) {
    vwide sum{};
    for_vectors(dim, [&](int64_t c, const auto& load) {
      const vwide x = widen(load(row + c) * splat(factor));
      sum += x * x;
    });
    return reduce_add(sum);
  } else {
    vf sum{};
    for_vectors(dim, [&](int64_t c, const auto& load) {
      const vf x = load(row + c) * splat(factor);
      sum = fma(x, x, sum);
    });
    return reduce_add_double(sum);
  }
}

// The power of two that brings the row's largest element into [1, 2), at most 2^120 either way.
template <class In>
FF_INLINE float power_of_two(const In* row, int64_t dim) {
  vf top{};
  for_vectors(dim, [&](int64_t c, const auto& load) { top = max(top, absolute(load(row + c))); });
  const float largest = reduce_max(top);
  if (!(largest > 0) || largest == kInf) return 1.0f;
  return __builtin_ldexpf(1.0f, max_of(-120, min_of(120, -__builtin_ilogbf(largest))));
}

// The row's norm after scaling by `factor`, which is 1 unless squares or products of norms could leave float's range.
template <class In>
FF_INLINE double scaled_norm(const In* row, int64_t dim, float& factor) {
  factor = 1.0f;
  double square = squared_norm(row, dim, factor);
  if (!(square > 1e-18 && square < 1e18)) {
    factor = power_of_two(row, dim);
    square = squared_norm(row, dim, factor);
  }
  return __builtin_sqrt(square);
}

// One strip of features, at most kStrip rows, padded with zeros. Null: not wanted.
template <class T>
struct Strip {
  T *rows, *columns, *paired, *transposed;  // as in Side
  float *inverse, *factor, *along;          // [kStrip]
  int64_t ld;
};

// Row r of the strip is feature index(r).
template <class In, class T, class Index>
void pack_strip_rows(const Features& x, bool normalize, int64_t count, const Index& index, const Strip<T>& to) {
  for (int64_t r = 0; r < count; r++) {
    const In* row = static_cast<const In*>(x.data) + index(r) * x.stride;
    float factor = 1.0f;
    const double norm = normalize ? scaled_norm(row, x.dim, factor) : 1.0, smallest = double(kEps) * factor;
    const double inverse = normalize ? 1.0 / (norm < smallest ? smallest : norm) : 1.0;
    // float: the inverse in two parts, so that each element is rounded once
    const float high = sizeof(T) == 4 ? float(inverse) : 1.0f, low = sizeof(T) == 4 ? float(inverse - high) : 0.0f;
    T* out = to.rows + r * to.ld;
    for_vectors(x.dim, [&](int64_t c, const auto& load) {
      const vf in = load(row + c) * splat(factor);
      store_as(out + c, sizeof(T) == 4 ? fma(in, splat(high), in * splat(low)) : in);
    });
    const int64_t end = round_up(x.dim, kLanes);
    __builtin_memset(out + end, 0, size_t(to.ld - end) * sizeof(T));
    to.inverse[r] = sizeof(T) == 4 ? 1.0f : float(inverse);
    if (!to.factor) continue;
    to.factor[r] = sizeof(T) == 4 ? float(factor * inverse) : factor;
    to.along[r] = !normalize || norm < smallest ? 0.0f : sizeof(T) == 4 ? 1.0f : float(inverse * inverse);
  }
  __builtin_memset(to.rows + count * to.ld, 0, size_t((kStrip - count) * to.ld) * sizeof(T));
  __builtin_memset(to.inverse + count, 0, size_t(kStrip - count) * sizeof(float));
  if constexpr (sizeof(T) == 4) {
    if (!to.columns) return;
    for_column_panels<T>([&](int64_t first, int64_t width) {
      pack_transposed(to.rows + first * to.ld, to.ld, width, x.dim, to.columns + first * x.dim, width, 1.0f);
    });
  } else {
#if defined(__AVX512BF16__)
    if (to.columns) pack_pairs_transposed(to.rows, to.ld, kStrip, x.dim, to.columns, kStrip);
    if (to.paired) pack_pairs(to.rows, to.ld, kStrip, x.dim, to.paired, to.ld);
#endif
#if defined(__AMX_BF16__)
    if (to.transposed) amx::pack_a_transposed(to.rows, to.ld, kStrip, x.dim, to.transposed, kPanel);
#endif
  }
}

template <class T, class Index>
void pack_strip(const Features& x, bool normalize, int64_t count, const Index& index, const Strip<T>& to) {
  switch (x.dtype) {
    case DType::kBFloat16:
      return pack_strip_rows<bf16>(x, normalize, count, index, to);
    case DType::kFloat16:
      return pack_strip_rows<f16>(x, normalize, count, index, to);
    default:
      return pack_strip_rows<float>(x, normalize, count, index, to);
  }
}

// T: what the products multiply, float or (AMX, AVX-512-BF16) bf16.
template <class T>
FF_INLINE int64_t row_stride(int64_t dim) {
  return odd_lines(dim, 64 / sizeof(T));
}
template <class T>
FF_INLINE int64_t strip_size(int64_t dim) {
  return (sizeof(T) == 4 ? dim : round_up(dim, 32)) * kStrip;
}

template <class T>
struct Side {
  int64_t n, dim, strips;
  int64_t ld;             // of rows and of gradients
  Buffer<T> rows;         // [n padded to kStrip][ld]
  Buffer<T> columns;      // [strips]: float [dim][kStrip] in panels, bf16 [ceil(dim / 32) * 16][kStrip][2]
  Buffer<T> paired;       // bf16: [n / 2][ld][2]
  Buffer<T> transposed;   // AMX: [panels][dim padded to 16][kPanel]
  Buffer<float> inverse;  // [n padded to kStrip], 0 in the padding
  Buffer<float> factor;   // [n padded to kStrip], rows_i = factor_i * features_i
  Buffer<float> along;    // [n padded to kStrip], see write_rows

  const T* row(int64_t i) const { return rows.get() + i * ld; }
  // The right operand of sums over rows, from row i on, which is even.
  const T* summed_row(int64_t i) const { return (sizeof(T) == 4 ? rows : paired).get() + i * ld; }
  const T* strip(int64_t s) const { return columns.get() + s * strip_size<T>(dim); }
  T* panel(int64_t i) const { return transposed.get() + i / kPanel * round_up(dim, 16) * kPanel; }
};

#if defined(__AMX_BF16__)
constexpr bool kTransposesRows = true;
#else
constexpr bool kTransposesRows = false;
#endif

// What a side is multiplied as. Float rows serve both gradient products as they are, pairs of rows too, but on AMX.
struct Uses {
  bool as_columns;     // right operand of the logits
  bool gives_rows;     // right operand of the rows' gradient
  bool gives_columns;  // operand of the columns' gradient
};

template <class T>
Side<T> make_side(const Features& x, bool normalize, const Uses& uses, const ThreadPool& pool) {
  Side<T> side;
  side.n = x.rows;
  side.dim = x.dim;
  side.strips = ceil_div(x.rows, kStrip);
  side.ld = row_stride<T>(x.dim);
  const bool transposed = sizeof(T) == 2 && uses.gives_columns && kTransposesRows;
  const bool paired = sizeof(T) == 2 && (uses.gives_rows || (uses.gives_columns && !transposed));
  const int64_t padded = side.strips * kStrip;
  side.rows = Buffer<T>(padded * side.ld);
  side.inverse = Buffer<float>(padded);
  side.factor = Buffer<float>(padded);
  side.along = Buffer<float>(padded);
  if (uses.as_columns) side.columns = Buffer<T>(side.strips * strip_size<T>(x.dim));
  if (paired) side.paired = Buffer<T>(padded * side.ld);
  if (transposed) side.transposed = Buffer<T>(round_up(x.rows, kPanel) * round_up(x.dim, 16));
  for_each(pool, side.strips, [&](int64_t s) {
    const int64_t first = s * kStrip;
    const Strip<T> strip{side.rows.get() + first * side.ld,
                         uses.as_columns ? side.columns.get() + s * strip_size<T>(x.dim) : nullptr,
                         paired ? side.paired.get() + first * side.ld : nullptr,
                         transposed ? side.panel(first) + first % kPanel : nullptr,
                         side.inverse.get() + first,
                         side.factor.get() + first,
                         side.along.get() + first,
                         side.ld};
    pack_strip(x, normalize, min_of(kStrip, x.rows - first), [first](int64_t r) { return first + r; }, strip);
  });
  return side;
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
