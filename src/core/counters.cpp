#include "core/counters.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <system_error>

#include "core/child_process.hpp"
#include "core/error.hpp"

namespace moetune {
namespace {

constexpr const char* kTime = "gpu__time_duration.sum";
constexpr const char* kHits = "lts__t_sectors_op_read_lookup_hit.sum";
constexpr const char* kMisses = "lts__t_sectors_op_read_lookup_miss.sum";
constexpr const char* kDramRead = "dram__bytes_read.sum";
constexpr const char* kDramWrite = "dram__bytes_write.sum";
constexpr const char* kTensor = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active";
constexpr const char* kClock = "sm__cycles_elapsed.avg.per_second";
constexpr const char* kWaves = "launch__waves_per_multiprocessor";
constexpr const char* kGrid = "launch__grid_size";
// Few, so that the program need not run often.
constexpr const char* kMetrics[] = {kTime,   kHits,  kMisses, kDramRead, kDramWrite,
                                    kTensor, kClock, kWaves,  kGrid};

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    lines.push_back(line);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

// RFC 4180: a quote within quotes is doubled.
std::vector<std::string> fields_of(std::string_view line) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '"') {
      if (quoted && i + 1 < line.size() && line[i + 1] == '"') {
        fields.back() += line[++i];
      } else {
        quoted = !quoted;
      }
    } else if (line[i] == ',' && !quoted) {
      fields.emplace_back();
    } else {
      fields.back() += line[i];
    }
  }
  return fields;
}

double number_of(std::string text) {
  std::erase(text, ',');
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? value : kUnknown;
}

// "Mbyte" is 1e6, "ns" 1e-9, "cycle/usecond" 1e6; what is no such unit counts as it is.
double scale_of(std::string_view unit) {
  if (const std::size_t slash = unit.find('/'); slash != std::string_view::npos)
    return scale_of(unit.substr(0, slash)) / scale_of(unit.substr(slash + 1));
  for (const std::string_view base : {"second", "byte", "hz", "Hz", "cycle", "sector", "s"}) {
    if (!unit.ends_with(base) || unit.size() != base.size() + 1) continue;
    switch (unit.front()) {
      case 'n':
        return 1e-9;
      case 'u':
        return 1e-6;
      case 'm':
        return 1e-3;
      case 'k':
      case 'K':
        return 1e3;
      case 'M':
        return 1e6;
      case 'G':
        return 1e9;
      default:
        return 1;
    }
  }
  return 1;
}

class Columns {
 public:
  Columns() = default;
  explicit Columns(std::vector<std::string> names) : names_(std::move(names)) {}
  void set_units(std::vector<std::string> units) { units_ = std::move(units); }
  std::size_t size() const { return names_.size(); }
  std::string text(std::string_view name, const std::vector<std::string>& row) const {
    const auto found = std::find(names_.begin(), names_.end(), name);
    return found == names_.end() ? "" : row[static_cast<std::size_t>(found - names_.begin())];
  }
  double number(std::string_view name, const std::vector<std::string>& row) const {
    return number_of(text(name, row)) * (units_.empty() ? 1 : scale_of(text(name, units_)));
  }

 private:
  std::vector<std::string> names_, units_;
};

KernelCounters kernel_of(const Columns& columns, const std::vector<std::string>& row) {
  KernelCounters kernel;
  kernel.name = columns.text("Kernel Name", row);
  kernel.time_us = columns.number(kTime, row) * 1e6;
  kernel.l2_hits = columns.number(kHits, row);
  kernel.l2_misses = columns.number(kMisses, row);
  kernel.dram_read_bytes = columns.number(kDramRead, row);
  kernel.dram_write_bytes = columns.number(kDramWrite, row);
  kernel.tensor_busy_pct = columns.number(kTensor, row);
  kernel.sm_mhz = columns.number(kClock, row) / 1e6;
  kernel.waves = columns.number(kWaves, row);
  kernel.grid = columns.number(kGrid, row);
  return kernel;
}

// All that it prints until it ends; `timed_out` when it had to be ended.
std::string output_of(const std::vector<std::string>& argv, int timeout_s, bool& timed_out,
                      std::string& end) {
  ChildProcess child(argv, ChildEnd::standard_streams);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(timeout_s);
  std::string output;
  char chunk[65536];
  timed_out = false;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    pollfd waiting{child.socket(), POLLIN, 0};
    const int ready = left.count() > 0 ? poll(&waiting, 1, static_cast<int>(left.count())) : 0;
    if (ready < 0 && errno == EINTR) continue;
    timed_out = ready == 0;
    if (ready <= 0) break;
    const ssize_t got = read(child.socket(), chunk, sizeof chunk);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    output.append(chunk, static_cast<std::size_t>(got));
  }
  end = child.finish(timed_out ? 0 : ChildProcess::kGraceMs);
  return output;
}

