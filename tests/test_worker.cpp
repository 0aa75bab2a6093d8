#include <doctest/doctest.h>
#include <fmt/format.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "core/error.hpp"
#include "tune/worker_evaluator.hpp"

using namespace moetune;

namespace {

// Whether a process runs: neither gone nor a zombie that nobody has waited for.
bool is_running(const std::string& pid) {
  std::ifstream file("/proc/" + pid + "/stat");
  std::string text;
  if (!std::getline(file, text)) return false;
  return text.at(text.rfind(')') + 2) != 'Z';
}

bool ends_soon(const std::string& pid) {
  for (int i = 0; i < 1000 && is_running(pid); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return !is_running(pid);
}

Request request(const std::string& variant, int block_m = 16) {
  Request result;
  result.num_tokens = 64;
  result.plan.steps = {{"gemm1", variant, Point({{"BLOCK_SIZE_M", block_m}})}};
  return result;
}

Problem problem(const std::string& model = "custom") {
  Problem result;
  result.shape = {model, 8, 2, 64, 128};
  result.num_tokens = 64;
  result.routing = parse_routing("zipf:1.5");
  return result;
}

WorkerEvaluator make_worker(const WorkerLimits& limits = {}) {
  return WorkerEvaluator({MOETUNE_FAKE_WORKER}, 0, problem(), {}, limits);
}

Error open_error(const std::string& model, double open_s = 30) {
  spdlog::set_level(spdlog::level::off);
  try {
    WorkerEvaluator({MOETUNE_FAKE_WORKER}, 0, problem(model), {}, {.open_s = open_s});
  } catch (const Error& error) {
    return error;
  }
  FAIL("no error");
  return Error(ErrorKind::failed, "");
}

}  // namespace

TEST_CASE("worker: a trial crosses the process boundary whole") {
  auto worker = make_worker();
  CHECK(worker.gpu().smem_per_block == 232448);
  CHECK(worker.gpu().read_gbps == 4100.5);
  CHECK(worker.gpu().name != std::to_string(getpid()));
  CHECK(worker.nvrtc_version() == "13.0");

  Request asked = request("ok");
  asked.stage = Stage::gemm2;
  asked.stop_above_us = 0.1 + 0.2;
  asked.thorough = true;
  const Trial trial = worker.evaluate(asked);
  CHECK(trial.status == TrialStatus::ok);
  CHECK(trial.stage == Stage::gemm2);
  CHECK(trial.num_tokens == 64);
  CHECK(trial.plan == asked.plan);
  CHECK(trial.timing.median_us == 0.1 + 0.2);
  CHECK(trial.screened_out);
  CHECK(trial.reason == "bytes \xEF\xBF\xBD of a driver");
  CHECK(worker.usage().busy_s == 0.5);
  CHECK(worker.usage().compile_s == 1);
  CHECK(worker.usage().peak_host_bytes > 1 << 20);  // the child's own, not what its evaluator says
  CHECK(worker.usage().peak_host_bytes < std::int64_t{1} << 36);
}

TEST_CASE("worker: the child opens what the parent was asked to open") {
  Problem asked = problem();
  asked.dtype = Dtype::fp8_tensor;
  asked.seed = 18446744073709551615u;
  const EvaluatorOptions options{"a cache", "records", 3, "a program", 5, true, true};
  const WorkerEvaluator worker({MOETUNE_FAKE_WORKER}, 2, asked, options);
  CHECK(worker.gpu().driver == encode_open(2, asked, options).dump());
  CHECK(worker.gpu().driver != encode_open(2, problem(), options).dump());
}

TEST_CASE("worker: a request is read as it was sent") {
  Request sent = request("ok");
  sent.stage = Stage::gemm2;
  sent.stop_above_us = 1.5;
  sent.thorough = true;
  sent.urgency = Urgency::perhaps;
  sent.num_samples = kRoundSamples;
  sent.beside = {request("ok").plan, request("other").plan};
  const Request got = decode_request(encode(sent));
  CHECK(encode(got) == encode(sent));
  CHECK(got.beside == sent.beside);
  CHECK(got.num_samples == kRoundSamples);
  CHECK(got.urgency == Urgency::perhaps);
}

TEST_CASE("worker: prefetch reaches the child without an answer, and its errors are no loss") {
  auto worker = make_worker();
  const std::vector<Request> good(1000, request("ok"));
  const std::vector<Request> bad{request("input_error")};
  worker.prefetch(good);
  worker.prefetch(bad);
  worker.prefetch(good);
  CHECK(worker.evaluate(request("ok")).registers == 2000);
}

TEST_CASE("worker: an error of the child is thrown as it is, and the child lives on") {
  auto worker = make_worker();
  try {
    worker.evaluate(request("input_error"));
    FAIL("no error");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::input);
    CHECK(std::string(error.what()) == "no such trace");
  }
  CHECK_THROWS_WITH_AS(worker.evaluate(request("exception")), "unforeseen", Error);
  CHECK(worker.evaluate(request("ok")).status == TrialStatus::ok);
  CHECK(worker.usage().busy_s == 0.5);
}

