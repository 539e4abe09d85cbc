// What is kept of a line (row or column) of logits while tiles of it are seen: (top, rest), its largest visible logit so far
// and the sum of exp(x - top) over the others, so that a line with one dominant logit keeps its tiny rest in full.
//
// Taking in a tile's part of a row,
//
//     new = max(top, max x);   rest' = rest exp(top - new) + sum_{x < new} exp(x - new) + #{x = new} + (exp(top - new) - 1
//                                                                                                     if top < new)
// and two lines that meet become
//
//     e = exp(-|top_1 - top_2|);   the larger's rest + ((the smaller's rest) + 1) e
#pragma once

#include "cuda/pair_logits.cuh"

namespace fastfuse::cuda {

inline constexpr float kHidden = -1e38f;  // a logit that is left out, and the top of nothing

// What is kept of a line: planes of a part. Sums are of x. kSum, over all pairs, is the last: columns have it only where it
// is asked for.
// clang-format off
enum LinePlane { kTop, kRest, kPositives, kCount, kSum, kPlanes };
// clang-format on

FF_HOST_DEVICE constexpr int col_planes(bool uniform) { return uniform ? kPlanes : kSum; }

FF_DEVICE void merge_lines(float other_top, float other_rest, float& top, float& rest) {
  const float difference = other_top - top, e = exp_of(difference > 0 ? -difference : difference);
  rest = difference > 0 ? other_rest + (rest + 1) * e : rest + (other_rest + 1) * e;
  top = maximum(top, other_top);
}

// What two planes of a line become when they take in two others.
struct MergeLines {
  FF_DEVICE void operator()(float other_top, float other_rest, float& top, float& rest) const {
    merge_lines(other_top, other_rest, top, rest);
  }
};
struct AddBoth {
  FF_DEVICE void operator()(float first, float second, float& to_first, float& to_second) const {
    to_first += first;
    to_second += second;
  }
};

// Row h's part of a tile.
template <int kCount>
FF_DEVICE void take_in(const float (&x)[kCount], int h, float& top, float& rest) {
  float now = top;
#pragma unroll
  for (int i = 0; i < kCount / 2; i++) now = maximum(now, x[i / 2 * 4 + 2 * h + i % 2]);
  float others = 0, equal = 0;
#pragma unroll
  for (int i = 0; i < kCount / 2; i++) {
    const float below = x[i / 2 * 4 + 2 * h + i % 2] - now;
    if (below < 0) {
      others += exp_of(below);
    } else {
      equal += 1;
    }
    if (i % 8 == 7) warp_sync();  // keeps the compiler from having too much in flight for its registers
  }
  const float old = exp_of(top - now);
  rest = rest * old + others + (top < now ? old + (equal - 1) : equal);
  top = now;
}

}  // namespace fastfuse::cuda
