// What turns a plan into a trial: a GPU, or offline a compiler with records or a model.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/gpu.hpp"
#include "core/problem.hpp"
#include "core/trial.hpp"
#include "jit/compiler.hpp"
#include "tune/usage.hpp"

namespace moetune {

struct Request {
  Stage stage = Stage::gemm1;
  std::int64_t num_tokens = 1;
  Plan plan;  // gemm1 or gemm2: one step; layer: both
  // Racing: give up after a brief look when the plan is clearly slower than this. 0: never.
  double stop_above_us = 0;
  // false: a screening look, a few samples; true: the full protocol, or a round of it.
  bool thorough = false;
  // Of a thorough request. A round of finals takes kRoundSamples, and of long calls fewer routings.
  int num_samples = kFullSamples;
  // In a later round of finals: the plans that it takes turns with, sample by sample, for under a
  // power limit clocks fall by a tenth within 100 ms. Those asked for next were measured with it.
  std::vector<Plan> beside = {};
  // Of what is announced. What perhaps nobody asks for is compiled, and never measured ahead.
  Urgency urgency = Urgency::next;
};

// Whether a GEMM's plan multiplies in fp8. Where that is searched, each choice races by itself: the
// search reports what it does.
inline bool is_fp8(const Plan& plan) {
  return !plan.steps.empty() && plan.steps.front().point.value_or("FP8", 0) == 1;
}

struct EvaluatorOptions {
  std::string cache_dir;     // cubin cache
  std::string records_dir;   // offline: results/ with recorded times
  int num_threads = 0;       // compile threads; 0: all cores
  std::string program = {};  // this program's path, for processes that compile; empty: none
  int num_routings = 8;
  // Quantised weights beside the bf16 ones although the dtype is bf16: FP8 is a searched axis.
  bool with_fp8 = false;
  // Thorough layers also say what energy a call takes, which costs half a second each.
  bool with_energy = false;
};

class Evaluator {
 public:
  virtual ~Evaluator() = default;
  virtual const Gpu& gpu() const = 0;
  // "13.0": part of a table's identity.
  virtual std::string nvrtc_version() const = 0;
  // Starts compiling these plans' kernels in the background, in order. Several GPUs also measure
  // ahead what is not thorough. What is announced again need not wait until later. Returns at once.
  virtual void prefetch(std::span<const Request> requests) = 0;
  // Compile or fetch, check resources, launch, compare with the reference, and only if right, time.
  // Never throws for what a point does wrong; throws Error for I/O, memory and a lost device.
  virtual Trial evaluate(const Request& request) = 0;
  virtual Usage usage() const = 0;  // so far
};

// Queues the kernels of these requests, in order.
void submit(const Gpu& gpu, const Problem& problem, std::span<const Request> requests,
            Compiler& compiler);

// `problem.num_tokens` is the largest token count that will be asked for. Weights and inputs are
// made once. Throws Error(device) saying how many bytes are needed when the layer does not fit, and
// when the energy that is wanted cannot be had.
std::unique_ptr<Evaluator> make_device_evaluator(int ordinal, const Problem& problem,
                                                 const EvaluatorOptions& options);
std::unique_ptr<Evaluator> make_offline_evaluator(const Gpu& gpu, const Problem& problem,
                                                  const EvaluatorOptions& options);

}  // namespace moetune
