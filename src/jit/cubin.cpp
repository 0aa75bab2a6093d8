#include "jit/cubin.hpp"

#include <elf.h>
#include <fmt/core.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "core/error.hpp"

namespace moetune {
namespace {

constexpr std::uint16_t kElfMachineCuda = 190;  // EM_CUDA
// An `.nv.info` record is a format byte, an attribute byte and 16 bits: the value itself, or, for
// this format, the number of bytes that follow.
constexpr std::uint8_t kFormatSized = 0x04;  // EIFMT_SVAL
constexpr std::uint8_t kMaxThreads = 0x05;   // EIATTR_MAX_THREADS: x, y, z
constexpr std::uint8_t kFrameSize = 0x11;    // EIATTR_FRAME_SIZE: symbol, bytes
constexpr std::uint8_t kStackSize = 0x12;    // EIATTR_MIN_STACK_SIZE: symbol, bytes, callees too
constexpr std::uint8_t kRegisters = 0x2f;    // EIATTR_REGCOUNT: symbol, count
// From sm_90 on the driver keeps the first KiB of a block's shared memory; a kernel's section
// counts it whenever the kernel uses shared memory, although it declared none of it.
constexpr std::uint64_t kReservedSmemBytes = 1024;

[[noreturn]] void fail(const std::string& what) {
  throw Error(ErrorKind::input, "unreadable cubin: " + what);
}

std::string_view slice(std::string_view bytes, std::uint64_t offset, std::uint64_t size) {
  if (offset > bytes.size() || size > bytes.size() - offset) {
    fail(fmt::format("{} bytes at {} lie outside its {} bytes", size, offset, bytes.size()));
  }
  return bytes.substr(offset, size);
}

// Copies, because nothing in a corrupt image is known to be aligned.
template <typename T>
T read(std::string_view bytes, std::uint64_t offset) {
  T value;
  std::memcpy(&value, slice(bytes, offset, sizeof(T)).data(), sizeof(T));
  return value;
}

int to_int(std::uint64_t value, const char* what) {
  if (value > static_cast<std::uint64_t>(std::numeric_limits<int>::max())) {
    fail(fmt::format("{} of {}", what, value));
  }
  return static_cast<int>(value);
}

class Image {
 public:
  explicit Image(std::string_view bytes) : bytes_(bytes) {
    const auto header = read<Elf64_Ehdr>(bytes, 0);
    if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
        header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != kElfMachineCuda ||
        header.e_shentsize != sizeof(Elf64_Shdr)) {
      fail("not a 64-bit CUDA ELF file");
    }
    const auto table =
        slice(bytes, header.e_shoff, std::uint64_t{header.e_shnum} * sizeof(Elf64_Shdr));
    for (std::uint64_t i = 0; i < header.e_shnum; ++i) {
      sections_.push_back(read<Elf64_Shdr>(table, i * sizeof(Elf64_Shdr)));
    }
    names_ = content(at(header.e_shstrndx));
    // The last thing in the file: without this, a missing tail would go unnoticed.
    slice(bytes, header.e_phoff, std::uint64_t{header.e_phnum} * header.e_phentsize);
  }

  const Elf64_Shdr* find(std::string_view name) const {
    for (const Elf64_Shdr& section : sections_) {
      if (text(names_, section.sh_name) == name) return &section;
    }
    return nullptr;
  }

  std::string_view content(const Elf64_Shdr& section) const {
    if (section.sh_type == SHT_NOBITS) return {};
    return slice(bytes_, section.sh_offset, section.sh_size);
  }

  std::optional<std::uint32_t> symbol_index(std::string_view name) const {
    for (const Elf64_Shdr& section : sections_) {
      if (section.sh_type != SHT_SYMTAB) continue;
      const std::string_view symbols = content(section);
      const std::string_view strings = content(at(section.sh_link));
      for (std::uint32_t i = 0; i < symbols.size() / sizeof(Elf64_Sym); ++i) {
        const auto symbol = read<Elf64_Sym>(symbols, i * sizeof(Elf64_Sym));
        if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC && text(strings, symbol.st_name) == name) {
          return i;
        }
      }
    }
    return std::nullopt;
  }

 private:
  const Elf64_Shdr& at(std::uint64_t index) const {
    if (index >= sections_.size()) fail(fmt::format("it has no section {}", index));
    return sections_[index];
  }

  static std::string_view text(std::string_view strings, std::uint64_t offset) {
    const std::string_view rest = slice(strings, offset, strings.size() - offset);
    const auto end = rest.find('\0');
    if (end == std::string_view::npos) fail("a name without an end");
    return rest.substr(0, end);
  }

  std::string_view bytes_;
  std::string_view names_;
  std::vector<Elf64_Shdr> sections_;
};

// Calls `visit(attribute, value bytes)` for every record that has such bytes.
template <typename Visit>
void for_each_attribute(std::string_view info, Visit visit) {
  std::uint64_t offset = 0;
  while (offset < info.size()) {
    const auto format = read<std::uint8_t>(info, offset);
    const auto attribute = read<std::uint8_t>(info, offset + 1);
    const auto size = read<std::uint16_t>(info, offset + 2);
    offset += 4;
    if (format != kFormatSized) continue;
    visit(attribute, slice(info, offset, size));
    offset += size;
  }
}

}  // namespace

Resources read_resources(std::string_view image_bytes, std::string_view kernel) {
  const Image image(image_bytes);
  const auto symbol = image.symbol_index(kernel);
  const Elf64_Shdr* all_info = image.find(".nv.info");
  const Elf64_Shdr* own_info = image.find(fmt::format(".nv.info.{}", kernel));
  if (!symbol || !all_info || !own_info) fail(fmt::format("it does not define {}", kernel));

  Resources resources;
  for_each_attribute(image.content(*all_info), [&](std::uint8_t attribute, std::string_view value) {
    if (attribute != kRegisters && attribute != kFrameSize && attribute != kStackSize) return;
    if (read<std::uint32_t>(value, 0) != *symbol) return;
    const auto amount = read<std::uint32_t>(value, 4);
    if (attribute == kRegisters) {
      resources.registers = to_int(amount, "a register count");
    } else {
      resources.stack_bytes = std::max(resources.stack_bytes, to_int(amount, "a stack frame"));
    }
  });
  if (resources.registers == 0) fail(fmt::format("no register count for {}", kernel));

  for_each_attribute(image.content(*own_info), [&](std::uint8_t attribute, std::string_view value) {
    if (attribute != kMaxThreads) return;
    std::uint64_t threads = 1;
    for (std::uint64_t axis = 0; axis < 3; ++axis) {
      threads *= std::min(read<std::uint32_t>(value, 4 * axis), 1U << 20);  // cannot overflow
    }
    resources.max_threads = to_int(threads, "a thread limit");
  });

  if (const Elf64_Shdr* shared = image.find(fmt::format(".nv.shared.{}", kernel))) {
    std::uint64_t bytes = shared->sh_size;
    if (bytes >= kReservedSmemBytes && image.find(".nv.shared.reserved.0")) {
      bytes -= kReservedSmemBytes;
    }
    resources.static_smem_bytes = to_int(bytes, "a shared memory size");
  }
  return resources;
}

}  // namespace moetune
