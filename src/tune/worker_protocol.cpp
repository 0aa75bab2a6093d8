#include "tune/worker_protocol.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <exception>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/host_memory.hpp"

namespace moetune {
namespace {

using nlohmann::ordered_json;

constexpr std::size_t kMaxLineBytes = std::size_t{64} << 20;

// True when the socket is ready before the deadline. A signal does not end the wait: Ctrl-C lets
// the trial in flight finish.
bool wait_for(int socket, short events, Channel::Clock::time_point deadline) {
  for (;;) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - Channel::Clock::now());
    const auto timeout_ms = std::clamp<std::int64_t>(left.count(), 0, 1'000'000);
    pollfd waiting{socket, events, 0};
    if (poll(&waiting, 1, static_cast<int>(timeout_ms)) > 0) return true;
    if (Channel::Clock::now() >= deadline) return false;
  }
}

struct Opening {
  int ordinal;
  Problem problem;
  EvaluatorOptions options;
};

Opening decode_open(const ordered_json& json) {
  Opening opening;
  json.at("ordinal").get_to(opening.ordinal);
  LayerShape& shape = opening.problem.shape;
  json.at("model").get_to(shape.model);
  json.at("num_experts").get_to(shape.num_experts);
  json.at("top_k").get_to(shape.top_k);
  json.at("hidden_size").get_to(shape.hidden_size);
  json.at("intermediate_size").get_to(shape.intermediate_size);
  opening.problem.dtype = parse_dtype(json.at("dtype").get<std::string>());
  json.at("num_tokens").get_to(opening.problem.num_tokens);
  opening.problem.routing = parse_routing(json.at("routing").get<std::string>());
  json.at("seed").get_to(opening.problem.seed);
  json.at("cache_dir").get_to(opening.options.cache_dir);
  json.at("records_dir").get_to(opening.options.records_dir);
  json.at("num_threads").get_to(opening.options.num_threads);
  json.at("num_routings").get_to(opening.options.num_routings);
  json.at("with_fp8").get_to(opening.options.with_fp8);
  json.at("with_energy").get_to(opening.options.with_energy);
  return opening;
}

ordered_json error_reply(ErrorKind kind, const char* message) {
  return {{"error", {{"kind", static_cast<int>(kind)}, {"message", message}}}};
}

// The answer, or null when there is none to give.
ordered_json answer(const ordered_json& message, const EvaluatorFactory& make_evaluator,
                    std::unique_ptr<Evaluator>& evaluator) {
  if (message.contains("open")) {
    const Opening opening = decode_open(message["open"]);
    evaluator = make_evaluator(opening.ordinal, opening.problem, opening.options);
    return {{"gpu", encode(evaluator->gpu())}, {"nvrtc", evaluator->nvrtc_version()}};
  }
  if (!evaluator) throw Error(ErrorKind::failed, "the worker was asked to measure before open");
  if (message.contains("prefetch")) {
    std::vector<Request> requests;
    for (const ordered_json& request : message["prefetch"])
      requests.push_back(decode_request(request));
    evaluator->prefetch(requests);
    return nullptr;
  }
  const Trial trial = evaluator->evaluate(decode_request(message.at("evaluate")));
  Usage usage = evaluator->usage();
  usage.peak_host_bytes += peak_host_bytes();
  return {{"trial", trial}, {"usage", encode(usage)}};
}

}  // namespace

Channel::Result Channel::send(const ordered_json& message, Clock::time_point deadline) {
  // A compiler's or a driver's message may hold any bytes.
  const std::string line =
      message.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
  for (std::size_t done = 0; done < line.size();) {
    ssize_t sent =
        ::send(out_, line.data() + done, line.size() - done, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == ENOTSOCK) sent = write(out_, line.data() + done, line.size() - done);
    if (sent > 0) {
      done += static_cast<std::size_t>(sent);
    } else if (sent < 0 && errno != EAGAIN && errno != EINTR) {
      return Result::closed;
    } else if (!wait_for(out_, POLLOUT, deadline)) {
      return Result::timed_out;
    }
  }
  return Result::ok;
}

Channel::Result Channel::receive(std::string& line, Clock::time_point deadline) {
  for (std::size_t searched = 0;;) {
    const std::size_t end = buffer_.find('\n', searched);
    if (end != std::string::npos) {
      line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return Result::ok;
    }
    searched = buffer_.size();
    if (searched > kMaxLineBytes)
      throw Error(ErrorKind::input, "a message of the worker has no end of line");
    if (!wait_for(in_, POLLIN, deadline)) return Result::timed_out;
    char chunk[65536];
    ssize_t got = recv(in_, chunk, sizeof chunk, MSG_DONTWAIT);
    if (got < 0 && errno == ENOTSOCK) got = read(in_, chunk, sizeof chunk);
    if (got > 0) {
      buffer_.append(chunk, static_cast<std::size_t>(got));
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
      return Result::closed;
    }
  }
}

ordered_json encode(const Request& request) {
  return {{"stage", to_string(request.stage)},
          {"num_tokens", request.num_tokens},
          {"plan", request.plan},
          {"stop_above_us", request.stop_above_us},
          {"thorough", request.thorough},
          {"num_samples", request.num_samples},
          {"beside", request.beside},
          {"urgency", request.urgency}};
}

Request decode_request(const ordered_json& json) {
  Request request;
  request.stage = parse_stage(json.at("stage").get<std::string>());
  json.at("num_tokens").get_to(request.num_tokens);
  json.at("plan").get_to(request.plan);
  json.at("stop_above_us").get_to(request.stop_above_us);
  json.at("thorough").get_to(request.thorough);
  json.at("num_samples").get_to(request.num_samples);
  json.at("beside").get_to(request.beside);
  json.at("urgency").get_to(request.urgency);
  return request;
}

