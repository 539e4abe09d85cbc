// The sweep that every contrastive kernel is: chunks of rows x strips of columns, tiles of products, and where
// gradients are wanted two more products of each tile of dx.
//
//   for each chunk of rows                            in order
//     for each strip of columns                       in parallel: one task owns the strip's columns
//       for each block of rows of the chunk
//         tile[kBlock][kStrip] = rows . columns^T     in L1
//         visit(tile)                                 statistics; or dx * inverse_i * inverse_j in place of the
//         products
//       db[strip] += dx^T rows
//     for each block of rows of the chunk             in parallel
//       da[block] = sum over strips of dx . columns
//
// Every sum is taken in an order that does not depend on the threads. Symmetric (b is a): strips start at the chunk's
// own diagonal square. A tile of the square holds its pairs twice and only feeds da; beyond it each pair occurs once.
#pragma once

#include "cpu/arena.h"
#include "cpu/pair_products.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

struct TileAt {
  int64_t chunk;        // the chunk's first row
  int64_t row, rows;    // of the tile
  int64_t strip, slot;  // slot: the strip's position among those of the chunk
  int64_t col, cols;    // of the tile; columns beyond `cols` are not there
  bool mirrored;        // the tile also stands for its transpose, across the diagonal
};

// The gradient products' operands and sums of one sweep. dx holds one chunk: [strips][kChunk][kStrip].
template <class T>
struct Gradients {
  bool da_wanted, db_wanted;
  Buffer<T> dx;
  Buffer<float> da;      // [n padded to 32][ld]
  Buffer<float> db;      // float: [m padded][ld]; bf16: [strips][dim padded to 16][kStrip]
  Buffer<bf16> chunk_t;  // bf16: [dim padded to 16][kChunk], the chunk's rows transposed

  Gradients(const Side<T>& a, const Side<T>& b, bool da_wanted, bool db_wanted)
      : da_wanted(da_wanted), db_wanted(db_wanted) {
    if (!wanted()) return;
    dx = Buffer<T>(b.strips * kChunk * kStrip);
    if (da_wanted) da = Buffer<float>(round_up(a.n, kBlock) * a.ld);
    if (db_wanted) db = Buffer<float>(b.strips * kStrip * b.ld, true);
    if (db_wanted && sizeof(T) == 2) chunk_t = Buffer<bf16>(round_up(a.dim, 16) * kChunk);
  }
  bool wanted() const { return da_wanted || db_wanted; }
  T* slot(int64_t index) const { return dx.get() + index * kChunk * kStrip; }
};

