#include "jit/compile_worker.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <exception>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/host_memory.hpp"
#include "jit/cache.hpp"

namespace moetune {
namespace {

using Json = nlohmann::json;

// What goes through the socket: this, then `size` bytes.
struct Header {
  std::uint64_t id = 0;
  std::uint64_t size = 0;
  std::int64_t peak_host_bytes = 0;  // of the worker
};

constexpr std::uint64_t kMaxMessageBytes = std::uint64_t{256} << 20;

bool send_all(int socket, const void* data, std::size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t sent = ::send(socket, at, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += sent;
    size -= static_cast<std::size_t>(sent);
  }
  return true;
}

bool receive_all(int socket, void* data, std::size_t size) {
  char* at = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t got = ::recv(socket, at, size, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

bool send_message(int socket, Header header, const std::string& text) {
  header.size = text.size();
  return send_all(socket, &header, sizeof header) && send_all(socket, text.data(), text.size());
}

bool receive_message(int socket, Header& header, std::string& text) {
  if (!receive_all(socket, &header, sizeof header) || header.size > kMaxMessageBytes) return false;
  text.resize(header.size);
  return receive_all(socket, text.data(), text.size());
}

// The checksum's key: an answer is of its question.
std::string key_of(std::uint64_t id) {
  return fmt::format("{}", id);
}

Cubin answer(const std::string& question) {
  try {
    const Json json = Json::parse(question);
    return compile({json.at("file"), json.at("expressions"), json.at("options")}, json.at("arch"));
  } catch (const std::exception& error) {
    Cubin cubin;
    cubin.error = error.what();
    return cubin;
  }
}

}  // namespace

CompileWorker::CompileWorker(const std::string& program, int num_threads)
    : child_({program, "compile-worker", "--threads", std::to_string(num_threads)}),
      receiver_([this] { receive(); }) {}

CompileWorker::~CompileWorker() {
  ::shutdown(child_.socket(), SHUT_RDWR);
}

std::optional<Cubin> CompileWorker::compile(const KernelSource& source, const std::string& arch) {
  const std::string question = Json{
      {"file", source.file},
      {"expressions", source.expressions},
      {"options", source.options},
      {"arch", arch}}.dump();
  std::future<std::optional<Cubin>> answered;
  {
    const std::lock_guard lock(mutex_);
    if (is_gone_) return std::nullopt;
    const std::uint64_t id = next_id_++;
    answered = waiting_[id].get_future();
    // A failure is the receiver's to see, which answers all that wait.
    if (!send_message(child_.socket(), {.id = id}, question)) {
      ::shutdown(child_.socket(), SHUT_RDWR);
    }
  }
  return answered.get();
}

void CompileWorker::receive() {
  Header header;
  std::string text;
  while (receive_message(child_.socket(), header, text)) {
    peak_host_bytes_ = header.peak_host_bytes;
    const std::lock_guard lock(mutex_);
    const auto found = waiting_.find(header.id);
    if (found == waiting_.end()) break;
    found->second.set_value(decode_cubin(key_of(header.id), text));
    waiting_.erase(found);
  }
  const std::lock_guard lock(mutex_);
  is_gone_ = true;
  if (!waiting_.empty()) spdlog::debug("a process that compiles is gone; this one goes on alone");
  for (auto& [id, promise] : waiting_) promise.set_value(std::nullopt);
  waiting_.clear();
}

void serve_compilations(int socket, int num_threads) {
  int type = 0;
  socklen_t size = sizeof type;
  if (getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &size) != 0)
    throw Error(ErrorKind::usage, "compile-worker is started by search, not by hand");
  std::mutex receiving, sending;
  const auto work = [&] {
    Header header;
    std::string text;
    for (;;) {
      {
        const std::lock_guard lock(receiving);
        // Nobody waits for what the other threads are at.
        if (!receive_message(socket, header, text)) _exit(0);
      }
      const std::string reply = encode_cubin(key_of(header.id), answer(text));
      const std::lock_guard lock(sending);
      header.peak_host_bytes = peak_host_bytes();
      if (!send_message(socket, header, reply)) _exit(0);
    }
  };
  std::vector<std::jthread> threads;
  for (int i = 1; i < num_threads; ++i) threads.emplace_back(work);
  work();
  _exit(0);
}

}  // namespace moetune
