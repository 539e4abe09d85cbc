// Attention on CPU tensors, shared by its bindings and its autograd. Shapes and letters as in fastfuse/attention.h.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <tuple>
#include <vector>

namespace fastfuse {

using OptionalTensor = std::optional<at::Tensor>;

inline at::Tensor with_contiguous_last_dim(const at::Tensor& t) { return t.stride(3) == 1 ? t : t.contiguous(); }

// (out, lse_pair)
std::tuple<at::Tensor, at::Tensor> attention_fwd(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                 const OptionalTensor& lo, const OptionalTensor& hi,
                                                 const OptionalTensor& bias, const OptionalTensor& sink,
                                                 const OptionalTensor& gate, double scale, double softcap,
                                                 double dropout_p, const OptionalTensor& seed);

// (out, lse_pair, kept): kept is what there is for the backward, perhaps nothing.
std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_fwd_kept(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& lo, const OptionalTensor& hi,
    const OptionalTensor& bias, const OptionalTensor& sink, const OptionalTensor& gate, double scale, double softcap,
    double dropout_p, const OptionalTensor& seed);

// dq, dk, dv, dbias, dsink, dgate; of shape (0,) where it is not needed.
std::vector<at::Tensor> attention_bwd(const at::Tensor& dout, const OptionalTensor& dlse, const at::Tensor& q,
                                      const at::Tensor& k, const at::Tensor& v, const OptionalTensor& lo,
                                      const OptionalTensor& hi, const OptionalTensor& bias, const OptionalTensor& sink,
                                      const OptionalTensor& gate, const at::Tensor& out, const at::Tensor& lse_pair,
                                      double scale, double softcap, double dropout_p, const OptionalTensor& seed,
                                      const std::vector<bool>& needs, const OptionalTensor& kept);

}  // namespace fastfuse