template <class T, class Visit>
void strip_task(const Side<T>& a, const Side<T>& b, Gradients<T>& gradients, int64_t chunk, int64_t rows,
                int64_t first_strip, int64_t slot, bool mirrored, Visit& visit) {
  [[maybe_unused]] typename Products<T>::Session session;
  float* scratch;
  bf16* pairs = nullptr;  // [kChunk / 2][kStrip][2]
  with_arena([&](Arena& arena) {
    scratch = arena.take<float>(kBlock * kStrip);
    if (sizeof(T) == 2 && gradients.wanted()) pairs = arena.take<bf16>(kChunk * kStrip);
  });
  const int64_t strip = first_strip + slot, col = strip * kStrip, cols = min_of(kStrip, b.n - col);
  for (int64_t r = 0; r < rows; r += kBlock) {
    const TileAt at{chunk, chunk + r, min_of(kBlock, rows - r), strip, slot, col, cols, mirrored};
    float* tile = scratch;
    if constexpr (sizeof(T) == 4) {
      if (gradients.wanted()) tile = gradients.slot(slot) + r * kStrip;
    }
    Products<T>::logits(a.row(at.row), a.ld, at.rows, b.strip(strip), cols, a.dim, tile);
    visit(at, tile);
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == 2) {
      if (!gradients.wanted()) continue;
      __builtin_memset(tile + at.rows * kStrip, 0, size_t((kBlock - at.rows) * kStrip) * sizeof(float));
      bf16* to = gradients.slot(slot) + r * kStrip;
      bf16* pair_to = pairs + r * kStrip;
      const int64_t width = round_up(cols, 32);
      for (int64_t i = 0; i < kBlock; i += 2) {
        for (int64_t j = 0; j < width; j += kLanes) {
          const bool there = j < cols;
          const vf even = there ? load(tile + i * kStrip + j) : vf{};
          const vf odd = there ? load(tile + (i + 1) * kStrip + j) : vf{};
          store_as(to + i * kStrip + j, even);
          store_as(to + (i + 1) * kStrip + j, odd);
          store((float*)(pair_to + i * kStrip + 2 * j), amx::pair(even, odd));
        }
      }
    }
#endif
  }
  if (!gradients.db_wanted || (!mirrored && &a == &b)) return;
  if constexpr (sizeof(T) == 4) {
    for (int64_t k = 0; k < rows; k += 128) {
      gemm<true>(cols, a.dim, min_of<int64_t>(128, rows - k), gradients.slot(slot) + k * kStrip, kStrip,
                 a.row(chunk + k), a.ld, gradients.db.get() + col * b.ld, b.ld, true);
    }
  } else {
#if defined(__AMX_BF16__)
    const int64_t dim = round_up(a.dim, 16);
    amx::gemm(dim, cols, round_up(rows, 32), gradients.chunk_t.get(), kChunk, pairs, kStrip,
              gradients.db.get() + strip * dim * kStrip, kStrip, true);
#endif
  }
}

// da[row .. row + rows) = sum over the chunk's strips of dx . columns
template <class T>
void row_gradient_task(const Side<T>& b, Gradients<T>& gradients, int64_t chunk, int64_t row, int64_t rows,
                       int64_t first_strip, int64_t slots) {
  [[maybe_unused]] typename Products<T>::Session session;
  float* da = gradients.da.get() + row * b.ld;
  for (int64_t slot = 0; slot < slots; slot++) {
    const int64_t col = (first_strip + slot) * kStrip, cols = min_of(kStrip, b.n - col);
    const T* dx = gradients.slot(slot) + (row - chunk) * kStrip;
    if constexpr (sizeof(T) == 4) {
      gemm<false>(rows, b.dim, cols, dx, kStrip, b.row(col), b.ld, da, b.ld, slot > 0);
    } else {
#if defined(__AMX_BF16__)
      amx::gemm(rows, b.dim, round_up(cols, 32), dx, kStrip, b.paired.get() + col * b.ld, b.ld, da, b.ld, slot > 0);
#endif
    }
  }
}

// visit(TileAt, float* tile) for every tile; visit.end_chunk(pool, chunk, rows, slots) after each chunk.
template <class T, class Visit>
void sweep(const Side<T>& a, const Side<T>& b, Gradients<T>& gradients, const ThreadPool& pool, Visit& visit) {
  const bool symmetric = &a == &b;
  const int64_t chunk_rows = symmetric ? kStrip : kChunk;  // a square is computed whole: small ones waste less
  for (int64_t chunk = 0; chunk < a.n; chunk += chunk_rows) {
    const int64_t rows = min_of(chunk_rows, a.n - chunk);
    const int64_t first = symmetric ? chunk / kStrip : 0, slots = b.strips - first;
    const int64_t square = symmetric ? ceil_div(rows, kStrip) : 0;
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == 2) {
      if (gradients.db_wanted) {
        amx::pack_a_transposed(a.row(chunk), a.ld, rows, a.dim, gradients.chunk_t.get(), kChunk);
      }
    }
#endif
    for_each(pool, slots, [&](int64_t slot) {
      strip_task(a, b, gradients, chunk, rows, first, slot, symmetric && slot >= square, visit);
    });
    if (gradients.da_wanted) {
      constexpr int64_t kRows = 64;  // a task: its sums stay in L2
      for_each(pool, ceil_div(rows, kRows), [&](int64_t index) {
        const int64_t row = index * kRows;
        row_gradient_task(b, gradients, chunk, chunk + row, min_of(kRows, rows - row), first, slots);
      });
    }
    visit.end_chunk(pool, chunk, rows, slots);
  }
}

