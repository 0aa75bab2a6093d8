#include "jit/cache.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "jit/nvrtc.hpp"

namespace moetune {
namespace {

using Json = nlohmann::ordered_json;

// An entry: this line with the checksum of what follows, a line of JSON, the cubin's bytes.
constexpr std::string_view kMagic = "moe-tune cubin 2 ";
constexpr std::size_t kChecksumSize = 32;

}  // namespace

std::string encode_cubin(const std::string& key, const Cubin& cubin) {
  Json kernels = Json::array();
  for (const CompiledKernel& kernel : cubin.kernels) {
    const Resources& used = kernel.resources;
    kernels.push_back(Json{{"expression", kernel.expression},
                           {"lowered_name", kernel.lowered_name},
                           {"registers", used.registers},
                           {"stack_bytes", used.stack_bytes},
                           {"static_smem_bytes", used.static_smem_bytes},
                           {"max_threads", used.max_threads}});
  }
  const Json header = {{"key", key},
                       {"compile_ms", cubin.compile_ms},
                       {"log", cubin.log},
                       {"error", cubin.error},
                       {"kernels", kernels}};
  // A log may quote bytes that are not UTF-8, which dump() would refuse.
  const std::string body =
      header.dump(-1, ' ', false, Json::error_handler_t::replace) + '\n' + cubin.image;
  return fmt::format("{}{}\n{}", kMagic, hash_hex(body), body);
}

std::optional<Cubin> decode_cubin(const std::string& key, std::string_view entry) {
  const std::size_t body_at = kMagic.size() + kChecksumSize + 1;
  if (entry.size() < body_at || !entry.starts_with(kMagic)) return std::nullopt;
  const std::string_view body = entry.substr(body_at);
  if (entry.substr(kMagic.size(), kChecksumSize) != hash_hex(body)) return std::nullopt;
  const auto end = body.find('\n');
  if (end == std::string_view::npos) return std::nullopt;
  const Json header = Json::parse(body.substr(0, end));
  if (header.at("key") != key) return std::nullopt;  // renamed or copied by hand

  Cubin cubin;
  cubin.image = body.substr(end + 1);
  cubin.log = header.at("log");
  cubin.error = header.at("error");
  cubin.compile_ms = header.at("compile_ms");
  for (const Json& kernel : header.at("kernels")) {
    cubin.kernels.push_back({kernel.at("expression"),
                             kernel.at("lowered_name"),
                             {kernel.at("registers"), kernel.at("stack_bytes"),
                              kernel.at("static_smem_bytes"), kernel.at("max_threads")}});
  }
  return cubin;
}

std::string cache_key(const KernelSource& source, const std::string& arch,
                      std::span<const EmbeddedFile> files) {
  Json parts = {std::string(kMagic), nvrtc_version(), source.expressions,
                nvrtc_options(source, arch)};
  for (const EmbeddedFile& file : included_files(source.file, files)) {
    parts.push_back(std::string(file.name));
    parts.push_back(hash_hex(file.text));
  }
  return hash_hex(parts.dump());
}

Cache::Cache(std::string directory) : directory_(std::move(directory)), writable_(false) {
  if (directory_.empty()) return;
  writable_ = true;
  std::error_code error;
  std::filesystem::create_directories(directory_, error);
  if (error) give_up_writing(fmt::format("cannot create {}: {}", directory_, error.message()));
}

std::optional<Cubin> Cache::find(const std::string& key) const {
  std::error_code error;
  if (directory_.empty() || !std::filesystem::exists(path(key), error)) return std::nullopt;
  try {
    if (auto cubin = decode_cubin(key, read_file(path(key)))) {
      cubin->from_cache = true;
      return cubin;
    }
    spdlog::debug("{}: not a whole cache entry, compiling again", path(key));
  } catch (const std::exception& problem) {
    spdlog::debug("{}: {}, compiling again", path(key), problem.what());
  }
  return std::nullopt;
}

bool Cache::store(const std::string& key, const Cubin& cubin) {
  if (!writable_) return directory_.empty();
  try {
    write_file_atomically(path(key), encode_cubin(key, cubin));
    return true;
  } catch (const Error& error) {
    give_up_writing(error.what());
    return false;
  }
}

void Cache::give_up_writing(const std::string& reason) {
  if (!writable_.exchange(false)) return;  // another thread has said so
  spdlog::warn("{}; compiled kernels are not cached: free space or choose another cache directory",
               reason);
}

std::string Cache::path(const std::string& key) const {
  return directory_ + '/' + key + ".cubin";
}

}  // namespace moetune
