#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "cli/cache_dir.hpp"
#include "cli/command.hpp"
#include "cli/problem_options.hpp"
#include "core/child_process.hpp"
#include "core/error.hpp"
#include "jit/compiler.hpp"
#include "kernels/support/support.hpp"
#include "kernels/variant.hpp"
#include "report/progress.hpp"
#include "report/text_table.hpp"
#include "search/legal_points.hpp"

namespace moetune {
namespace {

struct CompileOptions {
  ProblemOptions problem;
  std::vector<std::string> archs;
  std::vector<std::string> stages = {"gemm1", "gemm2"};
  std::vector<std::int64_t> token_counts = default_token_counts();
  std::string fp8;  // empty: what the dtype implies
  std::size_t sample = 0;
  int num_jobs = 0;
  std::string cache_dir = default_cache_dir();
  bool json = false;
};

struct ArchResult {
  std::string arch;
  std::size_t num_kernels = 0;
  int compiled = 0;
  int cached = 0;
  int uncached = 0;  // compiled, but the cache directory did not take them
  int failed = 0;
  int spilled = 0;
  int min_registers = 0;  // over the GEMM kernels
  int max_registers = 0;
  double seconds = 0;
  std::vector<std::string> errors;  // one line a kernel that failed
};

// The different kernels behind the legal points of one stage, at any of the token counts.
std::vector<KernelSource> stage_sources(const Variant& variant, const Gpu& gpu, Stage stage,
                                        const CompileOptions& options) {
  const Problem problem = options.problem.make(options.token_counts.back());
  const Fp8Mode fp8 =
      options.fp8.empty() ? default_fp8_mode(problem.dtype) : parse_fp8_mode(options.fp8);
  std::set<std::string> seen;
  std::vector<Point> points;  // one for each kernel
  for (const std::int64_t num_tokens : options.token_counts) {
    Problem at = problem;
    at.num_tokens = num_tokens;
    std::vector<Point> legal = enumerate(variant.space(gpu, at, stage, fp8)).points;
    if (stage == Stage::gemm2) {  // which then does GEMM1 too
      for (const Plan& plan : variant.joined_plans(gpu, at, fp8)) {
        legal.push_back(plan.find(to_string(stage))->point);
      }
    }
    for (Point& point : legal) {
      const auto expressions = variant.source(gpu, at, stage, point).expressions;
      if (seen.insert(fmt::format("{}", fmt::join(expressions, "\n"))).second) {
        points.push_back(std::move(point));
      }
    }
  }
  if (options.sample > 0 && options.sample < points.size()) {
    shuffle(points, options.problem.seed);
    points.resize(options.sample);
  }
  std::vector<KernelSource> sources;
  sources.reserve(points.size());
  for (const Point& point : points) {
    sources.push_back(variant.source(gpu, problem, stage, point));
  }
  return sources;
}

std::vector<KernelSource> gemm_sources(const Gpu& gpu, const CompileOptions& options) {
  std::vector<KernelSource> sources;
  for (const auto& variant : variants()) {
    if (!variant->supports(gpu, parse_dtype(options.problem.dtype))) continue;
    for (const std::string& stage : options.stages) {
      const auto more = stage_sources(*variant, gpu, parse_stage(stage), options);
      sources.insert(sources.end(), more.begin(), more.end());
    }
  }
  return sources;
}

class Display {
 public:
  explicit Display(const ArchResult& result)
      : result_(result), mode_(progress_mode(!spdlog::should_log(spdlog::level::info))) {}
  ~Display() {
    if (mode_ == ProgressMode::live) fmt::print(stderr, "\r\x1b[K");
  }
  Display(const Display&) = delete;
  Display& operator=(const Display&) = delete;

  void update(std::size_t num_done) {
    const auto line = fmt::format("{}: {}/{} kernels, {} failed, {} spilled", result_.arch,
                                  num_done, result_.num_kernels, result_.failed, result_.spilled);
    if (mode_ == ProgressMode::live) fmt::print(stderr, "\r{}\x1b[K", line);
    const std::size_t tenth = num_done * 10 / result_.num_kernels;
    if (mode_ == ProgressMode::plain && tenth > last_tenth_) spdlog::info("{}", line);
    last_tenth_ = tenth;
  }