template <class Out>
constexpr float kLargest = kInf;
template <>
constexpr float kLargest<f16> = 65504.0f;

// out[i] = factor_i * scale * (t_i - along_i (rows_i . t_i) rows_i): the normalisation's gradient, t = inverse_i dx b.
// along_i is inverse_i^2, or 0 where nothing is normalised or the norm is below 1e-12 and constant.
template <class T, class Out>
void write_rows(const Side<T>& side, int64_t first, int64_t count, const float* t, float scale, Out* out) {
  [[maybe_unused]] const vf largest = splat(kLargest<Out>);
  for (int64_t i = first; i < first + count; i++, t += side.ld) {
    const T* row = side.row(i);
    vf dot{};
    for (int64_t c = 0; c < side.dim; c += kLanes) dot = fma(load_as_float(row + c), load(t + c), dot);
    const vf along = splat(-side.along.get()[i] * float(reduce_add_double(dot))),
             f = splat(side.factor.get()[i] * scale);
    Out* to = out + i * side.dim;
    for (int64_t c = 0; c < side.dim; c += kLanes) {
      vf g = f * fma(along, load_as_float(row + c), load(t + c));
      if constexpr (kLargest<Out> != kInf) g = max(-largest, min(largest, g));  // a zero row's does not fit
      if (c + kLanes <= side.dim) {
        store_as(to + c, g);
      } else {
        store_as(to + c, g, int(side.dim - c));
      }
    }
  }
}

template <class T>
void write_rows(const Side<T>& side, int64_t first, int64_t count, const float* t, float scale, void* out,
                DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return write_rows(side, first, count, t, scale, static_cast<bf16*>(out));
    case DType::kFloat16:
      return write_rows(side, first, count, t, scale, static_cast<f16*>(out));
    default:
      return write_rows(side, first, count, t, scale, static_cast<float*>(out));
  }
}

// The sums of a sweep as gradients of the features, times scale. Symmetric: both sums go to da.
template <class T>
void write_gradients(const Side<T>& a, const Side<T>& b, const Gradients<T>& gradients, float scale, void* da, void* db,
                     DType dtype, const ThreadPool& pool) {
  const bool symmetric = &a == &b;
  if (da && !symmetric) {
    for_each(pool, a.strips, [&](int64_t s) {
      const int64_t first = s * kStrip;
      write_rows(a, first, min_of(kStrip, a.n - first), gradients.da.get() + first * a.ld, scale, da, dtype);
    });
  }
  if (!db && !symmetric) return;
  for_each(pool, b.strips, [&](int64_t s) {
    const int64_t first = s * kStrip, count = min_of(kStrip, b.n - first);
    float* t = gradients.db.get() + first * b.ld;
    if constexpr (sizeof(T) == 2) {
      const int64_t dim = round_up(b.dim, 16);
      float* rows;
      with_arena([&](Arena& arena) { rows = arena.take<float>(kStrip * b.ld); });
      transpose(gradients.db.get() + s * dim * kStrip, kStrip, dim, count, rows, b.ld);  // with the zeros that pad dim
      t = rows;
    }
    if (symmetric) {
      const float* own = gradients.da.get() + first * a.ld;
      for (int64_t i = 0; i < count; i++) {
        for (int64_t c = 0; c < b.dim; c++) t[i * b.ld + c] += own[i * b.ld + c];
      }
    }
    write_rows(b, first, count, t, scale, symmetric ? da : db, dtype);
  });
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
