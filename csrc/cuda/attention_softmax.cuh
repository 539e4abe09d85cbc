// Forward's online softmax, and what it leaves of a row.
#pragma once

#include "cuda/attention_scores.cuh"

namespace fastfuse::cuda {

// Row h of the thread's two: reference M and this thread's share of the sum l.
struct Softmax {
  float max[2], sum[2];

  FF_DEVICE Softmax() : max{minus_infinity(), minus_infinity()}, sum{0, 0} {}

  // x, in units of 1 / factor log2, becomes exp2(x factor - M). rescale: what O so far has to be multiplied by.
  template <int kCount>
  FF_DEVICE void update(float (&x)[kCount], float factor, float (&rescale)[2]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float top = minus_infinity();
#pragma unroll
      for (int i = 0; i < kCount / 2; i++) top = maximum(top, x[i / 2 * 4 + h * 2 + i % 2]);
      top = maximum(top, shuffle_xor(top, 1));
      top = maximum(top, shuffle_xor(top, 2));
      const float now = maximum(max[h], multiply_exactly(top, factor));
      const float offset = now == minus_infinity() ? 0.0f : now;
      rescale[h] = exp2_approx(max[h] - offset);
      max[h] = now;
      float total = 0;
#pragma unroll
      for (int i = 0; i < kCount / 2; i++) {
        float& value = x[i / 2 * 4 + h * 2 + i % 2];
        value = exp2_approx(fused_multiply_add(value, factor, -offset));
        total += value;
      }
      sum[h] = fused_multiply_add(sum[h], rescale[h], total);
    }
  }
};

// high + low = a + b exactly, |a| >= |b| or not.
FF_DEVICE void two_sum(float a, float b, float& high, float& low) {
  high = add_exactly(a, b);
  const float b_part = add_exactly(high, -a), a_part = add_exactly(high, -b_part);
  low = add_exactly(add_exactly(a, -a_part), add_exactly(b, -b_part));
}

// lse of a row in two numbers, and the factor that makes O its result.
struct RowEnd {
  float lse, rest, factor;
};

FF_DEVICE RowEnd row_end(const AttentionForward& p, int head, float max, float sum) {
  constexpr float kLn2 = 0.693147180559945309f, kLn2Rest = -1.90465429995776e-09f;
  RowEnd end{minus_infinity(), 0, 0};
  if (sum > 0) {
    const float natural = multiply_exactly(max, kLn2);
    two_sum(natural, natural_log(sum), end.lse, end.rest);
    end.rest += fused_multiply_add(max, kLn2, -natural) + max * kLn2Rest;
    end.factor = 1.0f / sum;
  }
  if (p.sink) {
    const float sink = load_global(p.sink + head), top = maximum(end.lse, sink);
    const float base = top == minus_infinity() ? 0.0f : top;
    const float share = natural_exp(end.lse - base + end.rest), total = share + natural_exp(sink - base);
    end.factor *= total > 0 ? share / total : 0.0f;
    end.lse = minus_infinity();
    end.rest = 0;
    if (total > 0) two_sum(base, natural_log(total), end.lse, end.rest);
  }
  if (p.gate) end.factor *= hyperbolic_tangent(load_global(p.gate + head));
  return end;
}

}  // namespace fastfuse::cuda