TEST_CASE("worker: whatever kills the child is a trial with its reason, and the next one works") {
  spdlog::set_level(spdlog::level::off);
  struct Case {
    const char* how;
    TrialStatus status;
    const char* reason;
  };
  const Case cases[] = {
      {"abort", TrialStatus::launch_failed, "worker died of signal 6 (Aborted)"},
      {"segfault", TrialStatus::launch_failed, "worker died of signal 11 (Segmentation fault)"},
      {"kill", TrialStatus::launch_failed, "worker died of signal 9 (Killed)"},
      {"exit", TrialStatus::launch_failed, "worker exited with code 3"},
      {"close", TrialStatus::launch_failed, "worker died of signal 9 (Killed)"},
      {"device_error", TrialStatus::launch_failed, "an illegal memory access"},
      {"garbage", TrialStatus::launch_failed, "worker sent a malformed answer"},
      {"no_trial", TrialStatus::launch_failed, "worker sent a malformed answer"},
      {"bad_kind", TrialStatus::launch_failed, "worker sent a malformed answer"},
      {"half_line", TrialStatus::timed_out, "no answer within 1.5 s"},
      {"hang", TrialStatus::timed_out, "no answer within 1.5 s"},
      {"spin", TrialStatus::timed_out, "no answer within 1.5 s"},
  };
  auto worker = make_worker({.trial_s = 1.5});
  double busy_s = 0;
  for (const Case& c : cases) {
    CAPTURE(c.how);
    const std::string pid = worker.gpu().name;
    const Trial trial = worker.evaluate(request(c.how));
    CHECK(trial.status == c.status);
    CHECK(trial.reason == c.reason);
    CHECK(trial.plan == request(c.how).plan);
    CHECK(trial.num_tokens == 64);
    CHECK_FALSE(is_running(pid));
    CHECK(worker.evaluate(request("ok")).status == TrialStatus::ok);
    CHECK(worker.gpu().name != pid);
    CHECK(worker.usage().busy_s == (busy_s += 0.5));
  }
}

TEST_CASE("worker: a slow answer is an answer") {
  auto worker = make_worker();
  CHECK(worker.evaluate(request("slow")).status == TrialStatus::ok);
}

TEST_CASE("worker: a plan that killed its child is not run again, nor is one that holds its step") {
  spdlog::set_level(spdlog::level::off);
  auto worker = make_worker({.max_deaths = 100});
  worker.evaluate(request("abort"));
  worker.evaluate(request("ok"));
  const std::string pid = worker.gpu().name;

  const Trial again = worker.evaluate(request("abort"));
  CHECK(again.status == TrialStatus::launch_failed);
  CHECK(again.reason == "worker died of signal 6 (Aborted)");
  Request layer = request("ok");
  layer.stage = Stage::layer;
  layer.plan.steps.push_back(request("abort").plan.steps[0]);
  CHECK(worker.evaluate(layer).status == TrialStatus::launch_failed);
  CHECK(worker.evaluate(request("ok")).status == TrialStatus::ok);
  CHECK(worker.gpu().name == pid);

  CHECK(worker.evaluate(request("abort", 32)).status == TrialStatus::launch_failed);
  worker.evaluate(request("ok"));
  CHECK(worker.gpu().name != pid);
}

