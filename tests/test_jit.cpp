// Compiles small sources with NVRTC, which needs the toolkit but no GPU.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <random>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "jit/cache.hpp"
#include "jit/compile_worker.hpp"
#include "jit/compiler.hpp"
#include "jit/cubin.hpp"
#include "jit/nvrtc.hpp"
#include "tests/temporary_folder.hpp"

using namespace moetune;
namespace fs = std::filesystem;

namespace {

constexpr std::string_view kMain = R"(
#include "demo/config.hpp"
template <Config c>
__global__ void __launch_bounds__(c.threads) fill(float* out) {
  __shared__ float tile[c.threads];
  tile[threadIdx.x] = scale() * out[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[c.threads - 1 - threadIdx.x];
}
// Keeps more values alive than 64 registers hold.
template <int N>
__global__ void __launch_bounds__(1024) spill(float* p, int n) {
  float a[N];
  for (int i = 0; i < N; ++i) a[i] = p[i * n + threadIdx.x];
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < N; ++i) a[i] = a[(i + 1) % N] * a[(i * 7) % N];
  for (int i = 0; i < N; ++i) p[i * n + threadIdx.x] = a[i];
}
__global__ void dynamic(float* out) {
  extern __shared__ float tile[];
  tile[threadIdx.x] = out[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x ^ 1];
}
)";

const std::vector<EmbeddedFile> kFiles = {
    {"demo/main.cu", kMain},
    {"demo/config.hpp", "#include \"common/scale.cuh\"\nstruct Config { int threads; };\n"},
    {"common/scale.cuh", "__device__ inline float scale() { return 2.0f; }\n"},
    {"demo/broken.cu", "__global__ void broken() {\n  no_such_function();\n}\n"},
    {"demo/lost.cu", "#include \"demo/nowhere.hpp\"\n__global__ void lost() {}\n"},
};

KernelSource fill(int threads) {
  return {"demo/main.cu", {fmt::format("fill<Config{{.threads = {}}}>", threads)}, {}};
}

struct Folder : TemporaryFolder {
  std::vector<fs::path> entries() const {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(path())) found.push_back(entry.path());
    return found;
  }
};

CompiledKernel kernel_with(int registers, int stack_bytes = 0, int max_threads = 0) {
  return {"k", "k", {registers, stack_bytes, 0, max_threads}};
}

}  // namespace

TEST_CASE("nvrtc: a source sees its includes by their relative names, nested ones too") {
  const auto files = included_files("demo/main.cu", kFiles);
  REQUIRE(files.size() == 3);
  CHECK(files[0].name == "demo/main.cu");
  CHECK(files[1].name == "demo/config.hpp");
  CHECK(files[2].name == "common/scale.cuh");
  CHECK(included_files("demo/absent.cu", kFiles).empty());
}

TEST_CASE("compile: kernels come in the order of the expressions, with their symbols") {
  KernelSource source = fill(64);
  source.expressions.push_back("dynamic");
  source.expressions.push_back("fill<Config{.threads = 128}>");
  const Cubin cubin = compile(source, "sm_90a", kFiles);
  REQUIRE_MESSAGE(cubin.ok(), cubin.error);
  REQUIRE(cubin.kernels.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) CHECK(cubin.kernels[i].expression == source.expressions[i]);
  CHECK(cubin.kernels[0].lowered_name != cubin.kernels[2].lowered_name);
  CHECK(cubin.kernels[1].lowered_name == "_Z7dynamicPf");
  CHECK(cubin.kernels[0].resources.max_threads == 64);
  CHECK(cubin.kernels[1].resources.max_threads == 0);
  CHECK(cubin.compile_ms > 0);
}

