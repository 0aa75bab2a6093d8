#include "jit/static_check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "core/error.hpp"

namespace moetune {
namespace {

// The line that says "error", or else the first one: NVRTC's log may begin with warnings.
std::string first_error_line(std::string_view text) {
  std::string_view first;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    if (line.find("error") != std::string_view::npos) return std::string(line);
    if (first.empty()) first = line;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return std::string(first);
}

std::shared_ptr<const Cubin> reject(Trial& trial, std::string_view rule, std::string reason) {
  trial.status = TrialStatus::rejected;
  trial.rule = rule;
  trial.reason = std::move(reason);
  return nullptr;
}

}  // namespace

Stage stage_of(const Step& step) {
  if (step.op == "gemm1") return Stage::gemm1;
  if (step.op == "gemm2") return Stage::gemm2;
  throw Error(ErrorKind::input,
              fmt::format("unknown step \"{}\" in a plan; steps are gemm1 and gemm2", step.op));
}

KernelSource source_of(const Gpu& gpu, const Problem& problem, const Step& step) {
  return find_variant(step.variant).source(gpu, problem, stage_of(step), step.point);
}

std::shared_ptr<const Cubin> check_static(const Gpu& gpu, const Problem& problem, const Step& step,
                                          Compiler& compiler, Trial& trial) {
  const Variant& variant = find_variant(step.variant);
  const Stage stage = stage_of(step);
  if (!variant.supports(gpu, problem.dtype))
    return reject(trial, "unsupported",
                  fmt::format("{} does not run {} on {}", variant.name(), to_string(problem.dtype),
                              gpu.name));

  const auto cubin = compiler.get(source_of(gpu, problem, step));
  trial.compile_ms += cubin->compile_ms;
  if (!cubin->ok()) {
    trial.status = TrialStatus::compile_failed;
    trial.reason = fmt::format("{}: {}", step.op, first_error_line(cubin->error));
    return nullptr;
  }

  const GemmLaunch launch = variant.launch(problem, stage, step.point);
  for (const CompiledKernel& kernel : cubin->kernels) {
    const Resources& used = kernel.resources;
    const int smem_bytes = launch.smem_bytes + used.static_smem_bytes;
    trial.registers = std::max(trial.registers, used.registers);
    trial.spill_bytes = std::max(trial.spill_bytes, used.stack_bytes);
    trial.smem_bytes = std::max(trial.smem_bytes, smem_bytes);
    if (const std::string defect = resource_defect(kernel, cubin->log, launch.num_threads);
        !defect.empty()) {
      const std::size_t colon = defect.find(": ");  // "RULE: reason"
      return reject(trial, defect.substr(0, colon),
                    fmt::format("{}: {}", step.op, defect.substr(colon + 2)));
    }
    if (smem_bytes > gpu.smem_per_block)
      return reject(trial, "shared_memory",
                    fmt::format("{}: needs {} bytes of shared memory, the GPU allows {}", step.op,
                                smem_bytes, gpu.smem_per_block));
  }
  return cubin;
}

}  // namespace moetune