TEST_CASE("worker: the device is given up after three deaths in a row, and not before") {
  spdlog::set_level(spdlog::level::off);
  auto worker = make_worker();
  for (int round = 0; round < 3; ++round) {
    worker.evaluate(request("exit", 10 * round));
    worker.evaluate(request("exit", 10 * round + 1));
    worker.evaluate(request("exit", 10 * round + 1));  // from memory
    worker.evaluate(request("ok"));
  }
  worker.evaluate(request("exit", 100));
  worker.evaluate(request("exit", 101));
  try {
    worker.evaluate(request("exit", 102));
    FAIL("no error");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::device);
    CHECK(std::string(error.what()).find("worker exited with code 3") != std::string::npos);
  }
}

TEST_CASE("worker: a child killed from outside at any moment costs no trial") {
  spdlog::set_level(spdlog::level::off);
  auto worker = make_worker({.max_deaths = 1000});
  int num_ok = 0;
  for (int i = 0; i < 60; ++i) {
    const pid_t pid = std::stoi(worker.gpu().name);
    std::thread killer([=] {
      std::this_thread::sleep_for(std::chrono::microseconds(i * 37 % 700));
      kill(pid, SIGKILL);
    });
    for (int j = 0; j < 4; ++j) {
      const Trial trial = worker.evaluate(request("ok", 10 * i + j));
      num_ok += trial.status == TrialStatus::ok;
    }
    killer.join();
    // The kill may come after the four: then the next trial finds it.
    worker.evaluate(request("ok", 10 * i + 5));
    worker.evaluate(request("ok", 10 * i + 6));
  }
  CHECK(num_ok == 60 * 4);
}

TEST_CASE("worker: a child that cannot open is an error that says why") {
  const auto text = [](const Error& error) { return std::string(error.what()); };
  const Error died = open_error("segfault");
  CHECK(died.kind() == ErrorKind::device);
  CHECK(text(died).find("died of signal 11") != std::string::npos);
  CHECK(text(open_error("hang", 0.5)).find("no answer within 0.5 s") != std::string::npos);
  CHECK(text(open_error("garbage")).find("malformed") != std::string::npos);
  const Error reported = open_error("device_error");
  CHECK(reported.kind() == ErrorKind::device);
  CHECK(text(reported) == "an illegal memory access");
  CHECK(open_error("input_error").kind() == ErrorKind::input);
  CHECK_THROWS_WITH_AS(WorkerEvaluator({"/no/such/program"}, 0, problem(), {}),
                       doctest::Contains("cannot execute /no/such/program"), Error);
}

TEST_CASE("worker: SIGINT is the parent's to handle") {
  auto worker = make_worker();
  const pid_t pid = std::stoi(worker.gpu().name);
  CHECK(getpgid(pid) == pid);
  kill(pid, SIGINT);
  CHECK(worker.evaluate(request("ok")).status == TrialStatus::ok);
  CHECK(worker.gpu().name == std::to_string(pid));
}

TEST_CASE("worker: the child ends with its evaluator") {
  std::string pid;
  {
    auto worker = make_worker();
    pid = worker.gpu().name;
    CHECK(is_running(pid));
  }
  CHECK_FALSE(is_running(pid));
}

TEST_CASE("worker: a child that is busy dies with a parent that is killed") {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t parent = fork();
  if (parent == 0) {
    dup2(ends[1], STDOUT_FILENO);
    execl(MOETUNE_FAKE_WORKER, MOETUNE_FAKE_WORKER, "parent", nullptr);
    _exit(127);
  }
  close(ends[1]);
  std::FILE* output = fdopen(ends[0], "r");
  char pid[32] = {};
  REQUIRE(std::fscanf(output, "%31s", pid) == 1);
  std::fclose(output);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  CHECK(is_running(pid));
  kill(parent, SIGKILL);
  waitpid(parent, nullptr, 0);
  CHECK(ends_soon(pid));
}

TEST_CASE("worker: serving without a socket is an error, not a wait") {
  CHECK_THROWS_AS(serve(-1, {}), Error);
}

