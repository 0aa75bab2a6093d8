// What a search and the child process that measures for it say to each other: JSON, a message a
// line, over one socket, or at a launched child's end over its standard streams. The parent asks,
// the child answers; only "prefetch" has no answer.
//
//   {"open": {...}}           -> {"gpu": {...}, "nvrtc": "13.0"}
//   {"evaluate": {...}}       -> {"trial": {...}, "usage": {"busy_s": 1.5, ...}}
//   {"prefetch": [{...}]}
//   whatever throws           -> {"error": {"kind": 3, "message": "..."}}
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "tune/evaluator.hpp"

namespace moetune {

// One end of the conversation. Does not own the descriptors, which may be one socket or two of
// anything. Only what is sent to a socket keeps to its deadline.
class Channel {
 public:
  enum class Result { ok, closed, timed_out };
  using Clock = std::chrono::steady_clock;

  explicit Channel(int socket) : in_(socket), out_(socket) {}
  Channel(int in, int out) : in_(in), out_(out) {}
  Result send(const nlohmann::ordered_json& message, Clock::time_point deadline);
  // The next line, without its end. Throws Error(input) for a line beyond any sensible message.
  Result receive(std::string& line, Clock::time_point deadline);

 private:
  int in_;
  int out_;
  std::string buffer_;
};

nlohmann::ordered_json encode(const Request& request);
Request decode_request(const nlohmann::ordered_json& json);
nlohmann::ordered_json encode(const Gpu& gpu);
Gpu decode_gpu(const nlohmann::ordered_json& json);
nlohmann::ordered_json encode(const Usage& usage);
Usage decode_usage(const nlohmann::ordered_json& json);
nlohmann::ordered_json encode_open(int ordinal, const Problem& problem,
                                   const EvaluatorOptions& options);

using EvaluatorFactory =
    std::function<std::unique_ptr<Evaluator>(int, const Problem&, const EvaluatorOptions&)>;

// The child's loop: answers until the parent closes the socket, then returns exit code 0. Throws
// Error(usage) when `socket` is none.
int serve(int socket, const EvaluatorFactory& make_evaluator);
// The same over stdin and stdout; whatever else writes to stdout then writes to stderr. The process
// ends at once when stdin does, even amid a trial: no launcher is sure to see to that. It also ends
// when nothing is asked for `idle`, for a launcher that is killed outright may leave stdin open.
int serve_streams(const EvaluatorFactory& make_evaluator,
                  Channel::Clock::duration idle = std::chrono::minutes(30));

}  // namespace moetune
