// The list of kernel variants, and the names that options and tables use for fp8 modes.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.hpp"
#include "core/text.hpp"
#include "kernels/decode/host.hpp"
#include "kernels/hopper/host.hpp"
#include "kernels/portable/host.hpp"
#include "kernels/swap_ab/host.hpp"
#include "kernels/variant.hpp"

namespace moetune {

Parameter fuse_combine() {
  return {"FUSE_COMBINE",
          {0, 1},
          0,
          "1: the GEMM adds weighted rows to their tokens, in bf16 and in no fixed order, 0: a "
          "kernel sums them in order"};
}

Parameter fp8_parameter(Fp8Mode mode, std::string help) {
  std::vector<int> values{0, 1};
  if (mode == Fp8Mode::off) values = {0};
  if (mode == Fp8Mode::on) values = {1};
  return {"FP8", values, values.front(), std::move(help)};
}

std::string pair_defect(const Plan& plan) {
  const Step* const first = plan.find("gemm1");
  const Step* const second = plan.find("gemm2");
  if (first == nullptr || second == nullptr) return {};
  if (first->point.value_or("FP8", 0) != second->point.value_or("FP8", 0)) {
    return "fp8_mixed: the two GEMMs of a layer must agree on FP8";
  }
  if (second->point.value_or("JOIN_GEMM1", 0) == 0) return {};
  if (first->variant != second->variant) {
    return fmt::format("joined: JOIN_GEMM1 1 needs a gemm1 of {}, not of {}", second->variant,
                       first->variant);
  }
  for (const auto& [name, value] : first->point.values()) {
    const int wanted = name == "FUSE_SWIGLU" ? 1 : second->point.value_or(name, value);
    if (value != wanted) {
      return fmt::format("joined: JOIN_GEMM1 1 needs a gemm1 with {} {}, not {}", name, wanted,
                         value);
    }
  }
  return {};
}

const std::vector<std::unique_ptr<Variant>>& variants() {
  static const auto list = [] {
    std::vector<std::unique_ptr<Variant>> all;
    all.push_back(make_portable());
    all.push_back(make_hopper());
    all.push_back(swap_ab::make_swap_ab());
    all.push_back(decode::make_decode());
    return all;
  }();
  return list;
}

const Variant& find_variant(std::string_view name) {
  std::vector<std::string> names;
  for (const auto& variant : variants()) {
    if (variant->name() == name) return *variant;
    names.emplace_back(variant->name());
  }
  const std::string near = nearest(name, names);
  throw Error(ErrorKind::input,
              fmt::format("unknown kernel variant '{}'; known: {}{}", name, fmt::join(names, ", "),
                          near.empty() ? "" : fmt::format("; did you mean '{}'?", near)));
}

Fp8Mode parse_fp8_mode(std::string_view text) {
  if (text == "off") return Fp8Mode::off;
  if (text == "on") return Fp8Mode::on;
  if (text == "both") return Fp8Mode::both;
  throw Error(ErrorKind::usage, fmt::format("unknown fp8 mode '{}'; use off, on or both", text));
}

std::string_view to_string(Fp8Mode mode) {
  switch (mode) {
    case Fp8Mode::off:
      return "off";
    case Fp8Mode::on:
      return "on";
    case Fp8Mode::both:
      return "both";
  }
  return "off";
}

Fp8Mode default_fp8_mode(Dtype dtype) {
  return is_fp8(dtype) ? Fp8Mode::on : Fp8Mode::off;
}

}  // namespace moetune
