// The C interface over TunedLayer: checks arguments, turns errors into statuses.
#include "runtime/moetune.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <pwd.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "runtime/tuned_layer.hpp"

struct moetune_layer {
  moetune_layer(int ordinal, std::shared_ptr<moetune::DeviceContext> context,
                const moetune::Problem& problem, const moetune::CallLayout& layout,
                const std::vector<std::string>& table_paths)
      : device(ordinal), layer(std::move(context), problem, layout, table_paths) {}
  int device;
  moetune::TunedLayer layer;
};

namespace moetune {
namespace {

thread_local std::string last_error;
thread_local std::string explanation;

// An argument that the caller can mend.
struct BadArgument {
  std::string message;
};
// A layer that is well described, and that nothing here runs.
struct Unsupported {
  std::string message;
};
template <typename... Values>
void require(bool condition, fmt::format_string<Values...> message, Values&&... values) {
  if (!condition) throw BadArgument{fmt::format(message, std::forward<Values>(values)...)};
}

moetune_status fail(moetune_status status, std::string message) {
  last_error = std::move(message);
  return status;
}

// No exception crosses the border.
template <typename Body>
moetune_status guarded(const char* call, Body&& body) {
  try {
    body();
    return MOETUNE_OK;
  } catch (const BadArgument& bad) {
    return fail(MOETUNE_INVALID_ARGUMENT, fmt::format("{}: {}", call, bad.message));
  } catch (const Unsupported& layer) {
    return fail(MOETUNE_UNSUPPORTED, fmt::format("{}: {}", call, layer.message));
  } catch (const NotPrepared& error) {
    return fail(MOETUNE_NOT_PREPARED, fmt::format("{}: {}", call, error.what()));
  } catch (const Error& error) {
    const moetune_status status = error.kind() == ErrorKind::device   ? MOETUNE_DEVICE_ERROR
                                  : error.kind() == ErrorKind::failed ? MOETUNE_COMPILATION_FAILED
                                                                      : MOETUNE_INVALID_ARGUMENT;
    return fail(status, fmt::format("{}: {}", call, error.what()));
  } catch (const std::bad_alloc&) {
    return fail(MOETUNE_INTERNAL_ERROR, fmt::format("{}: out of host memory", call));
  } catch (const std::exception& error) {
    return fail(MOETUNE_INTERNAL_ERROR, fmt::format("{}: {}", call, error.what()));
  } catch (...) {
    return fail(MOETUNE_INTERNAL_ERROR, fmt::format("{}: an unknown error", call));
  }
}

// Makes the layer's device current, and the caller's again.
class CurrentDevice {
 public:
  explicit CurrentDevice(int wanted) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ == wanted) return;
    check_cuda(cudaSetDevice(wanted), "cudaSetDevice");
    changed_ = true;
  }
  ~CurrentDevice() {
    if (changed_ && cudaSetDevice(before_) != cudaSuccess) spdlog::debug("cudaSetDevice failed");
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// A library writes nothing to standard output.
void log_to_stderr() {
  static std::once_flag once;
  std::call_once(once, [] {
    auto logger = spdlog::stderr_color_mt("moetune");
    logger->set_pattern("moetune: %l: %v");
    logger->set_level(spdlog::level::warn);
    spdlog::set_default_logger(std::move(logger));
  });
}

// The caller's struct may be of an older header: what it lacks is 0.
template <typename T>
T with_size(const T* given, const char* name) {
  require(given != nullptr, "{} is NULL", name);
  require(given->size > sizeof(std::size_t) && given->size <= sizeof(T),
          "{}->size is {}, this library knows {}: set it to sizeof(*{})", name, given->size,
          sizeof(T), name);
  T copy{};
  std::memcpy(&copy, given, given->size);
  return copy;
}

Dtype dtype_of(moetune_dtype dtype) {
  switch (dtype) {
    case MOETUNE_BF16:
      return Dtype::bf16;
    case MOETUNE_FP8_BLOCK:
      return Dtype::fp8_block;
    case MOETUNE_FP8_TENSOR:
      return Dtype::fp8_tensor;
  }
  throw BadArgument{
      fmt::format("desc->dtype is {}, no value of moetune_dtype", static_cast<int>(dtype))};
}

// The password database's, so that no environment variable decides.
std::string home_cache() {
  char buffer[4096];
  passwd entry{};
  passwd* found = nullptr;
  if (getpwuid_r(getuid(), &entry, buffer, sizeof buffer, &found) != 0 || found == nullptr)
    return "";
  return std::string(found->pw_dir) + "/.cache/moe-tune";
}

std::vector<std::string> split_paths(const char* text) {
  std::vector<std::string> paths;
  std::istringstream stream(text == nullptr ? "" : text);
  for (std::string path; std::getline(stream, path, ':');)
    if (!path.empty()) paths.push_back(path);
  return paths;
}

// A row pitch as the kernels take it: 0 where rows follow each other.
std::int64_t pitch_of(std::int64_t given, std::int64_t columns, std::int64_t element_bytes,
                      const char* name) {
  if (given == 0 || given == columns) return 0;
  require(given > columns, "{} is {} elements, less than a row's {}", name, given, columns);
  require(given * element_bytes % 16 == 0, "{} is {} elements, {} bytes: no multiple of 16", name,
          given, given * element_bytes);
  return given;
}

void require_pointer(const void* pointer, std::uintptr_t alignment, const char* name) {
  require(pointer != nullptr, "args->{} is NULL", name);
  require(reinterpret_cast<std::uintptr_t>(pointer) % alignment == 0,
          "args->{} is not aligned to {} bytes", name, alignment);
}

void create(const moetune_layer_desc* given_desc, const moetune_options* given_options,
            moetune_layer** layer) {
  require(layer != nullptr, "layer is NULL");
  *layer = nullptr;
  log_to_stderr();
  const moetune_layer_desc desc = with_size(given_desc, "desc");
  moetune_options options{};
  options.device = -1;
  if (given_options != nullptr) options = with_size(given_options, "options");
  int device = options.device;
  if (device < 0) check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  Problem problem;
  problem.shape = {"custom", desc.num_experts, desc.top_k, desc.hidden_size,
                   desc.intermediate_size};
  problem.dtype = dtype_of(desc.dtype);
  for (const auto& [value, name] : {std::pair{desc.num_experts, "num_experts"},
                                    {desc.top_k, "top_k"},
                                    {desc.hidden_size, "hidden_size"},
                                    {desc.intermediate_size, "intermediate_size"}})
    require(value > 0, "desc->{} is {}, it must be positive", name, value);
  const std::int64_t element = is_fp8(problem.dtype) ? 1 : 2;
  CallLayout layout;
  layout.w13_pitch = pitch_of(desc.w13_row_pitch, desc.hidden_size, element, "desc->w13_row_pitch");
  layout.w2_pitch =
      pitch_of(desc.w2_row_pitch, desc.intermediate_size, element, "desc->w2_row_pitch");
  const CurrentDevice current(device);
  auto context =
      device_context(device, options.cache_dir != nullptr ? options.cache_dir : home_cache(),
                     options.num_compile_threads);
  try {
    Problem whole = problem;  // other GPUs hold the rest of the experts
    whole.shape.num_experts = std::max(desc.num_experts, desc.top_k);
    check(whole);
    *layer = new moetune_layer(device, std::move(context), problem, layout,
                               split_paths(options.table_path));
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::input) throw;
    throw Unsupported{error.what()};
  }
}

void run(moetune_layer* layer, const moetune_args* given, void* stream) {
  require(layer != nullptr, "layer is NULL");
  const moetune_args args = with_size(given, "args");
  require(args.num_tokens >= 0, "args->num_tokens is {}", args.num_tokens);
  if (args.num_tokens == 0) return;
  const Problem& problem = layer->layer.problem();
  const LayerShape& shape = problem.shape;
  LayerCallArguments call;
  call.num_tokens = args.num_tokens;
  call.layout.x_pitch = pitch_of(args.x_row_pitch, shape.hidden_size, 2, "args->x_row_pitch");
  call.layout.out_pitch = pitch_of(args.out_row_pitch, shape.hidden_size, 2, "args->out_row_pitch");
  require(args.id_type == MOETUNE_INT32 || args.id_type == MOETUNE_INT64,
          "args->id_type is {}, no value of moetune_id_type", static_cast<int>(args.id_type));
  require(args.weight_type == MOETUNE_WEIGHT_FP32 || args.weight_type == MOETUNE_WEIGHT_BF16,
          "args->weight_type is {}, no value of moetune_weight_type",
          static_cast<int>(args.weight_type));
  call.layout.int64_ids = args.id_type == MOETUNE_INT64;
  call.layout.bf16_topk_weights = args.weight_type == MOETUNE_WEIGHT_BF16;
  if (args.expert_map != nullptr) {
    require(args.expert_map_size > 0 && args.expert_map_size <= INT32_MAX,
            "args->expert_map_size is {}", args.expert_map_size);
    call.layout.expert_map_size = args.expert_map_size;
  }
  require_pointer(args.x, 16, "x");
  require_pointer(args.w13, 16, "w13");
  require_pointer(args.w2, 16, "w2");
  require_pointer(args.topk_ids, call.layout.int64_ids ? 8 : 4, "topk_ids");
  require_pointer(args.topk_weights, call.layout.bf16_topk_weights ? 2 : 4, "topk_weights");
  require_pointer(args.out, 16, "out");
  require_pointer(args.workspace, kTensorAlignment, "workspace");
  if (is_fp8(problem.dtype)) {
    require_pointer(args.w13_scale, 4, "w13_scale");
    require_pointer(args.w2_scale, 4, "w2_scale");
  }
  const auto bytes = [&](std::int64_t pitch) {
    return 2 *
           ((args.num_tokens - 1) * (pitch > 0 ? pitch : shape.hidden_size) + shape.hidden_size);
  };
  const char* const x = static_cast<const char*>(args.x);
  const char* const out = static_cast<const char*>(args.out);
  require(x + bytes(call.layout.x_pitch) <= out || out + bytes(call.layout.out_pitch) <= x,
          "args->out overlaps args->x; experts read x while others have written");
  call.x = args.x;
  call.w13 = args.w13;
  call.w13_scale = args.w13_scale;
  call.w2 = args.w2;
  call.w2_scale = args.w2_scale;
  call.topk_ids = args.topk_ids;
  call.topk_weights = args.topk_weights;
  call.expert_map = args.expert_map;
  call.out = args.out;
  call.workspace = args.workspace;
  call.workspace_bytes = args.workspace_bytes;
  const CurrentDevice current(layer->device);
  layer->layer.run(call, static_cast<cudaStream_t>(stream));
}

}  // namespace
}  // namespace moetune

