// The sweep that every contrastive kernel is: chunks of rows x strips of columns, tiles of products, and where
// gradients are wanted two more products of each tile of dx.
//
//   for each chunk of rows                            in order
//     for each strip of columns                       in parallel: one task owns the strip's columns
//       for each panel of kPanel rows of the chunk
//         for each block of rows of the panel
//           tile[kBlock][kStrip] = rows . columns^T   in L1
//           visit(tile)                               statistics, or the products become dx * inverse_i * inverse_j;
//                                                     in bfloat16 most tiles are plain (pair_plain.h)
//         db[strip] += dx^T rows
//     for each block of rows of the chunk             in parallel
//       da[block] = sum over strips of dx . columns   in L2, written as the result
//
// Tiles that a forward has kept (pair_kept.h) are not multiplied again.
//
// A chunk is as long as what is kept of it allows (kChunkBytes): threads join twice a chunk. Every sum is taken in an
// order that depends neither on that nor on the threads. Symmetric (b is a): tiles below the diagonal are left out.
// Those on it hold each pair twice and feed da only; those above it, mirrored, hold each pair once, and the columns'
// sums of a chunk's own rows, complete after its strips, are added to the rows'.
#pragma once

#include "cpu/arena.h"
#include "cpu/pair_kept.h"
#include "cpu/pair_plain.h"
#include "cpu/pair_products.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

constexpr int64_t kChunkBytes = 8 << 20;  // of dx, or of the rows' statistics

// Rows of a chunk of which `bytes` are kept for each strip.
FF_INLINE int64_t chunk_rows(int64_t rows, int64_t strips, int64_t bytes) {
  const int64_t fitting = kChunkBytes / (strips * bytes) / kPanel * kPanel;
  return min_of(round_up(rows, kPanel), max_of(kPanel, fitting));
}

struct TileAt {
  int64_t chunk;        // the chunk's first row
  int64_t row, rows;    // of the tile
  int64_t strip, slot;  // slot: the strip's position among those of the chunk
  int64_t col, cols;    // of the tile; columns beyond `cols` are not there
  bool mirrored;        // the tile also stands for its transpose, across the diagonal
};

// One chunk of a sweep: its rows, and the strips that it meets.
struct Chunk {
  int64_t first, rows;
  int64_t first_strip, slots;
  bool symmetric;

  // The first slot that row `row` meets.
  int64_t first_slot(int64_t row) const { return symmetric ? row / kStrip - first_strip : 0; }
};

// What a sweep makes gradients of: dx of one chunk, the columns' sums, and where the results go.
template <class T>
struct Gradients {
  void *da, *db;       // results, null where not wanted; symmetric: da alone
  DType dtype;         // of the results
  float scale;         // factor of the results
  bool columns;        // their sums are wanted
  int64_t rows;        // of a chunk
  Buffer<T> dx;        // [strips][rows][kStrip]
  Buffer<float> sums;  // db as in pair_products.h

  Gradients(const Side<T>& a, const Side<T>& b, void* da, void* db, DType dtype, float scale)
      : da(da),
        db(db),
        dtype(dtype),
        scale(scale),
        columns(db || (da && &a == &b)),
        rows(chunk_rows(a.n, b.strips, kStrip * sizeof(T))) {
    if (wanted()) dx = Buffer<T>(b.strips * rows * kStrip);
    if (columns) sums = Buffer<float>(b.strips * kStrip * b.ld);
  }
  bool wanted() const { return da || columns; }
  float* strip(const Side<T>& b, int64_t s) const {
    return sums.get() + s * kStrip * (Products<T>::kTransposed ? round_up(b.dim, 16) : b.ld);
  }
  T* slot(int64_t index, int64_t row) const { return dx.get() + (index * rows + row) * kStrip; }
};

#if defined(__AVX512BF16__)
// A tile of dx in bfloat16; what lies outside of it is 0.
FF_INLINE void narrow_tile(float* tile, int64_t rows, int64_t cols, const GradientTile& to) {
  __builtin_memset(tile + rows * kStrip, 0, size_t((kBlock - rows) * kStrip) * sizeof(float));
  for (int64_t r = 0; r < kBlock; r += 2, tile += 2 * kStrip) {
    for (int64_t v = 0; v < cols; v += 2 * kLanes) {
      const bool both = v + kLanes < cols;
      to.put(r, v, in_step<4>([&](int i) { return i % 2 && !both ? vf{} : load(tile + quad_at(i, v)); }));
    }
  }
}
#endif