TEST_CASE("compile: resources read from the cubin are those that ptxas reports") {
  for (const char* arch : {"sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"}) {
    for (const char* expression :
         {"fill<Config{.threads = 96}>", "fill<Config{.threads = 512}>", "spill<128>", "dynamic"}) {
      CAPTURE(arch);
      CAPTURE(expression);
      const Cubin cubin =
          compile({"demo/main.cu", {expression}, {"--ptxas-options=-v"}}, arch, kFiles);
      REQUIRE_MESSAGE(cubin.ok(), cubin.error);
      // ptxas reports one entry function, or several: this one's lines follow its name.
      const std::string log =
          cubin.log.substr(cubin.log.find("properties for " + cubin.kernels[0].lowered_name));
      const auto number = [&](const char* pattern) {
        std::smatch match;
        return std::regex_search(log, match, std::regex(pattern)) ? std::stoi(match[1]) : 0;
      };
      const Resources& used = cubin.kernels[0].resources;
      CHECK(used.registers == number("Used ([0-9]+) registers"));
      CHECK(used.stack_bytes == number("([0-9]+) bytes stack frame"));
      const std::string line = log.substr(log.find("Used "), log.find('\n', log.find("Used ")));
      std::smatch match;
      const bool shared = std::regex_search(line, match, std::regex("([0-9]+) bytes smem"));
      CHECK(used.static_smem_bytes == (shared ? std::stoi(match[1]) : 0));
      CHECK((used.stack_bytes > 0) == (std::string(expression) == "spill<128>"));
    }
  }
}

TEST_CASE("compile: what is wrong with a source is one line in the result, not an exception") {
  const Cubin broken = compile({"demo/broken.cu", {"broken"}, {}}, "sm_80", kFiles);
  CHECK(broken.error == "demo/broken.cu(2): error: identifier \"no_such_function\" is undefined");
  CHECK(broken.image.empty());
  CHECK(broken.kernels.empty());
  const auto error = [](const KernelSource& source, const char* arch) {
    return compile(source, arch, kFiles).error;
  };
  CHECK(error({"demo/lost.cu", {"lost"}, {}}, "sm_80").find("demo/nowhere.hpp") !=
        std::string::npos);
  CHECK(error({"demo/absent.cu", {"x"}, {}}, "sm_80") == "no kernel source named demo/absent.cu");
  CHECK(error(fill(64), "sm_7").find("arch") != std::string::npos);
  CHECK(error({"demo/main.cu", {"no_such_kernel<3>"}, {}}, "sm_80").find("no_such_kernel") !=
        std::string::npos);
  CHECK(
      error({"demo/main.cu", {"dynamic"}, {"--no-such-option"}}, "sm_80").find("no-such-option") !=
      std::string::npos);
}

