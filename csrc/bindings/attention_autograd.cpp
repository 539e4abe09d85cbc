// Attention on CPU tensors with its autograd, for a call that nobody watches: fastfuse/ops/attention.py's, which serves
// the others, costs several times as much where the kernels around it have swept the caches.
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "bindings/attention.h"

namespace at::functorch {
TORCH_API Tensor unwrapIfDead(const Tensor& tensor);  // its header includes one that torch does not install
}

namespace fastfuse {
namespace {

namespace py = pybind11;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What has no gradient.
struct Options {
  const OptionalTensor &lo, &hi;
  double scale, softcap, dropout_p;
  const OptionalTensor& seed;
};

OptionalTensor given(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }
Tensor or_undefined(const OptionalTensor& t) { return t.value_or(Tensor()); }

// Whether Python's backward has to serve: to be differentiated once more (create_graph), or for a mode or a transform.
bool watched() {
  return at::GradMode::is_enabled() || c10::impl::dispatch_mode_enabled() ||
         c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

struct Attention : torch::autograd::Function<Attention> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                               const OptionalTensor& bias, const OptionalTensor& sink, const OptionalTensor& gate,
                               const Options& o) {
    auto [out, lse_pair, kept] =
        attention_fwd_kept(q, k, v, o.lo, o.hi, bias, sink, gate, o.scale, o.softcap, o.dropout_p, o.seed);
    ctx->save_for_backward({q, k, v, or_undefined(o.lo), or_undefined(o.hi), or_undefined(bias), or_undefined(sink),
                            or_undefined(gate), out, lse_pair, or_undefined(o.seed), kept});
    ctx->saved_data["numbers"] = std::vector{o.scale, o.softcap, o.dropout_p};
    ctx->set_materialize_grads(false);
    return {out, lse_pair};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& douts) {
    variable_list grads(7);  // of q, k, v, bias, sink, gate and the options
    const Tensor &dout = douts[0], &dlse_pair = douts[1];
    if (!dout.defined() && !dlse_pair.defined()) return grads;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], &lo = saved[3], &hi = saved[4], &bias = saved[5];
    const Tensor &sink = saved[6], &gate = saved[7], &out = saved[8], &lse_pair = saved[9], &seed = saved[10];
    const std::vector<double> numbers = ctx->saved_data["numbers"].toDoubleVector();
    const double scale = numbers[0], softcap = numbers[1], dropout_p = numbers[2];
    std::vector<bool> needs;
    size_t edge = 0;  // absent tensors have none
    for (const Tensor* t : {&q, &k, &v, &bias, &sink, &gate}) {
      needs.push_back(t->defined() && ctx->needs_input_grad(edge++));
    }
    if (watched()) {
      const py::gil_scoped_acquire locked;
      const py::object gradients = py::module_::import("fastfuse.ops.attention").attr("gradients");
      const auto found = gradients(dout, dlse_pair, q, k, v, lo, hi, bias, sink, gate, out, lse_pair, scale, softcap,
                                   dropout_p, seed, needs, "cpu")
                             .cast<std::vector<OptionalTensor>>();
      std::transform(found.begin(), found.end(), grads.begin(), or_undefined);
    } else {
      const auto found = attention_bwd(dout.defined() ? with_contiguous_last_dim(dout) : at::zeros_like(out),
                                       dlse_pair.defined() ? OptionalTensor(dlse_pair.select(0, 0)) : std::nullopt, q,
                                       k, v, given(lo), given(hi), given(bias), given(sink), given(gate), out, lse_pair,
                                       scale, softcap, dropout_p, given(seed), needs, saved[11]);
      for (size_t i = 0; i < found.size(); i++) {
        if (needs[i]) grads[i] = found[i];
      }
    }
    return grads;
  }
};

std::tuple<Tensor, Tensor> attention(Tensor q, Tensor k, Tensor v, OptionalTensor lo, OptionalTensor hi,
                                     OptionalTensor bias, OptionalTensor sink, OptionalTensor gate, double scale,
                                     double softcap, double dropout_p, const OptionalTensor& seed) {
  // A tensor that has left a transform of torch.func may still wear its wrapper.
  for (Tensor* t : {&q, &k, &v}) *t = at::functorch::unwrapIfDead(*t);
  for (OptionalTensor* t : {&lo, &hi, &bias, &sink, &gate}) {
    if (*t) *t = at::functorch::unwrapIfDead(**t);
  }
  const auto learned = [](const OptionalTensor& t) { return t && t->requires_grad(); };
  if (!at::GradMode::is_enabled() || !(q.requires_grad() || k.requires_grad() || v.requires_grad() || learned(bias) ||
                                       learned(sink) || learned(gate))) {
    return attention_fwd(q, k, v, lo, hi, bias, sink, gate, scale, softcap, dropout_p, seed);
  }
  const Options options{lo, hi, scale, softcap, dropout_p, seed};
  const variable_list results = Attention::apply(q, k, v, bias, sink, gate, options);
  return {results[0], results[1]};
}

}  // namespace

void register_attention_autograd(py::module& m) {
  m.def("attention", &attention, py::call_guard<py::gil_scoped_release>());
}

}  // namespace fastfuse
