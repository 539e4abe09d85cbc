// One side of the pairs: its features as the products multiply them, and the layouts that they read.
//
//   c_ij = inverse_i * inverse_j * (rows_i . rows_j)
//
// float: rows are normalised, each element rounded once. bf16: rows are the features times a power of two, exact, that
// makes their largest element about 1, so that nothing overflows or vanishes; the norm is applied to the product.
#pragma once

#include "cpu/amx_pack.h"
#include "cpu/gemm.h"
#include "cpu/pack.h"
#include "cpu/pair_math.h"
#include "fastfuse/pair.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

constexpr int64_t kStrip = 128;  // columns of a tile
constexpr int64_t kBlock = 32;   // rows of a tile
constexpr int64_t kChunk = 256;  // rows between two joins of the threads: kChunk x M gradients are held
constexpr float kEps = 1e-12f;   // as torch.nn.functional.normalize

// Calls body(index) for each index in [0, count), in parallel.
template <class Body>
FF_INLINE void for_each(const ThreadPool& pool, int64_t count, const Body& body) {
  parallel_for(
      pool, count, [](void* context, int64_t index, int) { (*static_cast<const Body*>(context))(index); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Uninitialised 64-byte aligned memory of a whole call.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count, bool zeroed = false) {
    const size_t bytes = size_t(count) * sizeof(T) + 64;
    data_ = static_cast<T*>(zeroed ? __builtin_calloc(bytes, 1) : __builtin_malloc(bytes));
    if (!data_) __builtin_trap();
  }
  Buffer(Buffer&& other) : data_(other.data_) { other.data_ = nullptr; }
  Buffer& operator=(Buffer&& other) {
    T* data = data_;
    data_ = other.data_;
    other.data_ = data;
    return *this;
  }
  ~Buffer() { __builtin_free(data_); }
  T* get() const { return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(data_) + 63) & ~uintptr_t(63)); }

 private:
  T* data_ = nullptr;
};

// Rows an odd number of cache lines apart, so that a column of them does not fall into few cache sets.
FF_INLINE int64_t odd_lines(int64_t count, int64_t per_line) { return (ceil_div(count, per_line) | 1) * per_line; }

// T: what the products multiply, float or (AMX) bf16.
template <class T>
struct Side {
  int64_t n, dim, strips;
  int64_t ld;             // of rows and of gradients
  Buffer<T> rows;         // [n padded to kStrip][ld]
  Buffer<T> columns;      // [strips]: float [dim][kStrip], bf16 [ceil(dim / 32) * 16][kStrip][2]
  Buffer<T> paired;       // bf16 only: [n / 2][ld][2], rows as the right operand of the gradient products
  Buffer<float> inverse;  // [n padded to kStrip], 0 in the padding
  Buffer<float> factor;   // [n padded to kStrip], rows_i = factor_i * features_i
  Buffer<float> along;    // [n padded to kStrip], see write_rows

  int64_t strip_size() const { return sizeof(T) == 4 ? dim * kStrip : round_up(dim, 32) * kStrip; }
  const T* row(int64_t i) const { return rows.get() + i * ld; }
  const T* strip(int64_t s) const { return columns.get() + s * strip_size(); }
};

template <class In>
FF_INLINE double squared_norm(const In* row, int64_t dim, float factor) {
  typedef double vd __attribute__((vector_size(kLanes * 8)));
  vd sum{};
  for (int64_t c = 0; c < dim; c += kLanes) {
    const vf x = load_as_float(row + c, int(min_of<int64_t>(kLanes, dim - c))) * splat(factor);
    const vd wide = __builtin_convertvector(x, vd);
    sum += wide * wide;
  }
  double total = 0;
  for (int i = 0; i < kLanes; i++) total += sum[i];
  return total;
}

// The power of two that brings the row's largest element into [1, 2), at most 2^120 either way.
template <class In>
FF_INLINE float power_of_two(const In* row, int64_t dim) {
  vf top{};
  int64_t c = 0;
  for (; c + kLanes <= dim; c += kLanes) top = max(top, absolute(load_as_float(row + c)));
  if (c < dim) top = max(top, absolute(load_as_float(row + c, int(dim - c))));
  const float largest = reduce_max(top);
  if (!(largest > 0) || largest == kInf) return 1.0f;
  return __builtin_ldexpf(1.0f, max_of(-120, min_of(120, -__builtin_ilogbf(largest))));
}