using namespace moetune;

moetune_status moetune_create(const moetune_layer_desc* desc, const moetune_options* options,
                              moetune_layer** layer) {
  return guarded("moetune_create", [&] { create(desc, options, layer); });
}

void moetune_destroy(moetune_layer* layer) {
  delete layer;
}

moetune_status moetune_prepare(moetune_layer* layer, const int64_t* token_counts, size_t count) {
  return guarded("moetune_prepare", [&] {
    require(layer != nullptr, "layer is NULL");
    require(token_counts != nullptr || count == 0, "token_counts is NULL");
    const CurrentDevice current(layer->device);
    layer->layer.prepare({token_counts, count});
  });
}

moetune_status moetune_workspace_bytes(const moetune_layer* layer, int64_t max_tokens,
                                       size_t* bytes) {
  return guarded("moetune_workspace_bytes", [&] {
    require(layer != nullptr, "layer is NULL");
    require(bytes != nullptr, "bytes is NULL");
    require(max_tokens >= 0, "max_tokens is {}", max_tokens);
    *bytes = max_tokens == 0 ? 0 : layer->layer.workspace_bytes(max_tokens);
  });
}

moetune_status moetune_run(moetune_layer* layer, const moetune_args* args, void* stream) {
  return guarded("moetune_run", [&] { run(layer, args, stream); });
}