ordered_json encode(const Gpu& gpu) {
  return {{"name", gpu.name},
          {"cc_major", gpu.cc_major},
          {"cc_minor", gpu.cc_minor},
          {"num_sms", gpu.num_sms},
          {"smem_per_block", gpu.smem_per_block},
          {"smem_per_sm", gpu.smem_per_sm},
          {"l2_bytes", gpu.l2_bytes},
          {"memory_bytes", gpu.memory_bytes},
          {"read_gbps", gpu.read_gbps},
          {"bf16_tflops", gpu.bf16_tflops},
          {"fp8_tflops", gpu.fp8_tflops},
          {"driver", gpu.driver},
          {"offline", gpu.offline}};
}

Gpu decode_gpu(const ordered_json& json) {
  Gpu gpu;
  json.at("name").get_to(gpu.name);
  json.at("cc_major").get_to(gpu.cc_major);
  json.at("cc_minor").get_to(gpu.cc_minor);
  json.at("num_sms").get_to(gpu.num_sms);
  json.at("smem_per_block").get_to(gpu.smem_per_block);
  json.at("smem_per_sm").get_to(gpu.smem_per_sm);
  json.at("l2_bytes").get_to(gpu.l2_bytes);
  json.at("memory_bytes").get_to(gpu.memory_bytes);
  json.at("read_gbps").get_to(gpu.read_gbps);
  json.at("bf16_tflops").get_to(gpu.bf16_tflops);
  json.at("fp8_tflops").get_to(gpu.fp8_tflops);
  json.at("driver").get_to(gpu.driver);
  json.at("offline").get_to(gpu.offline);
  return gpu;
}

ordered_json encode(const Usage& usage) {
  const auto& [busy_s, compile_s, peak_host_bytes] = usage;
  return {{"busy_s", busy_s}, {"compile_s", compile_s}, {"peak_host_bytes", peak_host_bytes}};
}

Usage decode_usage(const ordered_json& json) {
  Usage usage;
  json.at("busy_s").get_to(usage.busy_s);
  json.at("compile_s").get_to(usage.compile_s);
  json.at("peak_host_bytes").get_to(usage.peak_host_bytes);
  return usage;
}

ordered_json encode_open(int ordinal, const Problem& problem, const EvaluatorOptions& options) {
  // Named one by one, so that a new option does not compile until it is sent, too.
  // But for the program: a worker knows its own path.
  const auto& [cache_dir, records_dir, num_threads, program, num_routings, with_fp8, with_energy] =
      options;
  return {{"ordinal", ordinal},
          {"model", problem.shape.model},
          {"num_experts", problem.shape.num_experts},
          {"top_k", problem.shape.top_k},
          {"hidden_size", problem.shape.hidden_size},
          {"intermediate_size", problem.shape.intermediate_size},
          {"dtype", to_string(problem.dtype)},
          {"num_tokens", problem.num_tokens},
          {"routing", to_string(problem.routing)},
          {"seed", problem.seed},
          {"cache_dir", cache_dir},
          {"records_dir", records_dir},
          {"num_threads", num_threads},
          {"num_routings", num_routings},
          {"with_fp8", with_fp8},
          {"with_energy", with_energy}};
}

namespace {

constexpr auto kForever = Channel::Clock::time_point::max();

// `idle`: how long to wait for a question.
int serve(Channel channel, const EvaluatorFactory& make_evaluator, Channel::Clock::duration idle) {
  const auto deadline = [idle] {
    return idle == Channel::Clock::duration::max() ? kForever : Channel::Clock::now() + idle;
  };
  std::unique_ptr<Evaluator> evaluator;
  std::string line;
  while (channel.receive(line, deadline()) == Channel::Result::ok) {
    ordered_json message;
    ordered_json reply;
    try {
      message = ordered_json::parse(line);
      reply = answer(message, make_evaluator, evaluator);
    } catch (const Error& error) {
      reply = error_reply(error.kind(), error.what());
    } catch (const std::exception& error) {
      reply = error_reply(ErrorKind::failed, error.what());
    }
    // A prefetch that fails is no loss: evaluating the same plan says why.
    if (message.contains("prefetch")) continue;
    if (channel.send(reply, kForever) != Channel::Result::ok) break;
  }
  return 0;
}

// A kernel that hangs would keep a worker on its GPU for ever when nobody is left to kill it.
void end_with_peer(int in) {
  pollfd waiting{in, POLLRDHUP, 0};
  while (poll(&waiting, 1, -1) < 0 && errno == EINTR) {
  }
  _exit(0);
}

}  // namespace

int serve(int socket, const EvaluatorFactory& make_evaluator) {
  int type = 0;
  socklen_t size = sizeof type;
  if (getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &size) != 0)
    throw Error(ErrorKind::usage, "worker is started by search, validate and bench, not by hand");
  return serve(Channel(socket), make_evaluator, Channel::Clock::duration::max());
}

int serve_streams(const EvaluatorFactory& make_evaluator, Channel::Clock::duration idle) {
  std::signal(SIGPIPE, SIG_IGN);
  const int in = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  const int out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  if (in < 0 || out < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
    throw Error(ErrorKind::usage, "worker --stdio needs open standard streams");
  std::thread(end_with_peer, in).detach();
  return serve(Channel(in, out), make_evaluator, idle);
}

}  // namespace moetune
