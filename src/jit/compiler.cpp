#include "jit/compiler.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>

#include "core/error.hpp"
#include "jit/cache.hpp"
#include "jit/compile_worker.hpp"

namespace moetune {
namespace {

using CubinPtr = std::shared_ptr<const Cubin>;

constexpr std::array kUrgencies{Urgency::next, Urgency::later, Urgency::perhaps};

struct Job {
  explicit Job(KernelSource s) : source(std::move(s)), result(promise.get_future()) {}
  KernelSource source;
  Urgency urgency = Urgency::next;
  std::promise<CubinPtr> promise;
  std::shared_future<CubinPtr> result;
};

std::string identity(const KernelSource& source) {
  return fmt::format("{}\n{}\n\n{}", source.file, fmt::join(source.expressions, "\n"),
                     fmt::join(source.options, "\n"));
}

// Null when no process can be started: its threads then compile in this one.
std::unique_ptr<CompileWorker> start_worker(const std::string& program, int num_threads) {
  try {
    return std::make_unique<CompileWorker>(program, num_threads);
  } catch (const Error& error) {
    spdlog::debug("no further process compiles: {}", error.what());
    return nullptr;
  }
}

}  // namespace

struct Compiler::Impl {
  Impl(std::string arch_name, std::string cache_dir, int num_threads,
       std::span<const EmbeddedFile> kernel_files, const std::string& program)
      : arch(std::move(arch_name)), files(kernel_files), cache(std::move(cache_dir)) {
    nvrtc_version();  // a missing toolkit is told here, not once for every source
    if (num_threads <= 0) num_threads = static_cast<int>(std::thread::hardware_concurrency());
    num_threads = std::max(num_threads, 1);
    most_perhaps = std::max(num_threads / 2, 1);
    const bool may_share = !program.empty() && files.data() == embedded_kernels().data();
    for (int i = kThreadsAProcess; may_share && i < num_threads; i += kThreadsAProcess) {
      workers.push_back(start_worker(program, std::min(num_threads - i, kThreadsAProcess)));
    }
    for (int i = 0; i < num_threads; ++i) {
      const auto place = static_cast<std::size_t>(i / kThreadsAProcess);
      CompileWorker* worker = place == 0 || !may_share ? nullptr : workers[place - 1].get();
      threads.emplace_back([this, worker](std::stop_token stop) {
        while (const auto job = next(stop)) {
          run(*job, worker);
          end(*job);
        }
      });
    }
  }

  std::shared_ptr<Job> next(std::stop_token stop) {
    std::unique_lock lock(mutex);
    const auto may_take = [&](Urgency urgency) {
      if (queue_of(urgency).empty()) return false;
      return urgency != Urgency::perhaps || num_perhaps < most_perhaps;
    };
    const auto first = [&] { return std::find_if(kUrgencies.begin(), kUrgencies.end(), may_take); };
    const auto has_work = [&] { return first() != kUrgencies.end(); };
    if (!wake.wait(lock, stop, has_work) || stop.stop_requested()) return nullptr;
    std::deque<std::shared_ptr<Job>>& from = queue_of(*first());
    auto job = from.front();
    from.pop_front();
    if (job->urgency == Urgency::perhaps) ++num_perhaps;
    return job;
  }

  void end(const Job& job) {
    if (job.urgency != Urgency::perhaps) return;
    const std::lock_guard lock(mutex);
    --num_perhaps;
    wake.notify_one();
  }

  void run(Job& job, CompileWorker* worker) {
    try {
      const auto cubin = std::make_shared<const Cubin>(find_or_compile(job.source, worker));
      {
        const std::lock_guard lock(mutex);
        if (cubin->from_cache) {
          ++stats.cache_hits;
        } else {
          ++(cubin->ok() ? stats.compiled : stats.failed);
          stats.compile_s += cubin->compile_ms / 1000;
        }
      }
      job.promise.set_value(cubin);
    } catch (...) {
      job.promise.set_exception(std::current_exception());
    }
  }

  Cubin find_or_compile(const KernelSource& source, CompileWorker* worker) {
    const std::string key = cache_key(source, arch, files);
    if (auto cached = cache.find(key)) return *std::move(cached);
    std::optional<Cubin> there;
    if (worker != nullptr) there = worker->compile(source, arch);
    Cubin cubin = there ? *std::move(there) : compile(source, arch, files);
    if (cubin.ok() && !cache.store(key, cubin)) {
      const std::lock_guard lock(mutex);
      ++stats.not_stored;
    }
    return cubin;
  }

  std::deque<std::shared_ptr<Job>>& queue_of(Urgency urgency) {
    return queues.at(static_cast<std::size_t>(urgency));
  }

