#include "jit/nvrtc.hpp"

#include <dlfcn.h>
#include <fmt/format.h>
#include <nvrtc.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "jit/compiler.hpp"
#include "jit/cubin.hpp"
#include "kernels/support/support.hpp"

namespace moetune {
namespace {

// Loaded when first needed: it is a hundred megabytes that most subcommands never touch, and the
// program must start where no toolkit is installed.
struct Library {
  decltype(&nvrtcVersion) version;
  decltype(&nvrtcGetErrorString) error_string;
  decltype(&nvrtcCreateProgram) create;
  decltype(&nvrtcDestroyProgram) destroy;
  decltype(&nvrtcAddNameExpression) add_expression;
  decltype(&nvrtcCompileProgram) compile;
  decltype(&nvrtcGetProgramLogSize) log_size;
  decltype(&nvrtcGetProgramLog) log;
  decltype(&nvrtcGetLoweredName) lowered_name;
  decltype(&nvrtcGetCUBINSize) cubin_size;
  decltype(&nvrtcGetCUBIN) cubin;
};

void* open_library() {
  std::string reason;
  // Found along LD_LIBRARY_PATH, the program's own search path (the toolkit it was built with,
  // /usr/local/cuda), and the system's.
  for (const char* name : {"libnvrtc.so.13", "libnvrtc.so.12"}) {
    if (void* handle = ::dlopen(name, RTLD_NOW)) return handle;
    const char* message = ::dlerror();
    if (reason.empty() && message) reason = message;
  }
  throw Error(ErrorKind::device,
              fmt::format("cannot load NVRTC ({}): install the CUDA toolkit, 12.8 or later, or add "
                          "the directory of libnvrtc to LD_LIBRARY_PATH",
                          reason));
}

template <typename Function>
void bind(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(handle, name));
  if (!function) {
    throw Error(ErrorKind::device,
                fmt::format("libnvrtc has no {}: install the CUDA toolkit, 12.8 or later", name));
  }
}

Library load_library() {
  void* handle = open_library();  // stays loaded: compilations may run until the process ends
  Library library;
  bind(handle, "nvrtcVersion", library.version);
  bind(handle, "nvrtcGetErrorString", library.error_string);
  bind(handle, "nvrtcCreateProgram", library.create);
  bind(handle, "nvrtcDestroyProgram", library.destroy);
  bind(handle, "nvrtcAddNameExpression", library.add_expression);
  bind(handle, "nvrtcCompileProgram", library.compile);
  bind(handle, "nvrtcGetProgramLogSize", library.log_size);
  bind(handle, "nvrtcGetProgramLog", library.log);
  bind(handle, "nvrtcGetLoweredName", library.lowered_name);
  bind(handle, "nvrtcGetCUBINSize", library.cubin_size);
  bind(handle, "nvrtcGetCUBIN", library.cubin);
  return library;
}

const Library& nvrtc() {
  static const Library library = load_library();
  return library;
}

void check(nvrtcResult result, const char* what) {
  if (result == NVRTC_SUCCESS) return;
  throw Error(ErrorKind::failed, fmt::format("{}: {}", what, nvrtc().error_string(result)));
}

class Program {
 public:
  // The first of `files` is the main source, the others are what it may include.
  explicit Program(const std::vector<EmbeddedFile>& files) {
    std::vector<std::string> names, texts;  // NVRTC wants them null-terminated
    for (const EmbeddedFile& file : files) {
      names.emplace_back(file.name);
      texts.emplace_back(file.text);
    }
    std::vector<const char*> header_names, header_texts;
    for (std::size_t i = 1; i < files.size(); ++i) {
      header_names.push_back(names[i].c_str());
      header_texts.push_back(texts[i].c_str());
    }
    check(nvrtc().create(&program_, texts[0].c_str(), names[0].c_str(),
                         static_cast<int>(header_names.size()), header_texts.data(),
                         header_names.data()),
          "nvrtcCreateProgram");
  }
  ~Program() { nvrtc().destroy(&program_); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  nvrtcProgram get() const { return program_; }

  std::string log() const {
    std::size_t size = 0;
    check(nvrtc().log_size(program_, &size), "nvrtcGetProgramLogSize");
    std::string text(size, '\0');
    check(nvrtc().log(program_, text.data()), "nvrtcGetProgramLog");
    while (!text.empty() && (text.back() == '\0' || text.back() == '\n')) text.pop_back();
    return text;
  }

  std::string cubin() const {
    std::size_t size = 0;
    check(nvrtc().cubin_size(program_, &size), "nvrtcGetCUBINSize");
    std::string image(size, '\0');
    check(nvrtc().cubin(program_, image.data()), "nvrtcGetCUBIN");
    return image;
  }

 private:
  nvrtcProgram program_ = nullptr;
};

// The log's first line that tells of an error: the front end's, the driver's, or ptxas's.
std::string first_error(const std::string& log, const char* otherwise) {
  for (const char* mark : {" error: ", "ptxas error", "ptxas fatal"}) {
    const auto at = log.find(mark);
    if (at == std::string::npos) continue;
    const auto begin = log.rfind('\n', at) + 1;  // npos + 1 is 0: the first line
    return log.substr(begin, log.find('\n', at) - begin);
  }
  return otherwise;
}

void build(const KernelSource& source, const std::string& arch,
           const std::vector<EmbeddedFile>& files, Cubin& result) {
  const Program program(files);
  for (const std::string& expression : source.expressions) {
    check(nvrtc().add_expression(program.get(), expression.c_str()), "nvrtcAddNameExpression");
  }
  const std::vector<std::string> options = nvrtc_options(source, arch);
  std::vector<const char*> arguments;
  arguments.reserve(options.size());
  for (const std::string& option : options) arguments.push_back(option.c_str());
  const nvrtcResult status =
      nvrtc().compile(program.get(), static_cast<int>(arguments.size()), arguments.data());
  result.log = program.log();
  if (status != NVRTC_SUCCESS) {
    result.error = first_error(result.log, nvrtc().error_string(status));
    return;
  }
  std::string image = program.cubin();
  for (const std::string& expression : source.expressions) {
    const char* name = nullptr;
    check(nvrtc().lowered_name(program.get(), expression.c_str(), &name), "nvrtcGetLoweredName");
    result.kernels.push_back({expression, name, read_resources(image, name)});
  }
  result.image = std::move(image);
}

}  // namespace

std::vector<EmbeddedFile> included_files(std::string_view main,
                                         std::span<const EmbeddedFile> files) {
  std::vector<EmbeddedFile> found;
  const auto add = [&](std::string_view name) {
    const auto is_it = [&](const EmbeddedFile& file) { return file.name == name; };
    if (std::any_of(found.begin(), found.end(), is_it)) return;
    const auto file = std::find_if(files.begin(), files.end(), is_it);
    if (file != files.end()) found.push_back(*file);  // else NVRTC says what is missing, and where
  };
  add(main);
  std::size_t num_scanned = 0;
  while (num_scanned < found.size()) {
    constexpr std::string_view kInclude = "#include \"";
    std::string_view text = found[num_scanned++].text;
    while (true) {
      const auto at = text.find(kInclude);
      if (at == std::string_view::npos) break;
      text.remove_prefix(at + kInclude.size());
      add(text.substr(0, text.find('"')));
    }
  }
  return found;
}

std::vector<std::string> nvrtc_options(const KernelSource& source, const std::string& arch) {
  std::vector<std::string> options = {"-std=c++20", "-default-device",
                                      "--gpu-architecture=" + arch};
  options.insert(options.end(), source.options.begin(), source.options.end());
  return options;
}

std::string nvrtc_version() {
  int major = 0;
  int minor = 0;
  check(nvrtc().version(&major, &minor), "nvrtcVersion");
  return fmt::format("{}.{}", major, minor);
}

std::string sources_hash(std::string_view file, std::span<const EmbeddedFile> files) {
  const std::vector<EmbeddedFile> included = included_files(file, files);
  if (included.empty()) return "";
  std::string all;
  for (const EmbeddedFile& source : included) {
    all += fmt::format("{} {}\n{}\n", source.name, source.text.size(), source.text);
  }
  return hash_hex(all);
}

KernelHashes kernel_hashes(std::span<const EmbeddedFile> files) {
  KernelHashes hashes;
  for (const auto& variant : variants()) {
    const std::string hash = sources_hash(variant->source_file(), files);
    if (!hash.empty()) hashes.variants.emplace(variant->name(), hash);
  }
  hashes.small_kernels = sources_hash(kSmallKernelsFile, files);
  return hashes;
}

Cubin compile(const KernelSource& source, const std::string& arch,
              std::span<const EmbeddedFile> files) {
  nvrtc();  // whether it can be loaded at all is no property of the source
  Cubin result;
  const auto start = std::chrono::steady_clock::now();
  try {
    const std::vector<EmbeddedFile> included = included_files(source.file, files);
    if (included.empty()) {
      throw Error(ErrorKind::input, fmt::format("no kernel source named {}", source.file));
    }
    build(source, arch, included, result);
  } catch (const Error& error) {
    result.error = error.what();
    result.kernels.clear();
  }
  const std::chrono::duration<double, std::milli> elapsed =
      std::chrono::steady_clock::now() - start;
  result.compile_ms = elapsed.count();
  return result;
}

}  // namespace moetune