TEST_CASE("compile: the log keeps what ptxas says without being asked") {
  const std::vector<EmbeddedFile> files = {{"wgmma.cu", R"(
extern "C" __global__ void __launch_bounds__(128) touched(float* p, unsigned long long a, int n) {
  float d[4] = {p[0], p[1], p[2], p[3]};
  for (int i = 0; i < n; ++i) {
    asm volatile("wgmma.fence.sync.aligned;");
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %4,"
                 " 1, 1, 1, 0, 0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a + i));
    d[0] += 1;
    asm volatile("wgmma.commit_group.sync.aligned;");
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;");
  for (int i = 0; i < 4; ++i) p[threadIdx.x * 4 + i] = d[i];
})"}};
  const Cubin cubin = compile({"wgmma.cu", {"touched"}, {}}, "sm_90a", files);
  REQUIRE_MESSAGE(cubin.ok(), cubin.error);
  const std::string defect = resource_defect(cubin.kernels[0], cubin.log, 128);
  CHECK_MESSAGE(defect.starts_with("performance_loss: "), cubin.log);
  CHECK(defect.find("serialized") != std::string::npos);
  CHECK(defect.find('\n') == std::string::npos);
}

TEST_CASE("cubin: a truncated image is an error") {
  const Cubin cubin = compile(fill(64), "sm_90a", kFiles);
  REQUIRE(cubin.ok());
  const std::string& name = cubin.kernels[0].lowered_name;
  for (std::size_t size = 0; size < cubin.image.size(); size += size < 4096 ? 1 : 61) {
    // In memory of its exact size, so that AddressSanitizer sees a read past the end.
    const std::vector<char> part(cubin.image.begin(),
                                 cubin.image.begin() + static_cast<std::ptrdiff_t>(size));
    CHECK_THROWS_AS(read_resources({part.data(), part.size()}, name), Error);
  }
  CHECK_THROWS_AS(read_resources(cubin.image, "another_kernel"), Error);
  CHECK_THROWS_AS(read_resources("#!/bin/sh\n", name), Error);
}

TEST_CASE("cubin: corrupt bytes give an error or wrong numbers, never a read outside") {
  const Cubin cubin = compile(fill(64), "sm_90a", kFiles);
  REQUIRE(cubin.ok());
  std::mt19937 random(1);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<char> bytes(cubin.image.begin(), cubin.image.end());
    // Where the structure is: the file's header, .nv.info and the section table, in turn.
    const std::size_t begin[] = {0, cubin.image.find(".nv.info"), bytes.size() * 3 / 4};
    const std::size_t window[] = {64, 2048, bytes.size() / 4};
    for (int i = 0; i < 3; ++i) {
      const std::size_t at = begin[round % 3] + random() % window[round % 3];
      bytes[at % bytes.size()] = static_cast<char>(random() % 4 == 0 ? 0xff : random());
    }
    try {
      read_resources({bytes.data(), bytes.size()}, cubin.kernels[0].lowered_name);
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(refused > 1000);
  CHECK(refused < 20000);
}

TEST_CASE("resource_defect: names the rule that makes a kernel unfit") {
  CHECK(resource_defect(kernel_with(128), "", 512) == "");
  CHECK(resource_defect(kernel_with(255), "", 256) == "");
  CHECK(resource_defect(kernel_with(128, 8), "", 128).starts_with("spill: 8 bytes"));
  CHECK(resource_defect(kernel_with(129), "", 512).starts_with("registers: "));
  CHECK(resource_defect(kernel_with(32, 0, 128), "", 256).starts_with("threads: "));
  // 9 warps of 224 registers would fit 65536 in sum, but not the four partitions.
  CHECK(resource_defect(kernel_with(224), "", 8 * 32) == "");
  CHECK(resource_defect(kernel_with(224), "", 9 * 32).starts_with("registers: "));
  const std::string log =
      "a.cu: warning\nptxas info : (C7508) Potential Performance Loss: 'setmaxnreg' ignored\nmore";
  CHECK(resource_defect(kernel_with(64), log, 128) ==
        "performance_loss: ptxas info : (C7508) Potential Performance Loss: 'setmaxnreg' ignored");
}

TEST_CASE("cache: the second compiler takes the first one's cubins, equal in every field") {
  const Folder folder;
  const auto build = [&] { return Compiler("sm_90a", folder.path(), 2, kFiles).get(fill(64)); };
  const auto first = build();
  const auto second = build();
  REQUIRE_MESSAGE(first->ok(), first->error);
  CHECK(!first->from_cache);
  CHECK(second->from_cache);
  CHECK(second->image == first->image);
  CHECK(second->log == first->log);
  CHECK(second->compile_ms == doctest::Approx(first->compile_ms));
  REQUIRE(second->kernels.size() == 1);
  const CompiledKernel &a = first->kernels[0], &b = second->kernels[0];
  CHECK(a.expression == b.expression);
  CHECK(a.lowered_name == b.lowered_name);
  CHECK(a.resources.registers == b.resources.registers);
  CHECK(b.resources.static_smem_bytes == 256);
  CHECK(b.resources.max_threads == 64);
}

TEST_CASE("cache: the key changes with everything that decides the cubin, and with nothing else") {
  const std::string key = cache_key(fill(64), "sm_90a", kFiles);
  CHECK(cache_key(fill(64), "sm_90a", kFiles) == key);
  CHECK(cache_key(fill(65), "sm_90a", kFiles) != key);
  CHECK(cache_key(fill(64), "sm_80", kFiles) != key);
  KernelSource with_option = fill(64);
  with_option.options = {"-DX=1"};
  CHECK(cache_key(with_option, "sm_90a", kFiles) != key);
  auto files = kFiles;
  files[3].text = "not included";
  CHECK(cache_key(fill(64), "sm_90a", files) == key);
  files[2].text = "included by an include";
  CHECK(cache_key(fill(64), "sm_90a", files) != key);
}

TEST_CASE("cache: an entry that is truncated, altered or misplaced is rebuilt") {
  const Folder folder;
  const auto build = [&](int threads) {
    return Compiler("sm_80", folder.path(), 1, kFiles).get(fill(threads));
  };
  build(64);
  REQUIRE(folder.entries().size() == 1);
  const std::string path = folder.entries()[0];
  const std::string whole = read_file(path);
  std::string flipped = whole;
  flipped[whole.size() / 2] = static_cast<char>(flipped[whole.size() / 2] ^ 1);
  build(128);
  const std::string other =
      read_file(folder.entries()[0] == path ? folder.entries()[1] : folder.entries()[0]);
  const std::vector<std::string> bad = {"",      whole.substr(0, 20), whole.substr(0, 1000),
                                        flipped, whole + "x",         other};
  for (const std::string& content : bad) {
    write_file_atomically(path, content);
    const auto rebuilt = build(64);
    CHECK(rebuilt->ok());
    CHECK(!rebuilt->from_cache);
    CHECK(build(64)->from_cache);
  }
}

TEST_CASE("cache: a failed compilation is not kept") {
  const Folder folder;
  Compiler compiler("sm_80", folder.path(), 1, kFiles);
  CHECK(!compiler.get({"demo/broken.cu", {"broken"}, {}})->ok());
  CHECK(compiler.stats().failed == 1);
  CHECK(folder.entries().empty());
}

TEST_CASE("cache: a directory that cannot be written costs one warning and nothing else") {
  const Folder folder;
  write_file_atomically(folder.file("file"), "in the way");
  std::ostringstream diagnostics;
  const auto previous = spdlog::default_logger();
  const auto sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(diagnostics);
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sink));
  {
    Compiler under_a_file("sm_80", folder.file("file/cache"), 1, kFiles);
    CHECK(under_a_file.get(fill(32))->ok());
    // Removed while it is in use.
    Compiler removed("sm_80", folder.file("cache"), 1, kFiles);
    fs::remove(folder.file("cache"));
    for (int threads : {32, 64, 96}) CHECK(removed.get(fill(threads))->ok());
    CHECK(removed.stats().not_stored == 3);
    CHECK(removed.stats().compiled == 3);
  }
  spdlog::set_default_logger(previous);
  const std::string text = diagnostics.str();
  CHECK(std::count(text.begin(), text.end(), '\n') == 2);
  CHECK(text.find(folder.file("file/cache")) != std::string::npos);
}

TEST_CASE("cache: a disk that is full leaves no torn entry and costs no kernel") {
  const Folder folder;
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    // Files end after 1 KB here, and a cubin is larger: what a full disk does to a write.
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1024, 1024};
    setrlimit(RLIMIT_FSIZE, &limit);
    spdlog::set_level(spdlog::level::off);
    Compiler compiler("sm_80", folder.path(), 1, kFiles);
    const bool is_good = compiler.get(fill(64))->ok() && compiler.stats().not_stored == 1;
    _exit(is_good ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(folder.entries().empty());
  Compiler after("sm_80", folder.path(), 1, kFiles);
  CHECK(!after.get(fill(64))->from_cache);
  CHECK(after.stats().not_stored == 0);
}

TEST_CASE("cache: compilers that share a directory leave whole entries and nothing else") {
  const Folder folder;
  {
    Compiler a("sm_80", folder.path(), 2, kFiles), b("sm_80", folder.path(), 2, kFiles);
    for (int threads = 32; threads <= 256; threads += 32) {
      a.submit(fill(threads));
      b.submit(fill(threads));
    }
    for (int threads = 32; threads <= 256; threads += 32) {
      CHECK(a.get(fill(threads))->ok());
      CHECK(b.get(fill(threads))->ok());
    }
  }
  CHECK(folder.entries().size() == 8);
  Compiler after("sm_80", folder.path(), 2, kFiles);
  for (int threads = 32; threads <= 256; threads += 32) {
    CHECK(after.get(fill(threads))->from_cache);
  }
}

TEST_CASE("compiler: a source is compiled once, however often it is asked for") {
  Compiler compiler("sm_80", "", 2, kFiles);
  const auto first = compiler.submit(fill(64));
  const auto second = compiler.submit(fill(64));
  CHECK(compiler.get(fill(64)) == first.get());
  CHECK(first.get() == second.get());
  CHECK(compiler.stats().compiled == 1);
  CHECK(compiler.stats().compile_s > 0);
}

TEST_CASE("compiler: get jumps the queue") {
  Compiler compiler("sm_80", "", 1, kFiles);
  for (int threads = 1; threads <= 40; ++threads) compiler.submit(fill(threads));
  CHECK(compiler.get(fill(40))->ok());
  CHECK(compiler.stats().compiled < 40);
}

TEST_CASE("compiler: what is for later waits until there is nothing else") {
  Compiler compiler("sm_80", "", 1, kFiles);
  compiler.submit(fill(32));
  const auto perhaps = compiler.submit(fill(160), Urgency::perhaps);
  const auto later = compiler.submit(fill(64), Urgency::later);
  const auto wanted = compiler.submit(fill(96), Urgency::perhaps);
  const auto soon = compiler.submit(fill(128));
  compiler.submit(fill(96));  // is for later no more
  CHECK(soon.get()->ok());
  CHECK(later.wait_for(std::chrono::seconds(0)) != std::future_status::ready);
  CHECK(wanted.get()->ok());
  CHECK(later.wait_for(std::chrono::seconds(0)) != std::future_status::ready);
  CHECK(later.get()->ok());
  CHECK(perhaps.wait_for(std::chrono::seconds(0)) != std::future_status::ready);
  CHECK(perhaps.get()->ok());
}

TEST_CASE("compiler: of what perhaps nobody asks for, the last comes first") {
  Compiler compiler("sm_80", "", 2, kFiles);
  std::vector<std::shared_future<std::shared_ptr<const Cubin>>> perhaps;
  perhaps.reserve(40);
  for (int i = 1; i <= 40; ++i) perhaps.push_back(compiler.submit(fill(i), Urgency::perhaps));
  CHECK(perhaps.back().get()->ok());
  CHECK(perhaps[5].wait_for(std::chrono::seconds(0)) != std::future_status::ready);
  CHECK(compiler.get(fill(6))->ok());  // one that somebody does ask for
  for (const auto& one : perhaps) CHECK(one.get()->ok());
}

TEST_CASE("compiler: its end drops what is queued, and every future is answered") {
  std::vector<std::shared_future<std::shared_ptr<const Cubin>>> futures;
  {
    Compiler compiler("sm_80", "", 1, kFiles);
    for (int threads = 1; threads <= 40; ++threads)
      futures.push_back(compiler.submit(fill(threads)));
    CHECK(futures[0].get()->ok());
  }
  int dropped = 0;
  for (const auto& future : futures) {
    REQUIRE(future.wait_for(std::chrono::seconds(0)) == std::future_status::ready);
    dropped += !future.get()->ok();
  }
  CHECK(dropped > 0);
  CHECK(!futures.back().get()->ok());
}

TEST_CASE("compiler: what further processes compile is what this one does") {
  const auto source = [](int i) {
    return KernelSource{"reference/reference.cu",
                        {i == 7 ? "no_such_kernel" : "moetune_reference::fill_normal_bf16"},
                        {fmt::format("-DNUMBER={}", i)}};
  };
  Compiler alone("sm_90a", "", 1);
  Compiler many("sm_90a", "", 2 * kThreadsAProcess + 1, embedded_kernels(), MOETUNE_PROGRAM);
  std::vector<std::shared_future<std::shared_ptr<const Cubin>>> cubins;
  for (int i = 0; i < 40; ++i) cubins.push_back(many.submit(source(i)));
  for (const int i : {0, 7}) {
    const auto wanted = alone.get(source(i));
    for (int j = i; j < (i == 7 ? 8 : 7); ++j) {
      const auto cubin = cubins[static_cast<std::size_t>(j)].get();
      CHECK(cubin->image == wanted->image);
      CHECK(cubin->error == wanted->error);
      CHECK(cubin->log == wanted->log);
      REQUIRE(cubin->kernels.size() == wanted->kernels.size());
      if (cubin->kernels.empty()) continue;
      CHECK(cubin->kernels[0].lowered_name == wanted->kernels[0].lowered_name);
      CHECK(cubin->kernels[0].resources.registers == wanted->kernels[0].resources.registers);
    }
  }
  for (const auto& cubin : cubins) cubin.wait();
  const Compiler::Stats stats = many.stats();
  CHECK(stats.compiled == 39);
  CHECK(stats.failed == 1);
  CHECK(stats.peak_host_bytes > 2 * 10'000'000);  // of two processes that did something
}

TEST_CASE("compiler: when further processes are gone, or never came, this one goes on alone") {
  const KernelSource source{"reference/reference.cu", {"moetune_reference::fill_normal_bf16"}, {}};
  for (const char* program : {"/bin/false", "/nowhere/moe-tune"}) {
    CompileWorker worker(program, 1);
    CHECK_FALSE(worker.compile(source, "sm_90a").has_value());
    CHECK_FALSE(worker.compile(source, "sm_90a").has_value());
    Compiler compiler("sm_90a", "", kThreadsAProcess + 4, embedded_kernels(), program);
    for (int i = 0; i < 12; ++i) {
      KernelSource other = source;
      other.options = {fmt::format("-DNUMBER={}", i)};
      CHECK(compiler.get(other)->ok());
    }
  }
}

TEST_CASE("kernel_hashes: every variant of the program has one, and the small kernels") {
  const KernelHashes hashes = kernel_hashes();
  CHECK(hashes.variants.size() == variants().size());
  for (const auto& variant : variants()) {
    const std::string name(variant->name());
    CAPTURE(name);
    CHECK(hashes.variants.at(name).size() == 32);
    CHECK(hashes.variants.at(name) != hashes.small_kernels);
  }
  CHECK(hashes.small_kernels.size() == 32);
  CHECK(sources_hash("demo/absent.cu", kFiles) == "");
}

TEST_CASE("kernel_hashes: an edit shows in the hashes of what includes the file, and in no other") {
  const std::vector<EmbeddedFile> sources = {
      {"common/shared.hpp", "int shared;"},
      {"hopper/moe_gemm.cu", "#include \"hopper/store.cuh\"\n"},
      {"hopper/store.cuh", "#include \"common/shared.hpp\"\n"},
      {"portable/moe_gemm.cu", "#include \"common/shared.hpp\"\n"},
      {"swap_ab/moe_gemm.cu", "int alone;"},
      {"reference/reference.cu", "int judge;"},
      {"support/params.hpp", "int params;"},
      {"support/small_kernels.cu", "#include \"support/params.hpp\"\n"},
  };
  using Names = std::vector<std::string>;
  const KernelHashes before = kernel_hashes(sources);
  CHECK_FALSE(before.variants.contains("decode"));  // which has no sources here
  const std::set<std::string> names{"hopper", "portable", "swap_ab"};
  const auto changed_by = [&](std::string_view edited) {
    std::vector<EmbeddedFile> files = sources;
    const auto file = std::find_if(files.begin(), files.end(), [&](const EmbeddedFile& candidate) {
      return candidate.name == edited;
    });
    REQUIRE(file != files.end());
    const std::string text = std::string(file->text) + "\n// edited";
    file->text = text;
    const KernelHashes after = kernel_hashes(files);
    Names changed = changed_variants(names, before, after);
    if (after.small_kernels != before.small_kernels) changed.push_back("small");
    return changed;
  };
  CHECK(changed_by("hopper/moe_gemm.cu") == Names{"hopper"});
  CHECK(changed_by("hopper/store.cuh") == Names{"hopper"});
  CHECK(changed_by("swap_ab/moe_gemm.cu") == Names{"swap_ab"});
  CHECK(changed_by("common/shared.hpp") == Names{"hopper", "portable"});
  CHECK(changed_by("support/params.hpp") == Names{"small"});
  CHECK(changed_by("support/small_kernels.cu") == Names{"small"});
  CHECK(changed_by("reference/reference.cu").empty());
}

TEST_CASE("kernel_hashes: the judge's kernels are in none") {
  std::vector<EmbeddedFile> files;
  for (const EmbeddedFile& file : embedded_kernels())
    if (!file.name.starts_with("reference/")) files.push_back(file);
  CHECK(files.size() < embedded_kernels().size());
  CHECK(kernel_hashes(files).variants == kernel_hashes().variants);
  CHECK(kernel_hashes(files).small_kernels == kernel_hashes().small_kernels);
}

TEST_CASE("nvrtc_version: a major and a minor number") {
  CHECK(std::regex_match(nvrtc_version(), std::regex("[0-9]+\\.[0-9]+")));
}