TEST_CASE("worker: a launcher's child is asked over its standard streams") {
  // A socket passed on as it is, and pipes between.
  for (const char* launcher : {"env", "A=b nice", R"(sh -c 'cat | "$0" "$@" | cat')"}) {
    CAPTURE(launcher);
    WorkerEvaluator worker({MOETUNE_FAKE_WORKER, launcher}, 0, problem(), {});
    const std::vector<Request> ahead(1000, request("ok"));
    worker.prefetch(ahead);
    Request asked = request("ok");
    asked.stop_above_us = 0.1 + 0.2;
    const Trial trial = worker.evaluate(asked);
    CHECK(trial.registers == 1000);
    CHECK(trial.timing.median_us == 0.1 + 0.2);
  }
}

TEST_CASE("worker: what its launcher cannot start is an error with the launcher's end") {
  const auto open = [](const std::string& launcher) {
    WorkerEvaluator({MOETUNE_FAKE_WORKER, launcher}, 0, problem(), {});
  };
  CHECK_THROWS_WITH_AS(open("false"), doctest::Contains("worker exited with code 1"), Error);
  CHECK_THROWS_WITH_AS(open("/no/such/launcher"), doctest::Contains("127"), Error);
}

TEST_CASE("worker: one that hangs beyond its launcher's reach ends by itself") {
  spdlog::set_level(spdlog::level::off);
  // In a session of its own no signal to the launcher's group gets there.
  WorkerEvaluator worker({MOETUNE_FAKE_WORKER, "setsid --wait"}, 0, problem(), {}, {.trial_s = 1});
  const std::string pid = worker.gpu().name;
  CHECK(worker.evaluate(request("spin")).status == TrialStatus::timed_out);
  CHECK(ends_soon(pid));
  CHECK(worker.evaluate(request("ok")).status == TrialStatus::ok);
  CHECK(worker.gpu().name != pid);
}

TEST_CASE("worker: a launched child that is killed costs no trial") {
  spdlog::set_level(spdlog::level::off);
  WorkerEvaluator worker({MOETUNE_FAKE_WORKER, "setsid --wait"}, 0, problem(), {});
  for (int i = 0; i < 5; ++i) {
    const std::string pid = worker.gpu().name;
    kill(std::stoi(pid), SIGKILL);
    CHECK(worker.evaluate(request("ok", i)).status == TrialStatus::ok);
    CHECK(worker.gpu().name != pid);
  }
}

TEST_CASE("worker: a launched child that nobody asks anything ends, and another one answers") {
  spdlog::set_level(spdlog::level::off);
  WorkerEvaluator worker({MOETUNE_FAKE_WORKER, "FAKE_WORKER_IDLE=1"}, 0, problem(), {});
  const std::string pid = worker.gpu().name;
  CHECK(ends_soon(pid));
  CHECK(worker.evaluate(request("ok")).status == TrialStatus::ok);
  CHECK(worker.gpu().name != pid);
}

TEST_CASE("worker: a program that is replaced while it runs still starts its workers") {
  const std::string copy =
      std::filesystem::temp_directory_path() / fmt::format("moetune-{}", getpid());
  std::filesystem::copy_file(MOETUNE_FAKE_WORKER, copy);
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t parent = fork();
  if (parent == 0) {
    dup2(ends[1], STDOUT_FILENO);
    execl(copy.c_str(), copy.c_str(), "restart", nullptr);
    _exit(127);
  }
  close(ends[1]);
  std::FILE* output = fdopen(ends[0], "r");
  // It prints, waits until the file is gone, kills its worker, and goes on with another.
  char word[32] = {};
  REQUIRE(std::fscanf(output, "%31s", word) == 1);
  std::filesystem::remove(copy);
  std::ofstream(copy) << "not a program";
  kill(parent, SIGUSR1);
  REQUIRE(std::fscanf(output, "%31s", word) == 1);
  CHECK(std::string(word) == "ok");
  std::fclose(output);
  int status = 0;
  waitpid(parent, &status, 0);
  CHECK(WIFEXITED(status));
  std::filesystem::remove(copy);
}