 private:
  const ArchResult& result_;
  ProgressMode mode_;
  std::size_t last_tenth_ = 0;
};

void count(const Cubin& cubin, const KernelSource& source, bool is_gemm, ArchResult& result) {
  if (!cubin.ok()) {
    result.errors.push_back(fmt::format("{} for {}: {}", fmt::join(source.expressions, ", "),
                                        result.arch, cubin.error));
    ++result.failed;
    return;
  }
  bool spilled = false;
  for (const auto& [expression, name, used] : cubin.kernels) {
    spilled = spilled || used.stack_bytes > 0;
    if (!is_gemm) continue;
    result.max_registers = std::max(result.max_registers, used.registers);
    result.min_registers =
        result.min_registers == 0 ? used.registers : std::min(result.min_registers, used.registers);
  }
  if (spilled) ++result.spilled;
}

ArchResult compile_arch(const Gpu& gpu, std::vector<KernelSource> sources, std::size_t num_gemms,
                        const CompileOptions& options) {
  ArchResult result;
  result.arch = arch_name(gpu);
  result.num_kernels = sources.size();
  const auto start = std::chrono::steady_clock::now();
  Compiler compiler(result.arch, options.cache_dir, options.num_jobs, embedded_kernels(),
                    kOwnProgram);
  for (const KernelSource& source : sources) compiler.submit(source);
  {
    Display display(result);
    for (std::size_t i = 0; i < sources.size(); ++i) {
      count(*compiler.submit(sources[i]).get(), sources[i], i < num_gemms, result);
      display.update(i + 1);
    }
  }
  const Compiler::Stats stats = compiler.stats();
  result.compiled = stats.compiled;
  result.cached = stats.cache_hits;
  result.uncached = stats.not_stored;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

nlohmann::ordered_json results_json(const std::vector<ArchResult>& results,
                                    const CompileOptions& options) {
  auto archs = nlohmann::ordered_json::array();
  for (const ArchResult& result : results) {
    archs.push_back({{"arch", result.arch},
                     {"supported", result.num_kernels > 0},
                     {"num_kernels", result.num_kernels},
                     {"compiled", result.compiled},
                     {"cached", result.cached},
                     {"failed", result.failed},
                     {"spilled", result.spilled},
                     {"min_registers", result.min_registers},
                     {"max_registers", result.max_registers},
                     {"seconds", result.seconds},
                     {"errors", result.errors}});
  }
  return {{"dtype", options.problem.dtype},
          {"nvrtc", nvrtc_version()},
          {"cache_dir", options.cache_dir},
          {"archs", archs}};
}

std::string results_text(const std::vector<ArchResult>& results) {
  TextTable table({"<arch", "compiled", "cached", "failed", "spilled", "registers", "seconds"});
  for (const ArchResult& r : results) {
    if (r.num_kernels == 0) {
      table.add({r.arch, "-", "-", "-", "-", "-", "-"});
      continue;
    }
    table.add({r.arch, std::to_string(r.compiled), std::to_string(r.cached),
               std::to_string(r.failed), std::to_string(r.spilled),
               fmt::format("{}..{}", r.min_registers, r.max_registers),
               fmt::format("{:.1f}", r.seconds)});
  }
  return table.text();
}

int compile_kernels(const CompileOptions& options) {
  const Problem problem = options.problem.make(options.token_counts.back());
  std::vector<Gpu> gpus;
  for (const std::string& arch : options.archs) {
    const Gpu gpu = gpu_for_arch(arch);
    const auto same = [&](const Gpu& other) { return other.cc() == gpu.cc(); };
    if (std::none_of(gpus.begin(), gpus.end(), same)) gpus.push_back(gpu);
  }

  const auto runs = [&](const Gpu& gpu) {
    return std::any_of(variants().begin(), variants().end(),
                       [&](const auto& variant) { return variant->supports(gpu, problem.dtype); });
  };
  if (std::none_of(gpus.begin(), gpus.end(), runs)) {
    throw Error(ErrorKind::usage,
                fmt::format("no kernel runs {} on {}; use --dtype bf16 or a later architecture",
                            to_string(problem.dtype), fmt::join(options.archs, ", ")));
  }

  std::vector<ArchResult> results;
  int failed = 0;
  int uncached = 0;
  for (const Gpu& gpu : gpus) {
    if (!runs(gpu)) {
      spdlog::info("{}: no kernel runs {} there", arch_name(gpu), to_string(problem.dtype));
      results.emplace_back().arch = arch_name(gpu);
      continue;
    }
    std::vector<KernelSource> sources = gemm_sources(gpu, options);
    const std::size_t num_gemms = sources.size();
    for (KernelSource& source : support_sources(problem)) {
      sources.push_back(std::move(source));
    }
    results.push_back(compile_arch(gpu, std::move(sources), num_gemms, options));
    for (const std::string& error : results.back().errors) spdlog::error("{}", error);
    failed += results.back().failed;
    uncached += results.back().uncached;
  }
  if (options.json) {
    fmt::print("{}\n", results_json(results, options).dump(2));
  } else {
    fmt::print("{}", results_text(results));
  }
  if (uncached > 0) {
    throw Error(ErrorKind::io,
                fmt::format("{} compiled kernels could not be kept in {}: free space or choose "
                            "another directory with --cache",
                            uncached, options.cache_dir));
  }
  return failed > 0 ? exit_code(ErrorKind::failed) : 0;
}

}  // namespace

void add_compile(CLI::App& app, Run& run) {
  CLI::App* command =
      app.add_subcommand("compile", "Fill the cubin cache for given architectures; needs no GPU");
  command->footer(
      "\nExample:\n  moe-tune compile --model mixtral-8x7b --arch sm_80,sm_90a --sample 20\n\n"
      "Exit codes: 0 everything compiled (kernels that spill are counted, a search rejects them);\n"
      "1 a kernel failed to compile; 2 bad usage or an unwritable cache; 3 no NVRTC.");
  auto options = std::make_shared<CompileOptions>();
  options->problem.add_to(*command);
  command->add_option("--arch", options->archs, "Architectures, a list: sm_80, sm_90a, ...")
      ->required()
      ->type_name("ARCH,...")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_option("--stage", options->stages, "gemm1, gemm2 or both")
      ->type_name("STAGE,...")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->default_str("gemm1,gemm2")
      ->check(CLI::IsMember({"gemm1", "gemm2"}));
  add_token_counts(*command, options->token_counts);
  command->add_option("--fp8", options->fp8,
                      "off, on or both; when left out, what --dtype implies");
  command
      ->add_option("--sample", options->sample,
                   "GEMM kernels an architecture and stage, drawn by --seed; 0: all")
      ->capture_default_str();
  command->add_option("--jobs", options->num_jobs, "Compilations at once; 0: one a core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_option("--cache", options->cache_dir, "Directory of compiled kernels")
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print JSON");
  command->callback([&run, options] { run = [options] { return compile_kernels(*options); }; });
}

}  // namespace moetune
