// Attention on CPU tensors with its autograd, for a call that nobody watches: fastfuse/ops/attention.py's, which serves
// the others, costs several times as much where the kernels around it have swept the caches.
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <vector>

#include "bindings/attention.h"

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

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

struct Attention : torch::autograd::Function<Attention> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                               const OptionalTensor& bias, const OptionalTensor& sink, const OptionalTensor& gate,
                               const Options& o) {
    auto [out, lse_pair, kept] =
        attention_fwd_kept(q, k, v, o.lo, o.hi, bias, sink, gate, o.scale, o.softcap, o.dropout_p, o.seed);
    const auto tensor = [](const OptionalTensor& t) { return t.value_or(Tensor()); };
    ctx->save_for_backward({q, k, v, tensor(bias), tensor(sink), tensor(gate), tensor(o.lo), tensor(o.hi),
                            tensor(o.seed), out, lse_pair, kept});
    ctx->saved_data["numbers"] = std::vector<double>{o.scale, o.softcap, o.dropout_p};
    ctx->set_materialize_grads(false);
    return {out, lse_pair};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& douts) {
    variable_list grads(7);  // of forward's arguments
    if (!douts[0].defined() && !douts[1].defined()) return grads;
    const variable_list saved = ctx->get_saved_variables();
    std::vector<bool> needs(6);
    for (int i = 0, edge = 0; i < 6; i++) needs[i] = saved[i].defined() && ctx->needs_input_grad(edge++);
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], &lo = saved[6], &hi = saved[7], &seed = saved[8];
    const OptionalTensor dlse = douts[1].defined() ? OptionalTensor(douts[1].select(0, 0)) : std::nullopt;
    const auto numbers = ctx->saved_data["numbers"].toDoubleVector();
    const double scale = numbers[0], softcap = numbers[1], dropout_p = numbers[2];
    if (at::GradMode::is_enabled()) {  // create_graph: differentiated once more
      const py::gil_scoped_acquire locked;
      const auto inputs = py::make_tuple(q, k, v, saved[3], saved[4], saved[5]);
      const py::object formula = py::module_::import("fastfuse.reference").attr("attention_grads");
      const py::object found = formula(douts[0], dlse, inputs, needs, lo, hi, scale, softcap, dropout_p, seed);
      const auto given = found.cast<std::vector<OptionalTensor>>();
      for (int i = 0; i < 6; i++) grads[i] = given[i].value_or(Tensor());
      return grads;
    }
    const Tensor& out = saved[9];
    const Tensor dout = !douts[0].defined()       ? at::zeros_like(out)
                        : douts[0].stride(3) == 1 ? douts[0]
                                                  : douts[0].contiguous();  // a sum's gradient has stride 0
    const auto found =
        attention_bwd(dout, dlse, q, k, v, optional(lo), optional(hi), optional(saved[3]), optional(saved[4]),
                      optional(saved[5]), out, saved[10], scale, softcap, dropout_p, optional(seed), needs, saved[11]);
    for (int i = 0; i < 6; i++) {
      if (needs[i]) grads[i] = found[i];
    }
    return grads;
  }
};

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& lo,
                                     const OptionalTensor& hi, const OptionalTensor& bias, const OptionalTensor& sink,
                                     const OptionalTensor& gate, double scale, double softcap, double dropout_p,
                                     const OptionalTensor& seed) {
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