moetune_status moetune_explain(const moetune_layer* layer, int64_t num_tokens, int as_json,
                               const char** text) {
  return guarded("moetune_explain", [&] {
    require(layer != nullptr, "layer is NULL");
    require(text != nullptr, "text is NULL");
    require(num_tokens > 0, "num_tokens is {}", num_tokens);
    const TunedLayer& of = layer->layer;
    const ChoiceReport report = of.explain(num_tokens);
    explanation = as_json != 0 ? choice_json(of.gpu(), of.problem(), report).dump(2)
                               : choice_text(of.gpu(), of.problem(), report);
    *text = explanation.c_str();
  });
}

const char* moetune_last_error(void) {
  return last_error.c_str();
}

const char* moetune_status_name(moetune_status status) {
  switch (status) {
    case MOETUNE_OK:
      return "MOETUNE_OK";
    case MOETUNE_INVALID_ARGUMENT:
      return "MOETUNE_INVALID_ARGUMENT";
    case MOETUNE_UNSUPPORTED:
      return "MOETUNE_UNSUPPORTED";
    case MOETUNE_NOT_PREPARED:
      return "MOETUNE_NOT_PREPARED";
    case MOETUNE_COMPILATION_FAILED:
      return "MOETUNE_COMPILATION_FAILED";
    case MOETUNE_DEVICE_ERROR:
      return "MOETUNE_DEVICE_ERROR";
    case MOETUNE_INTERNAL_ERROR:
      return "MOETUNE_INTERNAL_ERROR";
  }
  return "MOETUNE_UNKNOWN_STATUS";
}

const char* moetune_version(void) {
  return MOETUNE_VERSION;
}