template <class In, class T>
void pack_side_rows(const Features& x, bool normalize, int64_t first, int64_t count, Side<T>& side) {
  for (int64_t i = first; i < first + count; i++) {
    const In* row = static_cast<const In*>(x.data) + i * x.stride;
    float factor = normalize ? power_of_two(row, x.dim) : 1.0f;
    const double norm = __builtin_sqrt(squared_norm(row, x.dim, factor)), smallest = double(kEps) * factor;
    const double inverse = normalize ? 1.0 / (norm < smallest ? smallest : norm) : 1.0;
    // float: the inverse in two parts, so that each element is rounded once
    const float high = sizeof(T) == 4 ? float(inverse) : 1.0f, low = sizeof(T) == 4 ? float(inverse - high) : 0.0f;
    T* to = side.rows.get() + i * side.ld;
    for (int64_t c = 0; c < side.ld; c += kLanes) {
      const int64_t left = x.dim - c;
      const vf in = left > 0 ? load_as_float(row + c, int(min_of<int64_t>(kLanes, left))) * splat(factor) : vf{};
      store_as(to + c, fma(in, splat(high), in * splat(low)));
    }
    side.inverse.get()[i] = sizeof(T) == 4 ? 1.0f : float(inverse);
    side.factor.get()[i] = sizeof(T) == 4 ? float(factor * inverse) : factor;
    side.along.get()[i] = !normalize || norm < smallest ? 0.0f : sizeof(T) == 4 ? 1.0f : float(inverse * inverse);
  }
}

template <class T>
void pack_side(const Features& x, bool normalize, int64_t first, int64_t count, Side<T>& side) {
  switch (x.dtype) {
    case DType::kBFloat16:
      return pack_side_rows<bf16>(x, normalize, first, count, side);
    case DType::kFloat16:
      return pack_side_rows<f16>(x, normalize, first, count, side);
    default:
      return pack_side_rows<float>(x, normalize, first, count, side);
  }
}

// `as_columns`: the side will be the right operand of the logits; `gradients`: of the gradient products.
template <class T>
Side<T> make_side(const Features& x, bool normalize, bool as_columns, bool gradients, const ThreadPool& pool) {
  Side<T> side;
  side.n = x.rows;
  side.dim = x.dim;
  side.strips = ceil_div(x.rows, kStrip);
  side.ld = sizeof(T) == 4 ? odd_lines(x.dim, 16) : odd_lines(x.dim, 32);
  const int64_t padded = side.strips * kStrip;
  side.rows = Buffer<T>(padded * side.ld);
  side.inverse = Buffer<float>(padded);
  side.factor = Buffer<float>(padded);
  side.along = Buffer<float>(padded);
  if (as_columns) side.columns = Buffer<T>(side.strips * side.strip_size());
  if (sizeof(T) == 2 && gradients) side.paired = Buffer<T>(padded * side.ld);
  for_each(pool, side.strips, [&](int64_t s) {
    const int64_t first = s * kStrip, count = min_of(kStrip, x.rows - first);
    pack_side(x, normalize, first, count, side);
    T* rows = side.rows.get() + first * side.ld;
    __builtin_memset(rows + count * side.ld, 0, size_t((kStrip - count) * side.ld) * sizeof(T));
    __builtin_memset(side.inverse.get() + first + count, 0, size_t(kStrip - count) * sizeof(float));
    T* columns = as_columns ? side.columns.get() + s * side.strip_size() : nullptr;
    if constexpr (sizeof(T) == 4) {
      if (as_columns) pack_transposed(rows, side.ld, kStrip, x.dim, columns, kStrip, 1.0f);
    } else {
#if defined(__AMX_BF16__)
      if (as_columns) amx::pack_b_transposed(rows, side.ld, kStrip, x.dim, columns, kStrip);
      if (gradients) amx::pack_b(rows, side.ld, kStrip, x.dim, side.paired.get() + first * side.ld, side.ld);
#endif
    }
  });
  return side;
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
