// fastfuse._C: one register function for each family of kernels, and the choice of the instruction set.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "fastfuse/cpu.h"

namespace fastfuse {
void register_attention(pybind11::module& m);
void register_attention_autograd(pybind11::module& m);
void register_pair(pybind11::module& m);
void register_retrieval(pybind11::module& m);
}  // namespace fastfuse

namespace py = pybind11;
using namespace fastfuse;

PYBIND11_MODULE(_C, m) {
  m.def("cpu_isa", [] { return std::string(cpu::isa_name(cpu::current_isa())); }, "The instruction set in use.");
  m.def(
      "cpu_isas",
      [] {
        std::vector<std::string> names;
        for (int i = 0; i < cpu::kIsaCount; i++) {
          if (cpu::isa_available(cpu::Isa(i))) names.push_back(cpu::isa_name(cpu::Isa(i)));
        }
        return names;
      },
      "The instruction sets that are built in and that this machine runs, lowest first.");
  m.def(
      "set_cpu_isa",
      [](const std::string& name) {
        if (!cpu::set_isa(name.c_str())) throw py::value_error("set_cpu_isa: \"" + name + "\" is not available here");
      },
      "Caps the instruction set: one of cpu_isas(), or \"auto\".");
  m.def("empty_cache", &cpu::empty_cache,
        "Gives the memory that calls have left for the next ones back to the system.");
  register_attention(m);
  register_attention_autograd(m);
  register_pair(m);
  register_retrieval(m);
}