template <class T, class Visit>
void strip_task(const Side<T>& a, const Side<T>& b, Gradients<T>& gradients, const Kept& kept, const Chunk& chunk,
                int64_t slot, Visit& visit) {
  [[maybe_unused]] typename Products<T>::Session session;
  float* scratch;
  T* pairs = nullptr;  // bf16: dx as [kPanel / 2][kStrip][2]
  with_arena([&](Arena& arena) {
    scratch = arena.take<float>(kBlock * kStrip);
    if (sizeof(T) == 2 && gradients.wanted()) pairs = arena.take<T>(kPanel * kStrip);
  });
  const int64_t strip = chunk.first_strip + slot, col = strip * kStrip, cols = min_of(kStrip, b.n - col);
  const int64_t rows = chunk.symmetric ? min_of(chunk.rows, col + kStrip - chunk.first) : chunk.rows;
  for (int64_t panel = 0; panel < rows; panel += kPanel) {
    const int64_t panel_rows = min_of(kPanel, rows - panel);
    T* dx = gradients.wanted() ? gradients.slot(slot, panel) : nullptr;
    for (int64_t r = 0; r < panel_rows; r += kBlock) {
      const int64_t row = chunk.first + panel + r;
      const TileAt at{chunk.first, row,  min_of(kBlock, panel_rows - r), strip, slot,
                      col,         cols, chunk.symmetric && row < col};
      float* tile = scratch;
      if constexpr (sizeof(T) == 4) {
        if (dx) tile = dx + r * kStrip;
      }
      float* products = kept.floats(row, strip);
      if (!products) products = tile;
      if (!kept.serves(row, strip)) {
        Products<T>::logits(a.row(row), a.ld, at.rows, b.strip(strip), cols, a.dim, products,
                            dx ? a.summed_row(row) : nullptr);
      }
#if defined(__AVX512BF16__)
      if constexpr (sizeof(T) == 2) {
        const GradientTile to = dx ? GradientTile{dx + r * kStrip, pairs + r * kStrip} : GradientTile{};
        if (at.rows == kBlock && cols == kStrip && visit.plain(at)) {
          visit.visit_plain(at, products, to);
          continue;
        }
        visit(at, products, tile);
        if (dx) narrow_tile(tile, at.rows, cols, to);
        continue;
      }
#endif
      visit(at, products, tile);
    }
    const int64_t row = chunk.first + panel, counted = chunk.symmetric ? min_of(panel_rows, col - row) : panel_rows;
    if (gradients.columns && counted > 0) {
      Products<T>::column_gradient(a, row, counted, pairs ? pairs : dx, cols, gradients.strip(b, strip), row > 0);
    }
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

// The columns' sums of rows [first, first + count), all of one strip, as rows [count][ld]; in `scratch` where they are
// transposed.
template <class T>
float* sums_of_rows(const Side<T>& b, const Gradients<T>& gradients, int64_t first, int64_t count, float* scratch) {
  float* sums = gradients.strip(b, first / kStrip);
  if constexpr (!Products<T>::kTransposed) return sums + first % kStrip * b.ld;
  transpose(sums + first % kStrip, kStrip, round_up(b.dim, 16), count, scratch, b.ld);  // with the zeros that pad dim
  return scratch;
}

constexpr int64_t kGradientRows = 64;  // of a task: their sums stay in L2

// da[row .. row + rows) = sum over the chunk's strips of dx . columns
template <class T>
void row_gradient_task(const Side<T>& a, const Side<T>& b, Gradients<T>& gradients, const Chunk& chunk, int64_t row,
                       int64_t rows) {
  [[maybe_unused]] typename Products<T>::Session session;
  float *sums, *scratch;
  with_arena([&](Arena& arena) {
    sums = arena.take<float>(kGradientRows * b.ld);
    scratch = arena.take<float>(kGradientRows * b.ld);
  });
  const int64_t first = chunk.first_slot(row);
  for (int64_t slot = first; slot < chunk.slots; slot++) {
    const int64_t col = (chunk.first_strip + slot) * kStrip, cols = min_of(kStrip, b.n - col), r = row - chunk.first;
    Products<T>::row_gradient(b, rows, gradients.slot(slot, r), col, cols, sums, slot > first,
                              gradients.slot(slot + 1, r));
  }
  if (chunk.symmetric && row >= kStrip) {
    const float* mirrored = sums_of_rows(b, gradients, row, rows, scratch);
    for (int64_t i = 0; i < rows * b.ld; i += kLanes) store(sums + i, load(sums + i) + load(mirrored + i));
  }
  write_rows(a, row, rows, sums, gradients.scale, gradients.da, gradients.dtype);
}

template <class T>
void column_gradient_task(const Side<T>& b, const Gradients<T>& gradients, int64_t first) {
  float* scratch;
  with_arena([&](Arena& arena) { scratch = arena.take<float>(kStrip * b.ld); });
  const int64_t count = min_of(kStrip, b.n - first);
  write_rows(b, first, count, sums_of_rows(b, gradients, first, count, scratch), gradients.scale, gradients.db,
             gradients.dtype);
}

// visit(TileAt, const float* products, float* dx) for every tile, which may be the same memory; a tile that `kept` serves
// as int16 has no products. bf16: visit.visit_plain(TileAt, products, GradientTile) instead for whole tiles that
// visit.plain(TileAt) accepts. visit.end_chunk(pool, chunk) after each chunk of `rows` rows.
template <class T, class Visit>
void sweep(const Side<T>& a, const Side<T>& b, Gradients<T>& gradients, const Kept& kept, int64_t rows,
           const ThreadPool& pool, Visit& visit) {
  const bool symmetric = &a == &b;
  for (int64_t first = 0; first < a.n; first += rows) {
    const int64_t first_strip = symmetric ? first / kStrip : 0;
    const Chunk chunk{first, min_of(rows, a.n - first), first_strip, b.strips - first_strip, symmetric};
    for_each(pool, chunk.slots, [&](int64_t slot) { strip_task(a, b, gradients, kept, chunk, slot, visit); });
    if (gradients.da) {
      for_each(pool, ceil_div(chunk.rows, kGradientRows), [&](int64_t index) {
        const int64_t r = index * kGradientRows;
        row_gradient_task(a, b, gradients, chunk, first + r, min_of(kGradientRows, chunk.rows - r));
      });
    }
    visit.end_chunk(pool, chunk);
  }
  if (gradients.db) {
    for_each(pool, b.strips, [&](int64_t s) { column_gradient_task(b, gradients, s * kStrip); });
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
