// Plain tiles of bfloat16 features: whole, with no positive and no hidden pair. Nothing in them must cancel exactly and
// their gradients are rounded to bfloat16, so that a shorter exponential does; and they need no masks. Visitors take two
// rows at once, whose gradients are written as the products read them.
//
//   Quad                       two vectors of each of two rows
//   exp2_plain(u)              2^u for |u| <= 126, relative error 2.7e-6
//   GradientTile::put(...)     their gradients, as rows and as pairs of rows
#pragma once

#include "cpu/pair_features.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

#if defined(__AVX512BF16__)

// Two vectors of each of two rows: (row, vector) in order, computed in step.
using Quad = Several<vf, 4>;
// Where they are in a tile whose first row is row 0.
FF_INLINE int64_t quad_at(int i, int64_t v) { return i / 2 * kStrip + v + i % 2 * kLanes; }

FF_INLINE vf sum(const Quad& q) { return (q.at[0] + q.at[1]) + (q.at[2] + q.at[3]); }

// Minimax on [-1/2, 1/2]; the exponent is added as an integer, whose bits are the low ones of u + 1.5 2^23.
constexpr float kExp2Plain[] = {9.570101911e-3f, 5.591786032e-2f, 2.402474483e-1f, 6.931218147e-1f, 9.999992614e-1f};
FF_INLINE Quad exp2_plain(const Quad& u) {
  const vf magic = splat(0x1.8p23f);
  const Quad t = in_step<4>([&](int i) { return u.at[i] + magic; });
  const Quad whole = in_step<4>([&](int i) { return t.at[i] - magic; });
  const Quad f = in_step<4>([&](int i) { return u.at[i] - whole.at[i]; });
  const Quad p = polynomial(kExp2Plain, f);
  return in_step<4>([&](int i) { return (vf)((vi)p.at[i] + ((vi)t.at[i] << 23)); });
}

// dx of a tile, [kBlock][kStrip] each.
struct GradientTile {
  bf16 *rows, *pairs;

  FF_INLINE void put(int64_t r, int64_t v, const Quad& g) const {
    const __m512i first = (__m512i)pair(g.at[0], g.at[2]), second = (__m512i)pair(g.at[1], g.at[3]);
    bf16 *row = rows + r * kStrip + v, *paired = pairs + r * kStrip + 2 * v;
    _mm512_storeu_si512(paired, first);
    _mm512_storeu_si512(paired + 2 * kLanes, second);
    _mm512_storeu_si512(row, low_words(first, second));
    _mm512_storeu_si512(row + kStrip, high_words(first, second));
  }
};

#endif

}  // namespace fastfuse::cpu::FASTFUSE_ISA