  // `now`: ahead of all others.
  std::shared_ptr<Job> enqueue(const KernelSource& source, Urgency urgency, bool now = false) {
    const std::lock_guard lock(mutex);
    auto& job = jobs[identity(source)];
    if (!job) {
      job = std::make_shared<Job>(source);
    } else {
      if (urgency >= job->urgency && !now) return job;
      std::deque<std::shared_ptr<Job>>& before = queue_of(job->urgency);
      const auto at = std::find(before.begin(), before.end(), job);
      if (at == before.end()) return job;  // compiled, or being so
      before.erase(at);
    }
    job->urgency = urgency;
    std::deque<std::shared_ptr<Job>>& queue = queue_of(urgency);
    queue.insert(now || urgency == Urgency::perhaps ? queue.begin() : queue.end(), job);
    wake.notify_one();
    return job;
  }

  void drop_queues() {
    const std::lock_guard lock(mutex);
    for (auto& queue : queues) {
      for (const auto& job : std::exchange(queue, {})) {
        Cubin dropped;
        dropped.error = "not compiled: the compiler was shut down first";
        job->promise.set_value(std::make_shared<const Cubin>(std::move(dropped)));
      }
    }
  }

  const std::string arch;
  const std::span<const EmbeddedFile> files;
  Cache cache;
  std::mutex mutex;  // guards all below but the threads
  std::condition_variable_any wake;
  std::array<std::deque<std::shared_ptr<Job>>, kUrgencies.size()> queues;
  int num_perhaps = 0;  // of these, being compiled
  int most_perhaps = 1;
  std::unordered_map<std::string, std::shared_ptr<Job>> jobs;
  Stats stats;
  std::vector<std::unique_ptr<CompileWorker>> workers;
  std::vector<std::jthread> threads;  // last: joined before anything they use goes away
};

Compiler::Compiler(std::string arch, std::string cache_dir, int num_threads,
                   std::span<const EmbeddedFile> files, const std::string& program)
    : impl_(std::make_unique<Impl>(std::move(arch), std::move(cache_dir), num_threads, files,
                                   program)) {}

Compiler::~Compiler() {
  impl_->drop_queues();
}

const std::string& Compiler::arch() const {
  return impl_->arch;
}

std::shared_future<std::shared_ptr<const Cubin>> Compiler::submit(const KernelSource& source,
                                                                  Urgency urgency) {
  return impl_->enqueue(source, urgency)->result;
}

std::shared_ptr<const Cubin> Compiler::get(const KernelSource& source) {
  return impl_->enqueue(source, Urgency::next, true)->result.get();
}

Compiler::Stats Compiler::stats() const {
  const std::lock_guard lock(impl_->mutex);
  Stats stats = impl_->stats;
  for (const auto& worker : impl_->workers)
    if (worker) stats.peak_host_bytes += worker->peak_host_bytes();
  return stats;
}

std::string resource_defect(const CompiledKernel& kernel, const std::string& log, int num_threads) {
  // Registers of an SM, a warp's unit of allocation, and the four partitions that warps are dealt
  // to: CUDA's occupancy calculator (cuda_occupancy.h), the same from sm_80 to sm_120.
  constexpr int kRegistersPerSm = 65536;
  constexpr int kWarpUnit = 256;
  constexpr int kPartitions = 4;
  constexpr int kWarpSize = 32;

  const Resources& used = kernel.resources;
  if (used.stack_bytes > 0) {
    return fmt::format("spill: {} bytes of local memory a thread at {} registers", used.stack_bytes,
                       used.registers);
  }
  const auto loss = log.find("Potential Performance Loss");
  if (loss != std::string::npos) {
    const auto begin = log.rfind('\n', loss) + 1;  // npos + 1 is 0: the first line
    return "performance_loss: " + log.substr(begin, log.find('\n', loss) - begin);
  }
  if (used.max_threads > 0 && num_threads > used.max_threads) {
    return fmt::format("threads: {} threads a block, compiled for at most {}", num_threads,
                       used.max_threads);
  }
  const auto round_up = [](int value, int unit) { return (value + unit - 1) / unit * unit; };
  const int warp_registers = std::max(round_up(used.registers * kWarpSize, kWarpUnit), kWarpUnit);
  const int max_warps = kRegistersPerSm / warp_registers / kPartitions * kPartitions;
  const int num_warps = round_up(num_threads, kWarpSize) / kWarpSize;
  if (num_warps > max_warps) {
    return fmt::format("registers: {} warps of {} registers a thread, the GPU holds {}", num_warps,
                       used.registers, max_warps);
  }
  return "";
}

}  // namespace moetune