std::string why_failed(std::string_view output, const std::string& ncu, const std::string& end) {
  if (output.find("ERR_NVGPUCTRPERM") != std::string_view::npos) {
    return "the driver keeps the GPU's counters for root (ERR_NVGPUCTRPERM): run as root, or load "
           "the module nvidia with NVreg_RestrictProfilingToAdminUsers=0";
  }
  std::string_view said;  // the last error, else the last line
  bool is_error = false;
  for (const std::string_view line : lines_of(output)) {
    const bool error = line.starts_with("==ERROR==") || line.starts_with("error: ");
    if (line.empty() || (is_error && !error)) continue;
    said = line;
    is_error = error;
  }
  return fmt::format(
      "{} gave no counters, it {}{}; run it by hand to see more, or leave it out "
      "with --counters off",
      ncu, end, said.empty() ? "" : fmt::format(" and said '{}'", said));
}

}  // namespace

double l2_hit_rate(std::span<const KernelCounters> kernels) {
  KernelCounters sum;
  sum.l2_hits = sum.l2_misses = 0;
  for (const KernelCounters& kernel : kernels) {
    if (std::isnan(kernel.l2_hits + kernel.l2_misses)) continue;
    sum.l2_hits += kernel.l2_hits;
    sum.l2_misses += kernel.l2_misses;
  }
  return sum.l2_hit_rate();
}

std::vector<KernelCounters> parse_ncu_csv(std::string_view text) {
  std::vector<KernelCounters> kernels;
  Columns columns;
  for (const std::string_view line : lines_of(text)) {
    if (!line.starts_with('"')) continue;
    std::vector<std::string> fields = fields_of(line);
    if (fields.front() == "ID") {
      columns = Columns(std::move(fields));
    } else if (fields.size() != columns.size()) {
      continue;
    } else if (fields.front().empty()) {
      columns.set_units(std::move(fields));
    } else {
      kernels.push_back(kernel_of(columns, fields));
    }
  }
  return kernels;
}

std::vector<std::vector<KernelCounters>> split_calls(std::span<const KernelCounters> kernels,
                                                     std::string_view marker) {
  std::vector<std::vector<KernelCounters>> calls;
  for (const KernelCounters& kernel : kernels) {
    if (kernel.name.find(marker) != std::string::npos) {
      calls.emplace_back();
    } else if (!calls.empty()) {
      calls.back().push_back(kernel);
    }
  }
  return calls;
}

std::string find_ncu(const std::string& given, const std::string& search_path) {
  namespace fs = std::filesystem;
  if (!given.empty()) return given;
  std::vector<std::string> folders;
  for (std::string_view rest = search_path; !rest.empty();) {
    const std::size_t end = std::min(rest.find(':'), rest.size());
    if (end > 0) folders.emplace_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  folders.emplace_back("/usr/local/cuda/bin");
  std::vector<std::string> installed;
  std::error_code absent;
  for (const auto& entry : fs::directory_iterator("/usr/local", absent))
    if (entry.path().filename().string().starts_with("cuda-"))
      installed.push_back(entry.path() / "bin");
  for (const auto& entry : fs::directory_iterator("/opt/nvidia/nsight-compute", absent))
    installed.push_back(entry.path());
  std::sort(installed.rbegin(), installed.rend());  // the newest first
  folders.insert(folders.end(), installed.begin(), installed.end());
  for (const std::string& folder : folders) {
    const std::string path = folder + "/ncu";
    if (access(path.c_str(), X_OK) == 0 && fs::is_regular_file(path, absent)) return path;
  }
  return "";
}

NcuRun run_ncu(const std::string& ncu, const std::string& program,
               const std::vector<std::string>& arguments, int timeout_s) {
  NcuRun run;
  if (ncu.empty()) {
    run.missing =
        "NVIDIA's profiler ncu is neither on PATH nor in a CUDA toolkit of this machine: install "
        "Nsight Compute, or name it in MOETUNE_NCU";
    return run;
  }
  std::vector<std::string> metrics(std::begin(kMetrics), std::end(kMetrics));
  for (;;) {
    // Errors are on either stream, by version.
    std::vector<std::string> argv = {"/bin/sh", "-c", "exec \"$0\" \"$@\" 2>&1", ncu};
    const std::string list = fmt::format("{}", fmt::join(metrics, ","));
    argv.insert(argv.end(), {"--csv", "--page", "raw", "--print-units", "base"});
    argv.insert(argv.end(), {"--print-kernel-base", "function"});
    argv.insert(argv.end(), {"--target-processes", "application-only"});
    argv.insert(argv.end(), {"--profile-from-start", "off"});
    argv.insert(argv.end(), {"--replay-mode", "application"});
    argv.insert(argv.end(), {"--clock-control", "none", "--cache-control", "none"});
    argv.insert(argv.end(), {"--metrics", list, program});
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    bool timed_out = false;
    std::string end, output;
    try {
      output = output_of(argv, timeout_s, timed_out, end);
    } catch (const Error& error) {
      run.missing = error.what();
      return run;
    }
    if (timed_out) {
      run.missing = fmt::format(
          "{} did not end within {} s and was ended; ask for fewer token counts, or --counters off",
          ncu, timeout_s);
      return run;
    }
    run.kernels = parse_ncu_csv(output);
    if (!run.kernels.empty()) return run;
    // Some versions refuse a metric that the GPU has not, rather than leave it out.
    const auto is_named = [&](const std::string& metric) {
      return output.find(metric) != std::string::npos;
    };
    if (std::erase_if(metrics, is_named) > 0 && !metrics.empty()) continue;
    run.missing = why_failed(output, ncu, end);
    return run;
  }
}

}  // namespace moetune
